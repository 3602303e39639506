//! Going back to a snapshot: everything is made and checked while the VM runs, then it is stopped, pointed at the
//! new overlays and started. Until it has started, the old branch is whole and one can return to it.

use std::collections::BTreeMap;

use crate::model::layer::{Layer, Ownership, Volume};
use crate::model::snapshot::{MemoryImage, Snapshot, SnapshotDisk, SnapshotKind, SnapshotState};
use crate::model::step::{
    CatalogChange, DoomedImage, ImageRef, NewOverlay, PointedDisk, Start, StartFromMemory, Step,
};
use crate::model::vm::{Attachment, DiskView, Format};
use crate::model::{LayerId, RevertSnapshot, RevertVolume, RunState, RunStateAfter};

use super::check::not_as_seen;
use super::collapse::doomed;
use super::resolve::check_unmerged;
use super::variables::{self, Restoring};
use super::{
    NEW_OVERLAY_BYTES, NewIds, Plan, Refusal, Removal, RemovalKind, World, check_disk, check_space, check_vm,
    detached, directory_of, overlay_path,
};

/// Plans a revert to `snapshot`, which is in `world.tree`.
pub fn revert(
    world: &World,
    snapshot: &Snapshot,
    request: &RevertSnapshot,
    ids: NewIds<'_>,
) -> Result<Plan, Refusal> {
    check_vm(world)?;
    if !world.vm.persistent {
        return Err(Refusal::VmTransient);
    }
    if snapshot.state != SnapshotState::Ready {
        return Err(Refusal::SnapshotNotReady(snapshot.state));
    }
    if request.generation.is_some_and(|seen| seen != snapshot.generation) {
        return Err(Refusal::EtagMismatch { actual: snapshot.generation });
    }
    if snapshot.kind == SnapshotKind::Volume {
        return Err(Refusal::IsOfVolume);
    }
    let (attached, removed): (Vec<_>, Vec<_>) =
        snapshot.disks.iter().partition(|disk| find_disk(world, disk).is_some());
    let parts: Vec<Part> =
        attached.into_iter().map(|disk| Part::new(world, disk, ids)).collect::<Result<_, _>>()?;
    let start = decide_start(world, snapshot, request, &parts)?;
    let variables = Restoring::new(world, snapshot, ids)?;
    // A disk that was removed stays removed. But memory knows it as a device, and without any disk nothing goes back.
    if let Some(removed) = removed.first()
        && (parts.is_empty() || starts_from_memory(start.as_ref()))
    {
        return Err(Refusal::DiskGone(removed.target.clone()));
    }
    go_back(world, snapshot, &parts, start, &Scope::Vm(variables))
}

/// Plans a revert of one volume to `snapshot`, which is in `world.tree`. The VM's other disks are left alone, and so is
/// what it descends from.
pub fn revert_volume(
    world: &World,
    snapshot: &Snapshot,
    request: &RevertVolume,
    ids: NewIds<'_>,
) -> Result<Plan, Refusal> {
    if world.vm.attachment == Attachment::Detached {
        return detached::revert(world, snapshot, request, ids);
    }
    check_vm(world)?;
    if snapshot.state != SnapshotState::Ready {
        return Err(Refusal::SnapshotNotReady(snapshot.state));
    }
    let volume = world.tree.volume(request.volume);
    let held = snapshot.disks.iter().find(|disk| disk.volume == request.volume);
    let disk = held.ok_or_else(|| Refusal::VolumeNotInSnapshot(snapshot.name.clone()))?;
    if request.active.is_some() && request.active != volume.map(|volume| volume.active) {
        return Err(Refusal::VolumeChanged);
    }
    let is_live = world.vm.run_state.is_live();
    if is_live && !request.stop {
        return Err(Refusal::VolumeInUse(world.vm.name.clone()));
    }
    if is_live && !world.vm.persistent {
        return Err(Refusal::VmTransient);
    }
    let parts = vec![Part::new(world, disk, ids)?];
    let paused = matches!(world.vm.run_state, RunState::Paused(_));
    let disks = parts.iter().map(Part::pointed).collect();
    let start = is_live.then_some(Start { from_memory: None, paused, disks });
    go_back(world, snapshot, &parts, start, &Scope::Volume)
}

