//! Events.

use super::timestamp;
use crate::api::status;
use crate::model::event::{EventKind, Severity};
use crate::proto::v1;
use crate::store::NumberedEvent;

/// An event as a client sees it.
pub(in crate::api) fn event(numbered: &NumberedEvent) -> v1::Event {
    let event = &numbered.event;
    let text = |id: Option<String>| id.unwrap_or_default();
    v1::Event {
        id: id(numbered),
        sequence: numbered.sequence,
        create_time: Some(timestamp(event.at)),
        kind: kind(event.kind).into(),
        severity: match event.severity {
            Severity::Info => v1::Severity::Info,
            Severity::Warning => v1::Severity::Warning,
            Severity::Error => v1::Severity::Error,
        }
        .into(),
        message: event.message.clone(),
        vm_id: text(event.vm.map(|id| id.to_string())),
        vm_name: event.vm_name.clone(),
        snapshot_id: text(event.snapshot.map(|id| id.to_string())),
        snapshot_name: event.snapshot_name.clone(),
        volume_id: text(event.volume.map(|id| id.to_string())),
        operation_id: text(event.operation.map(|id| id.to_string())),
        schedule_id: text(event.schedule.map(|id| id.to_string())),
        actor: event.actor.clone(),
        error: event.failure.as_ref().map(|failure| status::failure(failure, "")),
        attributes: event.attributes.clone(),
    }
}

/// The same for the same event each time: its time, and its place where a UUID of version 7 has its random bits.
fn id(numbered: &NumberedEvent) -> String {
    let ms = u64::try_from(numbered.event.at.as_millisecond()).unwrap_or(0);
    let mut random = [0; 10];
    random[2..].copy_from_slice(&numbered.sequence.to_be_bytes());
    uuid::Builder::from_unix_timestamp_millis(ms, &random).into_uuid().to_string()
}

fn kind(kind: EventKind) -> v1::EventKind {
    match kind {
        EventKind::SnapshotStateChanged => v1::EventKind::SnapshotStateChanged,
        EventKind::SnapshotUpdated => v1::EventKind::SnapshotUpdated,
        EventKind::SnapshotCommented => v1::EventKind::SnapshotCommented,
        EventKind::SnapshotHeld => v1::EventKind::SnapshotHeld,
        EventKind::SnapshotExpired => v1::EventKind::SnapshotExpired,
        EventKind::OperationStateChanged => v1::EventKind::OperationStateChanged,
        EventKind::OperationSteered => v1::EventKind::OperationSteered,
        EventKind::GuestFrozen => v1::EventKind::GuestFrozen,
        EventKind::GuestThawed => v1::EventKind::GuestThawed,
        EventKind::SpaceLow => v1::EventKind::SpaceLow,
        EventKind::VmOutOfSpace => v1::EventKind::VmOutOfSpace,
        EventKind::ScheduleRun => v1::EventKind::ScheduleRun,
        EventKind::ScheduleMissed => v1::EventKind::ScheduleMissed,
        EventKind::SchedulePruned => v1::EventKind::SchedulePruned,
        EventKind::ScheduleUpdated => v1::EventKind::ScheduleUpdated,
        EventKind::VolumeStateChanged => v1::EventKind::VolumeStateChanged,
        EventKind::VmArrived => v1::EventKind::VmArrived,
        EventKind::VmLeft => v1::EventKind::VmLeft,
        EventKind::MergeNotConverging => v1::EventKind::MergeNotConverging,
        EventKind::VmDifference => v1::EventKind::VmDifference,
        EventKind::DaemonStarted => v1::EventKind::DaemonStarted,
        EventKind::DaemonStopping => v1::EventKind::DaemonStopping,
        EventKind::OutboxDropped => v1::EventKind::OutboxDropped,
    }
}

/// A kind as a filter names it. None for one that this version never sends.
pub(in crate::api) fn event_kind(wanted: v1::EventKind) -> Option<EventKind> {
    EventKind::ALL.into_iter().find(|known| kind(*known) == wanted)
}

/// A severity as a filter names it.
pub(in crate::api) fn severity(wanted: v1::Severity) -> Option<Severity> {
    match wanted {
        v1::Severity::Unspecified => None,
        v1::Severity::Info => Some(Severity::Info),
        v1::Severity::Warning => Some(Severity::Warning),
        v1::Severity::Error => Some(Severity::Error),
    }
}
