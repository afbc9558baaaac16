//! Roles and bindings, arranged by who they are about: a pure index, rebuilt from the four RBAC tables when one of them
//! changed.

use std::collections::HashMap;
use std::sync::Arc;

use k8s_openapi::api::rbac::v1::{PolicyRule, RoleRef, Subject};

use super::rules;
use crate::auth::{Attributes, MASTERS, UserInfo};

/// A ClusterRole's or Role's rules.
pub type Rules = Arc<Vec<PolicyRule>>;

/// A ClusterRoleBinding (`namespace` empty) or RoleBinding.
#[derive(Debug)]
pub struct Binding {
    pub namespace: String,
    pub name: String,
    pub role: RoleRef,
    pub subjects: Vec<Subject>,
}

/// Who may do what. Holds no cache of answers: a question costs the bindings of the asking user and groups.
#[derive(Debug, Default)]
pub struct Index {
    cluster_roles: HashMap<String, Rules>,
    /// namespace → name → rules
    roles: HashMap<String, HashMap<String, Rules>>,
    cluster_bindings: BySubject,
    /// namespace → bindings
    bindings: HashMap<String, BySubject>,
}

#[derive(Debug, Default)]
struct BySubject {
    users: HashMap<String, Vec<Arc<Binding>>>,
    groups: HashMap<String, Vec<Arc<Binding>>>,
}

impl BySubject {
    fn add(&mut self, binding: &Arc<Binding>) {
        for subject in &binding.subjects {
            match subject.kind.as_str() {
                "User" => self.users.entry(subject.name.clone()),
                "Group" => self.groups.entry(subject.name.clone()),
                "ServiceAccount" => {
                    let namespace = subject.namespace.as_deref().unwrap_or(&binding.namespace);
                    self.users.entry(format!(
                        "system:serviceaccount:{namespace}:{}",
                        subject.name
                    ))
                }
                _ => continue,
            }
            .or_default()
            .push(binding.clone());
        }
    }

    fn of<'a>(&'a self, user: &'a UserInfo) -> impl Iterator<Item = &'a Arc<Binding>> {
        let named = self.users.get(&user.name).into_iter();
        let grouped = user.groups.iter().filter_map(|g| self.groups.get(g));
        named.chain(grouped).flatten()
    }
}

impl Index {
    /// Arranges roles (`(namespace, name, rules)`, namespace empty for ClusterRoles) and bindings.
    pub fn build(
        roles: impl IntoIterator<Item = (String, String, Rules)>,
        bindings: impl IntoIterator<Item = Arc<Binding>>,
    ) -> Index {
        let mut index = Index::default();
        for (namespace, name, rules) in roles {
            if namespace.is_empty() {
                index.cluster_roles.insert(name, rules);
            } else {
                index
                    .roles
                    .entry(namespace)
                    .or_default()
                    .insert(name, rules);
            }
        }
        for binding in bindings {
            if binding.namespace.is_empty() {
                index.cluster_bindings.add(&binding);
            } else if let Some(per) = index.bindings.get_mut(&binding.namespace) {
                per.add(&binding);
            } else {
                let mut per = BySubject::default();
                per.add(&binding);
                index.bindings.insert(binding.namespace.clone(), per);
            }
        }
        index
    }

    /// The rules a binding refers to; `None` if the role does not exist.
    pub fn role(&self, namespace: &str, role: &RoleRef) -> Option<&Rules> {
        match role.kind.as_str() {
            "ClusterRole" => self.cluster_roles.get(&role.name),
            "Role" => self.roles.get(namespace)?.get(&role.name),
            _ => None,
        }
    }

    /// Every rule that holds for `user` in `namespace` (and the cluster-wide ones), with its binding.
    fn rules_of<'a>(
        &'a self,
        user: &'a UserInfo,
        namespace: &str,
    ) -> impl Iterator<Item = (&'a Arc<Binding>, &'a PolicyRule)> {
        let local = (!namespace.is_empty())
            .then(|| self.bindings.get(namespace))
            .flatten();
        self.cluster_bindings
            .of(user)
            .chain(local.into_iter().flat_map(move |per| per.of(user)))
            .filter_map(|binding| Some((binding, self.role(&binding.namespace, &binding.role)?)))
            .flat_map(|(binding, rules)| rules.iter().map(move |rule| (binding, rule)))
    }

    /// The binding that allows what is asked.
    pub fn allowed_by<'a>(&'a self, ask: &Attributes<'a>) -> Option<&'a Arc<Binding>> {
        self.rules_of(ask.user, ask.namespace)
            .find(|(_, rule)| rules::allows(rule, ask))
            .map(|(binding, _)| binding)
    }

    /// All rules of a user in a namespace (empty: only cluster-wide ones), e.g. for `kubectl auth can-i --list`.
    pub fn rules_for(&self, user: &UserInfo, namespace: &str) -> Vec<PolicyRule> {
        let mut all: Vec<PolicyRule> = Vec::new();
        let masters = user
            .in_group(MASTERS)
            .then(everything)
            .into_iter()
            .flatten();
        for rule in masters.chain(self.rules_of(user, namespace).map(|(_, rule)| rule.clone())) {
            if !all.contains(&rule) {
                all.push(rule);
            }
        }
        all
    }
}

