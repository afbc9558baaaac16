//! Boxes that join a server's cluster, prove who they are, are reached by connections of their own, and leave.

#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::Duration;

use amphipod_tests::{BUSYBOX, EdgeBox, Kubectl, Lan, Ran, Registry, binary, eventually};
use serde_json::Value;

/// `amphipod ARGS` on a box, to its end.
#[track_caller]
fn amphipod(on: &EdgeBox, args: &[&str]) -> Ran {
    let program = binary();
    let args: Vec<&str> = [program.to_str().unwrap()]
        .into_iter()
        .chain(args.iter().copied())
        .collect();
    on.run(&args)
}

/// The arguments of `amphipod agent`, from the line that `amphipod token create` prints.
#[track_caller]
fn join_line(server: &EdgeBox) -> Vec<String> {
    let line = amphipod(server, &["token", "create"]).ok();
    let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
    assert_eq!(words[..2], ["amphipod", "agent"], "{line}");
    assert_eq!(line.trim_end().lines().count(), 1, "{line}");
    words[2..].to_vec()
}

fn start_with(on: &mut EdgeBox, args: &[String]) {
    on.start_agent(&args.iter().map(String::as_str).collect::<Vec<_>>());
}

const READY: &str = "jsonpath={.status.conditions[?(@.type==\"Ready\")].status}";

#[track_caller]
fn wait_ready(kubectl: &Kubectl, node: &EdgeBox) {
    eventually("the node to be Ready", Duration::from_secs(40), || {
        let ran = kubectl.run(&["get", "node", node.name(), "-o", READY]);
        if ran.stdout == "True" {
            Ok(())
        } else {
            Err(format!("{ran:?}\n{}", node.log()))
        }
    });
}

/// A server's box and one that joined it.
struct Fleet {
    kubectl: Kubectl,
    agent: EdgeBox,
    server: EdgeBox,
    lan: Lan,
}

impl Fleet {
    #[track_caller]
    fn start() -> Fleet {
        let lan = Lan::new();
        let server = EdgeBox::ready(&lan);
        let mut agent = EdgeBox::new(&lan);
        let line = join_line(&server);
        start_with(&mut agent, &line);
        let kubectl = server.kubectl();
        wait_ready(&kubectl, &agent);
        Fleet {
            kubectl,
            agent,
            server,
            lan,
        }
    }

    /// `kubectl` on the joined box, in the name of its node.
    fn as_node(&self, args: &[&str]) -> Ran {
        let pki = "/var/lib/amphipod/agent/pki";
        let mut command = self.agent.command("kubectl");
        command
            .args([
                format!("--server=https://{}:6443", self.server.address()),
                format!("--certificate-authority={pki}/server-ca.crt"),
                format!("--client-certificate={pki}/client.pem"),
                format!("--client-key={pki}/client.pem"),
                "--kubeconfig=/dev/null".to_owned(),
                "--cache-dir=/run/kubectl-node-cache".to_owned(),
            ])
            .args(args);
        Ran::of(&mut command, b"")
    }

    fn pem(&self) -> std::path::PathBuf {
        self.agent.disk().join("lib/agent/pki/client.pem")
    }

    /// Nothing can connect to the joined box any more; what it opened itself goes on.
    #[track_caller]
    fn put_behind_nat(&self) {
        let rules = "table inet nat-box { chain in { type filter hook input priority -300; iifname \"eth0\" tcp flags & (syn | ack) == syn drop
}
}";
        let mut command = self.agent.command("nft");
        Ran::of(command.args(["-f", "-"]), rules.as_bytes()).ok();
        let address = self.agent.address();
        let probe = format!("timeout 2 bash -c 'exec 3<>/dev/tcp/{address}/10250'");
        let ran = self.server.run(&["sh", "-c", &probe]);
        assert_ne!(ran.code, 0, "the box can still be connected to");
    }
}

fn pod(name: &str, node: &str, command: &str) -> String {
    format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{app: {name}}}}}
