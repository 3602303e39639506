//! What compressing memory on its way into an image saves, and what the guest waits for it.

use super::arms::{OURS, OURS_AGAIN};
use super::bed::{Client, Daemon, Guest, Setup, Spec};
use super::figure::{self, Figure, Samples};
use super::measure::{Arm, Measured, feel, in_turns};
use super::memory::{spec, use_memory};

const COMPRESSED: &str = "vmsnap, zstd";

/// What the guest's processes have written to, in MiB.
const DIRTY: [u32; 1] = [1024];

pub fn figures(blocks: usize) -> Vec<Figure> {
    let of = |name, title, unit, note| Figure {
        name,
        title,
        unit,
        axis: "MiB of memory in use",
        cases: Vec::new(),
        against: Some(OURS),
        floor: None,
        note,
    };
    let figures = vec![
        of(
            "compressed-stall",
            "Write stall of a snapshot of disks and memory, compressed or not",
            "ms",
            "The longest time in which one of the two file systems completed no write, by the host's clock, until the snapshot was \
             ready. Half of what the guest holds are random bytes, the other half is one line of text over and over. \
             `memory_compression = \"zstd\"`, with as many threads as there are processors; the guest has one of them.",
        ),
        of(
            "compressed-write",
            "A guest's synced write meanwhile",
            "ms",
            "The mean of all writes of that time, by the host's clock.",
        ),
        of(
            "compressed-wall",
            "From the call to the end of that snapshot",
            "ms",
            "The image is on the disk then.",
        ),
        of("compressed-size", "What the memory image takes", "MiB", "The length of the file."),
    ];
    figure::measured(figures, &DIRTY, |dirty| case(dirty, blocks))
}

fn case(dirty: u32, blocks: usize) -> Vec<Vec<Samples>> {
    let guest = Guest::boot(&Spec { writers: true, ..spec(dirty) });
    use_memory(&guest, dirty / 2);
    use_random_memory(&guest, dirty / 2);
    let raw = Daemon::start();
    let configuration = "memory_compression = 'zstd'".to_owned();
    let zstd = Daemon::start_with(Setup { configuration, ..Setup::default() });
    let of = |daemon: &Daemon| {
        let (guest, process, client) = (&guest, daemon.id(), daemon.client());
        move || -> Measured {
            let vm = guest.name();
            let take = || drop(client.json(&["snapshot", "create", vm, "bench", "--memory"]));
            let felt = feel(guest, process, take);
            let snapshot = format!("{vm}/bench");
            let size = image_mib(&client, &snapshot);
            client.json(&["snapshot", "delete", &snapshot, "--yes"]);
            vec![felt.stall, felt.per_write, felt.wall, size]
        }
    };
    let mut all: [Arm<'_>; 3] =
        [(OURS, Box::new(of(&raw))), (OURS_AGAIN, Box::new(of(&raw))), (COMPRESSED, Box::new(of(&zstd)))];
    in_turns(&format!("{dirty} MiB, compressed or not"), &mut all, blocks)
}

/// What no window of a compression finds again.
fn use_random_memory(guest: &Guest, dirty: u32) {
    guest.exec("head -c 8388608 /dev/urandom > /run/use/random");
    let parts: Vec<String> = (2..=dirty / 8).map(|part| part.to_string()).collect();
    for parts in parts.chunks(32) {
        let parts = parts.join(" ");
        guest.exec(&format!(
            "for part in {parts}; do cp /run/use/random /run/use/random-$part || exit 1; done"
        ));
    }
}

/// Of a snapshot.
fn image_mib(client: &Client, snapshot: &str) -> f64 {
    let shown = client.json(&["snapshot", "show", snapshot]);
    let bytes: f64 = shown["snapshot"]["memory_bytes"].as_str().unwrap().parse().unwrap();
    bytes / f64::from(1 << 20)
}
