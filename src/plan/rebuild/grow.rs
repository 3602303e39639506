//! One tree of layers, grown from manifests and headers. Decides whose each layer is, and which disk is which volume.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::found::{Found, free_name};
use super::judge::{Grounds, Judgement, judge};
use super::written::Written;
use super::{Evidence, LeftOut, Report, same};
use crate::model::manifest::CloneManifest;
use crate::model::rebuilt::RebuiltTree;
use crate::model::vm::{Attachment, Backing, ChainImage, DiskView, Format};
use crate::model::{
    ClonedVolume, DiskTarget, Layer, LayerId, LayerTree, Ownership, Snapshot, SnapshotId, SnapshotName,
    SnapshotState, VmId, Volume, VolumeId,
};
use crate::plan::NewIds;

/// Most layers of one tree that nobody told of. More go round in circles.
const MOST_UNKNOWN: usize = 4096;

struct Growing<'a, 'i> {
    evidence: &'a Evidence,
    tree: LayerTree,
    by_path: BTreeMap<PathBuf, LayerId>,
    /// A file may have several names: by device and inode.
    by_file: BTreeMap<(u64, u64), LayerId>,
    /// What disks write to, where manifests tell of it.
    told_active: BTreeMap<PathBuf, LayerId>,
    /// Of those that are ours, which volume that is.
    told_volumes: BTreeMap<PathBuf, VolumeId>,
    ids: NewIds<'i>,
}

pub(super) fn grow(
    evidence: &Evidence,
    vm: VmId,
    mut found: Found,
    ids: NewIds<'_>,
    report: &mut Report,
) -> RebuiltTree {
    let united = same::unite(evidence, &mut found, report);
    let tree = LayerTree::empty(vm);
    let told_active = found.active().map(|layer| (layer.path.clone(), layer.id)).collect();
    let ours = found.active().filter(|layer| layer.ownership == Ownership::Owned);
    let mut growing = Growing {
        evidence,
        tree,
        by_path: BTreeMap::new(),
        by_file: BTreeMap::new(),
        told_active,
        told_volumes: ours.map(|layer| (layer.path.clone(), layer.volume)).collect(),
        ids,
    };
    growing.take_told(&found);
    growing.take_disks(&found);
    growing.take_told_disks(&found);
    growing.take_image(&found);
    growing.follow_headers(report);
    growing.take_clones(&found.clones, report);
    growing.take_snapshots(&found, report);
    growing.keep_what_may_be_needed(&united, report);
    let definitions = found.snapshots.iter().map(|of| (of.snapshot.id, of.definition.clone())).collect();
    let comments = found.snapshots.iter().flat_map(|of| of.comments.clone()).collect();
    RebuiltTree { tree: growing.tree, definitions, comments, manifests: found.places }
}

impl Growing<'_, '_> {
    fn take_told(&mut self, found: &Found) {
        self.tree.layers = found.told(self.evidence);
        // Under each of its names it is found. One that is there comes last.
        let mut names: Vec<(&Layer, bool)> =
            found.layers().map(|layer| (layer, self.evidence.images.contains_key(&layer.path))).collect();
        names.sort_by_key(|(_, is_there)| *is_there);
        self.by_path.extend(names.into_iter().map(|(layer, _)| (layer.path.clone(), layer.id)));
        let files = self.tree.layers.values().filter_map(|layer| Some((self.file(&layer.path)?, layer.id)));
        self.by_file = files.collect();
    }

    fn file(&self, path: &Path) -> Option<(u64, u64)> {
        self.evidence.images.get(path).map(|facts| (facts.identity.device, facts.identity.inode))
    }

    fn known(&self, path: &Path) -> Option<LayerId> {
        let same_file = || self.by_file.get(&self.file(path)?);
        self.by_path.get(path).or_else(same_file).copied()
    }

    /// A disk of the VM is the volume whose layers it reads through.
    fn take_disks(&mut self, found: &Found) {
        let Some(vm) = self.evidence.vm(self.tree.vm) else { return };
        let targets: BTreeMap<VolumeId, &DiskTarget> = found
            .snapshots
            .iter()
            .flat_map(|of| &of.snapshot.disks)
            .map(|disk| (disk.volume, &disk.target))
            .collect();
        let mut candidates: Vec<(&DiskView, VolumeId)> =
            vm.disks.iter().filter_map(|disk| Some((disk, self.volume_below(disk.chain())?))).collect();
        // The one that still is where it was goes first: an overlay by hand can be a second disk on the same layers.
        candidates.sort_by_key(|(disk, volume)| targets.get(volume) != Some(&&disk.target));
        for (disk, volume) in candidates {
            let volume = match self.tree.volume(volume) {
                None => volume,
                Some(_) => VolumeId((self.ids)()),
            };
            self.take_chain(&disk.target, volume, disk.chain());
        }
        self.tree.volumes.sort_by(|a, b| a.target.cmp(&b.target));
    }

