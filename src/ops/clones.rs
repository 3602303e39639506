//! Clones and the VMs made of them: what is asked for, and what must be seen for it beyond the VM itself.

use std::collections::BTreeMap;
use std::path::Path;

use crate::host::HostError;
use crate::model::vm::{DiskView, Format, RunState};
use crate::model::{
    Attachment, CloneVolume, ClonedVolume, DeleteVolume, DeployVm, FlattenVolume, LayerId, Request,
    SnapshotKind, VmId, VolumeId,
};
use crate::plan::{self, BackgroundCaptures, MemoryCompression, Refusal, VolumeUser, World};

use super::waiting::Wait;
use super::{Asked, Engine, OpsError, Result, Submitted};

impl Engine {
    /// Makes a volume out of a disk of a snapshot.
    pub async fn clone_volume(&self, request: CloneVolume, asked: Asked) -> Result<Submitted> {
        let snapshot = self.existing(request.snapshot).await?;
        self.submit(snapshot.vm, Some(snapshot.id), Request::CloneVolume(request), asked).await
    }

    /// Makes a VM out of a snapshot.
    pub async fn deploy_vm(&self, request: DeployVm, asked: Asked) -> Result<Submitted> {
        let snapshot = self.existing(request.snapshot).await?;
        self.submit(snapshot.vm, Some(snapshot.id), Request::DeployVm(request), asked).await
    }

    /// Lets a clone stand alone. It holds the VM that has the clone, or the clone's own snapshots; the VM that it was made
    /// out of only loses a reference.
    pub async fn flatten_volume(&self, request: FlattenVolume, asked: Asked) -> Result<Submitted> {
        let clone = self.existing_clone(request.volume).await?;
        let own = VmId::of_detached(clone.id);
        let user = self.users(&clone.path, own).await?.into_iter().find_map(|(vm, _)| vm);
        let has_snapshots = self.0.store.tree(own).await?.detached_image().is_some();
        let holder = user.unwrap_or(if has_snapshots { own } else { clone.vm });
        self.submit(holder, None, Request::FlattenVolume(request), asked).await
    }

    /// Removes a clone.
    pub async fn delete_volume(&self, request: DeleteVolume, asked: Asked) -> Result<Submitted> {
        let clone = self.existing_clone(request.volume).await?;
        self.submit(clone.vm, None, Request::DeleteVolume(request), asked).await
    }

    /// The clone that a request is about, if it is about one that exists.
    pub(super) async fn clone_of(&self, request: &Request) -> Result<Option<ClonedVolume>> {
        match request {
            Request::FlattenVolume(FlattenVolume { volume, .. })
            | Request::DeleteVolume(DeleteVolume { volume, .. }) => {
                self.existing_clone(*volume).await.map(Some)
            }
            Request::CreateSnapshot(_)
            | Request::TakeFromSnapshot(_)
            | Request::RevertSnapshot(_)
            | Request::RevertVolume(_)
            | Request::DeleteSnapshots(_)
            | Request::PurgeSnapshot(_)
            | Request::CloneVolume(_)
            | Request::DeployVm(_)
            | Request::ResolveDifference(_)
            | Request::Collapse { .. } => Ok(None),
        }
    }

