//! In-place resize of running containers.

use k8s_openapi::api::core::v1::{Container, Pod};

use super::Actor;
use crate::events::Severity;
use crate::pod::observed::Kill;
use crate::pod::ops;
use crate::resources::cgroup;
use crate::resources::requests::{limits, requests};

impl Actor {
    /// In-place resize (<https://kubernetes.io/docs/tasks/configure-pod-container/resize-container-resources/>): limits of running
    /// containers follow the spec, or the container is restarted if its resizePolicy says so.
    pub(super) fn resize(&mut self, old: &Pod) {
        let mut updates = Vec::new();
        for index in 0..self.plan.containers.len() {
            let name = self.plan.containers[index].name.clone();
            let all = |p: &Pod| {
                let spec = p.spec.as_ref();
                let mut list = spec.into_iter().flat_map(|s| {
                    s.containers
                        .iter()
                        .chain(s.init_containers.iter().flatten())
                });
                list.find(|c| c.name == name).cloned()
            };
            let (Some(before), Some(after)) = (all(old), all(&self.pod)) else {
                continue;
            };
            if before.resources == after.resources || !self.seen.containers[index].running() {
                continue;
            }
            let changed = |resource: &str| {
                let of = |c: &Container| {
                    (
                        requests(c).get(resource).copied(),
                        limits(c).get(resource).copied(),
                    )
                };
                of(&before) != of(&after)
            };
            let mut policies = after.resize_policy.iter().flatten();
            if policies.any(|p| p.restart_policy == "RestartContainer" && changed(&p.resource_name))
            {
                let message = format!("Container {name} resize requires restart");
                self.seen.containers[index].kill = Some(Kill {
                    message,
                    grace: None,
                });
            } else if let Some(id) = self.seen.containers[index].id() {
                updates.push((id.to_string(), cgroup::container(&after)));
            }
        }
        if updates.is_empty() {
            return;
        }
        let (runtime, uid) = (self.deps.runtime.clone(), self.uid.clone());
        let pod = self
            .pod
            .spec
            .as_ref()
            .map(|s| cgroup::pod(s, self.deps.config.pod_pids_limit));
        let events = self.events.clone();
        tokio::spawn(async move {
            let mut result = match pod {
                Some(pod) => runtime.update_sandbox_resources(&uid, &pod).await,
                None => Ok(()),
            };
            for (id, resources) in updates {
                result = result.and(runtime.update_resources(&id, &resources).await);
            }
            if let Err(e) = result {
                events.tell(Severity::Warning, "ResizeError", None, ops::describe(&e));
            }
        });
    }
}
