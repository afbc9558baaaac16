//! What to do next about the pods of a DaemonSet. Pure.
//! <https://kubernetes.io/docs/tasks/manage-daemon/update-daemon-set/>

/// A pod of the set.
#[derive(Clone, Debug, Default)]
pub struct Daemon {
    pub name: String,
    /// Succeeded or Failed.
    pub over: bool,
    pub terminating: bool,
    /// Ready for long enough.
    pub available: bool,
    /// Made from the present template.
    pub updated: bool,
}

/// A node, and the pods of the set that are on it or meant for it, the oldest first.
#[derive(Clone, Debug, Default)]
pub struct Node {
    pub name: String,
    /// It is to have a pod.
    pub should_run: bool,
    /// A pod that is there may stay.
    pub may_stay: bool,
    pub pods: Vec<Daemon>,
}

impl Node {
    fn live(&self) -> impl Iterator<Item = &Daemon> {
        self.pods.iter().filter(|pod| !pod.terminating && !pod.over)
    }

    fn live_of(&self, updated: bool) -> Option<&Daemon> {
        self.live().find(|pod| pod.updated == updated)
    }
}

/// How an update goes about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Update {
    /// Pods of old templates stay until somebody deletes them.
    OnDelete,
    /// So many nodes may be without an available pod.
    Unavailable(usize),
    /// So many nodes may have an old and a new pod.
    Surge(usize),
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// On this node.
    Create(String),
    /// This pod.
    Delete(String),
}

/// What to do now. What comes after it follows when the pods have changed.
pub fn steps(nodes: &[Node], update: Update) -> Vec<Step> {
    let mut steps = Vec::new();
    let delete = |pod: &Daemon| Step::Delete(pod.name.clone());
    for node in nodes {
        if !node.may_stay {
            steps.extend(node.pods.iter().filter(|pod| !pod.terminating).map(delete));
            continue;
        }
        let over = node.pods.iter().filter(|pod| pod.over && !pod.terminating);
        steps.extend(over.map(delete));
        // While it surges, a node has an old and a new one; otherwise one.
        let surges = matches!(update, Update::Surge(_));
        for (at, pod) in node.live().enumerate() {
            let same = |other: &&Daemon| !surges || other.updated == pod.updated;
            if node.live().take(at).any(|other| same(&other)) {
                steps.push(delete(pod));
            }
        }
        if node.should_run && node.pods.is_empty() {
            steps.push(Step::Create(node.name.clone()));
        }
    }
    steps.extend(match update {
        Update::OnDelete => Vec::new(),
        Update::Unavailable(most) => replace(nodes, most),
        Update::Surge(most) => surge(nodes, most),
    });
    let mut seen: Vec<Step> = Vec::new();
    steps.retain(|step| {
        let new = !seen.contains(step);
        if new {
            seen.push(step.clone());
        }
        new
    });
    steps
}

/// Old pods that may go now.
fn replace(nodes: &[Node], most: usize) -> Vec<Step> {
    let (mut gone, mut candidates, mut unavailable) = (Vec::new(), Vec::new(), 0);
    for node in nodes.iter().filter(|node| node.should_run) {
        match (node.live_of(false), node.live_of(true)) {
            (None, Some(new)) => unavailable += usize::from(!new.available),
            // One that serves nobody can go at any time.
            (Some(old), None) if !old.available => {
                unavailable += 1;
                gone.push(Step::Delete(old.name.clone()));
            }
            (Some(old), None) => candidates.push(Step::Delete(old.name.clone())),
            _ => unavailable += 1,
        }
    }
    candidates.truncate(most.saturating_sub(unavailable));
    gone.extend(candidates);
    gone
}

