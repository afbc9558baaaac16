//! The claims of a StatefulSet's pods: one for each pod and template, named after both, so that a pod finds its data again.
//! <https://kubernetes.io/docs/concepts/workloads/controllers/statefulset/#persistentvolumeclaim-retention>

use amphipod_api::Status;
use amphipod_api::meta::{array_at, map_at, metadata_mut, name, str_at, uid};
use serde_json::{Value, json};

use crate::cache::Object;
use crate::controllers::claims::Owner;
use crate::controllers::pod_control::{PodControl, is_namespace_going};
use crate::controllers::{Result, Tools};
use crate::events::Kind;

const CLAIMS: &str = "persistentvolumeclaims";

/// The claims of the pod with this name, with the name of each one's volume.
fn claims_for(set: &Value, pod: &str) -> Vec<(String, Value)> {
    let templates = array_at(set, &["spec", "volumeClaimTemplates"]);
    let labels = map_at(set, &["spec", "selector", "matchLabels"]);
    let claim = |template: &Value| {
        let volume = name(template).to_owned();
        let mut own = map_at(template, &["metadata", "labels"]).clone();
        own.extend(labels.clone());
        let annotations = map_at(template, &["metadata", "annotations"]);
        let claim = json!({
            "apiVersion": "v1", "kind": "PersistentVolumeClaim",
            "metadata": {"name": format!("{volume}-{pod}"), "labels": own, "annotations": annotations},
            "spec": template["spec"],
        });
        (volume, claim)
    };
    templates.iter().map(claim).collect()
}

/// Gives the pod its claims as volumes, in place of those of the same name.
pub fn add_volumes(set: &Value, pod: &mut Value) {
    let claims = claims_for(set, name(pod));
    if claims.is_empty() {
        return;
    }
    let others = array_at(pod, &["spec", "volumes"]).iter();
    let others = others.filter(|volume| {
        !claims
            .iter()
            .any(|(own, _)| own == str_at(volume, &["name"]))
    });
    let own = claims.iter().map(|(volume, claim)| {
        json!({"name": volume, "persistentVolumeClaim": {"claimName": name(claim)}})
    });
    pod["spec"]["volumes"] = own.chain(others.cloned()).collect();
}

/// Who is to own the claims of a pod, and so takes them along: the set, the pod when the set has become too small for it, or nobody.
fn owner_of(set: &Value, owner: &Owner<'_>, pod: Option<&Object>, surplus: bool) -> Option<Value> {
    let deletes = |when: &str| {
        str_at(set, &["spec", "persistentVolumeClaimRetentionPolicy", when]) == "Delete"
    };
    if surplus && deletes("whenScaled") {
        let meta = &pod?.meta;
        return Some(json!({
            "apiVersion": "v1", "kind": "Pod", "name": meta.name, "uid": meta.uid,
            "controller": true, "blockOwnerDeletion": true,
        }));
    }
    deletes("whenDeleted").then(|| owner.reference())
}

/// The owners of a claim as they should be.
fn with_owner(claim: &Value, set: &Object, pod: &str, wanted: Option<Value>) -> Vec<Value> {
    let is_ours = |owner: &&Value| {
        let is_pod = owner["kind"] == "Pod" && owner["name"] == pod;
        is_pod || owner["uid"] == *set.meta.uid
    };
    let others = array_at(claim, &["metadata", "ownerReferences"]).iter();
    let others = others.filter(|owner| !is_ours(owner)).cloned();
    others.chain(wanted).collect()
}

/// Makes the claims that a new pod needs.
///
/// # Errors
/// A refusal, which is told in an event too; or that a claim of the pod before is still going.
pub async fn make(
    control: &PodControl<'_>,
    set: &Value,
    owner: &Owner<'_>,
    pod: &str,
) -> Result<()> {
    let (tools, namespace) = (control.tools, control.namespace);
    for (_, mut claim) in claims_for(set, pod) {
        let claim_name = name(&claim).to_owned();
        let context = tools.context(CLAIMS, namespace)?;
        if let Some(there) = tools.table(CLAIMS).get(namespace, &claim_name) {
            if there.meta.is_deleting() {
                let why = "the claim is being deleted";
                return Err(Status::conflict(
                    &context.group_resource(),
                    &claim_name,
                    why,
                ));
            }
            continue;
        }
        if let Some(owner) = owner_of(set, owner, None, false) {
            claim["metadata"]["ownerReferences"] = json!([owner]);
        }
        let about = format!("Claim {claim_name} Pod {pod} in StatefulSet {}", name(set));
        match tools.registry.create(&context, claim.into()).await {
            Ok(_) => control.tell(
                Kind::Normal,
                "SuccessfulCreate",
                format!("create {about} success"),
            ),
            Err(status) if status.is_already_exists() => {}
            Err(status) => {
                if !is_namespace_going(&status) {
                    let message = format!("create {about} failed error: {}", status.message);
                    control.tell(Kind::Warning, "FailedCreate", message);
                }
                return Err(status);
            }
        }
    }
    Ok(())
}

