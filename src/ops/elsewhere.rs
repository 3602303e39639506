//! Layers that others read: a VM, because somebody made an overlay over one behind our back; or a snapshot of another VM or
//! volume that is known here. What they read is neither merged nor removed; it waits until they are gone.
//!
//! A layer waits as well while it is not known whether the VM's guest wrote last to it or to the one below.
//!
//! Decides whom to look at, and that who cannot be looked at reads nothing. Leaves what waits to `plan`, and when to try again
//! to [`super::waiting`].

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::readers::{self, Headers};
use super::waiting::Wait;
use super::{Engine, Inner, OpsError, Result};
use crate::host::HostError;
use crate::model::vm::FileIdentity;
use crate::model::{LayerId, LayerTree, Ownership, VmId, VmView};

/// What VMs name, as far as they can be looked at.
struct Named {
    /// Files of other VMs, and those of the VM itself that are no chain of its tree; each with the VM's name.
    files: BTreeMap<PathBuf, String>,
    /// Files that are read as they are.
    raw: BTreeSet<PathBuf>,
    /// The VM itself.
    own: Option<VmView>,
}

impl Engine {
    /// The highest of our own layers that each reader from outside lies on: other VMs, whatever their disks are; disks of the
    /// VM itself that are no chain of the tree; images that somebody made; what is kept of other VMs and volumes.
    ///
    /// A VM that cannot be looked at is passed over: one that runs has its images locked, so a merge would be refused; one
    /// that is off and whose images are not there reads nothing. So is an image that cannot be read: nobody can run on it,
    /// and it must not hold up all merges of the node.
    pub(super) async fn read_elsewhere(&self, tree: &LayerTree) -> Result<BTreeMap<LayerId, Wait>> {
        let mut read = self.kept_elsewhere(tree).await?;
        let Inner { host, store, places, .. } = &*self.0;
        let Named { files: named, raw, own } = self.named(tree).await?;
        read.extend(self.undecided(tree, own.as_ref()).await?);
        // A clone holds its layer by itself.
        let is_known =
            |path: &Path| tree.layer_at(path).is_some() || tree.clones.iter().any(|clone| clone.path == path);
        let directories = readers::directories(store, places).await?;
        let (mut starts, unlisted) = readers::list(&*host.images, &directories).await;
        for (directory, error) in unlisted {
            let error: &dyn std::error::Error = &error;
            tracing::warn!(directory = %directory.display(), error, "what lies on a merge is not looked for here");
        }
        starts.retain(|path| !is_known(path));
        starts.extend(named.keys().cloned());
        let headers = Headers::follow(&*host.images, starts.clone(), &raw).await;
        let others = named.keys().chain(headers.below.values()).filter(|path| tree.layer_at(path).is_none());
        let identities = readers::identities(&*host.images, others.cloned().collect()).await;
        let owned = tree.layers.values().filter(|layer| layer.ownership == Ownership::Owned);
        let of_layers =
            readers::identities(&*host.images, owned.map(|layer| layer.path.clone()).collect()).await;
        let layer_of = |path: &Path| {
            let is_it = |layer: &(&PathBuf, &FileIdentity)| identities.get(path) == Some(layer.1);
            tree.layer_at(path)
                .or_else(|| of_layers.iter().find(is_it).and_then(|(path, _)| tree.layer_at(path)))
        };
        for start in starts {
            // Highest first.
            let highest = headers.chain(&start).find_map(layer_of);
            let Some(layer) = highest.filter(|layer| layer.ownership == Ownership::Owned) else { continue };
            let wait = match named.get(&start) {
                Some(vm) => Wait::Vm(vm.clone(), start.clone()),
                None => Wait::Image(start.clone()),
            };
            read.entry(layer.id).or_insert(wait);
        }
        Ok(read)
    }

