//! The moving parts of an error, by the keys that the contract names beside its reason.
//!
//! Decides which parts are told under which key. Leaves the words for people to the errors themselves. What is not known where
//! an error arose is left out; and what an error does not say in its words, it does not say here.

use std::path::Path;

use crate::host::HostError;
use crate::model::EditRefusal;
use crate::ops::OpsError;
use crate::plan::Refusal;
use crate::store::StoreError;

/// A key of the contract, and what is there.
pub(super) type Fact = (&'static str, String);

pub(super) fn of(error: &OpsError) -> Vec<Fact> {
    match error {
        OpsError::Refused(refusal) => of_refusal(refusal),
        OpsError::Host(error) => of_host(error),
        OpsError::Store(error) => of_store(error),
        OpsError::NoSuchVm(vm) => one("vm", vm),
        OpsError::NoSuchSnapshot(snapshot) => one("snapshot", snapshot),
        OpsError::NoSuchVolume(volume) => one("volume", volume),
        OpsError::NoSuchOperation(id) => one("operation_id", id),
        OpsError::VmBusy(id) | OpsError::VmStuck(id) => one("operation_id", id),
        OpsError::NoSuchComment(id) => one("comment_id", id),
        OpsError::NoSuchSchedule(schedule) => one("schedule", schedule),
        OpsError::AmbiguousVolume { candidates, .. } | OpsError::AmbiguousSnapshot { candidates, .. } => {
            one("candidates", &candidates.join(", "))
        }
        _ => Vec::new(),
    }
}

fn of_refusal(refusal: &Refusal) -> Vec<Fact> {
    match refusal {
        Refusal::NoSuchDisk(disk)
        | Refusal::NotInSnapshot { disk, .. }
        | Refusal::DiskExcluded { disk, .. }
        | Refusal::DiskRefused { disk, .. }
        | Refusal::NoOverlayDirectory(disk)
        | Refusal::BlockJob(disk) => one("disk", disk),
        Refusal::VolumeInUse(vm) => one("vm", vm),
        Refusal::VmNameTaken(vm) => one("vm", vm),
        Refusal::FileExists(path)
        | Refusal::PlaceNotAllowed { path, .. }
        | Refusal::OutsideOfPlaces { path, .. }
        | Refusal::ImageMissing(path)
        | Refusal::ImageChanged { path, .. } => of_path(path),
        Refusal::NoSpace { directory, needed, free, .. }
        | Refusal::NoSpaceToMerge { directory, needed, free, .. } => {
            let mut facts = of_path(directory);
            facts.extend([("needed_bytes", needed.to_string()), ("free_bytes", free.to_string())]);
            facts
        }
        Refusal::NoSuchDifference(id) => one("difference_id", id),
        Refusal::EtagMismatch { actual } => one("etag", actual),
        Refusal::Held(refusal) => of_edit(refusal),
        _ => Vec::new(),
    }
}

fn of_store(error: &StoreError) -> Vec<Fact> {
    match error {
        StoreError::Edit(refusal) => of_edit(refusal),
        StoreError::ScheduleNameTaken { by, .. } => one("schedule", by),
        StoreError::ScheduleGone(schedule) => one("schedule", schedule),
        StoreError::ScheduleRunning(schedule) => one("schedule", schedule),
        StoreError::ScheduleChanged { actual } => one("etag", actual),
        _ => Vec::new(),
    }
}

fn of_edit(refusal: &EditRefusal) -> Vec<Fact> {
    match refusal {
        EditRefusal::EtagMismatch { actual } => one("etag", actual),
        EditRefusal::HoldExists(hold) | EditRefusal::NoSuchHold(hold) => one("hold", hold),
        EditRefusal::Held { snapshot, holds } => {
            let mut facts = one("snapshot", snapshot);
            facts.extend(holds.first().map(|hold| ("hold", hold.name.to_string())));
            facts
        }
        _ => Vec::new(),
    }
}

fn of_host(error: &HostError) -> Vec<Fact> {
    match error {
        HostError::TimedOut { call, .. } | HostError::Refused { call, .. } => one("call", call),
        HostError::NoSuchVm(vm) => one("vm", vm),
        HostError::NoSuchImage(path) | HostError::BadImage { path, .. } => of_path(path),
        _ => Vec::new(),
    }
}

fn one(key: &'static str, value: &impl ToString) -> Vec<Fact> {
    vec![(key, value.to_string())]
}

fn of_path(path: &Path) -> Vec<Fact> {
    one("path", &path.display())
}
