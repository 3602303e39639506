//! An operation: what was asked, the plan, how far it is, what was learned. Decides nothing of its own: the moves are
//! the cursor's. It is what the journal keeps, so a field here is a promise to the next version.

use std::collections::BTreeSet;
use std::path::Path;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::cursor::Cursor;
use super::ids::{LayerId, OperationId, SnapshotId, SnapshotName, VmId, VolumeId};
use super::layer::LayerTree;
use super::request::Request;
use super::snapshot::{Consistency, Snapshot, SnapshotState};
use super::step::{CatalogChange, NewVm, Step};
use super::vm::{Attachment, RunState};

pub use super::cursor::{Direction, Outcome, State as OperationState, Turn};

/// A mutation under way, or one that has ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Operation {
    /// Its identity.
    pub id: OperationId,
    /// The VM that it holds, or what stands for it.
    pub vm: VmId,
    /// The VM's name when it was asked for; that of the volume if no VM has it.
    pub vm_name: String,
    /// Whether there is a VM.
    #[serde(default)]
    pub attachment: Attachment,
    /// The snapshot that it is about; of several the first.
    pub snapshot: Option<SnapshotId>,
    /// That snapshot's name.
    pub snapshot_name: Option<SnapshotName>,
    /// What was asked.
    pub request: Request,
    /// Who asked.
    pub created_by: String,
    /// The client's name for the request; empty if it gave none.
    pub request_id: String,
    /// What will be done, in order.
    pub steps: Vec<Step>,
    /// How far it is.
    pub cursor: Cursor,
    /// The first cause of turning back or getting stuck.
    pub failure: Option<Failure>,
    /// What went wrong on the way back, or again and again on the way forward: kept beside the first cause.
    pub later_failure: Option<Failure>,
    /// What was learned on the way.
    pub findings: Findings,
    /// Somebody wants it undone.
    pub cancel_requested: bool,
    /// A person gave it up where it stood: it ended FAILED, and not all of it is undone.
    pub was_abandoned: bool,
    /// When it was asked for.
    pub created_at: Timestamp,
    /// When it last moved.
    pub updated_at: Timestamp,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
    /// Rises with every change that is shown.
    pub generation: u64,
}

impl Operation {
    /// Takes in the outcome of a turn, what was learned and what went wrong.
    pub fn record(&mut self, turn: Turn, outcome: Outcome, findings: Vec<Finding>, failure: Option<Failure>) {
        for finding in findings {
            self.findings.add(finding);
        }
        if let Some(failure) = failure {
            match self.failure {
                // A step that gives up is the cause by itself, whatever was overcome before.
                Some(_) if outcome != Outcome::GaveUp => self.later_failure = Some(failure),
                Some(_) | None => self.failure = Some(failure),
            }
        }
        self.cursor.record(turn, outcome);
        if self.cursor.state == OperationState::Succeeded {
            // What was overcome on the way is no longer the cause of anything.
            self.failure = None;
            self.later_failure = None;
        }
    }

    /// Stops where it stands: nothing of it is done or undone any more before a person has decided.
    pub fn hold(&mut self, why: Failure) {
        match self.failure {
            Some(_) => self.later_failure = Some(why),
            None => self.failure = Some(why),
        }
        self.cursor.hold();
    }

    /// Layers of a tree with images that it writes to, whether it comes through with it or not.
    #[must_use]
    pub fn written_layers(&self, tree: &LayerTree) -> BTreeSet<LayerId> {
        let merged = self.steps.iter().filter_map(|step| match step {
            Step::Record(CatalogChange::LayersMerged { merged }) => Some(merged),
            _ => None,
        });
        let merged = merged.flatten().flat_map(|merged| [merged.child, merged.base]);
        merged
            .chain(self.flattened_images().filter_map(|path| tree.layer_at(path)).map(|layer| layer.id))
            .collect()
    }

    /// Images that it lets stand alone without a VM. Trees of several VMs may have them.
    pub fn flattened_images(&self) -> impl Iterator<Item = &Path> {
        self.steps.iter().filter_map(|step| match step {
            Step::FlattenImage { image } => Some(image.path.as_path()),
            _ => None,
        })
    }

    /// Whether both are in the same state, at whatever step.
    #[must_use]
    pub fn is_in_state_of(&self, other: &Self) -> bool {
        std::mem::discriminant(&self.cursor.state) == std::mem::discriminant(&other.cursor.state)
    }

    /// Whether a wish to cancel can still be granted: before the commit step, and in one that can be ended from outside.
    #[must_use]
    pub fn can_cancel(&self) -> bool {
        self.cursor.can_cancel() || self.captures_memory() || self.flattens_offline()
    }

    /// The most that it copies for each disk, in bytes per second; None for no limit, or if it copies nothing.
    #[must_use]
    pub fn bandwidth(&self) -> Option<u64> {
        self.steps.iter().find_map(Step::bandwidth).flatten()
    }

