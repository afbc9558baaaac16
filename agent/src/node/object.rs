//! The Node object, built from facts. Pure.

use std::net::IpAddr;

use amphipod_api::Quantity;
use amphipod_api::local_volumes::DIRECTORY;
use serde_json::{Map, Value, json};

use super::machine::Machine;
use super::pressure::Pressure;
use crate::config::AgentConfig;
use crate::resources::requests::{Amounts, is_extended};

/// What the node can give, by resource: CPU in thousandths, else whole units.
pub fn capacity(m: &Machine, config: &AgentConfig) -> Amounts {
    [
        ("cpu".to_string(), m.cpus * 1000),
        ("memory".to_string(), m.memory_bytes),
        ("ephemeral-storage".to_string(), m.disk_bytes),
        ("hugepages-1Gi".to_string(), 0),
        ("hugepages-2Mi".to_string(), 0),
        ("pods".to_string(), i64::from(config.max_pods)),
    ]
    .into()
}

/// What is left of it for pods: without the system's share and the eviction thresholds
/// (<https://kubernetes.io/docs/tasks/administer-cluster/reserve-compute-resources/>).
pub fn allocatable(capacity: &Amounts, config: &AgentConfig) -> Amounts {
    let mut out = capacity.clone();
    for (name, text) in &config.system_reserved {
        if let Some(have) = out.get_mut(name) {
            let q: Quantity = text.parse().unwrap_or(Quantity::ZERO);
            *have -= if name == "cpu" {
                q.milli_value()
            } else {
                q.value()
            };
        }
    }
    if let Some(memory) = out.get_mut("memory") {
        *memory -= config.eviction.memory_available as i64;
    }
    if let Some(disk) = out.get_mut("ephemeral-storage") {
        *disk -= *disk / 100 * i64::from(config.eviction.nodefs_available_percent);
    }
    out.values_mut().for_each(|v| *v = (*v).max(0));
    out
}

fn quantities(amounts: &Amounts) -> Value {
    let text = |name: &str, v: i64| match name {
        "cpu" => Quantity::from_milli(v).to_string(),
        "memory" => format!("{}Ki", v / 1024),
        "pods" => v.to_string(),
        "ephemeral-storage" => format!("{}Ki", v / 1024),
        _ => v.to_string(),
    };
    Value::Object(
        amounts
            .iter()
            .map(|(k, v)| (k.clone(), Value::from(text(k, *v))))
            .collect(),
    )
}

pub fn labels(m: &Machine, config: &AgentConfig) -> Map<String, Value> {
    let mut labels: Map<String, Value> = [
        ("kubernetes.io/hostname", config.node_name.as_str()),
        ("kubernetes.io/os", "linux"),
        ("kubernetes.io/arch", m.architecture.as_str()),
        ("beta.kubernetes.io/os", "linux"),
        ("beta.kubernetes.io/arch", m.architecture.as_str()),
        ("node.kubernetes.io/instance-type", "amphipod"),
    ]
    .into_iter()
    .map(|(k, v)| (k.to_string(), Value::from(v)))
    .collect();
    labels.extend(
        config
            .node_labels
            .iter()
            .map(|(k, v)| (k.clone(), Value::from(v.as_str()))),
    );
    labels
}

pub fn annotations(config: &AgentConfig) -> Map<String, Value> {
    let storage = config.storage_dir.to_string_lossy();
    Map::from_iter([(DIRECTORY.to_string(), Value::from(storage))])
}

/// `key=value:Effect` or `key:Effect`.
fn taint(text: &str) -> Option<Value> {
    let (rest, effect) = text.rsplit_once(':')?;
    let (key, value) = rest.split_once('=').unwrap_or((rest, ""));
    let mut t = json!({"key": key, "effect": effect});
    if !value.is_empty() {
        t["value"] = Value::from(value);
    }
    Some(t)
}

/// The object to register.
pub fn node(m: &Machine, config: &AgentConfig) -> Value {
    let taints: Vec<Value> = config.node_taints.iter().filter_map(|t| taint(t)).collect();
    let mut spec = Map::new();
    if !taints.is_empty() {
        spec.insert("taints".into(), Value::from(taints));
    }
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": config.node_name, "labels": labels(m, config), "annotations": annotations(config)},
        "spec": spec,
    })
}

