//! The main job, shown on a real guest: `make demo`.
//!
//! A Linux guest with two disks writes on both all the time, and a program counts in its RAM. Through `vmsnapd` and
//! `vmsnap` it gets a quiesced disk snapshot and one with memory, goes back to each, and loses one while it writes.
//! Each claim is checked inside the guest or in its images, none by asking the daemon alone. Ends with `demo: ok`.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "the demo is there to be read")]

#[path = "../tests/bed/mod.rs"]
mod bed;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use bed::{Client, Counter, Daemon, Format, Guest, Progress, Spec, images, virsh, wait_until};
use serde_json::Value;

const TARGETS: [&str; 2] = ["vda", "vdb"];
const QUIESCED: &str = "quiesced";
const WITH_MEMORY: &str = "with-memory";

fn main() -> ExitCode {
    // A failed check panics; by the time it arrives here everything that was started has ended.
    if std::panic::catch_unwind(show).is_err() {
        eprintln!("demo: FAILED");
        return ExitCode::FAILURE;
    }
    println!("demo: ok");
    ExitCode::SUCCESS
}

fn show() {
    let start = Instant::now();
    let demo = Demo::begin();
    let before = demo.take_quiesced_snapshot();
    let memory = demo.take_snapshot_with_memory();
    demo.show_tree();
    demo.revert_to_quiesced(&before);
    demo.revert_to_memory(&memory);
    demo.show_tree();
    demo.delete_while_the_guest_writes();
    demo.check_what_is_left(&before);
    demo.show_tree();
    demo.end();
    say(&format!("all of it took {:.1} s", start.elapsed().as_secs_f64()));
}

/// Dropped in this order: the daemon goes before the VM that it looks after.
struct Demo {
    progress: Progress,
    daemon: Daemon,
    vmsnap: Client,
    guest: Guest,
}

/// What was true when the disk snapshot was taken.
struct Before {
    /// Each disk's image at that time, with the digest of what it reads.
    images: Vec<(PathBuf, Format, String)>,
    /// The last write that was reported before it, per disk.
    numbers: Vec<u64>,
}

/// What was true around the snapshot with memory.
struct Memory {
    counter: Counter,
    /// The counter when more had happened that the revert takes back.
    later: Counter,
}

impl Demo {
    fn begin() -> Self {
        step("boot a guest with two disks, one qcow2, one raw; a writer on each, a counter in RAM");
        let start = Instant::now();
        let guest = Guest::boot(&Spec { writers: true, ..Spec::default() });
        let progress = Progress::listen(&guest);
        for target in TARGETS {
            guest.write_file(&format!("/mnt/{target}/first"), b"written before any snapshot\n");
            progress.wait_for_next(target);
        }
        took(start);
        step("start vmsnapd");
        let start = Instant::now();
        let daemon = Daemon::start();
        took(start);
        Self { progress, vmsnap: daemon.client(), daemon, guest }
    }

    fn take_quiesced_snapshot(&self) -> Before {
        step("vmsnap snapshot create --quiesce required");
        let formats = Spec::default().disks.into_iter().map(|disk| disk.format);
        let bases: Vec<(PathBuf, Format)> =
            TARGETS.map(|t| self.guest.image(t)).into_iter().zip(formats).collect();
        let numbers = TARGETS.map(|target| self.progress.wait_for_next(target)).to_vec();
        let (start, snapshot) = self.create(QUIESCED, &["--quiesce", "required"]);
        self.tell_stalls(start);
        say(&format!(
            "the guest was frozen for {:.1} ms",
            snapshot["frozen_ms"].as_f64().unwrap_or_default()
        ));
        expect(&snapshot, "kind", "SNAPSHOT_KIND_VM_DISKS");
        expect(&snapshot, "consistency", "CONSISTENCY_FILESYSTEM");
        assert!(!self.guest.is_frozen(), "the guest is still frozen");
        for (target, (base, _)) in TARGETS.iter().zip(&bases) {
            assert_ne!(self.guest.image(target), *base, "{target} still writes to its old image");
            self.guest.write_file(&format!("/mnt/{target}/second"), b"written after the disk snapshot\n");
        }
        let digest = |(base, format): (PathBuf, Format)| {
            let digest = images::digest(&base, format);
            (base, format, digest)
        };
        Before { images: bases.into_iter().map(digest).collect(), numbers }
    }