    /// Whether another limit would be of use: it goes forward, and what it copies is not being copied already by a program that
    /// keeps the limit it was started with.
    #[must_use]
    pub fn can_limit(&self) -> bool {
        let OperationState::Running { at } = self.cursor.state else { return false };
        let is_open = |(step, place): (&Step, usize)| match step {
            Step::CopyImage(_) => place > at,
            step => place >= at && step.bandwidth().is_some(),
        };
        self.steps.iter().zip(0..).any(is_open)
    }

    /// Sets the limit on all that it copies.
    pub fn limit(&mut self, bandwidth: Option<u64>) {
        self.steps.iter_mut().filter_map(Step::bandwidth_mut).for_each(|limit| *limit = bandwidth);
    }

    fn flattens_offline(&self) -> bool {
        matches!(self.commit_step(), Some(Step::FlattenImage { .. }))
    }

    /// The commit step, while it is being done.
    fn commit_step(&self) -> Option<&Step> {
        let OperationState::Running { at } = self.cursor.state else { return None };
        self.steps.get(at).filter(|_| at == self.cursor.commit_point)
    }

    /// Whether memory is being captured.
    #[must_use]
    pub fn captures_memory(&self) -> bool {
        matches!(self.commit_step(), Some(Step::SwitchDisks(switch)) if switch.memory.is_some())
    }

    /// Whether memory is to be captured behind its guest's back.
    #[must_use]
    pub fn captures_in_background(&self) -> bool {
        self.steps.iter().any(|step| matches!(step, Step::CaptureMemory { .. }))
    }

    /// What the VM did when a create was planned.
    #[must_use]
    pub fn run_state_before(&self) -> Option<RunState> {
        self.steps.iter().find_map(|step| match step {
            Step::SwitchDisks(switch) => Some(switch.run_state),
            _ => None,
        })
    }

    /// The snapshots that it creates, deletes or goes back to.
    pub fn snapshots(&self) -> impl Iterator<Item = SnapshotId> {
        self.steps.iter().filter_map(|step| match step {
            Step::ReserveSnapshot { snapshot }
            | Step::MarkDeleting { snapshot, .. }
            | Step::MarkReverting { snapshot } => Some(*snapshot),
            _ => None,
        })
    }

    /// That nobody goes on with it, said of a snapshot that it was about. None if that is not in its midst: then it is what it is
    /// without it.
    #[must_use]
    pub fn abandonment(&self, snapshot: &Snapshot) -> Option<Failure> {
        let id = self.id;
        let (reason, message) = match snapshot.state {
            SnapshotState::Creating | SnapshotState::Deleting => {
                (Reason::Abandoned, format!("operation {id}, which was about it, was abandoned"))
            }
            // Nothing was written to what it reads.
            SnapshotState::Reverting => {
                (Reason::Declared, format!("operation {id}, which was to go back to it, was abandoned"))
            }
            SnapshotState::Ready | SnapshotState::Error | SnapshotState::Lost => return None,
        };
        Some(Failure { reason, message, causes: Vec::new() })
    }

    /// The volumes that it makes.
    pub fn new_volumes(&self) -> impl Iterator<Item = &VolumeId> {
        self.steps.iter().flat_map(|step| match step {
            Step::ReserveClones { clones } => clones.as_slice(),
            _ => &[],
        })
    }

    /// The VM that it makes.
    #[must_use]
    pub fn new_vm(&self) -> Option<&NewVm> {
        self.steps.iter().find_map(|step| match step {
            Step::DefineVm(new) => Some(new),
            _ => None,
        })
    }

    /// The VM that it holds. None if it is about a volume that no VM has.
    #[must_use]
    pub fn of_vm(&self) -> Option<VmId> {
        self.attachment.vm(self.vm)
    }

    /// The step that a turn is about.
    #[must_use]
    pub fn step(&self, turn: Turn) -> &Step {
        let (Turn::Ensure(at) | Turn::Undo(at)) = turn;
        &self.steps[at]
    }
}

/// Something learned while a step was done, that cannot be seen afterwards.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Finding {
    /// So many file systems were frozen.
    Frozen {
        /// How many.
        file_systems: u32,
    },
    /// They could not be frozen, or nobody asked; the reason follows "crash-consistent: ".
    NotFrozen {
        /// Why.
        reason: String,
    },
    /// They were thawed by somebody else before the switch was over.
    FreezeLost {
        /// How it came.
        reason: String,
    },
    /// So many were still frozen when they were thawed, after so many milliseconds.
    Thawed {
        /// How many.
        file_systems: u32,
        /// Milliseconds since the freeze was asked for.
        after_ms: f64,
    },
    /// The processors stood still.
    Paused {
        /// Milliseconds.
        ms: f64,
    },
    /// Memory was captured.
    Memory {
        /// Bytes of the image.
        bytes: u64,
    },
}

/// What was learned so far.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Findings {
    /// File systems frozen.
    pub frozen: Option<u32>,
    /// File systems still frozen at the thaw.
    pub thawed: Option<u32>,
    /// Why they were not frozen, or not long enough.
    pub crash_reason: Option<String>,
    /// Milliseconds from asking for the freeze to the proof of the thaw.
    pub frozen_ms: f64,
    /// Milliseconds that the processors stood still.
    pub paused_ms: f64,
    /// Bytes of the memory image.
    pub memory_bytes: Option<u64>,
    /// The daemon died in the midst of what cannot be gone on with: why it failed then says nothing of the next attempt.
    #[serde(default)]
    pub was_cut_short: bool,
}

