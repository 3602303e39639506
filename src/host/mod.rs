//! The outside world, behind three small traits. The only place with I/O on VMs and images.
//!
//! Decides nothing: it shows what is, and does what it is told. Leaves every choice to `plan`, every order of things
//! and every second look to `ops`. Must never know of operations, snapshots or the catalog.
//!
//! An error from here is never proof that nothing happened. Every call has a deadline of its own.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{broadcast, watch};

use crate::model::served::Served;
use crate::model::step::{DoomedImage, ImageRef, NewCopy, NewOverlay, NewVm};
use crate::model::vm::{BlockJob, Format, ImageFacts, LastWritten, MemoryFormat, RunState};
use crate::model::{DiskTarget, IoLimits, Labels, ProcessId, Space, VmId, VmView};

mod error;
pub mod images;
pub mod libvirt;
mod paths;
pub mod sim;
mod workers;

pub use error::HostError;
pub use libvirt::give_back_memory;

/// A result from the outside world.
pub type Result<T> = std::result::Result<T, HostError>;

/// All of the outside world.
#[derive(Clone)]
pub struct Host {
    /// The hypervisor.
    pub hypervisor: Arc<dyn Hypervisor>,
    /// The agents inside the guests.
    pub agent: Arc<dyn GuestAgent>,
    /// The image files.
    pub images: Arc<dyn Images>,
    /// The last resort.
    pub emergency: Arc<dyn EmergencyThaw>,
}

