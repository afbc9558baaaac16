//! The network of a box, as its owner uses it.

use std::collections::{BTreeSet, HashSet};
use std::error::Error as _;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ipnet::IpNet;

use crate::conntrack::{self, Stale};
use crate::firewall::{self, Firewall, Transaction, Tunnel};
use crate::ledger::{Entry, Ledger};
use crate::link::{self, Via};
use crate::netlink::Socket;
use crate::nft;
use crate::peers::wireguard::PublicKey;
use crate::peers::{self, Ways};
use crate::policy::PolicyGroup;
use crate::services::{self, Book, Key, Owner, Scope};
use crate::{Error, NetConfig, Peer, PodAttach, PodNetwork, Result, Service, config, netns};

/// MAC address of the host end of every pod link; pods know it beforehand, so nobody asks.
const HOST_MAC: [u8; 6] = [0xee, 0xee, 0xee, 0xee, 0xee, 0xee];

/// The pod network, the services and the host ports of one box.
///
/// All methods block for the time of a few netlink calls (single milliseconds): call them through `spawn_blocking`. They may be called from
/// many threads at once, but not for the same pod. The network namespace is that of the thread that called [`Network::open`].
#[derive(Debug)]
pub struct Network {
    config: NetConfig,
    gateways: Vec<IpAddr>,
    /// rtnetlink in the namespace of the box. Never locked while `state` is waited for.
    links: Mutex<Socket>,
    /// The same, for removals, which are slow: others need not wait for them.
    reaper: Mutex<Socket>,
    state: Mutex<State>,
    /// Taken by the one [`Network::guard`].
    watch: Mutex<Option<(nft::Watch, peers::Watch)>>,
    /// Locked before `links` and `state`.
    ways: Mutex<Ways>,
    /// Set by [`Network::teardown`]: nothing is repaired any more.
    ended: AtomicBool,
}

#[derive(Debug)]
struct State {
    ledger: Ledger,
    book: Book,
    firewall: Box<dyn Firewall>,
    /// The connection table in the namespace of the box.
    flows: Socket,
    /// Addresses that the firewall knows as pods that may meet themselves.
    hairpins: HashSet<IpAddr>,
    /// Whether [`Network::set_services`] was called: until then, what an earlier run installed and nobody claims is left alone.
    told: bool,
    /// What [`Network::set_policies`] was told.
    policies: Option<Vec<PolicyGroup>>,
    /// Who may send to the overlay; the outer `None`: not known yet.
    tunnel: Option<Option<Tunnel>>,
}

