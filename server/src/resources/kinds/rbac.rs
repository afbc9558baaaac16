//! Roles and their bindings: <https://kubernetes.io/docs/reference/access-authn-authz/rbac/>.

use std::collections::BTreeMap;

use amphipod_api::gvk::GroupResource;
use amphipod_api::meta::{array_at, map_at, str_at};
use amphipod_api::text::quote;
use amphipod_api::{FieldError, FieldPath, Status, names};
use jiff::Timestamp;
use k8s_openapi::api::rbac::v1;
use serde_json::{Value, json};

use super::Kind;
use crate::resources::common::{fill_text, items_mut, object_mut};
use crate::resources::table::{age_cell, name};
use crate::resources::validate::{Errors, label_selector, one_of, problems};
use crate::resources::{Column, Descriptor, Strategy, StrategyContext};

const GROUP: &str = "rbac.authorization.k8s.io";

fn role_columns() -> Vec<Column> {
    vec![
        Column::name(),
        Column::new("Created At", "When the role was made.").of_type("date"),
    ]
}

fn binding_columns() -> Vec<Column> {
    vec![
        Column::name(),
        Column::new("Role", "The role that is bound."),
        Column::age(),
        Column::new("Users", "Users that get the role.").wide(),
        Column::new("Groups", "Groups that get the role.").wide(),
        Column::new("ServiceAccounts", "Service accounts that get the role.").wide(),
    ]
}

pub fn cluster_role_binding() -> Descriptor {
    Kind::new::<v1::ClusterRoleBinding>(GROUP, "v1", "ClusterRoleBinding", "clusterrolebindings")
        .cluster()
        .columns(binding_columns())
        .strategy(Binding {
            plural: "clusterrolebindings",
        })
        .build()
}

pub fn cluster_role() -> Descriptor {
    Kind::new::<v1::ClusterRole>(GROUP, "v1", "ClusterRole", "clusterroles")
        .cluster()
        .columns(role_columns())
        .strategy(Role {
            plural: "clusterroles",
        })
        .build()
}

pub fn role_binding() -> Descriptor {
    Kind::new::<v1::RoleBinding>(GROUP, "v1", "RoleBinding", "rolebindings")
        .columns(binding_columns())
        .strategy(Binding {
            plural: "rolebindings",
        })
        .build()
}

pub fn role() -> Descriptor {
    Kind::new::<v1::Role>(GROUP, "v1", "Role", "roles")
        .columns(role_columns())
        .strategy(Role { plural: "roles" })
        .build()
}

/// The refusal of a caller who would hand out more than they have.
fn escalation(cx: &StrategyContext, plural: &str, name: &str, missing: &str) -> Status {
    let groups: Vec<String> = cx.user.groups.iter().map(|g| quote(g)).collect();
    let why = format!(
        "user {} (groups=[{}]) is attempting to grant RBAC permissions not currently held:\n{missing}",
        quote(&cx.user.name),
        groups.join(" ")
    );
    Status::forbidden(&GroupResource::new(GROUP, plural), name, why)
}

struct Role {
    plural: &'static str,
}

