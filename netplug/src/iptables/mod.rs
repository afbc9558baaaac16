//! The iptables implementation of [`Firewall`], by the programs `iptables`, `iptables-save` and `iptables-restore` of the host (and those for IPv6).
//!
//! Everything is rendered from what is wanted, and chains that differ from the last rendering are replaced, each table at once. The kernel's own order of
//! a table's rules is linear: a connection that opens costs more with more services. nftables has no such limits; this is for where it cannot be.

mod read;
mod render;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io::{self, Write};
use std::process::{Command, Stdio};

use render::{Chains, Shape, State};

use crate::firewall::{Firewall, Found, Transaction, Tunnel};
use crate::nft::{Removal, Watch};
use crate::policies;
use crate::policy::PolicyGroup;
use crate::{Error, NetConfig, Result, netns};

/// One IP family.
#[derive(Debug)]
struct Family {
    shape: Shape,
    state: State,
    /// What the kernel has of ours, as we wrote it.
    written: Chains,
}

/// Our chains in the host's tables.
#[derive(Debug)]
pub struct Iptables {
    /// The namespace of the box, in which programs are run.
    netns: File,
    families: Vec<Family>,
}

fn missing(program: &str) -> Error {
    Error::Config(format!(
        "the firewall iptables needs the program {program} on this box: install it (most distributions' package is called iptables), or use the firewall nftables, which needs no program"
    ))
}

/// Whether the programs are there.
///
/// # Errors
/// [`Error::Config`], which says what is missing and what to do.
pub fn check() -> Result<()> {
    iptables::new(false).map_err(|_| missing("iptables"))?;
    for program in ["iptables-save", "iptables-restore"] {
        let ran = Command::new(program).arg("--version").output();
        if !ran.is_ok_and(|ran| ran.status.success()) {
            return Err(missing(program));
        }
    }
    Ok(())
}

/// The program of a family.
fn tool(v4: bool) -> io::Result<iptables::IPTables> {
    iptables::new(!v4).map_err(said)
}

fn said(error: impl std::fmt::Display) -> io::Error {
    io::Error::other(error.to_string())
}

/// Runs a program with some input; its output.
fn run(program: &str, args: &[&str], input: &str) -> io::Result<String> {
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let pipe = child.stdin.take();
    let out = std::thread::scope(|scope| {
        // From a thread: a program that prints before it has read everything cannot block us.
        scope.spawn(move || pipe.map(|mut pipe| pipe.write_all(input.as_bytes())));
        child.wait_with_output()
    })?;
    if out.status.success() {
        Ok(String::from_utf8_lossy(&out.stdout).into_owned())
    } else {
        let why = String::from_utf8_lossy(&out.stderr);
        Err(said(format!("{program}: {}", why.trim())))
    }
}

impl Family {
    fn programs(&self) -> (&'static str, &'static str) {
        match self.shape.v4 {
            true => ("iptables-save", "iptables-restore"),
            false => ("ip6tables-save", "ip6tables-restore"),
        }
    }

    /// Our chains as the kernel has them.
    fn saved(&self) -> io::Result<Chains> {
        let mut chains = read::read_saved(&run(self.programs().0, &[], "")?);
        chains.retain(|(_, name), _| self.shape.owns(name));
        Ok(chains)
    }

    /// Brings the state to the kernel.
    fn write(&mut self) -> io::Result<()> {
        let mut wanted = self.shape.render(&self.state);
        for (chain, rules) in &self.written {
            if self.shape.is_kept(&chain.1, &self.state) {
                wanted.insert(chain.clone(), rules.clone());
            }
        }
        let text = render::difference(&self.written, &wanted);
        if !text.is_empty() {
            run(self.programs().1, &["--noflush", "--wait"], &text)?;
        }
        self.written = wanted;
        Ok(())
    }

    /// Puts our rules into the built-in chains, before those of others.
    fn jump(&self) -> io::Result<()> {
        let tool = tool(self.shape.v4)?;
        for (table, chain, rule) in self.shape.jumps() {
            if !tool.exists(table, chain, &rule).map_err(said)? {
                tool.insert(table, chain, &rule, 1).map_err(said)?;
            }
        }
        Ok(())
    }

