//! Clones: volumes out of a disk of a snapshot. The snapshot's layer is read, and held by a linked one; nothing that
//! exists is written to but a clone itself.
//!
//! A clone is made under a name from a UUID and gets the name that its user chose when it is complete: what stands
//! under that name is never half a volume, and never takes the place of another file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::model::layer::{Layer, Ownership};
use crate::model::snapshot::{Owner, SnapshotDisk, SnapshotState};
use crate::model::step::{
    CatalogChange, DoomedImage, How, ImageRef, Merge, MergeLayers, NewCopy, NewOverlay, Step,
};
use crate::model::vm::{ChainImage, DiskView, RunState};
use crate::model::{
    CloneMode, CloneState, CloneVolume, ClonedVolume, DeleteVolume, FlattenVolume, Format, Snapshot,
    VolumeId, VolumeName,
};

use super::check::{not_as_seen, wrong_backing};
use super::revert::check_chain;
use super::space::{Run, check_merges};
use super::take::choose_disk;
use super::{
    NEW_OVERLAY_BYTES, NewIds, Plan, Refusal, Removal, RemovalKind, World, check_disk, check_space,
    directory_of, new_image_path, pull_blocker,
};

/// Plans a clone out of `snapshot`, which is in `world.tree`.
pub fn clone_volume(
    world: &World,
    snapshot: &Snapshot,
    request: &CloneVolume,
    ids: NewIds<'_>,
) -> Result<Plan, Refusal> {
    // One that is lost may be all that is left.
    if !matches!(snapshot.state, SnapshotState::Ready | SnapshotState::Lost) {
        return Err(Refusal::SnapshotNotReady(snapshot.state));
    }
    let disk = choose_disk(snapshot, request.disk.as_ref())?;
    check_place(world, &request.path)?;
    let id = VolumeId(ids());
    let made_at = new_image_path(&directory_of(&request.path), ids());
    let part = Part::new(world, disk, made_at.clone())?;
    part.check_space(world, request.mode)?;
    let clone = part.clone_of(
        world,
        snapshot,
        Identity {
            id,
            name: request.name.clone(),
            path: request.path.clone(),
            mode: request.mode,
            owner: request.owner.clone(),
        },
    );
    let steps = vec![
        Step::ReserveClones { clones: vec![id] },
        part.step(request.mode, request.bandwidth),
        Step::PublishImage { from: made_at, to: request.path.clone() },
        Step::Record(CatalogChange::ClonesMade { clones: vec![id] }),
    ];
    Ok(Plan {
        bytes_to_copy: part.bytes_to_copy(request.mode),
        bytes_needed: part.bytes_needed(request.mode),
        clones: vec![ClonedVolume { properties: request.properties.clone(), ..clone }],
        ..Plan::new(world, steps, 3)
    })
}

/// Plans to let a clone stand alone. `world` is that of the VM that has it, else of the one it was made out of. A VM that
/// runs does it itself, with what it writes to.
pub fn flatten_volume(world: &World, clone: &ClonedVolume, request: &FlattenVolume) -> Result<Plan, Refusal> {
    check_clone(clone, request.generation)?;
    if clone.layer.is_none() {
        return Err(Refusal::NotLinked(clone.name.clone()));
    }
    let image = lowest_image(world, clone);
    if let Some(problem) = world.damaged.get(&image.path) {
        return Err(Refusal::ImageChanged { path: image.path, problem: problem.clone() });
    }
    check_as_left(world, clone, &image)?;
    let run = Run::below(world, &image);
    check_merges(world, std::slice::from_ref(&run))?;
    let (copied, needed) = (run.held(world), run.growth(world));
    let record = Step::Record(CatalogChange::CloneFlattened {
        volume: clone.id,
        path: image.path.clone(),
        source: clone.vm,
    });
    let plan = |steps, commit_point| Plan {
        bytes_to_copy: copied,
        bytes_needed: needed,
        ..Plan::new(world, steps, commit_point)
    };
    if world.users.iter().any(|user| user.run_state == RunState::Migrated) {
        return Err(Refusal::VmElsewhere);
    }
    if let Some(user) = world.users.iter().find(|user| user.run_state.is_live()) {
        let in_use = || Refusal::VolumeInUse(user.name.clone());
        let disk = world.vm.disks.iter().find(|disk| disk.active().is_some_and(|it| it.path == clone.path));
        // QEMU copies into what it writes to, and into nothing below that: not into what the clone's own snapshots hold.
        let disk = disk.filter(|_| image.path == clone.path).ok_or_else(in_use)?;
        check_disk(world, disk)?;
        if let Some(blocker) = pull_blocker(world) {
            return Err(Refusal::PullBlocked(blocker.to_owned()));
        }
        let merges = vec![pull_all(disk).ok_or_else(in_use)?];
        let pull = Step::Merge(MergeLayers { merges, bandwidth: request.bandwidth });
        return Ok(plan(vec![pull, record], 0));
    }
    let steps = vec![Step::CheckUnused { image: image.clone() }, Step::FlattenImage { image }, record];
    let unlimited = "no VM has the volume open, so the copy keeps to no limit";
    Ok(Plan {
        warnings: request.bandwidth.map(|_| unlimited.to_owned()).into_iter().collect(),
        // An image that stands alone cannot be made to lie on another one again.
        ..plan(steps, 1)
    })
}

