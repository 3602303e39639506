//! Why an engine call fails. Decides the stable reason of each; `api` turns reasons into codes.

use std::path::PathBuf;

use crate::host::HostError;
use crate::model::{InvalidName, OperationId, Reason};
use crate::plan::Refusal;
use crate::store::StoreError;

/// Why an engine call fails. Nothing was changed, unless the message says so.
#[derive(Debug, thiserror::Error)]
pub enum OpsError {
    /// The plan said no.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The outside world said no.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The catalog said no.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// No VM answers to the name or id.
    #[error("there is no VM {0:?} on this node")]
    NoSuchVm(String),
    /// No snapshot answers to the name or id.
    #[error("there is no snapshot {0:?}")]
    NoSuchSnapshot(String),
    /// No volume answers to the name or id.
    #[error("there is no volume {0:?}")]
    NoSuchVolume(String),
    /// An image that others read must stay as it is.
    #[error("{} is no volume of its own: {reader} reads it", .path.display())]
    NotAVolume {
        /// The image.
        path: PathBuf,
        /// A VM, or another image.
        reader: String,
    },
    /// It was not made out of a snapshot.
    #[error("volume {0:?} is not a clone of ours")]
    NotAClone(String),
    /// It may be using what the request is about, and nobody can tell.
    #[error("VM {vm} cannot be looked at, and may be using the volume")]
    VmUnreadable {
        /// Its name.
        vm: String,
        /// Why.
        #[source]
        cause: HostError,
    },
    /// Several do.
    #[error("several volumes are called {name:?}: {}", .candidates.join(", "))]
    AmbiguousVolume {
        /// The name.
        name: String,
        /// The ids, each with its image.
        candidates: Vec<String>,
    },
    /// Several do.
    #[error("several snapshots are called {name:?}: {}", .candidates.join(", "))]
    AmbiguousSnapshot {
        /// The name.
        name: String,
        /// The ids, each with its VM.
        candidates: Vec<String>,
    },
    /// One operation is about one VM.
    #[error("the snapshots are of several VMs")]
    SeveralVms,
    /// There is no such operation.
    #[error("there is no operation {0:?}")]
    NoSuchOperation(String),
    /// Another operation holds the VM.
    #[error("operation {0} holds the VM")]
    VmBusy(OperationId),
    /// An operation holds the VM and cannot go on without a person.
    #[error("operation {0} is stuck and holds the VM")]
    VmStuck(OperationId),
    /// There is no such comment.
    #[error("there is no comment {0:?}")]
    NoSuchComment(String),
    /// No schedule answers to the name or id.
    #[error("there is no schedule {0:?}")]
    NoSuchSchedule(String),
    /// Each of its times lies in a blackout.
    #[error("the schedule would never run: each of its times lies in a blackout")]
    NeverRuns,
    /// What a template makes is no name of a snapshot.
    #[error("{name:?} is no name of a snapshot")]
    NoName {
        /// What it makes.
        name: String,
        /// Why it is none.
        #[source]
        cause: InvalidName,
    },
    /// It is past the point of no return, or has ended.
    #[error("the operation is past its point of no return, or has ended")]
    NotCancellable,
    /// It is not stuck.
    #[error("the operation is not stuck")]
    NotStuck,
    /// It is not on its way to copy anything.
    #[error("the operation copies nothing whose rate could be changed now")]
    NothingToLimit,
    /// This way out is not open.
    #[error("the operation cannot be resolved that way")]
    ResolutionNotOffered,
    /// The daemon is going down.
    #[error("the daemon is shutting down")]
    Draining,
}

