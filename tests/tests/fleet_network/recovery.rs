//! Rules and ways after somebody or something took them away.

use std::time::Duration;

use amphipod_tests::{EdgeBox, Lan, binary, eventually, peer};

use crate::world::{Fleet, World, ask_from, wrapped_fleet};

/// Services, node ports, policies and the way to the other box.
struct Check<'a> {
    w: World<'a>,
    targets: [String; 2],
}

impl Check<'_> {
    #[track_caller]
    fn new<'a>(fleet: &'a Fleet, namespace: &str) -> Check<'a> {
        let w = World::new(fleet, namespace, &["web-a", "web-b", "friend-b", "foe-b"]);
        let spec = w.service(
            "web",
            "type: NodePort, selector: {app: web}, ports: [{port: 80, targetPort: http}]",
        );
        let service = format!("{}:80", spec["clusterIP"].as_str().unwrap());
        let port = format!("{}:{}", fleet.agent.address(), spec["ports"][0]["nodePort"]);
        w.policy("friends", "{podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: {matchLabels: {app: friend}}}]}]}");
        let check = Check {
            w,
            targets: [service, port],
        };
        check.holds("before");
        check
    }

    #[track_caller]
    fn holds(&self, when: &str) {
        let [service, port] = &self.targets;
        let targets = [service, port, "web-b:8080", "udp:web-b:8080", "web-a:8080"];
        self.w
            .reaches(when, &["friend-b", "foe-b"], &targets, |client, _| {
                client == "friend-b"
            });
    }
}

/// A box's rules come back after `flush`, whether the agent is there to see it or not.
#[track_caller]
fn come_back_after(fleet: &mut Fleet, namespace: &str, flush: &[&str]) {
    let check = Check::new(fleet, namespace);
    for round in 0..3 {
        fleet.agent.run(flush).ok();
        check.holds(&format!("after flush {round}"));
    }
    let service = check.targets[0].clone();
    drop(check);
    // The flush is real.
    fleet.agent.kill_program();
    fleet.agent.run(flush).ok();
    let connect = format!("exec 3<>/dev/tcp/{}", service.replace(':', "/"));
    let ran = fleet.agent.run(&["timeout", "2", "bash", "-c", &connect]);
    assert_ne!(
        ran.code, 0,
        "rules were flushed and nobody put them back, yet the service answers"
    );
    fleet.restart_agent();
    fleet.wait_for_agent();
    answers_again(fleet, &service);
}

#[track_caller]
fn answers_again(fleet: &Fleet, service: &str) {
    eventually(
        "the service, after the agent's start",
        Duration::from_secs(30),
        || {
            let said = ask_from(&fleet.agent, &[service.to_owned()]);
            let answered = said[0].starts_with("web-");
            answered
                .then_some(())
                .ok_or_else(|| format!("{said:?}\n{}", fleet.agent.log()))
        },
    );
}

#[test]
fn rules_come_back_after_nft_flush_ruleset() {
    come_back_after(
        &mut wrapped_fleet(),
        "flushed",
        &["nft", "flush", "ruleset"],
    );
}

#[test]
fn rules_come_back_after_iptables_is_flushed_where_that_is_the_firewall() {
    let mut fleet = Fleet::start(&["--firewall", "iptables"]);
    crate::overlay::all_is_well(&fleet);
    for on in [&fleet.server, &fleet.agent] {
        let tables = on.run(&["nft", "list", "tables"]).ok();
        assert!(!tables.contains("amphipod"), "{tables}");
    }
    let flush = "iptables -F; iptables -t nat -F; iptables -t mangle -F; iptables -t raw -F";
    come_back_after(&mut fleet, "flushed", &["sh", "-c", flush]);
}

