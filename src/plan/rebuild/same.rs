//! One file, one layer: manifests that two catalogs have left, as of two nodes on shared storage, know a file by two ids.
//!
//! Decides which id a layer keeps, and which volumes are the same one for it. Leaves it to `grow` that such a layer is never
//! written and never removed: another catalog may count on it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::found::Found;
use super::{Evidence, Report};
use crate::model::rebuilt::RebuiltTree;
use crate::model::{Layer, LayerId, LayerTree, Ownership, VolumeId};
use crate::plan::NewIds;

/// What makes a file the same file. Of one that is not there only the name is known.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum File {
    There { device: u64, inode: u64 },
    Named(PathBuf),
}

/// What things are called from now on.
#[derive(Debug, Default)]
struct Renamed {
    layers: BTreeMap<LayerId, LayerId>,
    volumes: BTreeMap<VolumeId, VolumeId>,
}

/// Lets each file be one layer. Gives those that several ids were told of.
pub(super) fn unite(evidence: &Evidence, found: &mut Found, report: &mut Report) -> BTreeSet<LayerId> {
    let mut by_file: BTreeMap<File, Vec<Layer>> = BTreeMap::new();
    for layer in found.told(evidence).into_values() {
        by_file.entry(file(evidence, &layer.path)).or_default().push(layer);
    }
    let mut renamed = Renamed::default();
    let mut united = BTreeSet::new();
    for mut same in by_file.into_values().filter(|same| same.len() > 1) {
        // Whoever made it knows which volume it is of.
        same.sort_by_key(|layer| (layer.ownership == Ownership::Foreign, layer.id));
        let [kept, others @ ..] = &same[..] else { continue };
        report.notes.push(format!(
            "{}: several catalogs tell of it; it is one layer of this one, and stays whatever becomes of its snapshots",
            kept.path.display()
        ));
        united.insert(kept.id);
        for other in others {
            renamed.layers.insert(other.id, kept.id);
            if other.ownership == Ownership::Owned {
                renamed.unite_volumes(kept.volume, other.volume);
            }
        }
    }
    renamed.apply(found);
    united
}

/// Ids of layers are one catalog's own: those that another tree has taken are made anew.
pub(super) fn tell_apart(found: &mut Found, taken: &mut BTreeSet<LayerId>, ids: NewIds<'_>) {
    let own: BTreeSet<LayerId> = found.layers().chain(found.active()).map(|layer| layer.id).collect();
    let mut renamed = Renamed::default();
    for id in own {
        if !taken.insert(id) {
            renamed.layers.insert(id, LayerId(ids()));
        }
    }
    renamed.apply(found);
}

/// What two VMs are said to own would be merged and removed by each as if the other did not need it: then it is nobody's. Of
/// a volume that no VM had, the image may have become a disk since.
pub(super) fn settle_owners(evidence: &Evidence, trees: &mut [RebuiltTree], report: &mut Report) {
    let is_owned = |tree: &LayerTree, layer: &Layer| {
        let is_image = tree.detached_image().is_some_and(|image| image.id == layer.id);
        layer.ownership == Ownership::Owned && !is_image
    };
    let mut owners: BTreeMap<File, Vec<String>> = BTreeMap::new();
    for RebuiltTree { tree, .. } in &*trees {
        for layer in tree.layers.values().filter(|layer| is_owned(tree, layer)) {
            owners.entry(file(evidence, &layer.path)).or_default().push(tree.vm.to_string());
        }
    }
    owners.retain(|_, owners| owners.len() > 1);
    for RebuiltTree { tree, .. } in trees {
        for layer in tree.layers.values_mut() {
            let Some(owners) = owners.get(&file(evidence, &layer.path)) else { continue };
            if layer.ownership == Ownership::Owned {
                layer.ownership = Ownership::Foreign;
                report.notes.push(format!(
                    "{}: {} are said to own it, so it stays whatever becomes of their snapshots",
                    layer.path.display(),
                    owners.join(" and ")
                ));
            }
        }
    }
}

fn file(evidence: &Evidence, path: &Path) -> File {
    match evidence.images.get(path) {
        Some(facts) => File::There { device: facts.identity.device, inode: facts.identity.inode },
        None => File::Named(path.to_owned()),
    }
}

impl Renamed {
    fn layer(&self, id: LayerId) -> LayerId {
        self.layers.get(&id).copied().unwrap_or(id)
    }

    fn volume(&self, id: VolumeId) -> VolumeId {
        self.volumes.get(&id).copied().unwrap_or(id)
    }

    fn unite_volumes(&mut self, one: VolumeId, other: VolumeId) {
        let (kept, gone) = (self.volume(one), self.volume(other));
        if kept != gone {
            for known in self.volumes.values_mut().filter(|known| **known == gone) {
                *known = kept;
            }
            self.volumes.insert(gone, kept);
        }
    }

    fn apply(&self, found: &mut Found) {
        if self.layers.is_empty() {
            return;
        }
        for of in &mut found.snapshots {
            for disk in &mut of.snapshot.disks {
                (disk.layer, disk.volume) = (self.layer(disk.layer), self.volume(disk.volume));
            }
            for volume in &mut of.volumes {
                (volume.id, volume.active) = (self.volume(volume.id), self.layer(volume.active));
            }
            self.apply_to_layers(&mut of.layers);
            self.apply_to_layers(&mut of.active);
        }
        for of in &mut found.clones {
            of.clone.layer = of.clone.layer.map(|layer| self.layer(layer));
            self.apply_to_layers(&mut of.layers);
        }
    }

    fn apply_to_layers(&self, layers: &mut [Layer]) {
        for layer in layers {
            layer.id = self.layer(layer.id);
            layer.parent = layer.parent.map(|parent| self.layer(parent));
            layer.volume = self.volume(layer.volume);
        }
    }
}