/// What the kernel of this box can do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// nftables answers us; needed.
    pub nftables: bool,
    /// IPv6 is on; needed for dual stack.
    pub ipv6: bool,
    /// Chains of others that drop forwarded packets by default, as Docker and some firewalls do: pods then reach nobody unless those are told.
    pub forward_drops: Vec<String>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic while locked leaves the kernel's state as it is, and every method can start from that.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Network {
    /// Makes the anchor device, routes, kernel settings and base rules, and adopts what an earlier run left: pods keep their links, services keep
    /// working until the first [`set_services`](Self::set_services) says otherwise.
    pub fn open(config: NetConfig) -> Result<Network> {
        config.check()?;
        let mut links = link::open().map_err(Error::kernel("opening a netlink socket"))?;
        let reaper = link::open().map_err(Error::kernel("opening a netlink socket"))?;
        for chain in nft::forward_drops().unwrap_or_default() {
            tracing::warn!(
                "chain {chain} drops forwarded packets by default, so pods may reach nobody: let it accept what comes from and goes to \"{}*\"",
                config.device_prefix()
            );
        }
        settings(&config)?;
        anchor(&config, &mut links)?;
        let ways = Ways::open(&config, &mut links)?;
        let ledger = Ledger::open(&config.state_dir, &config.pod_cidrs)?;
        let routes =
            peers::Watch::open().map_err(Error::kernel("subscribing to changes of routes"))?;
        let (firewall, found) = firewall::open(&config)?;
        let watch = (firewall.watch()?, routes);
        let mut book = Book::default();
        book.installed(found.frontends);
        for entry in ledger.entries() {
            book.set(
                Owner::Pod(entry.network.id.clone()),
                services::host_ports(&entry.network.ips, &entry.host_ports),
            );
        }
        let flows = conntrack::open().map_err(Error::kernel("opening a netfilter socket"))?;
        let mut state = State {
            ledger,
            book,
            firewall,
            flows,
            hairpins: found.hairpins,
            told: false,
            policies: None,
            tunnel: None,
        };
        state.settle()?;
        Ok(Network {
            gateways: config.gateways(),
            ways: Mutex::new(ways),
            config,
            links: Mutex::new(links),
            reaper: Mutex::new(reaper),
            state: Mutex::new(state),
            watch: Mutex::new(Some(watch)),
            ended: AtomicBool::new(false),
        })
    }

    /// Connects a pod: link, address, default route, host ports. Idempotent; the same id gets the same address.
    pub fn attach(&self, pod: &PodAttach) -> Result<PodNetwork> {
        let entry = lock(&self.state).ledger.claim(
            &pod.id,
            &pod.host_ports,
            self.config.device_prefix(),
        )?;
        self.connect(&entry, &pod.netns, &pod.ifname)?;
        let mut state = lock(&self.state);
        let keys = state.book.set(
            Owner::Pod(pod.id.clone()),
            services::host_ports(&entry.network.ips, &entry.host_ports),
        );
        state.apply(&keys)?;
        Ok(entry.network)
    }

    /// Keeps for pods that are about to be connected the addresses that they had before a power cut, if those are free.
    pub fn reserve<'a>(&self, pods: impl IntoIterator<Item = (&'a str, &'a [IpAddr])>) {
        let mut state = lock(&self.state);
        for (id, ips) in pods {
            state.ledger.reserve(id, ips);
        }
    }

    /// Disconnects a pod and frees its address. Unknown ids are fine; the namespace may be gone.
    pub fn detach(&self, id: &str) -> Result<()> {
        let Some(entry) = lock(&self.state).ledger.get(id).cloned() else {
            return lock(&self.state).ledger.release(id);
        };
        self.unlink(std::slice::from_ref(&entry.network.host_ifname))?;
        let mut state = lock(&self.state);
        let keys = state.book.set(Owner::Pod(id.to_owned()), Vec::new());
        state.ledger.release(id)?;
        state.apply(&keys)
    }

    /// The connected pods, in the order of their ids.
    pub fn attached(&self) -> Vec<PodNetwork> {
        lock(&self.state)
            .ledger
            .entries()
            .map(|e| e.network.clone())
            .collect()
    }

    /// Detaches every pod that is not in `ids` and removes links that belong to nobody.
    pub fn retain(&self, ids: &[&str]) -> Result<()> {
        let keep: HashSet<&str> = ids.iter().copied().collect();
        let (kept, gone): (Vec<_>, Vec<_>) = self
            .attached()
            .into_iter()
            .partition(|p| keep.contains(p.id.as_str()));
        let known: HashSet<String> = kept.into_iter().map(|p| p.host_ifname).collect();
        let stray: Vec<String> = self
            .pod_links()?
            .into_iter()
            .filter(|name| !known.contains(name))
            .collect();
        self.unlink(&stray)?;
        for pod in gone {
            self.detach(&pod.id)?;
        }
        Ok(())
    }

    /// Makes exactly these services exist; only what differs is sent to the kernel, in one transaction.
    pub fn set_services(&self, services: Vec<Service>) -> Result<()> {
        let mut state = lock(&self.state);
        let keep: BTreeSet<&str> = services.iter().map(|s| s.key.as_str()).collect();
        let gone: Vec<String> = state
            .book
            .services()
            .filter(|key| !keep.contains(key))
            .map(str::to_owned)
            .collect();
        for key in gone {
            state.book.set(Owner::Service(key), Vec::new());
        }
        for service in &services {
            state.book.set(
                Owner::Service(service.key.clone()),
                services::service(service),
            );
        }
        state.told = true;
        state.settle()
    }

    /// Adds or replaces one service. The cost does not depend on how many others there are.
    pub fn upsert_service(&self, service: Service) -> Result<()> {
        let mut state = lock(&self.state);
        let keys = state.book.set(
            Owner::Service(service.key.clone()),
            services::service(&service),
        );
        state.apply(&keys)
    }

    /// Removes one service; unknown keys are fine.
    pub fn remove_service(&self, key: &str) -> Result<()> {
        let mut state = lock(&self.state);
        let keys = state.book.set(Owner::Service(key.to_owned()), Vec::new());
        state.apply(&keys)
    }

    /// Makes exactly these policies hold for the pods of this box; only what differs is sent to the kernel. Connections that are open stay open.
    pub fn set_policies(&self, groups: Vec<PolicyGroup>) -> Result<()> {
        let mut state = lock(&self.state);
        let state = &mut *state;
        let groups = state.policies.insert(groups);
        match state.firewall.set_policies(groups) {
            Err(error) => {
                tracing::warn!(
                    "the packet filter did not take the policies ({error}: {:?}); making all rules anew",
                    error.errno()
                );
                state.recover(true)
            }
            done => done,
        }
    }

    /// Makes the pods of exactly these boxes reachable: routes, and a VXLAN device where one is needed. Only what differs is sent to the kernel.
    /// A box that is gone loses its routes. What cannot be reached is logged, and fails nothing else.
    pub fn set_peers(&self, peers: Vec<Peer>) -> Result<()> {
        let mut ways = lock(&self.ways);
        ways.set(&mut lock(&self.links), peers)?;
        lock(&self.state).set_tunnel(&ways)
    }

    /// Makes links, routes and rules again as they should be, as after somebody flushed all rules or removed the anchor device.
    pub fn repair(&self) -> Result<()> {
        if self.ended.load(Ordering::Acquire) {
            return Ok(());
        }
        anchor(&self.config, &mut lock(&self.links))?;
        for pod in self.attached() {
            box_side(&mut lock(&self.links), &pod)?;
        }
        self.repair_ways()?;
        lock(&self.state).recover(true)
    }

    /// What peers must know of this box to encrypt what they send to it ([`Peer::wireguard`]); `None` for the other overlays.
    pub fn wireguard_key(&self) -> Option<PublicKey> {
        lock(&self.ways).public_key()
    }

    /// The gateways of the pods, one per IP family: addresses of the box that every pod can reach.
    pub fn gateways(&self) -> &[IpAddr] {
        &self.gateways
    }

    /// What this kernel can do, and what stands in the way; changes nothing.
    pub fn probe() -> Capabilities {
        Capabilities {
            nftables: nft::usable(),
            ipv6: Path::new("/proc/net/if_inet6").exists(),
            forward_drops: nft::forward_drops().unwrap_or_default(),
        }
    }

    fn repair_ways(&self) -> Result<()> {
        if self.ended.load(Ordering::Acquire) {
            return Ok(());
        }
        let mut ways = lock(&self.ways);
        ways.apply(&mut lock(&self.links))?;
        lock(&self.state).set_tunnel(&ways)
    }

    /// Repairs the rules whenever somebody removes them, and the ways to other boxes when links come and go, for as long as it is polled. Sleeps
    /// until then.
    pub async fn guard(self: Arc<Self>) {
        let Some((rules, routes)) = lock(&self.watch).take() else {
            return;
        };
        let deaf = |error| {
            tracing::warn!("changes of the packet filter or of routes are not noticed: {error}");
        };
        let (mut rules, mut routes) = match (rules.listen(), routes.listen()) {
            (Ok(rules), Ok(routes)) => (rules, routes),
            (Err(error), _) | (_, Err(error)) => return deaf(error),
        };
        loop {
            let (noticed, all) = tokio::select! {
                noticed = rules.damaged() => (noticed, true),
                noticed = routes.changed() => (noticed, false),
            };
            if let Err(error) = noticed {
                return deaf(error);
            }
            let network = self.clone();
            let work = move || match all {
                true => network.repair(),
                false => network.repair_ways(),
            };
            match tokio::task::spawn_blocking(work).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    let reason = error.source().map(ToString::to_string).unwrap_or_default();
                    tracing::error!(
                        "rules or routes were removed and cannot be restored: {error}: {reason}"
                    );
                }
                Err(_) => return,
            }
        }
    }

    /// Uninstall: removes every link, route, rule and file that [`open`](Self::open) and [`attach`](Self::attach) made. Kernel settings
    /// (`ip_forward`) stay, as others may rely on them by now. Nothing else may be called afterwards.
    pub fn teardown(&self) -> Result<()> {
        self.ended.store(true, Ordering::Release);
        self.retain(&[])?;
        let mut state = lock(&self.state);
        state.firewall.remove()?;
        drop(state);
        let mut ways = lock(&self.ways);
        let mut links = lock(&self.links);
        ways.remove(&mut links)?;
        let routes = self
            .config
            .pod_cidrs
            .iter()
            .map(|net| link::delete_route(*net, Via::Unreachable))
            .collect();
        link::apply(&mut links, routes, &[libc::ESRCH])
            .map_err(Error::kernel("removing routes"))?;
        delete_link(&mut links, &self.config.device)?;
        let dir = &self.config.state_dir;
        match fs::remove_dir(dir) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(Error::State {
                doing: "removing",
                path: dir.clone(),
                source,
            }),
            _ => Ok(()),
        }
    }

    /// Links on this box whose names say that they are ours and belong to a pod.
    fn pod_links(&self) -> Result<Vec<String>> {
        let links = link::list(&mut lock(&self.links)).map_err(Error::kernel("listing links"))?;
        let prefix = self.config.device_prefix();
        let ours = |name: &str| {
            name != self.config.device
                && name
                    .strip_prefix(prefix)
                    .is_some_and(|n| n.bytes().all(|b| b.is_ascii_digit()))
        };
        Ok(links
            .into_iter()
            .filter(|l| l.kind == "veth" && ours(&l.name))
            .map(|l| l.name)
            .collect())
    }

    /// Removes links of pods, together with those of other pods that leave at the same time.
    fn unlink(&self, names: &[String]) -> Result<()> {
        let failed = || Error::kernel(format!("removing the links {names:?}"));
        let mut doomed = Vec::new();
        for name in names {
            let mut links = lock(&self.links);
            if let Some(link) = link::find(&mut links, name).map_err(failed())? {
                link::apply(&mut links, vec![link::doom(link.index)], &[libc::ENODEV])
                    .map_err(failed())?;
                doomed.push(name);
            }
        }
        let mut reaper = lock(&self.reaper);
        for name in doomed {
            // Whoever held the reaper before, or the first round, may have taken it along.
            if link::find(&mut reaper, name).map_err(failed())?.is_some() {
                link::apply(&mut reaper, vec![link::delete_doomed()], &[libc::ENODEV])
                    .map_err(failed())?;
            }
        }
        Ok(())
    }

    fn connect(&self, entry: &Entry, netns: &Path, ifname: &str) -> Result<()> {
        if ifname.is_empty()
            || ifname.len() > 15
            || ifname == "lo"
            || ifname
                .bytes()
                .any(|b| b == b'/' || b.is_ascii_whitespace() || b == 0)
        {
            return Err(Error::Invalid(format!(
                "{ifname:?} cannot be the name of a pod's link"
            )));
        }
        let pod = &entry.network;
        let ns = netns::open(netns).map_err(Error::kernel(format!(
            "opening network namespace {}",
            netns.display()
        )))?;
        let mut inside = netns::link_socket(&ns).map_err(Error::kernel(format!(
            "entering network namespace {}",
            netns.display()
        )))?;
        let linking = || Error::kernel(format!("linking pod {} to the box", pod.id));
        let there = link::find(&mut inside, ifname).map_err(linking())?;
        let mtu = lock(&self.ways).pod_mtu();
        let mut links = lock(&self.links);
        let here = link::find(&mut links, &pod.host_ifname).map_err(linking())?;
        let paired = matches!((&here, &there), (Some(h), Some(t)) if h.kind == "veth" && h.peer == Some(t.index) && t.peer == Some(h.index));
        if !paired {
            for (link, socket) in [(here, &mut *links), (there, &mut inside)] {
                if let Some(link) = link {
                    // One end takes the other along.
                    link::apply(socket, vec![link::delete(link.index)], &[libc::ENODEV])
                        .map_err(linking())?;
                }
            }
            let message = link::add_veth((&pod.host_ifname, HOST_MAC), (ifname, pod.mac), &ns, mtu);
            links.request(message).map_err(linking())?;
        }
        box_side(&mut links, pod)?;
        drop(links);

        let there = link::find(&mut inside, ifname)
            .map_err(linking())?
            .map_or(0, |l| l.index);
        let mut steps = vec![link::up(1), link::up(there)];
        for (ip, gateway) in pod.ips.iter().zip(&pod.gateways) {
            let everywhere = if ip.is_ipv4() {
                IpNet::V4(Default::default())
            } else {
                IpNet::V6(Default::default())
            };
            steps.push(link::add_address(there, *ip));
            steps.push(link::add_neighbour(there, *gateway, HOST_MAC));
            steps.push(link::add_route(
                everywhere,
                Via::Gateway {
                    index: there,
                    gateway: *gateway,
                },
            ));
        }
        link::apply(&mut inside, steps, &[]).map_err(Error::kernel(format!(
            "setting addresses and routes inside pod {}",
            pod.id
        )))
    }
}

