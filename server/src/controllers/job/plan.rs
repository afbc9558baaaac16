//! Which pods of a job to make or to end. Pure.
//! <https://kubernetes.io/docs/concepts/workloads/controllers/job/#parallel-jobs>

use std::collections::HashMap;
use std::time::Duration;

use super::ending::ending;
use super::failure::{Judgement, pause};
use super::member::Member;
use super::view::{View, count};
use crate::controllers::pod_control::BURST;
use crate::controllers::pods::Pod;
use crate::controllers::replica_set::rank;

/// A pod to make.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct New {
    /// Of an indexed job.
    pub index: Option<i32>,
    /// With a limit for each index, how many failures of its index came before it: those that count, and the others.
    pub failures: Option<(i32, i32)>,
}

/// What to do about the pods now. What comes after it follows when they have changed.
#[derive(Debug)]
pub enum Plan<'a> {
    /// Nothing, unless this time passes.
    Wait(Option<Duration>),
    Create(Vec<New>),
    /// The job has ended: these go, and count as what they come to.
    End(Vec<&'a Member>),
    /// These are too many, or the job is suspended: they go, and do not count.
    Dismiss(Vec<&'a Member>),
}

/// What to do now.
pub fn plan<'a>(view: &View<'a>) -> Plan<'a> {
    let active: Vec<&Member> = view.active().collect();
    let dismiss = |pods: Vec<&'a Member>| match pods.is_empty() {
        true => Plan::Wait(None),
        false => Plan::Dismiss(pods),
    };
    if ending(view).is_some() {
        return match active.is_empty() {
            true => Plan::Wait(None),
            false => Plan::End(active),
        };
    }
    if view.deleting {
        return Plan::Wait(None);
    }
    if view.is_suspended() {
        return dismiss(active);
    }
    let have = count(active.iter());
    let wanted = wanted(view, have);
    let surplus = surplus(view, active, wanted);
    if !surplus.is_empty() {
        return dismiss(surplus);
    }
    let going = match view.replaces_failed_only() {
        true => view.terminating_count(),
        false => 0,
    };
    let missing = wanted.saturating_sub(going).saturating_sub(have);
    match usize::try_from(missing) {
        Ok(missing @ 1..) => create(view, missing.min(BURST)),
        _ => Plan::Wait(None),
    }
}

/// How many pods are to be active; `have` are.
fn wanted(view: &View, have: i32) -> i32 {
    let parallelism = view.spec.parallelism.unwrap_or(1);
    let succeeded = view.succeeded_count();
    match view.spec.completions {
        Some(completions) => (completions.saturating_sub(succeeded)).clamp(0, parallelism.max(0)),
        // A work queue: after the first success those that are there come to their ends.
        None if succeeded > 0 => have,
        None => parallelism,
    }
}

/// Active pods above what is wanted, the least useful first; all those whose index is none, or another pod's.
fn surplus<'a>(view: &View, active: Vec<&'a Member>, wanted: i32) -> Vec<&'a Member> {
    let most = usize::try_from(wanted).unwrap_or(0);
    let excess = active.len().saturating_sub(most);
    let mut pods: Vec<Pod> = active.iter().map(|member| member.pod.clone()).collect();
    rank::sort(&mut pods, &[], view.now);
    let place: HashMap<&str, usize> = pods
        .iter()
        .enumerate()
        .map(|(place, pod)| (&*pod.object.meta.uid, place))
        .collect();
    let mut ranked = active;
    ranked.sort_by_key(|member| place.get(member.uid()).copied());
    let mut gone = Vec::new();
    if view.is_indexed() {
        let mut best: HashMap<i32, &str> = HashMap::new();
        for member in &ranked {
            // The last one is the most useful.
            if let Some(index) = view.index(member) {
                best.insert(index, member.uid());
            }
        }
        let stays = |member: &&Member| {
            let index = view.index(member);
            index.is_some_and(|index| best.get(&index) == Some(&member.uid()))
        };
        let (left, out) = ranked.into_iter().partition(stays);
        (ranked, gone) = (left, out);
    }
    let more = excess.saturating_sub(gone.len());
    gone.extend(ranked.into_iter().take(more));
    gone.truncate(BURST);
    gone
}

/// Pods for what is missing, unless failures ask for a pause.
fn create<'a>(view: &View, missing: usize) -> Plan<'a> {
    if !view.per_index() {
        let left = pause_of_all(view);
        if !left.is_zero() {
            return Plan::Wait(Some(left));
        }
    }
    if !view.is_indexed() {
        return Plan::Create(vec![New::default(); missing]);
    }
    let taken = |pod: &&Member| {
        pod.pod.is_active() || (view.replaces_failed_only() && pod.pod.is_terminating())
    };
    let held = view
        .pods
        .iter()
        .filter(taken)
        .filter_map(|pod| view.index(pod));
    let done = view.completed.union(&view.failed_indexes).with(held);
    let predecessors = view.predecessors();
    let (mut new, mut next) = (Vec::new(), None);
    for index in done.missing(view.completions()).take(missing) {
        let before = predecessors.get(&index);
        let left = before.map_or(Duration::ZERO, |pod| pause_of(pod, view));
        if left.is_zero() {
            new.push(New {
                index: Some(index),
                failures: view.per_index().then(|| handed_on(before.copied())),
            });
        } else {
            next = next.into_iter().chain([left]).min();
        }
    }
    match new.is_empty() {
        true => Plan::Wait(next),
        false => Plan::Create(new),
    }
}

/// The failures before the successor of a pod.
fn handed_on(before: Option<&Member>) -> (i32, i32) {
    before.map_or((0, 0), |pod| {
        let (counted, ignored) = pod.failures;
        match pod.judgement {
            Judgement::Ignored => (counted, ignored.saturating_add(1)),
            _ => (counted.saturating_add(1), ignored),
        }
    })
}

fn pause_of(pod: &Member, view: &View) -> Duration {
    let failures = pod.failures.0.saturating_add(pod.failures.1);
    pause(failures.saturating_add(1), pod.finished, view.now)
}

/// The pause that the failures since the last success ask for. The pods themselves remember them: they stay when they are counted.
fn pause_of_all(view: &View) -> Duration {
    let succeeded = view.pods.iter().filter(|pod| pod.has_succeeded());
    let success = succeeded.map(|pod| pod.finished).max();
    let failed = |pod: &&Member| {
        // One that was dismissed is neither tracked nor here for long.
        (pod.tracked || !pod.pod.is_deleting()) && view.has_failed(pod)
    };
    let failures: Vec<_> = view
        .pods
        .iter()
        .filter(failed)
        .map(|pod| pod.finished)
        .filter(|when| success.is_none_or(|success| *when > success))
        .collect();
    match failures.iter().max() {
        Some(last) => pause(count(failures.iter()), *last, view.now),
        None => Duration::ZERO,
    }
}