    /// Sees what only this request asks about.
    pub(super) async fn look_around(&self, world: &mut World, request: &Request) -> Result<()> {
        match request {
            Request::CloneVolume(request) => {
                match self.0.host.images.inspect(&request.path, Format::Raw).await {
                    Ok(facts) => drop(world.images.insert(request.path.clone(), facts)),
                    Err(HostError::NoSuchImage(_)) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            Request::DeployVm(request) => {
                if self.vms().await?.iter().any(|vm| vm.name == request.name.as_str()) {
                    return Err(Refusal::VmNameTaken(request.name.clone()).into());
                }
            }
            Request::FlattenVolume(_) => {
                if let Some(clone) = self.clone_of(request).await? {
                    let own = VmId::of_detached(clone.id);
                    world.clone_tree = Some(self.0.store.tree(own).await?);
                    let users = self.users(&clone.path, own).await?;
                    world.users = users.into_iter().map(|(_, user)| user).collect();
                }
            }
            Request::DeleteVolume(_) => {
                if let Some(clone) = self.clone_of(request).await? {
                    self.check_no_snapshots(&clone).await?;
                    let own = VmId::of_detached(clone.id);
                    world.clone_tree = Some(self.0.store.tree(own).await?);
                    world.users = self.users_of_detached(own, &clone.path).await?;
                }
            }
            Request::CreateSnapshot(_) | Request::RevertVolume(_)
                if world.vm.attachment == Attachment::Detached =>
            {
                if let Some(image) = world.vm.disks.iter().find_map(DiskView::active) {
                    world.users = self.users_of_detached(world.vm.id, &image.path).await?;
                }
            }
            Request::CreateSnapshot(request)
                if request.kind == SnapshotKind::VmDisksAndMemory
                    && world.vm.run_state == RunState::Running =>
            {
                world.background_blocker = match self.0.background_captures {
                    BackgroundCaptures::WhenPossible => self.background_blocker(world.vm.id).await?,
                    BackgroundCaptures::Never => Some("the configuration of vmsnapd says so".to_owned()),
                };
                if world.memory_compression == MemoryCompression::Zstd && world.background_blocker.is_none() {
                    world.compression_blocker = self.0.host.hypervisor.compression_blocker().await?;
                }
            }
            // What a revert leaves behind is removed, or merged later.
            Request::RevertSnapshot(_) | Request::RevertVolume(_) => {
                match self.read_elsewhere(&world.tree).await {
                    Ok(read) => {
                        // Whoever asks for it lets go what the VM has now, whichever of two images is the newer one.
                        let readers = read.iter().filter(|(_, wait)| !matches!(wait, Wait::Decision(_)));
                        world.tree.read_elsewhere = readers.map(|(layer, _)| *layer).collect();
                        self.note_waiting(world.vm.id, read);
                    }
                    Err(error) => {
                        let error: &dyn std::error::Error = &error;
                        tracing::warn!(vm = %world.vm.id, error, "all of it stays: it is not known who reads it");
                        world.tree.read_elsewhere = world.tree.layers.keys().copied().collect();
                    }
                }
            }
            // Nobody has asked for it, and it is looked at again whenever something happens to a VM: cheap things first.
            Request::Collapse { .. } => {
                plan::check_vm(world)?;
                let read = self.read_elsewhere(&world.tree).await?;
                self.note_readers(world, read);
            }
            Request::DeleteSnapshots(_) | Request::PurgeSnapshot(_) => {
                let read = self.read_elsewhere(&world.tree).await?;
                self.note_readers(world, read);
            }
            Request::CreateSnapshot(_) | Request::TakeFromSnapshot(_) | Request::ResolveDifference(_) => {}
        }
        Ok(())
    }

    fn note_readers(&self, world: &mut World, read: BTreeMap<LayerId, Wait>) {
        world.tree.read_elsewhere = read.keys().copied().collect();
        self.note_waiting(world.vm.id, read);
    }

    /// The VMs that have an image among their disks, or in their snapshots, but for `own`; those that are defined with
    /// their ids.
    pub(super) async fn users(&self, path: &Path, own: VmId) -> Result<Vec<(Option<VmId>, VolumeUser)>> {
        let mut users = Vec::new();
        let mut seen = Vec::new();
        for vm in self.vms().await? {
            seen.push(vm.id);
            let seen = self.look_at_vm(vm.id).await;
            // Gone since it was listed.
            if matches!(seen, Err(HostError::NoSuchVm(_))) {
                continue;
            }
            let view = seen.map_err(|cause| OpsError::VmUnreadable { vm: vm.name.clone(), cause })?;
            let tree = self.0.store.tree(vm.id).await?;
            if view.files().any(|file| file == path) || tree.layer_at(path).is_some() {
                let run_state = view.run_state;
                users.push((Some(vm.id), VolumeUser { name: vm.name, run_state }));
            }
        }
        for vm in self.0.store.vms().await?.into_iter().filter(|vm| *vm != own && !seen.contains(vm)) {
            if self.0.store.tree(vm).await?.layer_at(path).is_some() {
                users.push((None, VolumeUser { name: vm.to_string(), run_state: RunState::Off }));
            }
        }
        Ok(users)
    }

    async fn existing_clone(&self, id: VolumeId) -> Result<ClonedVolume> {
        let clones = self.0.store.clones().await?;
        let found = clones.into_iter().find(|clone| clone.id == id);
        found.ok_or_else(|| OpsError::NoSuchVolume(id.to_string()))
    }
}
