//! What guests and people do by themselves.

use std::path::PathBuf;

use vmsnap::host::sim::{AgentBehaviour, BLOCK};
use vmsnap::model::vm::PauseReason;
use vmsnap::model::{DifferenceAction, DifferenceKind, DiskTarget, RunState, VmId};
use vmsnap::ops::{Asked, Engine};

use crate::node::{Node, at_once};

impl Node {
    /// A guest writes a block.
    pub fn guest_writes(&mut self) {
        let vm = *self.pick(&self.vms.clone()).unwrap();
        let disk = self.disk_of(vm);
        if self.sim.is_elsewhere(vm) {
            self.write_elsewhere(vm, &disk);
        } else {
            self.write_block(vm, &disk);
        }
    }

    /// A guest on another node writes a block of a disk, over storage that both see.
    fn write_elsewhere(&mut self, vm: VmId, disk: &DiskTarget) {
        let (block, value) = (self.dice.u64(0..8), self.dice.u64(1..1000));
        let Some(image) = self.sim.image_of(vm, disk) else { return };
        if self.sim.write_image(&image, block, value).is_ok() {
            self.trace.push(format!("turn {}: {vm} writes {value} to {disk}[{block}] elsewhere", self.turn));
            self.oracle.vm(vm).reads.get_mut(disk).unwrap().content.insert(block, value);
        }
    }

    /// A guest writes a block of a disk.
    pub fn write_block(&mut self, vm: VmId, disk: &DiskTarget) {
        let (block, value) = (self.dice.u64(0..8), self.dice.u64(1..1000));
        let was_running = self.sim.run_state(vm) == Some(RunState::Running);
        let written = self.sim.guest_write(vm, disk, block, value);
        self.trace.push(format!("turn {}: {vm} writes {value} to {disk}[{block}]: {written:?}", self.turn));
        if written.is_ok() {
            self.tally.writes += 1;
            let reading = self.oracle.vm(vm).reads.get_mut(disk).unwrap();
            reading.content.insert(block, value);
        } else if matches!(self.sim.run_state(vm), Some(RunState::Paused(_))) {
            // There was no room, or it was paused before.
            self.oracle.vm(vm).may_be_paused = true;
            if was_running {
                self.oracle.vm(vm).stalled.insert(disk.clone(), (block, value));
            }
        }
    }

    /// Somebody does something that has nothing to do with snapshots.
    pub fn somebody_meddles(&mut self, engine: &Engine, may_ask: bool) {
        let vm = *self.pick(&self.vms.clone()).unwrap();
        let is_free = self.is_free(engine, vm);
        let state = self.sim.run_state(vm);
        let is_live = state.is_some_and(RunState::is_live);
        self.tally.meddled += 1;
        let what = self.dice.u32(0..14);
        self.trace.push(format!("turn {}: meddles {what} free {is_free}", self.turn));
        match what {
            // What comes from another node is let alone.
            0..=8 | 12 if self.sim.is_elsewhere(vm) && is_live => {}
            0 if is_live => {
                self.oracle.vm(vm).may_be_off = true;
                self.sim.someone_stops(vm);
            }
            // Whoever starts a VM while an operation has it off may start it from images that are about to change.
            1 if state == Some(RunState::Off) && is_free => self.sim.someone_starts(vm),
            2 if state == Some(RunState::Running) => {
                self.oracle.vm(vm).may_be_paused = true;
                self.sim.someone_pauses(vm, PauseReason::User);
            }
            3 if matches!(state, Some(RunState::Paused(_))) && is_free => self.sim.someone_resumes(vm),
            4 if is_free => self.somebody_resizes(vm),
            5 if matches!(state, Some(RunState::Off | RunState::Migrated)) => self.sim.someone_takes_away(vm),
            6 => self.sim.someone_brings_back(vm),
            7 if is_free => self.somebody_freezes(vm),
            8 => self.agent_changes(vm),
            9 | 10 => self.somebody_migrates(vm, state),
            11 => self.client_cancels(engine),
            12 if state == Some(RunState::Running) && is_free => self.somebody_overlays(vm),
            13 if may_ask => adopt(engine, vm),
            _ => {}
        }
    }

    pub fn agent_changes(&mut self, vm: VmId) {
        let behaviours = [
            AgentBehaviour::Obeys,
            AgentBehaviour::Obeys,
            AgentBehaviour::NotConnected,
            AgentBehaviour::Hangs,
            AgentBehaviour::RefusesToFreeze,
            AgentBehaviour::FreezesSilently,
            AgentBehaviour::FreezesAndFallsSilent,
            AgentBehaviour::ThawsByItself,
        ];
        let behaviour = *self.pick(&behaviours).unwrap();
        self.tally.odd_agents += u64::from(behaviour != AgentBehaviour::Obeys);
        self.sim.set_agent(vm, behaviour);
    }

