//! Notices that the wall clock was set. Timers run by a clock that only goes forward, schedules by the one on the wall.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};

/// Smaller steps are the business of whoever disciplines the clock.
const STEP: Duration = Duration::from_secs(5);

/// Compares the two clocks each time it is asked to.
pub struct Clock {
    start: Instant,
    /// What the wall clock showed when the other one started, as it is set now.
    begin: Mutex<Timestamp>,
}

impl Default for Clock {
    fn default() -> Clock {
        Clock {
            start: Instant::now(),
            begin: Mutex::new(Timestamp::now()),
        }
    }
}

impl Clock {
    /// Whether the wall clock was set since the last time somebody asked.
    pub fn was_set(&self) -> bool {
        self.was_set_by(Timestamp::now(), self.start.elapsed())
    }

    fn was_set_by(&self, wall: Timestamp, elapsed: Duration) -> bool {
        let elapsed = SignedDuration::try_from(elapsed).unwrap_or(SignedDuration::MAX);
        let Ok(now) = wall.checked_sub(elapsed) else {
            return false;
        };
        let mut begin = self.begin.lock().unwrap_or_else(PoisonError::into_inner);
        let was_set = now.duration_since(*begin).unsigned_abs() >= STEP;
        if was_set {
            *begin = now;
        }
        was_set
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_noticed_once() {
        let clock = Clock::default();
        let begin = Timestamp::now();
        let after = |hours: i64| begin + SignedDuration::from_hours(hours);
        let hour = Duration::from_secs(3600);
        assert!(!clock.was_set_by(after(1), hour));
        assert!(clock.was_set_by(after(26), hour * 2));
        assert!(!clock.was_set_by(after(27), hour * 3));
        assert!(clock.was_set_by(after(4), hour * 4));
    }
}
