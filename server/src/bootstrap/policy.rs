//! Reads `policy.txt` into the default RBAC objects.

use serde_json::{Map, Value, json};

/// The default roles and bindings.
const POLICY: &str = include_str!("policy.txt");
const RBAC: &str = "rbac.authorization.k8s.io";

/// One object to be there: the resource's plural and its complete JSON.
#[derive(Debug, PartialEq)]
pub struct DefaultObject {
    pub plural: &'static str,
    /// Empty for ClusterRoles and ClusterRoleBindings.
    pub namespace: String,
    pub name: String,
    pub object: Value,
}

/// All default roles, then all default bindings, so that a binding never points to nothing. Aggregated roles carry
/// the union of the default roles that they select.
pub fn objects() -> Vec<DefaultObject> {
    let mut objects = parse(POLICY);
    aggregate(&mut objects);
    objects.sort_by_key(|o| o.plural.contains("binding"));
    objects
}

fn parse(text: &str) -> Vec<DefaultObject> {
    let mut objects: Vec<DefaultObject> = Vec::new();
    for line in text.lines() {
        if line.trim().is_empty() || line.starts_with('#') {
            continue;
        }
        if line.starts_with(' ') {
            let rule = rule(line);
            // Rules follow their role; a controller's binding comes behind its role.
            let role = objects
                .iter_mut()
                .rev()
                .find(|o| !o.plural.contains("binding"));
            if let Some(Value::Array(rules)) = role.map(|r| &mut r.object["rules"]) {
                rules.push(rule);
            }
            continue;
        }
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["role", name, options @ ..] => objects.push(role("", name, options)),
            ["bind", name, subjects @ ..] => objects.push(binding("", name, name, subjects)),
            ["controller", name] => {
                let role_name = format!("system:controller:{name}");
                objects.push(role("", &role_name, &[]));
                objects.push(binding(
                    "",
                    &role_name,
                    &role_name,
                    &[&format!("sa:kube-system/{name}")],
                ));
            }
            [namespace, "role", name] => objects.push(role(namespace, name, &[])),
            [namespace, "bind", name, of, subjects @ ..] => {
                objects.push(binding(namespace, name, of, subjects));
            }
            _ => tracing::error!(line, "unknown line in the default policy"),
        }
    }
    objects
}

fn metadata(namespace: &str, name: &str) -> Value {
    let mut metadata = json!({
        "name": name,
        "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"},
        "annotations": {"rbac.authorization.kubernetes.io/autoupdate": "true"},
    });
    if !namespace.is_empty() {
        metadata["namespace"] = namespace.into();
    }
    metadata
}

fn role(namespace: &str, name: &str, options: &[&str]) -> DefaultObject {
    let cluster = namespace.is_empty();
    let mut object = json!({
        "apiVersion": format!("{RBAC}/v1"),
        "kind": if cluster { "ClusterRole" } else { "Role" },
        "metadata": metadata(namespace, name),
        "rules": [],
    });
    for option in options {
        if let Some(suffix) = option.strip_prefix("label:") {
            object["metadata"]["labels"][format!("{RBAC}/{suffix}")] = "true".into();
        } else if let Some(suffix) = option.strip_prefix("from:") {
            let mut labels = Map::new();
            labels.insert(format!("{RBAC}/{suffix}"), "true".into());
            object["aggregationRule"] = json!({"clusterRoleSelectors": [{"matchLabels": labels}]});
        }
    }
    DefaultObject {
        plural: if cluster { "clusterroles" } else { "roles" },
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        object,
    }
}

fn binding(namespace: &str, name: &str, role: &str, subjects: &[&str]) -> DefaultObject {
    let cluster = namespace.is_empty();
    let subjects: Vec<Value> = subjects
        .iter()
        .filter_map(|subject| {
            let (kind, name) = subject.split_once(':')?;
            Some(match kind {
                "sa" => {
                    let (namespace, name) = name.split_once('/')?;
                    json!({"kind": "ServiceAccount", "namespace": namespace, "name": name})
                }
                "group" => json!({"apiGroup": RBAC, "kind": "Group", "name": name}),
                _ => json!({"apiGroup": RBAC, "kind": "User", "name": name}),
            })
        })
        .collect();
    let mut object = json!({
        "apiVersion": format!("{RBAC}/v1"),
        "kind": if cluster { "ClusterRoleBinding" } else { "RoleBinding" },
        "metadata": metadata(namespace, name),
        "roleRef": {"apiGroup": RBAC, "kind": if cluster { "ClusterRole" } else { "Role" }, "name": role},
    });
    if !subjects.is_empty() {
        object["subjects"] = subjects.into();
    }
    DefaultObject {
        plural: if cluster {
            "clusterrolebindings"
        } else {
            "rolebindings"
        },
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        object,
    }
}