    /// What the disks of a VM that cannot be seen wrote to last. It is believed if nothing tells otherwise: no other manifest,
    /// and no header.
    fn take_told_disks(&mut self, found: &Found) {
        if self.evidence.vm(self.tree.vm).is_some() {
            return;
        }
        let mut telling = found.snapshots.iter().filter(|of| !of.volumes.is_empty());
        let (Some(of), None) = (telling.next(), telling.next()) else { return };
        let is_so = |layer: &Layer| {
            let below = of.active.iter().find(|below| Some(below.id) == layer.parent);
            let lies_so = self.evidence.images.get(&layer.path).is_some_and(|facts| {
                facts.backing.as_ref().map(|backing| &backing.path) == below.map(|below| &below.path)
            });
            lies_so && self.known(&layer.path).is_none_or(|known| known == layer.id)
        };
        let is_told = |volume: &Volume| of.active.iter().any(|layer| layer.id == volume.active);
        if !of.active.iter().all(is_so) || !of.volumes.iter().all(is_told) {
            return;
        }
        for layer in &of.active {
            self.by_path.insert(layer.path.clone(), layer.id);
            self.by_file.extend(self.file(&layer.path).map(|file| (file, layer.id)));
            let layer = Layer { seen: None, ..layer.clone() };
            self.tree.layers.entry(layer.id).or_insert(layer);
        }
        self.tree.volumes.clone_from(&of.volumes);
    }

    /// What nothing that was found refers to may be somebody's whose manifest was not: else the next start would merge or
    /// remove it unasked. The same is true of all layers of a VM that cannot be seen, if it is not told what it writes to:
    /// that lies on them.
    fn keep_what_may_be_needed(&mut self, united: &BTreeSet<LayerId>, report: &mut Report) {
        let is_seen = !self.tree.volumes.is_empty();
        let free: BTreeSet<LayerId> = self.tree.pending().map(|layer| layer.id).collect();
        for layer in self.tree.layers.values_mut().filter(|layer| layer.ownership == Ownership::Owned) {
            if united.contains(&layer.id) {
                layer.ownership = Ownership::Foreign;
            } else if !is_seen || free.contains(&layer.id) {
                layer.ownership = Ownership::Foreign;
                report.notes.push(format!(
                    "{}: who needs it cannot be told for certain, so it stays whatever becomes of its snapshots",
                    layer.path.display()
                ));
            }
        }
    }

    fn volume_below(&self, chain: &[ChainImage]) -> Option<VolumeId> {
        let layers = chain.iter().filter_map(|image| self.tree.layers.get(&self.known(&image.path)?));
        let mut owned = layers.filter(|layer| layer.ownership == Ownership::Owned);
        // What it lies on may be nobody's to remove since an earlier loss of the catalog.
        let told = || self.told_volumes.get(&chain.first()?.path).copied();
        owned.next().map(|layer| layer.volume).or_else(told)
    }

    /// What is written to is the VM's own. What lies between, and nobody tells of, may be anybody's.
    fn take_chain(&mut self, target: &DiskTarget, volume: VolumeId, chain: &[ChainImage]) {
        for (depth, image) in chain.iter().enumerate() {
            let ownership = if depth == 0 { Ownership::Owned } else { Ownership::Foreign };
            let id = self.layer(&image.path, image.format, volume, ownership);
            if depth == 0 {
                self.tree.volumes.push(Volume { id: volume, target: target.clone(), active: id });
            }
        }
    }

    /// The image of a volume that no VM has.
    fn take_image(&mut self, found: &Found) {
        let image = found.snapshots.iter().rev().find_map(|of| of.image.clone());
        let Some(path) = image.filter(|path| self.evidence.images.contains_key(path)) else { return };
        let image = ChainImage { path, format: Format::Qcow2, is_block_device: false };
        self.take_chain(&DiskTarget::of_detached(), VolumeId(self.tree.vm.0), &[image]);
    }

    fn layer(&mut self, path: &Path, format: Format, volume: VolumeId, ownership: Ownership) -> LayerId {
        if let Some(known) = self.known(path) {
            return known;
        }
        let told = self.told_active.get(path).copied().filter(|told| !self.tree.layers.contains_key(told));
        let id = told.unwrap_or_else(|| LayerId((self.ids)()));
        let virtual_size = self.evidence.images.get(path).map_or(0, |facts| facts.virtual_size);
        let path = path.to_owned();
        self.by_path.insert(path.clone(), id);
        self.by_file.extend(self.file(&path).map(|file| (file, id)));
        let (parent, seen, is_set_aside) = (None, None, false);
        let layer = Layer { id, volume, parent, path, format, ownership, virtual_size, seen, is_set_aside };
        self.tree.layers.insert(id, layer);
        id
    }

