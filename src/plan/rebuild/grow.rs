//! One tree of layers, grown from manifests and headers. Decides whose each layer is, and which disk is which volume.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::judge::{Judgement, judge};
use super::{Evidence, Found, LeftOut, Report};
use crate::model::manifest::CloneManifest;
use crate::model::rebuilt::RebuiltTree;
use crate::model::vm::{Attachment, Backing, ChainImage, DiskView, Format};
use crate::model::{
    ClonedVolume, DiskTarget, Layer, LayerId, LayerTree, Ownership, Snapshot, SnapshotId, SnapshotState,
    VmId, Volume, VolumeId,
};
use crate::plan::NewIds;

/// Most layers of one tree that nobody told of. More go round in circles.
const MOST_UNKNOWN: usize = 4096;

struct Growing<'a, 'i> {
    evidence: &'a Evidence,
    tree: LayerTree,
    by_path: BTreeMap<PathBuf, LayerId>,
    ids: NewIds<'i>,
}

pub(super) fn grow(
    evidence: &Evidence,
    vm: VmId,
    found: &Found<'_>,
    ids: NewIds<'_>,
    report: &mut Report,
) -> RebuiltTree {
    let tree = LayerTree::empty(vm);
    let mut growing = Growing { evidence, tree, by_path: BTreeMap::new(), ids };
    growing.take_told(found);
    growing.take_disks(found);
    growing.take_image(found);
    growing.follow_headers(report);
    growing.take_clones(&found.clones, report);
    growing.take_snapshots(found, report);
    growing.keep_what_may_be_needed(report);
    let definitions = found.snapshots.iter().map(|of| (of.snapshot.id, of.definition.clone())).collect();
    let comments = found.snapshots.iter().flat_map(|of| of.comments.clone()).collect();
    RebuiltTree { tree: growing.tree, definitions, comments, manifests: found.places.clone() }
}

impl Growing<'_, '_> {
    /// A layer is the same one wherever manifests say that it is; where it is now, the file says.
    fn take_told(&mut self, found: &Found<'_>) {
        let of_clones = found.clones.iter().flat_map(|of| &of.layers);
        for layer in found.snapshots.iter().flat_map(|of| &of.layers).chain(of_clones) {
            let is_there = |path: &Path| self.evidence.images.contains_key(path);
            let known = self.tree.layers.get(&layer.id);
            if known.is_none_or(|known| !is_there(&known.path) && is_there(&layer.path)) {
                self.by_path.insert(layer.path.clone(), layer.id);
                self.tree.layers.insert(layer.id, Layer { seen: None, ..layer.clone() });
            }
        }
    }

    /// A disk of the VM is the volume whose layers it reads through.
    fn take_disks(&mut self, found: &Found<'_>) {
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

    /// What nothing that was found refers to may be somebody's whose manifest was not: else the next start would merge or
    /// remove it unasked. The same is true of all layers of a VM that cannot be seen: what it writes to is not known, and
    /// lies on them.
    fn keep_what_may_be_needed(&mut self, report: &mut Report) {
        let is_seen = !self.tree.volumes.is_empty();
        let free: BTreeSet<LayerId> = self.tree.pending().map(|layer| layer.id).collect();
        for layer in self.tree.layers.values_mut() {
            if layer.ownership == Ownership::Owned && (!is_seen || free.contains(&layer.id)) {
                layer.ownership = Ownership::Foreign;
                report.notes.push(format!(
                    "{}: who needs it cannot be told for certain, so it stays whatever becomes of its snapshots",
                    layer.path.display()
                ));
            }
        }
    }

    fn volume_below(&self, chain: &[ChainImage]) -> Option<VolumeId> {
        let layers = chain.iter().filter_map(|image| self.tree.layers.get(self.by_path.get(&image.path)?));
        let mut owned = layers.filter(|layer| layer.ownership == Ownership::Owned);
        owned.next().map(|layer| layer.volume)
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
    fn take_image(&mut self, found: &Found<'_>) {
        let image = found.snapshots.iter().rev().find_map(|of| of.image.clone());
        let Some(path) = image.filter(|path| self.evidence.images.contains_key(path)) else { return };
        let image = ChainImage { path, format: Format::Qcow2, is_block_device: false };
        self.take_chain(&DiskTarget::of_detached(), VolumeId(self.tree.vm.0), &[image]);
    }

    fn layer(&mut self, path: &Path, format: Format, volume: VolumeId, ownership: Ownership) -> LayerId {
        if let Some(known) = self.by_path.get(path) {
            return *known;
        }
        let id = LayerId((self.ids)());
        let virtual_size = self.evidence.images.get(path).map_or(0, |facts| facts.virtual_size);
        let path = path.to_owned();
        self.by_path.insert(path.clone(), id);
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

    fn take_clones(&mut self, clones: &[&CloneManifest], report: &mut Report) {
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

    fn take_snapshots(&mut self, found: &Found<'_>, report: &mut Report) {
        let mut names = BTreeSet::new();
        let held = found.snapshots.iter().map(|of| &of.snapshot);
        let held = held.filter(|snapshot| snapshot.state != SnapshotState::Deleting);
        let mut needed: BTreeSet<LayerId> =
            held.flat_map(|snapshot| &snapshot.disks).map(|disk| disk.layer).collect();
        needed.extend(self.tree.clones.iter().filter_map(|clone| clone.layer));
        let there: BTreeSet<SnapshotId> = found.snapshots.iter().map(|of| of.snapshot.id).collect();
        for of in &found.snapshots {
            let Judgement { state, trouble } = judge(self.evidence, &self.tree, of, &needed);
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
            if !names.insert(snapshot.name.to_string()) {
                // A name has at most 63 characters, of one byte each.
                let begin: String = snapshot.name.to_string().chars().take(50).collect();
                let other = format!("{begin}-{}", &snapshot.id.to_string()[24..]);
                names.insert(other.clone());
                report.notes.push(format!(
                    "{}: another snapshot has the name; it is called {other} now",
                    snapshot.name
                ));
                if let Ok(other) = other.parse() {
                    snapshot.name = other;
                }
            }
            self.tree.snapshots.push(snapshot);
        }
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
