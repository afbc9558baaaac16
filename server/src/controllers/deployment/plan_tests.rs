#![allow(clippy::unwrap_used)]
use serde_json::{Value, json};

use super::*;

/// A deployment and its sets, whose pods come and go as the sets are sized.
struct World {
    view: View,
    scalings: Vec<String>,
    /// Pods of this image never become available.
    broken: &'static str,
}

fn image(rs: &ReplicaSet) -> String {
    let value = serde_json::to_value(rs).unwrap();
    value["spec"]["template"]["spec"]["containers"][0]["image"]
        .as_str()
        .unwrap()
        .to_owned()
}

impl World {
    fn new(replicas: i32, strategy: Value) -> World {
        let deployment = serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "ns", "uid": "u", "generation": 1},
            "spec": {"replicas": replicas, "revisionHistoryLimit": 2, "progressDeadlineSeconds": 600,
                "selector": {"matchLabels": {"app": "web"}}, "strategy": strategy,
                "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "1"}]}}},
        }))
        .unwrap();
        let now = "2026-01-01T00:00:00Z".parse().unwrap();
        let view = View {
            deployment,
            sets: vec![],
            with_pods: vec![],
            now,
        };
        World {
            view,
            scalings: vec![],
            broken: "broken",
        }
    }

    fn edit(&mut self, patch: Value) {
        let mut value = serde_json::to_value(&self.view.deployment).unwrap();
        amphipod_api::patch::apply_merge_patch(&mut value, &patch);
        self.view.deployment = serde_json::from_value(value).unwrap();
        *self.view.deployment.metadata.generation.as_mut().unwrap() += 1;
    }

    fn set_image(&mut self, image: &str) {
        self.edit(json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": image}]}}}}));
    }

    /// One look of the deployment controller. True: it changed something.
    fn plan(&mut self) -> bool {
        let plan = plan(&self.view);
        let d = &mut self.view.deployment;
        let mut changed = d.status.as_ref() != Some(&plan.status)
            || !plan.update.is_empty()
            || !plan.delete.is_empty();
        d.status = Some(plan.status);
        if let Some(revision) = plan.revision {
            d.metadata
                .annotations
                .get_or_insert_default()
                .insert(REVISION.to_owned(), revision);
        }
        for set in plan.update {
            let name = set.metadata.name.clone();
            *self
                .view
                .sets
                .iter_mut()
                .find(|have| have.metadata.name == name)
                .unwrap() = set;
        }
        self.view.sets.retain(|have| {
            !plan
                .delete
                .iter()
                .any(|set| set.metadata.name == have.metadata.name)
        });
        if let Some(mut set) = plan.create {
            changed = true;
            set.metadata.uid = set.metadata.name.clone();
            set.metadata.creation_timestamp = Some(
                k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(self.view.now),
            );
            self.view.sets.push(set);
        }
        self.scalings.extend(plan.scalings);
        self.view.now += jiff::SignedDuration::from_secs(1);
        changed
    }

    /// One pod of one set comes, becomes available or goes. False: all is as it should be.
    fn pods_move(&mut self) -> bool {
        for set in &mut self.view.sets {
            let (asked, works) = (
                set.spec.as_ref().unwrap().replicas.unwrap(),
                image(set) != self.broken,
            );
            let status = set.status.get_or_insert_default();
            let available = status.available_replicas.unwrap_or(0);
            if status.replicas < asked {
                status.replicas += 1;
            } else if status.replicas > asked {
                status.replicas -= 1;
                status.available_replicas = Some(available.min(status.replicas));
            } else if available < asked && works {
                status.available_replicas = Some(available + 1);
            } else {
                continue;
            }
            status.ready_replicas = status.available_replicas;
            return true;
        }
        false
    }

    fn sizes(&self) -> Vec<(String, i32)> {
        let mut sizes: Vec<_> = self
            .view
            .sets
            .iter()
            .map(|set| (image(set), set.spec.as_ref().unwrap().replicas.unwrap()))
            .collect();
        sizes.sort();
        sizes
    }

    fn status(&self) -> &DeploymentStatus {
        self.view.deployment.status.as_ref().unwrap()
    }

    fn reason(&self, kind: &str) -> String {
        let condition = self
            .status()
            .conditions
            .iter()
            .flatten()
            .find(|c| c.type_ == kind);
        condition
            .map(|c| format!("{} {}", c.status, c.reason.as_deref().unwrap_or("")))
            .unwrap_or_default()
    }

    fn available(&self) -> i32 {
        self.view
            .sets
            .iter()
            .filter_map(|set| set.status.as_ref()?.available_replicas)
            .sum()
    }

    /// Until nothing moves any more; there are always at least `least` pods available, and at most `most` asked for.
    fn settle(&mut self, least: i32, most: i32) {
        for _ in 0..1000 {
            let planned = self.plan();
            let asked: i32 = self.sizes().iter().map(|(_, size)| size).sum();
            assert!(asked <= most, "{:?}", self.sizes());
            let moved = self.pods_move();
            assert!(
                self.available() >= least,
                "{} available: {:?}",
                self.available(),
                self.sizes()
            );
            if !planned && !moved {
                return;
            }
        }
        panic!("it never settles: {:?}", self.sizes());
    }
}

fn rolling(surge: Value, unavailable: Value) -> Value {
    json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}})
}

fn sizes(wanted: &[(&str, i32)]) -> Vec<(String, i32)> {
    wanted
        .iter()
        .map(|(image, size)| ((*image).to_owned(), *size))
        .collect()
}

