//! Looks whether the catalog and the world agree: at start, when the hypervisor is back, and when somebody asks.
//!
//! Decides whom to look at. Leaves what differs to `plan`. Changes nothing but what it remembers of files that are in order.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::PoisonError;

use super::events::by_itself;
use super::{Engine, OpsError, Result, observe};
use crate::host::{HostError, Link};
use crate::model::event::of_difference;
use crate::model::operation::causes;
use crate::model::vm::Seen;
use crate::model::{
    Attachment, Difference, DifferenceKind, LayerId, Operation, OperationId, Request, ResolveDifference,
    VmId, VmView,
};
use crate::plan::{self, World};

/// What a look at the whole node found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeCheck {
    /// What differs.
    pub differences: Vec<Difference>,
    /// How many VMs, and volumes that no VM has, were looked at.
    pub vms: usize,
    /// How many images were looked at.
    pub images: usize,
    /// Those that could not be looked at: an operation holds them, or the hypervisor gave no answer.
    pub skipped: Vec<VmId>,
}

/// A difference that an operation may have made which is stuck: nothing is to be done about it before that.
fn beside(stuck: OperationId, found: Difference) -> Difference {
    let description =
        format!("operation {stuck} is stuck here, and may be why: resolve it first; {}", found.description);
    Difference { description, actions: Vec::new(), ..found }
}

impl Engine {
    /// What differs between the catalog and a VM. Waits for nobody: one that is held is busy. What an operation that is stuck has
    /// left half way differs, too: a person wants to see it.
    pub async fn check_vm(&self, vm: VmId) -> Result<Vec<Difference>> {
        match self.check(vm).await {
            Err(OpsError::VmStuck(stuck)) => {
                let (_, found) = self.look(vm).await?;
                Ok(found.into_iter().map(|found| beside(stuck, found)).collect())
            }
            checked => Ok(checked?.0),
        }
    }

    /// What differs on the whole node. What operations work on is left out: it differs all the time.
    pub async fn check_node(&self) -> Result<NodeCheck> {
        let mut found = NodeCheck::default();
        let orphans = self.orphans().await?;
        for vm in self.0.store.vms().await? {
            match self.check(vm).await {
                Ok((differences, images)) => {
                    found.differences.extend(differences);
                    found.images += images;
                    found.vms += 1;
                }
                // It has left, with no snapshot that would say so.
                Err(OpsError::Host(HostError::NoSuchVm(_))) => {}
                Err(error @ (OpsError::Store(_) | OpsError::Host(HostError::Unreachable(_)))) => {
                    return Err(error);
                }
                // Held, or it gives no answer: the others are looked at all the same.
                Err(error) => {
                    let error: &dyn std::error::Error = &error;
                    tracing::info!(%vm, error, "a VM is left out of the check");
                    found.skipped.push(vm);
                }
            }
        }
        found.differences.extend(orphans);
        found.differences.extend(self.unwritten_manifests().await?);
        Ok(found)
    }

    /// Looks at the whole node whenever the hypervisor can be reached again, from now until the daemon goes down.
    pub fn check_when_linked(&self) {
        let engine = self.clone();
        self.0.tasks.spawn(async move {
            let stopping = engine.draining();
            let mut link = engine.0.host.hypervisor.link();
            loop {
                if *link.borrow_and_update() == Link::Up {
                    match engine.check_node().await {
                        Ok(found) => tracing::info!(
                            vms = found.vms,
                            images = found.images,
                            differences = found.differences.len(),
                            "the node was checked"
                        ),
                        Err(error) => {
                            let error: &dyn std::error::Error = &error;
                            tracing::warn!(error, "the node cannot be checked");
                        }
                    }
                }
                tokio::select! {
                    biased;
                    () = stopping.cancelled() => return,
                    changed = link.changed() => if changed.is_err() { return },
                }
            }
        });
    }

    /// What the last check of a VM found.
    #[must_use]
    pub fn last_check(&self, vm: VmId) -> Vec<Difference> {
        let known = self.0.differences.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(&vm).cloned().unwrap_or_default()
    }

    /// Notes how the files of layers are that an operation has made or written to, however it ended.
    pub(super) async fn remember(&self, operation: &Operation) {
        let noted = async {
            let flattened = operation.flattened_images().map(Path::to_owned).collect();
            let mut vms = self.0.store.with_layers_at(flattened).await?;
            vms.insert(operation.vm);
            for vm in vms {
                self.remember_tree(vm, operation).await?;
            }
            Ok::<(), OpsError>(())
        };
        if let Err(error) = noted.await {
            let error: &dyn std::error::Error = &error;
            tracing::info!(vm = %operation.vm, error, "how the files are is noted with the next operation");
        }
    }

    async fn remember_tree(&self, vm: VmId, operation: &Operation) -> Result<()> {
        let tree = self.0.store.tree(vm).await?;
        let written = operation.written_layers(&tree);
        let unseen = tree.layers.values().filter(|layer| layer.seen.is_none() || written.contains(&layer.id));
        let facts = self.sizes(unseen.clone().map(|layer| (&layer.path, layer.format))).await;
        let seen = unseen.filter_map(|layer| Some((layer.id, facts.get(&layer.path)?.seen())));
        self.remember_all(vm, seen.collect()).await
    }

    async fn remember_all(&self, vm: VmId, seen: Vec<(LayerId, Seen)>) -> Result<()> {
        if seen.is_empty() { Ok(()) } else { Ok(self.0.store.remember(vm, seen).await?) }
    }

