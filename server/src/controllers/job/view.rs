//! A job and its pods, counted. Pure.

use std::collections::{HashMap, HashSet};

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{Job, JobSpec, JobStatus};

use super::failure::Judgement;
use super::indexes::Indexes;
use super::member::Member;

/// A job, its pods, and what both come to.
pub struct View<'a> {
    pub spec: JobSpec,
    /// As it was told last.
    pub status: JobStatus,
    /// The job is being deleted.
    pub deleting: bool,
    pub pods: &'a [Member],
    pub now: Timestamp,
    /// Of an indexed job, with those that the status does not have yet.
    pub completed: Indexes,
    pub failed_indexes: Indexes,
    /// Uids of pods that the status names as succeeded or failed, but has not added up: they may still have their finalizer.
    succeeded: HashSet<String>,
    failed: HashSet<String>,
}

impl<'a> View<'a> {
    pub fn of(job: &Job, pods: &'a [Member], now: Timestamp) -> View<'a> {
        let status = job.status.clone().unwrap_or_default();
        let uncounted = status.uncounted_terminated_pods.clone().unwrap_or_default();
        let set = |uids: Option<Vec<String>>| uids.into_iter().flatten().collect();
        let mut view = View {
            spec: job.spec.clone().unwrap_or_default(),
            status,
            deleting: job.metadata.deletion_timestamp.is_some(),
            pods,
            now,
            completed: Indexes::default(),
            failed_indexes: Indexes::default(),
            succeeded: set(uncounted.succeeded),
            failed: set(uncounted.failed),
        };
        if view.is_indexed() {
            let parse = |list: &Option<String>| {
                Indexes::parse(list.as_deref().unwrap_or_default(), view.completions())
            };
            let of = |fits: &dyn Fn(&Member) -> bool| {
                let pods = pods.iter().filter(|pod| pod.tracked && fits(pod));
                pods.filter_map(|pod| view.index(pod)).collect::<Vec<i32>>()
            };
            let completed = parse(&view.status.completed_indexes).with(of(&Member::has_succeeded));
            let failed = parse(&view.status.failed_indexes).with(of(&|pod| view.fails_index(pod)));
            (view.completed, view.failed_indexes) = (completed, failed);
        }
        view
    }

    pub fn is_indexed(&self) -> bool {
        self.spec.completion_mode.as_deref() == Some("Indexed")
    }

    pub fn is_suspended(&self) -> bool {
        self.spec.suspend == Some(true)
    }

    /// Each index has a limit of its own.
    pub fn per_index(&self) -> bool {
        self.is_indexed() && self.spec.backoff_limit_per_index.is_some()
    }

    /// How many are wanted of a job that says so.
    pub fn completions(&self) -> i32 {
        self.spec.completions.unwrap_or(0)
    }

    /// The index of a pod, if the job has such an index.
    pub fn index(&self, pod: &Member) -> Option<i32> {
        pod.index.filter(|index| *index < self.completions())
    }

    /// Whether a pod can be counted: those of an indexed job need an index.
    pub fn is_countable(&self, pod: &Member) -> bool {
        !self.is_indexed() || self.index(pod).is_some()
    }

    /// Pods are replaced when they have failed, not already when they go.
    pub fn replaces_failed_only(&self) -> bool {
        self.spec.pod_replacement_policy.as_deref() == Some("Failed")
            || self.spec.pod_failure_policy.is_some()
    }

    /// Whether a pod counts as failed.
    pub fn has_failed(&self, pod: &Member) -> bool {
        pod.has_failed() || (!self.replaces_failed_only() && pod.pod.is_terminating())
    }

    fn fails_index(&self, pod: &Member) -> bool {
        let Some(limit) = self
            .spec
            .backoff_limit_per_index
            .filter(|_| self.has_failed(pod))
        else {
            return false;
        };
        match pod.judgement {
            Judgement::FailsIndex => true,
            Judgement::Ignored => false,
            Judgement::Counts | Judgement::FailsJob(_) => pod.failures.0 >= limit,
        }
    }

    pub fn active(&self) -> impl Iterator<Item = &'a Member> {
        self.pods.iter().filter(|pod| pod.pod.is_active())
    }

    pub fn active_count(&self) -> i32 {
        count(self.active())
    }

    pub fn terminating_count(&self) -> i32 {
        count(self.pods.iter().filter(|pod| pod.pod.is_terminating()))
    }

    /// The status has this pod among those that are still to be added up.
    pub fn is_uncounted(&self, pod: &Member) -> bool {
        self.succeeded.contains(pod.uid()) || self.failed.contains(pod.uid())
    }

    /// How many pods, or indexes, have succeeded in all.
    pub fn succeeded_count(&self) -> i32 {
        if self.is_indexed() {
            return self.completed.len();
        }
        let new = self
            .pods
            .iter()
            .filter(|pod| pod.tracked && pod.has_succeeded() && !self.is_uncounted(pod));
        sum(self.status.succeeded, self.succeeded.len(), count(new))
    }

    /// How many pods have failed in all.
    pub fn failed_count(&self) -> i32 {
        let new = self.pods.iter().filter(|pod| {
            pod.tracked
                && self.has_failed(pod)
                && self.is_countable(pod)
                && pod.judgement != Judgement::Ignored
                && !self.is_uncounted(pod)
        });
        sum(self.status.failed, self.failed.len(), count(new))
    }

    /// By index, the pod that failed last, of those that have no successor yet: it hands on how many have failed, so it
    /// stays until there is one.
    pub fn predecessors(&self) -> HashMap<i32, &'a Member> {
        let mut last: HashMap<i32, &Member> = HashMap::new();
        if !self.per_index() {
            return last;
        }
        let active: HashSet<i32> = self.active().filter_map(|pod| pod.index).collect();
        let rank = |pod: &Member| (pod.failures.0.saturating_add(pod.failures.1), pod.finished);
        for pod in self
            .pods
            .iter()
            .filter(|pod| pod.tracked && self.has_failed(pod))
        {
            let Some(index) = self.index(pod).filter(|index| {
                !self.completed.contains(*index)
                    && !self.failed_indexes.contains(*index)
                    && !active.contains(index)
            }) else {
                continue;
            };
            let known = last.entry(index).or_insert(pod);
            if rank(known) <= rank(pod) {
                *known = pod;
            }
        }
        last
    }
}

pub fn count<T>(items: impl Iterator<Item = T>) -> i32 {
    i32::try_from(items.count()).unwrap_or(i32::MAX)
}

fn sum(told: Option<i32>, uncounted: usize, new: i32) -> i32 {
    let uncounted = i32::try_from(uncounted).unwrap_or(i32::MAX);
    told.unwrap_or(0)
        .saturating_add(uncounted)
        .saturating_add(new)
}
