//! What to do about one claim, and about one volume. Pure. Words and order are upstream's (`pv_controller.go`).
//! <https://kubernetes.io/docs/concepts/storage/persistent-volumes/#lifecycle-of-a-volume-and-claim>

use amphipod_api::local_volumes::{FINALIZER, PROTECTION, PROVISIONER};

use crate::events::Kind;
use crate::resources::volumes::{Claim, Class, From, Volume, best_match};

/// Something to tell about an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tell {
    pub kind: Kind,
    pub reason: &'static str,
    pub message: String,
}

impl Tell {
    pub fn normal(reason: &'static str, message: impl Into<String>) -> Tell {
        Tell {
            kind: Kind::Normal,
            reason,
            message: message.into(),
        }
    }

    pub fn warning(reason: &'static str, message: impl Into<String>) -> Tell {
        Tell {
            kind: Kind::Warning,
            ..Tell::normal(reason, message)
        }
    }
}

/// What to do about a claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ForClaim {
    /// It stays Pending until something changes.
    Wait(Option<Tell>),
    /// It and this volume become each other's.
    Bind(String),
    /// A volume is made for it on this node.
    Provision(String),
    /// Somebody else is to make one.
    Ask(String),
    /// Its volume is gone.
    Lose(Tell),
}

/// `class`: that of the claim, if there is such a class.
pub fn for_claim(claim: &Claim, class: Option<&Class>, volumes: &[Volume]) -> ForClaim {
    let named = volumes.iter().find(|volume| volume.name == claim.volume);
    if claim.bind_completed {
        return bound(claim, named);
    }
    if !claim.volume.is_empty() {
        return asked_for(claim, named);
    }
    if claim.deleting {
        return ForClaim::Wait(None);
    }
    let waits = claim.selected_node.is_none() && class.is_some_and(|class| class.waits);
    let from = if waits { From::Unknown } else { From::Anywhere };
    if let Some(volume) = best_match(volumes.iter(), claim, from) {
        return ForClaim::Bind(volume.name.clone());
    }
    if waits {
        let message = "waiting for first consumer to be created before binding";
        return ForClaim::Wait(Some(Tell::normal("WaitForFirstConsumer", message)));
    }
    match (class, claim.class.as_deref().unwrap_or_default()) {
        (Some(class), _) => provision(claim, class),
        (None, "") => ForClaim::Wait(Some(Tell::normal(
            "FailedBinding",
            "no persistent volumes available for this claim and no storage class is set",
        ))),
        (None, class) => ForClaim::Wait(Some(Tell::warning(
            "ProvisioningFailed",
            format!("storageclass.storage.k8s.io \"{class}\" not found"),
        ))),
    }
}

fn bound(claim: &Claim, volume: Option<&Volume>) -> ForClaim {
    let lost = |reason, message: &str| ForClaim::Lose(Tell::warning(reason, message));
    if claim.volume.is_empty() {
        let message =
            "Bound claim has lost reference to PersistentVolume. Data on the volume is lost!";
        return lost("ClaimLost", message);
    }
    match volume {
        None => lost(
            "ClaimLost",
            "Bound claim has lost its PersistentVolume. Data on the volume is lost!",
        ),
        Some(volume) if volume.claim.is_none() || volume.is_for(claim) => {
            ForClaim::Bind(volume.name.clone())
        }
        Some(_) => lost(
            "ClaimMisbound",
            "Two claims are bound to the same volume, this one is bound incorrectly",
        ),
    }
}

/// A claim that names its volume.
fn asked_for(claim: &Claim, volume: Option<&Volume>) -> ForClaim {
    let Some(volume) = volume else {
        return ForClaim::Wait(None);
    };
    let name = &volume.name;
    if volume.claim.is_some() && !volume.is_for(claim) {
        let message = format!("volume \"{name}\" already bound to a different claim.");
        return ForClaim::Wait(Some(Tell::warning("FailedBinding", message)));
    }
    match volume.misfit(claim) {
        Some(why) if volume.claim.is_none() => {
            let message = format!("Cannot bind to requested volume \"{name}\": {why}");
            ForClaim::Wait(Some(Tell::warning("VolumeMismatch", message)))
        }
        _ => ForClaim::Bind(name.clone()),
    }
}

