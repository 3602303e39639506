//! Whose turn it is to read a list out of the catalog.
//!
//! Decides how many are read at once, how many one caller may have in line, and how long one waits to be read. A list out of a
//! hundred thousand takes the catalog some time, and it does one thing after the other. Who waits too long, or has too many in
//! line, is sent away and told when to come again, before anything was read. A turn is taken last, when all is known that the
//! list needs: neither a request that comes slowly nor a hypervisor that hangs holds one.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};
use tonic::Status;

use super::crowd::{Crowd, Member};
use super::status;
use crate::model::access::Identity;

/// Lists at once.
const AT_ONCE: usize = 8;

/// Lists of one caller, read or in line: others stand behind no more than these. Of root on this node they are not counted: all
/// of its programs would share them.
const IN_LINE: usize = 16;

/// A client that waits for longer asks again by itself, and then there are two.
const PATIENCE: Duration = Duration::from_secs(5);

/// Until it is tried again.
const LATER: Duration = Duration::from_secs(2);

/// All turns.
#[derive(Debug, Clone)]
pub(super) struct Turns {
    turns: Arc<Semaphore>,
    crowd: Arc<Crowd>,
}

/// A turn, until it is dropped.
#[derive(Debug)]
pub(super) struct Turn<'a> {
    _turn: SemaphorePermit<'a>,
    _member: Option<Member>,
}

impl Default for Turns {
    fn default() -> Self {
        Self { turns: Arc::new(Semaphore::new(AT_ONCE)), crowd: Crowd::of(IN_LINE) }
    }
}

impl Turns {
    /// A turn for a caller, as soon as there is one.
    pub(super) async fn take(&self, caller: &Identity) -> Result<Turn<'_>, Status> {
        let member = match caller {
            Identity::User(0) => None,
            caller => {
                let member = self.crowd.enter(caller.clone());
                Some(member.ok_or_else(|| status::too_many("it has too many lists in line", LATER))?)
            }
        };
        match tokio::time::timeout(PATIENCE, self.turns.acquire()).await {
            Ok(Ok(turn)) => Ok(Turn { _turn: turn, _member: member }),
            Ok(Err(_)) | Err(_) => Err(status::too_many("too many lists are asked for at once", LATER)),
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use tonic::Code;
    use tonic_types::StatusExt;

    use super::*;

    const ROOT: Identity = Identity::User(0);

    fn refused(turn: Result<Turn<'_>, Status>) {
        let status = turn.unwrap_err();
        assert_eq!(status.code(), Code::ResourceExhausted);
        assert!(status.get_details_retry_info().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_too_long_is_sent_away() {
        let turns = Turns::default();
        let mut taken = Vec::new();
        for _ in 0..AT_ONCE {
            taken.push(turns.take(&ROOT).await.unwrap());
        }
        let begun = tokio::time::Instant::now();
        refused(turns.take(&ROOT).await);
        assert_eq!(begun.elapsed(), PATIENCE);
        let (turn, ()) = tokio::join!(turns.take(&ROOT), async { drop(taken.pop()) });
        assert!(turn.is_ok(), "it was there in time");
    }

    #[tokio::test(start_paused = true)]
    async fn one_caller_does_not_fill_the_line() {
        let turns = Turns::default();
        let [greedy, other] = [Identity::User(1), Identity::User(2)];
        let _taken = turns.turns.acquire_many(u32::try_from(AT_ONCE).unwrap()).await.unwrap();
        let mut waiting: Vec<_> = (0..IN_LINE).map(|_| Box::pin(turns.take(&greedy))).collect();
        for waits in &mut waiting {
            assert!(waits.now_or_never().is_none());
        }
        let begun = tokio::time::Instant::now();
        refused(turns.take(&greedy).await);
        assert_eq!(begun.elapsed(), Duration::ZERO, "it does not wait for that");
        assert!(Box::pin(turns.take(&other)).now_or_never().is_none(), "another one is in line");
    }
}
