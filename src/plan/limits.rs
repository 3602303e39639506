//! What the limits of a schedule are about: what its snapshots take, and where the next one of them would write.
//!
//! Decides which images count for which snapshot. Leaves the comparing to `schedule`, which looks at the files.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::Places;
use crate::model::vm::{DiskSource, DiskView};
use crate::model::{DiskTarget, LayerId, LayerTree, Snapshot, VmView};

/// The layers whose sizes [`taken_up`] has to know.
#[must_use]
pub fn weighed(tree: &LayerTree, snapshot: &Snapshot) -> BTreeSet<LayerId> {
    let of_disks = snapshot.disks.iter().map(|disk| disk.layer);
    of_disks.flat_map(|layer| tree.children(layer).map(|child| child.id).chain([layer])).collect()
}

/// What a snapshot takes, as its images are now, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TakenUp {
    /// In all: what was written over it since, and its memory. What lies below, and first of all the VM's own image, is there
    /// with and without it.
    pub bytes: u64,
    /// What goes back with it at the most: of what was written over it no more than its own layers hold, since only that can
    /// be there twice.
    pub freed: u64,
}

/// What a snapshot takes, where layers have these sizes.
#[must_use]
pub fn taken_up(tree: &LayerTree, snapshot: &Snapshot, allocated: &BTreeMap<LayerId, u64>) -> TakenUp {
    let size = |layer: LayerId| allocated.get(&layer).copied().unwrap_or(0);
    let memory = snapshot.memory.as_ref().map_or(0, |memory| memory.bytes);
    snapshot.disks.iter().fold(TakenUp { bytes: memory, freed: memory }, |sum, disk| {
        let above = tree.children(disk.layer).fold(0_u64, |sum, child| sum.saturating_add(size(child.id)));
        TakenUp {
            bytes: sum.bytes.saturating_add(above),
            freed: sum.freed.saturating_add(above.min(size(disk.layer))),
        }
    })
}

/// The disks that a snapshot of these would take; none are named for all.
pub fn taken<'a>(view: &'a VmView, named: &BTreeSet<DiskTarget>) -> impl Iterator<Item = &'a DiskView> {
    let is_named = |disk: &&DiskView| named.is_empty() || named.contains(&disk.target);
    let disks = view.disks.iter().filter(is_named);
    disks.filter(|disk| matches!(disk.source, DiskSource::Chain { .. }))
}

/// The directories that a snapshot of these disks would write to: beside their images, where the overlays over block devices
/// are, and where memory is kept.
#[must_use]
pub fn written<'a>(
    view: &'a VmView,
    named: &BTreeSet<DiskTarget>,
    memory: bool,
    places: &'a Places,
) -> BTreeSet<&'a Path> {
    let of_disk = |disk: &'a DiskView| {
        let active = disk.active()?;
        if active.is_block_device { places.overlays.as_deref() } else { active.path.parent() }
    };
    let of_memory = memory.then_some(PathBuf::as_path(&places.memory));
    taken(view, named).filter_map(of_disk).chain(of_memory).collect()
}
