//! What a request is about: method and path become verb, group, version, namespace, resource, name and subresource,
//! by the rules of `k8s.io/apiserver/pkg/endpoints/request/requestinfo.go`, on which RBAC rules written anywhere rely.

use http::Method;

use super::query::Query;

/// The parts of a request that authorisation and routing look at. Slices borrow from the request's path where they can.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestInfo {
    /// Whether the path names an API resource (`/api/v1/...`, `/apis/GROUP/VERSION/...`).
    pub is_resource: bool,
    /// The decoded path.
    pub path: String,
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`, `proxy`; for
    /// other paths the method in lower case.
    pub verb: &'static str,
    /// Empty for the core group.
    pub group: String,
    pub version: String,
    /// Empty for cluster-scoped requests and requests over all namespaces.
    pub namespace: String,
    /// The plural, lower-case resource.
    pub resource: String,
    pub subresource: String,
    pub name: String,
    /// What follows the subresource, e.g. the path behind `pods/x/proxy`; without a leading slash.
    pub rest: String,
    /// The name came from a field selector `metadata.name=...` and not from the path.
    pub name_from_selector: bool,
    /// The path used the old form `/api/v1/watch/...`.
    pub watch_path: bool,
}

impl RequestInfo {
    /// Reads a request line. `path` is the raw (percent-encoded) path.
    ///
    /// # Errors
    /// A path such as `/api/v1/watch` that says how but not what.
    pub fn parse(method: &Method, raw_path: &str, query: &Query) -> Result<RequestInfo, String> {
        let path = super::query::decode_path(raw_path);
        let mut info = RequestInfo {
            verb: lower_method(method),
            ..RequestInfo::default()
        };
        let trimmed = path.trim_matches('/');
        let mut parts: Vec<&str> = if trimmed.is_empty() {
            Vec::new()
        } else {
            trimmed.split('/').collect()
        };
        let grouped = match parts.first() {
            Some(&"api") => false,
            Some(&"apis") => true,
            _ => {
                info.path = path;
                return Ok(info);
            }
        };
        if parts.len() < if grouped { 4 } else { 3 } {
            info.path = path;
            return Ok(info);
        }
        parts.remove(0);
        if grouped {
            info.group = parts.remove(0).to_owned();
        }
        info.is_resource = true;
        info.version = parts.remove(0).to_owned();

        let mut prefix_verb = false;
        if matches!(parts.first(), Some(&"watch" | &"proxy")) {
            if parts.len() < 2 {
                return Err(format!(
                    "unable to determine kind and namespace from url, {raw_path}"
                ));
            }
            info.watch_path = parts[0] == "watch";
            info.verb = if info.watch_path { "watch" } else { "proxy" };
            prefix_verb = true;
            parts.remove(0);
        } else {
            info.verb = match *method {
                Method::POST => "create",
                Method::GET | Method::HEAD => "get",
                Method::PUT => "update",
                Method::PATCH => "patch",
                Method::DELETE => "delete",
                _ => "",
            };
        }

        if parts.first() == Some(&"namespaces") && parts.len() > 1 {
            info.namespace = parts[1].to_owned();
            if parts.len() > 2 && !matches!(parts[2], "status" | "finalize") {
                parts.drain(..2);
            }
        }

        if parts.len() >= 3 && info.verb != "proxy" {
            info.subresource = parts[2].to_owned();
            if parts.len() > 3 {
                info.rest = parts[3..].join("/");
                // A proxied path keeps its trailing slash: servers behind it may care.
                if path.ends_with('/') {
                    info.rest.push('/');
                }
            }
        }
        if let Some(name) = parts.get(1) {
            info.name = (*name).to_owned();
        }
        if let Some(resource) = parts.first() {
            info.resource = (*resource).to_owned();
        }

        if info.name.is_empty() && info.verb == "get" {
            info.verb = if query.flag("watch") { "watch" } else { "list" };
        }
        if info.name.is_empty()
            && matches!(info.verb, "list" | "watch")
            && !prefix_verb
            && let Some(name) = query.get("fieldSelector").and_then(exact_name)
        {
            info.name = name.to_owned();
            info.name_from_selector = true;
        }
        if info.name.is_empty() && info.verb == "delete" {
            info.verb = "deletecollection";
        }
        info.path = path;
        Ok(info)
    }

    /// `pods` or `pods/log`: how RBAC rules and messages name the resource.
    pub fn resource_path(&self) -> String {
        if self.subresource.is_empty() {
            self.resource.clone()
        } else {
            format!("{}/{}", self.resource, self.subresource)
        }
    }
}

fn lower_method(method: &Method) -> &'static str {
    match *method {
        Method::GET => "get",
        Method::HEAD => "head",
        Method::POST => "post",
        Method::PUT => "put",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        Method::OPTIONS => "options",
        Method::CONNECT => "connect",
        Method::TRACE => "trace",
        _ => "",
    }
}

/// The value that a field selector demands of `metadata.name`, if it is a possible name.
fn exact_name(selector: &str) -> Option<&str> {
    let value = selector.split(',').find_map(|term| {
        let (key, value) = term.split_once('=')?;
        let value = value.strip_prefix('=').unwrap_or(value);
        (key.trim() == "metadata.name").then_some(value.trim())
    })?;
    let unusable = value.is_empty() || value == "." || value == ".." || value.contains(['/', '%']);
    (!unusable).then_some(value)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn parse(method: Method, uri: &str) -> RequestInfo {
        let (path, query) = uri.split_once('?').unwrap_or((uri, ""));
        RequestInfo::parse(&method, path, &Query::parse(query)).unwrap()
    }

    /// (verb, group, version, namespace, resource, subresource, name)
    type Told<'a> = (
        &'a str,
        &'a str,
        &'a str,
        &'a str,
        &'a str,
        &'a str,
        &'a str,
    );

    fn told(i: &RequestInfo) -> Told<'_> {
        (
            i.verb,
            &i.group,
            &i.version,
            &i.namespace,
            &i.resource,
            &i.subresource,
            &i.name,
        )
    }

    #[test]
    fn resource_paths_read_as_upstream_reads_them() {
        let cases: &[(Method, &str, Told<'_>)] = &[
            (
                Method::GET,
                "/api/v1/namespaces",
                ("list", "", "v1", "", "namespaces", "", ""),
            ),
            (
                Method::GET,
                "/api/v1/namespaces/other",
                ("get", "", "v1", "other", "namespaces", "", "other"),
            ),
            (
                Method::GET,
                "/api/v1/namespaces/other/pods",
                ("list", "", "v1", "other", "pods", "", ""),
            ),
            (
                Method::GET,
                "/api/v1/namespaces/other/pods/foo",
                ("get", "", "v1", "other", "pods", "", "foo"),
            ),
            (
                Method::HEAD,
                "/api/v1/namespaces/other/pods/foo",
                ("get", "", "v1", "other", "pods", "", "foo"),
            ),
            (
                Method::GET,
                "/api/v1/pods",
                ("list", "", "v1", "", "pods", "", ""),
            ),
            (
                Method::HEAD,
                "/api/v1/pods",
                ("list", "", "v1", "", "pods", "", ""),
            ),
            (
                Method::GET,
                "/api/v1/pods?watch=true",
                ("watch", "", "v1", "", "pods", "", ""),
            ),
            (
                Method::GET,
                "/api/v1/pods?watch=false",
                ("list", "", "v1", "", "pods", "", ""),
            ),
            (
                Method::GET,
                "/api/v1/watch/namespaces/other/pods",
                ("watch", "", "v1", "other", "pods", "", ""),
            ),
            (
                Method::GET,
                "/api/v1/watch/namespaces/other/pods/x",
                ("watch", "", "v1", "other", "pods", "", "x"),
            ),
            (
                Method::GET,
                "/api/v1/watch/pods",
                ("watch", "", "v1", "", "pods", "", ""),
            ),
            (
                Method::GET,
                "/api/v1/namespaces/other/pods/foo/log",
                ("get", "", "v1", "other", "pods", "log", "foo"),
            ),
            (
                Method::PUT,
                "/api/v1/namespaces/other/finalize",
                (
                    "update",
                    "",
                    "v1",
                    "other",
                    "namespaces",
                    "finalize",
                    "other",
                ),
            ),
            (
                Method::PUT,
                "/api/v1/namespaces/other/status",
                ("update", "", "v1", "other", "namespaces", "status", "other"),
            ),
            (
                Method::DELETE,
                "/api/v1/namespaces/other/pods",
                ("deletecollection", "", "v1", "other", "pods", "", ""),
            ),
            (
                Method::DELETE,
                "/api/v1/nodes",
                ("deletecollection", "", "v1", "", "nodes", "", ""),
            ),
            (
                Method::POST,
                "/apis/apps/v1/namespaces/ns/deployments",
                ("create", "apps", "v1", "ns", "deployments", "", ""),
            ),
            (
                Method::PATCH,
                "/apis/apps/v1/namespaces/ns/deployments/d/scale",
                ("patch", "apps", "v1", "ns", "deployments", "scale", "d"),
            ),
            (
                Method::GET,
                "/api/v1/pods?fieldSelector=metadata.name%3Dfoo",
                ("list", "", "v1", "", "pods", "", "foo"),
            ),
            (
                Method::GET,
                "/api/v1/pods?fieldSelector=metadata.name!%3Dfoo",
                ("list", "", "v1", "", "pods", "", ""),
            ),
            (
                Method::GET,
                "/api/v1/pods?fieldSelector=a%3Db,metadata.name%3D%3Dfoo&watch=1",
                ("watch", "", "v1", "", "pods", "", "foo"),
            ),
            (
                Method::DELETE,
                "/api/v1/namespaces/ns/pods?fieldSelector=metadata.name%3Dfoo",
                ("deletecollection", "", "v1", "ns", "pods", "", ""),
            ),
        ];
        for (method, uri, want) in cases {
            let info = parse(method.clone(), uri);
            assert!(info.is_resource, "{uri}");
            assert_eq!(told(&info), *want, "{method} {uri}");
        }
    }

    #[test]
    fn other_paths_keep_their_method_as_verb() {
        for (method, uri, verb) in [
            (Method::GET, "/", "get"),
            (Method::GET, "/api", "get"),
            (Method::GET, "/api/v1", "get"),
            (Method::GET, "/apis/apps", "get"),
            (Method::GET, "/apis/apps/v1", "get"),
            (Method::HEAD, "/healthz", "head"),
            (Method::POST, "/metrics", "post"),
        ] {
            let info = parse(method, uri);
            assert!(!info.is_resource, "{uri}");
            assert_eq!(info.verb, verb, "{uri}");
        }
    }

    #[test]
    fn the_rest_of_a_proxied_path_is_kept_whole() {
        let info = parse(
            Method::GET,
            "/api/v1/namespaces/ns/services/http:web:80/proxy/a/b/",
        );
        assert_eq!(
            (info.name.as_str(), info.subresource.as_str()),
            ("http:web:80", "proxy")
        );
        assert_eq!(info.rest, "a/b/");
    }

    #[test]
    fn a_watch_of_nothing_is_refused() {
        assert!(RequestInfo::parse(&Method::GET, "/api/v1/watch", &Query::parse("")).is_err());
    }

    #[test]
    fn no_path_breaks_the_reader() {
        let words = [
            "api",
            "apis",
            "v1",
            "namespaces",
            "watch",
            "proxy",
            "",
            "%",
            "%2f",
            "pods",
            "é",
            "status",
            "+",
            ".",
        ];
        let mut random = 88_172_645_463_325_252u64;
        for _ in 0..20_000 {
            let mut path = String::new();
            for _ in 0..random % 9 {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                path.push('/');
                path.push_str(words[(random >> 40) as usize % words.len()]);
            }
            random = random.wrapping_add(0x9e37_79b9_7f4a_7c15);
            for method in [Method::GET, Method::POST, Method::DELETE, Method::OPTIONS] {
                let _ = RequestInfo::parse(&method, &path, &Query::parse(&path.replace('/', "&")));
            }
        }
    }
}
