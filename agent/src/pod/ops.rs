//! What a pod's actor does, one function per action. Each runs as its own task and reports once; none touches the actor's state.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use amphipod_netplug::{HostPort, PodAttach, Protocol};
use amphipod_runtime::{LogLimits, NamespaceMode, PidMode, PodCgroup, SandboxSpec, User};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod};
use tokio::sync::{Notify, watch};

use super::backoff::Mono;
use crate::container::images::{self, image_id};
use crate::container::spec::{Parts, bind, container_spec, volume_mounts};
use crate::container::{hooks, security};
use crate::deps::Deps;
use crate::env::{hosts, resolv, vars};
use crate::events::{PodEvents, Severity};
use crate::resources::{cgroup, qos};
use crate::volumes::{self, subpath};

/// A pod's sandbox that is ready.
#[derive(Debug, Clone)]
pub struct SandboxInfo {
    pub ips: Vec<IpAddr>,
    pub netns: Option<PathBuf>,
}

pub type VolumePaths = BTreeMap<String, PathBuf>;

/// What a volume pass gave: paths by volume, and when (seconds since 1970) tokens must be renewed.
#[derive(Debug, Clone, Default)]
pub struct VolumesInfo {
    pub paths: VolumePaths,
    pub renew_at: Option<i64>,
}

/// Fetches what volumes need and makes them ready. The error names the volume.
pub async fn prepare_volumes(
    deps: Arc<Deps>,
    pod: Arc<Pod>,
    fresh: bool,
) -> Result<VolumesInfo, (String, String)> {
    let uid = pod.metadata.uid.clone().unwrap_or_default();
    let keys = crate::server::objects::references(&pod);
    deps.objects.wait(&keys).await;
    let issued = deps
        .tokens
        .get(&pod)
        .await
        .map_err(|e| (token_volume(&pod), e))?;
    let dirs = deps.pod_dirs(&uid);
    let facts = deps.facts(&[]);
    let renew_at = issued.renew_at;
    let work = move || {
        for dir in [&dirs.disk, &dirs.memory] {
            let made = std::fs::create_dir_all(dir).and_then(|()| {
                std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o750))
            });
            made.map_err(|e| (String::new(), format!("make {}: {e}", dir.display())))?;
        }
        let cx = volumes::Context {
            pod: &pod,
            dirs: &dirs,
            objects: &deps.objects,
            facts: &facts,
            tokens: &issued.tokens,
        };
        if fresh {
            return volumes::set_up_all(&cx);
        }
        match volumes::refresh(&cx).into_iter().next() {
            Some(failure) => Err(failure),
            None => Ok(BTreeMap::new()),
        }
    };
    let paths = blocking(work).await.map_err(|e| (String::new(), e))??;
    Ok(VolumesInfo { paths, renew_at })
}

fn token_volume(pod: &Pod) -> String {
    let volumes = pod.spec.iter().flat_map(|s| s.volumes.iter().flatten());
    let mut with = volumes.filter(|v| {
        v.projected
            .iter()
            .flat_map(|p| p.sources.iter().flatten())
            .any(|s| s.service_account_token.is_some())
    });
    with.next().map(|v| v.name.clone()).unwrap_or_default()
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, String> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|e| e.to_string())
}

fn host_ports(pod: &Pod) -> Vec<HostPort> {
    let Some(spec) = &pod.spec else { return vec![] };
    let sidecars = spec
        .init_containers
        .iter()
        .flatten()
        .filter(|c| c.restart_policy.as_deref() == Some("Always"));
    spec.containers
        .iter()
        .chain(sidecars)
        .flat_map(|c| c.ports.iter().flatten())
        .filter_map(|p| {
            Some(HostPort {
                host_ip: p.host_ip.as_deref().and_then(|ip| ip.parse().ok()),
                host_port: p
                    .host_port
                    .and_then(|p| u16::try_from(p).ok())
                    .filter(|p| *p > 0)?,
                container_port: u16::try_from(p.container_port).ok()?,
                protocol: match p.protocol.as_deref() {
                    Some("UDP") => Protocol::Udp,
                    Some("SCTP") => Protocol::Sctp,
                    _ => Protocol::Tcp,
                },
            })
        })
        .collect()
}

