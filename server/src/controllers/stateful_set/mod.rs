//! Keeps the pods of a StatefulSet: each with a number and a name that stay, made, replaced and removed in order.
//! <https://kubernetes.io/docs/concepts/workloads/controllers/statefulset/>

mod claims;
mod plan;

use amphipod_api::Status;
use amphipod_api::meta::{array_at, at, i64_at, str_at};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::claims::Owner;
use super::pod_control::{PodControl, is_namespace_going, pod_from};
use super::pods::{self, Phase, Pod};
use super::revisions::{HASH, History, Revision};
use super::{
    Controller, Key, Outcome, Reconciling, Result, Source, Tools, controller_key, itself,
    selector_of,
};
use crate::cache::{Event, Meta};
use crate::events::Reference;
use plan::{Member, Step, View, steps};

const RESOURCE: &str = "statefulsets.apps";

pub struct StatefulSets;

impl Controller for StatefulSets {
    fn name(&self) -> &'static str {
        "statefulset-controller"
    }

    fn sources(&self) -> Vec<Source> {
        vec![
            Source::new(RESOURCE, itself),
            Source::new("pods", sets_of_pod),
        ]
    }

    fn reconcile<'a>(&'a self, tools: &'a Tools, key: &'a Key) -> Reconciling<'a> {
        Box::pin(reconcile(tools, key))
    }
}

/// The number in a pod's name, if it is one of this set's.
fn ordinal(set: &str, pod: &str) -> Option<i64> {
    let number = pod.strip_prefix(set)?.strip_prefix('-')?;
    let plain = number == "0" || !number.starts_with(['0', '+', '-']);
    number.parse().ok().filter(|_| plain)
}

/// The set that has a pod or had it before; for a pod that nobody has, the one after which it is named.
fn sets_of_pod(tools: &Tools, event: &Event) -> Vec<Key> {
    let mut keys = Vec::new();
    let owner = |meta: &Meta| controller_key(meta, "apps", "StatefulSet");
    let meta = &event.object.meta;
    let before = event.prev.as_ref().and_then(|prev| owner(&prev.meta));
    keys.extend(before.into_iter().chain(owner(meta)));
    if meta.controller().is_none()
        && let Some((set, _)) = meta.name.rsplit_once('-')
        && tools.table(RESOURCE).get(&meta.namespace, set).is_some()
    {
        keys.push(Key::new(&meta.namespace, set));
    }
    if keys.is_empty() || !pods::counts(event) {
        return Vec::new();
    }
    keys.dedup();
    keys
}

async fn reconcile(tools: &Tools, key: &Key) -> Result<Outcome> {
    let Some(object) = tools.table(RESOURCE).get(&key.namespace, &key.name) else {
        return Ok(Outcome::Done);
    };
    let Some(selector) = selector_of(&object) else {
        return Ok(Outcome::Done);
    };
    let set = object.value();
    let owner = Owner {
        api_version: "apps/v1",
        kind: "StatefulSet",
        object: &object,
        selector: &selector,
    };
    let named = |meta: &Meta| ordinal(&key.name, &meta.name).is_some();
    let read = |objects: Vec<_>| objects.iter().map(Pod::read).collect::<Result<Vec<Pod>>>();
    let mut pods = read(owner.claim_those(tools, "pods", named).await?)?;
    if object.meta.is_deleting() {
        return Ok(Outcome::Done);
    }
    let (history, update) = History::with_present(tools, &owner).await?;
    let current = history
        .get(str_at(&set, &["status", "currentRevision"]))
        .unwrap_or_else(|| update.clone());
    let (view, _) = look(&set, &pods, &current, &update, key);
    let mut failed = None;
    if !array_at(&set, &["spec", "volumeClaimTemplates"]).is_empty() {
        for pod in &pods {
            let ordinal = ordinal(&key.name, &pod.object.meta.name);
            let surplus = !ordinal.is_some_and(|ordinal| view.wanted().contains(&ordinal));
            claims::own(tools, &set, &owner, &pod.object, surplus).await?;
        }
    }
    for step in steps(&view) {
        let done = take(tools, &owner, &set, &view, &pods, step, &current, &update).await;
        if let Err(status) = done {
            failed = Some(status);
            break;
        }
    }
    // The status tells of what was just done.
    let own = tools.table("pods").by_owner(&object.meta.uid);
    pods = read(own.into_iter().filter(|pod| named(&pod.meta)).collect())?;
    let (view, next) = look(&set, &pods, &current, &update, key);
    let status = status(&set, &view);
    let told = str_at(&status, &["currentRevision"]).to_owned();
    if set["status"] != status {
        let context = tools.sub_context(RESOURCE, &key.namespace, "status")?;
        let write = |value: &mut Value| {
            value["status"] = status.clone();
            Ok(())
        };
        match tools.registry.update_with(&context, &key.name, write).await {
            Err(status) if !status.is_not_found() => return Err(status),
            _ => {}
        }
    }
    let mut live: Vec<String> = view.pods.iter().map(|pod| pod.revision.clone()).collect();
    live.extend([told, current.name, update.name]);
    let limit = i64_at(&set, &["spec", "revisionHistoryLimit"]).unwrap_or(10);
    history.prune(tools, limit, &live).await?;
    match failed {
        Some(status) if !is_namespace_going(&status) => Ok(Outcome::Failed),
        _ => Ok(next.map_or(Outcome::Done, Outcome::After)),
    }
}