spec:
  nodeSelector: {{kubernetes.io/hostname: {node}}}
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: {BUSYBOX}
    stdin: true
    command: [sh, -c, {command:?}]
    ports: [{{containerPort: 8080}}]
"
    )
}

#[test]
fn a_box_joins_with_the_line_that_the_server_prints() {
    let mut fleet = Fleet::start();
    let _registry = Registry::start(&fleet.agent);
    fleet
        .kubectl
        .apply(&pod("it", fleet.agent.name(), "exec sleep 3600"));
    fleet.kubectl.wait_for("pod/it", "condition=Ready", 40);
    let node = fleet.kubectl.get(&["pod", "it"])["spec"]["nodeName"].clone();
    assert_eq!(node, fleet.agent.name());
    let csrs = fleet.kubectl.run(&["get", "csr"]).ok();
    assert!(
        csrs.contains("system:bootstrap:") && csrs.contains("Approved,Issued"),
        "{csrs}"
    );
    // Later starts need neither address nor token.
    let before = fleet.kubectl.get(&["pod", "it"])["status"]["containerStatuses"][0].clone();
    fleet.agent.kill_program();
    fleet.agent.start_agent(&[]);
    eventually("the pod to be told of", Duration::from_secs(20), || {
        let logs = fleet.kubectl.run(&["exec", "it", "--", "echo", "here"]);
        if logs.stdout == "here\n" {
            Ok(())
        } else {
            Err(format!("{logs:?}"))
        }
    });
    let after = fleet.kubectl.get(&["pod", "it"])["status"]["containerStatuses"][0].clone();
    assert_eq!(before["containerID"], after["containerID"]);
}

#[test]
fn tokens_are_listed_expire_and_can_be_revoked_and_pin_the_server() {
    let lan = Lan::new();
    let server = EdgeBox::ready(&lan);
    let mut agent = EdgeBox::new(&lan);
    let refused = |agent: &mut EdgeBox, line: &[String], why: &str| {
        let program = binary();
        // An agent that is let in would run until it is stopped.
        let args: Vec<&str> = ["timeout", "30", program.to_str().unwrap(), "agent"]
            .into_iter()
            .chain(line.iter().map(String::as_str))
            .collect();
        let told = agent.run(&args).refused();
        assert!(told.contains(why), "{told}");
    };
    let told = amphipod(&agent, &["agent"]).refused();
    assert!(told.contains("amphipod token create"), "{told}");

    let line = join_line(&server);
    let token = line.last().unwrap().clone();
    let id = token.split('.').next().unwrap().to_owned();
    let listed = amphipod(&server, &["token", "list"]).ok();
    assert!(listed.contains(&id), "{listed}");
    assert!(
        !listed.contains(token.split('.').nth(1).unwrap()),
        "the list tells no secrets: {listed}"
    );

    // Another server than the one that the token is for, as a man in the middle would be.
    let mut other = line.clone();
    let last = other.last_mut().unwrap();
    let flipped = if last.ends_with('0') { "1" } else { "0" };
    last.replace_range(last.len() - 1.., flipped);
    refused(&mut agent, &other, "is not the one that the token is for");

    // The right server, the wrong secret.
    let mut wrong = line.clone();
    *wrong.last_mut().unwrap() =
        token.replacen(token.split('.').nth(1).unwrap(), "0123456789abcdef", 1);
    refused(&mut agent, &wrong, "does not know this token");

    amphipod(&server, &["token", "delete", &id]).ok();
    refused(&mut agent, &line, "does not know this token");
    assert!(!amphipod(&server, &["token", "list"]).ok().contains(&id));

    let short = amphipod(&server, &["token", "create", "--ttl", "1s"]).ok();
    let short: Vec<String> = short
        .split_whitespace()
        .skip(2)
        .map(str::to_owned)
        .collect();
    eventually(
        "the token to be taken away",
        Duration::from_secs(10),
        || {
            let listed = amphipod(&server, &["token", "list"]).ok();
            if listed.lines().count() == 1 {
                Ok(())
            } else {
                Err(listed)
            }
        },
    );
    refused(&mut agent, &short, "does not know this token");
}