/// An image that is written to is seen as it is then: what was wrong with it before would be hidden.
fn check_as_left(world: &World, clone: &ClonedVolume, image: &ImageRef) -> Result<(), Refusal> {
    let Some(tree) = world.clone_tree.as_ref().filter(|tree| tree.layer_at(&clone.path).is_some()) else {
        return Ok(());
    };
    let (Some(layer), Some(facts)) = (tree.layer_at(&image.path), world.images.get(&image.path)) else {
        return Ok(());
    };
    let problem = wrong_backing(tree, layer, facts).or_else(|| not_as_seen(tree, layer, facts));
    problem.map_or(Ok(()), |problem| Err(Refusal::ImageChanged { path: image.path.clone(), problem }))
}

/// The image of the clone that lies on what others made: its own, or the lowest that its own snapshots hold.
fn lowest_image(world: &World, clone: &ClonedVolume) -> ImageRef {
    let layers = world.clone_tree.as_ref().and_then(|tree| {
        let own = tree.detached_image().filter(|image| image.path == clone.path)?;
        Some(tree.chain(own.id))
    });
    let chain = layers.unwrap_or_default();
    let lowest = chain.into_iter().rfind(|layer| layer.ownership == Ownership::Owned);
    lowest.map_or_else(|| image(clone), |layer| ImageRef { path: layer.path.clone(), format: layer.format })
}

/// The layer that a disk is written to takes in all that lies below it. Whose those are does not matter: they are read.
fn pull_all(disk: &DiskView) -> Option<Merge> {
    let [active, between @ .., base] = disk.chain() else { return None };
    let image = |image: &ChainImage| ImageRef { path: image.path.clone(), format: image.format };
    Some(Merge {
        target: disk.target.clone(),
        base: image(base),
        between: between.iter().map(image).collect(),
        child: image(active),
        how: How::Pull { below: None },
    })
}

/// Plans to remove a clone.
pub fn delete_volume(world: &World, clone: &ClonedVolume, request: &DeleteVolume) -> Result<Plan, Refusal> {
    check_clone(clone, request.generation)?;
    if let Some(user) = world.users.first() {
        return Err(Refusal::VolumeInUse(user.name.clone()));
    }
    let facts = world.images.get(&clone.path);
    let doomed = DoomedImage { path: clone.path.clone(), identity: facts.map(|facts| facts.identity) };
    let steps = vec![
        Step::CheckUnused { image: image(clone) },
        Step::Record(CatalogChange::CloneDeleted { volume: clone.id }),
        Step::RemoveImages { images: vec![doomed] },
    ];
    let removal = Removal {
        kind: RemovalKind::Volume,
        id: clone.id.to_string(),
        description: format!("volume {}, {}", clone.name, clone.path.display()),
        bytes: facts.map_or(0, |facts| facts.allocated),
    };
    Ok(Plan { removals: vec![removal], ..Plan::new(world, steps, 1) })
}

/// What makes a clone the one that its user asked for.
pub(super) struct Identity {
    pub(super) id: VolumeId,
    pub(super) name: VolumeName,
    pub(super) path: PathBuf,
    pub(super) mode: CloneMode,
    pub(super) owner: Owner,
}

/// A disk of a snapshot, and the image to be made out of it.
pub(super) struct Part<'a> {
    disk: &'a SnapshotDisk,
    base: &'a Layer,
    made_at: PathBuf,
    /// What the disk reads takes so many bytes, at most.
    bytes: u64,
}

