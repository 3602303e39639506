//! The nouns of the project, pure: ids, the view of a VM, the tree of layers, snapshots and operations.
//!
//! Decides which states and transitions exist. Leaves to `plan` what to do with them, to `host` how the world is
//! seen, to `store` how they last. Must never know a file descriptor, a clock, libvirt or gRPC.

pub mod access;
pub mod change;
pub mod clone;
pub mod convergence;
pub mod cursor;
pub mod declaration;
pub mod difference;
pub mod edit;
pub mod event;
pub mod ids;
pub mod io_limits;
pub mod layer;
pub mod manifest;
pub mod operation;
pub mod rebuilt;
pub mod request;
pub mod schedule;
pub mod served;
pub mod snapshot;
pub mod space;
pub mod step;
pub mod vm;
pub mod window;

pub use access::Labels;
pub use clone::{CloneMode, CloneState, ClonedVolume};
pub use declaration::{Declaration, Declared};
pub use difference::{Difference, DifferenceAction, DifferenceKind};
pub use edit::{Comment, Edit, EditRefusal, Hold, Update};
pub use event::{Cause, Event};
pub use ids::{
    CommentId, DiskTarget, HoldName, InvalidName, LayerId, OperationId, OutboxId, ScheduleId, ScheduleName,
    ScheduleRunId, SnapshotId, SnapshotName, VmId, VmName, VolumeId, VolumeName,
};
pub use io_limits::IoLimits;
pub use layer::{Layer, LayerTree, Ownership, Volume};
pub use operation::{Failure, Finding, Findings, Operation, OperationState, Outcome, Reason, Turn};
pub use request::{
    CloneVolume, CreateSnapshot, DeleteSnapshots, DeleteVolume, DeletionReason, DeployVm, FlattenVolume,
    PurgeSnapshot, Quiesce, Request, ResolveDifference, RevertSnapshot, RevertVolume, RunStateAfter,
    TakeFromSnapshot,
};
pub use schedule::{Schedule, ScheduleRun};
pub use snapshot::{Consistency, Label, Snapshot, SnapshotDisk, SnapshotKind, SnapshotState};
pub use space::Space;
pub use step::Step;
pub use vm::{Attachment, BlockJob, DiskView, Format, ImageFacts, ProcessId, RunState, VmView};