    /// What lies on what. A header that names what nobody tells of makes that known.
    fn follow_headers(&mut self, report: &mut Report) {
        let mut next: Vec<LayerId> = self.tree.layers.keys().copied().collect();
        let mut unknown = 0;
        while let Some(id) = next.pop() {
            let Some(layer) = self.tree.layers.get(&id) else { continue };
            let Some(facts) = self.evidence.images.get(&layer.path).filter(|_| layer.format == Format::Qcow2)
            else {
                continue;
            };
            let (volume, size) = (layer.volume, facts.virtual_size);
            let parent = match &facts.backing {
                Some(Backing { path, format }) if unknown < MOST_UNKNOWN => {
                    let before = self.tree.layers.len();
                    let parent = self.layer(path, format.unwrap_or(Format::Raw), volume, Ownership::Foreign);
                    if self.tree.layers.len() > before {
                        next.push(parent);
                        unknown += 1;
                        report.notes.push(format!(
                            "{}: no manifest tells of it, so it is taken as somebody else's and stays",
                            path.display()
                        ));
                    }
                    Some(parent)
                }
                Some(_) | None => None,
            };
            if let Some(layer) = self.tree.layers.get_mut(&id) {
                (layer.parent, layer.virtual_size) = (parent, size);
            }
        }
    }

    fn take_clones(&mut self, clones: &[CloneManifest], report: &mut Report) {
        for CloneManifest { clone, .. } in clones {
            let facts = self.evidence.images.get(&clone.path);
            if facts.is_none() {
                // It is known all the same, and holds its layer: the image may come back.
                let why = format!("there is no usable image of volume {}", clone.name);
                report.left_out.push(LeftOut { path: clone.path.clone(), why });
            }
            // Its own snapshots may lie between: what holds the layer is that it reads through it.
            let is_linked = |layer: &LayerId| {
                facts.is_none_or(|facts| facts.backing.is_some()) && self.tree.layers.contains_key(layer)
            };
            let layer = clone.layer.filter(is_linked);
            self.tree.clones.push(ClonedVolume { layer, ..clone.clone() });
        }
    }

    fn take_snapshots(&mut self, found: &Found, report: &mut Report) {
        let mut names = BTreeSet::new();
        let held = found.snapshots.iter().map(|of| &of.snapshot);
        let held = held.filter(|snapshot| snapshot.state != SnapshotState::Deleting);
        let mut needed: BTreeSet<LayerId> =
            held.flat_map(|snapshot| &snapshot.disks).map(|disk| disk.layer).collect();
        needed.extend(self.tree.clones.iter().filter_map(|clone| clone.layer));
        let written = Written::find(self.evidence, &self.tree, found, &needed);
        let there: BTreeSet<SnapshotId> = found.snapshots.iter().map(|of| of.snapshot.id).collect();
        let mut snapshots = Vec::new();
        for of in &found.snapshots {
            let grounds =
                Grounds { evidence: self.evidence, tree: &self.tree, needed: &needed, written: &written };
            let Judgement { state, trouble } = judge(&grounds, of);
            let mut snapshot = Snapshot { trouble, ..of.snapshot.clone() };
            if snapshot.state != state {
                snapshot.state = state;
                snapshot.generation += 1;
            }
            snapshot.parent = snapshot.parent.filter(|parent| there.contains(parent));
            let comments = u32::try_from(of.comments.len()).unwrap_or(u32::MAX);
            if snapshot.comments != comments {
                report.notes.push(format!("{}: its comments are not known any more", snapshot.name));
                snapshot.comments = comments;
            }
            let name = snapshot.name.to_string();
            let free = free_name(&mut names, &name, SnapshotName::LIMIT, snapshot.id.0);
            if free != name
                && let Ok(free) = free.parse()
            {
                report.notes.push(format!("{name}: another snapshot has the name; it is called {free} now"));
                snapshot.name = free;
            }
            snapshots.push(snapshot);
        }
        self.tree.snapshots = snapshots;
        let current: Vec<SnapshotId> =
            found.snapshots.iter().filter(|of| of.is_current).map(|of| of.snapshot.id).collect();
        self.tree.current = current.last().copied();
        if current.len() > 1 {
            report.notes.push(format!(
                "{}: several manifests say that its present state descends from them; the newest snapshot is taken",
                self.tree.vm
            ));
        }
    }
}

/// Whether a snapshot is of a volume that no VM has.
pub(super) fn is_detached(snapshot: &Snapshot) -> bool {
    snapshot.attachment == Attachment::Detached
}
