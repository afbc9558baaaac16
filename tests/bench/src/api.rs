//! Figures of the API alone: no pod runs.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::Method;
use serde_json::{Value, json};
use tokio::sync::Barrier;
use tokio::task::JoinSet;

use crate::client::{Connection, Server};
use crate::floor;
use crate::inside::{Figures, Inside, namespace, percentile};
use crate::procs::Program;

const CONFIG_MAPS: &str = "/api/v1/namespaces/load/configmaps";

fn config_map(name: &str, bytes: usize) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"text": "x".repeat(bytes)}})
}

/// What a burst of requests came to.
struct Burst {
    per_second: f64,
    /// CPU of the server for one request, in milliseconds.
    cpu: f64,
}

/// Sends `total` requests over `connections` connections as fast as answers come, at most for ten seconds.
async fn hammer(
    server: &Server,
    program: &Program,
    connections: usize,
    total: usize,
    request: impl Fn(usize) -> (Method, String, Bytes) + Send + Sync + 'static,
) -> Result<Burst> {
    let (request, next) = (Arc::new(request), Arc::new(AtomicUsize::new(0)));
    // Handshakes are over before the clock starts.
    let gate = Arc::new(Barrier::new(connections + 1));
    let mut tasks = JoinSet::new();
    for _ in 0..connections {
        let mut connection = server.connect().await?;
        let (request, next, gate) = (Arc::clone(&request), Arc::clone(&next), Arc::clone(&gate));
        tasks.spawn(async move {
            gate.wait().await;
            let limit = Instant::now() + Duration::from_secs(10);
            let mut done = 0;
            while Instant::now() < limit {
                let index = next.fetch_add(1, Ordering::Relaxed);
                if index >= total {
                    break;
                }
                let (method, path, body) = request(index);
                let (status, answer) = connection.ask(method, &path, body).await?;
                ensure!(
                    status.is_success(),
                    "{path}: {status}: {}",
                    String::from_utf8_lossy(&answer)
                );
                done += 1;
            }
            Ok::<usize, anyhow::Error>(done)
        });
    }
    let before = program.used()?;
    gate.wait().await;
    let begun = Instant::now();
    let mut done = 0;
    while let Some(one) = tasks.join_next().await {
        done += one??;
    }
    let seconds = begun.elapsed().as_secs_f64();
    let cpu = (program.used()?.main_cpu - before.main_cpu) * 1e3 / done as f64;
    Ok(Burst {
        per_second: done as f64 / seconds,
        cpu,
    })
}

/// Creates over 1, 16 and 64 connections.
pub async fn creates(inside: &Inside) -> Result<Figures> {
    let (server, program) = inside.ready().await?;
    namespace(&mut server.connect().await?, "load").await?;
    let mut figures = Figures::new();
    for (connections, total) in [(1, 4000), (16, 12_000), (64, 16_000)] {
        let total = if inside.quick { total / 8 } else { total };
        let burst = hammer(&server, &program, connections, total, move |index| {
            let body = config_map(&format!("c{connections}-{index}"), 1024).to_string();
            (Method::POST, CONFIG_MAPS.to_owned(), body.into())
        });
        let burst = burst.await?;
        figures.insert(format!("creates/rate-{connections}"), burst.per_second);
        figures.insert(format!("creates/cpu-{connections}"), burst.cpu);
    }
    figures.insert("creates/fsync-p50".to_owned(), fsync_p50(inside)?);
    figures.insert("creates/floor-cpu-1".to_owned(), floor::create(inside)?);
    Ok(figures)
}

/// Milliseconds for 4 KiB to be on the disk.
fn fsync_p50(inside: &Inside) -> Result<f64> {
    use std::io::Write;
    let path = inside.disk.join("fsync");
    let mut file = std::fs::File::create(&path)?;
    let mut taken = Vec::new();
    for _ in 0..200 {
        let begun = Instant::now();
        file.write_all(&[7; 4096])?;
        file.sync_data()?;
        taken.push(begun.elapsed().as_secs_f64() * 1e3);
    }
    std::fs::remove_file(path)?;
    Ok(percentile(&mut taken, 0.5))
}

/// GETs over 1 and 64 connections.
pub async fn gets(inside: &Inside) -> Result<Figures> {
    let (server, program) = inside.ready().await?;
    let mut connection = server.connect().await?;
    namespace(&mut connection, "load").await?;
    connection
        .json(Method::POST, CONFIG_MAPS, &config_map("one", 1024))
        .await?;
    let mut figures = Figures::new();
    for (connections, total) in [(1, 20_000), (64, 40_000)] {
        let total = if inside.quick { total / 8 } else { total };
        let burst = hammer(&server, &program, connections, total, |_| {
            (Method::GET, format!("{CONFIG_MAPS}/one"), Bytes::new())
        })
        .await?;
        figures.insert(format!("gets/rate-{connections}"), burst.per_second);
        figures.insert(format!("gets/cpu-{connections}"), burst.cpu);
    }
    Ok(figures)
}

