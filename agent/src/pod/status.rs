//! `status` of a pod, computed from what is known about it. Pure; the kubelet's rules and words.

use std::net::IpAddr;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Container, ContainerState as ApiState, ContainerStateRunning, ContainerStateTerminated,
    ContainerStateWaiting, ContainerStatus, HostIP, Pod, PodCondition, PodIP, PodStatus,
    VolumeMountStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::backoff::Mono;
use super::decide::phase;
use super::observed::{Busy, ContainerState, Exit, Observed, Run, Sandbox, Stop};
use super::plan::{ContainerPlan, PodPlan};
use crate::handle::ContainerKind;
use crate::resources::qos;

/// Scheme of `containerID`s.
pub const RUNTIME_NAME: &str = "amphipod";

/// What the status says beside the pod's own state.
pub struct Context<'a> {
    pub host_ips: &'a [IpAddr],
    pub now: Mono,
    pub time: Timestamp,
}

/// The new status. `previous` is the one told last: transition times come from it.
pub fn pod_status(
    pod: &Pod,
    plan: &PodPlan,
    seen: &Observed,
    previous: &PodStatus,
    cx: &Context,
) -> PodStatus {
    let empty = Default::default();
    let spec = pod.spec.as_ref().unwrap_or(&empty);
    let phase = phase(plan, seen);
    let mut status = PodStatus {
        phase: Some(phase.into()),
        observed_generation: pod.metadata.generation,
        qos_class: previous
            .qos_class
            .clone()
            .or_else(|| Some(qos::class(spec).as_str().into())),
        start_time: previous.start_time.clone().or(Some(Time(cx.time))),
        host_ip: cx.host_ips.first().map(IpAddr::to_string),
        host_ips: Some(
            cx.host_ips
                .iter()
                .map(|ip| HostIP { ip: ip.to_string() })
                .collect(),
        ),
        nominated_node_name: previous.nominated_node_name.clone(),
        resource_claim_statuses: previous.resource_claim_statuses.clone(),
        ..Default::default()
    };
    if let Some(Stop::Failed { reason, message }) = &seen.stop {
        status.reason = Some(reason.clone());
        status.message = Some(message.clone());
    }
    let ips: Vec<IpAddr> = match &seen.sandbox {
        Sandbox::Ready { ips } if plan.host_network => {
            if ips.is_empty() {
                cx.host_ips.to_vec()
            } else {
                ips.clone()
            }
        }
        Sandbox::Ready { ips } => ips.clone(),
        _ => vec![],
    };
    let over = phase == "Succeeded" || phase == "Failed";
    if !ips.is_empty() {
        status.pod_ip = ips.first().map(IpAddr::to_string);
        status.pod_ips = Some(ips.iter().map(|ip| PodIP { ip: ip.to_string() }).collect());
    } else if over || matches!(seen.sandbox, Sandbox::Removing | Sandbox::Removed) {
        // A pod that is over keeps the address it had.
        status.pod_ip = previous.pod_ip.clone();
        status.pod_ips = previous.pod_ips.clone();
    }

    let containers =
        |want: fn(ContainerKind) -> bool, specs: Vec<&Container>| -> Vec<ContainerStatus> {
            plan.containers
                .iter()
                .zip(&seen.containers)
                .filter(|(c, _)| want(c.kind))
                .map(|(c, s)| {
                    container_status(
                        pod,
                        plan,
                        seen,
                        c,
                        s,
                        specs.iter().find(|x| x.name == c.name).copied(),
                        cx,
                        over,
                    )
                })
                .collect()
        };
    let inits = containers(
        |k| matches!(k, ContainerKind::Init | ContainerKind::Sidecar),
        spec.init_containers.iter().flatten().collect(),
    );
    let regular = containers(
        |k| k == ContainerKind::Regular,
        spec.containers.iter().collect(),
    );
    let ephemeral = containers(|k| k == ContainerKind::Ephemeral, vec![]);
    let conditions = conditions(pod, plan, seen, &inits, &regular, phase, previous, cx);
    status.init_container_statuses = (!inits.is_empty()).then_some(inits);
    status.container_statuses = (!regular.is_empty()).then_some(regular);
    status.ephemeral_container_statuses = (!ephemeral.is_empty()).then_some(ephemeral);
    status.conditions = Some(conditions);
    status
}

