//! Manifests: written when they are due, removed when what they are of is gone. See `model::manifest` for what they are.
//!
//! Decides when, and in which order with what an operation does: before a merge writes the first byte into a layer, no
//! manifest promises any more what that layer read; before the layers that were merged away are removed, manifests name
//! those that took their place. That a manifest cannot be written holds nobody up: it stays due, is told once, and is tried
//! again by the next operation and by the next start. Only one that cannot even be taken away, and promises what would be
//! wrong then, holds up the merge.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use uuid::Uuid;

use super::{Engine, OpsError, Result};
use crate::host::{HostError, Images, unfinished};
use crate::model::manifest::{Manifest, checksum};
use crate::model::operation::causes;
use crate::model::step::DoomedImage;
use crate::model::{Difference, DifferenceKind, SnapshotId, VmId};
use crate::plan::{self, Places};
use crate::store::{KeptManifest, Store};

/// Who writes manifests.
pub(super) struct Manifests {
    images: Arc<dyn Images>,
    store: Store,
    places: Places,
    /// Those of one VM are written by one at a time; storage that hangs holds up nobody else's.
    turns: Mutex<BTreeMap<VmId, Arc<tokio::sync::Mutex<()>>>>,
    /// Those that could not be written, of which VM, and why. They are told already.
    failing: Mutex<BTreeMap<Uuid, (VmId, String)>>,
}

impl Manifests {
    pub(super) fn new(images: Arc<dyn Images>, store: Store, places: Places) -> Self {
        Self { images, store, places, turns: Mutex::default(), failing: Mutex::default() }
    }

    /// Writes what is due of all VMs. What could not be written before is tried again only of these: storage that hangs is
    /// to hold up whoever works on it, and nobody else.
    pub(super) async fn settle(&self, concerned: &BTreeSet<VmId>) {
        let settled = async {
            for due in self.store.vms_with_due_manifests().await? {
                self.settle_vm(due, concerned.contains(&due)).await?;
            }
            Ok::<(), OpsError>(())
        };
        if let Err(error) = settled.await {
            let error: &dyn std::error::Error = &error;
            tracing::warn!(error, "it cannot be told which manifests are due");
        }
    }

    /// Writes all that is due.
    pub(super) async fn settle_all(&self) {
        self.lock_failing().clear();
        self.settle(&BTreeSet::new()).await;
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

    async fn settle_vm(&self, vm: VmId, even_failing: bool) -> Result<()> {
        let _turn = self.turn(vm).lock_owned().await;
        for kept in self.store.manifests(vm, true).await? {
            if !even_failing && self.lock_failing().contains_key(&kept.id) {
                continue;
            }
            match self.settle_one(&kept).await {
                Ok(()) => {
                    if self.lock_failing().remove(&kept.id).is_some() {
                        tracing::info!(manifest = %kept.id, "a manifest that could not be written is as it should be");
                    }
                }
                Err(error) => {
                    let error: &(dyn std::error::Error + 'static) = &error;
                    let words =
                        [error.to_string()].into_iter().chain(causes(error)).collect::<Vec<_>>().join(": ");
                    if self.lock_failing().insert(kept.id, (vm, words)).is_none() {
                        tracing::warn!(manifest = %kept.id, %vm, error, "a manifest cannot be written: it is tried again");
                    }
                }
            }
        }
        Ok(())
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
            self.images.write_file(&path, &content).await?;
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
            self.images.remove(&DoomedImage { path, identity: None }).await?;
        }
        Ok(())
    }

    fn turn(&self, vm: VmId) -> Arc<tokio::sync::Mutex<()>> {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(turns.entry(vm).or_default())
    }

    fn lock_failing(&self) -> MutexGuard<'_, BTreeMap<Uuid, (VmId, String)>> {
        self.failing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Engine {
    /// Those that cannot be written, as a check tells of them.
    pub(super) async fn unwritten_manifests(&self) -> Result<Vec<Difference>> {
        let failing = self.0.manifests.lock_failing().clone();
        let mut found = Vec::new();
        for (id, (vm, why)) in failing {
            let tree = self.0.store.tree(vm).await?;
            let snapshot = tree.snapshot(SnapshotId(id));
            let name = snapshot.map(|snapshot| snapshot.vm_name.clone()).unwrap_or_default();
            let words = format!(
                "the manifest of {id} cannot be written: {why}: it is tried again by the next operation"
            );
            let difference = Difference::new(DifferenceKind::ManifestUnwritten, Some((vm, name)), words);
            let snapshots = snapshot.map(|snapshot| snapshot.id).into_iter().collect();
            found.push(Difference { snapshots, blocks: false, ..difference });
        }
        Ok(found)
    }

    /// Writes the manifests that are due, while whoever made them so goes on.
    pub(super) fn settle_manifests(&self) {
        let engine = self.clone();
        self.0.tasks.spawn(async move { engine.0.manifests.settle(&BTreeSet::new()).await });
    }
}

fn encode(manifest: &Manifest, path: &Path) -> Result<Vec<u8>> {
    let bad = |problem: String| OpsError::Host(HostError::BadImage { path: path.to_owned(), problem });
    let content = manifest.encode().map_err(|error| bad(error.to_string()))?;
    if content.len() > crate::model::manifest::LARGEST {
        return Err(bad(format!("the manifest would have {} bytes", content.len())));
    }
    Ok(content)
}
