//! Makes the claims of generic ephemeral volumes, which go with their pods.
//! <https://kubernetes.io/docs/concepts/storage/ephemeral-volumes/#generic-ephemeral-volumes>

use amphipod_api::meta::{self, array_at, map_at, str_at};
use serde_json::{Value, json};

use super::{CLAIMS, Tell};
use crate::cache::{Event, EventType};
use crate::controllers::pod_control::is_namespace_going;
use crate::controllers::{
    Controller, Key, Outcome, Reconciling, Result, Source, Tools, controller_key, itself,
};
use crate::events::Reference;

pub struct EphemeralVolumes;

impl Controller for EphemeralVolumes {
    fn name(&self) -> &'static str {
        "ephemeral-volume-controller"
    }

    fn sources(&self) -> Vec<Source> {
        vec![
            Source::new("pods", |tools, event| match event.kind {
                EventType::Added => itself(tools, event),
                _ => Vec::new(),
            }),
            Source::new(CLAIMS, of_claim),
        ]
    }

    fn reconcile<'a>(&'a self, tools: &'a Tools, key: &'a Key) -> Reconciling<'a> {
        Box::pin(reconcile(tools, key))
    }
}

/// The pod whose claim is gone: it may be a new pod of the same name that waits for its own.
fn of_claim(_: &Tools, event: &Event) -> Vec<Key> {
    if event.kind != EventType::Deleted {
        return Vec::new();
    }
    controller_key(&event.object.meta, "", "Pod")
        .into_iter()
        .collect()
}

/// The claim of an ephemeral volume of a pod.
fn claim_for(pod: &Value, volume: &Value) -> Value {
    let template = &volume["ephemeral"]["volumeClaimTemplate"];
    let name = format!("{}-{}", meta::name(pod), str_at(volume, &["name"]));
    let mut owner = meta::controller_reference(pod);
    owner["apiVersion"] = "v1".into();
    owner["kind"] = "Pod".into();
    json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim",
        "metadata": {
            "name": name, "ownerReferences": [owner],
            "labels": map_at(template, &["metadata", "labels"]),
            "annotations": map_at(template, &["metadata", "annotations"]),
        },
        "spec": template["spec"],
    })
}

async fn reconcile(tools: &Tools, key: &Key) -> Result<Outcome> {
    let Some(object) = tools.table("pods").get(&key.namespace, &key.name) else {
        return Ok(Outcome::Done);
    };
    if object.meta.is_deleting() {
        return Ok(Outcome::Done);
    }
    let pod = object.value();
    let volumes = array_at(&pod, &["spec", "volumes"]).iter();
    for volume in volumes.filter(|volume| volume.get("ephemeral").is_some()) {
        let claim = claim_for(&pod, volume);
        let name = meta::name(&claim).to_owned();
        let tell = |message: String| {
            let told = Tell::warning("FailedBinding", message);
            let about = Reference::to("v1", "Pod", &object);
            tools
                .recorder
                .tell(about, told.kind, told.reason, told.message);
        };
        if let Some(there) = tools.table(CLAIMS).get(&key.namespace, &name) {
            let owner = there.meta.controller().map(|owner| owner.uid.as_str());
            if owner != Some(&*object.meta.uid) {
                let (namespace, pod) = (&key.namespace, &key.name);
                tell(format!(
                    "ephemeral volume {name}: PVC {namespace}/{name} was not created for pod {namespace}/{pod} (pod is not owner)"
                ));
            }
            continue;
        }
        let context = tools.context(CLAIMS, &key.namespace)?;
        match tools.registry.create(&context, claim.into()).await {
            Ok(_) => {}
            Err(status) if status.is_already_exists() => {}
            Err(status) if is_namespace_going(&status) => return Ok(Outcome::Done),
            Err(status) => {
                tell(format!("ephemeral volume: create PVC {name}: {status}"));
                return Err(status);
            }
        }
    }
    Ok(Outcome::Done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_claim_of_an_ephemeral_volume_goes_with_its_pod() {
        let volume = json!({"name": "scratch", "ephemeral": {"volumeClaimTemplate": {
            "metadata": {"labels": {"a": "b"}}, "spec": {"accessModes": ["ReadWriteOnce"]}}}});
        let pod = json!({"metadata": {"name": "it", "namespace": "n", "uid": "7"}});
        let claim = claim_for(&pod, &volume);
        assert_eq!(meta::name(&claim), "it-scratch");
        assert_eq!(claim["metadata"]["labels"]["a"], "b");
        let owner = &claim["metadata"]["ownerReferences"][0];
        assert_eq!(
            (&owner["kind"], &owner["uid"]),
            (&json!("Pod"), &json!("7"))
        );
        assert_eq!(owner["controller"], true);
    }
}