fn provision(claim: &Claim, class: &Class) -> ForClaim {
    let failed = |why: &str| {
        let message = format!(
            "failed to provision volume with StorageClass {:?}: {why}",
            class.name
        );
        ForClaim::Wait(Some(Tell::warning("ProvisioningFailed", message)))
    };
    if !class.is_dynamic() {
        return failed("no volume plugin matched name: kubernetes.io/no-provisioner");
    }
    if class.provisioner != PROVISIONER {
        return ForClaim::Ask(class.provisioner.clone());
    }
    let own = ["ReadWriteOnce", "ReadWriteOncePod"];
    if claim.block {
        return failed("it is a directory, and cannot be a block device");
    }
    if !claim.modes.iter().all(|mode| own.contains(&mode.as_str())) {
        return failed("Only support ReadWriteOnce and ReadWriteOncePod access modes");
    }
    if claim.selector.is_some() {
        return failed("claim.Spec.Selector is not supported");
    }
    match &claim.selected_node {
        None => failed("configuration error, no node was specified"),
        Some(node) => ForClaim::Provision(node.clone()),
    }
}

/// What to do about a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ForVolume {
    /// Its phase, with the reason and message of a failure.
    Phase(&'static str, Option<Tell>),
    /// It is nobody's any more; `whole`: nor kept for a name.
    Unbind {
        whole: bool,
    },
    Delete,
    /// Its data is no longer waited for, and what is to be told about that.
    LetGo(Option<Tell>),
}

/// `claim`: the one that the volume names, if there is one of that name. `home_exists`: whether its box is one of the cluster's.
pub fn for_volume(volume: &Volume, claim: Option<&Claim>, home_exists: bool) -> Vec<ForVolume> {
    let mut steps = Vec::new();
    let phase = |phase| (volume.phase != phase).then_some(ForVolume::Phase(phase, None));
    let reference = volume.claim.as_ref().filter(|of| !of.uid.is_empty());
    let claim = claim.filter(|claim| reference.is_some_and(|of| of.uid == claim.uid));
    match (reference, claim) {
        (None, _) => steps.extend(phase("Available")),
        (Some(_), None) => released(volume, &mut steps),
        (Some(_), Some(claim)) if claim.volume == volume.name => steps.extend(phase("Bound")),
        // The claim takes it when its own turn comes.
        (Some(_), Some(claim)) if claim.volume.is_empty() => {}
        (Some(_), Some(_)) if volume.provisioned_by == PROVISIONER && volume.policy == "Delete" => {
            released(volume, &mut steps);
        }
        (Some(_), Some(_)) => steps.push(ForVolume::Unbind {
            whole: volume.by_controller,
        }),
    }
    let waits_for_data =
        volume.deleting && volume.has_finalizer(FINALIZER) && !volume.has_finalizer(PROTECTION);
    if waits_for_data && volume.policy != "Delete" {
        steps.push(ForVolume::LetGo(None));
    } else if waits_for_data && !home_exists {
        let message = format!(
            "node \"{}\" is not there any more; what it has of the volume was not removed",
            volume.home
        );
        let tell = Tell::warning("VolumeFailedDelete", message);
        steps.push(ForVolume::LetGo(Some(tell)));
    }
    steps
}