#[test]
fn a_rolling_update_keeps_within_its_bounds() {
    for (surge, unavailable, least, most) in [
        (json!(1), json!(0), 4, 5),
        (json!(0), json!(1), 3, 4),
        (json!("25%"), json!("25%"), 3, 5),
        (json!("100%"), json!("100%"), 0, 8),
    ] {
        let mut world = World::new(4, rolling(surge, unavailable));
        world.settle(0, 4);
        assert_eq!(world.scalings.len(), 1);
        assert_eq!(world.reason("Progressing"), "True NewReplicaSetAvailable");
        assert_eq!(world.reason("Available"), "True MinimumReplicasAvailable");
        world.set_image("2");
        world.settle(least, most);
        assert_eq!(world.sizes(), sizes(&[("1", 0), ("2", 4)]));
        assert_eq!(world.status().updated_replicas, Some(4));
        assert_eq!(world.status().unavailable_replicas, None);
        assert_eq!(
            world.status().observed_generation,
            world.view.deployment.metadata.generation
        );
    }
}

#[test]
fn a_rollout_that_does_not_work_stops_early_and_is_told_when_its_time_is_up() {
    let mut world = World::new(4, rolling(json!(1), json!(1)));
    world.settle(0, 4);
    world.set_image("broken");
    world.settle(3, 5);
    assert_eq!(world.sizes(), sizes(&[("1", 3), ("broken", 2)]));
    assert!(world.reason("Progressing").starts_with("True "));
    let again = plan(&world.view).again.unwrap();
    assert!(again.as_secs() > 500 && again.as_secs() <= 601, "{again:?}");
    world.view.now += jiff::SignedDuration::from_secs(700);
    world.plan();
    assert_eq!(
        world.reason("Progressing"),
        "False ProgressDeadlineExceeded"
    );
    assert_eq!(plan(&world.view).again, None);
    // Going back brings the first set up again, as revision 3.
    world.set_image("1");
    world.settle(3, 5);
    assert_eq!(world.sizes(), sizes(&[("1", 4), ("broken", 0)]));
    assert_eq!(
        world.view.deployment.metadata.annotations.as_ref().unwrap()[REVISION],
        "3"
    );
    assert_eq!(world.reason("Progressing"), "True NewReplicaSetAvailable");
}

#[test]
fn recreate_waits_for_the_last_old_pod() {
    let mut world = World::new(3, json!({"type": "Recreate"}));
    world.settle(0, 3);
    world.set_image("2");
    world.plan();
    assert_eq!(world.sizes(), sizes(&[("1", 0)]));
    while world.pods_move() {}
    world.view.with_pods = vec![world.view.sets[0].metadata.uid.clone().unwrap()];
    world.plan();
    assert_eq!(world.sizes(), sizes(&[("1", 0)]), "a pod is terminating");
    world.view.with_pods.clear();
    world.settle(0, 3);
    assert_eq!(world.sizes(), sizes(&[("1", 0), ("2", 3)]));
}

#[test]
fn a_change_of_size_in_the_middle_of_a_rollout_is_shared() {
    let mut world = World::new(10, rolling(json!(3), json!(2)));
    world.settle(0, 10);
    world.set_image("broken");
    world.settle(8, 13);
    assert_eq!(world.sizes(), sizes(&[("1", 8), ("broken", 5)]));
    world.edit(json!({"spec": {"replicas": 15}}));
    world.plan();
    // 18 pods: the 5 more go by size, 8 : 5.
    assert_eq!(world.sizes(), sizes(&[("1", 11), ("broken", 7)]));
    world.edit(json!({"spec": {"replicas": 5}}));
    world.plan();
    assert_eq!(world.sizes().iter().map(|(_, size)| size).sum::<i32>(), 8);
}

#[test]
fn a_paused_deployment_is_sized_but_not_rolled_out() {
    let mut world = World::new(2, rolling(json!(1), json!(0)));
    world.settle(0, 2);
    world.edit(json!({"spec": {"paused": true}}));
    world.set_image("2");
    world.settle(2, 2);
    assert_eq!(world.sizes(), sizes(&[("1", 2)]));
    assert_eq!(world.reason("Progressing"), "Unknown DeploymentPaused");
    world.edit(json!({"spec": {"replicas": 3}}));
    world.settle(2, 3);
    assert_eq!(world.sizes(), sizes(&[("1", 3)]));
    world.edit(json!({"spec": {"paused": false}}));
    world.settle(3, 4);
    assert_eq!(world.sizes(), sizes(&[("1", 0), ("2", 3)]));
    assert_eq!(world.reason("Progressing"), "True NewReplicaSetAvailable");
}

#[test]
fn old_sets_beyond_the_history_limit_go() {
    let mut world = World::new(1, rolling(json!(1), json!(0)));
    for image in ["1", "2", "3", "4", "5"] {
        world.set_image(image);
        world.settle(0, 2);
    }
    // Sets are only deleted when they have told that they did what they were asked.
    assert_eq!(world.sizes(), sizes(&[("3", 0), ("4", 0), ("5", 1)]));
}

#[test]
fn a_failure_of_a_set_is_the_deployments() {
    let mut world = World::new(1, rolling(json!(1), json!(0)));
    world.plan();
    let status = json!({"replicas": 0, "conditions": [{"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": "no"}]});
    world.view.sets[0].status = serde_json::from_value(status).unwrap();
    world.plan();
    assert_eq!(world.reason("ReplicaFailure"), "True FailedCreate");
    world.view.sets[0].status = None;
    world.plan();
    assert_eq!(world.reason("ReplicaFailure"), "");
}