/// The set as the plan sees it, and when it will look different if nothing happens.
fn look(
    set: &Value,
    pods: &[Pod],
    current: &Revision,
    update: &Revision,
    key: &Key,
) -> (View, Option<std::time::Duration>) {
    let now = Timestamp::now();
    let number = |path: &[&str]| i64_at(set, path).unwrap_or(0);
    let min_ready = i32::try_from(number(&["spec", "minReadySeconds"])).unwrap_or(0);
    let members = pods.iter().filter_map(|pod| {
        let meta = &pod.object.meta;
        let ready = pod.phase == Phase::Running && pod.ready;
        Some(Member {
            ordinal: ordinal(&key.name, &meta.name)?,
            over: pod.is_over(),
            terminating: pod.is_deleting(),
            ready,
            available: ready && pod.is_available(min_ready, now),
            revision: meta
                .labels
                .get(HASH)
                .map(|hash| hash.to_string())
                .unwrap_or_default(),
        })
    });
    let view = View {
        start: number(&["spec", "ordinals", "start"]),
        replicas: i64_at(set, &["spec", "replicas"]).unwrap_or(1),
        ordered: str_at(set, &["spec", "podManagementPolicy"]) != "Parallel",
        partition: (str_at(set, &["spec", "updateStrategy", "type"]) != "OnDelete")
            .then(|| number(&["spec", "updateStrategy", "rollingUpdate", "partition"])),
        current: current.name.clone(),
        update: update.name.clone(),
        pods: members.collect(),
    };
    let next = pods
        .iter()
        .filter_map(|pod| pod.available_in(min_ready, now))
        .filter(|left| !left.is_zero())
        .min();
    (view, next)
}

#[allow(clippy::too_many_arguments)]
async fn take(
    tools: &Tools,
    owner: &Owner<'_>,
    set: &Value,
    view: &View,
    pods: &[Pod],
    step: Step,
    current: &Revision,
    update: &Revision,
) -> Result<(), Status> {
    let meta = &owner.object.meta;
    let control = PodControl {
        tools,
        namespace: &meta.namespace,
        about: Reference::to(owner.api_version, owner.kind, owner.object),
    };
    let name = |ordinal: i64| format!("{}-{ordinal}", meta.name);
    match step {
        Step::Create(ordinal) => {
            let revision = if view.needs_current(ordinal) {
                current
            } else {
                update
            };
            let pod = pod(set, owner, revision, &name(ordinal), ordinal);
            claims::make(&control, set, owner, &name(ordinal)).await?;
            match control.create(pod).await {
                // A pod of somebody else, or one that is not gone yet: its end wakes us if it was ours.
                Err(status) if !status.is_already_exists() => Err(status),
                _ => Ok(()),
            }
        }
        Step::Delete(ordinal) => {
            let name = name(ordinal);
            match pods.iter().find(|pod| *pod.object.meta.name == *name) {
                Some(pod) => control.delete(&pod.object).await,
                None => Ok(()),
            }
        }
    }
}

