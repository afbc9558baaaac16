//! Claims of a pod: whose volumes are reachable from a node, and what of them is still to be decided there.
//! <https://kubernetes.io/docs/concepts/storage/storage-classes/#volume-binding-mode>

use crate::resources::volumes::{Claim, From, Volume, best_match};
use crate::scheduler::framework::{Hopes, Plugin, Prepared, Refusal};
use crate::scheduler::pod::{PodClaim, PodInfo};
use crate::scheduler::snapshot::{NodeInfo, Snapshot};

/// Claims of which only one pod may make use (`ReadWriteOncePod`).
pub struct VolumeRestrictions;

impl Plugin for VolumeRestrictions {
    fn name(&self) -> &'static str {
        "VolumeRestrictions"
    }

    fn prepare(&self, pod: &PodInfo, snapshot: &Snapshot) -> Option<Prepared> {
        let alone = |claim: &&PodClaim| {
            find(snapshot, pod, claim).is_some_and(|c| c.modes == ["ReadWriteOncePod"])
        };
        let alone: Vec<&PodClaim> = pod.claims.iter().filter(alone).collect();
        let taken = |other: &PodInfo| {
            let shares = |claim: &PodClaim| other.claims.iter().any(|have| have.name == claim.name);
            other.namespace == pod.namespace && alone.iter().any(|claim| shares(claim))
        };
        let mut others = snapshot.nodes().flat_map(|node| &node.pods);
        let conflict = !alone.is_empty() && others.any(|other| taken(other));
        conflict.then(|| Box::new(()) as Prepared)
    }

    fn filter(&self, _: &Prepared, _: &PodInfo, _: &NodeInfo) -> Vec<Refusal> {
        vec![Refusal::new(
            "node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod access mode",
        )]
    }

    fn hopes(&self) -> Hopes {
        Hopes {
            pod_gone: true,
            ..Default::default()
        }
    }
}

/// Volumes, and claims that wait for their first pod.
pub struct VolumeBinding;

/// The claims of a pod, and what they may be bound to.
struct Claims {
    /// With the volume, unless that is lost.
    bound: Vec<Option<Volume>>,
    open: Vec<Claim>,
    /// Those that no class makes volumes for.
    static_only: Vec<String>,
    volumes: Vec<Volume>,
}

fn find<'a>(snapshot: &'a Snapshot, pod: &PodInfo, claim: &PodClaim) -> Option<&'a Claim> {
    let key = (pod.namespace.clone(), claim.name.clone());
    snapshot.claims.get(&key)
}

/// Whether binding is to wait until a pod is on its way.
fn waits(snapshot: &Snapshot, claim: &Claim) -> bool {
    let class = claim.class.as_ref();
    let class = class.and_then(|class| snapshot.classes.get(class));
    claim.volume.is_empty() && class.is_some_and(|class| class.waits)
}

