//! Events: what happened, in order, for people and controllers to read.
//!
//! Decides which changes of operations, snapshots and volumes are told, and in which words. `store` writes them in the
//! transaction of the change itself: what is told has happened, and what has happened is told.

use std::collections::BTreeMap;
use std::path::Path;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::clone::{CloneState, ClonedVolume};
use super::difference::Difference;
use super::edit::{Comment, Edit};
use super::ids::{DiskTarget, OperationId, ScheduleId, SnapshotId, VmId, VolumeId};
use super::layer::LayerTree;
use super::operation::{Failure, Operation, OperationState};
use super::snapshot::{Consistency, Snapshot, SnapshotState};

mod merge;
mod schedule;

pub use merge::{MergeNews, of_merge};
pub use schedule::{Missed, ScheduleChange, of_failure, of_missed_runs, of_pruning, of_run, of_schedule};

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// When.
    pub at: Timestamp,
    /// What.
    pub kind: EventKind,
    /// How much attention it wants.
    pub severity: Severity,
    /// One sentence for people.
    pub message: String,
    /// The VM.
    pub vm: Option<VmId>,
    /// Its name at that time.
    pub vm_name: String,
    /// The snapshot.
    pub snapshot: Option<SnapshotId>,
    /// Its name at that time.
    pub snapshot_name: String,
    /// The volume.
    pub volume: Option<VolumeId>,
    /// The operation that it is part of.
    pub operation: Option<OperationId>,
    /// The schedule.
    #[serde(default)]
    pub schedule: Option<ScheduleId>,
    /// Who caused it; empty for nobody in particular.
    pub actor: String,
    /// Why, where it is a failure.
    pub failure: Option<Failure>,
    /// Further facts.
    pub attributes: BTreeMap<String, String>,
}

/// What happened. The contract says which attributes go with each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, reason = "each is explained once, in proto/vmsnap/v1/event.proto")]
pub enum EventKind {
    SnapshotStateChanged,
    SnapshotUpdated,
    SnapshotCommented,
    SnapshotHeld,
    SnapshotExpired,
    OperationStateChanged,
    OperationSteered,
    MergeNotConverging,
    GuestFrozen,
    GuestThawed,
    SpaceLow,
    VmOutOfSpace,
    ScheduleRun,
    ScheduleMissed,
    SchedulePruned,
    ScheduleUpdated,
    VolumeStateChanged,
    VmArrived,
    VmLeft,
    VmDifference,
    DaemonStarted,
    DaemonStopping,
    OutboxDropped,
}

impl EventKind {
    /// All of them.
    pub const ALL: [Self; 23] = [
        Self::SnapshotStateChanged,
        Self::SnapshotUpdated,
        Self::SnapshotCommented,
        Self::SnapshotHeld,
        Self::SnapshotExpired,
        Self::OperationStateChanged,
        Self::OperationSteered,
        Self::MergeNotConverging,
        Self::GuestFrozen,
        Self::GuestThawed,
        Self::SpaceLow,
        Self::VmOutOfSpace,
        Self::ScheduleRun,
        Self::ScheduleMissed,
        Self::SchedulePruned,
        Self::ScheduleUpdated,
        Self::VolumeStateChanged,
        Self::VmArrived,
        Self::VmLeft,
        Self::VmDifference,
        Self::DaemonStarted,
        Self::DaemonStopping,
        Self::OutboxDropped,
    ];

    /// As the catalog and JSON spell it.
    #[must_use]
    pub fn name(self) -> String {
        let name = serde_json::to_value(self).unwrap_or_default();
        name.as_str().unwrap_or_default().to_owned()
    }
}

/// How much attention an event wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// For the record.
    Info,
    /// Look at it some time.
    Warning,
    /// Look at it now.
    Error,
}

/// What a change comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cause {
    /// The operation that it is part of.
    pub operation: Option<OperationId>,
    /// Who.
    pub actor: String,
    /// When.
    pub at: Timestamp,
}

