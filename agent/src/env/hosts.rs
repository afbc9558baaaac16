//! /etc/hosts of a pod, in the kubelet's format.

use std::fmt::Write as _;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::HostAlias;

/// For a pod with its own network.
pub fn pod_hosts(
    ips: &[IpAddr],
    hostname: &str,
    fqdn: Option<&str>,
    aliases: &[HostAlias],
) -> String {
    let mut out = String::from(
        "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::0\tip6-localnet\n\
         fe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n",
    );
    for ip in ips {
        let _ = match fqdn {
            Some(fqdn) => writeln!(out, "{ip}\t{fqdn}\t{hostname}"),
            None => writeln!(out, "{ip}\t{hostname}"),
        };
    }
    out + &alias_lines(aliases)
}

/// For a pod in the host's network: the host's own file, then the aliases.
pub fn host_network_hosts(host_file: &str, aliases: &[HostAlias]) -> String {
    format!(
        "# Kubernetes-managed hosts file (host network).\n{host_file}{}",
        alias_lines(aliases)
    )
}

fn alias_lines(aliases: &[HostAlias]) -> String {
    if aliases.is_empty() {
        return String::new();
    }
    let mut out = String::from("\n# Entries added by HostAliases.\n");
    for a in aliases {
        let _ = writeln!(
            out,
            "{}\t{}",
            a.ip,
            a.hostnames
                .iter()
                .flatten()
                .cloned()
                .collect::<Vec<_>>()
                .join("\t")
        );
    }
    out
}

/// Host name and, with a subdomain, fully qualified name of a pod (<https://kubernetes.io/docs/concepts/workloads/pods/pod-hostname/>).
pub fn names(
    pod: &k8s_openapi::api::core::v1::Pod,
    cluster_domain: &str,
) -> (String, Option<String>) {
    let spec = pod.spec.as_ref();
    if let Some(name) = spec
        .and_then(|s| s.hostname_override.clone())
        .filter(|h| !h.is_empty())
    {
        return (name, None);
    }
    let mut hostname = spec
        .and_then(|s| s.hostname.clone())
        .filter(|h| !h.is_empty())
        .unwrap_or_else(|| pod.metadata.name.clone().unwrap_or_default());
    if hostname.len() > 63 {
        hostname.truncate(63);
        hostname.truncate(hostname.trim_end_matches(['-', '.']).len());
    }
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let fqdn = spec
        .and_then(|s| s.subdomain.as_deref())
        .filter(|s| !s.is_empty())
        .map(|sub| format!("{hostname}.{sub}.{namespace}.svc.{cluster_domain}"));
    match fqdn {
        Some(f) if spec.and_then(|s| s.set_hostname_as_fqdn) == Some(true) => (f.clone(), Some(f)),
        fqdn => (hostname, fqdn),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_finds_itself_and_its_aliases() {
        let alias = HostAlias {
            ip: "9.9.9.9".into(),
            hostnames: Some(vec!["x".into(), "y".into()]),
        };
        let text = pod_hosts(
            &[IpAddr::from([10, 42, 0, 2])],
            "p",
            Some("p.sub.ns.svc.cluster.local"),
            &[alias],
        );
        assert!(text.starts_with("# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n"));
        assert!(text.contains("\n10.42.0.2\tp.sub.ns.svc.cluster.local\tp\n"));
        assert!(text.ends_with("\n# Entries added by HostAliases.\n9.9.9.9\tx\ty\n"));
    }
}
