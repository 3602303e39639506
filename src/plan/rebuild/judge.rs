//! What a snapshot is, after all that was found: READY, in ERROR with the reason, or LOST.

use std::collections::BTreeSet;
use std::path::Path;

use super::Evidence;
use super::grow::is_detached;
use super::written::Written;
use crate::model::manifest::SnapshotManifest;
use crate::model::{Failure, Layer, LayerId, LayerTree, Ownership, Reason, SnapshotDisk, SnapshotState};

/// What was found of a snapshot.
pub(super) struct Judgement {
    pub(super) state: SnapshotState,
    /// Why it is not READY.
    pub(super) trouble: Option<Failure>,
}

/// What snapshots are judged by.
pub(super) struct Grounds<'a> {
    pub(super) evidence: &'a Evidence,
    /// The tree as headers tell of it.
    pub(super) tree: &'a LayerTree,
    /// The layers that snapshots and clones refer to, but for snapshots on their way out.
    pub(super) needed: &'a BTreeSet<LayerId>,
    /// Those that cannot be vouched for.
    pub(super) written: &'a Written,
}

pub(super) fn judge(grounds: &Grounds<'_>, of: &SnapshotManifest) -> Judgement {
    let error = |why: String| judgement(SnapshotState::Error, Reason::ImageChanged, why);
    match of.snapshot.state {
        // Somebody has given it up, and how its files were then is not known any more.
        SnapshotState::Error | SnapshotState::Lost if of.snapshot.is_given_up() => {
            return Judgement { state: SnapshotState::Error, trouble: of.snapshot.trouble.clone() };
        }
        SnapshotState::Deleting => {
            return error("it was being deleted when the catalog was lost: delete it again".to_owned());
        }
        SnapshotState::Creating => return error("it was being made when the catalog was lost".to_owned()),
        SnapshotState::Ready | SnapshotState::Reverting | SnapshotState::Lost | SnapshotState::Error => {}
    }
    if let Err(why) = check(grounds, of) {
        return error(why);
    }
    if of.snapshot.is_only_declared() {
        return Judgement { state: SnapshotState::Error, trouble: of.snapshot.trouble.clone() };
    }
    match absence(grounds.evidence, grounds.tree, of) {
        Some(why) => judgement(SnapshotState::Lost, Reason::VmNotFound, why),
        None => Judgement { state: SnapshotState::Ready, trouble: None },
    }
}

fn judgement(state: SnapshotState, reason: Reason, message: String) -> Judgement {
    Judgement { state, trouble: Some(Failure { reason, message, causes: Vec::new() }) }
}

/// Why its VM cannot be gone back with.
fn absence(evidence: &Evidence, tree: &LayerTree, of: &SnapshotManifest) -> Option<String> {
    if is_detached(&of.snapshot) {
        let is_there = tree.detached_image().is_some();
        return (!is_there).then(|| "the image of its volume is not there".to_owned());
    }
    if let Some(why) = evidence.unseen.get(&tree.vm) {
        return Some(format!("its VM cannot be looked at: {why}"));
    }
    let is_here = evidence.vm(tree.vm).is_some();
    (!is_here).then(|| {
        "its VM is not on this node: it was undefined, migrated away, or transient and stopped".to_owned()
    })
}

fn check(grounds: &Grounds<'_>, of: &SnapshotManifest) -> Result<(), String> {
    let evidence = grounds.evidence;
    if of.snapshot.disks.is_empty() {
        return Err("its manifest names no disks".to_owned());
    }
    of.snapshot.disks.iter().try_for_each(|disk| check_disk(grounds, of, disk))?;
    if let Some(memory) = &of.snapshot.memory {
        check_bytes("memory image", &memory.path, evidence.memory_images.get(&memory.path), memory.bytes)?;
    }
    if let Some(kept) = &of.snapshot.variables {
        check_bytes("file of UEFI variables", &kept.path, evidence.variables.get(&kept.path), kept.bytes)?;
    }
    Ok(())
}

fn check_bytes(what: &str, path: &Path, found: Option<&u64>, expected: u64) -> Result<(), String> {
    match found {
        None => Err(format!("there is no complete {what} {}", path.display())),
        Some(found) if *found != expected => {
            Err(format!("the {what} {} has {found} bytes, not {expected}", path.display()))
        }
        Some(_) => Ok(()),
    }
}

fn check_disk(grounds: &Grounds<'_>, of: &SnapshotManifest, disk: &SnapshotDisk) -> Result<(), String> {
    let chain = grounds.tree.chain(disk.layer);
    let top = chain.first().ok_or_else(|| format!("its manifest does not tell where {} is", disk.target))?;
    for layer in &chain {
        check_layer(grounds.evidence, of, layer)?;
    }
    check_missing(&chain, of, disk, grounds.needed)?;
    grounds.written.check(&chain)?;
    if top.virtual_size != disk.virtual_size {
        let (is, was) = (top.virtual_size, disk.virtual_size);
        return Err(format!("{} has {is} bytes for a guest, not {was}", top.path.display()));
    }
    Ok(())
}

/// A merge takes layers out of a chain: those that nothing needs, and one that is needed when what it lies on is not, for then
/// it is merged down, and reads the same as long as it is there. Whatever else is missing was taken out by somebody else.
fn check_missing(
    chain: &[&Layer],
    of: &SnapshotManifest,
    disk: &SnapshotDisk,
    needed: &BTreeSet<LayerId>,
) -> Result<(), String> {
    let find = |id: LayerId| of.layers.iter().find(|layer| layer.id == id);
    let is_free = |layer: &Layer| layer.ownership == Ownership::Owned && !needed.contains(&layer.id);
    let mut told = find(disk.layer);
    // A manifest that goes round in circles is as long as all of its layers.
    for _ in 0..of.layers.len() {
        let Some(layer) = told else { break };
        let below = layer.parent.and_then(find);
        let may_go = layer.ownership == Ownership::Owned && (is_free(layer) || below.is_some_and(is_free));
        if !may_go && !chain.iter().any(|there| there.id == layer.id) {
            return Err(format!("it does not lie on {} any more", layer.path.display()));
        }
        told = below;
    }
    Ok(())
}

fn check_layer(evidence: &Evidence, of: &SnapshotManifest, layer: &Layer) -> Result<(), String> {
    let path = layer.path.display();
    let facts = evidence.images.get(&layer.path).ok_or_else(|| format!("there is no usable image {path}"))?;
    if !of.layers.iter().any(|told| told.id == layer.id) {
        return Err(format!("it reads through {path}, which its manifest does not tell of"));
    }
    if evidence.written().contains(&(facts.identity.device, facts.identity.inode)) {
        return Err(format!("a VM writes to {path}"));
    }
    Ok(())
}
