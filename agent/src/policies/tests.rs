#![allow(clippy::unwrap_used)]

use amphipod_netplug::{Allow, PolicyGroup, Traffic};

use super::*;

fn policy(name: &str, spec: Value) -> Arc<Value> {
    Arc::new(json!({"metadata": {"namespace": "shop", "name": name}, "spec": spec}))
}

fn pod(namespace: &str, name: &str, node: &str, ip: &str, labels: Value) -> Arc<Value> {
    Arc::new(
        json!({"metadata": {"namespace": namespace, "name": name, "uid": name, "labels": labels},
        "spec": {"nodeName": node, "containers": [{"ports": [{"name": "web", "containerPort": 8080, "protocol": "TCP"}]}]},
        "status": {"phase": "Running", "podIPs": [{"ip": ip}]}}),
    )
}

/// A cluster: two pods of `shop` here, one elsewhere, one of another namespace elsewhere.
fn picture(policies: Vec<Arc<Value>>) -> Picture {
    let mut p = Picture::default();
    p.take_namespaces(Event::Restarted(vec![
        Arc::new(json!({"metadata": {"name": "shop", "labels": {"team": "a"}}})),
        Arc::new(json!({"metadata": {"name": "ops", "labels": {"team": "b"}}})),
    ]));
    p.take_pods(Event::Restarted(vec![
        pod("shop", "db", "me", "10.42.0.2", json!({"app": "db"})),
        pod("shop", "front", "me", "10.42.0.3", json!({"app": "front"})),
        pod("shop", "far", "other", "10.42.1.2", json!({"app": "front"})),
        pod(
            "ops",
            "watch",
            "other",
            "10.42.1.3",
            json!({"app": "front"}),
        ),
    ]));
    p.take_policies(Event::Restarted(policies));
    p
}

/// `direction pods: peer[-except] ports`, one line for each thing that is allowed.
fn told(p: &Picture) -> Vec<String> {
    let line = |g: &PolicyGroup, a: &Allow| {
        let traffic = match a.traffic {
            Traffic::All => "all".to_string(),
            Traffic::Ports {
                protocol,
                first,
                last,
            } => format!("{protocol:?} {first}-{last}"),
        };
        let except: String = a.except.iter().map(|e| format!("-{e}")).collect();
        format!(
            "{:?} {:?}: {}{except} {traffic}",
            g.direction, g.pods, a.peer
        )
    };
    let mut lines = Vec::new();
    for g in p.compile("me") {
        if g.allow.is_empty() {
            lines.push(format!("{:?} {:?}: nothing", g.direction, g.pods));
        }
        lines.extend(g.allow.iter().map(|a| line(&g, a)));
    }
    lines
}

#[test]
fn a_policy_without_rules_isolates_what_it_selects() {
    let all = picture(vec![policy("deny", json!({"podSelector": {}}))]);
    assert_eq!(told(&all), ["Ingress {10.42.0.2, 10.42.0.3}: nothing"]);
    let both = picture(vec![policy(
        "deny",
        json!({"podSelector": {"matchLabels": {"app": "db"}}, "policyTypes": ["Ingress", "Egress"]}),
    )]);
    assert_eq!(
        told(&both),
        [
            "Ingress {10.42.0.2}: nothing",
            "Egress {10.42.0.2}: nothing"
        ]
    );
}

#[test]
fn peers_are_chosen_by_pod_by_namespace_and_by_both() {
    let from = |peers: Value| {
        told(&picture(vec![policy(
            "p",
            json!({"podSelector": {"matchLabels": {"app": "db"}}, "ingress": [{"from": peers}]}),
        )]))
        .iter()
        .map(|l| l.rsplit(": ").next().unwrap_or_default().to_owned())
        .collect::<Vec<_>>()
    };
    let front = json!({"matchLabels": {"app": "front"}});
    let b = json!({"matchExpressions": [{"key": "team", "operator": "In", "values": ["b"]}]});
    assert_eq!(
        from(json!([{"podSelector": front}])),
        ["10.42.1.2/32 all", "10.42.0.3/32 all"]
    );
    assert_eq!(
        from(json!([{"namespaceSelector": b}])),
        ["10.42.1.3/32 all"]
    );
    assert_eq!(
        from(json!([{"namespaceSelector": {}, "podSelector": front}])).len(),
        3
    );
    assert_eq!(
        from(json!([{"namespaceSelector": b, "podSelector": {"matchLabels": {"app": "db"}}}])),
        ["nothing"]
    );
    assert_eq!(
        from(json!([{"namespaceSelector": b}, {"podSelector": front}])).len(),
        3,
        "several peers are alternatives"
    );
    assert_eq!(
        from(json!([{"ipBlock": {"cidr": "192.0.2.0/24", "except": ["192.0.2.8/29"]}}])),
        ["192.0.2.0/24-192.0.2.8/29 all"]
    );
    assert_eq!(
        from(json!([])),
        ["0.0.0.0/0 all", "::/0 all"].map(|s| s.to_owned())
    );
}

