//! Room on file systems: whether what a plan writes fits, whether a VM that stood still for lack of it may go on, and when
//! to be told of an image that grows.
//!
//! Decides by numbers that others have seen. Leaves measuring, telling and resuming to `ops`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::model::step::{ImageRef, Merge};
use crate::model::vm::{ChainImage, Format, PauseReason};
use crate::model::{ImageFacts, RunState, Space, VmView};

use super::{Places, Refusal, World, directory_of};

/// What a table of a qcow2 image with clusters of the usual size takes: a cluster, 64 KiB, for each 512 MiB.
const TABLE: u64 = 64 << 10;
const COVERED_BY_A_TABLE: u64 = 512 << 20;

/// Images are told of no more often than at each so many bytes.
const SMALLEST_SHARE: u64 = 1 << 20;

/// Refuses where a file system has less than is needed beyond the reserve. Directories that share their room share what
/// there is. One that nobody looked at is not a reason.
pub(super) fn check_space(world: &World, needs: &BTreeMap<PathBuf, u64>) -> Result<(), Refusal> {
    match shortage(&in_world(world), world.places.reserve, needs) {
        None => Ok(()),
        Some(Shortage { directory, needed, reserve, free }) => {
            Err(Refusal::NoSpace { directory, needed, reserve, free })
        }
    }
}

/// As [`check_space`], for layers that become one: `runs` holds each run with the image that is left of it.
///
/// What goes takes so much itself, so what is left grows by no more. Where that does not fit, it counts that blocks which
/// are there already need no new room, and layers hide each other's: that has to be measured first.
pub(super) fn check_merges(world: &World, runs: &[Run]) -> Result<(), Refusal> {
    let needs = |growth: &dyn Fn(&Run) -> u64| {
        let mut needs = BTreeMap::new();
        for run in runs {
            *needs.entry(directory_of(&run.survivor.path)).or_insert(0) += growth(run);
        }
        needs
    };
    let reserve = world.places.reserve;
    if shortage(&in_world(world), reserve, &needs(&|run| run.held(world))).is_none() {
        return Ok(());
    }
    let unmeasured: Vec<Vec<ImageRef>> = runs
        .iter()
        .flat_map(Run::to_measure)
        .filter(|layers| !world.measured.contains_key(&paths(layers)))
        .collect();
    if !unmeasured.is_empty() {
        return Err(Refusal::NotMeasured(unmeasured));
    }
    match shortage(&in_world(world), reserve, &needs(&|run| run.growth(world))) {
        None => Ok(()),
        Some(Shortage { directory, needed, reserve, free }) => {
            Err(Refusal::NoSpaceToMerge { directory, needed, reserve, free })
        }
    }
}

/// Where there is too little.
struct Shortage {
    directory: PathBuf,
    /// The reserve included.
    needed: u64,
    reserve: u64,
    free: u64,
}

fn shortage(
    space_at: &dyn Fn(&Path) -> Option<Space>,
    reserve: u64,
    needs: &BTreeMap<PathBuf, u64>,
) -> Option<Shortage> {
    let mut by_file_system: BTreeMap<u64, Shortage> = BTreeMap::new();
    for (directory, needed) in needs {
        let Some(space) = space_at(directory) else { continue };
        let first = || Shortage { directory: directory.clone(), needed: reserve, reserve, free: space.free };
        let sum = by_file_system.entry(space.file_system).or_insert_with(first);
        sum.needed = sum.needed.saturating_add(*needed);
    }
    by_file_system.into_values().find(|sum| sum.free < sum.needed)
}

fn in_world(world: &World) -> impl Fn(&Path) -> Option<Space> {
    |directory| world.free_space.get(directory).copied()
}

/// Layers that become one.
pub(super) struct Run {
    /// All of them, the highest first, each lying on the next.
    layers: Vec<ImageRef>,
    /// The one that takes in the others.
    survivor: ImageRef,
}

impl Run {
    pub(super) fn of(merge: &Merge) -> Self {
        let layers = [&merge.child].into_iter().chain(&merge.between).chain([&merge.base]);
        Self { layers: layers.cloned().collect(), survivor: merge.survivor().clone() }
    }

    /// An image and all that it reads through, as the headers say.
    pub(super) fn below(world: &World, image: &ImageRef) -> Self {
        let mut layers = vec![image.clone()];
        // As many as there are images: a circle ends, too.
        for _ in 0..world.images.len() {
            let facts = layers.last().and_then(|last| world.images.get(&last.path));
            let Some(backing) = facts.and_then(|facts| facts.backing.as_ref()) else { break };
            let read_as = || world.images.get(&backing.path).map(|facts| facts.format);
            let Some(format) = backing.format.or_else(read_as) else { break };
            layers.push(ImageRef { path: backing.path.clone(), format });
        }
        Self { layers, survivor: image.clone() }
    }

    /// What the others take now. In larger pieces it takes more, up to all of the disk.
    pub(super) fn held(&self, world: &World) -> u64 {
        let facts = |layer: &ImageRef| world.images.get(&layer.path);
        let cluster = facts(&self.survivor).and_then(|facts| facts.pieces).map(|pieces| pieces.cluster);
        let held = |facts: &ImageFacts| match (cluster, facts.pieces) {
            (Some(cluster), Some(pieces)) if cluster > pieces.smallest => {
                let larger = facts.allocated.saturating_mul(cluster.div_ceil(pieces.smallest));
                larger.min(facts.allocated.max(facts.virtual_size))
            }
            _ => facts.allocated,
        };
        let others = self.layers.iter().filter(|layer| layer.path != self.survivor.path);
        others.filter_map(facts).map(held).sum()
    }

