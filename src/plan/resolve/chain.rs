//! Taking in what somebody else did to the chain of a disk: an overlay put on top, layers merged.
//!
//! Decides who owns what is taken in, and which snapshots can still be vouched for. Nothing that anybody kept goes for it:
//! no file is written to, and none is removed.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::model::layer::{Layer, Ownership, Volume};
use crate::model::operation::Failure;
use crate::model::snapshot::{Consistency, Snapshot, SnapshotDisk, SnapshotKind, SnapshotState};
use crate::model::step::{CatalogChange, Step};
use crate::model::vm::{Attachment, ChainImage, DiskView, Format};
use crate::model::{Difference, Label, LayerId, LayerTree, Reason, SnapshotId};

use super::super::reserve::reserve;
use super::super::{NewIds, Plan, Refusal, World, check_vm};
use super::{By, not_offered};

/// Plans to take in an overlay that somebody put on top.
///
/// It is *owned* from then on: the VM writes to it under our care. What the VM wrote to before was frozen by whoever made
/// the overlay, for some reason: it becomes a snapshot of the volume, so that it goes only when a person deletes that. If
/// libvirt keeps a snapshot of its own that names the overlay, there would be two owners, and each would merge away what
/// the other one needs: then it is not taken in until libvirt has forgotten it.
pub(super) fn adopt_overlay(
    world: &World,
    difference: &Difference,
    by: By<'_>,
    ids: NewIds<'_>,
) -> Result<Plan, Refusal> {
    let no_way = || not_offered(difference);
    check_attached(world)?;
    let (overlay, below, disk) = overlay_of(world, difference).ok_or_else(no_way)?;
    let volume = world.tree.volume(below.volume).ok_or_else(no_way)?;
    let before = world.tree.layers.get(&volume.active).ok_or_else(no_way)?;
    let before_facts = world.images.get(&before.path).ok_or_else(no_way)?;
    let facts = world.images.get(overlay).ok_or_else(no_way)?;
    if writes_elsewhere(world, disk, &before.path) || owner_elsewhere(world, overlay).is_some() {
        return Err(no_way());
    }
    let snapshot = SnapshotId(ids());
    let new = Layer {
        id: LayerId(ids()),
        volume: volume.id,
        parent: Some(below.id),
        path: overlay.to_owned(),
        format: Format::Qcow2,
        ownership: Ownership::Owned,
        virtual_size: facts.virtual_size,
        seen: None,
        is_set_aside: false,
    };
    let held = SnapshotDisk {
        target: disk.target.clone(),
        volume: volume.id,
        layer: before.id,
        virtual_size: before_facts.virtual_size,
        allocated: before_facts.allocated,
    };
    let label = Label {
        description: format!("what disk {} held when {} was put on top", disk.target, overlay.display()),
        ..Label::default()
    };
    let reservation = Snapshot {
        disks: vec![held.clone()],
        consistency: Some(Consistency::Crash("somebody else has taken it".to_owned())),
        ..reserve(world, snapshot, SnapshotKind::Volume, &label, by)?
    };
    let taken = CatalogChange::SnapshotTaken {
        snapshot,
        disks: vec![held],
        volumes: vec![Volume { id: volume.id, target: disk.target.clone(), active: new.id }],
        layers: vec![new],
    };
    let warnings = vec![
        format!("{} is ours from now on", overlay.display()),
        format!("what lies below is kept as snapshot {} of the volume", reservation.name),
    ];
    let steps = vec![Step::ReserveSnapshot { snapshot }, Step::Record(taken)];
    Ok(Plan { reservation: Some(reservation), warnings, ..Plan::new(world, steps, 1) })
}

/// The one image of the disk that the catalog does not know, and the layer that it lies on, which is as the catalog says.
fn overlay_of<'a>(world: &'a World, difference: &Difference) -> Option<(&'a Path, &'a Layer, &'a DiskView)> {
    let disk = world.vm.disk(difference.disk.as_ref()?)?;
    let [overlay, below @ ..] = disk.chain() else { return None };
    let known = world.tree.layer_at(&below.first()?.path)?;
    let expected = world.tree.chain(known.id).into_iter().map(|layer| &layer.path);
    let is_as_known = expected.eq(below.iter().map(|image| &image.path));
    let is_unknown =
        world.tree.layer_at(&overlay.path).is_none() && !world.volumes.contains_key(&overlay.path);
    let is_it = is_as_known && is_unknown && overlay.format == Format::Qcow2;
    is_it.then_some((overlay.path.as_path(), known, disk))
}

/// The snapshot of libvirt's own that was made with an image.
pub(in crate::plan) fn owner_elsewhere<'a>(world: &'a World, image: &Path) -> Option<&'a str> {
    let all = world.vm.snapshots_elsewhere.iter();
    let mut of_image = all.filter(|(_, images)| images.iter().any(|made| made == image));
    of_image.next().map(|(name, _)| name.as_str())
}

/// Whether another disk of the VM is the volume.
fn writes_elsewhere(world: &World, disk: &DiskView, active: &Path) -> bool {
    world.vm.disks.iter().any(|other| other.target != disk.target && other.uses(active))
}

