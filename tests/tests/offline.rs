//! What a box does while its server is gone or out of reach, and what the server is told afterwards.

#![allow(clippy::unwrap_used)]

use std::path::PathBuf;
use std::time::Duration;

use amphipod_tests::{BUSYBOX, EdgeBox, Kubectl, Lan, Registry, binary, eventually};
use serde_json::Value;

/// Short enough for a test: a silent node is given up after the first, and heard of four times in the second.
const GRACE: &str = "--node-monitor-grace-period=5s";
const LEASE: &str = "--node-lease-duration-seconds=4";

/// A server's box, and one that joined it, with a registry and pods of its own.
struct Fleet {
    kubectl: Kubectl,
    agent: EdgeBox,
    server: EdgeBox,
    _registry: Registry,
    lan: Lan,
}

/// What a pod of the joined box is before it is cut off: names the same container afterwards, if nothing was restarted.
#[derive(Debug, PartialEq)]
struct Identity {
    pod: String,
    uid: Value,
    container: Value,
    restarts: Value,
}

/// Pods that stay well, and those that a test makes ill.
const WELL: [&str; 2] = ["web", "client"];
const ILL: [&str; 2] = ["crasher", "probed"];

impl Fleet {
    #[track_caller]
    fn start() -> Fleet {
        let lan = Lan::new();
        let mut server = EdgeBox::new(&lan);
        server.start(&[GRACE, LEASE]);
        server.wait_until_ready();
        let mut agent = EdgeBox::new(&lan);
        let line = server.run(&[binary().to_str().unwrap(), "token", "create"]);
        let line = line.ok();
        let join: Vec<&str> = line.split_whitespace().skip(2).chain([LEASE]).collect();
        agent.start_agent(&join);
        let registry = Registry::start(&agent);
        let kubectl = server.kubectl();
        let fleet = Fleet {
            kubectl,
            agent,
            server,
            _registry: registry,
            lan,
        };
        fleet.until_ready("True");
        fleet.run_pods();
        fleet
    }

    /// Waits until the joined box's node has this for its Ready condition, and the taints that belong to it.
    #[track_caller]
    fn until_ready(&self, wanted: &str) {
        let what = format!("the node's Ready condition to be {wanted}");
        eventually(&what, Duration::from_secs(90), || {
            let ran = self
                .kubectl
                .run(&["get", "node", self.agent.name(), "-o", "json"]);
            let node: Value = serde_json::from_str(&ran.stdout).unwrap_or_default();
            let conditions = node["status"]["conditions"].as_array();
            let ready = conditions.and_then(|all| all.iter().find(|c| c["type"] == "Ready"));
            let tainted = node["spec"]["taints"].is_array();
            match ready {
                Some(ready) if ready["status"] == wanted && tainted == (wanted != "True") => Ok(()),
                _ => Err(format!(
                    "{ready:?} {}\n{}",
                    node["spec"]["taints"],
                    self.agent.log()
                )),
            }
        });
    }

    /// Waits until pods that do not tolerate the box's absence are sent away: nodes that are not heard of get that taint one after the other.
    #[track_caller]
    fn until_pods_may_leave(&self) {
        eventually("the node to be tainted", Duration::from_secs(60), || {
            let taints = ["get", "node", self.agent.name(), "-o"];
            let ran = self
                .kubectl
                .run(&[&taints[..], &["jsonpath={.spec.taints}"]].concat());
            if ran.stdout.contains("NoExecute") {
                Ok(())
            } else {
                Err(format!("{ran:?}"))
            }
        });
    }

