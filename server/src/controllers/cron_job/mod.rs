//! Makes a Job each time the schedule of a CronJob says so. <https://kubernetes.io/docs/concepts/workloads/controllers/cron-jobs/>

mod plan;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use amphipod_api::clock::WallClock;
use amphipod_api::meta::{self, map_at, str_at};
use amphipod_api::{Status, time};
use futures_util::future::join_all;
use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{CronJob, CronJobStatus};
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::{Value, json};

use super::pod_control::is_namespace_going;
use super::{
    Controller, Key, Outcome, Reconciling, Result, Source, Tools, controller_key, itself, typed,
};
use crate::cache::{Event, Meta, Object};
use crate::events::Reference;
use crate::registry::{DeleteOptions, Propagation};
use crate::resources::schedule::time_zone;
use plan::{Child, End, News, Next, look, next, normal, surplus, warning};

const RESOURCE: &str = "cronjobs.batch";
const JOBS: &str = "jobs.batch";
/// When a job was due, in the zone of its CronJob: an annotation.
const SCHEDULED: &str = "batch.kubernetes.io/cronjob-scheduled-timestamp";
/// No look is put off for longer.
const LONGEST_WAIT: Duration = Duration::from_secs(30 * 24 * 3600);

/// By how much the wall clock must have been set for all schedules to be looked at again.
const CLOCK_STEP: Duration = Duration::from_secs(5);

pub struct CronJobs {
    clock: Arc<Mutex<WallClock>>,
}

impl Default for CronJobs {
    fn default() -> CronJobs {
        CronJobs {
            clock: Arc::new(Mutex::new(WallClock::new(CLOCK_STEP))),
        }
    }
}

impl Controller for CronJobs {
    fn name(&self) -> &'static str {
        "cronjob-controller"
    }

    fn sources(&self) -> Vec<Source> {
        let clock = self.clock.clone();
        // Timers do not hear that the clock was set. Nodes renew their leases all the time: a good moment to look, for which nobody has to
        // wake up.
        let set = move |tools: &Tools, _: &Event| {
            let mut clock = clock.lock().unwrap_or_else(PoisonError::into_inner);
            clock.step().map_or_else(Vec::new, |_| all(tools))
        };
        vec![
            Source::new(RESOURCE, itself),
            Source::new(JOBS, owners),
            Source::new("leases.coordination.k8s.io", set),
        ]
    }

    fn reconcile<'a>(&'a self, tools: &'a Tools, key: &'a Key) -> Reconciling<'a> {
        Box::pin(reconcile(tools, key))
    }
}

fn all(tools: &Tools) -> Vec<Key> {
    let mut keys = Vec::new();
    tools.table(RESOURCE).for_each(None, |object| {
        keys.push(Key::new(&object.meta.namespace, &object.meta.name));
    });
    keys
}

/// The CronJob that has a job or had it before.
fn owners(_: &Tools, event: &Event) -> Vec<Key> {
    let owner = |meta: &Meta| controller_key(meta, "batch", "CronJob");
    let before = event.prev.as_ref().and_then(|prev| owner(&prev.meta));
    let mut keys: Vec<Key> = before
        .into_iter()
        .chain(owner(&event.object.meta))
        .collect();
    keys.dedup();
    keys
}

fn child(job: &Object) -> Child {
    let value = job.value();
    let when = |field: &str| time::parse_time(str_at(&value, &["status", field]));
    let end = if meta::condition_is_true(&value, "Complete") {
        Some(End::Complete(when("completionTime")))
    } else if meta::condition_is_true(&value, "Failed") {
        Some(End::Failed)
    } else {
        None
    };
    Child {
        name: job.meta.name.to_string(),
        uid: job.meta.uid.to_string(),
        end,
        started: when("startTime"),
    }
}

/// What one look works on.
struct Look<'a> {
    tools: &'a Tools,
    object: &'a Object,
}