    /// As `virsh snapshot-create-as` does. Some merge what they made back at once, and remove it.
    fn somebody_overlays(&mut self, vm: VmId) {
        let disk = self.disk_of(vm);
        let Some(below) = self.sim.image_of(vm, &disk) else { return };
        if self.by_hand.contains(&below) {
            // The first of two is never adopted: a person takes the second one back, by hand as well.
            return;
        }
        let path = PathBuf::from(format!("/images/{}", self.new_name("by-hand")));
        self.sim.someone_overlays(vm, &disk, &path);
        self.tally.by_hand += 1;
        if self.dice.bool() {
            self.by_hand.insert(path);
            return;
        }
        self.sim.someone_commits(vm, &disk, &path, &below);
        self.sim.someone_removes(&path);
    }

    /// Or lets a VM come back that has gone. libvirt, started anew, does not know that it has.
    fn somebody_migrates(&mut self, vm: VmId, state: Option<RunState>) {
        let is_live = state.is_some_and(RunState::is_live);
        if self.sim.is_elsewhere(vm) {
            let is_known =
                at_once(self.store.departures()).is_ok_and(|known| known.iter().any(|left| left.vm == vm));
            match self.dice.u32(0..6) {
                // It begins to come back, and may fail to. For one that was never seen to leave see docs/RELIABILITY.md.
                4 if !is_live && is_known => self.sim.someone_begins_to_bring_home(vm),
                4 | 5 if is_live => self.sim.someone_stops(vm),
                0 | 1 => self.sim.someone_brings_home(vm, true),
                2 => self.sim.someone_brings_home(vm, false),
                _ if is_known => self.sim.forgets_migration(vm),
                _ => {}
            }
        } else if state == Some(RunState::Running) {
            self.sim.someone_migrates(vm);
            let has_gone = self.sim.is_elsewhere(vm);
            self.oracle.vm(vm).may_be_off |= has_gone;
            self.tally.migrations += u64::from(has_gone);
        }
    }

    fn somebody_resizes(&mut self, vm: VmId) {
        let disk = self.disk_of(vm);
        let Some(size) = self.sim.disk_size(vm, &disk) else { return };
        self.sim.someone_resizes(vm, &disk, size + BLOCK * self.dice.u64(1..3));
        let size = self.sim.disk_size(vm, &disk).unwrap();
        self.oracle.vm(vm).reads.get_mut(&disk).unwrap().size = size;
    }

    /// Or thaws what somebody has frozen.
    fn somebody_freezes(&mut self, vm: VmId) {
        let is_frozen = self.sim.is_guest_frozen(vm);
        if is_frozen && !self.oracle.vm(vm).is_frozen_by_somebody {
            return;
        }
        self.oracle.vm(vm).is_frozen_by_somebody = false;
        self.sim.someone_freezes(vm, !is_frozen);
        let is_frozen = self.sim.is_guest_frozen(vm);
        self.oracle.vm(vm).is_frozen_by_somebody = is_frozen;
    }

    /// Whether no operation works on a VM, or will, and nobody may have frozen it.
    fn is_free(&self, engine: &Engine, vm: VmId) -> bool {
        let is_open = at_once(self.store.open_operations())
            .is_ok_and(|open| open.iter().any(|operation| operation.vm == vm));
        let has_lease =
            at_once(self.store.leases()).is_ok_and(|leases| leases.iter().any(|lease| lease.vm == vm));
        engine.holder(vm).is_none() && !is_open && !has_lease
    }

    fn disk_of(&mut self, vm: VmId) -> DiskTarget {
        let disks: Vec<DiskTarget> = self.oracle.vm(vm).reads.keys().cloned().collect();
        self.pick(&disks).unwrap().clone()
    }
}

/// A person who looks at what differs lets the daemon take it as it is.
pub fn adopt(engine: &Engine, vm: VmId) {
    let engine = engine.clone();
    tokio::spawn(async move {
        let found = engine.check_vm(vm).await.unwrap_or_default();
        let (way, overlay) = (DifferenceAction::Adopt, DifferenceKind::UnknownOverlay);
        for found in found.iter().filter(|found| found.kind == overlay && found.actions.contains(&way)) {
            let asked = Asked { by: "person".to_owned(), key: None, validate_only: false };
            // One that cannot be settled now is looked at again.
            let _ = engine.resolve_difference(vm, found.id(), way, asked).await;
        }
    });
}
