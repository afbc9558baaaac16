//! Links, addresses, routes and neighbours (`man 7 rtnetlink`).

use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::os::fd::AsRawFd;

use ipnet::IpNet;

use crate::netlink::message::{CREATE, EXCL, REPLACE, attribute, text};
use crate::netlink::{Message, Socket};

const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const VXLAN_ID: u16 = 1;
const VXLAN_LOCAL: u16 = 4;
const VXLAN_LEARNING: u16 = 7;
const VXLAN_PORT: u16 = 15;
const VXLAN_LOCAL6: u16 = 17;
const VETH_INFO_PEER: u16 = 1;
/// `IPV4_DEVCONF_ROUTE_LOCALNET`, attribute of `IFLA_INET_CONF` (linux/ip.h).
const DEVCONF_ROUTE_LOCALNET: u16 = 26;
const IFLA_INET_CONF: u16 = 1;
const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
const ADDR_GEN_NONE: u8 = 1;
/// No duplicate address detection; no route for the prefix (linux/if_addr.h).
const IFA_FLAGS: u16 = 8;
const NODAD_NOPREFIXROUTE: u32 = 0x02 | 0x200;
const RTNH_ONLINK: u32 = 4;

/// A link as far as we look at it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    pub index: i32,
    pub name: String,
    pub kind: String,
    /// Index of the other end of a veth pair, in its own namespace.
    pub peer: Option<i32>,
    pub mtu: u32,
    /// Hardware address.
    pub mac: Vec<u8>,
    /// UDP port of a VXLAN device.
    pub vxlan_port: Option<u16>,
    /// Source of the packets that a VXLAN device sends; `None`: whatever the route says.
    pub vxlan_local: Option<IpAddr>,
}

fn info(index: i32, flags: u32) -> [u8; 16] {
    let mut b = [0; 16];
    b[4..8].copy_from_slice(&index.to_ne_bytes());
    b[8..12].copy_from_slice(&flags.to_ne_bytes());
    b[12..16].copy_from_slice(&flags.to_ne_bytes());
    b
}

/// An address as bytes in network order.
pub fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    }
}

fn family(ip: IpAddr) -> u8 {
    (if ip.is_ipv4() {
        libc::AF_INET
    } else {
        libc::AF_INET6
    }) as u8
}

/// Opens an rtnetlink socket in the current namespace.
pub fn open() -> io::Result<Socket> {
    Socket::open(libc::NETLINK_ROUTE)
}

fn parse_link(payload: &[u8]) -> Option<Link> {
    let index = i32::from_ne_bytes(payload.get(4..8)?.try_into().ok()?);
    let attrs = payload.get(16..)?;
    let name = text(attribute(attrs, libc::IFLA_IFNAME)?).to_owned();
    let kind = attribute(attrs, libc::IFLA_LINKINFO)
        .and_then(|i| attribute(i, IFLA_INFO_KIND))
        .map(text)
        .unwrap_or("")
        .to_owned();
    let peer = attribute(attrs, libc::IFLA_LINK)
        .and_then(|v| v.try_into().ok())
        .map(i32::from_ne_bytes);
    let mtu = attribute(attrs, libc::IFLA_MTU)
        .and_then(|v| v.try_into().ok())
        .map_or(0, u32::from_ne_bytes);
    let vxlan = attribute(attrs, libc::IFLA_LINKINFO)
        .and_then(|i| attribute(i, IFLA_INFO_DATA))
        .filter(|_| kind == "vxlan");
    let vxlan_port = vxlan
        .and_then(|d| attribute(d, VXLAN_PORT))
        .and_then(|v| v.try_into().ok())
        .map(u16::from_be_bytes);
    let vxlan_local = vxlan
        .and_then(|d| attribute(d, VXLAN_LOCAL).or_else(|| attribute(d, VXLAN_LOCAL6)))
        .and_then(ip_from);
    Some(Link {
        index,
        name,
        kind,
        peer,
        mtu,
        mac: attribute(attrs, libc::IFLA_ADDRESS).unwrap_or(&[]).to_vec(),
        vxlan_port,
        vxlan_local,
    })
}

