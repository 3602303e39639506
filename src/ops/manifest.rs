//! Manifests: written when they are due, removed when what they are of is gone. See `model::manifest` for what they are.
//!
//! Decides when, and in which order with what an operation does: before a merge writes the first byte into a layer, no
//! manifest promises any more what that layer read; before the layers that were merged away are removed, manifests name
//! those that took their place. That a manifest cannot be written holds nobody up: it stays due, is told once, and is tried
//! again by the next operation and by the next start. Only one that cannot even be taken away, and promises what would be
//! wrong then, holds up the merge. Storage that hangs is waited for once, by whoever works on it, and by nobody for long.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::stream::{self, StreamExt};
use uuid::Uuid;

use super::{Engine, OpsError, Result};
use crate::host::{HostError, Images, unfinished};
use crate::model::manifest::{Manifest, checksum};
use crate::model::operation::in_one_line;
use crate::model::step::DoomedImage;
use crate::model::{Difference, DifferenceKind, LayerTree, SnapshotId, VmId};
use crate::plan::{self, Places};
use crate::store::{KeptManifest, Store, StoreError};

/// Storage that has not written a small file by then hangs, for all that anybody can tell.
const DEADLINE: Duration = Duration::from_secs(20);

/// The manifests of so many VMs are written side by side.
const AT_ONCE: usize = 8;

/// What could not be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Unwritten {
    Manifest(Uuid),
    /// Which of them are due cannot be told.
    AllOf(VmId),
}

/// How much whoever settles manifests wants them to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Eagerness {
    /// It works on the VM: what could not be written before is tried again.
    Concerned,
    /// It works on another VM, and waits for nobody who works on this one.
    Passing,
    /// Nobody waits for it.
    Patient,
}

/// Who writes manifests.
pub(super) struct Manifests {
    images: Arc<dyn Images>,
    store: Store,
    places: Places,
    /// Those of one VM are written by one at a time; storage that hangs holds up nobody else's.
    turns: Mutex<BTreeMap<VmId, Arc<tokio::sync::Mutex<()>>>>,
    /// Those that could not be written, of which VM, and why. They are told already.
    failing: Mutex<BTreeMap<Unwritten, (VmId, String)>>,
}

impl Manifests {
    pub(super) fn new(images: Arc<dyn Images>, store: Store, places: Places) -> Self {
        Self { images, store, places, turns: Mutex::default(), failing: Mutex::default() }
    }

    /// Writes what is due of all VMs, each on its own. What could not be written before is tried again only of these: storage
    /// that hangs is to hold up whoever works on it, and nobody else.
    pub(super) async fn settle(&self, concerned: &BTreeSet<VmId>) {
        let is_concerned = |vm| concerned.contains(&vm);
        let eagerness = |vm| if is_concerned(vm) { Eagerness::Concerned } else { Eagerness::Passing };
        self.settle_each(eagerness).await;
    }

    async fn settle_each(&self, eagerness: impl Fn(VmId) -> Eagerness) {
        match self.store.vms_with_due_manifests().await {
            Ok(due) => {
                let settle = |vm| self.settle_vm(vm, eagerness(vm));
                stream::iter(due).for_each_concurrent(AT_ONCE, settle).await;
            }
            Err(error) => {
                let error: &dyn std::error::Error = &error;
                tracing::warn!(error, "it cannot be told which manifests are due");
            }
        }
    }

    /// Writes what is due, but for what could not be written before.
    async fn settle_rest(&self) {
        self.settle_each(|_| Eagerness::Patient).await;
    }

    /// Writes all that is due.
    pub(super) async fn settle_all(&self) {
        self.lock_failing().clear();
        self.settle_rest().await;
    }

    /// Before layers of a VM are written to: no manifest promises any more what they read.
    pub(super) async fn withdraw(&self, vm: VmId) -> Result<()> {
        self.settle(&BTreeSet::from([vm])).await;
        let _turn = self.turn(vm).lock_owned().await;
        for path in self.store.stale_manifests(vm).await? {
            self.remove(&path).await?;
        }
        Ok(())
    }

    async fn settle_vm(&self, vm: VmId, eagerness: Eagerness) {
        let turn = self.turn(vm);
        let _turn = match eagerness {
            Eagerness::Concerned | Eagerness::Patient => turn.lock_owned().await,
            Eagerness::Passing => match turn.try_lock_owned() {
                Ok(turn) => turn,
                Err(_) => return,
            },
        };
        let is_left = |what| eagerness != Eagerness::Concerned && self.lock_failing().contains_key(&what);
        if is_left(Unwritten::AllOf(vm)) {
            return;
        }
        let due = self.store.readable_manifests(vm, true).await.map_err(OpsError::from);
        self.note(vm, Unwritten::AllOf(vm), due.as_ref().map(drop));
        let mut due = due.unwrap_or_default().into_iter();
        while let Some(kept) = due.next() {
            let what = unwritten(&kept);
            if is_left(what) {
                continue;
            }
            let settled = match kept {
                Ok(kept) => self.settle_one(&kept).await,
                Err((_, error)) => Err(error.into()),
            };
            self.note(vm, what, settled.as_ref().copied());
            if matches!(settled, Err(OpsError::Host(HostError::TimedOut { .. }))) {
                // The others lie on the same storage: none of them is waited for as long.
                due.by_ref().for_each(|kept| self.note(vm, unwritten(&kept), settled.as_ref().copied()));
            }
        }
    }

