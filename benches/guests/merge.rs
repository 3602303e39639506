//! What a guest feels of a long merge, by whether the merge is held back for it.

use std::process::Command;

use super::arms::{self, OURS, OURS_AGAIN, Overlays, VIRSH};
use super::bed::{Daemon, Disk, Format, Guest, Setup, Spec, images};
use super::figure::{self, Figure, Samples};
use super::measure::{Arm, Measured, feel, in_turns};

/// What the guest has written since the snapshot, in MiB.
const WRITTEN: [u32; 1] = [384];
const SIZE_MIB: u64 = 768;

const FREE: &str = "vmsnap, never held back";
const NO_MERGE: &str = "no merge";
/// In seconds.
const QUIET: &str = "5";

pub fn figures(blocks: usize) -> Vec<Figure> {
    let of = |name, title, note| Figure {
        name,
        title,
        unit: "ms",
        axis: "MiB",
        cases: Vec::new(),
        against: Some(OURS),
        floor: None,
        note,
    };
    let figures = vec![
        of(
            "merge-wall",
            "A merge under a guest that writes",
            "One disk, one snapshot. `virsh` is `blockcommit --wait`; without a merge: a sleep.",
        ),
        of(
            "merge-write",
            "A guest's synced write while its disk is merged",
            "The mean of all writes of that time, by the host's clock. `vmsnap` holds a merge back while requests take longer than 30 \
             ms (`merge_longest_wait_milliseconds`).",
        ),
        of("merge-stall", "The longest of these writes", "By the host's clock."),
    ];
    figure::measured(figures, &WRITTEN, |written| case(written, blocks))
}

fn case(written: u32, blocks: usize) -> Vec<Vec<Samples>> {
    let disks = vec![Disk { format: Format::Qcow2, size_mib: SIZE_MIB }];
    let guest = Guest::boot(&Spec { disks, writers: true, ..Spec::default() });
    let held_back = Daemon::start();
    let configuration = "merge_longest_wait_milliseconds = 0".to_owned();
    let never = Daemon::start_with(Setup { configuration, ..Setup::default() });
    let ours = |daemon: &Daemon| {
        let (guest, process, client) = (&guest, daemon.id(), daemon.client());
        move || {
            client.json(&["snapshot", "create", guest.name(), "bench"]);
            write(guest, written);
            let path = format!("{}/bench", guest.name());
            let delete = || drop(client.json(&["snapshot", "delete", "--yes", &path]));
            of_one_disk(guest, process, delete)
        }
    };
    let by_hand = || {
        let overlays = Overlays::of(&guest);
        overlays.prepare();
        arms::switch(&guest, &overlays);
        write(&guest, written);
        of_one_disk(&guest, held_back.id(), || overlays.merge(&guest))
    };
    let quiet = || {
        let sleep = || drop(images::run(Command::new("sleep").arg(QUIET)));
        of_one_disk(&guest, held_back.id(), sleep)
    };
    let mut all: [Arm<'_>; 5] = [
        (OURS, Box::new(ours(&held_back))),
        (OURS_AGAIN, Box::new(ours(&held_back))),
        (FREE, Box::new(ours(&never))),
        (VIRSH, Box::new(by_hand)),
        (NO_MERGE, Box::new(quiet)),
    ];
    in_turns(&format!("merge of {written} MiB"), &mut all, blocks)
}

fn of_one_disk(guest: &Guest, daemon: u32, what: impl FnOnce()) -> Measured {
    let felt = feel(guest, daemon, what);
    vec![felt.wall, felt.per_write, felt.stall]
}

/// Writes so many MiB, all of them new to the overlay.
fn write(guest: &Guest, mib: u32) {
    let parts = mib / 8;
    guest.exec(&format!(
        "[ -f /run/written ] || yes layer | head -c 8388608 > /run/written; \
         for part in $(seq 0 {}); do dd if=/run/written of=/mnt/vda/written bs=1M seek=$((8 * part)) conv=notrunc 2>/dev/null; done; sync",
        parts - 1
    ));
}