    fn open(&mut self) -> io::Result<Found> {
        let saved = self.saved()?;
        let found = self.shape.decode(&saved);
        self.state.frontends = found
            .frontends
            .iter()
            .map(|(key, frontend)| (*key, frontend.clone()))
            .collect();
        self.state.hairpins = found.hairpins.iter().copied().collect();
        self.written = saved;
        self.write()?;
        self.jump()?;
        Ok(found)
    }

    fn remove(&mut self) -> io::Result<()> {
        let saved = self.saved()?;
        if saved.is_empty() {
            return Ok(());
        }
        let tool = tool(self.shape.v4)?;
        for (table, chain, rule) in self.shape.jumps() {
            tool.delete_all(table, chain, &rule).map_err(said)?;
        }
        let text = render::difference(&saved, &Chains::new());
        run(self.programs().1, &["--noflush", "--wait"], &text)?;
        self.written = Chains::new();
        Ok(())
    }
}

impl Iptables {
    /// In the current namespace.
    pub fn new(config: &NetConfig) -> Result<Iptables> {
        check()?;
        let netns = File::open("/proc/thread-self/ns/net")
            .map_err(Error::kernel("opening the network namespace of this box"))?;
        let families = [true, false]
            .into_iter()
            .filter(|v4| config.pod_cidrs.iter().any(|n| n.addr().is_ipv4() == *v4))
            .map(|v4| Family {
                shape: Shape::of(config, v4),
                state: State::default(),
                written: Chains::new(),
            });
        Ok(Iptables {
            netns,
            families: families.collect(),
        })
    }

    /// Does something for each family, inside the box's namespace.
    fn each(
        &mut self,
        doing: &str,
        mut work: impl FnMut(&mut Family) -> io::Result<()> + Send,
    ) -> Result<()> {
        let (netns, families) = (&self.netns, &mut self.families);
        netns::inside(netns, || families.iter_mut().try_for_each(&mut work))
            .map_err(Error::kernel(format!("iptables: {doing}")))
    }
}

/// Whether a removal may have hit the rules that lead to our chains. Our own chains are emptied by ourselves all the time. (The programs speak nftables
/// to the kernel; changes by the older ones, `iptables-legacy`, are told to nobody.)
fn damaged(removal: &Removal<'_>) -> bool {
    const BUILT_IN: [&str; 5] = ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"];
    ["raw", "mangle", "nat", "filter"].contains(&removal.table)
        && removal.chain.is_none_or(|chain| BUILT_IN.contains(&chain))
}

impl Firewall for Iptables {
    fn watch(&self) -> Result<Watch> {
        netns::inside(&self.netns, || Watch::open(Box::new(damaged)))
            .map_err(Error::kernel("subscribing to changes of iptables"))
    }

    fn open(&mut self, _anew: bool) -> Result<Found> {
        let mut all = Found::default();
        self.each("making our chains", |family| {
            let found = family.open()?;
            all.frontends.extend(found.frontends);
            all.hairpins.extend(found.hairpins);
            Ok(())
        })?;
        Ok(all)
    }

    fn apply(&mut self, transaction: &Transaction) -> Result<()> {
        self.each("changing services", |family| {
            let v4 = family.shape.v4;
            let state = &mut family.state;
            for change in transaction
                .changes
                .iter()
                .filter(|c| c.key.ip.is_ipv4() == v4)
            {
                match &change.new {
                    Some(new) => state.frontends.insert(change.key, new.clone()),
                    None => state.frontends.remove(&change.key),
                };
            }
            let come = transaction
                .add_hairpins
                .iter()
                .filter(|ip| ip.is_ipv4() == v4);
            state.hairpins.extend(come);
            for ip in &transaction.remove_hairpins {
                state.hairpins.remove(ip);
            }
            family.write()
        })
    }

    fn set_policies(&mut self, groups: &[PolicyGroup]) -> Result<()> {
        self.each("changing policies", |family| {
            family.state.groups = Some(policies::compile(groups, family.shape.v4));
            family.write()
        })
    }

    fn set_tunnel(&mut self, tunnel: Option<&Tunnel>) -> Result<()> {
        self.each("letting peers send to the overlay", |family| {
            family.state.tunnel = Some(tunnel.cloned());
            family.write()
        })
    }

    fn remove(&mut self) -> Result<()> {
        self.each("removing our chains", Family::remove)
    }
}
