//! The Node authorizer: an agent sees what its own pods need, and writes about itself.
//! <https://kubernetes.io/docs/reference/access-authn-authz/node/>
//!
//! What is allowed to every node alike stands in the role `system:node`; this file decides what depends on which
//! pods are bound to the asking node, read from the pods table by its index over `spec.nodeName`.

use std::sync::Arc;

use amphipod_api::FieldSelector;
use amphipod_api::local_volumes::HOME;
use serde::Deserialize;

use super::Attributes;
use super::pod_refs::PodRefs;
use super::rbac::rules;
use crate::cache::{Cache, Object};
use k8s_openapi::api::rbac::v1::PolicyRule;

/// What the node authorizer says. It never says a final no: RBAC may still allow.
#[derive(Debug, PartialEq, Eq)]
pub enum NodeDecision {
    Allow,
    /// Not allowed by this authorizer, with the reason if there is one to tell.
    NoOpinion(String),
}

/// Answers for users in `system:nodes`.
pub struct NodeAuthorizer {
    cache: Arc<Cache>,
    /// The rules of `system:node`.
    rules: Vec<PolicyRule>,
}

const NO_RELATION: &str = "no relationship found between node";

impl NodeAuthorizer {
    pub fn new(cache: Arc<Cache>, rules: Vec<PolicyRule>) -> Self {
        NodeAuthorizer { cache, rules }
    }

    /// Decides about a request of the agent of `node`.
    pub fn decide(&self, node: &str, ask: &Attributes<'_>) -> NodeDecision {
        let by_rules = || {
            if self.rules.iter().any(|rule| rules::allows(rule, ask)) {
                NodeDecision::Allow
            } else {
                NodeDecision::NoOpinion(String::new())
            }
        };
        match (ask.group, ask.resource) {
            ("", "secrets") => self.read_referenced(node, ask, |refs, name| refs.secrets(name)),
            ("", "configmaps") => {
                self.read_referenced(node, ask, |refs, name| refs.config_maps(name))
            }
            ("", "persistentvolumeclaims") => {
                if ask.subresource == "status" {
                    self.related(node, ask, |refs, name| refs.claims(name))
                } else {
                    self.read_referenced(node, ask, |refs, name| refs.claims(name))
                }
            }
            ("", "persistentvolumes") => self.volume(node, ask),
            ("", "serviceaccounts") => match (ask.verb, ask.subresource) {
                ("create", "token") | ("get", "") => {
                    self.related(node, ask, |refs, name| refs.service_account(name))
                }
                _ => no("can only create tokens for individual service accounts"),
            },
            ("coordination.k8s.io", "leases") => own_lease(node, ask),
            ("storage.k8s.io", "csinodes") => {
                own_named(node, ask, &["get", "create", "update", "patch", "delete"])
            }
            ("", "nodes") => match ask.verb {
                // Peers' addresses are what the overlay network is made of.
                "get" | "list" | "watch" if ask.subresource.is_empty() => by_rules(),
                "create" if ask.subresource.is_empty() => by_rules(),
                _ if ask.name != node => NodeDecision::NoOpinion(format!(
                    "node {node:?} cannot modify node {:?}",
                    ask.name
                )),
                _ => by_rules(),
            },
            ("", "namespaces") => match ask.verb {
                "list" | "watch" if self.policies_exist() => NodeDecision::Allow,
                _ => no("can only list/watch namespaces while there are network policies"),
            },
            ("", "pods") => match ask.verb {
                "get" if ask.subresource.is_empty() => self.own_pod(node, ask),
                // Policies speak of pods everywhere; so their addresses must be known where they are enforced.
                "list" | "watch" if self.policies_exist() => NodeDecision::Allow,
                "list" | "watch" => own_pods(node, ask),
                _ => by_rules(),
            },
            _ => by_rules(),
        }
    }

    /// get, list and watch of one named object that a pod of the node refers to.
    fn read_referenced(
        &self,
        node: &str,
        ask: &Attributes<'_>,
        refers: impl Fn(&PodRefs, &str) -> bool,
    ) -> NodeDecision {
        if !matches!(ask.verb, "get" | "list" | "watch") || !ask.subresource.is_empty() {
            return no("can only read resources of this type");
        }
        if ask.name.is_empty() {
            return no("No Object name found");
        }
        self.related(node, ask, refers)
    }

