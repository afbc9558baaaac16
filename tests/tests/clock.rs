//! Wall clocks are wrong: set by a year, or in 1970 because the box has no battery. Pods do not care, and what has an end by the
//! wall clock (certificates, tokens) mends itself.

#![allow(clippy::unwrap_used)]

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use amphipod_tests::{BUSYBOX, EdgeBox, Kubectl, Lan, Ran, Registry, binary, eventually};
use serde_json::Value;

const YEAR: i64 = 400 * 24 * 3600;
const READY: &str = "jsonpath={.status.conditions[?(@.type==\"Ready\")].status}";

/// A pod that shows its service account token and is asked by a probe every second.
fn probed(name: &str, node: &EdgeBox) -> String {
    format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{app: probed}}}}
spec:
  nodeSelector: {{kubernetes.io/hostname: {}}}
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: {BUSYBOX}
    command: [sh, -c, 'sleep 36000']
    livenessProbe: {{exec: {{command: ['true']}}, periodSeconds: 1, failureThreshold: 1}}
    readinessProbe: {{exec: {{command: ['true']}}, periodSeconds: 1}}
",
        node.name()
    )
}

/// Whether a pod is as it was: its container, and that nobody wants it gone.
fn state(kubectl: &Kubectl, name: &str) -> Result<(String, u64), String> {
    let ran = kubectl.run(&["get", "pod", name, "-o", "json"]);
    if ran.code != 0 {
        return Err(ran.stderr);
    }
    let pod: Value = serde_json::from_str(&ran.stdout).map_err(|error| error.to_string())?;
    let status = &pod["status"]["containerStatuses"][0];
    let well = status["ready"] == true && pod["metadata"]["deletionTimestamp"].is_null();
    if !well {
        return Err(pod.to_string());
    }
    let id = status["containerID"].as_str().unwrap_or_default();
    Ok((id.to_owned(), status["restartCount"].as_u64().unwrap_or(0)))
}

#[track_caller]
fn is_as_before(kubectl: &Kubectl, name: &str, before: &(String, u64)) {
    let now = eventually("the pod to be ready", Duration::from_secs(60), || {
        state(kubectl, name)
    });
    assert_eq!(&now, before, "{name} was restarted");
}

#[track_caller]
fn node_is_ready(kubectl: &Kubectl, node: &EdgeBox) {
    eventually("the node to be Ready", Duration::from_secs(60), || {
        let ran = kubectl.run(&["get", "node", node.name(), "-o", READY]);
        if ran.stdout == "True" {
            Ok(())
        } else {
            Err(format!("{ran:?}"))
        }
    });
}

/// Seconds since 1970 of the Lease's last renewal, by the clock of its node.
fn renewed(kubectl: &Kubectl, node: &EdgeBox) -> Result<i64, String> {
    let ran = kubectl.run(&[
        "get",
        "lease",
        "-n",
        "kube-node-lease",
        node.name(),
        "-o",
        "jsonpath={.spec.renewTime}",
    ]);
    let text = ran.stdout.trim().to_owned();
    let year: i64 = text
        .get(..4)
        .and_then(|year| year.parse().ok())
        .ok_or(format!("{ran:?}"))?;
    Ok((year - 1970) * 365 * 24 * 3600)
}

fn now() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    now.as_secs() as i64
}

/// The Lease is renewed by a clock that stands `offset` beside ours, give or take a year's end.
#[track_caller]
fn lease_goes_on(kubectl: &Kubectl, node: &EdgeBox, offset: i64) {
    eventually("the Lease to go on", Duration::from_secs(60), || {
        let year = renewed(kubectl, node)?;
        let away = (now() + offset - year) / (24 * 3600);
        if (-30..396).contains(&away) {
            Ok(())
        } else {
            Err(format!("{away} days away"))
        }
    });
}

/// The token that the pod has is taken by the server.
#[track_caller]
fn token_is_good(edge_box: &EdgeBox, kubectl: &Kubectl, pod: &str) {
    let path = "/var/run/secrets/kubernetes.io/serviceaccount/token";
    eventually(
        "the pod's token to be good",
        Duration::from_secs(90),
        || {
            let token = kubectl.run(&["exec", pod, "--", "cat", path]);
            if token.code != 0 {
                return Err(token.stderr);
            }
            let mut command = edge_box.command("curl");
            command.args([
                "-sS",
                "-k",
                "-H",
                &format!("Authorization: Bearer {}", token.stdout.trim()),
                "https://127.0.0.1:6443/api",
            ]);
            let ran = Ran::of(&mut command, b"");
            if ran.stdout.contains("APIVersions") {
                Ok(())
            } else {
                Err(format!("{ran:?}"))
            }
        },
    );
}

