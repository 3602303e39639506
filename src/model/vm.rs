//! A VM as it was seen at one moment. Decides nothing; `host` fills it in, `plan` reads it.
//!
//! Must never know how it was seen: no XML, no monitor, no file handle.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::ids::{DiskTarget, VmId, VolumeId};
use super::step::ImageRef;

/// Everything that a plan needs to know of a VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmView {
    /// The hypervisor's UUID.
    pub id: VmId,
    /// Whether there is such a VM.
    pub attachment: Attachment,
    /// The hypervisor's name for it; names change, ids do not.
    pub name: String,
    /// What it was doing.
    pub run_state: RunState,
    /// The disks that had no space, and that it is paused for.
    pub full_disks: Vec<DiskTarget>,
    /// Whether a definition remains when it stops.
    pub persistent: bool,
    /// Whether the hypervisor keeps a saved memory image that the next start would resume. Its disks must not change.
    pub has_managed_save: bool,
    /// Whether the guest agent's channel is open.
    pub agent: AgentChannel,
    /// Guest memory, in bytes.
    pub memory_bytes: u64,
    /// What stands in the way of capturing memory, in words, if anything does.
    pub memory_blocker: Option<String>,
    /// What makes it dangerous to let its process pull layers up, in words, if anything does.
    pub pull_blocker: Option<String>,
    /// The file with the variables of its UEFI firmware, if it has one.
    pub variables: Option<ImageRef>,
    /// What else it keeps, in no disk of its.
    pub uncovered: Vec<Uncovered>,
    /// Snapshots that the hypervisor itself keeps of it, with the images that were made for them. None of them is ours.
    pub snapshots_elsewhere: Vec<(String, Vec<PathBuf>)>,
    /// Files that its definitions, the one of its process and the stored one, name for what is no chain in `disks`: for
    /// disks that are left out or refused, and for such as only the stored one has. Each may lie on others.
    pub other_files: Vec<PathBuf>,
    /// Disks of which no definition names the file: volumes of a pool. It may be any.
    pub unnamed_disks: Vec<DiskTarget>,
    /// Its disks, in the order of the definition.
    pub disks: Vec<DiskView>,
}

impl VmView {
    /// A volume that no VM has, and that lies in `images`, its own first.
    #[must_use]
    pub fn of_detached(volume: VolumeId, name: String, images: Vec<ChainImage>) -> Self {
        let persistent = images.first().map(|image| image.path.clone());
        Self {
            id: VmId::of_detached(volume),
            attachment: Attachment::Detached,
            name,
            run_state: RunState::Off,
            full_disks: Vec::new(),
            persistent: true,
            has_managed_save: false,
            agent: AgentChannel::Absent,
            memory_bytes: 0,
            memory_blocker: None,
            pull_blocker: None,
            variables: None,
            uncovered: Vec::new(),
            snapshots_elsewhere: Vec::new(),
            other_files: Vec::new(),
            unnamed_disks: Vec::new(),
            disks: vec![DiskView {
                target: DiskTarget::of_detached(),
                source: DiskSource::Chain { images, persistent, persistent_below: Vec::new() },
                block_job: None,
            }],
        }
    }

    /// A VM that is not on this node any more: nothing can be seen of it.
    #[must_use]
    pub fn of_gone(id: VmId, name: String) -> Self {
        let nothing = Self::of_detached(VolumeId(id.0), name, Vec::new());
        Self { attachment: Attachment::Gone, persistent: false, disks: Vec::new(), ..nothing }
    }

    /// All files that it reads or that a definition of it names, as far as that is known: what these lie on is not all
    /// among them.
    pub fn files(&self) -> impl Iterator<Item = &PathBuf> {
        let stored = self.disks.iter().flat_map(DiskView::defined_with);
        let read = self.disks.iter().flat_map(DiskView::chain).map(|image| &image.path);
        let kept = self.snapshots_elsewhere.iter().flat_map(|(_, images)| images);
        let variables = self.variables.iter().map(|file| &file.path);
        read.chain(stored).chain(&self.other_files).chain(kept).chain(variables)
    }

    /// The disk at `target`, if the VM has one.
    #[must_use]
    pub fn disk(&self, target: &DiskTarget) -> Option<&DiskView> {
        self.disks.iter().find(|disk| disk.target == *target)
    }
}

/// Whether disks are a VM's.
///
/// A volume that no VM has is looked at as the only disk of a VM that is always off. Nothing names its image but the
/// image's path, so that path is what stays: an older state of it moves to another name, never the newest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Attachment {
    /// They are.
    #[default]
    Attached,
    /// It is one volume that no VM has.
    Detached,
    /// They are those of a VM that is not on this node any more.
    Gone,
}

