//! Claims, volumes and classes as the scheduler and the controllers see them, and which volume fits a claim. Pure.
//! <https://kubernetes.io/docs/concepts/storage/persistent-volumes/#binding>

use std::collections::BTreeMap;

use amphipod_api::meta::{self, annotation, array_at, at, bool_at, str_at};
use amphipod_api::quantity::Quantity;
use amphipod_api::selector::NodeSelector;
use amphipod_api::{LabelSelector, local_volumes};
use serde_json::{Value, json};

/// The class of a claim or a volume, where old clients put it.
pub const BETA_CLASS: &str = "volume.beta.kubernetes.io/storage-class";
const DEFAULT_CLASS: &str = "storageclass.kubernetes.io/is-default-class";
const BETA_DEFAULT_CLASS: &str = "storageclass.beta.kubernetes.io/is-default-class";

/// On a claim: the node that the scheduler chose for its first pod.
pub const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
/// On a claim: binding is complete, and what breaks it from now on is a loss.
pub const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
/// On a claim or a volume: the controller chose, not a user.
pub const BOUND_BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";
/// The provisioner of classes whose volumes people make.
pub const NO_PROVISIONER: &str = "kubernetes.io/no-provisioner";

/// A claim whose pods are not gone waits with this one; a volume that is bound with [`local_volumes::PROTECTION`].
pub const CLAIM_PROTECTION: &str = "kubernetes.io/pvc-protection";

/// The class of a claim or a volume; of a claim, `None` asks for the default one and an empty name for none.
pub fn class_of(object: &Value) -> Option<&str> {
    let named = at(object, &["spec", "storageClassName"]).and_then(Value::as_str);
    annotation(object, BETA_CLASS).or(named)
}

/// Whether claims that name no class are of this one.
pub fn is_default_class(class: &Value) -> bool {
    [DEFAULT_CLASS, BETA_DEFAULT_CLASS]
        .iter()
        .any(|key| annotation(class, key) == Some("true"))
}

/// The default class: of several the newest, then the first by name.
pub fn default_class(classes: &[Value]) -> Option<&str> {
    let defaults = classes.iter().filter(|class| is_default_class(class));
    let rank = |class: &&Value| {
        let made = str_at(class, &["metadata", "creationTimestamp"]).to_owned();
        (std::cmp::Reverse(made), meta::name(class).to_owned())
    };
    defaults.min_by_key(rank).map(meta::name)
}

/// Who a volume is for (`spec.claimRef`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClaimRef {
    pub namespace: String,
    pub name: String,
    /// Empty while a user reserves the volume for a claim that need not exist.
    pub uid: String,
}

/// A PersistentVolumeClaim.
#[derive(Clone, Debug, Default)]
pub struct Claim {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub class: Option<String>,
    /// `spec.volumeName`
    pub volume: String,
    pub modes: Vec<String>,
    pub block: bool,
    pub size: Quantity,
    pub selector: Option<LabelSelector>,
    pub selected_node: Option<String>,
    pub bind_completed: bool,
    pub by_controller: bool,
    pub phase: String,
    pub deleting: bool,
    /// UID of the object that manages it: of an ephemeral volume's claim, the pod.
    pub owner: String,
}

/// A PersistentVolume.
#[derive(Clone, Debug, Default)]
pub struct Volume {
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub class: String,
    pub modes: Vec<String>,
    pub block: bool,
    pub size: Quantity,
    pub claim: Option<ClaimRef>,
    pub affinity: Option<NodeSelector>,
    pub phase: String,
    pub policy: String,
    pub provisioned_by: String,
    pub by_controller: bool,
    pub deleting: bool,
    pub finalizers: Vec<String>,
    /// The first value of its node affinity: of ours, the box where the data is.
    pub home: String,
}

/// A StorageClass.
#[derive(Clone, Debug, Default)]
pub struct Class {
    pub name: String,
    pub provisioner: String,
    /// `volumeBindingMode: WaitForFirstConsumer`
    pub waits: bool,
    pub policy: String,
    pub mount_options: Vec<String>,
}

