//! Certificates: asked for, approved, renewed, and for no other name.

use std::process::Command;
use std::time::Duration;

use amphipod_tests::{EdgeBox, Kubectl, Lan, Ran, Registry, eventually};
use serde_json::Value;

use crate::world::{Fleet, join_line, pod, start_with};

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
