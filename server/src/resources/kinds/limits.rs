//! LimitRange and ResourceQuota: <https://kubernetes.io/docs/reference/kubernetes-api/policy-resources/limit-range-v1/>. What they mean
//! for other objects is admission's (`admission/limit_ranger.rs`, `admission/quota.rs`).

use amphipod_api::meta::{array_at, i64_at, map_at, str_at};
use amphipod_api::quantity::Quantity;
use amphipod_api::{FieldError, FieldPath, Status, names};
use jiff::Timestamp;
use k8s_openapi::api::core::v1;
use serde_json::{Map, Value, json};

use super::Kind;
use crate::resources::amounts::of_list;
use crate::resources::common::{items_mut, keep, spec_mut};
use crate::resources::table::{age_cell, name};
use crate::resources::validate::{Errors, immutable, one_of, problems};
use crate::resources::{Column, Descriptor, Strategy, StrategyContext};

const SPEC: FieldPath = FieldPath::new("spec");

pub fn limit_range() -> Descriptor {
    Kind::new::<v1::LimitRange>("", "v1", "LimitRange", "limitranges")
        .short(&["limits"])
        .columns(vec![
            Column::name(),
            Column::new("Created At", "When the object was made."),
        ])
        .strategy(LimitRange)
        .build()
}

pub fn resource_quota() -> Descriptor {
    Kind::new::<v1::ResourceQuota>("", "v1", "ResourceQuota", "resourcequotas")
        .short(&["quota"])
        .status()
        .columns(vec![
            Column::name(),
            Column::new("Request", "Used and allowed, of objects and requests."),
            Column::new("Limit", "Used and allowed, of limits."),
            Column::age(),
        ])
        .strategy(ResourceQuota)
        .build()
}

struct LimitRange;

/// Takes over from one list of amounts into another what that does not have.
fn fill_from(item: &mut Map<String, Value>, to: &str, from: &str) {
    let Some(from) = item.get(from).and_then(Value::as_object).cloned() else {
        return;
    };
    let to = item.entry(to).or_insert_with(|| json!({}));
    if let Some(to) = to.as_object_mut() {
        for (name, amount) in from {
            to.entry(name).or_insert(amount);
        }
    }
}

impl Strategy for LimitRange {
    fn default(&self, obj: &mut Value) {
        for item in items_mut(spec_mut(obj), "limits") {
            if item.get("type") == Some(&json!("Container")) {
                fill_from(item, "default", "max");
                fill_from(item, "defaultRequest", "default");
                fill_from(item, "defaultRequest", "min");
            }
        }
    }

    fn validate_create(&self, obj: &Value) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let mut types: Vec<&str> = Vec::new();
        for (index, item) in array_at(obj, &["spec", "limits"]).iter().enumerate() {
            let list = SPEC.child("limits");
            let path = list.index(index);
            let kind = str_at(item, &["type"]);
            if types.contains(&kind) {
                errors.push(FieldError::duplicate(path.child("type"), kind));
            }
            types.push(kind);
            limit_item(item, kind, &path, &mut errors);
        }
        errors
    }

    fn validate_update(&self, new: &Value, _: &Value, _: Option<&str>) -> Vec<FieldError> {
        self.validate_create(new)
    }

    fn row(&self, obj: &Value, _: Timestamp) -> Vec<Value> {
        vec![
            name(obj),
            str_at(obj, &["metadata", "creationTimestamp"]).into(),
        ]
    }
}

/// The lists of one item, from the smallest to the largest: each amount must not be above those that come after it.
const ASCENDING: [(&str, &str); 4] = [
    ("min", "min"),
    ("defaultRequest", "default request"),
    ("default", "default"),
    ("max", "max"),
];

fn limit_item(item: &Value, kind: &str, path: &FieldPath, errors: &mut Errors) {
    if !kind.contains('/') {
        one_of(
            &path.child("type"),
            kind,
            &["Container", "PersistentVolumeClaim", "Pod"],
            errors,
        );
    }
    if kind == "Pod" {
        for field in ["default", "defaultRequest"] {
            if !map_at(item, &[field]).is_empty() {
                let why = "may not be specified when `type` is 'Pod'";
                errors.push(FieldError::forbidden(path.child(field), why));
            }
        }
    }
    if kind == "PersistentVolumeClaim"
        && !["min", "max"]
            .iter()
            .any(|field| map_at(item, &[field]).contains_key("storage"))
    {
        let why = "either minimum or maximum storage value is required, but neither was provided";
        errors.push(FieldError::required(path.child("limits"), why));
    }
    let lists = ASCENDING.map(|(field, words)| (field, words, of_list(item, &[field])));
    for (at, (field, words, amounts)) in lists.iter().enumerate() {
        for (name, amount) in amounts {
            let place = path.child(field);
            let place = place.key(name);
            problems(&place, name, names::qualified_name(name), errors);
            for (_, above_words, above) in &lists[at + 1..] {
                if let Some(most) = above.get(name)
                    && amount > most
                {
                    let why = format!(
                        "{words} value {amount} is greater than {above_words} value {most}"
                    );
                    errors.push(FieldError::invalid(place, amount.to_string(), why));
                }
            }
        }
    }
    let [(_, _, least), _, _, (_, _, most)] = &lists;
    for (name, ratio) in of_list(item, &["maxLimitRequestRatio"]) {
        let place = path.child("maxLimitRequestRatio");
        let place = place.key(&name);
        if ratio < Quantity::from_units(1, ratio.format()) {
            let why = format!("ratio {ratio} is less than 1");
            errors.push(FieldError::invalid(place, ratio.to_string(), why));
        }
        if let (Some(least), Some(most)) = (least.get(&name), most.get(&name))
            && !least.is_zero()
            && ratio.as_f64() > most.as_f64() / least.as_f64()
        {
            let why = format!(
                "ratio {ratio} is greater than max/min = {:.6}",
                most.as_f64() / least.as_f64()
            );
            errors.push(FieldError::invalid(place, ratio.to_string(), why));
        }
    }
}