impl Event {
    /// An event that is about nothing in particular.
    #[must_use]
    pub fn new(kind: EventKind, message: String, cause: &Cause) -> Self {
        Self {
            at: cause.at,
            kind,
            severity: Severity::Info,
            message,
            vm: None,
            vm_name: String::new(),
            snapshot: None,
            snapshot_name: String::new(),
            volume: None,
            operation: cause.operation,
            schedule: None,
            actor: cause.actor.clone(),
            failure: None,
            attributes: BTreeMap::new(),
        }
    }

    /// The same event, about what the operation is about.
    fn about(self, operation: &Operation) -> Self {
        Self {
            vm: operation.of_vm(),
            vm_name: operation.vm_name.clone(),
            snapshot: operation.snapshot,
            snapshot_name: operation.snapshot_name.as_ref().map(ToString::to_string).unwrap_or_default(),
            ..self
        }
    }

    fn of_snapshot(kind: EventKind, message: String, snapshot: &Snapshot, cause: &Cause) -> Self {
        Self {
            vm: snapshot.of_vm(),
            vm_name: snapshot.vm_name.clone(),
            volume: snapshot.disks.first().filter(|_| snapshot.of_vm().is_none()).map(|disk| disk.volume),
            snapshot: Some(snapshot.id),
            snapshot_name: snapshot.name.to_string(),
            ..Self::new(kind, message, cause)
        }
    }

    #[allow(clippy::needless_pass_by_value, reason = "numbers and words alike")]
    fn with(mut self, key: &str, value: impl ToString) -> Self {
        self.attributes.insert(key.to_owned(), value.to_string());
        self
    }
}

/// A VM is not on this node any more, or is back.
#[must_use]
pub fn of_presence(vm: VmId, name: &str, is_here: bool, snapshots: usize, cause: &Cause) -> Event {
    let (kind, severity, message) = if is_here {
        (EventKind::VmArrived, Severity::Info, format!("VM {name} is back on this node"))
    } else {
        let message =
            format!("VM {name} has left this node: {snapshots} snapshots are LOST, their files are kept");
        (EventKind::VmLeft, Severity::Error, message)
    };
    let event =
        Event { vm: Some(vm), vm_name: name.to_owned(), severity, ..Event::new(kind, message, cause) };
    event.with("snapshots", snapshots)
}

/// What a controller has to be told was dropped, so many items, and another outbox has begun.
#[must_use]
pub fn of_dropped_outbox(dropped: u64, why: &str, at: Timestamp) -> Event {
    let message = format!(
        "the outbox for the controller was dropped, and {dropped} items in it: {why}. The controller has to ask for an inventory"
    );
    let cause = Cause { operation: None, actor: "vmsnapd".to_owned(), at };
    let event = Event { severity: Severity::Error, ..Event::new(EventKind::OutboxDropped, message, &cause) };
    event.with("dropped", dropped)
}

/// A difference between the catalog and the world was found, or is settled.
#[must_use]
pub fn of_difference(difference: &Difference, is_found: bool, cause: &Cause) -> Event {
    let severity = match (is_found, difference.blocks) {
        (true, true) => Severity::Error,
        (true, false) => Severity::Warning,
        (false, _) => Severity::Info,
    };
    let (change, message) = if is_found {
        ("found", difference.description.clone())
    } else {
        ("settled", format!("settled: {}", difference.description))
    };
    let event = Event {
        vm: difference.vm,
        vm_name: difference.vm_name.clone(),
        severity,
        ..Event::new(EventKind::VmDifference, message, cause)
    };
    event.with("difference_id", difference.id()).with("change", change)
}

/// A disk of a VM, and the image that it writes to, on a file system that is full or nearly so.
#[derive(Debug, Clone, Copy)]
pub struct GrowingDisk<'a> {
    /// The VM.
    pub vm: VmId,
    /// Its name.
    pub vm_name: &'a str,
    /// The disk.
    pub disk: &'a DiskTarget,
    /// The image.
    pub image: &'a Path,
    /// Bytes free on its file system; None if nobody can tell.
    pub free: Option<u64>,
}

