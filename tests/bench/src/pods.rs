//! Figures of pods.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hyper::Method;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::client::{Connection, Server, Watch};
use crate::inside::{Figures, Inside, namespace, percentile, until};

/// A pod with one container of `image`, with a second of grace.
pub fn pod(name: &str, image: &str, command: &[&str]) -> Value {
    let mut container = json!({"name": "main", "image": image, "imagePullPolicy": "IfNotPresent"});
    if !command.is_empty() {
        container["command"] = json!(command);
    }
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": "bench"}},
        "spec": {"terminationGracePeriodSeconds": 1, "containers": [container]},
    })
}

const SLEEP: &[&str] = &["sleep", "36000"];

pub fn pods_path(namespace: &str) -> String {
    format!("/api/v1/namespaces/{namespace}/pods")
}

pub async fn watch_pods(server: &Server, namespace: &str) -> Result<Watch> {
    server
        .connect()
        .await?
        .watch(&format!("{}?watch=true", pods_path(namespace)))
        .await
}

/// Waits until every pod of `names` is Running.
async fn all_running(watch: &mut Watch, mut names: BTreeSet<String>) -> Result<()> {
    let total = names.len();
    let waited = until(watch, |_, pod| {
        if pod["status"]["phase"] == "Running" {
            names.remove(pod["metadata"]["name"].as_str().unwrap_or_default());
        }
        names.is_empty()
    });
    waited
        .await
        .with_context(|| format!("waiting for {total} pods to run"))
}

/// Brings the image to the box, by a pod that comes and goes.
async fn warm(
    server: &Server,
    connection: &mut Connection,
    inside: &Inside,
    namespace: &str,
) -> Result<()> {
    let mut watch = watch_pods(server, namespace).await?;
    run_one(connection, &mut watch, inside, namespace, "warm").await?;
    remove_one(connection, &mut watch, namespace, "warm").await
}

async fn run_one(
    connection: &mut Connection,
    watch: &mut Watch,
    inside: &Inside,
    namespace: &str,
    name: &str,
) -> Result<f64> {
    let body = pod(name, &inside.image, SLEEP);
    let begun = Instant::now();
    connection
        .json(Method::POST, &pods_path(namespace), &body)
        .await?;
    all_running(watch, [name.to_owned()].into()).await?;
    Ok(begun.elapsed().as_secs_f64() * 1e3)
}

async fn remove_one(
    connection: &mut Connection,
    watch: &mut Watch,
    namespace: &str,
    name: &str,
) -> Result<()> {
    let path = format!("{}/{name}?gracePeriodSeconds=0", pods_path(namespace));
    connection.json(Method::DELETE, &path, &Value::Null).await?;
    until(watch, |kind, pod| {
        kind == "DELETED" && pod["metadata"]["name"] == name
    })
    .await
}

/// Create to Running, one after the other, and crun beside it.
pub async fn latency(inside: &Inside) -> Result<Figures> {
    let (server, _) = inside.ready().await?;
    let mut connection = server.connect().await?;
    namespace(&mut connection, "latency").await?;
    warm(&server, &mut connection, inside, "latency").await?;
    let mut watch = watch_pods(&server, "latency").await?;
    let mut taken = Vec::new();
    for index in 0..if inside.quick { 10 } else { 40 } {
        let name = format!("pod-{index}");
        taken.push(run_one(&mut connection, &mut watch, inside, "latency", &name).await?);
        remove_one(&mut connection, &mut watch, "latency", &name).await?;
    }
    let mut figures = Figures::new();
    figures.insert("latency/p50".to_owned(), percentile(&mut taken, 0.5));
    figures.insert("latency/p95".to_owned(), percentile(&mut taken, 0.95));
    Ok(figures)
}

