//! A second look before something is taken in: between the look that it was planned by and its record a daemon may have died,
//! and whoever changed the disks may have gone on.
//!
//! Decides whether what is about to be recorded is still what is there. What is recorded already is not recorded twice.

use uuid::Uuid;

use crate::model::step::{CatalogChange, Step};
use crate::model::{Difference, LayerTree, OperationId, ResolveDifference, SnapshotState};

use super::{Refusal, World, resolve};

/// Refuses to record `change`, which `request` was planned to come to, if that is not what is there any more; `found` is all
/// that differs now.
pub fn check_adoption(
    world: &World,
    found: &[Difference],
    request: &ResolveDifference,
    change: &CatalogChange,
) -> Result<(), Refusal> {
    let nobody = (OperationId(Uuid::nil()), "");
    let again = resolve(world, found, request, nobody, &mut Uuid::nil)?;
    let is_same = |step: &Step| matches!(step, Step::Record(now) if is_same(now, change));
    if again.steps.iter().any(is_same) {
        return Ok(());
    }
    Err(Refusal::NoSuchDifference(request.difference))
}

/// Whether the catalog says so already.
#[must_use]
pub fn is_adopted(tree: &LayerTree, change: &CatalogChange) -> bool {
    match change {
        CatalogChange::SnapshotTaken { snapshot, .. } => {
            tree.snapshot(*snapshot).is_some_and(|taken| taken.state != SnapshotState::Creating)
        }
        CatalogChange::ChainAdopted { layers, volumes, gone, .. } => {
            let parent = |id| tree.layers.get(&id).map(|layer| layer.parent);
            layers.iter().all(|layer| parent(layer.id) == Some(layer.parent))
                && volumes.iter().all(|volume| tree.volumes.contains(volume))
                && !gone.iter().any(|id| tree.layers.contains_key(id))
        }
        CatalogChange::FileAdopted { layer, seen } => {
            tree.layers.get(layer).is_some_and(|layer| layer.seen == Some(*seen))
        }
        CatalogChange::DiskSetAside { volume, .. } => {
            let active = tree.volume(*volume).and_then(|volume| tree.layers.get(&volume.active));
            active.is_none_or(|active| active.is_set_aside)
        }
        _ => false,
    }
}

/// Whether the same is taken in. A plan chooses new ids each time, and a new name.
fn is_same(now: &CatalogChange, before: &CatalogChange) -> bool {
    use CatalogChange::SnapshotTaken;
    let (
        SnapshotTaken { disks, layers, .. },
        SnapshotTaken { disks: before_disks, layers: before_layers, .. },
    ) = (now, before)
    else {
        return now == before;
    };
    let places = layers.iter().map(|layer| (&layer.path, layer.parent));
    let before_places = before_layers.iter().map(|layer| (&layer.path, layer.parent));
    let held = disks.iter().map(|disk| (&disk.target, disk.layer));
    places.eq(before_places) && held.eq(before_disks.iter().map(|disk| (&disk.target, disk.layer)))
}
