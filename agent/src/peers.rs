//! The other nodes, for the ways to their pods. The copy on disk serves while the server is away.

use std::collections::BTreeMap;
use std::sync::Arc;

use amphipod_api::client::{Client, Target};
use amphipod_api::patch::PatchType;
use amphipod_api::reflector::{Event, Reflector, ReflectorConfig};
use amphipod_netplug::{Network, Peer};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::deps::Deps;

/// Where the copy is.
const FACT: &str = "peers";
/// The annotation of nodes that holds their public WireGuard key, in base64.
const KEY: &str = "amphipod.io/wireguard-public-key";

/// Peers by the names of their nodes.
type Peers = BTreeMap<String, Peer>;

/// Keeps ways and rules as they should be. Never ends.
pub async fn run(deps: Arc<Deps>, client: Client) {
    let mut network = deps.network.clone();
    let network = match network.wait_for(Option::is_some).await.map(|n| n.clone()) {
        Ok(Some(network)) => network,
        _ => return,
    };
    tokio::join!(network.clone().guard(), follow(&deps, client, &network));
}

async fn follow(deps: &Deps, client: Client, network: &Arc<Network>) {
    let mut peers = match deps.store.fact(FACT).await {
        Ok(Some(text)) => remembered(&text),
        _ => Peers::default(),
    };
    if !peers.is_empty() {
        tell(network, &peers).await;
    }
    let mut told = false;
    let key = network.wireguard_key().map(|key| STANDARD.encode(key));
    let mut nodes = Reflector::spawn(
        client.clone(),
        Target::core("nodes"),
        ReflectorConfig::default(),
    );
    while let Some(event) = nodes.next().await {
        let before = peers.clone();
        if let Some(own) = own_node(&event, &deps.config.node_name) {
            tell_key(&client, &own, key.as_deref()).await;
        }
        if let Some(zone) = zone(&event, &deps.config.node_name) {
            deps.services.set_zone(&deps.store, zone).await;
        }
        take(&mut peers, event, &deps.config.node_name);
        // Nodes change often; their addresses and ranges hardly ever.
        if peers == before && told {
            continue;
        }
        told = tell(network, &peers).await;
        if peers != before
            && let Err(error) = deps.store.put_fact(FACT, written(&peers)).await
        {
            tracing::warn!(
                error = format!("{error:#}"),
                "other nodes are not remembered"
            );
        }
    }
}

/// Writes our key, or that we have none, on our own node, where the others find it.
async fn tell_key(client: &Client, own: &Value, key: Option<&str>) {
    if own["metadata"]["annotations"][KEY].as_str() == key {
        return;
    }
    let name = own["metadata"]["name"].as_str().unwrap_or_default();
    let target = Target::core("nodes").name(name);
    let patch = json!({"metadata": {"annotations": {KEY: key}}});
    // A change of the node brings us here again, and so does a server that comes back.
    if let Err(error) = client.patch(&target, PatchType::Merge, &patch).await {
        tracing::warn!(%error, "other nodes cannot be told the WireGuard key of this one; they do not reach its pods");
    }
}

async fn tell(network: &Arc<Network>, peers: &Peers) -> bool {
    let network = network.clone();
    let peers = peers.values().cloned().collect();
    match tokio::task::spawn_blocking(move || network.set_peers(peers)).await {
        Ok(Ok(())) => true,
        Ok(Err(error)) => {
            tracing::error!(
                error = crate::pod::ops::describe(&error),
                "could not set the ways to other nodes; their pods may be out of reach"
            );
            false
        }
        Err(_) => false,
    }
}

