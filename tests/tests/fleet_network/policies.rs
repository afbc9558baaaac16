//! NetworkPolicies by kubectl, on both boxes, for traffic from both.

use crate::world::{World, ask_outside, fleet};

const CLIENTS: [&str; 4] = ["friend-a", "friend-b", "foe-a", "foe-b"];
const PODS: [&str; 6] = ["friend-a", "friend-b", "foe-a", "foe-b", "web-a", "web-b"];
const TARGETS: [&str; 10] = [
    "web-a:8080",
    "web-b:8080",
    "web-a:8081",
    "web-b:8081",
    "web-a:9000",
    "web-b:9000",
    "udp:web-a:8080",
    "udp:web-b:8080",
    "udp:web-a:9000",
    "udp:web-b:9000",
];

fn is_friend(client: &str) -> bool {
    client.starts_with("friend")
}

#[test]
fn who_may_connect_is_chosen_by_labels_on_both_boxes_and_through_services() {
    let fleet = fleet();
    let w = World::new(fleet, "ingress", &PODS);
    let spec = w.service(
        "web",
        "selector: {app: web}, ports: [{port: 80, targetPort: http}]",
    );
    let service = format!("{}:80", spec["clusterIP"].as_str().unwrap());
    let targets = [
        "web-a:8080",
        "web-b:8080",
        "udp:web-a:9000",
        "udp:web-b:9000",
        &service,
        "friend-a:8080",
        "friend-b:8080",
    ];
    w.reaches("all is open", &CLIENTS, &targets, |_, _| true);
    // An empty list of rules: nobody.
    w.policy(
        "deny",
        "{podSelector: {matchLabels: {app: web}}, policyTypes: [Ingress]}",
    );
    w.reaches("default deny", &CLIENTS, &targets, |_, target| {
        target.starts_with("friend")
    });
    w.policy("friends", "{podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: {matchLabels: {app: friend}}}]}]}");
    w.reaches("friends only", &CLIENTS, &targets, |client, target| {
        is_friend(client) || target.starts_with("friend")
    });
    // Labels change while pods run.
    w.kubectl
        .run(&["label", "pod", "foe-b", "app=friend", "--overwrite"])
        .ok();
    w.reaches("a new friend", &CLIENTS, &targets, |client, target| {
        client != "foe-a" || target.starts_with("friend")
    });
    w.kubectl
        .run(&["delete", "networkpolicy", "deny", "friends"])
        .ok();
    w.reaches("open again", &CLIENTS, &targets, |_, _| true);
}

#[test]
fn ports_are_chosen_by_number_name_range_and_protocol() {
    let w = World::new(fleet(), "ports", &PODS);
    let policy = |ports: &str| {
        w.policy(
            "ports",
            &format!(
                "{{podSelector: {{matchLabels: {{app: web}}}}, ingress: [{{ports: [{ports}]}}]}}"
            ),
        );
    };
    // `u` before a port: UDP.
    let open = |what: &str, ports: &[&str]| {
        w.reaches(what, &CLIENTS[1..3], &TARGETS, |_, target| {
            let port = target.rsplit_once(':').unwrap().1;
            let kind = if target.starts_with("udp:") { "u" } else { "" };
            ports.contains(&format!("{kind}{port}").as_str())
        });
    };
    policy("{port: 8080}");
    open("by number, TCP", &["8080"]);
    policy("{port: admin}, {port: 9000, protocol: UDP}");
    open("by name, and UDP", &["8081", "u9000"]);
    policy("{port: 8080, endPort: 8500}");
    open("a range", &["8080", "8081"]);
    policy("{port: 8081, endPort: 9000}, {protocol: UDP}");
    open(
        "a range and a protocol",
        &["8081", "9000", "u8080", "u9000"],
    );
}

#[test]
fn namespaces_and_pods_in_them_are_chosen_together_or_apart() {
    let w = World::new(fleet(), "inside", &["web-a", "web-b", "friend-a", "foe-b"]);
    let other = World::new(fleet(), "outside", &["friend-b", "foe-a"]);
    w.kubectl
        .run(&["label", "namespace", "outside", "team=blue"])
        .ok();
    let targets: Vec<String> = ["web-a:8080", "udp:web-b:8080"]
        .iter()
        .map(|t| w.address(t))
        .collect();
    let targets: Vec<&str> = targets.iter().map(String::as_str).collect();
    let expect = |what: &str, allowed: &[&str]| {
        w.reaches(what, &["friend-a", "foe-b"], &targets, |client, _| {
            allowed.contains(&format!("inside/{client}").as_str())
        });
        other.reaches(what, &["friend-b", "foe-a"], &targets, |client, _| {
            allowed.contains(&format!("outside/{client}").as_str())
        });
    };
    let policy = |from: &str| {
        w.policy(
            "it",
            &format!(
                "{{podSelector: {{}}, policyTypes: [Ingress], ingress: [{{from: [{from}]}}]}}"
            ),
        )
    };
    let blue = "namespaceSelector: {matchLabels: {team: blue}}";
    let friend = "podSelector: {matchLabels: {app: friend}}";
    policy(&format!("{{{blue}}}"));
    expect("a namespace", &["outside/friend-b", "outside/foe-a"]);
    policy(&format!("{{{blue}, {friend}}}"));
    expect("pods of a namespace", &["outside/friend-b"]);
    policy(&format!("{{{blue}}}, {{{friend}}}"));
    expect(
        "a namespace, or pods of this one",
        &["outside/friend-b", "outside/foe-a", "inside/friend-a"],
    );
    policy(
        "{namespaceSelector: {matchExpressions: [{key: team, operator: DoesNotExist}]}, podSelector: {matchExpressions: [{key: app, operator: In, values: [foe]}]}}",
    );
    expect("by expressions", &["inside/foe-b"]);
    // Namespaces change.
    policy(&format!("{{{blue}}}"));
    w.kubectl
        .run(&["label", "namespace", "outside", "team-"])
        .ok();
    expect("nobody any more", &[]);
    w.kubectl
        .run(&["label", "namespace", "inside", "team=blue"])
        .ok();
    expect("one's own namespace", &["inside/friend-a", "inside/foe-b"]);
}