/// What the status is computed from.
pub struct Facts<'a> {
    pub machine: &'a Machine,
    pub config: &'a AgentConfig,
    pub addresses: Vec<IpAddr>,
    pub pressure: Pressure,
    /// Why pods cannot have a network yet.
    pub network_trouble: Option<String>,
    /// Names and size of the images here, largest first.
    pub images: Vec<(Vec<String>, u64)>,
    pub now: jiff::Timestamp,
}

/// `status`; transition times come from the conditions in `previous`.
pub fn status(f: &Facts, previous: &Value) -> Value {
    let capacity = capacity(f.machine, f.config);
    let allocatable = allocatable(&capacity, f.config);
    let mut addresses: Vec<Value> = f
        .addresses
        .iter()
        .map(|ip| json!({"type": "InternalIP", "address": ip.to_string()}))
        .collect();
    addresses.push(json!({"type": "Hostname", "address": f.config.node_name}));
    let now = amphipod_api::time::format_time(f.now);
    let condition = |kind: &str, is: bool, reason: &str, message: &str| {
        let status = if is { "True" } else { "False" };
        let old = previous["conditions"]
            .as_array()
            .into_iter()
            .flatten()
            .find(|c| c["type"] == kind);
        let since = old
            .filter(|c| c["status"] == status)
            .and_then(|c| c["lastTransitionTime"].as_str())
            .unwrap_or(&now);
        json!({"type": kind, "status": status, "reason": reason, "message": message, "lastHeartbeatTime": now, "lastTransitionTime": since})
    };
    let p = f.pressure;
    let pick = |bad: bool, yes: &'static str, no: &'static str| if bad { yes } else { no };
    let conditions = [
        condition(
            "MemoryPressure",
            p.memory,
            pick(
                p.memory,
                "KubeletHasInsufficientMemory",
                "KubeletHasSufficientMemory",
            ),
            pick(
                p.memory,
                "kubelet has insufficient memory available",
                "kubelet has sufficient memory available",
            ),
        ),
        condition(
            "DiskPressure",
            p.disk,
            pick(p.disk, "KubeletHasDiskPressure", "KubeletHasNoDiskPressure"),
            pick(
                p.disk,
                "kubelet has disk pressure",
                "kubelet has no disk pressure",
            ),
        ),
        condition(
            "PIDPressure",
            p.pids,
            pick(
                p.pids,
                "KubeletHasInsufficientPID",
                "KubeletHasSufficientPID",
            ),
            pick(
                p.pids,
                "kubelet has insufficient PID available",
                "kubelet has sufficient PID available",
            ),
        ),
        match &f.network_trouble {
            None => condition(
                "Ready",
                true,
                "KubeletReady",
                "kubelet is posting ready status",
            ),
            Some(why) => condition(
                "Ready",
                false,
                "KubeletNotReady",
                &format!("container runtime network not ready: {why}"),
            ),
        },
    ];
    let m = f.machine;
    json!({
        "addresses": addresses,
        "capacity": quantities(&capacity),
        "allocatable": quantities(&allocatable),
        "conditions": conditions,
        "daemonEndpoints": {"kubeletEndpoint": {"Port": f.config.node_api_port}},
        "nodeInfo": {
            "architecture": m.architecture, "bootID": m.boot_id,
            "containerRuntimeVersion": format!("{}://{}", crate::pod::status::RUNTIME_NAME, env!("CARGO_PKG_VERSION")),
            "kernelVersion": m.kernel, "kubeProxyVersion": "",
            "kubeletVersion": "v1.36.0+amphipod", "machineID": m.machine_id, "operatingSystem": "linux", "osImage": m.os_image,
            "systemUUID": m.system_uuid, "swap": {"capacity": m.swap_bytes},
        },
        "images": f.images.iter().take(50).map(|(names, size)| json!({"names": names, "sizeBytes": size})).collect::<Vec<_>>(),
    })
}

/// Conditions whose status changed: type and whether it is now true.
pub fn turned(old: &Value, new: &Value) -> Vec<(&'static str, bool)> {
    let state = |status: &Value, kind: &str| {
        let mut all = status["conditions"].as_array().into_iter().flatten();
        all.find(|c| c["type"] == kind)
            .map(|c| c["status"] == "True")
    };
    ["MemoryPressure", "DiskPressure", "PIDPressure", "Ready"]
        .into_iter()
        .filter_map(|kind| {
            let now = state(new, kind)?;
            (state(old, kind) != Some(now)).then_some((kind, now))
        })
        .collect()
}

pub fn is_good(kind: &str, state: bool) -> bool {
    (kind == "Ready") == state
}

