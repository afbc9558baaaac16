//! Notices that the machine's wall clock was set, or that the machine slept: what waits for a moment of the wall clock waits by another one,
//! which only goes forward.

use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};

/// Compares the two clocks each time it is asked to.
#[derive(Debug)]
pub struct WallClock {
    start: Instant,
    /// What the wall clock showed when the other one stood at `start`, as it is set now.
    begin: Timestamp,
    /// Smaller steps are the business of whoever disciplines the clock.
    least: Duration,
}

impl WallClock {
    /// Tells steps of `least` and more.
    pub fn new(least: Duration) -> WallClock {
        WallClock {
            start: Instant::now(),
            begin: Timestamp::now(),
            least,
        }
    }

    /// By how much the wall clock was set since somebody asked last; `None` if it was not.
    pub fn step(&mut self) -> Option<SignedDuration> {
        self.step_at(Timestamp::now(), self.start.elapsed())
    }

    fn step_at(&mut self, wall: Timestamp, elapsed: Duration) -> Option<SignedDuration> {
        let elapsed = SignedDuration::try_from(elapsed).ok()?;
        let begin = wall.checked_sub(elapsed).ok()?;
        let step = begin.duration_since(self.begin);
        if step.unsigned_abs() < self.least {
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
        let mut clock = WallClock::new(Duration::from_secs(30));
        let (begin, hour) = (clock.begin, Duration::from_secs(3600));
        let after = |seconds: i64| begin + SignedDuration::from_secs(seconds);
        assert_eq!(clock.step_at(after(3605), hour), None, "drift");
        let year = SignedDuration::from_hours(24 * 365);
        assert_eq!(clock.step_at(after(3600) + year, hour), Some(year));
        let minute = Duration::from_secs(60);
        assert_eq!(clock.step_at(after(3660) + year, hour + minute), None);
        let back = clock.step_at(after(7200), hour * 2);
        assert_eq!(back, Some(-year));
    }
}
