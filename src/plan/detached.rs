//! Snapshots and reverts of a volume that no VM has.
//!
//! Nothing but its path names the image of such a volume: a cloud, a definition that somebody is about to write. So the
//! path always reads the newest state. A snapshot lets the image keep a second name, and an empty overlay over that takes
//! its place; a revert lets an overlay over the snapshot's layer take its place. Either is one rename.

use crate::model::layer::{Layer, Ownership, Volume};
use crate::model::snapshot::{Snapshot, SnapshotDisk, SnapshotState};
use crate::model::step::{CatalogChange, ImageRef, NewOverlay, Step};
use crate::model::vm::{DiskView, Format};
use crate::model::{CreateSnapshot, DiskTarget, LayerId, OperationId, RevertVolume, SnapshotId};

use super::create::adopt;
use super::reserve::reserve;
use super::revert::check_chain;
use super::{
    NEW_OVERLAY_BYTES, NewIds, Plan, Refusal, Removal, RemovalKind, World, check_disk, check_space,
    directory_of, new_image_path,
};

/// Plans a snapshot of the volume that `world` is about.
pub(super) fn create(
    world: &World,
    request: &CreateSnapshot,
    operation: OperationId,
    created_by: &str,
    ids: NewIds<'_>,
) -> Result<Plan, Refusal> {
    let image = Image::of(world, ids)?;
    check_confined(world, &image)?;
    let snapshot = SnapshotId(ids());
    let directory = directory_of(&image.layer.path);
    let frozen = Layer {
        id: LayerId(ids()),
        path: new_image_path(&directory, ids()),
        virtual_size: image.virtual_size,
        seen: None,
        ..image.layer.clone()
    };
    let new = image.over(&frozen, image.virtual_size, ids);
    check_space(world, &[(directory, NEW_OVERLAY_BYTES)].into())?;
    let held = SnapshotDisk {
        target: DiskTarget::of_detached(),
        volume: image.layer.volume,
        layer: frozen.id,
        virtual_size: image.virtual_size,
        allocated: image.allocated,
    };
    let steps = vec![
        Step::ReserveSnapshot { snapshot },
        Step::CheckUnused { image: image.image() },
        Step::LinkImage { from: image.layer.path.clone(), to: frozen.path.clone() },
        Step::CreateOverlay(new.overlay.clone()),
        Step::ReplaceImage { from: new.overlay.path, to: image.layer.path.clone() },
        Step::Record(CatalogChange::SnapshotTaken {
            snapshot,
            disks: vec![held.clone()],
            volumes: vec![image.volume()],
            layers: image.below.into_iter().chain([frozen, new.layer]).collect(),
        }),
    ];
    let reservation = Snapshot {
        disks: vec![held],
        ..reserve(world, snapshot, request.kind, &request.label, (operation, created_by))?
    };
    Ok(Plan { reservation: Some(reservation), bytes_needed: NEW_OVERLAY_BYTES, ..Plan::new(world, steps, 4) })
}

/// Plans to put the volume that `world` is about back to `snapshot`, which is in `world.tree`.
pub(super) fn revert(
    world: &World,
    snapshot: &Snapshot,
    request: &RevertVolume,
    ids: NewIds<'_>,
) -> Result<Plan, Refusal> {
    if snapshot.state != SnapshotState::Ready {
        return Err(Refusal::SnapshotNotReady(snapshot.state));
    }
    let held = snapshot.disks.iter().find(|disk| disk.volume == request.volume);
    let held = held.ok_or_else(|| Refusal::VolumeNotInSnapshot(snapshot.name.clone()))?;
    let image = Image::of(world, ids)?;
    // What it lies on is what tells one state of it from the next: the layer itself is the same all the time.
    if request.active.is_some() && request.active != image.layer.parent {
        return Err(Refusal::VolumeChanged);
    }
    check_chain(world, held.layer)?;
    let gone = || Refusal::DiskGone(held.target.clone());
    let base = world.tree.layers.get(&held.layer).ok_or_else(gone)?;
    let new = image.over(base, held.virtual_size, ids);
    check_space(world, &[(directory_of(&image.layer.path), NEW_OVERLAY_BYTES)].into())?;
    let steps = vec![
        Step::MarkReverting { snapshot: snapshot.id },
        Step::CheckUnused { image: image.image() },
        Step::CreateOverlay(new.overlay.clone()),
        Step::ReplaceImage { from: new.overlay.path, to: image.layer.path.clone() },
        Step::Record(CatalogChange::SnapshotReverted {
            snapshot: snapshot.id,
            is_current: false,
            layers: vec![new.layer],
            volumes: vec![image.volume()],
            gone: Vec::new(),
        }),
    ];
    let removal = Removal {
        kind: RemovalKind::ActiveState,
        id: image.layer.id.to_string(),
        description: "what was written to the volume since its last snapshot".to_owned(),
        bytes: image.allocated,
    };
    Ok(Plan { removals: vec![removal], bytes_needed: NEW_OVERLAY_BYTES, ..Plan::new(world, steps, 3) })
}

