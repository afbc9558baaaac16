//! Full disks.

use amphipod_tests::{BUSYBOX, EdgeBox, Lan, Registry, eventually};

use crate::{
    DISK_MIB, SOON, Watch, counter_goes_on, create_until_refused, disk_pressure, fill, ids,
    joined_box, make_space, pods_go_on, probes_go_on, start_pods, written,
};

#[test]
fn on_a_full_disk_pods_reads_and_deletions_go_on_and_writes_come_back_with_the_space() {
    let lan = Lan::new();
    let mut edge_box = EdgeBox::with_small_disk(&lan, DISK_MIB);
    let _registry = Registry::start(&edge_box);
    edge_box.start(&[]);
    edge_box.wait_until_ready();
    let kubectl = edge_box.kubectl();
    start_pods(&kubectl, edge_box.name());
    let before = ids(&kubectl);

    let mut kept = Vec::new();
    for round in 0..2 {
        let watch = Watch::start(&kubectl);
        fill(&edge_box);
        let (made, refusal) = create_until_refused(&kubectl, 10_000 * (round + 1));
        assert!(refusal.contains("is full"), "{refusal}");
        assert!(refusal.contains("InsufficientStorage"), "{refusal}");
        kept.extend(made);
        fill(&edge_box);

        // What is there is served, and can be deleted, pods too.
        assert_eq!(written(&kubectl), kept);
        if let Some(gone) = kept.pop() {
            kubectl.run(&["delete", "configmap", &gone]).ok();
            watch.wait_for(&format!("DELETED {gone}"));
        }
        pods_go_on(&kubectl);
        probes_go_on(&kubectl);
        disk_pressure(&kubectl, &edge_box, "True");
        // Of events, those of the last seconds may be lost with a crash: this one is told once, when it begins.
        if round == 0 {
            eventually("the event to be told", SOON, || {
                let reasons = ["get", "events", "-A", "-o", "custom-columns=R:.reason"];
                let told = kubectl.run(&reasons).stdout;
                match told.contains("NodeHasDiskPressure") {
                    true => Ok(()),
                    false => Err(told),
                }
            });
        }
        // Each start of the program says so once.
        let log = edge_box.log();
        let told = log.matches("server's state is full").count();
        assert_eq!(told, round + 1, "{log}");

        // The program is killed and started while the disk is full.
        edge_box.kill_program();
        fill(&edge_box);
        edge_box.start(&[]);
        edge_box.wait_until_ready();
        assert_eq!(written(&kubectl), kept);
        pods_go_on(&kubectl);
        probes_go_on(&kubectl);
        assert_eq!(ids(&kubectl), before);
        let (made, refusal) = create_until_refused(&kubectl, 10_000 * (round + 1) + 5000);
        assert!(refusal.contains("is full"), "{refusal}");
        kept.extend(made);
        kubectl.run(&["delete", "configmaps", &kept.remove(0)]).ok();
    }
    kubectl
        .run(&["delete", "pod", "ends", "--timeout=30s"])
        .ok();

    make_space(&edge_box);
    kubectl.wait_for_writes("afterwards");
    disk_pressure(&kubectl, &edge_box, "False");
    assert_eq!(written(&kubectl), kept);
    assert_eq!(ids(&kubectl), before);
    edge_box.kill_program();
    edge_box.start(&[]);
    edge_box.wait_until_ready();
    assert_eq!(written(&kubectl), kept);
    assert_eq!(ids(&kubectl), before);
}

#[test]
fn a_joined_box_with_a_full_disk_keeps_its_pods_and_gets_others_when_there_is_space() {
    let (_lan, server, mut agent, _registry) = joined_box();
    let kubectl = server.kubectl();
    start_pods(&kubectl, agent.name());
    let before = ids(&kubectl);

    fill(&agent);
    pods_go_on(&kubectl);
    probes_go_on(&kubectl);
    disk_pressure(&kubectl, &agent, "True");
    // Nothing new is sent there.
    kubectl.apply(&format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: later}}
spec:
  nodeSelector: {{kubernetes.io/hostname: {}}}
  terminationGracePeriodSeconds: 0
  containers: [{{name: main, image: {BUSYBOX}, command: [sleep, '3600']}}]
",
        agent.name()
    ));
    kubectl.wait_for("pod/later", "condition=PodScheduled=false", 30);
    agent.kill_program();
    agent.start_agent(&[]);
    pods_go_on(&kubectl);
    probes_go_on(&kubectl);
    assert_eq!(ids(&kubectl), before);
    kubectl
        .run(&["delete", "pod", "probed", "--timeout=30s"])
        .ok();

    make_space(&agent);
    disk_pressure(&kubectl, &agent, "False");
    kubectl.wait_for("pod/later", "condition=Ready", 60);
    counter_goes_on(&kubectl);
    let log = agent.log();
    assert!(!log.contains("damaged"), "{log}");
}