impl GrowingDisk<'_> {
    fn told(&self, kind: EventKind, severity: Severity, message: String, cause: &Cause) -> Event {
        let event = Event {
            vm: Some(self.vm),
            vm_name: self.vm_name.to_owned(),
            severity,
            ..Event::new(kind, message, cause)
        };
        let event = event.with("disk", self.disk).with("path", self.image.display());
        match self.free {
            Some(free) => event.with("free_bytes", free),
            None => event,
        }
    }

    fn room(&self) -> String {
        let place = self.image.parent().unwrap_or(self.image).display();
        match self.free {
            Some(free) => format!("the file system of {place} has {free} bytes free"),
            None => format!("how full {place} is cannot be told"),
        }
    }
}

/// The file system that a disk of a running VM grows on is low.
#[must_use]
pub fn of_low_space(disk: &GrowingDisk<'_>, cause: &Cause) -> Event {
    let GrowingDisk { vm_name, disk: target, image, .. } = disk;
    let message = format!(
        "disk {target} of VM {vm_name} grows in {}, and {}: make room there, or the VM will be paused",
        image.display(),
        disk.room()
    );
    disk.told(EventKind::SpaceLow, Severity::Warning, message, cause)
}

/// QEMU has paused a VM because a disk had no space.
#[must_use]
pub fn of_out_of_space(disk: &GrowingDisk<'_>, cause: &Cause) -> Event {
    let GrowingDisk { vm_name, disk: target, image, .. } = disk;
    let message = format!(
        "VM {vm_name} is paused: disk {target} has no space for {}; {}: make room there, then 'vmsnap vm resume {vm_name}'",
        image.display(),
        disk.room()
    );
    disk.told(EventKind::VmOutOfSpace, Severity::Error, message, cause)
}

/// What a change of a VM's tree tells: snapshots and clones that came to another state, came or went.
#[must_use]
pub fn of_tree(before: &LayerTree, after: &LayerTree, cause: &Cause) -> Vec<Event> {
    let mut events = Vec::new();
    for snapshot in &before.snapshots {
        events.extend(of_snapshot(Some(snapshot), after.snapshot(snapshot.id), cause));
    }
    for snapshot in after.snapshots.iter().filter(|snapshot| before.snapshot(snapshot.id).is_none()) {
        events.extend(of_snapshot(None, Some(snapshot), cause));
    }
    for clone in &before.clones {
        let now = after.clones.iter().find(|now| now.id == clone.id);
        events.extend(of_clone(Some(clone), now, cause));
    }
    events
}

/// A snapshot came to another state, came or went.
#[must_use]
pub fn of_snapshot(before: Option<&Snapshot>, after: Option<&Snapshot>, cause: &Cause) -> Option<Event> {
    let state = |snapshot: Option<&Snapshot>| snapshot.map(|snapshot| snapshot.state);
    let (from, to) = (state(before), state(after));
    let trouble = |snapshot: Option<&Snapshot>| Some(snapshot?.trouble.as_ref()?.reason);
    // What is in ERROR for another reason than before is worth a word.
    let is_worse = to == Some(SnapshotState::Error) && trouble(before) != trouble(after);
    if from == to && !is_worse {
        return None;
    }
    let snapshot = after.or(before)?;
    let name = &snapshot.name;
    let message = match (from, to) {
        (None, _) => format!("snapshot {name} is being made"),
        (Some(SnapshotState::Creating), None) => format!("snapshot {name} was not made"),
        (Some(_), None) => format!("snapshot {name} is gone"),
        (Some(_), Some(to)) => format!("snapshot {name} is {to}"),
    };
    let event = Event::of_snapshot(EventKind::SnapshotStateChanged, message, snapshot, cause)
        .with("from", from.map_or("", name_of))
        .with("to", to.map_or("", name_of));
    Some(match (from, to) {
        (Some(SnapshotState::Creating), Some(SnapshotState::Ready)) => with_numbers(event, snapshot),
        (_, Some(SnapshotState::Error | SnapshotState::Lost)) => Event { severity: Severity::Error, ..event },
        (_, _) => event,
    })
}

