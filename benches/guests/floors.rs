//! What the machine itself can do, beside which other figures can be read: its storage and its memory, nobody between.

use std::fs::{self, File};
use std::hint::black_box;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Instant;

use fastrand::Rng;

use super::bed::scratch::Scratch;
use super::figure::{self, Figure, Samples, median};
use super::measure::{Arm, in_turns};

const MACHINE: &str = "machine";

/// What is written and copied, in MiB.
const SIZES: [u32; 1] = [256];
/// One call writes so much of it.
const MIB: usize = 1 << 20;
/// A write that waits for the storage, as databases and journals make them.
const PAGE: usize = 4096;
/// So many of those, of which the middle one counts.
const WRITES: usize = 100;

pub fn figures(blocks: usize) -> Vec<Figure> {
    let of = |name, title, unit, note| Figure::plain(name, title, unit, "MiB", note);
    let figures = vec![
        of(
            "floor-write",
            "What the storage takes",
            "MB/s",
            "A new file where the guests' images are, written from its beginning to its end in parts of 1 MiB, and an `fdatasync`: \
             as `dd bs=1M conv=fdatasync` does it.",
        ),
        of(
            "floor-copy",
            "What memory takes",
            "MB/s",
            "`memcpy` by one processor, between two places that have their pages.",
        ),
        of(
            "floor-sync",
            "A write of 4 KiB that waits for the storage",
            "ms",
            "`pwrite` and `fdatasync` at a random place of that file, which is written already. The middle one of a hundred.",
        ),
    ];
    figure::measured(figures, &SIZES, |mib| case(mib, blocks))
}

fn case(mib: u32, blocks: usize) -> Vec<Vec<Samples>> {
    let scratch = Scratch::new();
    let file = scratch.join("floor");
    let mut part = vec![0; MIB];
    let mut dice = Rng::with_seed(1);
    // Zeros might be spared by who stores them.
    dice.fill(&mut part);
    let from = part.repeat(usize::try_from(mib).unwrap());
    let mut to = from.clone();
    let run = || {
        // Kept from the run before, it would be written over, not made.
        let _ = fs::remove_file(&file);
        let written = rate(mib, || write(&file, &part, mib));
        let copied = rate(mib, || black_box(&mut to).copy_from_slice(black_box(&from)));
        vec![written, copied, write_and_wait(&file, &mut dice)]
    };
    let mut all: [Arm<'_>; 1] = [(MACHINE, Box::new(run))];
    in_turns(&format!("{mib} MiB"), &mut all, blocks)
}

/// Millions of bytes per second.
fn rate(mib: u32, what: impl FnOnce()) -> f64 {
    let from = Instant::now();
    what();
    f64::from(mib << 20) / 1e6 / from.elapsed().as_secs_f64()
}

fn write(path: &Path, part: &[u8], times: u32) {
    let mut file = File::create_new(path).unwrap();
    for _ in 0..times {
        file.write_all(part).unwrap();
    }
    file.sync_data().unwrap();
}

/// Milliseconds of the middle one.
fn write_and_wait(path: &Path, dice: &mut Rng) -> f64 {
    let file = File::options().write(true).open(path).unwrap();
    let pages = file.metadata().unwrap().len() / PAGE as u64;
    let mut one = || {
        let page = [dice.u8(..); PAGE];
        let place = dice.u64(..pages) * PAGE as u64;
        let from = Instant::now();
        file.write_all_at(&page, place).unwrap();
        file.sync_data().unwrap();
        from.elapsed().as_secs_f64() * 1e3
    };
    median((0..WRITES).map(|_| one()).collect())
}
