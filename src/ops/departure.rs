//! VMs that have migrated to another node. Whether their definitions stay or follow, nothing is done to their disks until they
//! run here again: over storage that both nodes see, somebody writes to them.
//!
//! Decides when a departure begins and ends. It is told once, and libvirt itself forgets it with its next start: so it lasts,
//! and a restart of the daemon does not forget it. Looks at a VM that an operation rests on go through here.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{MutexGuard, PoisonError};

use tokio::sync::broadcast::error::RecvError;
use uuid::Uuid;

use super::{Engine, Result};
use crate::host::{HostError, HostEvent, Result as HostResult, VmSummary};
use crate::model::vm::PauseReason;
use crate::model::{RunState, VmId, VmView};
use crate::store::Departure;

impl Engine {
    /// Takes in what earlier lives have seen.
    pub(super) async fn remember_departures(&self) -> Result<()> {
        let known = self.0.store.departures().await?;
        self.departed().extend(known.into_iter().map(|departure| (departure.vm, departure)));
        Ok(())
    }

    /// Notes which VMs migrate, from now until the daemon goes down.
    pub(super) fn note_departures(&self) {
        let engine = self.clone();
        let mut events = self.0.host.hypervisor.events();
        self.0.tasks.spawn(async move {
            let stopping = engine.draining();
            loop {
                let event = tokio::select! {
                    biased;
                    () = stopping.cancelled() => return,
                    event = events.recv() => event,
                };
                match event {
                    Ok(HostEvent::VmMigrated(vm)) => engine.note_departure(vm).await,
                    Ok(_) | Err(RecvError::Lagged(_)) => {}
                    Err(RecvError::Closed) => return,
                }
            }
        });
    }

    async fn note_departure(&self, vm: VmId) {
        let departure = Departure { vm, mark: Uuid::now_v7() };
        // First: it counts at once, whatever the catalog says.
        self.departed().insert(vm, departure);
        if let Err(error) = self.0.store.put_departure(departure).await {
            let error: &dyn std::error::Error = &error;
            tracing::error!(%vm, error, "that a VM has migrated is known until the daemon ends only");
        }
    }

    /// A VM as it is, and whether it has migrated.
    pub(super) async fn look_at_vm(&self, vm: VmId) -> HostResult<VmView> {
        let departed = self.departed_until_now().into_iter().find(|departure| departure.vm == vm);
        let view = self.0.host.hypervisor.observe(vm).await?;
        if let Some(departure) = departed.filter(|_| executes_here(view.run_state)) {
            self.end_departure(departure).await;
        }
        let run_state = self.with_departure(vm, view.run_state).await;
        Ok(VmView { run_state, ..view })
    }

    /// A VM that went to another node and has one of the images, by name: as far as the definitions that stayed here tell, and
    /// the catalog of those that cannot be looked at.
    pub(super) async fn who_has_elsewhere(&self, images: &[&Path]) -> Result<Option<String>> {
        for vm in self.0.host.hypervisor.vms().await? {
            if self.with_departure(vm.id, vm.run_state).await != RunState::Migrated {
                continue;
            }
            // While one comes back libvirt lets everybody wait who asks about it.
            let seen = if vm.run_state.is_live() {
                Err(HostError::Migrated)
            } else {
                self.0.host.hypervisor.observe(vm.id).await
            };
            let has_it = match seen {
                Ok(view) => view.files().any(|file| images.contains(&file.as_path())),
                Err(HostError::NoSuchVm(_)) => false,
                Err(error @ HostError::Unreachable(_)) => return Err(error.into()),
                Err(_) => {
                    let tree = self.0.store.tree(vm.id).await?;
                    images.iter().any(|image| tree.layer_at(image).is_some())
                }
            };
            if has_it {
                return Ok(Some(vm.name));
            }
        }
        Ok(None)
    }

    /// What a VM does that was just seen to do this.
    pub(super) async fn with_departure(&self, vm: VmId, seen: RunState) -> RunState {
        match seen {
            // One that comes back is there before it executes here, and may fail to: then it goes on where it was. A start
            // that somebody tries may fail on the locks of the other node.
            RunState::Off | RunState::Unsettled | RunState::Paused(PauseReason::Snapshot)
                if self.has_migrated(vm) =>
            {
                RunState::Migrated
            }
            // Nobody here heard of it when it went.
            RunState::Migrated if !self.has_migrated(vm) => {
                self.note_departure(vm).await;
                seen
            }
            seen => seen,
        }
    }

    /// Whether a VM was seen to leave for another node, and not seen to run here since.
    pub(super) fn has_migrated(&self, vm: VmId) -> bool {
        self.departed().contains_key(&vm)
    }

    /// The departures that a look which begins now can end: one that it does not know may be newer than what it shows.
    pub(super) fn departed_until_now(&self) -> Vec<Departure> {
        self.departed().values().copied().collect()
    }

    /// Ends those of the VMs that execute here, or have done so.
    pub(super) async fn end_departures(&self, departed: Vec<Departure>, here: &[VmSummary]) {
        let is_back = |vm: VmId| here.iter().any(|here| here.id == vm && executes_here(here.run_state));
        for ended in departed.into_iter().filter(|departure| is_back(departure.vm)) {
            self.end_departure(ended).await;
        }
    }

    async fn end_departure(&self, ended: Departure) {
        if let Err(error) = self.0.store.clear_departure(ended).await {
            let error: &dyn std::error::Error = &error;
            tracing::warn!(vm = %ended.vm, error, "that a VM is back is noted at the next look");
            return;
        }
        self.departed().retain(|_, departure| *departure != ended);
    }

    fn departed(&self) -> MutexGuard<'_, BTreeMap<VmId, Departure>> {
        self.0.departed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a VM that had left is here. While it comes back it is called paused for a migration, or not settled, and may
/// yet execute on.
fn executes_here(run_state: RunState) -> bool {
    match run_state {
        RunState::Running
        | RunState::Paused(PauseReason::User | PauseReason::IoError | PauseReason::Other) => true,
        RunState::Paused(PauseReason::Snapshot)
        | RunState::Off
        | RunState::Migrated
        | RunState::Unsettled => false,
    }
}