/// The claim of a volume is gone.
fn released(volume: &Volume, steps: &mut Vec<ForVolume>) {
    if !["Released", "Failed"].contains(&volume.phase.as_str()) {
        steps.push(ForVolume::Phase("Released", None));
    }
    let mut fail = |reason, message: String| {
        if volume.phase != "Failed" {
            let tell = Tell::warning(reason, message);
            steps.push(ForVolume::Phase("Failed", Some(tell)));
        }
    };
    let name = &volume.name;
    match volume.policy.as_str() {
        "Delete" if volume.provisioned_by == PROVISIONER && !volume.deleting => {
            steps.push(ForVolume::Delete);
        }
        // It is going, or whoever else made it removes it.
        "Delete" if !volume.provisioned_by.is_empty() => {}
        "Delete" => fail(
            "VolumeFailedDelete",
            format!(
                "error getting deleter volume plugin for volume \"{name}\": no deletable volume plugin matched"
            ),
        ),
        "Recycle" => fail(
            "VolumeFailedRecycle",
            "No recycler plugin found for the volume!".to_owned(),
        ),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources::volumes::ClaimRef;

    fn claim() -> Claim {
        Claim {
            namespace: "shop".into(),
            name: "data".into(),
            uid: "1".into(),
            class: Some("local".into()),
            modes: vec!["ReadWriteOnce".into()],
            phase: "Pending".into(),
            ..Claim::default()
        }
    }

    fn local() -> Class {
        Class {
            name: "local".into(),
            provisioner: PROVISIONER.into(),
            waits: true,
            policy: "Delete".into(),
            ..Class::default()
        }
    }

    fn volume(phase: &str) -> Volume {
        Volume {
            name: "v".into(),
            class: "local".into(),
            modes: vec!["ReadWriteOnce".into()],
            phase: phase.into(),
            policy: "Retain".into(),
            home: "box".into(),
            ..Volume::default()
        }
    }

    fn of(uid: &str) -> Option<ClaimRef> {
        Some(ClaimRef {
            namespace: "shop".into(),
            name: "data".into(),
            uid: uid.into(),
        })
    }

    fn told(step: ForClaim) -> (&'static str, String) {
        match step {
            ForClaim::Wait(Some(tell)) | ForClaim::Lose(tell) => (tell.reason, tell.message),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_claim_waits_for_its_first_pod_and_then_gets_a_volume_on_its_node() {
        let step = for_claim(&claim(), Some(&local()), &[]);
        assert_eq!(told(step).0, "WaitForFirstConsumer");
        let selected = Claim {
            selected_node: Some("box".into()),
            ..claim()
        };
        let step = for_claim(&selected, Some(&local()), &[]);
        assert_eq!(step, ForClaim::Provision("box".into()));
        // One that fits is not taken before that: it may be on another box.
        let free = [volume("Available")];
        let step = for_claim(&claim(), Some(&local()), &free);
        assert_eq!(told(step).0, "WaitForFirstConsumer");
        let at_once = Class {
            waits: false,
            ..local()
        };
        assert_eq!(
            for_claim(&claim(), Some(&at_once), &free),
            ForClaim::Bind("v".into())
        );
        assert!(
            told(for_claim(&claim(), Some(&at_once), &[]))
                .1
                .ends_with("no node was specified")
        );
    }

    #[test]
    fn what_cannot_be_made_is_told() {
        let many = Claim {
            selected_node: Some("box".into()),
            modes: vec!["ReadWriteMany".into()],
            ..claim()
        };
        let (reason, message) = told(for_claim(&many, Some(&local()), &[]));
        assert_eq!(reason, "ProvisioningFailed");
        assert!(
            message.contains("ReadWriteOncePod access modes"),
            "{message}"
        );
        assert_eq!(
            told(for_claim(&claim(), None, &[])).1,
            "storageclass.storage.k8s.io \"local\" not found"
        );
        let classless = Claim {
            class: Some(String::new()),
            ..claim()
        };
        assert_eq!(told(for_claim(&classless, None, &[])).0, "FailedBinding");
        let theirs = Class {
            provisioner: "example.com/disks".into(),
            waits: false,
            ..local()
        };
        let step = for_claim(&claim(), Some(&theirs), &[]);
        assert_eq!(step, ForClaim::Ask("example.com/disks".into()));
    }

    #[test]
    fn a_claim_that_names_its_volume_gets_that_or_none() {
        let named = Claim {
            volume: "v".into(),
            ..claim()
        };
        let step = |volume: &[Volume]| for_claim(&named, Some(&local()), volume);
        assert_eq!(step(&[]), ForClaim::Wait(None));
        assert_eq!(step(&[volume("Available")]), ForClaim::Bind("v".into()));
        let taken = Volume {
            claim: of("2"),
            ..volume("Bound")
        };
        assert_eq!(told(step(&[taken])).0, "FailedBinding");
        let other = Volume {
            class: "other".into(),
            ..volume("Available")
        };
        assert_eq!(
            told(step(&[other])).1,
            "Cannot bind to requested volume \"v\": storageClassName does not match"
        );
    }

    #[test]
    fn a_bound_claim_without_its_volume_is_lost() {
        let done = Claim {
            volume: "v".into(),
            bind_completed: true,
            ..claim()
        };
        assert_eq!(told(for_claim(&done, None, &[])).0, "ClaimLost");
        let stolen = Volume {
            claim: of("2"),
            ..volume("Bound")
        };
        assert_eq!(told(for_claim(&done, None, &[stolen])).0, "ClaimMisbound");
        let own = Volume {
            claim: of("1"),
            ..volume("Bound")
        };
        assert_eq!(for_claim(&done, None, &[own]), ForClaim::Bind("v".into()));
    }

    #[test]
    fn a_volume_follows_its_claim() {
        let phases = |volume: &Volume, claim: Option<&Claim>| for_volume(volume, claim, true);
        let phase = |phase| vec![ForVolume::Phase(phase, None)];
        assert_eq!(phases(&volume("Pending"), None), phase("Available"));
        assert_eq!(phases(&volume("Available"), None), []);
        let kept = Volume {
            claim: of(""),
            ..volume("Pending")
        };
        assert_eq!(phases(&kept, Some(&claim())), phase("Available"));
        let own = Volume {
            claim: of("1"),
            ..volume("Available")
        };
        assert_eq!(phases(&own, Some(&claim())), []);
        let bound = Claim {
            volume: "v".into(),
            ..claim()
        };
        assert_eq!(phases(&own, Some(&bound)), phase("Bound"));
        let elsewhere = Claim {
            volume: "w".into(),
            ..claim()
        };
        assert_eq!(
            phases(&own, Some(&elsewhere)),
            [ForVolume::Unbind { whole: false }]
        );
        // A claim of the same name is another claim.
        assert_eq!(phases(&own, None), phase("Released"));
        let again = Claim {
            uid: "2".into(),
            ..bound
        };
        assert_eq!(phases(&own, Some(&again)), phase("Released"));
    }

    #[test]
    fn a_released_volume_is_deleted_kept_or_failed_as_its_policy_says() {
        let released = |policy: &str, by: &str| Volume {
            claim: of("1"),
            policy: policy.into(),
            provisioned_by: by.into(),
            ..volume("Released")
        };
        let steps = |volume: Volume| for_volume(&volume, None, true);
        assert_eq!(steps(released("Retain", PROVISIONER)), []);
        assert_eq!(steps(released("Delete", PROVISIONER)), [ForVolume::Delete]);
        assert_eq!(steps(released("Delete", "example.com/disks")), []);
        assert!(matches!(
            steps(released("Delete", ""))[..],
            [ForVolume::Phase("Failed", Some(_))]
        ));
    }

    #[test]
    fn the_data_is_waited_for_while_its_box_exists() {
        let going = |finalizers: &[&str], policy: &str| Volume {
            deleting: true,
            claim: of("1"),
            policy: policy.into(),
            provisioned_by: PROVISIONER.into(),
            finalizers: finalizers.iter().map(|f| (*f).to_owned()).collect(),
            ..volume("Released")
        };
        let waiting = going(&[FINALIZER], "Delete");
        assert_eq!(for_volume(&waiting, None, true), []);
        assert!(matches!(
            for_volume(&waiting, None, false)[..],
            [ForVolume::LetGo(Some(_))]
        ));
        let protected = going(&[PROTECTION, FINALIZER], "Delete");
        assert_eq!(for_volume(&protected, None, false), []);
        let retained = going(&[FINALIZER], "Retain");
        assert_eq!(for_volume(&retained, None, true), [ForVolume::LetGo(None)]);
    }
}
