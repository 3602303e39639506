//! A snapshot and its states. Decides which states exist; `plan` decides who may leave them.
//!
//! ```text
//!   (nothing) -> Creating -> Ready -> Deleting -> (nothing)
//!                   |        ^   |
//!                   v        |   v
//!               (nothing)   Reverting
//!
//!                            Ready <--> Lost -> Deleting -> (nothing)
//! ```
//! `Error` is entered from any state, when what the snapshot reads cannot be vouched for; it is left for `Ready` where nothing but
//! a person's word was why (`model::declaration`), and else by a deletion or a purge. `Lost` is entered when the VM
//! leaves the node, or when a person says that a file of the snapshot is; it is left when all is there again as it was, or
//! when a person purges or deletes the snapshot.

use std::fmt;
use std::path::PathBuf;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::access::Labels;
use super::edit::Hold;
use super::ids::{DiskTarget, LayerId, OperationId, ScheduleId, SnapshotId, SnapshotName, VmId, VolumeId};
use super::operation::{Failure, Reason};
use super::vm::{Attachment, RunState};

/// A point in time of a VM that one can go back to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Its identity.
    pub id: SnapshotId,
    /// Its VM, or what stands for it.
    pub vm: VmId,
    /// The VM's name when it was taken; that of the volume if no VM had it.
    pub vm_name: String,
    /// Whether there was a VM.
    #[serde(default)]
    pub attachment: Attachment,
    /// Its name, unique within the VM.
    pub name: SnapshotName,
    /// A name for people: any text.
    pub display_name: String,
    /// Any text.
    pub description: String,
    /// What it holds.
    pub kind: SnapshotKind,
    /// Where it is in its life.
    pub state: SnapshotState,
    /// Why it is in error, or lost.
    #[serde(default)]
    pub trouble: Option<Failure>,
    /// The snapshot that the VM descended from when this one was taken; None for one of a volume.
    pub parent: Option<SnapshotId>,
    /// The VM's snapshot that this one, of a volume, was taken out of.
    pub source: Option<SnapshotId>,
    /// The disks it holds. Empty until it is ready.
    pub disks: Vec<SnapshotDisk>,
    /// The memory image it holds.
    pub memory: Option<MemoryImage>,
    /// The UEFI variables that it holds.
    pub variables: Option<KeptVariables>,
    /// What the VM did at that moment.
    pub run_state: RunState,
    /// How good the data is. None until it is ready.
    pub consistency: Option<Consistency>,
    /// How long the guest's file systems stood still, in milliseconds.
    pub frozen_ms: f64,
    /// How long the guest's processors stood still, in milliseconds.
    pub paused_ms: f64,
    /// Who owns it.
    pub owner: Owner,
    /// Key and value pairs of the user.
    pub properties: std::collections::BTreeMap<String, String>,
    /// Why it must not be deleted.
    pub holds: Vec<Hold>,
    /// How many comments there are under it.
    pub comments: u32,
    /// When it is to be deleted by itself; None for never. A hold keeps it past that.
    pub expires_at: Option<Timestamp>,
    /// When it was asked for.
    pub created_at: Timestamp,
    /// Who asked for it.
    pub created_by: String,
    /// The schedule that made it, which may be gone.
    #[serde(default)]
    pub schedule: Option<ScheduleId>,
    /// The operation that made it.
    pub operation: OperationId,
    /// Rises with every change. The `etag` of the contract.
    pub generation: u64,
}

impl Snapshot {
    /// Lets it be in a state. One that is READY has no trouble any more.
    pub fn enter(&mut self, state: SnapshotState) {
        self.state = state;
        if state == SnapshotState::Ready {
            self.trouble = None;
        }
    }

    /// Its VM. None if it is of a volume that no VM had.
    #[must_use]
    pub fn of_vm(&self) -> Option<VmId> {
        self.attachment.vm(self.vm)
    }

    /// Whether it is LOST because its VM has left, and READY again when that is back.
    #[must_use]
    pub fn has_left(&self) -> bool {
        let by_vm = |why: &Failure| matches!(why.reason, Reason::VmNotFound | Reason::VmMigrated);
        self.state == SnapshotState::Lost && self.trouble.as_ref().is_none_or(by_vm)
    }

