//! Deleting a snapshot: its references go, and each layer that nothing refers to any more is merged with its only
//! child or removed. The content of every other snapshot and of the VM's disks is the same before and after.

use std::collections::BTreeMap;

use crate::model::layer::{Layer, Ownership};
use crate::model::snapshot::{Snapshot, SnapshotState};
use crate::model::step::{CatalogChange, DoomedImage, ImageRef, Merge, MergeLayers, MergedLayer, Step};
use crate::model::{DeleteSnapshot, LayerId};

use super::revert::doomed;
use super::{Plan, Refusal, Removal, RemovalKind, World, check_disk, check_space, check_vm, directory_of};

/// Plans the deletion of `snapshot`, which is in `world.tree`.
pub fn delete(world: &World, snapshot: &Snapshot, request: &DeleteSnapshot) -> Result<Plan, Refusal> {
    check_vm(world)?;
    if !matches!(snapshot.state, SnapshotState::Ready | SnapshotState::Error) {
        return Err(Refusal::SnapshotNotReady(snapshot.state));
    }
    if request.generation.is_some_and(|seen| seen != snapshot.generation) {
        return Err(Refusal::EtagMismatch { actual: snapshot.generation });
    }
    let mut merges = Vec::new();
    let mut leaves: Vec<&Layer> = Vec::new();
    for disk in &snapshot.disks {
        let Some(layer) = world.tree.layers.get(&disk.layer) else { continue };
        if world.tree.references(layer.id).any(|other| other.id != snapshot.id)
            || world.tree.is_active(layer.id)
        {
            continue;
        }
        let children: Vec<&Layer> = world.tree.children(layer.id).collect();
        match children.as_slice() {
            [] => leaves.push(layer),
            [child] => merges.push(merge(world, disk.volume, layer, child)?),
            several => {
                return Err(Refusal::BranchPoint { disk: disk.target.clone(), children: several.len() });
            }
        }
    }
    if let Some(foreign) = leaves.iter().find(|layer| layer.ownership == Ownership::Foreign) {
        return Err(Refusal::ForeignLayer(foreign.path.clone()));
    }
    check_disks(world, &merges)?;
    let needs = space_needed(world, &merges);
    check_space(world, &needs)?;
    let bytes_to_copy = needs.values().sum();

    let moved: Vec<MergedLayer> =
        merges.iter().map(|merge| MergedLayer { child: merge.child_layer, base: merge.base_layer }).collect();
    let gone: Vec<LayerId> = leaves.iter().map(|layer| layer.id).collect();
    let images = doomed_images(world, snapshot, &merges, &leaves);
    let mut steps = vec![Step::MarkDeleting { snapshot: snapshot.id }];
    // Until a merge has started the snapshot can be had back; a removal is recorded before the first file goes.
    let commit_point = steps.len();
    if !merges.is_empty() {
        steps.push(Step::Merge(MergeLayers { merges, bandwidth: request.bandwidth }));
    }
    steps.push(Step::Record(CatalogChange::SnapshotDeleted { snapshot: snapshot.id, merged: moved, gone }));
    if !images.is_empty() {
        steps.push(Step::RemoveImages { images });
    }
    Ok(Plan {
        steps,
        commit_point,
        findings: Vec::new(),
        reservation: None,
        warnings: Vec::new(),
        removals: vec![removal(world, snapshot)],
        bytes_to_copy,
        bytes_needed: bytes_to_copy,
        vm: (world.vm.id, world.vm.name.clone()),
    })
}

fn merge(
    world: &World,
    volume: crate::model::VolumeId,
    base: &Layer,
    child: &Layer,
) -> Result<Merge, Refusal> {
    for layer in [base, child] {
        if layer.ownership == Ownership::Foreign {
            return Err(Refusal::ForeignLayer(layer.path.clone()));
        }
        if !world.images.contains_key(&layer.path) {
            return Err(Refusal::ImageMissing(layer.path.clone()));
        }
    }
    let target = world.tree.volume(volume).map(|volume| volume.target.clone());
    Ok(Merge {
        volume,
        target: target.ok_or_else(|| Refusal::ImageMissing(base.path.clone()))?,
        base: image_ref(base),
        base_layer: base.id,
        child: image_ref(child),
        child_layer: child.id,
        grandchildren: world.tree.children(child.id).map(image_ref).collect(),
    })
}

fn image_ref(layer: &Layer) -> ImageRef {
    ImageRef { path: layer.path.clone(), format: layer.format }
}

/// The disks whose chains are touched must be as the catalog says, and free.
fn check_disks(world: &World, merges: &[Merge]) -> Result<(), Refusal> {
    for merge in merges {
        let disk = world.vm.disks.iter().find(|disk| disk.uses(&merge.base.path));
        if let Some(disk) = disk {
            check_disk(world, disk)?;
        }
    }
    Ok(())
}

/// A base grows by what its child holds, at most.
fn space_needed(world: &World, merges: &[Merge]) -> BTreeMap<std::path::PathBuf, u64> {
    let mut needs = BTreeMap::new();
    for merge in merges {
        let bytes = world.images.get(&merge.child.path).map_or(0, |facts| facts.allocated);
        *needs.entry(directory_of(&merge.base.path)).or_insert(0) += bytes;
    }
    needs
}

fn removal(world: &World, snapshot: &Snapshot) -> Removal {
    let layers = snapshot.disks.iter().filter_map(|disk| world.tree.layers.get(&disk.layer));
    let disks: u64 =
        layers.filter_map(|layer| world.images.get(&layer.path)).map(|facts| facts.allocated).sum();
    Removal {
        kind: RemovalKind::Snapshot,
        id: snapshot.id.to_string(),
        description: format!("snapshot {} of {}", snapshot.name, snapshot.vm_name),
        bytes: disks + snapshot.memory.as_ref().map_or(0, |memory| memory.bytes),
    }
}

fn doomed_images(
    world: &World,
    snapshot: &Snapshot,
    merges: &[Merge],
    leaves: &[&Layer],
) -> Vec<DoomedImage> {
    let children = merges.iter().filter_map(|merge| world.tree.layers.get(&merge.child_layer));
    let layers = children.chain(leaves.iter().copied());
    let memory =
        snapshot.memory.iter().map(|memory| DoomedImage { path: memory.path.clone(), identity: None });
    layers.map(|layer| doomed(world, layer)).chain(memory).collect()
}