impl Role {
    fn check_escalation(
        &self,
        cx: &StrategyContext,
        obj: &Value,
        old: Option<&Value>,
    ) -> Result<(), Status> {
        let name = str_at(obj, &["metadata", "name"]);
        let same = |field: &str| old.is_some_and(|old| old.get(field) == obj.get(field));
        if (same("rules") && same("aggregationRule"))
            || cx
                .privileges
                .may(cx.user, "escalate", GROUP, self.plural, cx.namespace, name)
        {
            return Ok(());
        }
        let mut rules = array_at(obj, &["rules"]).to_vec();
        if obj.get("aggregationRule").is_some() && !same("aggregationRule") {
            // What it will collect is not known now: only who may do everything may let it.
            rules.push(json!({"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}));
            rules.push(json!({"nonResourceURLs": ["*"], "verbs": ["*"]}));
        }
        cx.privileges
            .covers(cx.user, cx.namespace, &rules)
            .map_err(|missing| escalation(cx, self.plural, name, &missing))
    }
}

impl Strategy for Role {
    fn default(&self, obj: &mut Value) {
        // Always shown, also when there are none.
        if let Some(map) = obj.as_object_mut() {
            map.entry("rules").or_insert(Value::Null);
        }
    }

    fn prepare_for_create(&self, cx: &StrategyContext, obj: &mut Value) -> Result<(), Status> {
        self.check_escalation(cx, obj, None)
    }

    fn prepare_for_update(
        &self,
        cx: &StrategyContext,
        new: &mut Value,
        old: &Value,
        _: Option<&str>,
    ) -> Result<(), Status> {
        self.check_escalation(cx, new, Some(old))
    }

    fn validate_create(&self, obj: &Value) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let rules = FieldPath::new("rules");
        for (index, rule) in array_at(obj, &["rules"]).iter().enumerate() {
            policy_rule(
                &rules.index(index),
                rule,
                self.plural == "roles",
                &mut errors,
            );
        }
        if let Some(aggregation) = obj.get("aggregationRule") {
            let path = FieldPath::new("aggregationRule.clusterRoleSelectors");
            let selectors = array_at(aggregation, &["clusterRoleSelectors"]);
            if selectors.is_empty() {
                let why = "at least one clusterRoleSelector required if aggregationRule is non-nil";
                errors.push(FieldError::required(path, why));
            }
            for (index, selector) in selectors.iter().enumerate() {
                label_selector(selector, &path.index(index), &mut errors);
            }
        }
        errors
    }

    fn validate_update(&self, new: &Value, _: &Value, _: Option<&str>) -> Vec<FieldError> {
        self.validate_create(new)
    }

    fn name_rule(&self) -> fn(&str) -> Vec<String> {
        names::path_segment
    }

    fn allow_create_on_update(&self) -> bool {
        true
    }

    fn row(&self, obj: &Value, _: Timestamp) -> Vec<Value> {
        vec![
            name(obj),
            str_at(obj, &["metadata", "creationTimestamp"]).into(),
        ]
    }
}

fn policy_rule(path: &FieldPath, rule: &Value, namespaced: bool, errors: &mut Errors) {
    let list = |field: &str| array_at(rule, &[field]);
    if list("verbs").is_empty() {
        errors.push(FieldError::required(
            path.child("verbs"),
            "verbs must contain at least one value",
        ));
    }
    let urls = list("nonResourceURLs");
    if !urls.is_empty() {
        let path = path.child("nonResourceURLs");
        let value = Value::Array(urls.to_vec());
        if namespaced {
            errors.push(FieldError::invalid(
                path,
                value,
                "namespaced rules cannot apply to non-resource URLs",
            ));
        } else if ["apiGroups", "resources", "resourceNames"]
            .iter()
            .any(|f| !list(f).is_empty())
        {
            let why = "rules cannot apply to both regular resources and non-resource URLs";
            errors.push(FieldError::invalid(path, value, why));
        }
        return;
    }
    if list("apiGroups").is_empty() {
        errors.push(FieldError::required(
            path.child("apiGroups"),
            "resource rules must supply at least one api group",
        ));
    }
    if list("resources").is_empty() {
        errors.push(FieldError::required(
            path.child("resources"),
            "resource rules must supply at least one resource",
        ));
    }
}

struct Binding {
    plural: &'static str,
}

impl Binding {
    fn check_escalation(&self, cx: &StrategyContext, obj: &Value) -> Result<(), Status> {
        let kind = str_at(obj, &["roleRef", "kind"]);
        let role = str_at(obj, &["roleRef", "name"]);
        let (plural, namespace) = match kind {
            "Role" => ("roles", cx.namespace),
            "ClusterRole" => ("clusterroles", ""),
            // Validation says what is wrong.
            _ => return Ok(()),
        };
        if cx
            .privileges
            .may(cx.user, "bind", GROUP, plural, cx.namespace, role)
        {
            return Ok(());
        }
        let Some(found) = cx.lookup.get(&format!("{plural}.{GROUP}"), namespace, role) else {
            return Err(Status::not_found(&GroupResource::new(GROUP, plural), role));
        };
        cx.privileges
            .covers(cx.user, cx.namespace, array_at(&found, &["rules"]))
            .map_err(|missing| {
                escalation(
                    cx,
                    self.plural,
                    str_at(obj, &["metadata", "name"]),
                    &missing,
                )
            })
    }
}

impl Strategy for Binding {
    fn default(&self, obj: &mut Value) {
        let Some(map) = obj.as_object_mut() else {
            return;
        };
        if let Some(role) = object_mut(map, "roleRef") {
            fill_text(role, "apiGroup", GROUP);
        }
        for subject in items_mut(map, "subjects") {
            if matches!(
                subject.get("kind").and_then(Value::as_str),
                Some("User" | "Group")
            ) {
                fill_text(subject, "apiGroup", GROUP);
            }
        }
    }

    fn prepare_for_create(&self, cx: &StrategyContext, obj: &mut Value) -> Result<(), Status> {
        self.check_escalation(cx, obj)
    }

    fn prepare_for_update(
        &self,
        cx: &StrategyContext,
        new: &mut Value,
        old: &Value,
        _: Option<&str>,
    ) -> Result<(), Status> {
        if new.get("roleRef") == old.get("roleRef") && new.get("subjects") == old.get("subjects") {
            return Ok(());
        }
        self.check_escalation(cx, new)
    }

    fn validate_create(&self, obj: &Value) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let role = &obj["roleRef"];
        let path = FieldPath::new("roleRef");
        one_of(
            &path.child("apiGroup"),
            str_at(role, &["apiGroup"]),
            &[GROUP],
            &mut errors,
        );
        let kinds: &[&str] = if self.plural == "rolebindings" {
            &["Role", "ClusterRole"]
        } else {
            &["ClusterRole"]
        };
        one_of(
            &path.child("kind"),
            str_at(role, &["kind"]),
            kinds,
            &mut errors,
        );
        let name = str_at(role, &["name"]);
        if name.is_empty() {
            errors.push(FieldError::required(path.child("name"), ""));
        } else {
            problems(
                &path.child("name"),
                name,
                names::path_segment(name),
                &mut errors,
            );
        }
        let subjects = FieldPath::new("subjects");
        for (index, subject) in array_at(obj, &["subjects"]).iter().enumerate() {
            self::subject(&subjects.index(index), subject, &mut errors);
        }
        errors
    }

    fn validate_update(&self, new: &Value, old: &Value, _: Option<&str>) -> Vec<FieldError> {
        let mut errors = self.validate_create(new);
        if map_at(new, &["roleRef"]) != map_at(old, &["roleRef"]) {
            errors.push(FieldError::invalid(
                "roleRef",
                new["roleRef"].clone(),
                "cannot change roleRef",
            ));
        }
        errors
    }

    fn name_rule(&self) -> fn(&str) -> Vec<String> {
        names::path_segment
    }

    fn allow_create_on_update(&self) -> bool {
        true
    }

    fn row(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        let mut by_kind: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for subject in array_at(obj, &["subjects"]) {
            let (kind, name) = (str_at(subject, &["kind"]), str_at(subject, &["name"]));
            let text = match kind {
                "ServiceAccount" => format!("{}/{name}", str_at(subject, &["namespace"])),
                _ => name.to_owned(),
            };
            by_kind.entry(kind).or_default().push(text);
        }
        let cell =
            |kind: &str| Value::from(by_kind.get(kind).map(|l| l.join(", ")).unwrap_or_default());
        vec![
            name(obj),
            format!(
                "{}/{}",
                str_at(obj, &["roleRef", "kind"]),
                str_at(obj, &["roleRef", "name"])
            )
            .into(),
            age_cell(obj, now),
            cell("User"),
            cell("Group"),
            cell("ServiceAccount"),
        ]
    }
}

fn subject(path: &FieldPath, subject: &Value, errors: &mut Errors) {
    let name = str_at(subject, &["name"]);
    if name.is_empty() {
        errors.push(FieldError::required(path.child("name"), ""));
    }
    let group = str_at(subject, &["apiGroup"]);
    match str_at(subject, &["kind"]) {
        "ServiceAccount" => {
            if !name.is_empty() {
                problems(
                    &path.child("name"),
                    name,
                    names::dns1123_subdomain(name),
                    errors,
                );
            }
            if !group.is_empty() {
                errors.push(FieldError::not_supported(
                    path.child("apiGroup"),
                    group,
                    &[""],
                ));
            }
            if str_at(subject, &["namespace"]).is_empty() {
                errors.push(FieldError::required(path.child("namespace"), ""));
            }
        }
        "User" | "Group" => {
            if group != GROUP {
                errors.push(FieldError::not_supported(
                    path.child("apiGroup"),
                    group,
                    &[GROUP],
                ));
            }
        }
        other => errors.push(FieldError::not_supported(
            path.child("kind"),
            other,
            &["ServiceAccount", "User", "Group"],
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(errors: Errors) -> Vec<String> {
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn rules_name_verbs_groups_and_resources() {
        let role = Role { plural: "roles" };
        let obj = json!({"rules": [{"verbs": []}, {"verbs": ["get"], "nonResourceURLs": ["/x"]}]});
        assert_eq!(
            texts(role.validate_create(&obj)),
            [
                "rules[0].verbs: Required value: verbs must contain at least one value",
                "rules[0].apiGroups: Required value: resource rules must supply at least one api group",
                "rules[0].resources: Required value: resource rules must supply at least one resource",
                r#"rules[1].nonResourceURLs: Invalid value: ["/x"]: namespaced rules cannot apply to non-resource URLs"#,
            ]
        );
    }

    #[test]
    fn the_role_of_a_binding_never_changes() {
        let binding = Binding {
            plural: "rolebindings",
        };
        let make = |role: &str| {
            let mut obj = json!({"roleRef": {"kind": "Role", "name": role},
                "subjects": [{"kind": "User", "name": "u"}, {"kind": "ServiceAccount", "name": "s", "namespace": "n"}]});
            binding.default(&mut obj);
            obj
        };
        assert!(binding.validate_create(&make("a")).is_empty());
        assert_eq!(
            texts(binding.validate_update(&make("b"), &make("a"), None)),
            [
                r#"roleRef: Invalid value: {"apiGroup":"rbac.authorization.k8s.io","kind":"Role","name":"b"}: cannot change roleRef"#
            ]
        );
        let row = binding.row(&make("a"), Timestamp::UNIX_EPOCH);
        assert_eq!(row[1], "Role/a");
        assert_eq!(row[3..], ["u", "", "n/s"]);
    }
}
