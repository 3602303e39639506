//! The tree of layers of one VM, and who refers to which.
//!
//! Decides what a reference is and which layers nothing refers to. Leaves what to do about it to `plan`.
//! Must never know whether a file exists.
//!
//! A layer is *active* (the VM writes to it), *frozen* (a snapshot or a clone refers to it) or *pending* (nothing refers to it,
//! and it has not gone yet). None of the three is stored: each follows from the references.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::clone::ClonedVolume;
use super::ids::{DiskTarget, LayerId, SnapshotId, VmId, VolumeId};
use super::snapshot::{Snapshot, SnapshotState};
use super::vm::{Format, Seen};

/// One image file of a chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    /// Its identity.
    pub id: LayerId,
    /// The volume that it is a layer of.
    pub volume: VolumeId,
    /// The layer that it covers: its backing file. None for the bottom of a chain.
    pub parent: Option<LayerId>,
    /// Absolute path.
    pub path: PathBuf,
    /// Its format.
    pub format: Format,
    /// Whether we may write to it or remove it.
    pub ownership: Ownership,
    /// Size that the guest sees, in bytes.
    pub virtual_size: u64,
    /// Its file, as it was left in order by the last operation; None until it was looked at since.
    #[serde(default)]
    pub seen: Option<Seen>,
    /// The disk that writes to it was taken away from the VM, and somebody has said that this was meant.
    #[serde(default)]
    pub is_set_aside: bool,
}

/// Whether we may write to a layer or remove it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ownership {
    /// It was active under our care at some time.
    Owned,
    /// A template or a golden image: others may use it. Never written, never removed.
    Foreign,
}

/// A disk of a VM, whatever image is active.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// Its identity.
    pub id: VolumeId,
    /// Where the VM has it.
    pub target: DiskTarget,
    /// The layer that the VM writes to.
    pub active: LayerId,
}

/// What the catalog knows of one VM: volumes, layers, snapshots.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerTree {
    /// The VM.
    pub vm: VmId,
    /// Its volumes.
    pub volumes: Vec<Volume>,
    /// All layers of all volumes.
    pub layers: BTreeMap<LayerId, Layer>,
    /// Its snapshots, oldest first.
    pub snapshots: Vec<Snapshot>,
    /// The clones made out of its snapshots.
    pub clones: Vec<ClonedVolume>,
    /// The snapshot that the VM's present state descends from.
    pub current: Option<SnapshotId>,
    /// Layers that other VMs read through images that we do not know. Seen when it matters, never stored.
    pub read_elsewhere: BTreeSet<LayerId>,
}

impl LayerTree {
    /// The tree of a VM that the catalog does not know.
    #[must_use]
    pub fn empty(vm: VmId) -> Self {
        Self {
            vm,
            volumes: Vec::new(),
            layers: BTreeMap::new(),
            snapshots: Vec::new(),
            clones: Vec::new(),
            current: None,
            read_elsewhere: BTreeSet::new(),
        }
    }

    /// The volume with this identity.
    #[must_use]
    pub fn volume(&self, id: VolumeId) -> Option<&Volume> {
        self.volumes.iter().find(|volume| volume.id == id)
    }

    /// The volume whose active layer is the image at `path`.
    #[must_use]
    pub fn volume_writing(&self, path: &Path) -> Option<&Volume> {
        self.volumes
            .iter()
            .find(|volume| self.layers.get(&volume.active).is_some_and(|layer| layer.path == path))
    }

    /// The image of the volume that this is the tree of. None if it is the tree of a VM.
    #[must_use]
    pub fn detached_image(&self) -> Option<&Layer> {
        let own = self.volumes.iter().find(|volume| VmId::of_detached(volume.id) == self.vm)?;
        self.layers.get(&own.active)
    }

    /// The layer stored at `path`.
    #[must_use]
    pub fn layer_at(&self, path: &Path) -> Option<&Layer> {
        self.layers.values().find(|layer| layer.path == path)
    }

    /// The snapshot with this identity.
    #[must_use]
    pub fn snapshot(&self, id: SnapshotId) -> Option<&Snapshot> {
        self.snapshots.iter().find(|snapshot| snapshot.id == id)
    }

    /// The layers that lie directly on `layer`.
    pub fn children(&self, layer: LayerId) -> impl Iterator<Item = &Layer> {
        self.layers.values().filter(move |child| child.parent == Some(layer))
    }

    /// Whether the VM writes to `layer`.
    #[must_use]
    pub fn is_active(&self, layer: LayerId) -> bool {
        self.volumes.iter().any(|volume| volume.active == layer)
    }

    /// The snapshots that refer to `layer`, but for those on their way out.
    pub fn references(&self, layer: LayerId) -> impl Iterator<Item = &Snapshot> {
        self.snapshots.iter().filter(move |snapshot| {
            snapshot.state != SnapshotState::Deleting && snapshot.disks.iter().any(|disk| disk.layer == layer)
        })
    }

    /// Whether a linked clone lies on `layer`, made by us or behind our back.
    #[must_use]
    pub fn is_cloned(&self, layer: LayerId) -> bool {
        self.clones.iter().any(|clone| clone.layer == Some(layer)) || self.read_elsewhere.contains(&layer)
    }

    /// Whether nothing needs `layer` for its own sake: no snapshot and no clone refers to it, the VM does not write to
    /// it, and it is ours to change. What lies on it may still read through it.
    #[must_use]
    pub fn is_free(&self, layer: &Layer) -> bool {
        layer.ownership == Ownership::Owned
            && !self.is_active(layer.id)
            && !self.is_cloned(layer.id)
            && self.references(layer.id).next().is_none()
    }

    /// The snapshots that read through a layer.
    #[must_use]
    pub fn readers(&self, layer: LayerId) -> Vec<SnapshotId> {
        let reads = |top: LayerId| self.chain(top).iter().any(|read| read.id == layer);
        let readers = self.snapshots.iter();
        let readers = readers.filter(|snapshot| snapshot.disks.iter().any(|disk| reads(disk.layer)));
        readers.map(|snapshot| snapshot.id).collect()
    }

    /// The layers that are to be merged or removed, as soon as the tree allows it: the merge debt.
    pub fn pending(&self) -> impl Iterator<Item = &Layer> {
        self.layers.values().filter(|layer| self.is_free(layer))
    }

    /// From `layer` down to the bottom of its chain, `layer` first.
    #[must_use]
    pub fn chain(&self, layer: LayerId) -> Vec<&Layer> {
        let mut chain: Vec<&Layer> = Vec::new();
        let mut next = Some(layer);
        while let Some(layer) = next.and_then(|id| self.layers.get(&id)) {
            // A tree has no cycles; a damaged catalog must not hang us.
            if chain.len() > self.layers.len() {
                break;
            }
            chain.push(layer);
            next = layer.parent;
        }
        chain
    }
}