fn check_attached(world: &World) -> Result<(), Refusal> {
    if world.vm.attachment != Attachment::Attached {
        return Err(Refusal::VmGone);
    }
    check_vm(world)
}

/// What somebody's merge has left of a volume.
struct Merged<'a> {
    /// What the VM reads through, the one that it writes to first. All of it is known.
    chain: Vec<&'a Layer>,
    volume: &'a Volume,
    /// Layers that the VM does not read through any more: of each gap the one from above first.
    gaps: Vec<Vec<LayerId>>,
    /// Layers that others' content went into, or that the VM writes to by now.
    written: BTreeSet<LayerId>,
}

impl<'a> Merged<'a> {
    fn of(world: &'a World, disk: &DiskView) -> Option<Self> {
        Self::among(world, disk.chain(), true)
    }

    /// Of what lies under overlays that nobody has told of. They alone are written to.
    fn below_strangers(world: &'a World, disk: &DiskView) -> Option<Self> {
        let chain = disk.chain();
        let strangers = chain.iter().position(|image| world.tree.layer_at(&image.path).is_some())?;
        Self::among(world, &chain[strangers..], strangers == 0)
    }

    fn among(world: &'a World, images: &[ChainImage], is_first_written: bool) -> Option<Self> {
        let tree = &world.tree;
        let chain: Vec<&Layer> =
            images.iter().map(|image| tree.layer_at(&image.path)).collect::<Option<_>>()?;
        let top = chain.first()?;
        let volume = tree.volume(top.volume)?;
        let mut gaps = Vec::new();
        let mut written = BTreeSet::new();
        if is_first_written && volume.active != top.id {
            // The VM writes to what was frozen.
            written.insert(top.id);
        }
        let expected: Vec<LayerId> = tree.chain(top.id).into_iter().skip(1).map(|layer| layer.id).collect();
        let mut rest = expected.as_slice();
        for layer in &chain[1..] {
            // None: it lies on something that it never lay on.
            let depth = rest.iter().position(|id| *id == layer.id)?;
            if depth > 0 {
                written.insert(layer.id);
                gaps.push(rest[..depth].to_vec());
            }
            rest = &rest[depth + 1..];
        }
        if !rest.is_empty() {
            // It lies on nothing: what was below was pulled up, and is as it was.
            gaps.push(rest.to_vec());
        }
        let differs = !gaps.is_empty() || !written.is_empty();
        differs.then_some(Self { chain, volume, gaps, written })
    }

    /// Whether a layer reads what it read before.
    ///
    /// Of the layers of a gap the highest does: what went into the layer below is its own content. The ones between read
    /// a mixture, as do all that lie on what was written to.
    fn is_sound(&self, tree: &LayerTree, layer: LayerId) -> bool {
        if self.written.contains(&layer) {
            return false;
        }
        let is_read = self.chain.iter().any(|read| read.id == layer);
        let is_highest = self.gaps.iter().any(|gap| gap.first() == Some(&layer));
        let parent = tree.layers.get(&layer).and_then(|layer| layer.parent);
        is_read || is_highest || parent.is_none_or(|parent| self.is_sound(tree, parent))
    }

    fn damaged(&self, tree: &LayerTree) -> Vec<SnapshotId> {
        let is_damaged = |snapshot: &&Snapshot| {
            snapshot.disks.iter().any(|disk| !self.is_sound(tree, disk.layer))
                && (snapshot.is_only_declared()
                    || !matches!(snapshot.state, SnapshotState::Error | SnapshotState::Deleting))
        };
        tree.snapshots.iter().filter(is_damaged).map(|snapshot| snapshot.id).collect()
    }

    /// Whether somebody's merge is why a layer is not as it was.
    fn explains(&self, layer: LayerId) -> bool {
        let below = self.chain.iter().skip(1).map(|layer| Some(layer.id)).chain([None]);
        let mut moved = self.chain.iter().zip(below).filter(|(layer, below)| layer.parent != *below);
        self.written.contains(&layer) || moved.any(|(moved, _)| moved.id == layer)
    }

    /// The layers as they lie now, parents first.
    fn layers(&self, world: &World) -> Vec<Layer> {
        let below = self.chain.iter().skip(1).map(|layer| Some(layer.id)).chain([None]);
        let now = self.chain.iter().zip(below).map(|(layer, parent)| Layer {
            parent,
            seen: layer.seen.filter(|_| !self.explains(layer.id)),
            virtual_size: world
                .images
                .get(&layer.path)
                .map_or(layer.virtual_size, |facts| facts.virtual_size),
            ..(*layer).clone()
        });
        let mut now: Vec<Layer> = now.collect();
        now.reverse();
        now
    }
}

/// The snapshots that a merge of somebody else has damaged. None where nothing was merged that can be understood.
pub(in crate::plan) fn damaged_by_merge(world: &World, disk: &DiskView) -> Option<Vec<SnapshotId>> {
    Merged::of(world, disk).map(|merged| merged.damaged(&world.tree))
}