/// What goes back.
enum Scope {
    /// All of it, with its UEFI variables.
    Vm(Option<Restoring>),
    Volume,
}

/// The steps of going back, once it is known which disks go, and how the VM is started again.
fn go_back(
    world: &World,
    snapshot: &Snapshot,
    parts: &[Part],
    start: Option<Start>,
    scope: &Scope,
) -> Result<Plan, Refusal> {
    let mut needs = BTreeMap::new();
    for part in parts {
        *needs.entry(directory_of(&part.layer.path)).or_insert(0) += NEW_OVERLAY_BYTES;
    }
    check_space(world, &needs)?;

    let mut steps = vec![Step::MarkReverting { snapshot: snapshot.id }];
    steps.extend(parts.iter().map(|part| Step::CreateOverlay(part.overlay())));
    if let Some(memory) = snapshot.memory.as_ref().filter(|_| starts_from_memory(start.as_ref())) {
        steps.push(Step::CheckMemoryImage { path: memory.path.clone(), bytes: memory.bytes });
    }
    if world.vm.run_state.is_live() {
        steps.push(Step::Stop { was: world.vm.run_state });
    }
    let variables = match scope {
        Scope::Vm(variables) => variables.as_ref(),
        Scope::Volume => None,
    };
    steps.extend(variables.into_iter().flat_map(Restoring::steps));
    let is_from_memory = starts_from_memory(start.as_ref());
    let mut commit_point = steps.len();
    steps.push(Step::PointDisks { disks: parts.iter().map(Part::pointed).collect() });
    if let Some(start) = start {
        commit_point = steps.len();
        steps.push(Step::Start(start));
    }
    let gone: Vec<&Layer> = parts.iter().filter_map(|part| abandoned(world, part)).collect();
    steps.push(Step::Record(CatalogChange::SnapshotReverted {
        snapshot: snapshot.id,
        is_current: matches!(scope, Scope::Vm(_)),
        layers: parts.iter().map(|part| part.layer.clone()).collect(),
        volumes: parts.iter().map(Part::volume).collect(),
        gone: gone.iter().map(|layer| layer.id).collect(),
    }));
    let mut useless: Vec<DoomedImage> = gone.into_iter().map(|layer| doomed(world, layer)).collect();
    let before = variables.and_then(Restoring::left_over);
    useless.extend(before.map(|path| DoomedImage { path: path.clone(), identity: None }));
    if !useless.is_empty() {
        steps.push(Step::RemoveImages { images: useless });
    }
    Ok(Plan {
        warnings: match scope {
            Scope::Vm(_) => warnings(world, snapshot, is_from_memory),
            Scope::Volume => Vec::new(),
        },
        removals: removals(world, parts, variables.is_some()),
        bytes_needed: needs.values().sum(),
        ..Plan::new(world, steps, commit_point)
    })
}

/// A disk of the snapshot, and the overlay that the VM will write to.
struct Part {
    was: ImageRef,
    was_layer: LayerId,
    base: ImageRef,
    layer: Layer,
    target: crate::model::DiskTarget,
}

impl Part {
    fn new(world: &World, disk: &SnapshotDisk, ids: NewIds<'_>) -> Result<Self, Refusal> {
        let gone = || Refusal::DiskGone(disk.target.clone());
        let (active, view) = find_disk(world, disk).ok_or_else(gone)?;
        check_disk(world, view)?;
        check_chain(world, disk.layer)?;
        let base = world.tree.layers.get(&disk.layer).ok_or_else(gone)?;
        let path = overlay_path(world, view, ids())?;
        Ok(Self {
            was: ImageRef { path: active.path.clone(), format: active.format },
            was_layer: active.id,
            base: ImageRef { path: base.path.clone(), format: base.format },
            layer: Layer {
                id: LayerId(ids()),
                volume: disk.volume,
                parent: Some(base.id),
                path,
                format: Format::Qcow2,
                ownership: Ownership::Owned,
                virtual_size: disk.virtual_size,
                seen: None,
                is_set_aside: false,
            },
            target: view.target.clone(),
        })
    }

