//! Which VMs are on this node. A VM that was undefined or migrated away takes nothing with it: its snapshots are LOST, with
//! the reason, and their files are kept. When it comes back with its chains as they were, they are READY again.
//!
//! Decides when to look. Leaves to `plan` whether a chain is as it was. Nothing is removed here.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

use super::events::by_itself;
use super::{Engine, Result, observe};
use crate::host::{HostError, HostEvent, Link, VmSummary};
use crate::model::operation::Reason;
use crate::model::{Attachment, Failure, OperationId, RunState, SnapshotId, SnapshotState, VmId};
use crate::plan;

/// A VM that is undefined to be defined anew is back after this.
const BREATH: Duration = Duration::from_millis(500);

impl Engine {
    /// Keeps up with VMs that leave and come back, from now until the daemon goes down.
    pub fn keep_presence(&self) {
        self.note_departures();
        let engine = self.clone();
        self.0.tasks.spawn(async move {
            let stopping = engine.draining();
            let mut events = engine.0.host.hypervisor.events();
            let mut link = engine.0.host.hypervisor.link();
            loop {
                let mut gate = std::pin::pin!(engine.0.gate.changed());
                gate.as_mut().enable();
                let is_up = *link.borrow_and_update() == Link::Up;
                let is_all = !is_up || engine.look_who_is_here().await;
                tokio::select! {
                    biased;
                    () = stopping.cancelled() => return,
                    goes_on = vm_changed(&mut events) => if !goes_on { return },
                    Ok(()) = link.changed() => {}
                    // What was passed over because somebody held it.
                    () = gate, if !is_all => {}
                }
                tokio::select! {
                    biased;
                    () = stopping.cancelled() => return,
                    () = tokio::time::sleep(BREATH) => {}
                }
                // What happens from here on is seen by the next look.
                events = events.resubscribe();
            }
        });
    }

    /// VMs with snapshots that are LOST, or in ERROR alone, by the names they had, but for those in `here`.
    pub async fn gone(&self, here: &[VmSummary]) -> Result<Vec<VmSummary>> {
        let mut gone = Vec::new();
        for kept in self.0.store.kept().await?.into_iter().filter(|kept| kept.lost > 0 || kept.ready == 0) {
            if !here.iter().any(|vm| vm.id == kept.vm) {
                let name =
                    self.0.store.tree(kept.vm).await?.snapshots.first().map(|first| first.vm_name.clone());
                let name = name.unwrap_or_default();
                gone.push(VmSummary { id: kept.vm, name, run_state: RunState::Off, full_disks: Vec::new() });
            }
        }
        Ok(gone)
    }

    /// Compares once. False if some VM was passed over.
    async fn look_who_is_here(&self) -> bool {
        match self.compare_presence().await {
            Ok(is_all) => is_all,
            Err(error) => {
                let error: &dyn std::error::Error = &error;
                tracing::info!(error, "it cannot be told which VMs are here");
                true
            }
        }
    }

    async fn compare_presence(&self) -> Result<bool> {
        let kept = self.0.store.kept().await?;
        let departed = self.departed_until_now();
        let here = self.vms().await?;
        self.end_departures(departed, &here).await;
        let here: BTreeSet<VmId> = here.into_iter().map(|vm| vm.id).collect();
        let mut is_all = true;
        for kept in kept {
            let is_here = here.contains(&kept.vm);
            if (is_here && kept.lost == 0) || (!is_here && kept.ready == 0) {
                continue;
            }
            // Whoever works on it finds out by itself; this waits for its end.
            let Ok(_permit) = self.0.gate.enter(kept.vm, OperationId::new()) else {
                is_all = false;
                continue;
            };
            if is_here {
                self.regain(kept.vm).await?;
            } else {
                self.lose(kept.vm).await?;
            }
        }
        Ok(is_all)
    }

    /// A list may be older than what it is held against.
    async fn lose(&self, vm: VmId) -> Result<()> {
        // A VM is gone before the event that tells why has come.
        tokio::time::sleep(BREATH).await;
        if !matches!(self.0.host.hypervisor.observe(vm).await, Err(HostError::NoSuchVm(_))) {
            return Ok(());
        }
        let (reason, message) = if self.has_migrated(vm) {
            (Reason::VmMigrated, "its VM is not on this node: it has migrated to another one")
        } else {
            let message =
                "its VM is not on this node: it was undefined, or transient and stopped, or it left unseen";
            (Reason::VmNotFound, message)
        };
        let why = Failure { reason, message: message.to_owned(), causes: Vec::new() };
        self.0.store.lose(vm, why, by_itself()).await?;
        self.settle_manifests();
        Ok(())
    }

    /// Lets snapshots of a VM that is here be READY again, if they have all they need.
    pub(super) async fn regain(&self, vm: VmId) -> Result<()> {
        let world = match observe::observe(self, vm, None).await {
            Ok(world) => world,
            // It cannot be looked at now; an event tells when it changes.
            Err(error) => {
                let error: &dyn std::error::Error = &error;
                tracing::info!(%vm, error, "a VM that is back cannot be looked at yet");
                return Ok(());
            }
        };
        if world.vm.attachment == Attachment::Gone {
            return Ok(());
        }
        let lost = world.tree.snapshots.iter().filter(|snapshot| snapshot.state == SnapshotState::Lost);
        let whole = lost.filter(|lost| plan::is_whole(&world, lost));
        let ids: Vec<SnapshotId> = whole.map(|snapshot| snapshot.id).collect();
        if !ids.is_empty() {
            self.0.store.regain(vm, ids, by_itself()).await?;
            self.settle_manifests();
        }
        Ok(())
    }
}

/// Until a VM may have come or gone. False when nothing will be told any more.
pub(super) async fn vm_changed(events: &mut broadcast::Receiver<HostEvent>) -> bool {
    loop {
        match events.recv().await {
            // Lost events may have been such a change.
            Ok(HostEvent::VmChanged(_)) | Err(RecvError::Lagged(_)) => return true,
            Ok(
                HostEvent::VmMigrated(_)
                | HostEvent::BlockJobChanged(_)
                | HostEvent::AgentChanged(_)
                | HostEvent::CaptureMoved(_)
                | HostEvent::ThresholdCrossed(_),
            ) => {}
            Err(RecvError::Closed) => return false,
        }
    }
}
