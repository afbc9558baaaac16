//! Uninstall: removes every pod, and everything that the agent made on this box.

use amphipod_runtime::{Runtime, RuntimeConfig};
use anyhow::{Context, Result};

use crate::config::AgentConfig;

/// Says what there is to remove, one line each; with `really`, removes it. The agent must not be running. `keep_volumes`: not the data
/// of persistent volumes, of which there is no other copy.
pub async fn reset(config: &AgentConfig, really: bool, keep_volumes: bool) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    let state_dir = config.data_dir.join("runtime");
    if state_dir.exists() {
        let runtime = Runtime::open(RuntimeConfig {
            state_dir,
            run_dir: config.run_dir.join("runtime"),
            cgroup_root: config.cgroup_root.to_string_lossy().into_owned(),
            helper: config.helper_exe.clone(),
        })
        .await
        .context("opening the container runtime")?;
        for s in runtime.list_sandboxes().await? {
            lines.push(format!("pod sandbox {}", s.id));
            if really {
                runtime
                    .remove_sandbox(&s.id)
                    .await
                    .with_context(|| format!("removing sandbox {}", s.id))?;
            }
        }
        if really {
            runtime
                .remove_cgroup("")
                .await
                .context("removing the pods' cgroup")?;
            runtime.stop_keeper().await.context("stopping the keeper")?;
        }
    }
    let base = config.data_dir.join("pods");
    for entry in std::fs::read_dir(&base).into_iter().flatten().flatten() {
        let uid = entry.file_name();
        let dirs = crate::volumes::PodDirs {
            disk: entry.path(),
            memory: config.run_dir.join("pods").join(&uid),
        };
        if really {
            crate::volumes::remove_pod(&dirs)
                .with_context(|| format!("removing {}", entry.path().display()))?;
        }
    }
    lines.push("network devices and rules".into());
    if really {
        crate::agent::tear_down_network(config)
            .await
            .context("removing the pod network")?;
    }
    for dir in [
        config.log_dir.join("pods"),
        config.log_dir.join("containers"),
        config.run_dir.clone(),
        config.data_dir.clone(),
        config.storage_dir.clone(),
    ] {
        if dir.exists() && !(keep_volumes && dir == config.storage_dir) {
            lines.push(dir.display().to_string());
            if really {
                std::fs::remove_dir_all(&dir)
                    .with_context(|| format!("removing {}", dir.display()))?;
            }
        }
    }
    Ok(lines)
}
