//! WireGuard devices by generic netlink (linux/wireguard.h, wg(8)): our key, our peers, and which addresses each of them may use.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use crate::link::{self, octets};
use crate::netlink::message::{attribute, attributes};
use crate::netlink::{Message, Socket};
use crate::{Error, Result};

/// A public key.
pub type PublicKey = [u8; 32];

/// A private key: any 32 random bytes. It is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct PrivateKey(pub [u8; 32]);

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(..)")
    }
}

const NETLINK_GENERIC: i32 = 16;
/// `GENL_ID_CTRL`, `CTRL_CMD_GETFAMILY`, and its attributes.
const CONTROL: u16 = 16;
const GET_FAMILY: u8 = 3;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;
/// `WG_CMD_*`
const GET_DEVICE: u8 = 0;
const SET_DEVICE: u8 = 1;
/// `WGDEVICE_A_*`
const IFINDEX: u16 = 1;
const PRIVATE_KEY: u16 = 3;
const PUBLIC_KEY: u16 = 4;
const LISTEN_PORT: u16 = 6;
const PEERS: u16 = 8;
/// `WGPEER_A_*`
const PEER_KEY: u16 = 1;
const PEER_FLAGS: u16 = 3;
const PEER_ENDPOINT: u16 = 4;
const PEER_ALLOWED: u16 = 9;
/// `WGPEER_F_REMOVE_ME`, `WGPEER_F_REPLACE_ALLOWEDIPS`
const REMOVE: u32 = 1;
const REPLACE_ALLOWED: u32 = 2;
/// `WGALLOWEDIP_A_*`
const ALLOWED_FAMILY: u16 = 1;
const ALLOWED_ADDRESS: u16 = 2;
const ALLOWED_PREFIX: u16 = 3;

/// Peers told in one message; an attribute holds at most 64 KiB.
const AT_ONCE: usize = 100;

/// Another box as WireGuard sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partner {
    pub key: PublicKey,
    pub endpoint: SocketAddr,
    /// What may come from it, and goes to it.
    pub allowed: BTreeSet<IpNet>,
}

/// One thing to tell the device.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Change<'a> {
    /// Known or not, this is how it should be; the endpoint only where it is news: a peer that moved was followed by the kernel itself.
    Set {
        partner: &'a Partner,
        endpoint: bool,
    },
    Remove(PublicKey),
}

/// What makes of the peers that the device knows those that are wanted. `before` are those that were wanted last.
fn changes<'a>(
    known: &BTreeMap<PublicKey, BTreeSet<IpNet>>,
    before: &[Partner],
    wanted: &'a [Partner],
) -> Vec<Change<'a>> {
    let gone = known
        .keys()
        .filter(|key| wanted.iter().all(|partner| partner.key != **key));
    let set = wanted.iter().filter_map(|partner| {
        let moved = before
            .iter()
            .any(|b| b.key == partner.key && b.endpoint != partner.endpoint);
        match known.get(&partner.key) {
            Some(allowed) if *allowed == partner.allowed && !moved => None,
            there => Some(Change::Set {
                partner,
                endpoint: moved || there.is_none(),
            }),
        }
    });
    // An address belongs to one peer: who loses it is told first.
    gone.map(|key| Change::Remove(*key)).chain(set).collect()
}

/// The device of this box.
#[derive(Debug)]
pub struct Device {
    socket: Socket,
    family: u16,
    index: i32,
    public: PublicKey,
    partners: Vec<Partner>,
}

impl Device {
    /// Makes the device in the current network namespace, or takes over the one that is there. Packets of this box and those that it
    /// masquerades start from `addresses`, which lie in the range that peers allow.
    pub fn open(
        links: &mut Socket,
        name: &str,
        key: &PrivateKey,
        port: u16,
        addresses: &[IpAddr],
    ) -> Result<Device> {
        let failed = || Error::kernel(format!("making device {name}"));
        let index = match link::find(links, name).map_err(failed())? {
            Some(link) if link.kind == "wireguard" => link.index,
            found => {
                if let Some(other) = found {
                    links.request(link::delete(other.index)).map_err(failed())?;
                }
                links
                    .request(link::add_anchor(name, "wireguard"))
                    .map_err(failed())?;
                let made = link::find(links, name).map_err(failed())?;
                made.map_or(0, |link| link.index)
            }
        };
        let mut socket = Socket::open(NETLINK_GENERIC).map_err(failed())?;
        let family = family(&mut socket).map_err(failed())?;
        let mut device = Device {
            socket,
            family,
            index,
            public: [0; 32],
            partners: Vec::new(),
        };
        let mut message = device.message(SET_DEVICE);
        message
            .attr(PRIVATE_KEY, &key.0)
            .attr(LISTEN_PORT, &port.to_ne_bytes());
        device.socket.request(message).map_err(failed())?;
        device.public = device.read().map_err(failed())?.0;
        let mut settings: Vec<Message> = addresses
            .iter()
            .map(|ip| link::add_address(index, *ip))
            .collect();
        settings.push(link::up(index));
        link::apply(links, settings, &[libc::EEXIST, libc::EAFNOSUPPORT]).map_err(failed())?;
        Ok(device)
    }

