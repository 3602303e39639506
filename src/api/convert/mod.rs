//! Between the model and the contract. Decides only spelling; every match is exhaustive, so that a new state cannot
//! go out unnamed.

mod difference;
mod event;
mod operation;
mod plan;
mod schedule;
mod snapshot;
mod vm;
mod volume;

pub(super) use difference::{asked_action, difference};
pub(super) use event::{event, event_kind, severity};
pub(super) use operation::operation;
pub(super) use plan::{blocked_plan, plan};
pub(super) use schedule::{preview, schedule, schedule_run, schedule_wish};
pub(super) use snapshot::{comment, snapshot, snapshot_kind, snapshot_state};
pub(super) use vm::{KnownVm, vm, vm_summary};
pub(super) use volume::{clone_mode, volume};

use jiff::Timestamp;
use prost_types::Timestamp as ProtoTimestamp;

use crate::model::{Consistency, Format, RunState};
use crate::proto::v1;

/// A time.
pub(super) fn timestamp(time: Timestamp) -> ProtoTimestamp {
    ProtoTimestamp { seconds: time.as_second(), nanos: time.subsec_nanosecond() }
}

/// What a VM does.
pub(super) fn run_state(state: RunState) -> v1::RunState {
    match state {
        RunState::Running => v1::RunState::Running,
        RunState::Paused(_) => v1::RunState::Paused,
        RunState::Off => v1::RunState::Off,
        RunState::Migrated => v1::RunState::Migrated,
        RunState::Unsettled => v1::RunState::Unknown,
    }
}

/// A format.
fn image_format(format: Format) -> v1::ImageFormat {
    match format {
        Format::Raw => v1::ImageFormat::Raw,
        Format::Qcow2 => v1::ImageFormat::Qcow2,
    }
}

/// How good the data is, and why not better. A VM that was off was shut down: its file systems are clean.
fn consistency(consistency: &Consistency) -> (v1::Consistency, String) {
    match consistency {
        Consistency::FileSystem => (v1::Consistency::Filesystem, String::new()),
        Consistency::Crash(reason) => (v1::Consistency::Crash, reason.clone()),
        Consistency::Memory => (v1::Consistency::Memory, String::new()),
        Consistency::Off => (v1::Consistency::Filesystem, "the VM was off".to_owned()),
    }
}
