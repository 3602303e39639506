//! Rules as data, and years of a schedule with a clock that jumps and a daemon that is away.

use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::model::schedule::{CatchUp, Timing};
use crate::plan::due::{Due, due, next};

fn candidate(number: usize, created_at: Timestamp) -> Candidate {
    Candidate {
        id: SnapshotId(Uuid::from_u128(number as u128)),
        name: format!("s{number}").parse().unwrap(),
        created_at,
        taken_up: TakenUp { bytes: 3, freed: 1 },
        tied_by: Vec::new(),
    }
}

fn zone(name: &str) -> Zone {
    name.parse().unwrap()
}

fn decided(candidates: &[Candidate], retention: &Retention) -> VmRetention {
    decide((VmId(Uuid::nil()), "web"), candidates, None, retention, &zone("Europe/Berlin"))
}

/// Prunes until nothing more goes: at most half go at once.
fn settled(mut candidates: Vec<Candidate>, retention: &Retention) -> Vec<Candidate> {
    loop {
        let (doomed, _) = decided(&candidates, retention).doomed();
        if doomed.is_empty() {
            return candidates;
        }
        candidates.retain(|candidate| !doomed.contains(&candidate.id));
    }
}

/// Which of snapshots that were made at these times stay in the end.
fn check(times: &[&str], retention: &Retention, expected: &[usize]) {
    let candidates =
        times.iter().enumerate().map(|(number, time)| candidate(number, time.parse().unwrap())).collect();
    let kept: Vec<u128> =
        settled(candidates, retention).iter().map(|candidate| candidate.id.0.as_u128()).collect();
    assert_eq!(kept, expected.iter().map(|number| *number as u128).collect::<Vec<_>>(), "{retention:?}");
}

#[test]
fn each_rule() {
    let times = [
        "2024-12-31T22:30:00Z",
        "2025-12-31T22:30:00Z",
        // In Berlin it is 2026 already.
        "2025-12-31T23:30:00Z",
        "2026-01-01T10:00:00Z",
        "2026-01-04T10:00:00Z",
        // Monday.
        "2026-01-05T10:00:00Z",
        "2026-01-05T10:30:00Z",
        "2026-01-05T11:10:00Z",
    ];
    let none = Retention::default();
    check(&times, &Retention { last: 2, ..none.clone() }, &[6, 7]);
    check(&times, &Retention { hourly: 2, ..none.clone() }, &[6, 7]);
    check(&times, &Retention { hourly: 3, ..none.clone() }, &[4, 6, 7]);
    check(&times, &Retention { daily: 3, ..none.clone() }, &[3, 4, 7]);
    check(&times, &Retention { weekly: 2, ..none.clone() }, &[4, 7]);
    check(&times, &Retention { monthly: 2, ..none.clone() }, &[1, 7]);
    check(&times, &Retention { yearly: 3, ..none.clone() }, &[0, 1, 7]);
    check(&times, &Retention { within_ms: 90 * 60 * 1000, ..none.clone() }, &[5, 6, 7]);
    check(&times, &Retention { last: 1, yearly: 2, ..none.clone() }, &[1, 7]);
    check(&times, &Retention { last: 100, ..none }, &[0, 1, 2, 3, 4, 5, 6, 7]);
}

#[test]
fn why_and_why_not() {
    let mut candidates: Vec<Candidate> = (0..6)
        .map(|day| candidate(day, format!("2026-01-0{}T10:00:00Z", day + 1).parse().unwrap()))
        .collect();
    candidates[0].tied_by = vec!["held by audit".to_owned()];
    candidates[1].tied_by = vec!["used by a clone".to_owned()];
    let retention = Retention { last: 1, daily: 2, ..Retention::default() };
    let told = |retention: &Retention| -> Vec<(bool, Vec<String>)> {
        let decided = decided(&candidates, retention);
        decided.decisions.into_iter().map(|decision| (decision.keep, decision.reasons)).collect()
    };
    let keep = |reason: &str| (true, vec![reason.to_owned()]);
    let goes = (false, vec!["no rule keeps it".to_owned()]);
    let expected = [
        keep("held by audit"),
        keep("used by a clone"),
        goes.clone(),
        goes.clone(),
        keep("daily 2 of 2"),
        (true, vec!["last 1 of 1".to_owned(), "daily 1 of 2".to_owned()]),
    ];
    assert_eq!(told(&retention), expected);
    // Three may go at once.
    let last_only = Retention { last: 1, ..Retention::default() };
    candidates[0].tied_by.clear();
    let later = keep("goes with a later run: at most half go at once");
    let expected = [goes.clone(), keep("used by a clone"), goes.clone(), goes, later, keep("last 1 of 1")];
    let told: Vec<_> = decided(&candidates, &last_only)
        .decisions
        .into_iter()
        .map(|decision| (decision.keep, decision.reasons))
        .collect();
    assert_eq!(told, expected);
}

