//! Priority: the number behind a pod's priority class, and at most one default class.

use amphipod_api::Status;
use amphipod_api::meta::{at, bool_at, child, i64_at, name, str_at};
use serde_json::Value;

use super::{forbidden, is_about};
use crate::registry::{Admission, Operation, Request};

const CLASSES: &str = "priorityclasses.scheduling.k8s.io";
const PREEMPT: &str = "PreemptLowerPriority";
/// Classes that exist also before (or without) their objects.
const SYSTEM: &[(&str, i64)] = &[
    ("system-cluster-critical", 2_000_000_000),
    ("system-node-critical", 2_000_001_000),
];

pub struct Priority;

impl Admission for Priority {
    fn admit(&self, request: &Request<'_>, object: &mut Value) -> Result<(), Status> {
        if !is_about(request, "pods", None) {
            return Ok(());
        }
        match request.operation {
            Operation::Create => create(request, object),
            Operation::Update => {
                // Clients that do not know the fields leave them out.
                for field in ["priority", "preemptionPolicy"] {
                    let before = request.old.and_then(|old| at(old, &["spec", field]));
                    if let Some(before) = before {
                        child(object, "spec")
                            .entry(field)
                            .or_insert_with(|| before.clone());
                    }
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn validate(&self, request: &Request<'_>, object: Option<&Value>) -> Result<(), Status> {
        let Some(class) = object else { return Ok(()) };
        if !is_about(request, CLASSES, None) || bool_at(class, &["globalDefault"]) != Some(true) {
            return Ok(());
        }
        match default_class(request) {
            Some(other) if name(&other) != name(class) => {
                let why = format!(
                    "PriorityClass {} is already marked as default. Only one default can exist",
                    name(&other)
                );
                Err(forbidden(request, why))
            }
            _ => Ok(()),
        }
    }
}

fn default_class(request: &Request<'_>) -> Option<Value> {
    let all = request.lookup.list(CLASSES, None);
    let defaults = all
        .into_iter()
        .filter(|c| bool_at(c, &["globalDefault"]) == Some(true));
    defaults.min_by_key(|c| i64_at(c, &["value"]))
}

fn create(request: &Request<'_>, pod: &mut Value) -> Result<(), Status> {
    let wanted = str_at(pod, &["spec", "priorityClassName"]).to_owned();
    let class = if wanted.is_empty() {
        default_class(request)
    } else {
        request.lookup.get(CLASSES, "", &wanted)
    };
    let system = SYSTEM
        .iter()
        .find(|(name, _)| *name == wanted)
        .map(|(_, value)| *value);
    let (value, policy) = match (&class, system) {
        (Some(class), _) => {
            let policy = str_at(class, &["preemptionPolicy"]);
            (
                i64_at(class, &["value"]).unwrap_or(0),
                if policy.is_empty() { PREEMPT } else { policy },
            )
        }
        (None, Some(value)) => (value, PREEMPT),
        (None, None) if wanted.is_empty() => (0, PREEMPT),
        (None, None) => {
            return Err(forbidden(
                request,
                format!("no PriorityClass with name {wanted} was found"),
            ));
        }
    };
    if let Some(given) = i64_at(pod, &["spec", "priority"])
        && given != value
    {
        let why = format!(
            "the integer value of priority ({given}) must not be provided in pod spec; priority admission controller computed {value} from the given PriorityClass name"
        );
        return Err(forbidden(request, why));
    }
    let given = str_at(pod, &["spec", "preemptionPolicy"]);
    if !given.is_empty() && given != policy {
        let why = format!(
            "the string value of PreemptionPolicy ({given}) must not be provided in pod spec; priority admission controller computed {policy} from the given PriorityClass name"
        );
        return Err(forbidden(request, why));
    }
    let spec = child(pod, "spec");
    if let Some(class) = &class {
        spec.insert("priorityClassName".into(), name(class).into());
    }
    spec.insert("priority".into(), value.into());
    spec.insert("preemptionPolicy".into(), policy.into());
    Ok(())
}
