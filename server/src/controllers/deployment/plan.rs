//! What to do for a deployment: state in, plan out. Pure.
//!
//! A plan works on copies of the replica sets; whatever it changed on them is to be written.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentStatus, ReplicaSet};

use super::numbers::{is_rolling, max_surge, max_unavailable, proportion, replicas};
use super::sets::{DESIRED, MAX, REVISION, Set, is_of, new_set};
use super::status;

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;

/// What is known.
pub struct View {
    pub deployment: Deployment,
    /// All sets of the deployment.
    pub sets: Vec<ReplicaSet>,
    /// UIDs of the sets that have pods which are not over, also terminating ones; only for a deployment that recreates them.
    pub with_pods: Vec<String>,
    pub now: Timestamp,
}

/// What to do, in this order.
#[derive(Debug, Default)]
pub struct Plan {
    pub create: Option<ReplicaSet>,
    /// Replicas, annotations and `minReadySeconds` of these are to be written.
    pub update: Vec<ReplicaSet>,
    pub delete: Vec<ReplicaSet>,
    /// Messages of `ScalingReplicaSet`.
    pub scalings: Vec<String>,
    pub status: DeploymentStatus,
    /// The revision to be written on the deployment.
    pub revision: Option<String>,
    /// Look again then.
    pub again: Option<Duration>,
}

pub fn plan(view: &View) -> Plan {
    let mut work = Work::new(view);
    let d = &view.deployment;
    if d.metadata.deletion_timestamp.is_some() {
        return work.finish(false);
    }
    status::note_pause(d, &mut work.before, view.now);
    let paused = d.spec.as_ref().and_then(|spec| spec.paused) == Some(true);
    if paused || work.is_resized() {
        work.keep_new();
        work.scale();
        if paused {
            work.clean_up();
        }
        return work.finish(false);
    }
    if is_rolling(d) {
        work.keep_or_make_new();
        work.grow_new();
        work.shrink_old();
    } else {
        work.keep_new();
        if !work.end_old() && !work.has_old_pods() {
            work.keep_or_make_new();
            work.grow_new();
        }
    }
    let stored = d.status.clone().unwrap_or_default();
    if status::is_complete(d, &stored) {
        work.clean_up();
    }
    work.finish(true)
}

struct Work<'a> {
    d: &'a Deployment,
    view: &'a View,
    /// The oldest first.
    sets: Vec<Set>,
    /// The set of the present template.
    new: Option<usize>,
    made: bool,
    /// The status as it was, with the conditions that this plan set.
    before: DeploymentStatus,
    plan: Plan,
}

