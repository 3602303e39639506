//! Memory in a snapshot: whether it can be captured, and how long the guest stands still for it.
//!
//! Decides between a capture behind the guest's back and one that the hypervisor makes with the disks. Leaves the rest of the
//! snapshot to `create`.

use std::path::PathBuf;

use crate::model::snapshot::SnapshotKind;
use crate::model::step::Step;
use crate::model::vm::{MemoryFormat, PauseReason};
use crate::model::{CreateSnapshot, Quiesce, RunState, SnapshotId};

use super::names::Content;
use super::{MemoryCompression, Refusal, World};

/// A pause takes a fraction of a second. One that takes as long as this has gone wrong, and ends.
const LONGEST_PAUSE_MS: u64 = 10_000;

/// The memory of a snapshot.
pub(super) struct Memory {
    /// Where it goes: absolute.
    pub(super) path: PathBuf,
    snapshot: SnapshotId,
    capture: Capture,
}

/// How memory is captured.
enum Capture {
    /// Behind the back of a guest that stands still for a moment.
    Background { timeout_ms: u64, format: MemoryFormat },
    /// By the hypervisor, of a VM that stands still all the time.
    StandsStill,
}

impl Memory {
    /// None if the request asks for none.
    pub(super) fn plan(
        world: &World,
        request: &CreateSnapshot,
        snapshot: SnapshotId,
    ) -> Result<Option<Self>, Refusal> {
        if !holds_memory(request) {
            return Ok(None);
        }
        check_memory(world, request)?;
        let path = Content::Memory.path(&world.places.memory, snapshot.0);
        Ok(Some(Self { path, snapshot, capture: decide_capture(world, request)? }))
    }

    /// What is done ahead.
    pub(super) fn prepare(&self) -> Step {
        let (snapshot, path) = (self.snapshot, self.path.clone());
        match self.capture {
            Capture::Background { format, .. } => Step::BeginMemoryImage { snapshot, path, format },
            Capture::StandsStill => Step::PrepareMemoryImage { path },
        }
    }

    /// What comes right before the switch.
    pub(super) fn before(&self) -> Option<[Step; 3]> {
        match self.capture {
            Capture::Background { timeout_ms, .. } => Some([
                Step::PrepareCapture { path: self.path.clone() },
                Step::PauseVm { snapshot: self.snapshot, timeout_ms },
                Step::CaptureMemory { path: self.path.clone() },
            ]),
            Capture::StandsStill => None,
        }
    }

    /// Where the hypervisor captures it together with the disks, if it does.
    pub(super) fn with_switch(&self) -> Option<PathBuf> {
        match self.capture {
            Capture::Background { .. } => None,
            Capture::StandsStill => Some(self.path.clone()),
        }
    }

    /// What comes after the switch, the last of them the one from which on nothing is taken back.
    pub(super) fn behind(&self) -> Option<[Step; 4]> {
        match self.capture {
            Capture::Background { .. } => Some([
                Step::ProveCapture { path: self.path.clone() },
                Step::ResumeVm,
                Step::AwaitMemory { path: self.path.clone() },
                Step::FinishMemoryImage { path: self.path.clone() },
            ]),
            Capture::StandsStill => None,
        }
    }

    /// That the guest of a running VM is held up, or that its memory takes more room than it was meant to.
    pub(super) fn warning(&self, world: &World) -> Option<String> {
        match (&self.capture, world.vm.run_state, &world.background_blocker) {
            (Capture::StandsStill, RunState::Running, Some(blocker)) => {
                Some(format!("the guest stands still until its memory is written: {blocker}"))
            }
            (Capture::Background { format: MemoryFormat::Raw, .. }, _, _) => {
                let blocker = world.compression_blocker.as_ref()?;
                Some(format!("the memory is not compressed: {blocker}"))
            }
            (_, _, _) => None,
        }
    }
}

pub(super) fn holds_memory(request: &CreateSnapshot) -> bool {
    request.kind == SnapshotKind::VmDisksAndMemory
}

/// What cannot be read again is not written.
fn decide_format(world: &World) -> MemoryFormat {
    match (world.memory_compression, &world.compression_blocker) {
        (MemoryCompression::Zstd, None) => MemoryFormat::Zstd,
        (MemoryCompression::Zstd, Some(_)) | (MemoryCompression::None, _) => MemoryFormat::Raw,
    }
}

fn decide_capture(world: &World, request: &CreateSnapshot) -> Result<Capture, Refusal> {
    match (world.vm.run_state, &world.background_blocker) {
        (RunState::Running, None) => {
            let timeout_ms = request.max_pause_ms.unwrap_or(LONGEST_PAUSE_MS).min(LONGEST_PAUSE_MS);
            Ok(Capture::Background { timeout_ms, format: decide_format(world) })
        }
        (RunState::Running, Some(blocker)) if request.max_pause_ms.is_some() => {
            Err(Refusal::PauseUnbounded(blocker.clone()))
        }
        // One that is paused stands still already.
        (_, _) => Ok(Capture::StandsStill),
    }
}

fn check_memory(world: &World, request: &CreateSnapshot) -> Result<(), Refusal> {
    if world.vm.run_state == RunState::Off {
        return Err(Refusal::NoMemoryWhenOff);
    }
    if !matches!(world.vm.run_state, RunState::Running | RunState::Paused(PauseReason::User)) {
        return Err(Refusal::VmUnsettled);
    }
    if let Some(blocker) = &world.vm.memory_blocker {
        return Err(Refusal::MemoryBlocked(blocker.clone()));
    }
    if !request.disks.is_empty() {
        return Err(Refusal::MemoryNeedsAllDisks);
    }
    if request.quiesce == Quiesce::Required {
        return Err(Refusal::MemoryNeedsNoQuiesce);
    }
    Ok(())
}
