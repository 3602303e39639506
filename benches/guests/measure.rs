//! Runs in turns, and what is seen of a guest and of processes meanwhile.
//!
//! Decides the order: there and back within a block, so that what drifts strikes all arms alike, and another order in each.

use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

use fastrand::Rng;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;

use super::bed::{Guest, Progress};
use super::figure::Samples;

/// After a run before the next one is timed.
const SETTLED: Duration = Duration::from_millis(500);

/// What one run of an arm came to, one number for each figure.
pub type Measured = Vec<f64>;

/// An arm: its name, and a run of it.
pub type Arm<'a> = (&'static str, Box<dyn FnMut() -> Measured + 'a>);

/// Runs all arms in turns. Gives the samples for each of the numbers that a run gives. The first block is not counted.
pub fn in_turns(case: &str, arms: &mut [Arm<'_>], blocks: usize) -> Vec<Vec<Samples>> {
    let mut dice = Rng::with_seed(7);
    let mut taken: Vec<Vec<[Measured; 2]>> = vec![Vec::new(); arms.len()];
    for block in 0..=blocks {
        let mut order: Vec<usize> = (0..arms.len()).collect();
        dice.shuffle(&mut order);
        let there: Vec<(usize, Measured)> = order.iter().map(|arm| (*arm, (arms[*arm].1)())).collect();
        let back: Vec<(usize, Measured)> = order.iter().rev().map(|arm| (*arm, (arms[*arm].1)())).collect();
        for ((arm, first), (_, second)) in there.into_iter().zip(back.into_iter().rev()) {
            eprintln!("{case}, block {block}, {}: {first:.2?} {second:.2?}", arms[arm].0);
            taken[arm].push([first, second]);
        }
    }
    let numbers = taken[0][0][0].len();
    let samples = |number: usize, arm: usize| Samples {
        arm: arms[arm].0,
        blocks: taken[arm][1..].iter().map(|runs| [runs[0][number], runs[1][number]]).collect(),
    };
    (0..numbers).map(|number| (0..arms.len()).map(|arm| samples(number, arm)).collect()).collect()
}

/// What a guest felt of something, and what it cost, in milliseconds.
pub struct Felt {
    /// The longest time in which one of the file systems completed no write, by the host's clock.
    pub stall: f64,
    /// The mean time of such a write, of the file system where it was longest.
    pub per_write: f64,
    /// From the call to its end.
    pub wall: f64,
    /// Processor time of the programs that were run, and of the daemon.
    pub processor: f64,
}

/// Does it while the guest's writers are listened to.
pub fn feel(guest: &Guest, daemon: u32, what: impl FnOnce()) -> Felt {
    let targets: Vec<String> = guest.disks().into_iter().map(|(target, _)| target).collect();
    // Each time anew: what was reported before is of no use, and there is much of it.
    let progress = Progress::listen(guest);
    let wait = || {
        for target in &targets {
            progress.wait_for_next(target);
        }
    };
    // What came before may have a sequel: a daemon looks at what it has changed.
    sleep(SETTLED);
    wait();
    let before = processor(daemon);
    let from = Instant::now();
    what();
    let wall = from.elapsed().as_secs_f64() * 1e3;
    let processor = processor(daemon) - before;
    wait();
    let until = Instant::now();
    let stalls = targets.iter().map(|target| progress.longest_stall(target, from, until));
    let stall = stalls.max().unwrap_or_default().as_secs_f64() * 1e3;
    let fewest = targets.iter().map(|target| progress.writes(target, from, until)).min().unwrap_or_default();
    #[allow(clippy::cast_precision_loss, reason = "a number of writes")]
    let per_write = (until - from).as_secs_f64() * 1e3 / fewest.max(1) as f64;
    Felt { stall, per_write, wall, processor }
}

/// Milliseconds of a process with all its threads, and of all programs that were run here and have ended.
pub fn processor(process: u32) -> f64 {
    let children = getrusage(UsageWho::RUSAGE_CHILDREN).unwrap();
    let of_children = children.user_time().num_microseconds() + children.system_time().num_microseconds();
    let threads = fs::read_dir(format!("/proc/{process}/task")).unwrap();
    let of_thread = |path: std::path::PathBuf| {
        let text = fs::read_to_string(path.join("schedstat")).unwrap_or_default();
        text.split(' ').next().and_then(|nanoseconds| nanoseconds.parse::<f64>().ok()).unwrap_or_default()
    };
    let of_process: f64 = threads.map(|thread| of_thread(thread.unwrap().path())).sum();
    #[allow(clippy::cast_precision_loss, reason = "microseconds of hours fit")]
    let of_children = of_children as f64;
    of_children / 1e3 + of_process / 1e6
}
