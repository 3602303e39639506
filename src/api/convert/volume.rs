//! Volumes.

use super::image_format;
use crate::ops::VolumeView;
use crate::proto::v1;

/// A volume as a client sees it.
pub(in crate::api) fn volume(volume: &VolumeView) -> v1::Volume {
    v1::Volume {
        id: volume.id.to_string(),
        name: volume.name.clone(),
        state: v1::VolumeState::InUse.into(),
        vm_id: volume.vm.id.to_string(),
        vm_name: volume.vm.name.clone(),
        target: volume.target.to_string(),
        path: volume.image.path.display().to_string(),
        format: image_format(volume.image.format).into(),
        virtual_size_bytes: volume.facts.as_ref().map_or(0, |facts| facts.virtual_size),
        allocated_bytes: volume.facts.as_ref().map_or(0, |facts| facts.allocated),
        snapshot_count: u32::try_from(volume.snapshots).unwrap_or(u32::MAX),
        operation_id: volume.holder.map(|holder| holder.to_string()).unwrap_or_default(),
        etag: volume.active.map(|layer| layer.to_string()).unwrap_or_default(),
        ..v1::Volume::default()
    }
}