    /// What VMs name.
    async fn named(&self, tree: &LayerTree) -> Result<Named> {
        let raw = readers::raw_layers(&self.0.store).await?;
        let mut named = Named { files: BTreeMap::new(), raw, own: None };
        for vm in self.vms().await? {
            if self.0.stopping.is_cancelled() {
                return Err(OpsError::Draining);
            }
            if self.captures_memory(vm.id).await {
                continue;
            }
            match self.0.host.hypervisor.observe(vm.id).await {
                Ok(view) => {
                    named.raw.extend(readers::raw_images(&view));
                    let by_name = |file: &PathBuf| (file.clone(), view.name.clone());
                    if vm.id == tree.vm {
                        named.files.extend(view.other_files.iter().map(by_name));
                        named.own = Some(view);
                    } else {
                        named.files.extend(view.files().map(by_name));
                    }
                }
                // Then none can be looked at, and what a VM that is off has would not be seen.
                Err(error @ HostError::Unreachable(_)) => return Err(error.into()),
                Err(error) => {
                    let error: &dyn std::error::Error = &error;
                    tracing::debug!(vm = vm.name, error, "a VM is passed over in the search for readers");
                }
            }
        }
        Ok(named)
    }

    /// Layers that may hold what the VM's guest wrote last, or may not: it was asked to write to what is below, and has ended.
    /// A disk that reads what is below without it was decided upon, as in `plan::merge::pivot`.
    async fn undecided(&self, tree: &LayerTree, own: Option<&VmView>) -> Result<Vec<(LayerId, Wait)>> {
        let mut undecided = Vec::new();
        for pivot in self.0.store.pivots(tree.vm).await? {
            let disk = own.and_then(|view| view.disk(&pivot.disk));
            if disk.is_some_and(|disk| disk.uses(&pivot.base) && !disk.uses(&pivot.child)) {
                self.0.store.clear_pivot(tree.vm, pivot.disk).await?;
                continue;
            }
            let written = self.0.host.hypervisor.written_image(tree.vm, &pivot.disk).await;
            if written.is_ok_and(|written| written.process.as_ref() == Some(&pivot.process)) {
                // It is there, and tells what it writes to.
                continue;
            }
            let layer = tree.layer_at(&pivot.child);
            let is_left = disk.is_some_and(|disk| !disk.uses(&pivot.base) && !disk.uses(&pivot.child));
            if is_left && layer.is_none_or(|layer| tree.readers(layer.id).is_empty()) {
                // The VM went back to something else: nobody asks any more which one is newer.
                self.0.store.clear_pivot(tree.vm, pivot.disk).await?;
                continue;
            }
            undecided.extend(layer.map(|layer| (layer.id, Wait::Decision(pivot.base))));
        }
        Ok(undecided)
    }

    /// What snapshots of others read, whether their VMs are here or not. Where nothing is kept, nothing is read.
    async fn kept_elsewhere(&self, tree: &LayerTree) -> Result<BTreeMap<LayerId, Wait>> {
        let mut read = BTreeMap::new();
        let owned = tree.layers.values().filter(|layer| layer.ownership == Ownership::Owned);
        let others = self.0.store.with_layers_at(owned.map(|layer| layer.path.clone()).collect()).await?;
        for vm in others.into_iter().filter(|vm| *vm != tree.vm) {
            let other = self.0.store.tree(vm).await?;
            let disks = other
                .snapshots
                .iter()
                .flat_map(|snapshot| snapshot.disks.iter().map(move |disk| (snapshot, disk)));
            for (snapshot, disk) in disks {
                // Highest first.
                let known = other.chain(disk.layer).into_iter().find_map(|layer| tree.layer_at(&layer.path));
                let (vm, name) = (snapshot.vm_name.clone(), snapshot.name.to_string());
                let wait = Wait::Snapshot { vm, name };
                let owned = known.filter(|layer| layer.ownership == Ownership::Owned);
                read.extend(owned.map(|layer| (layer.id, wait)));
            }
        }
        Ok(read)
    }

    /// libvirt lets everybody who asks about such a VM wait.
    pub(super) async fn captures_memory(&self, vm: VmId) -> bool {
        let Some(holder) = self.holder(vm) else { return false };
        self.operation(holder).await.is_ok_and(|view| view.operation.captures_memory())
    }
}
