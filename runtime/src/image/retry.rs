//! Which failed requests are sent again, and when.

use std::time::Duration;

use super::error::{ImageError, Result};

/// How often a request is tried that fails for reasons that may pass.
const ATTEMPTS: u32 = 5;
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// A failed request, and whether to send it again.
#[derive(Debug)]
pub(crate) struct Failure {
    pub error: ImageError,
    pub again: bool,
    pub after: Option<Duration>,
    /// No connection came about, be it for TCP or for TLS.
    pub connecting: bool,
}

impl From<ImageError> for Failure {
    fn from(error: ImageError) -> Self {
        Self {
            error,
            again: false,
            after: None,
            connecting: false,
        }
    }
}

/// The pauses between attempts: doubling, with a quarter of jitter so that a fleet does not march in step.
pub(crate) struct Backoff {
    attempt: u32,
}

impl Backoff {
    pub(crate) fn new() -> Self {
        Self { attempt: 0 }
    }

    /// Progress was made: start over.
    pub(crate) fn reset(&mut self) {
        self.attempt = 0;
    }

    /// Waits before the next attempt, or gives the error back if there should be none.
    pub(crate) async fn pause(&mut self, failure: Failure) -> Result<()> {
        self.attempt += 1;
        if !failure.again || self.attempt >= ATTEMPTS {
            return Err(failure.error);
        }
        let pause = FIRST_PAUSE * 2u32.pow(self.attempt - 1);
        let jitter = std::collections::hash_map::RandomState::new();
        let jitter = std::hash::BuildHasher::hash_one(&jitter, self.attempt) % 256;
        let pause = pause + pause * (jitter as u32) / 1024;
        tokio::time::sleep(failure.after.unwrap_or(pause).min(LONGEST_PAUSE)).await;
        Ok(())
    }
}
