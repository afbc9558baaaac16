//! The built-in provisioner: a volume that is a directory of one box. Pure.

use amphipod_api::local_volumes::{
    DEFAULT_DIRECTORY, DIRECTORY, FINALIZER, PROTECTION, PROVISIONED_BY, PROVISIONER,
};
use amphipod_api::meta;
use serde_json::{Value, json};

use crate::resources::volumes::{Claim, Class};

const HOSTNAME: &str = "kubernetes.io/hostname";

/// The name of the volume that is made for a claim.
pub fn name(claim: &Claim) -> String {
    format!("pvc-{}", claim.uid)
}

/// The volume for a claim on a node.
///
/// # Errors
/// Why not: the node does not say itself which box it is, and a volume must not be looked for on another.
pub fn volume(claim: &Claim, class: &Class, node: &Value) -> Result<Value, String> {
    let node_name = meta::name(node);
    let hostname = meta::label(node, HOSTNAME).unwrap_or_default();
    if hostname != node_name {
        return Err(format!(
            "node \"{node_name}\" has the label {HOSTNAME}={hostname}, which should be its name"
        ));
    }
    let directory = meta::annotation(node, DIRECTORY).unwrap_or(DEFAULT_DIRECTORY);
    let name = name(claim);
    let path = format!("{directory}/{name}_{}_{}", claim.namespace, claim.name);
    let here = json!({"key": HOSTNAME, "operator": "In", "values": [node_name]});
    let mut volume = json!({
        "apiVersion": "v1", "kind": "PersistentVolume",
        "metadata": {
            "name": name,
            "annotations": {PROVISIONED_BY: PROVISIONER},
            "finalizers": [PROTECTION, FINALIZER],
        },
        "spec": {
            "capacity": {"storage": claim.size.to_string()},
            "accessModes": claim.modes,
            "volumeMode": "Filesystem",
            "storageClassName": class.name,
            "persistentVolumeReclaimPolicy": class.policy,
            "claimRef": claim.reference(),
            "local": {"path": path},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [here]}]}},
        },
    });
    if !class.mount_options.is_empty() {
        volume["spec"]["mountOptions"] = json!(class.mount_options);
    }
    Ok(volume)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_volume_is_a_directory_of_its_node_and_says_whose() {
        let claim = Claim {
            namespace: "shop".into(),
            name: "data".into(),
            uid: "1-2".into(),
            size: "1Gi".parse().unwrap(),
            ..Claim::default()
        };
        let node = |hostname: &str| json!({"metadata": {"name": "box", "labels": {HOSTNAME: hostname}, "annotations": {DIRECTORY: "/data/storage"}}});
        let made = volume(&claim, &Class::default(), &node("box")).unwrap();
        assert_eq!(
            made["spec"]["local"]["path"],
            "/data/storage/pvc-1-2_shop_data"
        );
        assert_eq!(made["spec"]["capacity"]["storage"], "1Gi");
        assert_eq!(made["spec"]["claimRef"]["uid"], "1-2");
        assert_eq!(crate::resources::volumes::Volume::read(&made).home, "box");
        assert!(volume(&claim, &Class::default(), &node("other")).is_err());
    }
}