    fn overlay(&self) -> NewOverlay {
        NewOverlay {
            target: self.target.clone(),
            path: self.layer.path.clone(),
            backing_path: self.base.path.clone(),
            backing_format: self.base.format,
            virtual_size: self.layer.virtual_size,
        }
    }

    fn pointed(&self) -> PointedDisk {
        PointedDisk {
            target: self.target.clone(),
            from: self.was.clone(),
            to: ImageRef { path: self.layer.path.clone(), format: Format::Qcow2 },
        }
    }

    fn volume(&self) -> Volume {
        Volume { id: self.layer.volume, target: self.target.clone(), active: self.layer.id }
    }
}

/// The disk that the VM has of a volume now, and the layer it writes to. Disks are matched by what they write to, never
/// by target name.
fn find_disk<'a>(world: &'a World, held: &SnapshotDisk) -> Option<(&'a Layer, &'a DiskView)> {
    let volume = world.tree.volume(held.volume)?;
    let active = world.tree.layers.get(&volume.active)?;
    let view = world.vm.disks.iter().find(|disk| disk.uses(&active.path))?;
    Some((active, view))
}

/// Whether all that a snapshot reads is there, and as it was.
#[must_use]
pub fn is_whole(world: &World, snapshot: &Snapshot) -> bool {
    check_whole(world, snapshot).is_ok()
}

/// All that a snapshot reads must be there, and as it was.
pub(super) fn check_whole(world: &World, snapshot: &Snapshot) -> Result<(), Refusal> {
    for disk in &snapshot.disks {
        check_chain(world, disk.layer)?;
        for layer in world.tree.chain(disk.layer) {
            let facts = world.images.get(&layer.path);
            let facts = facts.ok_or_else(|| Refusal::ImageMissing(layer.path.clone()))?;
            if let Some(problem) = not_as_seen(&world.tree, layer, facts) {
                return Err(Refusal::ImageChanged { path: layer.path.clone(), problem });
            }
        }
    }
    snapshot.memory.as_ref().map_or(Ok(()), |memory| check_memory(world, memory))?;
    snapshot.variables.as_ref().map_or(Ok(()), |kept| variables::check(world, kept))
}

fn check_memory(world: &World, memory: &MemoryImage) -> Result<(), Refusal> {
    match world.memory_images.get(&memory.path) {
        None => Err(Refusal::ImageMissing(memory.path.clone())),
        Some(bytes) if *bytes != memory.bytes => {
            let problem = format!("it has {bytes} bytes, not {}", memory.bytes);
            Err(Refusal::ImageChanged { path: memory.path.clone(), problem })
        }
        Some(_) => Ok(()),
    }
}

/// Every layer that the snapshot reads must exist, lie on the one that the catalog says, and hold nobody else's content.
pub(super) fn check_chain(world: &World, top: LayerId) -> Result<(), Refusal> {
    check_unmerged(world, top)?;
    let chain = world.tree.chain(top);
    for (depth, layer) in chain.iter().enumerate() {
        let path = &layer.path;
        let facts = world.images.get(path).ok_or_else(|| match world.damaged.get(path) {
            Some(problem) => Refusal::ImageChanged { path: path.clone(), problem: problem.clone() },
            None => Refusal::ImageMissing(path.clone()),
        })?;
        let expected = chain.get(depth + 1).map(|parent| parent.path.as_path());
        let actual = facts.backing.as_ref().map(|backing| backing.path.as_path());
        if layer.format == Format::Qcow2 && expected != actual {
            let problem = match actual {
                Some(path) => format!("it lies on {}", path.display()),
                None => "it lies on nothing".to_owned(),
            };
            return Err(Refusal::ImageChanged { path: layer.path.clone(), problem });
        }
        let was = layer.seen.map(|seen| seen.length).filter(|_| !world.tree.is_active(layer.id));
        if let Some(was) = was.filter(|was| *was != facts.length) {
            let problem = format!("it has {} bytes, not {was}", facts.length);
            return Err(Refusal::ImageChanged { path: layer.path.clone(), problem });
        }
    }
    Ok(())
}

