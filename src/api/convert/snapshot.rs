//! Snapshots.

use super::{consistency, run_state, timestamp};
use crate::api::status;
use crate::model::{Comment, Hold, OperationId, SnapshotDisk, SnapshotKind, SnapshotState};
use crate::proto::v1;
use crate::store::Placed;

/// A snapshot as a client sees it.
/// `holder` is the operation that holds its VM.
pub(in crate::api) fn snapshot(placed: &Placed, holder: Option<OperationId>) -> v1::Snapshot {
    let snapshot = &placed.snapshot;
    let (level, reason) = snapshot.consistency.as_ref().map(consistency).unwrap_or_default();
    let is_moving = match snapshot.state {
        SnapshotState::Creating | SnapshotState::Reverting | SnapshotState::Deleting => true,
        SnapshotState::Ready | SnapshotState::Error | SnapshotState::Lost => false,
    };
    v1::Snapshot {
        id: snapshot.id.to_string(),
        name: snapshot.name.to_string(),
        display_name: snapshot.display_name.clone(),
        description: snapshot.description.clone(),
        kind: kind(snapshot.kind).into(),
        state: state(snapshot.state).into(),
        error: snapshot.trouble.as_ref().map(|trouble| status::failure(trouble, "")),
        current: placed.is_current,
        parent_id: snapshot.parent.map(|parent| parent.to_string()).unwrap_or_default(),
        child_count: placed.children,
        vm_id: snapshot.of_vm().map(|vm| vm.to_string()).unwrap_or_default(),
        vm_name: snapshot.vm_name.clone(),
        disks: snapshot.disks.iter().map(|held| disk(held, placed)).collect(),
        has_nvram: snapshot.variables.is_some(),
        memory_bytes: snapshot.memory.as_ref().map_or(0, |memory| memory.bytes),
        consistency: level.into(),
        consistency_reason: reason,
        frozen_ms: snapshot.frozen_ms,
        paused_ms: snapshot.paused_ms,
        recorded_run_state: run_state(snapshot.run_state).into(),
        account: snapshot.owner.account.clone(),
        domain: snapshot.owner.domain.clone(),
        project: snapshot.owner.project.clone(),
        properties: snapshot.properties.clone(),
        holds: snapshot.holds.iter().map(hold).collect(),
        comment_count: snapshot.comments,
        schedule_id: snapshot.schedule.map(|schedule| schedule.to_string()).unwrap_or_default(),
        expire_time: snapshot.expires_at.map(timestamp),
        create_time: Some(timestamp(snapshot.created_at)),
        created_by: snapshot.created_by.clone(),
        operation_id: holder.filter(|_| is_moving).map(|holder| holder.to_string()).unwrap_or_default(),
        source_snapshot_id: snapshot.source.map(|source| source.to_string()).unwrap_or_default(),
        etag: snapshot.generation.to_string(),
    }
}

/// A comment as a client sees it.
pub(in crate::api) fn comment(comment: &Comment) -> v1::Comment {
    v1::Comment {
        id: comment.id.to_string(),
        snapshot_id: comment.snapshot.to_string(),
        author: comment.author.clone(),
        text: comment.text.clone(),
        create_time: Some(timestamp(comment.created_at)),
    }
}

fn hold(hold: &Hold) -> v1::Hold {
    v1::Hold {
        name: hold.name.to_string(),
        reason: hold.reason.clone(),
        create_time: Some(timestamp(hold.created_at)),
        created_by: hold.created_by.clone(),
    }
}

fn disk(held: &SnapshotDisk, placed: &Placed) -> v1::SnapshotDisk {
    let path = placed.paths.get(&held.layer).map(|path| path.display().to_string());
    v1::SnapshotDisk {
        target: held.target.to_string(),
        volume_id: held.volume.to_string(),
        layer_id: held.layer.to_string(),
        path: path.unwrap_or_default(),
        virtual_size_bytes: held.virtual_size,
        allocated_bytes: held.allocated,
    }
}

fn kind(kind: SnapshotKind) -> v1::SnapshotKind {
    match kind {
        SnapshotKind::VmDisks => v1::SnapshotKind::VmDisks,
        SnapshotKind::VmDisksAndMemory => v1::SnapshotKind::VmDisksAndMemory,
        SnapshotKind::Volume => v1::SnapshotKind::Volume,
    }
}

fn state(state: SnapshotState) -> v1::SnapshotState {
    match state {
        SnapshotState::Creating => v1::SnapshotState::Creating,
        SnapshotState::Ready => v1::SnapshotState::Ready,
        SnapshotState::Reverting => v1::SnapshotState::Reverting,
        SnapshotState::Deleting => v1::SnapshotState::Deleting,
        SnapshotState::Error => v1::SnapshotState::Error,
        SnapshotState::Lost => v1::SnapshotState::Lost,
    }
}

/// A state as a filter names it. None for one that no snapshot is in.
pub(in crate::api) fn snapshot_state(state: v1::SnapshotState) -> Option<SnapshotState> {
    match state {
        v1::SnapshotState::Unspecified => None,
        v1::SnapshotState::Creating => Some(SnapshotState::Creating),
        v1::SnapshotState::Ready => Some(SnapshotState::Ready),
        v1::SnapshotState::Reverting => Some(SnapshotState::Reverting),
        v1::SnapshotState::Deleting => Some(SnapshotState::Deleting),
        v1::SnapshotState::Error => Some(SnapshotState::Error),
        v1::SnapshotState::Lost => Some(SnapshotState::Lost),
    }
}

/// A kind as a filter names it. None for one that no snapshot is of.
pub(in crate::api) fn snapshot_kind(kind: v1::SnapshotKind) -> Option<SnapshotKind> {
    match kind {
        v1::SnapshotKind::Unspecified => None,
        v1::SnapshotKind::VmDisks => Some(SnapshotKind::VmDisks),
        v1::SnapshotKind::VmDisksAndMemory => Some(SnapshotKind::VmDisksAndMemory),
        v1::SnapshotKind::Volume => Some(SnapshotKind::Volume),
    }
}