fn terminated(e: &Exit) -> ApiState {
    ApiState {
        terminated: Some(ContainerStateTerminated {
            container_id: (!e.id.is_empty()).then(|| format!("{RUNTIME_NAME}://{}", e.id)),
            exit_code: e.code,
            finished_at: e.finished_at.map(Time),
            message: (!e.message.is_empty()).then(|| e.message.clone()),
            reason: (!e.reason.is_empty()).then(|| e.reason.clone()),
            signal: e.signal,
            started_at: e.started_at.map(Time),
        }),
        ..Default::default()
    }
}

fn waiting(reason: &str, message: Option<String>) -> ApiState {
    ApiState {
        waiting: Some(ContainerStateWaiting {
            reason: Some(reason.into()),
            message: message.filter(|m| !m.is_empty()),
        }),
        ..Default::default()
    }
}

#[allow(clippy::too_many_arguments)]
fn container_status(
    pod: &Pod,
    plan: &PodPlan,
    seen: &Observed,
    c: &ContainerPlan,
    s: &ContainerState,
    spec: Option<&Container>,
    cx: &Context,
    over: bool,
) -> ContainerStatus {
    let mut last = s.last.as_ref().map(terminated);
    let state = match &s.run {
        Run::Running { started_at, .. } => ApiState {
            running: Some(ContainerStateRunning {
                started_at: Some(Time(*started_at)),
            }),
            ..Default::default()
        },
        Run::Exited(e) => {
            let ends = over || seen.stop.is_some() || !c.restarts_after(e.code);
            let at = s.restart_at(cx.now);
            if let (false, Some(w)) = (ends, &s.waiting) {
                last = Some(terminated(e));
                waiting(&w.reason, Some(w.message.clone()))
            } else if !ends && cx.now < at && s.busy != Some(Busy::Starting) {
                last = Some(terminated(e));
                let m = pod_of(pod);
                let delay = amphipod_api::time::format_duration(s.crash_backoff.delay(cx.now));
                waiting(
                    "CrashLoopBackOff",
                    Some(format!(
                        "back-off {delay} restarting failed container={} pod={m}",
                        c.name
                    )),
                )
            } else {
                terminated(e)
            }
        }
        Run::None => match &s.waiting {
            Some(w) => waiting(&w.reason, Some(w.message.clone())),
            None => {
                // As the kubelet has it: with init containers, everything that has not run yet is initializing.
                let initializing = c.kind != ContainerKind::Ephemeral
                    && plan
                        .containers
                        .iter()
                        .any(|c| matches!(c.kind, ContainerKind::Init | ContainerKind::Sidecar));
                waiting(
                    if initializing {
                        "PodInitializing"
                    } else {
                        "ContainerCreating"
                    },
                    None,
                )
            }
        },
    };
    let running = s.running();
    let started = running && s.started;
    let ready = match c.kind {
        ContainerKind::Init => s.exit().is_some_and(|e| e.code == 0),
        ContainerKind::Ephemeral => false,
        _ => started && (s.ready || !c.readiness_probe) && !over,
    };
    // A container that never ran in this sandbox still shows the identity of its last instance.
    let id = s.id().map(str::to_string).or_else(|| {
        s.last
            .as_ref()
            .map(|e| e.id.clone())
            .filter(|i| !i.is_empty())
    });
    ContainerStatus {
        name: c.name.clone(),
        image: if running || s.exit().is_some() {
            s.image.clone()
        } else {
            c.image.clone()
        },
        image_id: s.image_id.clone(),
        container_id: id.map(|id| format!("{RUNTIME_NAME}://{id}")),
        ready,
        started: Some(if c.kind == ContainerKind::Init {
            false
        } else {
            started
        }),
        restart_count: s.restarts as i32,
        state: Some(state),
        last_state: last.or_else(|| Some(ApiState::default())),
        resources: spec.and_then(|c| c.resources.clone()),
        allocated_resources: spec
            .and_then(|c| c.resources.as_ref())
            .and_then(|r| r.requests.clone()),
        volume_mounts: spec.and_then(|c| c.volume_mounts.as_ref()).map(|mounts| {
            mounts
                .iter()
                .map(|m| VolumeMountStatus {
                    name: m.name.clone(),
                    mount_path: m.mount_path.clone(),
                    read_only: m.read_only,
                    recursive_read_only: m
                        .read_only
                        .filter(|r| *r)
                        .map(|_| m.recursive_read_only.clone().unwrap_or("Disabled".into())),
                    volume_status: None,
                })
                .collect()
        }),
        ..Default::default()
    }
}

/// `NAME_NAMESPACE(UID)`, as the kubelet names pods in its texts.
pub fn pod_of(pod: &Pod) -> String {
    let m = &pod.metadata;
    format!(
        "{}_{}({})",
        m.name.as_deref().unwrap_or_default(),
        m.namespace.as_deref().unwrap_or_default(),
        m.uid.as_deref().unwrap_or_default()
    )
}

