//! What was seen, counted; and its summary, in a form that can be kept.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs;
use std::time::{Duration, Instant, SystemTime};

use vmsnap::proto::v1;

use crate::bed::process::status;
use crate::line::outcome;
use crate::thaw::Frozen;
use crate::watch::{Open, Phase};

/// Lives of the daemon shorter than this say nothing of its memory.
const LIFE: Duration = Duration::from_secs(60);
/// Descriptors that come and go: clients, programs.
const SLACK: u64 = 6;
/// In a shorter life the catalog's cache is still filled up.
const LONG_LIFE: Duration = Duration::from_secs(20 * 60);
const HEAP_SLACK_KIB: u64 = 1024;

/// A fault and when what it hit was well again.
#[derive(Debug, Clone)]
pub struct Hit {
    pub fault: &'static str,
    pub open: Vec<Open>,
    pub over: SystemTime,
}

/// What a daemon at rest takes.
#[derive(Debug, Clone, Copy)]
struct Sample {
    life: u32,
    at: Instant,
    resident_kib: u64,
    /// Of that, what no file holds: heap and stacks.
    anonymous_kib: u64,
    descriptors: u64,
    threads: u64,
}

/// All that was counted.
pub struct Figures {
    seed: u64,
    guests: usize,
    begun: Instant,
    pub rounds: BTreeMap<&'static str, u32>,
    strikes: BTreeMap<&'static str, u32>,
    phases: BTreeMap<(&'static str, Phase), BTreeMap<String, u32>>,
    frozen: Vec<Frozen>,
    /// How many guests `vmsnapd thaw` has thawed.
    pub thawed_by_unit: u32,
    /// With the fault.
    recoveries: Vec<(Duration, &'static str)>,
    /// So many operations had to be decided by a person.
    stuck: usize,
    samples: Vec<Sample>,
    pub images_read: usize,
}

impl Figures {
    pub fn new(seed: u64, guests: usize) -> Self {
        Self {
            seed,
            guests,
            begun: Instant::now(),
            rounds: BTreeMap::new(),
            strikes: BTreeMap::new(),
            phases: BTreeMap::new(),
            frozen: Vec::new(),
            thawed_by_unit: 0,
            recoveries: Vec::new(),
            stuck: 0,
            samples: Vec::new(),
            images_read: 0,
        }
    }

    pub fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }

    /// Takes in a round's hits, with what came of the operations that they hit. Gives the longest recovery: from when what
    /// was hit was started again until all that had been under way had ended, or had said what it needs from a person.
    pub fn add(
        &mut self,
        hits: &[Hit],
        ended: &BTreeMap<String, v1::Operation>,
        needed_a_person: &BTreeMap<String, SystemTime>,
    ) -> Duration {
        for hit in hits {
            *self.strikes.entry(hit.fault).or_default() += 1;
            if hit.open.is_empty() {
                let nothing = Phase { kind: "nothing under way".to_owned(), step: String::new() };
                *self.phases.entry((hit.fault, nothing)).or_default().entry(String::new()).or_default() += 1;
            }
            for open in &hit.open {
                let outcome = ended.get(&open.id).map(outcome).unwrap_or_default();
                *self
                    .phases
                    .entry((hit.fault, open.phase.clone()))
                    .or_default()
                    .entry(outcome)
                    .or_default() += 1;
            }
        }
        self.stuck += needed_a_person.len();
        // One that was hit again before it could end counts from the last time.
        let struck: BTreeSet<&String> = hits.iter().flat_map(|hit| &hit.open).map(|open| &open.id).collect();
        let recoveries = struck.into_iter().filter_map(|id| {
            let last = hits.iter().rev().find(|hit| hit.open.iter().any(|open| open.id == *id))?;
            let end: SystemTime = ended.get(id)?.end_time?.try_into().ok()?;
            let end = needed_a_person.get(id).copied().unwrap_or(end);
            Some((end.duration_since(last.over).unwrap_or_default(), last.fault))
        });
        let recoveries: Vec<_> = recoveries.collect();
        self.recoveries.extend(&recoveries);
        recoveries.iter().map(|(took, _)| *took).max().unwrap_or_default()
    }

    pub fn add_frozen(&mut self, frozen: Vec<Frozen>) {
        self.frozen.extend(frozen);
    }

    /// Looks at the process of the daemon, which is at rest.
    pub fn sample(&mut self, life: u32, process: u32) {
        let value = |key| status(process, key);
        let descriptors = fs::read_dir(format!("/proc/{process}/fd")).expect("the daemon runs").count();
        let descriptors = u64::try_from(descriptors).expect("a number of descriptors");
        let (resident_kib, anonymous_kib, threads) = (value("VmRSS:"), value("RssAnon:"), value("Threads:"));
        let sample = Sample { life, at: Instant::now(), resident_kib, anonymous_kib, descriptors, threads };
        self.samples.push(sample);
    }

    /// Panics if a daemon at rest has more open than when it was first at rest; or if its heap grows in the last third of a long
    /// life: until then the catalog's cache fills up.
    pub fn assert_flat(&self) {
        for life in self.lives() {
            let (first, last) = (life[0], life[life.len() - 1]);
            let most = first.descriptors + SLACK;
            assert!(last.descriptors <= most, "descriptors of vmsnapd grow: {first:?}, then {last:?}");
            assert!(
                last.threads <= first.threads + SLACK,
                "threads of vmsnapd grow: {first:?}, then {last:?}"
            );
            if last.at - first.at < LONG_LIFE {
                continue;
            }
            let third = life.len() / 3;
            let most =
                |looks: &[&Sample]| looks.iter().map(|look| look.anonymous_kib).max().unwrap_or_default();
            let (before, at_last) = (most(&life[third..2 * third]), most(&life[2 * third..]));
            let is_flat = at_last <= before + HEAP_SLACK_KIB;
            assert!(is_flat, "the heap of vmsnapd grows: {before} KiB at most, then {at_last} KiB");
        }
    }

    /// The looks at each life of the daemon.
    fn lives(&self) -> Vec<Vec<&Sample>> {
        let lives: BTreeSet<u32> = self.samples.iter().map(|sample| sample.life).collect();
        let of_life = |life| self.samples.iter().filter(|sample| sample.life == life).collect();
        lives.into_iter().map(of_life).collect()
    }

    /// The summary, in Markdown. The first loss ends a run: then it has not come through.
    pub fn summary(&self, outcomes: &BTreeMap<(String, String), u32>, has_come_through: bool) -> String {
        let mut text = String::new();
        self.head(&mut text, outcomes, has_come_through).expect("a string takes everything");
        self.longest_lives(&mut text).expect("a string takes everything");
        asked(&mut text, outcomes).expect("a string takes everything");
        self.faults(&mut text).expect("a string takes everything");
        text
    }

    fn head(
        &self,
        text: &mut String,
        outcomes: &BTreeMap<(String, String), u32>,
        has_come_through: bool,
    ) -> std::fmt::Result {
        let longest = self.recoveries.iter().max();
        let cut_off = self.frozen.iter().filter(|frozen| frozen.was_cut_off).count();
        let thawed = self.frozen.iter().filter(|frozen| !frozen.was_cut_off);
        let longest_freeze = thawed.clone().map(|frozen| frozen.lasted).max().unwrap_or_default();
        writeln!(text, "| what | |\n|---|---|")?;
        writeln!(text, "| seed | {} |", self.seed)?;
        writeln!(text, "| guests | {} |", self.guests)?;
        writeln!(text, "| duration | {:.1} min |", self.begun.elapsed().as_secs_f64() / 60.0)?;
        writeln!(text, "| operations asked for | {} |", outcomes.values().sum::<u32>())?;
        for (fault, rounds) in &self.rounds {
            let strikes = self.strikes.get(fault).copied().unwrap_or_default();
            writeln!(text, "| {fault} | {strikes} in {rounds} rounds |")?;
        }
        let longest = longest.map_or_else(
            || "none".to_owned(),
            |(took, fault)| format!("{:.1} s ({fault}), of {}", took.as_secs_f64(), self.recoveries.len()),
        );
        writeln!(text, "| longest recovery of an operation | {longest} |")?;
        writeln!(text, "| operations that a person had to decide | {} |", self.stuck)?;
        writeln!(
            text,
            "| guests found frozen after a restart of vmsnapd | {}, thawed within {:.2} s; {cut_off} more when it was killed again |",
            thawed.count(),
            longest_freeze.as_secs_f64()
        )?;
        writeln!(
            text,
            "| guests that vmsnapd thaw has thawed before the restart | {} |",
            self.thawed_by_unit
        )?;
        writeln!(text, "| rounds, each with a look at everything | {} |", self.rounds.values().sum::<u32>())?;
        writeln!(text, "| images read and compared | {} |", self.images_read)?;
        let end = if has_come_through { "nothing was lost" } else { "it ended at what is told above" };
        writeln!(text, "| the end | {end} |")
    }

    fn longest_lives(&self, text: &mut String) -> std::fmt::Result {
        writeln!(
            text,
            "\n| life of vmsnapd | looks at rest | memory, KiB: first, last, most | of that heap and stacks | descriptors | threads |"
        )?;
        writeln!(text, "|---|---|---|---|---|---|")?;
        for life in self.lives() {
            let (first, last) = (life[0], life[life.len() - 1]);
            let lasted = last.at - first.at;
            if lasted < LIFE {
                continue;
            }
            let column = |of: fn(&Sample) -> u64| {
                let most = life.iter().map(|sample| of(sample)).max().unwrap_or_default();
                format!("{}, {}, {most}", of(first), of(last))
            };
            writeln!(
                text,
                "| {:.1} min, from minute {:.0} | {} | {} | {} | {} | {} |",
                lasted.as_secs_f64() / 60.0,
                (first.at - self.begun).as_secs_f64() / 60.0,
                life.len(),
                column(|sample| sample.resident_kib),
                column(|sample| sample.anonymous_kib),
                column(|sample| sample.descriptors),
                column(|sample| sample.threads),
            )?;
        }
        Ok(())
    }

    fn faults(&self, text: &mut String) -> std::fmt::Result {
        writeln!(text, "\n| fault | operation | it was at | came to |\n|---|---|---|---|")?;
        for ((fault, phase), outcomes) in &self.phases {
            let outcomes: Vec<String> = outcomes
                .iter()
                .map(|(outcome, count)| format!("{count} {outcome}").trim().to_owned())
                .collect();
            writeln!(text, "| {fault} | {} | {} | {} |", phase.kind, phase.step, outcomes.join("; "))?;
        }
        Ok(())
    }
}

fn asked(text: &mut String, outcomes: &BTreeMap<(String, String), u32>) -> std::fmt::Result {
    writeln!(text, "\n| asked for | came to |\n|---|---|")?;
    let kinds: BTreeSet<&String> = outcomes.keys().map(|(what, _)| what).collect();
    for kind in kinds {
        let of_kind = outcomes.iter().filter(|((what, _), _)| what == kind);
        let came: Vec<String> = of_kind.map(|((_, outcome), count)| format!("{count} {outcome}")).collect();
        writeln!(text, "| {kind} | {} |", came.join("; "))?;
    }
    Ok(())
}