    /// Pods on the joined box. `/t` is a directory of its disk, by which the test talks with them.
    #[track_caller]
    fn run_pods(&self) {
        let pod = |name: &str, command: &str, more: &str| {
            let node = self.agent.name();
            self.kubectl.apply(&format!(
                "apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{app: {name}}}}}
spec:
  nodeSelector: {{kubernetes.io/hostname: {node}}}
  terminationGracePeriodSeconds: 1
  volumes: [{{name: t, hostPath: {{path: /var/lib/amphipod/t, type: DirectoryOrCreate}}}}]
  containers:
  - name: main
    image: {BUSYBOX}
    command: [sh, -c, {command:?}]
    volumeMounts: [{{name: t, mountPath: /t}}]
    {more}
"
            ));
        };
        let probes = "readinessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1}
    livenessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1}";
        let serve = "mkdir /www; echo here > /www/index.html; exec httpd -f -p 8080 -h /www";
        pod("web", serve, probes);
        let ask =
            "while :; do [ $(peer get http://web) = here ] && echo >>/t/answers; sleep 0.2; done";
        pod("client", ask, "");
        let crash = "echo >>/t/crasher; while ! rm /t/crash; do sleep 0.1; done; exit 3";
        pod("crasher", crash, "");
        let ill = "echo >>/t/probed; touch /ok; while :; do rm /t/ill && rm /ok; sleep 0.1; done";
        let probe = "livenessProbe: {exec: {command: [test, -e, /ok]}, periodSeconds: 1}";
        pod("probed", ill, probe);
        self.kubectl.apply(
            "apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
",
        );
        for pod in WELL.iter().chain(&ILL) {
            self.kubectl
                .wait_for(&format!("pod/{pod}"), "condition=Ready", 60);
        }
        self.answers_go_on();
        // So that the node has nothing left to tell when it is cut off.
        eventually("the node's images", Duration::from_secs(30), || {
            let node = self.kubectl.get(&["node", self.agent.name()]);
            let images = node["status"]["images"].to_string();
            if images.contains("busybox") {
                Ok(())
            } else {
                Err(images)
            }
        });
    }

    /// The box's clock.
    fn now(&self) -> String {
        let now = self.agent.run(&["date", "-u", "+%FT%TZ"]).ok();
        now.trim().to_owned()
    }

    fn shared(&self, file: &str) -> PathBuf {
        self.agent.disk().join("lib/t").join(file)
    }

    /// How many lines pods have written to a file of theirs.
    fn lines(&self, file: &str) -> usize {
        let text = std::fs::read_to_string(self.shared(file)).unwrap_or_default();
        text.lines().count()
    }

    /// A pod of the box asks for the service by its name and gets answers, now.
    #[track_caller]
    fn answers_go_on(&self) {
        let before = self.lines("answers");
        eventually("answers of the service", Duration::from_secs(20), || {
            let now = self.lines("answers");
            if now >= before + 3 {
                Ok(())
            } else {
                Err(format!(
                    "{before} answers, then {now}\n{}",
                    self.agent.log()
                ))
            }
        });
    }

    /// Makes the pods ill that are to be, and waits until the box has started them again.
    #[track_caller]
    fn restart_the_ill(&self) {
        for (pod, order) in [("crasher", "crash"), ("probed", "ill")] {
            let starts = self.lines(pod);
            std::fs::write(self.shared(order), "").unwrap();
            let what = format!("{pod} to be started again");
            eventually(&what, Duration::from_secs(30), || {
                let now = self.lines(pod);
                if now == starts + 1 {
                    Ok(())
                } else {
                    Err(format!("{starts}, then {now}\n{}", self.agent.log()))
                }
            });
        }
    }

    fn identities(&self, pods: &[&str]) -> Vec<Identity> {
        let of = |pod: &&str| {
            let object = self.kubectl.get(&["pod", pod]);
            assert_eq!(object["metadata"]["deletionTimestamp"], Value::Null);
            let status = &object["status"]["containerStatuses"][0];
            Identity {
                pod: (*pod).to_owned(),
                uid: object["metadata"]["uid"].clone(),
                container: status["containerID"].clone(),
                restarts: status["restartCount"].clone(),
            }
        };
        pods.iter().map(of).collect()
    }

    /// The server knows of the restarts that it did not see, and of what ended.
    #[track_caller]
    fn restarts_are_told(&self) {
        for (pod, code) in [("crasher", 3), ("probed", 137)] {
            let what = format!("the status of {pod}");
            eventually(&what, Duration::from_secs(30), || {
                let object = self.kubectl.get(&["pod", pod]);
                let status = &object["status"]["containerStatuses"][0];
                let ended = &status["lastState"]["terminated"];
                if status["restartCount"] == 1
                    && ended["exitCode"] == code
                    && status["state"]["running"].is_object()
                {
                    Ok(())
                } else {
                    Err(format!("{status}"))
                }
            });
        }
    }

    /// What happened to the ill pods since then is told, in its order.
    #[track_caller]
    fn events_are_told(&self, since: &str) {
        let wanted = [
            ("crasher", vec!["Created", "Started"]),
            ("probed", vec!["Unhealthy", "Killing", "Created", "Started"]),
        ];
        for (pod, wanted) in wanted {
            let what = format!("the events of {pod}");
            let events = || {
                let mut told = self.events(pod);
                told.retain(|event| *event.time >= *since);
                told
            };
            eventually(&what, Duration::from_secs(30), || {
                let told = events();
                if wanted
                    .iter()
                    .all(|want| told.iter().any(|event| event.reason == *want))
                {
                    Ok(())
                } else {
                    Err(format!("{told:?}\n{}", self.agent.log()))
                }
            });
            let told = events();
            assert!(told.is_sorted_by_key(|event| &event.time), "{told:?}");
        }
    }

    /// What the box told of a pod, in the order in which it was told.
    #[track_caller]
    fn events(&self, pod: &str) -> Vec<Told> {
        let about = format!("involvedObject.name={pod},involvedObject.kind=Pod,source=kubelet");
        let list = self.kubectl.get(&["events", "--field-selector", &about]);
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let told = |event: &Value| Told {
            revision: text(&event["metadata"]["resourceVersion"]).parse().unwrap(),
            time: text(&event["lastTimestamp"]),
            reason: text(&event["reason"]),
        };
        let mut events: Vec<Told> = list["items"].as_array().unwrap().iter().map(told).collect();
        events.sort_by_key(|event| event.revision);
        events
    }
}

