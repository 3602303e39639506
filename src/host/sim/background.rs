//! Memory that is written behind a running guest's back.
//!
//! Decides what stands in the image: the memory, and what the disks read, of the moment in which it was begun. It goes on by
//! notches, whether anybody looks or not, and ends with the process; compressed, with whoever compresses it, too.

use std::path::{Path, PathBuf};
use std::sync::Weak;

use super::super::{BackgroundCapture, HostError, HostEvent, Result};
use super::files::{FileKind, MemoryFile, bad};
use super::machine::Machine;
use super::world::{World, refused};
use crate::model::VmId;
use crate::model::vm::{MemoryFormat, PauseReason, RunState};

/// What stands in the way where nobody has said that nothing does.
pub(super) const NO_BACKGROUND: &str = "this QEMU cannot keep apart what a guest changes";

const CALL: &str = "capture memory";

/// All guests hold the same.
const COMPRESSED_BY: u64 = 4;

/// A background capture that nobody has ended yet. As long as there is one the VM cannot be migrated.
#[derive(Debug, Clone)]
pub(super) struct Background {
    image: PathBuf,
    stage: Stage,
    /// How often the guest had written to its disks when it was begun.
    writes: u64,
    /// Who prepared it, and compresses it on its way if it is to be.
    user: Weak<()>,
    format: MemoryFormat,
    /// Not all that QEMU has written was seen in the image yet.
    is_behind: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Stage {
    /// Nothing is captured yet.
    Prepared,
    Active {
        notches: u32,
        left: u32,
    },
    Complete,
    Failed(&'static str),
}

impl Background {
    /// Whether memory is being written.
    pub(super) fn is_active(&self) -> bool {
        matches!(self.stage, Stage::Active { .. })
    }

    /// Whether it can be begun, by whoever has prepared it.
    fn is_prepared(&self, image: &Path) -> bool {
        self.image == image && self.stage == Stage::Prepared && !is_gone(&self.user)
    }
}

/// Nobody reads any more what QEMU writes.
fn is_gone(user: &Weak<()>) -> bool {
    user.strong_count() == 0
}

impl World {
    /// See [`crate::host::Hypervisor::background_blocker`].
    pub(super) fn background_blocker(&mut self, vm: VmId) -> Result<Option<String>> {
        self.live(vm, CALL)?;
        Ok(self.machine(vm)?.background_blocker.clone())
    }

    /// See [`crate::host::Hypervisor::prepare_background_capture`].
    pub(super) fn prepare_background(&mut self, vm: VmId, image: &Path, user: Weak<()>) -> Result<()> {
        self.live(vm, CALL)?;
        if let Some(blocker) = self.background_blocker(vm)? {
            return Err(refused(CALL, blocker));
        }
        let FileKind::MemoryHeader(format) = self.files.get(image)?.kind else {
            return Err(bad(image, "it is not an unfinished memory image"));
        };
        self.end_background(vm)?;
        let is_behind = format == MemoryFormat::Zstd;
        let background = Background {
            image: image.to_owned(),
            stage: Stage::Prepared,
            writes: 0,
            user,
            format,
            is_behind,
        };
        self.live(vm, CALL)?.background = Some(background);
        Ok(())
    }

    /// See [`crate::host::Hypervisor::begin_background_capture`].
    pub(super) fn begin_background(&mut self, vm: VmId, image: &Path) -> Result<()> {
        let live = self.live(vm, CALL)?;
        if live.run_state != RunState::Paused(PauseReason::User) {
            return Err(refused(CALL, "somebody has resumed the VM"));
        }
        let (memory, writes) = (live.memory, live.writes);
        let Some(format) = live.background.as_ref().filter(|it| it.is_prepared(image)).map(|it| it.format)
        else {
            return Err(refused(CALL, "nobody has prepared it"));
        };
        let machine = self.machine(vm)?;
        let (bytes, notches, sources) =
            (machine.memory_bytes, machine.background_notches, machine.active_images());
        let stage = if self.files.free() < bytes {
            Stage::Failed("no space is left")
        } else {
            let disks = self.contents(vm);
            let bytes = match format {
                MemoryFormat::Raw => bytes,
                MemoryFormat::Zstd => bytes / COMPRESSED_BY,
            };
            let file = MemoryFile {
                vm,
                is_written: false,
                is_complete: false,
                bytes,
                format,
                memory,
                sources,
                disks,
            };
            self.files.put_memory(image, file)?;
            Stage::Active { notches, left: notches }
        };
        if let Some(background) = &mut self.live(vm, CALL)?.background {
            (background.stage, background.writes) = (stage, writes);
        }
        self.note_end_of_background(vm);
        Ok(())
    }

    /// See [`crate::host::Hypervisor::prove_background_capture`].
    pub(super) fn prove_background(&mut self, vm: VmId, image: &Path) -> Result<()> {
        let live = self.live(vm, CALL)?;
        let Some(background) = live.background.as_ref().filter(|background| background.image == image) else {
            return Err(refused(CALL, "nobody has begun it"));
        };
        match &background.stage {
            Stage::Prepared => return Err(refused(CALL, "nobody has begun it")),
            Stage::Failed(why) => return Err(refused(CALL, *why)),
            Stage::Active { .. } | Stage::Complete => {}
        }
        if live.run_state != RunState::Paused(PauseReason::User) {
            return Err(refused(CALL, "somebody has resumed the VM"));
        }
        if live.writes != background.writes {
            let problem =
                "the guest has used its disks meanwhile: somebody has resumed it, and paused it again";
            return Err(refused(CALL, problem));
        }
        Ok(())
    }

    /// See [`crate::host::Hypervisor::background_capture`].
    pub(super) fn look_at_background(&mut self, vm: VmId, image: &Path) -> Result<BackgroundCapture> {
        self.note_end_of_background(vm);
        let machine = self.machine(vm)?;
        let total = machine.memory_bytes;
        let background = machine.live.as_mut().and_then(|live| live.background.as_mut());
        let mut background = background.filter(|background| background.image == image);
        let is_behind = background.as_mut().is_some_and(|background| {
            background.stage == Stage::Complete && std::mem::take(&mut background.is_behind)
        });
        let seen = match background.map(|background| &background.stage) {
            None | Some(Stage::Prepared) => BackgroundCapture::None,
            Some(Stage::Complete) if is_behind => BackgroundCapture::Following { total },
            Some(Stage::Complete) => BackgroundCapture::Complete,
            Some(Stage::Failed(why)) => BackgroundCapture::Failed((*why).to_owned()),
            Some(Stage::Active { notches, left }) => {
                let done = total / u64::from((*notches).max(1)) * u64::from(notches - left);
                BackgroundCapture::Active { done, total }
            }
        };
        self.advance_background(vm);
        Ok(seen)
    }

    /// See [`crate::host::Hypervisor::end_background_capture`].
    pub(super) fn end_background(&mut self, vm: VmId) -> Result<()> {
        if let Some(live) = self.machine(vm)?.live.as_mut() {
            live.background = None;
        }
        Ok(())
    }

    pub(super) fn advance_background(&mut self, vm: VmId) {
        if self.storage_hangs {
            return;
        }
        let live = self.machines.get_mut(&vm).and_then(|machine| machine.live.as_mut());
        let Some(background) = live.and_then(|live| live.background.as_mut()) else { return };
        if let Stage::Active { left, .. } = &mut background.stage {
            *left = left.saturating_sub(1);
        }
        self.note_end_of_background(vm);
    }

    fn note_end_of_background(&mut self, vm: VmId) {
        let live = self.machines.get_mut(&vm).and_then(|machine| machine.live.as_mut());
        let Some(background) = live.and_then(|live| live.background.as_mut()) else { return };
        if background.format == MemoryFormat::Zstd && is_gone(&background.user) {
            background.stage = Stage::Failed("whoever compressed the memory is gone");
        }
        if matches!(background.stage, Stage::Active { left: 0, .. }) {
            background.stage = Stage::Complete;
            let image = background.image.clone();
            self.files.memory_is_written(&image);
            self.emit(HostEvent::CaptureMoved(vm));
        }
    }

    /// Nobody attends a capture while something takes hours.
    pub(super) fn nothing_is_captured(&mut self, vm: VmId, what: &str) {
        let live = self.machines.get(&vm).and_then(|machine| machine.live.as_ref());
        if live.is_some_and(|live| live.background.is_some()) {
            self.violate(format!("VM {vm}: {what}, and a background capture was not ended"));
        }
    }

    /// Whoever captures the memory of the VM now does so as a background snapshot, too.
    pub(super) fn is_not_left_on(&mut self, vm: VmId, what: &str) {
        let live = self.machines.get(&vm).and_then(|machine| machine.live.as_ref());
        if live.is_some_and(|live| live.background.as_ref().is_some_and(|it| !it.is_active())) {
            self.violate(format!("VM {vm}: {what}, and a background capture was never ended"));
        }
    }

    /// See [`crate::host::Hypervisor::process_state`].
    pub(super) fn process_state(&mut self, vm: VmId) -> Result<Option<RunState>> {
        Ok(self.machine(vm)?.live.as_ref().map(|live| live.run_state))
    }

    /// See [`crate::host::EmergencyThaw::resume_now`].
    pub(super) fn resume_and_prove(&mut self, vm: VmId) -> Result<bool> {
        let ours = RunState::Paused(PauseReason::User);
        match self.machines.get(&vm).map(Machine::run_state) {
            Some(run_state) if run_state == ours => self.resume(vm).map(|()| true),
            Some(RunState::Unsettled) => Ok(false),
            _ => Ok(true),
        }
    }

    /// See [`crate::host::Hypervisor::pause`].
    pub(super) fn pause(&mut self, vm: VmId) -> Result<()> {
        const CALL: &str = "pause the VM";
        let live = self.live(vm, CALL)?;
        if live.capture.is_some() {
            return Err(HostError::Busy("memory is being captured".into()));
        }
        match live.run_state {
            RunState::Running => self.set_run_state(vm, RunState::Paused(PauseReason::User)),
            // libvirt lets it be (`qemuDomainSuspend`).
            RunState::Paused(_) => {}
            RunState::Off | RunState::Migrated | RunState::Unsettled => {
                return Err(refused(CALL, "the VM does not run"));
            }
        }
        Ok(())
    }
}
