//! Volumes as a client looks for them: the disks of all VMs, clones, and images in the directories of images. Decides what
//! a volume is called and how it is found.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::{Path, PathBuf};

use crate::host::VmSummary;
use crate::model::vm::{ChainImage, DiskView, Format};
use crate::model::{
    ClonedVolume, DiskTarget, ImageFacts, LayerId, LayerTree, OperationId, Snapshot, VmId, VmView, VolumeId,
};

use super::{Engine, OpsError, Result, Wait, detached};

/// A volume as it is now.
#[derive(Debug, Clone, PartialEq)]
pub struct VolumeView {
    /// Its identity.
    pub id: VolumeId,
    /// As it was cloned under, else `VM/TARGET`, else the name of its file.
    pub name: String,
    /// The VM that has it.
    pub user: Option<VolumePlace>,
    /// The image that is written to.
    pub image: ChainImage,
    /// The layer that tells one state of it from the next, if the catalog knows it: the one that its VM writes to, or that
    /// its image lies on.
    pub state: Option<LayerId>,
    /// What that image says of itself, if it can be read.
    pub facts: Option<ImageFacts>,
    /// How many snapshots hold it.
    pub snapshots: usize,
    /// Of one that no VM has: the layers that wait to be merged, and the bytes that they take.
    pub debt: (usize, u64),
    /// What those wait for.
    pub waits_for: BTreeSet<Wait>,
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
        let (mut volumes, mut read) = (Vec::new(), HashSet::new());
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
                read.extend(disk.chain().iter().map(|image| image.path.clone()));
                volumes.extend(self.disk_volume(&view, &tree, disk, &mut clones).await?);
            }
        }
        if vm.is_none() {
            volumes.extend(self.detached_volumes(clones, &mut read).await?);
        }
        volumes.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(volumes)
    }

    /// Those that no VM has: clones, those with snapshots of their own, those that nobody told us of.
    async fn detached_volumes(
        &self,
        clones: HashMap<VolumeId, ClonedVolume>,
        read: &mut HashSet<PathBuf>,
    ) -> Result<Vec<VolumeView>> {
        let mut volumes = Vec::new();
        for clone in clones.into_values() {
            read.insert(clone.path.clone());
            volumes.push(self.detached_volume(clone.id, clone.path.clone(), Some(clone)).await?);
        }
        for image in self.0.store.detached().await? {
            if read.insert(image.path.clone()) {
                volumes.push(self.detached_volume(image.volume, image.path, None).await?);
            }
        }
        for path in self.unknown_images(read).await {
            volumes.push(self.detached_volume(VolumeId::of_image(&path), path, None).await?);
        }
        Ok(volumes)
    }

    /// The volume that answers to an id, a name, or the path of its image. With `within`, one that one of these VMs has.
    pub async fn find_volume(&self, wanted: &str, within: Option<&BTreeSet<VmId>>) -> Result<VolumeView> {
        let (vm, target) = match wanted.split_once('/') {
            // A path.
            None | Some(("", _)) => (None, None),
            Some((vm, target)) => (Some(self.find_vm(vm).await?), Some(target)),
        };
        let is_within = |vm: VmId| within.is_none_or(|within| within.contains(&vm));
        if vm.as_ref().is_some_and(|vm| !is_within(vm.id)) {
            // As it was asked for: not by the name that it has.
            let asked = wanted.split_once('/').map_or(wanted, |(vm, _)| vm);
            return Err(OpsError::NoSuchVm(asked.to_owned()));
        }
        let id = wanted.parse::<VolumeId>().ok();
        let is_wanted = |volume: &VolumeView| {
            let place = volume.user.as_ref().map(|place| place.target.as_str());
            Some(volume.id) == id
                || volume.name == wanted
                || volume.image.path == Path::new(wanted)
                || (target.is_some() && place == target)
        };
        let mut found = self.volumes(vm.as_ref()).await?;
        found.retain(is_wanted);
        found.retain(|volume| match &volume.user {
            Some(place) => is_within(place.vm.id),
            None => within.is_none(),
        });
        match (found.pop(), found.is_empty()) {
            // What else stands there is nothing for whoever may know of some VMs alone.
            (None, _) if within.is_some() => Err(OpsError::NoSuchVolume(wanted.to_owned())),
            (None, _) => Err(self.missing(wanted).await?),
            (Some(volume), true) => Ok(volume),
            (Some(last), false) => Err(OpsError::AmbiguousVolume {
                name: wanted.to_owned(),
                candidates: found
                    .iter()
                    .chain([&last])
                    .map(|volume| format!("{} ({})", volume.id, volume.image.path.display()))
                    .collect(),
            }),
        }
    }

    /// None for a disk that there is nothing to say of.
    async fn disk_volume(
        &self,
        view: &VmView,
        tree: &LayerTree,
        disk: &DiskView,
        clones: &mut HashMap<VolumeId, ClonedVolume>,
    ) -> Result<Option<VolumeView>> {
        let Some(image) = disk.active().cloned() else { return Ok(None) };
        let known = tree.volume_writing(&image.path);
        let without_vm = self.0.store.volumes_without_vm().await?;
        let as_before = || without_vm.iter().find(|(path, _)| *path == image.path).map(|(_, id)| *id);
        let unknown = || VolumeId::of_unknown_disk(view.id, &disk.target, &image.path.display().to_string());
        let id = known.map(|volume| volume.id).or_else(as_before).unwrap_or_else(unknown);
        let own = self.0.store.tree(VmId::of_detached(id)).await?;
        let clone = clones.remove(&id);
        Ok(Some(VolumeView {
            id,
            name: match &clone {
                Some(clone) => clone.name.to_string(),
                None => format!("{}/{}", view.name, disk.target),
            },
            user: Some(VolumePlace {
                vm: VmSummary {
                    id: view.id,
                    name: view.name.clone(),
                    run_state: view.run_state,
                    full_disks: view.full_disks.clone(),
                },
                target: disk.target.clone(),
            }),
            facts: self.0.host.images.inspect(&image.path, image.format).await.ok(),
            image,
            state: known.map(|volume| volume.active),
            snapshots: holders(tree, id) + holders(&own, id),
            debt: (0, 0),
            waits_for: BTreeSet::new(),
            clone,
            holder: self.under_way(view.id),
        }))
    }

    async fn detached_volume(
        &self,
        id: VolumeId,
        path: PathBuf,
        clone: Option<ClonedVolume>,
    ) -> Result<VolumeView> {
        let vm = VmId::of_detached(id);
        let own = self.0.store.tree(vm).await?;
        let waiting = self.sizes(own.pending().map(|layer| (&layer.path, layer.format))).await;
        Ok(VolumeView {
            id,
            name: detached::name(&path, clone.as_ref()),
            user: None,
            facts: self.0.host.images.inspect(&path, Format::Qcow2).await.ok(),
            image: ChainImage { path, format: Format::Qcow2, is_block_device: false },
            state: own.detached_image().and_then(|image| image.parent),
            snapshots: holders(&own, id),
            debt: (waiting.len(), waiting.values().map(|facts| facts.allocated).sum()),
            waits_for: self.waits_for(&own),
            clone,
            holder: self.under_way(vm),
        })
    }
}

/// How many snapshots of a tree hold a volume.
fn holders(tree: &LayerTree, id: VolumeId) -> usize {
    let holds = |held: &&Snapshot| held.disks.iter().any(|held| held.volume == id);
    tree.snapshots.iter().filter(holds).count()
}