fn within(days: u64) -> Retention {
    Retention { within_ms: days * 86_400_000, ..Retention::default() }
}

/// Whatever the clock was set to, and whether it stayed there.
#[test]
fn a_clock_that_is_set_makes_none_old() {
    // It stood years ahead for one, and was set right: that one is as old as what came behind it.
    let mut times = vec!["2026-01-01T00:00:00Z", "2036-01-01T00:00:00Z"];
    times.extend(["2026-01-02T12:00:00Z", "2026-01-03T00:00:00Z", "2026-01-04T00:00:00Z"]);
    check(&times, &within(2), &[1, 2, 3, 4]);
    // Years back it stays.
    times.push("2016-01-01T00:00:00Z");
    check(&times, &within(2), &[0, 1, 2, 3, 4, 5]);
    times.extend(["2016-01-02T00:00:00Z", "2016-01-03T00:00:00Z"]);
    check(&times, &within(2), &[6, 7]);

    // Years ahead it stays: the others grow older by what passes from then on.
    let mut times = vec!["2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z", "2026-01-03T00:00:00Z"];
    times.push("2036-05-01T00:00:00Z");
    check(&times, &within(2), &[1, 2, 3]);
    times.push("2036-05-01T12:00:00Z");
    check(&times, &within(2), &[2, 3, 4]);
    times.extend(["2036-05-02T00:00:00Z", "2036-05-03T00:00:00Z"]);
    check(&times, &within(2), &[4, 5, 6]);
    // Ahead, back, and ahead again.
    let flaps =
        ["2026-01-01T00:00:00Z", "2036-01-01T00:00:00Z", "2026-01-01T06:00:00Z", "2036-01-01T06:00:00Z"];
    check(&flaps, &within(2), &[0, 1, 2, 3]);

    // The other rules count what there is. Four hours of 2036 have taken the place of four of 2026.
    let old = (0..8).map(|hour| format!("2026-01-0{}T10:00:00Z", hour + 1));
    let new = (0..4).map(|hour| format!("2036-01-0{}T10:00:00Z", hour + 1));
    let jumped: Vec<String> = old.chain(new).collect();
    let jumped: Vec<&str> = jumped.iter().map(String::as_str).collect();
    let back: Vec<&str> = [&jumped[8..], &jumped[..8]].concat();
    for counted in [
        Retention { last: 9, ..Retention::default() },
        Retention { hourly: 9, ..Retention::default() },
        Retention { daily: 9, ..Retention::default() },
    ] {
        check(&jumped, &counted, &[3, 4, 5, 6, 7, 8, 9, 10, 11]);
        check(&back, &counted, &[3, 4, 5, 6, 7, 8, 9, 10, 11]);
    }
    check(&jumped, &Retention { monthly: 9, ..Retention::default() }, &[7, 11]);
    check(&back, &Retention { yearly: 9, ..Retention::default() }, &[3, 11]);
}

/// What a rule for months has left is no clock that was set, and goes when that rule lets it go.
#[test]
fn what_is_rare_is_not_young() {
    let months = (1..5).map(|month| format!("2026-0{month}-28T10:00:00Z"));
    let days = (1..10).map(|day| format!("2026-06-0{day}T10:00:00Z"));
    let times: Vec<String> = months.chain(days).collect();
    let times: Vec<&str> = times.iter().map(String::as_str).collect();
    check(&times, &within(7), &[6, 7, 8, 9, 10, 11, 12]);
    check(&times, &Retention { monthly: 3, ..within(7) }, &[2, 3, 6, 7, 8, 9, 10, 11, 12]);
}

