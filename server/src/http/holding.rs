//! What clients may make the server hold: large bodies that are still coming, and large answers that are not yet taken.
//!
//! Each has a budget of bytes for all clients together. Who finds none left is told to come again (429); what is small is
//! not counted. Memory that a crowd of clients needed is given back to the kernel when they have gone.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use amphipod_api::Status;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bodies and answers below this are not counted.
pub const SMALL: u64 = 64 << 10;
/// For bodies, and as much again for answers: on a box of 512 MB, what can be spared for moments.
const BYTES: u64 = 48 << 20;
/// Permits are of this many bytes.
const UNIT: u64 = 1 << 10;

/// Bytes that may be held at once.
pub struct Budget {
    left: Arc<Semaphore>,
    crowd: Crowd,
}

/// Part of a budget, given back when dropped.
#[must_use]
pub struct Held {
    permit: OwnedSemaphorePermit,
    _one: One,
}

impl Default for Budget {
    fn default() -> Self {
        Budget {
            left: Arc::new(Semaphore::new((BYTES / UNIT) as usize)),
            crowd: Crowd::of(4),
        }
    }
}

impl Budget {
    /// Takes `bytes` of the budget; something larger than all of it takes all of it.
    ///
    /// # Errors
    /// 429
    pub fn take(&self, bytes: u64) -> Result<Held, Status> {
        let units = bytes.min(BYTES).div_ceil(UNIT) as u32;
        match self.left.clone().try_acquire_many_owned(units) {
            Ok(permit) => Ok(Held {
                permit,
                _one: self.crowd.enter(),
            }),
            Err(_) => Err(Status::too_many_requests(
                "Too many requests, please try again later.",
                1,
            )),
        }
    }
}

impl Held {
    /// Adds to it.
    pub fn join(&mut self, more: Held) {
        self.permit.merge(more.permit);
    }
}

/// Those who are served at once: connections, large bodies. When most of what was a crowd has gone, free memory is returned.
#[derive(Clone)]
pub struct Crowd(Arc<Counts>);

struct Counts {
    now: AtomicUsize,
    /// The most since memory was returned last.
    most: AtomicUsize,
    /// Fewer are no crowd.
    least: usize,
}

/// One of a crowd, until dropped.
pub struct One(Arc<Counts>);

impl Crowd {
    pub fn of(least: usize) -> Crowd {
        Crowd(Arc::new(Counts {
            now: AtomicUsize::new(0),
            most: AtomicUsize::new(0),
            least,
        }))
    }

    pub fn enter(&self) -> One {
        let now = self.0.now.fetch_add(1, Ordering::Relaxed) + 1;
        self.0.most.fetch_max(now, Ordering::Relaxed);
        One(self.0.clone())
    }
}

impl Drop for One {
    fn drop(&mut self) {
        let now = self.0.now.fetch_sub(1, Ordering::Relaxed) - 1;
        let most = self.0.most.load(Ordering::Relaxed);
        if most >= self.0.least && now * 4 <= most {
            self.0.most.store(now, Ordering::Relaxed);
            // What this one held is freed right after.
            if let Ok(runtime) = tokio::runtime::Handle::try_current() {
                runtime.spawn_blocking(return_memory);
            }
        }
    }
}

/// Hands free pages back to the kernel: glibc does it by itself only at the end of its heaps.
fn return_memory() {
    // SAFETY: malloc_trim(3) may be called by any thread at any time.
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    unsafe {
        nix::libc::malloc_trim(0);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_budget_is_used_up_and_given_back() {
        let budget = Budget::default();
        let mut held = budget.take(BYTES - UNIT).unwrap();
        held.join(budget.take(1).unwrap());
        assert_eq!(budget.take(1).err().unwrap().http_code(), 429);
        drop(held);
        // What is larger than the budget must still be possible, alone.
        let all = budget.take(10 * BYTES).unwrap();
        assert!(budget.take(1).is_err());
        drop(all);
        assert!(budget.take(1).is_ok());
    }
}
