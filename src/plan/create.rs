//! Taking a snapshot: which disks, whether to freeze, in which order.
//!
//! Everything that can be made ahead is made ahead: the freeze holds the switch and nothing else.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::model::layer::{Layer, Ownership, Volume};
use crate::model::snapshot::{MemoryImage, Snapshot, SnapshotDisk, SnapshotKind};
use crate::model::step::{CatalogChange, Freeze, ImageRef, NewOverlay, PointedDisk, Step, SwitchDisks};
use crate::model::vm::{AgentChannel, Attachment, DiskSource, DiskView, Format};
use crate::model::{
    CreateSnapshot, DiskTarget, Finding, LayerId, OperationId, Quiesce, RunState, SnapshotId, VolumeId,
};

use super::memory::{Memory, holds_memory};
use super::reserve::reserve;
use super::{
    NEW_OVERLAY_BYTES, NewIds, Plan, Refusal, World, check_disk, check_space, check_vm, detached,
    directory_of, overlay_path, variables,
};

/// Plans a snapshot.
///
/// `operation` and `created_by` are written into its reservation.
pub fn create(
    world: &World,
    request: &CreateSnapshot,
    operation: OperationId,
    created_by: &str,
    ids: NewIds<'_>,
) -> Result<Plan, Refusal> {
    if world.vm.attachment == Attachment::Detached {
        return detached::create(world, request, operation, created_by, ids);
    }
    check_vm(world)?;
    let disks = choose_disks(world, request)?;
    let freeze = decide_freeze(world, request)?;
    let snapshot = SnapshotId(ids());
    let parts: Vec<Part> = disks.iter().map(|disk| Part::new(world, disk, ids)).collect::<Result<_, _>>()?;
    let memory = Memory::plan(world, request, snapshot)?;
    let is_of_volume = request.kind == SnapshotKind::Volume;
    let variables = if is_of_volume { None } else { variables::kept(world, snapshot) };
    let memory_path = memory.as_ref().map(|memory| memory.path.clone());
    let needs = space_needed(world, &parts, memory_path.as_ref());
    check_space(world, &needs)?;
    let bytes_needed = needs.values().sum();

    let mut steps = vec![Step::ReserveSnapshot { snapshot }];
    steps.extend(parts.iter().map(|part| Step::CreateOverlay(part.overlay.clone())));
    steps.extend(memory.as_ref().map(Memory::prepare));
    steps.extend(variables.as_ref().and_then(|kept| variables::keep(world, kept)));
    let capture = memory.as_ref().and_then(Memory::before);
    if capture.is_some() || matches!(freeze, Freezing::Do(_)) {
        steps.push(Step::FlushImages { images: parts.iter().map(|part| part.from.path.clone()).collect() });
    }
    let mut findings = Vec::new();
    let mut required = false;
    match &freeze {
        Freezing::Do(freeze) => {
            required = freeze.required;
            steps.push(Step::Freeze(freeze.clone()));
        }
        Freezing::Skip(reason) => findings.push(Finding::NotFrozen { reason: (*reason).to_owned() }),
        Freezing::NoNeed => {}
    }
    if world.vm.run_state == RunState::Off {
        // Whoever else has one would go on writing to what the snapshot holds.
        steps.extend(parts.iter().map(|part| Step::CheckUnwritten { image: part.from.clone() }));
    }
    steps.extend(capture.into_iter().flatten());
    let mut commit_point = steps.len();
    steps.push(Step::SwitchDisks(SwitchDisks {
        disks: parts.iter().map(Part::switch).collect(),
        others: others(world, &disks),
        memory: memory.as_ref().and_then(Memory::with_switch),
        run_state: world.vm.run_state,
        quiesce_required: required,
    }));
    if let Some(behind) = memory.as_ref().and_then(Memory::behind) {
        steps.extend(behind);
        // Until the memory is complete all of it can be taken back.
        commit_point = steps.len() - 1;
    }
    if matches!(freeze, Freezing::Do(_)) {
        steps.push(Step::Thaw);
    }
    if required {
        // The thaw tells whether the guest stood still until then: only now is it known whether to keep the switch.
        commit_point = steps.len();
        steps.push(Step::ConfirmQuiesce);
    }
    steps.push(Step::Record(CatalogChange::SnapshotTaken {
        snapshot,
        disks: parts.iter().map(Part::snapshot_disk).collect(),
        layers: parts.iter().flat_map(|part| part.layers.clone()).collect(),
        volumes: parts.iter().map(Part::volume).collect(),
    }));

    let mut warnings: Vec<String> = findings
        .iter()
        .filter_map(|finding| match finding {
            Finding::NotFrozen { reason } => Some(format!("the snapshot will be crash-consistent: {reason}")),
            Finding::Frozen { .. }
            | Finding::FreezeLost { .. }
            | Finding::Thawed { .. }
            | Finding::Paused { .. }
            | Finding::Memory { .. } => None,
        })
        .collect();
    warnings.extend(memory.as_ref().and_then(|memory| memory.warning(world)));
    if request.kind == SnapshotKind::VmDisks {
        warnings.extend(
            variables::uncovered(world).into_iter().map(|what| format!("not in the snapshot: {what}")),
        );
    }
    let reservation = Snapshot {
        parent: if is_of_volume { None } else { world.tree.current },
        memory: memory_path.map(|path| MemoryImage { path, bytes: 0 }),
        variables,
        ..reserve(world, snapshot, request.kind, &request.label, (operation, created_by))?
    };
    Ok(Plan {
        findings,
        reservation: Some(reservation),
        warnings,
        bytes_needed,
        ..Plan::new(world, steps, commit_point)
    })
}

