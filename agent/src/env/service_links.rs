//! Environment variables that name a pod's services, after Docker's links
//! (<https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables>).

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Service;

/// Variables for the services that a pod in `namespace` sees: its own namespace's (with `links`), and `kubernetes` always.
pub fn service_vars<'a>(
    services: impl Iterator<Item = &'a Service>,
    namespace: &str,
    links: bool,
) -> BTreeMap<String, String> {
    let mut chosen: BTreeMap<&str, &Service> = BTreeMap::new();
    for s in services {
        let (Some(name), Some(ns)) = (s.metadata.name.as_deref(), s.metadata.namespace.as_deref())
        else {
            continue;
        };
        let master = ns == "default" && name == "kubernetes";
        if ns == namespace && (links || master) {
            chosen.insert(name, s);
        } else if master {
            chosen.entry(name).or_insert(s);
        }
    }
    let mut vars = BTreeMap::new();
    for (name, s) in chosen {
        add(&mut vars, name, s);
    }
    vars
}

fn add(vars: &mut BTreeMap<String, String>, name: &str, s: &Service) {
    let Some(spec) = &s.spec else { return };
    let Some(ip) = spec
        .cluster_ip
        .as_deref()
        .filter(|ip| !ip.is_empty() && *ip != "None")
    else {
        return;
    };
    let Some(first) = spec.ports.iter().flatten().next() else {
        return;
    };
    let host = if ip.contains(':') {
        format!("[{ip}]")
    } else {
        ip.to_string()
    };
    let prefix = name.to_uppercase().replace('-', "_");
    let url = |p: &k8s_openapi::api::core::v1::ServicePort| {
        format!(
            "{}://{host}:{}",
            p.protocol.as_deref().unwrap_or("TCP").to_lowercase(),
            p.port
        )
    };
    vars.insert(format!("{prefix}_SERVICE_HOST"), ip.to_string());
    vars.insert(format!("{prefix}_SERVICE_PORT"), first.port.to_string());
    vars.insert(format!("{prefix}_PORT"), url(first));
    for p in spec.ports.iter().flatten() {
        if let Some(port_name) = p.name.as_deref().filter(|n| !n.is_empty()) {
            vars.insert(
                format!(
                    "{prefix}_SERVICE_PORT_{}",
                    port_name.to_uppercase().replace('-', "_")
                ),
                p.port.to_string(),
            );
        }
        let protocol = p.protocol.as_deref().unwrap_or("TCP");
        let base = format!("{prefix}_PORT_{}_{}", p.port, protocol.to_uppercase());
        vars.insert(format!("{base}_PROTO"), protocol.to_lowercase());
        vars.insert(format!("{base}_PORT"), p.port.to_string());
        vars.insert(format!("{base}_ADDR"), ip.to_string());
        vars.insert(base, url(p));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    fn service(ns: &str, name: &str, ip: &str) -> Service {
        serde_json::from_value(json!({"metadata": {"namespace": ns, "name": name},
            "spec": {"clusterIP": ip, "ports": [{"name": "http-x", "port": 80, "protocol": "TCP"}]}}))
        .unwrap()
    }

    #[test]
    fn own_services_and_the_api_server_are_named() {
        let all = [
            service("default", "kubernetes", "10.43.0.1"),
            service("n", "my-web", "10.43.0.7"),
            service("o", "other", "10.43.0.8"),
            service("n", "headless", "None"),
        ];
        let v = service_vars(all.iter(), "n", true);
        assert_eq!(v["MY_WEB_SERVICE_HOST"], "10.43.0.7");
        assert_eq!(v["MY_WEB_SERVICE_PORT_HTTP_X"], "80");
        assert_eq!(v["MY_WEB_PORT"], "tcp://10.43.0.7:80");
        assert_eq!(v["MY_WEB_PORT_80_TCP_ADDR"], "10.43.0.7");
        assert_eq!(v["KUBERNETES_SERVICE_HOST"], "10.43.0.1");
        assert!(
            !v.keys()
                .any(|k| k.starts_with("OTHER") || k.starts_with("HEADLESS"))
        );
        let v = service_vars(all.iter(), "n", false);
        assert!(v.keys().all(|k| k.starts_with("KUBERNETES_")));
    }
}
