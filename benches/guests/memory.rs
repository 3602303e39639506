//! How long the guest stands still for a snapshot of its disks and memory, and how long that takes in all.

use std::fs;

use super::arms::{self, OURS, OURS_AGAIN, Overlays, VIRSH};
use super::bed::{Daemon, Disk, Format, Guest, Spec};
use super::figure::{self, Figure, Samples};
use super::measure::{Arm, Felt, Measured, feel, in_turns};
use super::pauses::Pauses;

/// `virsh` that captures while the guest runs, and copies again what that has changed.
const LIVE: &str = "virsh --live";

/// What the guest's processes have written to, in MiB.
const DIRTY: [u32; 3] = [256, 1024, 1536];
/// From here on a run of `virsh` takes so long that two blocks have to do.
const LARGE: u32 = 1024;
/// It is copied in parts of so many MiB.
const PART_MIB: u32 = 8;
/// So many of them in one command, which has two minutes.
const PARTS: usize = 32;
/// The first of them: no guest that was booted anew has it.
pub const USED: &str = "/run/use/one";
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
            against: Some(OURS),
            floor: None,
            note: "Its processors stood still for so long: from QEMU's event `STOP` to its `RESUME`, by its own clock.",
        },
        Figure {
            name: "memory-stall",
            title: "Write stall of a snapshot of disks and memory",
            unit: "ms",
            axis: "MiB of memory in use",
            cases: Vec::new(),
            against: Some(OURS),
            floor: None,
            note: "The longest time in which one of the two file systems completed no write, by the host's clock. Each write waits \
                   for the storage, which memory is written to meanwhile.",
        },
        Figure {
            name: "memory-wall",
            title: "From the call to the end of a snapshot of disks and memory",
            unit: "ms",
            axis: "MiB of memory in use",
            cases: Vec::new(),
            against: Some(OURS),
            floor: None,
            note: "`vmsnap` ends once the image is on the disk (`fsync`); `virsh` does not wait for that.",
        },
    ];
    figure::measured(figures, &DIRTY, |dirty| case(dirty, blocks))
}

fn case(dirty: u32, blocks: usize) -> Vec<Vec<Samples>> {
    let guest = Guest::boot(&Spec { writers: true, ..spec(dirty) });
    use_memory(&guest, dirty);
    let daemon = Daemon::start();
    let pauses = Pauses::listen(&guest);
    let felt = |what: &dyn Fn()| {
        let mut felt = None;
        let pause = pauses.of(|| felt = Some(feel(&guest, daemon.id(), what)));
        measured(pause, &felt.unwrap())
    };
    let ours = || {
        let (guest, client, felt) = (&guest, daemon.client(), &felt);
        move || {
            let vm = guest.name();
            let measured = felt(&|| drop(client.json(&["snapshot", "create", vm, "bench", "--memory"])));
            client.json(&["snapshot", "delete", &format!("{vm}/bench"), "--yes"]);
            measured
        }
    };
    let by_hand = |option: &'static str| {
        let (guest, felt) = (&guest, &felt);
        move || {
            let overlays = Overlays::of(guest);
            let file = guest.directory().join("bench.memory");
            let command = format!(
                "snapshot-create-as {} --memspec file={} --atomic --no-metadata {option} {}",
                guest.name(),
                file.display(),
                overlays.options().join(" ")
            );
            let measured = felt(&|| arms::at_once(std::slice::from_ref(&command)));
            overlays.merge(guest);
            fs::remove_file(file).unwrap();
            measured
        }
    };
    let mut all: [Arm<'_>; 4] = [
        (OURS, Box::new(ours())),
        (OURS_AGAIN, Box::new(ours())),
        (VIRSH, Box::new(by_hand(""))),
        (LIVE, Box::new(by_hand("--live"))),
    ];
    in_turns(&format!("{dirty} MiB"), &mut all, if dirty < LARGE { blocks } else { blocks.min(2) })
}

/// A guest that has so much more memory than it needs.
pub fn spec(dirty: u32) -> Spec {
    // The kernel keeps a part of whatever there is for its own list of pages.
    let memory_mib = u64::from(dirty + dirty / 32 + OWN_MIB);
    Spec { disks: vec![Disk::new(Format::Qcow2); 2], memory_mib, ..Spec::default() }
}

/// Lets it use that. A page of zeros is no page. Copied within the guest: its pipes are slow.
pub fn use_memory(guest: &Guest, dirty: u32) {
    guest.exec(&format!(
        "mkdir /run/use && mount -t tmpfs -o size=100% use /run/use && yes vmsnap-benchmark | head -c {} > {USED}",
        u64::from(PART_MIB) << 20
    ));
    let parts: Vec<String> = (2..=dirty / PART_MIB).map(|part| part.to_string()).collect();
    for parts in parts.chunks(PARTS) {
        let parts = parts.join(" ");
        guest.exec(&format!("for part in {parts}; do cp {USED} /run/use/$part || exit 1; done"));
    }
}

fn measured(pause: f64, felt: &Felt) -> Measured {
    vec![pause, felt.stall, felt.wall]
}