    /// The survivor alone; all together as they lie; and all with the survivor on top.
    ///
    /// Zeros above hide what stays allocated below them, and are not counted themselves. So the one order misses what the
    /// others have zeroed, the other what the survivor has; the larger is wrong only where both have.
    fn to_measure(&self) -> [Vec<ImageRef>; 3] {
        let others = self.layers.iter().filter(|layer| layer.path != self.survivor.path);
        let on_top = match self.survivor.format {
            Format::Qcow2 => [&self.survivor].into_iter().chain(others).cloned().collect(),
            // It lies on nothing, and hides nothing.
            Format::Raw => self.layers.clone(),
        };
        [vec![self.survivor.clone()], self.layers.clone(), on_top]
    }

    /// What the survivor grows by: by what all hold together and it does not hold alone, with the tables for that.
    pub(super) fn growth(&self, world: &World) -> u64 {
        let held = self.held(world);
        let measured = |layers: Vec<ImageRef>| world.measured.get(&paths(&layers)).copied().flatten();
        let [Some(own), Some(all), Some(on_top)] = self.to_measure().map(measured) else { return held };
        let new = all.max(on_top).saturating_sub(own);
        let size = self.layers.iter().filter_map(|layer| world.images.get(&layer.path));
        let size = size.map(|facts| facts.virtual_size).max().unwrap_or(0);
        let grows_by = match self.survivor.format {
            // Each new cluster may be the first that its table tells of.
            Format::Qcow2 => new + new.min((size / COVERED_BY_A_TABLE + 1) * TABLE),
            // What was allocated beforehand is there, whether it reads as zeros or not.
            Format::Raw => {
                let facts = world.images.get(&self.survivor.path);
                new.min(size.saturating_sub(facts.map_or(0, |facts| facts.allocated)))
            }
        };
        held.min(grows_by)
    }
}

fn paths(layers: &[ImageRef]) -> Vec<PathBuf> {
    layers.iter().map(|layer| layer.path.clone()).collect()
}

/// Whether a VM has to be resumed: true if it is paused because a disk had no space and there is space again, false if it
/// runs. Any other is refused: whoever paused it knows why.
pub fn resume(vm: &VmView, spaces: &BTreeMap<PathBuf, Space>, reserve: u64) -> Result<bool, Refusal> {
    match vm.run_state {
        RunState::Running => return Ok(false),
        RunState::Paused(PauseReason::IoError) if !vm.full_disks.is_empty() => {}
        RunState::Paused(PauseReason::IoError) => {
            return Err(Refusal::NotOutOfSpace("is paused for an error of a disk that is none of space"));
        }
        RunState::Paused(_) => return Err(Refusal::NotOutOfSpace("was paused by somebody")),
        RunState::Off => return Err(Refusal::NotOutOfSpace("is off")),
        RunState::Migrated => return Err(Refusal::NotOutOfSpace("has migrated to another node")),
        RunState::Unsettled => return Err(Refusal::NotOutOfSpace("is between two states")),
    }
    // How full a block device is, nobody can tell from here.
    let full = vm.full_disks.iter().filter_map(|target| vm.disk(target)?.active());
    let files = full.filter(|image| !image.is_block_device);
    let needs = files.map(|image| (directory_of(&image.path), 0)).collect();
    match shortage(&|directory| spaces.get(directory).copied(), reserve.max(SMALLEST_SHARE), &needs) {
        None => Ok(true),
        Some(Shortage { directory, needed, free, .. }) => {
            Err(Refusal::NoSpace { directory, needed, reserve, free })
        }
    }
}

/// Below so many free bytes a file system is low: never more than a tenth of a small one, never less than what we leave
/// free ourselves.
#[must_use]
pub fn low_water(space: &Space, places: &Places) -> u64 {
    places.low_space.min(space.total / 10).max(places.reserve)
}

/// Whether a file system is low. One that was, is until there is room for a while again: a number that swings around the
/// bound is one piece of news.
#[must_use]
pub fn is_low(space: &Space, bound: u64, was_low: bool) -> bool {
    let enough = if was_low { bound.saturating_add(bound / 4) } else { bound };
    space.free < enough
}

/// The length at which to be told of an image that is `length` long now; None if `before`, the one that is set, will do.
///
/// What all `images` of a file system can write before one of them is told of fits into what is free above the bound. Each
/// is first told of at half its share: then the others need not be set anew for each byte that it writes. Below the bound
/// it is only about learning that there is room again.
#[must_use]
pub fn next_threshold(
    space: &Space,
    bound: u64,
    images: u64,
    length: u64,
    before: Option<u64>,
) -> Option<u64> {
    let room = if space.free > bound { space.free - bound } else { space.free / 2 };
    let share = (room / images.max(1)).max(SMALLEST_SHARE);
    match before {
        Some(before) if before.saturating_sub(length) <= share => None,
        Some(_) | None => Some(length.saturating_add((share / 2).max(SMALLEST_SHARE))),
    }
}

/// Whether an image becomes longer as its VM writes to it, and by as much.
#[must_use]
pub fn grows(image: &ChainImage) -> bool {
    image.format == Format::Qcow2 && !image.is_block_device
}