/// The image of the volume, as it is.
struct Image {
    /// Its layer. It is the same one for as long as the catalog knows the volume, whatever file has its path.
    layer: Layer,
    /// What it lies on, as far as the catalog does not know it yet; parents first.
    below: Vec<Layer>,
    virtual_size: u64,
    allocated: u64,
}

/// What is to stand in the place of the image.
struct New {
    overlay: NewOverlay,
    layer: Layer,
}

impl Image {
    /// Refuses one that somebody has, or may have.
    fn of(world: &World, ids: NewIds<'_>) -> Result<Self, Refusal> {
        if let Some(user) = world.users.first() {
            return Err(Refusal::VolumeInUse(user.name.clone()));
        }
        let nothing = || Refusal::NoSuchDisk(DiskTarget::of_detached());
        let disk: &DiskView = world.vm.disk(&DiskTarget::of_detached()).ok_or_else(nothing)?;
        let known = check_disk(world, disk)?.and_then(|volume| world.tree.layers.get(&volume.active));
        let path = &disk.active().ok_or_else(nothing)?.path;
        let facts = world.images.get(path).ok_or_else(|| Refusal::ImageMissing(path.clone()))?;
        let (layer, below) = if let Some(layer) = known {
            (layer.clone(), Vec::new())
        } else {
            let (_, _, mut layers) = adopt(world, disk, ids);
            (layers.pop().ok_or_else(nothing)?, layers)
        };
        Ok(Self { layer, below, virtual_size: facts.virtual_size, allocated: facts.allocated })
    }

    fn image(&self) -> ImageRef {
        ImageRef { path: self.layer.path.clone(), format: self.layer.format }
    }

    fn volume(&self) -> Volume {
        Volume { id: self.layer.volume, target: DiskTarget::of_detached(), active: self.layer.id }
    }

    /// An empty overlay over `base`, to take the place of the image.
    fn over(&self, base: &Layer, virtual_size: u64, ids: NewIds<'_>) -> New {
        New {
            overlay: NewOverlay {
                target: DiskTarget::of_detached(),
                path: new_image_path(&directory_of(&self.layer.path), ids()),
                backing_path: base.path.clone(),
                backing_format: base.format,
                virtual_size,
            },
            layer: Layer {
                parent: Some(base.id),
                format: Format::Qcow2,
                ownership: Ownership::Owned,
                virtual_size,
                seen: None,
                ..self.layer.clone()
            },
        }
    }
}

/// An image that only lies in a directory of ours may have been put there by anybody, and name anything in its header.
/// What it reads must lie there, too.
fn check_confined(world: &World, image: &Image) -> Result<(), Refusal> {
    if world.volumes.contains_key(&image.layer.path) {
        return Ok(());
    }
    let is_allowed = |layer: &&Layer| world.places.images.contains(&directory_of(&layer.path));
    match image.below.iter().chain([&image.layer]).find(|layer| !is_allowed(layer)) {
        None => Ok(()),
        Some(layer) => Err(Refusal::OutsideOfPlaces {
            path: layer.path.clone(),
            allowed: world.places.images.iter().map(|path| path.display().to_string()).collect(),
        }),
    }
}
