//! What may go from a tree of layers: everything that nothing needs for its own sake.
//!
//! Decides which layers are removed, which become one, and which must wait. Leaves making it so to steps, and whether
//! the VM reads a layer to `merge`, which finds its own way. Must never know why a reference has gone.
//!
//! A free layer (see [`LayerTree::is_free`]) without children goes. With one child, the two become one, with the child's
//! content: neighbouring ones together, so that each byte moves once, and in the direction that moves fewer. With several
//! it waits: what one of them writes must not be read by the others. All others are left alone, so what anybody reads
//! never changes.

use std::path::Path;

use crate::model::layer::Layer;
use crate::model::operation::Findings;
use crate::model::step::{
    CatalogChange, DoomedImage, How, ImageRef, Merge, MergeLayers, MergedLayers, Step, Survivor,
};
use crate::model::vm::{Attachment, DiskView};
use crate::model::{LayerId, LayerTree, Ownership, VolumeId};

use super::check::{not_as_seen, wrong_backing};
use super::{World, is_nameless, pull_blocker};

/// What may go.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Collapse {
    /// Layers that nothing lies on: they go as they are, children before parents.
    pub gone: Vec<LayerId>,
    /// Layers that become one.
    pub ranges: Vec<Range>,
}

/// Neighbouring layers of a volume that become one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Range {
    /// The volume.
    pub volume: VolumeId,
    /// What becomes of them.
    pub merged: MergedLayers,
    /// Which way.
    pub direction: Direction,
}

/// Which way layers become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Into the lowest.
    Down,
    /// Into the lowest, which takes the name of the highest: the image of a volume that no VM has.
    DownAndRename,
    /// Into the highest.
    Up,
}

impl Direction {
    /// Which of the layers is left. One that is renamed is, to the catalog, the one whose name it has.
    fn survivor(self) -> Survivor {
        match self {
            Self::Down => Survivor::Base,
            Self::DownAndRename | Self::Up => Survivor::Child,
        }
    }
}

/// What may go from `tree`. Layers that `waits` says so of are left for later.
#[must_use]
pub fn collapse(tree: &LayerTree, waits: impl Fn(&Layer) -> bool) -> Collapse {
    let mut tree = tree.clone();
    let mut gone = Vec::new();
    while let Some(leaf) = free_leaf(&tree) {
        gone.push(leaf);
        tree.forget_layers(&[leaf]);
    }
    let starts = tree.pending().filter(|layer| {
        let below = layer.parent.and_then(|parent| tree.layers.get(&parent));
        only_child(&tree, layer).is_some() && !below.is_some_and(|below| takes_in_a_child(&tree, below))
    });
    let ranges = starts.map(|base| range(&tree, base)).filter(|range| {
        let layers = range.layers().filter_map(|id| tree.layers.get(&id));
        layers.clone().all(|layer| layer.ownership == Ownership::Owned && !waits(layer))
            // What lies on them is pointed elsewhere, and seen as it is then.
            && !tree.children(range.merged.child).any(&waits)
            && !is_read_by_a_clone(&tree, range.merged.child)
    });
    Collapse { gone, ranges: ranges.collect() }
}

fn free_leaf(tree: &LayerTree) -> Option<LayerId> {
    tree.pending().map(|layer| layer.id).find(|id| tree.children(*id).next().is_none())
}

/// Whether a clone reads through `layer`. Its VM has the whole chain open, or may open it at any time, and would not
/// follow when a file of it goes.
fn is_read_by_a_clone(tree: &LayerTree, layer: LayerId) -> bool {
    tree.is_cloned(layer) || tree.children(layer).any(|child| is_read_by_a_clone(tree, child.id))
}

fn only_child<'a>(tree: &'a LayerTree, layer: &Layer) -> Option<&'a Layer> {
    let mut children = tree.children(layer.id);
    let child = children.next()?;
    children.next().is_none().then_some(child)
}

fn takes_in_a_child(tree: &LayerTree, layer: &Layer) -> bool {
    tree.is_free(layer) && only_child(tree, layer).is_some()
}