/// Namespaces, cgroup and network of a pod; finds those of an earlier run again.
pub async fn create_sandbox(deps: Arc<Deps>, pod: Arc<Pod>) -> Result<SandboxInfo, String> {
    let spec = pod.spec.as_ref().ok_or("the pod has no spec")?;
    let m = &pod.metadata;
    let uid = m.uid.clone().unwrap_or_default();
    let host_network = spec.host_network == Some(true);
    let (hostname, fqdn) = hosts::names(&pod, &deps.config.cluster_domain);
    let mode = |host: Option<bool>| {
        if host == Some(true) {
            NamespaceMode::Host
        } else {
            NamespaceMode::Pod
        }
    };
    let sysctls = spec
        .security_context
        .iter()
        .flat_map(|s| s.sysctls.iter().flatten());
    let sandbox_spec = SandboxSpec {
        id: uid.clone(),
        hostname: hostname.clone(),
        network: mode(spec.host_network),
        ipc: mode(spec.host_ipc),
        pid: match (spec.host_pid, spec.share_process_namespace) {
            (Some(true), _) => PidMode::Host,
            (_, Some(true)) => PidMode::Pod,
            _ => PidMode::Container,
        },
        sysctls: sysctls
            .map(|s| (s.name.replace('/', "."), s.value.clone()))
            .collect(),
        shm_size: None,
        cgroup: PodCgroup {
            path: cgroup::pod_path(spec, &uid),
            resources: cgroup::pod(spec, None),
        },
        labels: [
            (
                crate::container::spec::label::POD_UID.to_string(),
                uid.clone(),
            ),
            (
                crate::container::spec::label::POD_NAME.to_string(),
                m.name.clone().unwrap_or_default(),
            ),
            (
                crate::container::spec::label::POD_NAMESPACE.to_string(),
                m.namespace.clone().unwrap_or_default(),
            ),
        ]
        .into(),
    };
    let sandbox = match deps.runtime.create_sandbox(&sandbox_spec).await {
        Ok(s) => s,
        Err(amphipod_runtime::Error::AlreadyExists(_)) => {
            deps.runtime.sandbox(&uid).await.map_err(|e| describe(&e))?
        }
        Err(e) => return Err(describe(&e)),
    };
    let ips = if host_network {
        vec![]
    } else {
        let netns = sandbox
            .netns_path
            .clone()
            .ok_or("the sandbox has no network namespace")?;
        let network = deps.network().await?;
        let attach = PodAttach {
            id: uid.clone(),
            netns,
            ifname: "eth0".into(),
            host_ports: host_ports(&pod),
        };
        blocking(move || network.attach(&attach))
            .await?
            .map_err(|e| format!("failed to set up pod network: {}", describe(&e)))?
            .ips
    };
    let dir = deps.pod_dirs(&uid).disk;
    let write = {
        let (deps, pod, ips) = (deps.clone(), pod.clone(), ips.clone());
        move || write_files(&deps, &pod, &dir, &ips, &hostname, fqdn.as_deref())
    };
    blocking(write)
        .await?
        .map_err(|e| format!("writing the pod's hosts and resolver files: {e}"))?;
    Ok(SandboxInfo {
        ips,
        netns: sandbox.netns_path,
    })
}

