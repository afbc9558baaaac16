//! Making and deleting the pods of a workload, with the events that tell of it.

use std::future::Future;
use std::sync::Arc;

use amphipod_api::Status;
use futures_util::future::join_all;
use serde_json::{Value, json};

use super::{Result, Tools};
use crate::cache::Object;
use crate::events::{Kind, Reference};
use crate::registry::DeleteOptions;

/// Pods that are made or deleted in one go; the rest comes in the next.
pub const BURST: usize = 500;

/// A pod from a template, without a name.
pub fn pod_from(template: &Value, owner: &Value) -> Value {
    let mut metadata = json!({"ownerReferences": [owner]});
    for field in ["labels", "annotations", "finalizers"] {
        if let Some(value) = template.pointer(&format!("/metadata/{field}")) {
            metadata[field] = value.clone();
        }
    }
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]})
}

/// Names the pod after its owner and a random suffix.
pub fn generate_name(pod: &mut Value, owner: &str) {
    pod["metadata"]["generateName"] = format!("{owner}-").into();
}

/// Who makes and deletes pods.
pub struct PodControl<'a> {
    pub tools: &'a Tools,
    pub namespace: &'a str,
    /// What the events are about.
    pub about: Reference,
}

impl PodControl<'_> {
    /// Makes a pod.
    ///
    /// # Errors
    /// The refusal, which is told in an event too.
    pub async fn create(&self, pod: Value) -> Result<Arc<Object>> {
        let context = self.tools.context("pods", self.namespace)?;
        let made = self.tools.registry.create(&context, pod.into()).await;
        match &made {
            Ok(pod) => self.tell(
                Kind::Normal,
                "SuccessfulCreate",
                format!("Created pod: {}", pod.meta.name),
            ),
            Err(status) if is_namespace_going(status) => {}
            Err(status) => self.tell(
                Kind::Warning,
                "FailedCreate",
                format!("Error creating: {}", status.message),
            ),
        }
        made
    }

    /// Deletes a pod; one that is gone is no error.
    ///
    /// # Errors
    /// The refusal, which is told in an event too.
    pub async fn delete(&self, pod: &Object) -> Result<()> {
        let context = self.tools.context("pods", self.namespace)?;
        let options = DeleteOptions {
            uid: Some(pod.meta.uid.to_string()),
            ..DeleteOptions::default()
        };
        match self
            .tools
            .registry
            .delete(&context, &pod.meta.name, &options)
            .await
        {
            Ok(_) => {
                self.tell(
                    Kind::Normal,
                    "SuccessfulDelete",
                    format!("Deleted pod: {}", pod.meta.name),
                );
                Ok(())
            }
            Err(status) if status.is_not_found() || status.is_conflict() => Ok(()),
            Err(status) => {
                self.tell(
                    Kind::Warning,
                    "FailedDelete",
                    format!("Error deleting: {}", status.message),
                );
                Err(status)
            }
        }
    }

    /// Deletes pods, all at once.
    ///
    /// # Errors
    /// The first refusal.
    pub async fn delete_all(&self, pods: impl IntoIterator<Item = &Arc<Object>>) -> Result<()> {
        let deletes = pods.into_iter().take(BURST).map(|pod| self.delete(pod));
        join_all(deletes).await.into_iter().collect()
    }

    pub fn tell(&self, kind: Kind, reason: &'static str, message: String) {
        self.tools
            .recorder
            .tell(self.about.clone(), kind, reason, message);
    }
}

/// Does something `count` times in batches of 1, 2, 4, ... until a batch has a failure: what cannot work is not tried a
/// thousand times. Answers with how often it worked.
pub async fn slow_start<F: Future<Output = Result<Arc<Object>>>>(
    count: usize,
    mut each: impl FnMut(usize) -> F,
) -> (usize, Result<()>) {
    let count = count.min(BURST);
    let (mut done, mut batch) = (0, 1);
    while done < count {
        let size = batch.min(count - done);
        let outcomes = join_all((done..done + size).map(&mut each)).await;
        let failure = outcomes
            .iter()
            .find_map(|outcome| outcome.as_ref().err().cloned());
        if let Some(status) = failure {
            return (
                done + outcomes.iter().filter(|outcome| outcome.is_ok()).count(),
                Err(status),
            );
        }
        done += size;
        batch *= 2;
    }
    (done, Ok(()))
}

/// The namespace is being deleted: nothing can be made in it, and nothing needs to be.
pub fn is_namespace_going(status: &Status) -> bool {
    let causes = status.details.as_ref().map(|details| &details.causes);
    causes.is_some_and(|causes| {
        causes
            .iter()
            .any(|cause| cause.reason == "NamespaceTerminating")
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::cell::RefCell;

    use super::*;

    #[tokio::test]
    async fn batches_double_and_stop_at_the_first_failure() {
        let pod = crate::cache::detached(
            &mut json!({"metadata": {"name": "a"}}),
            1,
            &Default::default(),
        )
        .unwrap();
        let tried = RefCell::new(0);
        let attempt = |bad: usize| {
            let (tried, pod) = (&tried, &pod);
            move |index: usize| {
                *tried.borrow_mut() += 1;
                async move {
                    if index == bad {
                        Err(Status::bad_request("no"))
                    } else {
                        Ok(pod.clone())
                    }
                }
            }
        };
        let (done, outcome) = slow_start(100, attempt(4)).await;
        assert_eq!(
            (done, outcome.is_err(), tried.replace(0)),
            (6, true, 7),
            "batches of 1, 2 and 4, one failed"
        );
        let (done, outcome) = slow_start(100, attempt(1000)).await;
        assert_eq!((done, outcome.is_err(), *tried.borrow()), (100, false, 100));
    }

    #[test]
    fn a_pod_takes_metadata_and_spec_from_the_template() {
        let template =
            json!({"metadata": {"labels": {"a": "b"}, "name": "x"}, "spec": {"containers": []}});
        let mut pod = pod_from(&template, &json!({"uid": "u"}));
        generate_name(&mut pod, "web");
        assert_eq!(
            pod,
            json!({"apiVersion": "v1", "kind": "Pod", "spec": {"containers": []},
                "metadata": {"generateName": "web-", "labels": {"a": "b"}, "ownerReferences": [{"uid": "u"}]}})
        );
    }
}
