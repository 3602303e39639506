//! Settling a difference, one of the ways that it offers.
//!
//! Decides which ways there are: those that can be planned, so what is offered is what will be done. None of them makes a
//! file read otherwise, and none but the removal of an orphan removes one. Leaves finding differences to `check`. A person
//! chooses: nothing here happens by itself.

use std::path::{Path, PathBuf};

use crate::model::operation::Failure;
use crate::model::step::{CatalogChange, DoomedImage, ImageRef, PointedDisk, Step};
use crate::model::vm::Attachment;
use crate::model::{
    Difference, DifferenceAction, DifferenceKind, OperationId, Reason, ResolveDifference, SnapshotId,
    SnapshotState,
};

use super::check::{not_as_seen, wrong_backing};
use super::{NewIds, Plan, Refusal, Removal, RemovalKind, World, check_vm};

mod adoption;
mod chain;

pub use adoption::{check_adoption, is_adopted};
pub(super) use chain::{check_unmerged, damaged_by_merge, is_explained_by_merge, owner_elsewhere};

/// Who settles it, for what is written into a reservation.
type By<'a> = (OperationId, &'a str);

/// Plans what `request` asks for; `found` is all that differs now.
pub fn resolve(
    world: &World,
    found: &[Difference],
    request: &ResolveDifference,
    (operation, created_by): (OperationId, &str),
    ids: NewIds<'_>,
) -> Result<Plan, Refusal> {
    let difference = found.iter().find(|difference| difference.id() == request.difference);
    let difference = difference.ok_or(Refusal::NoSuchDifference(request.difference))?;
    settle(world, difference, request.action, (operation, created_by), ids)
}

/// The ways that can be gone now.
#[must_use]
pub fn actions(world: &World, difference: &Difference) -> Vec<DifferenceAction> {
    let by = (OperationId(uuid::Uuid::nil()), "");
    let can_be =
        |action: &DifferenceAction| settle(world, difference, *action, by, &mut uuid::Uuid::nil).is_ok();
    DifferenceAction::ALL.into_iter().filter(can_be).collect()
}

fn settle(
    world: &World,
    difference: &Difference,
    action: DifferenceAction,
    by: By<'_>,
    ids: NewIds<'_>,
) -> Result<Plan, Refusal> {
    use DifferenceAction::{Adopt, MarkLost, RemoveFile, Restore};
    use DifferenceKind::{
        DefinitionDiffers, DiskSetChanged, ForeignBlockJob, ImageChanged, ImageMissing, LayerMerged,
        ManifestUnwritten, OrphanFile, UnknownOverlay, VmMigrated, VmUndefined,
    };
    match (difference.kind, action) {
        (UnknownOverlay, Adopt) => chain::adopt_overlay(world, difference, by, ids),
        (LayerMerged, Adopt) => chain::adopt_merge(world, difference),
        (DefinitionDiffers, Restore) => restore_definition(world, difference),
        (ImageChanged, Adopt) => adopt_file(world, difference),
        (ImageMissing | ImageChanged, MarkLost) => mark_lost(world, difference),
        (DiskSetChanged, Adopt) => set_aside(world, difference),
        (OrphanFile, RemoveFile) => remove_orphan(world, difference),
        // A definition is never taken over from: what the VM writes to is the newest.
        (DefinitionDiffers, Adopt | MarkLost | RemoveFile)
        // There is nothing to go back to, or nothing but a person knows the way.
        | (UnknownOverlay | LayerMerged | DiskSetChanged, Restore | MarkLost | RemoveFile)
        | (ImageChanged, Restore | RemoveFile)
        | (ImageMissing, Adopt | Restore | RemoveFile)
        | (OrphanFile, Adopt | Restore | MarkLost)
        // The snapshots are LOST as it is. A job ends by itself, or by whoever began it. A manifest is written when it can be.
        | (VmUndefined | VmMigrated | ForeignBlockJob | ManifestUnwritten, Adopt | Restore | MarkLost | RemoveFile) => {
            Err(not_offered(difference))
        }
    }
}

fn not_offered(difference: &Difference) -> Refusal {
    Refusal::ActionNotOffered { offered: difference.actions.clone() }
}

/// The stored definition names what the running VM writes to, as far as that is what the catalog says.
fn restore_definition(world: &World, difference: &Difference) -> Result<Plan, Refusal> {
    let no_way = || not_offered(difference);
    check_vm(world)?;
    let target = difference.disk.as_ref().ok_or_else(no_way)?;
    let active = world.vm.disk(target).and_then(|disk| disk.active()).ok_or_else(no_way)?;
    world.tree.volume_writing(&active.path).ok_or_else(no_way)?;
    // What the VM writes to does not change: only the definition follows.
    let image = ImageRef { path: active.path.clone(), format: active.format };
    let pointed = PointedDisk { target: target.clone(), from: image.clone(), to: image };
    Ok(Plan::new(world, vec![Step::PointDisks { disks: vec![pointed] }], 0))
}

