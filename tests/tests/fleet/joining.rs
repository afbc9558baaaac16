//! Tokens, names, and who may act as which node.

use std::time::Duration;

use amphipod_tests::{EdgeBox, Lan, Registry, binary, eventually};

use crate::world::{Fleet, amphipod, join_line, pod, start_with, wait_ready};

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