#[test]
fn a_clock_that_jumps_by_a_year_and_back_harms_nothing() {
    let lan = Lan::new();
    let mut edge_box = EdgeBox::new(&lan);
    let _registry = Registry::start(&edge_box);
    edge_box.give_clock();
    edge_box.start(&[]);
    edge_box.wait_until_ready();
    let kubectl = edge_box.kubectl();
    kubectl.apply(&probed("it", &edge_box));
    kubectl.wait_for("pod/it", "condition=Ready", 30);
    let before = state(&kubectl, "it").unwrap();
    let program = edge_box.program_pid();
    for (round, offset) in [YEAR, 0, -YEAR, 2 * YEAR, 0].into_iter().enumerate() {
        println!("round {round}: {} days", offset / 86400);
        edge_box.set_clock(offset);
        node_is_ready(&kubectl, &edge_box);
        lease_goes_on(&kubectl, &edge_box, offset);
        node_is_ready(&kubectl, &edge_box);
        is_as_before(&kubectl, "it", &before);
        // Work goes on: a new pod, exec, and the way from a pod to the API.
        let name = format!("new-{round}");
        kubectl.apply(&probed(&name, &edge_box));
        kubectl.wait_for(&format!("pod/{name}"), "condition=Ready", 60);
        token_is_good(&edge_box, &kubectl, &name);
        token_is_good(&edge_box, &kubectl, "it");
        is_as_before(&kubectl, "it", &before);
    }
    assert_eq!(edge_box.program_pid(), program);
    let panics = edge_box.log().matches("panicked").count();
    assert_eq!(panics, 0, "{}", edge_box.log());
    // And over a restart in another year.
    edge_box.set_clock(YEAR);
    edge_box.kill_program();
    edge_box.start(&[]);
    edge_box.wait_until_ready();
    is_as_before(&kubectl, "it", &before);
    let events = kubectl.run(&["get", "events"]).ok();
    assert!(
        !events.contains("Evict") && !events.contains("Killing"),
        "{events}"
    );
}

/// A server's box and one that joined it, with a ready pod.
#[track_caller]
fn two_boxes(lan: &Lan, agents_clock: bool) -> (EdgeBox, EdgeBox, Registry) {
    let mut server = EdgeBox::new(lan);
    let mut agent = EdgeBox::new(lan);
    let registry = Registry::start(&agent);
    if agents_clock {
        agent.give_clock();
    } else {
        server.give_clock();
    }
    server.start(&[]);
    server.wait_until_ready();
    let program = binary();
    let line = server
        .run(&[program.to_str().unwrap(), "token", "create"])
        .ok();
    agent.start_agent(&line.split_whitespace().skip(2).collect::<Vec<_>>());
    let kubectl = server.kubectl();
    node_is_ready(&kubectl, &agent);
    kubectl.apply(&probed("it", &agent));
    kubectl.wait_for("pod/it", "condition=Ready", 60);
    (server, agent, registry)
}

#[test]
fn a_box_whose_clock_alone_jumps_stays_in_its_cluster() {
    let lan = Lan::new();
    let (server, mut agent, _registry) = two_boxes(&lan, true);
    let kubectl = server.kubectl();
    let before = state(&kubectl, "it").unwrap();
    for offset in [YEAR, -YEAR, -now() + 60, 0] {
        println!("{} days", offset / 86400);
        agent.set_clock(offset);
        lease_goes_on(&kubectl, &agent, offset);
        // Also with connections that are made anew.
        agent.kill_program();
        agent.start_agent(&[]);
        lease_goes_on(&kubectl, &agent, offset);
        node_is_ready(&kubectl, &agent);
        is_as_before(&kubectl, "it", &before);
        token_is_good(&server, &kubectl, "it");
    }
}

#[test]
fn a_server_whose_clock_alone_jumps_loses_no_box() {
    let lan = Lan::new();
    let (mut server, agent, _registry) = two_boxes(&lan, false);
    let kubectl = server.kubectl();
    let before = state(&kubectl, "it").unwrap();
    for offset in [YEAR, 0, -YEAR, 0] {
        println!("{} days", offset / 86400);
        server.set_clock(offset);
        node_is_ready(&kubectl, &agent);
        server.kill_program();
        server.start(&[]);
        node_is_ready(&kubectl, &agent);
        is_as_before(&kubectl, "it", &before);
        // The agent is still heard: a new pod runs there.
        let name = format!("new{}", offset / 86400);
        kubectl.apply(&probed(&name, &agent));
        kubectl.wait_for(&format!("pod/{name}"), "condition=Ready", 90);
        kubectl.run(&["delete", "pod", &name]).ok();
    }
}

#[test]
fn a_box_that_wakes_up_in_1970_without_a_server_runs_its_pods() {
    let lan = Lan::new();
    let (mut server, mut agent, registry) = two_boxes(&lan, true);
    let kubectl = server.kubectl();
    drop(registry);
    agent.power_off();
    server.kill_program();
    agent.power_on(&lan);
    agent.set_clock(-now() + 5);
    agent.start_agent(&[]);
    eventually("the pod to run again", Duration::from_secs(30), || {
        let ran = agent.run(&["pgrep", "-f", "^sleep 36000"]);
        if ran.code == 0 {
            Ok(())
        } else {
            Err(agent.log())
        }
    });
    // The server comes back while the box is still in 1970, and then somebody sets its clock.
    server.start(&[]);
    node_is_ready(&kubectl, &agent);
    let again = eventually("the pod to be told", Duration::from_secs(60), || {
        let now = state(&kubectl, "it")?;
        // Once, by the power cut.
        if now.1 == 1 {
            Ok(now)
        } else {
            Err(format!("{now:?}"))
        }
    });
    agent.set_clock(0);
    lease_goes_on(&kubectl, &agent, 0);
    node_is_ready(&kubectl, &agent);
    is_as_before(&kubectl, "it", &again);
    token_is_good(&server, &kubectl, "it");
}