    /// Whether it is in ERROR for no other reason than that somebody has said so: what it reads may be as it was.
    #[must_use]
    pub fn is_only_declared(&self) -> bool {
        let by_word = |why: &Failure| why.reason == Reason::Declared;
        self.state == SnapshotState::Error && self.trouble.as_ref().is_some_and(by_word)
    }

    /// Whether it is known that it does not read what it should.
    #[must_use]
    pub fn is_given_up(&self) -> bool {
        let is_in_error = self.state == SnapshotState::Error && !self.is_only_declared();
        is_in_error || (self.state == SnapshotState::Lost && !self.has_left())
    }

    /// Whether it is LOST because a file was not there when somebody gave it up: the file may come back.
    #[must_use]
    pub fn misses_a_file(&self) -> bool {
        let by_file = |why: &Failure| why.reason == Reason::ImageMissing;
        self.state == SnapshotState::Lost && self.trouble.as_ref().is_some_and(by_file)
    }
}

/// What people write on a snapshot when they ask for it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Label {
    /// Its name; None to have one made from the time.
    pub name: Option<SnapshotName>,
    /// A name for people.
    pub display_name: String,
    /// Any text.
    pub description: String,
    /// Who owns it.
    pub owner: Owner,
    /// Key and value pairs of the user.
    pub properties: std::collections::BTreeMap<String, String>,
    /// When it is to be deleted by itself; None for never.
    pub expires_at: Option<Timestamp>,
    /// The schedule that it is taken for.
    #[serde(default)]
    pub schedule: Option<ScheduleId>,
}

/// The account, domain and project of a cloud that a snapshot belongs to. Each may be empty.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// Account.
    pub account: String,
    /// Tenant domain; nothing to do with libvirt's.
    pub domain: String,
    /// Project.
    pub project: String,
}

impl Owner {
    /// The same, and of what is left empty the one that is written on the VM.
    #[must_use]
    pub fn or_of(self, vm: &Labels) -> Self {
        let filled = |own: String, key: &str| {
            if own.is_empty() { vm.0.get(key).cloned().unwrap_or_default() } else { own }
        };
        Self {
            account: filled(self.account, "account"),
            domain: filled(self.domain, "domain"),
            project: filled(self.project, "project"),
        }
    }
}

/// What a snapshot holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SnapshotKind {
    /// Disks of a VM.
    VmDisks,
    /// Disks of a VM and its memory, of one instant.
    VmDisksAndMemory,
    /// One volume.
    Volume,
}

/// Where a snapshot is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SnapshotState {
    /// Being made. It ends ready, or it is gone.
    Creating,
    /// Reads what it should.
    Ready,
    /// The VM is on its way back to it.
    Reverting,
    /// On its way out. It may no longer be reverted to.
    Deleting,
    /// What it reads cannot be vouched for.
    Error,
    /// Its VM has left the node, or a file of it; the others are kept.
    Lost,
}

impl fmt::Display for SnapshotState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Creating => "CREATING",
            Self::Ready => "READY",
            Self::Reverting => "REVERTING",
            Self::Deleting => "DELETING",
            Self::Error => "in ERROR",
            Self::Lost => "LOST",
        })
    }
}

/// One disk of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotDisk {
    /// Where the VM had it.
    pub target: DiskTarget,
    /// Which disk it was.
    pub volume: VolumeId,
    /// The layer that holds its content.
    pub layer: LayerId,
    /// Size that the guest saw, in bytes.
    pub virtual_size: u64,
    /// Space that its layer takes on the host, in bytes.
    pub allocated: u64,
}

/// A memory image on the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryImage {
    /// Absolute path.
    pub path: PathBuf,
    /// Size in bytes, once it is complete.
    pub bytes: u64,
}

/// UEFI variables, in a file beside the memory images.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptVariables {
    /// Absolute path.
    pub path: PathBuf,
    /// Size in bytes.
    pub bytes: u64,
}

/// How good the data of a snapshot is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "level", content = "reason")]
pub enum Consistency {
    /// The guest's file systems were frozen before and after the switch.
    FileSystem,
    /// As after a power cut. The reason says why it is not better.
    Crash(String),
    /// Memory and disks are one instant.
    Memory,
    /// The VM was off: as it was shut down.
    Off,
}
