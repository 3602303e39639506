//! What a change means for the tree of a VM. Pure: `store` writes down what comes out.
//!
//! Applying a change twice is applying it once, because a step may be repeated.

use std::path::Path;

use super::clone::CloneState;
use super::layer::{Layer, LayerTree, Ownership, Volume};
use super::operation::{Failure, Findings};
use super::snapshot::{Consistency, Snapshot, SnapshotKind, SnapshotState};
use super::step::{CatalogChange, MergedLayers, Survivor};
use super::vm::{RunState, Seen};
use super::{LayerId, SnapshotId, VolumeId};

impl LayerTree {
    /// Lets `change` be so. What was learned on the way goes into the snapshot.
    pub fn apply(&mut self, change: &CatalogChange, findings: &Findings) {
        match change {
            CatalogChange::SnapshotTaken { snapshot, disks, layers, volumes } => {
                self.take_in(layers, volumes);
                if self.snapshot(*snapshot).is_some_and(|snapshot| snapshot.kind != SnapshotKind::Volume) {
                    self.current = Some(*snapshot);
                }
                self.change_snapshot(*snapshot, |snapshot| {
                    snapshot.disks.clone_from(disks);
                    snapshot.enter(SnapshotState::Ready);
                    // One that is taken out of another is as good as that one, whatever was learned.
                    snapshot
                        .consistency
                        .get_or_insert_with(|| consistency(snapshot.kind, snapshot.run_state, findings));
                    snapshot.frozen_ms = findings.frozen_ms;
                    snapshot.paused_ms = findings.paused_ms;
                    if let (Some(memory), Some(bytes)) = (&mut snapshot.memory, findings.memory_bytes) {
                        memory.bytes = bytes;
                    }
                });
            }
            CatalogChange::SnapshotReverted { snapshot, is_current, layers, volumes, gone } => {
                self.take_in(layers, volumes);
                self.forget_layers(gone);
                if *is_current {
                    self.current = Some(*snapshot);
                }
                self.change_snapshot(*snapshot, |snapshot| snapshot.enter(SnapshotState::Ready));
            }
            CatalogChange::LayersMerged { merged } => {
                for merged in merged {
                    self.merge_layers(merged);
                }
            }
            CatalogChange::ClonesMade { clones } => {
                for clone in self.clones.iter_mut().filter(|clone| clones.contains(&clone.id)) {
                    clone.state = CloneState::Available;
                    clone.generation += 1;
                }
            }
            CatalogChange::CloneFlattened { volume, path, source: _ } => {
                for clone in self.clones.iter_mut().filter(|clone| clone.id == *volume) {
                    clone.layer = None;
                    clone.generation += 1;
                }
                self.cut_below(path);
            }
            CatalogChange::CloneDeleted { volume } => self.clones.retain(|clone| clone.id != *volume),
            CatalogChange::SnapshotsDeleted { snapshots, gone } => {
                for snapshot in snapshots {
                    self.forget_snapshot(*snapshot);
                }
                self.forget_layers(gone);
            }
            CatalogChange::ChainAdopted { layers, volumes, gone, snapshots, why } => {
                self.take_in(layers, volumes);
                self.forget_layers(gone);
                self.doubt(snapshots, SnapshotState::Error, why);
            }
            CatalogChange::SnapshotsLost { snapshots, why } => {
                self.doubt(snapshots, SnapshotState::Lost, why);
            }
            CatalogChange::FileAdopted { layer, seen } => self.remember(&[(*layer, *seen)]),
            CatalogChange::DiskSetAside { volume, is_gone } => self.set_aside(*volume, *is_gone),
        }
        self.forget_detached();
    }

    /// Snapshots do not read what they should any more.
    fn doubt(&mut self, snapshots: &[SnapshotId], state: SnapshotState, why: &Failure) {
        for id in snapshots {
            // What was only somebody's word is known now.
            let is_news = |snapshot: &Snapshot| snapshot.state != state || snapshot.is_only_declared();
            if self.snapshot(*id).is_some_and(is_news) {
                self.change_snapshot(*id, |snapshot| {
                    snapshot.state = state;
                    snapshot.trouble = Some(why.clone());
                });
            }
        }
    }

    fn set_aside(&mut self, volume: VolumeId, is_gone: bool) {
        let Some(active) = self.volume(volume).map(|volume| volume.active) else { return };
        if !is_gone {
            if let Some(layer) = self.layers.get_mut(&active) {
                layer.is_set_aside = true;
            }
            return;
        }
        self.volumes.retain(|known| known.id != volume);
        let is_needed = self.is_active(active)
            || self.is_cloned(active)
            || self.references(active).next().is_some()
            || self.children(active).next().is_some();
        if !is_needed {
            self.forget_layers(&[active]);
        }
    }

