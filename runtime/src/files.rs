//! The runtime's directories: what is written before a container or sandbox is made, and removed after it. Blocking; for worker threads.

use std::fs;
use std::io;
use std::path::Path;

use nix::mount::MsFlags;
use serde::{Deserialize, Serialize};

use crate::cgroup::Cgroups;
use crate::devices;
use crate::error::{Error, IoContext, Result};
use crate::host::Host;
use crate::keeper::{self, KeeperConfig};
use crate::oci::{self, Surroundings};
use crate::proto::{Record, SandboxPlan};
use crate::spec::{ContainerSpec, NamespaceMode, PidMode, Resources, Sandbox, SandboxSpec};
use crate::sys::{mount, process};

/// Everything that the preparation of containers needs to know.
#[derive(Debug)]
pub(crate) struct Place {
    pub keeper: KeeperConfig,
    pub cgroup_root: String,
    pub cgroups: Cgroups,
    pub host: Host,
}

/// `sandbox.json`: what containers that join need to know.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct SandboxRecord {
    pub sandbox: Sandbox,
    pub network: NamespaceMode,
    pub ipc: NamespaceMode,
    pub pid: PidMode,
    /// The pod's init and when it started; 0 = none.
    pub init: (i32, u64),
}

const SANDBOX_FILE: &str = "sandbox.json";
const PINS: &str = "ns";
/// containerd's.
const DEFAULT_SHM: u64 = 64 * 1024 * 1024;

/// An id is a file name and part of a cgroup's.
pub(crate) fn check_id(id: &str) -> Result<()> {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if id.is_empty() || id.len() > 128 || id.starts_with('.') || !id.chars().all(good) {
        return Err(Error::Invalid(format!("{id:?} is not an id")));
    }
    Ok(())
}

fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<()> {
    let what = || format!("write {}", path.display());
    let bytes = serde_json::to_vec(value)
        .map_err(io::Error::from)
        .context(what)?;
    // Renamed into place: readers see all of it or nothing.
    let new = path.with_extension("new");
    fs::write(&new, bytes).context(what)?;
    fs::rename(&new, path).context(what)
}

fn read_json<T: for<'de> Deserialize<'de>>(path: &Path) -> io::Result<T> {
    Ok(serde_json::from_slice(&fs::read(path)?)?)
}

fn make_directory(path: &Path) -> Result<()> {
    fs::create_dir_all(path).context(|| format!("make {}", path.display()))
}

/// No error if it is not there.
fn remove_tree(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.context(|| format!("remove {}", path.display())),
    }
}

impl Place {
    /// A group below our root, absolute inside the hierarchies.
    pub(crate) fn cgroup(&self, path: &str) -> Result<String> {
        if path.split('/').any(|part| part == ".." || part == ".") {
            return Err(Error::Invalid(format!("{path:?} is not a cgroup path")));
        }
        let root = self.cgroup_root.trim_end_matches('/');
        let path = path.trim_matches('/');
        Ok(if path.is_empty() {
            root.to_string()
        } else {
            format!("{root}/{path}")
        })
    }

