//! A catalog that was lost, made anew from what was found: manifests, image headers, and the VMs of the hypervisor.
//!
//! Decides what is vouched for. A snapshot is READY only if everything that it reads is there, as large as it was, lies on
//! what it lay on, and is written to by nobody; else it is in ERROR with the reason, or LOST if only its VM is not here.
//! Headers say what lies on what, manifests say what no header can: whose a layer is, and what the snapshot is called. What
//! neither knows is foreign: never written, never removed.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;

use super::NewIds;
use crate::model::manifest::Manifest;
use crate::model::rebuilt::RebuiltTree;
use crate::model::{ImageFacts, VmId, VmView};
use serde::Serialize;

mod found;
mod grow;
mod judge;
mod same;
mod written;

use grow::grow;

/// What was found.
#[derive(Debug, Clone, Default)]
pub struct Evidence {
    /// Manifests that are whole, and where they are.
    pub manifests: Vec<(PathBuf, Manifest)>,
    /// Files that should be manifests and are not whole, and why.
    pub rejected: Vec<(PathBuf, String)>,
    /// What images say of themselves. One that does not exist, or cannot be read, is not here.
    pub images: HashMap<PathBuf, ImageFacts>,
    /// Complete memory images, with their sizes in bytes.
    pub memory_images: HashMap<PathBuf, u64>,
    /// Files of UEFI variables, with their sizes in bytes.
    pub variables: HashMap<PathBuf, u64>,
    /// The VMs that the hypervisor knows.
    pub vms: Vec<VmView>,
    /// Those of them that cannot be looked at, and why.
    pub unseen: BTreeMap<VmId, String>,
}

/// What comes of it.
#[derive(Debug, Clone)]
pub struct Rebuilt {
    /// What the catalog will hold.
    pub trees: Vec<RebuiltTree>,
    /// What a person is told.
    pub report: Report,
}

/// What a person is told of a catalog that is made anew.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// By VM, and by volume that no VM has.
    pub restored: Vec<Restored>,
    /// Files that were left out.
    pub left_out: Vec<LeftOut>,
    /// What is not as it was, or is not known any more.
    pub notes: Vec<String>,
}

/// What is known again of a VM, or of a volume that no VM has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Restored {
    /// Its id.
    pub id: String,
    /// The name it had last.
    pub name: String,
    /// Its snapshots, oldest first.
    pub snapshots: Vec<RestoredSnapshot>,
    /// The names of the clones that were made out of it.
    pub clones: Vec<String>,
}

/// A snapshot that is known again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RestoredSnapshot {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Its state now.
    pub state: String,
    /// Why it is not READY.
    pub why: Option<String>,
}

/// A file that was left out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LeftOut {
    /// The file.
    pub path: PathBuf,
    /// Why.
    pub why: String,
}

/// What nothing on the disks tells.
const UNKNOWN: &str = "operations, events, request ids, freeze leases and notes of slowed guests are gone: a guest that was \
                       frozen, or whose writes were limited for a merge, when the catalog was lost has to be freed by hand; \
                       that an image has the length and the backing file that it had is checked where that was told, its \
                       content is not: what somebody merged or wrote without a trace in either is not seen";

/// What the catalog will hold.
#[must_use]
pub fn rebuild(evidence: &Evidence, ids: NewIds<'_>) -> Rebuilt {
    let mut report = Report::default();
    for (path, why) in &evidence.rejected {
        report.left_out.push(LeftOut { path: path.clone(), why: why.clone() });
    }
    let mut trees = Vec::new();
    let mut taken = BTreeSet::new();
    for (vm, mut found) in found::by_tree(evidence, &mut report) {
        same::tell_apart(&mut found, &mut taken, ids);
        let rebuilt = grow(evidence, vm, found, ids, &mut report);
        if !rebuilt.tree.snapshots.is_empty() || !rebuilt.tree.clones.is_empty() {
            report.restored.push(restored(&rebuilt));
            trees.push(rebuilt);
        }
    }
    same::settle_owners(evidence, &mut trees, &mut report);
    report.notes.push(UNKNOWN.to_owned());
    Rebuilt { trees, report }
}

fn restored(rebuilt: &RebuiltTree) -> Restored {
    let tree = &rebuilt.tree;
    let snapshots = tree.snapshots.iter().map(|snapshot| RestoredSnapshot {
        id: snapshot.id.to_string(),
        name: snapshot.name.to_string(),
        state: snapshot.state.to_string(),
        why: snapshot.trouble.as_ref().map(|trouble| trouble.message.clone()),
    });
    Restored {
        id: tree.vm.to_string(),
        name: tree.snapshots.last().map(|last| last.vm_name.clone()).unwrap_or_default(),
        snapshots: snapshots.collect(),
        clones: tree.clones.iter().map(|clone| clone.name.to_string()).collect(),
    }
}

impl Evidence {
    fn vm(&self, id: VmId) -> Option<&VmView> {
        self.vms.iter().find(|vm| vm.id == id)
    }

    /// The images that VMs write to, whatever name they are known by.
    fn written(&self) -> BTreeSet<(u64, u64)> {
        let active = self.vms.iter().flat_map(|vm| &vm.disks).filter_map(|disk| disk.active());
        let facts = active.filter_map(|image| self.images.get(&image.path));
        facts.map(|facts| (facts.identity.device, facts.identity.inode)).collect()
    }
}
