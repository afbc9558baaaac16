//! Services over pods of both boxes: who answers, and whom it sees.

use std::time::Duration;

use amphipod_tests::eventually;
use serde_json::Value;

use crate::world::{World, ask_from, ask_outside, fleet};

/// The router of the LAN, as boxes see whoever is outside.
const OUTSIDE: &str = "10.99.0.254";

fn cluster_ip(spec: &Value) -> &str {
    spec["clusterIP"].as_str().unwrap()
}

fn node_port(spec: &Value) -> u64 {
    spec["ports"][0]["nodePort"].as_u64().unwrap()
}

/// Each target often enough to meet every endpoint.
fn often(target: &str) -> Vec<String> {
    vec![target.to_owned(); 12]
}

const BOTH: &str = "ports: [{name: t, port: 80, targetPort: http}, {name: u, port: 80, protocol: UDP, targetPort: 8080}]";

#[test]
fn a_cluster_ip_reaches_pods_of_every_box_from_pods_and_boxes() {
    let fleet = fleet();
    let w = World::new(
        fleet,
        "cluster-ip",
        &["web-a", "web-b", "client-a", "client-b"],
    );
    let spec = w.service("web", &format!("selector: {{app: web}}, {BOTH}"));
    let target = format!("{}:80", cluster_ip(&spec));
    for target in [target.clone(), format!("udp:{target}")] {
        for client in ["client-a", "client-b", "web-a", "web-b"] {
            w.answered_by(client, &target, &["web-a", "web-b"]);
        }
        for from in [&fleet.server, &fleet.agent] {
            w.answers(from.name(), &["web-a", "web-b"], || {
                ask_from(from, &often(&target))
            });
        }
        // Pods see who asks, on the other box too.
        for client in ["client-a", "client-b"] {
            for said in w.ask(client, &often(&target)) {
                assert_eq!(said.split(' ').nth(1), Some(w.ip(client)), "{said}");
            }
        }
    }
}

#[test]
fn a_node_port_of_either_box_leads_to_pods_of_the_other() {
    let fleet = fleet();
    let w = World::new(
        fleet,
        "node-port",
        &["far-a", "near-b", "client-a", "client-b"],
    );
    for pod in ["far-a", "near-b"] {
        let app = pod.split('-').next().unwrap();
        let spec = w.service(
            app,
            &format!("type: NodePort, selector: {{app: {app}}}, {BOTH}"),
        );
        for by in [&fleet.server, &fleet.agent] {
            for port in [0, 1] {
                let kind = ["", "udp:"][port];
                let number = spec["ports"][port]["nodePort"].as_u64().unwrap();
                let target = format!("{kind}{}:{number}", by.address());
                w.answers("outside", &[pod], || {
                    ask_outside(&fleet.lan, std::slice::from_ref(&target))
                });
                for from in [&fleet.server, &fleet.agent] {
                    w.answers(from.name(), &[pod], || {
                        ask_from(from, std::slice::from_ref(&target))
                    });
                }
                for client in ["client-a", "client-b"] {
                    w.answered_by(client, &target, &[pod]);
                }
                // The answer must come back through the box that was asked: the pod does not see the client.
                let said = ask_outside(&fleet.lan, &[target]);
                assert!(!said[0].ends_with(OUTSIDE), "{said:?}");
            }
        }
    }
}

#[test]
fn a_client_keeps_its_pod_wherever_it_is() {
    let fleet = fleet();
    let w = World::new(
        fleet,
        "affinity",
        &["web-a", "web-b", "client-a", "client-b"],
    );
    let spec = w.service("web", "type: NodePort, selector: {app: web}, sessionAffinity: ClientIP, ports: [{port: 80, targetPort: http}]");
    let target = format!("{}:80", cluster_ip(&spec));
    let kept = |what: &str, ask: &dyn Fn() -> Vec<String>| {
        eventually(what, Duration::from_secs(60), || {
            let said = ask();
            match said.iter().all(|s| *s == said[0] && s != "-") {
                true => Ok(said[0].clone()),
                false => Err(format!("{said:?}")),
            }
        })
    };
    // Both endpoints are known before anybody is remembered.
    eventually("two endpoints", Duration::from_secs(30), || {
        let slices = w.kubectl.run(&["get", "endpointslices", "-o", "wide"]).ok();
        let both = ["web-a", "web-b"]
            .iter()
            .all(|pod| slices.contains(w.ip(pod)));
        both.then_some(()).ok_or(slices)
    });
    for client in ["client-a", "client-b"] {
        let first = kept(client, &|| w.ask(client, &often(&target)));
        assert_eq!(first, kept(client, &|| w.ask(client, &often(&target))));
    }
    let outside = format!("{}:{}", fleet.server.address(), node_port(&spec));
    let first = kept("outside", &|| ask_outside(&fleet.lan, &often(&outside)));
    assert_eq!(
        first,
        kept("outside", &|| ask_outside(&fleet.lan, &often(&outside)))
    );
}

