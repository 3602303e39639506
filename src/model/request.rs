//! What a client asks for, checked for shape. Decides nothing; `plan` answers it with steps or with a refusal.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::clone::CloneMode;
use super::difference::DifferenceAction;
use super::ids::{DiskTarget, LayerId, SnapshotId, VmId, VmName, VolumeId, VolumeName};
use super::snapshot::{Label, Owner, SnapshotKind};

/// A mutation that becomes an operation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "request")]
pub enum Request {
    /// Take a snapshot of a VM, or of one of its volumes.
    CreateSnapshot(CreateSnapshot),
    /// Take a snapshot of a volume out of a snapshot of its VM.
    TakeFromSnapshot(TakeFromSnapshot),
    /// Bring a VM back to a snapshot.
    RevertSnapshot(RevertSnapshot),
    /// Bring one volume back to a snapshot.
    RevertVolume(RevertVolume),
    /// Delete snapshots of one VM.
    DeleteSnapshots(DeleteSnapshots),
    /// Remove a snapshot that is lost, and what was kept for it.
    PurgeSnapshot(PurgeSnapshot),
    /// Make a volume out of a disk of a snapshot.
    CloneVolume(CloneVolume),
    /// Let a linked clone stand alone.
    FlattenVolume(FlattenVolume),
    /// Remove a clone.
    DeleteVolume(DeleteVolume),
    /// Make a VM out of a snapshot.
    DeployVm(DeployVm),
    /// Settle a difference between the catalog and the world.
    ResolveDifference(ResolveDifference),
    /// Merge and remove what nothing refers to.
    Collapse {
        /// The VM.
        vm: VmId,
    },
}

impl Request {
    /// Whether it is about clones, or the VMs that are made of them: each of a snapshot of one VM, and none of that VM.
    #[must_use]
    pub fn makes_clones(&self) -> bool {
        match self {
            Self::CloneVolume(_) | Self::FlattenVolume(_) | Self::DeleteVolume(_) | Self::DeployVm(_) => true,
            Self::CreateSnapshot(_)
            | Self::TakeFromSnapshot(_)
            | Self::RevertSnapshot(_)
            | Self::RevertVolume(_)
            | Self::DeleteSnapshots(_)
            | Self::PurgeSnapshot(_)
            | Self::ResolveDifference(_)
            | Self::Collapse { .. } => false,
        }
    }

    /// The snapshots that it deletes because their time has come.
    #[must_use]
    pub fn expired(&self) -> &[SnapshotId] {
        match self {
            Self::DeleteSnapshots(request) if request.reason == DeletionReason::Expired => &request.snapshots,
            _ => &[],
        }
    }

    /// What nothing else may change while it is carried out for `vm`: with a clone, what stands for it as a volume that no
    /// VM has, for that has the clone's own snapshots.
    #[must_use]
    pub fn holds(&self, vm: VmId) -> BTreeSet<VmId> {
        let volume = match self {
            Self::FlattenVolume(request) => Some(request.volume),
            Self::DeleteVolume(request) => Some(request.volume),
            _ => None,
        };
        volume.map(VmId::of_detached).into_iter().chain([vm]).collect()
    }

    /// How long its merges may be without headway before they are ended, if it says so.
    #[must_use]
    pub fn merge_deadline(&self) -> Option<Duration> {
        let millis = match self {
            Self::DeleteSnapshots(request) => request.merge_deadline_ms,
            Self::FlattenVolume(request) => request.merge_deadline_ms,
            _ => None,
        };
        millis.map(Duration::from_millis)
    }

    /// What it asks for, in words.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::CreateSnapshot(request) if request.kind == SnapshotKind::Volume => "create volume snapshot",
            Self::CreateSnapshot(_) => "create snapshot",
            Self::TakeFromSnapshot(_) => "create volume snapshot",
            Self::RevertSnapshot(_) => "revert snapshot",
            Self::RevertVolume(_) => "revert volume",
            Self::DeleteSnapshots(_) => "delete snapshot",
            Self::PurgeSnapshot(_) => "purge snapshot",
            Self::CloneVolume(_) => "clone volume",
            Self::FlattenVolume(_) => "flatten volume",
            Self::DeleteVolume(_) => "delete volume",
            Self::DeployVm(_) => "deploy vm",
            Self::ResolveDifference(_) => "resolve difference",
            Self::Collapse { .. } => "collapse",
        }
    }
}

/// Longest freeze if nobody says otherwise: Windows' VSS ends one after ten seconds anyhow.
pub const FREEZE_TIMEOUT: Duration = Duration::from_secs(10);

