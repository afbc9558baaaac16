//! The addresses of the machine that this runs on.

use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};

/// The source addresses of packets to the world, IPv4 first; those of families without a route are left out.
pub fn routed_addresses() -> impl Iterator<Item = IpAddr> {
    // Addresses for documentation, RFC 5737 and RFC 3849: connecting a UDP socket looks up the route and sends nothing.
    let anywhere: [(&str, SocketAddr); 2] = [
        ("0.0.0.0:0", SocketAddr::from(([192, 0, 2, 1], 9))),
        (
            "[::]:0",
            SocketAddr::from((Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1), 9)),
        ),
    ];
    anywhere.into_iter().filter_map(|(local, remote)| {
        let socket = UdpSocket::bind(local).ok()?;
        socket.connect(remote).ok()?;
        let own = socket.local_addr().ok()?.ip();
        (!own.is_unspecified() && !own.is_loopback()).then_some(own)
    })
}

/// The addresses of all interfaces with their names, without those that only this machine (loopback) or nobody without a
/// scope (link-local IPv6) can use. Link-local IPv4, which a box gives itself where nobody gives it another, comes last.
pub fn interface_addresses() -> Vec<(String, IpAddr)> {
    let interfaces = nix::ifaddrs::getifaddrs().into_iter().flatten();
    let mut found: Vec<(String, IpAddr)> = interfaces
        .filter_map(|interface| {
            let address = interface.address?;
            let ip = match (address.as_sockaddr_in(), address.as_sockaddr_in6()) {
                (Some(v4), _) => IpAddr::V4(v4.ip()),
                (_, Some(v6)) => IpAddr::V6(v6.ip()),
                _ => return None,
            };
            let unusable =
                ip.is_loopback() || matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local());
            (!unusable).then_some((interface.interface_name, ip))
        })
        .collect();
    found.sort_by_key(|(_, ip)| (is_link_local(*ip), *ip));
    found
}

fn is_link_local(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V4(v4) if v4.is_link_local())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_address_is_one_that_others_cannot_use() {
        let all = interface_addresses().into_iter().map(|(_, ip)| ip);
        for ip in all.chain(routed_addresses()) {
            assert!(!ip.is_loopback() && !ip.is_unspecified(), "{ip}");
        }
    }
}