async fn reconcile(tools: &Tools, key: &Key) -> Result<Outcome> {
    let Some(object) = tools.table(RESOURCE).get(&key.namespace, &key.name) else {
        return Ok(Outcome::Done);
    };
    let cron: CronJob = typed(&object)?;
    let work = Look {
        tools,
        object: &object,
    };
    let spec = cron.spec;
    let before = cron.status.unwrap_or_default();
    let children = work.children();
    let deletes = surplus(&spec, &children);
    let deletes = deletes
        .into_iter()
        .map(|child| work.delete(&child.name, &child.uid));
    let deleted: Result<()> = join_all(deletes).await.into_iter().collect();
    let (mut status, news) = look(&before, &work.children());
    work.tell(news);
    let now = Timestamp::now();
    let created = object.meta.creation_timestamp.as_deref();
    let created = created.and_then(time::parse_time).unwrap_or(now);
    let (decided, news) = match object.meta.is_deleting() {
        true => (Next::Wait(None), Vec::new()),
        false => next(&spec, &status, created, now),
    };
    work.tell(news);
    let mut failed = deleted.err();
    let coming = match decided {
        Next::Wait(coming) => coming,
        Next::Run(due, coming) => {
            let replaces = spec.concurrency_policy.as_deref() == Some("Replace");
            if let Err(refusal) = work.run(&mut status, due, replaces).await {
                failed = Some(refusal);
            }
            coming
        }
    };
    if status != before {
        work.write(&status).await?;
    }
    match failed {
        Some(status) if !is_namespace_going(&status) => Ok(Outcome::Failed),
        _ => Ok(coming.map_or(Outcome::Done, |coming| {
            let left = coming.as_millisecond() - Timestamp::now().as_millisecond();
            let left = Duration::from_millis(u64::try_from(left).unwrap_or(0) + 1);
            Outcome::After(left.min(LONGEST_WAIT))
        })),
    }
}

impl Look<'_> {
    /// The jobs that it has, those that somebody made in its name too.
    fn children(&self) -> Vec<Child> {
        let jobs = self.tools.table(JOBS).by_owner(&self.object.meta.uid);
        let ours = jobs.iter().filter(|job| {
            let owner = job.meta.controller();
            owner.is_some_and(|owner| *owner.uid == *self.object.meta.uid)
        });
        ours.map(|job| child(job)).collect()
    }

    fn tell(&self, news: impl IntoIterator<Item = News>) {
        let about = Reference::to("batch/v1", "CronJob", self.object);
        for news in news {
            let recorder = &self.tools.recorder;
            recorder.tell(about.clone(), news.kind, news.reason, news.message);
        }
    }

    /// Deletes a job and its pods.
    async fn delete(&self, name: &str, uid: &str) -> Result<()> {
        let context = self.tools.context(JOBS, &self.object.meta.namespace)?;
        let options = DeleteOptions {
            uid: Some(uid.to_owned()),
            propagation: Some(Propagation::Background),
            ..DeleteOptions::default()
        };
        match self.tools.registry.delete(&context, name, &options).await {
            Ok(_) => {
                self.tell([normal("SuccessfulDelete", format!("Deleted job {name}"))]);
                Ok(())
            }
            Err(status) if status.is_not_found() || status.is_conflict() => Ok(()),
            Err(status) => {
                let why = format!("Deleted job: {}", status.message);
                self.tell([warning("FailedDelete", why)]);
                Err(status)
            }
        }
    }

    /// Makes the job that was due then, in the place of those that still run if it `replaces` them. Its name is that of its time: no
    /// time has two jobs, also if we were interrupted before the status told of the first.
    async fn run(&self, status: &mut CronJobStatus, due: Timestamp, replaces: bool) -> Result<()> {
        if replaces {
            for old in status.active.iter().flatten() {
                let [name, uid] =
                    [&old.name, &old.uid].map(|text| text.as_deref().unwrap_or_default());
                self.delete(name, uid).await?;
            }
            status.active = None;
        }
        let meta = &self.object.meta;
        let context = self.tools.context(JOBS, &meta.namespace)?;
        let job = job(&self.object.value(), due);
        let name = meta::name(&job).to_owned();
        let made = match self.tools.registry.create(&context, job.into()).await {
            Ok(made) => {
                self.tell([normal("SuccessfulCreate", format!("Created job {name}"))]);
                made
            }
            Err(refusal) if refusal.is_already_exists() => {
                let there = self.tools.table(JOBS).get(&meta.namespace, &name);
                let ours = there.filter(|job| {
                    let owner = job.meta.controller();
                    owner.is_some_and(|owner| *owner.uid == *meta.uid)
                });
                match ours {
                    Some(job) => job,
                    // Somebody else's; the next time has another name.
                    None => return Ok(()),
                }
            }
            Err(refusal) => {
                if !is_namespace_going(&refusal) {
                    let why = format!("Error creating job: {}", refusal.message);
                    self.tell([warning("FailedCreate", why)]);
                }
                return Err(refusal);
            }
        };
        status.last_schedule_time = Some(Time(due));
        let active = status.active.get_or_insert_default();
        let listed = active
            .iter()
            .any(|entry| entry.uid.as_deref() == Some(&made.meta.uid));
        if child(&made).end.is_none() && !listed {
            active.push(ObjectReference {
                api_version: Some("batch/v1".into()),
                kind: Some("Job".into()),
                name: Some(name),
                namespace: Some(meta.namespace.to_string()),
                resource_version: Some(made.meta.revision.to_string()),
                uid: Some(made.meta.uid.to_string()),
                ..ObjectReference::default()
            });
        }
        status.active.take_if(|active| active.is_empty());
        Ok(())
    }

    async fn write(&self, status: &CronJobStatus) -> Result<()> {
        let meta = &self.object.meta;
        let context = self
            .tools
            .sub_context(RESOURCE, &meta.namespace, "status")?;
        let write = |value: &mut Value| {
            if meta::uid(value) != &*meta.uid {
                return Err(Status::not_found(&context.group_resource(), &meta.name));
            }
            value["status"] = json!(status);
            Ok(())
        };
        let written = self.tools.registry.update_with(&context, &meta.name, write);
        match written.await {
            Err(status) if !status.is_not_found() => Err(status),
            _ => Ok(()),
        }
    }
}