/// The kubelet's reason for the event that a condition turned.
pub fn event_reason(kind: &str, state: bool) -> &'static str {
    match (kind, state) {
        ("MemoryPressure", true) => "NodeHasInsufficientMemory",
        ("MemoryPressure", false) => "NodeHasSufficientMemory",
        ("DiskPressure", true) => "NodeHasDiskPressure",
        ("DiskPressure", false) => "NodeHasNoDiskPressure",
        ("PIDPressure", true) => "NodeHasInsufficientPID",
        ("PIDPressure", false) => "NodeHasSufficientPID",
        (_, true) => "NodeReady",
        (_, false) => "NodeNotReady",
    }
}

/// What to tell a server that has `theirs` so that it has `ours`: a strategic merge patch of the status, `None` if nothing. Heartbeat
/// times are no news by themselves; with `due` all conditions are told. What others have put there (conditions and resources of
/// other programs) stays.
pub fn patch(theirs: &Value, ours: &Value, due: bool) -> Option<Map<String, Value>> {
    let mut patch = Map::new();
    for (field, value) in ours.as_object().into_iter().flatten() {
        let theirs = &theirs[field];
        let same = match field.as_str() {
            "conditions" => !due && conditions_hold(theirs, value),
            _ => holds(theirs, value),
        };
        if same {
            continue;
        }
        let mut value = value.clone();
        // Addresses would be merged by type, and a node may have two of a type.
        if let ("addresses", Value::Array(list)) = (field.as_str(), &mut value) {
            list.insert(0, json!({"$patch": "replace"}));
        }
        patch.insert(field.clone(), value);
    }
    let handed_on = handed_on(theirs);
    if !handed_on.is_empty()
        && let Some(allocatable) = patch
            .entry("allocatable")
            .or_insert_with(|| json!({}))
            .as_object_mut()
    {
        allocatable.extend(handed_on);
    }
    (!patch.is_empty()).then_some(patch)
}

/// Extended resources that others put into our capacity are for pods, all of them; those that are not there any more are not
/// (<https://kubernetes.io/docs/tasks/administer-cluster/extended-resource-node/>). What is to change in `allocatable`, `null` for what goes.
fn handed_on(theirs: &Value) -> Map<String, Value> {
    let amounts = |field: &str| {
        let all = theirs[field].as_object().into_iter().flatten();
        all.filter(|(name, _)| is_extended(name))
    };
    let mut change = Map::new();
    for (name, amount) in amounts("capacity") {
        if theirs["allocatable"][name] != *amount {
            change.insert(name.clone(), amount.clone());
        }
    }
    for (name, _) in amounts("allocatable") {
        if theirs["capacity"][name].is_null() {
            change.insert(name.clone(), Value::Null);
        }
    }
    change
}

/// Whether all of our conditions are among theirs, whatever the heartbeat times.
fn conditions_hold(theirs: &Value, ours: &Value) -> bool {
    let theirs = theirs.as_array().map_or(&[][..], Vec::as_slice);
    ours.as_array().into_iter().flatten().all(|our| {
        let same = theirs.iter().find(|their| their["type"] == our["type"]);
        let fields = || our.as_object().into_iter().flatten();
        same.is_some_and(|their| {
            fields().all(|(name, value)| name == "lastHeartbeatTime" || their[name] == *value)
        })
    })
}

