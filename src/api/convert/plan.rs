//! Plans, as a client that only asks what would happen sees them.

use crate::api::status;
use crate::model::Step;
use crate::model::step::{CatalogChange, Start};
use crate::ops::OpsError;
use crate::plan::{Plan, Removal, RemovalKind, describe};
use crate::proto::v1;

/// What would be done.
pub(in crate::api) fn plan(plan: &Plan, kind: v1::OperationKind) -> v1::Plan {
    let steps = plan.steps.iter().enumerate().map(|(index, step)| v1::PlanStep {
        index: u32::try_from(index).unwrap_or(u32::MAX),
        description: describe(step),
        commit_point: index == plan.commit_point,
    });
    let is_stopped = plan.steps.iter().any(|step| matches!(step, Step::Stop { .. }));
    let start = plan.steps.iter().find_map(|step| match step {
        Step::Start(start) => Some(start),
        _ => None,
    });
    v1::Plan {
        kind: kind.into(),
        summary: summary(plan),
        vm_id: plan.vm.map(|vm| vm.to_string()).unwrap_or_default(),
        vm_name: plan.vm_name.clone(),
        steps: steps.collect(),
        warnings: plan.warnings.clone(),
        removals: plan.removals.iter().map(removal).collect(),
        bytes_needed: plan.bytes_needed,
        bytes_to_copy: plan.bytes_to_copy,
        bytes_freed: plan.removals.iter().map(|removal| removal.bytes).sum(),
        restarts_guest: is_stopped && start.is_some(),
        run_state_after: run_state_after(start, is_stopped).into(),
        ..v1::Plan::default()
    }
}

/// Why nothing would be done.
pub(in crate::api) fn blocked_plan(error: &OpsError, kind: v1::OperationKind) -> v1::Plan {
    v1::Plan {
        kind: kind.into(),
        summary: "nothing would be done".to_owned(),
        blockers: vec![status::blocker(error)],
        ..v1::Plan::default()
    }
}

fn summary(plan: &Plan) -> String {
    let change = plan.steps.iter().find_map(|step| match step {
        Step::Record(CatalogChange::LayersMerged { .. }) => None,
        Step::Record(change) => Some(change),
        _ => None,
    });
    match change {
        Some(CatalogChange::SnapshotTaken { disks, .. }) => {
            let targets: Vec<&str> = disks.iter().map(|disk| disk.target.as_str()).collect();
            format!("take a snapshot of {}", targets.join(", "))
        }
        Some(CatalogChange::SnapshotReverted { volumes, .. }) => {
            let targets: Vec<&str> = volumes.iter().map(|volume| volume.target.as_str()).collect();
            format!("bring {} back to the snapshot", targets.join(", "))
        }
        Some(CatalogChange::SnapshotsDeleted { snapshots, .. }) => {
            let what = match snapshots.len() {
                1 => "the snapshot".to_owned(),
                several => format!("{several} snapshots"),
            };
            format!("delete {what}, merging {} layers", merged_layers(plan))
        }
        Some(CatalogChange::ClonesMade { clones }) => {
            let new = plan.steps.iter().find_map(|step| match step {
                Step::DefineVm(new) => Some(format!("make VM {} out of the snapshot", new.name)),
                _ => None,
            });
            new.unwrap_or_else(|| format!("make {} volume out of the snapshot", clones.len()))
        }
        Some(CatalogChange::CloneFlattened { .. }) => "let the volume stand alone".to_owned(),
        Some(CatalogChange::CloneDeleted { .. }) => "delete the volume".to_owned(),
        Some(CatalogChange::ChainAdopted { .. }) => "go on from what somebody merged".to_owned(),
        Some(CatalogChange::SnapshotsLost { snapshots, .. }) => {
            format!("give {} snapshots up as LOST", snapshots.len())
        }
        Some(CatalogChange::FileAdopted { .. }) => "take the file that stands there for the same".to_owned(),
        Some(CatalogChange::DiskSetAside { .. }) => "let the disk be away".to_owned(),
        Some(CatalogChange::LayersMerged { .. }) => String::new(),
        None => plan.steps.first().map(describe).unwrap_or_default(),
    }
}

/// Layers that go away in merges.
fn merged_layers(plan: &Plan) -> usize {
    let layers = plan.steps.iter().map(|step| match step {
        Step::Merge(layers) => layers.merges.iter().map(|merge| merge.gone().count()).sum(),
        _ => 0,
    });
    layers.sum()
}

fn removal(removal: &Removal) -> v1::Removal {
    v1::Removal {
        kind: match removal.kind {
            RemovalKind::Snapshot => v1::RemovalKind::Snapshot,
            RemovalKind::ActiveState => v1::RemovalKind::ActiveState,
            RemovalKind::GuestMemory => v1::RemovalKind::GuestMemory,
            RemovalKind::Volume => v1::RemovalKind::Volume,
            RemovalKind::File => v1::RemovalKind::File,
        }
        .into(),
        id: removal.id.clone(),
        description: removal.description.clone(),
        bytes: removal.bytes,
    }
}

/// Unspecified where the VM goes on doing what it does.
fn run_state_after(start: Option<&Start>, is_stopped: bool) -> v1::RunState {
    match (start, is_stopped) {
        (Some(start), _) if start.paused => v1::RunState::Paused,
        (Some(_), _) => v1::RunState::Running,
        (None, true) => v1::RunState::Off,
        (None, false) => v1::RunState::Unspecified,
    }
}