impl OpsError {
    /// The stable reason.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            Self::Refused(refusal) => refusal.reason(),
            Self::Host(error) => error.reason(),
            Self::Store(error) => error.reason(),
            Self::NoSuchVm(_) => Reason::VmNotFound,
            Self::NoSuchSnapshot(_) => Reason::SnapshotNotFound,
            Self::VmUnreadable { cause, .. } => cause.reason(),
            Self::NoSuchVolume(_) => Reason::VolumeNotFound,
            Self::NotAVolume { .. } => Reason::LayerInUse,
            Self::AmbiguousSnapshot { .. } | Self::AmbiguousVolume { .. } => Reason::NameAmbiguous,
            Self::NotAClone(_) | Self::SeveralVms | Self::NoName { .. } | Self::NeverRuns => {
                Reason::InvalidArgument
            }
            Self::NoSuchOperation(_) => Reason::OperationNotFound,
            Self::VmBusy(_) => Reason::VmBusy,
            Self::VmStuck(_) => Reason::OperationStuck,
            Self::NoSuchComment(_) => Reason::CommentNotFound,
            Self::NoSuchSchedule(_) => Reason::ScheduleNotFound,
            Self::NotCancellable => Reason::NotCancellable,
            Self::NotStuck => Reason::NotStuck,
            Self::NothingToLimit => Reason::NothingToLimit,
            Self::ResolutionNotOffered => Reason::ResolutionNotOffered,
            Self::Draining => Reason::Draining,
        }
    }

    /// What the caller can do about it.
    #[must_use]
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::Refused(refusal) => refusal.remedy(),
            Self::Host(HostError::Unreachable(_)) => "start libvirtd; vmsnapd connects to it by itself",
            Self::Host(HostError::NoSuchImage(_)) => {
                "bring the image back; 'vmsnap vm check' tells what needs it"
            }
            Self::Host(_) => "see the log of vmsnapd",
            Self::Store(StoreError::ScheduleChanged { .. }) => "look at the schedule again",
            Self::Store(StoreError::ScheduleRunning(_)) => {
                "wait for its end: 'vmsnap schedule runs' shows it"
            }
            Self::NoSuchSchedule(_) | Self::Store(StoreError::ScheduleGone(_)) => {
                "list the schedules with 'vmsnap schedule list'"
            }
            Self::Store(
                StoreError::NameTaken | StoreError::VolumeNameTaken(_) | StoreError::ScheduleNameTaken { .. },
            ) => "choose another name",
            Self::Store(StoreError::KeyReused(_)) => "use a new request id for a new request",
            Self::Store(StoreError::Edit(refusal)) => refusal.remedy(),
            Self::Store(StoreError::Backup { .. }) => {
                "make room in the directory 'backup' under the state directory, or mend it"
            }
            Self::Store(_) => "see the log of vmsnapd; check the state directory for space and damage",
            Self::NoSuchVm(_) => "list the VMs with 'vmsnap vm list'",
            Self::NoSuchSnapshot(_) => "list the snapshots with 'vmsnap snapshot list'",
            Self::NotAClone(_) => "'vmsnap volume list' shows which are",
            Self::VmUnreadable { .. } => "bring its images back, or undefine it",
            Self::NotAVolume { .. } => "take what reads it instead; 'vmsnap volume list' shows the volumes",
            Self::NoSuchVolume(_) => "list the volumes with 'vmsnap volume list'",
            Self::AmbiguousSnapshot { .. } => "use an id, or VM/NAME",
            Self::AmbiguousVolume { .. } => "use an id, or the path of its image",
            Self::SeveralVms => "delete the snapshots of each VM on their own",
            Self::NoSuchOperation(_) => "list the operations with 'vmsnap op list'",
            Self::VmBusy(_) => "wait for it with 'vmsnap op watch'",
            Self::VmStuck(_) => "look at it with 'vmsnap op show', then 'vmsnap op resolve'",
            Self::NoSuchComment(_) => "list the comments with 'vmsnap snapshot comment'",
            Self::NeverRuns => "give it other times, or shorter blackouts",
            Self::NoName { .. } => "give the schedule another template of names",
            Self::NotCancellable => "wait for its end with 'vmsnap op watch'",
            Self::NotStuck => "there is nothing to resolve",
            Self::NothingToLimit => {
                "'vmsnap op show' tells what it does; a copy that qemu-img has begun keeps its limit to its end"
            }
            Self::ResolutionNotOffered => "use one of the ways that 'vmsnap op show' offers",
            Self::Draining => "try again when vmsnapd is back",
        }
    }
}