    /// Whether a pod of the node, in the object's namespace, refers to it.
    fn related(
        &self,
        node: &str,
        ask: &Attributes<'_>,
        refers: impl Fn(&PodRefs, &str) -> bool,
    ) -> NodeDecision {
        let related = self.pods_of(node).iter().any(|pod| {
            *pod.meta.namespace == *ask.namespace
                && PodRefs::of(pod).is_some_and(|refs| refers(&refs, ask.name))
        });
        if related {
            NodeDecision::Allow
        } else {
            NodeDecision::NoOpinion(format!("{NO_RELATION} {node:?} and this object"))
        }
    }

    /// A volume whose claim a pod of the node uses, or whose data is on the node: that one is told when the data is gone (admission
    /// sees to it that it tells nothing else).
    fn volume(&self, node: &str, ask: &Attributes<'_>) -> NodeDecision {
        #[derive(Deserialize)]
        struct Volume {
            spec: VolumeSpec,
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct VolumeSpec {
            claim_ref: Option<ClaimRef>,
        }
        #[derive(Deserialize)]
        struct ClaimRef {
            namespace: Option<String>,
            name: Option<String>,
        }
        if !matches!(ask.verb, "get" | "list" | "watch" | "patch") || !ask.subresource.is_empty() {
            return no("can only read resources of this type");
        }
        if ask.name.is_empty() {
            let selected = FieldSelector::parse(ask.field_selector)
                .is_ok_and(|selector| selector.requires(HOME) == Some(node));
            return if selected && ask.verb != "patch" {
                NodeDecision::Allow
            } else {
                no("can only list/watch volumes with spec.nodeAffinity.hostname field selector")
            };
        }
        let table = self.cache.table("persistentvolumes");
        let volume = table.and_then(|table| {
            let volume = table.get("", ask.name)?;
            let here = volume.field(table.fields(), HOME) == Some(node);
            Some((volume, here))
        });
        let claim = match volume {
            Some((_, true)) => return NodeDecision::Allow,
            Some((object, false)) if ask.verb != "patch" => object.typed::<Volume>().ok(),
            _ => None,
        };
        let claim = claim.and_then(|volume| volume.spec.claim_ref);
        match claim {
            Some(ClaimRef {
                namespace: Some(namespace),
                name: Some(name),
            }) => {
                let ask = Attributes {
                    namespace: &namespace,
                    name: &name,
                    ..*ask
                };
                self.related(node, &ask, |refs, name| refs.claims(name))
            }
            _ => NodeDecision::NoOpinion(format!("{NO_RELATION} {node:?} and this object")),
        }
    }

    fn own_pod(&self, node: &str, ask: &Attributes<'_>) -> NodeDecision {
        let pods = self.cache.table("pods");
        let own = pods.as_ref().and_then(|pods| {
            let pod = pods.get(ask.namespace, ask.name)?;
            Some(pod.field(pods.fields(), "spec.nodeName") == Some(node))
        });
        match own {
            // An agent may learn that a pod it still runs is gone.
            None | Some(true) => NodeDecision::Allow,
            Some(false) => {
                NodeDecision::NoOpinion(format!("{NO_RELATION} {node:?} and this object"))
            }
        }
    }

    fn policies_exist(&self) -> bool {
        self.cache
            .table("networkpolicies.networking.k8s.io")
            .is_some_and(|policies| !policies.is_empty())
    }

    fn pods_of(&self, node: &str) -> Vec<Arc<Object>> {
        self.cache
            .table("pods")
            .map(|pods| pods.by_field("spec.nodeName", node))
            .unwrap_or_default()
    }
}

fn no(reason: &str) -> NodeDecision {
    NodeDecision::NoOpinion(reason.to_owned())
}

fn own_lease(node: &str, ask: &Attributes<'_>) -> NodeDecision {
    const NAMESPACE: &str = "kube-node-lease";
    if ask.namespace != NAMESPACE {
        return NodeDecision::NoOpinion(format!(
            "can only access leases in the {NAMESPACE:?} system namespace"
        ));
    }
    own_named(node, ask, &["get", "create", "update", "patch", "delete"])
}

/// The object that bears the node's name. A create may be unnamed: admission compares the body.
fn own_named(node: &str, ask: &Attributes<'_>, verbs: &[&str]) -> NodeDecision {
    if !verbs.contains(&ask.verb) {
        return NodeDecision::NoOpinion(format!("can only {} this object", verbs.join(", ")));
    }
    if ask.name == node || (ask.verb == "create" && ask.name.is_empty()) {
        NodeDecision::Allow
    } else {
        no("can only access an object with the same name as the requesting node")
    }
}

fn own_pods(node: &str, ask: &Attributes<'_>) -> NodeDecision {
    let selected = FieldSelector::parse(ask.field_selector)
        .is_ok_and(|selector| selector.requires("spec.nodeName") == Some(node));
    if selected {
        NodeDecision::Allow
    } else {
        NodeDecision::NoOpinion(
            "can only list/watch pods with spec.nodeName field selector".to_owned(),
        )
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use bytes::Bytes;
    use serde_json::json;

    use super::*;
    use crate::auth::{NODES, UserInfo};
    use crate::cache::TableSpec;
    use crate::resources::SelectableField;
    use crate::store::{Key, Record};

    fn authorizer() -> NodeAuthorizer {
        let cache = Cache::empty();
        cache.define(TableSpec {
            resource: "pods".to_owned(),
            fields: vec![SelectableField::new("spec.nodeName")],
            indexed: vec!["spec.nodeName".to_owned()],
            lazy: false,
            ..TableSpec::default()
        });
        let pod = json!({
            "metadata": {"name": "web", "namespace": "shop"},
            "spec": {
                "nodeName": "n1", "serviceAccountName": "seller",
                "imagePullSecrets": [{"name": "pull"}],
                "containers": [{"name": "c", "env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "env", "key": "k"}}}],
                                "envFrom": [{"configMapRef": {"name": "settings"}}]}],
                "volumes": [
                    {"name": "s", "secret": {"secretName": "files"}},
                    {"name": "p", "projected": {"sources": [{"configMap": {"name": "kube-root-ca.crt"}}, {"serviceAccountToken": {"path": "t"}}]}},
                    {"name": "d", "persistentVolumeClaim": {"claimName": "data"}},
                    {"name": "e", "ephemeral": {}}
                ]
            }
        });
        let record = Record {
            revision: 1,
            key: Key::new("pods", "shop", "web"),
            value: Some(Bytes::from(serde_json::to_vec(&pod).unwrap())),
        };
        cache.apply(&[record]);
        NodeAuthorizer::new(cache, Vec::new())
    }

    fn may(
        node: &str,
        verb: &str,
        path: &str,
        namespace: &str,
        name: &str,
        selector: &str,
    ) -> bool {
        let user = UserInfo::new(format!("system:node:{node}"), &[NODES]);
        let (path, group) = path.split_once('.').unwrap_or((path, ""));
        let (resource, subresource) = path.split_once('/').unwrap_or((path, ""));
        let ask = Attributes {
            namespace,
            name,
            subresource,
            field_selector: selector,
            ..Attributes::resource(&user, verb, group, resource)
        };
        authorizer().decide(node, &ask) == NodeDecision::Allow
    }

    #[test]
    fn a_node_reads_the_secrets_of_its_pods_and_no_others() {
        for name in ["pull", "env", "files"] {
            assert!(may("n1", "get", "secrets", "shop", name, ""), "{name}");
            assert!(!may("n2", "get", "secrets", "shop", name, ""), "{name}");
            assert!(!may("n1", "get", "secrets", "other", name, ""), "{name}");
        }
        assert!(!may("n1", "get", "secrets", "shop", "else", ""));
        assert!(!may("n1", "list", "secrets", "shop", "", ""));
        assert!(may("n1", "watch", "secrets", "shop", "files", ""));
        assert!(!may("n1", "update", "secrets", "shop", "files", ""));
    }

    #[test]
    fn a_node_reads_the_config_and_claims_of_its_pods() {
        assert!(may("n1", "get", "configmaps", "shop", "settings", ""));
        assert!(may(
            "n1",
            "get",
            "configmaps",
            "shop",
            "kube-root-ca.crt",
            ""
        ));
        assert!(!may("n2", "get", "configmaps", "shop", "settings", ""));
        assert!(may(
            "n1",
            "get",
            "persistentvolumeclaims",
            "shop",
            "data",
            ""
        ));
        assert!(may(
            "n1",
            "get",
            "persistentvolumeclaims",
            "shop",
            "web-e",
            ""
        ));
        assert!(!may(
            "n1",
            "get",
            "persistentvolumeclaims",
            "shop",
            "web-x",
            ""
        ));
    }

    #[test]
    fn a_node_follows_the_volumes_of_its_claims_and_those_that_it_has() {
        let authorizer = authorizer();
        authorizer.cache.define(TableSpec {
            resource: "persistentvolumes".to_owned(),
            fields: vec![SelectableField::at(HOME, "spec.home")],
            ..TableSpec::default()
        });
        let volume = |revision: u64, name: &str, claim: &str, home: &str| {
            let of = json!({"namespace": "shop", "name": claim});
            let volume =
                json!({"metadata": {"name": name}, "spec": {"claimRef": of, "home": home}});
            authorizer.cache.apply(&[Record {
                revision,
                key: Key::new("persistentvolumes", "", name),
                value: Some(Bytes::from(serde_json::to_vec(&volume).unwrap())),
            }]);
        };
        volume(2, "used", "data", "");
        volume(3, "kept", "gone", "n1");
        let may = |node: &str, verb: &str, name: &str, selector: &str| {
            let user = UserInfo::new(format!("system:node:{node}"), &[NODES]);
            let ask = Attributes {
                name,
                field_selector: selector,
                ..Attributes::resource(&user, verb, "", "persistentvolumes")
            };
            authorizer.decide(node, &ask) == NodeDecision::Allow
        };
        for (verb, used, kept) in [
            ("get", true, true),
            ("watch", true, true),
            ("patch", false, true),
            ("delete", false, false),
        ] {
            assert_eq!(may("n1", verb, "used", ""), used, "{verb}");
            assert_eq!(may("n1", verb, "kept", ""), kept, "{verb}");
            assert!(!may("n2", verb, "used", "") && !may("n2", verb, "kept", ""));
        }
        let own = format!("{HOME}=n1");
        assert!(may("n1", "list", "", &own) && may("n1", "watch", "", &own));
        assert!(
            !may("n2", "list", "", &own)
                && !may("n1", "list", "", "")
                && !may("n1", "patch", "", &own)
        );
    }

    #[test]
    fn a_node_mints_tokens_only_for_accounts_of_its_pods() {
        assert!(may(
            "n1",
            "create",
            "serviceaccounts/token",
            "shop",
            "seller",
            ""
        ));
        assert!(!may(
            "n1",
            "create",
            "serviceaccounts/token",
            "shop",
            "default",
            ""
        ));
        assert!(!may(
            "n2",
            "create",
            "serviceaccounts/token",
            "shop",
            "seller",
            ""
        ));
    }

    #[test]
    fn a_node_lists_only_its_own_pods() {
        assert!(may("n1", "watch", "pods", "", "", "spec.nodeName=n1"));
        assert!(!may("n1", "watch", "pods", "", "", "spec.nodeName=n2"));
        assert!(!may("n1", "list", "pods", "", "", ""));
        assert!(may("n1", "get", "pods", "shop", "web", ""));
        assert!(!may("n2", "get", "pods", "shop", "web", ""));
    }

    #[test]
    fn a_node_lists_all_pods_and_namespaces_only_while_there_are_network_policies() {
        assert!(!may("n1", "list", "namespaces", "", "", ""));
        let authorizer = authorizer();
        authorizer.cache.define(TableSpec {
            resource: "networkpolicies.networking.k8s.io".to_owned(),
            fields: vec![],
            indexed: vec![],
            lazy: false,
            ..TableSpec::default()
        });
        let user = UserInfo::new("system:node:n1".to_owned(), &[NODES]);
        let all = |verb, resource| {
            let ask = Attributes::resource(&user, verb, "", resource);
            authorizer.decide("n1", &ask) == NodeDecision::Allow
        };
        assert!(!all("list", "pods") && !all("watch", "namespaces"));
        let policy = json!({"metadata": {"name": "deny", "namespace": "shop"}});
        authorizer.cache.apply(&[Record {
            revision: 2,
            key: Key::new("networkpolicies.networking.k8s.io", "shop", "deny"),
            value: Some(Bytes::from(serde_json::to_vec(&policy).unwrap())),
        }]);
        assert!(all("list", "pods") && all("watch", "namespaces"));
        assert!(!all("delete", "namespaces") && !all("get", "namespaces"));
    }

    #[test]
    fn a_node_keeps_its_own_lease() {
        assert!(may(
            "n1",
            "update",
            "leases.coordination.k8s.io",
            "kube-node-lease",
            "n1",
            ""
        ));
        assert!(!may(
            "n1",
            "update",
            "leases.coordination.k8s.io",
            "kube-node-lease",
            "n2",
            ""
        ));
        assert!(!may(
            "n1",
            "get",
            "leases.coordination.k8s.io",
            "kube-system",
            "n1",
            ""
        ));
    }
}
