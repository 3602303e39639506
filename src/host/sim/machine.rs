//! One simulated VM.
//!
//! Decides what belongs to a VM: what is stored, and what only a process has. Leaves how it changes to `world` and the
//! files beside it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::agent::AgentBehaviour;
use super::background::Background;
use super::capture::Capture;
use super::files::{Content, MemoryFile};
use super::job::Job;
use super::load::Load;
use super::served::Waits;
use crate::model::served::Served;
use crate::model::step::ImageRef;
use crate::model::vm::{ExcludedDisk, PauseReason, RefusedDisk, RunState, Uncovered};
use crate::model::{DiskTarget, IoLimits, Labels, VmId};

/// A VM, on or off.
#[derive(Debug, Clone)]
pub(super) struct Machine {
    pub(super) name: String,
    pub(super) labels: Labels,
    /// Whether the definition remains when it stops.
    pub(super) is_persistent: bool,
    pub(super) memory_bytes: u64,
    pub(super) memory_blocker: Option<String>,
    pub(super) background_blocker: Option<String>,
    pub(super) pull_blocker: Option<String>,
    /// The file with its UEFI variables.
    pub(super) variables: Option<PathBuf>,
    pub(super) uncovered: Vec<Uncovered>,
    /// Snapshots of the hypervisor's own, with the images that were made for them.
    pub(super) snapshots: Vec<(String, Vec<PathBuf>)>,
    /// What a definition names for disks that are not handled, and for such as only the stored one has.
    pub(super) other_files: Vec<PathBuf>,
    /// Disks of which no definition names the file.
    pub(super) unnamed_disks: Vec<DiskTarget>,
    pub(super) agent: AgentBehaviour,
    /// In the order of the definition.
    pub(super) slots: Vec<Slot>,
    /// What the stored definition lists below the images that it names. It lists nothing of a disk that is not here.
    pub(super) listed: BTreeMap<DiskTarget, Vec<PathBuf>>,
    /// What the stored definition names.
    pub(super) stored: BTreeMap<DiskTarget, ImageRef>,
    pub(super) managed_save: Option<MemoryFile>,
    /// The process, if there is one.
    pub(super) live: Option<Live>,
    /// What its process on another node reads through, if it has migrated there: active first. No lock of it is seen here.
    pub(super) elsewhere: Option<BTreeMap<DiskTarget, Vec<ImageRef>>>,
    /// Nobody has asked the hypervisor what the VM does since it went there.
    pub(super) has_left_unseen: bool,
    /// Whether the hypervisor knows of that: until it starts the VM, or starts anew itself.
    pub(super) is_known_to_have_left: bool,
    /// How many looks a capture of memory takes: the hypervisor's own, and one while the guest runs.
    pub(super) capture_notches: u32,
    pub(super) background_notches: u32,
    /// The newest of what the guest has written by itself.
    pub(super) written: BTreeMap<DiskTarget, Content>,
}

/// A place for a disk.
#[derive(Debug, Clone)]
pub(super) struct Slot {
    pub(super) target: DiskTarget,
    pub(super) kind: SlotKind,
}

#[derive(Debug, Clone)]
pub(super) enum SlotKind {
    /// A chain of images.
    Chain,
    Excluded(ExcludedDisk),
    Refused(RefusedDisk),
}

/// What a process has, and loses when it ends.
#[derive(Debug, Clone)]
pub(super) struct Live {
    /// Another one for each process of any VM.
    pub(super) process: u64,
    pub(super) run_state: RunState,
    /// The images that each disk reads through, active first. What the headers say is another matter.
    pub(super) chains: BTreeMap<DiskTarget, Vec<ImageRef>>,
    pub(super) memory: GuestMemory,
    /// How often it has written to its disks.
    pub(super) writes: u64,
    /// The disks whose file system is frozen.
    pub(super) frozen: BTreeSet<DiskTarget>,
    pub(super) jobs: BTreeMap<DiskTarget, Job>,
    pub(super) capture: Option<Capture>,
    pub(super) background: Option<Background>,
    /// What the guest writes by itself.
    pub(super) loads: BTreeMap<DiskTarget, Load>,
    /// What it may read and write; a disk that is not here is not limited.
    pub(super) limits: BTreeMap<DiskTarget, IoLimits>,
    /// What the guest asks for by itself, and what it was served.
    pub(super) served: BTreeMap<DiskTarget, (Waits, Served)>,
    /// The writes that found no space, by disk: they are tried again when the VM goes on.
    pub(super) stalled: BTreeMap<DiskTarget, (u64, u64)>,
    /// The lengths that are to be told of, by image.
    pub(super) thresholds: BTreeMap<PathBuf, u64>,
    /// The hypervisor believes something else of the chains than is so.
    pub(super) is_known_wrongly: bool,
    /// The hypervisor was interrupted while it started it: it ends it.
    pub(super) is_coming_up: bool,
}

/// What a guest has in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GuestMemory {
    /// Rises with everything that the guest does.
    pub counter: u64,
    /// Another one for each boot.
    pub token: u64,
}

/// What stands in a [`crate::host::Definition`] of this simulation.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Described {
    pub(super) vm: VmId,
    pub(super) disks: BTreeMap<DiskTarget, ImageRef>,
    pub(super) labels: BTreeMap<String, String>,
}

impl Machine {
    pub(super) fn run_state(&self) -> RunState {
        match (&self.live, self.is_known_to_have_left) {
            (Some(live), _) => live.run_state,
            (None, true) => RunState::Migrated,
            (None, false) => RunState::Off,
        }
    }

    /// The disks that had no space, while it is paused for them.
    pub(super) fn full_disks(&self) -> Vec<DiskTarget> {
        let live = self.live.as_ref().filter(|live| live.run_state == RunState::Paused(PauseReason::IoError));
        live.map(|live| live.stalled.keys().cloned().collect()).unwrap_or_default()
    }

    pub(super) fn slot(&self, target: &DiskTarget) -> Option<&Slot> {
        self.slots.iter().find(|slot| slot.target == *target)
    }

    /// The image that each disk writes to: now, if it is live; else at the next start.
    pub(super) fn active_images(&self) -> BTreeMap<DiskTarget, ImageRef> {
        let Some(live) = &self.live else { return self.stored.clone() };
        let active = |chain: &Vec<ImageRef>| chain.first().cloned();
        live.chains
            .iter()
            .filter_map(|(target, chain)| active(chain).map(|image| (target.clone(), image)))
            .collect()
    }
}
