//! Takes the finalizer from pods that no job will count any more: their job is gone, or has ended without them.
//! <https://kubernetes.io/docs/concepts/workloads/controllers/job/#job-tracking-with-finalizers>

use std::sync::Arc;

use k8s_openapi::api::batch::v1::Job;

use super::member::is_tracked;
use super::{GROUP, KIND, RESOURCE, is_finished, is_managed_elsewhere, release};
use crate::cache::{Event, EventType, Object};
use crate::controllers::memo::Memo;
use crate::controllers::{
    Controller, Key, Outcome, Reconciling, Result, Source, Tools, controller_key, itself,
};

/// What becomes of the pods of a job.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Counting {
    /// They are being counted, or it is for somebody else to do.
    On,
    Over,
}

/// Looks at pods.
pub struct Orphans {
    jobs: Arc<Memo<Counting>>,
}

impl Default for Orphans {
    fn default() -> Orphans {
        let read = |job: &Object| match job.typed::<Job>() {
            Ok(job) if is_finished(&job) && !is_managed_elsewhere(&job) => Counting::Over,
            _ => Counting::On,
        };
        Orphans {
            jobs: Arc::new(Memo::new(read)),
        }
    }
}

impl Controller for Orphans {
    fn name(&self) -> &'static str {
        "job-controller"
    }

    fn sources(&self) -> Vec<Source> {
        let (of_pods, of_jobs) = (self.jobs.clone(), self.jobs.clone());
        let pod = move |tools: &Tools, event: &Event| {
            let there = event.kind != EventType::Deleted;
            match there && is_orphan(tools, &event.object, &of_pods) {
                true => itself(tools, event),
                false => Vec::new(),
            }
        };
        let job = move |tools: &Tools, event: &Event| {
            let gone = event.kind == EventType::Deleted;
            let over = gone || *of_jobs.get(&event.object) == Counting::Over;
            if gone {
                of_jobs.forget(&event.object);
            }
            if !over {
                return Vec::new();
            }
            let pods = tools.table("pods").by_owner(&event.object.meta.uid);
            let tracked = pods.iter().filter(|pod| is_tracked(pod));
            tracked
                .map(|pod| Key::new(&pod.meta.namespace, &pod.meta.name))
                .collect()
        };
        vec![Source::new("pods", pod), Source::new(RESOURCE, job)]
    }

    fn reconcile<'a>(&'a self, tools: &'a Tools, key: &'a Key) -> Reconciling<'a> {
        Box::pin(self.look_at(tools, key))
    }
}

impl Orphans {
    async fn look_at(&self, tools: &Tools, key: &Key) -> Result<Outcome> {
        match tools.table("pods").get(&key.namespace, &key.name) {
            Some(pod) if is_orphan(tools, &pod, &self.jobs) => {
                release(tools, &pod, false).await.map(|_| Outcome::Done)
            }
            _ => Ok(Outcome::Done),
        }
    }
}

/// Whether a pod has our finalizer and no job that counts it. Pods of other controllers are theirs.
fn is_orphan(tools: &Tools, pod: &Object, jobs: &Memo<Counting>) -> bool {
    if !is_tracked(pod) {
        return false;
    }
    let Some(owner) = pod.meta.controller() else {
        return true;
    };
    let Some(key) = controller_key(&pod.meta, GROUP, KIND) else {
        return false;
    };
    match tools.table(RESOURCE).get(&key.namespace, &key.name) {
        Some(job) if *job.meta.uid == *owner.uid => *jobs.get(&job) == Counting::Over,
        _ => true,
    }
}