impl Attachment {
    /// The VM, where `vm` may only stand for one.
    #[must_use]
    pub fn vm(self, vm: VmId) -> Option<VmId> {
        match self {
            Self::Attached | Self::Gone => Some(vm),
            Self::Detached => None,
        }
    }
}

/// State that a VM keeps where we cannot copy it. Captured memory has it, a snapshot of disks alone has not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Uncovered {
    /// The variables of its UEFI firmware, in words where.
    UefiVariables(String),
    /// What its TPM keeps: the model.
    Tpm(String),
}

impl fmt::Display for Uncovered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UefiVariables(place) => write!(f, "the UEFI variables ({place})"),
            Self::Tpm(model) => write!(f, "the state of its TPM ({model})"),
        }
    }
}

/// What a VM does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunState {
    /// Its processors run.
    Running,
    /// A process exists, its processors stand still.
    Paused(PauseReason),
    /// There is no process.
    Off,
    /// There is no process here: it went to another node, and may write to the disks from there.
    Migrated,
    /// On its way somewhere, or in a state that nobody here may touch (crashed, suspended by the guest).
    Unsettled,
}

impl RunState {
    /// Whether a QEMU process exists here.
    #[must_use]
    pub fn is_live(self) -> bool {
        !matches!(self, Self::Off | Self::Migrated)
    }
}

/// Why a VM is paused. Decides who may resume it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PauseReason {
    /// Somebody asked for it.
    User,
    /// A disk had an error; on a full disk the guest goes on when there is room and somebody resumes it.
    IoError,
    /// The hypervisor paused it for a snapshot, a save or a migration, or could not resume it afterwards.
    Snapshot,
    /// Any other.
    Other,
}

/// One process of a VM: no other one has the same, not even a later one of the same VM. What is in it means nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId(pub String);

/// Whether the guest agent can be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AgentChannel {
    /// The agent has opened its channel.
    Connected,
    /// The VM has a channel and nobody inside has opened it.
    Disconnected,
    /// The VM has no channel.
    Absent,
}

/// One disk of a VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskView {
    /// Its name inside the VM.
    pub target: DiskTarget,
    /// What it is backed by.
    pub source: DiskSource,
    /// The block job running on it, if any.
    pub block_job: Option<BlockJob>,
}

impl DiskView {
    /// The images that the VM reads through, active first; empty for a disk that we do not handle.
    #[must_use]
    pub fn chain(&self) -> &[ChainImage] {
        match &self.source {
            DiskSource::Chain { images, .. } => images,
            DiskSource::Excluded(_) | DiskSource::Refused(_) => &[],
        }
    }

    /// The image that the VM writes to.
    #[must_use]
    pub fn active(&self) -> Option<&ChainImage> {
        self.chain().first()
    }

    /// The images that the stored definition names, at whatever place; none for a disk that we do not handle.
    pub fn defined_with(&self) -> impl Iterator<Item = &PathBuf> {
        let (active, below) = match &self.source {
            DiskSource::Chain { persistent, persistent_below, .. } => {
                (persistent.as_ref(), persistent_below.as_slice())
            }
            DiskSource::Excluded(_) | DiskSource::Refused(_) => (None, [].as_slice()),
        };
        active.into_iter().chain(below)
    }

    /// Whether the VM reads or writes this image now.
    #[must_use]
    pub fn uses(&self, path: &Path) -> bool {
        self.chain().iter().any(|image| image.path == path)
    }
}

/// What a disk is backed by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DiskSource {
    /// A chain of images.
    Chain {
        /// As the VM reads it now, active first. Of a VM that is off: as its definition and the image headers say.
        images: Vec<ChainImage>,
        /// The image that the stored definition names: what the next cold start boots. None for a VM without one.
        persistent: Option<PathBuf>,
        /// The images that the stored definition lists below that one. It may list fewer than there are, or none.
        persistent_below: Vec<PathBuf>,
    },
    /// Nothing that changes: a CD-ROM, a floppy, a read-only or an empty disk. A snapshot leaves it out.
    Excluded(ExcludedDisk),
    /// A writable disk of a kind that we do not snapshot. A snapshot of all disks is refused because of it.
    Refused(RefusedDisk),
}

/// Why a disk has nothing to snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ExcludedDisk {
    /// Optical drive.
    #[error("a CD-ROM drive")]
    Cdrom,
    /// Floppy drive.
    #[error("a floppy drive")]
    Floppy,
    /// The guest cannot write to it.
    #[error("a read-only disk")]
    ReadOnly,
    /// There is no medium.
    #[error("an empty drive")]
    Empty,
}