impl State {
    fn hairpin_changes(&self) -> (Vec<IpAddr>, Vec<IpAddr>) {
        let wanted: HashSet<IpAddr> = self
            .ledger
            .entries()
            .flat_map(|e| e.network.ips.iter().copied())
            .collect();
        (
            wanted.difference(&self.hairpins).copied().collect(),
            self.hairpins.difference(&wanted).copied().collect(),
        )
    }

    /// Brings these frontends, and the pods, to the kernel. If the kernel refuses, somebody else changed our table: starts from what is there.
    fn apply(&mut self, keys: &BTreeSet<Key>) -> Result<()> {
        match self.send(keys) {
            Err(error) => {
                tracing::warn!(
                    "the packet filter is not as we left it ({error}: {:?}); comparing and repairing it",
                    error.errno()
                );
                self.recover(false)
            }
            done => done,
        }
    }

    fn send(&mut self, keys: &BTreeSet<Key>) -> Result<()> {
        let (add_hairpins, remove_hairpins) = self.hairpin_changes();
        let transaction = Transaction {
            changes: self.book.changes(keys),
            add_hairpins,
            remove_hairpins,
        };
        if transaction.is_empty() {
            return Ok(());
        }
        self.firewall.apply(&transaction)?;
        self.hairpins.extend(&transaction.add_hairpins);
        self.hairpins
            .retain(|ip| !transaction.remove_hairpins.contains(ip));
        let changes = transaction.changes.clone();
        self.book.done(transaction.changes);
        let stale = Stale::of(&changes, |key| {
            let both = [Scope::External, Scope::Everyone].map(|scope| Key { scope, ..*key });
            both.iter()
                .filter_map(|k| self.book.current().get(k))
                .flat_map(|f| f.endpoints().to_vec())
                .collect()
        });
        if !stale.is_empty()
            && let Err(error) = conntrack::forget(&mut self.flows, &stale)
        {
            tracing::warn!(
                "UDP flows to endpoints that are gone may linger for minutes: the connection table could not be cleaned: {error}"
            );
        }
        Ok(())
    }

