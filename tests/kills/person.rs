//! The person that a stuck operation waits for: does what it asks for, so that it can try again.

use std::sync::atomic::Ordering;

use vmsnap::proto::v1;

use crate::bed::virsh;
use crate::care::{Weather, is};

/// Panics if nothing that was done to the node explains that it is stuck.
pub fn see_to(stuck: &v1::Operation, weather: &Weather) {
    weather.needs_a_person(stuck);
    let vm = &stuck.vm_name;
    if is_forgotten(stuck, weather) {
        weather.vms_die.store(true, Ordering::SeqCst);
        let _ = virsh::try_run(&["destroy", vm]);
    } else if let Some((base, child)) = undecided(stuck) {
        // What the guest was told to bring to the disk was in both before that.
        let _ = virsh::try_run(&["start", vm]);
        let disks = virsh::try_run(&["domblklist", vm]).unwrap_or_default();
        let disk =
            disks.lines().find(|line| line.ends_with(child)).and_then(|line| line.split_whitespace().next());
        let disk = disk.unwrap_or_else(|| panic!("no disk writes to {child}: {disks}: {stuck:#?}"));
        let merged =
            virsh::try_run(&["blockcommit", vm, disk, "--base", base, "--active", "--pivot", "--wait"]);
        assert!(merged.is_ok(), "{merged:?}: {stuck:#?}");
    } else {
        assert!(is(&weather.may_stick), "it is stuck: {stuck:#?}");
        // A guest that stands still for lack of room cannot be thawed.
        let state = virsh::try_run(&["domstate", vm, "--reason"]).unwrap_or_default();
        if state.contains("I/O error") && !is(&weather.is_full) {
            let _ = virsh::try_run(&["resume", vm]);
        }
    }
}

fn errors(operation: &v1::Operation) -> impl Iterator<Item = &v1::Error> {
    operation.error.iter().chain(&operation.undo_error)
}

/// Whether it is stuck because libvirt died before it could note what QEMU had done.
fn is_forgotten(operation: &v1::Operation, weather: &Weather) -> bool {
    is(&weather.forgets) && errors(operation).any(|error| error.reason() == v1::Reason::VmInDoubt)
}

/// The base and the child of a merge, if QEMU died after it was asked to pivot, and before anybody saw what came of it.
fn undecided(operation: &v1::Operation) -> Option<(&str, &str)> {
    let mut words = errors(operation).flat_map(|error| [error.message.as_str(), error.cause.as_str()]);
    let asked = words.find_map(|words| words.split_once("was asked to write to "))?.1;
    let (base, asked) = asked.split_once(" instead of ")?;
    Some((base, asked.split_once(", and has ended")?.0))
}