fn take(peers: &mut Peers, event: Event, own: &str) {
    let name = |node: &Value| {
        node["metadata"]["name"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    };
    match event {
        Event::Deleted(node) => {
            peers.remove(&name(&node));
        }
        Event::Applied(node) if name(&node) != own => {
            let name = name(&node);
            match peer(&name, &node) {
                Some(peer) => peers.insert(name, peer),
                None => peers.remove(&name),
            };
        }
        Event::Applied(_) => {}
        Event::Restarted(nodes) => {
            let others = nodes.iter().map(|n| (name(n), n)).filter(|(n, _)| n != own);
            *peers = others
                .filter_map(|(name, node)| Some((name.clone(), peer(&name, node)?)))
                .collect();
        }
    }
}

/// Our own node, if the event tells of it.
fn own_node(event: &Event, own: &str) -> Option<Arc<Value>> {
    let is_own = |node: &&Arc<Value>| node["metadata"]["name"] == own;
    match event {
        Event::Applied(node) => Some(node).filter(is_own),
        Event::Restarted(nodes) => nodes.iter().find(is_own),
        Event::Deleted(_) => None,
    }
    .cloned()
}

/// The zone of our own node (`topology.kubernetes.io/zone`), if the event tells of our node.
fn zone(event: &Event, own: &str) -> Option<Option<String>> {
    let node = own_node(event, own)?;
    let zone = node["metadata"]["labels"]["topology.kubernetes.io/zone"].as_str();
    Some(zone.filter(|z| !z.is_empty()).map(str::to_owned))
}

/// A node as a peer, once it has an address and a pod range.
fn peer(name: &str, node: &Value) -> Option<Peer> {
    let spec = &node["spec"];
    let ranges: Vec<&str> = match spec["podCIDRs"].as_array() {
        Some(list) => list.iter().filter_map(Value::as_str).collect(),
        None => spec["podCIDR"].as_str().into_iter().collect(),
    };
    let addresses = node["status"]["addresses"].as_array()?.iter();
    let peer = Peer {
        node: name.to_owned(),
        ips: addresses
            .filter(|a| a["type"] == "InternalIP")
            .filter_map(|a| a["address"].as_str()?.parse().ok())
            .collect(),
        pod_cidrs: ranges.iter().filter_map(|r| r.parse().ok()).collect(),
        wireguard: node["metadata"]["annotations"][KEY]
            .as_str()
            .and_then(|key| STANDARD.decode(key).ok()?.try_into().ok()),
    };
    (!peer.ips.is_empty() && !peer.pod_cidrs.is_empty()).then_some(peer)
}

/// The copy: the parts of nodes that matter, in the shape of nodes.
fn written(peers: &Peers) -> String {
    let node = |p: &Peer| {
        let addresses: Vec<Value> = p
            .ips
            .iter()
            .map(|ip| json!({"type": "InternalIP", "address": ip.to_string()}))
            .collect();
        let ranges: Vec<String> = p.pod_cidrs.iter().map(ToString::to_string).collect();
        let key = p.wireguard.map(|key| STANDARD.encode(key));
        json!({"metadata": {"name": p.node, "annotations": {KEY: key}}, "spec": {"podCIDRs": ranges}, "status": {"addresses": addresses}})
    };
    Value::from_iter(peers.values().map(node)).to_string()
}

fn remembered(text: &str) -> Peers {
    let nodes: Vec<Value> = serde_json::from_str(text).unwrap_or_default();
    let one = |n: &Value| {
        let name = n["metadata"]["name"].as_str()?;
        Some((name.to_owned(), peer(name, n)?))
    };
    nodes.iter().filter_map(one).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn node(name: &str, ip: &str, range: &str) -> Arc<Value> {
        Arc::new(
            json!({"metadata": {"name": name}, "spec": {"podCIDR": range, "podCIDRs": [range]},
            "status": {"addresses": [{"type": "Hostname", "address": name}, {"type": "InternalIP", "address": ip}]}}),
        )
    }

    #[test]
    fn other_nodes_with_address_and_range_are_peers() {
        let mut peers = Peers::new();
        let all = vec![
            node("me", "192.0.2.1", "10.42.0.0/24"),
            node("a", "192.0.2.2", "10.42.1.0/24"),
            Arc::new(
                json!({"metadata": {"name": "young"}, "spec": {}, "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.9"}]}}),
            ),
        ];
        take(&mut peers, Event::Restarted(all), "me");
        assert_eq!(peers.keys().collect::<Vec<_>>(), ["a"]);
        assert_eq!(
            peers["a"].ips,
            ["192.0.2.2".parse::<std::net::IpAddr>().unwrap()]
        );
        take(
            &mut peers,
            Event::Applied(node("young", "192.0.2.9", "10.42.2.0/24")),
            "me",
        );
        take(
            &mut peers,
            Event::Applied(node("me", "192.0.2.1", "10.42.0.0/24")),
            "me",
        );
        assert_eq!(peers.len(), 2);
        assert_eq!(remembered(&written(&peers)), peers);
        let mut keyed = (*node("a", "192.0.2.2", "10.42.1.0/24")).clone();
        keyed["metadata"]["annotations"] = json!({KEY: STANDARD.encode([7; 32])});
        take(&mut peers, Event::Applied(Arc::new(keyed)), "me");
        assert_eq!(peers["a"].wireguard, Some([7; 32]));
        assert_eq!(remembered(&written(&peers)), peers);
        take(
            &mut peers,
            Event::Deleted(node("a", "192.0.2.2", "10.42.1.0/24")),
            "me",
        );
        assert_eq!(peers.keys().collect::<Vec<_>>(), ["young"]);
    }
}