    /// Lets the peers of the overlay, and nobody else, send to it.
    fn set_tunnel(&mut self, ways: &Ways) -> Result<()> {
        let tunnel = ways.tunnel();
        if !ways.told() || self.tunnel.as_ref() == Some(&tunnel) {
            return Ok(());
        }
        self.firewall.set_tunnel(tunnel.as_ref())?;
        self.tunnel = Some(tunnel);
        Ok(())
    }

    /// Compares everything.
    fn settle(&mut self) -> Result<()> {
        let keys = if self.told {
            self.book.keys()
        } else {
            self.book.claimed()
        };
        self.apply(&keys)
    }

    /// Asks the kernel what is there and goes on from that.
    fn recover(&mut self, anew: bool) -> Result<()> {
        let found = self.firewall.open(anew)?;
        if let Some(groups) = &self.policies {
            self.firewall.set_policies(groups)?;
        }
        if let Some(tunnel) = self.tunnel.as_ref().filter(|_| anew) {
            self.firewall.set_tunnel(tunnel.as_ref())?;
        }
        self.book.installed(found.frontends);
        self.hairpins = found.hairpins;
        let keys = if self.told {
            self.book.keys()
        } else {
            self.book.claimed()
        };
        self.send(&keys)
    }
}

/// Sets the box's end of a pod's link; does nothing where there is none.
fn box_side(links: &mut Socket, pod: &PodNetwork) -> Result<()> {
    let failed = || {
        Error::kernel(format!(
            "setting the box's end of the link of pod {}",
            pod.id
        ))
    };
    let Some(link) = link::find(links, &pod.host_ifname).map_err(failed())? else {
        return Ok(());
    };
    let index = link.index;
    let mut steps = vec![link::up(index), link::no_link_local(index)];
    for (ip, gateway) in pod.ips.iter().zip(&pod.gateways) {
        if ip.is_ipv4() {
            steps.push(link::route_localnet(index));
        }
        let via = Via::Link {
            index,
            source: Some(*gateway),
        };
        steps.push(link::add_route(IpNet::from(*ip), via));
        steps.push(link::add_neighbour(index, *ip, pod.mac));
    }
    // Kernels without IPv6 do not know its settings.
    link::apply(links, steps, &[libc::EAFNOSUPPORT]).map_err(failed())
}