    fn take_snapshot_with_memory(&self) -> Memory {
        step("vmsnap snapshot create --memory");
        self.guest.exec("echo held in RAM > /run/before-memory");
        let counter = self.guest.counter();
        let (start, snapshot) = self.create(WITH_MEMORY, &["--memory"]);
        self.tell_stalls(start);
        say(&format!(
            "the guest was paused for {:.1} ms",
            snapshot["paused_ms"].as_f64().unwrap_or_default()
        ));
        expect(&snapshot, "kind", "SNAPSHOT_KIND_VM_DISKS_AND_MEMORY");
        expect(&snapshot, "consistency", "CONSISTENCY_MEMORY");
        assert_eq!(self.guest.state(), "running");
        self.guest.exec("echo held in RAM > /run/after-memory");
        for target in TARGETS {
            self.guest
                .write_file(&format!("/mnt/{target}/third"), b"written after the snapshot with memory\n");
        }
        let later = self.guest.counter();
        assert_eq!(later.token, counter.token, "the capture replaced the running program");
        Memory { counter, later }
    }

    fn revert_to_quiesced(&self, before: &Before) {
        step("vmsnap snapshot revert to the disk snapshot: the guest boots from its disks");
        let old = self.guest.counter();
        self.revert(QUIESCED);
        assert_ne!(self.guest.counter().token, old.token, "no fresh boot");
        self.check_files(&["first"], &["second", "third"]);
        for (target, number) in TARGETS.iter().zip(&before.numbers) {
            let ring = self.guest.ring(target);
            ring.assert_whole();
            assert!(ring.last >= *number, "{target} lost a write that was on it at the snapshot");
        }
        say("the files written later are gone, no write from before the snapshot is lost");
    }

    fn revert_to_memory(&self, memory: &Memory) {
        step("vmsnap snapshot revert to the snapshot with memory: the guest goes on where it was");
        self.revert(WITH_MEMORY);
        self.check_files(&["first", "second"], &["third"]);
        assert!(self.guest.has_file("/run/before-memory"), "RAM is not that of the snapshot");
        assert!(!self.guest.has_file("/run/after-memory"), "RAM is newer than the snapshot");
        let counter = self.guest.counter();
        assert_eq!(counter.token, memory.counter.token, "this is not the program that was running");
        assert!(counter.number >= memory.counter.number, "the counter is older than the snapshot");
        wait_until("the counter goes on", Duration::from_secs(60), || {
            self.guest.counter().number > counter.number
        });
        for target in TARGETS {
            self.progress.wait_for_next(target);
            self.guest.ring(target).assert_whole();
        }
        say(&format!(
            "the program in RAM goes on: {} at the snapshot, {} later, {} after the revert",
            memory.counter.number, memory.later.number, counter.number
        ));
    }

    fn delete_while_the_guest_writes(&self) {
        step("vmsnap snapshot delete while the guest writes");
        let counter = self.guest.counter();
        let depths = self.chain_depths();
        let start = Instant::now();
        self.vmsnap.json(&["snapshot", "delete", &self.which(WITH_MEMORY), "--yes"]);
        let end = Instant::now();
        took(start);
        for (target, depth) in TARGETS.iter().zip(depths) {
            self.progress.wait_for_next(target);
            let stall = self.progress.longest_stall(target, start, end);
            let writes = self.progress.writes(target, start, end);
            say(&format!("{target}: {writes} writes meanwhile, longest stall {:.0} ms", milliseconds(stall)));
            assert!(writes > 0, "{target} stood still all the time");
            self.progress.assert_monotonic(target);
            self.guest.ring(target).assert_whole();
            let now = images::chain(&self.guest.image(target), Format::Qcow2).len();
            assert_eq!(now, depth - 1, "{target}: no layer was merged");
        }
        self.check_files(&["first", "second"], &["third"]);
        assert_eq!(self.guest.counter().token, counter.token, "the guest was restarted");
    }

