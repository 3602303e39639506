//! The one table of errors: reason -> reason of the contract, gRPC code. Exhaustive, without a catch-all. And what can be done
//! where an operation has failed; a call that is refused has more to say for itself. `docs/API.md` has the same table for people,
//! and a test that holds it against this one.

use tonic::Code;

use crate::model::Reason;
use crate::proto::v1;

/// The domain of our reasons in `google.rpc.ErrorInfo`.
pub(super) const DOMAIN: &str = "vmsnap";

/// What can be done about an operation that has failed or is stuck, whatever it was about; empty if that is not known.
pub(super) fn remedy(reason: Reason) -> &'static str {
    match reason {
        Reason::HypervisorUnavailable => "start libvirtd; vmsnapd connects to it by itself",
        Reason::VmDisputed => {
            "shut the guest down from inside, and start the VM: libvirt then looks at its disks anew"
        }
        Reason::InsufficientSpace => "make room",
        Reason::AgentUnavailable | Reason::QuiesceFailed => {
            "see to qemu-guest-agent in the guest, or use --quiesce auto or off"
        }
        Reason::ImageMissing | Reason::ImageChanged => {
            "bring the file back as it was; 'vmsnap vm check' tells what else can be done"
        }
        Reason::MergeNotConverging => {
            "delete when the guest writes less, or give it more time with --merge-deadline"
        }
        Reason::Declared => {
            "'vmsnap snapshot reset-state' lets it be READY, if all that it reads is as recorded"
        }
        Reason::Abandoned => "'vmsnap snapshot delete' it; what the VM and other snapshots read stays",
        Reason::CatalogFailed => "see the log of vmsnapd; check the state directory for space and damage",
        Reason::HypervisorRefused => {
            "see the log of vmsnapd; where permission was denied, AppArmor or SELinux confines the VM: docs/OPERATIONS.md"
        }
        Reason::TimedOut | Reason::Internal => "see the log of vmsnapd",
        _ => "",
    }
}

/// Whether an answer with this reason says when to ask again: where nothing has to be mended before (AIP-194).
#[must_use]
pub fn is_passing(reason: Reason) -> bool {
    reason == Reason::RateLimited || of(reason).1 == Code::Unavailable
}

