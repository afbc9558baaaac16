//! The replica sets of a deployment: which is the one of the present template, and what is written on them. Pure.

use std::collections::BTreeMap;

use amphipod_api::names;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, ReplicaSetSpec};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

use super::numbers::{max_surge, replicas};

/// The label that tells the pods of one template from those of others.
pub const HASH: &str = "pod-template-hash";
pub const REVISION: &str = "deployment.kubernetes.io/revision";
const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
/// Replicas of the deployment when the set was last sized.
pub const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
/// Replicas and surge of the deployment then.
pub const MAX: &str = "deployment.kubernetes.io/max-replicas";

/// Annotations of the deployment that are not its sets'.
const NOT_COPIED: [&str; 6] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION,
    REVISION_HISTORY,
    DESIRED,
    MAX,
    "deprecated.deployment.rollback.to",
];

/// Bytes of [`REVISION_HISTORY`] at most; the oldest go first.
const HISTORY_BYTES: usize = 2000;

/// One set, and whether the plan changes it.
#[derive(Clone, Debug)]
pub struct Set {
    pub rs: ReplicaSet,
    pub changed: bool,
}

impl Set {
    pub fn name(&self) -> &str {
        self.rs.metadata.name.as_deref().unwrap_or_default()
    }

    /// Pods it asks for.
    pub fn size(&self) -> i32 {
        self.rs
            .spec
            .as_ref()
            .and_then(|spec| spec.replicas)
            .unwrap_or(1)
    }

    pub fn available(&self) -> i32 {
        self.rs
            .status
            .as_ref()
            .and_then(|status| status.available_replicas)
            .unwrap_or(0)
    }

    pub fn annotation(&self, key: &str) -> Option<&str> {
        self.rs
            .metadata
            .annotations
            .as_ref()?
            .get(key)
            .map(String::as_str)
    }

    pub fn number(&self, key: &str) -> Option<i32> {
        self.annotation(key)?.parse().ok()
    }

    /// 0 if it has none.
    pub fn revision(&self) -> i64 {
        self.annotation(REVISION)
            .and_then(|text| text.parse().ok())
            .unwrap_or(0)
    }

    pub fn is_deleting(&self) -> bool {
        self.rs.metadata.deletion_timestamp.is_some()
    }

    fn annotate(&mut self, key: &str, value: &str) {
        let annotations = self.rs.metadata.annotations.get_or_insert_default();
        if annotations.get(key).map(String::as_str) != Some(value) {
            annotations.insert(key.to_owned(), value.to_owned());
            self.changed = true;
        }
    }

    /// Sizes the set, and notes what the deployment's size is.
    pub fn resize(&mut self, size: i32, d: &Deployment) {
        if self.size() != size {
            self.rs.spec.get_or_insert_default().replicas = Some(size);
            self.changed = true;
        }
        self.note_size(d);
    }

    fn note_size(&mut self, d: &Deployment) {
        self.annotate(DESIRED, &replicas(d).to_string());
        self.annotate(MAX, &(replicas(d) + max_surge(d)).to_string());
    }

    /// Brings what is written on the set of the present template up to date.
    pub fn describe(&mut self, d: &Deployment, revision: i64, is_there: bool) {
        for (key, value) in d.metadata.annotations.iter().flatten() {
            if !NOT_COPIED.contains(&key.as_str()) {
                self.annotate(key, value);
            }
        }
        let had = self.annotation(REVISION).map(str::to_owned);
        if self.revision() < revision {
            self.annotate(REVISION, &revision.to_string());
            if let Some(had) = had {
                let history = match self.annotation(REVISION_HISTORY) {
                    Some(before) if !before.is_empty() => format!("{before},{had}"),
                    _ => had,
                };
                self.annotate(REVISION_HISTORY, shortened(&history));
            }
        }
        if !is_there {
            self.note_size(d);
        }
        let min_ready = d.spec.as_ref().and_then(|spec| spec.min_ready_seconds);
        let spec = self.rs.spec.get_or_insert_default();
        if spec.min_ready_seconds.unwrap_or(0) != min_ready.unwrap_or(0) {
            spec.min_ready_seconds = min_ready;
            self.changed = true;
        }
    }
}

/// The latest part of a list of revisions.
fn shortened(history: &str) -> &str {
    let mut rest = history;
    while rest.len() > HISTORY_BYTES {
        match rest.split_once(',') {
            Some((_, later)) => rest = later,
            None => return rest,
        }
    }
    rest
}

/// Whether the set is of this template: all is the same but for the hash.
pub fn is_of(rs: &ReplicaSet, template: &PodTemplateSpec) -> bool {
    let Some(have) = rs.spec.as_ref().and_then(|spec| spec.template.as_ref()) else {
        return false;
    };
    plain(have) == plain(template)
}

fn plain(template: &PodTemplateSpec) -> PodTemplateSpec {
    let mut template = template.clone();
    if let Some(metadata) = &mut template.metadata {
        if let Some(labels) = &mut metadata.labels {
            labels.remove(HASH);
        }
        metadata.labels.take_if(|labels| labels.is_empty());
        metadata
            .annotations
            .take_if(|annotations| annotations.is_empty());
        metadata.creation_timestamp = None;
    }
    template
        .metadata
        .take_if(|metadata| *metadata == ObjectMeta::default());
    template
}

