//! The part of a measurement that runs inside a box: each group of rows takes its figures and returns them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use hyper::Method;
use serde_json::{Value, json};

use crate::client::{Connection, Server, Watch};
use crate::procs::Program;
use crate::{api, pods, services};

/// What a group of rows is given.
pub struct Inside {
    pub program: PathBuf,
    /// The directory of the box's disk, as the host calls it.
    pub disk: PathBuf,
    /// The image of pods that only sleep.
    pub image: String,
    /// Fewer and shorter: for trying the bench itself.
    pub quick: bool,
}

/// Row to figure.
pub type Figures = BTreeMap<String, f64>;

/// Takes the figures of one group.
///
/// # Errors
/// Whatever kept the group from its figures.
pub async fn measure(group: &str, inside: &Inside) -> Result<Figures> {
    match group {
        "start" => start(inside).await,
        "idle" => idle(inside).await,
        "idle/writes" => idle_writes(inside).await,
        "pods" => pods::standing(inside).await,
        "latency" => pods::latency(inside).await,
        "crun" => pods::crun(inside),
        "burst" => pods::burst(inside).await,
        "service" => services::service(inside).await,
        "change" => services::change(inside).await,
        "creates" => api::creates(inside).await,
        "gets" => api::gets(inside).await,
        "list" => api::list(inside).await,
        "watch" => api::watch(inside).await,
        _ => bail!("there is no group {group:?}"),
    }
}

