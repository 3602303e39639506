//! A new VM out of a snapshot: the definition that was stored with it, under a new name and identity, over clones of the
//! disks. The VM that the snapshot is of is neither read nor written.

use std::collections::BTreeMap;

use crate::model::clone::ClonedVolume;
use crate::model::request::NewVmState;
use crate::model::snapshot::{SnapshotKind, SnapshotState};
use crate::model::step::{CatalogChange, ImageRef, NewVm, Step};
use crate::model::vm::Attachment;
use crate::model::{DeployVm, Format, Snapshot, VmId, VolumeId, VolumeName};

use super::clone::{Identity, Part};
use super::{NewIds, Plan, Refusal, World, check_space, directory_of, new_image_path, variables};

/// Plans a VM out of `snapshot`, which is in `world.tree`.
pub fn deploy_vm(
    world: &World,
    snapshot: &Snapshot,
    request: &DeployVm,
    ids: NewIds<'_>,
) -> Result<Plan, Refusal> {
    // One that is lost may be all that is left.
    if !matches!(snapshot.state, SnapshotState::Ready | SnapshotState::Lost) {
        return Err(Refusal::SnapshotNotReady(snapshot.state));
    }
    if snapshot.kind == SnapshotKind::Volume {
        return Err(Refusal::NoVmInSnapshot);
    }
    let vm = VmId(ids());
    let mut clones: Vec<ClonedVolume> = Vec::new();
    let mut making = Vec::new();
    let mut disks = Vec::new();
    let (mut bytes_to_copy, mut needs) = (0, BTreeMap::new());
    for disk in &snapshot.disks {
        let gone = || Refusal::DiskGone(disk.target.clone());
        let base = world.tree.layers.get(&disk.layer).ok_or_else(gone)?;
        let path = new_image_path(&directory_of(&base.path), ids());
        let part = Part::new(world, disk, path.clone())?;
        let name = format!("{}-{}", request.name, disk.target);
        let name = VolumeName::try_from(name).map_err(|_| Refusal::NoSuchDisk(disk.target.clone()))?;
        let owner = snapshot.owner.clone();
        let identity = Identity { id: VolumeId(ids()), name, path: path.clone(), mode: request.mode, owner };
        bytes_to_copy += part.bytes_to_copy(request.mode);
        *needs.entry(directory_of(&path)).or_insert(0) += part.bytes_needed(request.mode);
        making.push(part.step(request.mode, request.bandwidth));
        clones.push(part.clone_of(world, snapshot, identity));
        disks.push((disk.target.clone(), ImageRef { path, format: Format::Qcow2 }));
    }
    check_space(world, &needs)?;
    let new: Vec<VolumeId> = clones.iter().map(|clone| clone.id).collect();

    let mut steps = vec![Step::ReserveClones { clones: new.clone() }];
    steps.extend(making);
    let variables = variables::of_new_vm(world, snapshot, vm)?;
    let variables = variables.map(|(path, step)| {
        steps.push(step);
        path
    });
    // Until the VM is there as it was asked for, all of it can be taken back.
    let mut commit_point = steps.len();
    steps.push(Step::DefineVm(NewVm {
        snapshot: snapshot.id,
        vm,
        name: request.name.clone(),
        disks,
        new_serials: request.new_serials,
        variables,
    }));
    let paused = match request.then {
        NewVmState::Off => None,
        NewVmState::Paused => Some(true),
        NewVmState::Running => Some(false),
    };
    if let Some(paused) = paused {
        commit_point = steps.len();
        steps.push(Step::StartNewVm { vm, paused });
    }
    steps.push(Step::Record(CatalogChange::ClonesMade { clones: new }));
    Ok(Plan {
        clones,
        bytes_to_copy,
        bytes_needed: needs.values().sum(),
        warnings: warnings(world, snapshot),
        ..Plan::new(world, steps, commit_point)
    })
}

fn warnings(world: &World, snapshot: &Snapshot) -> Vec<String> {
    if world.vm.attachment == Attachment::Gone && snapshot.variables.is_some() {
        return vec![
            "where the VM kept its UEFI variables is not known, so the new VM begins with none".to_owned(),
        ];
    }
    let missing = world.vm.disks.iter().filter(|disk| {
        let is_held = snapshot.disks.iter().any(|held| held.target == disk.target);
        disk.active().is_some() && !is_held
    });
    missing
        .map(|disk| format!("disk {} is not in the snapshot, so the new VM will not have it", disk.target))
        .collect()
}
