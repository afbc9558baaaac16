//! The network of a box, as its owner uses it.

mod settings;
mod state;
mod wiring;

use std::collections::{BTreeSet, HashSet};
use std::error::Error as _;
use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::conntrack;
use crate::firewall;
use crate::ledger::Ledger;
use crate::link::{self, Via};
use crate::netlink::Socket;
use crate::nft;
use crate::peers::wireguard::PublicKey;
use crate::peers::{self, Ways};
use crate::policy::PolicyGroup;
use crate::services::{self, Book, Owner};
use crate::{Error, NetConfig, Peer, PodAttach, PodNetwork, Result, Service};

use settings::Settings;
use state::State;
use wiring::{anchor, box_side, delete_link};

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
    settings: Mutex<Settings>,
    /// Set by [`Network::teardown`]: nothing is repaired any more.
    ended: AtomicBool,
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
        anchor(&config, &mut links)?;
        let ways = Ways::open(&config, &mut links)?;
        let ledger = Ledger::open(&config.state_dir, &config.pod_cidrs)?;
        let settings = Settings::turn_on(&config)?;
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
            settings: Mutex::new(settings),
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

    /// Uninstall: removes every link, route, rule and file that [`open`](Self::open) and [`attach`](Self::attach) made, and turns off
    /// the kernel settings (`ip_forward`) that it turned on since the machine started. Nothing else may be called afterwards.
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
        lock(&self.settings).put_back()?;
        let dir = &self.config.state_dir;
        Error::removing(dir, fs::remove_dir(dir))
    }
}
