//! From a container's spec to its running program.

use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use amphipod_runtime::{LogLimits, User};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod};
use tokio::sync::watch;

use super::{VolumePaths, describe};
use crate::container::images::{self, image_id};
use crate::container::security;
use crate::container::spec::{Parts, bind, container_spec, volume_mounts};
use crate::deps::Deps;
use crate::env::{hosts, vars};
use crate::events::{PodEvents, Severity};
use crate::resources::{cgroup, qos};
use crate::volumes::{self, subpath};

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
    stopping: watch::Receiver<bool>,
) -> Result<Started, StartFailure> {
    let id = new_id();
    let container = r.container.name.clone();
    let uid = r.pod.metadata.uid.clone().unwrap_or_default();
    let started = attempt(&deps, r, &id, stopping).await;
    if started.is_err() {
        // An attempt leaves nothing behind: it may be repeated for days.
        deps.owners
            .lock()
            .unwrap_or_else(|e| e.into_inner())
            .remove(&id);
        let _ = std::fs::remove_file(termination_log(&deps, &uid, &container, &id));
        let links = deps.config.log_dir.join("containers");
        for link in std::fs::read_dir(links).into_iter().flatten().flatten() {
            if link
                .file_name()
                .to_string_lossy()
                .ends_with(&format!("-{id}.log"))
            {
                let _ = std::fs::remove_file(link.path());
            }
        }
    }
    started
}

/// Where an instance leaves its termination message, on the box.
pub fn termination_log(deps: &Deps, uid: &str, container: &str, id: &str) -> PathBuf {
    let short = &id[..id.len().min(8)];
    deps.pod_dirs(uid)
        .disk
        .join("containers")
        .join(container)
        .join(short)
}

async fn attempt(
    deps: &Arc<Deps>,
    r: StartRequest,
    id: &str,
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
        image = deps.images.ensure(&r.container, auth, r.attempt > 0, &r.events) => image,
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
        found.is_some_and(|v| volumes::type_of(v).is_some_and(|t| t.read_only(v)))
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
    deps.store.make_room();
    let create = |why: String| {
        warn("Failed", &format!("Error: {why}"));
        StartFailure::Create(why)
    };
    let id = id.to_string();
    let termination_log = termination_log(deps, &uid, &name, &id);
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
        remove_old_logs(&log_dir, &deps.config.log_dir.join("containers"), r.attempt);
        link_log(&deps.config.log_dir, pod, &name, &id, &log_path)
    })();
    prepared.map_err(|e| create(format!("failed to make the container's files: {e}")))?;
    let at = r
        .container
        .termination_message_path
        .as_deref()
        .filter(|p| !p.is_empty())
        .unwrap_or("/dev/termination-log");
    if !taken(&mounts, at) {
        mounts.push(bind(&termination_log, at, false));
    }
    let resolved = amphipod_runtime::image::user::resolve_in_layers(&image.layers, &user)
        .map_err(|e| create(e.to_string()))?;
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
    let started_at = match deps.runtime.start_container(&id).await {
        Ok(at) => at,
        Err(e) => {
            let message = format!("failed to start container \"{id}\": {}", describe(&e));
            warn("Failed", &format!("Error: {message}"));
            let _ = deps.runtime.remove_container(&id).await;
            return Err(StartFailure::Start { id, message });
        }
    };
    r.events.tell(
        Severity::Normal,
        "Started",
        Some(&name),
        "Container started".into(),
    );
    Ok(Started {
        id,
        started_at,
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

/// Logs of the instance before stay for `kubectl logs --previous`; older ones go, and the links to them.
fn remove_old_logs(dir: &Path, links: &Path, attempt: u32) {
    let Some(oldest) = attempt.checked_sub(2) else {
        return;
    };
    let entries = |dir: &Path| std::fs::read_dir(dir).into_iter().flatten().flatten();
    for entry in entries(dir) {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let number = name.split('.').next().and_then(|n| n.parse::<u32>().ok());
        if number.is_some_and(|n| n <= oldest) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
    for link in entries(links) {
        let stray =
            std::fs::read_link(link.path()).is_ok_and(|to| to.starts_with(dir) && !to.exists());
        if stray {
            let _ = std::fs::remove_file(link.path());
        }
    }
}
