//! Builds the runtime's container spec. Pure, but for pinning subPaths.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use amphipod_runtime::image::Image;
use amphipod_runtime::{ContainerSpec, LogLimits, Mount, MountKind, Propagation, Resources, User};
use k8s_openapi::api::core::v1::{Container, Pod};

use super::security::Security;
use crate::env::expand::{expand, unresolved};
use crate::env::vars::Environment;

/// Labels by which the agent knows its containers again.
pub mod label {
    pub const POD_UID: &str = "io.kubernetes.pod.uid";
    pub const POD_NAME: &str = "io.kubernetes.pod.name";
    pub const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
    pub const CONTAINER: &str = "io.kubernetes.container.name";
    /// Number of this instance, from 0.
    pub const ATTEMPT: &str = "io.kubernetes.container.attempt";
    pub const IMAGE: &str = "io.amphipod.image";
    pub const IMAGE_ID: &str = "io.amphipod.image-id";
    /// Path of the file that the container writes its termination message to, on the box.
    pub const TERMINATION_LOG: &str = "io.amphipod.termination-log";
    pub const LOG: &str = "io.amphipod.log";
    /// On sandboxes: the Pod object, so that a lost database can be made again from what runs.
    pub const POD: &str = "io.amphipod.pod";
}

/// Everything a container is made from.
pub struct Parts<'a> {
    pub id: String,
    pub pod: &'a Pod,
    pub container: &'a Container,
    pub attempt: u32,
    pub image: &'a Image,
    pub image_id: String,
    pub env: Environment,
    pub mounts: Vec<Mount>,
    pub user: User,
    pub home: Option<String>,
    pub hostname: &'a str,
    pub security: Security,
    pub resources: Resources,
    pub oom_score_adj: i32,
    pub log_path: PathBuf,
    pub log_limits: LogLimits,
    pub termination_log: PathBuf,
}

/// The command line (<https://kubernetes.io/docs/tasks/inject-data-application/define-command-argument-container/>).
fn command_line(container: &Container, image: &Image, env: &Environment) -> Vec<String> {
    let expanded = |list: Option<&Vec<String>>| -> Vec<String> {
        list.into_iter()
            .flatten()
            .map(|a| expand(a, env.lookup()))
            .collect()
    };
    let (command, args) = (
        expanded(container.command.as_ref()),
        expanded(container.args.as_ref()),
    );
    match (command.is_empty(), args.is_empty()) {
        (false, _) => command.into_iter().chain(args).collect(),
        (true, false) => image
            .config
            .entrypoint
            .iter()
            .cloned()
            .chain(args)
            .collect(),
        (true, true) => image
            .config
            .entrypoint
            .iter()
            .chain(&image.config.cmd)
            .cloned()
            .collect(),
    }
}

/// The spec, or why there cannot be one (CreateContainerError).
pub fn container_spec(parts: Parts) -> Result<ContainerSpec, String> {
    let Parts {
        pod,
        container,
        image,
        env,
        security,
        ..
    } = parts;
    let args = command_line(container, image, &env);
    if args.is_empty() {
        return Err("failed to generate container spec: no command specified".into());
    }
    let mut all = Environment::default();
    all.set(
        "PATH",
        "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into(),
    );
    all.set("HOSTNAME", parts.hostname.to_string());
    for var in &image.config.env {
        let (name, value) = var.split_once('=').unwrap_or((var, ""));
        all.set(name, value.to_string());
    }
    for var in env.into_strings() {
        let (name, value) = var.split_once('=').unwrap_or((&var, ""));
        all.set(name, value.to_string());
    }
    if all.get("HOME").is_none()
        && let Some(home) = parts.home
    {
        all.set("HOME", home);
    }
    let cwd = container
        .working_dir
        .clone()
        .filter(|d| !d.is_empty())
        .unwrap_or_else(|| image.config.working_dir.clone());
    let m = &pod.metadata;
    let text = |o: &Option<String>| o.clone().unwrap_or_default();
    let labels: BTreeMap<String, String> = [
        (label::POD_UID, text(&m.uid)),
        (label::POD_NAME, text(&m.name)),
        (label::POD_NAMESPACE, text(&m.namespace)),
        (label::CONTAINER, container.name.clone()),
        (label::ATTEMPT, parts.attempt.to_string()),
        (label::IMAGE, text(&container.image)),
        (label::IMAGE_ID, parts.image_id),
        (
            label::TERMINATION_LOG,
            parts.termination_log.to_string_lossy().into_owned(),
        ),
        (label::LOG, parts.log_path.to_string_lossy().into_owned()),
    ]
    .map(|(k, v)| (k.to_string(), v))
    .into();
    let stop_signal = container
        .lifecycle
        .as_ref()
        .and_then(|l| l.stop_signal.clone());
    Ok(ContainerSpec {
        id: parts.id,
        sandbox: text(&m.uid),
        labels,
        layers: image.layers.clone(),
        args,
        env: all.into_strings(),
        cwd,
        user: parts.user,
        terminal: container.tty == Some(true),
        stdin: container.stdin == Some(true),
        stdin_once: container.stdin_once == Some(true),
        mounts: parts.mounts,
        capabilities: security.capabilities,
        privileged: security.privileged,
        no_new_privileges: security.no_new_privileges,
        read_only_root: security.read_only_root,
        seccomp: security.seccomp,
        masked_paths: security.unmasked.then(Vec::new),
        readonly_paths: security.unmasked.then(Vec::new),
        apparmor_profile: security.apparmor_profile,
        oom_score_adj: Some(parts.oom_score_adj),
        resources: parts.resources,
        log_path: Some(parts.log_path),
        log_limits: parts.log_limits,
        stop_signal: stop_signal.unwrap_or_else(|| image.config.stop_signal.clone()),
        ..Default::default()
    })
}