/// A disk to be taken, with the names of all that is made for it.
struct Part {
    target: DiskTarget,
    volume: VolumeId,
    /// The layer that becomes frozen.
    frozen: LayerId,
    from: ImageRef,
    overlay: NewOverlay,
    overlay_layer: LayerId,
    virtual_size: u64,
    allocated: u64,
    /// Layers that the catalog does not know yet, parents first, the new overlay last.
    layers: Vec<Layer>,
}

impl Part {
    fn new(world: &World, disk: &DiskView, ids: NewIds<'_>) -> Result<Self, Refusal> {
        let known = check_disk(world, disk)?;
        let active = disk.active().ok_or_else(|| Refusal::NoSuchDisk(disk.target.clone()))?;
        let facts =
            world.images.get(&active.path).ok_or_else(|| Refusal::ImageMissing(active.path.clone()))?;
        let (volume, frozen, mut layers) = match known {
            Some(volume) => (volume.id, volume.active, Vec::new()),
            None => adopt(world, disk, ids),
        };
        let path = overlay_path(world, disk, ids())?;
        let overlay_layer = LayerId(ids());
        layers.push(Layer {
            id: overlay_layer,
            volume,
            parent: Some(frozen),
            path: path.clone(),
            format: Format::Qcow2,
            ownership: Ownership::Owned,
            virtual_size: facts.virtual_size,
            seen: None,
            is_set_aside: false,
        });
        Ok(Self {
            target: disk.target.clone(),
            volume,
            frozen,
            from: ImageRef { path: active.path.clone(), format: active.format },
            overlay: NewOverlay {
                target: disk.target.clone(),
                path,
                backing_path: active.path.clone(),
                backing_format: active.format,
                virtual_size: facts.virtual_size,
            },
            overlay_layer,
            virtual_size: facts.virtual_size,
            allocated: facts.allocated,
            layers,
        })
    }

    fn switch(&self) -> PointedDisk {
        PointedDisk {
            target: self.target.clone(),
            from: self.from.clone(),
            to: ImageRef { path: self.overlay.path.clone(), format: Format::Qcow2 },
        }
    }

    fn snapshot_disk(&self) -> SnapshotDisk {
        SnapshotDisk {
            target: self.target.clone(),
            volume: self.volume,
            layer: self.frozen,
            virtual_size: self.virtual_size,
            allocated: self.allocated,
        }
    }

    fn volume(&self) -> Volume {
        Volume { id: self.volume, target: self.target.clone(), active: self.overlay_layer }
    }
}

