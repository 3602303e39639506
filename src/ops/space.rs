//! Room: lets a VM go on that had none, measures what merges need, tells how full the node's file systems are.
//!
//! Decides when to look, and looks again. Leaves to `plan` what may be done, and to `growth` to tell before it is too late.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::{Engine, OpsError, Result};
use crate::model::step::ImageRef;
use crate::model::{DiskTarget, OperationId, Space, VmId, VmView};
use crate::plan::{self, Refusal, World};

impl Engine {
    /// Lets a VM go on that is paused because a disk had no space. One that runs is a success.
    pub async fn resume_vm(&self, vm: VmId) -> Result<()> {
        if self.0.stopping.is_cancelled() {
            return Err(OpsError::Draining);
        }
        let engine = self.clone();
        // Carried through: a client that leaves half way changes nothing.
        let task = self.0.tasks.spawn(async move { engine.let_go_on(vm).await });
        task.await.map_err(|_| OpsError::Draining)?
    }

    async fn let_go_on(&self, vm: VmId) -> Result<()> {
        let _permit = match self.enter(BTreeSet::from([vm]), OperationId::new()).await {
            // That the VM stands still may be why: nothing is done to it until a person lets the operation try again.
            Err(OpsError::VmStuck(_)) => None,
            entered => Some(entered?),
        };
        if !self.has_to_be_resumed(vm).await? {
            return Ok(());
        }
        let resumed = self.0.host.hypervisor.resume(vm).await;
        // It may run in spite of an error; and it may stand still again by now, which is told in the words of the plan.
        if self.has_to_be_resumed(vm).await? {
            resumed?;
            return Err(self.still_full(vm).await?.into());
        }
        tracing::info!(%vm, "a VM that had no space goes on");
        Ok(())
    }

    async fn has_to_be_resumed(&self, vm: VmId) -> Result<bool> {
        let view = self.0.host.hypervisor.observe(vm).await?;
        let mut spaces = BTreeMap::new();
        for directory in view.full_disks.iter().filter_map(|target| directory_of(&view, target)) {
            spaces.insert(directory.to_owned(), self.0.host.images.free_space(directory).await?);
        }
        Ok(plan::resume(&view, &spaces, self.0.places.reserve)?)
    }

    /// It was resumed and had no space again at once, although there is more than nothing.
    async fn still_full(&self, vm: VmId) -> Result<Refusal> {
        let view = self.0.host.hypervisor.observe(vm).await?;
        let directory = view.full_disks.iter().find_map(|target| directory_of(&view, target));
        let Some(directory) = directory else { return Ok(Refusal::NotOutOfSpace("is paused again")) };
        let Space { free, .. } = self.0.host.images.free_space(directory).await?;
        let reserve = self.0.places.reserve;
        Ok(Refusal::NoSpace {
            directory: directory.to_owned(),
            needed: free.saturating_add(1).max(reserve),
            reserve,
            free,
        })
    }

    /// Puts into the world what runs of layers would take as one image. One that cannot be measured is left to guesses.
    pub(super) async fn measure(&self, world: &mut World, runs: Vec<Vec<ImageRef>>) {
        for run in runs {
            let measured = self.0.host.images.measure(&run).await;
            if let Err(error) = &measured {
                let error: &dyn std::error::Error = error;
                tracing::warn!(vm = %world.vm.id, error, "it cannot be measured how much room a merge needs");
            }
            world.measured.insert(run.into_iter().map(|image| image.path).collect(), measured.ok());
        }
    }

    /// The file systems in use, each with one directory on it: `own`, those of the configuration, and those that the disks
    /// of our VMs grow on. One that cannot be asked is left out.
    pub async fn storage(&self, own: &Path) -> Result<Vec<(PathBuf, Space)>> {
        let places = &self.0.places;
        let mut directories = vec![own.to_owned(), places.memory.clone()];
        directories.extend(places.images.iter().chain(&places.overlays).cloned());
        let active: BTreeSet<PathBuf> = self.0.store.active_images().await?.into_iter().collect();
        let of_images: BTreeSet<&Path> = active.iter().filter_map(|image| image.parent()).collect();
        directories.extend(of_images.into_iter().map(Path::to_owned));
        let mut found: Vec<(PathBuf, Space)> = Vec::new();
        for directory in directories {
            match self.0.host.images.free_space(&directory).await {
                Ok(space) if found.iter().any(|(_, seen)| seen.file_system == space.file_system) => {}
                Ok(space) => found.push((directory, space)),
                Err(error) => {
                    let error: &dyn std::error::Error = &error;
                    tracing::debug!(directory = %directory.display(), error, "a directory has no room to tell of");
                }
            }
        }
        Ok(found)
    }
}

/// The directory of the image that a disk writes to; none for a block device.
pub(super) fn directory_of<'a>(view: &'a VmView, target: &DiskTarget) -> Option<&'a Path> {
    let image = view.disk(target)?.active().filter(|image| !image.is_block_device)?;
    image.path.parent()
}
