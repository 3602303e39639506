//! What schedules tell: runs that begin and end, runs that were missed, snapshots that were pruned, and changes of what people
//! set.

use std::collections::BTreeSet;

use jiff::Timestamp;

use super::{Cause, Event, EventKind, Severity};
use crate::model::operation::Failure;
use crate::model::schedule::{RunState, RunVm, Schedule, ScheduleRun};

/// What was done with a schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScheduleChange {
    /// It was made.
    Created,
    /// It was changed.
    Updated,
    /// It rests.
    Paused,
    /// It goes on.
    Resumed,
    /// It was deleted.
    Deleted,
}

impl ScheduleChange {
    fn name(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Updated => "updated",
            Self::Paused => "paused",
            Self::Resumed => "resumed",
            Self::Deleted => "deleted",
        }
    }
}

/// Runs that did not take place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Missed {
    /// How many, as far as they were counted.
    pub count: u32,
    /// When the last of them was due.
    pub last_due: Timestamp,
    /// Why.
    pub why: &'static str,
}

fn about(schedule: &Schedule, kind: EventKind, message: String, cause: &Cause) -> Event {
    Event { schedule: Some(schedule.id), ..Event::new(kind, message, cause) }
}

/// A schedule was made, changed, paused, resumed or deleted.
#[must_use]
pub fn of_schedule(schedule: &Schedule, change: ScheduleChange, cause: &Cause) -> Event {
    let did = change.name();
    let message = format!("schedule {} was {did}", schedule.wish.name);
    about(schedule, EventKind::ScheduleUpdated, message, cause).with("change", did)
}

/// Runs of a schedule were missed.
#[must_use]
pub fn of_missed_runs(schedule: &Schedule, missed: Missed, cause: &Cause) -> Event {
    let Missed { count, last_due, why } = missed;
    let runs = if count == 1 { "run" } else { "runs" };
    let message =
        format!("schedule {}: {count} {runs} missed, the last of {last_due}: {why}", schedule.wish.name);
    let event = about(schedule, EventKind::ScheduleMissed, message, cause);
    let event = event.with("due_time", last_due).with("count", count);
    Event { severity: Severity::Warning, ..event }
}

/// A run begins, or has ended.
#[must_use]
pub fn of_run(run: &ScheduleRun, cause: &Cause) -> Event {
    let taken = run.vms.iter().filter(|vm| vm.snapshot.is_some()).count();
    let failures = run.vms.iter().filter(|vm| vm.failure.is_some()).count();
    let name = &run.schedule.wish.name;
    let (change, severity, message) = match run.state {
        RunState::Running if !run.missing.is_empty() => {
            let (count, missing) = (run.vms.len(), names(&run.missing));
            let message =
                format!("a run of schedule {name} has begun, of {count} VMs; there is no VM {missing}");
            ("began", Severity::Warning, message)
        }
        RunState::Running => {
            ("began", Severity::Info, format!("a run of schedule {name} has begun, of {} VMs", run.vms.len()))
        }
        RunState::Succeeded => {
            ("ended", Severity::Info, format!("a run of schedule {name} has taken {taken} snapshots"))
        }
        RunState::Partly | RunState::Failed => {
            let failed = (failures > 0).then(|| format!("something failed at {failures} VMs"));
            let gone = (!run.missing.is_empty()).then(|| format!("there is no VM {}", names(&run.missing)));
            let why = failed.into_iter().chain(gone).collect::<Vec<_>>().join("; ");
            let message = format!("a run of schedule {name} has taken {taken} snapshots; {why}");
            let severity = if taken == 0 { Severity::Error } else { Severity::Warning };
            ("ended", severity, message)
        }
    };
    let event = about(&run.schedule, EventKind::ScheduleRun, message, cause);
    let event = event.with("change", change).with("run_id", run.id);
    let event = event.with("snapshots", taken).with("failures", failures);
    let event = match run.state {
        RunState::Running => event,
        RunState::Succeeded => event.with("outcome", "succeeded"),
        RunState::Partly => event.with("outcome", "partly"),
        RunState::Failed => event.with("outcome", "failed"),
    };
    Event { severity, failure: run.vms.iter().find_map(|vm| vm.failure.clone()), ..event }
}

fn names(names: &BTreeSet<String>) -> String {
    names.iter().map(String::as_str).collect::<Vec<_>>().join(", ")
}

/// A VM has no snapshot of a run, or was not pruned in it.
#[must_use]
pub fn of_failure(run: &ScheduleRun, vm: &RunVm, why: &Failure, cause: &Cause) -> Event {
    let message = format!("schedule {}: VM {}: {}", run.schedule.wish.name, vm.name, why.message);
    let event = about(&run.schedule, EventKind::ScheduleRun, message, cause);
    let event = event.with("change", "failed").with("run_id", run.id);
    let (vm_name, failure) = (vm.name.clone(), Some(why.clone()));
    Event { severity: Severity::Warning, vm: Some(vm.vm), vm_name, failure, ..event }
}

/// A schedule has deleted snapshots of a VM.
#[must_use]
pub fn of_pruning(schedule: &Schedule, vm: &RunVm, cause: &Cause) -> Event {
    let RunVm { name, pruned, pruned_bytes, .. } = vm;
    let message = format!("schedule {} has pruned {pruned} snapshots of VM {name}", schedule.wish.name);
    let event = about(schedule, EventKind::SchedulePruned, message, cause);
    let event = event.with("snapshots", pruned).with("bytes", pruned_bytes);
    Event { vm: Some(vm.vm), vm_name: name.clone(), ..event }
}