/// Takes a disk into the catalog: its active image is ours from now on, all below it are somebody else's.
pub(super) fn adopt(world: &World, disk: &DiskView, ids: NewIds<'_>) -> (VolumeId, LayerId, Vec<Layer>) {
    let active = disk.active().map(|image| image.path.display().to_string()).unwrap_or_default();
    // A clone that became a disk is the volume that it was.
    let cloned = disk.active().and_then(|image| world.volumes.get(&image.path)).copied();
    let unknown = || match world.vm.attachment {
        Attachment::Attached | Attachment::Gone => {
            VolumeId::of_unknown_disk(world.vm.id, &disk.target, &active)
        }
        Attachment::Detached => VolumeId(world.vm.id.0),
    };
    let volume = cloned.unwrap_or_else(unknown);
    let mut layers: Vec<Layer> = Vec::new();
    for (depth, image) in disk.chain().iter().enumerate().rev() {
        layers.push(Layer {
            id: LayerId(ids()),
            volume,
            parent: layers.last().map(|layer| layer.id),
            path: image.path.clone(),
            format: image.format,
            ownership: if depth == 0 { Ownership::Owned } else { Ownership::Foreign },
            virtual_size: world.images.get(&image.path).map_or(0, |facts| facts.virtual_size),
            seen: None,
            is_set_aside: false,
        });
    }
    let frozen = layers.last().map_or_else(LayerId::new, |layer| layer.id);
    (volume, frozen, layers)
}

fn choose_disks<'a>(world: &'a World, request: &CreateSnapshot) -> Result<Vec<&'a DiskView>, Refusal> {
    if let Some(missing) = request.disks.iter().find(|target| world.vm.disk(target).is_none()) {
        return Err(Refusal::NoSuchDisk(missing.clone()));
    }
    let named = |disk: &DiskView| request.disks.contains(&disk.target);
    let mut chosen = Vec::new();
    for disk in &world.vm.disks {
        if !request.disks.is_empty() && !named(disk) {
            continue;
        }
        match &disk.source {
            DiskSource::Chain { .. } => chosen.push(disk),
            DiskSource::Excluded(why) if named(disk) => {
                return Err(Refusal::DiskExcluded { disk: disk.target.clone(), why: *why });
            }
            DiskSource::Excluded(_) => {}
            DiskSource::Refused(why) => {
                return Err(Refusal::DiskRefused { disk: disk.target.clone(), why: why.clone() });
            }
        }
    }
    if chosen.is_empty() { Err(Refusal::NoDisks) } else { Ok(chosen) }
}

fn others(world: &World, chosen: &[&DiskView]) -> Vec<DiskTarget> {
    let is_chosen = |target: &DiskTarget| chosen.iter().any(|disk| disk.target == *target);
    world.vm.disks.iter().map(|disk| disk.target.clone()).filter(|target| !is_chosen(target)).collect()
}

/// What to do about the guest's file systems.
enum Freezing {
    Do(Freeze),
    /// Not done though it would be good; the reason why.
    Skip(&'static str),
    /// Nothing writes, or memory holds it all.
    NoNeed,
}

fn decide_freeze(world: &World, request: &CreateSnapshot) -> Result<Freezing, Refusal> {
    if holds_memory(request) || world.vm.run_state == RunState::Off {
        return Ok(Freezing::NoNeed);
    }
    let required = match request.quiesce {
        Quiesce::Off => return Ok(Freezing::Skip("the request asked for no freeze")),
        Quiesce::Auto => false,
        Quiesce::Required => true,
    };
    let obstacle = match (world.vm.run_state, world.vm.agent) {
        (RunState::Running, AgentChannel::Connected) => None,
        (RunState::Running, AgentChannel::Disconnected) => {
            Some((Refusal::AgentDisconnected, "the guest agent is not connected"))
        }
        (RunState::Running, AgentChannel::Absent) => {
            Some((Refusal::AgentAbsent, "the VM has no guest agent channel"))
        }
        (RunState::Paused(_) | RunState::Off | RunState::Unsettled | RunState::Migrated, _) => {
            Some((Refusal::QuiesceWhilePaused, "the VM is paused"))
        }
    };
    match obstacle {
        None => Ok(Freezing::Do(Freeze {
            mount_points: request.mount_points.clone(),
            required,
            timeout_ms: request.freeze_timeout_ms,
        })),
        Some((refusal, _)) if required => Err(refusal),
        Some((_, reason)) => Ok(Freezing::Skip(reason)),
    }
}

fn space_needed(world: &World, parts: &[Part], memory: Option<&PathBuf>) -> BTreeMap<PathBuf, u64> {
    let mut needs = BTreeMap::new();
    for part in parts {
        *needs.entry(directory_of(&part.overlay.path)).or_insert(0) += NEW_OVERLAY_BYTES;
    }
    if let Some(path) = memory {
        *needs.entry(directory_of(path)).or_insert(0) += world.vm.memory_bytes;
    }
    needs
}
