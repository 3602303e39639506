//! Deleting snapshots: their references go, and what the tree has no need of any more goes with them. The content of
//! every other snapshot and of the VM's disks is the same before and after.

use std::collections::BTreeSet;
use std::path::Path;

use crate::model::snapshot::{Snapshot, SnapshotState};
use crate::model::step::{CatalogChange, DoomedImage, MergedLayers, Step};
use crate::model::{DeleteSnapshots, LayerId, SnapshotId};

use super::collapse::{Collapse, Range, held_up_by};
use super::space::{Run, check_merges};
use super::{Plan, Refusal, Removal, RemovalKind, World, check_disk, check_vm};

/// Plans the deletion of snapshots of one VM. Any of any tree can be: what cannot be merged yet waits.
pub fn delete(world: &World, request: &DeleteSnapshots) -> Result<Plan, Refusal> {
    check_vm(world)?;
    let doomed = doomed_snapshots(world, request);
    for snapshot in &doomed {
        // One that is LOST although the VM is here lacks an image: it may go like any other.
        if !matches!(snapshot.state, SnapshotState::Ready | SnapshotState::Error | SnapshotState::Lost) {
            return Err(Refusal::SnapshotNotReady(snapshot.state));
        }
        snapshot.check_not_held().map_err(Refusal::Held)?;
    }
    if let (Some(seen), Some(first)) = (request.generation, doomed.first())
        && seen != first.generation
    {
        return Err(Refusal::EtagMismatch { actual: first.generation });
    }
    let ids: Vec<SnapshotId> = doomed.iter().map(|snapshot| snapshot.id).collect();
    let mark = |snapshot: &&Snapshot| Step::MarkDeleting { snapshot: snapshot.id, was: snapshot.state };
    let mut steps: Vec<Step> = doomed.iter().map(mark).collect();
    let mut changed = world.tree.clone();
    for id in &ids {
        changed.forget_snapshot(*id);
    }
    // What waits already must not stand in the way of what makes room.
    let has_waited =
        |layer: LayerId| world.tree.layers.get(&layer).is_some_and(|layer| world.tree.is_free(layer));
    let collapse = what_fits(world, Collapse::of(world, &changed), has_waited)?;
    // Until a merge has started the snapshots can be had back; a removal is recorded before the first file goes.
    let commit_point = steps.len();
    let memory = doomed.iter().filter_map(|snapshot| snapshot.memory.as_ref());
    let variables = doomed.iter().filter_map(|snapshot| snapshot.variables.as_ref());
    let beside = memory.map(|memory| &memory.path).chain(variables.map(|variables| &variables.path));
    let beside = beside.map(|path| DoomedImage { path: path.clone(), identity: None }).collect();
    let (collapsing, bytes_to_copy, bytes_needed) = settle(world, &collapse, ids, beside, request.bandwidth)?;
    steps.extend(collapsing);
    Ok(Plan {
        warnings: warnings(world, &changed),
        removals: doomed.iter().map(|snapshot| removal(world, snapshot)).collect(),
        bytes_to_copy,
        bytes_needed,
        ..Plan::new(world, steps, commit_point)
    })
}

/// Plans to merge and remove what nothing refers to any more.
pub fn collapse(world: &World) -> Result<Plan, Refusal> {
    check_vm(world)?;
    let collapse = Collapse::of(world, &world.tree);
    if collapse.is_empty() {
        let path = held_up_by(world).map(Path::to_owned);
        return Err(path.map_or(Refusal::NothingToCollapse, Refusal::HeldUp));
    }
    let some = what_fits(world, collapse.clone(), |_| true)?;
    if some.is_empty() {
        // Not even one: then it is told why.
        check_merges(world, &runs(&collapse.merge_steps(world, None)))?;
    }
    let collapse = some;
    let (steps, bytes_to_copy, bytes_needed) = settle(world, &collapse, Vec::new(), Vec::new(), None)?;
    Ok(Plan { bytes_to_copy, bytes_needed, ..Plan::new(world, steps, 0) })
}

/// Merges, then lets snapshots and layers go. With the bytes that move and those that must be free, at most.
fn settle(
    world: &World,
    collapse: &Collapse,
    snapshots: Vec<SnapshotId>,
    mut images: Vec<DoomedImage>,
    bandwidth: Option<u64>,
) -> Result<(Vec<Step>, u64, u64), Refusal> {
    let mut steps = collapse.merge_steps(world, bandwidth);
    check_disks(world, &steps)?;
    let runs = runs(&steps);
    images.extend(collapse.images(world));
    steps.push(Step::Record(CatalogChange::SnapshotsDeleted { snapshots, gone: collapse.gone.clone() }));
    if !images.is_empty() {
        steps.push(Step::RemoveImages { images });
    }
    let sum = |bytes: fn(&Run, &World) -> u64| runs.iter().map(|run| bytes(run, world)).sum();
    Ok((steps, sum(Run::held), sum(Run::growth)))
}