#[test]
fn a_node_may_act_only_as_itself() {
    let fleet = Fleet::start();
    let _registry = Registry::start(&fleet.agent);
    let kubectl = &fleet.kubectl;
    kubectl
        .run(&["create", "secret", "generic", "mine", "--from-literal=a=b"])
        .ok();
    kubectl
        .run(&["create", "secret", "generic", "other", "--from-literal=a=b"])
        .ok();
    kubectl.apply(&pod("it", fleet.agent.name(), "exec sleep 3600").replace(
        "    stdin: true\n",
        "    env: [{name: A, valueFrom: {secretKeyRef: {name: mine, key: a}}}]\n",
    ));
    kubectl.wait_for("pod/it", "condition=Ready", 40);
    let me = fleet.agent.name();
    fleet.as_node(&["get", "node", me]).ok();
    fleet.as_node(&["get", "secret", "mine"]).ok();
    fleet.as_node(&["label", "node", me, "color=red"]).ok();
    let forbidden = |args: &[&str]| {
        let told = fleet.as_node(args).refused();
        assert!(
            told.contains("forbidden") || told.contains("Forbidden"),
            "{args:?}: {told}"
        );
    };
    let other = fleet.server.name();
    forbidden(&["get", "secret", "other"]);
    forbidden(&["get", "secrets"]);
    forbidden(&["get", "pods", "--all-namespaces"]);
    forbidden(&["label", "node", other, "color=red"]);
    forbidden(&["delete", "node", other]);
    forbidden(&["annotate", "lease", other, "-n", "kube-node-lease", "a=b"]);
    forbidden(&["delete", "namespace", "default"]);
    forbidden(&[
        "get",
        "--raw",
        &format!("/amphipod.io/v1/nodes/{other}/tunnel"),
    ]);
    forbidden(&["exec", "it", "--", "true"]);
    forbidden(&["label", "node", me, "node-restriction.kubernetes.io/a=b"]);
}

#[test]
fn a_removed_box_is_refused_until_it_joins_again() {
    let mut fleet = Fleet::start();
    let name = fleet.agent.name().to_owned();
    fleet.as_node(&["get", "node", &name]).ok();
    let told = amphipod(&fleet.server, &["node", "remove", fleet.server.name()]).refused();
    assert!(told.contains("the server's own box"), "{told}");
    amphipod(&fleet.server, &["node", "remove", &name]).ok();
    let told = fleet.as_node(&["get", "node", &name]).refused();
    assert!(
        told.contains("Unauthorized") || told.contains("must be logged in"),
        "{told}"
    );
    fleet.kubectl.run(&["get", "node", &name]).refused();
    // Also after a restart, and although it tries.
    fleet.agent.kill_program();
    fleet.agent.start_agent(&[]);
    eventually("the agent to say why", Duration::from_secs(20), || {
        let log = fleet.agent.log();
        let tail = &log[log.rfind("agent started").unwrap_or(0)..];
        if tail.contains("it was removed from the cluster") {
            Ok(())
        } else {
            Err(log)
        }
    });
    fleet.kubectl.run(&["get", "node", &name]).refused();
    fleet.agent.kill_program();
    let line = join_line(&fleet.server);
    start_with(&mut fleet.agent, &line);
    wait_ready(&fleet.kubectl, &fleet.agent);
}

#[test]
fn a_token_takes_no_living_nodes_name() {
    let lan = Lan::new();
    let server = EdgeBox::ready(&lan);
    let mut thief = EdgeBox::new(&lan);
    let mut line = join_line(&server);
    line.extend(["--node-name".to_owned(), server.name().to_owned()]);
    start_with(&mut thief, &line);
    let kubectl = server.kubectl();
    let name = eventually("the request", Duration::from_secs(20), || {
        let list = kubectl.get(&["csr"]);
        let name = list["items"][0]["metadata"]["name"]
            .as_str()
            .map(str::to_owned);
        name.ok_or_else(|| format!("{list}\n{}", thief.log()))
    });
    eventually(
        "the thief to wait for approval",
        Duration::from_secs(20),
        || {
            if thief.log().contains("waiting for approval") {
                Ok(())
            } else {
                Err(thief.log())
            }
        },
    );
    let csr = kubectl.run(&["get", "csr", &name]).ok();
    assert!(csr.contains("Pending"), "{csr}");
    kubectl.run(&["certificate", "deny", &name]).ok();
    eventually("the thief to give up", Duration::from_secs(10), || {
        if thief.log().contains("denied") {
            Ok(())
        } else {
            Err(thief.log())
        }
    });
}

