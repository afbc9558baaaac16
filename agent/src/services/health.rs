//! What load balancers ask a box before they send it clients of a service with `externalTrafficPolicy: Local`: one port for each such service
//! (<https://kubernetes.io/docs/reference/networking/virtual-ips/#external-traffic-policy>), answered as kube-proxy does.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::Key;

/// A question and its answer take no longer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Askers at once on one port; more have to wait.
const ASKERS: usize = 16;

/// The answering ports. Dropping this closes them.
#[derive(Default)]
pub struct Checks(HashMap<Key, Check>);

struct Check {
    port: u16,
    /// Ready endpoints on this box.
    local: Arc<AtomicUsize>,
    _listener: JoinSet<()>,
}

impl Checks {
    /// Sets the port and the number of ready local endpoints of a service; `None`: it has no port.
    pub async fn set(&mut self, key: &str, wanted: Option<(u16, usize)>) {
        let Some((port, count)) = wanted else {
            self.0.remove(key);
            return;
        };
        if let Some(check) = self.0.get(key).filter(|check| check.port == port) {
            check.local.store(count, Ordering::Relaxed);
            return;
        }
        self.0.remove(key);
        match listen(port).await {
            Ok(listener) => {
                let local = Arc::new(AtomicUsize::new(count));
                let mut tasks = JoinSet::new();
                tasks.spawn(answer_all(listener, key.to_owned(), local.clone()));
                let check = Check {
                    port,
                    local,
                    _listener: tasks,
                };
                self.0.insert(key.to_owned(), check);
            }
            Err(error) => {
                tracing::error!(service = key, port, %error, "cannot answer the health checks of load balancers; is the port in use?");
            }
        }
    }

    /// Forgets the services that are not among these.
    pub fn retain(&mut self, keep: impl Fn(&str) -> bool) {
        self.0.retain(|key, _| keep(key));
    }
}

/// On all addresses of both families; boxes without IPv6 have one.
async fn listen(port: u16) -> std::io::Result<TcpListener> {
    match TcpListener::bind((IpAddr::from(Ipv6Addr::UNSPECIFIED), port)).await {
        Ok(listener) => Ok(listener),
        Err(_) => TcpListener::bind((IpAddr::from(Ipv4Addr::UNSPECIFIED), port)).await,
    }
}

async fn answer_all(listener: TcpListener, key: Key, local: Arc<AtomicUsize>) {
    let seats = Arc::new(Semaphore::new(ASKERS));
    let mut askers = JoinSet::new();
    loop {
        let Ok(seat) = seats.clone().acquire_owned().await else {
            return;
        };
        while askers.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((stream, _)) => {
                let (key, local) = (key.clone(), local.clone());
                askers.spawn(async move {
                    let _ = tokio::time::timeout(PATIENCE, answer(stream, &key, &local)).await;
                    drop(seat);
                });
            }
            // Too many open files, most likely: not at once again.
            Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
        }
    }
}

async fn answer(stream: TcpStream, key: &str, local: &AtomicUsize) -> hyper::Result<()> {
    let service =
        service_fn(|_| async { Ok::<_, Infallible>(response(key, local.load(Ordering::Relaxed))) });
    hyper::server::conn::http1::Builder::new()
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service)
        .await
}

fn response(key: &str, count: usize) -> Response<Full<Bytes>> {
    let (namespace, name) = amphipod_api::meta::split_key(key);
    let body = json!({
        "service": {"namespace": namespace, "name": name},
        "localEndpoints": count,
        "serviceProxyHealthy": true,
    });
    let mut response = Response::new(Full::from(body.to_string()));
    if count == 0 {
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    }
    let headers = response.headers_mut();
    let text = http::HeaderValue::from_static;
    headers.insert("content-type", text("application/json"));
    headers.insert("x-content-type-options", text("nosniff"));
    headers.insert("x-load-balancing-endpoint-weight", count.into());
    response
}
