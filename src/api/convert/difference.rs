//! Differences between the catalog and the host.

use crate::model::{Difference, DifferenceAction, DifferenceKind};
use crate::proto::v1;

/// A difference.
pub(in crate::api) fn difference(difference: &Difference) -> v1::Difference {
    v1::Difference {
        id: difference.id().to_string(),
        kind: kind(difference.kind).into(),
        vm_id: difference.vm.map(|vm| vm.to_string()).unwrap_or_default(),
        vm_name: difference.vm_name.clone(),
        disk: difference.disk.as_ref().map(ToString::to_string).unwrap_or_default(),
        path: difference.path.as_ref().map(|path| path.display().to_string()).unwrap_or_default(),
        snapshot_ids: difference.snapshots.iter().map(ToString::to_string).collect(),
        description: difference.description.clone(),
        blocks: difference.blocks,
        actions: difference.actions.iter().map(|way| i32::from(action(*way))).collect(),
    }
}

fn action(action: DifferenceAction) -> v1::DifferenceAction {
    match action {
        DifferenceAction::Adopt => v1::DifferenceAction::Adopt,
        DifferenceAction::Restore => v1::DifferenceAction::Restore,
        DifferenceAction::MarkLost => v1::DifferenceAction::MarkLost,
        DifferenceAction::RemoveFile => v1::DifferenceAction::RemoveFile,
    }
}

/// The way that is asked for. None for one that is not.
pub(in crate::api) fn asked_action(action: v1::DifferenceAction) -> Option<DifferenceAction> {
    match action {
        v1::DifferenceAction::Unspecified => None,
        v1::DifferenceAction::Adopt => Some(DifferenceAction::Adopt),
        v1::DifferenceAction::Restore => Some(DifferenceAction::Restore),
        v1::DifferenceAction::MarkLost => Some(DifferenceAction::MarkLost),
        v1::DifferenceAction::RemoveFile => Some(DifferenceAction::RemoveFile),
    }
}

fn kind(kind: DifferenceKind) -> v1::DifferenceKind {
    match kind {
        DifferenceKind::UnknownOverlay => v1::DifferenceKind::UnknownOverlay,
        DifferenceKind::ImageMissing => v1::DifferenceKind::ImageMissing,
        DifferenceKind::ImageChanged => v1::DifferenceKind::ImageChanged,
        DifferenceKind::LayerMerged => v1::DifferenceKind::LayerMerged,
        DifferenceKind::DefinitionDiffers => v1::DifferenceKind::DefinitionDiffers,
        DifferenceKind::VmMigrated => v1::DifferenceKind::VmMigrated,
        DifferenceKind::VmUndefined => v1::DifferenceKind::VmUndefined,
        DifferenceKind::DiskSetChanged => v1::DifferenceKind::DiskSetChanged,
        DifferenceKind::OrphanFile => v1::DifferenceKind::OrphanFile,
        DifferenceKind::ManifestUnwritten => v1::DifferenceKind::ManifestUnwritten,
        DifferenceKind::ForeignBlockJob => v1::DifferenceKind::ForeignBlockJob,
    }
}
