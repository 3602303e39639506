//! What differs between the catalog and the world: what somebody did with `virsh`, with files, with the VM.
//!
//! Decides the class of each difference, and what it stands in the way of. Adopts nothing and removes nothing: that is a
//! person's, one of the ways that `resolve` knows. Leaves to every plan to refuse by itself what it finds wrong with the
//! disks that it touches.

use std::path::{Path, PathBuf};

use crate::model::layer::Layer;
use crate::model::vm::{Attachment, DiskView, Format, ImageFacts, RunState};
use crate::model::{CloneState, Difference, DifferenceKind, LayerId, LayerTree, Reason, Snapshot, Volume};

use super::resolve::{actions, damaged_by_merge, is_explained_by_merge, owner_elsewhere};
use super::{Refusal, World, check_disk};

/// All differences of a VM, or of a volume that no VM has.
#[must_use]
pub fn differences(world: &World) -> Vec<Difference> {
    if world.vm.attachment == Attachment::Gone {
        return vec![undefined(world)];
    }
    let mut found: Vec<Difference> = Vec::new();
    found.extend((world.vm.run_state == RunState::Migrated).then(|| elsewhere(world)));
    found.extend(transient(world));
    found.extend(world.vm.disks.iter().filter_map(|disk| of_disk(world, disk)));
    found.extend(unplugged(world));
    for difference in world.tree.layers.values().filter_map(|layer| of_layer(world, layer)) {
        // A disk that has told of the image already only learns which snapshots read it.
        let same = |told: &&mut Difference| told.kind == difference.kind && told.path == difference.path;
        match found.iter_mut().find(same) {
            Some(told) => told.snapshots = difference.snapshots,
            None => found.push(difference),
        }
    }
    found.extend(of_memory(world));
    found.extend(of_variables(world));
    found.extend(of_clones(world));
    for difference in &mut found {
        difference.actions = actions(world, difference);
    }
    found
}

fn found(world: &World, kind: DifferenceKind, description: String) -> Difference {
    Difference::new(kind, Some((world.vm.id, world.vm.name.clone())), description)
}

fn undefined(world: &World) -> Difference {
    let kept = world.tree.snapshots.len();
    let why = world.tree.snapshots.iter().filter_map(|snapshot| snapshot.trouble.as_ref());
    let has_migrated = why.clone().any(|why| why.reason == Reason::VmMigrated);
    let (kind, what) = if has_migrated {
        (DifferenceKind::VmMigrated, "has migrated to another node")
    } else {
        (DifferenceKind::VmUndefined, "is not on this node")
    };
    let words = format!(
        "{} {what}: its {kept} snapshots are LOST, or in ERROR, until it is back; purge what nobody needs any more",
        world.vm.name
    );
    found(world, kind, words)
}

/// It is off, but only here.
fn elsewhere(world: &World) -> Difference {
    let words = format!(
        "{} has migrated to another node, and its definition is still here: nothing is done to its disks until it runs \
         here again",
        world.vm.name
    );
    found(world, DifferenceKind::VmMigrated, words)
}

/// It runs, and nothing of it remains when it stops.
fn transient(world: &World) -> Option<Difference> {
    let is_at_stake = world.vm.attachment == Attachment::Attached && !world.tree.snapshots.is_empty();
    if world.vm.persistent || !world.vm.run_state.is_live() || !is_at_stake {
        return None;
    }
    let name = &world.vm.name;
    let words = format!(
        "{name} has no definition that outlives it: its snapshots are LOST once it stops; define it, with 'virsh dumpxml {name} \
         > {name}.xml' and 'virsh define {name}.xml'"
    );
    let difference = found(world, DifferenceKind::VmUndefined, words);
    Some(Difference { blocks: false, ..difference })
}