    pub(crate) fn sandbox(&self, id: &str) -> Result<SandboxRecord> {
        check_id(id)?;
        let path = self.keeper.sandbox_run(id).join(SANDBOX_FILE);
        read_json(&path).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => Error::SandboxNotFound(id.to_string()),
            _ => Error::Io {
                context: format!("read {}", path.display()),
                source: e,
            },
        })
    }

    pub(crate) fn sandboxes(&self) -> Vec<SandboxRecord> {
        let all = fs::read_dir(self.keeper.sandbox_run(""))
            .into_iter()
            .flatten();
        all.flatten()
            .filter_map(|entry| read_json(&entry.path().join(SANDBOX_FILE)).ok())
            .collect()
    }

    /// Directories, shared memory and cgroup of a sandbox; the keeper makes the namespaces.
    pub(crate) fn prepare_sandbox(&self, spec: &SandboxSpec) -> Result<SandboxPlan> {
        check_id(&spec.id)?;
        let directory = self.keeper.sandbox_run(&spec.id);
        if directory.join(SANDBOX_FILE).exists() {
            return Err(Error::AlreadyExists(format!("sandbox {}", spec.id)));
        }
        let pins = directory.join(PINS);
        make_directory(&pins)?;
        for name in ["net", "ipc", "uts", "pid"] {
            let path = pins.join(name);
            fs::File::create(&path).context(|| format!("make {}", path.display()))?;
        }
        if spec.ipc == NamespaceMode::Pod {
            let shm = directory.join("shm");
            make_directory(&shm)?;
            let size = spec.shm_size.unwrap_or(DEFAULT_SHM);
            let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
            mount::tmpfs(&shm, flags, &format!("size={size},mode=1777"))
                .context(|| format!("mount {}", shm.display()))?;
        }
        let cgroup = self.cgroup(&spec.cgroup.path)?;
        self.cgroups.ensure(&cgroup)?;
        self.cgroups.apply(&cgroup, &spec.cgroup.resources)?;
        Ok(SandboxPlan {
            directory: pins.to_string_lossy().into_owned(),
            hostname: spec.hostname.clone(),
            net: spec.network == NamespaceMode::Pod,
            ipc: spec.ipc == NamespaceMode::Pod,
            uts: spec.network == NamespaceMode::Pod,
            pid: spec.pid == PidMode::Pod,
            sysctls: spec.sysctls.clone().into_iter().collect(),
        })
    }

    pub(crate) fn finish_sandbox(&self, spec: &SandboxSpec, init: i32) -> Result<Sandbox> {
        let directory = self.keeper.sandbox_run(&spec.id);
        let shm_path = match spec.ipc {
            NamespaceMode::Pod => directory.join("shm"),
            NamespaceMode::Host => "/dev/shm".into(),
        };
        let netns = directory.join(PINS).join("net");
        let sandbox = Sandbox {
            id: spec.id.clone(),
            netns_path: (spec.network == NamespaceMode::Pod).then_some(netns),
            shm_path,
            cgroup_path: self.cgroup(&spec.cgroup.path)?,
            labels: spec.labels.clone(),
        };
        let record = SandboxRecord {
            sandbox: sandbox.clone(),
            network: spec.network,
            ipc: spec.ipc,
            pid: spec.pid,
            init: (init, process::start_ticks(init).unwrap_or(0)),
        };
        write_json(&directory.join(SANDBOX_FILE), &record)?;
        Ok(sandbox)
    }

    /// Ends and removes what belongs to a sandbox. Its containers are gone already.
    pub(crate) fn remove_sandbox(&self, id: &str, cgroup: Option<&str>) -> Result<()> {
        check_id(id)?;
        let directory = self.keeper.sandbox_run(id);
        if let Ok(record) = self.sandbox(id) {
            let (pid, ticks) = record.init;
            // The pidfd first, then the look: the number cannot change hands in between.
            if pid > 0
                && let Ok(pidfd) = process::pidfd_open(pid)
                && process::is_same(pid, ticks)
            {
                let _ = process::pidfd_kill(std::os::fd::AsFd::as_fd(&pidfd), libc::SIGKILL);
            }
        }
        for name in ["net", "ipc", "uts", "pid"] {
            let pin = directory.join(PINS).join(name);
            mount::detach(&pin).context(|| format!("release {}", pin.display()))?;
        }
        let shm = directory.join("shm");
        mount::detach(&shm).context(|| format!("unmount {}", shm.display()))?;
        if let Some(cgroup) = cgroup {
            self.cgroups.remove(cgroup)?;
        }
        remove_tree(&directory)
    }

    /// Writes all that the keeper's child needs to create the container.
    pub(crate) fn prepare_container(&self, spec: &ContainerSpec) -> Result<Record> {
        check_id(&spec.id)?;
        if spec.layers.is_empty() {
            return Err(Error::Invalid(
                "a container needs at least one layer".into(),
            ));
        }
        let sandbox = self.sandbox(&spec.sandbox)?;
        let run = self.keeper.container_run(&spec.id);
        let state = self.keeper.container_state(&spec.id);
        if state.exists() {
            return Err(Error::AlreadyExists(format!("container {}", spec.id)));
        }
        let capabilities = oci::capabilities(spec, &self.host)?;
        let seccomp = match spec.privileged {
            true => None,
            false => {
                let cache = self.keeper.run_dir.join("seccomp");
                crate::seccomp::filter_file(&cache, &spec.seccomp, capabilities)?
            }
        };
        let cgroup = format!("{}/{}", sandbox.sandbox.cgroup_path, spec.id);
        let pins = self.keeper.sandbox_run(&spec.sandbox).join(PINS);
        let around = Surroundings {
            network: sandbox.network,
            ipc: sandbox.ipc,
            pid: sandbox.pid,
            pins: &pins,
            shm: &sandbox.sandbox.shm_path,
            cgroup: &cgroup,
            run: &run,
            state: &state,
        };
        let plan = oci::process_plan(spec, &self.host, capabilities, seccomp)?;
        let config = oci::config(spec, &plan, &self.host, &around)?;
        let root = oci::root_plan(spec, &around);
        let record = record(spec, &cgroup, sandbox.pid)?;
        for directory in [
            &root.upper,
            &root.work,
            &run.join(keeper::ROOT_DIRECTORY),
            &run.join(keeper::OCI_DIRECTORY),
        ] {
            make_directory(directory)?;
        }
        // The upper directory becomes the container's `/`.
        fs::set_permissions(
            &root.upper,
            std::os::unix::fs::PermissionsExt::from_mode(0o755),
        )
        .context(|| format!("set mode of {}", root.upper.display()))?;
        self.cgroups.ensure(&cgroup)?;
        self.cgroups
            .apply(&cgroup, &self.container_resources(&spec.resources))?;
        if let Some(rules) = devices::device_filter(spec)? {
            self.cgroups.restrict_devices(&cgroup, &rules);
        }
        write_json(&run.join(keeper::PROCESS_FILE), &plan)?;
        write_json(&run.join(keeper::ROOT_FILE), &root)?;
        write_json(&run.join("config.json"), &config)?;
        write_json(&state.join(keeper::RECORD_FILE), &record)?;
        Ok(record)
    }

    /// With version 2 the OOM killer takes a container as a whole, as the kubelet has it.
    pub(crate) fn container_resources(&self, resources: &Resources) -> Resources {
        let mut resources = resources.clone();
        if self.cgroups.unified() {
            resources
                .unified
                .entry("memory.oom.group".into())
                .or_insert_with(|| "1".into());
        }
        resources
    }

    /// What only the creation needed: memory on the tmpfs given back.
    pub(crate) fn trim_container(&self, id: &str) {
        let run = self.keeper.container_run(id);
        let _ = fs::remove_file(run.join("config.json"));
        let _ = fs::remove_file(run.join(keeper::ROOT_FILE));
        let _ = fs::remove_dir_all(run.join(keeper::OCI_DIRECTORY));
    }

    /// The record of a container, if it has one.
    pub(crate) fn record(&self, id: &str) -> Result<Record> {
        check_id(id)?;
        let path = self.keeper.container_state(id).join(keeper::RECORD_FILE);
        read_json(&path).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => Error::ContainerNotFound(id.to_string()),
            _ => Error::Io {
                context: format!("read {}", path.display()),
                source: e,
            },
        })
    }

    /// Removes all that belongs to a container that the keeper has forgotten.
    pub(crate) fn remove_container(&self, id: &str, cgroup: Option<&str>) -> Result<()> {
        check_id(id)?;
        if let Some(cgroup) = cgroup {
            self.cgroups.remove(cgroup)?;
        }
        let run = self.keeper.container_run(id);
        let root = run.join(keeper::ROOT_DIRECTORY);
        mount::detach(&root).context(|| format!("unmount {}", root.display()))?;
        remove_tree(&run)?;
        remove_tree(&self.keeper.container_state(id))
    }
}

fn record(spec: &ContainerSpec, cgroup: &str, pid: PidMode) -> Result<Record> {
    let labels =
        serde_json::value::to_raw_value(&spec.labels).map_err(|e| Error::Invalid(e.to_string()))?;
    let created_at = i64::try_from(jiff::Timestamp::now().as_nanosecond()).unwrap_or(i64::MAX);
    Ok(Record {
        id: spec.id.clone(),
        sandbox: spec.sandbox.clone(),
        labels,
        created_at,
        cgroup: cgroup.to_string(),
        terminal: spec.terminal,
        stdin: spec.stdin,
        stdin_once: spec.stdin_once,
        log_path: spec
            .log_path
            .as_ref()
            .map(|p| p.to_string_lossy().into_owned()),
        log_limits: spec.log_limits,
        own_pid_namespace: pid == PidMode::Container,
        stop_signal: oci::signal_number(&spec.stop_signal)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_cannot_leave_their_directory() {
        assert!(check_id("0a1b-c_d.e").is_ok());
        for bad in ["", ".", "..", "a/b", ".x", "a b", "ä"] {
            assert!(check_id(bad).is_err(), "{bad:?}");
        }
    }
}