/// `crun run` of `true`, one after the other.
pub fn crun(inside: &Inside) -> Result<Figures> {
    let bundle = inside.disk.join("crun-bundle");
    std::fs::create_dir_all(bundle.join("rootfs/bin"))?;
    std::fs::copy("/bin/busybox", bundle.join("rootfs/bin/true"))?;
    let run = |args: &[&str]| -> Result<()> {
        let mut command = std::process::Command::new("crun");
        command
            .args(["--root", "/run/crun"])
            .args(args)
            .current_dir(&bundle);
        let output = command.output().context("crun is not installed")?;
        ensure!(
            output.status.success(),
            "crun {args:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    };
    run(&["spec"])?;
    let config = bundle.join("config.json");
    let mut spec: Value = serde_json::from_slice(&std::fs::read(&config)?)?;
    spec["process"]["args"] = json!(["/bin/true"]);
    spec["process"]["terminal"] = json!(false);
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname")?;
    spec["linux"]["cgroupsPath"] = json!(format!("/{}/crun", host.trim()));
    std::fs::write(&config, spec.to_string())?;
    let mut taken = Vec::new();
    for index in 0..if inside.quick { 10 } else { 40 } {
        let begun = Instant::now();
        run(&["run", &format!("bench-{index}")])?;
        taken.push(begun.elapsed().as_secs_f64() * 1e3);
    }
    Ok(Figures::from([
        ("crun/p50".to_owned(), percentile(&mut taken, 0.5)),
        ("crun/p95".to_owned(), percentile(&mut taken, 0.95)),
    ]))
}

/// Creates `count` pods over 8 connections; returns their names and when the first was sent.
async fn create_many(
    server: &Server,
    inside: &Inside,
    namespace: &'static str,
    count: usize,
) -> Result<(BTreeSet<String>, Instant)> {
    let names: BTreeSet<String> = (0..count).map(|index| format!("pod-{index}")).collect();
    let begun = Instant::now();
    let bodies = names
        .iter()
        .map(|name| pod(name, &inside.image, SLEEP))
        .collect::<Vec<_>>();
    over_connections(server, 8, bodies, move |connection, body| {
        Box::pin(async move {
            connection
                .json(Method::POST, &pods_path(namespace), &body)
                .await
                .map(drop)
        })
    })
    .await?;
    Ok((names, begun))
}

pub type Step<'a> = std::pin::Pin<Box<dyn Future<Output = Result<()>> + Send + 'a>>;

/// Does something with every item, spread over `count` connections.
pub async fn over_connections<T: Send + 'static>(
    server: &Server,
    count: usize,
    items: Vec<T>,
    step: impl Fn(&'_ mut Connection, T) -> Step<'_> + Clone + Send + 'static,
) -> Result<()> {
    let mut shares: Vec<Vec<T>> = (0..count).map(|_| Vec::new()).collect();
    for (index, item) in items.into_iter().enumerate() {
        shares[index % count].push(item);
    }
    let mut tasks = JoinSet::new();
    for share in shares {
        let (server, step) = (server.clone(), step.clone());
        tasks.spawn(async move {
            let mut connection = server.connect().await?;
            for item in share {
                step(&mut connection, item).await?;
            }
            Ok::<_, anyhow::Error>(())
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    Ok(())
}

/// 50 pods at once, and their end.
pub async fn burst(inside: &Inside) -> Result<Figures> {
    let (server, _) = inside.ready().await?;
    let mut connection = server.connect().await?;
    namespace(&mut connection, "burst").await?;
    warm(&server, &mut connection, inside, "burst").await?;
    let mut watch = watch_pods(&server, "burst").await?;
    let (names, begun) = create_many(&server, inside, "burst", 50).await?;
    all_running(&mut watch, names.clone()).await?;
    let mut figures = Figures::new();
    figures.insert("burst/running".to_owned(), begun.elapsed().as_secs_f64());
    let begun = Instant::now();
    let mut gone = names.clone();
    let paths: Vec<String> = names
        .iter()
        .map(|name| format!("{}/{name}?gracePeriodSeconds=1", pods_path("burst")))
        .collect();
    let deletes = over_connections(&server, 8, paths, |connection, path| {
        Box::pin(async move {
            connection
                .json(Method::DELETE, &path, &Value::Null)
                .await
                .map(drop)
        })
    });
    let ends = until(&mut watch, |kind, pod| {
        if kind == "DELETED" {
            gone.remove(pod["metadata"]["name"].as_str().unwrap_or_default());
        }
        gone.is_empty()
    });
    let (deleted, ended) = tokio::join!(deletes, ends);
    deleted?;
    ended.context("waiting for 50 pods to be gone")?;
    figures.insert("burst/deleted".to_owned(), begun.elapsed().as_secs_f64());
    Ok(figures)
}

/// What 50 pods that only sleep cost us.
pub async fn standing(inside: &Inside) -> Result<Figures> {
    let (server, program) = inside.ready().await?;
    let mut connection = server.connect().await?;
    namespace(&mut connection, "standing").await?;
    warm(&server, &mut connection, inside, "standing").await?;
    let settle = Duration::from_secs(if inside.quick { 5 } else { 20 });
    tokio::time::sleep(settle).await;
    let before = program.pss();
    eprintln!("{}", program.describe());
    let mut watch = watch_pods(&server, "standing").await?;
    let (names, _) = create_many(&server, inside, "standing", 50).await?;
    all_running(&mut watch, names).await?;
    drop(watch);
    let mut figures = Figures::new();
    figures.insert("pods/cpu".to_owned(), inside.idle_cpu(&program).await?);
    figures.insert(
        "pods/memory-of-each".to_owned(),
        (program.pss() - before) / 50.0,
    );
    eprintln!("{}", program.describe());
    Ok(figures)
}