/// What goes leaves behind what it does not give back.
#[test]
fn what_it_takes_before_and_after() {
    let times = (1..=4).map(|day| format!("2026-01-0{day}T10:00:00Z").parse().unwrap());
    let candidates: Vec<Candidate> = times.enumerate().map(|(day, time)| candidate(day, time)).collect();
    let decided = decided(&candidates, &Retention { last: 3, ..Retention::default() });
    assert_eq!((decided.all(), decided.doomed().1, decided.kept()), ((4, 12), 1, (3, 11)));
}

#[test]
fn nothing_goes_that_would_leave_too_few() {
    let candidates: Vec<Candidate> = (0..4)
        .map(|day| candidate(day, format!("2026-01-0{}T10:00:00Z", day + 1).parse().unwrap()))
        .collect();
    let retention = Retention { last: 2, minimum: 3, ..Retention::default() };
    let refused = decided(&candidates, &retention);
    assert_eq!(refused.refusal.as_ref().map(|refusal| refusal.reason), Some(Reason::RetentionMinimum));
    assert_eq!(refused.doomed().0, []);
    let enough = Retention { minimum: 2, ..retention };
    assert_eq!(decided(&candidates, &enough).doomed().0.len(), 2);
    assert_eq!(decided(&candidates[..2], &enough).refusal, None, "there is nothing to go");
}

/// What happens to a node between two looks at the clock.
#[derive(Debug, Clone)]
enum Fate {
    /// So many runs come due, and the daemon looks at each.
    Pass { runs: u32 },
    /// The daemon is away for so long.
    Away { hours: i64 },
    /// Somebody sets the clock.
    Jump { hours: i64 },
}

fn fates() -> impl Strategy<Value = Vec<Fate>> {
    let fate = prop_oneof![
        20 => (1_u32..20).prop_map(|runs| Fate::Pass { runs }),
        2 => (1_i64..3000).prop_map(|hours| Fate::Away { hours }),
        1 => (-100_000_i64..100_000).prop_map(|hours| Fate::Jump { hours }),
    ];
    proptest::collection::vec(fate, 1..60)
}

fn policies() -> impl Strategy<Value = Retention> {
    let by_age = (1_u64..20).prop_map(within);
    prop_oneof![by_age, mixed_policies()]
}

fn mixed_policies() -> impl Strategy<Value = Retention> {
    (0_u32..5, 0_u32..30, 0_u32..10, 0_u32..5, 0_u32..4, 0_u64..20, 0_u32..4)
        .prop_map(|(last, hourly, daily, weekly, monthly, days, minimum)| Retention {
            last,
            hourly,
            daily,
            weekly,
            monthly,
            yearly: 0,
            within_ms: days * 86_400_000,
            minimum,
        })
        .prop_filter("it keeps something", Retention::keeps_something)
}

/// A schedule as it runs: its clock, its snapshots, and what must be true of it.
struct Life {
    timing: Timing,
    retention: Retention,
    now: Timestamp,
    seen_until: Timestamp,
    snapshots: Vec<Candidate>,
    taken: usize,
}

impl Life {
    /// One that runs each hour.
    fn new(retention: Retention, catch_up: CatchUp, now: Timestamp) -> Self {
        let timing = Timing {
            cron: "15 * * * *".parse().unwrap(),
            zone: zone("Europe/Berlin"),
            jitter_ms: 0,
            blackouts: Vec::new(),
            catch_up,
        };
        Self { timing, retention, now, seen_until: now, snapshots: Vec::new(), taken: 0 }
    }

    /// Until the next run, and that.
    fn pass(&mut self) {
        let at = next(&self.timing, self.now.max(self.seen_until)).unwrap();
        self.now = at + SignedDuration::from_secs(10);
        assert_eq!(self.look(), 1);
    }

    /// One look at the clock, and all that is done until nothing is due. Gives how many runs there were.
    fn look(&mut self) -> usize {
        let mut runs = 0;
        for _ in 0..10 {
            match due(&self.timing, self.seen_until, self.now) {
                Due::Wait(_) => return runs,
                Due::Missed { .. } | Due::SetBack => self.seen_until = self.now,
                Due::Run { at, is_late, .. } => {
                    assert!(at > self.seen_until && at <= self.now, "it is due");
                    self.seen_until = at;
                    self.run(is_late);
                    runs += 1;
                }
            }
        }
        panic!("it never comes to rest at {}", self.now);
    }

