//! Layers that others read: a VM, because somebody made an overlay over one behind our back; or a snapshot of another VM or
//! volume that is known here. What they read is neither merged nor removed; it waits until they are gone.
//!
//! A layer waits as well while it is not known whether the VM's guest wrote last to it or to the one below.
//!
//! Decides whom to look at, that who cannot be looked at reads nothing, and when to try again. Leaves what waits to `plan`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::PoisonError;
use std::time::Duration;

use super::presence::vm_changed;
use super::readers::{self, Headers};
use super::{Engine, Inner, Result};
use crate::model::vm::FileIdentity;
use crate::model::{LayerId, LayerTree, Ownership, VmId, VmView};

/// A VM that is stopped or undefined changes several times in a row.
const BREATH: Duration = Duration::from_millis(500);

/// What layers wait for that nothing of their own VM needs.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wait {
    /// For a VM, by its name, that has the file.
    Vm(String, PathBuf),
    /// For an image that lies on one of them.
    Image(PathBuf),
    /// For a snapshot of another VM or volume.
    Snapshot {
        /// The VM's name.
        vm: String,
        /// Its own.
        name: String,
    },
    /// For a person, who knows whether the VM's guest wrote last to a layer or to this one below it.
    Decision(PathBuf),
    /// For room.
    Room,
    /// For the VM, to which nothing can be done now: why, in words.
    Refusal(String),
}

impl fmt::Display for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vm(name, file) => write!(f, "VM {name} has {}", file.display()),
            Self::Image(path) => write!(f, "{} lies on it", path.display()),
            Self::Snapshot { vm, name } => write!(f, "snapshot {name} of {vm} reads it"),
            Self::Decision(base) => {
                write!(f, "it is not known whether the guest wrote last to it or to {}", base.display())
            }
            Self::Room => write!(f, "there may not be room for it"),
            Self::Refusal(why) => f.write_str(why),
        }
    }
}

/// What was found to hold up layers of a VM.
#[derive(Default)]
pub(super) struct Waiting {
    layers: BTreeMap<LayerId, Wait>,
    is_for_room: bool,
    refused: Option<Refused>,
}

/// Why nothing can be merged for a VM now.
pub(super) enum Refused {
    /// It is not here. Nobody waits for that, but it may come back.
    Away,
    /// In words.
    Because(String),
}

impl Waiting {
    fn is_over(&self) -> bool {
        !self.is_for_room && self.layers.is_empty() && self.refused.is_none()
    }
}

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

    /// Merges what waited for the snapshots of others, now that some may have gone.
    pub(super) fn collapse_waiting(&self) {
        for vm in self.waiting() {
            let engine = self.clone();
            self.0.tasks.spawn(async move { engine.collapse_when_linked(vm).await });
        }
    }

    /// libvirt lets everybody who asks about such a VM wait.
    pub(super) async fn captures_memory(&self, vm: VmId) -> bool {
        let Some(holder) = self.holder(vm) else { return false };
        self.operation(holder).await.is_ok_and(|view| view.operation.captures_memory())
    }

    /// Notes what was found to hold up layers of a VM: nothing, and they do not wait.
    pub(super) fn note_waiting(&self, vm: VmId, layers: BTreeMap<LayerId, Wait>) {
        let mut waiting = self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.entry(vm).or_default().layers = layers;
        waiting.retain(|_, waiting| !waiting.is_over());
    }

    /// Notes why nothing can be merged for a VM now; None: something can, or nothing has to be.
    pub(super) fn note_refused(&self, vm: VmId, refused: Option<Refused>) {
        let mut waiting = self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.entry(vm).or_default().refused = refused;
        waiting.retain(|_, waiting| !waiting.is_over());
    }

    /// Notes whether merges of a VM depend on how much room there is.
    pub(super) fn note_waiting_for_room(&self, vm: VmId, is_for_room: bool) {
        let mut waiting = self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.entry(vm).or_default().is_for_room = is_for_room;
        waiting.retain(|_, waiting| !waiting.is_over());
    }

    /// What layers that no snapshot needs were seen to wait for when somebody last looked.
    #[must_use]
    pub fn waits_for(&self, tree: &LayerTree) -> BTreeSet<Wait> {
        let waiting = self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(waiting) = waiting.get(&tree.vm) else { return BTreeSet::new() };
        let pending: BTreeSet<LayerId> = tree.pending().map(|layer| layer.id).collect();
        // A layer that is read holds up what it lies on, too.
        let holds_up = |layer: LayerId| tree.chain(layer).iter().any(|below| pending.contains(&below.id));
        let layers = waiting.layers.iter().filter(|(layer, _)| holds_up(**layer));
        let is_being_merged = self.holder(tree.vm).is_some();
        let is_due = !pending.is_empty() && !is_being_merged;
        let room = (waiting.is_for_room && is_due).then_some(Wait::Room);
        let refusal = match &waiting.refused {
            Some(Refused::Because(why)) if is_due => Some(Wait::Refusal(why.clone())),
            Some(Refused::Because(_) | Refused::Away) | None => None,
        };
        layers.map(|(_, wait)| wait.clone()).chain(room).chain(refusal).collect()
    }

    /// Merges what waited for VMs when one of them has changed, or the hypervisor is back, from now until the daemon goes down.
    pub fn collapse_when_vms_change(&self) {
        let engine = self.clone();
        self.0.tasks.spawn(async move {
            let stopping = engine.draining();
            let mut events = engine.0.host.hypervisor.events();
            let mut link = engine.0.host.hypervisor.link();
            loop {
                tokio::select! {
                    biased;
                    () = stopping.cancelled() => return,
                    goes_on = vm_changed(&mut events) => if !goes_on { return },
                    Ok(()) = link.changed() => {}
                }
                if engine.waiting().is_empty() {
                    continue;
                }
                tokio::select! {
                    biased;
                    () = stopping.cancelled() => return,
                    () = tokio::time::sleep(BREATH) => {}
                }
                // What happens from here on is seen by the next look.
                events = events.resubscribe();
                for vm in engine.waiting() {
                    // On its own: one that merges for long, or is stuck, holds up no other.
                    if let Some(runner) = engine.begin_collapse(vm).await {
                        engine.0.tasks.spawn(runner.run());
                    }
                }
            }
        });
    }

    fn waiting(&self) -> BTreeSet<VmId> {
        self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner).keys().copied().collect()
    }
}
