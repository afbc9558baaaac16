//! IP addresses and CIDRs as the API takes them.
//!
//! Kubernetes parses "sloppily", as old Go did: leading zeros in IPv4 octets are decimal, not octal and not errors.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Reads an address; leading zeros of IPv4 octets are ignored, IPv4-mapped IPv6 becomes IPv4.
pub fn parse_ip(s: &str) -> Option<IpAddr> {
    if s.len() > 64 {
        return None;
    }
    if !s.contains(':') {
        return parse_v4(s).map(IpAddr::V4);
    }
    let v6: Ipv6Addr = match s.parse() {
        Ok(v6) => v6,
        // An embedded IPv4 tail with leading zeros.
        Err(_) => {
            let (head, tail) = s.rsplit_once(':')?;
            format!("{head}:{}", parse_v4(tail)?).parse().ok()?
        }
    };
    Some(v6.to_ipv4_mapped().map_or(IpAddr::V6(v6), IpAddr::V4))
}

fn parse_v4(s: &str) -> Option<Ipv4Addr> {
    let mut octets = [0u8; 4];
    let mut parts = s.split('.');
    for octet in &mut octets {
        let part = parts.next()?;
        if part.is_empty() || !part.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        let digits = part.trim_start_matches('0');
        *octet = if digits.is_empty() {
            0
        } else {
            digits.parse().ok()?
        };
    }
    parts.next().is_none().then(|| octets.into())
}

/// Reads `address/prefix`; the address keeps its host bits.
pub fn parse_cidr(s: &str) -> Option<(IpAddr, u8)> {
    let (address, prefix) = s.split_once('/')?;
    let ip = parse_ip(address)?;
    if prefix.is_empty() || !prefix.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let prefix: u8 = prefix.parse().ok()?;
    let most = if ip.is_ipv4() && !address.contains(':') {
        32
    } else {
        128
    };
    if prefix > most {
        return None;
    }
    match ip {
        // ::ffff:1.2.3.0/120 is 1.2.3.0/24
        IpAddr::V4(_) if most == 128 => prefix.checked_sub(96).map(|p| (ip, p)),
        _ => Some((ip, prefix)),
    }
}

/// Whether `ip` lies in the network.
pub fn contains(network: IpAddr, prefix: u8, ip: IpAddr) -> bool {
    match (network, ip) {
        (IpAddr::V4(n), IpAddr::V4(i)) => {
            let shift = 32u32.saturating_sub(u32::from(prefix));
            shift == 32 || u32::from(n) >> shift == u32::from(i) >> shift
        }
        (IpAddr::V6(n), IpAddr::V6(i)) => {
            let shift = 128u32.saturating_sub(u32::from(prefix));
            shift == 128 || u128::from(n) >> shift == u128::from(i) >> shift
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn addresses_parse_sloppily() {
        assert_eq!(parse_ip("010.0.0.1"), Some("10.0.0.1".parse().unwrap()));
        assert_eq!(parse_ip("::ffff:1.2.3.4"), Some("1.2.3.4".parse().unwrap()));
        assert_eq!(parse_ip("fd00::1"), Some("fd00::1".parse().unwrap()));
        for bad in [
            "",
            "1.2.3",
            "1.2.3.4.5",
            "256.1.1.1",
            "1.2.3.4a",
            "fe80::1%eth0",
            "a.b.c.d",
            "+1.2.3.4",
        ] {
            assert_eq!(parse_ip(bad), None, "{bad}");
        }
    }

    #[test]
    fn cidrs_parse_and_contain() {
        let (net, prefix) = parse_cidr("10.42.0.0/16").unwrap();
        assert!(contains(net, prefix, "10.42.3.4".parse().unwrap()));
        assert!(!contains(net, prefix, "10.43.3.4".parse().unwrap()));
        assert!(contains(
            "0.0.0.0".parse().unwrap(),
            0,
            "8.8.8.8".parse().unwrap()
        ));
        assert_eq!(parse_cidr("::ffff:1.2.3.0/120").unwrap().1, 24);
        for bad in [
            "10.0.0.0",
            "10.0.0.0/33",
            "10.0.0.0/",
            "10.0.0.0/+8",
            "fd00::/129",
        ] {
            assert_eq!(parse_cidr(bad), None, "{bad}");
        }
    }
}
