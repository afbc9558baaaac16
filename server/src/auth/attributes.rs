//! One question to the authorisers, and how a "no" is told.

use super::UserInfo;

/// May `user` do this? Either a resource request or, with an empty `resource`, a path.
#[derive(Clone, Copy, Debug)]
pub struct Attributes<'a> {
    pub user: &'a UserInfo,
    pub verb: &'a str,
    pub group: &'a str,
    pub version: &'a str,
    /// Empty for non-resource requests.
    pub resource: &'a str,
    pub subresource: &'a str,
    pub namespace: &'a str,
    pub name: &'a str,
    /// The request's field selector, as given.
    pub field_selector: &'a str,
    /// The path of a non-resource request.
    pub path: &'a str,
}

impl<'a> Attributes<'a> {
    /// A question about a resource. The optional parts are fields to be set with struct update.
    pub fn resource(user: &'a UserInfo, verb: &'a str, group: &'a str, resource: &'a str) -> Self {
        Attributes {
            user,
            verb,
            group,
            version: "",
            resource,
            subresource: "",
            namespace: "",
            name: "",
            field_selector: "",
            path: "",
        }
    }

    /// A question about a path such as `/metrics`; `verb` is the method in lower case.
    pub fn path(user: &'a UserInfo, verb: &'a str, path: &'a str) -> Self {
        Attributes {
            path,
            ..Attributes::resource(user, verb, "", "")
        }
    }

    /// Whether this is about a resource and not a path.
    pub fn is_resource(&self) -> bool {
        !self.resource.is_empty()
    }

    /// `User "x" cannot list resource "pods" in API group "" in the namespace "y"`, as upstream says it.
    pub fn refusal(&self) -> String {
        let (user, verb) = (&self.user.name, self.verb);
        if !self.is_resource() {
            return format!("User {user:?} cannot {verb} path {:?}", self.path);
        }
        let mut resource = self.resource.to_owned();
        if !self.subresource.is_empty() {
            resource.push('/');
            resource.push_str(self.subresource);
        }
        let scope = if self.namespace.is_empty() {
            "at the cluster scope".to_owned()
        } else {
            format!("in the namespace {:?}", self.namespace)
        };
        format!(
            "User {user:?} cannot {verb} resource {resource:?} in API group {:?} {scope}",
            self.group
        )
    }

    /// The whole message of the `Forbidden` status: `pods "a" is forbidden: User ...`.
    pub fn forbidden(&self, reason: &str) -> String {
        let mut refusal = self.refusal();
        if !reason.is_empty() {
            refusal.push_str(": ");
            refusal.push_str(reason);
        }
        let mut what = self.resource.to_owned();
        if !self.group.is_empty() {
            what.push('.');
            what.push_str(self.group);
        }
        match (self.is_resource(), self.name) {
            (false, _) => format!("forbidden: {refusal}"),
            (true, "") => format!("{what} is forbidden: {refusal}"),
            (true, name) => format!("{what} {name:?} is forbidden: {refusal}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_read_as_kubernetes_users_know_them() {
        let x = UserInfo::new("x", &[]);
        let pods = Attributes {
            namespace: "y",
            ..Attributes::resource(&x, "list", "", "pods")
        };
        assert_eq!(
            pods.forbidden(""),
            "pods is forbidden: User \"x\" cannot list resource \"pods\" in API group \"\" in the namespace \"y\""
        );
        let scale = Attributes {
            subresource: "scale",
            name: "web",
            ..Attributes::resource(&x, "patch", "apps", "deployments")
        };
        assert_eq!(
            scale.forbidden("why"),
            "deployments.apps \"web\" is forbidden: User \"x\" cannot patch resource \"deployments/scale\" in API group \"apps\" at the cluster scope: why"
        );
        assert_eq!(
            Attributes::path(&x, "get", "/metrics").forbidden(""),
            "forbidden: User \"x\" cannot get path \"/metrics\""
        );
    }
}