/// Whether a merge of somebody else is why a layer is not as it was: what the disk tells says it all.
pub(in crate::plan) fn is_explained_by_merge(world: &World, layer: LayerId) -> bool {
    let merged = world.vm.disks.iter().filter_map(|disk| Merged::of(world, disk));
    merged.into_iter().any(|merged| merged.explains(layer))
}

/// Refuses a layer that somebody merges or has merged others' content into, or lets the VM write to: it reads a mixture, though
/// its file may be as long as it was. So it is until somebody has settled that, and then its snapshots are in ERROR.
pub(in crate::plan) fn check_unmerged(world: &World, layer: LayerId) -> Result<(), Refusal> {
    let reads = |image: &ChainImage| world.tree.chain(layer).iter().any(|read| read.path == image.path);
    for disk in &world.vm.disks {
        let is_merging = disk.block_job.is_some_and(|job| job.kind.writes_below());
        if is_merging && disk.chain().iter().any(reads) {
            return Err(Refusal::BlockJob(disk.target.clone()));
        }
        let merged = Merged::below_strangers(world, disk);
        if merged.is_some_and(|merged| !merged.is_sound(&world.tree, layer)) {
            return Err(Refusal::LayerMerged(disk.target.clone()));
        }
    }
    Ok(())
}

/// Plans to take in that somebody merged layers, or lets the VM write to one that was frozen. The snapshots that needed
/// them cannot be vouched for: they are in ERROR. Files that the VM does not read through any more stay.
pub(super) fn adopt_merge(world: &World, difference: &Difference) -> Result<Plan, Refusal> {
    let no_way = || not_offered(difference);
    check_attached(world)?;
    let disk = difference.disk.as_ref().and_then(|target| world.vm.disk(target)).ok_or_else(no_way)?;
    let merged = Merged::of(world, disk).ok_or_else(no_way)?;
    let top = merged.chain.first().ok_or_else(no_way)?;
    let before = world.tree.layers.get(&merged.volume.active).ok_or_else(no_way)?;
    // A template that the VM writes to is others' as well.
    if top.ownership == Ownership::Foreign || writes_elsewhere(world, disk, &before.path) {
        return Err(no_way());
    }
    let snapshots = merged.damaged(&world.tree);
    let volume = Volume { id: merged.volume.id, target: disk.target.clone(), active: top.id };
    let (layers, volumes) = (merged.layers(world), vec![volume]);
    let why =
        Failure { reason: Reason::ImageChanged, message: difference.description.clone(), causes: Vec::new() };
    let change = |gone| CatalogChange::ChainAdopted {
        layers: layers.clone(),
        volumes: volumes.clone(),
        gone,
        snapshots: snapshots.clone(),
        why: why.clone(),
    };
    let mut after = world.tree.clone();
    after.apply(&change(Vec::new()), &crate::model::Findings::default());
    let was_read = world.tree.chain(before.id).into_iter().map(|layer| layer.id);
    let was_read = was_read.chain(merged.gaps.iter().flatten().copied()).collect();
    let gone = needless(&mut after, &was_read);
    let warnings = warnings(world, &merged, &snapshots, &gone);
    Ok(Plan { warnings, ..Plan::new(world, vec![Step::Record(change(gone))], 0) })
}

/// Those of `layers` that nothing needs, children before parents.
fn needless(tree: &mut LayerTree, layers: &BTreeSet<LayerId>) -> Vec<LayerId> {
    let mut gone = Vec::new();
    let is_needless = |tree: &LayerTree, id: LayerId| {
        tree.layers.contains_key(&id)
            && !tree.is_active(id)
            && !tree.is_cloned(id)
            && tree.children(id).next().is_none()
            && tree.references(id).next().is_none()
    };
    while let Some(id) = layers.iter().copied().find(|id| is_needless(tree, *id)) {
        tree.forget_layers(&[id]);
        gone.push(id);
    }
    gone
}

fn warnings(world: &World, merged: &Merged<'_>, damaged: &[SnapshotId], gone: &[LayerId]) -> Vec<String> {
    let names: BTreeMap<SnapshotId, String> =
        world.tree.snapshots.iter().map(|snapshot| (snapshot.id, snapshot.name.to_string())).collect();
    let of_snapshot = |id: &SnapshotId| {
        format!(
            "snapshot {} cannot be vouched for, and is in ERROR",
            names.get(id).map_or("", String::as_str)
        )
    };
    let clones = world.tree.clones.iter();
    let clones = clones.filter(|clone| clone.layer.is_some_and(|layer| !merged.is_sound(&world.tree, layer)));
    let clones = clones.map(|clone| format!("volume {} reads through it, and reads wrong", clone.name));
    let files: Vec<&PathBuf> =
        gone.iter().filter_map(|id| world.tree.layers.get(id)).map(|layer| &layer.path).collect();
    let files = files.into_iter().filter(|path| world.images.contains_key(*path));
    let files = files.map(|path| format!("{} stays, and nothing needs it any more", path.display()));
    damaged.iter().map(of_snapshot).chain(clones).chain(files).collect()
}
