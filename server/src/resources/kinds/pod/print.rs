//! A pod's row, as upstream's printer has it (`printPod` in `pkg/printers/internalversion`).

use amphipod_api::meta::{
    array_at, bool_at, condition, condition_is_true, i64_at, is_deleting, str_at,
};
use amphipod_api::time::parse_time;
use jiff::Timestamp;
use serde_json::Value;

use crate::resources::table::{age_cell, name, or_none, since};

pub fn row(pod: &Value, now: Timestamp) -> Vec<Value> {
    let summary = summarize(pod);
    let restarts = match summary.last_restart {
        Some(time) if summary.restarts != 0 => {
            format!("{} ({} ago)", summary.restarts, since(time, now))
        }
        _ => summary.restarts.to_string(),
    };
    let ip = match array_at(pod, &["status", "podIPs"]).first() {
        Some(first) => str_at(first, &["ip"]),
        None => str_at(pod, &["status", "podIP"]),
    };
    vec![
        name(pod),
        format!("{}/{}", summary.ready, summary.total).into(),
        summary.reason.into(),
        restarts.into(),
        age_cell(pod, now),
        or_none(ip),
        or_none(str_at(pod, &["spec", "nodeName"])),
        or_none(str_at(pod, &["status", "nominatedNodeName"])),
        or_none(&readiness_gates(pod)),
    ]
}

fn readiness_gates(pod: &Value) -> String {
    let gates = array_at(pod, &["spec", "readinessGates"]);
    if gates.is_empty() {
        return String::new();
    }
    let met = gates
        .iter()
        .filter(|g| condition_is_true(pod, str_at(g, &["conditionType"])))
        .count();
    format!("{met}/{}", gates.len())
}

struct Summary<'a> {
    ready: usize,
    total: usize,
    reason: String,
    restarts: i64,
    /// The latest end of a container that was restarted.
    last_restart: Option<&'a str>,
}

/// The end of the run before this one, if it is later than `than`.
fn later<'a>(status: &'a Value, than: Option<&'a str>) -> Option<&'a str> {
    let time = str_at(status, &["lastState", "terminated", "finishedAt"]);
    let at = |t: &str| parse_time(t);
    match than {
        _ if time.is_empty() => than,
        Some(than) if at(than) >= at(time) => Some(than),
        _ => Some(time),
    }
}

fn exit_reason(terminated: &Value) -> String {
    let reason = str_at(terminated, &["reason"]);
    if !reason.is_empty() {
        return reason.to_owned();
    }
    match i64_at(terminated, &["signal"]).unwrap_or(0) {
        0 => format!(
            "ExitCode:{}",
            i64_at(terminated, &["exitCode"]).unwrap_or(0)
        ),
        signal => format!("Signal:{signal}"),
    }
}