#[test]
fn blocks_of_addresses_are_allowed_but_for_their_exceptions() {
    let fleet = fleet();
    let w = World::new(fleet, "blocks", &PODS);
    let policy = |from: &str| {
        w.policy(
            "it",
            &format!(
                "{{podSelector: {{matchLabels: {{app: web}}}}, ingress: [{{from: [{from}]}}]}}"
            ),
        )
    };
    let targets = [
        "web-a:8080",
        "web-b:8080",
        "udp:web-a:9000",
        "udp:web-b:9000",
    ];
    policy(&format!(
        "{{ipBlock: {{cidr: 10.42.0.0/16, except: [{}/32, {}/32]}}}}",
        w.ip("foe-a"),
        w.ip("foe-b")
    ));
    w.reaches("all pods but two", &CLIENTS, &targets, |client, _| {
        is_friend(client)
    });
    // Whoever is outside is judged by the own address where that is kept.
    {
        let spec = w.service("web", "type: NodePort, externalTrafficPolicy: Local, selector: {app: web}, ports: [{port: 80, targetPort: http}]");
        let port = spec["ports"][0]["nodePort"].as_u64().unwrap();
        let targets = [&fleet.server, &fleet.agent].map(|b| format!("{}:{port}", b.address()));
        w.answers("outside", &["-"], || ask_outside(&fleet.lan, &targets));
        policy("{ipBlock: {cidr: 10.99.0.254/32}}");
        w.answers("outside", &["web-a", "web-b"], || {
            ask_outside(&fleet.lan, &targets)
        });
        policy("{ipBlock: {cidr: 10.99.0.0/24, except: [10.99.0.254/32]}}");
        w.answers("outside", &["-"], || ask_outside(&fleet.lan, &targets));
    }
}

#[test]
fn what_pods_may_connect_to_is_chosen_on_both_boxes() {
    let fleet = fleet();
    let w = World::new(fleet, "egress", &PODS);
    let spec = w.service(
        "web",
        "selector: {app: web}, ports: [{port: 80, targetPort: http}]",
    );
    let service = format!("{}:80", spec["clusterIP"].as_str().unwrap());
    let mut targets = TARGETS.to_vec();
    targets.push(&service);
    let policy = |egress: &str| {
        w.policy("it", &format!("{{podSelector: {{matchLabels: {{app: friend}}}}, policyTypes: [Egress], egress: [{egress}]}}"))
    };
    policy("");
    w.reaches("nothing", &CLIENTS, &targets, |client, _| {
        !is_friend(client)
    });
    w.reaches(
        "others reach the isolated",
        &["foe-a", "foe-b"],
        &["friend-a:8080", "friend-b:8080"],
        |_, _| true,
    );
    policy("{to: [{podSelector: {matchLabels: {name: web-b}}}], ports: [{port: http}]}");
    w.reaches(
        "one pod's named port",
        &["friend-a", "friend-b", "foe-a"],
        &TARGETS,
        |client, target| !is_friend(client) || target == "web-b:8080",
    );
    // By its service, where the endpoint counts, and by its name: DNS is answered on the box.
    policy("{to: [{podSelector: {matchLabels: {app: web}}}], ports: [{port: 8080}]}");
    w.reaches(
        "the service's pods",
        &["friend-a", "friend-b"],
        &[&service, "web.egress:80", "web-a:8081"],
        |_, target| target != "web-a:8081",
    );
    policy(&format!(
        "{{to: [{{ipBlock: {{cidr: 10.42.0.0/16, except: [{}/32]}}}}]}}",
        w.ip("web-a")
    ));
    w.reaches(
        "a block",
        &["friend-a", "friend-b", "foe-b"],
        &TARGETS,
        |client, target| !is_friend(client) || !target.contains("web-a"),
    );
}