fn texts(object: &Value, path: &[&str]) -> Vec<String> {
    let list = array_at(object, path).iter();
    list.filter_map(Value::as_str).map(str::to_owned).collect()
}

fn size(object: &Value, path: &[&str]) -> Quantity {
    let amount = at(object, path).and_then(|amount| Quantity::from_value(amount).ok());
    amount.unwrap_or(Quantity::ZERO)
}

impl Claim {
    pub fn read(object: &Value) -> Claim {
        let has = |key: &str| annotation(object, key).is_some();
        Claim {
            namespace: meta::namespace(object).to_owned(),
            name: meta::name(object).to_owned(),
            uid: meta::uid(object).to_owned(),
            class: class_of(object).map(str::to_owned),
            volume: str_at(object, &["spec", "volumeName"]).to_owned(),
            modes: texts(object, &["spec", "accessModes"]),
            block: str_at(object, &["spec", "volumeMode"]) == "Block",
            size: size(object, &["spec", "resources", "requests", "storage"]),
            selector: at(object, &["spec", "selector"])
                .and_then(|selector| LabelSelector::from_object(selector).ok()),
            selected_node: annotation(object, SELECTED_NODE).map(str::to_owned),
            bind_completed: has(BIND_COMPLETED),
            by_controller: has(BOUND_BY_CONTROLLER),
            phase: str_at(object, &["status", "phase"]).to_owned(),
            deleting: meta::is_deleting(object),
            owner: meta::controller_of(object)
                .map(|owner| str_at(owner, &["uid"]).to_owned())
                .unwrap_or_default(),
        }
    }

    /// Nothing is left to do before a pod can have it.
    pub fn is_bound(&self) -> bool {
        !self.volume.is_empty() && self.bind_completed
    }

    /// `spec.claimRef` of a volume that is this claim's.
    pub fn reference(&self) -> Value {
        json!({
            "apiVersion": "v1", "kind": "PersistentVolumeClaim",
            "namespace": self.namespace, "name": self.name, "uid": self.uid,
        })
    }
}

impl Volume {
    pub fn read(object: &Value) -> Volume {
        let reference = |field: &str| str_at(object, &["spec", "claimRef", field]).to_owned();
        let claim = at(object, &["spec", "claimRef"]).map(|_| ClaimRef {
            namespace: reference("namespace"),
            name: reference("name"),
            uid: reference("uid"),
        });
        let required = at(object, &["spec", "nodeAffinity", "required"]);
        let home = required
            .and_then(|r| r.pointer("/nodeSelectorTerms/0/matchExpressions/0/values/0"))
            .and_then(Value::as_str);
        let labels = meta::labels(object).iter();
        let provisioned_by = annotation(object, local_volumes::PROVISIONED_BY);
        Volume {
            name: meta::name(object).to_owned(),
            labels: labels
                .map(|(key, value)| (key.clone(), str_at(value, &[]).to_owned()))
                .collect(),
            class: class_of(object).unwrap_or_default().to_owned(),
            modes: texts(object, &["spec", "accessModes"]),
            block: str_at(object, &["spec", "volumeMode"]) == "Block",
            size: size(object, &["spec", "capacity", "storage"]),
            claim,
            affinity: required.and_then(|required| NodeSelector::from_object(required).ok()),
            phase: str_at(object, &["status", "phase"]).to_owned(),
            policy: str_at(object, &["spec", "persistentVolumeReclaimPolicy"]).to_owned(),
            provisioned_by: provisioned_by.unwrap_or_default().to_owned(),
            by_controller: annotation(object, BOUND_BY_CONTROLLER).is_some(),
            deleting: meta::is_deleting(object),
            finalizers: meta::finalizers(object).map(str::to_owned).collect(),
            home: home.unwrap_or_default().to_owned(),
        }
    }

    /// It is this claim's, or kept for it.
    pub fn is_for(&self, claim: &Claim) -> bool {
        self.claim.as_ref().is_some_and(|of| {
            of.namespace == claim.namespace
                && of.name == claim.name
                && (of.uid.is_empty() || of.uid == claim.uid)
        })
    }