/// The job for a time.
fn job(cron: &Value, due: Timestamp) -> Value {
    let template = &cron["spec"]["jobTemplate"];
    let name = format!("{}-{}", meta::name(cron), due.as_second().div_euclid(60));
    let owner = json!({
        "apiVersion": "batch/v1", "kind": "CronJob", "name": meta::name(cron), "uid": meta::uid(cron),
        "controller": true, "blockOwnerDeletion": true,
    });
    let mut job = json!({
        "apiVersion": "batch/v1", "kind": "Job", "spec": template["spec"],
        "metadata": {
            "name": name, "namespace": meta::namespace(cron), "ownerReferences": [owner],
            "labels": map_at(template, &["metadata", "labels"]),
            "annotations": map_at(template, &["metadata", "annotations"]),
        },
    });
    let zone = time_zone(str_at(cron, &["spec", "timeZone"]));
    let local = zone.map(|zone| due.to_zoned(zone));
    let due = match local.filter(|local| !local.offset().is_zero()) {
        Some(local) => local.strftime("%Y-%m-%dT%H:%M:%S%:z").to_string(),
        None => time::format_time(due),
    };
    meta::set_annotation(&mut job, SCHEDULED, &due);
    job
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_job_is_named_after_its_time() {
        let mut cron = json!({
            "metadata": {"name": "tidy", "namespace": "ns", "uid": "u"},
            "spec": {"timeZone": "Europe/Berlin", "jobTemplate": {
                "metadata": {"labels": {"a": "b"}, "annotations": {"c": "d"}}, "spec": {"backoffLimit": 2}}},
        });
        let due = "2026-07-01T10:05:00Z".parse().unwrap();
        let made = job(&cron, due);
        assert_eq!(made["metadata"]["name"], "tidy-29715005");
        assert_eq!(made["spec"], json!({"backoffLimit": 2}));
        assert_eq!(made["metadata"]["labels"], json!({"a": "b"}));
        assert_eq!(
            made["metadata"]["annotations"],
            json!({"c": "d", SCHEDULED: "2026-07-01T12:05:00+02:00"})
        );
        assert!(meta::is_controlled_by(&made, "u"));
        cron["spec"]["timeZone"] = Value::Null;
        assert_eq!(
            job(&cron, due)["metadata"]["annotations"][SCHEDULED],
            "2026-07-01T10:05:00Z"
        );
    }
}