/// What stands in the way of any operation on a disk.
fn of_disk(world: &World, disk: &DiskView) -> Option<Difference> {
    disk.active()?;
    let refusal = check_disk(world, disk).err()?;
    let damaged = damaged_by_merge(world, disk);
    let (kind, path, advice) = match &refusal {
        Refusal::UnknownOverlay { .. } | Refusal::ChainDiffers { .. } if damaged.is_some() => {
            (DifferenceKind::LayerMerged, None, MERGED.to_owned())
        }
        Refusal::UnknownOverlay { active, .. } => {
            (DifferenceKind::UnknownOverlay, Some(active), advice_on_overlay(world, disk, active))
        }
        Refusal::DefinitionsDiffer { stored, .. } => (
            DifferenceKind::DefinitionDiffers,
            Some(stored),
            "let the stored definition name what the VM writes to, with 'virsh edit'".to_owned(),
        ),
        Refusal::ChainDiffers { .. } => {
            (DifferenceKind::ImageChanged, None, "bring the backing files back as they were".to_owned())
        }
        Refusal::BlockJob(_) => (
            DifferenceKind::ForeignBlockJob,
            None,
            "wait until it has ended, or end it with 'virsh blockjob'".to_owned(),
        ),
        Refusal::ImageMissing(path) => {
            (DifferenceKind::ImageMissing, Some(path), "bring the file back as it was".to_owned())
        }
        _ => return None,
    };
    let difference = found(world, kind, format!("{refusal}: {advice}"));
    let snapshots = damaged.filter(|_| kind == DifferenceKind::LayerMerged).unwrap_or_default();
    Some(Difference { disk: Some(disk.target.clone()), path: path.cloned(), snapshots, ..difference })
}

const MERGED: &str =
    "somebody merged layers that snapshots need, or lets the VM write to one: snapshots read wrong";

/// What lies on a volume's active image can be merged into that, and into nothing else: what lies below is a snapshot's.
fn advice_on_overlay(world: &World, disk: &DiskView, overlay: &Path) -> String {
    let below = disk.chain().get(1);
    let advice = if below.is_some_and(|below| world.tree.volume_writing(&below.path).is_some()) {
        // Without --shallow it would go into the lowest image.
        "merge it into what it lies on, with 'virsh blockcommit VM DISK --shallow --active --pivot'"
    } else {
        "do not merge it, for it lies on what snapshots or other VMs need: let the VM write to its own image again, \
         with 'virsh edit', or take the disk away"
    };
    match owner_elsewhere(world, overlay) {
        None => advice.to_owned(),
        Some(name) => format!(
            "{advice}; it can be adopted once libvirt does not keep snapshot {name} of it any more: \
             'virsh snapshot-delete VM {name} --metadata' removes no file"
        ),
    }
}

/// Volumes of the catalog that the VM has no disk for now. It may have been meant so.
fn unplugged(world: &World) -> impl Iterator<Item = Difference> {
    let is_there = |volume: &Volume| {
        let active = world.tree.layers.get(&volume.active);
        let is_it = |disk: &DiskView| active.is_some_and(|active| disk.uses(&active.path));
        world.vm.disks.iter().any(|disk| is_it(disk) || is_changed(world, disk, volume))
    };
    let is_meant =
        |volume: &Volume| world.tree.layers.get(&volume.active).is_some_and(|active| active.is_set_aside);
    let gone = world.tree.volumes.iter().filter(move |volume| !is_there(volume) && !is_meant(volume));
    gone.map(|volume| {
        let description = format!(
            "disk {} is not the VM's any more: its content in snapshots stays, and a revert leaves it out",
            volume.target
        );
        let difference = found(world, DifferenceKind::DiskSetChanged, description);
        Difference { disk: Some(volume.target.clone()), blocks: false, ..difference }
    })
}

/// Whether a disk is a volume all the same, though somebody lets it write to something else: the disk tells of that.
fn is_changed(world: &World, disk: &DiskView, volume: &Volume) -> bool {
    let known = disk.chain().iter().find_map(|image| world.tree.layer_at(&image.path));
    disk.target == volume.target && known.is_some_and(|known| known.volume == volume.id)
}

/// What is wrong with the file of a layer. What it stands in the way of, the disks say.
fn of_layer(world: &World, layer: &Layer) -> Option<Difference> {
    if is_given_up(world, layer) || is_explained_by_merge(world, layer.id) {
        return None;
    }
    let path = &layer.path;
    let (kind, words) = match world.images.get(path) {
        None => not_usable(world, path),
        Some(facts) => {
            let wrong = wrong_backing(&world.tree, layer, facts)
                .or_else(|| not_as_seen(&world.tree, layer, facts))?;
            (DifferenceKind::ImageChanged, format!("{}: {wrong}", path.display()))
        }
    };
    let difference = found(world, kind, words).at(path);
    Some(Difference { snapshots: world.tree.readers(layer.id), blocks: false, ..difference })
}

