//! The entry of a snapshot that is about to be made. Decides its name; what it holds is its maker's.

use crate::model::snapshot::{Label, Snapshot, SnapshotKind, SnapshotState};
use crate::model::{OperationId, SnapshotId, SnapshotName};

use super::{Refusal, World};

/// A snapshot as it is entered before anything is done for it: by which operation, for whom.
pub(super) fn reserve(
    world: &World,
    id: SnapshotId,
    kind: SnapshotKind,
    label: &Label,
    (operation, created_by): (OperationId, &str),
) -> Result<Snapshot, Refusal> {
    Ok(Snapshot {
        id,
        vm: world.vm.id,
        vm_name: world.vm.name.clone(),
        attachment: world.vm.attachment,
        name: choose_name(world, label)?,
        display_name: label.display_name.clone(),
        description: label.description.clone(),
        kind,
        state: SnapshotState::Creating,
        trouble: None,
        parent: None,
        source: None,
        disks: Vec::new(),
        memory: None,
        variables: None,
        run_state: world.vm.run_state,
        consistency: None,
        frozen_ms: 0.0,
        paused_ms: 0.0,
        owner: label.owner.clone(),
        properties: label.properties.clone(),
        holds: Vec::new(),
        comments: 0,
        expires_at: label.expires_at,
        created_at: world.now,
        created_by: created_by.to_owned(),
        schedule: label.schedule,
        operation,
        generation: 1,
    })
}

/// The name asked for, or one made from the time; unique within the VM either way.
fn choose_name(world: &World, label: &Label) -> Result<SnapshotName, Refusal> {
    let taken = |name: &SnapshotName| world.tree.snapshots.iter().any(|snapshot| snapshot.name == *name);
    if let Some(name) = &label.name {
        return if taken(name) { Err(Refusal::NameTaken(name.clone())) } else { Ok(name.clone()) };
    }
    let stem = format!("snap-{}", world.now.strftime("%Y%m%d-%H%M%S"));
    let candidates = std::iter::once(stem.clone()).chain((2..).map(|number| format!("{stem}-{number}")));
    let name = candidates
        .map(|text| SnapshotName::try_from(text).expect("digits and dashes make a name"))
        .find(|name| !taken(name))
        .expect("an endless row of names has a free one");
    Ok(name)
}