#[test]
fn the_external_policy_local_keeps_the_clients_address_and_drops_where_no_pod_is() {
    let fleet = fleet();
    let w = World::new(fleet, "local", &["web-b", "client-a"]);
    let spec = w.service(
        "web",
        &format!(
            "type: LoadBalancer, externalTrafficPolicy: Local, selector: {{app: web}}, {BOTH}"
        ),
    );
    for port in [0, 1] {
        let kind = ["", "udp:"][port];
        let number = spec["ports"][port]["nodePort"].as_u64().unwrap();
        let (here, there) = (
            format!("{kind}{}:{number}", fleet.agent.address()),
            format!("{kind}{}:{number}", fleet.server.address()),
        );
        w.answers("outside", &["web-b"], || {
            ask_outside(&fleet.lan, std::slice::from_ref(&here))
        });
        let said = ask_outside(&fleet.lan, &[here, there.clone()]);
        assert_eq!(said, [format!("web-b {OUTSIDE}"), "-".to_owned()]);
        // It was dropped, not refused; and clients inside the cluster may use any pod by any box.
        w.answered_by("client-a", &there, &["web-b"]);
    }
    let refused = format!(
        "exec 3<>/dev/tcp/{}/{}",
        fleet.server.address(),
        node_port(&spec)
    );
    assert_eq!(
        fleet
            .lan
            .run(&["timeout", "1", "bash", "-c", &refused])
            .code,
        124
    );

    // What a load balancer asks before it sends clients to a box.
    let health = spec["healthCheckNodePort"].as_u64().unwrap();
    for (on, code, pods) in [(&fleet.agent, "200", 1), (&fleet.server, "503", 0)] {
        let url = format!("http://{}:{health}/healthz", on.address());
        let expected = format!("\"localEndpoints\":{pods}");
        eventually(
            &format!("{url} to answer {code}"),
            Duration::from_secs(30),
            || {
                let ran = fleet.lan.run(&["curl", "-sS", "-m3", "-i", &url]);
                let told = ran.stdout.contains(code) && ran.stdout.contains(&expected);
                if told
                    && ran
                        .stdout
                        .to_lowercase()
                        .contains(&format!("x-load-balancing-endpoint-weight: {pods}"))
                {
                    Ok(())
                } else {
                    Err(format!("{ran:?}"))
                }
            },
        );
    }

    // The address that a load balancer gave it.
    let balanced = "10.77.0.1";
    let status =
        format!("{{\"status\":{{\"loadBalancer\":{{\"ingress\":[{{\"ip\":\"{balanced}\"}}]}}}}}}");
    w.kubectl
        .run(&[
            "patch",
            "service",
            "web",
            "--subresource=status",
            "-p",
            &status,
        ])
        .ok();
    let via = |by: &str| {
        fleet
            .lan
            .run(&["ip", "route", "replace", balanced, "via", by])
            .ok();
    };
    let target = [format!("{balanced}:80"), format!("udp:{balanced}:80")];
    via(fleet.agent.address());
    w.answers("outside by the load balancer's address", &["web-b"], || {
        ask_outside(&fleet.lan, &target)
    });
    assert_eq!(
        ask_outside(&fleet.lan, &target),
        vec![format!("web-b {OUTSIDE}"); 2]
    );
    via(fleet.server.address());
    assert_eq!(ask_outside(&fleet.lan, &target), ["-", "-"]);
    w.kubectl.run(&["delete", "pod", "web-b", "--force"]).ok();
    eventually("no healthy box", Duration::from_secs(30), || {
        let url = format!("http://{}:{health}/", fleet.agent.address());
        let ran = fleet.lan.run(&[
            "curl",
            "-sS",
            "-m3",
            "-o",
            "/dev/null",
            "-w",
            "%{http_code}",
            &url,
        ]);
        if ran.stdout == "503" {
            Ok(())
        } else {
            Err(format!("{ran:?}"))
        }
    });
    w.kubectl.run(&["delete", "service", "web"]).ok();
    eventually("the port to close", Duration::from_secs(30), || {
        let ran = fleet.lan.run(&[
            "curl",
            "-sS",
            "-m3",
            &format!("http://{}:{health}/", fleet.agent.address()),
        ]);
        if ran.stderr.contains("refused") || ran.stderr.contains("connect to server") {
            Ok(())
        } else {
            Err(format!("{ran:?}"))
        }
    });
}

