//! One function for each route.

use std::future::Future;

use amphipod_api::gvk::GroupResource;
use amphipod_api::status::Status;
use amphipod_runtime::{ContainerState, EventKind, ExecSpec, Runtime};
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt};
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use jiff::Timestamp;
use tokio::sync::watch;
use tokio_util::io::ReaderStream;

use super::port_forward::{self, Target};
use super::remote::{self, Remote};
use super::request::{Place, Query, Route};
use super::upgrade::{self, Switch};
use super::websocket::{self, Encoding};
use super::{Caller, logs, spdy, stats};
use crate::handle::{AgentHandle, ContainerView, PodView};

pub(super) type Answer = Response<UnsyncBoxBody<Bytes, std::io::Error>>;

/// Exec and attach: the versions that SPDY clients offer.
const SPDY_CHANNELS: &[&str] = &[
    "v4.channel.k8s.io",
    "v3.channel.k8s.io",
    "v2.channel.k8s.io",
    "channel.k8s.io",
];
/// The same for WebSocket clients; those that name none speak the first version.
const WEBSOCKET_CHANNELS: &[&str] = &[
    "v5.channel.k8s.io",
    "v4.channel.k8s.io",
    "v4.base64.channel.k8s.io",
    "channel.k8s.io",
    "base64.channel.k8s.io",
];
const SPDY_FORWARD: &[&str] = &["portforward.k8s.io"];
const WEBSOCKET_FORWARD: &[&str] = &[
    "SPDY/3.1+portforward.k8s.io",
    "v4.channel.k8s.io",
    "v4.base64.channel.k8s.io",
];
const WEBSOCKET_LOGS: &[&str] = &["binary.k8s.io", "base64.binary.k8s.io"];

/// Answers a request; every refusal is a `Status`.
pub(super) async fn answer(
    handle: &AgentHandle,
    caller: Caller,
    request: Request<Incoming>,
) -> Answer {
    route(handle, caller, request)
        .await
        .unwrap_or_else(|status| {
            let code = StatusCode::from_u16(status.http_code())
                .unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            let mut answer = json(status.to_json());
            *answer.status_mut() = code;
            answer
        })
}

