//! What guests do on the simulated node.
//!
//! Decides when a guest can write. What a guest reads is the oracle of every test: the contents, through the chain.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::super::{HostError, HostEvent, Result as HostResult};
use super::SimHost;
use super::files::{BLOCK, Content};
use super::machine::GuestMemory;
use super::world::World;
use crate::model::step::ImageRef;
use crate::model::vm::{Format, PauseReason, RunState};
use crate::model::{DiskTarget, VmId};

/// Why a guest cannot do something.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GuestError {
    /// There is no process.
    #[error("the VM is off")]
    Off,
    /// Its processors stand still.
    #[error("the VM is paused")]
    Paused,
    /// The file system on the disk is frozen.
    #[error("the file system is frozen")]
    Frozen,
    /// There is no such disk.
    #[error("the guest has no such disk")]
    NoSuchDisk,
    /// The disk is not that large.
    #[error("the disk ends before that block")]
    BeyondTheEnd,
}

impl World {
    pub(super) fn guest_write(
        &mut self,
        vm: VmId,
        disk: &DiskTarget,
        block: u64,
        value: u64,
    ) -> Result<(), GuestError> {
        let live = self.machines.get_mut(&vm).and_then(|machine| machine.live.as_mut());
        let live = live.ok_or(GuestError::Off)?;
        if live.run_state != RunState::Running {
            return Err(GuestError::Paused);
        }
        let active = live.chains.get(disk).and_then(|chain| chain.first()).ok_or(GuestError::NoSuchDisk)?;
        if live.frozen.contains(disk) {
            return Err(GuestError::Frozen);
        }
        let active = active.path.clone();
        let end = self.files.image(&active).map(|image| image.virtual_size).unwrap_or_default();
        if (block + 1) * BLOCK > end {
            return Err(GuestError::BeyondTheEnd);
        }
        live.memory.counter += 1;
        live.writes += 1;
        if self.files.write(&active, block, value).is_err() {
            live.stalled.insert(disk.clone(), (block, value));
            self.set_run_state(vm, RunState::Paused(PauseReason::IoError));
            return Err(GuestError::Paused);
        }
        if let Some(job) = live.jobs.get_mut(disk).filter(|job| job.top == active)
            && job.guest_wrote(block)
            && self.files.write(job.target(), block, value).is_err()
        {
            // It is copied when there is room; the guest has nothing to do with it.
            job.has_to_copy(block);
        }
        self.cross_threshold(vm, &active);
        Ok(())
    }

    /// As `block-set-write-threshold`: it is told once.
    fn cross_threshold(&mut self, vm: VmId, path: &Path) {
        let Ok(facts) = self.files.facts(path, Format::Qcow2) else { return };
        let Some(live) = self.machines.get_mut(&vm).and_then(|machine| machine.live.as_mut()) else { return };
        if live.thresholds.get(path).is_some_and(|threshold| facts.length > *threshold) {
            live.thresholds.remove(path);
            self.emit(HostEvent::ThresholdCrossed(vm));
        }
    }

    /// See [`crate::host::Hypervisor::set_block_threshold`].
    pub(super) fn set_threshold(&mut self, vm: VmId, disk: &DiskTarget, bytes: u64) -> HostResult<()> {
        let live = self.live(vm, "watch an image grow")?;
        let chain = live.chains.get(disk).and_then(|chain| chain.first());
        let active = chain.ok_or_else(|| HostError::NoSuchDisk(disk.clone()))?.path.clone();
        live.thresholds.insert(active, bytes);
        Ok(())
    }

    /// What found no space is written now. QEMU does not tell the guest of it before that.
    pub(super) fn write_stalled(&mut self, vm: VmId) {
        let Some(live) = self.machines.get_mut(&vm).and_then(|machine| machine.live.as_mut()) else { return };
        for (disk, (block, value)) in std::mem::take(&mut live.stalled) {
            // One that fails stalls again.
            let _ = self.guest_write(vm, &disk, block, value);
        }
    }

    /// The image that a disk of a VM is written to, or would be after a start.
    pub(super) fn active_image(&self, vm: VmId, disk: &DiskTarget) -> Option<ImageRef> {
        let machine = self.machines.get(&vm)?;
        match &machine.live {
            Some(live) => live.chains.get(disk)?.first().cloned(),
            None => machine.stored.get(disk).cloned(),
        }
    }

    /// What each disk of a VM reads: through the chains of the process, or as the headers say if it is off.
    pub(super) fn contents(&self, vm: VmId) -> BTreeMap<DiskTarget, Content> {
        let Some(machine) = self.machines.get(&vm) else { return BTreeMap::new() };
        match &machine.live {
            Some(live) => {
                live.chains.iter().map(|(disk, chain)| (disk.clone(), self.files.content(chain))).collect()
            }
            None => self.boot_contents(vm),
        }
    }

