//! The operations of a resource's paths, in a form both OpenAPI dialects are written from.

use crate::resources::{Descriptor, Subresource, SubresourceKind, Verb, Verbs};

use super::schemas::{body_name, list_name_of, name_of};

/// One method of one path.
pub struct Operation {
    pub method: &'static str,
    /// `x-kubernetes-action`
    pub action: &'static str,
    pub id: String,
    pub description: String,
    /// Query parameters by name, in [`PARAMETERS`].
    pub parameters: &'static [&'static str],
    /// Definition of the request's body.
    pub body: Option<String>,
    /// Definition of the answer.
    pub answer: Option<String>,
    /// `(group, version, kind)` that the operation is about.
    pub kind: (String, String, String),
}

/// A path with its operations.
pub struct Path {
    pub path: String,
    /// `namespace`, `name`
    pub variables: Vec<&'static str>,
    pub operations: Vec<Operation>,
}

/// `(name, type, description)` of all query parameters.
pub const PARAMETERS: &[(&str, &str, &str)] = &[
    (
        "allowWatchBookmarks",
        "boolean",
        "Ask for BOOKMARK events in a watch.",
    ),
    ("command", "string", "Command to run."),
    ("container", "string", "Container of the pod."),
    (
        "continue",
        "string",
        "Where a list goes on, from the answer before.",
    ),
    (
        "dryRun",
        "string",
        "`All`: do everything but store the result.",
    ),
    ("fieldManager", "string", "Who makes the change."),
    (
        "fieldSelector",
        "string",
        "Only objects whose fields match.",
    ),
    (
        "fieldValidation",
        "string",
        "What to do about unknown and duplicate fields: Ignore, Warn or Strict.",
    ),
    ("follow", "boolean", "Go on with new lines of the log."),
    (
        "force",
        "boolean",
        "Take over fields that others manage (server-side apply).",
    ),
    (
        "gracePeriodSeconds",
        "integer",
        "Seconds until the object is deleted.",
    ),
    (
        "labelSelector",
        "string",
        "Only objects whose labels match.",
    ),
    (
        "limit",
        "integer",
        "At most this many objects in an answer.",
    ),
    (
        "limitBytes",
        "integer",
        "At most this many bytes of the log.",
    ),
    (
        "orphanDependents",
        "boolean",
        "Old form of propagationPolicy.",
    ),
    ("path", "string", "Path to ask for behind the proxy."),
    ("ports", "integer", "Ports to forward."),
    ("pretty", "string", "`true`: indent the answer."),
    ("previous", "boolean", "The log of the run before this one."),
    (
        "propagationPolicy",
        "string",
        "What becomes of dependents: Orphan, Background or Foreground.",
    ),
    (
        "resourceVersion",
        "string",
        "Not older than, or exactly, this version.",
    ),
    (
        "resourceVersionMatch",
        "string",
        "How resourceVersion is meant: Exact or NotOlderThan.",
    ),
    (
        "sendInitialEvents",
        "boolean",
        "Begin a watch with the objects there are.",
    ),
    ("sinceSeconds", "integer", "Log lines of the last seconds."),
    ("stderr", "boolean", "Connect standard error."),
    ("stdin", "boolean", "Connect standard input."),
    ("stdout", "boolean", "Connect standard output."),
    ("tailLines", "integer", "The last lines of the log."),
    (
        "timeoutSeconds",
        "integer",
        "How long a list or watch may take.",
    ),
    ("timestamps", "boolean", "Begin each line with its time."),
    ("tty", "boolean", "Give the command a terminal."),
    ("watch", "boolean", "Stream changes instead of a list."),
];

const READ: &[&str] = &["pretty"];
const LIST: &[&str] = &[
    "allowWatchBookmarks",
    "continue",
    "fieldSelector",
    "labelSelector",
    "limit",
    "pretty",
    "resourceVersion",
    "resourceVersionMatch",
    "sendInitialEvents",
    "timeoutSeconds",
    "watch",
];
const WRITE: &[&str] = &["dryRun", "fieldManager", "fieldValidation", "pretty"];
const PATCH: &[&str] = &[
    "dryRun",
    "fieldManager",
    "fieldValidation",
    "force",
    "pretty",
];
const DELETE: &[&str] = &[
    "dryRun",
    "gracePeriodSeconds",
    "orphanDependents",
    "pretty",
    "propagationPolicy",
];
const DELETE_ALL: &[&str] = &[
    "continue",
    "dryRun",
    "fieldSelector",
    "gracePeriodSeconds",
    "labelSelector",
    "limit",
    "orphanDependents",
    "pretty",
    "propagationPolicy",
    "resourceVersion",
    "resourceVersionMatch",
];
const LOG: &[&str] = &[
    "container",
    "follow",
    "limitBytes",
    "pretty",
    "previous",
    "sinceSeconds",
    "tailLines",
    "timestamps",
];
const STREAM: &[&str] = &["command", "container", "stderr", "stdin", "stdout", "tty"];