/// Whether theirs says all that ours does. Quantities may be written in other ways.
fn holds(theirs: &Value, ours: &Value) -> bool {
    match (theirs, ours) {
        (Value::Object(theirs), Value::Object(ours)) => ours
            .iter()
            .all(|(name, our)| theirs.get(name).is_some_and(|their| holds(their, our))),
        (Value::String(their), Value::String(our)) if their != our => {
            matches!((their.parse::<Quantity>(), our.parse::<Quantity>()), (Ok(their), Ok(our)) if their == our)
        }
        // A list that is empty is as good as none.
        (Value::Null, Value::Array(ours)) => ours.is_empty(),
        _ => theirs == ours,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::config::ServerCredentials;

    fn config() -> AgentConfig {
        let none = std::path::PathBuf::new();
        let mut c = AgentConfig::new(
            "box",
            "",
            ServerCredentials {
                ca: none.clone(),
                cert: none.clone(),
                key: none,
            },
        );
        c.system_reserved.insert("cpu".into(), "500m".into());
        c.node_taints.push("a=b:NoSchedule".into());
        c
    }

    fn machine() -> Machine {
        Machine {
            cpus: 2,
            memory_bytes: 1 << 30,
            disk_bytes: 1000 << 10,
            architecture: "amd64".into(),
            ..Default::default()
        }
    }

    fn facts<'a>(
        m: &'a Machine,
        c: &'a AgentConfig,
        network_trouble: Option<String>,
        second: i64,
    ) -> Facts<'a> {
        let now = jiff::Timestamp::from_second(second).unwrap();
        Facts {
            machine: m,
            config: c,
            addresses: vec![],
            pressure: Pressure::default(),
            network_trouble,
            images: vec![],
            now,
        }
    }

    #[test]
    fn the_system_keeps_its_share() {
        let (m, c) = (machine(), config());
        let s = status(&facts(&m, &c, None, 0), &Value::Null);
        assert_eq!(s["capacity"]["cpu"], "2");
        assert_eq!(s["allocatable"]["cpu"], "1500m");
        assert_eq!(
            s["allocatable"]["memory"],
            format!("{}Ki", (1024 - 100) * 1024)
        );
        assert_eq!(s["allocatable"]["pods"], "110");
        let n = node(&m, &c);
        assert_eq!(
            n["spec"]["taints"][0],
            json!({"key": "a", "value": "b", "effect": "NoSchedule"})
        );
        assert_eq!(n["metadata"]["labels"]["kubernetes.io/hostname"], "box");
    }

    #[test]
    fn heartbeats_alone_are_no_change_and_transitions_keep_their_time() {
        let (m, c) = (machine(), config());
        let one = status(&facts(&m, &c, None, 0), &Value::Null);
        let two = status(&facts(&m, &c, None, 60), &one);
        assert_eq!(patch(&one, &two, false), None);
        let beat = patch(&one, &two, true).unwrap();
        assert_eq!(beat.keys().collect::<Vec<_>>(), ["conditions"]);
        assert_eq!(
            two["conditions"][3]["lastTransitionTime"],
            "1970-01-01T00:00:00Z"
        );
        let three = status(&facts(&m, &c, Some("x".into()), 120), &two);
        assert!(patch(&two, &three, false).is_some());
        assert_eq!(
            three["conditions"][3]["lastTransitionTime"],
            "1970-01-01T00:02:00Z"
        );
    }

    #[test]
    fn a_server_that_believes_something_else_is_told_and_what_others_said_stays() {
        let (m, c) = (machine(), config());
        let ours = status(&facts(&m, &c, None, 0), &Value::Null);
        let mut theirs = ours.clone();
        theirs["capacity"]["kubernetes.io/thing"] = "4".into();
        theirs["capacity"]["memory"] = "1Gi".into();
        theirs["phase"] = "Running".into();
        let others = json!({"type": "NetworkUnavailable", "status": "False"});
        theirs["conditions"].as_array_mut().unwrap().push(others);
        theirs.as_object_mut().unwrap().remove("images");
        assert_eq!(patch(&theirs, &ours, false), None);
        theirs["conditions"][3]["status"] = "Unknown".into();
        let told = patch(&theirs, &ours, false).unwrap();
        assert_eq!(told.keys().collect::<Vec<_>>(), ["conditions"]);
        theirs["addresses"] = json!([{"type": "InternalIP", "address": "10.0.0.9"}]);
        let told = patch(&theirs, &ours, false).unwrap();
        let addresses = told["addresses"].as_array().unwrap();
        assert_eq!(addresses[0], json!({"$patch": "replace"}));
        assert_eq!(addresses[1]["type"], "Hostname");
        assert!(patch(&Value::Null, &ours, false).is_some());
    }

    #[test]
    fn extended_resources_that_others_advertise_are_handed_on_to_pods() {
        let (m, c) = (machine(), config());
        let ours = status(&facts(&m, &c, None, 0), &Value::Null);
        let mut theirs = ours.clone();
        theirs["capacity"]["example.com/dongle"] = "4".into();
        let told = patch(&theirs, &ours, false).unwrap();
        assert_eq!(
            Value::Object(told),
            json!({"allocatable": {"example.com/dongle": "4"}})
        );
        theirs["allocatable"]["example.com/dongle"] = "4".into();
        assert_eq!(patch(&theirs, &ours, false), None);
        theirs["capacity"] = ours["capacity"].clone();
        let told = patch(&theirs, &ours, false).unwrap();
        assert_eq!(
            Value::Object(told),
            json!({"allocatable": {"example.com/dongle": null}})
        );
    }
}