/// The link of a name, if there is one.
pub fn find(socket: &mut Socket, name: &str) -> io::Result<Option<Link>> {
    let mut message = Message::new(libc::RTM_GETLINK, 0, &info(0, 0));
    message.attr_str(libc::IFLA_IFNAME, name);
    let mut found = None;
    match socket.query(message, false, |_, payload| found = parse_link(payload)) {
        Ok(()) => Ok(found),
        Err(e) if e.raw_os_error() == Some(libc::ENODEV) => Ok(None),
        Err(e) => Err(e),
    }
}

/// The link of a number, if there is one.
pub fn by_index(socket: &mut Socket, index: i32) -> io::Result<Option<Link>> {
    let mut found = None;
    let question = Message::new(libc::RTM_GETLINK, 0, &info(index, 0));
    match socket.query(question, false, |_, payload| found = parse_link(payload)) {
        Err(e) if e.raw_os_error() == Some(libc::ENODEV) => Ok(None),
        other => other.map(|()| found),
    }
}

/// Every link of the namespace.
pub fn list(socket: &mut Socket) -> io::Result<Vec<Link>> {
    let mut links = Vec::new();
    socket.query(
        Message::new(libc::RTM_GETLINK, 0, &info(0, 0)),
        true,
        |_, payload| links.extend(parse_link(payload)),
    )?;
    Ok(links)
}

/// The addresses of one link.
pub fn addresses(socket: &mut Socket, index: i32) -> io::Result<Vec<IpAddr>> {
    let mut found = Vec::new();
    socket.query(
        Message::new(libc::RTM_GETADDR, 0, &[0; 8]),
        true,
        |_, payload| {
            let (Some(fixed), Some(attrs)) = (payload.get(..8), payload.get(8..)) else {
                return;
            };
            if i32::from_ne_bytes([fixed[4], fixed[5], fixed[6], fixed[7]]) != index {
                return;
            }
            let value =
                attribute(attrs, libc::IFA_LOCAL).or_else(|| attribute(attrs, libc::IFA_ADDRESS));
            found.extend(value.and_then(ip_from));
        },
    )?;
    Ok(found)
}

/// An address from its bytes in network order.
pub fn ip_from(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Some(v4.into());
    }
    <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from)
}

/// A device that only carries addresses: a bridge without ports.
pub fn add_anchor(name: &str, kind: &str) -> Message {
    let mut m = Message::new(
        libc::RTM_NEWLINK,
        CREATE | EXCL,
        &info(0, libc::IFF_UP as u32),
    );
    m.attr_str(libc::IFLA_IFNAME, name)
        .nest_raw(libc::IFLA_LINKINFO, |m| {
            m.attr_str(IFLA_INFO_KIND, kind);
        });
    m
}

/// Both ends of a veth pair in one request: `host` here, up, and `pod` in the other namespace, still down (the kernel cannot open it so early).
pub fn add_veth(
    host: (&str, [u8; 6]),
    pod: (&str, [u8; 6]),
    netns: &File,
    mtu: Option<u32>,
) -> Message {
    let mut m = Message::new(
        libc::RTM_NEWLINK,
        CREATE | EXCL,
        &info(0, libc::IFF_UP as u32),
    );
    m.attr_str(libc::IFLA_IFNAME, host.0)
        .attr(libc::IFLA_ADDRESS, &host.1);
    if let Some(mtu) = mtu {
        m.attr_u32(libc::IFLA_MTU, mtu);
    }
    m.nest_raw(libc::IFLA_LINKINFO, |m| {
        m.attr_str(IFLA_INFO_KIND, "veth")
            .nest_raw(IFLA_INFO_DATA, |m| {
                m.nest_raw(VETH_INFO_PEER, |m| {
                    m.raw(&info(0, 0))
                        .attr_str(libc::IFLA_IFNAME, pod.0)
                        .attr(libc::IFLA_ADDRESS, &pod.1);
                    m.attr_u32(libc::IFLA_NET_NS_FD, netns.as_raw_fd() as u32);
                    if let Some(mtu) = mtu {
                        m.attr_u32(libc::IFLA_MTU, mtu);
                    }
                });
            });
    });
    m
}

