//! Volumes as a client looks for them: the disks of all VMs. Decides what a volume is called and how it is found.

use crate::host::VmSummary;
use crate::model::vm::{ChainImage, DiskView};
use crate::model::{DiskTarget, ImageFacts, LayerId, LayerTree, OperationId, VmView, VolumeId};

use super::{Engine, OpsError, Result};

/// A volume as it is now.
#[derive(Debug, Clone, PartialEq)]
pub struct VolumeView {
    /// Its identity.
    pub id: VolumeId,
    /// `VM/TARGET`.
    pub name: String,
    /// The VM that has it.
    pub vm: VmSummary,
    /// Where that VM has it.
    pub target: DiskTarget,
    /// The image that is written to.
    pub image: ChainImage,
    /// What that image says of itself, if it can be read.
    pub facts: Option<ImageFacts>,
    /// The layer that is written to, if the catalog knows it.
    pub active: Option<LayerId>,
    /// How many snapshots hold it.
    pub snapshots: usize,
    /// The operation at work on it.
    pub holder: Option<OperationId>,
}

impl Engine {
    /// All volumes, by name. Of `vm` only, if one is given.
    pub async fn volumes(&self, vm: Option<&VmSummary>) -> Result<Vec<VolumeView>> {
        let vms = match vm {
            Some(vm) => vec![vm.clone()],
            None => self.vms().await?,
        };
        let mut volumes = Vec::new();
        for vm in vms {
            let (view, tree) = self.vm(vm.id).await?;
            for disk in &view.disks {
                volumes.extend(self.volume(&view, &tree, disk).await);
            }
        }
        volumes.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(volumes)
    }

    /// The volume that answers to an id or a name.
    pub async fn find_volume(&self, wanted: &str) -> Result<VolumeView> {
        let nobody = || OpsError::NoSuchVolume(wanted.to_owned());
        let vm = match wanted.split_once('/') {
            Some((vm, _)) => Some(self.find_vm(vm).await?),
            None => None,
        };
        let id = wanted.parse::<VolumeId>().ok();
        let volumes = self.volumes(vm.as_ref()).await?;
        let target = wanted.split_once('/').map(|(_, target)| target);
        volumes
            .into_iter()
            .find(|volume| Some(volume.id) == id || Some(volume.target.as_str()) == target)
            .ok_or_else(nobody)
    }

    /// None for a disk that there is nothing to say of.
    async fn volume(&self, view: &VmView, tree: &LayerTree, disk: &DiskView) -> Option<VolumeView> {
        let image = disk.active()?.clone();
        let known = tree.volume_writing(&image.path);
        let unknown = || VolumeId::of_unknown_disk(view.id, &disk.target, &image.path.display().to_string());
        let id = known.map_or_else(unknown, |volume| volume.id);
        let holds = |held: &crate::model::Snapshot| held.disks.iter().any(|held| held.volume == id);
        Some(VolumeView {
            id,
            name: format!("{}/{}", view.name, disk.target),
            vm: VmSummary { id: view.id, name: view.name.clone(), run_state: view.run_state },
            target: disk.target.clone(),
            facts: self.0.host.images.inspect(&image.path, image.format).await.ok(),
            image,
            active: known.map(|volume| volume.active),
            snapshots: tree.snapshots.iter().filter(|snapshot| holds(snapshot)).count(),
            holder: self.holder(view.id),
        })
    }
}