/// Why a disk is refused. The text follows "the disk is ".
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RefusedDisk {
    /// On the network: rbd, nbd, iscsi, ...
    #[error("a network disk ({0})")]
    Network(String),
    /// Written by several VMs at once.
    #[error("shared between VMs")]
    Shared,
    /// A SCSI LUN passed through.
    #[error("a SCSI LUN that is passed through")]
    Lun,
    /// Encrypted.
    #[error("encrypted ({0})")]
    Encrypted(String),
    /// qcow2 with its data in another file.
    #[error("a qcow2 image with an external data file")]
    ExternalDataFile,
    /// Its writes vanish when the VM stops.
    #[error("transient: its writes vanish when the VM stops")]
    Transient,
    /// Another storage type or image format.
    #[error("of a kind that is not supported ({0})")]
    Kind(String),
    /// The format is not written in the definition, and guessing it from guest-controlled bytes is unsafe.
    #[error("defined without an image format, and formats are never guessed")]
    FormatUnknown,
    /// The image carries internal snapshots, which a commit or an overlay would break.
    #[error("an image with internal snapshots")]
    InternalSnapshots,
}

/// One image of a chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChainImage {
    /// Absolute path.
    pub path: PathBuf,
    /// Its format.
    pub format: Format,
    /// Block device rather than a file.
    pub is_block_device: bool,
}

/// An image format that we handle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// QEMU's copy-on-write format.
    Qcow2,
    /// The bytes as they are.
    Raw,
}

/// How captured memory stands in its image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MemoryFormat {
    /// The bytes as QEMU writes them.
    #[default]
    Raw,
    /// Compressed with zstd.
    Zstd,
}

impl Format {
    /// As QEMU and libvirt spell it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Qcow2 => "qcow2",
            Self::Raw => "raw",
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What an image file itself says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageFacts {
    /// The format it was read as.
    pub format: Format,
    /// Size that the guest sees, in bytes.
    pub virtual_size: u64,
    /// Space taken on the host, in bytes.
    pub allocated: u64,
    /// The backing file named in its header.
    pub backing: Option<Backing>,
    /// Which file it is, whatever its name.
    pub identity: FileIdentity,
    /// How long the file is, in bytes.
    pub length: u64,
    /// Whether the name is a symbolic link.
    pub is_link: bool,
    /// In what pieces it takes space; None for a raw one.
    pub pieces: Option<Pieces>,
}

/// In what pieces a qcow2 image takes space, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pieces {
    /// A cluster: what the first write to any part of it takes.
    pub cluster: u64,
    /// The smallest part of it that may hold something by itself, and take space on the host.
    pub smallest: u64,
}

impl ImageFacts {
    /// What is remembered of a file, to tell later whether it is still the same.
    #[must_use]
    pub fn seen(&self) -> Seen {
        Seen { inode: self.identity.inode, length: self.length, is_link: self.is_link }
    }
}

/// When an image was written to last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LastWritten {
    /// Nothing was ever written to it.
    Never,
    /// By the clock of its file system.
    At {
        /// Which file system, by its device number.
        device: u64,
        /// When.
        time: SystemTime,
    },
    /// It does not tell: a block device.
    Untold,
}

/// A file as it was when it was last left in order. Not its device: those are numbered anew with each boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// Inode number.
    pub inode: u64,
    /// How long it was, in bytes.
    pub length: u64,
    /// Whether its name was a symbolic link.
    pub is_link: bool,
}

/// The backing file as an image header names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backing {
    /// Absolute path.
    pub path: PathBuf,
    /// Format, if the header says.
    pub format: Option<Format>,
}

/// Device and inode: two names with the same identity are one file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct FileIdentity {
    /// Device number.
    pub device: u64,
    /// Inode number.
    pub inode: u64,
}

/// A block job as the hypervisor reports it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockJob {
    /// What it does.
    pub kind: BlockJobKind,
    /// Bytes dealt with. Not a proof of anything: may be zero at the start and may go back.
    pub done: u64,
    /// Bytes to deal with. Grows while the guest writes.
    pub total: u64,
    /// Whether the hypervisor says that it may pivot.
    pub ready: bool,
    /// Most bytes per second that it copies; None for no limit.
    pub bandwidth: Option<u64>,
}

/// What a block job does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockJobKind {
    /// Merges the active layer into its base; ends by a pivot.
    ActiveCommit,
    /// Merges a frozen layer into its base; ends by itself.
    Commit,
    /// Copies into the active layer what it reads from others; ends by itself.
    Pull,
    /// Anything that is not ours: a copy, a backup.
    Other,
}

impl BlockJobKind {
    /// Whether it writes to what the VM only reads.
    #[must_use]
    pub fn writes_below(self) -> bool {
        match self {
            Self::ActiveCommit | Self::Commit => true,
            Self::Pull | Self::Other => false,
        }
    }
}