    /// Of a volume that no VM has nothing is left to know once nothing of it is kept but its image.
    fn forget_detached(&mut self) {
        let Some(image) = self.detached_image().map(|layer| layer.id) else { return };
        let is_owned = |layer: &&Layer| layer.ownership == Ownership::Owned;
        let is_only_one = self.layers.values().filter(is_owned).all(|layer| layer.id == image);
        if is_only_one && self.snapshots.is_empty() && self.clones.is_empty() {
            self.volumes.clear();
            self.layers.clear();
        }
    }

    /// Notes how files of layers are.
    pub fn remember(&mut self, seen: &[(LayerId, Seen)]) {
        for (id, seen) in seen {
            if let Some(layer) = self.layers.get_mut(id) {
                layer.seen = Some(*seen);
            }
        }
    }

    /// Changes one snapshot, and its generation with it.
    pub fn change_snapshot(&mut self, id: SnapshotId, change: impl FnOnce(&mut Snapshot)) {
        if let Some(snapshot) = self.snapshots.iter_mut().find(|snapshot| snapshot.id == id) {
            change(snapshot);
            snapshot.generation += 1;
        }
    }

    /// Removes a snapshot; its children and the VM's present state descend from its parent then.
    pub fn forget_snapshot(&mut self, id: SnapshotId) {
        let Some(index) = self.snapshots.iter().position(|snapshot| snapshot.id == id) else { return };
        let parent = self.snapshots.remove(index).parent;
        for snapshot in &mut self.snapshots {
            if snapshot.parent == Some(id) {
                snapshot.parent = parent;
            }
        }
        if self.current == Some(id) {
            self.current = parent;
        }
    }

    fn take_in(&mut self, layers: &[Layer], volumes: &[Volume]) {
        for layer in layers {
            self.layers.insert(layer.id, layer.clone());
        }
        for volume in volumes {
            // What was written to until now is not as it was seen before.
            let before = self.volume(volume.id).map(|before| before.active);
            if let Some(layer) = before.and_then(|active| self.layers.get_mut(&active)) {
                layer.seen = None;
            }
            self.volumes.retain(|known| known.id != volume.id);
            self.volumes.push(volume.clone());
        }
    }

    /// Removes layers that nothing refers to.
    pub fn forget_layers(&mut self, gone: &[LayerId]) {
        for id in gone {
            self.layers.remove(id);
        }
    }

    /// The layer at `path` lies on nothing any more; what others made, and only it lay on, is none of this VM's.
    fn cut_below(&mut self, path: &Path) {
        let Some(layer) = self.layers.values_mut().find(|layer| layer.path == path) else { return };
        let mut below = layer.parent.take();
        layer.seen = None;
        while let Some(layer) = below.and_then(|id| self.layers.get(&id)) {
            if layer.ownership == Ownership::Owned || self.children(layer.id).next().is_some() {
                return;
            }
            let (gone, next) = (layer.id, layer.parent);
            self.layers.remove(&gone);
            below = next;
        }
    }

    fn merge_layers(&mut self, merged: &MergedLayers) {
        match merged.survivor {
            Survivor::Base => self.commit_layers(merged),
            Survivor::Child => self.pull_layers(merged),
        }
    }

    /// The child lies on what the base lay on.
    fn pull_layers(&mut self, merged: &MergedLayers) {
        let Some(base) = self.layers.remove(&merged.base) else { return };
        self.forget_layers(&merged.between);
        if let Some(child) = self.layers.get_mut(&merged.child) {
            child.parent = base.parent;
            child.seen = None;
        }
    }

    /// Whatever refers to the child refers to the base, which holds its content.
    fn commit_layers(&mut self, merged: &MergedLayers) {
        let Some(child) = self.layers.remove(&merged.child) else { return };
        self.forget_layers(&merged.between);
        if let Some(base) = self.layers.get_mut(&merged.base) {
            base.virtual_size = child.virtual_size;
            base.seen = None;
        }
        for layer in self.layers.values_mut().filter(|layer| layer.parent == Some(merged.child)) {
            layer.parent = Some(merged.base);
            layer.seen = None;
        }
        for volume in self.volumes.iter_mut().filter(|volume| volume.active == merged.child) {
            volume.active = merged.base;
        }
        for snapshot in &mut self.snapshots {
            for disk in snapshot.disks.iter_mut().filter(|disk| disk.layer == merged.child) {
                disk.layer = merged.base;
            }
        }
    }
}

fn consistency(kind: SnapshotKind, run_state: RunState, findings: &Findings) -> Consistency {
    match (kind, run_state) {
        (SnapshotKind::VmDisksAndMemory, _) => Consistency::Memory,
        // It was off when this was planned; what was found since says otherwise.
        (SnapshotKind::VmDisks | SnapshotKind::Volume, RunState::Off) if findings.crash_reason.is_none() => {
            Consistency::Off
        }
        (
            SnapshotKind::VmDisks | SnapshotKind::Volume,
            RunState::Off
            | RunState::Running
            | RunState::Paused(_)
            | RunState::Unsettled
            | RunState::Migrated,
        ) => findings.disk_consistency(),
    }
}
