//! VMs and their disks.

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;

use super::{image_format, run_state};
use crate::host::VmSummary;
use crate::model::vm::{AgentChannel, DiskSource, DiskView, Uncovered};
use crate::model::{ImageFacts, LayerTree, OperationId, VmView, VolumeId};
use crate::ops::Wait;
use crate::proto::v1;

/// What the engine knows of a VM, besides how it looks.
pub(in crate::api) struct KnownVm<'a> {
    pub(in crate::api) tree: &'a LayerTree,
    /// Of its images, as far as they were looked at.
    pub(in crate::api) sizes: HashMap<PathBuf, ImageFacts>,
    /// The operation at work on it.
    pub(in crate::api) holder: Option<OperationId>,
    /// What its layers wait for that no snapshot needs.
    pub(in crate::api) waits_for: BTreeSet<Wait>,
}

/// A VM in a list: what can be said without looking at its disks.
pub(in crate::api) fn vm_summary(vm: &VmSummary, known: &KnownVm<'_>) -> v1::Vm {
    let tree = known.tree;
    v1::Vm {
        id: vm.id.to_string(),
        name: vm.name.clone(),
        run_state: run_state(vm.run_state).into(),
        full_disks: vm.full_disks.iter().map(ToString::to_string).collect(),
        current_snapshot_id: tree.current.map(|current| current.to_string()).unwrap_or_default(),
        snapshot_count: u32::try_from(tree.snapshots.len()).unwrap_or(u32::MAX),
        operation_id: known.holder.map(|holder| holder.to_string()).unwrap_or_default(),
        merge_debt: Some(merge_debt(known)),
        ..v1::Vm::default()
    }
}

/// A VM with its disks.
pub(in crate::api) fn vm(view: &VmView, known: &KnownVm<'_>) -> v1::Vm {
    let has = |is: fn(&Uncovered) -> bool| view.uncovered.iter().any(is);
    let summary = VmSummary {
        id: view.id,
        name: view.name.clone(),
        run_state: view.run_state,
        full_disks: view.full_disks.clone(),
    };
    v1::Vm {
        disks: view.disks.iter().map(|seen| disk(view, seen, known)).collect(),
        agent_connected: view.agent == AgentChannel::Connected,
        memory_bytes: view.memory_bytes,
        persistent: view.persistent,
        uefi: view.variables.is_some() || has(|what| matches!(what, Uncovered::UefiVariables(_))),
        tpm: has(|what| matches!(what, Uncovered::Tpm(_))),
        ..vm_summary(&summary, known)
    }
}

fn merge_debt(known: &KnownVm<'_>) -> v1::MergeDebt {
    let waits_for = known.waits_for.iter().map(ToString::to_string).collect();
    let mut debt = v1::MergeDebt { waits_for, ..v1::MergeDebt::default() };
    for layer in known.tree.pending() {
        debt.layers += 1;
        debt.bytes += known.sizes.get(&layer.path).map_or(0, |facts| facts.allocated);
    }
    debt
}

fn disk(view: &VmView, seen: &DiskView, known: &KnownVm<'_>) -> v1::VmDisk {
    let tree = known.tree;
    let mut disk = v1::VmDisk { target: seen.target.to_string(), ..v1::VmDisk::default() };
    match &seen.source {
        DiskSource::Chain { .. } => disk.snapshottable = true,
        DiskSource::Excluded(why) => disk.refusal_reason = why.to_string(),
        DiskSource::Refused(why) => disk.refusal_reason = why.to_string(),
    }
    let Some(active) = seen.active() else { return disk };
    let path = active.path.display().to_string();
    let volume = tree.volume_writing(&active.path).map(|volume| volume.id);
    let unknown = || VolumeId::of_unknown_disk(view.id, &seen.target, &path);
    disk.volume_id = volume.unwrap_or_else(unknown).to_string();
    disk.format = image_format(active.format).into();
    if let Some(facts) = known.sizes.get(&active.path) {
        disk.virtual_size_bytes = facts.virtual_size;
        disk.allocated_bytes = facts.allocated;
    }
    disk.path = path;
    disk.chain_depth = u32::try_from(seen.chain().len()).unwrap_or(u32::MAX);
    disk
}
