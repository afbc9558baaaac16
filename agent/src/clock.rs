//! Notices that the machine's wall clock was set, or that the machine slept: then what waits for a moment of the wall clock
//! (tokens, certificates) looks again. Everything else runs by a clock that only goes forward.

use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use tokio::sync::watch;

/// Smaller steps are the business of whoever disciplines the clock.
const STEP: Duration = Duration::from_secs(30);

/// Compares the two clocks each time it is asked to.
pub struct ClockWatch {
    /// The wall clock when the other one stood at its beginning.
    begin: Timestamp,
    start: Instant,
    told: watch::Sender<()>,
}

impl ClockWatch {
    /// `told` hears of each step.
    pub fn new(told: watch::Sender<()>) -> ClockWatch {
        ClockWatch {
            begin: Timestamp::now(),
            start: Instant::now(),
            told,
        }
    }

    /// Looks at both clocks.
    pub fn look(&mut self) {
        if let Some(step) = self.step(Timestamp::now(), self.start.elapsed()) {
            tracing::warn!(
                "the clock of this machine was set by {step:#}; tokens and certificates are looked at again"
            );
            self.told.send_replace(());
        }
    }

    /// By how much the wall clock was set since the last look.
    fn step(&mut self, wall: Timestamp, elapsed: Duration) -> Option<SignedDuration> {
        let elapsed = SignedDuration::try_from(elapsed).ok()?;
        let begin = wall.checked_sub(elapsed).ok()?;
        let step = begin.duration_since(self.begin);
        if step.unsigned_abs() < STEP {
            return None;
        }
        self.begin = begin;
        Some(step)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_told_once_and_drift_is_not() {
        let mut clock = ClockWatch::new(watch::Sender::new(()));
        let (begin, hour) = (clock.begin, Duration::from_secs(3600));
        let after = |seconds: i64| begin + SignedDuration::from_secs(seconds);
        assert_eq!(clock.step(after(3605), hour), None, "drift");
        let year = SignedDuration::from_hours(24 * 365);
        assert_eq!(clock.step(after(3600) + year, hour), Some(year));
        assert_eq!(clock.step(after(3660) + year, hour + STEP * 2), None);
        let back = clock.step(after(7200), hour * 2);
        assert_eq!(back, Some(-year));
    }
}
