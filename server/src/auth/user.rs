//! Who is asking: the identity that authentication hands to authorisation, admission and the registry.

use std::collections::BTreeMap;

/// An authenticated caller, as `authentication.k8s.io/v1` `UserInfo` describes one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UserInfo {
    /// `system:admin`, `system:node:box-1`, `system:serviceaccount:NAMESPACE:NAME`, ...
    pub name: String,
    /// The ServiceAccount's uid for tokens; empty for certificates.
    pub uid: String,
    /// Groups, including `system:authenticated` or `system:unauthenticated`.
    pub groups: Vec<String>,
    /// What else the authenticator knows, e.g. `authentication.kubernetes.io/pod-name`.
    pub extra: BTreeMap<String, Vec<String>>,
}

/// Every caller with a credential is in this group.
pub const AUTHENTICATED: &str = "system:authenticated";
/// Every caller without one is in this group.
pub const UNAUTHENTICATED: &str = "system:unauthenticated";
/// Members may do everything; checked before any role.
pub const MASTERS: &str = "system:masters";
/// The group of all node agents.
pub const NODES: &str = "system:nodes";
/// The group of all boxes that show a join token.
pub const BOOTSTRAPPERS: &str = "system:bootstrappers";
/// The name of a caller without credentials.
pub const ANONYMOUS: &str = "system:anonymous";

impl UserInfo {
    /// A user with a name and groups; `system:authenticated` is added.
    pub fn new(name: impl Into<String>, groups: &[&str]) -> Self {
        let mut groups: Vec<String> = groups.iter().map(|g| (*g).to_owned()).collect();
        if !groups.iter().any(|g| g == AUTHENTICATED) {
            groups.push(AUTHENTICATED.to_owned());
        }
        UserInfo {
            name: name.into(),
            groups,
            ..UserInfo::default()
        }
    }

    /// The caller without credentials.
    pub fn anonymous() -> Self {
        UserInfo {
            name: ANONYMOUS.to_owned(),
            groups: vec![UNAUTHENTICATED.to_owned()],
            ..UserInfo::default()
        }
    }

    /// A service account, with the groups upstream gives one. Controllers use this for their own identity.
    pub fn service_account(namespace: &str, name: &str) -> Self {
        UserInfo::new(
            format!("system:serviceaccount:{namespace}:{name}"),
            &[
                "system:serviceaccounts",
                &format!("system:serviceaccounts:{namespace}"),
            ],
        )
    }

    /// The server itself: no authorisation rule stops it.
    pub fn apiserver() -> Self {
        UserInfo::new("system:apiserver", &[MASTERS])
    }

    /// Whether the caller is in `group`.
    pub fn in_group(&self, group: &str) -> bool {
        self.groups.iter().any(|g| g == group)
    }

    /// The node's name, if this caller is a node agent.
    pub fn node_name(&self) -> Option<&str> {
        let name = self.name.strip_prefix("system:node:")?;
        (!name.is_empty() && self.in_group(NODES)).then_some(name)
    }

    /// `(namespace, name)`, if this caller is a service account.
    pub fn service_account_name(&self) -> Option<(&str, &str)> {
        self.name
            .strip_prefix("system:serviceaccount:")?
            .split_once(':')
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_identity_needs_both_the_name_and_the_group() {
        assert_eq!(
            UserInfo::new("system:node:a", &[NODES]).node_name(),
            Some("a")
        );
        assert_eq!(UserInfo::new("system:node:a", &[]).node_name(), None);
        assert_eq!(UserInfo::new("system:node:", &[NODES]).node_name(), None);
    }

    #[test]
    fn service_accounts_carry_their_namespace_group() {
        let user = UserInfo::service_account("kube-system", "job-controller");
        assert!(user.in_group("system:serviceaccounts:kube-system"));
        assert!(user.in_group(AUTHENTICATED));
        assert_eq!(
            user.service_account_name(),
            Some(("kube-system", "job-controller"))
        );
    }
}
