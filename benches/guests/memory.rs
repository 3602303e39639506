//! How long the guest stands still for a snapshot of its disks and memory, and how long that takes in all.

use std::fs;

use super::arms::{self, OURS, OURS_AGAIN, Overlays, VIRSH};
use super::bed::{Daemon, Disk, Format, Guest, Spec};
use super::figure::{self, Figure, Samples};
use super::measure::{Arm, Felt, Measured, feel, in_turns};

/// `virsh` that captures while the guest runs, and copies again what that has changed.
const LIVE: &str = "virsh --live";

/// What the guest's processes have written to, in MiB.
const DIRTY: [u32; 3] = [128, 256, 1024];
/// What the guest needs for itself.
const OWN_MIB: u32 = 224;

pub fn figures(blocks: usize) -> Vec<Figure> {
    let figures = vec![
        Figure {
            name: "memory-pause",
            title: "Pause of the guest for a snapshot of its disks and memory",
            unit: "ms",
            axis: "MiB of memory in use",
            cases: Vec::new(),
            ours: OURS,
            floor: None,
            note: "The longest time in which one of the two file systems completed no write, by the host's clock.",
        },
        Figure {
            name: "memory-wall",
            title: "From the call to the end of a snapshot of disks and memory",
            unit: "ms",
            axis: "MiB of memory in use",
            cases: Vec::new(),
            ours: OURS,
            floor: None,
            note: "`vmsnap` ends once the image is on the disk (`fsync`); `virsh` does not wait for that.",
        },
    ];
    figure::measured(figures, &DIRTY, |dirty| case(dirty, blocks))
}

fn case(dirty: u32, blocks: usize) -> Vec<Vec<Samples>> {
    let disks = vec![Disk::new(Format::Qcow2); 2];
    let spec = Spec { disks, memory_mib: u64::from(dirty + OWN_MIB), writers: true, ..Spec::default() };
    let guest = Guest::boot(&spec);
    // Nothing that compresses to nothing: a page of zeros is no page.
    guest.exec(&format!(
        "mkdir /run/use && mount -t tmpfs -o size=100% use /run/use && \
         yes vmsnap-benchmark | head -c {} > /run/use/it",
        u64::from(dirty) << 20
    ));
    let daemon = Daemon::start();
    let ours = || {
        let (guest, daemon, client) = (&guest, daemon.id(), daemon.client());
        move || {
            let vm = guest.name();
            let felt =
                feel(guest, daemon, || drop(client.json(&["snapshot", "create", vm, "bench", "--memory"])));
            client.json(&["snapshot", "delete", &format!("{vm}/bench"), "--yes"]);
            measured(&felt)
        }
    };
    let by_hand = |option: &'static str| {
        let (guest, daemon) = (&guest, daemon.id());
        move || {
            let overlays = Overlays::of(guest);
            let file = guest.directory().join("bench.memory");
            let command = format!(
                "snapshot-create-as {} --memspec file={} --atomic --no-metadata {option} {}",
                guest.name(),
                file.display(),
                overlays.options().join(" ")
            );
            let felt = feel(guest, daemon, || arms::at_once(&[command]));
            overlays.merge(guest);
            fs::remove_file(file).unwrap();
            measured(&felt)
        }
    };
    let mut all: [Arm<'_>; 4] = [
        (OURS, Box::new(ours())),
        (OURS_AGAIN, Box::new(ours())),
        (VIRSH, Box::new(by_hand(""))),
        (LIVE, Box::new(by_hand("--live"))),
    ];
    in_turns(&format!("{dirty} MiB"), &mut all, blocks)
}

fn measured(felt: &Felt) -> Measured {
    vec![felt.stall, felt.wall]
}