/// All boxes share one VXLAN network: its identifier (VNI).
pub const VXLAN_NETWORK: u32 = 1;

/// A VXLAN device that knows what it is told and nothing else. `v4`: family of the outer header, whose source is `local`.
pub fn add_vxlan(
    name: &str,
    mac: [u8; 6],
    port: u16,
    mtu: u32,
    v4: bool,
    local: Option<IpAddr>,
) -> Message {
    let mut m = Message::new(libc::RTM_NEWLINK, CREATE | EXCL, &info(0, 0));
    m.attr_str(libc::IFLA_IFNAME, name)
        .attr(libc::IFLA_ADDRESS, &mac)
        .attr_u32(libc::IFLA_MTU, mtu)
        .nest_raw(libc::IFLA_LINKINFO, |m| {
            m.attr_str(IFLA_INFO_KIND, "vxlan")
                .nest_raw(IFLA_INFO_DATA, |m| {
                    m.attr_u32(VXLAN_ID, VXLAN_NETWORK)
                        .attr(VXLAN_LEARNING, &[0])
                        .attr(VXLAN_PORT, &port.to_be_bytes());
                    match local {
                        Some(ip) if v4 => drop(m.attr(VXLAN_LOCAL, &octets(ip))),
                        Some(ip) => drop(m.attr(VXLAN_LOCAL6, &octets(ip))),
                        // Says the family.
                        None if !v4 => drop(m.attr(VXLAN_LOCAL6, &[0; 16])),
                        None => {}
                    }
                });
        });
    m
}

pub fn set_mtu(index: i32, mtu: u32) -> Message {
    let mut m = Message::new(libc::RTM_SETLINK, 0, &info(index, 0));
    m.attr_u32(libc::IFLA_MTU, mtu);
    m
}

/// Lets connections from 127.0.0.1 of the box leave by this link after address translation, as host ports on localhost need.
pub fn route_localnet(index: i32) -> Message {
    let mut m = Message::new(libc::RTM_SETLINK, 0, &info(index, 0));
    m.nest(libc::IFLA_AF_SPEC, |m| {
        m.nest(libc::AF_INET as u16, |m| {
            m.nest(IFLA_INET_CONF, |m| {
                m.attr_u32(DEVCONF_ROUTE_LOCALNET, 1);
            });
        });
    });
    m
}

/// No link-local IPv6 address: host ends of pod links need none, and it saves the kernel some chatter.
pub fn no_link_local(index: i32) -> Message {
    let mut m = Message::new(libc::RTM_SETLINK, 0, &info(index, 0));
    m.nest(libc::IFLA_AF_SPEC, |m| {
        m.nest(libc::AF_INET6 as u16, |m| {
            m.attr(IFLA_INET6_ADDR_GEN_MODE, &[ADDR_GEN_NONE]);
        });
    });
    m
}

/// Brings a link up.
pub fn up(index: i32) -> Message {
    Message::new(libc::RTM_SETLINK, 0, &info(index, libc::IFF_UP as u32))
}

pub fn delete(index: i32) -> Message {
    Message::new(libc::RTM_DELLINK, 0, &info(index, 0))
}

/// Links that wait for [`delete_doomed`]. A number that nobody else is likely to use.
const DOOMED: u32 = 0x616d_7068;

/// Marks a link for [`delete_doomed`].
pub fn doom(index: i32) -> Message {
    let mut m = Message::new(libc::RTM_SETLINK, 0, &info(index, 0));
    m.attr_u32(libc::IFLA_GROUP, DOOMED);
    m
}

/// Deletes all marked links at once: the kernel waits for all its readers once per request (some 20 ms), however many links it is about.
pub fn delete_doomed() -> Message {
    let mut m = Message::new(libc::RTM_DELLINK, 0, &info(0, 0));
    m.attr_u32(libc::IFLA_GROUP, DOOMED);
    m
}

