//! Guests whose writes are slowed, so that a merge converges; and that none stays so because of us.
//!
//! Decides what was in force before, and whether what is in force now is ours. Leaves when to slow, and how far, to `plan`.
//!
//! ```text
//!   free --note durable--> noted --limit set--> slowed --limits from before set--> free, note gone
//!                            |                    ^  |
//!                            |                    +--+ slowed further: noted first
//!                            +--> (crash) --> freed at start, at reconnect, by `vmsnapd thaw`, by the merge that goes on
//! ```

use std::collections::{BTreeSet, HashMap};
use std::sync::{MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Mutex, Notify};
use tokio::time::Instant;

use crate::host::{Host, HostError, Link};
use crate::model::{DiskTarget, OperationId, VmId};
use crate::store::{Store, Throttle};

use super::{Engine, Result};

/// A limit that could not be taken back is looked at again so often: the hypervisor tells nobody when it would work.
const AGAIN: Duration = Duration::from_secs(10);

/// A change that gave no answer may come into force as late as this: libvirt waits half of it for its turn, and QEMU answers
/// well within the other half.
pub(super) const LATE: Duration = Duration::from_secs(60);

/// All slowing and freeing of guests by this process.
#[derive(Default)]
pub(super) struct Throttles {
    /// One at a time, so that what is seen is still so when it is acted upon.
    turn: Mutex<Unanswered>,
    /// The disks whose merge is followed now: it frees their guests itself.
    followed: std::sync::Mutex<BTreeSet<(VmId, DiskTarget)>>,
    /// Somebody could not be freed.
    left: Notify,
}

/// The merge of a disk is followed until this is dropped.
pub(super) struct Followed<'a> {
    throttles: &'a Throttles,
    key: (VmId, DiskTarget),
}

impl Drop for Followed<'_> {
    fn drop(&mut self) {
        self.throttles.followed().remove(&self.key);
        // What it could not free is left to others.
        self.throttles.left.notify_one();
    }
}

/// Disks whose guest was to be slowed, without an answer: until then that may still happen, and the note is kept.
type Unanswered = HashMap<(VmId, DiskTarget), Instant>;

impl Throttles {
    fn followed(&self) -> MutexGuard<'_, BTreeSet<(VmId, DiskTarget)>> {
        self.followed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nobody else takes a limit off this disk for as long as its merge is followed.
    pub(super) fn follow(&self, vm: VmId, disk: &DiskTarget) -> Followed<'_> {
        let key = (vm, disk.clone());
        self.followed().insert(key.clone());
        Followed { throttles: self, key }
    }

    /// Slows the writes to a disk to `rate` bytes per second, or leaves them slower. Gives what they are slowed to.
    pub(super) async fn slow(
        &self,
        (host, store): (&Host, &Store),
        (vm, disk): (VmId, &DiskTarget),
        operation: OperationId,
        rate: u64,
    ) -> Result<u64> {
        let mut unanswered = self.turn.lock().await;
        let mut throttle = match store.throttle(vm, disk).await? {
            Some(known) => known,
            None => begin(host, (vm, disk), operation).await?,
        };
        throttle.operation = operation;
        let slowed = throttle.before.with_writes_at_most(rate);
        let rate = slowed.bytes.write.rate;
        throttle.writes_at_most.push(rate);
        store.put_throttle(throttle).await?;
        match host.hypervisor.set_io_limits(vm, disk, &slowed).await {
            Ok(()) => Ok(rate),
            Err(error) => {
                if matches!(error, HostError::TimedOut { .. } | HostError::Unreachable(_)) {
                    unanswered.insert((vm, disk.clone()), Instant::now() + LATE);
                }
                Err(error.into())
            }
        }
    }

    /// Lets a guest write to a disk as before. One that is not slowed is left alone.
    pub(super) async fn free(
        &self,
        (host, store): (&Host, &Store),
        (vm, disk): (VmId, &DiskTarget),
    ) -> Result<()> {
        let mut unanswered = self.turn.lock().await;
        let Some(throttle) = store.throttle(vm, disk).await? else { return Ok(()) };
        let freed = free(host, &throttle).await;
        if let Err(error) = freed {
            self.left.notify_one();
            return Err(error.into());
        }
        let key = (vm, disk.clone());
        if unanswered.get(&key).is_some_and(|until| Instant::now() < *until) {
            // It is looked at again until then.
            self.left.notify_one();
            return Ok(());
        }
        unanswered.remove(&key);
        Ok(store.clear_throttle(vm, key.1).await?)
    }
}

