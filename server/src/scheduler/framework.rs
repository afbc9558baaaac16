//! What a scheduling plugin is, and how the plugins together choose a node.
//!
//! Adding a plugin is adding a file below `plugins/` and a row to its table. Everything here is pure: a snapshot and a pod in, a
//! node's name or a diagnosis out.

use std::collections::BTreeMap;

use super::plugins::PLUGINS;
use super::pod::PodInfo;
use super::snapshot::{NodeInfo, Snapshot};

/// The highest score of a plugin before its weight.
pub const MAX_SCORE: i64 = 100;

/// What a pod and the whole cluster have to do with each other, worked out once for each pod by [`Plugin::prepare`].
pub type Prepared = Box<dyn std::any::Any + Send + Sync>;

/// Why a node does not take a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// In upstream's words, as users and their tools know them.
    pub reason: String,
    /// Taking other pods away cannot help.
    pub final_: bool,
}

impl Refusal {
    pub fn new(reason: impl Into<String>) -> Refusal {
        Refusal {
            reason: reason.into(),
            final_: false,
        }
    }

    pub fn final_(reason: impl Into<String>) -> Refusal {
        Refusal {
            reason: reason.into(),
            final_: true,
        }
    }
}

/// Changes in the cluster that may let a pod be scheduled that could not be before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Hopes {
    /// A node came or changed.
    pub node: bool,
    /// A pod left a node.
    pub pod_gone: bool,
    /// A pod came to a node, or its labels changed.
    pub pod_came: bool,
    /// A claim, a volume or a class came or changed.
    pub volume: bool,
}

impl Hopes {
    pub fn or(self, other: Hopes) -> Hopes {
        Hopes {
            node: self.node || other.node,
            pod_gone: self.pod_gone || other.pod_gone,
            pod_came: self.pod_came || other.pod_came,
            volume: self.volume || other.volume,
        }
    }

    /// Some of `happened` is hoped for.
    pub fn meet(self, happened: Hopes) -> bool {
        (self.node && happened.node)
            || (self.pod_gone && happened.pod_gone)
            || (self.pod_came && happened.pod_came)
            || (self.volume && happened.volume)
    }
}

/// A rule of scheduling. Names, order and weights are those of upstream's default profile.
pub trait Plugin: Send + Sync {
    fn name(&self) -> &'static str;

    /// Why no node at all can take the pod, before any is looked at.
    fn refuses(&self, _pod: &PodInfo, _snapshot: &Snapshot) -> Option<String> {
        None
    }

    /// Works out what concerns the pod and all nodes. `None`: this plugin has nothing to say on this pod.
    fn prepare(&self, _pod: &PodInfo, _snapshot: &Snapshot) -> Option<Prepared> {
        Some(Box::new(()))
    }

    /// Reasons why the node does not take the pod; none if it does.
    fn filter(&self, _prepared: &Prepared, _pod: &PodInfo, _node: &NodeInfo) -> Vec<Refusal> {
        Vec::new()
    }

    /// How good the node is for the pod: 0 to [`MAX_SCORE`], or raw figures that [`Plugin::normalize`] brings there.
    fn score(&self, _prepared: &Prepared, _pod: &PodInfo, _node: &NodeInfo) -> i64 {
        0
    }

    /// Brings the raw scores of all candidates to 0..=[`MAX_SCORE`].
    fn normalize(&self, _scores: &mut [i64]) {}

    /// What counts for it in the sum.
    fn weight(&self) -> i64 {
        1
    }

    /// What may turn its refusal around.
    fn hopes(&self) -> Hopes {
        Hopes {
            node: true,
            ..Default::default()
        }
    }
}

/// Scales raw scores so that the highest becomes [`MAX_SCORE`]; with `reverse`, the lowest does.
pub fn normalize(scores: &mut [i64], reverse: bool) {
    let highest = scores.iter().copied().max().unwrap_or(0);
    for score in scores {
        let scaled = if highest == 0 {
            0
        } else {
            *score * MAX_SCORE / highest
        };
        *score = if reverse { MAX_SCORE - scaled } else { scaled };
    }
}

/// Why no node takes a pod.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Diagnosis {
    pub nodes: usize,
    /// How many nodes gave each reason.
    pub reasons: BTreeMap<String, usize>,
    /// Nodes for which taking other pods away cannot help.
    pub hopeless: usize,
    pub hopes: Hopes,
    /// Why none was even looked at.
    pub no_node: Option<String>,
}

impl Diagnosis {
    /// The text of the event and the condition, in upstream's form.
    pub fn message(&self) -> String {
        if self.nodes == 0 {
            return "no nodes available to schedule pods".to_owned();
        }
        let all = self.nodes;
        let mut helpless = Vec::new();
        if self.hopeless < all {
            helpless.push(format!(
                "{} No preemption victims found for incoming pod",
                all - self.hopeless
            ));
        }
        if self.hopeless > 0 {
            helpless.push(format!(
                "{} Preemption is not helpful for scheduling",
                self.hopeless
            ));
        }
        format!(
            "{} preemption: 0/{all} nodes are available: {}.",
            self.refusals(),
            helpless.join(", ")
        )
    }

