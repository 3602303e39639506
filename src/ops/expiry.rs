//! Expiry: snapshots whose time has come are deleted, by the same operation that anybody could ask for.
//!
//! Decides when to look. Leaves to `store` which are due, to `plan` whether they may go. What cannot go now, because its
//! VM is busy or its guest out of reach, is asked for again later, and then less and less often: nothing is lost by a
//! snapshot that lives longer.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use crate::model::{DeleteSnapshots, DeletionReason, SnapshotId, VmId};

use super::{Asked, Engine, Result};

/// The longest between two looks. A clock can be set, and nobody tells us when.
const LOOK_INTERVAL: Duration = Duration::from_secs(60);
/// The shortest. Each event of the node is a reason to look: a hold that went, an operation that ended.
const BREATH: Duration = Duration::from_millis(500);
/// What did not go is asked for again after this, and each time after twice as long.
const FIRST_PAUSE: Duration = Duration::from_secs(4);
/// At the most.
const LONGEST_PAUSE: Duration = Duration::from_secs(3600);

/// What was asked for already, by VM.
#[derive(Default)]
struct Tried(BTreeMap<VmId, Attempt>);

struct Attempt {
    snapshots: Vec<SnapshotId>,
    pause: Duration,
    not_before: Instant,
}

impl Tried {
    /// Whether to ask now. The same snapshots are not asked for again before a pause is over.
    fn may_ask(&mut self, vm: VmId, snapshots: &[SnapshotId]) -> bool {
        let now = Instant::now();
        let before = self.0.get(&vm).filter(|before| before.snapshots == snapshots);
        if before.is_some_and(|before| now < before.not_before) {
            return false;
        }
        let pause = before.map_or(FIRST_PAUSE, |before| (2 * before.pause).min(LONGEST_PAUSE));
        let attempt = Attempt { snapshots: snapshots.to_vec(), pause, not_before: now + pause };
        self.0.insert(vm, attempt);
        true
    }

    /// Those of which nothing is due any more are forgotten. Gives how long none is to be asked for again.
    fn settle(&mut self, due: &BTreeMap<VmId, Vec<SnapshotId>>) -> Option<Duration> {
        self.0.retain(|vm, _| due.contains_key(vm));
        // What could be asked for now waits for its VM, and the end of what holds that is told.
        let left = |attempt: &Attempt| attempt.not_before.checked_duration_since(Instant::now());
        self.0.values().filter_map(left).filter(|left| !left.is_zero()).min()
    }
}

impl Engine {
    /// Deletes snapshots when they expire, from now until the daemon goes down.
    pub fn expire_snapshots(&self) {
        let engine = self.clone();
        self.0.tasks.spawn(async move {
            let stopping = engine.draining();
            let mut events = engine.newest_event();
            let mut tried = Tried::default();
            loop {
                let wait = engine.expire(&mut tried).await.unwrap_or_else(|error| {
                    let error: &dyn std::error::Error = &error;
                    tracing::warn!(error, "cannot look for snapshots that have expired");
                    LOOK_INTERVAL
                });
                tokio::select! {
                    biased;
                    () = stopping.cancelled() => return,
                    () = tokio::time::sleep(wait) => {}
                    Ok(()) = events.changed() => {}
                }
                tokio::select! {
                    biased;
                    () = stopping.cancelled() => return,
                    () = tokio::time::sleep(BREATH) => {}
                }
            }
        });
    }

    /// Begins what is due. Gives how long nothing else will be.
    async fn expire(&self, tried: &mut Tried) -> Result<Duration> {
        let now = Timestamp::now();
        let due = self.0.store.expired(now).await?;
        for (vm, snapshots) in &due {
            if self.under_way(*vm).is_none() && tried.may_ask(*vm, snapshots) {
                self.expire_of_vm(*vm, snapshots).await;
            }
        }
        let again = tried.settle(&due);
        let next = self.0.store.next_expiry(now).await?;
        let next = next.and_then(|next| Duration::try_from(next.duration_since(now)).ok());
        Ok(next.into_iter().chain(again).chain([LOOK_INTERVAL]).min().unwrap_or(LOOK_INTERVAL))
    }

    /// Together; if that is refused, one of them: what cannot go holds up no other.
    async fn expire_of_vm(&self, vm: VmId, snapshots: &[SnapshotId]) {
        let Err(error) = self.delete_expired(snapshots.to_vec()).await else { return };
        if snapshots.len() > 1 {
            for snapshot in snapshots {
                if self.delete_expired(vec![*snapshot]).await.is_ok() {
                    return;
                }
            }
        }
        let error: &dyn std::error::Error = &error;
        tracing::warn!(%vm, error, "snapshots that have expired stay for now");
    }

    async fn delete_expired(&self, snapshots: Vec<SnapshotId>) -> Result<()> {
        let asked = Asked { by: "vmsnapd".to_owned(), key: None, validate_only: false };
        let request = DeleteSnapshots {
            snapshots,
            with_children: false,
            bandwidth: None,
            merge_deadline_ms: None,
            generation: None,
            reason: DeletionReason::Expired,
        };
        self.delete_snapshots(request, asked).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_does_not_go_is_asked_for_less_and_less_often() {
        let (vm, one, two) =
            (VmId(Uuid::from_u128(1)), SnapshotId(Uuid::from_u128(2)), SnapshotId(Uuid::from_u128(3)));
        let mut tried = Tried::default();
        let due = BTreeMap::from([(vm, vec![one])]);
        let mut asked = 0;
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_secs(24 * 3600) {
            asked += u32::from(tried.may_ask(vm, &[one]));
            tokio::time::advance(tried.settle(&due).unwrap()).await;
        }
        assert_eq!(asked, 33, "in a day: ten in the first hour, and then each hour");
        assert!(tried.may_ask(vm, &[one, two]), "another has expired");
        assert!(!tried.may_ask(vm, &[one, two]));
        assert_eq!(tried.settle(&BTreeMap::new()), None);
        assert!(tried.may_ask(vm, &[one, two]), "nothing was due meanwhile");
    }
}
