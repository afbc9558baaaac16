//! The Node authorizer: an agent sees what its own pods need, and writes about itself.
//! <https://kubernetes.io/docs/reference/access-authn-authz/node/>
//!
//! What is allowed to every node alike stands in the role `system:node`; this file decides what depends on which
//! pods are bound to the asking node, read from the pods table by its index over `spec.nodeName`.

use std::sync::Arc;

use amphipod_api::FieldSelector;
use serde::Deserialize;

use super::Attributes;
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
                if ask.subresource == "status" || ask.verb == "get" {
                    self.related(node, ask, |refs, name| refs.claims(name))
                } else {
                    no("can only get and update the status of claims")
                }
            }
            ("", "persistentvolumes") => self.volume(node, ask),
            ("", "serviceaccounts") => match (ask.verb, ask.subresource) {
                ("create", "token") | ("get", "") => self.related(node, ask, |refs, name| {
                    refs.spec.service_account_name.as_deref() == Some(name)
                }),
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

    /// A volume whose claim a pod of the node uses.
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
        if ask.verb != "get" || !ask.subresource.is_empty() {
            return no("can only get individual resources of this type");
        }
        let claim = self
            .cache
            .table("persistentvolumes")
            .and_then(|table| table.get("", ask.name))
            .and_then(|object| object.typed::<Volume>().ok())
            .and_then(|volume| volume.spec.claim_ref);
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

/// The parts of a pod that name other objects.
#[derive(Debug, Default, Deserialize)]
struct PodRefs {
    #[serde(default)]
    spec: Spec,
    #[serde(default)]
    metadata: Metadata,
}

#[derive(Debug, Default, Deserialize)]
struct Metadata {
    #[serde(default)]
    name: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    service_account_name: Option<String>,
    image_pull_secrets: Vec<Named>,
    volumes: Vec<Volume>,
    containers: Vec<Container>,
    init_containers: Vec<Container>,
    ephemeral_containers: Vec<Container>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Named {
    name: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Volume {
    name: String,
    secret: Option<SecretVolume>,
    config_map: Option<Named>,
    projected: Option<Projected>,
    persistent_volume_claim: Option<Claim>,
    ephemeral: Option<serde::de::IgnoredAny>,
    csi: Option<Csi>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct SecretVolume {
    secret_name: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Claim {
    claim_name: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Csi {
    node_publish_secret_ref: Option<Named>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Projected {
    sources: Vec<Source>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Source {
    secret: Option<Named>,
    config_map: Option<Named>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Container {
    env: Vec<Env>,
    env_from: Vec<EnvFrom>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Env {
    value_from: Option<ValueFrom>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ValueFrom {
    secret_key_ref: Option<Named>,
    config_map_key_ref: Option<Named>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct EnvFrom {
    secret_ref: Option<Named>,
    config_map_ref: Option<Named>,
}

impl PodRefs {
    fn of(pod: &Object) -> Option<PodRefs> {
        pod.typed().ok()
    }

    fn all_containers(&self) -> impl Iterator<Item = &Container> {
        let spec = &self.spec;
        spec.containers
            .iter()
            .chain(&spec.init_containers)
            .chain(&spec.ephemeral_containers)
    }

    fn sources(&self) -> impl Iterator<Item = &Source> {
        self.spec
            .volumes
            .iter()
            .filter_map(|v| v.projected.as_ref())
            .flat_map(|p| &p.sources)
    }

    fn values(&self) -> impl Iterator<Item = &ValueFrom> {
        self.all_containers()
            .flat_map(|c| &c.env)
            .filter_map(|e| e.value_from.as_ref())
    }

    fn secrets(&self, name: &str) -> bool {
        let is = |named: &Option<Named>| named.as_ref().is_some_and(|n| n.name == name);
        self.spec.image_pull_secrets.iter().any(|n| n.name == name)
            || self.spec.volumes.iter().any(|v| {
                v.secret.as_ref().is_some_and(|s| s.secret_name == name)
                    || v.csi
                        .as_ref()
                        .is_some_and(|c| is(&c.node_publish_secret_ref))
            })
            || self.sources().any(|s| is(&s.secret))
            || self.values().any(|v| is(&v.secret_key_ref))
            || self
                .all_containers()
                .flat_map(|c| &c.env_from)
                .any(|e| is(&e.secret_ref))
    }

    fn config_maps(&self, name: &str) -> bool {
        let is = |named: &Option<Named>| named.as_ref().is_some_and(|n| n.name == name);
        self.spec.volumes.iter().any(|v| is(&v.config_map))
            || self.sources().any(|s| is(&s.config_map))
            || self.values().any(|v| is(&v.config_map_key_ref))
            || self
                .all_containers()
                .flat_map(|c| &c.env_from)
                .any(|e| is(&e.config_map_ref))
    }

    fn claims(&self, name: &str) -> bool {
        self.spec.volumes.iter().any(|v| {
            v.persistent_volume_claim
                .as_ref()
                .is_some_and(|c| c.claim_name == name)
                || (v.ephemeral.is_some() && format!("{}-{}", self.metadata.name, v.name) == name)
        })
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
