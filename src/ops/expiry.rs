//! Expiry: snapshots whose time has come are deleted, by the same operation that anybody could ask for.
//!
//! Decides when to look. Leaves to `store` which are due, to `plan` whether they may go. What cannot go now, because its
//! VM is busy or its guest out of reach, is asked for again later: nothing is lost by a snapshot that lives longer.

use std::time::Duration;

use jiff::Timestamp;

use crate::model::{DeleteSnapshots, DeletionReason, SnapshotId, VmId};

use super::{Asked, Engine, Result};

/// The longest between two looks. A clock can be set, and nobody tells us when.
const LOOK_INTERVAL: Duration = Duration::from_secs(60);
/// The shortest. Each event of the node is a reason to look: a hold that went, an operation that ended.
const BREATH: Duration = Duration::from_millis(500);

impl Engine {
    /// Deletes snapshots when they expire, from now until the daemon goes down.
    pub fn expire_snapshots(&self) {
        let engine = self.clone();
        self.0.tasks.spawn(async move {
            let stopping = engine.draining();
            let mut events = engine.newest_event();
            loop {
                let wait = engine.expire().await.unwrap_or_else(|error| {
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
    async fn expire(&self) -> Result<Duration> {
        let now = Timestamp::now();
        for (vm, snapshots) in self.0.store.expired(now).await? {
            if self.holder(vm).is_none() {
                self.expire_of_vm(vm, snapshots).await;
            }
        }
        let next = self.0.store.next_expiry(now).await?;
        let wait = next.and_then(|next| Duration::try_from(next.duration_since(now)).ok());
        Ok(wait.map_or(LOOK_INTERVAL, |wait| wait.min(LOOK_INTERVAL)))
    }

    async fn expire_of_vm(&self, vm: VmId, snapshots: Vec<SnapshotId>) {
        let asked = Asked { by: "vmsnapd".to_owned(), key: None, validate_only: false };
        let request = DeleteSnapshots {
            snapshots,
            with_children: false,
            bandwidth: None,
            merge_deadline_ms: None,
            generation: None,
            reason: DeletionReason::Expired,
        };
        if let Err(error) = self.delete_snapshots(request, asked).await {
            let error: &dyn std::error::Error = &error;
            tracing::info!(%vm, error, "snapshots that have expired stay for now");
        }
    }
}