impl Inside {
    /// A server that is ready, and its processes.
    ///
    /// # Errors
    /// When it is not ready after 30 seconds.
    pub async fn ready(&self) -> Result<(Server, Program)> {
        let server = Server::from_kubeconfig()?;
        let mut connection = server.connect().await?;
        let deadline = Instant::now() + Duration::from_secs(30);
        while !can_run_pods(&mut connection).await? {
            ensure!(
                Instant::now() < deadline,
                "the box is not ready to run pods"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok((server, Program::find(&self.program)?))
    }

    /// How long to let a box rest before idle figures, and how long to look.
    fn idle_windows(&self) -> (Duration, Duration, Duration) {
        let seconds = if self.quick {
            (20, 20, 60)
        } else {
            (120, 60, 900)
        };
        (
            Duration::from_secs(seconds.0),
            Duration::from_secs(seconds.1),
            Duration::from_secs(seconds.2),
        )
    }

    /// Rests, then returns the CPU used in a window, in percent of one core.
    pub async fn idle_cpu(&self, program: &Program) -> Result<f64> {
        let (rest, window, _) = self.idle_windows();
        tokio::time::sleep(rest).await;
        let (before, begun) = (program.used()?, Instant::now());
        tokio::time::sleep(window).await;
        Ok((program.used()?.cpu - before.cpu) / begun.elapsed().as_secs_f64() * 100.0)
    }
}

/// Whether the node is Ready and pods can be created in the namespace `default`.
async fn can_run_pods(connection: &mut Connection) -> Result<bool> {
    let (account, _) = connection
        .ask(
            Method::GET,
            "/api/v1/namespaces/default/serviceaccounts/default",
            Bytes::new(),
        )
        .await?;
    let nodes = connection
        .json(Method::GET, "/api/v1/nodes", &Value::Null)
        .await?;
    Ok(account.is_success()
        && nodes["items"]
            .as_array()
            .is_some_and(|nodes| nodes.iter().any(node_is_ready)))
}

fn node_is_ready(node: &Value) -> bool {
    let conditions = node["status"]["conditions"].as_array();
    conditions.is_some_and(|all| {
        all.iter()
            .any(|c| c["type"] == "Ready" && c["status"] == "True")
    })
}

/// Waits on a watch until an event satisfies `done`.
///
/// # Errors
/// As [`Watch::event`].
pub async fn until(watch: &mut Watch, mut done: impl FnMut(&str, &Value) -> bool) -> Result<()> {
    loop {
        let (kind, object) = watch.event().await?;
        if done(&kind, &object) {
            return Ok(());
        }
    }
}

/// Starts the program itself, on an empty disk, so that the clock begins with its process.
async fn start(inside: &Inside) -> Result<Figures> {
    let mut figures = Figures::new();
    let first = one_start(inside, true).await.context("the first start")?;
    figures.insert("start/readyz".to_owned(), first.0);
    figures.insert("start/node-ready".to_owned(), first.1);
    figures.insert("start/pod-running".to_owned(), first.2);
    let again = one_start(inside, false).await.context("the second start")?;
    figures.insert("start/again-readyz".to_owned(), again.0);
    Ok(figures)
}

/// Seconds to `/readyz`, to the node's Ready and to the first pod's Running; the last two only of an empty disk.
async fn one_start(inside: &Inside, empty: bool) -> Result<(f64, f64, f64)> {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname")?;
    let log = std::fs::File::options()
        .create(true)
        .append(true)
        .open(inside.disk.join("amphipod.log"))?;
    let begun = Instant::now();
    let mut child = std::process::Command::new(&inside.program)
        .args(["server", "--cgroup-root", &format!("/{}", host.trim())])
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()?;
    let figures = follow_start(begun, empty).await;
    let _ = child.kill();
    child.wait()?;
    figures
}

async fn follow_start(begun: Instant, empty: bool) -> Result<(f64, f64, f64)> {
    let limit = Duration::from_secs(30);
    let pause = || tokio::time::sleep(Duration::from_millis(2));
    let mut connection = loop {
        ensure!(begun.elapsed() < limit, "no connection after {limit:?}");
        match Server::from_kubeconfig() {
            Ok(server) => match server.connect().await {
                Ok(connection) => break connection,
                Err(_) => pause().await,
            },
            Err(_) => pause().await,
        }
    };
    while !connection
        .ask(Method::GET, "/readyz", Bytes::new())
        .await?
        .0
        .is_success()
    {
        ensure!(
            begun.elapsed() < limit,
            "/readyz does not say ok after {limit:?}"
        );
        pause().await;
    }
    let readyz = begun.elapsed().as_secs_f64();
    if !empty {
        return Ok((readyz, 0.0, 0.0));
    }
    let server = Server::from_kubeconfig()?;
    let pod_running = async {
        let pod = pods::pod("first", "amphipod.local/hello", &[]);
        loop {
            let body = Bytes::from(pod.to_string());
            let (status, answer) = connection
                .ask(Method::POST, "/api/v1/namespaces/default/pods", body)
                .await?;
            if status.is_success() {
                break;
            }
            let text = String::from_utf8_lossy(&answer).into_owned();
            ensure!(
                begun.elapsed() < limit,
                "the pod is refused after {limit:?}: {text}"
            );
            pause().await;
        }
        let mut watch = server
            .connect()
            .await?
            .watch("/api/v1/namespaces/default/pods?watch=true")
            .await?;
        until(&mut watch, |_, pod| pod["status"]["phase"] == "Running").await?;
        Ok::<_, anyhow::Error>(begun.elapsed().as_secs_f64())
    };
    let node_ready = async {
        let mut watch = server
            .connect()
            .await?
            .watch("/api/v1/nodes?watch=true")
            .await?;
        until(&mut watch, |_, node| node_is_ready(node)).await?;
        Ok::<_, anyhow::Error>(begun.elapsed().as_secs_f64())
    };
    let (pod_running, node_ready) = tokio::join!(pod_running, node_ready);
    Ok((
        readyz,
        node_ready.context("waiting for the node")?,
        pod_running.context("waiting for the pod")?,
    ))
}

async fn idle(inside: &Inside) -> Result<Figures> {
    let (_, program) = inside.ready().await?;
    let mut figures = Figures::new();
    figures.insert("idle/cpu".to_owned(), inside.idle_cpu(&program).await?);
    figures.insert("idle/memory".to_owned(), program.pss());
    eprintln!("{}", program.describe());
    Ok(figures)
}

async fn idle_writes(inside: &Inside) -> Result<Figures> {
    let (_, program) = inside.ready().await?;
    let (_, _, window) = inside.idle_windows();
    let disk: &Path = &inside.disk;
    // What was written lazily before the window must not be counted in it.
    sync(disk)?;
    let (before, device, begun) = (
        program.used()?,
        crate::procs::device_written(disk)?,
        Instant::now(),
    );
    tokio::time::sleep(window).await;
    sync(disk)?;
    let per_hour = 3600.0 / begun.elapsed().as_secs_f64() / 1024.0;
    let written = (crate::procs::device_written(disk)? - device) as f64 * per_hour;
    let by_processes = (program.used()?.written - before.written) as f64 * per_hour;
    Ok(Figures::from([
        ("idle/writes".to_owned(), written),
        ("idle/writes-of-processes".to_owned(), by_processes),
    ]))
}

/// Writes out everything that waits in memory for the filesystem of `path`.
fn sync(path: &Path) -> Result<()> {
    use std::os::fd::AsRawFd;
    let dir = std::fs::File::open(path)?;
    // SAFETY: the descriptor is open for as long as the call lasts.
    ensure!(
        unsafe { libc::syncfs(dir.as_raw_fd()) } == 0,
        "syncfs: {}",
        std::io::Error::last_os_error()
    );
    Ok(())
}

/// The value below which the fraction `part` of `values` lies.
pub fn percentile(values: &mut [f64], part: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let last = values.len().saturating_sub(1);
    values
        .get((last as f64 * part).round() as usize)
        .copied()
        .unwrap_or(f64::NAN)
}

/// A namespace of its own for a group, ready for pods.
///
/// # Errors
/// When the server refuses, or its service account does not appear.
pub async fn namespace(connection: &mut Connection, name: &str) -> Result<()> {
    let body = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
    connection
        .json(Method::POST, "/api/v1/namespaces", &body)
        .await?;
    let path = format!("/api/v1/namespaces/{name}/serviceaccounts/default");
    let deadline = Instant::now() + Duration::from_secs(10);
    while !connection
        .ask(Method::GET, &path, Bytes::new())
        .await?
        .0
        .is_success()
    {
        ensure!(
            Instant::now() < deadline,
            "namespace {name} gets no service account"
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}