/// A stable name for a template, as pods and names of sets carry it.
pub fn hash(template: &PodTemplateSpec, collisions: i32) -> String {
    // Through a value: its keys are sorted.
    let text = serde_json::to_value(plain(template))
        .unwrap_or_default()
        .to_string();
    let mut hash = 0x811c_9dc5_u32;
    let salt = if collisions > 0 {
        collisions.to_string()
    } else {
        String::new()
    };
    for byte in text.bytes().chain(salt.bytes()) {
        hash = (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
    }
    names::safe_encode(hash)
}

/// The set of the present template, as it is made: without pods.
pub fn new_set(d: &Deployment, revision: i64) -> Set {
    let spec = d.spec.clone().unwrap_or_default();
    let collisions = d
        .status
        .as_ref()
        .and_then(|status| status.collision_count)
        .unwrap_or(0);
    let hash = hash(&spec.template, collisions);
    let name = d.metadata.name.as_deref().unwrap_or_default();
    let mut template = spec.template;
    let labels = template
        .metadata
        .get_or_insert_default()
        .labels
        .get_or_insert_default();
    labels.insert(HASH.to_owned(), hash.clone());
    let labels: BTreeMap<String, String> = labels.clone();
    let mut selector = spec.selector;
    selector
        .match_labels
        .get_or_insert_default()
        .insert(HASH.to_owned(), hash.clone());
    let rs = ReplicaSet {
        metadata: ObjectMeta {
            name: Some(format!("{name}-{hash}")),
            namespace: d.metadata.namespace.clone(),
            labels: Some(labels),
            owner_references: Some(vec![OwnerReference {
                api_version: "apps/v1".to_owned(),
                kind: "Deployment".to_owned(),
                name: name.to_owned(),
                uid: d.metadata.uid.clone().unwrap_or_default(),
                controller: Some(true),
                block_owner_deletion: Some(true),
            }]),
            ..ObjectMeta::default()
        },
        spec: Some(ReplicaSetSpec {
            replicas: Some(0),
            min_ready_seconds: spec.min_ready_seconds.filter(|seconds| *seconds != 0),
            selector,
            template: Some(template),
        }),
        status: None,
    };
    let mut set = Set { rs, changed: true };
    set.describe(d, revision, false);
    set
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::{Value, json};

    use super::*;

    fn deployment(more: Value) -> Deployment {
        let mut d = json!({"metadata": {"name": "web", "namespace": "ns", "uid": "u", "annotations":
            {"kubernetes.io/change-cause": "because", "kubectl.kubernetes.io/last-applied-configuration": "{}"}},
            "spec": {"replicas": 4, "selector": {"matchLabels": {"app": "web"}},
                "strategy": {"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 1}},
                "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}});
        amphipod_api::patch::apply_merge_patch(&mut d, &more);
        serde_json::from_value(d).unwrap()
    }

    #[test]
    fn a_new_set_is_recognised_by_its_template_and_carries_its_hash() {
        let d = deployment(json!({}));
        let set = new_set(&d, 3);
        let hash = hash(&d.spec.as_ref().unwrap().template, 0);
        assert_eq!(set.name(), format!("web-{hash}"));
        let value = serde_json::to_value(&set.rs).unwrap();
        for path in [
            "/metadata/labels",
            "/spec/selector/matchLabels",
            "/spec/template/metadata/labels",
        ] {
            assert_eq!(
                value.pointer(path),
                Some(&json!({"app": "web", HASH: hash})),
                "{path}"
            );
        }
        assert_eq!(
            value["metadata"]["annotations"],
            json!({"kubernetes.io/change-cause": "because", REVISION: "3", DESIRED: "4", MAX: "5"})
        );
        assert!(is_of(&set.rs, &d.spec.as_ref().unwrap().template));
        let other = deployment(json!({"spec": {"template": {"spec": {"nodeName": "n"}}}}));
        assert!(!is_of(&set.rs, &other.spec.as_ref().unwrap().template));
    }

    #[test]
    fn collisions_change_the_hash() {
        let d = deployment(json!({}));
        let template = &d.spec.as_ref().unwrap().template;
        assert_eq!(hash(template, 0), hash(template, 0));
        assert_ne!(hash(template, 0), hash(template, 1));
    }

    #[test]
    fn a_set_that_comes_back_remembers_its_former_revisions() {
        let d = deployment(json!({}));
        let mut set = new_set(&d, 1);
        set.changed = false;
        set.describe(&d, 1, true);
        assert!(!set.changed);
        set.describe(&d, 3, true);
        set.describe(&d, 7, true);
        assert_eq!(
            (set.revision(), set.annotation(REVISION_HISTORY)),
            (7, Some("1,3"))
        );
        assert_eq!(shortened(&["1234567"; 300].join(",")).len(), 8 * 250 - 1);
    }
}
