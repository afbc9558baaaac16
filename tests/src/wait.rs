//! Waiting for a condition, never for a time.

use std::time::{Duration, Instant};

/// How many times longer than written every wait may take: `AMPHIPOD_TEST_PATIENCE`, for machines that are emulated.
pub(crate) fn patience() -> u32 {
    let told = std::env::var("AMPHIPOD_TEST_PATIENCE").ok();
    told.map_or(1, |factor| {
        factor
            .parse()
            .expect("AMPHIPOD_TEST_PATIENCE is a whole number")
    })
}

/// Calls `probe` until it yields a value; panics with `what` and the last refusal when `limit` (times the patience) has passed.
///
/// `probe` says in its error what it saw instead, which is what a reader of a failed test needs.
#[track_caller]
pub fn eventually<T>(
    what: &str,
    limit: Duration,
    mut probe: impl FnMut() -> Result<T, String>,
) -> T {
    let limit = limit * patience();
    let start = Instant::now();
    let mut pause = Duration::from_millis(10);
    loop {
        match probe() {
            Ok(value) => return value,
            Err(seen) if start.elapsed() > limit => {
                panic!("waited {limit:?} for {what}; last seen: {seen}")
            }
            Err(_) => std::thread::sleep(pause),
        }
        pause = (pause * 3 / 2).min(Duration::from_millis(250));
    }
}