#[test]
fn ports_are_numbers_ranges_and_names() {
    let ports = |direction: &str, peers: &str, ports: Value| {
        let rule =
            json!([{peers: [{"podSelector": {"matchLabels": {"app": "front"}}}], "ports": ports}]);
        let kind = if direction == "ingress" {
            "Ingress"
        } else {
            "Egress"
        };
        told(&picture(vec![policy(
            "p",
            json!({"podSelector": {"matchLabels": {"app": "db"}}, "policyTypes": [kind], direction: rule}),
        )]))
    };
    let one = ports("ingress", "from", json!([{"port": 80}]));
    assert_eq!(one[0], "Ingress {10.42.0.2}: 10.42.1.2/32 Tcp 80-80");
    let range = ports(
        "ingress",
        "from",
        json!([{"protocol": "UDP", "port": 80, "endPort": 90}]),
    );
    assert!(range[0].ends_with("Udp 80-90"), "{range:?}");
    let any = ports("ingress", "from", json!([{"protocol": "SCTP"}]));
    assert!(any[0].ends_with("Sctp 0-65535"), "{any:?}");
    for (direction, peers) in [("ingress", "from"), ("egress", "to")] {
        let named = ports(direction, peers, json!([{"port": "web"}]));
        assert_eq!(named.len(), 2);
        assert!(named[0].ends_with("Tcp 8080-8080"), "{named:?}");
        let unknown = ports(direction, peers, json!([{"port": "nobody"}]));
        assert!(unknown[0].ends_with("nothing"), "{unknown:?}");
    }
}

#[test]
fn several_policies_of_a_pod_add_up() {
    let rule = |ip: &str| json!({"podSelector": {"matchLabels": {"app": "db"}}, "ingress": [{"from": [{"ipBlock": {"cidr": ip}}]}]});
    let p = picture(vec![
        policy("a", rule("192.0.2.1/32")),
        policy("b", rule("192.0.2.2/32")),
        policy("deny", json!({"podSelector": {}})),
    ]);
    assert_eq!(
        told(&p),
        [
            "Ingress {10.42.0.2}: 192.0.2.1/32 all",
            "Ingress {10.42.0.2}: 192.0.2.2/32 all",
            "Ingress {10.42.0.3}: nothing"
        ]
    );
}

#[test]
fn egress_is_isolated_only_if_the_policy_says_so() {
    let p = picture(vec![policy(
        "out",
        json!({"podSelector": {"matchLabels": {"app": "db"}}, "egress": [{}]}),
    )]);
    let lines = told(&p);
    assert_eq!(lines[0], "Ingress {10.42.0.2}: nothing");
    assert_eq!(lines[1], "Egress {10.42.0.2}: 0.0.0.0/0 all");
    let p = picture(vec![policy(
        "out",
        json!({"podSelector": {}, "policyTypes": ["Egress"], "ingress": [{}]}),
    )]);
    assert_eq!(told(&p), ["Egress {10.42.0.2, 10.42.0.3}: nothing"]);
}

#[test]
fn pods_on_the_hosts_network_and_pods_that_ended_are_nobody() {
    let mut p = picture(vec![policy(
        "deny",
        json!({"podSelector": {}, "ingress": [{"from": [{"podSelector": {}}]}]}),
    )]);
    let before = told(&p).len();
    let mut host = (*pod("shop", "host", "me", "192.0.2.1", json!({}))).clone();
    host["spec"]["hostNetwork"] = json!(true);
    p.take_pods(Event::Applied(Arc::new(host)));
    assert_eq!(told(&p).len(), before);
    let mut ended = (*pod("shop", "front", "me", "10.42.0.3", json!({"app": "front"}))).clone();
    ended["status"]["phase"] = json!("Succeeded");
    assert!(p.take_pods(Event::Applied(Arc::new(ended))));
    assert!(
        told(&p).iter().all(|l| !l.contains("10.42.0.3")),
        "{:?}",
        told(&p)
    );
}

#[test]
fn a_new_pod_that_has_the_address_of_an_old_one_counts() {
    let mut p = picture(vec![policy(
        "db",
        json!({"podSelector": {"matchLabels": {"app": "db"}}}),
    )]);
    assert_eq!(told(&p).len(), 1);
    let view = PodView::with(
        &pod("shop", "new", "me", "", json!({"app": "front"})),
        vec!["10.42.0.2".parse().unwrap()],
    );
    p.admitted.insert("shop/new".into(), view);
    assert!(told(&p).is_empty(), "the address is that of a free pod now");
    p.take_pods(Event::Applied(pod(
        "shop",
        "new",
        "me",
        "10.42.0.2",
        json!({"app": "db"}),
    )));
    assert_eq!(told(&p).len(), 1, "labels may change");
    p.take_pods(Event::Deleted(pod(
        "shop",
        "db",
        "me",
        "10.42.0.2",
        json!({"app": "db"}),
    )));
    p.take_pods(Event::Deleted(pod(
        "shop",
        "new",
        "me",
        "10.42.0.2",
        json!({"app": "db"}),
    )));
    assert!(told(&p).is_empty());
}

#[test]
fn events_that_change_nothing_are_told_apart_and_the_copy_is_whole() {
    let mut p = picture(vec![policy(
        "deny",
        json!({"podSelector": {}, "ingress": [{"ports": [{"port": "web"}]}]}),
    )]);
    let same = pod("shop", "db", "me", "10.42.0.2", json!({"app": "db"}));
    assert!(!p.take_pods(Event::Applied(same)));
    assert!(p.take_pods(Event::Applied(pod(
        "shop",
        "db",
        "me",
        "10.42.0.9",
        json!({"app": "db"})
    ))));
    assert!(!p.take_policies(Event::Applied(policy(
        "deny",
        json!({"podSelector": {}, "ingress": [{"ports": [{"port": "web"}]}]})
    ))));
    let copy = Picture::remembered(&p.written()).unwrap();
    assert_eq!(told(&copy), told(&p));
    assert!(Picture::remembered("{}").is_none());
}

#[test]
fn a_policy_that_cannot_be_read_spoils_no_other() {
    let p = picture(vec![
        policy(
            "bad",
            json!({"podSelector": {}, "ingress": [{"from": [{"ipBlock": {"cidr": "nonsense"}}]}]}),
        ),
        policy("good", json!({"podSelector": {}})),
    ]);
    assert_eq!(told(&p), ["Ingress {10.42.0.2, 10.42.0.3}: nothing"]);
}