/// Take a snapshot of a VM.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CreateSnapshot {
    /// The VM, or what stands for it.
    pub vm: VmId,
    /// The image of the volume, if no VM has it.
    #[serde(default)]
    pub image: Option<PathBuf>,
    /// What it is to hold. Of a volume: one disk is named.
    pub kind: SnapshotKind,
    /// What is written on it.
    pub label: Label,
    /// Whether to freeze the guest's file systems.
    pub quiesce: Quiesce,
    /// The mount points to freeze; empty for all.
    pub mount_points: Vec<String>,
    /// Longest freeze, in milliseconds: the guest is thawed then, whatever happens.
    pub freeze_timeout_ms: u64,
    /// Longest pause for memory, in milliseconds; None if it may be as long as it takes.
    #[serde(default)]
    pub max_pause_ms: Option<u64>,
    /// The disks to take; empty for all.
    pub disks: BTreeSet<DiskTarget>,
}

/// Take a snapshot of a volume out of a snapshot of its VM.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TakeFromSnapshot {
    /// The VM's snapshot.
    pub snapshot: SnapshotId,
    /// The disk; None if the snapshot holds one only.
    pub disk: Option<DiskTarget>,
    /// What is written on the new one.
    pub label: Label,
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

/// Bring one volume back to a snapshot; the other disks of its VM are left alone.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RevertVolume {
    /// The volume.
    pub volume: VolumeId,
    /// The snapshot: of the volume, or of its VM.
    pub snapshot: SnapshotId,
    /// Stop a VM that runs, and start it afterwards.
    pub stop: bool,
    /// The layer that the client has seen the VM write to; None not to check.
    pub active: Option<LayerId>,
}

/// Make a volume out of a disk of a snapshot.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CloneVolume {
    /// The snapshot.
    pub snapshot: SnapshotId,
    /// The disk; None if the snapshot holds one only.
    pub disk: Option<DiskTarget>,
    /// The file to make: absolute.
    pub path: PathBuf,
    /// The new volume's name.
    pub name: VolumeName,
    /// How it relates to the snapshot.
    pub mode: CloneMode,
    /// Bytes per second that a copy may move; None for no limit.
    pub bandwidth: Option<u64>,
    /// Who owns it.
    pub owner: Owner,
    /// Key and value pairs of the user.
    pub properties: BTreeMap<String, String>,
}

/// Let a linked clone stand alone.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FlattenVolume {
    /// The clone.
    pub volume: VolumeId,
    /// Bytes per second; None for no limit. Only a VM that runs can keep to it.
    pub bandwidth: Option<u64>,
    /// Milliseconds that the copy may be without headway before it is ended; None for as long as is configured.
    #[serde(default)]
    pub merge_deadline_ms: Option<u64>,
    /// The generation of the clone that the client has seen; None not to check.
    pub generation: Option<u64>,
}

/// Remove a clone.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DeleteVolume {
    /// The clone.
    pub volume: VolumeId,
    /// The generation of the clone that the client has seen; None not to check.
    pub generation: Option<u64>,
}

/// Make a VM out of a snapshot.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DeployVm {
    /// The snapshot.
    pub snapshot: SnapshotId,
    /// The new VM's name.
    pub name: VmName,
    /// How its disks relate to the snapshot's.
    pub mode: CloneMode,
    /// What it does afterwards.
    pub then: NewVmState,
    /// Give its disks new serial numbers.
    pub new_serials: bool,
    /// Bytes per second that a copy may move; None for no limit.
    pub bandwidth: Option<u64>,
}

/// What a new VM does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NewVmState {
    /// It is off.
    Off,
    /// It has started, and stands still.
    Paused,
    /// It runs.
    Running,
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
    /// Milliseconds that a merge may be without headway before it is ended; None for as long as is configured.
    #[serde(default)]
    pub merge_deadline_ms: Option<u64>,
    /// The generation of the first that the client has seen; None not to check.
    pub generation: Option<u64>,
    /// Why.
    pub reason: DeletionReason,
}

/// Remove a snapshot that is lost.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PurgeSnapshot {
    /// The snapshot.
    pub snapshot: SnapshotId,
    /// The generation of it that the client has seen; None not to check.
    pub generation: Option<u64>,
}

/// Settle a difference between the catalog and the world.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ResolveDifference {
    /// The difference: it must still be there.
    pub difference: Uuid,
    /// Which way.
    pub action: DifferenceAction,
    /// The file that it is about, if it concerns no VM.
    pub orphan: Option<PathBuf>,
}

/// Why snapshots are deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeletionReason {
    /// Somebody asked for it.
    #[default]
    Asked,
    /// Their time has come.
    Expired,
    /// The schedule that made them keeps others.
    Pruned,
}
