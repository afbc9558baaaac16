//! Security contexts (<https://kubernetes.io/docs/tasks/configure-pod-container/security-context/>) as the runtime wants them.
//! Pure; refusals are in the kubelet's words and become CreateContainerConfigError.

use std::path::{Path, PathBuf};

use amphipod_runtime::{DEFAULT_CAPABILITIES, Seccomp};
use k8s_openapi::api::core::v1::{Capabilities, Container, Pod, SeccompProfile};

use crate::pod::status::pod_of;

/// Everything of a container's spec that a security context decides, except who it runs as.
#[derive(Debug, Clone, PartialEq)]
pub struct Security {
    pub capabilities: Vec<String>,
    pub privileged: bool,
    pub no_new_privileges: bool,
    pub read_only_root: bool,
    pub seccomp: Seccomp,
    /// procMount: Unmasked.
    pub unmasked: bool,
    pub apparmor_profile: Option<String>,
}

/// All capabilities that Kubernetes names for `ALL` (capabilities(7), Linux 5.9).
const ALL_CAPABILITIES: [&str; 41] = [
    "CAP_AUDIT_CONTROL",
    "CAP_AUDIT_READ",
    "CAP_AUDIT_WRITE",
    "CAP_BLOCK_SUSPEND",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_KILL",
    "CAP_LEASE",
    "CAP_LINUX_IMMUTABLE",
    "CAP_MAC_ADMIN",
    "CAP_MAC_OVERRIDE",
    "CAP_MKNOD",
    "CAP_NET_ADMIN",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_RAW",
    "CAP_PERFMON",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYSLOG",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_CHROOT",
    "CAP_SYS_MODULE",
    "CAP_SYS_NICE",
    "CAP_SYS_PACCT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_WAKE_ALARM",
];

/// `seccomp_dir` is where Localhost profiles are.
pub fn security(pod: &Pod, container: &Container, seccomp_dir: &Path) -> Result<Security, String> {
    let of_pod = pod.spec.as_ref().and_then(|s| s.security_context.as_ref());
    let own = container.security_context.as_ref();
    let privileged = own.and_then(|s| s.privileged) == Some(true);
    let profile = own
        .and_then(|s| s.seccomp_profile.as_ref())
        .or(of_pod.and_then(|s| s.seccomp_profile.as_ref()));
    let apparmor = own
        .and_then(|s| s.app_armor_profile.as_ref())
        .or(of_pod.and_then(|s| s.app_armor_profile.as_ref()));
    Ok(Security {
        capabilities: capabilities(own.and_then(|s| s.capabilities.as_ref())),
        privileged,
        no_new_privileges: own.and_then(|s| s.allow_privilege_escalation) == Some(false)
            && !privileged,
        read_only_root: own.and_then(|s| s.read_only_root_filesystem) == Some(true),
        seccomp: if privileged {
            Seccomp::Unconfined
        } else {
            seccomp(profile, seccomp_dir)?
        },
        unmasked: own.and_then(|s| s.proc_mount.as_deref()) == Some("Unmasked"),
        apparmor_profile: apparmor
            .filter(|p| p.type_ == "Localhost")
            .and_then(|p| p.localhost_profile.clone()),
    })
}

fn seccomp(profile: Option<&SeccompProfile>, dir: &Path) -> Result<Seccomp, String> {
    match profile.map(|p| p.type_.as_str()) {
        Some("Unconfined") => Ok(Seccomp::Unconfined),
        // Without a wish: the default profile, as a kubelet with --seccomp-default has it.
        None | Some("RuntimeDefault") => Ok(Seccomp::RuntimeDefault),
        Some("Localhost") => match profile.and_then(|p| p.localhost_profile.as_deref()) {
            Some(name)
                if !name.is_empty()
                    && Path::new(name)
                        .components()
                        .all(|c| matches!(c, std::path::Component::Normal(_))) =>
            {
                Ok(Seccomp::Localhost(PathBuf::from(dir).join(name)))
            }
            _ => Err("localhostProfile must be set if seccompProfile type is Localhost.".into()),
        },
        Some(other) => Err(format!("unknown seccomp profile type {other:?}")),
    }
}