impl<'a> Work<'a> {
    fn new(view: &'a View) -> Work<'a> {
        let d = &view.deployment;
        let mut sets: Vec<Set> = view
            .sets
            .iter()
            .map(|rs| Set {
                rs: rs.clone(),
                changed: false,
            })
            .collect();
        sets.sort_by_cached_key(|set| {
            let created = set
                .rs
                .metadata
                .creation_timestamp
                .as_ref()
                .map(|time| time.0);
            (created, set.name().to_owned())
        });
        let template = d.spec.as_ref().map(|spec| &spec.template);
        // The oldest, if there are several.
        let new = sets
            .iter()
            .position(|set| template.is_some_and(|template| is_of(&set.rs, template)));
        let before = d.status.clone().unwrap_or_default();
        Work {
            d,
            view,
            sets,
            new,
            made: false,
            before,
            plan: Plan::default(),
        }
    }

    fn olds(&self) -> Vec<usize> {
        (0..self.sets.len())
            .filter(|index| Some(*index) != self.new)
            .collect()
    }

    fn active_olds(&self) -> Vec<usize> {
        self.olds()
            .into_iter()
            .filter(|index| self.sets[*index].size() > 0)
            .collect()
    }

    fn size_of_all(&self) -> i32 {
        self.sets.iter().map(Set::size).sum()
    }

    /// Whether the deployment's size is not the one that its sets were sized for.
    fn is_resized(&self) -> bool {
        let active = self.sets.iter().filter(|set| set.size() > 0);
        active
            .filter_map(|set| set.number(DESIRED))
            .any(|desired| desired != replicas(self.d))
    }

    fn next_revision(&self) -> i64 {
        self.olds()
            .iter()
            .map(|index| self.sets[*index].revision())
            .max()
            .unwrap_or(0)
            + 1
    }

    /// Brings the set of the present template up to date, if there is one.
    fn keep_new(&mut self) {
        let Some(index) = self.new.filter(|_| !self.made) else {
            return;
        };
        let revision = self.next_revision();
        self.sets[index].describe(self.d, revision, true);
        if status::deadline(self.d).is_some() && status::progressing(&self.before).is_none() {
            let message = format!("Found new replica set {:?}", self.sets[index].name());
            status::set_progressing(
                &mut self.before,
                "True",
                "FoundNewReplicaSet",
                message,
                self.view.now,
            );
        }
        self.take_revision(index);
    }

    fn take_revision(&mut self, index: usize) {
        self.plan.revision = self.sets[index].annotation(REVISION).map(str::to_owned);
    }

    fn keep_or_make_new(&mut self) {
        if self.new.is_some() {
            self.keep_new();
            return;
        }
        let mut set = new_set(self.d, self.next_revision());
        let name = set.name().to_owned();
        self.sets.push(set.clone());
        self.new = Some(self.sets.len() - 1);
        self.made = true;
        let size = self.size_for_new();
        if size > 0 {
            self.plan
                .scalings
                .push(format!("Scaled up replica set {name} from 0 to {size}"));
        }
        set.resize(size, self.d);
        set.changed = false;
        self.plan.create = Some(set.rs.clone());
        let index = self.sets.len() - 1;
        self.sets[index] = set;
        if status::deadline(self.d).is_some() {
            let message = format!("Created new replica set {name:?}");
            status::set_progressing(
                &mut self.before,
                "True",
                "NewReplicaSetCreated",
                message,
                self.view.now,
            );
        }
        self.take_revision(index);
    }

    fn resize(&mut self, index: usize, size: i32) {
        let had = self.sets[index].size();
        self.sets[index].resize(size, self.d);
        if had != size {
            let how = if had < size { "up" } else { "down" };
            self.plan.scalings.push(format!(
                "Scaled {how} replica set {} from {had} to {size}",
                self.sets[index].name()
            ));
        }
    }

    /// How large the set of the present template may be now.
    fn size_for_new(&self) -> i32 {
        let Some(new) = self.new.map(|index| &self.sets[index]) else {
            return 0;
        };
        let wanted = replicas(self.d);
        if !is_rolling(self.d) || new.size() > wanted {
            return wanted;
        }
        let room = wanted + max_surge(self.d) - self.size_of_all();
        new.size() + room.min(wanted - new.size()).max(0)
    }

    fn grow_new(&mut self) {
        let Some(index) = self.new else { return };
        let size = self.size_for_new();
        if self.sets[index].size() != size {
            self.resize(index, size);
        }
    }

    /// A rolling update takes pods from old sets, the ones that do not work first, as long as enough are available.
    fn shrink_old(&mut self) {
        let new = self.new.map(|index| &self.sets[index]);
        let new_unavailable = new.map_or(0, |set| set.size() - set.available());
        let enough = replicas(self.d) - max_unavailable(self.d);
        let surplus = self.size_of_all() - enough - new_unavailable;
        if surplus <= 0 {
            return;
        }
        let mut left = surplus;
        for index in self.active_olds() {
            let set = &self.sets[index];
            let useless = (set.size() - set.available()).min(left);
            if useless > 0 {
                left -= useless;
                self.resize(index, set.size() - useless);
            }
        }
        let available: i32 = self.sets.iter().map(Set::available).sum();
        let mut left = available - enough;
        for index in self.active_olds() {
            let size = self.sets[index].size();
            let fewer = size.min(left);
            if fewer > 0 {
                left -= fewer;
                self.resize(index, size - fewer);
            }
        }
    }

    /// Takes all pods from old sets. True: there was something to take.
    fn end_old(&mut self) -> bool {
        let olds = self.active_olds();
        olds.iter().for_each(|index| self.resize(*index, 0));
        !olds.is_empty()
    }

    fn has_old_pods(&self) -> bool {
        self.olds().iter().any(|index| {
            let rs = &self.sets[*index].rs;
            let uid = rs.metadata.uid.as_deref().unwrap_or_default();
            rs.status.as_ref().is_some_and(|status| status.replicas > 0)
                || self.view.with_pods.iter().any(|have| have == uid)
        })
    }

    /// Follows a change of the deployment's size, in the middle of a rollout by sharing it among the sets.
    fn scale(&mut self) {
        let wanted = replicas(self.d);
        let active: Vec<usize> = (0..self.sets.len())
            .filter(|index| self.sets[*index].size() > 0)
            .collect();
        match active[..] {
            [] => {
                if let Some(only) = self.new.or_else(|| self.sets.len().checked_sub(1)) {
                    self.resize_if_other(only, wanted);
                }
                return;
            }
            [only] => return self.resize_if_other(only, wanted),
            _ => {}
        }
        if self
            .new
            .is_some_and(|index| is_saturated(&self.sets[index], wanted))
        {
            self.end_old();
            return;
        }
        if !is_rolling(self.d) {
            return;
        }
        let most = if wanted > 0 {
            wanted + max_surge(self.d)
        } else {
            0
        };
        let to_add = most
            - active
                .iter()
                .map(|index| self.sets[*index].size())
                .sum::<i32>();
        let mut order = active;
        // The largest first; among equals the newest when growing, the oldest when shrinking.
        if to_add > 0 {
            order.reverse();
        }
        order.sort_by_key(|index| std::cmp::Reverse(self.sets[*index].size()));
        let mut added = 0;
        let mut sizes: Vec<i32> = Vec::new();
        for index in &order {
            let set = &self.sets[*index];
            let before = set
                .number(MAX)
                .filter(|most| *most > 0)
                .unwrap_or(self.before.replicas.unwrap_or(0));
            let share = proportion(
                set.size(),
                wanted,
                wanted + max_surge(self.d),
                before,
                to_add - added,
            );
            sizes.push(set.size() + share);
            added += share;
        }
        // What rounding left goes to the largest.
        if let Some(first) = sizes.first_mut().filter(|_| to_add != 0) {
            *first = (*first + to_add - added).max(0);
        }
        for (index, size) in order.into_iter().zip(sizes) {
            self.resize(index, size);
        }
    }

    fn resize_if_other(&mut self, index: usize, size: i32) {
        if self.sets[index].size() != size {
            self.resize(index, size);
        }
    }

    /// Deletes the oldest of the sets that nobody needs, but for as many as shall be kept for going back to them.
    fn clean_up(&mut self) {
        let Some(limit) = self
            .d
            .spec
            .as_ref()
            .and_then(|spec| spec.revision_history_limit)
        else {
            return;
        };
        let mut olds: Vec<usize> = self
            .olds()
            .into_iter()
            .filter(|index| !self.sets[*index].is_deleting())
            .collect();
        olds.sort_by_key(|index| self.sets[*index].revision());
        let surplus = olds
            .len()
            .saturating_sub(usize::try_from(limit).unwrap_or(0));
        for index in olds.into_iter().take(surplus) {
            let set = &self.sets[index];
            let observed = set
                .rs
                .status
                .as_ref()
                .and_then(|status| status.observed_generation)
                .unwrap_or(0);
            let busy = set.size() != 0
                || set
                    .rs
                    .status
                    .as_ref()
                    .is_some_and(|status| status.replicas != 0)
                || set.rs.metadata.generation.unwrap_or(0) > observed;
            if !busy {
                self.plan.delete.push(set.rs.clone());
            }
        }
    }

    fn finish(self, judging: bool) -> Plan {
        let Work {
            d,
            view,
            sets,
            new,
            before,
            mut plan,
            ..
        } = self;
        let new = new.map(|index| &sets[index]);
        plan.status = status::counted(d, &before, &sets, new, view.now);
        if judging {
            status::judge(d, &before, &mut plan.status, &sets, new, view.now);
            plan.again = status::look_again(d, &plan.status, view.now);
        }
        let deleted: Vec<_> = plan
            .delete
            .iter()
            .map(|rs| rs.metadata.uid.clone())
            .collect();
        let changed = sets
            .into_iter()
            .filter(|set| set.changed && !deleted.contains(&set.rs.metadata.uid));
        plan.update = changed.map(|set| set.rs).collect();
        plan
    }
}

/// The set has taken over: it has the size of the deployment, and all its pods are available.
fn is_saturated(set: &Set, wanted: i32) -> bool {
    set.size() == wanted && set.number(DESIRED) == Some(wanted) && set.available() == wanted
}