/// The pod with a number, from the template of a revision.
fn pod(set: &Value, owner: &Owner<'_>, revision: &Revision, name: &str, ordinal: i64) -> Value {
    let mut pod = pod_from(&revision.template, &owner.reference());
    pod["metadata"]["name"] = name.into();
    let ordinal = ordinal.to_string();
    for (label, value) in [
        ("statefulset.kubernetes.io/pod-name", name),
        ("apps.kubernetes.io/pod-index", &ordinal),
        (HASH, &revision.name),
    ] {
        pod["metadata"]["labels"][label] = value.into();
    }
    pod["spec"]["hostname"] = name.into();
    if let Some(service) = at(set, &["spec", "serviceName"]) {
        pod["spec"]["subdomain"] = service.clone();
    }
    claims::add_volumes(set, &mut pod);
    pod
}

/// The status of the set.
fn status(set: &Value, view: &View) -> Value {
    let made: Vec<&Member> = view.pods.iter().collect();
    let count = |fits: &dyn Fn(&Member) -> bool| made.iter().filter(|pod| fits(pod)).count();
    let replicas = made.len();
    let ready = count(&|pod| pod.ready);
    let updated = count(&|pod| !pod.terminating && pod.revision == view.update);
    let mut current_replicas = count(&|pod| !pod.terminating && pod.revision == view.current);
    let mut current = view.current.clone();
    // An update is complete when all have it and are ready.
    if view.partition.is_some()
        && view.current != view.update
        && i64::try_from(updated) == Ok(view.replicas)
        && updated == replicas
        && ready == replicas
    {
        current.clone_from(&view.update);
        current_replicas = updated;
    }
    let mut status = json!({
        "replicas": replicas,
        "availableReplicas": count(&|pod| pod.available),
        "currentRevision": current,
        "updateRevision": view.update,
        "collisionCount": 0,
        "observedGeneration": set["metadata"]["generation"],
    });
    for (field, number) in [
        ("readyReplicas", ready),
        ("currentReplicas", current_replicas),
        ("updatedReplicas", updated),
    ] {
        if number > 0 {
            status[field] = number.into();
        }
    }
    status
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_of_a_set_are_numbered() {
        assert_eq!(ordinal("web", "web-0"), Some(0));
        assert_eq!(ordinal("web", "web-12"), Some(12));
        assert_eq!(ordinal("web", "web-01"), None);
        assert_eq!(ordinal("web", "web-+1"), None);
        assert_eq!(ordinal("web", "web-a"), None);
        assert_eq!(ordinal("web", "web"), None);
        assert_eq!(ordinal("web", "other-0"), None);
    }

    #[test]
    fn an_update_is_complete_when_all_have_it_and_are_ready() {
        let member = |revision: &str| Member {
            ready: true,
            available: true,
            revision: revision.into(),
            ..Member::default()
        };
        let view = |pods: Vec<Member>| View {
            start: 0,
            replicas: 2,
            ordered: true,
            partition: Some(0),
            current: "one".into(),
            update: "two".into(),
            pods,
        };
        let set = json!({"metadata": {"generation": 7}});
        let half = status(&set, &view(vec![member("one"), member("two")]));
        assert_eq!(half["currentRevision"], "one");
        assert_eq!(
            (&half["currentReplicas"], &half["updatedReplicas"]),
            (&json!(1), &json!(1))
        );
        let all = status(&set, &view(vec![member("two"), member("two")]));
        assert_eq!(all["currentRevision"], "two");
        assert_eq!(all["currentReplicas"], 2);
        assert_eq!(all["observedGeneration"], 7);
    }
}
