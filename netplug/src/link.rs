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
    Some(Link {
        index,
        name,
        kind,
        peer,
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
    /// Nowhere, told to the sender.
    Unreachable,
}

fn route(kind: u16, flags: u16, net: IpNet, via: Via) -> Message {
    let (scope, rtype, nh_flags) = match via {
        Via::Link { .. } => (libc::RT_SCOPE_LINK, libc::RTN_UNICAST, 0),
        Via::Gateway { .. } => (libc::RT_SCOPE_UNIVERSE, libc::RTN_UNICAST, RTNH_ONLINK),
        Via::Unreachable => (libc::RT_SCOPE_UNIVERSE, libc::RTN_UNREACHABLE, 0),
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
        libc::RTPROT_STATIC,
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

/// A neighbour that never needs to be asked for.
pub fn add_neighbour(index: i32, ip: IpAddr, mac: [u8; 6]) -> Message {
    let mut fixed = [0u8; 12];
    fixed[0] = family(ip);
    fixed[4..8].copy_from_slice(&index.to_ne_bytes());
    fixed[8..10].copy_from_slice(&libc::NUD_PERMANENT.to_ne_bytes());
    let mut m = Message::new(libc::RTM_NEWNEIGH, CREATE | REPLACE, &fixed);
    m.attr(libc::NDA_DST, &octets(ip))
        .attr(libc::NDA_LLADDR, &mac);
    m
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