/// etc-hosts, resolv.conf and hostname in the pod's directory; written only when they differ.
fn write_files(
    deps: &Deps,
    pod: &Pod,
    dir: &Path,
    ips: &[IpAddr],
    hostname: &str,
    fqdn: Option<&str>,
) -> std::io::Result<()> {
    let empty = Default::default();
    let spec = pod.spec.as_ref().unwrap_or(&empty);
    let aliases = spec.host_aliases.clone().unwrap_or_default();
    let hosts = if spec.host_network == Some(true) {
        hosts::host_network_hosts(
            &std::fs::read_to_string("/etc/hosts").unwrap_or_default(),
            &aliases,
        )
    } else {
        hosts::pod_hosts(ips, hostname, fqdn, &aliases)
    };
    let host = resolv::Resolv::parse(
        &std::fs::read_to_string(&deps.config.host_resolv_conf).unwrap_or_default(),
    );
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let resolver = resolv::pod_resolv(
        spec,
        namespace,
        &host,
        &deps.config.cluster_dns,
        &deps.config.cluster_domain,
    )
    .render();
    let hostname = if spec.host_network == Some(true) {
        nix::unistd::gethostname()
            .map(|h| h.to_string_lossy().into_owned())
            .unwrap_or_default()
    } else {
        hostname.to_string()
    };
    std::fs::create_dir_all(dir)?;
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o750))?;
    for (name, text) in [
        ("etc-hosts", hosts),
        ("resolv.conf", resolver),
        ("hostname", format!("{hostname}\n")),
    ] {
        let path = dir.join(name);
        // In place: containers have the file itself mounted.
        if std::fs::read_to_string(&path).ok().as_deref() != Some(&text) {
            std::fs::write(&path, text)?;
        }
    }
    Ok(())
}

/// An error with its sources.
pub fn describe(e: &dyn std::error::Error) -> String {
    let mut text = e.to_string();
    let mut source = e.source();
    while let Some(s) = source {
        let more = s.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        source = s.source();
    }
    text
}

/// Everything that a start needs beside the pod.
pub struct StartRequest {
    pub pod: Arc<Pod>,
    pub container: Container,
    pub attempt: u32,
    pub ips: Vec<IpAddr>,
    pub paths: Arc<VolumePaths>,
    pub events: PodEvents,
}

/// An instance whose program runs.
#[derive(Debug, Clone)]
pub struct Started {
    pub id: String,
    pub started_at: Timestamp,
    pub image_id: String,
}

#[derive(Debug, Clone)]
pub enum StartFailure {
    Image(images::Failure),
    /// CreateContainerConfigError.
    Config(String),
    /// CreateContainerError.
    Create(String),
    /// The program could not be run: an instance that ended at once (StartError, 128).
    Start {
        id: String,
        message: String,
    },
    /// The pod is ending.
    Cancelled,
}

