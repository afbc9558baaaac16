//! Which pod has which address: the memory of the box's address management, one small file per pod.
//!
//! A file is written beside its place and renamed, so a killed process leaves an old or a new file, never half of one. Nothing is fsynced: a power cut
//! also ends the network namespaces that the files speak of, and what it left unreadable is dropped.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::config::nth;
use crate::pod::{HostPort, PodNetwork};
use crate::{Error, Result};

/// One pod as it is remembered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    #[serde(flatten)]
    pub network: PodNetwork,
    pub host_ports: Vec<HostPort>,
    /// Counts allocations: the youngest entry tells where the search for a free address goes on.
    pub serial: u64,
}

/// All pods of the box.
#[derive(Debug)]
pub struct Ledger {
    dir: PathBuf,
    entries: BTreeMap<String, Entry>,
    ranges: Vec<Range>,
    serial: u64,
    /// Places in the ranges that pods had before a power cut: theirs when they come back.
    reserved: BTreeMap<String, Vec<u64>>,
}

/// The addresses of one family. Search goes round, so an address rests as long as possible before it is given again.
#[derive(Debug)]
struct Range {
    net: IpNet,
    used: HashSet<u64>,
    last: u64,
}

impl Range {
    /// Number of addresses, capped: more than enough for the pods of one box.
    fn size(&self) -> u64 {
        1u64 << (self.net.max_prefix_len() - self.net.prefix_len()).min(32)
    }

    /// Places that are never given: network, gateway and (IPv4) broadcast address.
    fn reserved(&self, n: u64) -> bool {
        n < 2 || (self.net.addr().is_ipv4() && n == self.size() - 1)
    }

    fn place(&self, ip: IpAddr) -> Option<u64> {
        if !self.net.contains(&ip) {
            return None;
        }
        match (self.net.network(), ip) {
            (IpAddr::V4(a), IpAddr::V4(b)) => Some(u64::from(u32::from(b) - u32::from(a))),
            (IpAddr::V6(a), IpAddr::V6(b)) => u64::try_from(u128::from(b) - u128::from(a)).ok(),
            _ => None,
        }
    }

    fn take(&mut self) -> Result<u64> {
        let size = self.size();
        let free = (1..=size)
            .map(|step| (self.last + step) % size)
            .find(|n| !self.reserved(*n) && !self.used.contains(n));
        let n = free.ok_or(Error::Exhausted(self.net))?;
        self.used.insert(n);
        self.last = n;
        Ok(n)
    }
}

impl Ledger {
    /// Reads the directory, makes it if it is missing. Files that make no sense any more (torn by a power cut, of another pod range) are removed.
    pub fn open(dir: &Path, nets: &[IpNet]) -> Result<Ledger> {
        let failed = |doing| Error::state(doing, dir);
        fs::create_dir_all(dir).map_err(failed("creating directory"))?;
        let ranges = nets
            .iter()
            .map(|net| Range {
                net: *net,
                used: HashSet::new(),
                last: 1,
            })
            .collect();
        let mut ledger = Ledger {
            dir: dir.to_owned(),
            entries: BTreeMap::new(),
            ranges,
            serial: 0,
            reserved: BTreeMap::new(),
        };
        let mut youngest: Vec<(u64, usize, u64)> = Vec::new();
        for file in fs::read_dir(dir).map_err(failed("reading directory"))? {
            let path = file.map_err(failed("reading directory"))?.path();
            let entry = fs::read(&path)
                .ok()
                .and_then(|bytes| serde_json::from_slice::<Entry>(&bytes).ok());
            let fits = entry.as_ref().is_some_and(|e| {
                path.file_name() == Some(file_name(&e.network.id).as_ref())
                    && e.network.ips.len() == ledger.ranges.len()
                    && ledger.ranges.iter().zip(&e.network.ips).all(|(r, ip)| {
                        r.place(*ip)
                            .is_some_and(|n| !r.reserved(n) && !r.used.contains(&n))
                    })
            });
            let Some(entry) = entry.filter(|_| fits) else {
                fs::remove_file(&path).map_err(failed("removing a stale file of"))?;
                continue;
            };
            for (i, (range, ip)) in ledger.ranges.iter_mut().zip(&entry.network.ips).enumerate() {
                if let Some(n) = range.place(*ip) {
                    range.used.insert(n);
                    youngest.push((entry.serial, i, n));
                }
            }
            ledger.serial = ledger.serial.max(entry.serial);
            ledger.entries.insert(entry.network.id.clone(), entry);
        }
        youngest.sort_unstable();
        for (_, i, n) in youngest {
            if let Some(range) = ledger.ranges.get_mut(i) {
                range.last = n;
            }
        }
        Ok(ledger)
    }

