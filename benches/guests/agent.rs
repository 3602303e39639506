//! What the daemon costs when nothing is asked of it.

use std::fs;
use std::thread::sleep;
use std::time::Duration;

use super::arms::OURS;
use super::bed::{Daemon, Disk, Format, Guest, Spec};
use super::figure::{self, Figure, Samples};

/// Of what it holds, the pages that no file has.
const ANONYMOUS: &str = "vmsnap, anonymous";
/// What is counted is counted for so long.
const WHILE: Duration = Duration::from_secs(10);
/// Guests that are off: definitions, events and disks are there, and no work.
const VMS: [u32; 3] = [0, 8, 32];

pub fn figures(_: usize) -> Vec<Figure> {
    let of = |name, title, unit, note| Figure::plain(name, title, unit, "VMs", note);
    let figures = vec![
        of(
            "idle-memory",
            "Resident memory of an idle daemon",
            "MiB",
            "`VmRSS`, twenty seconds after its start. Of that, what is its own alone is `RssAnon`; the rest are pages of programs \
             and libraries, which the page cache has in any case.",
        ),
        of(
            "idle-wakeups",
            "Wakeups of an idle daemon",
            "per second",
            "Voluntary context switches of all its threads, over ten seconds.",
        ),
    ];
    figure::measured(figures, &VMS, idle)
}

fn idle(vms: u32) -> Vec<Vec<Samples>> {
    let spec = Spec { disks: vec![Disk::new(Format::Qcow2); 2], ..Spec::default() };
    let first = (vms > 0).then(|| Guest::define(&spec));
    let others: Vec<Guest> =
        first.iter().flat_map(|first| (1..vms).map(|_| first.define_beside(&spec))).collect();
    let daemon = Daemon::start();
    sleep(WHILE);
    let before = switches(daemon.id());
    sleep(WHILE);
    let wakeups = (switches(daemon.id()) - before) / WHILE.as_secs_f64();
    let resident = resident(daemon.id());
    drop(others);
    vec![resident, vec![Samples::once(OURS, wakeups)]]
}

/// What a process holds in memory, in MiB: all, and what is its own alone.
pub fn resident(process: u32) -> Vec<Samples> {
    let mib = |key| number(&format!("/proc/{process}/status"), key) / 1024.0;
    vec![Samples::once(OURS, mib("VmRSS:")), Samples::once(ANONYMOUS, mib("RssAnon:"))]
}

fn switches(process: u32) -> f64 {
    let threads = fs::read_dir(format!("/proc/{process}/task")).unwrap();
    let of = |thread: fs::DirEntry| {
        number(&thread.path().join("status").display().to_string(), "voluntary_ctxt_switches:")
    };
    threads.map(|thread| of(thread.unwrap())).sum()
}

/// A number out of a file of `/proc`.
fn number(path: &str, key: &str) -> f64 {
    let text = fs::read_to_string(path).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(key)).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}
