//! A VM switched to other images, with its memory or without.
//!
//! Decides what libvirt checks of a switch, and what it does not: that is a violation of whoever asked. A capture of
//! memory keeps the VM paused; it goes on by notches, whether anybody waits for it or not.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::super::{DiskSwitch, HostError, HostEvent, Result};
use super::fault::Extent;
use super::files::{FileKind, MemoryFile};
use super::world::{World, refused};
use crate::model::step::ImageRef;
use crate::model::vm::{Format, MemoryFormat, PauseReason, RunState};
use crate::model::{DiskTarget, VmId};

const CALL: &str = "let the VM write to other images";

/// A capture of memory under way.
#[derive(Debug, Clone)]
pub(super) struct Capture {
    number: u64,
    disks: Vec<(DiskTarget, ImageRef)>,
    memory: PathBuf,
    /// What the VM did before, and does afterwards.
    was: RunState,
    notches: u32,
    notches_left: u32,
}

/// What a switch came to.
#[derive(Debug, Clone, Copy)]
pub(super) enum Switch {
    /// It is over.
    Done,
    /// Memory is being captured. It has this number.
    Capturing(u64),
}

impl World {
    /// See [`crate::host::Hypervisor::switch_disks`]. Half of it, without memory: QEMU has switched, and the stored
    /// definition does not know. Half of it, with memory: the VM is paused, the memory image is not complete, and the
    /// disks are not switched.
    pub(super) fn switch_disks(&mut self, vm: VmId, switch: &DiskSwitch, extent: Extent) -> Result<Switch> {
        self.check_switch(vm, switch)?;
        if self.machine(vm)?.live.is_none() {
            if extent == Extent::Whole {
                self.machine(vm)?.stored.extend(switch.disks.iter().cloned());
            }
            return Ok(Switch::Done);
        }
        if let Some(memory) = &switch.memory {
            self.is_not_left_on(vm, "memory is captured");
            return self.begin_capture(vm, switch, memory, extent);
        }
        self.switch_live(vm, &switch.disks, extent);
        Ok(Switch::Done)
    }

    fn check_switch(&mut self, vm: VmId, switch: &DiskSwitch) -> Result<()> {
        let machine = self.machine(vm)?;
        if matches!(machine.run_state(), RunState::Unsettled) {
            return Err(refused(CALL, "the VM is neither on nor off"));
        }
        if machine.live.as_ref().is_some_and(|live| live.capture.is_some()) {
            // libvirt would wait and do it all again afterwards, over disks that are switched already.
            let name = machine.name.clone();
            self.violate(format!("VM {name} is switched while its memory is being captured"));
            return Err(HostError::Busy("memory is being captured".into()));
        }
        if machine.live.is_none() && switch.memory.is_some() {
            return Err(refused(CALL, "a VM that is off has no memory"));
        }
        let has_job =
            |disk: &DiskTarget| machine.live.as_ref().is_some_and(|live| live.jobs.contains_key(disk));
        if let Some((disk, _)) = switch.disks.iter().find(|(disk, _)| has_job(disk)) {
            return Err(refused(CALL, format!("disk {disk} has a block job")));
        }
        let active = machine.active_images();
        let named: BTreeSet<&DiskTarget> =
            switch.disks.iter().map(|(disk, _)| disk).chain(&switch.others).collect();
        if let Some(disk) = named.iter().find(|disk| machine.slot(disk).is_none()) {
            return Err(refused(CALL, format!("the VM has no disk {disk}")));
        }
        // libvirt would make up a name for the overlay, and not find it.
        let is_forgotten = |disk: &&DiskTarget| !named.contains(disk);
        if let Some(disk) = active.keys().find(is_forgotten) {
            return Err(refused(CALL, format!("there is no overlay for disk {disk}")));
        }
        for (disk, overlay) in &switch.disks {
            let active =
                active.get(disk).ok_or_else(|| refused(CALL, format!("disk {disk} has no image")))?;
            self.check_overlay(vm, active, overlay)?;
        }
        Ok(())
    }

    /// Neither libvirt nor QEMU looks at what is in the overlay. It is a violation all the same.
    fn check_overlay(&mut self, vm: VmId, active: &ImageRef, overlay: &ImageRef) -> Result<()> {
        let path = &overlay.path;
        let image = self.files.image(path).map_err(|error| refused(CALL, error.to_string()))?;
        if overlay.format != Format::Qcow2 || image.format != Format::Qcow2 {
            return Err(refused(CALL, format!("{} is not qcow2", path.display())));
        }
        let expected = self.files.image(&active.path).map(|image| image.virtual_size).unwrap_or_default();
        let problem = if self.is_open(path) {
            return Err(refused(CALL, format!("{} is locked by a process", path.display())));
        } else if !image.blocks.is_empty() {
            "is not empty"
        } else if image.backing.as_ref() != Some(active) {
            "does not lie on the active image"
        } else if image.virtual_size != expected {
            "has another size than the image below"
        } else {
            return Ok(());
        };
        let name = self.machine(vm)?.name.clone();
        self.violate(format!("VM {name} is switched to {}, which {problem}", path.display()));
        Ok(())
    }