    /// What peers must know of this box.
    pub fn public_key(&self) -> PublicKey {
        self.public
    }

    pub fn index(&self) -> i32 {
        self.index
    }

    /// Makes these the peers. Sessions with those that stay go on.
    pub fn set(&mut self, wanted: Vec<Partner>) -> io::Result<()> {
        let known = self.read()?.1;
        let changes = changes(&known, &self.partners, &wanted);
        for some in changes.chunks(AT_ONCE) {
            let mut message = self.message(SET_DEVICE);
            message.nest(PEERS, |m| {
                for change in some {
                    m.nest(0, |m| write(m, change));
                }
            });
            self.socket.request(message)?;
        }
        self.partners = wanted;
        Ok(())
    }

    fn message(&self, command: u8) -> Message {
        let mut message = Message::new(self.family, 0, &[command, 1, 0, 0]);
        message.attr_u32(IFINDEX, self.index as u32);
        message
    }

    /// The public key, and the peers with what they are allowed.
    fn read(&mut self) -> io::Result<(PublicKey, BTreeMap<PublicKey, BTreeSet<IpNet>>)> {
        let (mut public, mut peers) = ([0; 32], BTreeMap::new());
        let question = self.message(GET_DEVICE);
        self.socket.query(question, true, |_, payload| {
            let Some(attrs) = payload.get(4..) else {
                return;
            };
            if let Some(key) = attribute(attrs, PUBLIC_KEY).and_then(|k| k.try_into().ok()) {
                public = key;
            }
            for (_, peer) in attributes(attribute(attrs, PEERS).unwrap_or_default()) {
                let Some(key) = attribute(peer, PEER_KEY).and_then(|k| k.try_into().ok()) else {
                    continue;
                };
                // A peer with many addresses comes in several pieces.
                let allowed: &mut BTreeSet<IpNet> = peers.entry(key).or_default();
                let nets = attributes(attribute(peer, PEER_ALLOWED).unwrap_or_default());
                allowed.extend(nets.filter_map(|(_, net)| {
                    let ip = link::ip_from(attribute(net, ALLOWED_ADDRESS)?)?;
                    IpNet::new(ip, *attribute(net, ALLOWED_PREFIX)?.first()?).ok()
                }));
            }
        })?;
        Ok((public, peers))
    }
}

fn write(m: &mut Message, change: &Change<'_>) {
    match change {
        Change::Remove(key) => {
            m.attr(PEER_KEY, key).attr_u32(PEER_FLAGS, REMOVE);
        }
        Change::Set { partner, endpoint } => {
            m.attr(PEER_KEY, &partner.key)
                .attr_u32(PEER_FLAGS, REPLACE_ALLOWED);
            if *endpoint {
                m.attr(PEER_ENDPOINT, &sockaddr(partner.endpoint));
            }
            m.nest(PEER_ALLOWED, |m| {
                for net in &partner.allowed {
                    let family = if net.addr().is_ipv4() {
                        libc::AF_INET
                    } else {
                        libc::AF_INET6
                    };
                    m.nest(0, |m| {
                        m.attr(ALLOWED_FAMILY, &(family as u16).to_ne_bytes())
                            .attr(ALLOWED_ADDRESS, &octets(net.addr()))
                            .attr(ALLOWED_PREFIX, &[net.prefix_len()]);
                    });
                }
            });
        }
    }
}

