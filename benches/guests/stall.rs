//! How long the guest's file systems stand still for a quiesced snapshot of its disks, and what the tools cost.

use super::arms::{self, FLOOR, OURS, OURS_AGAIN, Overlays, SCRIPT, VIRSH};
use super::bed::{Daemon, Disk, Format, Guest, Spec};
use super::figure::{self, Figure, Samples};
use super::measure::{Arm, Felt, Measured, feel, in_turns};

const DISKS: [u32; 3] = [1, 4, 16];

pub fn figures(blocks: usize) -> Vec<Figure> {
    let figures = vec![
        Figure {
            name: "write-stall",
            title: "Write stall of a quiesced snapshot of all disks",
            unit: "ms",
            axis: "disks",
            cases: Vec::new(),
            against: Some(OURS),
            floor: Some(FLOOR),
            note: "The longest time in which one of the file systems completed no write, by the host's clock. Nobody is quicker \
                   than a freeze and its thaw alone.",
        },
        Figure {
            name: "snapshot-wall",
            title: "From the call to the end of a quiesced snapshot",
            unit: "ms",
            axis: "disks",
            cases: Vec::new(),
            against: Some(OURS),
            floor: Some(FLOOR),
            note: "With the start of the program. `script` has its overlays before that; `vmsnap` makes its own, and they, the \
                   journal and the catalog are on the disk at the end.",
        },
        Figure {
            name: "snapshot-cpu",
            title: "Processor time of a quiesced snapshot",
            unit: "ms",
            axis: "disks",
            cases: Vec::new(),
            against: Some(OURS),
            floor: None,
            note: "Of the programs that are run, and of `vmsnapd` with what it runs; without libvirtd and QEMU.",
        },
    ];
    figure::measured(figures, &DISKS, |disks| case(disks, blocks))
}

fn case(disks: u32, blocks: usize) -> Vec<Vec<Samples>> {
    let images = vec![Disk::new(Format::Qcow2); usize::try_from(disks).unwrap()];
    let spec = Spec { disks: images, writers: true, ..Spec::default() };
    let guest = Guest::boot(&spec);
    let daemon = Daemon::start();
    let by_hand = |what: fn(&Guest, &Overlays), is_prepared: bool| {
        let (guest, daemon) = (&guest, daemon.id());
        move || {
            let overlays = Overlays::of(guest);
            if is_prepared {
                overlays.prepare();
            }
            let felt = feel(guest, daemon, || what(guest, &overlays));
            overlays.merge(guest);
            measured(&felt)
        }
    };
    let ours = || {
        let (guest, daemon, client) = (&guest, daemon.id(), daemon.client());
        move || {
            let vm = guest.name();
            let create = ["snapshot", "create", vm, "bench", "--quiesce", "required"];
            let felt = feel(guest, daemon, || drop(client.json(&create)));
            client.json(&["snapshot", "delete", &format!("{vm}/bench"), "--yes"]);
            measured(&felt)
        }
    };
    let mut all: [Arm<'_>; 5] = [
        (OURS, Box::new(ours())),
        (OURS_AGAIN, Box::new(ours())),
        (VIRSH, Box::new(by_hand(arms::virsh_quiesced, false))),
        (SCRIPT, Box::new(by_hand(arms::script_quiesced, true))),
        (FLOOR, Box::new(|| measured(&feel(&guest, daemon.id(), || arms::freeze_and_thaw(&guest))))),
    ];
    in_turns(&format!("{disks} disks"), &mut all, blocks)
}

fn measured(felt: &Felt) -> Measured {
    vec![felt.stall, felt.wall, felt.processor]
}
