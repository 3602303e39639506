//! Clients that mean harm, against the real daemon: its memory stays flat, others are served, nothing is left of them.
//!
//! The daemon has no libvirt here: what is attacked is its front door and its catalog, which need none.

#![allow(clippy::unwrap_used, reason = "a test stops where it fails")]
#![allow(clippy::disallowed_methods, reason = "tests run programs and wait: they are the outside")]

mod abuse;
#[path = "../bed/mod.rs"]
mod bed;
mod bystander;
mod footprint;
mod wire;

use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;

use bed::{Daemon, Setup, wait_until};
use bystander::Bystander;
use footprint::Footprint;
use jiff::Timestamp;
use vmsnap::model::event::{Event, EventKind, Severity};
use vmsnap::store::Store;

/// What the daemon may need while it is abused. Some 150 calls can be open on the connections of one abuse, each with half
/// a MiB at most.
const PEAK_KIB: u64 = 80 * 1024;

/// What may be left afterwards: the allocator keeps pages for each of its arenas, of which there are a few per core.
const LEFT_KIB: u64 = 32 * 1024;

/// Events that there are to be read.
const EVENTS: usize = 5000;

const PATIENCE: Duration = Duration::from_secs(60);

fn start(descriptors: Option<u64>) -> Daemon {
    let configuration = "libvirt_uri = \"qemu+unix:///system?socket=/nowhere/libvirt.sock\"".to_owned();
    let mut daemon = Daemon::start_with(Setup { configuration, descriptors, ..Setup::default() });
    assert!(daemon.stop().success());
    let store = Store::open(&daemon.state_directory().join("catalog.db")).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        for number in 0..EVENTS {
            store.tell(event(number)).await.unwrap();
        }
    });
    drop(store);
    daemon.restart();
    daemon
}

fn event(number: usize) -> Event {
    Event {
        at: Timestamp::now(),
        kind: EventKind::DaemonStarted,
        severity: Severity::Info,
        message: format!("{number}: {}", "as long as the longest of them are ".repeat(10)),
        vm: None,
        vm_name: String::new(),
        snapshot: None,
        snapshot_name: String::new(),
        volume: None,
        operation: None,
        schedule: None,
        actor: String::new(),
        failure: None,
        attributes: BTreeMap::new(),
    }
}

#[test]
fn every_abuse_leaves_memory_flat_and_others_served() {
    let daemon = start(None);
    let process = daemon.id();
    // Once, so that what is made at the first call is there.
    Bystander::of(&daemon.socket()).leave_after(3);
    let first = Footprint::at_rest(process);
    for (name, abuse) in abuse::ALL {
        let before = Footprint::at_rest(process);
        footprint::forget_peak(process);
        let bystander = Bystander::of(&daemon.socket());
        let held = abuse(&daemon.socket());
        let calls = bystander.leave_after(3);
        let peak = Footprint::peak_kib(process);
        drop(held);
        // What is left of all of them together. What a client had is let go of after its descriptors.
        let most = first.kib + LEFT_KIB;
        wait_until(&format!("{name}: all is closed, and {most} KiB are enough"), PATIENCE, || {
            let now = Footprint::of(process);
            now.descriptors <= before.descriptors && now.kib <= most
        });
        let after = Footprint::of(process);
        #[allow(clippy::print_stdout, reason = "figures for whoever asks for them with --nocapture")]
        {
            println!("{name}: {calls} calls of others; {} KiB, peak {peak}, left {}", before.kib, after.kib);
        }
        assert!(peak <= before.kib + PEAK_KIB, "{name}: {} KiB became {peak}", before.kib);
    }
}

/// Its work needs descriptors, too: a crowd of connections gets half of them.
#[test]
fn a_crowd_leaves_descriptors_to_the_work() {
    const DESCRIPTORS: u64 = 96;
    let daemon = start(Some(DESCRIPTORS));
    let before = Footprint::at_rest(daemon.id());
    let bystander = Bystander::of(&daemon.socket());
    let held = abuse::silent(&daemon.socket(), 300);
    bystander.leave_after(3);
    let crowded = Footprint::of(daemon.id());
    assert!(crowded.descriptors <= before.descriptors + DESCRIPTORS / 2, "{crowded:?}, {before:?} before");
    drop(held);
    wait_until("they are closed", PATIENCE, || Footprint::of(daemon.id()).descriptors <= before.descriptors);
}

/// There is none left at all, for whatever reason: it waits, tells it once, and goes on when there are some.
#[test]
fn no_descriptor_left_neither_ends_the_daemon_nor_spins() {
    let daemon = start(None);
    let before = Footprint::at_rest(daemon.id());
    let limit = |descriptors: u64| {
        let limits = format!("--nofile={descriptors}:");
        let limited =
            Command::new("prlimit").args(["--pid", &daemon.id().to_string(), &limits]).status().unwrap();
        assert!(limited.success());
    };
    limit(before.descriptors + 8);
    let held = abuse::silent(&daemon.socket(), 64);
    let told = "no connection can be accepted now";
    wait_until("it tells", PATIENCE, || daemon.log().contains(told));
    let begun = (std::time::Instant::now(), footprint::processor_time(daemon.id()));
    // Its places come free when the first have said nothing for too long.
    Bystander::of(&daemon.socket()).leave_after(1);
    let used = footprint::processor_time(daemon.id()).saturating_sub(begun.1);
    assert!(used < begun.0.elapsed() / 2, "it spins: {used:?} of processor time");
    let tellings = daemon.log().matches(told).count();
    assert!(tellings <= 64, "told {tellings} times");
    limit(1024);
    drop(held);
    Bystander::of(&daemon.socket()).leave_after(3);
}
