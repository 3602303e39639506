//! Why a request is not carried out. Decides the words: what is in the way, and what to do about it.
//! A refusal always means that nothing was changed.

use std::path::PathBuf;

use uuid::Uuid;

use crate::model::edit::IN_ERROR;
use crate::model::step::ImageRef;
use crate::model::vm::{ExcludedDisk, RefusedDisk};
use crate::model::{
    DifferenceAction, DiskTarget, EditRefusal, Reason, SnapshotName, SnapshotState, VmName, VolumeName,
};

/// Why a request is not carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the message of each variant is its documentation")]
pub enum Refusal {
    #[error("the VM is not on this node any more")]
    VmGone,
    #[error("the VM has migrated to another node, and its disks may be written to there")]
    VmElsewhere,
    #[error("the snapshot is {0}, not LOST, or its VM is here")]
    NotLost(SnapshotState),
    #[error("the VM is between two states, or in one that only its owner may end")]
    VmUnsettled,
    #[error("the VM has a saved memory image that its next start would resume on changed disks")]
    ManagedSave,
    #[error("the VM is transient: it would cease to exist when stopped")]
    VmTransient,
    #[error("the VM has no disk {0}")]
    NoSuchDisk(DiskTarget),
    #[error("disk {disk} is {why}: there is nothing to snapshot")]
    DiskExcluded { disk: DiskTarget, why: ExcludedDisk },
    #[error("disk {disk} is {why}")]
    DiskRefused { disk: DiskTarget, why: RefusedDisk },
    #[error("the VM has no disk that can be snapshotted")]
    NoDisks,
    #[error("disk {0} is a block device, and no directory for overlays over block devices is configured")]
    NoOverlayDirectory(DiskTarget),
    #[error("a block job is running on disk {0}")]
    BlockJob(DiskTarget),
    #[error("disk {disk} writes to {}, but the stored definition names {}", .live.display(), .stored.display())]
    DefinitionsDiffer { disk: DiskTarget, live: PathBuf, stored: PathBuf },
    #[error("disk {disk} writes to {}, which is not ours, over {}, which is", .active.display(), .known.display())]
    UnknownOverlay { disk: DiskTarget, active: PathBuf, known: PathBuf },
    #[error("disk {disk} reads through {actual}; the catalog says {expected}")]
    ChainDiffers { disk: DiskTarget, expected: String, actual: String },
    #[error(
        "somebody has merged layers of disk {0}, or lets the VM write to one: the snapshot reads a mixture"
    )]
    LayerMerged(DiskTarget),
    #[error("the VM no longer has disk {0} of the snapshot")]
    DiskGone(DiskTarget),
    #[error("the snapshot holds several disks ({}): one must be named", targets(.0))]
    WhichDisk(Vec<DiskTarget>),
    #[error("snapshot {snapshot} does not hold disk {disk}")]
    NotInSnapshot { disk: DiskTarget, snapshot: SnapshotName },
    #[error("snapshot {0} does not hold the volume")]
    VolumeNotInSnapshot(SnapshotName),
    #[error("the snapshot is of a volume, not of the VM")]
    IsOfVolume,
    #[error("VM {0} is using the volume")]
    VolumeInUse(String),
    #[error("volume {0} is not complete yet")]
    VolumeNotReady(VolumeName),
    #[error("volume {0} stands alone already")]
    NotLinked(VolumeName),
    #[error("{} may not be made; {} may hold clones", .path.display(), show_places(.allowed))]
    PlaceNotAllowed { path: PathBuf, allowed: Vec<String> },
    #[error("{} does not lie in a directory of images ({})", .path.display(), show_all(.allowed))]
    OutsideOfPlaces { path: PathBuf, allowed: Vec<String> },
    #[error("the VM cannot be let to copy into the volume while it runs: {0}")]
    PullBlocked(String),
    #[error("volume {0} has snapshots of its own")]
    VolumeHasSnapshots(VolumeName),
    #[error("there is a file {} already", .0.display())]
    FileExists(PathBuf),
    #[error("there is a VM {0} already")]
    VmNameTaken(VmName),
    #[error("the snapshot is of a volume: there is no VM in it")]
    NoVmInSnapshot,
    #[error("the volume was changed since: its disk writes to another image now")]
    VolumeChanged,
    #[error("there is no image {}", .0.display())]
    ImageMissing(PathBuf),
    #[error("the image {} is not what it was: {problem}", .path.display())]
    ImageChanged { path: PathBuf, problem: String },
    #[error("{} has {free} bytes free, {needed} are needed{}", .directory.display(), show_reserve(*.reserve))]
    NoSpace { directory: PathBuf, needed: u64, reserve: u64, free: u64 },
    #[error(
        "a merge needs {needed} bytes in {}{}, which has {free} bytes free",
        .directory.display(),
        show_reserve(*.reserve)
    )]
    NoSpaceToMerge { directory: PathBuf, needed: u64, reserve: u64, free: u64 },
    /// Whether a merge fits can only be said once these runs of layers are measured. Whoever asked measures them, puts the
    /// answers into the world and asks again: no client is told this.
    #[error("it has to be measured how much room a merge needs")]
    NotMeasured(Vec<Vec<ImageRef>>),
    #[error("the VM is not paused for lack of space: it {0}")]
    NotOutOfSpace(&'static str),
    #[error("the VM is off: it has no memory to capture")]
    NoMemoryWhenOff,
    #[error("memory cannot be captured: {0}")]
    MemoryBlocked(String),
    #[error("memory cannot be captured while the VM runs, so its pause has no bound: {0}")]
    PauseUnbounded(String),
    #[error("a snapshot with memory holds all disks; it cannot be taken of some")]
    MemoryNeedsAllDisks,
    #[error("a snapshot with memory is consistent by itself; the guest cannot be frozen for it")]
    MemoryNeedsNoQuiesce,
    #[error("the VM is paused: its file systems cannot be frozen")]
    QuiesceWhilePaused,
    #[error("the guest agent is not connected")]
    AgentDisconnected,
    #[error("the VM has no guest agent channel")]
    AgentAbsent,
    #[error("the VM has a snapshot {0} already")]
    NameTaken(SnapshotName),
    #[error("the snapshot is {0}")]
    SnapshotNotReady(SnapshotState),
    #[error(transparent)]
    Held(EditRefusal),
    #[error("there is no difference {0} any more")]
    NoSuchDifference(Uuid),
    #[error("the difference cannot be settled that way; {}", ways(.offered))]
    ActionNotOffered { offered: Vec<DifferenceAction> },
    #[error("nothing can be merged or removed now")]
    NothingToCollapse,
    #[error("{} is missing, or not as it was left: nothing is merged that it lies on", .0.display())]
    HeldUp(PathBuf),
    #[error("the snapshot was changed since: it is at etag {actual}")]
    EtagMismatch { actual: u64 },
}

