//! One run of a schedule, and how it stands with each VM.
//!
//! ```text
//!   Waiting -> Pruning -> Done                    of a VM; each may be Done at once, with a failure
//!
//!   Running -> Succeeded | Partly | Failed        of the run, once all are Done
//! ```
//! Waiting lasts until a snapshot is there. An operation is asked for with a key made of the run and the VM, so that whoever goes
//! on with the run after a crash gets the same one; what is to be pruned is written before it is asked for. A take that only the
//! death of the daemon has undone is asked for once more, with another key: that it is the second is written before, too.

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::Schedule;
use crate::model::ids::{OperationId, ScheduleRunId, SnapshotId, VmId};
use crate::model::operation::Failure;

/// One run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ScheduleRun {
    /// Its identity.
    pub id: ScheduleRunId,
    /// The schedule as it was then: a run takes what it began with.
    pub schedule: Schedule,
    /// Which run of the schedule it is, from 1.
    pub count: u64,
    /// How it stands.
    pub state: RunState,
    /// When it was due; None for one that was asked for by hand.
    pub due_at: Option<Timestamp>,
    /// It makes up for runs that were missed. It does not prune: there are fewer snapshots than the policy thinks of.
    pub is_late: bool,
    /// When it began.
    pub started_at: Timestamp,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
    /// How it stands with each VM.
    pub vms: Vec<RunVm>,
    /// The names and UUIDs that the schedule gives and no VM has.
    #[serde(default)]
    pub missing: BTreeSet<String>,
}

/// How a run stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunState {
    /// Going.
    Running,
    /// Ended, every VM well, and all there that are named.
    Succeeded,
    /// Ended; some VMs failed, were skipped or not there, or have a snapshot and were not pruned.
    Partly,
    /// Ended, without a snapshot.
    Failed,
}

/// How a run stands with a VM.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunVm {
    /// The VM.
    pub vm: VmId,
    /// Its name.
    pub name: String,
    /// When it is its turn.
    pub turn_at: Timestamp,
    /// What it is at.
    pub stage: RunStage,
    /// The first take was undone because the daemon died in it, and this is another.
    #[serde(default)]
    pub is_second_take: bool,
    /// The operation that takes the snapshot.
    pub operation: Option<OperationId>,
    /// The snapshot that was taken.
    pub snapshot: Option<SnapshotId>,
    /// Why it failed, or was skipped.
    pub failure: Option<Failure>,
    /// Snapshots that are to go, as the retention said.
    pub doomed: Vec<SnapshotId>,
    /// What they take, in bytes.
    pub doomed_bytes: u64,
    /// How many went.
    pub pruned: u32,
    /// What that gave back, in bytes.
    pub pruned_bytes: u64,
}

/// What a run is at with a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunStage {
    /// There is no snapshot yet.
    Waiting,
    /// Snapshots are deleted.
    Pruning,
    /// All is over.
    Done,
}

impl RunVm {
    /// Nothing was done yet with a VM.
    #[must_use]
    pub fn new(vm: VmId, name: String, turn_at: Timestamp) -> Self {
        Self {
            vm,
            name,
            turn_at,
            stage: RunStage::Waiting,
            is_second_take: false,
            operation: None,
            snapshot: None,
            failure: None,
            doomed: Vec::new(),
            doomed_bytes: 0,
            pruned: 0,
            pruned_bytes: 0,
        }
    }
}

impl ScheduleRun {
    /// The same run when nothing more will be done with any VM. Where all that it selects by is on no VM it has nothing to fail at;
    /// a VM that it names has to be there.
    #[must_use]
    pub fn ended(self, at: Timestamp) -> Self {
        let all_well = self.missing.is_empty() && self.vms.iter().all(|vm| vm.failure.is_none());
        let state = if all_well {
            RunState::Succeeded
        } else if self.vms.iter().all(|vm| vm.snapshot.is_none()) {
            RunState::Failed
        } else {
            RunState::Partly
        };
        Self { state, ended_at: Some(at), ..self }
    }

    /// How many snapshots it pruned, and what that gave back, in bytes.
    #[must_use]
    pub fn pruned(&self) -> (u32, u64) {
        self.vms.iter().fold((0, 0), |(count, bytes), vm| (count + vm.pruned, bytes + vm.pruned_bytes))
    }
}
