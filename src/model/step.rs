//! The steps that a plan is made of. Each names everything it needs: steps pass nothing to each other.
//!
//! Decides what a step is called and what it must be told. Leaves to `ops` how it is done, seen and undone.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::ids::{DiskTarget, LayerId, SnapshotId, VmId, VmName, VolumeId};
use super::layer::{Layer, Volume};
use super::operation::Failure;
use super::snapshot::{SnapshotDisk, SnapshotState};
use super::vm::{FileIdentity, Format, MemoryFormat, RunState, Seen};

/// One thing to make so, or to unmake.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "step")]
pub enum Step {
    /// The snapshot is in the catalog as CREATING. Undone: it is not.
    ReserveSnapshot {
        /// The snapshot.
        snapshot: SnapshotId,
    },
    /// An empty overlay stands over an image. Undone: it is gone.
    CreateOverlay(NewOverlay),
    /// The place for a memory image is free. Undone: whatever came to stand there is gone.
    PrepareMemoryImage {
        /// Absolute path.
        path: PathBuf,
    },
    /// A memory image stands that has everything but the memory, and the definition of now. Undone: whatever stands there is
    /// gone.
    BeginMemoryImage {
        /// The snapshot, whose definition it is.
        snapshot: SnapshotId,
        /// Absolute path.
        path: PathBuf,
        /// How the memory will stand in it. It is in the header from then on.
        #[serde(default)]
        format: MemoryFormat,
    },
    /// The hypervisor has the memory image, and what it captures next it captures behind the guest's back. Undone: it has not,
    /// and does not.
    PrepareCapture {
        /// Absolute path of the image.
        path: PathBuf,
    },
    /// The processors of a running VM stand still, and it is what its memory image says. Undone: they run.
    PauseVm {
        /// The snapshot, whose definition it must have.
        snapshot: SnapshotId,
        /// Longest pause in milliseconds: they run then, whatever happens.
        timeout_ms: u64,
    },
    /// The memory of a VM that stands still begins to be written, as it is. The hypervisor gets ready for that while the disks
    /// go over. Undone: nothing is written any more, and the VM runs.
    CaptureMemory {
        /// Absolute path of the image.
        path: PathBuf,
    },
    /// What the guest changes from now on is kept apart, and it has not used its disks since the capture began. Never so again
    /// once it has. Undone: nothing is written any more, and the VM runs.
    ProveCapture {
        /// Absolute path of the image.
        path: PathBuf,
    },
    /// The processors run, proven.
    ResumeVm,
    /// All of the memory is written, and QEMU has let go of the image. Undone: nothing is written any more.
    AwaitMemory {
        /// Absolute path of the image.
        path: PathBuf,
    },
    /// The memory image is complete and durable. Never so once that could not be made sure of.
    FinishMemoryImage {
        /// Absolute path.
        path: PathBuf,
    },
    /// UEFI variables stand in a file of ours. Undone: it is gone.
    CopyVariables {
        /// Where they are: absolute. A running VM may have it open.
        from: PathBuf,
        /// Where to copy them: absolute, named from a UUID.
        to: PathBuf,
    },
    /// A VM that is off has these UEFI variables. Undone: it has those from before.
    RestoreVariables {
        /// Where they are kept: absolute.
        from: PathBuf,
        /// The file that the VM's definition names.
        to: PathBuf,
        /// Where those from before are kept; None if there were none.
        before: Option<PathBuf>,
    },
    /// What the guest has written so far is on the disk, as far as that goes within a few seconds: less is left to be done while
    /// it stands still. Nothing depends on it.
    FlushImages {
        /// Absolute paths.
        images: Vec<PathBuf>,
    },
    /// The guest's file systems are frozen, or it is known why not. Undone: they are thawed.
    Freeze(Freeze),
    /// The VM writes to the overlays; all disks at one instant, memory with them if asked.
    /// Undone: the overlays are merged back, and the VM does what it did before.
    SwitchDisks(SwitchDisks),
    /// The guest's file systems are thawed, proven.
    Thaw,
    /// The file systems stood still from before the switch until after it. Never so again once it is not.
    ConfirmQuiesce,
    /// The snapshot is DELETING. Undone: it is what it was.
    MarkDeleting {
        /// The snapshot.
        snapshot: SnapshotId,
        /// READY or ERROR.
        was: SnapshotState,
    },
    /// Neighbouring layers are one, and nothing refers to the others. Only ever rolls forward.
    Merge(MergeLayers),
    /// Files are gone.
    RemoveImages {
        /// Which.
        images: Vec<DoomedImage>,
    },
    /// A file that nothing needs is gone. It is looked once more whether anybody has come to need it.
    RemoveOrphan {
        /// Which.
        file: DoomedImage,
    },
    /// The snapshot is REVERTING. Undone: READY.
    MarkReverting {
        /// The snapshot.
        snapshot: SnapshotId,
    },
    /// The memory image is complete and has the size it had.
    CheckMemoryImage {
        /// Absolute path.
        path: PathBuf,
        /// Size in bytes that the catalog recorded.
        bytes: u64,
    },
    /// The VM is off. Undone: it runs again, booted from its disks, if it was live.
    Stop {
        /// What it did before.
        was: RunState,
    },
    /// The VM's stored definition names other images. Undone: the former ones.
    PointDisks {
        /// Which.
        disks: Vec<PointedDisk>,
    },
    /// The VM is live. Undone: it is off.
    Start(Start),
    /// Clones are in the catalog as being made. Undone: they are not.
    ReserveClones {
        /// Which.
        clones: Vec<VolumeId>,
    },
    /// An image stands that reads what another one reads, and lies on nothing. Undone: it is gone.
    CopyImage(NewCopy),
    /// A file that we made has the name that its user chose. Undone: it has its former name.
    PublishImage {
        /// The name that it was made under: absolute, from a UUID.
        from: PathBuf,
        /// The user's choice: absolute.
        to: PathBuf,
    },
    /// A file has a second name, ours. Undone: it has not.
    LinkImage {
        /// Its name: absolute.
        from: PathBuf,
        /// The second one: absolute, from a UUID.
        to: PathBuf,
    },
    /// A file that we made stands in the place of another one, which no process has open. Never undone: what stood there
    /// may have had no other name.
    ReplaceImage {
        /// The name that it was made under: absolute, from a UUID.
        from: PathBuf,
        /// The name that it takes: absolute.
        to: PathBuf,
    },
    /// No process has the image open. Only looks.
    CheckUnused {
        /// Which.
        image: ImageRef,
    },
    /// No process may write to the image. Only looks.
    CheckUnwritten {
        /// Which.
        image: ImageRef,
    },
    /// The image lies on nothing and reads what it read. Undone: it may lie on what it lay on, or not; it reads the same.
    FlattenImage {
        /// Which.
        image: ImageRef,
    },
    /// A VM is defined. Undone: it is not.
    DefineVm(NewVm),
    /// The VM that was defined is live. Undone: it is off.
    StartNewVm {
        /// Which.
        vm: VmId,
        /// Leave its processors stopped.
        paused: bool,
    },
    /// The catalog says what has happened, in one transaction.
    Record(CatalogChange),
}