fn show_places(allowed: &[String]) -> String {
    if allowed.is_empty() { "no directory".to_owned() } else { format!("only {}", allowed.join(", ")) }
}

fn show_reserve(reserve: u64) -> String {
    if reserve == 0 { String::new() } else { format!(" (with {reserve} that stay free)") }
}

fn show_all(allowed: &[String]) -> String {
    if allowed.is_empty() { "there is none".to_owned() } else { allowed.join(", ") }
}

fn ways(offered: &[DifferenceAction]) -> String {
    let word = |way: &DifferenceAction| match way {
        DifferenceAction::Adopt => "adopt",
        DifferenceAction::Restore => "restore",
        DifferenceAction::MarkLost => "mark-lost",
        DifferenceAction::RemoveFile => "remove-file",
    };
    let words: Vec<&str> = offered.iter().map(word).collect();
    if words.is_empty() {
        "nothing but what it says".to_owned()
    } else {
        format!("only by {}", words.join(", "))
    }
}

fn targets(disks: &[DiskTarget]) -> String {
    disks.iter().map(DiskTarget::as_str).collect::<Vec<_>>().join(", ")
}

impl Refusal {
    /// The stable reason.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            Self::VmGone => Reason::VmNotFound,
            Self::VmUnsettled | Self::VmElsewhere => Reason::VmUnsettled,
            Self::VmTransient => Reason::VmTransient,
            Self::ManagedSave => Reason::ManagedSavePresent,
            Self::NoSuchDisk(_) | Self::NotInSnapshot { .. } | Self::VolumeNotInSnapshot(_) => {
                Reason::DiskNotFound
            }
            Self::VolumeInUse(_) | Self::VolumeNotReady(_) | Self::VolumeHasSnapshots(_) => {
                Reason::VolumeInUse
            }
            Self::PlaceNotAllowed { .. } | Self::OutsideOfPlaces { .. } => Reason::PathNotAllowed,
            Self::FileExists(_) => Reason::FileExists,
            Self::VmNameTaken(_) => Reason::VmExists,
            Self::DiskExcluded { .. } | Self::DiskRefused { .. } | Self::NoOverlayDirectory(_) => {
                Reason::DiskNotSupported
            }
            Self::NoDisks => Reason::NoDisks,
            Self::BlockJob(_) => Reason::BlockJobActive,
            Self::PullBlocked(_) => Reason::HostLacksFeature,
            Self::DefinitionsDiffer { .. }
            | Self::UnknownOverlay { .. }
            | Self::ChainDiffers { .. }
            | Self::DiskGone(_) => Reason::VmChanged,
            Self::ImageMissing(_) => Reason::ImageMissing,
            Self::ImageChanged { .. } | Self::LayerMerged(_) | Self::HeldUp(_) => Reason::ImageChanged,
            Self::NoSpace { .. } | Self::NoSpaceToMerge { .. } | Self::NotMeasured(_) => {
                Reason::InsufficientSpace
            }
            Self::NotOutOfSpace(_) => Reason::VmNotOutOfSpace,
            Self::NoMemoryWhenOff | Self::MemoryBlocked(_) | Self::PauseUnbounded(_) => {
                Reason::MemoryNotSupported
            }
            Self::MemoryNeedsAllDisks
            | Self::MemoryNeedsNoQuiesce
            | Self::WhichDisk(_)
            | Self::NotLinked(_)
            | Self::NoVmInSnapshot
            | Self::IsOfVolume => Reason::InvalidArgument,
            Self::QuiesceWhilePaused => Reason::QuiesceFailed,
            Self::AgentDisconnected | Self::AgentAbsent => Reason::AgentUnavailable,
            Self::NameTaken(_) => Reason::SnapshotExists,
            Self::SnapshotNotReady(_) | Self::NotLost(_) => Reason::SnapshotNotReady,
            Self::EtagMismatch { .. } | Self::VolumeChanged => Reason::EtagMismatch,
            Self::Held(held) => held.reason(),
            Self::NoSuchDifference(_) => Reason::DifferenceNotFound,
            Self::ActionNotOffered { .. } => Reason::ResolutionNotOffered,
            Self::NothingToCollapse => Reason::Internal,
        }
    }

    /// What the caller can do about it.
    #[must_use]
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::VmGone => {
                "bring the VM back; or get at its disks with 'vmsnap volume clone' or 'vmsnap vm deploy', and remove the \
                 snapshot with 'vmsnap snapshot purge'"
            }
            Self::SnapshotNotReady(SnapshotState::Lost) => {
                "'vmsnap snapshot show' and 'vmsnap vm check' tell what is missing: bring it back, or delete the snapshot"
            }
            Self::VmElsewhere => "let it migrate back, or start it here once it is off there",
            Self::NotLost(_) => "'vmsnap snapshot delete' deletes it",
            Self::VmUnsettled => "wait until the VM runs, is paused or is off, and try again",
            Self::ManagedSave => "start the VM, or remove its saved image with 'virsh managedsave-remove'",
            Self::VmTransient => "define the VM persistently",
            Self::NoSuchDisk(_) => "list the VM's disks with 'vmsnap vm show'",
            Self::DiskExcluded { .. } => "leave the disk out",
            Self::DiskRefused { .. } => "name the disks to take with --disk, without this one",
            Self::NoDisks => "there is nothing to do for this VM",
            Self::NoOverlayDirectory(_) => "set overlay_directory in the configuration of vmsnapd",
            Self::BlockJob(_) => "wait until the job has ended, or end it with 'virsh blockjob'",
            Self::DefinitionsDiffer { .. }
            | Self::UnknownOverlay { .. }
            | Self::ChainDiffers { .. }
            | Self::LayerMerged(_) => {
                "somebody changed the VM without vmsnap: 'vmsnap vm check' tells what can be done"
            }
            Self::DiskGone(_) => {
                "attach the disk again; or, from a snapshot with memory, revert with --then off"
            }
            Self::ImageMissing(_) | Self::ImageChanged { .. } => {
                "bring the file back as it was; 'vmsnap vm check' tells what else can be done"
            }
            Self::NoSpace { .. } => "make room, or let the directory be another one",
            Self::NoSpaceToMerge { .. } | Self::NotMeasured(_) => {
                "make room there: a snapshot that nothing lies on goes without a merge, and so does all with --with-children"
            }
            Self::NotOutOfSpace(_) => "'vmsnap vm show' tells why it is paused; whoever paused it resumes it",
            Self::NoMemoryWhenOff => "leave out --memory, or start the VM",
            Self::MemoryBlocked(_) => "leave out --memory",
            Self::PauseUnbounded(_) => {
                "leave out --max-pause: the VM stands still then until its memory is written"
            }
            Self::MemoryNeedsAllDisks => "leave out --disk or --memory",
            Self::MemoryNeedsNoQuiesce => "leave out --quiesce or --memory",
            Self::QuiesceWhilePaused => "resume the VM, or use --quiesce auto or off",
            Self::AgentDisconnected => "start qemu-guest-agent in the guest, or use --quiesce auto or off",
            Self::AgentAbsent => "add a guest agent channel to the VM, or use --quiesce auto or off",
            Self::NameTaken(_) | Self::FileExists(_) | Self::VmNameTaken(_) => "choose another name",
            Self::SnapshotNotReady(SnapshotState::Error) => IN_ERROR,
            Self::SnapshotNotReady(_) | Self::VolumeNotReady(_) => {
                "wait for its operation; 'vmsnap op list' shows it"
            }
            Self::EtagMismatch { .. } => "look at the snapshot again",
            Self::VolumeChanged => "look at the volume again",
            Self::WhichDisk(_) => "name one with --disk",
            Self::NotInSnapshot { .. } | Self::VolumeNotInSnapshot(_) => {
                "'vmsnap snapshot show' lists its disks"
            }
            Self::PullBlocked(_) => {
                "shut the VM down, or let it run on a QEMU of 10.2 or later; live_pulls in the configuration of vmsnapd \
                 takes the risk"
            }
            Self::VolumeHasSnapshots(_) => "delete them first; 'vmsnap snapshot list' shows them",
            Self::OutsideOfPlaces { .. } => {
                "move it there, or set image_directories in the configuration of vmsnapd"
            }
            Self::PlaceNotAllowed { .. } => {
                "choose another place, or set image_directories in the configuration of vmsnapd"
            }
            Self::NoVmInSnapshot => "use 'vmsnap volume clone'",
            Self::IsOfVolume => "use 'vmsnap volume revert'",
            Self::VolumeInUse(_) => "shut the VM down first, or let it be stopped with --stop",
            Self::Held(held) => held.remedy(),
            Self::NoSuchDifference(_) => "'vmsnap vm check' and 'vmsnap node check' tell what differs now",
            Self::ActionNotOffered { .. } => {
                "'vmsnap vm check' says what a person can do, and which ways it offers"
            }
            Self::HeldUp(_) => "'vmsnap vm check' tells what differs; or delete the snapshots that read it",
            Self::NotLinked(_) | Self::NothingToCollapse => "nothing has to be done",
        }
    }
}