/// The runtime's default set, plus `add`, minus `drop`; `ALL` in either.
fn capabilities(wanted: Option<&Capabilities>) -> Vec<String> {
    let full = |c: &str| {
        let c = c.to_uppercase();
        if c.starts_with("CAP_") {
            c
        } else {
            format!("CAP_{c}")
        }
    };
    let add: Vec<String> = wanted
        .and_then(|w| w.add.as_ref())
        .into_iter()
        .flatten()
        .map(|c| full(c))
        .collect();
    let drop: Vec<String> = wanted
        .and_then(|w| w.drop.as_ref())
        .into_iter()
        .flatten()
        .map(|c| full(c))
        .collect();
    let mut set: Vec<String> = if add.iter().any(|c| c == "CAP_ALL") {
        ALL_CAPABILITIES.map(String::from).to_vec()
    } else if drop.iter().any(|c| c == "CAP_ALL") {
        vec![]
    } else {
        DEFAULT_CAPABILITIES.map(String::from).to_vec()
    };
    for c in add {
        if c != "CAP_ALL" && !set.contains(&c) {
            set.push(c);
        }
    }
    set.retain(|c| !drop.contains(c));
    set
}

/// The user to look up in the image (`uid`, `uid:gid`, or what the image says), after the runAsNonRoot check.
pub fn run_as(pod: &Pod, container: &Container, image_user: &str) -> Result<String, String> {
    let of_pod = pod.spec.as_ref().and_then(|s| s.security_context.as_ref());
    let own = container.security_context.as_ref();
    let user = own
        .and_then(|s| s.run_as_user)
        .or(of_pod.and_then(|s| s.run_as_user));
    let group = own
        .and_then(|s| s.run_as_group)
        .or(of_pod.and_then(|s| s.run_as_group));
    let non_root = own
        .and_then(|s| s.run_as_non_root)
        .or(of_pod.and_then(|s| s.run_as_non_root))
        == Some(true);
    if non_root {
        let place = format!("(pod: \"{}\", container: {})", pod_of(pod), container.name);
        let name = image_user.split(':').next().unwrap_or_default();
        match user {
            Some(0) => {
                return Err(format!(
                    "container's runAsUser breaks non-root policy {place}"
                ));
            }
            Some(_) => {}
            None if name.is_empty() || name.parse::<i64>() == Ok(0) => {
                return Err(format!(
                    "container has runAsNonRoot and image will run as root {place}"
                ));
            }
            None if name.parse::<i64>().is_err() => {
                return Err(format!(
                    "container has runAsNonRoot and image has non-numeric user ({name}), cannot verify user is non-root {place}"
                ));
            }
            None => {}
        }
    }
    let base = user.map_or_else(|| image_user.to_string(), |u| u.to_string());
    Ok(match group {
        Some(g) => {
            let name = base.split(':').next().unwrap_or_default();
            format!("{}:{g}", if name.is_empty() { "0" } else { name })
        }
        None => base,
    })
}

/// Groups beside the primary one: the pod's own, fsGroup, and (unless Strict) those that the image's /etc/group lists.
pub fn supplemental_groups(pod: &Pod, from_image: &[u32]) -> Vec<u32> {
    let Some(sc) = pod.spec.as_ref().and_then(|s| s.security_context.as_ref()) else {
        return from_image.to_vec();
    };
    let mut groups: Vec<u32> = match sc.supplemental_groups_policy.as_deref() {
        Some("Strict") => vec![],
        _ => from_image.to_vec(),
    };
    for g in sc
        .supplemental_groups
        .iter()
        .flatten()
        .copied()
        .chain(sc.fs_group)
    {
        if let Ok(g) = u32::try_from(g)
            && !groups.contains(&g)
        {
            groups.push(g);
        }
    }
    groups
}

/// Sysctls that any pod may set (<https://kubernetes.io/docs/tasks/administer-cluster/sysctl-cluster/>).
const SAFE_SYSCTLS: [&str; 12] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_wmem",
];

