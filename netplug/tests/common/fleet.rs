//! Several boxes: on one switch, or each behind a leg of a router.

use amphipod_netplug::{NetConfig, Network, Overlay, Peer, PrivateKey};

use super::{Ns, TestBox};

/// Boxes that know each other.
pub struct Fleet {
    pub boxes: Vec<TestBox>,
    /// The switch or the router; a client of its own at 192.0.2.200 or 198.51.9.2.
    pub middle: Ns,
    pub client: Ns,
    overlay: Overlay,
    routed: bool,
}

impl Fleet {
    /// Boxes on one layer-2 network, 192.0.2.1 and on.
    pub fn switched(count: u8, overlay: Overlay) -> Fleet {
        Fleet::new(count, overlay, false)
    }

    /// Boxes in networks of their own, 198.51.0.2, 198.51.1.2 and on, joined by a router that knows nothing of pods.
    pub fn routed(count: u8, overlay: Overlay) -> Fleet {
        Fleet::new(count, overlay, true)
    }

    fn new(count: u8, overlay: Overlay, routed: bool) -> Fleet {
        let middle = Ns::new();
        if routed {
            middle.sh("echo 1 > /proc/sys/net/ipv4/ip_forward");
        } else {
            middle.sh("ip link add sw type bridge && ip link set sw up");
        }
        let client = Ns::new();
        let mut fleet = Fleet {
            boxes: Vec::new(),
            middle,
            client,
            overlay,
            routed,
        };
        for i in 0..count {
            let ns = Ns::new();
            fleet.plug(&ns, i);
            let b = TestBox {
                ns,
                net: None,
                dir: tempfile::tempdir().unwrap(),
            };
            fleet.boxes.push(b);
        }
        fleet.plug(&fleet.client, 9);
        for i in 0..fleet.boxes.len() {
            fleet.open(i);
        }
        fleet.introduce();
        fleet
    }

    fn plug(&self, ns: &Ns, i: u8) {
        self.middle.sh(&format!(
            "ip link add leg{i} type veth peer name eth0 netns {}",
            ns.path().display()
        ));
        if self.routed {
            self.middle.sh(&format!(
                "ip addr add 198.51.{i}.1/24 dev leg{i} && ip link set leg{i} up"
            ));
            ns.sh(&format!(
                "ip addr add 198.51.{i}.2/24 dev eth0 && ip link set eth0 up && ip route add default via 198.51.{i}.1"
            ));
        } else {
            self.middle.sh(&format!("ip link set leg{i} master sw up"));
            ns.sh(&format!(
                "ip addr add {}/24 dev eth0 && ip link set eth0 up",
                self.ip(usize::from(i))
            ));
        }
    }

    /// The address of a box; 9 is the client's.
    pub fn ip(&self, i: usize) -> String {
        if self.routed {
            format!("198.51.{i}.2")
        } else {
            format!("192.0.2.{}", i + 1)
        }
    }

    pub fn config(&self, i: usize) -> NetConfig {
        let mut config = self.boxes[i].config();
        config.pod_cidrs = vec![format!("10.42.{i}.0/24").parse().unwrap()];
        config.overlay = self.overlay;
        config.wireguard_key = Some(PrivateKey([i as u8 + 1; 32]));
        config
    }

    /// Opens the network of a box (anew).
    pub fn open(&mut self, i: usize) {
        let config = self.config(i);
        let b = &mut self.boxes[i];
        b.net = None;
        b.net = Some(b.ns.run(|| Network::open(config).unwrap()));
    }

    /// The other boxes of a box.
    pub fn peers(&self, i: usize) -> Vec<Peer> {
        (0..self.boxes.len())
            .filter(|j| *j != i)
            .map(|j| Peer {
                node: format!("box{j}"),
                ips: vec![self.ip(j).parse().unwrap()],
                pod_cidrs: vec![format!("10.42.{j}.0/24").parse().unwrap()],
                wireguard: self.boxes[j].net().wireguard_key(),
            })
            .collect()
    }

    /// Tells every box of all others.
    pub fn introduce(&self) {
        for i in 0..self.boxes.len() {
            self.boxes[i].net().set_peers(self.peers(i)).unwrap();
        }
    }
}