    /// Tells what is new of a manifest, once.
    fn note(&self, vm: VmId, what: Unwritten, settled: std::result::Result<(), &OpsError>) {
        match settled {
            Ok(()) => {
                if self.lock_failing().remove(&what).is_some() {
                    tracing::info!(?what, %vm, "a manifest that could not be written is as it should be");
                }
            }
            Err(error) => {
                let error: &(dyn std::error::Error + 'static) = error;
                if self.lock_failing().insert(what, (vm, in_one_line(error))).is_none() {
                    tracing::warn!(?what, %vm, error, "a manifest cannot be written: it is tried again");
                }
            }
        }
    }

    async fn settle_one(&self, kept: &KeptManifest) -> Result<()> {
        let Some(wanted) = &kept.wanted else {
            self.remove_all(&kept.places).await?;
            return Ok(self.store.settle_manifest(kept.id, kept.mark, None).await?);
        };
        let path = plan::manifest_path(wanted, &self.places);
        let content = encode(wanted, &path)?;
        let sum = checksum(&content);
        if kept.places != [path.clone()] || kept.checksum != sum {
            let others: Vec<PathBuf> = kept.places.iter().filter(|place| **place != path).cloned().collect();
            let places = others.iter().chain([&path]).cloned().collect();
            // Until it is written it is not known what is in it.
            self.store.place_manifest(kept.id, places).await?;
            in_time("write a manifest", self.images.write_file(&path, &content)).await?;
            self.remove_all(&others).await?;
        }
        Ok(self.store.settle_manifest(kept.id, kept.mark, Some((path, sum))).await?)
    }

    async fn remove_all(&self, places: &[PathBuf]) -> Result<()> {
        for path in places {
            self.remove(path).await?;
        }
        Ok(())
    }

    /// And what was to become one.
    async fn remove(&self, path: &Path) -> Result<()> {
        for path in [path.to_owned(), unfinished(path)] {
            let doomed = DoomedImage { path, identity: None };
            in_time("remove a manifest", self.images.remove(&doomed)).await?;
        }
        Ok(())
    }

    fn turn(&self, vm: VmId) -> Arc<tokio::sync::Mutex<()>> {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(turns.entry(vm).or_default())
    }

    fn lock_failing(&self) -> MutexGuard<'_, BTreeMap<Unwritten, (VmId, String)>> {
        self.failing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Engine {
    /// Those that cannot be written, as a check tells of them.
    pub(super) async fn unwritten_manifests(&self) -> Result<Vec<Difference>> {
        let failing = self.0.manifests.lock_failing().clone();
        let mut found = Vec::new();
        for (unwritten, (vm, why)) in failing {
            // It may be what cannot be read.
            let tree = self.0.store.tree(vm).await.unwrap_or_else(|_| LayerTree::empty(vm));
            let (snapshot, what) = match unwritten {
                Unwritten::Manifest(id) => (tree.snapshot(SnapshotId(id)), format!("the manifest of {id}")),
                Unwritten::AllOf(vm) => (tree.snapshots.last(), format!("a manifest of {vm}")),
            };
            let name = snapshot.map(|snapshot| snapshot.vm_name.clone()).unwrap_or_default();
            let words = format!("{what} cannot be written: {why}: it is tried again by the next operation");
            let difference = Difference::new(DifferenceKind::ManifestUnwritten, Some((vm, name)), words);
            let snapshots = snapshot.map(|snapshot| snapshot.id).into_iter().collect();
            found.push(Difference { snapshots, blocks: false, ..difference });
        }
        Ok(found)
    }

    /// Writes the manifests that are due, while whoever made them so goes on.
    pub(super) fn settle_manifests(&self) {
        let engine = self.clone();
        self.0.tasks.spawn(async move { engine.0.manifests.settle_rest().await });
    }
}

fn unwritten(kept: &std::result::Result<KeptManifest, (Uuid, StoreError)>) -> Unwritten {
    Unwritten::Manifest(kept.as_ref().map_or_else(|(id, _)| *id, |kept| kept.id))
}

/// What hangs is not waited for any longer.
async fn in_time(
    call: &'static str,
    work: impl Future<Output = std::result::Result<(), HostError>>,
) -> std::result::Result<(), HostError> {
    let late = |_| HostError::TimedOut { call, after: DEADLINE };
    tokio::time::timeout(DEADLINE, work).await.map_err(late)?
}

fn encode(manifest: &Manifest, path: &Path) -> Result<Vec<u8>> {
    let bad = |problem: String| OpsError::Host(HostError::BadImage { path: path.to_owned(), problem });
    let content = manifest.encode().map_err(|error| bad(error.to_string()))?;
    if content.len() > crate::model::manifest::LARGEST {
        return Err(bad(format!("the manifest would have {} bytes", content.len())));
    }
    Ok(content)
}