/// From `base` up to the first layer that somebody needs, or that several lie on.
fn range(tree: &LayerTree, base: &Layer) -> Range {
    let mut above = Vec::new();
    let mut top = base;
    while let Some(child) = only_child(tree, top).filter(|_| tree.is_free(top)) {
        above.push(child.id);
        top = child;
    }
    let child = above.pop().unwrap_or(base.id);
    above.reverse();
    let merged = MergedLayers { child, between: above, base: base.id, survivor: Survivor::Base };
    Range { volume: base.volume, merged, direction: Direction::Down }
}

impl Range {
    fn layers(&self) -> impl Iterator<Item = LayerId> + Clone {
        let MergedLayers { child, between, base, survivor: _ } = &self.merged;
        [*child, *base].into_iter().chain(between.iter().copied())
    }

    /// `tree` is what earlier merges of the plan leave behind.
    fn merge(&self, world: &World, tree: &LayerTree) -> Option<Merge> {
        let image = |id: &LayerId| tree.layers.get(id).map(image_ref);
        Some(Merge {
            target: disk_of(world, self.volume)?.target.clone(),
            base: image(&self.merged.base)?,
            between: self.merged.between.iter().filter_map(image).collect(),
            child: image(&self.merged.child)?,
            how: match self.direction {
                Direction::Down => {
                    How::Commit { grandchildren: tree.children(self.merged.child).map(image_ref).collect() }
                }
                Direction::DownAndRename => How::Supersede { below: self.below(tree).map(image_ref) },
                Direction::Up => How::Pull { below: self.below(tree).map(image_ref) },
            },
        })
    }

    /// What the lowest lies on.
    fn below<'a>(&self, tree: &'a LayerTree) -> Option<&'a Layer> {
        let base = tree.layers.get(&self.merged.base)?;
        base.parent.and_then(|parent| tree.layers.get(&parent))
    }

    /// The way in which less has to be copied. Both move what is between. An image that somebody else has named is never
    /// pulled away.
    fn choose_direction(&self, world: &World) -> Direction {
        let layer = |id: &LayerId| world.tree.layers.get(id);
        let facts = |layer: &Layer| world.images.get(&layer.path);
        let (Some(base), Some(child)) = (layer(&self.merged.base), layer(&self.merged.child)) else {
            return Direction::Down;
        };
        let is_detached = world.vm.attachment == Attachment::Detached && world.tree.is_active(child.id);
        let down = if is_detached { Direction::DownAndRename } else { Direction::Down };
        let (Some(base_facts), Some(child_facts)) = (facts(base), facts(child)) else { return down };
        let is_less = base_facts.allocated < child_facts.allocated;
        // Where a layer ends, what lies on it reads zeros. Without it, it would read on in a longer image below.
        let between = self.merged.between.iter().rev().filter_map(layer);
        let upwards = self.below(&world.tree).into_iter().chain([base]).chain(between).chain([child]);
        let nothing_is_hidden = upwards.filter_map(facts).is_sorted_by_key(|facts| facts.virtual_size);
        let mut gone = self.merged.between.iter().filter_map(layer).chain([base]);
        let may_go = gone.all(|layer| is_nameless(world, &layer.path));
        if is_less && nothing_is_hidden && may_go && may_be_pulled_into(world, self.volume, child) {
            Direction::Up
        } else {
            down
        }
    }
}

impl Collapse {
    /// What may go from the world's tree once `changed` is what the catalog says of it.
    ///
    /// What waits: images that are not there or not as they were left, and those below them, for a merge would hide what is wrong
    /// with them; and volumes that the VM has no disk for now.
    #[must_use]
    pub fn of(world: &World, changed: &LayerTree) -> Self {
        let waits = |layer: &Layer| !is_as_left(world, layer) || disk_of(world, layer.volume).is_none();
        let mut collapse = collapse(changed, waits);
        for range in &mut collapse.ranges {
            range.direction = range.choose_direction(world);
            range.merged.survivor = range.direction.survivor();
        }
        collapse
    }

