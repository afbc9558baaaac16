//! Boxes, pods and outsiders as network namespaces of this very process: a namespace lives as long as its file is open, so nothing is left behind.

#![allow(dead_code, clippy::unwrap_used)]

pub mod fleet;

use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use amphipod_netplug::{
    Endpoint, FirewallKind, HostPort, NetConfig, Network, PodAttach, PodNetwork, Protocol, Service,
    ServicePort,
};
use nix::sched::{CloneFlags, setns, unshare};

/// How long an answer may take; what must not come is waited for as long as `SOON`.
pub const TIMEOUT: Duration = Duration::from_secs(5);
pub const SOON: Duration = Duration::from_millis(400);

pub fn is_root() -> bool {
    // SAFETY: no arguments, cannot fail.
    unsafe { libc::geteuid() == 0 }
}

/// The packet filter that this test program is about: its name says it.
pub fn firewall() -> FirewallKind {
    match env!("CARGO_CRATE_NAME") {
        "iptables" => FirewallKind::Iptables,
        _ => FirewallKind::Nftables,
    }
}

/// A network namespace.
pub struct Ns(File);

impl Ns {
    pub fn new() -> Ns {
        let file = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            File::open("/proc/thread-self/ns/net").unwrap()
        });
        let ns = Ns(file.join().unwrap());
        ns.sh("ip link set lo up");
        ns
    }

    pub fn path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd()).into()
    }

    /// Runs on a thread inside the namespace.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|s| {
            s.spawn(|| {
                setns(&self.0, CloneFlags::CLONE_NEWNET).unwrap();
                work()
            })
            .join()
            .unwrap()
        })
    }

    /// Starts a thread that stays inside the namespace.
    pub fn thread(&self, work: impl FnOnce() + Send + 'static) {
        let file = self.0.try_clone().unwrap();
        std::thread::spawn(move || {
            setns(&file, CloneFlags::CLONE_NEWNET).unwrap();
            work();
        });
    }

    /// Runs a shell command inside the namespace; its output.
    pub fn sh(&self, command: &str) -> String {
        let out = self.run(|| Command::new("sh").args(["-c", command]).output().unwrap());
        assert!(
            out.status.success(),
            "{command}: {}",
            String::from_utf8_lossy(&out.stderr)
        );
        String::from_utf8(out.stdout).unwrap()
    }

    /// All rules, without counters and without what the programs of iptables leave behind.
    pub fn rules(&self) -> String {
        match firewall() {
            FirewallKind::Nftables => self.sh("nft -s list ruleset"),
            FirewallKind::Iptables => {
                self.sh("(iptables-save; ip6tables-save) | sed -n '/^-A\\|^:[^A-Z]/p' | sort")
            }
        }
    }

    /// Joins two namespaces by a cable.
    pub fn cable(&self, name: &str, address: &str, other: &Ns, other_address: &str) {
        self.sh(&format!(
            "ip link add {name} type veth peer name eth0 netns {}",
            other.path().display()
        ));
        self.sh(&format!(
            "ip addr add {address} dev {name} && ip link set {name} up"
        ));
        other.sh(&format!(
            "ip addr add {other_address} dev eth0 && ip link set eth0 up"
        ));
    }

    /// A TCP server that tells each client its name and the address it saw, until the process ends.
    pub fn serve_tcp(&self, address: &str, name: &str) {
        let listener = self.run(|| TcpListener::bind(address).unwrap());
        let name = name.to_owned();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { continue };
                let peer = stream.peer_addr().unwrap().ip();
                let _ = write!(stream, "{name} saw {peer}");
            }
        });
    }

    /// The same by UDP, one answer for each datagram.
    pub fn serve_udp(&self, address: &str, name: &str) {
        let socket = self.run(|| UdpSocket::bind(address).unwrap());
        let name = name.to_owned();
        std::thread::spawn(move || {
            let mut buffer = [0; 100];
            while let Ok((_, peer)) = socket.recv_from(&mut buffer) {
                let _ = socket.send_to(format!("{name} saw {}", peer.ip()).as_bytes(), peer);
            }
        });
    }

    /// What a TCP server says, or why not.
    pub fn tcp(&self, address: &str) -> Result<String, std::io::Error> {
        self.tcp_within(address, TIMEOUT)
    }

    pub fn tcp_within(&self, address: &str, wait: Duration) -> Result<String, std::io::Error> {
        let address: SocketAddr = address.parse().unwrap();
        self.run(|| {
            let mut stream = TcpStream::connect_timeout(&address, wait)?;
            stream.set_read_timeout(Some(wait))?;
            let mut said = String::new();
            stream.read_to_string(&mut said)?;
            Ok(said)
        })
    }

    pub fn udp_socket(&self) -> UdpSocket {
        let socket = self.run(|| UdpSocket::bind("[::]:0").unwrap());
        socket.set_read_timeout(Some(TIMEOUT)).unwrap();
        socket
    }

    pub fn udp(&self, address: &str) -> Result<String, std::io::Error> {
        ask_udp(&self.udp_socket(), address)
    }
}

