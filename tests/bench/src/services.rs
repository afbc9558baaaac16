//! Figures of services, which end in the kernel.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use hyper::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::client::{Connection, Server};
use crate::inside::{Figures, Inside, namespace, percentile, until};
use crate::kernel::Elements;
use crate::pods::{over_connections, pod, pods_path, watch_pods};
use crate::procs::Program;

fn service_body(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
        "spec": {"selector": {"app": "bench"}, "ports": [{"port": 80, "targetPort": 8080}]},
    })
}

const SERVICES: &str = "/api/v1/namespaces/service/services";

/// From a service's POST to its first answer.
pub async fn service(inside: &Inside) -> Result<Figures> {
    let (server, _) = inside.ready().await?;
    let mut connection = server.connect().await?;
    namespace(&mut connection, "service").await?;
    let mut watch = watch_pods(&server, "service").await?;
    for name in ["web-0", "web-1"] {
        connection
            .json(
                Method::POST,
                &pods_path("service"),
                &pod(name, "amphipod.local/hello", &[]),
            )
            .await?;
    }
    let mut waiting = BTreeSet::from(["web-0".to_owned(), "web-1".to_owned()]);
    until(&mut watch, |_, pod| {
        let conditions = pod["status"]["conditions"].as_array();
        if conditions.is_some_and(|all| {
            all.iter()
                .any(|c| c["type"] == "Ready" && c["status"] == "True")
        }) {
            waiting.remove(pod["metadata"]["name"].as_str().unwrap_or_default());
        }
        waiting.is_empty()
    })
    .await?;
    let count = if inside.quick { 5 } else { 20 };
    let mut figures = Figures::new();
    let mut alone = answered(&mut connection, "alone", count).await?;
    figures.insert("service/p50".to_owned(), percentile(&mut alone, 0.5));
    let bodies: Vec<Value> = (0..if inside.quick { 100 } else { 1000 })
        .map(|index| service_body(&format!("many-{index}")))
        .collect();
    over_connections(&server, 8, bodies, |connection, body| {
        Box::pin(async move {
            connection
                .json(Method::POST, SERVICES, &body)
                .await
                .map(drop)
        })
    })
    .await?;
    // The thousand are in force when the last of them answers; then it is quiet again.
    answered(&mut connection, "after-many", 1).await?;
    tokio::time::sleep(Duration::from_secs(5)).await;
    let mut beside = answered(&mut connection, "beside", count).await?;
    figures.insert(
        "service/beside-1000-p50".to_owned(),
        percentile(&mut beside, 0.5),
    );
    Ok(figures)
}

/// Milliseconds until each of `count` new services answers; each is removed again.
async fn answered(connection: &mut Connection, prefix: &str, count: usize) -> Result<Vec<f64>> {
    let mut taken = Vec::new();
    for index in 0..count {
        let name = format!("{prefix}-{index}");
        let begun = Instant::now();
        let made = connection
            .json(Method::POST, SERVICES, &service_body(&name))
            .await?;
        let address = made["spec"]["clusterIP"]
            .as_str()
            .context("the service has no address")?
            .to_owned();
        first_answer(&address, begun)
            .await
            .with_context(|| format!("asking service {name}"))?;
        taken.push(begun.elapsed().as_secs_f64() * 1e3);
        connection
            .json(Method::DELETE, &format!("{SERVICES}/{name}"), &Value::Null)
            .await?;
    }
    Ok(taken)
}

