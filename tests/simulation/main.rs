//! Whole nodes under everything at once, by the thousand: several VMs, clients that ask at the same time, guests that write,
//! people who meddle, calls that fail or lie or come late, events that are late, a daemon that dies at any turn
//! and in the middle of any call. While all of it goes on, and after each crash, everything reads what it must.
//!
//! A node is made from a number, its seed, and is the same each time: a failure names the seed, and
//! `VMSNAP_SEED=n cargo test --test simulation seeds` runs it alone. `VMSNAP_SEEDS=n` runs so many; `make soak` many.

#![allow(clippy::unwrap_used, reason = "a test stops where it fails")]
#![allow(clippy::print_stdout, reason = "what was tried is told")]

#[path = "../simulated/mod.rs"]
mod simulated;

mod deployed;
mod mishaps;
mod node;
mod oracle;
mod people;
mod rest;
mod tally;
mod wishes;

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use node::Node;
use tally::Tally;
use tracing_subscriber::EnvFilter;

/// A run ends when so many seeds have failed: one is enough to fail it, and a few show whether they fail alike.
const FAILURES: usize = 3;

/// So many seeds in a run of all tests.
const SEEDS: u64 = 300;

#[test]
fn seeds() {
    if let Some(seed) = number("VMSNAP_SEED") {
        // What the daemon says of it, as RUST_LOG has it.
        tracing_subscriber::fmt().with_env_filter(EnvFilter::from_default_env()).without_time().init();
        let tally = Node::new(seed).run().unwrap_or_else(|problem| panic!("{problem}"));
        println!("{tally:#?}");
        return;
    }
    let first = number("VMSNAP_FIRST_SEED").unwrap_or(1);
    let seeds = first..first + number("VMSNAP_SEEDS").unwrap_or(SEEDS);
    let workers = thread::available_parallelism().map_or(1, usize::from);
    let failed = AtomicUsize::new(0);
    let (tallies, failures): (Vec<_>, Vec<_>) = thread::scope(|scope| {
        let runs: Vec<_> = (0..workers)
            .map(|worker| {
                let mine = seeds.clone().skip(worker).step_by(workers);
                let failed = &failed;
                scope.spawn(move || run_all(mine, failed))
            })
            .collect();
        runs.into_iter().map(|run| run.join().expect("a run catches what goes wrong")).unzip()
    });
    let tally: Tally = tallies.into_iter().sum();
    println!("seeds {}..{}: {tally:#?}", seeds.start, seeds.end);
    let failures: Vec<String> = failures.into_iter().flatten().collect();
    assert!(failures.is_empty(), "{} seeds failed:\n{}", failures.len(), failures.join("\n"));
    check_reach(&seeds, &tally);
}

/// A run that never comes to what it is to try shows nothing.
fn check_reach(seeds: &Range<u64>, tally: &Tally) {
    if seeds.end - seeds.start < SEEDS {
        return;
    }
    for (what, count) in tally.counts() {
        assert!(count > 0, "no {what}: {tally:#?}");
    }
}

/// Gives what happened, and the failures in words. `failed` counts those of all workers.
fn run_all(seeds: impl Iterator<Item = u64>, failed: &AtomicUsize) -> (Tally, Vec<String>) {
    let (mut tally, mut failures) = (Tally::default(), Vec::new());
    for seed in seeds.take_while(|_| failed.load(Ordering::Relaxed) < FAILURES) {
        let before = failures.len();
        match catch_unwind(AssertUnwindSafe(|| Node::new(seed).run())) {
            Ok(Ok(more)) => tally += more,
            Ok(Err(problem)) => failures.push(problem),
            Err(_) => failures.push(format!("seed {seed}: it panicked")),
        }
        failed.fetch_add(failures.len() - before, Ordering::Relaxed);
    }
    (tally, failures)
}

#[test]
fn a_seed_is_the_same_each_time() {
    for seed in 1..=8 {
        let traces = [(); 2].map(|()| {
            let mut node = Node::new(seed);
            node.run().unwrap_or_else(|problem| panic!("{problem}"));
            node.trace
        });
        let differs = traces[0].iter().zip(&traces[1]).position(|(one, other)| one != other);
        let around = differs.map(|at| [0, 1].map(|run| traces[run][at.saturating_sub(6)..=at].to_vec()));
        assert!(differs.is_none(), "seed {seed}: {around:#?}");
        assert_eq!(traces[0].len(), traces[1].len(), "seed {seed}");
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is no number")))
}