/// The hypervisor of this node.
#[async_trait]
pub trait Hypervisor: Send + Sync + 'static {
    /// Who it is.
    async fn about(&self) -> Result<About>;

    /// All VMs, off ones too.
    async fn vms(&self) -> Result<Vec<VmSummary>>;

    /// What is written on each VM, or on one of them, in the metadata of its definition. Nothing of one that is not there.
    async fn labels(&self, only: Option<VmId>) -> Result<HashMap<VmId, Labels>>;

    /// A VM as it is now. [`HostError::NoSuchVm`] if there is none.
    async fn observe(&self, vm: VmId) -> Result<VmView>;

    /// What a live VM's process itself says that a disk writes to, which process that is, and what the stored definition
    /// names: also for a VM that [`Self::observe`] gives no view of, because what the hypervisor believes of its disks is
    /// wrong.
    async fn written_image(&self, vm: VmId, disk: &DiskTarget) -> Result<WrittenImage>;

    /// What the process of a VM writes to, as the process itself tells it; of the disks that it tells it of. Empty without a
    /// process. Cheap: a guest may stand still meanwhile.
    async fn written_images(&self, vm: VmId) -> Result<Vec<LiveImage>>;

    /// The VM's definition in the form that a later start from memory accepts, secrets included.
    async fn definition(&self, vm: VmId) -> Result<Definition>;

    /// Lets the VM write to other images, all at one instant; memory is captured with them if asked.
    ///
    /// The images in `switch.disks` exist and are empty overlays. A running VM is running again when this returns
    /// without an error. Blocks for as long as the memory takes.
    async fn switch_disks(&self, vm: VmId, switch: &DiskSwitch) -> Result<()>;

    /// Lets the stored definition of a VM name other images: what its next cold start boots. A process that runs goes on
    /// with the images it has.
    async fn point_disks(&self, vm: VmId, disks: &[(DiskTarget, ImageRef)]) -> Result<()>;

    /// Starts a VM that is off.
    async fn start(&self, vm: VmId, how: &StartFrom, paused: bool) -> Result<()>;

    /// Defines a VM: `definition`, another VM's, under the name, identity and disks of `new`. Addresses that must be
    /// unique are new; disks that `new` does not name are left out, but for drives that nobody writes to.
    async fn define(&self, definition: &Definition, new: &NewVm) -> Result<()>;

    /// Lets a VM that is off be unknown. Its images stay. None there is success.
    async fn undefine(&self, vm: VmId) -> Result<()>;

    /// Ends the VM's process, letting it flush what it holds. The guest is not asked.
    async fn stop(&self, vm: VmId) -> Result<()>;

    /// Lets the processors of a running VM stand still until [`Self::resume`].
    async fn pause(&self, vm: VmId) -> Result<()>;

    /// Lets the processors run on. Where a disk has failed it may take a second before they do: what failed is told before.
    async fn resume(&self, vm: VmId) -> Result<()>;

    /// What the processors do, as the process itself says once it has done what it was asked before. None without a process. Asks
    /// about no other VM.
    async fn process_state(&self, vm: VmId) -> Result<Option<RunState>>;

    /// Bytes of memory written and to be written, while a capture is under way.
    async fn memory_progress(&self, vm: VmId) -> Result<Option<(u64, u64)>>;

    /// Whether memory is being captured, or something else is done to the whole VM that a capture would wait for, whoever asked
    /// for it. A capture goes on when whoever asked is gone, and lets the VM write to the other images at its end.
    async fn is_capturing(&self, vm: VmId) -> Result<bool>;

    /// Ends the capture of memory into `image`. The call that captures then fails. Refused before it has begun with the image:
    /// what the hypervisor does with the VM until then is somebody else's.
    async fn abort_memory_capture(&self, vm: VmId, image: &Path) -> Result<()>;

    /// Why the memory of a live VM cannot be captured while it runs on, in words; None if it can be.
    async fn background_blocker(&self, vm: VmId) -> Result<Option<String>>;

    /// Why no VM of this node could be started from compressed memory, in words; None if it can be.
    async fn compression_blocker(&self) -> Result<Option<String>>;

    /// Does what can be done for a background capture before the VM is paused: the hypervisor has `image`, which is from
    /// [`Images::begin_memory_image`]. Ends what was left of an earlier one. Until [`Self::end_background_capture`] nobody can
    /// migrate the VM.
    async fn prepare_background_capture(&self, vm: VmId, image: &Path) -> Result<()>;

    /// Begins to write the memory of a paused VM, as it is now, into an image for which this process has prepared it. Refused
    /// for one that runs. It must stay paused until [`Self::prove_background_capture`] says that it may be resumed; its disks
    /// may go over to other images meanwhile.
    async fn begin_background_capture(&self, vm: VmId, image: &Path) -> Result<()>;

    /// When this returns what the guest changes is kept apart, and the VM may be resumed. Refused if it has run since the
    /// capture into `image` was begun by this process, as far as that matters: it has used its disks, or runs.
    async fn prove_background_capture(&self, vm: VmId, image: &Path) -> Result<()>;

    /// What has become of a capture into `image` that was begun so. Cheap: asked several times a second.
    async fn background_capture(&self, vm: VmId, image: &Path) -> Result<BackgroundCapture>;

    /// Ends a background capture that was begun so, whoever began it, and lets the VM be as if there had never been one. What
    /// the image holds stays. None there is success.
    async fn end_background_capture(&self, vm: VmId) -> Result<()>;

    /// Starts to merge `top` into `base` on a running VM. A `top` that is the active layer needs a pivot to end.
    async fn start_commit(&self, vm: VmId, commit: &Commit) -> Result<()>;

    /// Starts to copy into the active layer of a disk what a running VM reads from the layers below it. It reads the same
    /// at each moment, and lies on less once the job has ended.
    async fn start_pull(&self, vm: VmId, pull: &Pull) -> Result<()>;

    /// The block job of each disk that has one. Cheap: asked several times a second while jobs run.
    async fn block_jobs(&self, vm: VmId) -> Result<Vec<(DiskTarget, BlockJob)>>;

    /// Ends an active commit that is ready: the VM writes to the base. [`HostError::NotReady`] if it is not.
    async fn pivot(&self, vm: VmId, disk: &DiskTarget) -> Result<()>;

    /// Lets the block job of a disk copy so many bytes per second at most; None for no limit. Refused if there is none.
    async fn limit_block_job(&self, vm: VmId, disk: &DiskTarget, bandwidth: Option<u64>) -> Result<()>;

    /// Ends the block job of a disk where it stands: the VM goes on with the layers that it had. None there is success.
    async fn abort_block_job(&self, vm: VmId, disk: &DiskTarget) -> Result<()>;

    /// What a disk has served its guest since the VM's process began; None as for [`Hypervisor::io_limits`].
    async fn served(&self, vm: VmId, disk: &DiskTarget) -> Result<Option<Served>>;

    /// What the process of a VM may read from a disk and write to it. None if it is off, or has no such disk.
    async fn io_limits(&self, vm: VmId, disk: &DiskTarget) -> Result<Option<IoLimits>>;

    /// Changes all limits on a disk of a running VM but the group, until it stops. The definition is left alone.
    async fn set_io_limits(&self, vm: VmId, disk: &DiskTarget, limits: &IoLimits) -> Result<()>;

    /// Lets [`HostEvent::ThresholdCrossed`] tell, once, when the file that a running VM writes to for a disk is about to
    /// grow beyond so many bytes. Takes the place of what was set for that file before.
    async fn set_block_threshold(&self, vm: VmId, disk: &DiskTarget, bytes: u64) -> Result<()>;

    /// What happens to VMs and block jobs. Some events are lost when the link breaks: look again then.
    fn events(&self) -> broadcast::Receiver<HostEvent>;

    /// Whether the hypervisor can be reached.
    fn link(&self) -> watch::Receiver<Link>;
}