#[test]
fn the_internal_policy_local_never_leaves_the_box() {
    let fleet = fleet();
    let mut w = World::new(fleet, "internal", &["web-b", "client-a", "client-b"]);
    let spec = w.service(
        "web",
        &format!("internalTrafficPolicy: Local, selector: {{app: web}}, {BOTH}"),
    );
    let target = format!("{}:80", cluster_ip(&spec));
    let udp = format!("udp:{target}");
    w.reaches(
        "only the pod's own box",
        &["client-a", "client-b"],
        &[&target, &udp],
        |client, _| client == "client-b",
    );
    w.add(&["web-a"]);
    for target in [&target, &udp] {
        w.answered_by("client-a", target, &["web-a"]);
        w.answered_by("client-b", target, &["web-b"]);
        w.answers("the box itself", &["web-b"], || {
            ask_from(&fleet.agent, &often(target))
        });
    }
}

#[test]
fn traffic_stays_as_near_as_a_service_asks() {
    let fleet = fleet();
    for (distribution, name) in [
        ("PreferClose", "close"),
        ("PreferSameZone", "zone"),
        ("PreferSameNode", "node"),
    ] {
        let w = World::new(
            fleet,
            &format!("near-{name}"),
            &["web-a", "web-b", "client-a", "client-b"],
        );
        let spec = w.service("web", &format!("type: NodePort, trafficDistribution: {distribution}, selector: {{app: web}}, {BOTH}"));
        let target = format!("{}:80", cluster_ip(&spec));
        w.answered_by("client-a", &target, &["web-a"]);
        w.answered_by("client-b", &format!("udp:{target}"), &["web-b"]);
        w.answers("the box itself", &["web-b"], || {
            ask_from(&fleet.agent, &often(&target))
        });
        let port = format!("{}:{}", fleet.server.address(), node_port(&spec));
        w.answers("outside", &["web-a"], || {
            ask_outside(&fleet.lan, &often(&port))
        });
        // Near is a preference.
        w.kubectl.run(&["delete", "pod", "web-a", "--force"]).ok();
        w.answered_by("client-a", &target, &["web-b"]);
    }
}

#[test]
fn hints_of_a_slice_that_somebody_wrote_are_followed() {
    let w = World::new(
        fleet(),
        "hints",
        &["web-a", "web-b", "client-a", "client-b"],
    );
    let spec = w.service("web", "ports: [{name: http, port: 80}]");
    let target = format!("{}:80", cluster_ip(&spec));
    let slice = |a: &str, b: &str| {
        w.kubectl.apply(&format!(
            "apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: web, labels: {{kubernetes.io/service-name: web}}}}
addressType: IPv4
ports: [{{name: http, port: 8080, protocol: TCP}}]
endpoints:
- {{addresses: [{}], conditions: {{ready: true}}, hints: {a}}}
- {{addresses: [{}], conditions: {{ready: true}}, hints: {b}}}
",
            w.ip("web-a"),
            w.ip("web-b")
        ));
    };
    let zone = |z: &str| format!("{{forZones: [{{name: {z}}}]}}");
    slice(&zone("two"), &zone("one"));
    w.answered_by("client-a", &target, &["web-b"]);
    w.answered_by("client-b", &target, &["web-a"]);
    // One without a hint, or nobody for this zone: hints say nothing.
    slice(&zone("two"), "null");
    w.answered_by("client-a", &target, &["web-a", "web-b"]);
    slice(&zone("two"), &zone("two"));
    w.answered_by("client-a", &target, &["web-a", "web-b"]);
}

#[test]
fn a_service_without_pods_refuses_on_every_box() {
    let fleet = fleet();
    let w = World::new(fleet, "empty", &["client-a", "client-b"]);
    let spec = w.service(
        "web",
        "type: NodePort, selector: {app: web}, ports: [{port: 80, targetPort: http}]",
    );
    let refused = |what: &str, run: &dyn Fn() -> amphipod_tests::Ran| {
        eventually(what, Duration::from_secs(30), || {
            let ran = run();
            if ran.stderr.contains("refused") {
                Ok(())
            } else {
                Err(format!("{ran:?}"))
            }
        });
    };
    let get = format!("http://{}:80/", cluster_ip(&spec));
    for client in ["client-a", "client-b"] {
        refused(client, &|| {
            w.kubectl.run(&["exec", client, "--", "peer", "get", &get])
        });
    }
    for by in [&fleet.server, &fleet.agent] {
        let connect = format!("exec 3<>/dev/tcp/{}/{}", by.address(), node_port(&spec));
        refused("outside", &|| {
            fleet.lan.run(&["timeout", "2", "bash", "-c", &connect])
        });
    }
}