    /// What each disk of a VM would read after a cold start: as the stored definition and the headers say.
    fn boot_contents(&self, vm: VmId) -> BTreeMap<DiskTarget, Content> {
        let stored = self.machines.get(&vm).into_iter().flat_map(|machine| &machine.stored);
        stored
            .filter_map(|(disk, image)| Some((disk.clone(), self.files.chain(image).ok()?)))
            .map(|(disk, chain)| (disk, self.files.content(&chain)))
            .collect()
    }
}

/// What guests do.
impl SimHost {
    /// The guest writes one block.
    pub fn guest_write(&self, vm: VmId, disk: &DiskTarget, block: u64, value: u64) -> Result<(), GuestError> {
        self.world().guest_write(vm, disk, block, value)
    }

    /// What the guest reads from one block; of a VM that is off, what it would read after a start.
    pub fn guest_read(&self, vm: VmId, disk: &DiskTarget, block: u64) -> Result<u64, GuestError> {
        let contents = self.disk_contents(vm, disk).ok_or(GuestError::NoSuchDisk)?;
        Ok(contents.get(&block).copied().unwrap_or(0))
    }

    /// All that the guest reads from a disk; of a VM that is off, what it would read after a start. None if there is
    /// no such disk, or a chain is broken.
    #[must_use]
    pub fn disk_contents(&self, vm: VmId, disk: &DiskTarget) -> Option<Content> {
        self.world().contents(vm).remove(disk)
    }

    /// What the guest would read from its disks after a cold start, if all it has written were flushed.
    #[must_use]
    pub fn boot_contents(&self, vm: VmId) -> BTreeMap<DiskTarget, Content> {
        self.world().boot_contents(vm)
    }

    /// What the guest has in memory. None if it is off.
    #[must_use]
    pub fn guest_memory(&self, vm: VmId) -> Option<GuestMemory> {
        self.world().machines.get(&vm)?.live.as_ref().map(|live| live.memory)
    }

    /// The VM's QEMU has learned to capture memory while the guest runs. That takes so many looks.
    pub fn learns_to_capture_behind(&self, vm: VmId, notches: u32) {
        self.change(|world| {
            if let Some(machine) = world.machines.get_mut(&vm) {
                machine.background_blocker = None;
                machine.background_notches = notches;
            }
        });
    }

    /// Whether somebody has begun to capture its memory behind its guest's back, and nobody has ended that.
    #[must_use]
    pub fn is_captured_behind(&self, vm: VmId) -> bool {
        let world = self.world();
        let live = world.machines.get(&vm).and_then(|machine| machine.live.as_ref());
        live.is_some_and(|live| live.background.is_some())
    }

    /// What the disks read in the moment of which a complete memory image is.
    #[must_use]
    pub fn kept_disks(&self, path: &Path) -> Option<BTreeMap<DiskTarget, Content>> {
        let world = self.world();
        world.files.memory(path).ok().filter(|file| file.is_complete).map(|file| file.disks.clone())
    }

    /// What a complete memory image holds.
    #[must_use]
    pub fn kept_memory(&self, path: &Path) -> Option<GuestMemory> {
        let world = self.world();
        world.files.memory(path).ok().filter(|file| file.is_complete).map(|file| file.memory)
    }

    /// How large the guest sees a disk, in bytes; of a VM that is off, how large it would. None if there is no such disk.
    #[must_use]
    pub fn disk_size(&self, vm: VmId, disk: &DiskTarget) -> Option<u64> {
        let world = self.world();
        let active = world.active_image(vm, disk)?;
        world.files.image(&active.path).ok().map(|image| image.virtual_size)
    }

    /// How large an image is for who reads it, in bytes.
    pub fn image_size(&self, path: &Path) -> HostResult<u64> {
        Ok(self.world().files.image(path)?.virtual_size)
    }

    /// What an image reads through its chain, as a fresh process would see it.
    pub fn read_image(&self, path: &Path) -> HostResult<Content> {
        let world = self.world();
        let format = world.files.image(path)?.format;
        let chain = world.files.chain(&ImageRef { path: path.to_owned(), format })?;
        Ok(world.files.content(&chain))
    }

    /// Whether any file system of the guest is frozen.
    #[must_use]
    pub fn is_guest_frozen(&self, vm: VmId) -> bool {
        let world = self.world();
        let live = world.machines.get(&vm).and_then(|machine| machine.live.as_ref());
        live.is_some_and(|live| !live.frozen.is_empty())
    }

    /// The file with the UEFI variables of a VM.
    #[must_use]
    pub fn variables(&self, vm: VmId) -> Option<PathBuf> {
        self.world().machines.get(&vm).and_then(|machine| machine.variables.clone())
    }

    /// The VM of this name.
    #[must_use]
    pub fn find_vm(&self, name: &str) -> Option<VmId> {
        self.world().machines.iter().find(|(_, machine)| machine.name == name).map(|(id, _)| *id)
    }

    /// What the VM does, whatever the link says. None if there is no such VM.
    #[must_use]
    pub fn run_state(&self, vm: VmId) -> Option<RunState> {
        self.world().machines.get(&vm).map(super::machine::Machine::run_state)
    }
}