    /// Merges, side by side where they are of different disks, each recorded as soon as it is done.
    #[must_use]
    pub fn merge_steps(&self, world: &World, bandwidth: Option<u64>) -> Vec<Step> {
        let mut steps = Vec::new();
        let mut tree = world.tree.clone();
        for round in rounds(world, &self.ranges) {
            let merges: Vec<Merge> = round.iter().filter_map(|range| range.merge(world, &tree)).collect();
            let change = CatalogChange::LayersMerged {
                merged: round.iter().map(|range| range.merged.clone()).collect(),
            };
            tree.apply(&change, &Findings::default());
            steps.push(Step::Merge(MergeLayers { merges, bandwidth }));
            steps.push(Step::Record(change));
        }
        steps
    }

    /// The files that nobody reads once all is merged and recorded. What lies on another one stands before it.
    #[must_use]
    pub fn images(&self, world: &World) -> Vec<DoomedImage> {
        let merged = self.ranges.iter().flat_map(|range| range.merged.gone());
        let layers = self.gone.iter().chain(merged).filter_map(|id| world.tree.layers.get(id));
        layers.map(|layer| doomed(world, layer)).collect()
    }

    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.gone.is_empty() && self.ranges.is_empty()
    }
}

/// The image that holds up a merge: it is not there, or not as it was left.
#[must_use]
pub fn held_up_by(world: &World) -> Option<&Path> {
    let tree = &world.tree;
    let ranges = collapse(tree, |_| false).ranges.into_iter();
    let concerned = ranges.flat_map(|range| {
        let above = tree.children(range.merged.child).map(|layer| layer.id);
        range.layers().chain(above).collect::<Vec<_>>()
    });
    let mut layers = concerned.filter_map(|id| tree.layers.get(&id));
    layers.find(|layer| !is_as_left(world, layer)).map(|layer| layer.path.as_path())
}

fn is_as_left(world: &World, layer: &Layer) -> bool {
    let tree = &world.tree;
    world.images.get(&layer.path).is_some_and(|facts| {
        wrong_backing(tree, layer, facts).or_else(|| not_as_seen(tree, layer, facts)).is_none()
    })
}

/// A disk has one block job at a time. Where pulls are dangerous and done all the same, each is the VM's only job: the end
/// of another job is what makes libvirt ask about all of them.
fn rounds<'a>(world: &World, ranges: &'a [Range]) -> Vec<Vec<&'a Range>> {
    let is_alone = |range: &Range| range.direction == Direction::Up && world.vm.pull_blocker.is_some();
    let mut rounds: Vec<Vec<&Range>> = Vec::new();
    for range in ranges {
        let fits = |other: &&Range| other.volume != range.volume && !is_alone(other) && !is_alone(range);
        let is_free = |round: &&mut Vec<&Range>| round.iter().all(fits);
        match rounds.iter_mut().find(is_free) {
            Some(round) => round.push(range),
            None => rounds.push(vec![range]),
        }
    }
    rounds
}

/// The disk that the VM has a volume as.
fn disk_of(world: &World, volume: VolumeId) -> Option<&DiskView> {
    let active = world.tree.layers.get(&world.tree.volume(volume)?.active)?;
    world.vm.disks.iter().find(|disk| disk.uses(&active.path))
}

/// A running VM pulls into the layer that it writes to, and into no other (libvirt's `virDomainBlockRebase`), if that is
/// not dangerous. What nobody has open is pulled into by `qemu-img`.
fn may_be_pulled_into(world: &World, volume: VolumeId, child: &Layer) -> bool {
    let Some(disk) = disk_of(world, volume) else { return false };
    if !(world.vm.run_state.is_live() && disk.uses(&child.path)) {
        return true;
    }
    disk.active().is_some_and(|image| image.path == child.path) && pull_blocker(world).is_none()
}

fn image_ref(layer: &Layer) -> ImageRef {
    ImageRef { path: layer.path.clone(), format: layer.format }
}