/// A host address (/32 or /128) without a prefix route.
pub fn add_address(index: i32, ip: IpAddr) -> Message {
    let bytes = octets(ip);
    let mut m = Message::new(
        libc::RTM_NEWADDR,
        CREATE | REPLACE,
        &address_header(index, ip),
    );
    m.attr(libc::IFA_LOCAL, &bytes)
        .attr(libc::IFA_ADDRESS, &bytes)
        .attr_u32(IFA_FLAGS, NODAD_NOPREFIXROUTE);
    m
}

pub fn delete_address(index: i32, ip: IpAddr) -> Message {
    let mut m = Message::new(libc::RTM_DELADDR, 0, &address_header(index, ip));
    m.attr(libc::IFA_LOCAL, &octets(ip));
    m
}

fn address_header(index: i32, ip: IpAddr) -> [u8; 8] {
    let mut b = [family(ip), (octets(ip).len() * 8) as u8, 0, 0, 0, 0, 0, 0];
    b[4..8].copy_from_slice(&index.to_ne_bytes());
    b
}

/// Where a route leads.
#[derive(Clone, Copy, Debug)]
pub enum Via {
    /// Neighbours on a link; packets of the box itself start from this address.
    Link { index: i32, source: Option<IpAddr> },
    /// A gateway on a link, whether or not a prefix covers it.
    Gateway { index: i32, gateway: IpAddr },
    /// As `Gateway`, or by a link that itself knows to whom; packets of the box itself start from this address. Marked as leading to
    /// another box.
    Peer {
        index: i32,
        gateway: Option<IpAddr>,
        source: IpAddr,
    },
    /// Nowhere, told to the sender.
    Unreachable,
}

/// Marks routes to other boxes (`rtm_protocol`), so that they are told from all others. A number that nobody else is likely to use.
pub const PEER_PROTOCOL: u8 = 97;

fn route(kind: u16, flags: u16, net: IpNet, via: Via) -> Message {
    let (scope, rtype, nh_flags) = match via {
        Via::Link { .. } | Via::Peer { gateway: None, .. } => {
            (libc::RT_SCOPE_LINK, libc::RTN_UNICAST, 0)
        }
        Via::Gateway { .. } | Via::Peer { .. } => {
            (libc::RT_SCOPE_UNIVERSE, libc::RTN_UNICAST, RTNH_ONLINK)
        }
        Via::Unreachable => (libc::RT_SCOPE_UNIVERSE, libc::RTN_UNREACHABLE, 0),
    };
    let protocol = match via {
        Via::Peer { .. } => PEER_PROTOCOL,
        _ => libc::RTPROT_STATIC,
    };
    // IPv6 routes know no scope.
    let scope = if net.addr().is_ipv4() {
        scope
    } else {
        libc::RT_SCOPE_UNIVERSE
    };
    let mut fixed = [
        family(net.addr()),
        net.prefix_len(),
        0,
        0,
        libc::RT_TABLE_MAIN,
        protocol,
        scope,
        rtype,
        0,
        0,
        0,
        0,
    ];
    fixed[8..12].copy_from_slice(&nh_flags.to_ne_bytes());
    let mut m = Message::new(kind, flags, &fixed);
    if net.prefix_len() > 0 {
        m.attr(libc::RTA_DST, &octets(net.network()));
    }
    match via {
        Via::Link { index, source } => {
            m.attr_u32(libc::RTA_OIF, index as u32);
            if let Some(source) = source {
                m.attr(libc::RTA_PREFSRC, &octets(source));
            }
        }
        Via::Gateway { index, gateway } => {
            m.attr_u32(libc::RTA_OIF, index as u32)
                .attr(libc::RTA_GATEWAY, &octets(gateway));
        }
        Via::Peer {
            index,
            gateway,
            source,
        } => {
            m.attr_u32(libc::RTA_OIF, index as u32);
            if let Some(gateway) = gateway {
                m.attr(libc::RTA_GATEWAY, &octets(gateway));
            }
            m.attr(libc::RTA_PREFSRC, &octets(source));
        }
        Via::Unreachable => {}
    }
    m
}