/// A request made with openssl on the server's box, as a manifest.
fn request(
    on: &EdgeBox,
    name: &str,
    subject: &str,
    signer: &str,
    seconds: u32,
) -> (String, String) {
    let key = format!("/var/lib/amphipod/{name}.key");
    let make = format!(
        "openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout {key} -subj '{subject}' 2>/dev/null | base64 -w0"
    );
    let csr = on.run(&["sh", "-c", &make]).ok();
    let manifest = format!(
        "apiVersion: certificates.k8s.io/v1
kind: CertificateSigningRequest
metadata: {{name: {name}}}
spec:
  request: {csr}
  signerName: {signer}
  expirationSeconds: {seconds}
  usages: [digital signature, client auth]
"
    );
    (manifest, format!("lib/{name}.key"))
}

/// The certificate of an approved request, PEM.
#[track_caller]
fn certificate(kubectl: &Kubectl, on: &EdgeBox, name: &str) -> String {
    let encoded = eventually("the certificate", Duration::from_secs(10), || {
        let csr = kubectl.get(&["csr", name]);
        let cert = csr["status"]["certificate"].as_str().map(str::to_owned);
        cert.ok_or_else(|| csr.to_string())
    });
    let decode = format!("echo {encoded} | base64 -d");
    on.run(&["sh", "-c", &decode]).ok()
}

#[test]
fn administrators_approve_and_deny_requests() {
    let lan = Lan::new();
    let server = EdgeBox::ready(&lan);
    let kubectl = server.kubectl();
    let signer = "kubernetes.io/kube-apiserver-client";
    let (jane, key) = request(&server, "jane", "/O=dev/CN=jane", signer, 3600);
    kubectl.apply(&jane);
    let shown = kubectl.run(&["get", "csr", "jane"]).ok();
    assert!(shown.contains("Pending"), "{shown}");
    kubectl.run(&["certificate", "approve", "jane"]).ok();
    let cert = certificate(&kubectl, &server, "jane");
    std::fs::write(server.disk().join("lib/jane.crt"), cert).unwrap();
    assert!(server.disk().join(&key).exists());
    let who = server.run(&[
        "kubectl",
        &format!("--server=https://{}:6443", server.address()),
        "--certificate-authority=/var/lib/amphipod/server/pki/ca.crt",
        "--client-certificate=/var/lib/amphipod/jane.crt",
        "--client-key=/var/lib/amphipod/jane.key",
        "--kubeconfig=/dev/null",
        "auth",
        "whoami",
    ]);
    let who = who.ok();
    assert!(who.contains("jane") && who.contains("dev"), "{who}");

    let (root, _) = request(&server, "root", "/O=system:masters/CN=root", signer, 3600);
    kubectl.apply(&root);
    kubectl.run(&["certificate", "approve", "root"]).ok();
    eventually("the request to fail", Duration::from_secs(10), || {
        let shown = kubectl.run(&["get", "csr", "root"]).ok();
        if shown.contains("Failed") {
            Ok(())
        } else {
            Err(shown)
        }
    });
    let (joe, _) = request(&server, "joe", "/CN=joe", signer, 3600);
    kubectl.apply(&joe);
    kubectl.run(&["certificate", "deny", "joe"]).ok();
    let shown = kubectl.run(&["get", "csr", "joe"]).ok();
    assert!(
        shown.contains("Denied") && !shown.contains("Issued"),
        "{shown}"
    );
}