impl Plugin for VolumeBinding {
    fn name(&self) -> &'static str {
        "VolumeBinding"
    }

    fn refuses(&self, pod: &PodInfo, snapshot: &Snapshot) -> Option<String> {
        let mut unbound = false;
        for used in &pod.claims {
            let name = &used.name;
            let Some(claim) = find(snapshot, pod, used) else {
                return Some(if used.ephemeral {
                    format!(
                        "waiting for ephemeral volume controller to create the persistentvolumeclaim \"{name}\""
                    )
                } else {
                    format!("persistentvolumeclaim \"{name}\" not found")
                });
            };
            if used.ephemeral && claim.owner != pod.uid {
                let (namespace, owner) = (&pod.namespace, &pod.name);
                return Some(format!(
                    "PVC {namespace}/{name} was not created for pod {namespace}/{owner} (pod is not owner)"
                ));
            }
            if claim.phase == "Lost" {
                let volume = &claim.volume;
                return Some(format!(
                    "persistentvolumeclaim \"{name}\" bound to non-existent persistentvolume \"{volume}\""
                ));
            }
            if claim.deleting {
                return Some(format!("persistentvolumeclaim \"{name}\" is being deleted"));
            }
            unbound |= !claim.is_bound() && !waits(snapshot, claim);
        }
        unbound.then(|| "pod has unbound immediate PersistentVolumeClaims".to_owned())
    }

    fn prepare(&self, pod: &PodInfo, snapshot: &Snapshot) -> Option<Prepared> {
        if pod.claims.is_empty() {
            return None;
        }
        let claims = pod
            .claims
            .iter()
            .filter_map(|used| find(snapshot, pod, used));
        let (bound, open): (Vec<&Claim>, Vec<&Claim>) = claims.partition(|claim| claim.is_bound());
        let open: Vec<Claim> = open.into_iter().cloned().collect();
        let is_static = |claim: &&Claim| {
            let class = claim.class.as_ref().and_then(|c| snapshot.classes.get(c));
            !class.is_some_and(|class| class.is_dynamic())
        };
        let volumes = match open.is_empty() {
            true => Vec::new(),
            false => snapshot.volumes.values().cloned().collect(),
        };
        Some(Box::new(Claims {
            bound: bound
                .iter()
                .map(|claim| snapshot.volumes.get(&claim.volume).cloned())
                .collect(),
            static_only: open
                .iter()
                .filter(is_static)
                .map(|claim| claim.name.clone())
                .collect(),
            open,
            volumes,
        }))
    }

    fn filter(&self, prepared: &Prepared, _: &PodInfo, node: &NodeInfo) -> Vec<Refusal> {
        let Some(claims) = prepared.downcast_ref::<Claims>() else {
            return Vec::new();
        };
        let mut refusals = Vec::new();
        let mut refuse = |reason: &str| refusals.push(Refusal::final_(reason));
        let away = |volume: &Volume| !volume.is_reachable_from(&node.name, &node.labels);
        if claims.bound.iter().flatten().any(away) {
            refuse("node(s) didn't match PersistentVolume's node affinity");
        }
        if claims.decide(node).is_none() {
            refuse("node(s) didn't find available persistent volumes to bind");
        }
        if claims.bound.iter().any(Option::is_none) {
            refuse("node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)");
        }
        refusals
    }

    fn hopes(&self) -> Hopes {
        Hopes {
            node: true,
            volume: true,
            ..Default::default()
        }
    }
}

/// What is to be written so that a claim is bound where its pod goes.
#[derive(Debug, Clone)]
pub enum Decision {
    /// The volume becomes the claim's.
    Take(String, Claim),
    /// The claim gets a volume that is made for it on the node.
    Make(Claim),
}

impl Claims {
    /// What becomes of the open claims on a node; `None` if one gets nothing there.
    fn decide(&self, node: &NodeInfo) -> Option<Vec<Decision>> {
        let mut taken: Vec<&str> = Vec::new();
        let mut decisions = Vec::new();
        for claim in &self.open {
            if let Some(selected) = &claim.selected_node {
                if *selected != node.name {
                    return None;
                }
                decisions.push(Decision::Make(claim.clone()));
                continue;
            }
            let free = self
                .volumes
                .iter()
                .filter(|volume| !taken.contains(&volume.name.as_str()));
            match best_match(free, claim, From::Node(&node.name, &node.labels)) {
                Some(volume) => {
                    taken.push(&volume.name);
                    decisions.push(Decision::Take(volume.name.clone(), claim.clone()));
                }
                None if self.static_only.contains(&claim.name) => return None,
                None => decisions.push(Decision::Make(claim.clone())),
            }
        }
        Some(decisions)
    }
}

/// What is to be decided about claims before a pod can be bound to the node that was chosen for it; nothing if all are bound.
pub fn decisions(snapshot: &Snapshot, pod: &PodInfo, node: &str) -> Vec<Decision> {
    let prepared = VolumeBinding.prepare(pod, snapshot);
    let claims = prepared.as_ref().and_then(|p| p.downcast_ref::<Claims>());
    match (claims, snapshot.node(node)) {
        (Some(claims), Some(node)) => claims.decide(node).unwrap_or_default(),
        _ => Vec::new(),
    }
}