/// `struct sockaddr_in` or `struct sockaddr_in6`.
fn sockaddr(address: SocketAddr) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(28);
    let family = if address.is_ipv4() {
        libc::AF_INET
    } else {
        libc::AF_INET6
    };
    bytes.extend_from_slice(&(family as u16).to_ne_bytes());
    bytes.extend_from_slice(&address.port().to_be_bytes());
    match address {
        SocketAddr::V4(v4) => {
            bytes.extend_from_slice(&v4.ip().octets());
            bytes.extend_from_slice(&[0; 8]);
        }
        SocketAddr::V6(v6) => {
            bytes.extend_from_slice(&[0; 4]);
            bytes.extend_from_slice(&v6.ip().octets());
            bytes.extend_from_slice(&v6.scope_id().to_ne_bytes());
        }
    }
    bytes
}

/// The number of the family `wireguard`, which the kernel knows once there is a device.
fn family(socket: &mut Socket) -> io::Result<u16> {
    let mut question = Message::new(CONTROL, 0, &[GET_FAMILY, 1, 0, 0]);
    question.attr_str(FAMILY_NAME, "wireguard");
    let mut id = None;
    socket.query(question, false, |_, payload| {
        let bytes = payload.get(4..).and_then(|a| attribute(a, FAMILY_ID));
        id = bytes
            .and_then(|b| b.try_into().ok())
            .map(u16::from_ne_bytes);
    })?;
    id.ok_or_else(|| io::Error::from_raw_os_error(libc::ENOENT))
}

/// Whether this kernel has WireGuard: makes a device in the current network namespace and removes it.
///
/// # Errors
/// [`Error::Config`], which says what to use instead.
pub fn check() -> Result<()> {
    let failed = || Error::kernel("asking the kernel for WireGuard");
    let mut links = link::open().map_err(failed())?;
    let name = format!("wgcheck{}", std::process::id());
    match links.request(link::add_anchor(&name, "wireguard")) {
        Ok(()) => {
            if let Some(link) = link::find(&mut links, &name).map_err(failed())? {
                links.request(link::delete(link.index)).map_err(failed())?;
            }
            Ok(())
        }
        Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => Err(Error::Config(
            "the overlay wireguard needs a kernel with WireGuard (CONFIG_WIREGUARD, since Linux 5.6), and this one has none: use another kernel, or auto, none or vxlan"
                .into(),
        )),
        Err(e) => Err(failed()(e)),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn partner(key: u8, endpoint: &str, allowed: &[&str]) -> Partner {
        Partner {
            key: [key; 32],
            endpoint: endpoint.parse().unwrap(),
            allowed: allowed.iter().map(|n| n.parse().unwrap()).collect(),
        }
    }

    #[test]
    fn only_what_differs_is_told() {
        let a = partner(1, "192.0.2.1:51820", &["10.42.1.0/24"]);
        let b = partner(2, "192.0.2.2:51820", &["10.42.2.0/24"]);
        let known = BTreeMap::from([
            (a.key, a.allowed.clone()),
            ([9; 32], BTreeSet::from(["10.42.9.0/24".parse().unwrap()])),
        ]);
        let wanted = [a.clone(), b.clone()];
        assert_eq!(
            changes(&known, &[], &wanted),
            [
                Change::Remove([9; 32]),
                Change::Set {
                    partner: &wanted[1],
                    endpoint: true
                }
            ]
        );
        // One that roamed is not called back; one of which we were told that it moved is.
        let known = BTreeMap::from([(a.key, a.allowed.clone()), (b.key, b.allowed.clone())]);
        assert!(changes(&known, &wanted, &wanted).is_empty());
        let moved = [partner(1, "192.0.2.7:51820", &["10.42.1.0/24"]), b];
        assert_eq!(
            changes(&known, &wanted, &moved),
            [Change::Set {
                partner: &moved[0],
                endpoint: true
            }]
        );
    }

    #[test]
    fn endpoints_are_written_as_the_kernel_reads_them() {
        let v4 = sockaddr("192.0.2.1:51820".parse().unwrap());
        assert_eq!((v4.len(), &v4[2..8]), (16, &[0xca, 0x6c, 192, 0, 2, 1][..]));
        let v6 = sockaddr("[2001:db8::1]:51820".parse().unwrap());
        assert_eq!((v6.len(), &v6[8..10]), (28, &[0x20, 0x01][..]));
    }

    #[test]
    fn a_private_key_is_never_shown() {
        assert_eq!(format!("{:?}", PrivateKey([7; 32])), "PrivateKey(..)");
    }
}