    fn check_what_is_left(&self, before: &Before) {
        step("check that the other snapshot is what it was");
        let start = Instant::now();
        for (image, format, digest) in &before.images {
            assert_eq!(images::digest(image, *format), *digest, "{} has changed", image.display());
        }
        let list = self.vmsnap.json(&["snapshot", "list", self.guest.name()]);
        let names: Vec<&Value> =
            list["snapshots"].as_array().into_iter().flatten().map(|s| &s["name"]).collect();
        assert_eq!(names, [QUIESCED], "{list}");
        took(start);
    }

    /// Ends everything and looks whether it is gone.
    fn end(self) {
        step("end");
        let name = self.guest.name().to_owned();
        let directories = [self.guest.directory(), self.daemon.directory()].map(Path::to_owned);
        drop(self);
        assert!(virsh::try_run(&["domstate", &name]).is_err(), "{name} was left behind");
        for directory in directories {
            assert!(!directory.exists(), "{} was left behind", directory.display());
        }
        say("no VM, file or daemon is left");
    }

    fn create(&self, name: &str, options: &[&str]) -> (Instant, Value) {
        let start = Instant::now();
        self.vmsnap.json(&[&["snapshot", "create", self.guest.name(), name], options].concat());
        took(start);
        let shown = self.vmsnap.json(&["snapshot", "show", &self.which(name)]);
        let snapshot = shown["snapshot"].clone();
        expect(&snapshot, "state", "SNAPSHOT_STATE_READY");
        assert_eq!(snapshot["current"], true, "{snapshot}");
        (start, snapshot)
    }

    fn revert(&self, name: &str) {
        let start = Instant::now();
        self.vmsnap.json(&["snapshot", "revert", &self.which(name), "--yes"]);
        took(start);
        self.guest.wait_until_up();
        say(&format!("after {:.2} s the guest answered", start.elapsed().as_secs_f64()));
    }

    fn which(&self, snapshot: &str) -> String {
        format!("{}/{snapshot}", self.guest.name())
    }

    fn check_files(&self, present: &[&str], absent: &[&str]) {
        for target in TARGETS {
            let is_there = |name: &&str| self.guest.has_file(&format!("/mnt/{target}/{name}"));
            assert!(present.iter().all(is_there), "{target}: one of {present:?} is missing");
            assert!(!absent.iter().any(is_there), "{target}: one of {absent:?} is still there");
        }
    }

    fn chain_depths(&self) -> [usize; 2] {
        TARGETS.map(|target| images::chain(&self.guest.image(target), Format::Qcow2).len())
    }

    /// How long each filesystem stood still since `start`, by the host's clock.
    fn tell_stalls(&self, start: Instant) {
        for target in TARGETS {
            self.progress.wait_for_next(target);
            let stall = milliseconds(self.progress.longest_stall(target, start, Instant::now()));
            say(&format!("{target} made no progress for at most {stall:.0} ms, seen from outside"));
        }
    }

    fn show_tree(&self) {
        let reply = self.vmsnap.run(&["snapshot", "list", self.guest.name(), "--tree"]);
        assert!(reply.code == 0, "{}", reply.stderr);
        println!();
        reply.stdout.lines().for_each(|line| println!("    {line}"));
    }
}

fn expect(snapshot: &Value, field: &str, value: &str) {
    assert_eq!(snapshot[field], value, "{field} of {snapshot}");
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

fn step(what: &str) {
    println!("\ndemo: {what}");
}

fn took(start: Instant) {
    say(&format!("took {:.2} s", start.elapsed().as_secs_f64()));
}

fn say(what: &str) {
    println!("      {what}");
}