impl<'a> Part<'a> {
    /// What the disk reads must all be there, and say what it lies on.
    pub(super) fn new(world: &'a World, disk: &'a SnapshotDisk, made_at: PathBuf) -> Result<Self, Refusal> {
        check_chain(world, disk.layer)?;
        let missing = || Refusal::DiskGone(disk.target.clone());
        let base = world.tree.layers.get(&disk.layer).ok_or_else(missing)?;
        let chain = world.tree.chain(disk.layer);
        let facts = || chain.iter().filter_map(|layer| Some((layer, world.images.get(&layer.path)?)));
        let changed =
            facts().find_map(|(layer, facts)| Some((layer, not_as_seen(&world.tree, layer, facts)?)));
        if let Some((layer, problem)) = changed {
            return Err(Refusal::ImageChanged { path: layer.path.clone(), problem });
        }
        let guessed = |facts: &crate::model::ImageFacts| {
            facts.backing.as_ref().is_some_and(|backing| backing.format.is_none())
        };
        if let Some((layer, _)) = facts().find(|(_, facts)| guessed(facts)) {
            let problem = "its header does not say in which format its backing file is".to_owned();
            return Err(Refusal::ImageChanged { path: layer.path.clone(), problem });
        }
        let bytes = facts().map(|(_, facts)| facts.allocated).sum();
        Ok(Self { disk, base, made_at, bytes })
    }

    pub(super) fn step(&self, mode: CloneMode, bandwidth: Option<u64>) -> Step {
        match mode {
            CloneMode::Linked => Step::CreateOverlay(NewOverlay {
                target: self.disk.target.clone(),
                path: self.made_at.clone(),
                backing_path: self.base.path.clone(),
                backing_format: self.base.format,
                virtual_size: self.disk.virtual_size,
            }),
            CloneMode::Full => Step::CopyImage(NewCopy {
                target: self.disk.target.clone(),
                source: ImageRef { path: self.base.path.clone(), format: self.base.format },
                path: self.made_at.clone(),
                virtual_size: self.disk.virtual_size,
                bandwidth,
            }),
        }
    }

    pub(super) fn clone_of(&self, world: &World, snapshot: &Snapshot, identity: Identity) -> ClonedVolume {
        ClonedVolume {
            id: identity.id,
            name: identity.name,
            vm: world.vm.id,
            source: snapshot.id,
            layer: match identity.mode {
                CloneMode::Linked => Some(self.base.id),
                CloneMode::Full => None,
            },
            path: identity.path,
            virtual_size: self.disk.virtual_size,
            state: CloneState::Creating,
            owner: identity.owner,
            properties: BTreeMap::new(),
            created_at: world.now,
            generation: 1,
        }
    }

    pub(super) fn bytes_to_copy(&self, mode: CloneMode) -> u64 {
        match mode {
            CloneMode::Linked => 0,
            CloneMode::Full => self.bytes,
        }
    }

    pub(super) fn bytes_needed(&self, mode: CloneMode) -> u64 {
        self.bytes_to_copy(mode).max(NEW_OVERLAY_BYTES)
    }

    fn check_space(&self, world: &World, mode: CloneMode) -> Result<(), Refusal> {
        check_space(world, &[(directory_of(&self.made_at), self.bytes_needed(mode))].into())
    }
}

/// Only where the configuration says, and never over a file.
fn check_place(world: &World, path: &Path) -> Result<(), Refusal> {
    let is_allowed = path.is_absolute()
        && path.file_name().is_some()
        && path.parent().is_some_and(|parent| world.places.images.iter().any(|allowed| allowed == parent));
    if !is_allowed {
        return Err(Refusal::PlaceNotAllowed {
            path: path.to_owned(),
            allowed: world.places.images.iter().map(|path| path.display().to_string()).collect(),
        });
    }
    if world.images.contains_key(path) {
        return Err(Refusal::FileExists(path.to_owned()));
    }
    Ok(())
}

fn check_clone(clone: &ClonedVolume, generation: Option<u64>) -> Result<(), Refusal> {
    if clone.state == CloneState::Creating {
        return Err(Refusal::VolumeNotReady(clone.name.clone()));
    }
    if generation.is_some_and(|seen| seen != clone.generation) {
        return Err(Refusal::VolumeChanged);
    }
    Ok(())
}

fn image(clone: &ClonedVolume) -> ImageRef {
    ImageRef { path: clone.path.clone(), format: Format::Qcow2 }
}