    pub fn get(&self, id: &str) -> Option<&Entry> {
        self.entries.get(id)
    }

    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.values()
    }

    /// The entry of a pod with these host ports: the one it has, or a new one with a free address.
    pub fn claim(
        &mut self,
        id: &str,
        host_ports: &[HostPort],
        device_prefix: &str,
    ) -> Result<Entry> {
        if let Some(entry) = self.entries.get(id) {
            if entry.host_ports == host_ports {
                return Ok(entry.clone());
            }
            let entry = Entry {
                host_ports: host_ports.to_vec(),
                ..entry.clone()
            };
            self.write(&entry)?;
            self.entries.insert(id.to_owned(), entry.clone());
            return Ok(entry);
        }
        if id.is_empty() || id.len() > 80 || id.bytes().any(|b| b == 0) {
            return Err(Error::Invalid(format!("pod id {id:?}: want 1 to 80 bytes")));
        }
        let places = match self.reserved.remove(id) {
            Some(places) => places,
            None => self.take()?,
        };
        self.serial += 1;
        let ips: Vec<IpAddr> = self
            .ranges
            .iter()
            .zip(&places)
            .map(|(r, n)| nth(&r.net, *n))
            .collect();
        let first = places.first().copied().unwrap_or_default();
        let network = PodNetwork {
            id: id.to_owned(),
            mac: mac(first),
            host_ifname: format!("{device_prefix}{first}"),
            gateways: self
                .ranges
                .iter()
                .map(|r| crate::config::gateway(&r.net))
                .collect(),
            ips,
        };
        let entry = Entry {
            network,
            host_ports: host_ports.to_vec(),
            serial: self.serial,
        };
        if let Err(e) = self.write(&entry) {
            self.give_back(&places);
            return Err(e);
        }
        self.entries.insert(id.to_owned(), entry.clone());
        Ok(entry)
    }

    /// Keeps for a pod the addresses that it had, if they are free: services, names and policies that others remember stay true.
    pub fn reserve(&mut self, id: &str, ips: &[IpAddr]) {
        if self.entries.contains_key(id)
            || self.reserved.contains_key(id)
            || ips.len() != self.ranges.len()
        {
            return;
        }
        let free = |(range, ip): (&Range, &IpAddr)| {
            range
                .place(*ip)
                .filter(|n| !range.reserved(*n) && !range.used.contains(n))
        };
        let places: Option<Vec<u64>> = self.ranges.iter().zip(ips).map(free).collect();
        let Some(places) = places else { return };
        for (range, n) in self.ranges.iter_mut().zip(&places) {
            range.used.insert(*n);
        }
        self.reserved.insert(id.to_owned(), places);
    }

    /// A free place in each range. Where all are taken, those that are only reserved are not.
    fn take(&mut self) -> Result<Vec<u64>> {
        let mut places = Vec::with_capacity(self.ranges.len());
        let mut i = 0;
        while i < self.ranges.len() {
            match self.ranges[i].take() {
                Ok(n) => {
                    places.push(n);
                    i += 1;
                }
                Err(_) if !self.reserved.is_empty() => {
                    for places in std::mem::take(&mut self.reserved).into_values() {
                        self.give_back(&places);
                    }
                }
                Err(e) => {
                    self.give_back(&places);
                    return Err(e);
                }
            }
        }
        Ok(places)
    }

    fn give_back(&mut self, places: &[u64]) {
        for (range, n) in self.ranges.iter_mut().zip(places) {
            range.used.remove(n);
        }
    }

    /// Forgets a pod; its addresses are free again.
    pub fn release(&mut self, id: &str) -> Result<()> {
        if let Some(places) = self.reserved.remove(id) {
            self.give_back(&places);
        }
        let Some(entry) = self.entries.get(id) else {
            return Ok(());
        };
        let path = self.dir.join(file_name(id));
        Error::removing(&path, fs::remove_file(&path))?;
        for (range, ip) in self.ranges.iter_mut().zip(&entry.network.ips) {
            if let Some(n) = range.place(*ip) {
                range.used.remove(&n);
            }
        }
        self.entries.remove(id);
        Ok(())
    }

    fn write(&self, entry: &Entry) -> Result<()> {
        let path = self.dir.join(file_name(&entry.network.id));
        let beside = self.dir.join("new");
        let write = || {
            fs::write(&beside, serde_json::to_vec(entry)?)?;
            fs::rename(&beside, &path)
        };
        write().map_err(Error::state("writing", &path))
    }
}

