//! The service `kube-dns`: its address is where pods ask for names. It has no endpoints: each node answers there itself.

use serde_json::json;

use super::{Controller, Key, Outcome, Reconciling, Result, Source, Tools, itself};
use crate::bootstrap::addresses;
use crate::cache::Event;

const NAMESPACE: &str = "kube-system";
const NAME: &str = "kube-dns";

/// Its place in the range of services.
const PLACE: u8 = 10;

pub struct ClusterDns;

impl Controller for ClusterDns {
    fn name(&self) -> &'static str {
        "cluster-dns-controller"
    }

    fn sources(&self) -> Vec<Source> {
        let namespace = |_: &Tools, event: &Event| {
            let ours = *event.object.meta.name == *NAMESPACE;
            ours.then(|| Key::new(NAMESPACE, NAME))
                .into_iter()
                .collect()
        };
        let service = |tools: &Tools, event: &Event| {
            let key = itself(tools, event);
            key.into_iter()
                .filter(|key| key.namespace == NAMESPACE && key.name == NAME)
                .collect()
        };
        vec![
            Source::new("namespaces", namespace),
            Source::new("services", service),
        ]
    }

    fn reconcile<'a>(&'a self, tools: &'a Tools, _: &'a Key) -> Reconciling<'a> {
        Box::pin(make(tools))
    }
}

async fn make(tools: &Tools) -> Result<Outcome> {
    if tools.table("services").get(NAMESPACE, NAME).is_some() {
        return Ok(Outcome::Done);
    }
    let range = tools.registry.config().service_cidrs.first();
    let Some(address) = range.and_then(|range| addresses::nth(range, PLACE).ok()) else {
        return Ok(Outcome::Done);
    };
    let port = |name: &str, protocol: &str| json!({"name": name, "port": 53, "protocol": protocol, "targetPort": 53});
    let service = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {
            "name": NAME, "namespace": NAMESPACE,
            "labels": {"k8s-app": "kube-dns", "kubernetes.io/cluster-service": "true", "kubernetes.io/name": "CoreDNS"},
        },
        "spec": {
            "type": "ClusterIP", "clusterIP": address.to_string(),
            "ports": [port("dns", "UDP"), port("dns-tcp", "TCP")],
        },
    });
    match tools
        .registry
        .create(&tools.context("services", NAMESPACE)?, service.into())
        .await
    {
        Err(status) if !status.is_already_exists() => Err(status),
        _ => Ok(Outcome::Done),
    }
}