fn delete_link(links: &mut Socket, name: &str) -> Result<()> {
    let failed = || Error::kernel(format!("removing link {name}"));
    match link::find(links, name).map_err(failed())? {
        Some(link) => {
            link::apply(links, vec![link::delete(link.index)], &[libc::ENODEV]).map_err(failed())
        }
        None => Ok(()),
    }
}

/// The device that carries the gateway's address, and the routes that do not belong to a pod.
fn anchor(config: &NetConfig, links: &mut Socket) -> Result<()> {
    let failed = || Error::kernel(format!("making device {}", config.device));
    if link::find(links, &config.device)
        .map_err(failed())?
        .is_none()
    {
        // Either will do: it never has a port. Some kernels have only one of the two.
        let bridge = link::apply(
            links,
            vec![link::add_anchor(&config.device, "bridge")],
            &[libc::EEXIST],
        );
        if bridge.is_err() {
            link::apply(
                links,
                vec![link::add_anchor(&config.device, "dummy")],
                &[libc::EEXIST],
            )
            .map_err(failed())?;
        }
    }
    let index = link::find(links, &config.device)
        .map_err(failed())?
        .map_or(0, |l| l.index);
    let wanted: HashSet<IpAddr> = config
        .gateways()
        .into_iter()
        .chain(config.local_ips.iter().copied())
        .collect();
    let mut steps = vec![link::up(index)];
    for ip in link::addresses(links, index).map_err(failed())? {
        let ours = |ip: &IpAddr| !matches!(ip, IpAddr::V6(a) if a.is_unicast_link_local());
        if ours(&ip) && !wanted.contains(&ip) {
            steps.push(link::delete_address(index, ip));
        }
    }
    steps.extend(wanted.iter().map(|ip| link::add_address(index, *ip)));
    for net in &config.pod_cidrs {
        // Pods have routes of their own; addresses without a pod lead nowhere, and say so.
        steps.push(link::add_route(*net, Via::Unreachable));
        let same = |n: &&IpNet| n.addr().is_ipv4() == net.addr().is_ipv4();
        if let Some(services) = config.service_cidrs.iter().find(same) {
            // The box itself reaches services also without a default route, and from an address that every pod can answer.
            steps.push(link::add_route(
                *services,
                Via::Link {
                    index,
                    source: Some(config::gateway(net)),
                },
            ));
        }
    }
    link::apply(links, steps, &[]).map_err(Error::kernel(format!(
        "setting addresses and routes of {}",
        config.device
    )))
}

/// Kernel settings that pods need. Written only where they differ.
fn settings(config: &NetConfig) -> Result<()> {
    for (v4, path) in [
        (true, "/proc/sys/net/ipv4/ip_forward"),
        (false, "/proc/sys/net/ipv6/conf/all/forwarding"),
    ] {
        if !config.pod_cidrs.iter().any(|n| n.addr().is_ipv4() == v4) {
            continue;
        }
        let is_on = fs::read_to_string(path).is_ok_and(|s| s.trim() == "1");
        if !is_on {
            fs::write(path, "1").map_err(|source| Error::State {
                doing: "turning on IP forwarding in",
                path: path.into(),
                source,
            })?;
        }
    }
    Ok(())
}
