//! The pods that a job makes. Pure.

use amphipod_api::meta::{add_finalizer, array_at, child, set_annotation, set_label};
use serde_json::{Value, json};

use super::member::{INDEX, INDEX_FAILURES, INDEX_IGNORED, TRACKING};
use super::plan::New;
use crate::controllers::pod_control::{generate_name, pod_from};

/// Tells a container which index it works on.
const VARIABLE: &str = "JOB_COMPLETION_INDEX";
/// As many bytes of a name may come before the random ones.
const LONGEST_BASE: usize = 58;

/// A pod from the job's template.
pub fn pod(job: &str, template: &Value, owner: &Value, new: New) -> Value {
    let mut pod = pod_from(template, owner);
    add_finalizer(&mut pod, TRACKING);
    let Some(index) = new.index else {
        generate_name(&mut pod, job);
        return pod;
    };
    // A long name gives way to the index.
    let suffix = format!("-{index}");
    let longest = LONGEST_BASE - 1 - suffix.len();
    generate_name(
        &mut pod,
        &format!("{}{suffix}", &job[..job.len().min(longest)]),
    );
    let number = index.to_string();
    set_annotation(&mut pod, INDEX, &number);
    set_label(&mut pod, INDEX, &number);
    if let Some((counted, ignored)) = new.failures {
        set_annotation(&mut pod, INDEX_FAILURES, &counted.to_string());
        if ignored > 0 {
            set_annotation(&mut pod, INDEX_IGNORED, &ignored.to_string());
        }
    }
    let spec = child(&mut pod, "spec");
    spec.insert("hostname".into(), format!("{job}{suffix}").into());
    for list in ["initContainers", "containers"] {
        let containers = spec.get_mut(list).and_then(Value::as_array_mut);
        containers.into_iter().flatten().for_each(tell_index);
    }
    pod
}

fn tell_index(container: &mut Value) {
    let env = array_at(container, &["env"]);
    if env.iter().any(|variable| variable["name"] == VARIABLE) {
        return;
    }
    let mut env = env.to_vec();
    let path = format!("metadata.labels['{INDEX}']");
    env.push(json!({"name": VARIABLE, "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": path}}}));
    container["env"] = env.into();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template() -> Value {
        json!({
            "metadata": {"labels": {"a": "b"}},
            "spec": {"initContainers": [{"name": "init", "env": [{"name": VARIABLE, "value": "mine"}]}], "containers": [{"name": "main"}]},
        })
    }

    #[test]
    fn a_pod_is_tracked_and_owned() {
        let pod = pod("work", &template(), &json!({"uid": "u"}), New::default());
        assert_eq!(
            pod["metadata"],
            json!({"generateName": "work-", "labels": {"a": "b"}, "finalizers": [TRACKING], "ownerReferences": [{"uid": "u"}]})
        );
        assert!(pod["spec"].get("hostname").is_none());
    }

    #[test]
    fn a_pod_of_an_indexed_job_knows_its_index() {
        let new = New {
            index: Some(12),
            failures: Some((2, 0)),
        };
        let made = pod("work", &template(), &json!({}), new);
        assert_eq!(made["metadata"]["generateName"], "work-12-");
        assert_eq!(made["spec"]["hostname"], "work-12");
        assert_eq!(made["metadata"]["labels"][INDEX], "12");
        assert_eq!(
            made["metadata"]["annotations"],
            json!({INDEX: "12", INDEX_FAILURES: "2"})
        );
        let env = |list: &str| made["spec"][list][0]["env"].clone();
        assert_eq!(
            env("initContainers"),
            json!([{"name": VARIABLE, "value": "mine"}])
        );
        assert_eq!(
            env("containers")[0]["valueFrom"]["fieldRef"]["fieldPath"],
            "metadata.labels['batch.kubernetes.io/job-completion-index']"
        );
        let long = pod(&"x".repeat(63), &template(), &json!({}), new);
        let base = long["metadata"]["generateName"]
            .as_str()
            .unwrap_or_default();
        assert_eq!((base.len(), base.ends_with("x-12-")), (LONGEST_BASE, true));
    }
}
