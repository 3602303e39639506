//! Whose turn it is to read a list.
//!
//! Decides how many are read at once, and how long one waits to be. The catalog does one thing after the other, and a list out of
//! a hundred thousand takes it some time: operations must not wait behind a crowd of those. Who waits too long is sent away and
//! told when to come again, before anything was done.

use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};

/// Lists at once: fewer than may be in the catalog's queue (`store`), so that others have places there.
const AT_ONCE: usize = 16;

/// A client that waits for longer asks again by itself, and then there are two.
const PATIENCE: Duration = Duration::from_secs(5);

/// Until it is tried again.
pub(super) const LATER: Duration = Duration::from_secs(2);

/// All turns.
pub(super) struct Turns(Semaphore);

impl Default for Turns {
    fn default() -> Self {
        Self(Semaphore::new(AT_ONCE))
    }
}

impl Turns {
    /// A turn, until it is dropped. None if there are too many who wait.
    pub(super) async fn take(&self) -> Option<SemaphorePermit<'_>> {
        tokio::time::timeout(PATIENCE, self.0.acquire()).await.ok()?.ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_waits_too_long_is_sent_away() {
        let turns = Turns::default();
        let mut taken = Vec::new();
        for _ in 0..AT_ONCE {
            taken.push(turns.take().await.unwrap());
        }
        let begun = tokio::time::Instant::now();
        assert!(turns.take().await.is_none());
        assert_eq!(begun.elapsed(), PATIENCE);
        let (turn, ()) = tokio::join!(turns.take(), async { drop(taken.pop()) });
        assert!(turn.is_some(), "it was there in time");
    }
}