#[test]
fn a_box_can_change_its_firewall_and_keeps_nothing_of_the_old_one() {
    let lan = Lan::new();
    let mut on = EdgeBox::new(&lan);
    for (kind, gone) in [
        ("iptables", "nft list tables | grep amphipod"),
        ("nftables", "iptables-save | grep amphi"),
        ("iptables", "nft list tables | grep amphipod"),
    ] {
        on.start(&["--firewall", kind]);
        on.wait_until_ready();
        let page = format!("https://{}:443/livez", "10.43.0.1");
        eventually(kind, Duration::from_secs(20), || {
            let ran = on.run(&["curl", "-skS", "-m3", &page]);
            let left = on.run(&["sh", "-c", gone]).stdout;
            let well = ran.stdout == "ok" && left.is_empty();
            well.then_some(()).ok_or_else(|| format!("{ran:?}\n{left}"))
        });
        on.kill_program();
    }
    // Without its program it says so, before it does anything.
    let program = binary();
    let start = [
        "env",
        "PATH=/nowhere",
        program.to_str().unwrap(),
        "server",
        "--firewall",
        "iptables",
    ];
    let told = on.run(&[&["timeout", "20"], &start[..]].concat());
    assert_eq!(told.code, 1, "{told:?}");
    assert!(
        told.stderr
            .contains("needs the program iptables on this box: install it"),
        "{told:?}"
    );
}

/// Runs a program of the box in a pod's network, without the server: the pod is found by its host name among the box's processes, so that name
/// must be no other pod's of the fleet.
pub fn run_in_pod(on: &EdgeBox, pod: &str, args: &[&str]) -> Result<String, String> {
    let find = format!(
        "for p in $(pgrep -x peer); do [ \"$(nsenter -u -t $p hostname)\" = {pod} ] && echo $p && break; done"
    );
    let pid = on.run(&["sh", "-c", &find]).stdout;
    if pid.trim().is_empty() {
        return Err(format!("{pod} does not run\n{}", on.log()));
    }
    let inside = ["nsenter", "-n", "-t", pid.trim(), "--"];
    let ran = on.run(&[&inside[..], args].concat());
    Ok(ran.stdout)
}

fn ask_in_pod(on: &EdgeBox, pod: &str, targets: &[String]) -> Result<Vec<String>, String> {
    let program = peer();
    let mut args = vec![program.to_str().unwrap(), "reach"];
    args.extend(targets.iter().map(String::as_str));
    let said = run_in_pod(on, pod, &args)?;
    Ok(said.lines().map(str::to_owned).collect())
}

#[test]
fn after_a_power_cut_without_the_server_pods_reach_each_other_and_their_services_on_both_boxes() {
    let mut fleet = wrapped_fleet();
    let w = World::new(
        &fleet,
        "offline",
        &["far-a", "near-b", "caller-b", "intruder-b"],
    );
    let mut targets = vec![w.address("near-b:8080"), w.address("udp:far-a:8080")];
    for app in ["far", "near"] {
        let spec = w.service(
            app,
            &format!("selector: {{app: {app}}}, ports: [{{port: 80, targetPort: http}}]"),
        );
        targets.push(format!("{}:80", spec["clusterIP"].as_str().unwrap()));
    }
    let names = ["near-b", "far-a", "far-a", "near-b"];
    w.policy(
        "no-foes",
        "{podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {app: caller}}}]}]}",
    );
    let addresses: Vec<&str> = targets.iter().map(String::as_str).collect();
    w.reaches(
        "before the power cut",
        &["caller-b", "intruder-b"],
        &addresses,
        |client, _| client == "caller-b",
    );
    let client = w.ip("caller-b").to_owned();
    drop(w);

    fleet.server.kill_program();
    fleet.agent.power_off();
    let Fleet { agent, lan, .. } = &mut *fleet;
    agent.power_on(lan);
    fleet.restart_agent();
    eventually(
        "everything to be as before",
        Duration::from_secs(40),
        || {
            let said = ask_in_pod(&fleet.agent, "caller-b", &targets)?;
            let expected = names.map(|name| format!("{name} {client}"));
            if said == expected {
                Ok(())
            } else {
                Err(format!("{said:?}\n{}", fleet.agent.log()))
            }
        },
    );
    // Policies as well, from the agent's copy; and the box itself reaches its own pods.
    let said = ask_in_pod(&fleet.agent, "intruder-b", &targets).unwrap();
    assert_eq!(said, ["-"; 4]);
    let said = ask_from(&fleet.agent, &targets[3..]);
    assert!(said[0].starts_with("near-b"), "{said:?}");

    fleet.restart_server();
}
