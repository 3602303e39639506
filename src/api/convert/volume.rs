//! Volumes.

use std::collections::HashMap;

use super::{image_format, timestamp};
use crate::model::snapshot::Owner;
use crate::model::{CloneMode, CloneState, Labels, VmId};
use crate::ops::VolumeView;
use crate::proto::v1;

/// A volume as a client sees it, by what is written on VMs.
pub(in crate::api) fn volume(volume: &VolumeView, labels: &HashMap<VmId, Labels>) -> v1::Volume {
    let Owner { account, domain, project } = owner(volume, labels);
    let shown = v1::Volume {
        account,
        domain,
        project,
        id: volume.id.to_string(),
        name: volume.name.clone(),
        state: state(volume).into(),
        path: volume.image.path.display().to_string(),
        format: image_format(volume.image.format).into(),
        virtual_size_bytes: volume.facts.as_ref().map_or(0, |facts| facts.virtual_size),
        allocated_bytes: volume.facts.as_ref().map_or(0, |facts| facts.allocated),
        snapshot_count: u32::try_from(volume.snapshots).unwrap_or(u32::MAX),
        etag: volume.state.map(|layer| layer.to_string()).unwrap_or_default(),
        merge_debt: volume.user.is_none().then(|| v1::MergeDebt {
            layers: u32::try_from(volume.debt.0).unwrap_or(u32::MAX),
            bytes: volume.debt.1,
            waits_for: volume.waits_for.iter().map(ToString::to_string).collect(),
        }),
        operation_id: volume.holder.map(|holder| holder.to_string()).unwrap_or_default(),
        ..v1::Volume::default()
    };
    let shown = match &volume.user {
        None => shown,
        Some(place) => v1::Volume {
            vm_id: place.vm.id.to_string(),
            vm_name: place.vm.name.clone(),
            target: place.target.to_string(),
            ..shown
        },
    };
    let Some(clone) = &volume.clone else { return shown };
    let linked = clone.layer.map(|_| clone.source.to_string());
    v1::Volume {
        source_snapshot_id: linked.unwrap_or_default(),
        properties: clone.properties.clone(),
        create_time: Some(timestamp(clone.created_at)),
        etag: if shown.etag.is_empty() { clone.generation.to_string() } else { shown.etag },
        ..shown
    }
}

/// Whose it is: as it was cloned, else as is written on the VM that has it.
fn owner(volume: &VolumeView, labels: &HashMap<VmId, Labels>) -> Owner {
    let own = volume.clone.as_ref().map(|clone| clone.owner.clone()).unwrap_or_default();
    match volume.user.as_ref().and_then(|place| labels.get(&place.vm.id)) {
        Some(labels) => own.or_of(labels),
        None => own,
    }
}

fn state(volume: &VolumeView) -> v1::VolumeState {
    match (&volume.user, &volume.clone) {
        (_, Some(clone)) if clone.state == CloneState::Creating => v1::VolumeState::Creating,
        (Some(_), _) => v1::VolumeState::InUse,
        (None, _) => v1::VolumeState::Available,
    }
}

/// How a clone relates to its snapshot.
pub(in crate::api) fn clone_mode(mode: v1::CloneMode) -> CloneMode {
    match mode {
        v1::CloneMode::Unspecified | v1::CloneMode::Linked => CloneMode::Linked,
        v1::CloneMode::Full => CloneMode::Full,
    }
}