/// The agent inside a guest. Everything it says is a stranger's word.
#[async_trait]
pub trait GuestAgent: Send + Sync + 'static {
    /// Freezes file systems: those at `mount_points`, or all. Gives how many. An error may come after they froze.
    async fn freeze(&self, vm: VmId, mount_points: &[String], deadline: Duration) -> Result<u32>;

    /// Thaws all file systems. Gives how many were frozen until now.
    async fn thaw(&self, vm: VmId, deadline: Duration) -> Result<u32>;

    /// Whether file systems are frozen.
    async fn is_frozen(&self, vm: VmId, deadline: Duration) -> Result<bool>;
}

/// The last resort against a guest that stays frozen or paused: works from a plain thread, over a connection of its own, when
/// everything else of the process hangs. Blocks.
pub trait EmergencyThaw: Send + Sync + 'static {
    /// Thaws all file systems, then asks. True only if the guest says that it is thawed, or has ceased to run.
    fn thaw_now(&self, vm: VmId, deadline: Duration) -> Result<bool>;

    /// Lets the processors of a paused VM run. True only if they do, or it has ceased to run.
    fn resume_now(&self, vm: VmId, deadline: Duration) -> Result<bool>;
}

/// Image files and the directories they are in.
#[async_trait]
pub trait Images: Send + Sync + 'static {
    /// Makes an empty overlay, durable when this returns. A file that stands there already is an error.
    async fn create_overlay(&self, overlay: &NewOverlay) -> Result<()>;

    /// What an image says of itself, read as `format`, safe on one that a VM writes to.
    /// [`HostError::NoSuchImage`] if there is none.
    async fn inspect(&self, path: &Path, format: Format) -> Result<ImageFacts>;

    /// What an image lies on, whoever made it and whatever it is called. None for a file that lies on nothing: one without
    /// such a header, an empty one. An error for a file of which it cannot be told.
    async fn lies_on(&self, path: &Path) -> Result<Option<PathBuf>>;

    /// Merges the first of `layers` into the last, and all between with it; each lies directly on the next, and no
    /// process may have any open. The first keeps what it reads; those between read garbage from then on. Durable when
    /// this returns. `progress` gets bytes done and total.
    async fn commit(&self, layers: &[ImageRef], progress: &ByteProgress) -> Result<()>;

    /// Whether two images, each with all that it lies on, have the same size and the same content. Reads both; no process
    /// may write to either.
    async fn reads_same(&self, one: &ImageRef, other: &ImageRef) -> Result<bool>;

    /// When an image was written to last. Nothing was ever written to a qcow2 image whose first level table is all zeros
    /// (QEMU's `docs/interop/qcow2.rst`). Safe on an image that a VM writes to.
    async fn last_written(&self, image: &ImageRef) -> Result<LastWritten>;

    /// Writes another backing file into the header of `image`. What it reads must be the same over both.
    async fn rebase(&self, image: &ImageRef, base: &ImageRef) -> Result<()>;

    /// Makes a qcow2 image that reads what `source` reads, and lies on nothing; durable when this returns. A file that
    /// stands there already is an error; one that is half made may stand there after any other.
    async fn copy(&self, copy: &NewCopy, progress: &ByteProgress) -> Result<()>;

    /// Gives a file another name in the same file system, never that of a file that exists. Durable when this returns.
    async fn publish(&self, from: &Path, to: &Path) -> Result<()>;

    /// Gives a file a second name in the same file system, never that of a file that exists. Durable when this returns.
    async fn hard_link(&self, from: &Path, to: &Path) -> Result<()>;

    /// Lets a file take the name of another one, which is there and loses it, and its owner and mode. At each moment one
    /// of the two has the name. Durable when this returns.
    async fn replace(&self, from: &Path, to: &Path) -> Result<()>;

    /// The regular files that lie directly in a directory, in the order of their names.
    async fn list(&self, directory: &Path) -> Result<Vec<PathBuf>>;

    /// Lets `to` hold the bytes of `from`, a small file; durable when this returns. A `to` that is there is overwritten
    /// and keeps its owner; one that is new has the owner and mode of `from`. After an error it may hold anything.
    async fn copy_bytes(&self, from: &Path, to: &Path) -> Result<()>;

    /// Copies into an image all that it reads from the images above `below`, then lets it lie on that; on nothing if there
    /// is none. No process may have it open. It reads the same at each moment. Durable when this returns.
    async fn pull(&self, image: &ImageRef, below: Option<&ImageRef>, progress: &ByteProgress) -> Result<()>;

    /// Lets a small file of our own hold this, durable when this returns. Whoever reads it finds the old content or the new
    /// one. What is half done stands at [`unfinished`].
    async fn write_file(&self, path: &Path, content: &[u8]) -> Result<()>;

    /// What a small file of our own holds, at most `limit` bytes. [`HostError::NoSuchImage`] if there is none.
    async fn read_file(&self, path: &Path, limit: usize) -> Result<Vec<u8>>;

    /// Removes a file if it is the one meant. None there is success.
    async fn remove(&self, image: &DoomedImage) -> Result<()>;

    /// Whether any process has the image open for writing, or for reading as part of a VM.
    async fn is_in_use(&self, path: &Path, format: Format) -> Result<bool>;

    /// Whether any process may write to the image.
    async fn is_written(&self, path: &Path) -> Result<bool>;

    /// The room in the file system that holds `directory`.
    async fn free_space(&self, directory: &Path) -> Result<Space>;

    /// Bytes that one qcow2 image would take that holds what these hold, each of which lies on the next; nothing below the
    /// last is counted. Safe on images that VMs write to. Reads the tables of all, no data.
    async fn measure(&self, layers: &[ImageRef]) -> Result<u64>;

    /// Bytes of a complete memory image; None for one that is missing or was never finished.
    async fn memory_image(&self, path: &Path) -> Result<Option<u64>>;

    /// How the memory stands in an image, as far as it was written here. What the hypervisor has written by itself it reads by
    /// itself, and counts as raw.
    async fn memory_format(&self, path: &Path) -> Result<MemoryFormat>;

    /// Makes a memory image that has everything but the memory, unfinished; durable when this returns. It says in which format
    /// the memory will be. A file that stands there already is an error.
    async fn begin_memory_image(
        &self,
        path: &Path,
        definition: &Definition,
        format: MemoryFormat,
    ) -> Result<()>;

    /// Makes a memory image whose memory has all been written a complete one, durable when this returns. Gives its bytes. One
    /// that is complete already stays as it is; one that has no memory is an error.
    async fn finish_memory_image(&self, path: &Path) -> Result<u64>;

    /// Begins to write to the disk what was written to a file that grows, and does not keep it in memory. Nothing rests on it.
    async fn write_behind(&self, path: &Path) -> Result<()>;

    /// Makes a file and its directory entry durable.
    async fn sync(&self, path: &Path) -> Result<()>;
}

