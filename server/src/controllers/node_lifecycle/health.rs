//! Which nodes have fallen silent. Pure: the clock is an argument.
//!
//! What counts is when *this process* last heard from a node, by a clock that does not stand still while the machine's is set: neither
//! a node's clock nor ours need be right. A node that was not heard of since the start has a whole grace period from then. If a check
//! comes much later than it was due, this process itself stood still; then every node has a new grace period.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

/// How long a node may be silent that never told its status.
pub const STARTUP_GRACE: Duration = Duration::from_secs(60);
/// A check that is so late was held up.
const LATE: Duration = Duration::from_secs(2);

#[derive(Debug, Default)]
pub struct Health {
    nodes: HashMap<String, Seen>,
}

#[derive(Debug)]
struct Seen {
    heard: Instant,
    silent: bool,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Look again then.
    Fresh(Duration),
    Silent,
}

impl Health {
    /// A node gave a sign of life.
    pub fn heard(&mut self, node: &str, now: Instant) {
        if let Some(seen) = self.nodes.get_mut(node) {
            *seen = Seen {
                heard: now,
                silent: false,
            };
        }
    }

    /// Whether a node has been silent for too long.
    pub fn check(&mut self, node: &str, grace: Duration, now: Instant) -> Verdict {
        let seen = self.nodes.entry(node.to_owned()).or_insert(Seen {
            heard: now,
            silent: false,
        });
        let silence = now.saturating_duration_since(seen.heard);
        if seen.silent {
            return Verdict::Silent;
        }
        if silence < grace {
            return Verdict::Fresh(grace - silence);
        }
        if silence > grace + LATE {
            for seen in self.nodes.values_mut().filter(|seen| !seen.silent) {
                seen.heard = now;
            }
            return Verdict::Fresh(grace);
        }
        seen.silent = true;
        Verdict::Silent
    }

    pub fn forget(&mut self, node: &str) {
        self.nodes.remove(node);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_secs(40);

    #[test]
    fn a_node_is_silent_when_nothing_was_heard_for_the_grace_period() {
        let (mut health, start) = (Health::default(), Instant::now());
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        assert_eq!(health.check("a", GRACE, at(0)), Verdict::Fresh(GRACE));
        health.heard("a", at(30));
        assert_eq!(
            health.check("a", GRACE, at(40)),
            Verdict::Fresh(Duration::from_secs(30))
        );
        assert_eq!(health.check("a", GRACE, at(70)), Verdict::Silent);
        assert_eq!(health.check("a", GRACE, at(500)), Verdict::Silent);
        health.heard("a", at(501));
        assert_eq!(
            health.check("a", GRACE, at(502)),
            Verdict::Fresh(Duration::from_secs(39))
        );
    }

    #[test]
    fn a_server_that_stood_still_blames_nobody() {
        let (mut health, start) = (Health::default(), Instant::now());
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        for node in ["a", "b"] {
            health.check(node, GRACE, at(0));
        }
        assert_eq!(health.check("a", GRACE, at(43)), Verdict::Fresh(GRACE));
        assert_eq!(
            health.check("b", GRACE, at(44)),
            Verdict::Fresh(GRACE - Duration::from_secs(1))
        );
        assert_eq!(
            health.check("a", GRACE, at(83)),
            Verdict::Silent,
            "it is silent indeed"
        );
    }
}
