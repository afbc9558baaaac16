//! What to do next about the pods of a StatefulSet. Pure.
//! <https://kubernetes.io/docs/concepts/workloads/controllers/statefulset/#deployment-and-scaling-guarantees>

/// A pod of the set.
#[derive(Clone, Debug, Default)]
pub struct Member {
    pub ordinal: i64,
    /// Succeeded or Failed.
    pub over: bool,
    pub terminating: bool,
    /// Running and ready.
    pub ready: bool,
    /// Ready for long enough.
    pub available: bool,
    /// The name of the revision that it was made from.
    pub revision: String,
}

impl Member {
    fn is_healthy(&self) -> bool {
        self.ready && !self.terminating
    }
}

/// The set and its pods, each ordinal once.
#[derive(Clone, Debug)]
pub struct View {
    pub start: i64,
    pub replicas: i64,
    /// `podManagementPolicy: OrderedReady`
    pub ordered: bool,
    /// With `updateStrategy: RollingUpdate`, the ordinals below this one (counted from `start`) keep their revision.
    pub partition: Option<i64>,
    pub current: String,
    pub update: String,
    pub pods: Vec<Member>,
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    Create(i64),
    Delete(i64),
}

impl View {
    fn pod(&self, ordinal: i64) -> Option<&Member> {
        self.pods.iter().find(|pod| pod.ordinal == ordinal)
    }

    /// The ordinals that the set is to have.
    pub fn wanted(&self) -> std::ops::Range<i64> {
        self.start..self.start + self.replicas
    }

    /// Whether a new pod with this ordinal is made from the current revision, not from the update.
    pub fn needs_current(&self, ordinal: i64) -> bool {
        self.partition
            .is_some_and(|partition| ordinal < self.start + partition)
    }
}

/// What to do now. What comes after it follows when the pods have changed.
pub fn steps(view: &View) -> Vec<Step> {
    let mut steps = Vec::new();
    for ordinal in view.wanted() {
        match view.pod(ordinal) {
            None => {
                steps.push(Step::Create(ordinal));
                if view.ordered {
                    return steps;
                }
            }
            Some(pod) if pod.over => {
                if !pod.terminating {
                    steps.push(Step::Delete(ordinal));
                }
                if view.ordered {
                    return steps;
                }
            }
            Some(pod) if view.ordered && (pod.terminating || !pod.available) => return steps,
            Some(_) => {}
        }
    }

    let mut surplus: Vec<&Member> = view
        .pods
        .iter()
        .filter(|pod| !view.wanted().contains(&pod.ordinal))
        .collect();
    surplus.sort_by_key(|pod| -pod.ordinal);
    let first_unhealthy = view
        .pods
        .iter()
        .filter(|pod| !pod.is_healthy())
        .map(|pod| pod.ordinal)
        .min();
    for pod in surplus {
        if pod.terminating {
            if view.ordered {
                return steps;
            }
            continue;
        }
        if view.ordered && !pod.available && first_unhealthy != Some(pod.ordinal) {
            return steps;
        }
        steps.push(Step::Delete(pod.ordinal));
        if view.ordered {
            return steps;
        }
    }

    // A rolling update takes one pod at a time, from the last to the first.
    let Some(partition) = view.partition else {
        return steps;
    };
    for ordinal in view.wanted().rev() {
        if ordinal < view.start + partition {
            break;
        }
        let Some(pod) = view.pod(ordinal) else {
            break;
        };
        if pod.revision != view.update && !pod.terminating && !pod.over {
            steps.push(Step::Delete(ordinal));
            break;
        }
        if !pod.is_healthy() {
            break;
        }
    }
    steps
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(ordinal: i64) -> Member {
        Member {
            ordinal,
            ready: true,
            available: true,
            revision: "one".into(),
            ..Member::default()
        }
    }

    fn sick(ordinal: i64) -> Member {
        Member {
            ready: false,
            available: false,
            ..pod(ordinal)
        }
    }

    fn view(replicas: i64, pods: Vec<Member>) -> View {
        View {
            start: 0,
            replicas,
            ordered: true,
            partition: Some(0),
            current: "one".into(),
            update: "one".into(),
            pods,
        }
    }

    #[test]
    fn pods_are_made_one_after_the_other_when_the_one_before_is_ready() {
        assert_eq!(steps(&view(3, vec![])), [Step::Create(0)]);
        assert_eq!(steps(&view(3, vec![pod(0)])), [Step::Create(1)]);
        assert_eq!(steps(&view(3, vec![sick(0)])), []);
        assert_eq!(steps(&view(2, vec![pod(0), pod(1)])), []);
        let parallel = View {
            ordered: false,
            ..view(3, vec![sick(0)])
        };
        assert_eq!(steps(&parallel), [Step::Create(1), Step::Create(2)]);
    }

    #[test]
    fn the_last_goes_first_and_only_while_the_others_are_well() {
        assert_eq!(
            steps(&view(1, vec![pod(0), pod(1), pod(2)])),
            [Step::Delete(2)]
        );
        let going = Member {
            terminating: true,
            ..pod(2)
        };
        assert_eq!(steps(&view(1, vec![pod(0), pod(1), going])), []);
        let sick_all = vec![sick(0), sick(1), sick(2)];
        assert_eq!(steps(&view(0, sick_all.clone())), []);
        let parallel = View {
            ordered: false,
            ..view(0, sick_all)
        };
        assert_eq!(
            steps(&parallel),
            [Step::Delete(2), Step::Delete(1), Step::Delete(0)]
        );
        // The only sick one may go.
        assert_eq!(steps(&view(1, vec![pod(0), sick(1)])), [Step::Delete(1)]);
    }

    #[test]
    fn pods_that_are_over_are_replaced() {
        let over = Member {
            over: true,
            ..sick(0)
        };
        assert_eq!(steps(&view(1, vec![over])), [Step::Delete(0)]);
    }

    #[test]
    fn an_update_goes_from_the_last_to_the_partition_and_waits_for_each() {
        let update = |pods: Vec<Member>, partition: Option<i64>| View {
            update: "two".into(),
            partition,
            ..view(3, pods)
        };
        let new = |ordinal| Member {
            revision: "two".into(),
            ..pod(ordinal)
        };
        let olds = vec![pod(0), pod(1), pod(2)];
        assert_eq!(steps(&update(olds.clone(), Some(0))), [Step::Delete(2)]);
        assert_eq!(steps(&update(olds.clone(), Some(3))), []);
        assert_eq!(steps(&update(olds, None)), []);
        let half = vec![pod(0), pod(1), new(2)];
        assert_eq!(steps(&update(half.clone(), Some(0))), [Step::Delete(1)]);
        assert_eq!(steps(&update(half, Some(2))), []);
        let waiting = vec![
            pod(0),
            pod(1),
            Member {
                ready: false,
                available: false,
                ..new(2)
            },
        ];
        assert_eq!(steps(&update(waiting, Some(0))), []);
        assert!(update(vec![], Some(2)).needs_current(1));
        assert!(!update(vec![], Some(2)).needs_current(2));
        assert!(!update(vec![], None).needs_current(0));
    }
}