    fn run(&mut self, is_late: bool) {
        self.taken += 1;
        self.snapshots.push(candidate(self.taken, self.now));
        if is_late {
            return;
        }
        let before = self.snapshots.len();
        let decided =
            decide((VmId(Uuid::nil()), "web"), &self.snapshots, None, &self.retention, &self.timing.zone);
        let (doomed, _) = decided.doomed();
        self.snapshots.retain(|snapshot| !doomed.contains(&snapshot.id));
        let newest = self.snapshots.last().map(|snapshot| snapshot.id);
        assert_eq!(newest, Some(SnapshotId(Uuid::from_u128(self.taken as u128))), "the newest stays");
        assert!(doomed.len() <= (before / 2).max(1), "{} of {before} went at once", doomed.len());
        let least = self.retention.least().min(before);
        assert!(self.snapshots.len() >= least, "{} are left of {before}", self.snapshots.len());
        if decided.refusal.is_some() {
            assert_eq!(self.snapshots.len(), before);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever the clock does: one run for each look at the most, and never all of what there was.
    #[test]
    fn years_of_a_schedule(fates in fates(), retention in policies(), once in any::<bool>()) {
        let now: Timestamp = "2026-03-01T00:00:00Z".parse().unwrap();
        let catch_up = if once { CatchUp::Once } else { CatchUp::Skip };
        let mut life = Life::new(retention, catch_up, now);
        for fate in fates {
            let minutes = match fate {
                Fate::Pass { runs } => {
                    for _ in 0..runs {
                        life.pass();
                    }
                    continue;
                }
                Fate::Away { hours } | Fate::Jump { hours } => 60 * hours,
            };
            life.now += SignedDuration::from_mins(minutes);
            prop_assert!(life.look() <= 1, "no storm");
        }
    }

    /// A clock that is set, and stays so, takes nothing away that has not grown old by what has passed.
    #[test]
    fn a_jump_that_stays(days in 1_u64..6, before in 1_usize..200, after in 1_usize..100, years in -12_i64..12) {
        let now: Timestamp = "2026-03-01T00:00:00Z".parse().unwrap();
        let mut life = Life::new(within(days), CatchUp::Once, now);
        for _ in 0..before {
            life.pass();
        }
        life.now += SignedDuration::from_hours(24 * 366 * years);
        for passed in 1..=after {
            life.pass();
            let young = usize::try_from(24 * days).unwrap().min(before + passed);
            prop_assert!(life.snapshots.len() >= young, "{} of {young}", life.snapshots.len());
        }
        // Half at once, and no more than the policy says is left in the end.
        for _ in 0..24 * days + 12 {
            life.pass();
        }
        prop_assert_eq!(life.snapshots.len(), usize::try_from(24 * days).unwrap());
    }

    /// Without anything in between, a policy comes to rest at what it says.
    #[test]
    fn a_policy_holds_what_it_says(last in 1_u32..6, days in 1_u32..15) {
        let retention = Retention { last, daily: days, ..Retention::default() };
        let begin: Timestamp = "2026-01-01T00:30:00Z".parse().unwrap();
        let mut snapshots: Vec<Candidate> = Vec::new();
        for hour in 0..24 * 40 {
            let now = begin + SignedDuration::from_hours(hour);
            snapshots.push(candidate(usize::try_from(hour).unwrap(), now));
            let (doomed, _) = decide((VmId(Uuid::nil()), "web"), &snapshots, None, &retention, &zone("")).doomed();
            snapshots.retain(|snapshot| !doomed.contains(&snapshot.id));
        }
        let made: BTreeSet<Timestamp> = snapshots.iter().map(|snapshot| snapshot.created_at).collect();
        let end = begin + SignedDuration::from_hours(24 * 40 - 1);
        let expected: BTreeSet<Timestamp> = (0..last)
            .map(|hours| end - SignedDuration::from_hours(hours.into()))
            .chain((0..days).map(|day| end - SignedDuration::from_hours(24 * i64::from(day))))
            .collect();
        prop_assert_eq!(made, expected);
    }
}