/// Tries until a connection is answered. A try that came too early is lost (its SYN went out by the default route), so
/// each has 4 ms to be accepted, which is a hundred times what it takes on one machine.
async fn first_answer(address: &str, begun: Instant) -> Result<()> {
    let limit = Duration::from_secs(60);
    loop {
        ensure!(begun.elapsed() < limit, "no answer after {limit:?}");
        let connected =
            tokio::time::timeout(Duration::from_millis(4), TcpStream::connect((address, 80))).await;
        if let Ok(Ok(mut stream)) = connected {
            stream
                .write_all(b"GET / HTTP/1.0\r\nHost: x\r\n\r\n")
                .await?;
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).await?;
            ensure!(
                answer.starts_with(b"HTTP/1.") && Bytes::from(answer).len() > 12,
                "a strange answer"
            );
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

const ENDPOINTS: usize = 4;

/// What becomes of one change among ten services and among 5,000, of four endpoints each.
pub async fn change(inside: &Inside) -> Result<Figures> {
    let (server, program) = inside.ready().await?;
    namespace(&mut server.connect().await?, "change").await?;
    let mut kernel = Elements::watch()?;
    let rounds = if inside.quick { 50 } else { 200 };
    let mut figures = Figures::new();
    let many = if inside.quick { 500 } else { 5000 };
    let mut made = 0;
    for (count, name, fresh) in [(10, "10", ENDPOINTS), (many, "5000", ENDPOINTS + 2)] {
        let begun = Instant::now();
        create(&server, &mut kernel, made..count).await?;
        if made > 0 {
            let seconds = begun.elapsed().as_secs_f64();
            figures.insert("change/create".to_owned(), seconds);
        }
        made = count;
        tokio::time::sleep(Duration::from_secs(if inside.quick { 2 } else { 10 })).await;
        let connection = server.connect().await?;
        let mut changed = changes(connection, &program, &mut kernel, count, fresh, rounds).await?;
        figures.insert(format!("change/cpu-{name}"), changed.cpu);
        figures.insert(
            format!("change/p50-{name}"),
            percentile(&mut changed.taken, 0.5),
        );
        figures.insert(
            format!("change/p95-{name}"),
            percentile(&mut changed.taken, 0.95),
        );
    }
    Ok(figures)
}

/// Of a service's endpoint; nobody is there, and no service or pod has such an address.
fn endpoint_address(service: usize, endpoint: usize) -> Ipv4Addr {
    Ipv4Addr::from(0x0ac8_0000 + (service * 8 + endpoint) as u32)
}

/// A service without a selector has the endpoints that it is given.
fn slice_body(service: usize, endpoints: impl Iterator<Item = usize>) -> Value {
    let name = format!("s-{service}");
    let endpoints: Vec<Value> = endpoints
        .map(|endpoint| json!({"addresses": [endpoint_address(service, endpoint)], "conditions": {"ready": true}}))
        .collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": name, "labels": {"kubernetes.io/service-name": name}},
        "ports": [{"name": "", "port": 8080, "protocol": "TCP"}], "endpoints": endpoints,
    })
}

const CHANGED_SERVICES: &str = "/api/v1/namespaces/change/services";
const SLICES: &str = "/apis/discovery.k8s.io/v1/namespaces/change/endpointslices";

/// Creates services with their endpoints, and waits until the kernel has every endpoint.
async fn create(
    server: &Server,
    kernel: &mut Elements,
    services: std::ops::Range<usize>,
) -> Result<()> {
    let mut missing: BTreeSet<Ipv4Addr> = services
        .clone()
        .flat_map(|service| (0..ENDPOINTS).map(move |endpoint| endpoint_address(service, endpoint)))
        .collect();
    let posts = over_connections(server, 8, services.collect(), |connection, service| {
        Box::pin(async move {
            let name = format!("s-{service}");
            let body = json!({
                "apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
                "spec": {"ports": [{"port": 80, "targetPort": 8080}]},
            });
            connection
                .json(Method::POST, CHANGED_SERVICES, &body)
                .await?;
            let slice = slice_body(service, 0..ENDPOINTS);
            connection
                .json(Method::POST, SLICES, &slice)
                .await
                .map(drop)
        })
    });
    let there = async {
        let all = kernel.until(|address| {
            missing.remove(&address);
            missing.is_empty()
        });
        all.await
            .context("waiting for the kernel to have all endpoints")
    };
    tokio::try_join!(posts, there).map(drop)
}

struct Changed {
    /// From the request to the kernel's word, in milliseconds.
    taken: Vec<f64>,
    /// CPU of the program for one change, in milliseconds.
    cpu: f64,
}

/// Replaces an endpoint of one service after the other, by those numbered `fresh` and the next, which none has yet.
async fn changes(
    mut connection: Connection,
    program: &Program,
    kernel: &mut Elements,
    services: usize,
    fresh: usize,
    rounds: usize,
) -> Result<Changed> {
    let mut taken = Vec::with_capacity(rounds);
    let before = program.used()?;
    for round in 0..rounds {
        // Spread over all services; each time that a service's turn comes, its last endpoint is another.
        let service = round * 7 % services;
        let last = fresh + round / services % 2;
        let body = slice_body(service, (0..ENDPOINTS - 1).chain([last]));
        let path = format!("{SLICES}/s-{service}");
        let address = endpoint_address(service, last);
        let begun = Instant::now();
        let put = connection.json(Method::PUT, &path, &body);
        let there = async {
            let there = kernel.until(|told| told == address).await;
            there.with_context(|| format!("waiting for endpoint {address}"))
        };
        let (_, there) = tokio::try_join!(put, there)?;
        taken.push(there.duration_since(begun).as_secs_f64() * 1e3);
        tokio::time::sleep(Duration::from_millis(50).saturating_sub(begun.elapsed())).await;
    }
    let cpu = (program.used()?.main_cpu - before.main_cpu) * 1e3 / rounds as f64;
    Ok(Changed { taken, cpu })
}