struct ResourceQuota;

/// What a quota may be for.
const SCOPES: &[&str] = &[
    "BestEffort",
    "CrossNamespacePodAffinity",
    "NotBestEffort",
    "NotTerminating",
    "PriorityClass",
    "Terminating",
];

impl Strategy for ResourceQuota {
    fn prepare_for_create(&self, _: &StrategyContext, obj: &mut Value) -> Result<(), Status> {
        if let Some(obj) = obj.as_object_mut() {
            obj.insert("status".into(), json!({}));
        }
        Ok(())
    }

    fn prepare_for_update(
        &self,
        _: &StrategyContext,
        new: &mut Value,
        old: &Value,
        sub: Option<&str>,
    ) -> Result<(), Status> {
        keep(
            new,
            old,
            if sub == Some("status") {
                "spec"
            } else {
                "status"
            },
        );
        Ok(())
    }

    fn validate_create(&self, obj: &Value) -> Vec<FieldError> {
        let mut errors = amounts(obj, &["spec", "hard"], &SPEC.child("hard"));
        scopes(obj, &mut errors);
        errors
    }

    fn validate_update(&self, new: &Value, old: &Value, sub: Option<&str>) -> Vec<FieldError> {
        if sub == Some("status") {
            let status = FieldPath::new("status");
            let mut errors = amounts(new, &["status", "hard"], &status.child("hard"));
            errors.extend(amounts(new, &["status", "used"], &status.child("used")));
            return errors;
        }
        let mut errors = self.validate_create(new);
        for field in ["scopes", "scopeSelector"] {
            immutable(
                &SPEC.child(field),
                new["spec"].get(field),
                old["spec"].get(field),
                &mut errors,
            );
        }
        errors
    }

    fn row(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        let used = of_list(obj, &["status", "used"]);
        let (mut requests, mut limits) = (Vec::new(), Vec::new());
        for (name, hard) in of_list(obj, &["status", "hard"]) {
            let used = used.get(&name).copied().unwrap_or(Quantity::ZERO);
            let text = format!("{name}: {used}/{hard}");
            if name.starts_with("limits") {
                limits.push(text);
            } else {
                requests.push(text);
            }
        }
        vec![
            name(obj),
            requests.join(", ").into(),
            limits.join(", ").into(),
            age_cell(obj, now),
        ]
    }
}

/// Amounts of a quota: of things that can be counted, none negative, whole numbers where parts make no sense.
fn amounts(obj: &Value, at: &[&str], path: &FieldPath) -> Errors {
    let mut errors = Vec::new();
    for (name, amount) in of_list(obj, at) {
        let path = path.key(&name);
        problems(&path, &name, names::qualified_name(&name), &mut errors);
        if !name.contains('/') && !is_quota_name(&name) {
            let why = "must be a standard resource for quota";
            errors.push(FieldError::invalid(path, name.as_str(), why));
        }
        if amount.signum() < 0 {
            let why = "must be greater than or equal to 0";
            errors.push(FieldError::invalid(path, amount.to_string(), why));
        }
        if COUNTED.contains(&name.as_str()) && !amount.is_integer() {
            let why = "must be an integer";
            errors.push(FieldError::invalid(path, amount.to_string(), why));
        }
    }
    errors
}

/// Things that are counted.
const COUNTED: &[&str] = &[
    "configmaps",
    "persistentvolumeclaims",
    "pods",
    "replicationcontrollers",
    "resourcequotas",
    "secrets",
    "services",
    "services.loadbalancers",
    "services.nodeports",
];

fn is_quota_name(name: &str) -> bool {
    const MEASURED: &[&str] = &[
        "cpu",
        "ephemeral-storage",
        "limits.cpu",
        "limits.ephemeral-storage",
        "limits.memory",
        "memory",
        "requests.cpu",
        "requests.ephemeral-storage",
        "requests.memory",
        "requests.storage",
    ];
    COUNTED.contains(&name)
        || MEASURED.contains(&name)
        || name.starts_with("hugepages-")
        || name.starts_with("requests.hugepages-")
}

