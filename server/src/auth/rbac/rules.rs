//! What one `PolicyRule` allows, and whether one set of rules covers another.
//! Behaviour of `k8s.io/kubernetes/plugin/pkg/auth/authorizer/rbac` and `pkg/registry/rbac/validation`.

use k8s_openapi::api::rbac::v1::PolicyRule;

use crate::auth::Attributes;

fn list(items: &Option<Vec<String>>) -> &[String] {
    items.as_deref().unwrap_or_default()
}

fn has(set: &[String], item: &str) -> bool {
    set.iter().any(|s| s == item)
}

fn has_or_all(set: &[String], item: &str) -> bool {
    set.iter().any(|s| s == item || s == "*")
}

/// Whether `rule` allows what is asked.
pub fn allows(rule: &PolicyRule, ask: &Attributes<'_>) -> bool {
    if !has_or_all(&rule.verbs, ask.verb) {
        return false;
    }
    if !ask.is_resource() {
        return list(&rule.non_resource_urls)
            .iter()
            .any(|u| url_covers(u, ask.path));
    }
    let names = list(&rule.resource_names);
    has_or_all(list(&rule.api_groups), ask.group)
        && list(&rule.resources)
            .iter()
            .any(|r| resource_covers(r, ask.resource, ask.subresource))
        && (names.is_empty() || has(names, ask.name))
}

/// A rule's resource is `*`, `pods`, `pods/log` or `*/scale`.
fn resource_covers(rule: &str, resource: &str, subresource: &str) -> bool {
    if rule == "*" {
        return true;
    }
    match (rule.split_once('/'), subresource) {
        (None, "") => rule == resource,
        (None, _) | (Some(_), "") => false,
        (Some((r, s)), sub) => s == sub && (r == "*" || r == resource),
    }
}

/// A rule's URL is `*`, a path, or a prefix that ends with `*`.
fn url_covers(rule: &str, path: &str) -> bool {
    match rule.strip_suffix('*') {
        Some(prefix) => path.starts_with(prefix.trim_end_matches('*')),
        None => rule == path,
    }
}

/// The parts of `wanted` (each with one verb, group, resource and name, or one URL) that no rule of `held` covers.
pub fn uncovered(held: &[PolicyRule], wanted: &[PolicyRule]) -> Vec<PolicyRule> {
    wanted
        .iter()
        .flat_map(atoms)
        .filter(|atom| !held.iter().any(|rule| covers(rule, atom)))
        .collect()
}

/// Splits a rule into rules of one verb on one thing.
fn atoms(rule: &PolicyRule) -> Vec<PolicyRule> {
    let one = |s: &String| Some(vec![s.clone()]);
    let mut out = Vec::new();
    for group in list(&rule.api_groups) {
        for resource in list(&rule.resources) {
            for verb in &rule.verbs {
                let atom = PolicyRule {
                    api_groups: one(group),
                    resources: one(resource),
                    verbs: vec![verb.clone()],
                    ..PolicyRule::default()
                };
                let names = list(&rule.resource_names);
                if names.is_empty() {
                    out.push(atom);
                } else {
                    out.extend(names.iter().map(|name| PolicyRule {
                        resource_names: one(name),
                        ..atom.clone()
                    }));
                }
            }
        }
    }
    for url in list(&rule.non_resource_urls) {
        for verb in &rule.verbs {
            out.push(PolicyRule {
                non_resource_urls: one(url),
                verbs: vec![verb.clone()],
                ..PolicyRule::default()
            });
        }
    }
    out
}

fn covers(held: &PolicyRule, atom: &PolicyRule) -> bool {
    let all = |set: &[String], wanted: &[String]| wanted.iter().all(|w| has_or_all(set, w));
    let resources = list(&held.resources);
    let names = list(&held.resource_names);
    let wanted_names = list(&atom.resource_names);
    all(&held.verbs, &atom.verbs)
        && all(list(&held.api_groups), list(&atom.api_groups))
        && list(&atom.resources).iter().all(|wanted| {
            has_or_all(resources, wanted)
                || wanted
                    .split_once('/')
                    .is_some_and(|(_, sub)| has(resources, &format!("*/{sub}")))
        })
        && list(&atom.non_resource_urls).iter().all(|wanted| {
            list(&held.non_resource_urls)
                .iter()
                .any(|u| url_covers(u, wanted))
        })
        && (names.is_empty()
            || (!wanted_names.is_empty() && wanted_names.iter().all(|n| has(names, n))))
}

/// `{APIGroups:[""], Resources:["pods"], Verbs:["get"]}`: how escalation errors show a rule.
pub fn compact(rule: &PolicyRule) -> String {
    let mut parts = Vec::new();
    for (label, values) in [
        ("APIGroups", list(&rule.api_groups)),
        ("Resources", list(&rule.resources)),
        ("NonResourceURLs", list(&rule.non_resource_urls)),
        ("ResourceNames", list(&rule.resource_names)),
        ("Verbs", &rule.verbs),
    ] {
        if !values.is_empty() {
            let quoted: Vec<String> = values.iter().map(|v| format!("{v:?}")).collect();
            parts.push(format!("{label}:[{}]", quoted.join(" ")));
        }
    }
    format!("{{{}}}", parts.join(", "))
}