/// Where a small file stands until it is whole.
#[must_use]
pub fn unfinished(path: &Path) -> PathBuf {
    let mut unfinished = path.to_owned().into_os_string();
    unfinished.push(".part");
    unfinished.into()
}

/// See [`Hypervisor::written_image`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WrittenImage {
    /// The active layer, as the process tells it. None if there is no process, or no such image.
    pub live: Option<PathBuf>,
    /// The image that the next cold start boots, as the definition has it. None if the VM has no stored definition.
    pub stored: Option<ImageRef>,
    /// The process. None if there is none.
    pub process: Option<ProcessId>,
}

/// See [`Hypervisor::written_images`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LiveImage {
    /// The disk.
    pub disk: DiskTarget,
    /// The active layer.
    pub path: PathBuf,
    /// Size that the guest sees, in bytes.
    pub virtual_size: u64,
}

/// Bytes done and total of something long.
pub type ByteProgress = watch::Sender<(u64, u64)>;

/// Who the hypervisor is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct About {
    /// Version of libvirt, as in `11.3.0`.
    pub libvirt: String,
    /// Version of QEMU, as in `10.0.2`.
    pub qemu: String,
    /// Name of the node.
    pub host_name: String,
}

/// See [`Hypervisor::background_capture`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BackgroundCapture {
    /// None has begun, or the process that was to do it is gone.
    None,
    /// It is under way: bytes of memory done and total.
    Active {
        /// Written.
        done: u64,
        /// To be written in all.
        total: u64,
    },
    /// The hypervisor has written all of it and the guest waits for nothing, but it is not in the image yet.
    Following {
        /// Bytes of memory.
        total: u64,
    },
    /// All of the memory is written.
    Complete,
    /// It came to nothing, in the hypervisor's words.
    Failed(String),
}