    /// As [`Diagnosis::message`], of a pod for which others are taken away.
    pub fn refusals(&self) -> String {
        let mut reasons: Vec<String> = self
            .reasons
            .iter()
            .map(|(reason, count)| format!("{count} {reason}"))
            .collect();
        reasons.sort();
        reasons.extend(self.no_node.clone());
        format!(
            "0/{} nodes are available: {}.",
            self.nodes,
            reasons.join(", ")
        )
    }
}

/// Why a node does not take a pod; nothing if it does.
pub fn refusals(snapshot: &Snapshot, pod: &PodInfo, node: &NodeInfo) -> Vec<Refusal> {
    PLUGINS
        .iter()
        .filter_map(|plugin| {
            let prepared = plugin.prepare(pod, snapshot)?;
            let refusals = plugin.filter(&prepared, pod, node);
            (!refusals.is_empty()).then_some(refusals)
        })
        .next()
        .unwrap_or_default()
}

/// How many fitting nodes are enough to choose from, of `all` (upstream's `numFeasibleNodesToFind`).
fn enough(all: usize) -> usize {
    const LEAST: usize = 100;
    if all <= LEAST {
        return all;
    }
    let percent = 50usize.saturating_sub(all / 125).max(5);
    (all * percent / 100).max(LEAST)
}

/// Chooses a node. `turn` is where to begin among many nodes, and moves on, so that all get their chance.
///
/// # Errors
/// Why not, when no node takes the pod.
pub fn schedule(snapshot: &Snapshot, pod: &PodInfo, turn: &mut usize) -> Result<String, Diagnosis> {
    let active: Vec<_> = PLUGINS
        .iter()
        .filter_map(|plugin| Some((*plugin, plugin.prepare(pod, snapshot)?)))
        .collect();
    let nodes: Vec<&NodeInfo> = snapshot.nodes().collect();
    let mut diagnosis = Diagnosis {
        nodes: nodes.len(),
        ..Default::default()
    };
    diagnosis.hopes.node = nodes.is_empty();
    let refuses = |plugin: &&&dyn Plugin| Some((plugin.hopes(), plugin.refuses(pod, snapshot)?));
    if let Some((hopes, why)) = PLUGINS.iter().find_map(|plugin| refuses(&plugin)) {
        diagnosis.hopes = diagnosis.hopes.or(hopes);
        diagnosis.hopeless = nodes.len();
        diagnosis.no_node = Some(why);
        return Err(diagnosis);
    }
    let wanted = enough(nodes.len());
    let mut fitting = Vec::new();
    let mut looked_at = 0;
    for index in 0..nodes.len() {
        let node = nodes[(*turn + index) % nodes.len()];
        looked_at += 1;
        let refused = active.iter().find_map(|(plugin, prepared)| {
            let refusals = plugin.filter(prepared, pod, node);
            (!refusals.is_empty()).then_some((plugin, refusals))
        });
        let Some((plugin, refusals)) = refused else {
            fitting.push(node);
            if fitting.len() == wanted {
                break;
            }
            continue;
        };
        tracing::trace!(
            plugin = plugin.name(),
            node = node.name,
            pod = pod.name,
            "refused"
        );
        diagnosis.hopes = diagnosis.hopes.or(plugin.hopes());
        diagnosis.hopeless += usize::from(refusals.iter().any(|refusal| refusal.final_));
        for refusal in refusals {
            *diagnosis.reasons.entry(refusal.reason).or_default() += 1;
        }
    }
    *turn = if nodes.is_empty() {
        0
    } else {
        (*turn + looked_at) % nodes.len()
    };
    match fitting.as_slice() {
        [] => return Err(diagnosis),
        [only] => return Ok(only.name.clone()),
        _ => {}
    }
    let mut totals = vec![0; fitting.len()];
    for (plugin, prepared) in active.iter().filter(|(plugin, _)| plugin.weight() > 0) {
        let mut scores: Vec<i64> = fitting
            .iter()
            .map(|node| plugin.score(prepared, pod, node))
            .collect();
        plugin.normalize(&mut scores);
        for (total, score) in totals.iter_mut().zip(scores) {
            *total += score * plugin.weight();
        }
    }
    // The first of equals: which one that is moves on with `turn`.
    let best = totals
        .iter()
        .enumerate()
        .max_by_key(|(index, total)| (**total, std::cmp::Reverse(*index)));
    Ok(best
        .map(|(index, _)| fitting[index].name.clone())
        .unwrap_or_default())
}
