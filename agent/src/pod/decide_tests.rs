#![allow(clippy::unwrap_used)]
use super::*;
use crate::handle::ContainerKind;
use crate::pod::observed::{ContainerState, Exit, Kill};

fn s(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn container(name: &str, kind: ContainerKind, policy: RestartPolicy) -> ContainerPlan {
    ContainerPlan {
        name: name.into(),
        kind,
        policy: if kind == ContainerKind::Sidecar {
            RestartPolicy::Always
        } else {
            policy
        },
        rules: vec![],
        startup_probe: false,
        readiness_probe: false,
        image: "i".into(),
    }
}

fn pod(policy: RestartPolicy, kinds: &[(&str, ContainerKind)]) -> (PodPlan, Observed) {
    let plan = PodPlan {
        policy,
        containers: kinds
            .iter()
            .map(|(n, k)| container(n, *k, policy))
            .collect(),
        grace: s(30),
        host_network: false,
    };
    let seen = Observed::new(&plan);
    (plan, seen)
}

fn ready(seen: &mut Observed) {
    seen.sandbox = Sandbox::Ready {
        ips: vec!["10.42.0.2".parse().unwrap()],
    };
    seen.volumes = Volumes::Ready;
}

fn run(c: &mut ContainerState) {
    c.run = Run::Running {
        id: "x".into(),
        started_at: jiff::Timestamp::UNIX_EPOCH,
    };
    c.busy = None;
    c.started = true;
    c.ready = true;
}

fn exit(c: &mut ContainerState, code: i32, now: Mono) {
    let e = Exit {
        id: "x".into(),
        code,
        signal: None,
        reason: String::new(),
        message: String::new(),
        started_at: None,
        finished_at: None,
    };
    c.exited(e, now);
}

fn starts(d: &Decision) -> Vec<usize> {
    d.actions
        .iter()
        .filter_map(|a| {
            if let Action::Start { index } = a {
                Some(*index)
            } else {
                None
            }
        })
        .collect()
}

fn stops(d: &Decision) -> Vec<usize> {
    d.actions
        .iter()
        .filter_map(|a| {
            if let Action::Stop { index, .. } = a {
                Some(*index)
            } else {
                None
            }
        })
        .collect()
}

use ContainerKind::{Ephemeral, Init, Regular, Sidecar};

#[test]
fn sandbox_and_volumes_are_made_together_and_before_containers() {
    let (plan, mut seen) = pod(RestartPolicy::Always, &[("a", Regular)]);
    assert_eq!(
        decide(&plan, &seen, s(0)).actions,
        [Action::PrepareVolumes, Action::CreateSandbox]
    );
    seen.sandbox = Sandbox::Creating;
    seen.volumes = Volumes::Ready;
    assert_eq!(decide(&plan, &seen, s(0)), Decision::default());
    ready(&mut seen);
    assert_eq!(starts(&decide(&plan, &seen, s(0))), [0]);
}

#[test]
fn a_failed_sandbox_is_tried_again_at_its_time_only() {
    let (plan, mut seen) = pod(RestartPolicy::Always, &[("a", Regular)]);
    seen.volumes = Volumes::Ready;
    seen.retry_sandbox_at = Some(s(5));
    assert_eq!(
        decide(&plan, &seen, s(1)),
        Decision {
            actions: vec![],
            wake_at: Some(s(5))
        }
    );
    assert_eq!(decide(&plan, &seen, s(5)).actions, [Action::CreateSandbox]);
}

#[test]
fn init_containers_run_one_after_the_other_and_sidecars_when_started() {
    let (plan, mut seen) = pod(
        RestartPolicy::Always,
        &[("i", Init), ("side", Sidecar), ("j", Init), ("a", Regular)],
    );
    ready(&mut seen);
    assert_eq!(starts(&decide(&plan, &seen, s(0))), [0]);
    exit(&mut seen.containers[0], 0, s(1));
    assert_eq!(starts(&decide(&plan, &seen, s(1))), [1]);
    run(&mut seen.containers[1]);
    seen.containers[1].started = false;
    assert_eq!(decide(&plan, &seen, s(1)).actions, []);
    seen.containers[1].started = true;
    assert_eq!(starts(&decide(&plan, &seen, s(1))), [2]);
    exit(&mut seen.containers[2], 0, s(2));
    assert_eq!(starts(&decide(&plan, &seen, s(2))), [3]);
    assert_eq!(phase(&plan, &seen), "Pending");
    seen.initialized = true;
    run(&mut seen.containers[3]);
    assert_eq!(phase(&plan, &seen), "Running");
    assert_eq!(decide(&plan, &seen, s(3)), Decision::default());
}

#[test]
fn a_failed_init_container_ends_a_pod_that_never_restarts() {
    let (plan, mut seen) = pod(RestartPolicy::Never, &[("i", Init), ("a", Regular)]);
    ready(&mut seen);
    exit(&mut seen.containers[0], 3, s(1));
    assert_eq!(outcome(&plan, &seen), Some(false));
    assert_eq!(decide(&plan, &seen, s(1)).actions, [Action::TearDown]);
    assert_eq!(phase(&plan, &seen), "Failed");
}

#[test]
fn a_failed_init_container_is_retried_with_back_off_otherwise() {
    let (plan, mut seen) = pod(RestartPolicy::Always, &[("i", Init), ("a", Regular)]);
    ready(&mut seen);
    exit(&mut seen.containers[0], 3, s(1));
    assert_eq!(
        starts(&decide(&plan, &seen, s(1))),
        [0],
        "the first restart is at once"
    );
    seen.containers[0].crash_backoff.bump(s(1));
    exit(&mut seen.containers[0], 3, s(2));
    let d = decide(&plan, &seen, s(3));
    assert_eq!(
        (d.actions, d.wake_at),
        (vec![Action::TellBackoff { index: 0 }], Some(s(12)))
    );
    assert_eq!(starts(&decide(&plan, &seen, s(12))), [0]);
    assert_eq!(phase(&plan, &seen), "Pending");
}

#[test]
fn init_containers_do_not_run_again_once_the_pod_was_initialized() {
    let (plan, mut seen) = pod(RestartPolicy::Always, &[("i", Init), ("a", Regular)]);
    ready(&mut seen);
    seen.initialized = true;
    run(&mut seen.containers[1]);
    assert_eq!(decide(&plan, &seen, s(3)), Decision::default());
    exit(&mut seen.containers[0], 0, s(3));
    seen.sandbox_lost(&plan);
    ready(&mut seen);
    assert_eq!(
        starts(&decide(&plan, &seen, s(3))),
        [0],
        "a new sandbox starts from the beginning"
    );
}

#[test]
fn restart_policies_are_kept() {
    for (policy, code, restarts) in [
        (RestartPolicy::Always, 0, true),
        (RestartPolicy::Always, 1, true),
        (RestartPolicy::OnFailure, 0, false),
        (RestartPolicy::OnFailure, 1, true),
        (RestartPolicy::Never, 0, false),
        (RestartPolicy::Never, 1, false),
    ] {
        let (plan, mut seen) = pod(policy, &[("a", Regular)]);
        ready(&mut seen);
        exit(&mut seen.containers[0], code, s(1));
        let d = decide(&plan, &seen, s(1));
        assert_eq!(!starts(&d).is_empty(), restarts, "{policy:?} {code}");
        let want = if restarts {
            "Running"
        } else if code == 0 {
            "Succeeded"
        } else {
            "Failed"
        };
        assert_eq!(phase(&plan, &seen), want, "{policy:?} {code}");
    }
}

#[test]
fn a_restart_rule_wins_over_the_policy() {
    let (mut plan, mut seen) = pod(RestartPolicy::Never, &[("a", Regular)]);
    plan.containers[0]
        .rules
        .push(super::super::plan::RestartRule {
            codes: vec![42],
            not_in: false,
        });
    ready(&mut seen);
    exit(&mut seen.containers[0], 42, s(1));
    assert_eq!(starts(&decide(&plan, &seen, s(1))), [0]);
    exit(&mut seen.containers[0], 1, s(1));
    assert_eq!(starts(&decide(&plan, &seen, s(1))), [0; 0]);
}

#[test]
fn sidecars_stop_last_and_in_reverse_order_when_the_work_is_done() {
    let (plan, mut seen) = pod(
        RestartPolicy::Never,
        &[
            ("s1", Sidecar),
            ("s2", Sidecar),
            ("a", Regular),
            ("b", Regular),
        ],
    );
    ready(&mut seen);
    seen.initialized = true;
    for c in &mut seen.containers {
        run(c);
    }
    exit(&mut seen.containers[2], 0, s(1));
    assert_eq!(
        decide(&plan, &seen, s(1)),
        Decision::default(),
        "b still works"
    );
    exit(&mut seen.containers[3], 0, s(2));
    assert_eq!(stops(&decide(&plan, &seen, s(2))), [1]);
    seen.containers[1].busy = Some(Busy::Stopping);
    assert_eq!(decide(&plan, &seen, s(2)).actions, []);
    exit(&mut seen.containers[1], 0, s(3));
    assert_eq!(stops(&decide(&plan, &seen, s(3))), [0]);
    exit(&mut seen.containers[0], 137, s(3));
    assert_eq!(decide(&plan, &seen, s(3)).actions, [Action::TearDown]);
    seen.sandbox = Sandbox::Removed;
    seen.cleaned = true;
    assert_eq!(decide(&plan, &seen, s(3)).actions, [Action::Finish]);
    assert_eq!(phase(&plan, &seen), "Succeeded");
}

#[test]
fn a_deleted_pod_stops_everything_then_tears_down_and_starts_nothing() {
    let (plan, mut seen) = pod(
        RestartPolicy::Always,
        &[("side", Sidecar), ("a", Regular), ("b", Regular)],
    );
    ready(&mut seen);
    seen.initialized = true;
    run(&mut seen.containers[0]);
    run(&mut seen.containers[1]);
    exit(&mut seen.containers[2], 1, s(1));
    seen.stop = Some(Stop::Deleted);
    assert_eq!(stops(&decide(&plan, &seen, s(2))), [1]);
    exit(&mut seen.containers[1], 0, s(2));
    assert_eq!(stops(&decide(&plan, &seen, s(2))), [0]);
    exit(&mut seen.containers[0], 0, s(2));
    assert_eq!(decide(&plan, &seen, s(2)).actions, [Action::TearDown]);
}

#[test]
fn a_pod_that_is_deleted_while_its_sandbox_is_made_waits_for_it() {
    let (plan, mut seen) = pod(RestartPolicy::Always, &[("a", Regular)]);
    seen.sandbox = Sandbox::Creating;
    seen.stop = Some(Stop::Deleted);
    assert_eq!(decide(&plan, &seen, s(0)).actions, []);
    ready(&mut seen);
    seen.containers[0].busy = Some(Busy::Starting);
    assert_eq!(decide(&plan, &seen, s(0)).actions, []);
}

#[test]
fn a_failed_probe_or_a_new_image_restarts_a_container() {
    let (mut plan, mut seen) = pod(RestartPolicy::Always, &[("a", Regular)]);
    ready(&mut seen);
    run(&mut seen.containers[0]);
    seen.containers[0].kill = Some(Kill {
        message: "m".into(),
        grace: Some(s(1)),
    });
    assert_eq!(
        decide(&plan, &seen, s(0)).actions,
        [Action::Stop {
            index: 0,
            grace: Some(s(1)),
            message: "m".into()
        }]
    );
    seen.containers[0].kill = None;
    plan.containers[0].image = "j".into();
    let message = "Container a definition changed, will be restarted".into();
    assert_eq!(
        decide(&plan, &seen, s(0)).actions,
        [Action::Stop {
            index: 0,
            grace: None,
            message
        }]
    );
}

#[test]
fn an_image_that_cannot_be_pulled_first_shows_the_error_then_the_back_off() {
    let (plan, mut seen) = pod(RestartPolicy::Always, &[("a", Regular)]);
    ready(&mut seen);
    let w = |r: &str| Waiting {
        reason: r.into(),
        message: String::new(),
    };
    seen.containers[0].waiting = Some(w("ErrImagePull"));
    seen.containers[0].waiting_then = Some((s(5), w("ImagePullBackOff")));
    seen.containers[0].retry_at = Some(s(10));
    assert_eq!(
        decide(&plan, &seen, s(1)),
        Decision {
            actions: vec![],
            wake_at: Some(s(5))
        }
    );
    assert_eq!(
        decide(&plan, &seen, s(5)).actions,
        [Action::ShowWaiting {
            index: 0,
            waiting: w("ImagePullBackOff")
        }]
    );
    assert_eq!(starts(&decide(&plan, &seen, s(10))), [0]);
}

#[test]
fn an_ephemeral_container_starts_once() {
    let (plan, mut seen) = pod(
        RestartPolicy::Always,
        &[("a", Regular), ("debug", Ephemeral)],
    );
    ready(&mut seen);
    run(&mut seen.containers[0]);
    assert_eq!(starts(&decide(&plan, &seen, s(0))), [1]);
    exit(&mut seen.containers[1], 1, s(1));
    assert_eq!(decide(&plan, &seen, s(1)), Decision::default());
}

#[test]
fn an_evicted_pod_fails() {
    let (plan, mut seen) = pod(RestartPolicy::Always, &[("a", Regular)]);
    ready(&mut seen);
    run(&mut seen.containers[0]);
    seen.stop = Some(Stop::Failed {
        reason: "Evicted".into(),
        message: "m".into(),
    });
    assert_eq!(stops(&decide(&plan, &seen, s(0))), [0]);
    assert_eq!(phase(&plan, &seen), "Failed");
}