/// Joins atoms that differ only in their verb, for a message that can be read.
pub fn join_verbs(atoms: Vec<PolicyRule>) -> Vec<PolicyRule> {
    let mut out: Vec<PolicyRule> = Vec::new();
    for atom in atoms {
        let same = out.iter_mut().find(|r| {
            r.api_groups == atom.api_groups
                && r.resources == atom.resources
                && r.resource_names == atom.resource_names
                && r.non_resource_urls == atom.non_resource_urls
        });
        match same {
            Some(rule) => rule.verbs.extend(atom.verbs),
            None => out.push(atom),
        }
    }
    out
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::auth::UserInfo;

    /// A rule from words separated by spaces; `""` in groups is written as `core`.
    pub(crate) fn rule(groups: &str, resources: &str, verbs: &str) -> PolicyRule {
        let words = |s: &str| -> Vec<String> {
            s.split_whitespace()
                .map(|w| {
                    if w == "core" {
                        String::new()
                    } else {
                        w.to_owned()
                    }
                })
                .collect()
        };
        PolicyRule {
            api_groups: Some(words(groups)),
            resources: Some(words(resources)),
            verbs: words(verbs),
            ..PolicyRule::default()
        }
    }

    fn ask<'a>(
        user: &'a UserInfo,
        verb: &'a str,
        group: &'a str,
        resource: &'a str,
        sub: &'a str,
        name: &'a str,
    ) -> Attributes<'a> {
        Attributes {
            subresource: sub,
            name,
            ..Attributes::resource(user, verb, group, resource)
        }
    }

    #[test]
    fn a_rule_for_pods_says_nothing_of_their_logs() {
        let u = UserInfo::new("u", &[]);
        let pods = rule("core", "pods", "get list");
        assert!(allows(&pods, &ask(&u, "get", "", "pods", "", "a")));
        assert!(!allows(&pods, &ask(&u, "get", "", "pods", "log", "a")));
        assert!(!allows(&pods, &ask(&u, "watch", "", "pods", "", "")));
        assert!(!allows(&pods, &ask(&u, "get", "apps", "pods", "", "")));
        assert!(allows(
            &rule("*", "*", "*"),
            &ask(&u, "x", "y", "pods", "log", "a")
        ));
        let scale = rule("apps", "*/scale", "update");
        assert!(allows(
            &scale,
            &ask(&u, "update", "apps", "deployments", "scale", "a")
        ));
        assert!(!allows(
            &scale,
            &ask(&u, "update", "apps", "deployments", "", "a")
        ));
    }

    #[test]
    fn named_rules_allow_only_those_names() {
        let u = UserInfo::new("u", &[]);
        let mut r = rule("core", "configmaps", "get list");
        r.resource_names = Some(vec!["a".to_owned()]);
        assert!(allows(&r, &ask(&u, "get", "", "configmaps", "", "a")));
        assert!(!allows(&r, &ask(&u, "get", "", "configmaps", "", "b")));
        assert!(!allows(&r, &ask(&u, "list", "", "configmaps", "", "")));
    }

    #[test]
    fn url_rules_match_whole_paths_or_prefixes() {
        let u = UserInfo::new("u", &[]);
        let r = PolicyRule {
            non_resource_urls: Some(vec!["/healthz".to_owned(), "/api/*".to_owned()]),
            verbs: vec!["get".to_owned()],
            ..PolicyRule::default()
        };
        assert!(allows(&r, &Attributes::path(&u, "get", "/healthz")));
        assert!(allows(&r, &Attributes::path(&u, "get", "/api/v1")));
        assert!(!allows(&r, &Attributes::path(&u, "get", "/api")));
        assert!(!allows(&r, &Attributes::path(&u, "get", "/healthz/etcd")));
        assert!(!allows(&r, &Attributes::path(&u, "post", "/healthz")));
    }

    #[test]
    fn nobody_grants_more_than_he_holds() {
        let held = [
            rule("core", "pods services", "get list"),
            rule("apps", "*/scale", "*"),
        ];
        assert!(uncovered(&held, &[rule("core", "pods", "get")]).is_empty());
        assert!(uncovered(&held, &[rule("apps", "deployments/scale", "patch")]).is_empty());
        let missing = uncovered(&held, &[rule("core", "pods secrets", "get watch")]);
        assert_eq!(
            join_verbs(missing).iter().map(compact).collect::<Vec<_>>(),
            [
                "{APIGroups:[\"\"], Resources:[\"pods\"], Verbs:[\"watch\"]}",
                "{APIGroups:[\"\"], Resources:[\"secrets\"], Verbs:[\"get\" \"watch\"]}",
            ]
        );
    }

    #[test]
    fn holding_one_name_is_not_holding_all() {
        let mut held = rule("core", "secrets", "get");
        held.resource_names = Some(vec!["a".to_owned()]);
        assert_eq!(
            uncovered(&[held.clone()], &[rule("core", "secrets", "get")]).len(),
            1
        );
        assert!(uncovered(&[rule("core", "secrets", "get")], &[held]).is_empty());
    }
}