/// The conditions that the agent owns. Those of others are theirs to tell.
#[allow(clippy::too_many_arguments)]
fn conditions(
    pod: &Pod,
    plan: &PodPlan,
    seen: &Observed,
    inits: &[ContainerStatus],
    regular: &[ContainerStatus],
    phase: &str,
    previous: &PodStatus,
    cx: &Context,
) -> Vec<PodCondition> {
    let mut list: Vec<PodCondition> = Vec::new();
    let mut push = |type_: &str, ok: bool, reason: &str, message: String| {
        let status = if ok { "True" } else { "False" };
        let old = previous
            .conditions
            .iter()
            .flatten()
            .find(|c| c.type_ == type_);
        let last_transition_time = match old {
            Some(o) if o.status == status => o.last_transition_time.clone(),
            _ => Some(Time(cx.time)),
        };
        list.push(PodCondition {
            type_: type_.into(),
            status: status.into(),
            reason: (!reason.is_empty()).then(|| reason.into()),
            message: (!message.is_empty()).then_some(message),
            last_transition_time,
            last_probe_time: None,
            observed_generation: pod.metadata.generation,
        });
    };
    push(
        "PodReadyToStartContainers",
        matches!(seen.sandbox, Sandbox::Ready { .. }),
        "",
        String::new(),
    );

    let incomplete: Vec<&str> = plan
        .containers
        .iter()
        .zip(&seen.containers)
        .filter(|(c, s)| match c.kind {
            ContainerKind::Init => s.exit().is_none_or(|e| e.code != 0),
            ContainerKind::Sidecar => !s.started,
            _ => false,
        })
        .map(|(c, _)| c.name.as_str())
        .collect();
    if phase == "Succeeded" && !inits.is_empty() {
        push("Initialized", true, "PodCompleted", String::new());
    } else if seen.initialized || incomplete.is_empty() || phase == "Succeeded" {
        push("Initialized", true, "", String::new());
    } else {
        push(
            "Initialized",
            false,
            "ContainersNotInitialized",
            format!(
                "containers with incomplete status: [{}]",
                incomplete.join(" ")
            ),
        );
    }

    let unready: Vec<&str> = inits
        .iter()
        .filter(|c| {
            plan.index_of(&c.name)
                .is_some_and(|i| plan.containers[i].kind == ContainerKind::Sidecar)
        })
        .chain(regular)
        .filter(|c| !c.ready)
        .map(|c| c.name.as_str())
        .collect();
    let (ok, reason, message) = match phase {
        "Succeeded" => (false, "PodCompleted", String::new()),
        "Failed" => (false, "PodFailed", String::new()),
        _ if !unready.is_empty() => (
            false,
            "ContainersNotReady",
            format!("containers with unready status: [{}]", unready.join(" ")),
        ),
        _ => (true, "", String::new()),
    };
    let gates = gate_trouble(pod, previous);
    match (ok, gates) {
        (true, Some(message)) => push("Ready", false, "ReadinessGatesNotReady", message),
        _ => push("Ready", ok, reason, message.clone()),
    }
    push("ContainersReady", ok, reason, message);
    push("PodScheduled", true, "", String::new());
    if let Some(Stop::Failed { reason, message }) = &seen.stop
        && reason == "Evicted"
    {
        push(
            "DisruptionTarget",
            true,
            "TerminationByKubelet",
            message.clone(),
        );
    }
    list
}

/// Why the pod's readiness gates hold it back, if they do.
fn gate_trouble(pod: &Pod, previous: &PodStatus) -> Option<String> {
    let gates = pod.spec.as_ref()?.readiness_gates.as_ref()?;
    let api = pod.status.as_ref().and_then(|s| s.conditions.as_ref());
    let mut trouble = Vec::new();
    for gate in gates {
        let name = &gate.condition_type;
        let found = api
            .into_iter()
            .chain(previous.conditions.as_ref())
            .flatten()
            .find(|c| &c.type_ == name);
        match found {
            None => trouble.push(format!(
                "corresponding condition of pod readiness gate \"{name}\" does not exist."
            )),
            Some(c) if c.status != "True" => trouble.push(format!(
                "the status of pod readiness gate \"{name}\" is not \"True\", but {}",
                c.status
            )),
            Some(_) => {}
        }
    }
    match trouble.len() {
        0 => None,
        1 => trouble.pop(),
        _ => Some(format!("[{}]", trouble.join(", "))),
    }
}