fn scopes(obj: &Value, errors: &mut Errors) {
    let list = SPEC.child("scopes");
    let names: Vec<&str> = array_at(obj, &["spec", "scopes"])
        .iter()
        .filter_map(Value::as_str)
        .collect();
    for name in &names {
        if !SCOPES.contains(name) {
            let why = "unsupported scope";
            errors.push(FieldError::invalid(list, json!(names), why));
        }
    }
    for (one, other) in [
        ("Terminating", "NotTerminating"),
        ("BestEffort", "NotBestEffort"),
    ] {
        if names.contains(&one) && names.contains(&other) {
            let why = "conflicting scopes";
            errors.push(FieldError::invalid(list, json!(names), why));
        }
    }
    let list = FieldPath::new("spec.scopeSelector.matchExpressions");
    let expressions = array_at(obj, &["spec", "scopeSelector", "matchExpressions"]);
    for (index, expression) in expressions.iter().enumerate() {
        let path = list.index(index);
        let scope = str_at(expression, &["scopeName"]);
        if !SCOPES.contains(&scope) {
            let why = "unsupported scope";
            errors.push(FieldError::invalid(path.child("scopeName"), scope, why));
        }
        let operator = str_at(expression, &["operator"]);
        one_of(
            &path.child("operator"),
            operator,
            &["DoesNotExist", "Exists", "In", "NotIn"],
            errors,
        );
        if scope != "PriorityClass" && SCOPES.contains(&scope) && operator != "Exists" {
            let why = "must be 'Exists' when scope is any of ResourceQuotaScopeTerminating, ResourceQuotaScopeNotTerminating, ResourceQuotaScopeBestEffort, ResourceQuotaScopeNotBestEffort or ResourceQuotaScopeCrossNamespacePodAffinity";
            errors.push(FieldError::invalid(path.child("operator"), operator, why));
        }
        let values = array_at(expression, &["values"]);
        match operator {
            "In" | "NotIn" if values.is_empty() => errors.push(FieldError::required(
                path.child("values"),
                "must be at least one value when `operator` is 'In' or 'NotIn' for scope selector",
            )),
            "Exists" | "DoesNotExist" if !values.is_empty() => errors.push(FieldError::invalid(
                path.child("values"),
                json!(values),
                "must be no value when `operator` is 'Exists' or 'DoesNotExist' for scope selector",
            )),
            _ => {}
        }
    }
}

/// Whether a pod is one of those that a quota is for: it has all of its scopes.
pub fn quota_covers(quota: &Value, pod: &Value) -> bool {
    let mut named = array_at(quota, &["spec", "scopes"])
        .iter()
        .filter_map(Value::as_str);
    let selected = array_at(quota, &["spec", "scopeSelector", "matchExpressions"]);
    named.all(|scope| has_scope(pod, scope, "Exists", &[]))
        && selected.iter().all(|e| {
            has_scope(
                pod,
                str_at(e, &["scopeName"]),
                str_at(e, &["operator"]),
                array_at(e, &["values"]),
            )
        })
}

/// Whether a quota is for some pods only, and so for nothing but pods.
pub fn quota_is_scoped(quota: &Value) -> bool {
    !array_at(quota, &["spec", "scopes"]).is_empty()
        || !array_at(quota, &["spec", "scopeSelector", "matchExpressions"]).is_empty()
}

fn has_scope(pod: &Value, scope: &str, operator: &str, values: &[Value]) -> bool {
    match scope {
        "Terminating" => i64_at(pod, &["spec", "activeDeadlineSeconds"]).is_some(),
        "NotTerminating" => i64_at(pod, &["spec", "activeDeadlineSeconds"]).is_none(),
        "BestEffort" => super::pod::qos_class(&pod["spec"]) == "BestEffort",
        "NotBestEffort" => super::pod::qos_class(&pod["spec"]) != "BestEffort",
        "CrossNamespacePodAffinity" => reaches_other_namespaces(pod),
        "PriorityClass" => {
            let class = str_at(pod, &["spec", "priorityClassName"]);
            let listed = values.iter().any(|v| v == class);
            match operator {
                "In" => !class.is_empty() && listed,
                "NotIn" => !listed,
                "DoesNotExist" => class.is_empty(),
                _ => !class.is_empty(),
            }
        }
        _ => false,
    }
}

fn reaches_other_namespaces(pod: &Value) -> bool {
    let names = |term: &Value| {
        !array_at(term, &["namespaces"]).is_empty() || term.get("namespaceSelector").is_some()
    };
    ["podAffinity", "podAntiAffinity"].iter().any(|kind| {
        let at = |when: &str| array_at(pod, &["spec", "affinity", kind, when]);
        at("requiredDuringSchedulingIgnoredDuringExecution")
            .iter()
            .any(names)
            || at("preferredDuringSchedulingIgnoredDuringExecution")
                .iter()
                .any(|weighted| names(&weighted["podAffinityTerm"]))
    })
}
