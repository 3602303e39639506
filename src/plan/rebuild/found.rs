//! The manifests that count: of each snapshot and clone the newest, by tree.
//!
//! Decides between manifests that cannot all be right, the same way each time, and says so.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use uuid::Uuid;

use super::{Evidence, LeftOut, Report};
use crate::model::manifest::{CloneManifest, Manifest, SnapshotManifest};
use crate::model::{Layer, LayerId, VmId, VolumeName};

/// The manifests of one tree, the newest of each snapshot and clone.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Oldest first.
    pub(super) snapshots: Vec<SnapshotManifest>,
    pub(super) clones: Vec<CloneManifest>,
    /// Where each may be, older ones too.
    pub(super) places: BTreeMap<Uuid, Vec<PathBuf>>,
}

/// All that was found, by tree.
pub(super) fn by_tree(evidence: &Evidence, report: &mut Report) -> BTreeMap<VmId, Found> {
    let mut by_id: BTreeMap<Uuid, Vec<&(PathBuf, Manifest)>> = BTreeMap::new();
    let mut trees: BTreeMap<VmId, Found> = BTreeMap::new();
    for found in &evidence.manifests {
        let (path, manifest) = found;
        by_id.entry(manifest.id()).or_default().push(found);
        let places = &mut trees.entry(manifest.vm()).or_default().places;
        places.entry(manifest.id()).or_default().push(path.clone());
    }
    for of_one in by_id.into_values() {
        let Some(manifest) = newest(evidence, of_one, report) else { continue };
        let found = trees.entry(manifest.vm()).or_default();
        match manifest {
            Manifest::Snapshot(of) => found.snapshots.push(SnapshotManifest::clone(of)),
            Manifest::Clone(of) => found.clones.push(CloneManifest::clone(of)),
        }
    }
    for found in trees.values_mut() {
        found.snapshots.sort_by_key(|of| (of.snapshot.created_at, of.snapshot.id));
    }
    leave_out_clones(evidence, &mut trees, report);
    rename_clones(&mut trees, report);
    trees
}

/// Of those of one generation the one whose images are there; then the one whose path comes first.
fn newest<'a>(
    evidence: &Evidence,
    mut of_one: Vec<&'a (PathBuf, Manifest)>,
    report: &mut Report,
) -> Option<&'a Manifest> {
    let generation = of_one.iter().map(|(_, manifest)| manifest.generation()).max()?;
    of_one.retain(|(_, manifest)| manifest.generation() == generation);
    let missing = |manifest: &Manifest| {
        manifest.layers().iter().filter(|layer| !evidence.images.contains_key(&layer.path)).count()
    };
    of_one.sort_by_key(|(path, manifest)| (missing(manifest), path));
    let [(path, taken), others @ ..] = &of_one[..] else { return None };
    for (other, _) in others.iter().filter(|(_, other)| other != taken) {
        report.left_out.push(LeftOut {
            path: other.clone(),
            why: format!("{} is as new, and tells something else: that one is taken", path.display()),
        });
    }
    Some(taken)
}

/// A file is one clone: the one that lies on what the file lies on; then the one that was made last.
fn leave_out_clones(evidence: &Evidence, trees: &mut BTreeMap<VmId, Found>, report: &mut Report) {
    let mut of_file: BTreeMap<PathBuf, Vec<&CloneManifest>> = BTreeMap::new();
    for of in trees.values().flat_map(|found| &found.clones) {
        of_file.entry(of.clone.path.clone()).or_default().push(of);
    }
    let mut gone = BTreeSet::new();
    for (path, mut clones) in of_file {
        let below = evidence.images.get(&path).and_then(|facts| facts.backing.as_ref());
        let lies_so = |of: &CloneManifest| match below {
            None => of.layers.is_empty(),
            Some(below) => of.layers.iter().any(|layer| layer.path == below.path),
        };
        clones.sort_by_key(|of| (lies_so(of), of.clone.created_at, of.clone.id));
        let Some(kept) = clones.pop() else { continue };
        for of in clones {
            let (name, kept) = (&of.clone.name, &kept.clone.name);
            let why = format!("volumes {name} and {kept} are said to be here: it is taken as {kept}");
            report.left_out.push(LeftOut { path: path.clone(), why });
            gone.insert(of.clone.id);
        }
    }
    for found in trees.values_mut() {
        found.clones.retain(|of| !gone.contains(&of.clone.id));
    }
}

/// A volume is asked for by its name, whichever VM it was made out of: the one that was made first keeps it.
fn rename_clones(trees: &mut BTreeMap<VmId, Found>, report: &mut Report) {
    let mut clones: Vec<&mut CloneManifest> =
        trees.values_mut().flat_map(|found| &mut found.clones).collect();
    clones.sort_by_key(|of| (of.clone.created_at, of.clone.id));
    let mut taken = BTreeSet::new();
    for of in clones {
        let name = of.clone.name.to_string();
        let free = free_name(&mut taken, &name, VolumeName::LIMIT, of.clone.id.0);
        if free != name
            && let Ok(free) = free.parse()
        {
            report.notes.push(format!("{name}: another volume has the name; it is called {free} now"));
            of.clone.name = free;
        }
    }
}

/// A name that nothing else has, as like the one that was chosen as can be. It is taken from then on.
pub(super) fn free_name(taken: &mut BTreeSet<String>, name: &str, limit: usize, id: Uuid) -> String {
    let id = id.to_string();
    // A name has at most so many characters, of one byte each.
    let begin: String = name.chars().take(limit - 13).collect();
    let candidates = [name.to_owned(), format!("{begin}-{}", &id[24..])];
    let free = candidates.into_iter().find(|candidate| !taken.contains(candidate));
    let free = free.unwrap_or_else(|| format!("rebuilt-{id}"));
    taken.insert(free.clone());
    free
}

impl Found {
    /// What disks are told to read through.
    pub(super) fn active(&self) -> impl Iterator<Item = &Layer> {
        self.snapshots.iter().flat_map(|of| &of.active)
    }

    /// What snapshots and clones are told to read through, as often as that is told.
    pub(super) fn layers(&self) -> impl Iterator<Item = &Layer> {
        let of_snapshots = self.snapshots.iter().flat_map(|of| &of.layers);
        of_snapshots.chain(self.clones.iter().flat_map(|of| &of.layers))
    }

    /// A layer is the same one wherever manifests say that it is; where it is now, the file says.
    pub(super) fn told(&self, evidence: &Evidence) -> BTreeMap<LayerId, Layer> {
        let is_there = |layer: &Layer| evidence.images.contains_key(&layer.path);
        let mut told: BTreeMap<LayerId, Layer> = BTreeMap::new();
        for layer in self.layers() {
            let known = told.get(&layer.id);
            if known.is_none_or(|known| !is_there(known) && is_there(layer)) {
                told.insert(layer.id, Layer { seen: None, ..layer.clone() });
            }
        }
        told
    }
}