/// The snapshots that need a file are LOST: nobody waits for it any more. If it comes back as it was, so do they.
fn mark_lost(world: &World, difference: &Difference) -> Result<Plan, Refusal> {
    let is_ready = |id: &&SnapshotId| {
        world.tree.snapshot(**id).is_some_and(|snapshot| snapshot.state == SnapshotState::Ready)
    };
    let snapshots: Vec<SnapshotId> = difference.snapshots.iter().filter(is_ready).copied().collect();
    if snapshots.is_empty() {
        return Err(not_offered(difference));
    }
    let reason = match difference.kind {
        DifferenceKind::ImageMissing => Reason::ImageMissing,
        _ => Reason::ImageChanged,
    };
    let why = Failure { reason, message: difference.description.clone(), causes: Vec::new() };
    let change = CatalogChange::SnapshotsLost { snapshots, why };
    Ok(Plan::new(world, vec![Step::Record(change)], 0))
}

/// Another file stands there, as long as the one before and over the same one: somebody says that it reads the same. What
/// is shorter, lies elsewhere or is a link does not.
fn adopt_file(world: &World, difference: &Difference) -> Result<Plan, Refusal> {
    let no_way = || not_offered(difference);
    let path = difference.path.as_ref().ok_or_else(no_way)?;
    let layer = world.tree.layer_at(path).ok_or_else(no_way)?;
    let facts = world.images.get(path).ok_or_else(no_way)?;
    let (before, now) = (layer.seen.ok_or_else(no_way)?, facts.seen());
    let is_other = now.inode != before.inode;
    let mut same = facts.clone();
    same.identity.inode = before.inode;
    let is_only_that = wrong_backing(&world.tree, layer, facts).is_none()
        && not_as_seen(&world.tree, layer, &same).is_none();
    if !is_other || !is_only_that {
        return Err(no_way());
    }
    let change = CatalogChange::FileAdopted { layer: layer.id, seen: now };
    let warnings = vec![format!("nobody can tell here whether {} reads what it read before", path.display())];
    Ok(Plan { warnings, ..Plan::new(world, vec![Step::Record(change)], 0) })
}

/// The disk is meant to be away. What it wrote to is kept, and with it all that lies below, for whoever has it now.
fn set_aside(world: &World, difference: &Difference) -> Result<Plan, Refusal> {
    let no_way = || not_offered(difference);
    let is_it = |target| difference.disk.as_ref() == Some(target);
    let volume = world.tree.volumes.iter().find(|volume| is_it(&volume.target)).ok_or_else(no_way)?;
    let active = world.tree.layers.get(&volume.active).ok_or_else(no_way)?;
    // Where nothing else is there either, it is the storage that is away: then all is kept for its coming back.
    let is_beside = |other: &PathBuf| other.parent() == active.path.parent();
    let is_there = world.images.contains_key(&active.path) || world.damaged.contains_key(&active.path);
    let is_gone = !is_there && world.images.keys().any(is_beside);
    let path = active.path.display();
    let warning = if is_gone {
        format!("there is no {path} any more: what it may have lain on is not kept for it")
    } else {
        format!("{path} stays, and all that it lies on")
    };
    let change = CatalogChange::DiskSetAside { volume: volume.id, is_gone };
    Ok(Plan { warnings: vec![warning], ..Plan::new(world, vec![Step::Record(change)], 0) })
}

/// `world` is that of the file alone.
fn remove_orphan(world: &World, difference: &Difference) -> Result<Plan, Refusal> {
    let path: &Path = difference.path.as_deref().ok_or_else(|| not_offered(difference))?;
    let facts = world.images.get(path).ok_or_else(|| not_offered(difference))?;
    if !difference.actions.contains(&DifferenceAction::RemoveFile) {
        return Err(not_offered(difference));
    }
    let file = DoomedImage { path: path.to_owned(), identity: Some(facts.identity) };
    let removal = Removal {
        kind: RemovalKind::File,
        id: String::new(),
        description: format!("{}, and what is in it", path.display()),
        bytes: facts.allocated,
    };
    debug_assert_eq!(world.vm.attachment, Attachment::Detached, "an orphan is no VM's");
    Ok(Plan { removals: vec![removal], ..Plan::new(world, vec![Step::RemoveOrphan { file }], 0) })
}