pub fn ask_udp(socket: &UdpSocket, address: &str) -> Result<String, std::io::Error> {
    socket.connect(address.parse::<SocketAddr>().unwrap())?;
    socket.send(b"?")?;
    let mut buffer = [0; 100];
    let n = socket.recv(&mut buffer)?;
    Ok(String::from_utf8_lossy(&buffer[..n]).into_owned())
}

/// A box with a network.
pub struct TestBox {
    pub ns: Ns,
    pub net: Option<Network>,
    pub dir: tempfile::TempDir,
}

/// A pod of a box.
pub struct Pod {
    pub ns: Ns,
    pub net: PodNetwork,
}

impl Pod {
    pub fn ip(&self) -> IpAddr {
        self.net.ips[0]
    }

    pub fn ip6(&self) -> IpAddr {
        self.net.ips[1]
    }

    pub fn at6(&self, port: u16) -> String {
        SocketAddr::new(self.ip6(), port).to_string()
    }

    pub fn at(&self, port: u16) -> String {
        SocketAddr::new(self.ip(), port).to_string()
    }
}

impl TestBox {
    pub fn new() -> TestBox {
        let dir = tempfile::tempdir().unwrap();
        let mut b = TestBox {
            ns: Ns::new(),
            net: None,
            dir,
        };
        b.open();
        b
    }

    pub fn config(&self) -> NetConfig {
        let mut config = NetConfig::new(
            "10.42.0.0/24".parse().unwrap(),
            "10.42.0.0/16".parse().unwrap(),
            "10.43.0.0/16".parse().unwrap(),
            self.dir.path().join("net"),
        );
        config.firewall = firewall();
        config
    }

    /// Opens the network (anew).
    pub fn open(&mut self) {
        let config = self.config();
        self.net = None;
        self.net = Some(self.ns.run(|| Network::open(config).unwrap()));
    }

    pub fn net(&self) -> &Network {
        self.net.as_ref().unwrap()
    }

    pub fn pod(&self, id: &str) -> Pod {
        self.pod_with(id, vec![])
    }

    pub fn pod_with(&self, id: &str, host_ports: Vec<HostPort>) -> Pod {
        let ns = Ns::new();
        let net = self
            .net()
            .attach(&PodAttach {
                id: id.into(),
                netns: ns.path(),
                ifname: "eth0".into(),
                host_ports,
            })
            .unwrap();
        Pod { ns, net }
    }

    /// A pod that serves its name by TCP and UDP on port 8080.
    pub fn server(&self, id: &str) -> Pod {
        let pod = self.pod(id);
        pod.ns.serve_tcp("0.0.0.0:8080", id);
        pod.ns.serve_udp("0.0.0.0:8080", id);
        pod
    }

    /// Gives the box a neighbour at 192.0.2.2; the box is 192.0.2.1 to it.
    pub fn outsider(&self) -> Ns {
        let outside = Ns::new();
        self.ns
            .cable("uplink", "192.0.2.1/24", &outside, "192.0.2.2/24");
        outside
    }
}

/// A service with TCP and UDP port 80 towards port 8080 of pods.
pub fn service(name: &str, ip: &str, pods: &[&Pod]) -> Service {
    let endpoints: Vec<Endpoint> = pods
        .iter()
        .map(|p| Endpoint::ready(p.ip(), 8080, true))
        .collect();
    let port = |protocol| ServicePort {
        name: String::new(),
        protocol,
        port: 80,
        node_port: None,
        endpoints: endpoints.clone(),
    };
    Service {
        key: format!("default/{name}"),
        cluster_ips: vec![ip.parse().unwrap()],
        ports: vec![port(Protocol::Tcp), port(Protocol::Udp)],
        ..Service::default()
    }
}

/// Waits until something holds.
pub fn eventually<T>(what: &str, mut check: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = check() {
            return value;
        }
        assert!(start.elapsed() < TIMEOUT, "waited too long: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
