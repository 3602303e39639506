//! Removing a snapshot whose VM is not here any more, and what was kept for it.
//!
//! Nobody can tell what the VM does meanwhile: on another node it may go on with its disks, over storage that both see. So
//! nothing is merged, and no layer goes that the VM's disks read through. Those stay, and are named.

use crate::model::snapshot::SnapshotState;
use crate::model::step::{CatalogChange, DoomedImage, Step};
use crate::model::vm::Attachment;
use crate::model::{LayerTree, PurgeSnapshot, Snapshot};

use super::collapse::{collapse, doomed};
use super::delete::removal;
use super::{Plan, Refusal, World};

/// Plans to remove `snapshot`, which is in `world.tree`.
pub fn purge(world: &World, snapshot: &Snapshot, request: &PurgeSnapshot) -> Result<Plan, Refusal> {
    // One that could not be vouched for before its VM left is of no more use to anybody.
    let can_go = matches!(snapshot.state, SnapshotState::Lost | SnapshotState::Error);
    if !can_go || world.vm.attachment != Attachment::Gone {
        return Err(Refusal::NotLost(snapshot.state));
    }
    if request.generation.is_some_and(|seen| seen != snapshot.generation) {
        return Err(Refusal::EtagMismatch { actual: snapshot.generation });
    }
    snapshot.check_not_held().map_err(Refusal::Held)?;
    let mut changed = world.tree.clone();
    changed.forget_snapshot(snapshot.id);
    let gone = collapse(&changed, |_| true).gone;
    let beside = snapshot.memory.as_ref().map(|memory| &memory.path);
    let beside = beside.into_iter().chain(snapshot.variables.as_ref().map(|variables| &variables.path));
    let mut images: Vec<DoomedImage> =
        beside.map(|path| DoomedImage { path: path.clone(), identity: None }).collect();
    let layers = gone.iter().filter_map(|id| world.tree.layers.get(id));
    images.extend(layers.map(|layer| doomed(world, layer)));
    let mut steps = vec![
        Step::MarkDeleting { snapshot: snapshot.id, was: snapshot.state },
        Step::Record(CatalogChange::SnapshotsDeleted { snapshots: vec![snapshot.id], gone: gone.clone() }),
    ];
    if !images.is_empty() {
        steps.push(Step::RemoveImages { images });
    }
    changed.forget_layers(&gone);
    Ok(Plan {
        warnings: what_stays(&changed),
        removals: vec![removal(world, snapshot)],
        ..Plan::new(world, steps, 1)
    })
}

/// The layers that nothing of the catalog needs any more but the VM's disks.
fn what_stays(changed: &LayerTree) -> Vec<String> {
    let stays = |path: &std::path::Path| format!("{} stays: the VM's disks read through it", path.display());
    changed.pending().map(|layer| stays(&layer.path)).collect()
}