/// The image of a layer, to be removed.
pub(super) fn doomed(world: &World, layer: &Layer) -> DoomedImage {
    DoomedImage {
        path: layer.path.clone(),
        identity: world.images.get(&layer.path).map(|facts| facts.identity),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use uuid::Uuid;

    use super::*;
    use crate::model::vm::Format;
    use crate::model::{VmId, Volume};

    const VOLUME: VolumeId = VolumeId(Uuid::nil());

    fn id(number: u128) -> LayerId {
        LayerId(Uuid::from_u128(number))
    }

    /// Layers as (number, parent); the VM writes to `active`, and `kept` are children of somebody else's volume, which
    /// stands for a reference.
    fn tree(layers: &[(u128, u128)], active: &[u128]) -> LayerTree {
        let layer = |&(number, parent): &(u128, u128)| Layer {
            id: id(number),
            volume: VOLUME,
            parent: (parent != 0).then(|| id(parent)),
            path: format!("/images/{number}").into(),
            format: Format::Qcow2,
            ownership: if number == 1 { Ownership::Foreign } else { Ownership::Owned },
            virtual_size: 1,
            seen: None,
            is_set_aside: false,
        };
        let volume = |&number: &u128| Volume {
            id: VolumeId(Uuid::from_u128(number)),
            target: "vda".parse().unwrap(),
            active: id(number),
        };
        LayerTree {
            layers: layers.iter().map(layer).map(|layer| (layer.id, layer)).collect::<BTreeMap<_, _>>(),
            volumes: active.iter().map(volume).collect(),
            ..LayerTree::empty(VmId(Uuid::nil()))
        }
    }

    /// `ranges`: child, between from above, base.
    fn check(layers: &[(u128, u128)], needed: &[u128], gone: &[u128], ranges: &[&[u128]]) {
        let range = |numbers: &&[u128]| Range {
            volume: VOLUME,
            merged: MergedLayers {
                child: id(numbers[0]),
                between: numbers[1..numbers.len() - 1].iter().map(|number| id(*number)).collect(),
                base: id(numbers[numbers.len() - 1]),
                survivor: Survivor::Base,
            },
            direction: Direction::Down,
        };
        let expected = Collapse {
            gone: gone.iter().map(|number| id(*number)).collect(),
            ranges: ranges.iter().map(range).collect(),
        };
        assert_eq!(collapse(&tree(layers, needed), |_| false), expected, "{layers:?} {needed:?}");
    }

    #[test]
    fn what_goes() {
        // 1 is a template; it never goes, and nothing is merged into it.
        check(&[(1, 0), (2, 1)], &[2], &[], &[]);
        // A chain: the middle ones go together.
        check(&[(2, 0), (3, 2), (4, 3), (5, 4)], &[2, 5], &[], &[&[5, 4, 3]]);
        check(&[(2, 0), (3, 2), (4, 3), (5, 4)], &[5], &[], &[&[5, 4, 3, 2]]);
        check(&[(2, 0), (3, 2), (4, 3), (5, 4)], &[3, 5], &[], &[&[3, 2], &[5, 4]]);
        // A dead branch goes from its tip.
        check(&[(2, 0), (3, 2), (4, 3), (5, 2)], &[2, 5], &[4, 3], &[]);
        // A branch point waits for all but one of its branches.
        check(&[(2, 0), (3, 2), (4, 3), (5, 3)], &[2, 4, 5], &[], &[]);
        check(&[(2, 0), (3, 2), (4, 3), (5, 3)], &[2, 5], &[4], &[&[5, 3]]);
        // Two that wait become one that waits.
        check(&[(2, 0), (3, 2), (4, 3), (5, 3)], &[4, 5], &[], &[&[3, 2]]);
        // On a template.
        check(&[(1, 0), (2, 1), (3, 2)], &[3], &[], &[&[3, 2]]);
    }

    #[test]
    fn what_waits_is_left_alone() {
        let tree = tree(&[(2, 0), (3, 2)], &[3]);
        let waiting = collapse(&tree, |layer| layer.id == id(3));
        assert!(waiting.is_empty(), "{waiting:?}");
    }
}