/// Image, configuration, container, start. postStart is the caller's next step.
pub async fn start(
    deps: Arc<Deps>,
    r: StartRequest,
    mut stopping: watch::Receiver<bool>,
) -> Result<Started, StartFailure> {
    let name = r.container.name.clone();
    let warn = |reason: &str, why: &str| {
        r.events
            .tell(Severity::Warning, reason, Some(&name), why.to_string())
    };
    let config = |why: String| {
        warn("Failed", &format!("Error: {why}"));
        StartFailure::Config(why)
    };
    let pod = &r.pod;
    let namespace = pod.metadata.namespace.clone().unwrap_or_default();
    let uid = pod.metadata.uid.clone().unwrap_or_default();
    let spec = pod
        .spec
        .as_ref()
        .ok_or_else(|| config("the pod has no spec".into()))?;

    let secrets: Vec<_> = spec
        .image_pull_secrets
        .iter()
        .flatten()
        .filter_map(|s| {
            crate::env::Objects::secret(&deps.objects, &namespace, &s.name)
                .ok()
                .flatten()
        })
        .collect();
    let auth = images::credentials(secrets.iter().map(|s| &**s));
    let image = tokio::select! {
        image = deps.images.ensure(&r.container, auth, &r.events) => image,
        _ = stopping.wait_for(|s| *s) => return Err(StartFailure::Cancelled),
    };
    let image = image.map_err(|f| {
        warn("Failed", &format!("Error: {}", f.waiting.reason));
        StartFailure::Image(f)
    })?;

    let facts = deps.facts(if spec.host_network == Some(true) {
        &[]
    } else {
        &r.ips
    });
    let facts = if spec.host_network == Some(true) {
        crate::env::downward::Facts {
            pod_ips: facts.host_ips.clone(),
            ..facts
        }
    } else {
        facts
    };
    let services = deps
        .services
        .vars(&namespace, spec.enable_service_links != Some(false));
    let env =
        vars::environment(pod, &r.container, &deps.objects, &facts, &services).map_err(config)?;
    let user = security::run_as(pod, &r.container, &image.config.user).map_err(config)?;
    let seccomp_dir = deps.config.data_dir.join("seccomp");
    let secure = security::security(pod, &r.container, &seccomp_dir).map_err(config)?;
    let dirs = deps.pod_dirs(&uid);
    let read_only = |volume: &str| {
        let found = spec.volumes.iter().flatten().find(|v| v.name == volume);
        found
            .and_then(volumes::type_of)
            .is_some_and(|t| t.read_only())
    };
    let pin = |index: usize, volume: &str, path: &Path, sub: &str| {
        subpath::pin(
            path,
            sub,
            &subpath::pin_path(&dirs.disk, volume, &name, index),
        )
    };
    let mut mounts =
        volume_mounts(&r.container, &r.paths, &read_only, &env, pin).map_err(config)?;
    let taken = |mounts: &[amphipod_runtime::Mount], at: &str| {
        mounts.iter().any(|m| m.destination == Path::new(at))
    };
    let root_read_only = secure.read_only_root;
    for (file, at) in [
        ("etc-hosts", "/etc/hosts"),
        ("hostname", "/etc/hostname"),
        ("resolv.conf", "/etc/resolv.conf"),
    ] {
        if !taken(&mounts, at) {
            mounts.push(bind(
                &dirs.disk.join(file),
                at,
                root_read_only && at != "/etc/hosts",
            ));
        }
    }
    let create = |why: String| {
        warn("Failed", &format!("Error: {why}"));
        StartFailure::Create(why)
    };
    let id = new_id();
    let termination_log = dirs.disk.join("containers").join(&name).join(&id[..8]);
    let log_dir = deps
        .log_dir(
            &namespace,
            pod.metadata.name.as_deref().unwrap_or_default(),
            &uid,
        )
        .join(&name);
    let log_path = log_dir.join(format!("{}.log", r.attempt));
    let prepared: std::io::Result<()> = (|| {
        if let Some(parent) = termination_log.parent() {
            std::fs::create_dir_all(parent)?;
        }
        std::fs::write(&termination_log, "")?;
        std::fs::set_permissions(&termination_log, std::fs::Permissions::from_mode(0o666))?;
        std::fs::create_dir_all(&log_dir)?;
        link_log(&deps.config.log_dir, pod, &name, &id, &log_path)
    })();
    prepared.map_err(|e| create(format!("failed to make the container's files: {e}")))?;
    remove_old_logs(&log_dir, r.attempt);
    let at = r
        .container
        .termination_message_path
        .as_deref()
        .filter(|p| !p.is_empty())
        .unwrap_or("/dev/termination-log");
    if !taken(&mounts, at) {
        mounts.push(bind(&termination_log, at, false));
    }
    let resolved = resolve_user(&image.layers, &user).map_err(|e| create(e.to_string()))?;
    let (hostname, _) = hosts::names(pod, &deps.config.cluster_domain);
    let hostname = if spec.host_network == Some(true) {
        nix::unistd::gethostname()
            .map(|h| h.to_string_lossy().into_owned())
            .unwrap_or_default()
    } else {
        hostname
    };
    let class = qos::class(spec);
    let parts = Parts {
        id: id.clone(),
        pod,
        container: &r.container,
        attempt: r.attempt,
        image: &image,
        image_id: image_id(&image),
        env,
        mounts,
        user: User {
            uid: resolved.uid,
            gid: resolved.gid,
            additional_gids: security::supplemental_groups(pod, &resolved.additional_gids),
        },
        home: resolved.home.map(|h| h.to_string_lossy().into_owned()),
        hostname: &hostname,
        security: secure,
        resources: cgroup::container(&r.container),
        oom_score_adj: qos::oom_score_adj(spec, class, &r.container, deps.node().memory_capacity),
        log_path,
        log_limits: LogLimits {
            max_size: deps.config.log_max_size,
            max_files: deps.config.log_max_files,
        },
        termination_log,
    };
    let image_id = parts.image_id.clone();
    let spec = container_spec(parts).map_err(create)?;
    if *stopping.borrow() {
        return Err(StartFailure::Cancelled);
    }
    deps.owners
        .lock()
        .unwrap_or_else(|e| e.into_inner())
        .insert(id.clone(), uid.clone());
    deps.runtime
        .create_container(&spec)
        .await
        .map_err(|e| match e {
            amphipod_runtime::Error::Exec(why) => {
                warn("Failed", &format!("Error: {why}"));
                StartFailure::Start {
                    id: id.clone(),
                    message: why,
                }
            }
            e => create(describe(&e)),
        })?;
    r.events.tell(
        Severity::Normal,
        "Created",
        Some(&name),
        "Container created".into(),
    );
    if let Err(e) = deps.runtime.start_container(&id).await {
        let message = format!("failed to start container \"{id}\": {}", describe(&e));
        warn("Failed", &format!("Error: {message}"));
        let _ = deps.runtime.remove_container(&id).await;
        return Err(StartFailure::Start { id, message });
    }
    r.events.tell(
        Severity::Normal,
        "Started",
        Some(&name),
        "Container started".into(),
    );
    Ok(Started {
        id,
        started_at: Timestamp::now(),
        image_id,
    })
}

