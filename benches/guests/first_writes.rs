//! What a fresh overlay costs the guest's writes, by the overlay's geometry. Nothing of `vmsnap` has part in it.

use std::time::Duration;

use super::arms::{self, DEFAULT, Overlays};
use super::bed::{Disk, Format, Guest, Spec};
use super::figure::{self, Figure, Samples};
use super::measure::{Arm, Measured, feel, in_turns};

/// The arms: how they are told, and what `qemu-img create` is told. The first is what one gets without a word.
const GEOMETRIES: [(&str, &str); 6] = [
    ("64k", DEFAULT),
    ("64k, extended L2", "cluster_size=64k,extended_l2=on"),
    ("128k, extended L2", "cluster_size=128k,extended_l2=on"),
    ("128k, extended L2, metadata ahead", "cluster_size=128k,extended_l2=on,preallocation=metadata"),
    ("32k", "cluster_size=32k"),
    ("16k", "cluster_size=16k"),
];
const NO_OVERLAY: &str = "no overlay";

const DISKS: [u32; 1] = [1];
/// With less the guest's file system has blocks of 1 KiB, which lie across the overlay's smallest parts.
const SIZE_MIB: u64 = 512;
/// The writes go to the beginnings of so many files.
const PLACES: u32 = 64;
/// Each so large that no cluster holds two of the beginnings.
const APART: u32 = 512 << 10;

pub fn figures(blocks: usize) -> Vec<Figure> {
    let of = |name, title, note| Figure {
        name,
        title,
        unit: "ms",
        axis: "disks",
        cases: Vec::new(),
        against: Some(GEOMETRIES[0].0),
        floor: Some(NO_OVERLAY),
        note,
    };
    let figures = vec![
        of(
            "first-writes",
            "64 scattered writes of 4 KiB into a fresh overlay",
            "Each waits for the storage (`fdatasync`) before the next, and each is in another cluster, half a MiB from the others. One \
             process, by the guest's clock, its start included. Without an overlay they go to clusters that are there.",
        ),
        of(
            "switch-stall",
            "Write stall of a switch to an overlay that is there",
            "The longest time in which the guest completed no write, by the host's clock; its file systems are not frozen. Without \
             an overlay: while `virsh domstate` runs.",
        ),
    ];
    figure::measured(figures, &DISKS, |_| case(blocks))
}

fn case(blocks: usize) -> Vec<Vec<Samples>> {
    let disks = vec![Disk { format: Format::Qcow2, size_mib: SIZE_MIB }];
    let guest = Guest::boot(&Spec { disks, writers: true, ..Spec::default() });
    lay_out(&guest);
    let over = |options: &'static str| {
        let guest = &guest;
        move || {
            let overlays = Overlays::of(guest);
            overlays.prepare_as(options);
            let measured = measured(guest, || arms::switch(guest, &overlays));
            overlays.merge(guest);
            measured
        }
    };
    let mut all: Vec<Arm<'_>> =
        GEOMETRIES.iter().map(|(arm, options)| -> Arm<'_> { (arm, Box::new(over(options))) }).collect();
    all.push((NO_OVERLAY, Box::new(|| measured(&guest, || drop(guest.state())))));
    in_turns("first writes", &mut all, blocks)
}

fn measured(guest: &Guest, switch: impl FnOnce()) -> Measured {
    // There is no daemon: what is spent by this process in its place is of no use.
    let felt = feel(guest, std::process::id(), switch);
    guest.stop_writer("vda");
    let written = scatter(guest);
    guest.start_writer("vda");
    vec![written.as_secs_f64() * 1e3, felt.stall]
}

/// Writes what will be written over.
fn lay_out(guest: &Guest) {
    guest.exec(&format!(
        "mkdir /mnt/vda/scatter && yes | head -c {APART} > /run/apart && \
         for place in $(seq {PLACES}); do \
             dd if=/run/apart of=/mnt/vda/scatter/$place bs=64k conv=fsync 2>/dev/null || exit 1; \
         done && sync"
    ));
}

/// The pages are changed first, by the shell itself. Then one process brings file after file to the disk, each with what was
/// changed of it. The pause is for the clock to have begun.
fn scatter(guest: &Guest) -> Duration {
    let told = guest.exec(
        "page=$(printf %04096d 0)
         for file in /mnt/vda/scatter/*; do printf %s $page 1<>$file || exit 1; done
         { sleep 0.2; echo; sync -d /mnt/vda/scatter/* && echo; } | ts -i %.s",
    );
    // Two lines: when it began, and how long after that it ended.
    let took = told.lines().nth(1).unwrap_or_else(|| panic!("not all was written: {told}"));
    Duration::from_secs_f64(took.trim().parse().unwrap())
}
