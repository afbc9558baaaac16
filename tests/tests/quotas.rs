//! What namespaces may use: ResourceQuota and LimitRange.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use amphipod_tests::{Kubectl, eventually, namespace};

/// Waits until the quota `q` tells that so much of `resource` is used.
#[track_caller]
fn used(kubectl: &Kubectl, resource: &str, amount: &str) {
    eventually(
        &format!("{amount} of {resource} to be used"),
        Duration::from_secs(10),
        || {
            let quota = kubectl.get(&["resourcequota", "q"]);
            if quota["status"]["used"][resource] == amount {
                Ok(())
            } else {
                Err(quota["status"].to_string())
            }
        },
    );
}

#[test]
fn a_quota_holds_also_when_many_ask_at_once() {
    let kubectl = namespace("quota");
    // The one that every namespace has counts, too.
    kubectl
        .run(&[
            "create",
            "quota",
            "q",
            "--hard=configmaps=6,services=1,count/secrets=0",
        ])
        .ok();
    used(&kubectl, "configmaps", "1");
    let made = std::thread::scope(|scope| {
        let creates: Vec<_> = (0..12)
            .map(|n| {
                let kubectl = &kubectl;
                scope.spawn(move || kubectl.run(&["create", "configmap", &format!("c{n}")]).code)
            })
            .collect();
        let codes = creates.into_iter().map(|create| create.join().unwrap());
        codes.filter(|code| *code == 0).count()
    });
    assert_eq!(made, 5);
    used(&kubectl, "configmaps", "6");
    let refused = kubectl.run(&["create", "configmap", "more"]).refused();
    assert!(
        refused.contains(
            "exceeded quota: q, requested: configmaps=1, used: configmaps=6, limited: configmaps=6"
        ),
        "{refused}"
    );
    kubectl
        .run(&["create", "secret", "generic", "none"])
        .refused();
    kubectl.run(&["delete", "configmap", "--all"]).ok();
    eventually("room for one again", Duration::from_secs(10), || {
        let ran = kubectl.run(&["create", "configmap", "again"]);
        if ran.code == 0 {
            Ok(())
        } else {
            Err(format!("{ran:?}"))
        }
    });
}

#[test]
fn pods_count_against_a_quota_until_they_are_gone_and_get_the_defaults_of_a_limit_range() {
    let kubectl = namespace("limits");
    kubectl.apply(
        "apiVersion: v1
kind: LimitRange
metadata: {name: l}
spec: {limits: [{type: Container, default: {cpu: 200m}, max: {cpu: 500m}}]}
",
    );
    kubectl
        .run(&["create", "quota", "q", "--hard=requests.cpu=300m,pods=5"])
        .ok();
    // Not to be run: what is asked for is what counts.
    let pod = |name: &str, resources: &str| {
        format!(
            "apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  schedulingGates: [{{name: example.com/never}}]
  containers: [{{name: main, image: none, resources: {{{resources}}}}}]
"
        )
    };
    kubectl.apply(&pod("a", ""));
    let resources = kubectl.get(&["pod", "a"])["spec"]["containers"][0]["resources"].clone();
    assert_eq!(
        resources,
        serde_json::json!({"limits": {"cpu": "200m"}, "requests": {"cpu": "200m"}})
    );
    used(&kubectl, "requests.cpu", "200m");
    let refuse = |yaml: &str| kubectl.run_with(&["create", "-f", "-"], yaml).refused();
    let over = refuse(&pod("b", ""));
    assert!(
        over.contains(
            "requested: requests.cpu=200m, used: requests.cpu=200m, limited: requests.cpu=300m"
        ),
        "{over}"
    );
    let large = refuse(&pod("c", "limits: {cpu: '1'}, requests: {cpu: 50m}"));
    assert!(
        large.contains("maximum cpu usage per Container is 500m, but limit is 1"),
        "{large}"
    );
    kubectl.run(&["delete", "pod", "a"]).ok();
    used(&kubectl, "requests.cpu", "0");
    kubectl.apply(&pod("b", ""));
}