/// Gives the claims of a pod the owner that the retention policy wants.
///
/// # Errors
/// The refusal of a write.
pub async fn own(
    tools: &Tools,
    set: &Value,
    owner: &Owner<'_>,
    pod: &Object,
    surplus: bool,
) -> Result<()> {
    let namespace = &pod.meta.namespace;
    for (_, claim) in claims_for(set, &pod.meta.name) {
        let Some(stored) = tools.table(CLAIMS).get(namespace, name(&claim)) else {
            continue;
        };
        let wanted = |claim: &Value| {
            let owner_wanted = owner_of(set, owner, Some(pod), surplus);
            with_owner(claim, owner.object, &pod.meta.name, owner_wanted)
        };
        let value = stored.value();
        if wanted(&value) == array_at(&value, &["metadata", "ownerReferences"]) {
            continue;
        }
        let context = tools.context(CLAIMS, namespace)?;
        let write = |value: &mut Value| {
            if uid(value) == &*stored.meta.uid {
                let owners = wanted(value);
                metadata_mut(value).insert("ownerReferences".into(), owners.into());
            }
            Ok(())
        };
        let name = &stored.meta.name;
        match tools.registry.update_with(&context, name, write).await {
            Err(status) if !status.is_not_found() => return Err(status),
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;

    use amphipod_api::LabelSelector;

    use super::*;
    use crate::cache::{FieldSet, detached};

    fn set(policy: Value) -> Value {
        json!({
            "metadata": {"name": "web", "namespace": "shop", "uid": "set"},
            "spec": {
                "selector": {"matchLabels": {"app": "web"}},
                "persistentVolumeClaimRetentionPolicy": policy,
                "volumeClaimTemplates": [{"metadata": {"name": "data", "labels": {"kind": "disk"}}, "spec": {"accessModes": ["ReadWriteOnce"]}}],
            },
        })
    }

    fn object(mut value: Value) -> Arc<Object> {
        detached(&mut value, 1, &FieldSet::default()).unwrap()
    }

    #[test]
    fn a_pod_gets_a_claim_of_its_own_for_each_template() {
        let claims = claims_for(&set(json!({})), "web-1");
        assert_eq!(claims.len(), 1);
        let claim = &claims[0].1;
        assert_eq!(name(claim), "data-web-1");
        assert_eq!(
            claim["metadata"]["labels"],
            json!({"app": "web", "kind": "disk"})
        );
        let mut pod = json!({"metadata": {"name": "web-1"}, "spec": {"volumes": [{"name": "data", "emptyDir": {}}, {"name": "tmp", "emptyDir": {}}]}});
        add_volumes(&set(json!({})), &mut pod);
        assert_eq!(
            pod["spec"]["volumes"],
            json!([{"name": "data", "persistentVolumeClaim": {"claimName": "data-web-1"}}, {"name": "tmp", "emptyDir": {}}])
        );
    }

    #[test]
    fn the_retention_policy_says_with_whom_claims_go() {
        let pod = object(json!({"metadata": {"name": "web-1", "namespace": "shop", "uid": "pod"}}));
        let selector = LabelSelector::default();
        let owner = |deleted: &str, scaled: &str, surplus: bool| {
            let set = set(json!({"whenDeleted": deleted, "whenScaled": scaled}));
            let stored = object(set.clone());
            let owner = Owner {
                api_version: "apps/v1",
                kind: "StatefulSet",
                object: &stored,
                selector: &selector,
            };
            let wanted = owner_of(&set, &owner, Some(&pod), surplus);
            // Whoever was it before gives way; strangers stay.
            let before = json!({"metadata": {"ownerReferences": [
                {"kind": "Backup", "uid": "other"}, {"kind": "StatefulSet", "uid": "set"}, {"kind": "Pod", "name": "web-1", "uid": "older"}]}});
            let owners = with_owner(&before, &stored, "web-1", wanted);
            assert_eq!(owners[0]["uid"], "other");
            owners
                .get(1)
                .map(|owner| str_at(owner, &["uid"]).to_owned())
        };
        for (deleted, scaled, kept, surplus) in [
            ("Retain", "Retain", None, None),
            ("Delete", "Retain", Some("set"), Some("set")),
            ("Retain", "Delete", None, Some("pod")),
            ("Delete", "Delete", Some("set"), Some("pod")),
        ] {
            assert_eq!(owner(deleted, scaled, false).as_deref(), kept);
            assert_eq!(owner(deleted, scaled, true).as_deref(), surplus);
        }
    }
}