impl Findings {
    /// Takes something in.
    pub fn add(&mut self, finding: Finding) {
        match finding {
            Finding::Frozen { file_systems } => self.frozen = Some(file_systems),
            Finding::NotFrozen { reason } | Finding::FreezeLost { reason } => {
                self.crash_reason = Some(reason);
            }
            Finding::Thawed { file_systems, after_ms } => {
                // A thaw that is repeated to be sure finds nothing: the first one tells.
                if self.thawed.is_none() {
                    self.thawed = Some(file_systems);
                    self.frozen_ms = after_ms;
                }
            }
            Finding::Paused { ms } => self.paused_ms = ms,
            Finding::Memory { bytes } => self.memory_bytes = Some(bytes),
        }
    }

    /// What a snapshot of disks of a running VM is worth. The thaw is the proof: it counts the file systems that were
    /// still frozen, so as many as were frozen means that none was thawed before the switch was over.
    #[must_use]
    pub fn disk_consistency(&self) -> Consistency {
        if let Some(reason) = &self.crash_reason {
            return Consistency::Crash(reason.clone());
        }
        match (self.frozen, self.thawed) {
            (Some(frozen), Some(thawed)) if frozen > 0 && thawed >= frozen => Consistency::FileSystem,
            (Some(0), _) => Consistency::Crash("the guest agent froze no file system".to_owned()),
            (Some(_), _) => {
                Consistency::Crash("the guest thawed by itself before the switch was over".to_owned())
            }
            (None, _) => Consistency::Crash("it is not known that the file systems were frozen".to_owned()),
        }
    }
}

/// Why an operation failed, in a form that outlives the process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The stable reason.
    pub reason: Reason,
    /// What happened, outermost layer first.
    pub message: String,
    /// The causes, each one layer deeper.
    pub causes: Vec<String>,
}

impl Failure {
    /// That somebody wanted it undone, in words.
    #[must_use]
    pub fn cancelled(message: &str) -> Self {
        Self { reason: Reason::Cancelled, message: message.to_owned(), causes: Vec::new() }
    }

    /// A failure with the chain of causes of `error`.
    #[must_use]
    pub fn new(reason: Reason, error: &(dyn std::error::Error + 'static)) -> Self {
        Self { reason, message: error.to_string(), causes: causes(error) }
    }
}

/// An error and what is behind it, in one line.
#[must_use]
pub fn in_one_line(error: &(dyn std::error::Error + 'static)) -> String {
    [error.to_string()].into_iter().chain(causes(error)).collect::<Vec<_>>().join(": ")
}

/// What is behind an error, each one layer deeper.
#[must_use]
pub fn causes(error: &(dyn std::error::Error + 'static)) -> Vec<String> {
    std::iter::successors(error.source(), |cause| cause.source()).map(ToString::to_string).collect()
}

/// The stable reasons that a client is told. `api` maps each to one of the contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, reason = "each is explained once, in proto/vmsnap/v1/errors.proto")]
pub enum Reason {
    PermissionDenied,
    Unauthenticated,
    ConfigurationInvalid,
    RateLimited,
    InvalidArgument,
    RequestIdReused,
    ResumeTokenInvalid,
    ResumeTokenExpired,
    PageTokenInvalid,
    VmNotFound,
    VmMigrated,
    DifferenceNotFound,
    SnapshotNotFound,
    OperationNotFound,
    DiskNotFound,
    SnapshotExists,
    ScheduleNotFound,
    ScheduleExists,
    ScheduleRunning,
    ScheduleLimit,
    Declared,
    Abandoned,
    RetentionMinimum,
    NameAmbiguous,
    VmBusy,
    OperationStuck,
    VmUnsettled,
    VmTransient,
    VmNotOutOfSpace,
    VmChanged,
    VmDisputed,
    ManagedSavePresent,
    DiskNotSupported,
    NoDisks,
    BlockJobActive,
    HostLacksFeature,
    MemoryNotSupported,
    AgentUnavailable,
    QuiesceFailed,
    InsufficientSpace,
    ImageMissing,
    ImageChanged,
    LayerInUse,
    VolumeInUse,
    VolumeNotFound,
    VolumeExists,
    VmExists,
    FileExists,
    PathNotAllowed,
    SnapshotNotReady,
    EtagMismatch,
    SnapshotHeld,
    HoldExists,
    HoldNotFound,
    CommentNotFound,
    LimitReached,
    NotCancellable,
    NotStuck,
    NothingToLimit,
    ResolutionNotOffered,
    HypervisorUnavailable,
    HypervisorRefused,
    CatalogFailed,
    Draining,
    DeadlineExceeded,
    TimedOut,
    MergeNotConverging,
    NotImplemented,
    Cancelled,
    Internal,
}