/// A VM in a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmSummary {
    /// The hypervisor's UUID.
    pub id: VmId,
    /// The hypervisor's name for it.
    pub name: String,
    /// What it does.
    pub run_state: RunState,
    /// The disks that had no space, and that it is paused for.
    pub full_disks: Vec<DiskTarget>,
}

/// A VM's definition, opaque to everybody above.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Definition(pub String);

/// See [`Hypervisor::switch_disks`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskSwitch {
    /// The disks and their overlays.
    pub disks: Vec<(DiskTarget, ImageRef)>,
    /// The other disks, to be left alone.
    pub others: Vec<DiskTarget>,
    /// Where to capture memory.
    pub memory: Option<PathBuf>,
}

/// See [`Hypervisor::start`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StartFrom {
    /// The stored definition.
    Disks,
    /// A memory image and the definition it goes with, its disks replaced by these.
    Memory {
        /// Path of the image. It is not altered.
        image: PathBuf,
        /// The definition it goes with.
        definition: Definition,
        /// The images of its disks.
        disks: Vec<(DiskTarget, ImageRef)>,
    },
}

/// See [`Hypervisor::start_commit`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Commit {
    /// The disk.
    pub disk: DiskTarget,
    /// The layer to be merged.
    pub top: PathBuf,
    /// Its parent.
    pub base: PathBuf,
    /// Whether `top` is the active layer.
    pub is_active: bool,
    /// Bytes per second; None for no limit.
    pub bandwidth: Option<u64>,
}

/// See [`Hypervisor::start_pull`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pull {
    /// The disk.
    pub disk: DiskTarget,
    /// The image that the active layer is to lie on; None for nothing.
    pub below: Option<PathBuf>,
    /// Bytes per second; None for no limit.
    pub bandwidth: Option<u64>,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostEvent {
    /// A VM was defined, undefined, started, stopped, paused or resumed, or lost a device while it ran.
    VmChanged(VmId),
    /// A VM's process has ended, because it goes on on another node. Told beside the change. Its definition may stay, or
    /// follow.
    VmMigrated(VmId),
    /// A block job became ready or ended.
    BlockJobChanged(VmId),
    /// The guest agent connected or went away.
    AgentChanged(VmId),
    /// A background capture of a VM's memory has begun or ended, or a migration of it.
    CaptureMoved(VmId),
    /// An image that a VM writes to has reached the length that was to be told of.
    ThresholdCrossed(VmId),
}

/// Whether the hypervisor can be reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Link {
    /// It can.
    Up,
    /// It cannot, and why.
    Down(String),
}