/// New pods beside old ones, and old ones that are not needed any more.
fn surge(nodes: &[Node], most: usize) -> Vec<Step> {
    let (mut steps, mut candidates, mut surging) = (Vec::new(), Vec::new(), 0);
    for node in nodes.iter().filter(|node| node.should_run) {
        match (node.live_of(false), node.live_of(true)) {
            (Some(old), Some(new)) if new.available => steps.push(Step::Delete(old.name.clone())),
            (Some(_), Some(_)) => surging += 1,
            (Some(old), None) if !old.available => steps.push(Step::Create(node.name.clone())),
            (Some(_), None) => candidates.push(Step::Create(node.name.clone())),
            _ => {}
        }
    }
    candidates.truncate(most.saturating_sub(surging));
    steps.extend(candidates);
    steps
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str, updated: bool, available: bool) -> Daemon {
        Daemon {
            name: name.into(),
            updated,
            available,
            ..Daemon::default()
        }
    }

    fn node(name: &str, pods: Vec<Daemon>) -> Node {
        Node {
            name: name.into(),
            should_run: true,
            may_stay: true,
            pods,
        }
    }

    const ONE: Update = Update::Unavailable(1);

    #[test]
    fn each_node_that_is_to_have_a_pod_gets_one() {
        let nodes = [
            node("a", vec![]),
            node("b", vec![pod("b1", true, true)]),
            Node {
                should_run: false,
                ..node("c", vec![])
            },
        ];
        assert_eq!(steps(&nodes, ONE), [Step::Create("a".into())]);
        let twice = [node(
            "a",
            vec![pod("a1", true, true), pod("a2", true, true)],
        )];
        assert_eq!(steps(&twice, ONE), [Step::Delete("a2".into())]);
    }

    #[test]
    fn pods_go_where_they_may_not_stay_or_are_over() {
        let unwanted = Node {
            should_run: false,
            may_stay: false,
            ..node("a", vec![pod("a1", true, true)])
        };
        assert_eq!(steps(&[unwanted], ONE), [Step::Delete("a1".into())]);
        let over = Daemon {
            over: true,
            ..pod("b1", true, false)
        };
        assert_eq!(
            steps(&[node("b", vec![over.clone()])], ONE),
            [Step::Delete("b1".into())]
        );
        // Until it is gone, there is no other.
        let going = Daemon {
            terminating: true,
            ..over
        };
        assert_eq!(steps(&[node("b", vec![going])], ONE), []);
    }

    #[test]
    fn an_update_replaces_no_more_at_once_than_allowed() {
        let old = |name: &str, available| vec![pod(name, false, available)];
        let nodes = [node("a", old("a1", true)), node("b", old("b1", true))];
        assert_eq!(steps(&nodes, ONE), [Step::Delete("a1".into())]);
        assert_eq!(steps(&nodes, Update::Unavailable(2)).len(), 2);
        assert_eq!(steps(&nodes, Update::OnDelete), []);
        let half = [
            node("a", vec![pod("a2", true, false)]),
            node("b", old("b1", true)),
        ];
        assert_eq!(steps(&half, ONE), []);
        // A rollback: the sick one of the other template goes first, the well one stays.
        let back = [
            node("a", vec![pod("a2", false, false)]),
            node("b", vec![pod("b1", true, true)]),
        ];
        assert_eq!(steps(&back, ONE), [Step::Delete("a2".into())]);
    }

    #[test]
    fn a_surge_has_the_new_pod_before_the_old_goes() {
        let old = || pod("a1", false, true);
        let surge = Update::Surge(1);
        let nodes = [
            node("a", vec![old()]),
            node("b", vec![pod("b1", false, true)]),
        ];
        assert_eq!(steps(&nodes, surge), [Step::Create("a".into())]);
        let waiting = [
            node("a", vec![old(), pod("a2", true, false)]),
            node("b", vec![pod("b1", false, true)]),
        ];
        assert_eq!(steps(&waiting, surge), []);
        let ready = [node("a", vec![old(), pod("a2", true, true)])];
        assert_eq!(steps(&ready, surge), [Step::Delete("a1".into())]);
    }
}