pub(super) fn empty() -> UnsyncBoxBody<Bytes, std::io::Error> {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

fn body(content_type: &'static str, bytes: Vec<u8>) -> Answer {
    let mut answer = Response::new(
        Full::new(Bytes::from(bytes))
            .map_err(|never| match never {})
            .boxed_unsync(),
    );
    answer
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer
}

fn json(bytes: Vec<u8>) -> Answer {
    body("application/json", bytes)
}

async fn route(
    handle: &AgentHandle,
    caller: Caller,
    request: Request<Incoming>,
) -> Result<Answer, Status> {
    let route = Route::of(request.uri().path()).ok_or_else(Status::no_such_resource)?;
    match caller {
        _ if route == Route::Healthz => {}
        Caller::Allowed => {}
        Caller::Nobody => return Err(Status::unauthorized()),
        Caller::Stranger => {
            let nodes = GroupResource::new("", "nodes");
            return Err(Status::forbidden(
                &nodes,
                "",
                "this certificate gives no right to the node API",
            ));
        }
    }
    let query = Query::of(request.uri().query());
    match route {
        Route::Healthz => Ok(body("text/plain; charset=utf-8", b"ok".to_vec())),
        Route::Pods => {
            let pods: Vec<_> = handle
                .pods()
                .into_iter()
                .map(|view| serde_json::json!(*view.pod))
                .collect();
            let list = serde_json::json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": pods});
            Ok(json(list.to_string().into_bytes()))
        }
        Route::StatsSummary => Ok(json(stats::summary(handle).await.to_string().into_bytes())),
        Route::ResourceMetrics => Ok(body(
            "text/plain; version=0.0.4; charset=utf-8",
            stats::resource_metrics(handle).await.into_bytes(),
        )),
        Route::Logs(place) => send_log(handle, &place, &query, request),
        Route::Exec(place) => exec(handle, &place, &query, request),
        Route::Attach(place) => attach(handle, &place, &query, request),
        Route::PortForward(place) => forward(handle, &place, &query, request),
    }
}

fn find_pod(handle: &AgentHandle, place: &Place) -> Result<PodView, Status> {
    handle
        .pod(&place.namespace, &place.pod)
        .filter(|pod| place.uid.as_ref().is_none_or(|uid| *uid == pod.uid))
        .ok_or_else(|| {
            Status::not_found(
                &GroupResource::new("", "pods"),
                &format!("{}/{}", place.namespace, place.pod),
            )
        })
}

fn find_container(handle: &AgentHandle, place: &Place) -> Result<ContainerView, Status> {
    let pod = find_pod(handle, place)?;
    pod.containers
        .into_iter()
        .find(|container| container.name == place.container)
        .ok_or_else(|| {
            Status::bad_request(format!(
                "container {} is not valid for pod {}",
                place.container, place.pod
            ))
        })
}

/// The runtime id of a container that runs.
fn running(handle: &AgentHandle, place: &Place) -> Result<String, Status> {
    let container = find_container(handle, place)?;
    container.id.filter(|_| container.running).ok_or_else(|| {
        Status::bad_request(format!(
            "container {:?} in pod {:?} is not running",
            place.container, place.pod
        ))
    })
}

/// How messages are encoded in a sub-protocol, and whether its error channel carries a `Status`.
fn channel_encoding(protocol: &str) -> (Encoding, bool) {
    let encoding = if protocol.contains("base64") {
        Encoding::Base64
    } else {
        Encoding::Binary
    };
    (
        encoding,
        protocol.starts_with("v4.") || protocol.starts_with("v5."),
    )
}

/// Switches protocols, and gives the client's streams to `then` once they are open.
fn remote_session<F>(
    request: Request<Incoming>,
    query: &Query,
    then: impl FnOnce(Remote) -> F + Send + 'static,
) -> Result<Answer, Status>
where
    F: Future<Output = ()> + Send + 'static,
{
    let wanted = query.wanted();
    if !(wanted.stdin || wanted.stdout || wanted.stderr) {
        return Err(Status::bad_request(
            "you must specify at least 1 of stdin, stdout, stderr",
        ));
    }
    let to = upgrade::choose(request.headers(), SPDY_CHANNELS, WEBSOCKET_CHANNELS)?;
    Ok(upgrade::switch(
        request,
        &to.clone(),
        move |connection| async move {
            let remote = match to {
                Switch::Spdy(protocol) => {
                    let version = protocol
                        .strip_prefix('v')
                        .and_then(|rest| rest.split('.').next()?.parse().ok())
                        .unwrap_or(1);
                    Remote::over_spdy(spdy::accept(connection), wanted, version).await
                }
                Switch::WebSocket(protocol) => {
                    let (encoding, structured) = channel_encoding(protocol);
                    let channels = websocket::channels(connection, encoding, &[0, 4]).await;
                    Ok(Remote::over_websocket(channels, wanted, structured))
                }
            };
            // A client that does not open its streams has left, or is none of ours.
            if let Ok(remote) = remote {
                then(remote).await;
            }
        },
    ))
}

fn exec(
    handle: &AgentHandle,
    place: &Place,
    query: &Query,
    request: Request<Incoming>,
) -> Result<Answer, Status> {
    let container = running(handle, place)?;
    let args = query.all("command");
    if args.is_empty() {
        return Err(Status::bad_request("you must specify a command"));
    }
    let wanted = query.wanted();
    let spec = ExecSpec {
        args,
        tty: wanted.tty,
        stdin: wanted.stdin,
        ..Default::default()
    };
    let runtime = handle.runtime();
    remote_session(request, query, move |remote| async move {
        remote::exec(&runtime, &container, &spec, remote).await
    })
}

fn attach(
    handle: &AgentHandle,
    place: &Place,
    query: &Query,
    request: Request<Incoming>,
) -> Result<Answer, Status> {
    let container = running(handle, place)?;
    let runtime = handle.runtime();
    remote_session(request, query, move |remote| async move {
        remote::attach(&runtime, &container, remote).await
    })
}

fn forward(
    handle: &AgentHandle,
    place: &Place,
    query: &Query,
    request: Request<Incoming>,
) -> Result<Answer, Status> {
    let pod = find_pod(handle, place)?;
    let target = Target {
        netns: pod.netns,
        pod: format!("{}/{}", place.namespace, place.pod),
    };
    let ports = query.ports()?;
    let to = upgrade::choose(request.headers(), SPDY_FORWARD, WEBSOCKET_FORWARD)?;
    Ok(upgrade::switch(
        request,
        &to.clone(),
        move |connection| async move {
            match to {
                Switch::Spdy(_) => port_forward::over_spdy(spdy::accept(connection), target).await,
                Switch::WebSocket(protocol) if protocol.starts_with("SPDY/3.1+") => {
                    let tunnel = websocket::tunnel(connection).await;
                    port_forward::over_spdy(spdy::accept(tunnel), target).await;
                }
                Switch::WebSocket(protocol) => {
                    let inputs: Vec<u8> = (0..ports.len() as u8)
                        .map(|index| index.saturating_mul(2))
                        .collect();
                    let (encoding, _) = channel_encoding(protocol);
                    let channels = websocket::channels(connection, encoding, &inputs).await;
                    port_forward::over_websocket(channels, ports, target).await;
                }
            }
        },
    ))
}

fn send_log(
    handle: &AgentHandle,
    place: &Place,
    query: &Query,
    request: Request<Incoming>,
) -> Result<Answer, Status> {
    let options = query.log_options(Timestamp::now())?;
    let container = find_container(handle, place)?;
    let (name, pod) = (&place.container, &place.pod);
    let (path, id) = if options.previous {
        let path = container.previous_log_path;
        let missing = || {
            Status::bad_request(format!(
                "previous terminated container {name:?} in pod {pod:?} not found"
            ))
        };
        (path.ok_or_else(missing)?, None)
    } else {
        let waiting = container
            .waiting_reason
            .as_deref()
            .unwrap_or("ContainerCreating");
        let missing = || {
            Status::bad_request(format!(
                "container {name:?} in pod {pod:?} is waiting to start: {waiting}"
            ))
        };
        (
            container.log_path.ok_or_else(missing)?,
            container.id.filter(|_| container.running),
        )
    };
    let running = until_exit(&handle.runtime(), id);
    if request.headers().contains_key(header::UPGRADE) {
        let to = upgrade::choose(request.headers(), &[], WEBSOCKET_LOGS).or_else(|error| {
            let plain = !request
                .headers()
                .contains_key(header::SEC_WEBSOCKET_PROTOCOL);
            if plain {
                Ok(Switch::WebSocket(""))
            } else {
                Err(error)
            }
        })?;
        let Switch::WebSocket(protocol) = to else {
            return Err(Status::bad_request("logs are sent over WebSocket only"));
        };
        return Ok(upgrade::switch(
            request,
            &to,
            move |connection| async move {
                let (mut writer, reader) = tokio::io::duplex(64 * 1024);
                let sending = async move {
                    let _ = logs::send(&path, &options, running, &mut writer).await;
                };
                let copying = websocket::copy_out(connection, channel_encoding(protocol).0, reader);
                tokio::select! {
                    _ = copying => {}
                    // The writer is dropped with `sending`, and the copy ends after what is in the pipe.
                    () = async { sending.await; std::future::pending::<()>().await } => {}
                }
            },
        ));
    }
    let (mut writer, reader) = tokio::io::duplex(64 * 1024);
    let sending = async move { logs::send(&path, &options, running, &mut writer).await };
    let stream = ReaderStream::with_capacity(reader, 32 * 1024).map_ok(Frame::data);
    // The log is read as the client takes it; when it leaves, both are dropped.
    let failed = futures_util::stream::once(sending)
        .filter_map(|sent| std::future::ready(sent.err().map(Err)));
    let body = StreamBody::new(futures_util::stream::select(stream, failed));
    let mut answer = Response::new(body.boxed_unsync());
    answer.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    Ok(answer)
}

/// True until the container `id` exits; false at once without an id.
fn until_exit(runtime: &Runtime, id: Option<String>) -> watch::Receiver<bool> {
    let (sender, receiver) = watch::channel(id.is_some());
    let Some(id) = id else { return receiver };
    // Subscribing before looking: an end in between is then seen.
    let (mut events, runtime) = (runtime.events(), runtime.clone());
    tokio::spawn(async move {
        loop {
            let state = runtime.container(&id).await.map(|status| status.state);
            if !matches!(
                state,
                Ok(ContainerState::Running { .. } | ContainerState::Created)
            ) {
                break;
            }
            let ended = async {
                while let Ok(event) = events.recv().await {
                    let of_this = event.id == id && matches!(event.kind, EventKind::Exited(_));
                    if of_this || event.kind == EventKind::Resync {
                        break;
                    }
                }
            };
            tokio::select! {
                () = sender.closed() => return,
                // Looked at again, also after events were missed.
                () = ended => {}
            }
        }
        // The keeper has written the last lines when it tells of the exit.
        sender.send_replace(false);
    });
    receiver
}