/// What members of `system:masters` may do.
pub fn everything() -> [PolicyRule; 2] {
    let star = || vec!["*".to_owned()];
    [
        PolicyRule {
            api_groups: Some(star()),
            resources: Some(star()),
            verbs: star(),
            ..PolicyRule::default()
        },
        PolicyRule {
            non_resource_urls: Some(star()),
            verbs: star(),
            ..PolicyRule::default()
        },
    ]
}

/// Why an allowed request was allowed, as upstream's audit annotation and SubjectAccessReview tell it.
pub fn reason(binding: &Binding, user: &UserInfo) -> String {
    let (kind, what) = if binding.namespace.is_empty() {
        ("ClusterRoleBinding", binding.name.clone())
    } else {
        (
            "RoleBinding",
            format!("{}/{}", binding.name, binding.namespace),
        )
    };
    let subject = binding.subjects.iter().find(|s| match s.kind.as_str() {
        "User" => s.name == user.name,
        "Group" => user.in_group(&s.name),
        _ => user.service_account_name().is_some_and(|(ns, name)| {
            s.name == name && s.namespace.as_deref().unwrap_or(&binding.namespace) == ns
        }),
    });
    let to = match subject {
        Some(s) if s.kind == "ServiceAccount" => format!(
            "ServiceAccount \"{}/{}\"",
            s.name,
            s.namespace.as_deref().unwrap_or(&binding.namespace)
        ),
        Some(s) => format!("{} {:?}", s.kind, s.name),
        None => format!("User {:?}", user.name),
    };
    format!(
        "RBAC: allowed by {kind} {what:?} of {} {:?} to {to}",
        binding.role.kind, binding.role.name
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::rules::tests::rule;
    use super::*;

    fn binding(
        namespace: &str,
        name: &str,
        role: (&str, &str),
        subject: (&str, &str, Option<&str>),
    ) -> Arc<Binding> {
        Arc::new(Binding {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            role: RoleRef {
                api_group: Some("rbac.authorization.k8s.io".to_owned()),
                kind: role.0.to_owned(),
                name: role.1.to_owned(),
            },
            subjects: vec![Subject {
                kind: subject.0.to_owned(),
                name: subject.1.to_owned(),
                namespace: subject.2.map(str::to_owned),
                api_group: None,
            }],
        })
    }

    fn index() -> Index {
        let role = |ns: &str, name: &str, r| (ns.to_owned(), name.to_owned(), Arc::new(vec![r]));
        Index::build(
            [
                role("", "view", rule("core", "pods", "get list")),
                role("a", "secrets", rule("core", "secrets", "get")),
            ],
            [
                binding(
                    "",
                    "viewers",
                    ("ClusterRole", "view"),
                    ("Group", "viewers", None),
                ),
                binding("a", "bob", ("ClusterRole", "view"), ("User", "bob", None)),
                binding(
                    "a",
                    "sa",
                    ("Role", "secrets"),
                    ("ServiceAccount", "app", Some("b")),
                ),
                binding("a", "gone", ("Role", "nowhere"), ("User", "bob", None)),
            ],
        )
    }

    fn allowed(user: &UserInfo, verb: &str, resource: &str, namespace: &str) -> bool {
        let ask = Attributes {
            namespace,
            ..Attributes::resource(user, verb, "", resource)
        };
        index().allowed_by(&ask).is_some()
    }

    #[test]
    fn role_bindings_hold_in_their_namespace_only() {
        let bob = UserInfo::new("bob", &[]);
        assert!(allowed(&bob, "list", "pods", "a"));
        assert!(!allowed(&bob, "list", "pods", "b"));
        assert!(!allowed(&bob, "list", "pods", ""));
    }

    #[test]
    fn cluster_bindings_hold_everywhere() {
        let eve = UserInfo::new("eve", &["viewers"]);
        assert!(allowed(&eve, "list", "pods", "a"));
        assert!(allowed(&eve, "list", "pods", ""));
        assert!(!allowed(&eve, "delete", "pods", "a"));
    }

    #[test]
    fn service_accounts_are_found_by_namespace_and_name() {
        assert!(allowed(
            &UserInfo::service_account("b", "app"),
            "get",
            "secrets",
            "a"
        ));
        assert!(!allowed(
            &UserInfo::service_account("a", "app"),
            "get",
            "secrets",
            "a"
        ));
    }

    #[test]
    fn an_allowed_request_names_its_binding() {
        let eve = UserInfo::new("eve", &["viewers"]);
        let index = index();
        let by = index
            .allowed_by(&Attributes::resource(&eve, "get", "", "pods"))
            .unwrap();
        assert_eq!(
            reason(by, &eve),
            "RBAC: allowed by ClusterRoleBinding \"viewers\" of ClusterRole \"view\" to Group \"viewers\""
        );
    }
}