pub fn add_route(net: IpNet, via: Via) -> Message {
    route(libc::RTM_NEWROUTE, CREATE | REPLACE, net, via)
}

pub fn delete_route(net: IpNet, via: Via) -> Message {
    route(libc::RTM_DELROUTE, 0, net, via)
}

/// Removes a route that [`Via::Peer`] made, wherever it leads.
pub fn delete_peer_route(net: IpNet) -> Message {
    let mut fixed = [0u8; 12];
    fixed[0] = family(net.addr());
    fixed[1] = net.prefix_len();
    fixed[4] = libc::RT_TABLE_MAIN;
    fixed[5] = PEER_PROTOCOL;
    fixed[6] = libc::RT_SCOPE_NOWHERE;
    let mut m = Message::new(libc::RTM_DELROUTE, 0, &fixed);
    m.attr(libc::RTA_DST, &octets(net.network()));
    m
}

/// A neighbour that never needs to be asked for.
pub fn add_neighbour(index: i32, ip: IpAddr, mac: [u8; 6]) -> Message {
    let fixed = neighbour(index, family(ip), libc::NUD_PERMANENT, 0);
    let mut m = Message::new(libc::RTM_NEWNEIGH, CREATE | REPLACE, &fixed);
    m.attr(libc::NDA_DST, &octets(ip))
        .attr(libc::NDA_LLADDR, &mac);
    m
}

pub fn delete_neighbour(index: i32, ip: IpAddr) -> Message {
    let mut m = Message::new(libc::RTM_DELNEIGH, 0, &neighbour(index, family(ip), 0, 0));
    m.attr(libc::NDA_DST, &octets(ip));
    m
}

/// `struct ndmsg`
fn neighbour(index: i32, family: u8, state: u16, flags: u8) -> [u8; 12] {
    let mut fixed = [0u8; 12];
    fixed[0] = family;
    fixed[4..8].copy_from_slice(&index.to_ne_bytes());
    fixed[8..10].copy_from_slice(&state.to_ne_bytes());
    fixed[10] = flags;
    fixed
}

const NTF_SELF: u8 = 2;

fn forwarding(kind: u16, flags: u16, index: i32, mac: [u8; 6], remote: IpAddr) -> Message {
    let fixed = neighbour(
        index,
        libc::AF_BRIDGE as u8,
        libc::NUD_PERMANENT | libc::NUD_NOARP,
        NTF_SELF,
    );
    let mut m = Message::new(kind, flags, &fixed);
    m.attr(libc::NDA_LLADDR, &mac)
        .attr(libc::NDA_DST, &octets(remote));
    m
}

/// Frames of a VXLAN device to this hardware address go to that box.
pub fn add_forwarding(index: i32, mac: [u8; 6], remote: IpAddr) -> Message {
    forwarding(libc::RTM_NEWNEIGH, CREATE | REPLACE, index, mac, remote)
}

pub fn delete_forwarding(index: i32, mac: [u8; 6], remote: IpAddr) -> Message {
    forwarding(libc::RTM_DELNEIGH, 0, index, mac, remote)
}

/// The permanent neighbours of a link in one family.
pub fn neighbours(socket: &mut Socket, index: i32, v4: bool) -> io::Result<Vec<(IpAddr, [u8; 6])>> {
    let mut found = Vec::new();
    let family = if v4 { libc::AF_INET } else { libc::AF_INET6 } as u8;
    let question = Message::new(libc::RTM_GETNEIGH, 0, &neighbour(0, family, 0, 0));
    socket.query(question, true, |_, payload| {
        found.extend(
            parse_neighbour(payload, index)
                .filter(|(state, ..)| state & libc::NUD_PERMANENT != 0)
                .map(|(_, ip, mac)| (ip, mac)),
        );
    })?;
    Ok(found)
}