/// An empty overlay to be made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewOverlay {
    /// The disk it is for.
    pub target: DiskTarget,
    /// Where to make it: absolute, named from a UUID.
    pub path: PathBuf,
    /// The image it covers: absolute.
    pub backing_path: PathBuf,
    /// The format of that image.
    pub backing_format: Format,
    /// Size that the guest sees, in bytes.
    pub virtual_size: u64,
}

/// A copy to be made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewCopy {
    /// The disk it is for.
    pub target: DiskTarget,
    /// What is copied, with all that it lies on.
    pub source: ImageRef,
    /// Where to make it: absolute, named from a UUID.
    pub path: PathBuf,
    /// Size that the guest sees, in bytes.
    pub virtual_size: u64,
    /// Bytes per second; None for no limit.
    pub bandwidth: Option<u64>,
}

/// A VM to be defined.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewVm {
    /// The snapshot whose definition is taken.
    pub snapshot: SnapshotId,
    /// Its identity.
    pub vm: VmId,
    /// Its name.
    pub name: VmName,
    /// Its disks' images. Others of the definition are left out, but for drives that nobody writes to.
    pub disks: Vec<(DiskTarget, ImageRef)>,
    /// Give its disks new serial numbers.
    pub new_serials: bool,
    /// The file with its UEFI variables; None to let the hypervisor make one from the firmware's template.
    pub variables: Option<PathBuf>,
}