    /// Pods on this node can have it.
    pub fn is_reachable_from(&self, node: &str, labels: &BTreeMap<String, String>) -> bool {
        let fits = |affinity: &NodeSelector| affinity.matches(node, labels);
        self.affinity.as_ref().is_none_or(fits)
    }

    pub fn has_finalizer(&self, name: &str) -> bool {
        self.finalizers.iter().any(|finalizer| finalizer == name)
    }

    /// Why a claim that names this volume cannot have it, in upstream's words.
    pub fn misfit(&self, claim: &Claim) -> Option<&'static str> {
        if self.size < claim.size {
            return Some("requested PV is too small");
        }
        if self.class != claim.class.as_deref().unwrap_or_default() {
            return Some("storageClassName does not match");
        }
        if self.block != claim.block {
            return Some("incompatible volumeMode");
        }
        if !claim.modes.iter().all(|mode| self.modes.contains(mode)) {
            return Some("incompatible accessMode");
        }
        None
    }
}

impl Class {
    pub fn read(object: &Value) -> Class {
        Class {
            name: meta::name(object).to_owned(),
            provisioner: str_at(object, &["provisioner"]).to_owned(),
            waits: str_at(object, &["volumeBindingMode"]) == "WaitForFirstConsumer",
            policy: str_at(object, &["reclaimPolicy"]).to_owned(),
            mount_options: texts(object, &["mountOptions"]),
        }
    }

    /// Somebody makes its volumes.
    pub fn is_dynamic(&self) -> bool {
        self.provisioner != NO_PROVISIONER
    }
}

/// From where a claim's volume must be reachable.
#[derive(Clone, Copy, Debug)]
pub enum From<'a> {
    /// It does not matter.
    Anywhere,
    /// That is not known yet: only a volume that is kept for the claim will do.
    Unknown,
    Node(&'a str, &'a BTreeMap<String, String>),
}

/// The volume that a claim should get: the one that is kept for it, or else the smallest that fits.
pub fn best_match<'a>(
    volumes: impl Iterator<Item = &'a Volume>,
    claim: &Claim,
    from: From,
) -> Option<&'a Volume> {
    let reachable = |volume: &Volume| match from {
        From::Node(node, labels) => volume.is_reachable_from(node, labels),
        From::Anywhere | From::Unknown => true,
    };
    let mut best: Option<&Volume> = None;
    for volume in volumes {
        let fits = volume.size >= claim.size
            && volume.block == claim.block
            && claim.modes.iter().all(|mode| volume.modes.contains(mode))
            && !volume.deleting;
        if !fits || volume.claim.is_some() && !volume.is_for(claim) {
            continue;
        }
        if volume.claim.is_some() {
            return reachable(volume).then_some(volume);
        }
        let selected = claim
            .selector
            .as_ref()
            .is_none_or(|selector| selector.matches(&volume.labels));
        if matches!(from, From::Unknown)
            || volume.phase != "Available"
            || volume.class != claim.class.as_deref().unwrap_or_default()
            || !selected
            || !reachable(volume)
        {
            continue;
        }
        let rank = |volume: &Volume| (volume.size, volume.name.clone());
        if best.is_none_or(|best| rank(volume) < rank(best)) {
            best = Some(volume);
        }
    }
    best
}

/// The claims of a pod: names, with the volume if the claim is made for the pod (`ephemeral`).
pub fn claims_of_pod(pod: &Value) -> impl Iterator<Item = String> + '_ {
    array_at(pod, &["spec", "volumes"])
        .iter()
        .filter_map(|volume| {
            if volume.get("ephemeral").is_some() {
                let volume = str_at(volume, &["name"]);
                return Some(format!("{}-{volume}", meta::name(pod)));
            }
            let name = str_at(volume, &["persistentVolumeClaim", "claimName"]);
            (!name.is_empty()).then(|| name.to_owned())
        })
}