#[derive(Debug)]
struct Told {
    revision: u64,
    /// When it happened last, by the box.
    time: String,
    reason: String,
}

#[test]
fn pods_restarts_probes_services_and_names_go_on_while_the_server_is_gone() {
    let mut fleet = Fleet::start();
    let before = fleet.identities(&WELL);
    let ill = fleet.identities(&ILL);
    fleet.server.kill_program();
    fleet.answers_go_on();
    let since = fleet.now();
    fleet.restart_the_ill();
    fleet.answers_go_on();
    // What was not told yet is not lost with the agent either.
    fleet.agent.kill_program();
    fleet.agent.start_agent(&[LEASE]);
    fleet.answers_go_on();
    let log = fleet.agent.log();
    fleet.server.start(&[GRACE, LEASE]);
    fleet.server.wait_until_ready();
    fleet.restarts_are_told();
    fleet.events_are_told(&since);
    fleet.until_ready("True");
    assert_eq!(fleet.identities(&WELL), before, "{log}");
    let now = fleet.identities(&ILL);
    assert!(now.iter().zip(&ill).all(|(now, then)| now.uid == then.uid));
}

#[test]
fn a_box_that_was_cut_off_is_ready_when_it_is_back_and_no_pod_has_noticed() {
    let fleet = Fleet::start();
    let before = fleet.identities(&WELL);
    fleet.agent.unplug_cable(&fleet.lan);
    let since = fleet.now();
    fleet.restart_the_ill();
    fleet.until_ready("Unknown");
    for pod in WELL {
        fleet
            .kubectl
            .wait_for(&format!("pod/{pod}"), "condition=Ready=False", 30);
    }
    fleet.until_pods_may_leave();
    fleet.answers_go_on();
    fleet.agent.plug_in_cable(&fleet.lan);
    fleet.until_ready("True");
    for pod in WELL.iter().chain(&ILL) {
        fleet
            .kubectl
            .wait_for(&format!("pod/{pod}"), "condition=Ready", 60);
    }
    fleet.restarts_are_told();
    fleet.events_are_told(&since);
    assert_eq!(fleet.identities(&WELL), before);
}
