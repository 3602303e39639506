//! How long a deletion takes, by how many snapshots are stacked and by how many disks they have, and what the guest feels of it.

use std::fs;
use std::path::PathBuf;

use super::arms::{OURS, OURS_AGAIN, VIRSH};
use super::bed::{Daemon, Disk, Format, Guest, Spec, virsh};
use super::figure::{self, Figure, Samples};
use super::measure::{Arm, Felt, Measured, feel, in_turns};

/// How many snapshots are stacked, and on how many disks.
const DEPTHS: [u32; 3] = [1, 2, 4];
const DISKS_OF_A_STACK: u32 = 2;
/// How many disks a single snapshot has.
const DISKS: [u32; 4] = [1, 2, 4, 8];
/// What the guest writes to each disk after each snapshot, in MiB.
const WRITTEN: usize = 8;

const STALL: &str = "The longest time in which one of the file systems completed no write.";

pub fn by_depth(blocks: usize) -> Vec<Figure> {
    let figures = vec![
        figure(
            "deletion-wall",
            "Deletion of stacked snapshots of two disks, the guest writing",
            "snapshots",
            "After each snapshot the guest has written the same 8 MiB to each disk. `virsh` merges layer by layer and disk by \
             disk (`blockcommit --wait`), from the oldest on; `vmsnap` all layers of all disks at once.",
        ),
        figure("deletion-stall", "Write stall while stacked snapshots are deleted", "snapshots", STALL),
    ];
    figure::measured(figures, &DEPTHS, |depth| case(DISKS_OF_A_STACK, depth, blocks))
}

pub fn by_disks(blocks: usize) -> Vec<Figure> {
    let figures = vec![
        figure(
            "deletion-disks-wall",
            "Deletion of a snapshot of several disks, the guest writing",
            "disks",
            "The guest has written 8 MiB to each disk since. `virsh` merges disk by disk (`blockcommit --wait`), `vmsnap` all at \
             once.",
        ),
        figure(
            "deletion-disks-stall",
            "Write stall while a snapshot of several disks is deleted",
            "disks",
            STALL,
        ),
    ];
    figure::measured(figures, &DISKS, |disks| case(disks, 1, blocks))
}

fn figure(name: &'static str, title: &'static str, axis: &'static str, note: &'static str) -> Figure {
    Figure { name, title, unit: "ms", axis, cases: Vec::new(), against: Some(OURS), floor: None, note }
}

fn case(disks: u32, depth: u32, blocks: usize) -> Vec<Vec<Samples>> {
    let images = vec![Disk::new(Format::Qcow2); usize::try_from(disks).unwrap()];
    let spec = Spec { disks: images, writers: true, ..Spec::default() };
    let guest = Guest::boot(&spec);
    let daemon = Daemon::start();
    let ours = || {
        let (guest, daemon, client) = (&guest, daemon.id(), daemon.client());
        move || {
            let names: Vec<String> = (0..depth).map(|number| format!("bench{number}")).collect();
            for name in &names {
                client.json(&["snapshot", "create", guest.name(), name]);
                write(guest);
            }
            let paths: Vec<String> = names.iter().map(|name| format!("{}/{name}", guest.name())).collect();
            let mut delete = vec!["snapshot", "delete", "--yes"];
            delete.extend(paths.iter().map(String::as_str));
            measured(&feel(guest, daemon, || drop(client.json(&delete))))
        }
    };
    let by_hand = {
        let (guest, daemon) = (&guest, daemon.id());
        move || {
            let before = guest.disks();
            let layers = stack(guest, depth);
            let felt = feel(guest, daemon, || merge_one_by_one(guest, &before, &layers));
            layers.iter().flatten().for_each(|layer| fs::remove_file(layer).unwrap());
            measured(&felt)
        }
    };
    let mut all: [Arm<'_>; 3] =
        [(OURS, Box::new(ours())), (OURS_AGAIN, Box::new(ours())), (VIRSH, Box::new(by_hand))];
    in_turns(&format!("{depth} snapshots of {disks} disks"), &mut all, blocks)
}

/// Makes snapshots, one upon the other, and lets the guest write after each. Gives the overlays of each, oldest first.
fn stack(guest: &Guest, depth: u32) -> Vec<Vec<PathBuf>> {
    let mut layers = Vec::new();
    for number in 0..depth {
        let overlay = |target: &str| guest.directory().join(format!("{target}.layer{number}"));
        let mut command = vec!["snapshot-create-as".to_owned(), guest.name().to_owned()];
        command.extend(["--disk-only", "--atomic", "--no-metadata"].map(str::to_owned));
        let mut made = Vec::new();
        for (target, _) in guest.disks() {
            let path = overlay(&target);
            command.extend([
                "--diskspec".to_owned(),
                format!("{target},snapshot=external,file={}", path.display()),
            ]);
            made.push(path);
        }
        virsh::run(&command.iter().map(String::as_str).collect::<Vec<_>>());
        layers.push(made);
        write(guest);
    }
    layers
}

/// As one types it: each snapshot by itself, and of it each disk.
fn merge_one_by_one(guest: &Guest, bases: &[(String, PathBuf)], layers: &[Vec<PathBuf>]) {
    for (number, overlays) in layers.iter().enumerate() {
        let is_active = number + 1 == layers.len();
        for ((target, base), top) in bases.iter().zip(overlays) {
            let (base, top) = (base.display().to_string(), top.display().to_string());
            let mut options = vec![target.as_str(), "--base", &base, "--wait"];
            options.extend(if is_active { ["--active", "--pivot"] } else { ["--top", &top] });
            guest.virsh("blockcommit", &options);
        }
    }
}

fn write(guest: &Guest) {
    let each = "for disk in /mnt/*; do dd if=/run/written of=$disk/written bs=1M conv=fsync,notrunc 2>/dev/null; done";
    guest.exec(&format!(
        "[ -f /run/written ] || yes layer | head -c {} > /run/written; {each}",
        WRITTEN << 20
    ));
}

fn measured(felt: &Felt) -> Measured {
    vec![felt.wall, felt.stall]
}
