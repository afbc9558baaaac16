//! Pod: <https://kubernetes.io/docs/reference/kubernetes-api/workload-resources/pod-v1/>.

mod defaults;
mod print;
mod qos;
mod update;

use amphipod_api::meta::{array_at, i64_at, str_at};
use amphipod_api::{FieldError, FieldPath, Status};
use jiff::Timestamp;
use k8s_openapi::api::core::v1;
use serde_json::{Value, json};

use super::Kind;
use crate::resources::common::{keep, keep_meta, set_generation, set_generation_like};
use crate::resources::validate::pod as rules;
use crate::resources::{
    Column, Connect, Descriptor, SelectableField, Strategy, StrategyContext, SubresourceKind, Verb,
    Verbs,
};

pub use defaults::{pod as default_pod, pod_template};
pub use qos::qos_class;

const CONNECT: Verbs = Verbs::of(&[Verb::Create, Verb::Get]);
pub(super) const PROXY: Verbs = Verbs::of(&[
    Verb::Create,
    Verb::Delete,
    Verb::Get,
    Verb::Patch,
    Verb::Update,
]);

pub fn descriptor() -> Descriptor {
    Kind::new::<v1::Pod>("", "v1", "Pod", "pods")
        .short(&["po"])
        .in_all()
        .connect("attach", Connect::Attach, CONNECT, "PodAttachOptions")
        .post("binding", SubresourceKind::Binding, ["", "v1", "Binding"])
        .part("ephemeralcontainers")
        .post(
            "eviction",
            SubresourceKind::Eviction,
            ["policy", "v1", "Eviction"],
        )
        .connect("exec", Connect::Exec, CONNECT, "PodExecOptions")
        .connect("log", Connect::Log, Verbs::GET, "Pod")
        .connect(
            "portforward",
            Connect::PortForward,
            CONNECT,
            "PodPortForwardOptions",
        )
        .connect("proxy", Connect::Proxy, PROXY, "PodProxyOptions")
        .part("resize")
        .status()
        .fields(vec![
            SelectableField::new("spec.nodeName"),
            SelectableField::at("spec.host", "spec.nodeName"),
            SelectableField::new("spec.restartPolicy"),
            SelectableField::new("spec.schedulerName"),
            SelectableField::new("spec.serviceAccountName"),
            SelectableField::new("spec.hostNetwork").with_default("false"),
            SelectableField::new("status.phase"),
            SelectableField::new("status.podIP"),
            SelectableField::at("status.podIPs", "status.podIPs.*.ip"),
            SelectableField::new("status.nominatedNodeName"),
        ])
        .columns(vec![
            Column::name(),
            Column::new("Ready", "Containers that are ready, of all containers."),
            Column::new(
                "Status",
                "Phase, or the reason why a container waits or ended.",
            ),
            Column::new(
                "Restarts",
                "How often containers were restarted, and when last.",
            ),
            Column::age(),
            Column::new("IP", "Address of the pod.").wide(),
            Column::new("Node", "Node that runs the pod.").wide(),
            Column::new(
                "Nominated Node",
                "Node on which preemption makes room for the pod.",
            )
            .wide(),
            Column::new("Readiness Gates", "Readiness gates that are true, of all.").wide(),
        ])
        .strategy(Pod)
        .build()
}

/// `POST pods/NAME/binding` and the older `POST bindings`.
pub fn binding() -> Descriptor {
    Kind::review::<v1::Binding>("", "Binding", "bindings")
        .namespaced()
        .build()
}

struct Pod;

impl Strategy for Pod {
    fn default(&self, obj: &mut Value) {
        defaults::pod(obj);
    }

    fn prepare_for_create(&self, _: &StrategyContext, obj: &mut Value) -> Result<(), Status> {
        set_generation(obj, 1);
        let mut status = json!({"phase": "Pending", "qosClass": qos_class(&obj["spec"])});
        if !array_at(obj, &["spec", "schedulingGates"]).is_empty() {
            status["conditions"] = json!([{
                "type": "PodScheduled",
                "status": "False",
                "reason": "SchedulingGated",
                "message": "Scheduling is blocked due to non-empty scheduling gates",
            }]);
        }
        obj["status"] = status;
        Ok(())
    }

    fn prepare_for_update(
        &self,
        _: &StrategyContext,
        new: &mut Value,
        old: &Value,
        sub: Option<&str>,
    ) -> Result<(), Status> {
        match sub {
            Some("status") => {
                keep(new, old, "spec");
                // Agents that do not know all owner references must not lose them.
                keep_meta(new, old, "ownerReferences");
                if let Some(class) = old.pointer("/status/qosClass") {
                    new["status"]["qosClass"] = class.clone();
                }
                set_generation_like(new, old, 0);
                return Ok(());
            }
            Some("ephemeralcontainers") => {
                let containers = new.pointer("/spec/ephemeralContainers").cloned();
                keep(new, old, "spec");
                match containers {
                    Some(containers) => new["spec"]["ephemeralContainers"] = containers,
                    None => drop(
                        new["spec"]
                            .as_object_mut()
                            .and_then(|s| s.remove("ephemeralContainers")),
                    ),
                }
                keep(new, old, "metadata");
            }
            Some("resize") => update::take_resize(new, old),
            _ => {}
        }
        keep(new, old, "status");
        let changed = new.get("spec") != old.get("spec");
        set_generation_like(new, old, i64::from(changed));
        Ok(())
    }

    fn validate_create(&self, obj: &Value) -> Vec<FieldError> {
        let spec = FieldPath::new("spec");
        let mut errors = rules::pod_spec(&obj["spec"], &spec, rules::Where::Pod);
        if !array_at(obj, &["spec", "ephemeralContainers"]).is_empty() {
            errors.push(FieldError::forbidden(
                spec.child("ephemeralContainers"),
                "cannot be set on create",
            ));
        }
        errors
    }

    fn validate_update(&self, new: &Value, old: &Value, sub: Option<&str>) -> Vec<FieldError> {
        match sub {
            Some("status") => update::validate_status(new, old),
            Some("ephemeralcontainers") => update::validate_ephemeral(new, old),
            Some("resize") => update::validate_resize(new, old),
            _ => update::validate(new, old),
        }
    }

    fn delete_grace(
        &self,
        _: &StrategyContext,
        obj: &Value,
        requested: Option<i64>,
    ) -> Option<i64> {
        if str_at(obj, &["spec", "nodeName"]).is_empty()
            || matches!(str_at(obj, &["status", "phase"]), "Succeeded" | "Failed")
        {
            return Some(0);
        }
        let wanted = requested.or_else(|| i64_at(obj, &["spec", "terminationGracePeriodSeconds"]));
        // Negative means: at once, but let the node say that it is done.
        Some(match wanted.unwrap_or(0) {
            n if n < 0 => 1,
            n => n,
        })
    }

    fn warnings(&self, obj: &Value) -> Vec<String> {
        rules::warnings(&obj["spec"], &FieldPath::new("spec"))
    }

    fn row(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        print::row(obj, now)
    }
}
