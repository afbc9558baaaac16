//! Subresources that are streams: `pods/{log,exec,attach,portforward,proxy}`, `services/proxy`, `nodes/proxy`. The server
//! finds the node and checks the request; the agent answers, whatever it speaks (SPDY/3.1, WebSocket, plain HTTP).

mod dial;
mod links;
mod pipe;
mod proxy;

use amphipod_api::{FieldError, GroupKind, Reason, Status};
use http::header::{CONTENT_TYPE, HeaderValue};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use serde_json::Value;

use super::app::Call;
use super::query::Query;
use super::respond::Answer;
use super::watch::wants_upgrade;
use crate::resources::Connect;
pub use dial::{BoxStream, Direct, NodeDialer, Place, Stream};
use pipe::Onward;

/// Answers a streaming subresource.
///
/// # Errors
/// What is wrong with the request, the pod, or the way to the node.
pub async fn serve(
    call: &Call,
    what: Connect,
    mut extensions: http::Extensions,
    body: Incoming,
) -> Answer {
    let upgrade = wants_upgrade(&call.headers)
        .then(|| extensions.remove::<OnUpgrade>())
        .flatten();
    if what == Connect::Proxy {
        return proxy::serve(call, upgrade, body).await;
    }
    let pod = stored(call, "pods", &call.info.namespace, &call.info.name)?;
    let (namespace, name) = (&call.info.namespace, &call.info.name);
    let node = pod["spec"]["nodeName"].as_str().unwrap_or_default();
    let target = match what {
        Connect::Log => {
            let container = container(&pod, call.query.get("container").unwrap_or_default())?;
            let parameters = log_parameters(&call.query, name)?;
            if node.is_empty() {
                // Nothing has run yet: an empty log.
                return Ok(super::respond::with_body(
                    http::StatusCode::OK,
                    "text/plain",
                    "",
                ));
            }
            format!("/containerLogs/{namespace}/{name}/{container}{parameters}")
        }
        Connect::Exec | Connect::Attach => {
            let container = container(&pod, call.query.get("container").unwrap_or_default())?;
            let path = if what == Connect::Exec {
                "exec"
            } else {
                "attach"
            };
            format!(
                "/{path}/{namespace}/{name}/{container}{}",
                stream_parameters(&call.query)
            )
        }
        Connect::PortForward => {
            let mut parameters = Parameters::default();
            for port in call.query.all("ports").chain(call.query.all("port")) {
                parameters.add("port", port);
            }
            format!("/portForward/{namespace}/{name}{parameters}")
        }
        Connect::Proxy => String::new(),
    };
    if node.is_empty() {
        return Err(Status::bad_request(format!(
            "pod {name} does not have a host assigned"
        )));
    }
    if what != Connect::Log && upgrade.is_none() {
        return Err(Status::bad_request("Upgrade request required"));
    }
    let mut headers = call.headers.clone();
    if what == Connect::Log {
        // The log goes to the client as it is; compressing a followed log would delay its lines.
        headers.remove(http::header::ACCEPT_ENCODING);
    }
    let stream = call
        .app
        .dialer
        .dial(Place::NodeApi { node })
        .await
        .map_err(dial_error)?;
    let method = call.method.clone();
    let onward = Onward {
        method,
        target,
        host: node.to_owned(),
        headers,
        body: None,
        upgrade,
    };
    let answer = pipe::pass(stream, onward, call.stop()).await?;
    if what != Connect::Log {
        return Ok(answer);
    }
    let mut answer = pipe::check_refusal(answer, "pods/log", name).await?;
    answer
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    Ok(answer)
}

/// The way to the node is closed.
fn dial_error(why: String) -> Status {
    Status::failure(
        500,
        Reason::UNKNOWN,
        format!("error dialing backend: {why}"),
    )
}

/// A stored object that the request is about.
fn stored(call: &Call, resource: &str, namespace: &str, name: &str) -> Result<Value, Status> {
    let table = call.app.registry.cache().table(resource);
    let object = table.and_then(|table| table.get(namespace, name));
    object
        .map(|object| object.value())
        .ok_or_else(|| Status::not_found(&amphipod_api::GroupResource::new("", resource), name))
}

/// The container that is meant, which must be the pod's; a pod with one needs no choice.
fn container(pod: &Value, asked: &str) -> Result<String, Status> {
    let name = pod["metadata"]["name"].as_str().unwrap_or_default();
    let names = |field: &str| -> Vec<&str> {
        let containers = pod["spec"][field]
            .as_array()
            .map(Vec::as_slice)
            .unwrap_or_default();
        containers
            .iter()
            .filter_map(|c| c["name"].as_str())
            .collect()
    };
    let regular = names("containers");
    let all = [
        names("initContainers"),
        regular.clone(),
        names("ephemeralContainers"),
    ]
    .concat();
    if !asked.is_empty() {
        if all.contains(&asked) {
            return Ok(asked.to_owned());
        }
        return Err(Status::bad_request(format!(
            "container {asked} is not valid for pod {name}"
        )));
    }
    match regular.as_slice() {
        [only] => Ok((*only).to_owned()),
        [] => Err(Status::bad_request(format!(
            "a container name must be specified for pod {name}"
        ))),
        _ => Err(Status::bad_request(format!(
            "a container name must be specified for pod {name}, choose one of: [{}]",
            all.join(" ")
        ))),
    }
}