/// An id as a file name: what is neither a letter, a digit nor one of `-_.` is written as `%XX`.
fn file_name(id: &str) -> String {
    let mut name = String::with_capacity(id.len() + 5);
    for b in id.bytes() {
        if b.is_ascii_alphanumeric() || b == b'-' || b == b'_' {
            name.push(char::from(b));
        } else {
            name.push_str(&format!("%{b:02X}"));
        }
    }
    name + ".json"
}

/// Locally administered, made from the pod's place so that a new pod at an old address is the same neighbour.
fn mac(place: u64) -> [u8; 6] {
    let b = (place as u32).to_be_bytes();
    [0x0a, 0x58, b[0], b[1], b[2], b[3]]
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn open(dir: &Path, net: &str) -> Ledger {
        Ledger::open(dir, &[net.parse().unwrap()]).unwrap()
    }

    #[test]
    fn addresses_of_pods_that_will_be_back_are_kept_as_long_as_others_are_free() {
        let dir = tempfile::tempdir().unwrap();
        let mut ledger = open(dir.path(), "10.42.0.0/29");
        let ip = |s: &str| s.parse::<IpAddr>().unwrap();
        for (id, at) in [
            ("a", "10.42.0.2"),
            ("b", "10.42.0.4"),
            ("c", "10.42.0.4"),
            ("d", "10.42.0.1"),
            ("e", "192.0.2.1"),
        ] {
            ledger.reserve(id, &[ip(at)]);
        }
        let mut claimed = |id: &str| ledger.claim(id, &[], "amphi").unwrap().network.ips[0];
        assert_eq!(claimed("c"), ip("10.42.0.3"), "the first that is nobody's");
        assert_eq!(claimed("b"), ip("10.42.0.4"), "its own");
        assert_eq!(claimed("d"), ip("10.42.0.5"));
        assert_eq!(claimed("e"), ip("10.42.0.6"));
        assert_eq!(claimed("f"), ip("10.42.0.2"), "rather than none");
        assert!(ledger.claim("a", &[], "amphi").is_err());
        ledger.release("b").unwrap();
        ledger.reserve("g", &[ip("10.42.0.4")]);
        ledger.release("g").unwrap();
        let last = ledger.claim("h", &[], "amphi").unwrap().network.ips[0];
        assert_eq!(last, ip("10.42.0.4"), "who is gone for good needs none");
    }

    #[test]
    fn the_same_pod_gets_the_same_address_also_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let mut ledger = open(dir.path(), "10.42.0.0/24");
        let first = ledger.claim("a/b", &[], "amphi").unwrap();
        assert_eq!(first.network.ips, ["10.42.0.2".parse::<IpAddr>().unwrap()]);
        assert_eq!(first.network.host_ifname, "amphi2");
        ledger.claim("c", &[], "amphi").unwrap();
        let mut ledger = open(dir.path(), "10.42.0.0/24");
        assert_eq!(ledger.claim("a/b", &[], "amphi").unwrap(), first);
        assert_eq!(
            ledger.claim("d", &[], "amphi").unwrap().network.ips,
            ["10.42.0.4".parse::<IpAddr>().unwrap()]
        );
    }

    #[test]
    fn addresses_rest_before_they_are_given_again_and_run_out_with_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let mut ledger = open(dir.path(), "10.0.0.0/29");
        let ip = |e: Entry| e.network.ips[0].to_string();
        assert_eq!(ip(ledger.claim("a", &[], "p").unwrap()), "10.0.0.2");
        ledger.release("a").unwrap();
        assert_eq!(ip(ledger.claim("b", &[], "p").unwrap()), "10.0.0.3");
        for id in ["c", "d", "e", "f"] {
            ledger.claim(id, &[], "p").unwrap();
        }
        assert_eq!(ip(ledger.get("f").unwrap().clone()), "10.0.0.2");
        assert!(matches!(
            ledger.claim("g", &[], "p"),
            Err(Error::Exhausted(_))
        ));
        ledger.release("d").unwrap();
        assert_eq!(ip(ledger.claim("g", &[], "p").unwrap()), "10.0.0.5");
    }

    #[test]
    fn torn_files_and_files_of_another_range_are_dropped() {
        let dir = tempfile::tempdir().unwrap();
        open(dir.path(), "10.42.0.0/24")
            .claim("a", &[], "p")
            .unwrap();
        fs::write(dir.path().join("b.json"), b"{\"id\":\"b").unwrap();
        fs::write(dir.path().join("new"), b"").unwrap();
        assert_eq!(open(dir.path(), "10.42.0.0/24").entries().count(), 1);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        assert_eq!(open(dir.path(), "10.99.0.0/24").entries().count(), 0);
    }
}
