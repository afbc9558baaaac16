//! Namespaces, cgroup, network, and the files that every container of the pod sees.

use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use amphipod_netplug::{HostPort, PodAttach, Protocol};
use amphipod_runtime::{NamespaceMode, PidMode, PodCgroup, SandboxSpec};
use k8s_openapi::api::core::v1::Pod;

use super::{blocking, describe};
use crate::deps::Deps;
use crate::env::{hosts, resolv};
use crate::resources::cgroup;

/// A pod's sandbox that is ready.
#[derive(Debug, Clone)]
pub struct SandboxInfo {
    pub ips: Vec<IpAddr>,
    pub netns: Option<PathBuf>,
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
            resources: cgroup::pod(spec, deps.config.pod_pids_limit),
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
            (
                crate::container::spec::label::POD.to_string(),
                serde_json::to_string(&*pod).unwrap_or_default(),
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
        let (deps, pod) = (deps.clone(), pod.clone());
        let connect = move || {
            let ips = network.attach(&attach)?.ips;
            let node = &deps.config.node_name;
            deps.policies.admit(&network, node, &pod, &ips);
            Ok::<_, amphipod_netplug::Error>(ips)
        };
        blocking(connect)
            .await?
            .map_err(|e| format!("failed to set up pod network: {}", describe(&e)))?
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
