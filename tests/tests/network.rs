//! Pods, services and names reach each other.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use amphipod_tests::{BUSYBOX, Kubectl, eventually, namespace, shared};

/// `count` web pods labelled `app: NAME` whose page is their host name, and a pod `client` to ask from.
fn web(kubectl: &Kubectl, name: &str, count: usize, more: &str) {
    for index in 0..count {
        kubectl.apply(&format!(
            "apiVersion: v1
kind: Pod
metadata: {{name: {name}-{index}, labels: {{app: {name}}}}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: {BUSYBOX}
    command: [sh, -c, 'mkdir /www; hostname > /www/index.html; exec httpd -f -p 8080 -h /www']
    ports: [{{name: http, containerPort: 8080{more}}}]
    readinessProbe: {{tcpSocket: {{port: http}}, periodSeconds: 1}}
"
        ));
    }
    kubectl.apply(&format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: client}}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{{name: main, image: {BUSYBOX}, command: [sleep, '3600']}}]
"
    ));
    kubectl
        .run(&[
            "wait",
            "pods",
            "--all",
            "--for=condition=Ready",
            "--timeout=60s",
        ])
        .ok();
}

fn service(kubectl: &Kubectl, name: &str, spec: &str) {
    kubectl.apply(&format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec:\n  selector: {{app: {name}}}\n{spec}"
    ));
}

/// What the client pod gets from `url`, which must answer within some seconds.
#[track_caller]
fn fetch(kubectl: &Kubectl, url: &str) -> String {
    eventually(&format!("{url} to answer"), Duration::from_secs(15), || {
        let ran = kubectl.run(&["exec", "client", "--", "peer", "get", url]);
        if ran.code == 0 {
            Ok(ran.stdout.trim().to_owned())
        } else {
            Err(ran.stderr)
        }
    })
}

#[test]
fn a_service_spreads_connections_over_its_ready_pods() {
    let kubectl = namespace("spread");
    web(&kubectl, "web", 2, "");
    service(&kubectl, "web", "  ports: [{port: 80, targetPort: http}]\n");
    let ip = kubectl.get(&["service", "web"])["spec"]["clusterIP"]
        .as_str()
        .unwrap()
        .to_owned();
    assert!(ip.starts_with("10.43."), "{ip}");
    let mut seen = std::collections::BTreeSet::new();
    eventually("both pods to be seen", Duration::from_secs(20), || {
        seen.insert(fetch(&kubectl, &format!("http://{ip}")));
        if seen.len() == 2 {
            Ok(())
        } else {
            Err(format!("{seen:?}"))
        }
    });
    // From the box itself too, and from a pod to itself.
    shared()
        .edge_box
        .run(&["curl", "-sS", "-m3", &format!("http://{ip}")])
        .ok();
    for _ in 0..6 {
        kubectl
            .run(&[
                "exec",
                "web-0",
                "--",
                "peer",
                "get",
                &format!("http://{ip}"),
            ])
            .ok();
    }
    let slices = kubectl.run(&["get", "endpointslices", "-o", "wide"]).ok();
    assert!(
        slices.contains("web-") && slices.contains("8080"),
        "{slices}"
    );
    assert!(
        kubectl
            .run(&["get", "endpoints", "web"])
            .ok()
            .contains(":8080")
    );
    kubectl
        .run(&["delete", "pod", "web-0", "web-1", "--force"])
        .ok();
    eventually(
        "connections to be refused, not to hang",
        Duration::from_secs(10),
        || {
            let ran = kubectl.run(&[
                "exec",
                "client",
                "--",
                "peer",
                "get",
                &format!("http://{ip}"),
            ]);
            if ran.stderr.contains("refused") {
                Ok(())
            } else {
                Err(format!("{ran:?}"))
            }
        },
    );
}

#[test]
fn names_of_services_and_pods_resolve_on_the_box() {
    let kubectl = namespace("names");
    web(&kubectl, "web", 2, "");
    service(
        &kubectl,
        "web",
        "  ports: [{name: http, port: 80, targetPort: 8080}]\n",
    );
    kubectl.apply("apiVersion: v1\nkind: Service\nmetadata: {name: bare}\nspec: {clusterIP: None, selector: {app: web}, ports: [{port: 8080}]}\n");
    for name in [
        "web",
        "web.names",
        "web.names.svc",
        "web.names.svc.cluster.local",
    ] {
        assert!(fetch(&kubectl, &format!("http://{name}")).starts_with("web-"));
    }
    let lookup = |name: &str| kubectl.run(&["exec", "client", "--", "nslookup", name]);
    eventually(
        "the headless service to name both pods",
        Duration::from_secs(10),
        || {
            let text = lookup("bare.names.svc.cluster.local").stdout;
            if text.matches("10.42.").count() >= 2 {
                Ok(())
            } else {
                Err(text)
            }
        },
    );
    let ip = kubectl.get(&["pod", "web-0"])["status"]["podIP"]
        .as_str()
        .unwrap()
        .replace('.', "-");
    assert!(
        lookup(&format!("{ip}.names.pod.cluster.local"))
            .stdout
            .contains("10.42.")
    );
    let missing = lookup("nothing.names.svc.cluster.local");
    assert!(format!("{missing:?}").contains("NXDOMAIN"), "{missing:?}");
    let resolv = kubectl
        .run(&["exec", "client", "--", "cat", "/etc/resolv.conf"])
        .ok();
    assert!(resolv.contains("nameserver 10.43.0.10"), "{resolv}");
    assert!(
        resolv.contains("search names.svc.cluster.local svc.cluster.local cluster.local"),
        "{resolv}"
    );
    assert!(resolv.contains("ndots:5"), "{resolv}");
}

