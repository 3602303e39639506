//! What a client asks for, checked for shape. Decides nothing; `plan` answers it with steps or with a refusal.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::ids::{DiskTarget, SnapshotId, SnapshotName, VmId};
use super::snapshot::Owner;

/// A mutation that becomes an operation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Request {
    /// Take a snapshot of a VM.
    CreateSnapshot(CreateSnapshot),
    /// Bring a VM back to a snapshot.
    RevertSnapshot(RevertSnapshot),
    /// Delete snapshots of one VM.
    DeleteSnapshots(DeleteSnapshots),
    /// Merge and remove what nothing refers to.
    Collapse {
        /// The VM.
        vm: VmId,
    },
}

/// Take a snapshot of a VM.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CreateSnapshot {
    /// The VM.
    pub vm: VmId,
    /// Its name; None to have one made from the time.
    pub name: Option<SnapshotName>,
    /// A name for people.
    pub display_name: String,
    /// Any text.
    pub description: String,
    /// Whether to capture memory, too.
    pub memory: bool,
    /// Whether to freeze the guest's file systems.
    pub quiesce: Quiesce,
    /// The mount points to freeze; empty for all.
    pub mount_points: Vec<String>,
    /// Longest freeze, in milliseconds: the guest is thawed then, whatever happens.
    pub freeze_timeout_ms: u64,
    /// The disks to take; empty for all.
    pub disks: BTreeSet<DiskTarget>,
    /// Who owns it.
    pub owner: Owner,
    /// Key and value pairs of the user.
    pub properties: BTreeMap<String, String>,
}

/// Whether to freeze the guest's file systems around the switch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Quiesce {
    /// Fail if they cannot be frozen.
    Required,
    /// Freeze them if the guest agent answers; else take a crash-consistent snapshot and say so.
    Auto,
    /// Leave them alone.
    Off,
}

/// Bring a VM back to a snapshot.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RevertSnapshot {
    /// The snapshot.
    pub snapshot: SnapshotId,
    /// What the VM does afterwards.
    pub run_state_after: RunStateAfter,
    /// The generation of the snapshot that the client has seen; None not to check.
    pub generation: Option<u64>,
}

/// What a VM does after a revert.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunStateAfter {
    /// With memory: what it did when the snapshot was taken. Without: what it does now.
    AsItWas,
    /// It runs.
    Running,
    /// It stands still, ready to be resumed.
    Paused,
    /// It is off, and the memory image is not used.
    Off,
}

/// Delete snapshots of one VM.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DeleteSnapshots {
    /// The snapshots; at least one.
    pub snapshots: Vec<SnapshotId>,
    /// Everything made on top of them, too.
    pub with_children: bool,
    /// Bytes per second per disk that a merge may move; None for no limit.
    pub bandwidth: Option<u64>,
    /// The generation of the first that the client has seen; None not to check.
    pub generation: Option<u64>,
}