/// Those that were asked for, and everything made on top of them if that was asked for, too.
fn doomed_snapshots<'a>(world: &'a World, request: &DeleteSnapshots) -> Vec<&'a Snapshot> {
    let mut wanted: BTreeSet<SnapshotId> = request.snapshots.iter().copied().collect();
    if request.with_children {
        // Oldest first: a parent stands before its children.
        for snapshot in &world.tree.snapshots {
            if snapshot.parent.is_some_and(|parent| wanted.contains(&parent)) {
                wanted.insert(snapshot.id);
            }
        }
    }
    let (mut first, rest): (Vec<_>, Vec<_>) = world
        .tree
        .snapshots
        .iter()
        .filter(|snapshot| wanted.contains(&snapshot.id))
        .partition(|snapshot| request.snapshots.first() == Some(&snapshot.id));
    first.extend(rest);
    first
}

/// The disks whose chains are touched must be as the catalog says, and free.
fn check_disks(world: &World, steps: &[Step]) -> Result<(), Refusal> {
    for merge in merges(steps) {
        if let Some(disk) = world.vm.disks.iter().find(|disk| disk.uses(&merge.base.path)) {
            check_disk(world, disk)?;
        }
    }
    Ok(())
}

/// Without merges that there is no room for, if all that is merged in them `may_wait`: else it is refused.
fn what_fits(
    world: &World,
    collapse: Collapse,
    may_wait: impl Fn(LayerId) -> bool,
) -> Result<Collapse, Refusal> {
    let check = |collapse: &Collapse| check_merges(world, &runs(&collapse.merge_steps(world, None)));
    match check(&collapse) {
        Err(Refusal::NoSpaceToMerge { .. }) => {}
        checked => return checked.map(|()| collapse),
    }
    let may_wait = |range: &Range| {
        let MergedLayers { base, between, .. } = &range.merged;
        [base].into_iter().chain(between).all(|layer| may_wait(*layer))
    };
    let (waiting, needed): (Vec<Range>, _) = collapse.ranges.into_iter().partition(may_wait);
    let mut fits = Collapse { gone: collapse.gone, ranges: needed };
    check(&fits)?;
    for range in waiting {
        fits.ranges.push(range);
        if check(&fits).is_err() {
            fits.ranges.pop();
        }
    }
    Ok(fits)
}

fn runs(steps: &[Step]) -> Vec<Run> {
    merges(steps).map(Run::of).collect()
}

fn merges(steps: &[Step]) -> impl Iterator<Item = &crate::model::step::Merge> {
    let layers = steps.iter().filter_map(|step| match step {
        Step::Merge(layers) => Some(layers),
        _ => None,
    });
    layers.flat_map(|layers| &layers.merges)
}

pub(super) fn removal(world: &World, snapshot: &Snapshot) -> Removal {
    let layers = snapshot.disks.iter().filter_map(|disk| world.tree.layers.get(&disk.layer));
    let disks: u64 =
        layers.filter_map(|layer| world.images.get(&layer.path)).map(|facts| facts.allocated).sum();
    Removal {
        kind: RemovalKind::Snapshot,
        id: snapshot.id.to_string(),
        description: format!("snapshot {} of {}", snapshot.name, snapshot.vm_name),
        bytes: disks + snapshot.memory.as_ref().map_or(0, |memory| memory.bytes),
    }
}

/// What stays although nothing refers to it.
fn warnings(world: &World, changed: &crate::model::LayerTree) -> Vec<String> {
    let mut warnings = Vec::new();
    let held = changed.read_elsewhere.iter().filter(|id| changed.references(**id).next().is_none());
    match held.count() {
        0 => {}
        count => warnings.push(format!("{count} layers are read by other VMs and stay until those are gone")),
    }
    let waiting = changed.pending().filter(|layer| changed.children(layer.id).count() > 1);
    let bytes =
        |layer: &crate::model::layer::Layer| world.images.get(&layer.path).map_or(0, |facts| facts.allocated);
    let (count, bytes) = waiting.fold((0, 0), |(count, sum), layer| (count + 1, sum + bytes(layer)));
    if count > 0 {
        warnings.push(format!(
            "{count} layers with {bytes} bytes are read by several branches and stay until all but one have gone"
        ));
    }
    warnings
}