/// What a snapshot that has just been made is worth.
fn with_numbers(event: Event, snapshot: &Snapshot) -> Event {
    let consistency = match &snapshot.consistency {
        Some(Consistency::FileSystem | Consistency::Off) => "FILESYSTEM",
        Some(Consistency::Crash(_)) => "CRASH",
        Some(Consistency::Memory) => "MEMORY",
        None => "",
    };
    let memory = snapshot.memory.as_ref().map_or(0, |memory| memory.bytes);
    let disks: u64 = snapshot.disks.iter().map(|disk| disk.allocated).sum();
    event
        .with("consistency", consistency)
        .with("frozen_ms", snapshot.frozen_ms)
        .with("paused_ms", snapshot.paused_ms)
        .with("bytes", disks + memory)
}

/// A clone came to another state, came or went.
#[must_use]
pub fn of_clone(before: Option<&ClonedVolume>, after: Option<&ClonedVolume>, cause: &Cause) -> Option<Event> {
    let state = |clone: Option<&ClonedVolume>| clone.map(|clone| clone.state);
    let (from, to) = (state(before), state(after));
    if from == to {
        return None;
    }
    let clone = after.or(before)?;
    let name = &clone.name;
    let message = match (from, to) {
        (None, _) => format!("volume {name} is being made"),
        (Some(CloneState::Creating), None) => format!("volume {name} was not made"),
        (Some(CloneState::Available), None) => format!("volume {name} is gone"),
        (Some(_), Some(_)) => format!("volume {name} is complete"),
    };
    let spell = |state: Option<CloneState>| match state {
        None => "",
        Some(CloneState::Creating) => "CREATING",
        Some(CloneState::Available) => "AVAILABLE",
    };
    let event = Event {
        vm: Some(clone.vm),
        snapshot: Some(clone.source),
        volume: Some(clone.id),
        ..Event::new(EventKind::VolumeStateChanged, message, cause)
    };
    Some(event.with("from", spell(from)).with("to", spell(to)))
}

/// What people wrote on a snapshot was changed.
#[must_use]
pub fn of_edit(edit: &Edit, before: &Snapshot, snapshot: &Snapshot, cause: &Cause) -> Option<Event> {
    let name = &snapshot.name;
    let about_hold = |message, hold: &str, change| {
        Event::of_snapshot(EventKind::SnapshotHeld, message, snapshot, cause)
            .with("hold", hold)
            .with("change", change)
    };
    Some(match edit {
        Edit::Declare(_) => return of_snapshot(Some(before), Some(snapshot), cause),
        Edit::AddHold(hold) => {
            about_hold(format!("snapshot {name} is held by {}", hold.name), hold.name.as_str(), "added")
        }
        Edit::RemoveHold(hold) => {
            about_hold(format!("snapshot {name} is no longer held by {hold}"), hold.as_str(), "removed")
        }
        Edit::Update(update) => {
            let fields = update.fields().join(", ");
            let message = format!("what is written on snapshot {name} was changed: {fields}");
            Event::of_snapshot(EventKind::SnapshotUpdated, message, snapshot, cause).with("fields", fields)
        }
    })
}

/// A snapshot's time has come, and its deletion begins.
#[must_use]
pub fn of_expiry(snapshot: &Snapshot, cause: &Cause) -> Event {
    let message = format!("snapshot {} has expired and is deleted", snapshot.name);
    Event::of_snapshot(EventKind::SnapshotExpired, message, snapshot, cause)
}

/// A comment was written or deleted.
#[must_use]
pub fn of_comment(comment: &Comment, is_there: bool, snapshot: &Snapshot, cause: &Cause) -> Event {
    let (did, change) = if is_there { ("written", "added") } else { ("deleted", "deleted") };
    let message = format!("a comment under snapshot {} was {did}", snapshot.name);
    Event::of_snapshot(EventKind::SnapshotCommented, message, snapshot, cause)
        .with("comment_id", comment.id)
        .with("change", change)
}