/// One rule line. Rules of resources list their parts in the order and case of the API.
fn rule(line: &str) -> Value {
    let words: Vec<&str> = line.split_whitespace().collect();
    let (verbs, groups, things) = match words.as_slice() {
        ["events"] => ("create,patch,update", "core,events.k8s.io", &["events"][..]),
        [verbs, groups, things @ ..] => (*verbs, *groups, things),
        _ => ("", "", &[][..]),
    };
    let mut wanted: Vec<&str> = Vec::new();
    for verb in verbs.split(',') {
        match verb {
            "read" => wanted.extend(["get", "list", "watch"]),
            "write" => wanted.extend(["create", "delete", "deletecollection", "patch", "update"]),
            "all" => wanted.extend([
                "create",
                "delete",
                "deletecollection",
                "get",
                "list",
                "patch",
                "update",
                "watch",
            ]),
            verb => wanted.push(verb),
        }
    }
    let verbs = wanted;
    if groups == "url" {
        return json!({"nonResourceURLs": things, "verbs": verbs});
    }
    let groups: Vec<&str> = groups
        .split(',')
        .map(|g| if g == "core" { "" } else { g })
        .collect();
    let (names, resources): (Vec<&str>, Vec<&str>) =
        things.iter().partition(|t| t.starts_with("names:"));
    let mut rule = json!({"apiGroups": groups, "resources": resources, "verbs": verbs});
    if let Some(names) = names.first().and_then(|n| n.strip_prefix("names:")) {
        rule["resourceNames"] = names.split(',').collect();
    }
    rule
}

/// Fills the rules of aggregated roles, twice: `view` is part of `edit`, which is part of `admin`.
fn aggregate(objects: &mut [DefaultObject]) {
    for name in ["view", "edit", "admin"] {
        let Some(at) = objects
            .iter()
            .position(|o| o.plural == "clusterroles" && o.name == name)
        else {
            continue;
        };
        // By name, as the aggregation of the running server goes through them: it then finds nothing to change.
        let mut others: Vec<&DefaultObject> = objects
            .iter()
            .filter(|o| o.plural == "clusterroles" && o.name != name)
            .collect();
        others.sort_by_key(|o| &o.name);
        let rules = crate::auth::rbac::aggregation::rules_of(
            &objects[at].object,
            others.iter().map(|o| &o.object),
        );
        objects[at].object["rules"] = rules;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn find<'a>(objects: &'a [DefaultObject], plural: &str, name: &str) -> &'a Value {
        &objects
            .iter()
            .find(|o| o.plural == plural && o.name == name)
            .unwrap()
            .object
    }

    #[test]
    fn every_line_of_the_policy_is_an_object_or_a_rule() {
        let objects = objects();
        let lines = POLICY
            .lines()
            .filter(|l| !l.starts_with([' ', '#']) && !l.is_empty());
        let wanted: usize = lines
            .map(|l| if l.starts_with("controller") { 2 } else { 1 })
            .sum();
        assert_eq!(objects.len(), wanted);
        for o in &objects {
            if let Some(rules) = o.object.get("rules").and_then(Value::as_array) {
                assert!(!rules.is_empty(), "{} has no rules", o.name);
            }
        }
    }

    #[test]
    fn every_binding_has_its_role() {
        let objects = objects();
        for o in objects.iter().filter(|o| o.plural.contains("binding")) {
            let kind = o.object["roleRef"]["kind"].as_str().unwrap();
            let plural = if kind == "Role" {
                "roles"
            } else {
                "clusterroles"
            };
            find(
                &objects,
                plural,
                o.object["roleRef"]["name"].as_str().unwrap(),
            );
        }
    }

    #[test]
    fn admin_holds_what_edit_and_view_hold() {
        let objects = objects();
        let rules: Vec<k8s_openapi::api::rbac::v1::PolicyRule> =
            serde_json::from_value(find(&objects, "clusterroles", "admin")["rules"].clone())
                .unwrap();
        let view: Vec<_> = serde_json::from_value(
            find(&objects, "clusterroles", "system:aggregate-to-view")["rules"].clone(),
        )
        .unwrap();
        let edit: Vec<_> =
            serde_json::from_value(find(&objects, "clusterroles", "edit")["rules"].clone())
                .unwrap();
        assert!(crate::auth::rbac::rules::uncovered(&rules, &view).is_empty());
        assert!(crate::auth::rbac::rules::uncovered(&rules, &edit).is_empty());
    }

    #[test]
    fn rules_read_as_the_api_writes_them() {
        assert_eq!(
            rule("  get,update core configmaps names:a,b"),
            json!({"apiGroups": [""], "resources": ["configmaps"], "resourceNames": ["a", "b"], "verbs": ["get", "update"]})
        );
        assert_eq!(
            rule("  get url /a /b/*"),
            json!({"nonResourceURLs": ["/a", "/b/*"], "verbs": ["get"]})
        );
    }
}
