//! What to do: (view of the world, request) -> steps, or a refusal with its reason. Pure, total, without a clock.
//!
//! Decides every step, every file name and every id before anything is touched. Leaves doing to `ops`, seeing to
//! `host`. Must never wait, read a file, or fail for a reason outside of its arguments.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::model::vm::{Attachment, DiskSource, DiskView};
use crate::model::{
    ClonedVolume, Finding, ImageFacts, LayerTree, RunState, Snapshot, Space, Step, VmId, VmView, Volume,
    VolumeId,
};

mod blackout;
mod check;
mod clone;
mod collapse;
pub mod convergence;
mod create;
mod declare;
mod delete;
mod deploy;
mod detached;
pub mod due;
pub mod limits;
mod manifest;
mod memory;
pub mod merge;
mod names;
mod orphan;
mod purge;
pub mod rebuild;
mod refusal;
mod reserve;
mod resolve;
pub mod retention;
mod revert;
mod space;
pub mod speed;
mod summary;
pub mod switch;
mod take;
mod variables;

use space::check_space;

#[cfg(test)]
mod tests;

pub use check::differences;
pub use clone::{clone_volume, delete_volume, flatten_volume};
pub use collapse::collapse as collapse_tree;
pub use convergence::MergePolicy;
pub use create::create;
pub use declare::declare_ready;
pub use delete::{collapse, delete};
pub use deploy::deploy_vm;
pub use manifest::{is_manifest, manifest_path};
pub use names::is_named_by_us;
pub use orphan::{FileReader, orphan};
pub use purge::purge;
pub use refusal::Refusal;
pub use resolve::{actions, check_adoption, is_adopted, resolve};
pub use revert::{is_whole, revert, revert_volume};
pub use space::{grows, is_low, low_water, next_threshold, resume};
pub use speed::SpeedPolicy;
pub use summary::describe;
pub use take::take_from_snapshot;

/// All that a decision may look at.
#[derive(Debug, Clone)]
pub struct World {
    /// The VM as it is.
    pub vm: VmView,
    /// What the catalog knows of it.
    pub tree: LayerTree,
    /// What the images of both say of themselves; one that does not exist is not here.
    pub images: HashMap<PathBuf, ImageFacts>,
    /// Those that are there and cannot be read, with the problem. None of them is among what the VM reads.
    pub damaged: BTreeMap<PathBuf, String>,
    /// Complete memory images of the VM's snapshots, with their sizes in bytes.
    pub memory_images: HashMap<PathBuf, u64>,
    /// Files of UEFI variables, the VM's own and those kept with its snapshots, with their sizes in bytes.
    pub variables: HashMap<PathBuf, u64>,
    /// Volumes that the catalog knows without a VM, by image: clones, and those with snapshots of their own.
    pub volumes: HashMap<PathBuf, VolumeId>,
    /// Who has the clone that the request is about.
    pub users: Vec<VolumeUser>,
    /// What the catalog knows of that clone as a volume that no VM has: its own snapshots and their layers.
    pub clone_tree: Option<LayerTree>,
    /// The room, per directory.
    pub free_space: HashMap<PathBuf, Space>,
    /// Bytes that one image would take in the place of a run of layers, the highest first; None where it could not be
    /// measured. Only what a plan could not be made without.
    pub measured: HashMap<Vec<PathBuf>, Option<u64>>,
    /// Where things go.
    pub places: Places,
    /// Why memory cannot be captured while the VM runs, in words. Asked only for a snapshot with memory of a running VM.
    pub background_blocker: Option<String>,
    /// How memory is to be written that is captured while the VM runs.
    pub memory_compression: MemoryCompression,
    /// Why a VM could not be started from compressed memory, in words. Asked only where memory is to be compressed.
    pub compression_blocker: Option<String>,
    /// When running VMs may pull.
    pub live_pulls: LivePulls,
    /// The time.
    pub now: Timestamp,
}

/// A VM that has a volume among its disks, or in its snapshots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeUser {
    /// Its name.
    pub name: String,
    /// What it does; of an image that lies on it, nothing.
    pub run_state: RunState,
}

/// When a running VM may be let to pull layers up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LivePulls {
    /// When nothing makes it dangerous.
    #[default]
    WhenSafe,
    /// Always: whoever runs the node has a QEMU that is mended, or takes the risk.
    Always,
}

/// When memory may be captured while its guest runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BackgroundCaptures {
    /// Wherever the hypervisor can.
    #[default]
    WhenPossible,
    /// Never: the guest stands still until its memory is written.
    Never,
}

/// How memory is written that is captured while its guest runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MemoryCompression {
    /// As it is.
    #[default]
    None,
    /// Compressed with zstd, where libvirt can read that.
    Zstd,
}

/// Where new files go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places {
    /// Directory of memory images.
    pub memory: PathBuf,
    /// Directories that clones may be made in by name.
    pub images: Vec<PathBuf>,
    /// Directory of overlays over block devices; those over files stand beside them.
    pub overlays: Option<PathBuf>,
    /// Bytes to leave free wherever we write.
    pub reserve: u64,
    /// Below so many free bytes a file system that VMs write to is low.
    pub low_space: u64,
}

/// Where new identities come from. A plan made twice with the same source is the same plan.
pub type NewIds<'a> = &'a mut dyn FnMut() -> Uuid;