/// What an operation tells when it is written to the journal.
#[must_use]
pub fn of_operation(before: Option<&Operation>, after: &Operation) -> Vec<Event> {
    let cause = Cause { operation: Some(after.id), actor: after.created_by.clone(), at: after.updated_at };
    let about = |kind, message| Event::new(kind, message, &cause).about(after);
    let findings = &after.findings;
    let was = |known: fn(&Operation) -> bool| before.is_some_and(known);
    let mut events = Vec::new();
    if let Some(file_systems) = findings.frozen.filter(|_| !was(|before| before.findings.frozen.is_some())) {
        let message = format!("{file_systems} file systems of the guest are frozen");
        events.push(about(EventKind::GuestFrozen, message).with("filesystems", file_systems));
    }
    if findings.thawed.is_some() && !was(|before| before.findings.thawed.is_some()) {
        let message = format!("the guest is thawed after {:.0} ms", findings.frozen_ms);
        events.push(about(EventKind::GuestThawed, message).with("frozen_ms", findings.frozen_ms));
    }
    for (is_so, was_so, action) in [
        (after.cancel_requested, was(|before| before.cancel_requested), "cancel"),
        (after.was_abandoned, was(|before| before.was_abandoned), "abandon"),
    ] {
        if is_so && !was_so {
            let message = format!("somebody asked the operation to {action}");
            events.push(about(EventKind::OperationSteered, message).with("action", action));
        }
    }
    let from = before.map_or("", |before| state_of(before.cursor.state));
    let to = state_of(after.cursor.state);
    if from != to {
        let (severity, words) = match after.cursor.state {
            OperationState::Running { .. } if from == "STUCK" => (Severity::Info, "goes on"),
            OperationState::Running { .. } => (Severity::Info, "has begun"),
            OperationState::Undoing { .. } => (Severity::Warning, "turns back"),
            OperationState::Succeeded => (Severity::Info, "has succeeded"),
            OperationState::Failed if after.was_abandoned => (Severity::Error, "was abandoned"),
            OperationState::Failed => (Severity::Warning, "has failed, and all is undone"),
            OperationState::Stuck { .. } => (Severity::Error, "is stuck: a person is needed"),
        };
        let what = after.request.name();
        let event = about(EventKind::OperationStateChanged, format!("{what} {words}"));
        let event = event.with("from", from).with("to", to).with("operation", what);
        let event = Event { severity, failure: after.failure.clone(), ..event };
        events.push(if after.cursor.has_ended() { with_findings(event, after) } else { event });
    }
    events
}

fn with_findings(event: Event, operation: &Operation) -> Event {
    let findings = &operation.findings;
    let took = operation.updated_at.duration_since(operation.created_at);
    let event = event.with("milliseconds", took.as_millis());
    let event = match findings.thawed {
        Some(_) => event.with("frozen_ms", findings.frozen_ms),
        None => event,
    };
    let event = if findings.paused_ms > 0.0 { event.with("paused_ms", findings.paused_ms) } else { event };
    match findings.memory_bytes {
        Some(bytes) => event.with("memory_bytes", bytes),
        None => event,
    }
}

fn state_of(state: OperationState) -> &'static str {
    match state {
        OperationState::Running { .. } => "RUNNING",
        OperationState::Undoing { .. } => "UNDOING",
        OperationState::Succeeded => "SUCCEEDED",
        OperationState::Failed => "FAILED",
        OperationState::Stuck { .. } => "STUCK",
    }
}

fn name_of(state: SnapshotState) -> &'static str {
    match state {
        SnapshotState::Creating => "CREATING",
        SnapshotState::Ready => "READY",
        SnapshotState::Reverting => "REVERTING",
        SnapshotState::Deleting => "DELETING",
        SnapshotState::Error => "ERROR",
        SnapshotState::Lost => "LOST",
    }
}