/// How to freeze.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Freeze {
    /// The mount points; empty for all.
    pub mount_points: Vec<String>,
    /// Whether not being able to is a failure.
    pub required: bool,
    /// Longest freeze in milliseconds.
    pub timeout_ms: u64,
}

/// The switch of a create.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SwitchDisks {
    /// From which image to which, per disk.
    pub disks: Vec<PointedDisk>,
    /// The other disks, which must be left alone by name.
    pub others: Vec<DiskTarget>,
    /// Where to capture memory: absolute.
    pub memory: Option<PathBuf>,
    /// What the VM did before, and does afterwards.
    pub run_state: RunState,
    /// Whether a lost freeze before the switch is a reason not to switch.
    pub quiesce_required: bool,
}

/// A disk and the image it is to write to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PointedDisk {
    /// The disk.
    pub target: DiskTarget,
    /// The image it writes to before.
    pub from: ImageRef,
    /// The image it writes to afterwards.
    pub to: ImageRef,
}

/// A path with its format: never one without the other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRef {
    /// Absolute path.
    pub path: PathBuf,
    /// Its format.
    pub format: Format,
}

/// Merges that run side by side: one per disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MergeLayers {
    /// Which.
    pub merges: Vec<Merge>,
    /// Bytes per second per disk; None for no limit.
    pub bandwidth: Option<u64>,
}

/// Neighbouring layers that become one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Merge {
    /// Where the VM has the disk.
    pub target: DiskTarget,
    /// The lowest.
    pub base: ImageRef,
    /// The layers between the two, the one below the child first. They go away.
    pub between: Vec<ImageRef>,
    /// The highest: what it reads is kept.
    pub child: ImageRef,
    /// Which way.
    pub how: How,
}

/// Which way layers are merged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum How {
    /// Down into the base, which survives with the child's content.
    Commit {
        /// The overlays that lie on the child, and will lie on the base.
        grandchildren: Vec<ImageRef>,
    },
    /// Up into the child, which survives and reads the same all the time.
    Pull {
        /// What the base lies on, and the child will.
        below: Option<ImageRef>,
    },
    /// Down into the base, which then takes the child's name. Nobody has any of them open, and nothing lies on the child:
    /// it is the image of a volume that no VM has.
    Supersede {
        /// What the base lies on, and what stands under the child's name will.
        below: Option<ImageRef>,
    },
}

/// A file to be removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DoomedImage {
    /// Absolute path.
    pub path: PathBuf,
    /// Which file it was when this was planned: another one under the same name is not ours to remove.
    pub identity: Option<FileIdentity>,
}

/// How to start a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    /// The snapshot whose memory and definition to start from; None to boot from the disks.
    pub from_memory: Option<StartFromMemory>,
    /// Leave its processors stopped.
    pub paused: bool,
    /// The images that it must be found writing to.
    pub disks: Vec<PointedDisk>,
}

/// A memory image to start from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartFromMemory {
    /// The snapshot whose definition goes with it.
    pub snapshot: SnapshotId,
    /// Absolute path of the memory image.
    pub path: PathBuf,
}