#[test]
fn a_certificate_near_its_end_is_renewed_and_taken_up_at_once() {
    let mut fleet = Fleet::start();
    let kubectl = fleet.kubectl.clone();
    let node = fleet.agent.name().to_owned();
    let subject = format!("/O=system:nodes/CN=system:node:{node}");
    let signer = "kubernetes.io/kube-apiserver-client-kubelet";
    let (manifest, key) = request(&fleet.server, "short", &subject, signer, 600);
    kubectl.apply(&manifest);
    kubectl.run(&["certificate", "approve", "short"]).ok();
    let cert = certificate(&kubectl, &fleet.server, "short");
    let key = std::fs::read_to_string(fleet.server.disk().join(key)).unwrap();
    fleet.agent.kill_program();
    std::fs::write(fleet.pem(), format!("{cert}{key}")).unwrap();
    fleet.agent.start_agent(&[]);
    eventually("a new certificate", Duration::from_secs(20), || {
        let now = std::fs::read_to_string(fleet.pem()).unwrap();
        if now.contains(cert.trim()) {
            Err(fleet.agent.log())
        } else {
            Ok(())
        }
    });
    let list = kubectl.get(&["csr"]);
    let own = |csr: &&Value| csr["spec"]["username"] == format!("system:node:{node}");
    assert!(
        list["items"]
            .as_array()
            .unwrap()
            .iter()
            .any(|csr| own(&csr)),
        "{list}"
    );
    // The old one is not what the agent lives by any more: it is removed, and the new one goes on.
    let _registry = Registry::start(&fleet.agent);
    kubectl.apply(&pod("it", &node, "echo lives; exec sleep 3600"));
    kubectl.wait_for("pod/it", "condition=Ready", 40);
    assert_eq!(kubectl.run(&["logs", "it"]).ok(), "lives\n");
}

#[test]
fn a_certificate_that_ended_while_the_box_was_away_is_replaced_by_a_token() {
    let mut fleet = Fleet::start();
    let _registry = Registry::start(&fleet.agent);
    fleet
        .kubectl
        .apply(&pod("it", fleet.agent.name(), "exec sleep 3601"));
    fleet.kubectl.wait_for("pod/it", "condition=Ready", 40);
    fleet.agent.power_off();
    let dir = fleet.agent.disk().join("lib/agent/pki");
    let make = format!(
        "cd {}; echo keyUsage=digitalSignature > e; openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout k -out r -subj /O=system:nodes/CN=system:node:{}; \
         openssl x509 -req -in r -signkey k -days -1 -out c -extfile e; cat c k > client.pem",
        dir.display(),
        fleet.agent.name(),
    );
    Ran::of(Command::new("sh").args(["-c", &make]), b"").ok();
    let old = std::fs::read_to_string(fleet.pem()).unwrap();
    assert!(old.contains("CERTIFICATE"), "{old}");
    fleet.agent.power_on(&fleet.lan);
    // Pods come first: the box runs what it ran, with a certificate that is over and a token that nobody knows.
    let line = join_line(&fleet.server);
    let mut unknown = line.clone();
    let secret = line.last().unwrap().split('.').nth(1).unwrap().to_owned();
    let last = unknown.last_mut().unwrap();
    *last = last.replacen(&secret, "0123456789abcdef", 1);
    start_with(&mut fleet.agent, &unknown);
    let running = |agent: &EdgeBox| {
        let ran = agent.run(&["pgrep", "-f", "sleep 3601"]);
        if ran.code == 0 {
            Ok(())
        } else {
            Err(agent.log())
        }
    };
    eventually(
        "the pod to run without a server",
        Duration::from_secs(20),
        || running(&fleet.agent),
    );
    eventually("the agent to say why", Duration::from_secs(20), || {
        let log = fleet.agent.log();
        if log.contains("does not know this token") {
            Ok(())
        } else {
            Err(log)
        }
    });
    fleet.agent.kill_program();
    // The server's Lease of this name has to end before a token may take it.
    start_with(&mut fleet.agent, &line);
    eventually("a new certificate", Duration::from_secs(70), || {
        if std::fs::read_to_string(fleet.pem()).unwrap() == old {
            Err(fleet.agent.log())
        } else {
            Ok(())
        }
    });
    eventually("the tunnel", Duration::from_secs(20), || {
        let path = format!("/api/v1/nodes/{}/proxy/healthz", fleet.agent.name());
        let ran = fleet.kubectl.run(&["get", "--raw", &path]);
        if ran.stdout == "ok" {
            Ok(())
        } else {
            Err(format!("{ran:?}"))
        }
    });
}