/// What will be done.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// In this order.
    pub steps: Vec<Step>,
    /// Index of the point of no return.
    pub commit_point: usize,
    /// What is known before it starts.
    pub findings: Vec<Finding>,
    /// The snapshot as it will be reserved; for a create.
    pub reservation: Option<Snapshot>,
    /// The clones as they will be reserved.
    pub clones: Vec<ClonedVolume>,
    /// What a person should know before saying yes.
    pub warnings: Vec<String>,
    /// What will be gone for good.
    pub removals: Vec<Removal>,
    /// Bytes that merges will move, at most.
    pub bytes_to_copy: u64,
    /// Bytes that must be free, over all directories.
    pub bytes_needed: u64,
    /// The VM; None for a volume that no VM has.
    pub vm: Option<VmId>,
    /// Its name, or the volume's.
    pub vm_name: String,
}

impl Plan {
    /// A plan of these steps, that costs nothing and removes nothing.
    fn new(world: &World, steps: Vec<Step>, commit_point: usize) -> Self {
        Self {
            steps,
            commit_point,
            findings: Vec::new(),
            reservation: None,
            clones: Vec::new(),
            warnings: Vec::new(),
            removals: Vec::new(),
            bytes_to_copy: 0,
            bytes_needed: 0,
            vm: world.vm.attachment.vm(world.vm.id),
            vm_name: world.vm.name.clone(),
        }
    }
}

/// Something that will be gone for good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Removal {
    /// What it is.
    pub kind: RemovalKind,
    /// Its id, if it has one; else empty.
    pub id: String,
    /// In words.
    pub description: String,
    /// Bytes on the host that it takes.
    pub bytes: u64,
}

/// What goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RemovalKind {
    /// A snapshot: one can no longer go back to it.
    Snapshot,
    /// What the VM wrote to a disk since its last snapshot.
    ActiveState,
    /// What the guest has in memory.
    GuestMemory,
    /// A volume that was cloned.
    Volume,
    /// A file that nothing refers to.
    File,
}

/// Free space is demanded where a new overlay goes: enough for its first moments, so that it is seen to work.
const NEW_OVERLAY_BYTES: u64 = 16 << 20;

/// The name of an overlay: from a UUID, never from what a user typed.
fn overlay_path(world: &World, disk: &DiskView, id: Uuid) -> Result<PathBuf, Refusal> {
    let active = disk.active().ok_or_else(|| Refusal::NoSuchDisk(disk.target.clone()))?;
    let directory = if active.is_block_device {
        world.places.overlays.as_deref().ok_or_else(|| Refusal::NoOverlayDirectory(disk.target.clone()))?
    } else {
        active.path.parent().unwrap_or(Path::new("/"))
    };
    Ok(new_image_path(directory, id))
}

fn new_image_path(directory: &Path, id: Uuid) -> PathBuf {
    names::Content::Image.path(directory, id)
}

/// Whether an image has a name that nobody looks for: one of ours, and not that of a clone. Others are in the books of
/// whoever made the VM, and stay as long as the disk.
fn is_nameless(world: &World, path: &Path) -> bool {
    is_named_by_us(path) && !world.volumes.contains_key(path)
}

/// What keeps the VM from pulling now, in words; None if nothing does, or nobody minds.
fn pull_blocker(world: &World) -> Option<&str> {
    match world.live_pulls {
        LivePulls::WhenSafe => world.vm.pull_blocker.as_deref(),
        LivePulls::Always => None,
    }
}

/// Refuses a VM that may not be touched now.
pub fn check_vm(world: &World) -> Result<(), Refusal> {
    if world.vm.attachment == Attachment::Gone {
        return Err(Refusal::VmGone);
    }
    if world.vm.run_state == RunState::Migrated {
        return Err(Refusal::VmElsewhere);
    }
    if world.vm.run_state == RunState::Unsettled {
        return Err(Refusal::VmUnsettled);
    }
    if world.vm.has_managed_save {
        return Err(Refusal::ManagedSave);
    }
    Ok(())
}

/// Refuses a disk that somebody else is at work on, or has changed behind our back.
///
/// Gives the volume that the catalog knows it as, if it does.
fn check_disk<'a>(world: &'a World, disk: &DiskView) -> Result<Option<&'a Volume>, Refusal> {
    let target = || disk.target.clone();
    if disk.block_job.is_some() {
        return Err(Refusal::BlockJob(target()));
    }
    let DiskSource::Chain { images, persistent, .. } = &disk.source else {
        return Err(Refusal::NoSuchDisk(target()));
    };
    let active = disk.active().ok_or_else(|| Refusal::NoSuchDisk(target()))?;
    if let Some(persistent) = persistent.as_ref().filter(|path| **path != active.path) {
        return Err(Refusal::DefinitionsDiffer {
            disk: target(),
            live: active.path.clone(),
            stored: persistent.clone(),
        });
    }
    for image in images {
        if !world.images.contains_key(&image.path) {
            return Err(Refusal::ImageMissing(image.path.clone()));
        }
    }
    let Some(volume) = world.tree.volume_writing(&active.path) else {
        let Some(known) = images.iter().find(|image| world.tree.layer_at(&image.path).is_some()) else {
            return Ok(None);
        };
        return Err(Refusal::UnknownOverlay {
            disk: target(),
            active: active.path.clone(),
            known: known.path.clone(),
        });
    };
    let expected: Vec<&Path> =
        world.tree.chain(volume.active).iter().map(|layer| layer.path.as_path()).collect();
    let actual: Vec<&Path> = images.iter().map(|image| image.path.as_path()).collect();
    if expected != actual {
        return Err(Refusal::ChainDiffers {
            disk: target(),
            expected: show(&expected),
            actual: show(&actual),
        });
    }
    Ok(Some(volume))
}

fn show(paths: &[&Path]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(" <- ")
}

fn directory_of(path: &Path) -> PathBuf {
    path.parent().unwrap_or(Path::new("/")).to_owned()
}