fn summarize(pod: &Value) -> Summary<'_> {
    let containers = array_at(pod, &["spec", "containers"]);
    let init_containers = array_at(pod, &["spec", "initContainers"]);
    let is_sidecar = |name: &str| {
        init_containers
            .iter()
            .any(|c| str_at(c, &["name"]) == name && str_at(c, &["restartPolicy"]) == "Always")
    };
    let sidecars = init_containers
        .iter()
        .filter(|c| str_at(c, &["restartPolicy"]) == "Always")
        .count();
    let phase = str_at(pod, &["status", "phase"]);
    let status_reason = str_at(pod, &["status", "reason"]);
    let mut reason = if status_reason.is_empty() {
        phase
    } else {
        status_reason
    }
    .to_owned();
    if condition(pod, "PodScheduled").is_some_and(|c| str_at(c, &["reason"]) == "SchedulingGated") {
        reason = "SchedulingGated".into();
    }
    let mut ready = 0;
    let mut restarts = 0;
    let mut last_restart = None;
    let mut sidecar_restarts = 0;
    let mut last_sidecar_restart = None;
    let mut initializing = false;

    for (index, status) in array_at(pod, &["status", "initContainerStatuses"])
        .iter()
        .enumerate()
    {
        let sidecar = is_sidecar(str_at(status, &["name"]));
        let count = i64_at(status, &["restartCount"]).unwrap_or(0);
        restarts += count;
        last_restart = later(status, last_restart);
        if sidecar {
            sidecar_restarts += count;
            last_sidecar_restart = later(status, last_sidecar_restart);
        }
        let terminated = status.pointer("/state/terminated");
        let waiting = str_at(status, &["state", "waiting", "reason"]);
        let state = match terminated {
            Some(end) if i64_at(end, &["exitCode"]).unwrap_or(0) == 0 => continue,
            _ if sidecar && bool_at(status, &["started"]) == Some(true) => {
                ready += usize::from(bool_at(status, &["ready"]) == Some(true));
                continue;
            }
            Some(end) => exit_reason(end),
            None if !waiting.is_empty() && waiting != "PodInitializing" => waiting.to_owned(),
            None => format!("{index}/{}", init_containers.len()),
        };
        reason = format!("Init:{state}");
        initializing = true;
        break;
    }

    if !initializing || condition_is_true(pod, "Initialized") {
        restarts = sidecar_restarts;
        last_restart = last_sidecar_restart;
        let mut has_running = false;
        for status in array_at(pod, &["status", "containerStatuses"]).iter().rev() {
            restarts += i64_at(status, &["restartCount"]).unwrap_or(0);
            last_restart = later(status, last_restart);
            let waiting = str_at(status, &["state", "waiting", "reason"]);
            if !waiting.is_empty() {
                reason = waiting.to_owned();
            } else if let Some(end) = status.pointer("/state/terminated") {
                reason = exit_reason(end);
            } else if bool_at(status, &["ready"]) == Some(true)
                && status.pointer("/state/running").is_some()
            {
                has_running = true;
                ready += 1;
            }
        }
        // Some containers are done, others still run.
        if reason == "Completed" && has_running {
            reason = if condition_is_true(pod, "Ready") {
                "Running"
            } else {
                "NotReady"
            }
            .into();
        }
    }

    if is_deleting(pod) {
        if status_reason == "NodeLost" {
            reason = "Unknown".into();
        } else if !matches!(phase, "Succeeded" | "Failed") {
            reason = "Terminating".into();
        }
    }
    Summary {
        ready,
        total: containers.len() + sidecars,
        reason,
        restarts,
        last_restart,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    fn cells(pod: Value) -> Vec<String> {
        let now = parse_time("2024-01-01T01:00:00Z").unwrap();
        row(&pod, now)
            .iter()
            .map(|c| c.as_str().unwrap_or_default().to_owned())
            .collect()
    }

    fn with_status(status: Value) -> Value {
        json!({"metadata": {"name": "p", "creationTimestamp": "2024-01-01T00:00:00Z"},
            "spec": {"containers": [{"name": "a"}, {"name": "b"}]}, "status": status})
    }

    #[test]
    fn a_running_pod_with_a_restart_says_when() {
        let row = cells(with_status(
            json!({"phase": "Running", "podIPs": [{"ip": "10.42.0.2"}], "containerStatuses": [
            {"name": "a", "ready": true, "restartCount": 1, "state": {"running": {}},
                "lastState": {"terminated": {"finishedAt": "2024-01-01T00:55:00Z", "exitCode": 1}}},
            {"name": "b", "ready": false, "restartCount": 0, "state": {"running": {}}}]}),
        ));
        assert_eq!(
            row,
            [
                "p",
                "1/2",
                "Running",
                "1 (5m ago)",
                "60m",
                "10.42.0.2",
                "<none>",
                "<none>",
                "<none>"
            ]
        );
    }

    #[test]
    fn waiting_and_ended_containers_give_their_reason() {
        let status = |state: Value| {
            with_status(
                json!({"phase": "Pending", "containerStatuses": [{"name": "a", "state": state}]}),
            )
        };
        let cases = [
            (
                json!({"waiting": {"reason": "ImagePullBackOff"}}),
                "ImagePullBackOff",
            ),
            (
                json!({"terminated": {"reason": "Error", "exitCode": 1}}),
                "Error",
            ),
            (json!({"terminated": {"exitCode": 3}}), "ExitCode:3"),
            (
                json!({"terminated": {"exitCode": 137, "signal": 9}}),
                "Signal:9",
            ),
            (json!({"running": {}}), "Pending"),
        ];
        for (state, reason) in cases {
            assert_eq!(cells(status(state))[2], reason);
        }
    }

    #[test]
    fn init_containers_show_their_progress() {
        let pod = |statuses: Value| {
            json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "a"}],
                "initContainers": [{"name": "i"}, {"name": "j"}]},
                "status": {"phase": "Pending", "initContainerStatuses": statuses}})
        };
        let done = json!({"name": "i", "state": {"terminated": {"exitCode": 0}}});
        let cases = [
            (json!([{"name": "i", "state": {"running": {}}}]), "Init:0/2"),
            (
                json!([done, {"name": "j", "state": {"waiting": {"reason": "PodInitializing"}}}]),
                "Init:1/2",
            ),
            (
                json!([done, {"name": "j", "state": {"waiting": {"reason": "CrashLoopBackOff"}}}]),
                "Init:CrashLoopBackOff",
            ),
            (
                json!([{"name": "i", "state": {"terminated": {"exitCode": 2}}}]),
                "Init:ExitCode:2",
            ),
        ];
        for (statuses, reason) in cases {
            assert_eq!(cells(pod(statuses))[2], reason);
        }
    }

    #[test]
    fn sidecars_count_as_containers() {
        let row = cells(json!({"metadata": {"name": "p"},
            "spec": {"containers": [{"name": "a"}], "initContainers": [{"name": "s", "restartPolicy": "Always"}]},
            "status": {"phase": "Running",
                "initContainerStatuses": [{"name": "s", "started": true, "ready": true, "restartCount": 2, "state": {"running": {}}}],
                "containerStatuses": [{"name": "a", "ready": true, "restartCount": 0, "state": {"running": {}}}]}}));
        assert_eq!(row[1..4], ["2/2", "Running", "2"]);
    }

    #[test]
    fn a_deleted_pod_is_terminating_unless_it_ended() {
        let pod = |phase: &str| json!({"metadata": {"name": "p", "deletionTimestamp": "2024-01-01T00:00:00Z"}, "status": {"phase": phase}});
        assert_eq!(cells(pod("Running"))[2], "Terminating");
        assert_eq!(cells(pod("Succeeded"))[2], "Succeeded");
    }

    #[test]
    fn completed_beside_running_is_running_or_not_ready() {
        let pod = |ready: &str| {
            with_status(
                json!({"phase": "Running", "conditions": [{"type": "Ready", "status": ready}],
            "containerStatuses": [{"name": "a", "state": {"terminated": {"reason": "Completed", "exitCode": 0}}},
                {"name": "b", "ready": true, "state": {"running": {}}}]}),
            )
        };
        assert_eq!(cells(pod("False"))[1..3], ["1/2", "NotReady"]);
        assert_eq!(cells(pod("True"))[1..3], ["1/2", "Running"]);
    }
}