/// What a VXLAN device was told by [`add_forwarding`].
pub fn forwardings(socket: &mut Socket, index: i32) -> io::Result<Vec<([u8; 6], IpAddr)>> {
    let mut found = Vec::new();
    let mut fixed = info(0, 0);
    fixed[0] = libc::AF_BRIDGE as u8;
    let question = Message::new(libc::RTM_GETNEIGH, 0, &fixed);
    socket.query(question, true, |_, payload| {
        found.extend(parse_neighbour(payload, index).map(|(_, ip, mac)| (mac, ip)));
    })?;
    Ok(found)
}

fn parse_neighbour(payload: &[u8], index: i32) -> Option<(u16, IpAddr, [u8; 6])> {
    let (fixed, attrs) = payload.split_at_checked(12)?;
    if i32::from_ne_bytes(fixed[4..8].try_into().ok()?) != index {
        return None;
    }
    let state = u16::from_ne_bytes(fixed[8..10].try_into().ok()?);
    let ip = ip_from(attribute(attrs, libc::NDA_DST)?)?;
    let mac = attribute(attrs, libc::NDA_LLADDR)?.try_into().ok()?;
    Some((state, ip, mac))
}

/// A route as the kernel tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    pub net: IpNet,
    pub gateway: Option<IpAddr>,
    pub index: i32,
    pub protocol: u8,
    /// `rtm_type`
    pub kind: u8,
    pub table: u8,
}

fn parse_route(payload: &[u8]) -> Option<Route> {
    let (fixed, attrs) = payload.split_at_checked(12)?;
    let any = if i32::from(fixed[0]) == libc::AF_INET {
        IpAddr::from([0u8; 4])
    } else {
        IpAddr::from([0u8; 16])
    };
    let address = attribute(attrs, libc::RTA_DST)
        .and_then(ip_from)
        .unwrap_or(any);
    let index = attribute(attrs, libc::RTA_OIF)
        .and_then(|v| v.try_into().ok())
        .map_or(0, i32::from_ne_bytes);
    Some(Route {
        net: IpNet::new(address, fixed[1]).ok()?,
        // A next hop of the other family also is one.
        gateway: attribute(attrs, libc::RTA_GATEWAY)
            .and_then(ip_from)
            .or_else(|| attribute(attrs, libc::RTA_VIA).and_then(|v| ip_from(v.get(2..)?))),
        index,
        protocol: fixed[5],
        kind: fixed[7],
        table: fixed[4],
    })
}

/// The route that a packet to this address takes; `None` if there is none.
pub fn route_to(socket: &mut Socket, ip: IpAddr) -> io::Result<Option<Route>> {
    let mut fixed = [0u8; 12];
    fixed[0] = family(ip);
    fixed[1] = (octets(ip).len() * 8) as u8;
    let mut question = Message::new(libc::RTM_GETROUTE, 0, &fixed);
    question.attr(libc::RTA_DST, &octets(ip));
    let mut found = None;
    match socket.query(question, false, |_, payload| found = parse_route(payload)) {
        Err(e) => match e.raw_os_error() {
            Some(
                libc::ENETUNREACH | libc::EHOSTUNREACH | libc::EACCES | libc::EINVAL | libc::ENOENT,
            ) => Ok(None),
            _ => Err(e),
        },
        Ok(()) => Ok(found),
    }
}

/// The routes to other boxes that [`Via::Peer`] made.
pub fn peer_routes(socket: &mut Socket) -> io::Result<Vec<Route>> {
    let mut found = Vec::new();
    let question = Message::new(libc::RTM_GETROUTE, 0, &[0; 12]);
    socket.query(question, true, |_, payload| {
        found.extend(
            parse_route(payload)
                .filter(|r| r.protocol == PEER_PROTOCOL && r.table == libc::RT_TABLE_MAIN),
        );
    })?;
    Ok(found)
}

/// Sends requests together; the first refusal whose number is not in `fine` is the result.
pub fn apply(socket: &mut Socket, mut messages: Vec<Message>, fine: &[i32]) -> io::Result<()> {
    for result in socket.pipeline(&mut messages)? {
        match result {
            Err(e) if !e.raw_os_error().is_some_and(|n| fine.contains(&n)) => return Err(e),
            _ => {}
        }
    }
    Ok(())
}