    /// All disks at one instant.
    pub(super) fn switch_live(&mut self, vm: VmId, disks: &[(DiskTarget, ImageRef)], extent: Extent) {
        for (disk, overlay) in disks {
            let machine = self.machines.get_mut(&vm);
            let Some(live) = machine.and_then(|machine| machine.live.as_mut()) else { return };
            let chain = live.chains.entry(disk.clone()).or_default();
            let before = chain.first().map(|image| image.path.clone());
            chain.insert(0, overlay.clone());
            if let (Some(before), Extent::Whole) = (before, extent) {
                self.store_if_named(vm, disk, &before, overlay.clone());
            }
        }
    }

    fn begin_capture(
        &mut self,
        vm: VmId,
        switch: &DiskSwitch,
        memory: &Path,
        extent: Extent,
    ) -> Result<Switch> {
        let machine = self.machine(vm)?;
        let (bytes, notches) = (machine.memory_bytes, machine.capture_notches);
        if let Some(blocker) = &machine.memory_blocker {
            return Err(refused(CALL, blocker.clone()));
        }
        let live = self.live(vm, CALL)?;
        if !live.jobs.is_empty() {
            return Err(refused(CALL, "a disk has a block job"));
        }
        let (was, held) = (live.run_state, live.memory);
        if self.files.holds_something(memory) {
            self.violate(format!("{} is written over by a capture of memory", memory.display()));
        }
        if self.files.free() < bytes {
            return Err(refused(CALL, "no space is left for the memory"));
        }
        self.files.remove(memory);
        let sources = self.machine(vm)?.active_images();
        let disks = self.contents(vm);
        let file = MemoryFile {
            vm,
            is_written: false,
            is_complete: false,
            bytes,
            format: MemoryFormat::Raw,
            memory: held,
            sources,
            disks,
        };
        self.files.create(memory, FileKind::Memory(file))?;
        self.captures += 1;
        let number = self.captures;
        let capture = Capture {
            number,
            disks: switch.disks.clone(),
            memory: memory.to_owned(),
            was,
            notches,
            notches_left: notches,
        };
        // A libvirtd that dies before it has noted the pause finds a VM that somebody must have paused.
        let pause = if self.script.dies_midway { PauseReason::User } else { PauseReason::Snapshot };
        if was == RunState::Running {
            self.set_run_state(vm, RunState::Paused(pause));
        }
        if extent == Extent::Half {
            return Ok(Switch::Done);
        }
        self.live(vm, CALL)?.capture = Some(capture);
        self.end_capture_if_complete(vm);
        Ok(Switch::Capturing(number))
    }

    /// Bytes of memory written and to be written.
    pub(super) fn memory_progress(&mut self, vm: VmId) -> Result<Option<(u64, u64)>> {
        let machine = self.machine(vm)?;
        let total = machine.memory_bytes;
        let capture = machine.live.as_ref().and_then(|live| live.capture.as_ref());
        let progress = capture.map(|capture| {
            let done = capture.notches - capture.notches_left;
            (total / u64::from(capture.notches.max(1)) * u64::from(done), total)
        });
        self.advance_capture(vm);
        Ok(progress)
    }

    /// See [`crate::host::Hypervisor::is_capturing`].
    pub(super) fn is_capturing(&mut self, vm: VmId) -> Result<bool> {
        let is_capturing = self.machine(vm)?.live.as_ref().is_some_and(|live| live.capture.is_some());
        self.advance_capture(vm);
        Ok(is_capturing)
    }

    pub(super) fn is_captured(&self, vm: VmId) -> bool {
        let live = self.machines.get(&vm).and_then(|machine| machine.live.as_ref());
        live.is_some_and(|live| live.capture.is_some())
    }

    pub(super) fn advance_capture(&mut self, vm: VmId) {
        let machine = self.machines.get_mut(&vm);
        let live = machine.and_then(|machine| machine.live.as_mut());
        let Some(capture) = live.and_then(|live| live.capture.as_mut()) else { return };
        capture.notches_left = capture.notches_left.saturating_sub(1);
        self.end_capture_if_complete(vm);
    }

    fn end_capture_if_complete(&mut self, vm: VmId) {
        let machine = self.machines.get_mut(&vm);
        let Some(live) = machine.and_then(|machine| machine.live.as_mut()) else { return };
        let Some(capture) = live.capture.take_if(|capture| capture.notches_left == 0) else { return };
        self.files.complete_memory(&capture.memory);
        self.switch_live(vm, &capture.disks, Extent::Whole);
        self.captured.insert(capture.number, Ok(()));
        if capture.was == RunState::Running {
            self.set_run_state(vm, RunState::Running);
        }
    }

    /// The capture comes to nothing: its image is gone, the disks are not switched.
    pub(super) fn break_capture(&mut self, vm: VmId, why: &str) -> bool {
        let machine = self.machines.get_mut(&vm);
        let Some(live) = machine.and_then(|machine| machine.live.as_mut()) else { return false };
        let Some(capture) = live.capture.take() else { return false };
        live.run_state = capture.was;
        self.files.remove(&capture.memory);
        self.captured.insert(capture.number, Err(refused(CALL, why)));
        self.emit(HostEvent::VmChanged(vm));
        true
    }

    /// See [`crate::host::Hypervisor::abort_memory_capture`].
    pub(super) fn abort_memory_capture(&mut self, vm: VmId, image: &Path) -> Result<()> {
        const ABORT: &str = "end the capture of memory";
        let capture = self.live(vm, ABORT)?.capture.as_ref();
        if capture.is_some_and(|capture| capture.memory == image)
            && self.break_capture(vm, "the capture was broken off")
        {
            return Ok(());
        }
        Err(refused(ABORT, "no memory is being captured"))
    }
}