/// Whether claims of the class may grow.
pub fn may_expand(class: &Value) -> bool {
    bool_at(class, &["allowVolumeExpansion"]) == Some(true)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn claim(more: Value) -> Claim {
        let mut object = json!({"metadata": {"name": "data", "namespace": "shop", "uid": "1"}, "spec": {
            "accessModes": ["ReadWriteOnce"], "storageClassName": "", "resources": {"requests": {"storage": "1Gi"}}}});
        for (field, value) in more.as_object().unwrap() {
            object["spec"][field] = value.clone();
        }
        Claim::read(&object)
    }

    fn volume(name: &str, size: &str, more: Value) -> Volume {
        let mut object = json!({"metadata": {"name": name, "labels": {"disk": name}}, "status": {"phase": "Available"}, "spec": {
            "accessModes": ["ReadWriteOnce", "ReadOnlyMany"], "capacity": {"storage": size}}});
        for (field, value) in more.as_object().unwrap() {
            object["spec"][field] = value.clone();
        }
        Volume::read(&object)
    }

    fn chosen(volumes: &[Volume], claim: &Claim, from: From) -> Option<String> {
        best_match(volumes.iter(), claim, from).map(|volume| volume.name.clone())
    }

    #[test]
    fn a_claim_gets_the_smallest_volume_that_fits_or_the_one_kept_for_it() {
        let kept = json!({"claimRef": {"namespace": "shop", "name": "data"}});
        let others = json!({"claimRef": {"namespace": "shop", "name": "other"}});
        let mut volumes = vec![
            volume("small", "500Mi", json!({})),
            volume("large", "3Gi", json!({})),
            volume("right", "2Gi", json!({})),
            volume("classy", "1Gi", json!({"storageClassName": "fast"})),
            volume("taken", "1Gi", others),
            volume("device", "1Gi", json!({"volumeMode": "Block"})),
        ];
        let any = From::Anywhere;
        assert_eq!(chosen(&volumes, &claim(json!({})), any).unwrap(), "right");
        assert_eq!(chosen(&volumes, &claim(json!({})), From::Unknown), None);
        let picky = claim(json!({"selector": {"matchLabels": {"disk": "large"}}}));
        assert_eq!(chosen(&volumes, &picky, any).unwrap(), "large");
        let fast = claim(json!({"storageClassName": "fast"}));
        assert_eq!(chosen(&volumes, &fast, any).unwrap(), "classy");
        let many = claim(json!({"accessModes": ["ReadWriteMany"]}));
        assert_eq!(chosen(&volumes, &many, any), None);
        volumes.push(volume("kept", "9Gi", kept));
        assert_eq!(chosen(&volumes, &claim(json!({})), any).unwrap(), "kept");
        let unknown = From::Unknown;
        assert_eq!(
            chosen(&volumes, &claim(json!({})), unknown).unwrap(),
            "kept"
        );
    }

    #[test]
    fn a_volume_of_another_box_does_not_do() {
        let here = json!({"nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
            {"key": "kubernetes.io/hostname", "operator": "In", "values": ["a"]}]}]}}});
        let volumes = [volume("v", "1Gi", here)];
        assert_eq!(volumes[0].home, "a");
        let labels =
            |name: &str| BTreeMap::from([("kubernetes.io/hostname".to_owned(), name.to_owned())]);
        let from = |name: &'static str, labels: &BTreeMap<String, String>| {
            chosen(&volumes, &claim(json!({})), From::Node(name, labels))
        };
        assert_eq!(from("a", &labels("a")).as_deref(), Some("v"));
        assert_eq!(from("b", &labels("b")), None);
    }

    #[test]
    fn of_several_default_classes_the_newest_counts() {
        let class = |name: &str, made: &str| json!({"metadata": {"name": name, "creationTimestamp": made, "annotations": {DEFAULT_CLASS: "true"}}});
        let classes = [
            class("b", "2026-01-01T00:00:00Z"),
            class("a", "2026-01-02T00:00:00Z"),
            json!({"metadata": {"name": "z"}}),
        ];
        assert_eq!(default_class(&classes), Some("a"));
        assert_eq!(default_class(&classes[2..]), None);
    }
}