#[test]
fn a_box_that_nothing_can_connect_to_is_reached_by_its_own_connection() {
    let fleet = Fleet::start();
    let _registry = Registry::start(&fleet.agent);
    fleet.put_behind_nat();
    let kubectl = &fleet.kubectl;
    let serve = "mkdir /www; echo from the pod > /www/index.html; httpd -p 8080 -h /www; echo started; while read line; do echo got $line; done; exec sleep 3600";
    kubectl.apply(&pod("it", fleet.agent.name(), serve));
    kubectl.apply(
        "apiVersion: v1
kind: Service
metadata: {name: it}
spec: {selector: {app: it}, ports: [{name: web, port: 80, targetPort: 8080}]}
",
    );
    kubectl.wait_for("pod/it", "condition=Ready", 40);
    assert_eq!(kubectl.run(&["logs", "it"]).ok(), "started\n");

    // exec, with input and with a terminal
    let ran = kubectl.run_with(
        &["exec", "-i", "it", "--", "sh", "-c", "cat; exit 3"],
        "in and out",
    );
    assert_eq!(
        (ran.stdout.as_str(), ran.code),
        ("in and out", 3),
        "{ran:?}"
    );
    let mut typed = kubectl.command(&[]);
    let words: Vec<String> = std::iter::once(typed.get_program().to_owned())
        .chain(typed.get_args().map(ToOwned::to_owned))
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    typed = Command::new("script");
    typed.args([
        "-qec",
        &format!(
            "{} exec -it it -- sh -c 'test -t 0 && echo a terminal'",
            words.join(" ")
        ),
        "/dev/null",
    ]);
    let seen = Ran::of(&mut typed, b"");
    assert!(seen.stdout.contains("a terminal"), "{seen:?}");

    // Much, both ways
    let big = fleet.server.disk().join("lib/big");
    std::fs::write(&big, vec![b'x'; 3 << 20]).unwrap();
    kubectl
        .run(&["cp", "/var/lib/amphipod/big", "it:/big"])
        .ok();
    kubectl
        .run(&["cp", "it:/big", "/var/lib/amphipod/back"])
        .ok();
    let back = std::fs::read(fleet.server.disk().join("lib/back")).unwrap();
    assert_eq!(back.len(), 3 << 20);

    // attach: what is typed reaches the first process
    let mut attached = kubectl
        .command(&["attach", "-i", "it"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut input = attached.stdin.take().unwrap();
    input.write_all(b"hello\n").unwrap();
    let mut lines = BufReader::new(attached.stdout.take().unwrap()).lines();
    let heard = lines.find(|line| line.as_ref().is_ok_and(|line| line.contains("got hello")));
    assert!(heard.is_some());
    let _ = attached.kill();
    let _ = attached.wait();

    // port-forward
    let mut forward = kubectl
        .command(&["port-forward", "pod/it", "18080:8080"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(forward.stdout.take().unwrap()).lines();
    assert!(said.next().unwrap().unwrap().contains("Forwarding from"));
    for _ in 0..3 {
        let page = fleet
            .server
            .run(&["curl", "-s", "http://127.0.0.1:18080/"])
            .ok();
        assert_eq!(page, "from the pod\n");
    }
    let _ = forward.kill();
    let _ = forward.wait();

    // proxies: to the pod, to the service, to the node API
    let raw = |path: &str| kubectl.run(&["get", "--raw", path]);
    let base = "/api/v1/namespaces/default";
    assert_eq!(
        raw(&format!("{base}/pods/it:8080/proxy/")).ok(),
        "from the pod\n"
    );
    eventually("the service's endpoints", Duration::from_secs(10), || {
        let ran = raw(&format!("{base}/services/it:web/proxy/"));
        if ran.stdout == "from the pod\n" {
            Ok(())
        } else {
            Err(format!("{ran:?}"))
        }
    });
    let node = format!("/api/v1/nodes/{}/proxy", fleet.agent.name());
    assert_eq!(raw(&format!("{node}/healthz")).ok(), "ok");
    let metrics = raw(&format!("{node}/metrics/resource")).ok();
    assert!(metrics.contains("pod=\"it\""), "{metrics}");
}

#[test]
fn the_connection_comes_back_after_the_server_and_the_network_were_away() {
    let mut fleet = Fleet::start();
    fleet.put_behind_nat();
    let kubectl = fleet.kubectl.clone();
    let path = format!("/api/v1/nodes/{}/proxy/healthz", fleet.agent.name());
    let reached = |limit| {
        eventually("the node API", Duration::from_secs(limit), || {
            let ran = kubectl.run(&["get", "--raw", &path]);
            if ran.stdout == "ok" {
                Ok(())
            } else {
                Err(format!("{ran:?}"))
            }
        });
    };
    reached(10);
    fleet.server.kill_program();
    fleet.server.start(&[]);
    fleet.server.wait_until_ready();
    reached(40);
    // The box's state of all connections is lost, as that of a NAT that was switched off: packets vanish without a word.
    let drop =
        "table inet cut { chain out { type filter hook output priority 0; oifname \"eth0\" drop
}
}";
    Ran::of(
        fleet.agent.command("nft").args(["-f", "-"]),
        drop.as_bytes(),
    )
    .ok();
    let ran = kubectl.run(&["get", "--raw", &path]);
    assert_ne!(ran.code, 0, "the box is cut off");
    fleet
        .agent
        .run(&["nft", "delete", "table", "inet", "cut"])
        .ok();
    reached(60);
}

#[test]
fn a_box_that_cannot_connect_is_reached_by_its_address_and_proves_its_name() {
    let mut fleet = Fleet::start();
    let _registry = Registry::start(&fleet.agent);
    let kubectl = fleet.kubectl.clone();
    kubectl.apply(&pod("it", fleet.agent.name(), "echo here; exec sleep 3600"));
    kubectl.wait_for("pod/it", "condition=Ready", 40);
    // Whoever knows the cluster's CA can check who answers on the port, by address too.
    let address = fleet.agent.address().to_owned();
    let check = format!(
        "openssl s_client -connect {address}:10250 -CAfile /var/lib/amphipod/server/pki/ca.crt -verify_return_error -verify_ip {address} </dev/null"
    );
    let check = ["sh", "-c", &check];
    eventually("a certificate", Duration::from_secs(20), || {
        let ran = fleet.server.run(&check);
        if ran.code == 0 {
            Ok(())
        } else {
            Err(format!("{ran:?}\n{}", fleet.agent.log()))
        }
    });
    // No connection of the box is left, and it gets no other; the server's way to it is open.
    let rules = format!(
        "table inet one-way {{ chain in {{ type filter hook input priority -300; ip saddr {address} tcp dport 6443 drop
}}
}}"
    );
    let mut nft = fleet.server.command("nft");
    Ran::of(nft.args(["-f", "-"]), rules.as_bytes()).ok();
    fleet.server.kill_program();
    fleet.server.start(&[]);
    fleet.server.wait_until_ready();
    assert_eq!(kubectl.run(&["logs", "it"]).ok(), "here\n");
    let ran = kubectl.run(&["exec", "it", "--", "echo", "also here"]);
    assert_eq!(ran.ok(), "also here\n");
    // An agent that starts anew has it still.
    fleet.agent.kill_program();
    fleet.agent.start_agent(&[]);
    eventually("the node API", Duration::from_secs(20), || {
        let ran = kubectl.run(&["logs", "it"]);
        if ran.stdout == "here\n" {
            Ok(())
        } else {
            Err(format!("{ran:?}\n{}", fleet.agent.log()))
        }
    });
}