/// All paths of a resource.
pub fn paths(d: &Descriptor) -> Vec<Path> {
    let base = if d.group.is_empty() {
        format!("/api/{}", d.version)
    } else {
        format!("/apis/{}/{}", d.group, d.version)
    };
    let plural = &d.plural;
    let (items, variables) = if d.namespaced() {
        (
            format!("{base}/namespaces/{{namespace}}/{plural}"),
            vec!["namespace"],
        )
    } else {
        (format!("{base}/{plural}"), Vec::new())
    };
    let mut out = Vec::new();
    if d.namespaced() && d.verbs.contains(Verb::List) {
        let all = Maker {
            d,
            suffix: "ForAllNamespaces",
            namespaced: false,
        };
        out.push(Path {
            path: format!("{base}/{plural}"),
            variables: Vec::new(),
            operations: vec![all.list()],
        });
    }
    let maker = Maker {
        d,
        suffix: "",
        namespaced: d.namespaced(),
    };
    let mut operations = Vec::new();
    if d.verbs.contains(Verb::List) {
        operations.push(maker.list());
    }
    if d.verbs.contains(Verb::Create) {
        operations.push(maker.write("post", "post", "create"));
    }
    if d.verbs.contains(Verb::DeleteCollection) {
        operations.push(maker.delete_all());
    }
    out.push(Path {
        path: items.clone(),
        variables: variables.clone(),
        operations,
    });
    let mut with_name = variables;
    with_name.push("name");
    let one = format!("{items}/{{name}}");
    let mut operations = Vec::new();
    if d.verbs.contains(Verb::Get) {
        operations.push(maker.read());
    }
    if d.verbs.contains(Verb::Update) {
        operations.push(maker.write("put", "put", "replace"));
    }
    if d.verbs.contains(Verb::Patch) {
        operations.push(maker.patch());
    }
    if d.verbs.contains(Verb::Delete) {
        operations.push(maker.delete());
    }
    if !operations.is_empty() {
        out.push(Path {
            path: one.clone(),
            variables: with_name.clone(),
            operations,
        });
    }
    for s in &d.subresources {
        let operations = maker.subresource(s);
        out.push(Path {
            path: format!("{one}/{}", s.name),
            variables: with_name.clone(),
            operations,
        });
    }
    out
}

struct Maker<'a> {
    d: &'a Descriptor,
    suffix: &'static str,
    namespaced: bool,
}

/// `rbac.authorization.k8s.io`, `v1` → `RbacAuthorizationV1`
fn camel(group: &str, version: &str) -> String {
    let upper = |s: &str| {
        let mut chars = s.chars();
        chars
            .next()
            .map_or_else(String::new, |c| c.to_uppercase().chain(chars).collect())
    };
    let group = if group.is_empty() {
        "core"
    } else {
        group.strip_suffix(".k8s.io").unwrap_or(group)
    };
    let mut out: String = group.split(['.', '-']).map(upper).collect();
    out.push_str(&upper(version));
    out
}