#[test]
fn node_ports_and_host_ports_are_reached_from_the_lan() {
    let kubectl = namespace("ports");
    web(&kubectl, "web", 1, ", hostPort: 18080");
    service(
        &kubectl,
        "web",
        "  type: NodePort\n  ports: [{port: 80, targetPort: 8080}]\n",
    );
    let port = kubectl.get(&["service", "web"])["spec"]["ports"][0]["nodePort"]
        .as_u64()
        .unwrap();
    assert!((30000..=32767).contains(&port), "{port}");
    for port in [port, 18080] {
        let url = format!("http://{}:{port}", shared().edge_box.address());
        let page = eventually(&url, Duration::from_secs(10), || {
            let ran = shared().lan.run(&["curl", "-sS", "-m2", &url]);
            if ran.code == 0 {
                Ok(ran.stdout)
            } else {
                Err(ran.stderr)
            }
        });
        assert_eq!(page, "web-0\n");
    }
}

#[test]
fn session_affinity_keeps_a_client_on_one_pod() {
    let kubectl = namespace("affinity");
    web(&kubectl, "web", 3, "");
    service(
        &kubectl,
        "web",
        "  sessionAffinity: ClientIP\n  ports: [{port: 80, targetPort: 8080}]\n",
    );
    let first = fetch(&kubectl, "http://web");
    for _ in 0..10 {
        assert_eq!(fetch(&kubectl, "http://web"), first);
    }
}

#[test]
fn udp_services_work() {
    let kubectl = namespace("udp");
    kubectl.apply(&format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: echo, labels: {{app: echo}}}}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{{name: main, image: {BUSYBOX}, command: [peer, udp-echo, '9000']}}]
"
    ));
    web(&kubectl, "none", 0, "");
    service(
        &kubectl,
        "echo",
        "  ports: [{port: 53, targetPort: 9000, protocol: UDP}]\n",
    );
    eventually("an answer by UDP", Duration::from_secs(20), || {
        let ran = kubectl.run(&[
            "exec", "client", "--", "peer", "udp-ask", "echo", "53", "hi",
        ]);
        if ran.stdout == "echo: hi\n" {
            Ok(())
        } else {
            Err(format!("{ran:?}"))
        }
    });
}

#[test]
fn pods_on_the_host_network_share_its_addresses() {
    let kubectl = namespace("host-network");
    kubectl.apply(&format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: it}}
spec:
  hostNetwork: true
  terminationGracePeriodSeconds: 0
  containers: [{{name: main, image: {BUSYBOX}, command: [sleep, '3600']}}]
"
    ));
    kubectl.wait_for("pod/it", "condition=Ready", 30);
    let status = kubectl.get(&["pod", "it"])["status"].clone();
    assert_eq!(status["podIP"], shared().edge_box.address());
    assert_eq!(status["hostIP"], shared().edge_box.address());
}

#[test]
fn proxied_pages_and_redirections_lead_back_through_the_proxy_also_to_https() {
    let kubectl = namespace("proxied");
    let serve = "mkdir -p /www/sub; echo '<a href=\"/next\">next</a>' > /www/page.html; echo '<a href=\"/next\">' > /www/page.txt; echo deep > /www/sub/index.html; exec httpd -f -p 8080 -h /www";
    kubectl.apply(&format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: it}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: {BUSYBOX}
    command: [sh, -c, {serve:?}]
    readinessProbe: {{tcpSocket: {{port: 8080}}, periodSeconds: 1}}
"
    ));
    kubectl.wait_for("pod/it", "condition=Ready", 30);
    let raw = |path: &str| kubectl.run(&["get", "--raw", path]).ok();
    let base = format!(
        "/api/v1/namespaces/{}/pods/http:it:8080/proxy",
        kubectl.get(&["pod", "it"])["metadata"]["namespace"]
            .as_str()
            .unwrap()
    );
    assert_eq!(
        raw(&format!("{base}/page.html")),
        format!("<a href=\"{base}/next\">next</a>\n")
    );
    assert_eq!(
        raw(&format!("{base}/page.txt")),
        "<a href=\"/next\">\n",
        "only pages have links"
    );
    // httpd sends to /sub/, and client-go follows.
    assert_eq!(raw(&format!("{base}/sub")), "deep\n");

    // A server that shows a certificate: the API's own, which tells anybody its version.
    let version = raw("/api/v1/namespaces/default/services/https:kubernetes:https/proxy/version");
    assert!(version.contains("gitVersion"), "{version}");
}