/// The pod's first sysctl that this node does not allow.
pub fn forbidden_sysctl<'a>(pod: &'a Pod, allowed: &[String]) -> Option<&'a str> {
    let list = pod
        .spec
        .as_ref()?
        .security_context
        .as_ref()?
        .sysctls
        .as_ref()?;
    let fine = |name: &str| {
        let name = name.replace('/', ".");
        SAFE_SYSCTLS.contains(&name.as_str())
            || allowed.iter().any(|a| {
                a.strip_suffix('*')
                    .map_or(*a == name, |prefix| name.starts_with(prefix))
            })
    };
    list.iter().map(|s| s.name.as_str()).find(|n| !fine(n))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    fn pod(security: serde_json::Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"}, "spec": {"containers": [], "securityContext": security}})).unwrap()
    }

    fn container(security: serde_json::Value) -> Container {
        serde_json::from_value(json!({"name": "c", "securityContext": security})).unwrap()
    }

    #[test]
    fn users_come_from_container_pod_and_image_in_this_order() {
        let r = |p, c, image| run_as(&pod(p), &container(c), image);
        assert_eq!(r(json!({}), json!({}), "").unwrap(), "");
        assert_eq!(
            r(json!({}), json!({}), "nobody:nogroup").unwrap(),
            "nobody:nogroup"
        );
        assert_eq!(
            r(json!({"runAsUser": 5}), json!({}), "nobody").unwrap(),
            "5"
        );
        assert_eq!(
            r(
                json!({"runAsUser": 5, "runAsGroup": 6}),
                json!({"runAsUser": 7}),
                ""
            )
            .unwrap(),
            "7:6"
        );
        assert_eq!(
            r(json!({"runAsGroup": 6}), json!({}), "app:app").unwrap(),
            "app:6"
        );
    }

    #[test]
    fn run_as_non_root_is_enforced_in_the_kubelets_words() {
        let r = |c, image| {
            run_as(&pod(json!({"runAsNonRoot": true})), &container(c), image).unwrap_err()
        };
        let place = "(pod: \"p_n(u)\", container: c)";
        assert_eq!(
            r(json!({}), ""),
            format!("container has runAsNonRoot and image will run as root {place}")
        );
        assert_eq!(
            r(json!({}), "0"),
            format!("container has runAsNonRoot and image will run as root {place}")
        );
        assert_eq!(
            r(json!({"runAsUser": 0}), "5"),
            format!("container's runAsUser breaks non-root policy {place}")
        );
        assert_eq!(
            r(json!({}), "app"),
            format!(
                "container has runAsNonRoot and image has non-numeric user (app), cannot verify user is non-root {place}"
            )
        );
        assert_eq!(
            run_as(
                &pod(json!({"runAsNonRoot": true})),
                &container(json!({})),
                "1000"
            )
            .unwrap(),
            "1000"
        );
    }

    #[test]
    fn capabilities_are_added_and_dropped() {
        let c = |v: serde_json::Value| capabilities(Some(&serde_json::from_value(v).unwrap()));
        assert_eq!(capabilities(None).len(), 14);
        assert!(c(json!({"add": ["NET_ADMIN"]})).contains(&"CAP_NET_ADMIN".to_string()));
        assert!(!c(json!({"drop": ["KILL"]})).contains(&"CAP_KILL".to_string()));
        assert_eq!(
            c(json!({"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]})),
            ["CAP_NET_BIND_SERVICE"]
        );
        assert_eq!(c(json!({"add": ["ALL"], "drop": ["SYS_ADMIN"]})).len(), 40);
    }

    #[test]
    fn unsafe_sysctls_need_permission() {
        let p = pod(
            json!({"sysctls": [{"name": "net.ipv4.tcp_syncookies", "value": "1"}, {"name": "net.core.somaxconn", "value": "1024"}]}),
        );
        assert_eq!(forbidden_sysctl(&p, &[]), Some("net.core.somaxconn"));
        assert_eq!(forbidden_sysctl(&p, &["net.core.*".into()]), None);
    }
}
