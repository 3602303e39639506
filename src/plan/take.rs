//! A snapshot of a volume out of a snapshot of its VM: one more reference to a layer, and no byte is touched. From
//! then on each can go without the other.

use crate::model::snapshot::{Consistency, Snapshot, SnapshotDisk, SnapshotKind, SnapshotState};
use crate::model::step::{CatalogChange, Step};
use crate::model::{DiskTarget, OperationId, SnapshotId, TakeFromSnapshot};

use super::reserve::reserve;
use super::revert::check_chain;
use super::{NewIds, Plan, Refusal, World};

/// Plans to take one disk out of `source`, which is in `world.tree`.
pub fn take_from_snapshot(
    world: &World,
    source: &Snapshot,
    request: &TakeFromSnapshot,
    operation: OperationId,
    created_by: &str,
    ids: NewIds<'_>,
) -> Result<Plan, Refusal> {
    if source.state != SnapshotState::Ready {
        return Err(Refusal::SnapshotNotReady(source.state));
    }
    let disk = choose_disk(source, request.disk.as_ref())?;
    check_chain(world, disk.layer)?;
    let snapshot = SnapshotId(ids());
    let reservation = Snapshot {
        source: Some(source.id),
        run_state: source.run_state,
        consistency: source.consistency.as_ref().map(without_memory),
        frozen_ms: source.frozen_ms,
        // The instant that it is of.
        created_at: source.created_at,
        ..reserve(world, snapshot, SnapshotKind::Volume, &request.label, (operation, created_by))?
    };
    let taken = CatalogChange::SnapshotTaken {
        snapshot,
        disks: vec![disk.clone()],
        layers: Vec::new(),
        volumes: Vec::new(),
    };
    let steps = vec![Step::ReserveSnapshot { snapshot }, Step::Record(taken)];
    Ok(Plan { reservation: Some(reservation), ..Plan::new(world, steps, 1) })
}

/// The disk of a snapshot that is named; the only one if none is.
pub(super) fn choose_disk<'a>(
    snapshot: &'a Snapshot,
    target: Option<&DiskTarget>,
) -> Result<&'a SnapshotDisk, Refusal> {
    match (target, snapshot.disks.as_slice()) {
        (None, [only]) => Ok(only),
        (None, _) => Err(Refusal::WhichDisk(snapshot.disks.iter().map(|disk| disk.target.clone()).collect())),
        (Some(target), disks) => disks
            .iter()
            .find(|disk| disk.target == *target)
            .ok_or_else(|| Refusal::NotInSnapshot { disk: target.clone(), snapshot: snapshot.name.clone() }),
    }
}

/// A disk on its own is worth less than with the memory that goes with it.
fn without_memory(consistency: &Consistency) -> Consistency {
    match consistency {
        Consistency::Memory => Consistency::Crash("it was taken out of a snapshot with memory".to_owned()),
        same @ (Consistency::FileSystem | Consistency::Crash(_) | Consistency::Off) => same.clone(),
    }
}