    /// With the number of images that were looked at.
    async fn check(&self, vm: VmId) -> Result<(Vec<Difference>, usize)> {
        let _permit = self.enter(BTreeSet::from([vm]), OperationId::new()).await?;
        let (world, differences) = self.look(vm).await?;
        let seen = unseen(&world, &differences);
        if !seen.is_empty() {
            self.remember_all(vm, seen).await?;
            // What is held is told as it is.
            self.settle_manifests();
        }
        self.tell_differences(vm, &differences).await;
        Ok((differences, world.images.len()))
    }

    /// What a request is planned by, and what differs.
    pub(super) async fn look_for(&self, vm: VmId, request: &Request) -> Result<(World, Vec<Difference>)> {
        let (world, found) = match request {
            Request::ResolveDifference(ResolveDifference { orphan: Some(path), .. }) => {
                // There is no VM to tell of.
                return self.look_at_orphan(path).await;
            }
            // Of a VM that cannot be looked at, something can be settled all the same.
            Request::ResolveDifference(_) => self.look(vm).await?,
            Request::CreateSnapshot(request) => self.look_whole(vm, request.image.as_deref()).await?,
            _ => self.look_whole(vm, None).await?,
        };
        self.tell_differences(vm, &found).await;
        Ok((world, found))
    }

    async fn look_whole(&self, vm: VmId, image: Option<&Path>) -> Result<(World, Vec<Difference>)> {
        let world = observe::observe(self, vm, image).await?;
        let found = plan::differences(&world);
        Ok((world, found))
    }

    /// A VM and what differs; of one that cannot be looked at because something of it is wrong, that.
    pub(super) async fn look(&self, vm: VmId) -> Result<(World, Vec<Difference>)> {
        match self.look_whole(vm, None).await {
            Err(OpsError::Host(error)) => match unreadable(&error) {
                Some(wrong) => self.look_blindly(vm, &error, wrong).await,
                None => Err(error.into()),
            },
            seen => seen,
        }
    }

    /// A VM that cannot even be looked at.
    async fn look_blindly(
        &self,
        vm: VmId,
        error: &HostError,
        (kind, path): (DifferenceKind, Option<&PathBuf>),
    ) -> Result<(World, Vec<Difference>)> {
        let name = self.vms().await?.into_iter().find(|seen| seen.id == vm).map(|seen| seen.name);
        let tree = self.0.store.tree(vm).await?;
        let layer = path.and_then(|path| tree.layer_at(path));
        let mut words = causes(error);
        words.insert(0, error.to_string());
        words.extend(path.map(|_| "bring it back as it was".to_owned()));
        let name = name.unwrap_or_default();
        let difference = Difference::new(kind, Some((vm, name.clone())), words.join(": "));
        let snapshots = layer.map(|layer| tree.readers(layer.id)).unwrap_or_default();
        let mut difference = Difference { path: path.cloned(), snapshots, ..difference };
        let attachment = match tree.detached_image() {
            Some(_) => Attachment::Detached,
            None => Attachment::Attached,
        };
        let view = VmView { attachment, ..VmView::of_gone(vm, name) };
        let world = observe::unseen(self, view, tree);
        difference.actions = plan::actions(&world, &difference);
        Ok((world, vec![difference]))
    }

    /// Tells what is new and what is settled since the last look.
    pub(super) async fn tell_differences(&self, vm: VmId, now: &[Difference]) {
        let before = {
            let mut known = self.0.differences.lock().unwrap_or_else(PoisonError::into_inner);
            known.insert(vm, now.to_vec()).unwrap_or_default()
        };
        let of = |all: &[Difference]| -> BTreeMap<_, _> {
            all.iter().map(|difference| (difference.id(), difference.clone())).collect()
        };
        let (before, now) = (of(&before), of(now));
        for (_, found) in now.iter().filter(|(id, _)| !before.contains_key(id)) {
            self.tell(of_difference(found, true, &by_itself())).await;
        }
        for (_, settled) in before.iter().filter(|(id, _)| !now.contains_key(id)) {
            self.tell(of_difference(settled, false, &by_itself())).await;
        }
    }
}

/// Whether a look at a VM fails so because something of the VM is wrong, and not the node.
#[must_use]
pub fn is_unreadable(error: &HostError) -> bool {
    unreadable(error).is_some()
}

/// What is wrong when a look at a VM fails so: an image is gone, cannot be read, or libvirt and QEMU do not agree on it.
fn unreadable(error: &HostError) -> Option<(DifferenceKind, Option<&PathBuf>)> {
    match error {
        HostError::NoSuchImage(path) => Some((DifferenceKind::ImageMissing, Some(path))),
        HostError::BadImage { path, .. } | HostError::Io { path, .. } => {
            Some((DifferenceKind::ImageChanged, Some(path)))
        }
        HostError::Disagreement(_) | HostError::Malformed { .. } => {
            Some((DifferenceKind::ImageChanged, None))
        }
        _ => None,
    }
}

/// Files of layers that nothing is wrong with, and that were not looked at since they changed.
fn unseen(world: &World, differences: &[Difference]) -> Vec<(LayerId, Seen)> {
    let is_well = |path: &PathBuf| !differences.iter().any(|wrong| wrong.path.as_ref() == Some(path));
    let layers = world.tree.layers.values().filter(|layer| layer.seen.is_none() && is_well(&layer.path));
    layers.filter_map(|layer| Some((layer.id, world.images.get(&layer.path)?.seen()))).collect()
}