/// A query string being written.
#[derive(Debug, Default)]
struct Parameters(String);

impl Parameters {
    fn add(&mut self, name: &str, value: &str) {
        self.0.push(if self.0.is_empty() { '?' } else { '&' });
        self.0.push_str(name);
        self.0.push('=');
        for byte in value.bytes() {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                    self.0.push(byte as char)
                }
                _ => self.0.push_str(&format!("%{byte:02X}")),
            }
        }
    }
}

impl std::fmt::Display for Parameters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// Options of exec and attach as the node API names them.
fn stream_parameters(query: &Query) -> Parameters {
    let mut parameters = Parameters::default();
    for (ours, theirs) in [
        ("stdin", "input"),
        ("stdout", "output"),
        ("stderr", "error"),
        ("tty", "tty"),
    ] {
        if query.flag(ours) {
            parameters.add(theirs, "1");
        }
    }
    for word in query.all("command") {
        parameters.add("command", word);
    }
    parameters
}

/// Options of logs, checked as `PodLogOptions` are.
fn log_parameters(query: &Query, pod: &str) -> Result<Parameters, Status> {
    let mut errors = Vec::new();
    let mut parameters = Parameters::default();
    for flag in ["follow", "previous", "timestamps"] {
        if query.flag(flag) {
            parameters.add(flag, "true");
        }
    }
    let numbers = [
        ("tailLines", 0, "must be greater than or equal to 0"),
        ("limitBytes", 1, "must be greater than 0"),
        ("sinceSeconds", 1, "must be greater than 0"),
    ];
    for (name, least, why) in numbers {
        if let Some(number) = query.integer(name).map_err(Status::bad_request)? {
            if number < least {
                errors.push(FieldError::invalid(name, number, why));
            }
            parameters.add(name, &number.to_string());
        }
    }
    if let Some(time) = query.text("sinceTime") {
        if query.text("sinceSeconds").is_some() {
            let why = "at most one of `sinceTime` or `sinceSeconds` may be specified";
            errors.push(FieldError::forbidden("", why));
        }
        if time.parse::<jiff::Timestamp>().is_err() {
            return Err(Status::bad_request(format!(
                "parsing time {time:?} as \"2006-01-02T15:04:05Z07:00\": cannot parse {time:?} as \"2006\""
            )));
        }
        parameters.add("sinceTime", time);
    }
    if let Some(stream) = query.text("stream") {
        if !matches!(stream, "All" | "Stdout" | "Stderr") {
            errors.push(FieldError::not_supported(
                "stream",
                stream,
                &["All", "Stderr", "Stdout"],
            ));
        }
        parameters.add("stream", stream);
    }
    if errors.is_empty() {
        Ok(parameters)
    } else {
        Err(Status::invalid(
            &GroupKind::new("", "PodLogOptions"),
            pod,
            &errors,
        ))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    fn pod(containers: &[&str], init: &[&str]) -> Value {
        let named = |names: &[&str]| names.iter().map(|n| json!({"name": n})).collect::<Vec<_>>();
        json!({"metadata": {"name": "x"}, "spec": {"containers": named(containers), "initContainers": named(init)}})
    }

    #[test]
    fn a_pod_of_several_containers_needs_a_choice() {
        assert_eq!(container(&pod(&["a"], &["i"]), "").unwrap(), "a");
        assert_eq!(container(&pod(&["a", "b"], &["i"]), "i").unwrap(), "i");
        assert_eq!(
            container(&pod(&["a", "b"], &[]), "").unwrap_err().message,
            "a container name must be specified for pod x, choose one of: [a b]"
        );
        assert_eq!(
            container(&pod(&["a", "b"], &[]), "c").unwrap_err().message,
            "container c is not valid for pod x"
        );
    }

    #[test]
    fn exec_options_get_the_names_of_the_node_api() {
        let query = Query::parse(
            "stdin=true&stdout=true&tty=false&command=sh&command=-c&command=echo+%22a%26b%22",
        );
        assert_eq!(
            stream_parameters(&query).to_string(),
            "?input=1&output=1&command=sh&command=-c&command=echo%20%22a%26b%22"
        );
    }

    #[test]
    fn log_options_are_checked() {
        let read = |query: &str| log_parameters(&Query::parse(query), "x");
        assert_eq!(
            read("follow=true&tailLines=5&container=a")
                .unwrap()
                .to_string(),
            "?follow=true&tailLines=5"
        );
        assert_eq!(
            read("tailLines=-1").unwrap_err().message,
            "PodLogOptions \"x\" is invalid: tailLines: Invalid value: -1: must be greater than or equal to 0"
        );
        assert_eq!(
            read("sinceSeconds=1&sinceTime=2020-01-01T00:00:00Z")
                .unwrap_err()
                .code,
            422
        );
        assert_eq!(read("tailLines=x").unwrap_err().code, 400);
    }
}
