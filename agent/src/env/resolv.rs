//! /etc/resolv.conf of a pod by dnsPolicy and dnsConfig (<https://kubernetes.io/docs/concepts/services-networking/dns-pod-service/>).

use std::net::IpAddr;

use k8s_openapi::api::core::v1::{PodDNSConfig, PodSpec};

/// The parts of a resolv.conf.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resolv {
    pub nameservers: Vec<String>,
    pub searches: Vec<String>,
    pub options: Vec<String>,
}

impl Resolv {
    /// Reads resolv.conf(5). The last `search` line wins; a trailing dot of a domain is dropped.
    pub fn parse(text: &str) -> Self {
        let mut r = Self::default();
        for line in text.lines().map(str::trim) {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => r.nameservers.extend(words.next().map(str::to_string)),
                Some("search") => {
                    r.searches = words
                        .map(|w| if w == "." { w } else { w.trim_end_matches('.') }.to_string())
                        .collect()
                }
                Some("options") => r.options.extend(words.map(str::to_string)),
                _ => {}
            }
        }
        r
    }

    pub fn render(&self) -> String {
        let mut out = String::new();
        if !self.searches.is_empty() {
            out.push_str(&format!("search {}\n", self.searches.join(" ")));
        }
        for n in &self.nameservers {
            out.push_str(&format!("nameserver {n}\n"));
        }
        if !self.options.is_empty() {
            out.push_str(&format!("options {}\n", self.options.join(" ")));
        }
        out
    }

    fn add(mut self, config: &PodDNSConfig) -> Self {
        fn push_new(list: &mut Vec<String>, new: impl Iterator<Item = String>) {
            for n in new {
                if !list.contains(&n) {
                    list.push(n);
                }
            }
        }
        push_new(
            &mut self.nameservers,
            config.nameservers.iter().flatten().cloned(),
        );
        push_new(
            &mut self.searches,
            config.searches.iter().flatten().cloned(),
        );
        for o in config.options.iter().flatten() {
            let Some(name) = o.name.as_deref() else {
                continue;
            };
            // An option given again replaces its earlier value.
            self.options.retain(|x| x.split(':').next() != Some(name));
            self.options.push(match o.value.as_deref() {
                Some(v) if !v.is_empty() => format!("{name}:{v}"),
                _ => name.to_string(),
            });
        }
        self
    }
}

/// The resolver configuration of a pod. `host` is the node's own.
pub fn pod_resolv(
    spec: &PodSpec,
    namespace: &str,
    host: &Resolv,
    cluster_dns: &[IpAddr],
    cluster_domain: &str,
) -> Resolv {
    let host_network = spec.host_network.unwrap_or(false);
    let base = match spec.dns_policy.as_deref().unwrap_or("ClusterFirst") {
        "None" => Resolv::default(),
        "ClusterFirst" if !host_network && !cluster_dns.is_empty() => {
            cluster_first(namespace, host, cluster_dns, cluster_domain)
        }
        "ClusterFirstWithHostNet" if !cluster_dns.is_empty() => {
            cluster_first(namespace, host, cluster_dns, cluster_domain)
        }
        _ => host.clone(),
    };
    match &spec.dns_config {
        Some(config) => base.add(config),
        None => base,
    }
}

fn cluster_first(namespace: &str, host: &Resolv, cluster_dns: &[IpAddr], domain: &str) -> Resolv {
    let mut searches = vec![
        format!("{namespace}.svc.{domain}"),
        format!("svc.{domain}"),
        domain.to_string(),
    ];
    for s in &host.searches {
        if !searches.contains(s) {
            searches.push(s.clone());
        }
    }
    Resolv {
        nameservers: cluster_dns.iter().map(IpAddr::to_string).collect(),
        searches,
        options: vec!["ndots:5".into()],
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    fn render(spec: serde_json::Value) -> String {
        let mut v = json!({"containers": []});
        v.as_object_mut()
            .unwrap()
            .extend(spec.as_object().unwrap().clone());
        let host =
            Resolv::parse("# c\nnameserver 1.1.1.1\nsearch old\nsearch lan.\noptions timeout:1\n");
        pod_resolv(
            &serde_json::from_value(v).unwrap(),
            "ns",
            &host,
            &[IpAddr::from([10, 43, 0, 10])],
            "cluster.local",
        )
        .render()
    }

    #[test]
    fn policies() {
        let cluster = "search ns.svc.cluster.local svc.cluster.local cluster.local lan\nnameserver 10.43.0.10\noptions ndots:5\n";
        let host = "search lan\nnameserver 1.1.1.1\noptions timeout:1\n";
        assert_eq!(render(json!({})), cluster);
        assert_eq!(render(json!({"hostNetwork": true})), host);
        assert_eq!(
            render(json!({"hostNetwork": true, "dnsPolicy": "ClusterFirstWithHostNet"})),
            cluster
        );
        assert_eq!(render(json!({"dnsPolicy": "Default"})), host);
        assert_eq!(
            render(
                json!({"dnsPolicy": "None", "dnsConfig": {"nameservers": ["8.8.8.8"], "options": [{"name": "edns0"}]}})
            ),
            "nameserver 8.8.8.8\noptions edns0\n"
        );
        assert!(
            render(json!({"dnsConfig": {"options": [{"name": "ndots", "value": "2"}]}}))
                .ends_with("options ndots:2\n")
        );
    }
}