fn decide_start(
    world: &World,
    snapshot: &Snapshot,
    request: &RevertSnapshot,
    parts: &[Part],
) -> Result<Option<Start>, Refusal> {
    let as_it_was = if snapshot.memory.is_some() { snapshot.run_state } else { world.vm.run_state };
    let paused = match (request.run_state_after, as_it_was) {
        (RunStateAfter::Off, _) | (RunStateAfter::AsItWas, RunState::Off) => return Ok(None),
        (RunStateAfter::Running, _) => false,
        (RunStateAfter::Paused, _) => true,
        (RunStateAfter::AsItWas, state) => matches!(state, RunState::Paused(_)),
    };
    let disks = parts.iter().map(Part::pointed).collect();
    let Some(memory) = &snapshot.memory else { return Ok(Some(Start { from_memory: None, paused, disks })) };
    check_memory(world, memory)?;
    let from_memory = Some(StartFromMemory { snapshot: snapshot.id, path: memory.path.clone() });
    Ok(Some(Start { from_memory, paused, disks }))
}

fn starts_from_memory(start: Option<&Start>) -> bool {
    start.is_some_and(|start| start.from_memory.is_some())
}

/// The layer that the VM wrote to, if nothing refers to it once the VM writes elsewhere.
fn abandoned<'a>(world: &'a World, part: &Part) -> Option<&'a Layer> {
    let layer = world.tree.layers.get(&part.was_layer)?;
    let is_ours = layer.ownership == Ownership::Owned;
    let is_leaf = world.tree.children(layer.id).next().is_none();
    let is_free = world.tree.references(layer.id).next().is_none() && !world.tree.is_cloned(layer.id);
    (is_ours && is_leaf && is_free).then_some(layer)
}

fn removals(world: &World, parts: &[Part], has_variables: bool) -> Vec<Removal> {
    let mut removals = Vec::new();
    if world.vm.run_state.is_live() {
        removals.push(Removal {
            kind: RemovalKind::GuestMemory,
            id: String::new(),
            description: "what the guest has in memory: the VM is stopped hard".to_owned(),
            bytes: 0,
        });
    }
    for part in parts {
        let Some(layer) = abandoned(world, part) else { continue };
        removals.push(Removal {
            kind: RemovalKind::ActiveState,
            id: layer.id.to_string(),
            description: format!("what was written to disk {} since its last snapshot", part.target),
            bytes: world.images.get(&layer.path).map_or(0, |facts| facts.allocated),
        });
    }
    if has_variables {
        removals.push(Removal {
            kind: RemovalKind::ActiveState,
            id: String::new(),
            description: "the VM's UEFI variables as they are now".to_owned(),
            bytes: 0,
        });
    }
    removals
}

fn warnings(world: &World, snapshot: &Snapshot, is_from_memory: bool) -> Vec<String> {
    let removed = snapshot.disks.iter().filter(|held| find_disk(world, held).is_none());
    let mut warnings: Vec<String> = removed
        .map(|held| {
            let target = &held.target;
            format!("disk {target} of the snapshot was removed from the VM: it stays removed, its content stays kept")
        })
        .collect();
    for disk in &world.vm.disks {
        let known = disk.active().and_then(|image| world.tree.volume_writing(&image.path));
        let held = known.is_some_and(|volume| snapshot.disks.iter().any(|held| held.volume == volume.id));
        if !held && disk.active().is_some() {
            warnings.push(format!("disk {} is not in the snapshot and stays as it is", disk.target));
        }
    }
    if !is_from_memory {
        let variables = world.vm.variables.as_ref().filter(|_| snapshot.variables.is_none());
        let variables = variables.map(|file| format!("the UEFI variables ({})", file.path.display()));
        let others = world.vm.uncovered.iter().map(ToString::to_string);
        let uncovered = variables.into_iter().chain(others);
        warnings.extend(uncovered.map(|what| format!("not in the snapshot, it stays as it is: {what}")));
    }
    warnings
}