/// A throttle on a disk that is not slowed yet: what is in force now is what comes back.
async fn begin(host: &Host, (vm, disk): (VmId, &DiskTarget), operation: OperationId) -> Result<Throttle> {
    let limits = host.hypervisor.io_limits(vm, disk).await?;
    let before = limits.ok_or_else(|| HostError::NoSuchDisk(disk.clone()))?;
    if let Some(group) = &before.group {
        let cause = format!("other disks share its limits, as group {group}").into();
        return Err(HostError::Refused { call: "slow the guest's writes", cause }.into());
    }
    Ok(Throttle { vm, disk: disk.clone(), operation, before, writes_at_most: Vec::new() })
}

/// Takes our limit off a disk, if it is there.
async fn free(host: &Host, throttle: &Throttle) -> std::result::Result<(), HostError> {
    let Throttle { vm, disk, before, .. } = throttle;
    let is_ours = |rate: u64| throttle.writes_at_most.contains(&rate);
    match host.hypervisor.io_limits(*vm, disk).await {
        Ok(Some(now)) if is_ours(now.bytes.write.rate) => {
            host.hypervisor.set_io_limits(*vm, disk, before).await?;
            tracing::info!(%vm, %disk, "the guest writes as before");
            Ok(())
        }
        // Never set, or set otherwise by somebody else since; or the process that had it is gone.
        Ok(Some(_) | None) | Err(HostError::NoSuchVm(_)) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Frees the guests that a daemon which is gone has left slowed. Gives the VMs of those that cannot be.
pub async fn free_guests(host: &Host, store: &Store) -> Result<BTreeSet<VmId>> {
    let throttles = Throttles::default();
    let mut left = BTreeSet::new();
    for throttle in store.throttles().await? {
        if let Err(error) = throttles.free((host, store), (throttle.vm, &throttle.disk)).await {
            let error: &dyn std::error::Error = &error;
            tracing::error!(vm = %throttle.vm, error, "the guest's writes stay slowed");
            left.insert(throttle.vm);
        }
    }
    Ok(left)
}

impl Engine {
    /// Frees guests that are slowed for no merge that runs: at start, whenever the hypervisor is back, and when the merge
    /// itself could not. Until the daemon goes down.
    pub(super) fn free_slowed_guests(&self) {
        let engine = self.clone();
        self.0.tasks.spawn(async move {
            let stopping = engine.draining();
            let mut link = engine.0.host.hypervisor.link();
            loop {
                let is_up = *link.borrow_and_update() == Link::Up;
                let is_left = is_up && engine.free_those_left().await;
                let again = async {
                    if is_left {
                        tokio::time::sleep(AGAIN).await;
                    } else {
                        engine.0.limits.throttles.left.notified().await;
                    }
                };
                tokio::select! {
                    biased;
                    () = stopping.cancelled() => return,
                    changed = link.changed() => if changed.is_err() { return },
                    () = again => {}
                }
            }
        });
    }

    /// True if somebody may still be slowed.
    async fn free_those_left(&self) -> bool {
        let (host, store) = (&self.0.host, &self.0.store);
        let Ok(throttles) = store.throttles().await else { return true };
        for throttle in throttles {
            let key = (throttle.vm, throttle.disk.clone());
            if self.0.limits.throttles.followed().contains(&key) {
                continue;
            }
            let freed = self.0.limits.throttles.free((host, store), (throttle.vm, &throttle.disk)).await;
            if let Err(error) = freed {
                let error: &dyn std::error::Error = &error;
                tracing::error!(vm = %throttle.vm, disk = %throttle.disk, error, "the guest's writes stay slowed");
            }
        }
        store.throttles().await.map_or(true, |left| !left.is_empty())
    }
}
