//! The connection that a box opens, and how a box does without it.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::Duration;

use amphipod_tests::{BUSYBOX, Ran, Registry, eventually};

use crate::world::{Fleet, pod};

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