/// 64 hexadecimal characters, as users of `kubectl describe` expect.
fn new_id() -> String {
    format!(
        "{}{}",
        uuid::Uuid::new_v4().simple(),
        uuid::Uuid::new_v4().simple()
    )
}

/// Looks a user up in the image: in the highest layer that has the files.
fn resolve_user(
    layers: &[PathBuf],
    user: &str,
) -> Result<amphipod_runtime::image::user::ResolvedUser, amphipod_runtime::image::user::UserError> {
    let has = |layer: &&PathBuf| layer.join("etc/passwd").symlink_metadata().is_ok();
    let root = layers.iter().rev().find(has).or(layers.last());
    match root {
        Some(root) => amphipod_runtime::image::user::resolve(root, user),
        None => amphipod_runtime::image::user::resolve(Path::new("/var/empty"), user),
    }
}

/// `/var/log/containers/POD_NAMESPACE_CONTAINER-ID.log`, where log collectors look.
fn link_log(
    log_dir: &Path,
    pod: &Pod,
    container: &str,
    id: &str,
    log: &Path,
) -> std::io::Result<()> {
    let dir = log_dir.join("containers");
    std::fs::create_dir_all(&dir)?;
    let m = &pod.metadata;
    let name = format!(
        "{}_{}_{container}-{id}.log",
        m.name.as_deref().unwrap_or_default(),
        m.namespace.as_deref().unwrap_or_default()
    );
    match std::os::unix::fs::symlink(log, dir.join(name)) {
        Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => Err(e),
        _ => Ok(()),
    }
}

