//! Exponential back-off as the kubelet counts it: the first failure is retried at once, then 10 s, 20 s ... up to 300 s;
//! quiet for twice the maximum resets it.

use std::time::Duration;

/// Monotonic time since the agent started. Wall-clock jumps never touch back-offs.
pub type Mono = Duration;

pub const INITIAL: Duration = Duration::from_secs(10);
pub const MAX: Duration = Duration::from_secs(300);

/// One back-off series.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Backoff {
    delay: Duration,
    updated: Option<Mono>,
}

impl Backoff {
    /// The delay to keep since the last failure (zero before the first [`Self::bump`]).
    pub fn delay(&self, now: Mono) -> Duration {
        if self.expired(now) {
            Duration::ZERO
        } else {
            self.delay
        }
    }

    /// Counts one more attempt at `now`; returns the delay that a failure of it must keep.
    pub fn bump(&mut self, now: Mono) -> Duration {
        self.delay = if self.delay.is_zero() || self.expired(now) {
            INITIAL
        } else {
            (self.delay * 2).min(MAX)
        };
        self.updated = Some(now);
        self.delay
    }

    pub fn reset(&mut self) {
        *self = Self::default();
    }

    fn expired(&self, now: Mono) -> bool {
        self.updated
            .is_none_or(|at| now.saturating_sub(at) > MAX * 2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_to_five_minutes_and_forgets_after_ten_quiet_minutes() {
        let mut b = Backoff::default();
        let s = Duration::from_secs;
        assert_eq!(b.delay(s(0)), s(0));
        let mut now = s(0);
        let mut seen = vec![];
        for _ in 0..7 {
            seen.push(b.bump(now).as_secs());
            now += b.delay(now);
        }
        assert_eq!(seen, [10, 20, 40, 80, 160, 300, 300]);
        assert_eq!(b.delay(now + s(301)), s(0));
        assert_eq!(b.bump(now + s(301)), s(10));
    }
}
