//! The chain of authorisers: `system:masters`, Node, RBAC; and who may hand out rights.

use std::sync::Arc;

use k8s_openapi::api::rbac::v1::PolicyRule;
use serde_json::Value;

use super::authn::Impersonation;
use super::rbac::{self, Rbac, rules};
use super::{Attributes, MASTERS, NODES, NodeAuthorizer, NodeDecision, UserInfo};
use crate::cache::Cache;
use crate::resources::Privileges;

/// Answers "may this user do that", with a reason either way.
pub struct Authorizer {
    rbac: Rbac,
    node: NodeAuthorizer,
}

impl Authorizer {
    /// `node_rules`: what every node may do (the role `system:node`).
    pub fn new(cache: Arc<Cache>, node_rules: Vec<PolicyRule>) -> Self {
        Authorizer {
            rbac: Rbac::new(cache.clone()),
            node: NodeAuthorizer::new(cache, node_rules),
        }
    }

    /// Whether it is allowed.
    ///
    /// # Errors
    /// Not allowed; the text is the reason to tell, often empty.
    pub fn authorize(&self, ask: &Attributes<'_>) -> Result<(), String> {
        if ask.user.in_group(MASTERS) {
            return Ok(());
        }
        let mut reason = String::new();
        if let Some(node) = ask.user.node_name() {
            match self.node.decide(node, ask) {
                NodeDecision::Allow => return Ok(()),
                NodeDecision::NoOpinion(why) => reason = why,
            }
        } else if ask.user.in_group(NODES) {
            reason = format!("unknown node for user {:?}", ask.user.name);
        }
        if self.rbac.index().allowed_by(ask).is_some() {
            return Ok(());
        }
        Err(reason)
    }

    /// As [`Authorizer::authorize`], with the reason also for a yes: what SubjectAccessReview tells.
    pub fn explain(&self, ask: &Attributes<'_>) -> (bool, String) {
        if ask.user.in_group(MASTERS) {
            return (true, String::new());
        }
        if let Some(node) = ask.user.node_name()
            && self.node.decide(node, ask) == NodeDecision::Allow
        {
            return (true, String::new());
        }
        let index = self.rbac.index();
        match index.allowed_by(ask) {
            Some(binding) => (true, rbac::reason(binding, ask.user)),
            None => (false, self.authorize(ask).err().unwrap_or_default()),
        }
    }

    /// All rules of a user in a namespace, for SelfSubjectRulesReview.
    pub fn rules_for(&self, user: &UserInfo, namespace: &str) -> Vec<PolicyRule> {
        self.rbac.index().rules_for(user, namespace)
    }

    /// The roles as they are now.
    pub fn rbac(&self) -> &Rbac {
        &self.rbac
    }

    /// Whether `user` may become whom the headers name: the verb `impersonate` on each part.
    ///
    /// # Errors
    /// The message of the `Forbidden` status.
    pub fn may_impersonate(&self, user: &UserInfo, wanted: &Impersonation) -> Result<(), String> {
        let check = |ask: Attributes<'_>| {
            self.authorize(&ask)
                .map_err(|reason| ask.forbidden(&reason))
        };
        let ask = |resource| Attributes::resource(user, "impersonate", "", resource);
        let as_account = wanted
            .user
            .strip_prefix("system:serviceaccount:")
            .and_then(|n| n.split_once(':'));
        match as_account {
            Some((namespace, name)) => check(Attributes {
                namespace,
                name,
                ..ask("serviceaccounts")
            })?,
            None => check(Attributes {
                name: &wanted.user,
                ..ask("users")
            })?,
        }
        for group in &wanted.groups {
            check(Attributes {
                name: group,
                ..ask("groups")
            })?;
        }
        const GROUP: &str = "authentication.k8s.io";
        if !wanted.uid.is_empty() {
            check(Attributes {
                name: &wanted.uid,
                group: GROUP,
                ..ask("uids")
            })?;
        }
        for (key, values) in &wanted.extra {
            for value in values {
                check(Attributes {
                    name: value,
                    subresource: key,
                    group: GROUP,
                    ..ask("userextras")
                })?;
            }
        }
        Ok(())
    }
}

impl Privileges for Authorizer {
    fn may(
        &self,
        user: &UserInfo,
        verb: &str,
        group: &str,
        plural: &str,
        namespace: &str,
        name: &str,
    ) -> bool {
        let ask = Attributes {
            namespace,
            name,
            ..Attributes::resource(user, verb, group, plural)
        };
        self.authorize(&ask).is_ok()
    }

    fn covers(&self, user: &UserInfo, namespace: &str, wanted: &[Value]) -> Result<(), String> {
        if user.in_group(MASTERS) {
            return Ok(());
        }
        let wanted: Vec<PolicyRule> = wanted
            .iter()
            .map(|rule| serde_json::from_value(rule.clone()))
            .collect::<Result<_, _>>()
            .map_err(|error| format!("reading the rules: {error}"))?;
        let missing = rules::uncovered(&self.rules_for(user, namespace), &wanted);
        if missing.is_empty() {
            return Ok(());
        }
        let mut missing: Vec<String> = rules::join_verbs(missing)
            .iter()
            .map(rules::compact)
            .collect();
        missing.sort();
        Err(missing.join("\n"))
    }
}