/// Whether only snapshots need a layer of which it is known that they do not read what they should. A file that is back is another
/// matter: it may be what they miss.
fn is_given_up(world: &World, layer: &Layer) -> bool {
    let tree = &world.tree;
    let reads = |top: LayerId| tree.chain(top).iter().any(|read| read.id == layer.id);
    let readers = tree.readers(layer.id);
    let is_back = world.images.contains_key(&layer.path);
    let knows = |snapshot: &Snapshot| snapshot.is_given_up() && !(is_back && snapshot.misses_a_file());
    let all_know = readers.iter().all(|id| tree.snapshot(*id).is_some_and(knows));
    !readers.is_empty()
        && all_know
        && !tree.volumes.iter().any(|volume| reads(volume.active))
        && !tree.clones.iter().any(|clone| clone.layer.is_some_and(reads))
}

/// What is to be told of an image that is not there, or cannot be read.
fn not_usable(world: &World, path: &Path) -> (DifferenceKind, String) {
    let shown = path.display();
    match world.damaged.get(path) {
        Some(problem) => (
            DifferenceKind::ImageChanged,
            format!("{shown} cannot be read: {problem}: bring it back as it was"),
        ),
        None => (DifferenceKind::ImageMissing, format!("there is no image {shown}: bring it back as it was")),
    }
}

fn of_clones(world: &World) -> impl Iterator<Item = Difference> {
    let made = world.tree.clones.iter().filter(|clone| clone.state == CloneState::Available);
    let gone = made.filter(|clone| !world.images.contains_key(&clone.path));
    gone.map(|clone| {
        let (kind, words) = not_usable(world, &clone.path);
        let words = format!("{words}, or delete volume {}", clone.name);
        let difference = found(world, kind, words).at(&clone.path);
        Difference { blocks: false, ..difference }
    })
}

pub(super) fn wrong_backing(tree: &LayerTree, layer: &Layer, facts: &ImageFacts) -> Option<String> {
    let expected = layer.parent.and_then(|parent| tree.layers.get(&parent)).map(|parent| &parent.path);
    let actual = facts.backing.as_ref().map(|backing| &backing.path);
    // What lies below foreign images was never ours to know.
    if expected == actual || layer.format != facts.format || layer.format == Format::Raw {
        return None;
    }
    let show = |path: Option<&PathBuf>| path.map_or("nothing".to_owned(), |path| path.display().to_string());
    Some(format!("it lies on {}, not on {}", show(actual), show(expected)))
}

/// Held against how the last operation left the file. What the VM writes to may have any length.
pub(super) fn not_as_seen(tree: &LayerTree, layer: &Layer, facts: &ImageFacts) -> Option<String> {
    let (seen, now) = (layer.seen?, facts.seen());
    if now.is_link != seen.is_link {
        let (was, is) = if now.is_link { ("a file", "a link") } else { ("a link", "a file") };
        return Some(format!("it was {was} and is {is} now: put the file back in its place"));
    }
    if now.length != seen.length && !tree.is_active(layer.id) {
        return Some(format!("it has {} bytes, not {}: bring it back as it was", now.length, seen.length));
    }
    if now.inode != seen.inode {
        return Some(
            "another file stands there than before: make sure that its content is the same".to_owned(),
        );
    }
    None
}

fn of_memory(world: &World) -> impl Iterator<Item = Difference> {
    needed(world).filter_map(|snapshot| {
        let memory = snapshot.memory.as_ref()?;
        let there = world.memory_images.get(&memory.path).copied();
        beside_disks(
            world,
            snapshot,
            (&memory.path, memory.bytes),
            there,
            "there is no complete memory image",
        )
    })
}

fn of_variables(world: &World) -> impl Iterator<Item = Difference> {
    needed(world).filter_map(|snapshot| {
        let kept = snapshot.variables.as_ref()?;
        let there = world.variables.get(&kept.path).copied();
        beside_disks(world, snapshot, (&kept.path, kept.bytes), there, "there are no UEFI variables")
    })
}

fn needed(world: &World) -> impl Iterator<Item = &Snapshot> {
    world.tree.snapshots.iter().filter(|snapshot| !snapshot.is_given_up())
}

/// What is wrong with a file that is kept with a snapshot beside its disks, and should have so many bytes.
fn beside_disks(
    world: &World,
    snapshot: &Snapshot,
    (path, bytes): (&Path, u64),
    there: Option<u64>,
    missing: &str,
) -> Option<Difference> {
    let (kind, words) = match there {
        Some(there) if there == bytes => return None,
        Some(there) => (DifferenceKind::ImageChanged, format!("it has {there} bytes, not {bytes}")),
        None => (DifferenceKind::ImageMissing, missing.to_owned()),
    };
    let words = format!("{}: {words}; the disks of the snapshot are as they were", path.display());
    let difference = found(world, kind, words).at(path);
    Some(Difference { snapshots: vec![snapshot.id], blocks: false, ..difference })
}
