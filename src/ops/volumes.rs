//! Volumes as a client looks for them: the disks of all VMs, and clones that no VM has. Decides what a volume is called
//! and how it is found.

use std::collections::HashMap;
use std::path::PathBuf;

use crate::host::VmSummary;
use crate::model::vm::{ChainImage, DiskView, Format};
use crate::model::{ClonedVolume, DiskTarget, ImageFacts, LayerId, LayerTree, OperationId, VmView, VolumeId};

use super::{Engine, OpsError, Result};

/// A volume as it is now.
#[derive(Debug, Clone, PartialEq)]
pub struct VolumeView {
    /// Its identity.
    pub id: VolumeId,
    /// As it was cloned under, else `VM/TARGET`.
    pub name: String,
    /// The VM that has it.
    pub user: Option<VolumePlace>,
    /// The image that is written to.
    pub image: ChainImage,
    /// What that image says of itself, if it can be read.
    pub facts: Option<ImageFacts>,
    /// How many snapshots hold it.
    pub snapshots: usize,
    /// What the catalog knows of it as a clone.
    pub clone: Option<ClonedVolume>,
    /// The operation at work on it.
    pub holder: Option<OperationId>,
}

/// Where a VM has a volume.
#[derive(Debug, Clone, PartialEq)]
pub struct VolumePlace {
    /// The VM.
    pub vm: VmSummary,
    /// The disk.
    pub target: DiskTarget,
    /// The layer that is written to, if the catalog knows it.
    pub active: Option<LayerId>,
}

impl Engine {
    /// All volumes, by name. Of `vm` only, if one is given.
    pub async fn volumes(&self, vm: Option<&VmSummary>) -> Result<Vec<VolumeView>> {
        let mut clones: HashMap<VolumeId, ClonedVolume> =
            self.0.store.clones().await?.into_iter().map(|clone| (clone.id, clone)).collect();
        let vms = match vm {
            Some(vm) => vec![vm.clone()],
            None => self.vms().await?,
        };
        let mut volumes = Vec::new();
        for seen in vms {
            let (view, tree) = match self.vm(seen.id).await {
                Ok(seen) => seen,
                // One VM whose images are not there does not hide all others.
                Err(error) if vm.is_none() => {
                    let error: &dyn std::error::Error = &error;
                    tracing::debug!(vm = seen.name, error, "a VM's volumes are left out");
                    continue;
                }
                Err(error) => return Err(error),
            };
            for disk in &view.disks {
                volumes.extend(self.disk_volume(&view, &tree, disk, &mut clones).await);
            }
        }
        if vm.is_none() {
            for clone in clones.into_values() {
                volumes.push(self.unused_volume(clone).await);
            }
        }
        volumes.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(volumes)
    }

    /// The volume that answers to an id or a name.
    pub async fn find_volume(&self, wanted: &str) -> Result<VolumeView> {
        let nobody = || OpsError::NoSuchVolume(wanted.to_owned());
        let (vm, target) = match wanted.split_once('/') {
            Some((vm, target)) => (Some(self.find_vm(vm).await?), Some(target)),
            None => (None, None),
        };
        let id = wanted.parse::<VolumeId>().ok();
        let is_wanted = |volume: &VolumeView| {
            let place = volume.user.as_ref().map(|place| place.target.as_str());
            Some(volume.id) == id || volume.name == wanted || (target.is_some() && place == target)
        };
        self.volumes(vm.as_ref()).await?.into_iter().find(is_wanted).ok_or_else(nobody)
    }

    /// None for a disk that there is nothing to say of.
    async fn disk_volume(
        &self,
        view: &VmView,
        tree: &LayerTree,
        disk: &DiskView,
        clones: &mut HashMap<VolumeId, ClonedVolume>,
    ) -> Option<VolumeView> {
        let image = disk.active()?.clone();
        let known = tree.volume_writing(&image.path);
        let as_clone = || clones.values().find(|clone| clone.path == image.path).map(|clone| clone.id);
        let unknown = || VolumeId::of_unknown_disk(view.id, &disk.target, &image.path.display().to_string());
        let id = known.map(|volume| volume.id).or_else(as_clone).unwrap_or_else(unknown);
        let holds = |held: &crate::model::Snapshot| held.disks.iter().any(|held| held.volume == id);
        let clone = clones.remove(&id);
        Some(VolumeView {
            id,
            name: match &clone {
                Some(clone) => clone.name.to_string(),
                None => format!("{}/{}", view.name, disk.target),
            },
            user: Some(VolumePlace {
                vm: VmSummary { id: view.id, name: view.name.clone(), run_state: view.run_state },
                target: disk.target.clone(),
                active: known.map(|volume| volume.active),
            }),
            facts: self.0.host.images.inspect(&image.path, image.format).await.ok(),
            image,
            snapshots: tree.snapshots.iter().filter(|snapshot| holds(snapshot)).count(),
            clone,
            holder: self.holder(view.id),
        })
    }

    async fn unused_volume(&self, clone: ClonedVolume) -> VolumeView {
        let image =
            ChainImage { path: PathBuf::from(&clone.path), format: Format::Qcow2, is_block_device: false };
        VolumeView {
            id: clone.id,
            name: clone.name.to_string(),
            user: None,
            facts: self.0.host.images.inspect(&image.path, image.format).await.ok(),
            image,
            snapshots: 0,
            holder: None,
            clone: Some(clone),
        }
    }
}
