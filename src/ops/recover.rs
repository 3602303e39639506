//! What an earlier life left behind: guests are thawed before anything else, then its operations go on.
//!
//! A restart is no special case: the same runner carries on from what the journal says.

use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

use crate::host::{Host, Link};
use crate::model::{Finding, VmId};
use crate::store::{GuestLease, Standstill, Store};

use super::runner::Runner;
use super::steps::{Thawed, prove};
use super::{Engine, Result};

/// Lets the guests go on that a daemon which is gone has left frozen or paused. That they do is noted, and the next start goes
/// on with what held them up. Gives the VMs whose guests are not seen to go on.
///
/// A freeze did not survive an earlier boot of the node, other than `boot_id`: a guest that is frozen now is somebody else's.
pub async fn thaw_guests(host: &Host, store: &Store, boot_id: &str) -> Result<Vec<VmId>> {
    let is_frozen = |lease: &GuestLease| !lease.is_thawed && lease.boot_id == boot_id;
    let frozen: Vec<GuestLease> = store.leases().await?.into_iter().filter(is_frozen).collect();
    // All at once: one whose agent hangs holds up no other.
    let asked = frozen.into_iter().map(|lease| async move { (prove(host, store, &lease).await, lease) });
    let (mut unproven, mut noted) = (Vec::new(), Ok(()));
    let mut answers: FuturesUnordered<_> = asked.collect();
    while let Some((thawed, lease)) = answers.next().await {
        match thawed {
            Ok(Thawed::Proven { file_systems }) => {
                tracing::warn!(vm = %lease.vm, standstill = ?lease.standstill, file_systems, "the guest goes on");
                // There may be no room for it, and there are others.
                noted = noted.and(store.put_lease(GuestLease { is_thawed: true, ..lease }).await);
            }
            Ok(Thawed::Unproven) => {
                tracing::error!(vm = %lease.vm, "the guest does not say that it goes on");
                unproven.push(lease.vm);
            }
            Err(error) => {
                let error: &dyn std::error::Error = &error;
                tracing::error!(vm = %lease.vm, error, "the guest cannot be let go on");
                unproven.push(lease.vm);
            }
        }
    }
    noted?;
    Ok(unproven)
}

impl Engine {
    /// Holds the VMs of open operations, thaws, and lets the operations go on. Returns as soon as the VMs are held;
    /// the rest happens when the hypervisor can be reached.
    pub async fn recover(&self) -> Result<usize> {
        self.remember_departures().await?;
        let operations = self.0.store.open_operations().await?;
        let leases = self.0.store.leases().await?;
        let count = operations.len();
        self.tell_start(count).await;
        let held: Vec<_> = operations
            .into_iter()
            .filter_map(|operation| {
                let vms = operation.request.holds(operation.vm);
                match self.0.gate.enter_all(vms, operation.id) {
                    Ok(permit) => Some((operation, permit)),
                    Err(holder) => {
                        tracing::error!(operation = %operation.id, %holder, "two open operations for one VM");
                        None
                    }
                }
            })
            .collect();
        let is_frozen = |lease: &&GuestLease| !lease.is_thawed && self.is_of_this_boot(lease);
        for lease in leases.iter().filter(is_frozen) {
            // Whatever becomes of the tasks below, the dead-man goes on with it.
            self.0.dead_man.arm(lease.vm, lease.operation, lease.standstill, Duration::ZERO);
        }
        for (mut operation, permit) in held {
            // What the earlier life published after its last save must not be newer than what this one publishes.
            operation.generation += 1;
            operation.findings.was_cut_short |= operation.is_cut_short_by_death();
            let lease = leases.iter().find(|lease| lease.operation == operation.id).cloned();
            let engine = self.clone();
            // At once: it can be watched while the hypervisor is waited for.
            let runner = Runner::new(self.clone(), operation, permit, false);
            self.0.tasks.spawn(async move {
                let freeze_was_lost = match &lease {
                    Some(lease) => engine.honour(lease).await && lease.standstill == Standstill::Frozen,
                    None => false,
                };
                let lost = Finding::FreezeLost {
                    reason: "vmsnapd was restarted while the guest was frozen".to_owned(),
                };
                runner.knowing(freeze_was_lost.then_some(lost)).run().await;
            });
        }
        for lease in leases {
            if self.0.gate.holder(lease.vm) != Some(lease.operation) {
                let engine = self.clone();
                self.0.tasks.spawn(async move { engine.honour(&lease).await });
            }
        }
        let engine = self.clone();
        self.0.tasks.spawn(async move { engine.end_captures_left().await });
        let engine = self.clone();
        self.0.tasks.spawn(async move { engine.0.manifests.settle_all().await });
        self.free_slowed_guests();
        for vm in self.0.store.vms().await? {
            let engine = self.clone();
            self.0.tasks.spawn(async move { engine.collapse_when_free(vm).await });
        }
        Ok(count)
    }

    /// True once the hypervisor can be reached; false if the daemon goes down first.
    pub(super) async fn is_linked(&self) -> bool {
        let mut link = self.0.host.hypervisor.link();
        tokio::select! {
            biased;
            result = link.wait_for(|link| *link == Link::Up) => result.is_ok(),
            () = self.0.stopping.cancelled() => false,
        }
    }

    /// Lets the guest of a lease go on. True if it is proven; else the dead-man goes on with it.
    async fn honour(&self, lease: &GuestLease) -> bool {
        if lease.is_thawed || !self.is_of_this_boot(lease) {
            // If this fails, it is found once more by the next start.
            return self.0.store.clear_lease(lease.vm, lease.operation).await.is_ok();
        }
        if !self.is_linked().await {
            return false;
        }
        let gone_on = prove(&self.0.host, &self.0.store, lease).await;
        let (is_proven, standstill) = (matches!(gone_on, Ok(Thawed::Proven { .. })), lease.standstill);
        tracing::warn!(vm = %lease.vm, ?standstill, is_proven, "a guest was left standing still by an earlier life: let go on");
        if is_proven && self.0.store.clear_lease(lease.vm, lease.operation).await.is_ok() {
            self.0.dead_man.disarm(lease.vm, lease.operation);
        }
        is_proven
    }

    fn is_of_this_boot(&self, lease: &GuestLease) -> bool {
        lease.boot_id == self.0.limits.boot_id
    }
}
