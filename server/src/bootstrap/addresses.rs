//! By which names and addresses this server can be reached.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use amphipod_api::host;
use amphipod_api::ip::{contains, parse_cidr};
use anyhow::Context;

use crate::ServerConfig;

/// The address that others should use: as configured, or that of the listener, or that of the default route; loopback
/// while there is none.
pub fn advertised(config: &ServerConfig) -> IpAddr {
    if let Some(address) = config.advertise_address {
        return address;
    }
    if !config.listen.ip().is_unspecified() {
        return config.listen.ip();
    }
    // Where nobody listens nobody is to come; `[::]` takes both families.
    let served = |ip: &IpAddr| ip.is_ipv4() || config.listen.is_ipv6();
    host::routed_addresses()
        .chain(interface_addresses(config))
        .find(served)
        .unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST))
}

/// Addresses of this host's interfaces, without those of pods and services.
fn interface_addresses(config: &ServerConfig) -> Vec<IpAddr> {
    // The address of DNS is on this box as well.
    let ours = |ip| in_ranges(ip, &config.cluster_cidrs) || in_ranges(ip, &config.service_cidrs);
    let all = host::interface_addresses().into_iter().map(|(_, ip)| ip);
    all.filter(|ip| !ours(*ip)).collect()
}

fn in_ranges(ip: IpAddr, cidrs: &[String]) -> bool {
    cidrs
        .iter()
        .filter_map(|cidr| parse_cidr(cidr))
        .any(|(net, prefix)| contains(net, prefix, ip))
}

/// The `n`th address of a range.
///
/// # Errors
/// The range is none, or too small.
pub fn nth(cidr: &str, n: u8) -> anyhow::Result<IpAddr> {
    let (net, prefix) = parse_cidr(cidr)
        .with_context(|| format!("{cidr:?} is not a range of addresses like 10.43.0.0/16"))?;
    match net {
        IpAddr::V4(net) => {
            anyhow::ensure!(prefix <= 28, "the range {cidr} is too small");
            let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
            Ok(IpAddr::V4(Ipv4Addr::from_bits(
                (net.to_bits() & mask) + u32::from(n),
            )))
        }
        IpAddr::V6(net) => {
            anyhow::ensure!(prefix <= 124, "the range {cidr} is too small");
            let mask = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
            Ok(IpAddr::V6(Ipv6Addr::from_bits(
                (net.to_bits() & mask) + u128::from(n),
            )))
        }
    }
}

/// All names and addresses of the serving certificate.
///
/// # Errors
/// A service range that is none.
pub fn serving_names(config: &ServerConfig, advertised: IpAddr) -> anyhow::Result<Vec<String>> {
    let mut names: Vec<String> = [
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "localhost",
    ]
    .iter()
    .map(|n| (*n).to_owned())
    .collect();
    names.push(format!("kubernetes.default.svc.{}", config.cluster_domain));
    names.extend(config.node_name.clone().or_else(|| {
        let name = nix::unistd::gethostname().ok()?.into_string().ok()?;
        Some(name.to_ascii_lowercase())
    }));
    names.extend([
        "127.0.0.1".to_owned(),
        "::1".to_owned(),
        advertised.to_string(),
    ]);
    for cidr in &config.service_cidrs {
        names.push(nth(cidr, 1)?.to_string());
    }
    if config.listen.ip().is_unspecified() {
        names.extend(interface_addresses(config).iter().map(ToString::to_string));
    } else {
        names.push(config.listen.ip().to_string());
    }
    names.extend(config.extra_sans.iter().cloned());
    let mut seen = Vec::new();
    names.retain(|name| {
        let new = !name.is_empty() && !seen.contains(name);
        seen.push(name.clone());
        new
    });
    Ok(names)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_first_service_address_is_the_apis() {
        assert_eq!(nth("10.43.0.0/16", 1).unwrap().to_string(), "10.43.0.1");
        assert_eq!(nth("10.43.7.9/16", 10).unwrap().to_string(), "10.43.0.10");
        assert_eq!(nth("fd00:43::/112", 1).unwrap().to_string(), "fd00:43::1");
        assert!(nth("10.43.0.0", 1).is_err());
        assert!(nth("10.43.0.0/31", 1).is_err());
    }

    #[test]
    fn the_certificate_names_what_clients_call() {
        let config = ServerConfig {
            node_name: Some("box".to_owned()),
            extra_sans: vec!["api.example".to_owned()],
            ..ServerConfig::default()
        };
        let names = serving_names(&config, IpAddr::V4(Ipv4Addr::new(192, 0, 2, 7))).unwrap();
        for name in [
            "kubernetes.default.svc.cluster.local",
            "10.43.0.1",
            "127.0.0.1",
            "192.0.2.7",
            "box",
            "api.example",
        ] {
            assert!(names.iter().any(|n| n == name), "{name} in {names:?}");
        }
    }

    #[test]
    fn addresses_of_pods_are_not_the_servers() {
        assert!(in_ranges(
            "10.42.0.1".parse().unwrap(),
            &["10.42.0.0/16".to_owned()]
        ));
        assert!(!in_ranges(
            "10.43.0.1".parse().unwrap(),
            &["10.42.0.0/16".to_owned()]
        ));
    }
}