/// What the catalog is to say. Each is applied in one transaction, and applying it twice is applying it once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "change")]
pub enum CatalogChange {
    /// A snapshot is READY.
    SnapshotTaken {
        /// The snapshot.
        snapshot: SnapshotId,
        /// Its disks.
        disks: Vec<SnapshotDisk>,
        /// Layers that the catalog did not know, or that are new. A parent stands before its children.
        layers: Vec<Layer>,
        /// The volumes with their new active layers.
        volumes: Vec<Volume>,
    },
    /// A VM, or one volume of it, is back at a snapshot.
    SnapshotReverted {
        /// The snapshot.
        snapshot: SnapshotId,
        /// Whether the VM's state descends from it now: not when only one volume went back.
        is_current: bool,
        /// The new overlays.
        layers: Vec<Layer>,
        /// The volumes with their new active layers.
        volumes: Vec<Volume>,
        /// Layers that went.
        gone: Vec<LayerId>,
    },
    /// Layers were merged.
    LayersMerged {
        /// Which.
        merged: Vec<MergedLayers>,
    },
    /// Clones are complete.
    ClonesMade {
        /// Which.
        clones: Vec<VolumeId>,
    },
    /// A clone stands alone, and holds nothing any more.
    CloneFlattened {
        /// Which.
        volume: VolumeId,
        /// Its image.
        path: PathBuf,
        /// The VM whose snapshot it was made out of. Another VM may have it as a disk.
        source: VmId,
    },
    /// A clone is gone.
    CloneDeleted {
        /// Which.
        volume: VolumeId,
    },
    /// Snapshots are gone, and layers with them.
    SnapshotsDeleted {
        /// The snapshots; none if only layers went.
        snapshots: Vec<SnapshotId>,
        /// Layers that went.
        gone: Vec<LayerId>,
    },
    /// A disk reads through fewer layers than it did, for somebody else has merged them. No file is touched.
    ChainAdopted {
        /// The layers that lie elsewhere now, or may have been written to.
        layers: Vec<Layer>,
        /// The volume, with the layer that it writes to.
        volumes: Vec<Volume>,
        /// Layers that nothing needs any more. Their files stay, and are not ours.
        gone: Vec<LayerId>,
        /// Snapshots that cannot be vouched for any more.
        snapshots: Vec<SnapshotId>,
        /// Why not.
        why: Failure,
    },
    /// Snapshots lack something, and nobody waits for it.
    SnapshotsLost {
        /// Which.
        snapshots: Vec<SnapshotId>,
        /// What they lack.
        why: Failure,
    },
    /// The file of a layer is another one than before, with the same content.
    FileAdopted {
        /// Which layer.
        layer: LayerId,
        /// How its file is.
        seen: Seen,
    },
    /// A disk was taken away from the VM, and that was meant. Its image is kept, and what it lies on.
    DiskSetAside {
        /// Which.
        volume: VolumeId,
        /// There is no image any more: nothing is left to be kept.
        is_gone: bool,
    },
}

/// Layers that are one now, with the content of the highest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MergedLayers {
    /// The highest.
    pub child: LayerId,
    /// Those between the two.
    pub between: Vec<LayerId>,
    /// The lowest.
    pub base: LayerId,
    /// Which is left: whatever referred to the child refers to it.
    pub survivor: Survivor,
}

/// Which of the layers of a merge is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Survivor {
    /// The lowest: they were committed.
    Base,
    /// The highest: they were pulled.
    Child,
}

impl Step {
    /// The limit on what it copies for each disk, in bytes per second. None if it copies nothing that can be limited.
    #[must_use]
    pub fn bandwidth(&self) -> Option<Option<u64>> {
        match self {
            Self::Merge(MergeLayers { bandwidth, .. }) | Self::CopyImage(NewCopy { bandwidth, .. }) => {
                Some(*bandwidth)
            }
            _ => None,
        }
    }

    /// The same, to be changed.
    pub fn bandwidth_mut(&mut self) -> Option<&mut Option<u64>> {
        match self {
            Self::Merge(MergeLayers { bandwidth, .. }) | Self::CopyImage(NewCopy { bandwidth, .. }) => {
                Some(bandwidth)
            }
            _ => None,
        }
    }
}

impl MergedLayers {
    /// The layers that go away, from above.
    pub fn gone(&self) -> impl Iterator<Item = &LayerId> {
        let (first, last) = match self.survivor {
            Survivor::Base => (Some(&self.child), None),
            Survivor::Child => (None, Some(&self.base)),
        };
        first.into_iter().chain(&self.between).chain(last)
    }
}

impl Merge {
    /// The images that go away, from above: what they hold is copied.
    pub fn gone(&self) -> impl Iterator<Item = &ImageRef> {
        let (first, last) = match self.how {
            How::Commit { .. } | How::Supersede { .. } => (Some(&self.child), None),
            How::Pull { .. } => (None, Some(&self.base)),
        };
        first.into_iter().chain(&self.between).chain(last)
    }

    /// The image that is left, and grows.
    #[must_use]
    pub fn survivor(&self) -> &ImageRef {
        match self.how {
            How::Commit { .. } | How::Supersede { .. } => &self.base,
            How::Pull { .. } => &self.child,
        }
    }

    /// The images whose headers are written: they tell how far it is where no process tells.
    #[must_use]
    pub fn headers(&self) -> &[ImageRef] {
        match &self.how {
            How::Commit { grandchildren } => grandchildren,
            How::Pull { .. } | How::Supersede { .. } => std::slice::from_ref(&self.child),
        }
    }
}