#[test]
fn a_node_gets_certificates_for_its_own_names_only() {
    let fleet = Fleet::start();
    let kubectl = &fleet.kubectl;
    let node = fleet.agent.name();
    let ask = |name: &str, sans: &str| {
        let key = format!("/var/lib/amphipod/{name}.key");
        let make = format!(
            "openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout {key} \
             -subj /O=system:nodes/CN=system:node:{node} -addext subjectAltName={sans} 2>/dev/null | base64 -w0"
        );
        let request = fleet.agent.run(&["sh", "-c", &make]).ok();
        let manifest = format!(
            "apiVersion: certificates.k8s.io/v1
kind: CertificateSigningRequest
metadata: {{name: {name}}}
spec:
  request: {request}
  signerName: kubernetes.io/kubelet-serving
  usages: [digital signature, server auth]
"
        );
        let file = format!("lib/{name}.yaml");
        std::fs::write(fleet.agent.disk().join(file), &manifest).unwrap();
        manifest
    };
    let as_itself = |name: &str, sans: &str| {
        ask(name, sans);
        let file = format!("/var/lib/amphipod/{name}.yaml");
        fleet.as_node(&["create", "-f", &file]).ok();
    };
    let (own, servers) = (fleet.agent.address(), fleet.server.address());
    as_itself(
        "others-name",
        &format!("DNS:{node},DNS:{}", fleet.server.name()),
    );
    as_itself("others-address", &format!("DNS:{node},IP:{servers}"));
    as_itself("no-address", &format!("DNS:{node},IP:10.99.0.77"));
    as_itself("servers-name", "DNS:kubernetes.default.svc");
    // The right names, but another asks for them: that is for an administrator to say.
    kubectl.apply(&ask("not-itself", &format!("DNS:{node}")));
    as_itself("own", &format!("DNS:{node},IP:{own}"));
    let cert = certificate(kubectl, &fleet.server, "own");
    assert!(cert.contains("BEGIN CERTIFICATE"), "{cert}");
    for name in [
        "others-name",
        "others-address",
        "no-address",
        "servers-name",
        "not-itself",
    ] {
        let csr = kubectl.get(&["csr", name]);
        assert!(csr["status"]["conditions"].is_null(), "{csr}");
        assert!(csr["status"]["certificate"].is_null(), "{csr}");
    }
}