/// As the contract spells it, and the code that a call failing for it has.
#[must_use]
pub fn of(reason: Reason) -> (v1::Reason, Code) {
    match reason {
        Reason::PermissionDenied => (v1::Reason::PermissionDenied, Code::PermissionDenied),
        Reason::Unauthenticated => (v1::Reason::Unauthenticated, Code::Unauthenticated),
        Reason::RateLimited => (v1::Reason::RateLimited, Code::ResourceExhausted),
        Reason::ConfigurationInvalid => (v1::Reason::ConfigurationInvalid, Code::FailedPrecondition),
        Reason::InvalidArgument => (v1::Reason::InvalidRequest, Code::InvalidArgument),
        Reason::RequestIdReused => (v1::Reason::RequestIdReused, Code::InvalidArgument),
        Reason::ResumeTokenInvalid => (v1::Reason::ResumeTokenInvalid, Code::InvalidArgument),
        Reason::ResumeTokenExpired => (v1::Reason::ResumeTokenExpired, Code::OutOfRange),
        Reason::PageTokenInvalid => (v1::Reason::PageTokenInvalid, Code::InvalidArgument),
        // One that has migrated is not on this node either.
        Reason::VmNotFound | Reason::VmMigrated => (v1::Reason::VmNotFound, Code::NotFound),
        Reason::DifferenceNotFound => (v1::Reason::DifferenceNotFound, Code::NotFound),
        Reason::SnapshotNotFound => (v1::Reason::SnapshotNotFound, Code::NotFound),
        Reason::OperationNotFound => (v1::Reason::OperationNotFound, Code::NotFound),
        Reason::DiskNotFound => (v1::Reason::DiskNotFound, Code::NotFound),
        Reason::SnapshotExists => (v1::Reason::SnapshotExists, Code::AlreadyExists),
        Reason::ScheduleNotFound => (v1::Reason::ScheduleNotFound, Code::NotFound),
        Reason::ScheduleExists => (v1::Reason::ScheduleExists, Code::AlreadyExists),
        Reason::ScheduleRunning => (v1::Reason::ScheduleRunning, Code::FailedPrecondition),
        Reason::ScheduleLimit => (v1::Reason::ScheduleLimit, Code::FailedPrecondition),
        Reason::Abandoned => (v1::Reason::Abandoned, Code::FailedPrecondition),
        Reason::Declared => (v1::Reason::Declared, Code::FailedPrecondition),
        Reason::RetentionMinimum => (v1::Reason::RetentionMinimum, Code::FailedPrecondition),
        Reason::NameAmbiguous => (v1::Reason::AmbiguousName, Code::FailedPrecondition),
        Reason::OperationStuck => (v1::Reason::VmStuck, Code::FailedPrecondition),
        Reason::VmUnsettled | Reason::ManagedSavePresent => {
            (v1::Reason::VmStateUnsuitable, Code::FailedPrecondition)
        }
        Reason::VmTransient => (v1::Reason::VmTransient, Code::FailedPrecondition),
        Reason::VmNotOutOfSpace => (v1::Reason::VmNotOutOfSpace, Code::FailedPrecondition),
        Reason::HostLacksFeature => (v1::Reason::HostLacksFeature, Code::FailedPrecondition),
        Reason::VmChanged | Reason::VmDisputed => (v1::Reason::VmInDoubt, Code::FailedPrecondition),
        Reason::DiskNotSupported => (v1::Reason::DiskNotSnapshottable, Code::FailedPrecondition),
        Reason::NoDisks => (v1::Reason::NoDisks, Code::FailedPrecondition),
        Reason::BlockJobActive => (v1::Reason::BlockJobRunning, Code::FailedPrecondition),
        Reason::MemoryNotSupported => (v1::Reason::MemoryNotSupported, Code::FailedPrecondition),
        Reason::AgentUnavailable => (v1::Reason::AgentUnavailable, Code::FailedPrecondition),
        Reason::QuiesceFailed => (v1::Reason::QuiesceFailed, Code::FailedPrecondition),
        Reason::ImageMissing => (v1::Reason::ImageMissing, Code::FailedPrecondition),
        Reason::ImageChanged => (v1::Reason::ImageChanged, Code::FailedPrecondition),
        Reason::VolumeInUse => (v1::Reason::VolumeInUse, Code::FailedPrecondition),
        Reason::VolumeNotFound => (v1::Reason::VolumeNotFound, Code::NotFound),
        Reason::VolumeExists => (v1::Reason::VolumeExists, Code::AlreadyExists),
        Reason::VmExists => (v1::Reason::VmExists, Code::AlreadyExists),
        Reason::FileExists => (v1::Reason::FileExists, Code::AlreadyExists),
        Reason::PathNotAllowed => (v1::Reason::PathNotAllowed, Code::PermissionDenied),
        Reason::LayerInUse => (v1::Reason::LayerInUse, Code::FailedPrecondition),
        Reason::SnapshotNotReady => (v1::Reason::SnapshotNotReady, Code::FailedPrecondition),
        Reason::SnapshotHeld => (v1::Reason::SnapshotHeld, Code::FailedPrecondition),
        Reason::HoldExists => (v1::Reason::HoldExists, Code::AlreadyExists),
        Reason::HoldNotFound => (v1::Reason::HoldNotFound, Code::NotFound),
        Reason::CommentNotFound => (v1::Reason::CommentNotFound, Code::NotFound),
        Reason::LimitReached => (v1::Reason::LimitReached, Code::ResourceExhausted),
        Reason::NotCancellable => (v1::Reason::OperationNotCancellable, Code::FailedPrecondition),
        Reason::NotStuck => (v1::Reason::OperationNotStuck, Code::FailedPrecondition),
        Reason::NothingToLimit => (v1::Reason::NoBandwidthToSet, Code::FailedPrecondition),
        Reason::ResolutionNotOffered => (v1::Reason::ResolutionNotOffered, Code::FailedPrecondition),
        Reason::EtagMismatch => (v1::Reason::EtagMismatch, Code::Aborted),
        Reason::VmBusy => (v1::Reason::VmBusy, Code::Aborted),
        Reason::InsufficientSpace => (v1::Reason::NoSpace, Code::ResourceExhausted),
        Reason::HypervisorUnavailable => (v1::Reason::LibvirtUnavailable, Code::Unavailable),
        Reason::Draining => (v1::Reason::Draining, Code::Unavailable),
        Reason::CatalogFailed => (v1::Reason::CatalogUnavailable, Code::Unavailable),
        Reason::DeadlineExceeded => (v1::Reason::DeadlineExceeded, Code::DeadlineExceeded),
        Reason::TimedOut => (v1::Reason::HostCallTimedOut, Code::DeadlineExceeded),
        Reason::MergeNotConverging => (v1::Reason::MergeNotConverging, Code::DeadlineExceeded),
        Reason::NotImplemented => (v1::Reason::NotImplemented, Code::Unimplemented),
        Reason::HypervisorRefused => (v1::Reason::HostCallFailed, Code::Internal),
        Reason::Internal => (v1::Reason::Internal, Code::Internal),
        Reason::Cancelled => (v1::Reason::Cancelled, Code::Cancelled),
    }
}