/// LISTs of 5,000 pods of 3 KB, which no scheduler takes.
pub async fn list(inside: &Inside) -> Result<Figures> {
    let (server, program) = inside.ready().await?;
    let mut connection = server.connect().await?;
    namespace(&mut connection, "load").await?;
    let path = "/api/v1/namespaces/load/pods";
    let total = if inside.quick { 500 } else { 5000 };
    hammer(&server, &program, 16, total, move |index| {
        let mut pod = crate::pods::pod(&format!("pod-{index}"), "amphipod.local/hello", &[]);
        pod["spec"]["schedulerName"] = json!("nobody");
        pod["metadata"]["annotations"] = json!({"bench": "y".repeat(1500)});
        (Method::POST, path.to_owned(), pod.to_string().into())
    })
    .await?;
    tokio::time::sleep(Duration::from_secs(if inside.quick { 2 } else { 10 })).await;
    let mut figures = Figures::new();
    figures.insert("list/memory".to_owned(), program.pss());
    let rounds = if inside.quick { 5 } else { 20 };
    let before = program.used()?;
    let mut plain = lists(&mut connection, path, &[], rounds).await?;
    figures.insert(
        "list/cpu".to_owned(),
        (program.used()?.main_cpu - before.main_cpu) * 1e3 / rounds as f64,
    );
    figures.insert("list/plain".to_owned(), percentile(&mut plain, 0.5));
    let mut gzip = lists(
        &mut connection,
        path,
        &[("accept-encoding", "gzip")],
        rounds,
    )
    .await?;
    figures.insert("list/gzip".to_owned(), percentile(&mut gzip, 0.5));
    Ok(figures)
}

async fn lists(
    connection: &mut Connection,
    path: &str,
    headers: &[(&str, &str)],
    rounds: usize,
) -> Result<Vec<f64>> {
    let mut taken = Vec::new();
    let mut length = 0;
    for _ in 0..rounds {
        let begun = Instant::now();
        let response = connection
            .send(Method::GET, path, Bytes::new(), headers)
            .await?;
        ensure!(
            response.status().is_success(),
            "listing: {}",
            response.status()
        );
        let mut body = response.into_body();
        length = 0;
        while let Some(frame) = body.frame().await {
            length += frame?.data_ref().map_or(0, Bytes::len);
        }
        taken.push(begun.elapsed().as_secs_f64() * 1e3);
    }
    eprintln!("a list {headers:?} is {length} bytes");
    Ok(taken)
}

const WATCHERS: usize = 100;
const UPDATES: usize = 200;

/// 200 updates to 100 watchers, back to back and then paced.
pub async fn watch(inside: &Inside) -> Result<Figures> {
    let (server, program) = inside.ready().await?;
    let mut connection = server.connect().await?;
    namespace(&mut connection, "load").await?;
    connection
        .json(Method::POST, CONFIG_MAPS, &config_map("watched", 1024))
        .await?;
    let mut figures = Figures::new();
    let burst = watched(&server, &program, &mut connection, Duration::ZERO).await?;
    figures.insert("watch/rate".to_owned(), burst.per_second);
    figures.insert("watch/cpu".to_owned(), burst.cpu_micros);
    figures.insert("watch/burst-p95".to_owned(), burst.p95);
    let paced = watched(
        &server,
        &program,
        &mut connection,
        Duration::from_millis(20),
    )
    .await?;
    figures.insert("watch/p95".to_owned(), paced.p95);
    Ok(figures)
}

struct Watched {
    per_second: f64,
    cpu_micros: f64,
    p95: f64,
}

/// Each update's number is in the object as `"n":"000123"`, which a watcher finds without parsing the event.
async fn watched(
    server: &Server,
    program: &Program,
    connection: &mut Connection,
    pace: Duration,
) -> Result<Watched> {
    let gate = Arc::new(Barrier::new(WATCHERS + 1));
    let mut tasks = JoinSet::new();
    for _ in 0..WATCHERS {
        let path = format!("{CONFIG_MAPS}?watch=true&fieldSelector=metadata.name%3Dwatched");
        let mut watch = server.connect().await?.watch(&path).await?;
        let gate = Arc::clone(&gate);
        tasks.spawn(async move {
            // The object as it is now comes first.
            watch.line().await?;
            gate.wait().await;
            let mut seen = Vec::with_capacity(UPDATES);
            while seen.len() < UPDATES {
                let line = watch.line().await?;
                let number = number_in(&line).context("an event without its number")?;
                ensure!(
                    number == seen.len(),
                    "event {number} came in place {}",
                    seen.len()
                );
                seen.push(Instant::now());
            }
            Ok::<_, anyhow::Error>(seen)
        });
    }
    let path = format!("{CONFIG_MAPS}/watched");
    gate.wait().await;
    let before = program.used()?;
    let begun = Instant::now();
    let mut sent = Vec::with_capacity(UPDATES);
    for number in 0..UPDATES {
        let mut body = config_map("watched", 1024);
        body["data"]["n"] = json!(format!("{number:06}"));
        sent.push(Instant::now());
        connection.json(Method::PUT, &path, &body).await?;
        if !pace.is_zero() {
            tokio::time::sleep(pace.saturating_sub(sent[number].elapsed())).await;
        }
    }
    let mut delays = Vec::with_capacity(WATCHERS * UPDATES);
    let mut last = begun;
    while let Some(seen) = tasks.join_next().await {
        for (at, sent) in seen??.into_iter().zip(&sent) {
            delays.push(at.duration_since(*sent).as_secs_f64() * 1e3);
            last = last.max(at);
        }
    }
    if delays.len() != WATCHERS * UPDATES {
        bail!("{} events arrived", delays.len());
    }
    let events = delays.len() as f64;
    Ok(Watched {
        per_second: events / (last - begun).as_secs_f64(),
        cpu_micros: (program.used()?.main_cpu - before.main_cpu) * 1e6 / events,
        p95: percentile(&mut delays, 0.95),
    })
}

fn number_in(line: &[u8]) -> Option<usize> {
    let key = br#""n":""#;
    let at = line.windows(key.len()).position(|window| window == key)? + key.len();
    std::str::from_utf8(line.get(at..at + 6)?)
        .ok()?
        .parse()
        .ok()
}
