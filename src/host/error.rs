//! What can go wrong outside. Decides whether trying again makes sense; never what is to be done about it.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::model::{DiskTarget, Reason, VmId};

/// What went wrong outside.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The hypervisor cannot be reached.
    #[error("the hypervisor cannot be reached")]
    Unreachable(#[source] Option<Cause>),
    /// No answer in time. The call may still take effect.
    #[error("{call} gave no answer within {} s", .after.as_secs_f32())]
    TimedOut {
        /// What was called.
        call: &'static str,
        /// How long we waited.
        after: Duration,
    },
    /// The hypervisor said no.
    #[error("the hypervisor refused to {call}")]
    Refused {
        /// What was asked, as in "start the VM".
        call: &'static str,
        /// Its words.
        #[source]
        cause: Cause,
    },
    /// Another call holds the VM.
    #[error("another call holds the VM")]
    Busy(#[source] Cause),
    /// There is no such VM.
    #[error("there is no VM {0}")]
    NoSuchVm(VmId),
    /// The VM went to another node, and may write to its disks from there.
    #[error(
        "the VM has migrated to another node: let it migrate back, or start it here once it is off there; then let the operation \
         try again"
    )]
    Migrated,
    /// The VM has no such disk.
    #[error("the VM has no disk {0}")]
    NoSuchDisk(DiskTarget),
    /// A block job is not ready to pivot.
    #[error("the block job on disk {0} is not ready to pivot")]
    NotReady(DiskTarget),
    /// The guest agent does not answer.
    #[error("the guest agent does not answer")]
    AgentUnavailable(#[source] Option<Cause>),
    /// The guest agent said no.
    #[error("the guest agent refused")]
    AgentRefused(#[source] Cause),
    /// There is no such image.
    #[error("there is no image {}", .0.display())]
    NoSuchImage(PathBuf),
    /// The image is not what it should be.
    #[error("the image {} cannot be used: {problem}", .path.display())]
    BadImage {
        /// Path.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// Another process has the image open.
    #[error("the image {} is in use by another process", .0.display())]
    ImageInUse(PathBuf),
    /// Somebody needs the file, or may need it.
    #[error("the file {} is kept: {why}", .path.display())]
    Needed {
        /// Path.
        path: PathBuf,
        /// Who, in words.
        why: String,
    },
    /// The file system is full.
    #[error("no space is left for {}", .0.display())]
    NoSpace(PathBuf),
    /// The file system said no.
    #[error("cannot {action} {}", .path.display())]
    Io {
        /// As in "read".
        action: &'static str,
        /// Path.
        path: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// An external program failed.
    #[error("{program} failed: {output}")]
    Program {
        /// Its name.
        program: &'static str,
        /// The end of what it printed.
        output: String,
    },
    /// libvirt died before it could note what QEMU had done, or it is just about to note it.
    #[error("libvirt and QEMU do not agree on the disks of the VM")]
    Disagreement(#[source] Cause),
    /// An answer that cannot be understood.
    #[error("{what} cannot be understood")]
    Malformed {
        /// Whose answer.
        what: &'static str,
        /// Why.
        #[source]
        cause: Cause,
    },
}

/// The words of whoever said no.
pub type Cause = Box<dyn std::error::Error + Send + Sync + 'static>;

impl HostError {
    /// Whether the same call may succeed later without anything being mended.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Unreachable(_)
            | Self::TimedOut { .. }
            | Self::Busy(_)
            | Self::NotReady(_)
            | Self::AgentUnavailable(_)
            | Self::ImageInUse(_) => true,
            Self::Refused { .. }
            | Self::NoSuchVm(_)
            | Self::Migrated
            | Self::NoSuchDisk(_)
            | Self::AgentRefused(_)
            | Self::NoSuchImage(_)
            | Self::BadImage { .. }
            | Self::Needed { .. }
            | Self::NoSpace(_)
            | Self::Io { .. }
            | Self::Program { .. }
            | Self::Disagreement(_)
            | Self::Malformed { .. } => false,
        }
    }

    /// The stable reason that a client is told.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            Self::Unreachable(_) => Reason::HypervisorUnavailable,
            Self::TimedOut { .. } => Reason::TimedOut,
            Self::Refused { .. } | Self::NotReady(_) => Reason::HypervisorRefused,
            Self::Busy(_) => Reason::VmBusy,
            Self::NoSuchVm(_) => Reason::VmNotFound,
            Self::Migrated => Reason::VmUnsettled,
            Self::NoSuchDisk(_) => Reason::DiskNotFound,
            Self::AgentUnavailable(_) => Reason::AgentUnavailable,
            Self::AgentRefused(_) => Reason::QuiesceFailed,
            Self::NoSuchImage(_) => Reason::ImageMissing,
            Self::BadImage { .. } => Reason::ImageChanged,
            Self::ImageInUse(_) | Self::Needed { .. } => Reason::LayerInUse,
            Self::NoSpace(_) => Reason::InsufficientSpace,
            Self::Disagreement(_) => Reason::VmDisputed,
            Self::Io { .. } | Self::Program { .. } | Self::Malformed { .. } => Reason::Internal,
        }
    }
}