/// Logs of the instance before stay for `kubectl logs --previous`; older ones go.
fn remove_old_logs(dir: &Path, attempt: u32) {
    let Some(oldest) = attempt.checked_sub(2) else {
        return;
    };
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let number = name
            .to_string_lossy()
            .split('.')
            .next()
            .and_then(|n| n.parse::<u32>().ok());
        if number.is_some_and(|n| n <= oldest) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

/// What a stop needs.
pub struct StopRequest {
    pub container: Option<Container>,
    pub name: String,
    pub id: String,
    pub ip: Option<IpAddr>,
    pub message: String,
    /// SIGKILL after this; may come nearer while we wait.
    pub deadline: Mono,
    pub pod_deadline: watch::Receiver<Option<Mono>>,
    /// Fires when the container has ended.
    pub ended: Arc<Notify>,
    pub events: PodEvents,
}

/// preStop, signal, wait, kill. Returns when the container has ended.
pub async fn stop(deps: Arc<Deps>, mut r: StopRequest) {
    r.events.tell(
        Severity::Normal,
        "Killing",
        Some(&r.name),
        r.message.clone(),
    );
    let ended = r.ended.clone();
    let ended = ended.notified();
    tokio::pin!(ended);
    ended.as_mut().enable();
    if let Some(container) = &r.container
        && let Some(hook) = container
            .lifecycle
            .as_ref()
            .and_then(|l| l.pre_stop.as_ref())
        && deps.now() < limit(&r)
    {
        let run = hooks::run(hook, container, &deps.runtime, &r.id, r.ip);
        tokio::pin!(run);
        loop {
            let at = limit(&r);
            tokio::select! {
                () = &mut ended => return,
                done = &mut run => {
                    if let Err(why) = done {
                        tracing::debug!(container = r.name, why, "preStop hook failed");
                        r.events.tell(Severity::Warning, "FailedPreStopHook", Some(&r.name), "PreStopHook failed".into());
                    }
                    break;
                }
                () = tokio::time::sleep(at.saturating_sub(deps.now())) => break,
                Ok(()) = r.pod_deadline.changed() => {}
            }
        }
        // Whatever preStop took, the process gets two seconds to end by itself.
        if r.deadline > deps.now() {
            r.deadline = r.deadline.max(deps.now() + Duration::from_secs(2));
        }
    }
    let signal = deps
        .runtime
        .stop_signal(&r.id)
        .await
        .unwrap_or(nix::libc::SIGTERM);
    if let Err(error) = deps.runtime.kill(&r.id, signal).await {
        tracing::debug!(container = r.name, %error, "could not send the stop signal");
    }
    loop {
        let at = limit(&r);
        tokio::select! {
            () = &mut ended => return,
            () = tokio::time::sleep(at.saturating_sub(deps.now())) => break,
            Ok(()) = r.pod_deadline.changed() => {}
        }
    }
    loop {
        if let Err(error) = deps.runtime.kill(&r.id, nix::libc::SIGKILL).await {
            tracing::warn!(container = r.name, %error, "could not kill a container; trying again");
        }
        if tokio::time::timeout(Duration::from_secs(10), &mut ended)
            .await
            .is_ok()
        {
            return;
        }
        // The end may have been missed, or the process hangs in the kernel.
        match deps.runtime.container(&r.id).await {
            Ok(c) if !matches!(c.state, amphipod_runtime::ContainerState::Exited { .. }) => {}
            _ => return,
        }
    }
}

fn limit(r: &StopRequest) -> Mono {
    r.pod_deadline
        .borrow()
        .map_or(r.deadline, |p| p.min(r.deadline))
}

/// Network, sandbox, volumes of a pod that has ended.
pub async fn tear_down(deps: Arc<Deps>, pod: Arc<Pod>) -> Result<(), String> {
    let uid = pod.metadata.uid.clone().unwrap_or_default();
    let host_network = pod
        .spec
        .as_ref()
        .is_some_and(|s| s.host_network == Some(true));
    let network = deps.network.borrow().clone();
    if let (false, Some(network)) = (host_network, network) {
        let id = uid.clone();
        blocking(move || network.detach(&id))
            .await?
            .map_err(|e| describe(&e))?;
    }
    deps.runtime
        .remove_sandbox(&uid)
        .await
        .map_err(|e| describe(&e))?;
    let dirs = deps.pod_dirs(&uid);
    blocking(move || volumes::tear_down(&dirs))
        .await?
        .map_err(|e| format!("removing volumes: {e}"))
}

/// The last traces of a deleted pod: its directories and logs.
pub async fn forget(deps: Arc<Deps>, pod: Arc<Pod>) {
    let m = &pod.metadata;
    let (namespace, name, uid) = (
        m.namespace.clone().unwrap_or_default(),
        m.name.clone().unwrap_or_default(),
        m.uid.clone().unwrap_or_default(),
    );
    let logs = deps.log_dir(&namespace, &name, &uid);
    let links = deps.config.log_dir.join("containers");
    let dirs = deps.pod_dirs(&uid);
    let work = move || {
        if let Err(error) = volumes::remove_pod(&dirs) {
            tracing::warn!(pod = format!("{namespace}/{name}"), %error, "a deleted pod's directory could not be removed; it is tried again at the next start");
        }
        let prefix = format!("{name}_{namespace}_");
        for entry in std::fs::read_dir(&links).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with(&prefix)
                && std::fs::read_link(entry.path()).is_ok_and(|to| to.starts_with(&logs))
            {
                let _ = std::fs::remove_file(entry.path());
            }
        }
        let _ = std::fs::remove_dir_all(&logs);
    };
    let _ = blocking(work).await;
}