impl Maker<'_> {
    fn id(&self, verb: &str, kind: &str, tail: &str) -> String {
        let namespaced = if self.namespaced { "Namespaced" } else { "" };
        format!(
            "{verb}{}{namespaced}{kind}{tail}{}",
            camel(&self.d.group, &self.d.version),
            self.suffix
        )
    }

    fn make(
        &self,
        method: &'static str,
        action: &'static str,
        verb: &str,
        parameters: &'static [&'static str],
    ) -> Operation {
        let d = self.d;
        Operation {
            method,
            action,
            id: self.id(verb, &d.kind, ""),
            description: format!("{verb} the specified {}", d.kind),
            parameters,
            body: None,
            answer: Some(name_of(d)),
            kind: (
                d.group.to_string(),
                d.version.to_string(),
                d.kind.to_string(),
            ),
        }
    }

    fn list(&self) -> Operation {
        let d = self.d;
        Operation {
            description: format!("list or watch objects of kind {}", d.kind),
            answer: Some(list_name_of(d)),
            ..self.make("get", "list", "list", LIST)
        }
    }

    fn read(&self) -> Operation {
        self.make("get", "get", "read", READ)
    }

    fn write(&self, method: &'static str, action: &'static str, verb: &str) -> Operation {
        Operation {
            body: Some(name_of(self.d)),
            ..self.make(method, action, verb, WRITE)
        }
    }

    fn patch(&self) -> Operation {
        Operation {
            body: Some(super::schemas::PATCH.into()),
            ..self.make("patch", "patch", "patch", PATCH)
        }
    }

    fn delete(&self) -> Operation {
        Operation {
            body: Some(super::schemas::DELETE_OPTIONS.into()),
            answer: Some(super::schemas::STATUS.into()),
            ..self.make("delete", "delete", "delete", DELETE)
        }
    }

    fn delete_all(&self) -> Operation {
        let id = {
            let namespaced = if self.namespaced { "Namespaced" } else { "" };
            format!(
                "delete{}Collection{namespaced}{}",
                camel(&self.d.group, &self.d.version),
                self.d.kind
            )
        };
        Operation {
            id,
            description: format!("delete collection of {}", self.d.kind),
            body: Some(super::schemas::DELETE_OPTIONS.into()),
            answer: Some(super::schemas::STATUS.into()),
            ..self.make("delete", "deletecollection", "delete", DELETE_ALL)
        }
    }

    fn subresource(&self, s: &Subresource) -> Vec<Operation> {
        let d = self.d;
        let connect = matches!(s.what, SubresourceKind::Connect(_));
        let body = s
            .body
            .as_ref()
            .and_then(|(group, version, kind)| body_name(group, version, kind));
        let body = body.or_else(|| (!connect).then(|| name_of(d)));
        let kind = s
            .body
            .clone()
            .unwrap_or_else(|| (d.group.clone(), d.version.clone(), d.kind.clone()));
        let kind = (kind.0.to_string(), kind.1.to_string(), kind.2.to_string());
        let mut tail = String::new();
        for part in s.name.split('-') {
            let mut chars = part.chars();
            tail.extend(
                chars
                    .next()
                    .map(|c| c.to_ascii_uppercase())
                    .into_iter()
                    .chain(chars),
            );
        }
        let mut out = Vec::new();
        for (verb, method, action, name, parameters) in [
            (
                Verb::Get,
                "get",
                if connect { "connect" } else { "get" },
                "read",
                READ,
            ),
            (
                Verb::Create,
                "post",
                if connect { "connect" } else { "post" },
                "create",
                WRITE,
            ),
            (
                Verb::Update,
                "put",
                if connect { "connect" } else { "put" },
                "replace",
                WRITE,
            ),
            (
                Verb::Patch,
                "patch",
                if connect { "connect" } else { "patch" },
                "patch",
                PATCH,
            ),
            (Verb::Delete, "delete", "connect", "delete", READ),
        ] {
            if !Verbs::contains(s.verbs, verb) {
                continue;
            }
            let log = s.name == "log";
            let name = if connect && !log {
                format!("connect{}", camel_method(method))
            } else {
                name.to_owned()
            };
            out.push(Operation {
                method,
                action: if log { "get" } else { action },
                id: self.id(&name, &d.kind, &tail),
                description: format!("{name} {} of the specified {}", s.name, d.kind),
                parameters: match (connect, log) {
                    (_, true) => LOG,
                    (true, _) => STREAM,
                    _ => parameters,
                },
                body: match method {
                    "patch" if !connect => Some(super::schemas::PATCH.into()),
                    "post" | "put" => body.clone(),
                    _ => None,
                },
                answer: body.clone(),
                kind: kind.clone(),
            });
        }
        out
    }
}

fn camel_method(method: &str) -> &'static str {
    match method {
        "post" => "Post",
        "put" => "Put",
        "patch" => "Patch",
        "delete" => "Delete",
        _ => "Get",
    }
}
