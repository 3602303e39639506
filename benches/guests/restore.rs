//! How long it takes until a guest runs again as it was at a snapshot with memory.

use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use super::arms::{self, OURS, OURS_AGAIN, Overlays, VIRSH};
use super::bed::{Daemon, Guest, virsh};
use super::figure::{self, Figure, Samples};
use super::measure::{Arm, Measured, in_turns};
use super::memory::{USED, spec, use_memory};

/// The part of it that libvirt and QEMU do, whoever asks them to.
const RESTORE: &str = "restore alone";

/// What the guest's processes had written to, in MiB.
const DIRTY: [u32; 2] = [256, 1024];
/// A run takes seconds.
const BLOCKS: usize = 2;

pub fn figures(blocks: usize) -> Vec<Figure> {
    let figure = Figure {
        name: "memory-restore",
        title: "From the call to a running guest, back at a snapshot with memory",
        unit: "ms",
        axis: "MiB of memory in use",
        cases: Vec::new(),
        against: Some(OURS),
        floor: Some(RESTORE),
        note: "A guest that runs, with two disks. `virsh destroy`, an overlay for each disk by `qemu-img create`, and `virsh restore` \
               with a definition that names them, written ahead. The floor is that `virsh restore` alone: no guest to be stopped, \
               and the overlays there. Images are read from the page cache.",
    };
    figure::measured(vec![figure], &DIRTY, |dirty| case(dirty, blocks.min(BLOCKS)))
}

fn case(dirty: u32, blocks: usize) -> Vec<Vec<Samples>> {
    // A guest for each: what one makes of its disks would be news to the other.
    let ours = Guest::boot(&spec(dirty));
    let theirs = ours.define_beside(&spec(dirty));
    theirs.start();
    use_memory(&ours, dirty);
    use_memory(&theirs, dirty);
    let daemon = Daemon::start();
    let client = daemon.client();
    client.json(&["snapshot", "create", ours.name(), "bench", "--memory"]);
    let by_hand = ByHand::take(&theirs);
    let snapshot = format!("{}/bench", ours.name());
    let revert = || timed(&ours, || drop(client.json(&["snapshot", "revert", &snapshot, "--yes"])));
    let by_virsh = || {
        timed(&theirs, || {
            by_hand.leave();
            by_hand.restore();
        })
    };
    let restore = || {
        by_hand.leave();
        timed(&theirs, || by_hand.restore())
    };
    let mut all: [Arm<'_>; 4] = [
        (OURS, Box::new(revert)),
        (OURS_AGAIN, Box::new(revert)),
        (VIRSH, Box::new(by_virsh)),
        (RESTORE, Box::new(restore)),
    ];
    in_turns(&format!("{dirty} MiB"), &mut all, blocks)
}

/// Milliseconds. The guest has to run then, and to be the one that it was.
fn timed(guest: &Guest, what: impl FnOnce()) -> Measured {
    let from = Instant::now();
    what();
    let wall = from.elapsed().as_secs_f64() * 1e3;
    guest.wait_until_up();
    guest.exec(&format!("[ -e {USED} ]"));
    vec![wall]
}

/// A snapshot with memory as `virsh` makes it, and what one needs to go back to it.
struct ByHand<'a> {
    guest: &'a Guest,
    memory: PathBuf,
    definition: PathBuf,
    /// What the guest goes on with.
    overlays: Overlays,
}

impl<'a> ByHand<'a> {
    fn take(guest: &'a Guest) -> Self {
        let (memory, definition) = (guest.directory().join("memory"), guest.directory().join("back.xml"));
        let (away, overlays) = (Overlays::of(guest), Overlays::named(guest, "back"));
        let file = memory.display().to_string();
        let options = away.options().join(" ");
        arms::at_once(&[format!(
            "snapshot-create-as {} --memspec file={file} --atomic --no-metadata {options}",
            guest.name()
        )]);
        fs::write(&definition, overlays.put_into(&virsh::run(&["save-image-dumpxml", &file]))).unwrap();
        Self { guest, memory, definition, overlays }
    }

    /// Away from what the guest has done since. Overlays that are there are made anew.
    fn leave(&self) {
        self.guest.destroy();
        self.overlays.prepare();
    }

    fn restore(&self) {
        let (memory, definition) = (self.memory.display().to_string(), self.definition.display().to_string());
        virsh::run(&["restore", &memory, "--xml", &definition, "--running"]);
    }
}