/// A file of the pod's own directory that every container gets.
pub fn bind(source: &Path, destination: &str, readonly: bool) -> Mount {
    Mount {
        kind: MountKind::Bind,
        source: source.to_path_buf(),
        destination: destination.into(),
        readonly,
        ..Default::default()
    }
}

/// The container's volume mounts. `paths`: volumes that are ready; `read_only`: volumes whose type is never writable.
/// `pin` turns a subPath into a path that is safe to mount. Errors become CreateContainerConfigError.
pub fn volume_mounts(
    container: &Container,
    paths: &BTreeMap<String, PathBuf>,
    read_only: &dyn Fn(&str) -> bool,
    env: &Environment,
    mut pin: impl FnMut(usize, &str, &Path, &str) -> Result<PathBuf, String>,
) -> Result<Vec<Mount>, String> {
    let mut mounts = Vec::new();
    for (index, m) in container.volume_mounts.iter().flatten().enumerate() {
        let volume = paths.get(&m.name).ok_or_else(|| {
            format!(
                "cannot find volume \"{}\" to mount into container \"{}\"",
                m.name, container.name
            )
        })?;
        let sub = match (
            m.sub_path.as_deref().unwrap_or_default(),
            m.sub_path_expr.as_deref().unwrap_or_default(),
        ) {
            ("", "") => None,
            ("", expr) => {
                let missing = unresolved(expr, env.lookup());
                if let Some(name) = missing.first() {
                    return Err(format!("missing value for \"{name}\""));
                }
                Some(expand(expr, env.lookup()))
            }
            (path, _) => Some(path.to_string()),
        };
        let source = match sub {
            None => volume.clone(),
            Some(sub) => {
                if sub.starts_with('/') {
                    return Err(format!(
                        "error SubPath `{sub}` must not be an absolute path"
                    ));
                }
                if sub.split('/').any(|p| p == "..") {
                    return Err(format!(
                        "unable to provision SubPath `{sub}`: must not contain '..'"
                    ));
                }
                if sub.is_empty() {
                    volume.clone()
                } else {
                    pin(index, &m.name, volume, &sub)?
                }
            }
        };
        let readonly = m.read_only == Some(true) || read_only(&m.name);
        // As containerd has it: relative mount paths are below the root.
        let destination = if m.mount_path.starts_with('/') {
            m.mount_path.clone()
        } else {
            format!("/{}", m.mount_path)
        };
        mounts.push(Mount {
            kind: MountKind::Bind,
            source,
            destination: destination.into(),
            readonly,
            recursive: true,
            recursive_readonly: readonly
                && matches!(
                    m.recursive_read_only.as_deref(),
                    Some("Enabled" | "IfPossible")
                ),
            propagation: match m.mount_propagation.as_deref() {
                Some("HostToContainer") => Propagation::HostToContainer,
                Some("Bidirectional") => Propagation::Bidirectional,
                _ => Propagation::Private,
            },
        });
    }
    // Outer mounts first, whatever the order in the spec.
    mounts.sort_by_key(|m| m.destination.components().count());
    Ok(mounts)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    fn c(v: serde_json::Value) -> Container {
        let mut o = json!({"name": "c"});
        o.as_object_mut()
            .unwrap()
            .extend(v.as_object().unwrap().clone());
        serde_json::from_value(o).unwrap()
    }

    fn image() -> Image {
        let config = amphipod_runtime::image::ImageConfig {
            entrypoint: vec!["e".into()],
            cmd: vec!["d".into()],
            ..Default::default()
        };
        let id = amphipod_runtime::image::Digest::sha256(b"");
        Image {
            id,
            repo_tags: vec![],
            repo_digests: vec![],
            size_bytes: 0,
            disk_bytes: 0,
            config,
            layers: vec![],
        }
    }

    #[test]
    fn command_and_args_replace_entrypoint_and_cmd() {
        let mut env = Environment::default();
        env.set("A", "1".into());
        let line = |v| command_line(&c(v), &image(), &env);
        assert_eq!(line(json!({})), ["e", "d"]);
        assert_eq!(line(json!({"args": ["$(A)"]})), ["e", "1"]);
        assert_eq!(line(json!({"command": ["x"]})), ["x"]);
        assert_eq!(
            line(json!({"command": ["x"], "args": ["y", "$(NO)"]})),
            ["x", "y", "$(NO)"]
        );
    }

    #[test]
    fn mounts_know_their_volume_and_refuse_bad_sub_paths() {
        let paths = [("v".to_string(), PathBuf::from("/vol"))].into();
        let mut env = Environment::default();
        env.set("N", "x".into());
        let get = |mount: serde_json::Value| {
            volume_mounts(
                &c(json!({"volumeMounts": [mount]})),
                &paths,
                &|_| false,
                &env,
                |i, _, v, s| Ok(v.join(format!("{i}-{s}"))),
            )
        };
        let m = get(json!({"name": "v", "mountPath": "/m", "readOnly": true})).unwrap();
        assert_eq!(
            (m[0].source.as_path(), m[0].readonly),
            (Path::new("/vol"), true)
        );
        let m = get(json!({"name": "v", "mountPath": "/m", "subPathExpr": "a/$(N)"})).unwrap();
        assert_eq!(m[0].source, Path::new("/vol/0-a/x"));
        assert_eq!(
            get(json!({"name": "v", "mountPath": "/m", "subPathExpr": "$(NO)"})).unwrap_err(),
            "missing value for \"NO\""
        );
        assert!(get(json!({"name": "v", "mountPath": "/m", "subPath": "a/../b"})).is_err());
        assert!(
            get(json!({"name": "no", "mountPath": "/m"}))
                .unwrap_err()
                .contains("cannot find volume \"no\"")
        );
    }
}