#[test]
fn twenty_pods_come_back_from_a_power_cut_without_the_server() {
    let mut fleet = Fleet::start();
    let registry = Registry::start(&fleet.agent);
    fleet.kubectl.run(&["cordon", fleet.server.name()]).ok();
    fleet.kubectl.apply(&format!(
        "apiVersion: apps/v1
kind: Deployment
metadata: {{name: counters}}
spec:
  replicas: 20
  selector: {{matchLabels: {{app: counter}}}}
  template:
    metadata: {{labels: {{app: counter}}}}
    spec:
      containers:
      - name: main
        image: {BUSYBOX}
        command: [sh, -c, 'i=0; while :; do i=$((i+1)); echo $i; sleep 1; done']
"
    ));
    fleet
        .kubectl
        .run(&["rollout", "status", "deployment/counters", "--timeout=90s"])
        .ok();
    // Nothing but the agent's own copy can bring them back: no server, and no registry.
    drop(registry);
    fleet.server.power_off();
    fleet.agent.power_off();
    fleet.agent.power_on(&fleet.lan);
    let begin = std::time::Instant::now();
    fleet.agent.start_agent(&[]);
    eventually("20 counters to run", Duration::from_secs(60), || {
        let running = fleet
            .agent
            .run(&["sh", "-c", "ps ax | grep -c 'i=0; [w]hile'"])
            .stdout;
        if running.trim() == "20" {
            Ok(())
        } else {
            Err(running)
        }
    });
    println!(
        "20 pods ran again {:?} after the agent's start",
        begin.elapsed()
    );
}
