//! Names of kinds and resources, and the URL paths they are served at.

use std::fmt;
use std::str::FromStr;

use serde_json::Value;

/// A kind in a group and version. Group `""` is the core group.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct GroupVersionKind {
    pub group: String,
    pub version: String,
    pub kind: String,
}

/// A resource (lower-case plural) in a group and version.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct GroupVersionResource {
    pub group: String,
    pub version: String,
    pub resource: String,
}

/// A resource in a group, of any version. Displays as `deployments.apps`; core as `pods`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct GroupResource {
    pub group: String,
    pub resource: String,
}

/// A kind in a group, of any version. Displays as `Deployment.apps`; core as `Pod`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct GroupKind {
    pub group: String,
    pub kind: String,
}

/// Splits an `apiVersion` (`v1`, `apps/v1`) into group and version; `None` for more than one slash or no version.
pub fn split_api_version(api_version: &str) -> Option<(&str, &str)> {
    let (group, version) = match api_version.split_once('/') {
        None => ("", api_version),
        Some((group, version)) => (group, version),
    };
    (!version.is_empty() && !version.contains('/')).then_some((group, version))
}

/// Joins group and version into an `apiVersion`.
pub fn api_version(group: &str, version: &str) -> String {
    if group.is_empty() {
        version.to_string()
    } else {
        format!("{group}/{version}")
    }
}

impl GroupVersionKind {
    pub fn new(group: &str, version: &str, kind: &str) -> Self {
        GroupVersionKind {
            group: group.into(),
            version: version.into(),
            kind: kind.into(),
        }
    }

    /// Reads `apiVersion` and `kind` of an object; `None` if either is missing or malformed.
    pub fn of(object: &Value) -> Option<Self> {
        let (group, version) = split_api_version(object.get("apiVersion")?.as_str()?)?;
        let kind = object.get("kind")?.as_str()?;
        (!kind.is_empty()).then(|| GroupVersionKind::new(group, version, kind))
    }

    /// `v1` or `apps/v1`
    pub fn api_version(&self) -> String {
        api_version(&self.group, &self.version)
    }

    pub fn group_kind(&self) -> GroupKind {
        GroupKind {
            group: self.group.clone(),
            kind: self.kind.clone(),
        }
    }
}

/// As Go prints it: `apps/v1, Kind=Deployment`.
impl fmt::Display for GroupVersionKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}, Kind={}", self.group, self.version, self.kind)
    }
}

impl GroupVersionResource {
    pub fn new(group: &str, version: &str, resource: &str) -> Self {
        GroupVersionResource {
            group: group.into(),
            version: version.into(),
            resource: resource.into(),
        }
    }

    /// `v1` or `apps/v1`
    pub fn api_version(&self) -> String {
        api_version(&self.group, &self.version)
    }

    pub fn group_resource(&self) -> GroupResource {
        GroupResource {
            group: self.group.clone(),
            resource: self.resource.clone(),
        }
    }

    /// The URL path of a collection, an object or a subresource: `/api/v1/namespaces/NS/pods/NAME/log`,
    /// `/apis/apps/v1/deployments`. Parts are percent-encoded.
    pub fn path(
        &self,
        namespace: Option<&str>,
        name: Option<&str>,
        subresource: Option<&str>,
    ) -> String {
        let mut out = String::from(if self.group.is_empty() {
            "/api"
        } else {
            "/apis"
        });
        let mut push = |part: &str| {
            out.push('/');
            encode_segment(part, &mut out);
        };
        if !self.group.is_empty() {
            push(&self.group);
        }
        push(&self.version);
        if let Some(namespace) = namespace.filter(|n| !n.is_empty()) {
            push("namespaces");
            push(namespace);
        }
        push(&self.resource);
        if let Some(name) = name {
            push(name);
            // A subresource may itself have segments (`proxy/metrics`), which stay segments.
            for part in subresource.into_iter().flat_map(|s| s.split('/')) {
                push(part);
            }
        }
        out
    }
}

/// As Go prints it: `apps/v1, Resource=deployments`.
impl fmt::Display for GroupVersionResource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}/{}, Resource={}",
            self.group, self.version, self.resource
        )
    }
}

/// Percent-encodes one path segment (RFC 3986 unreserved characters and `:` stay as they are).
fn encode_segment(segment: &str, out: &mut String) {
    use fmt::Write as _;
    for byte in segment.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b':' => {
                out.push(byte as char)
            }
            _ => {
                let _ = write!(out, "%{byte:02X}");
            }
        }
    }
}

fn display_in_group(f: &mut fmt::Formatter<'_>, name: &str, group: &str) -> fmt::Result {
    f.write_str(name)?;
    if !group.is_empty() {
        write!(f, ".{group}")?;
    }
    Ok(())
}

fn split_group(s: &str) -> (&str, &str) {
    s.split_once('.').unwrap_or((s, ""))
}

impl GroupResource {
    pub fn new(group: &str, resource: &str) -> Self {
        GroupResource {
            group: group.into(),
            resource: resource.into(),
        }
    }
}

impl fmt::Display for GroupResource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        display_in_group(f, &self.resource, &self.group)
    }
}

impl FromStr for GroupResource {
    type Err = std::convert::Infallible;
    /// `deployments.apps`, `pods`
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let (resource, group) = split_group(s);
        Ok(GroupResource::new(group, resource))
    }
}

impl GroupKind {
    pub fn new(group: &str, kind: &str) -> Self {
        GroupKind {
            group: group.into(),
            kind: kind.into(),
        }
    }
}

impl fmt::Display for GroupKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        display_in_group(f, &self.kind, &self.group)
    }
}

impl FromStr for GroupKind {
    type Err = std::convert::Infallible;
    /// `Deployment.apps`, `Pod`
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let (kind, group) = split_group(s);
        Ok(GroupKind::new(group, kind))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn paths_are_those_of_the_api() {
        let pods = GroupVersionResource::new("", "v1", "pods");
        assert_eq!(pods.path(None, None, None), "/api/v1/pods");
        assert_eq!(
            pods.path(Some("d"), Some("x"), Some("log")),
            "/api/v1/namespaces/d/pods/x/log"
        );
        let deployments = GroupVersionResource::new("apps", "v1", "deployments");
        assert_eq!(
            deployments.path(Some("d"), None, None),
            "/apis/apps/v1/namespaces/d/deployments"
        );
        let roles = GroupVersionResource::new("rbac.authorization.k8s.io", "v1", "clusterroles");
        assert_eq!(
            roles.path(None, Some("system:node"), None),
            "/apis/rbac.authorization.k8s.io/v1/clusterroles/system:node"
        );
        assert_eq!(
            pods.path(Some("a/../b"), None, None),
            "/api/v1/namespaces/a%2F..%2Fb/pods"
        );
    }

    #[test]
    fn groups_parse_and_print() {
        let gr: GroupResource = "deployments.apps".parse().unwrap();
        assert_eq!(
            (gr.group.as_str(), gr.resource.as_str()),
            ("apps", "deployments")
        );
        assert_eq!(gr.to_string(), "deployments.apps");
        assert_eq!(GroupResource::new("", "pods").to_string(), "pods");
        assert_eq!(split_api_version("a/b/c"), None);
        assert_eq!(split_api_version("apps/v1"), Some(("apps", "v1")));
        assert_eq!(split_api_version(""), None);
    }
}
