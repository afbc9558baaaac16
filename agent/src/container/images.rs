//! Images for containers: pull policy, credentials, and the words of events and waiting reasons
//! (<https://kubernetes.io/docs/concepts/containers/images/>).

use std::path::PathBuf;
use std::str::FromStr;
use std::time::{Duration, Instant};

use amphipod_runtime::image::{
    ErrorKind, Image, ImageStore, PullOptions, Reference, RegistryAuth, RegistryConfig,
};
use k8s_openapi::api::core::v1::{Container, Secret};

use crate::events::{PodEvents, Severity};
use crate::pod::observed::Waiting;
use crate::server::link::Link;

/// Our own images, made from our own binary: they need no registry.
pub const OWN_REGISTRY: &str = "amphipod.local";

/// What pulls images on this node. Cheap to clone.
#[derive(Clone)]
pub struct Images {
    pub store: ImageStore,
    pub registries: RegistryConfig,
    /// What `amphipod.local/hello` is made of.
    pub own_binary: PathBuf,
    pub link: Link,
}

/// Why an image is not there.
#[derive(Debug, Clone, PartialEq)]
pub struct Failure {
    pub waiting: Waiting,
    /// Count it against the pull back-off; otherwise only a change of the pod helps.
    pub backoff: bool,
}

fn failure(reason: &str, message: String, backoff: bool) -> Failure {
    Failure {
        waiting: Waiting {
            reason: reason.into(),
            message,
        },
        backoff,
    }
}

/// `Always` for `:latest`, as the API server defaults it.
fn policy(container: &Container, reference: &Reference) -> &'static str {
    match container.image_pull_policy.as_deref() {
        Some("Always") => "Always",
        Some("Never") => "Never",
        Some("IfNotPresent") => "IfNotPresent",
        _ if reference.tag() == Some("latest") => "Always",
        _ => "IfNotPresent",
    }
}

impl Images {
    /// The image of `container`, pulled if its policy says so. Tells the usual events. One that `ran_before` here starts from
    /// the image that is present when the box is cut off, whatever its policy.
    pub async fn ensure(
        &self,
        container: &Container,
        auth: Vec<RegistryAuth>,
        ran_before: bool,
        events: &PodEvents,
    ) -> Result<Image, Failure> {
        let name = container.image.as_deref().unwrap_or_default();
        let at = Some(container.name.as_str());
        let reference = match Reference::from_str(name) {
            Ok(r) => r,
            Err(e) => {
                let why = format!("Failed to apply default image tag \"{name}\": {e}");
                events.tell(Severity::Warning, "InspectFailed", at, why.clone());
                return Err(failure("InvalidImageName", why, true));
            }
        };
        let present = self.store.resolve(&reference);
        let own = reference.registry() == OWN_REGISTRY;
        match (policy(container, &reference), present) {
            ("Always", present)
                if present.is_none() || !(own || ran_before && !self.link.connected()) => {}
            (_, Some(image)) => {
                let text = format!(
                    "Container image \"{name}\" already present on machine and can be accessed by the pod"
                );
                events.tell(Severity::Normal, "Pulled", at, text);
                return Ok(image);
            }
            ("Never", None) => {
                let why =
                    format!("Container image \"{name}\" is not present with pull policy of Never");
                events.tell(Severity::Warning, "ErrImageNeverPull", at, why.clone());
                return Err(failure("ErrImageNeverPull", why, true));
            }
            _ => {}
        }
        events.tell(
            Severity::Normal,
            "Pulling",
            at,
            format!("Pulling image \"{name}\""),
        );
        let begin = Instant::now();
        let pulled = if own && reference.repository() == "hello" {
            self.store
                .build_single_binary_image(&self.own_binary, &reference, &["hello"])
                .await
        } else {
            let options = PullOptions {
                auth,
                registries: self.registries.clone(),
                ..Default::default()
            };
            self.store.pull(&reference, &options).await
        };
        match pulled {
            Ok(image) => {
                let took = amphipod_api::time::format_duration(Duration::from_millis(
                    begin.elapsed().as_millis() as u64,
                ));
                let text = format!(
                    "Successfully pulled image \"{name}\" in {took} ({took} including waiting). Image size: {} bytes.",
                    image.size_bytes
                );
                events.tell(Severity::Normal, "Pulled", at, text);
                Ok(image)
            }
            Err(e) => {
                let why = e.to_string();
                if let (ErrorKind::Network, true, Some(image)) =
                    (e.kind(), ran_before, self.store.resolve(&reference))
                {
                    let text = format!(
                        "Failed to pull image \"{name}\": {why}; using the image already present"
                    );
                    events.tell(Severity::Warning, "Failed", at, text);
                    return Ok(image);
                }
                events.tell(
                    Severity::Warning,
                    "Failed",
                    at,
                    format!("Failed to pull image \"{name}\": {why}"),
                );
                Err(failure("ErrImagePull", why, true))
            }
        }
    }
}

/// What a container shows as its `imageID`: the digest the registry knows it by, else the image's own id.
pub fn image_id(image: &Image) -> String {
    image
        .repo_digests
        .first()
        .cloned()
        .unwrap_or_else(|| image.id.to_string())
}

/// Credentials of pull secrets; secrets of other types, or that cannot be read, are skipped.
pub fn credentials<'a>(secrets: impl Iterator<Item = &'a Secret>) -> Vec<RegistryAuth> {
    secrets
        .filter_map(|s| {
            let key = match s.type_.as_deref() {
                Some("kubernetes.io/dockerconfigjson") => ".dockerconfigjson",
                Some("kubernetes.io/dockercfg") => ".dockercfg",
                _ => return None,
            };
            let data = s.data.as_ref()?.get(key)?;
            match RegistryAuth::from_docker_config(&data.0) {
                Ok(list) => Some(list),
                Err(e) => {
                    let name = s.metadata.name.as_deref().unwrap_or_default();
                    tracing::warn!(secret = name, error = %e, "image pull secret cannot be read; correct its data");
                    None
                }
            }
        })
        .flatten()
        .collect()
}
