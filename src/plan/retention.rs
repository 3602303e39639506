//! Which snapshots of a schedule stay, and why.
//!
//! Decides by the order in which they were entered, which no clock can turn round, and by what lies between neighbours, not by the
//! clock of now: one that is set, back or forward, makes nobody old. Leaves deleting to `schedule`. It only ever sees READY
//! snapshots of the schedule: those of people are none of its business.

use std::collections::BTreeSet;

use jiff::{SignedDuration, Timestamp, Zoned};

use super::limits::TakenUp;
use crate::model::operation::{Failure, Reason};
use crate::model::schedule::{Retention, Zone};
use crate::model::{SnapshotId, SnapshotName, VmId};

/// A READY snapshot of a schedule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Its identity.
    pub id: SnapshotId,
    /// Its name.
    pub name: SnapshotName,
    /// When it was made.
    pub created_at: Timestamp,
    /// What it takes.
    pub taken_up: TakenUp,
    /// Why it must stay whatever the policy says: holds, clones.
    pub tied_by: Vec<String>,
}

/// What becomes of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// The snapshot.
    pub snapshot: SnapshotId,
    /// Its name.
    pub name: SnapshotName,
    /// When it was made.
    pub created_at: Timestamp,
    /// What it takes.
    pub taken_up: TakenUp,
    /// It stays.
    pub keep: bool,
    /// Why, for people.
    pub reasons: Vec<String>,
}

/// What becomes of all snapshots of a schedule of one VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmRetention {
    /// The VM.
    pub vm: VmId,
    /// Its name.
    pub vm_name: String,
    /// Of each, oldest first.
    pub decisions: Vec<Decision>,
    /// Why nothing is pruned.
    pub refusal: Option<Failure>,
}

impl VmRetention {
    /// Those that go, and what that gives back, in bytes.
    #[must_use]
    pub fn doomed(&self) -> (Vec<SnapshotId>, u64) {
        self.first_doomed(usize::MAX)
    }

    /// So many of them at most, the oldest.
    #[must_use]
    pub fn first_doomed(&self, at_most: usize) -> (Vec<SnapshotId>, u64) {
        let doomed = self.decisions.iter().filter(|decision| !decision.keep);
        doomed.take(at_most).fold((Vec::new(), 0), |(mut ids, freed), decision| {
            ids.push(decision.snapshot);
            (ids, freed.saturating_add(decision.taken_up.freed))
        })
    }

    /// How many there are, and what they take, in bytes.
    #[must_use]
    pub fn all(&self) -> (usize, u64) {
        let bytes = self.decisions.iter().map(|decision| decision.taken_up.bytes);
        (self.decisions.len(), bytes.fold(0, u64::saturating_add))
    }

    /// How many stay, and what they take then, in bytes: what goes leaves behind what it does not give back.
    #[must_use]
    pub fn kept(&self) -> (usize, u64) {
        let ((all, bytes), (doomed, freed)) = (self.all(), self.doomed());
        (all - doomed.len(), bytes.saturating_sub(freed))
    }
}

/// Decides about snapshots that were entered in this order. `next` is when another is made that is not among them yet: it
/// counts as the newest.
#[must_use]
pub fn decide(
    (vm, vm_name): (VmId, &str),
    candidates: &[Candidate],
    next: Option<Timestamp>,
    retention: &Retention,
    zone: &Zone,
) -> VmRetention {
    let times: Vec<Timestamp> = candidates.iter().map(|candidate| candidate.created_at).chain(next).collect();
    let rules = reasons(&times, retention, zone);
    let mut decisions: Vec<Decision> = candidates
        .iter()
        .zip(rules)
        .map(|(candidate, rules)| {
            let reasons: Vec<String> = candidate.tied_by.iter().cloned().chain(rules).collect();
            Decision {
                snapshot: candidate.id,
                name: candidate.name.clone(),
                created_at: candidate.created_at,
                taken_up: candidate.taken_up,
                keep: !reasons.is_empty(),
                reasons,
            }
        })
        .collect();
    let refusal = refuse(&mut decisions, usize::from(next.is_some()), retention);
    if refusal.is_none() {
        spread(&mut decisions, times.len());
    }
    for decision in decisions.iter_mut().filter(|decision| !decision.keep) {
        decision.reasons = vec!["no rule keeps it".to_owned()];
    }
    VmRetention { vm, vm_name: vm_name.to_owned(), decisions, refusal }
}

/// Nothing goes if that would leave fewer than the least.
fn refuse(decisions: &mut [Decision], beside: usize, retention: &Retention) -> Option<Failure> {
    let kept = decisions.iter().filter(|decision| decision.keep).count() + beside;
    if kept >= retention.least() || decisions.iter().all(|decision| decision.keep) {
        return None;
    }
    let message =
        format!("pruning would leave {kept} of its snapshots, and the least is {}", retention.least());
    for decision in decisions.iter_mut().filter(|decision| !decision.keep) {
        decision.keep = true;
        decision.reasons.push(format!("minimum {}: nothing is pruned", retention.least()));
    }
    Some(Failure { reason: Reason::RetentionMinimum, message, causes: Vec::new() })
}

/// A wrong policy, or a wrong clock, takes no more than half at once: there is time to see it. The oldest go first.
fn spread(decisions: &mut [Decision], all: usize) {
    let most = (all / 2).max(1);
    for decision in decisions.iter_mut().filter(|decision| !decision.keep).skip(most) {
        decision.keep = true;
        decision.reasons.push("goes with a later run: at most half go at once".to_owned());
    }
}

/// The rules that keep each.
fn reasons(times: &[Timestamp], retention: &Retention, zone: &Zone) -> Vec<Vec<String>> {
    let mut reasons = vec![Vec::new(); times.len()];
    let newest_first = || (0..times.len()).rev();
    for (place, index) in newest_first().take(count(retention.last)).enumerate() {
        reasons[index].push(format!("last {} of {}", place + 1, retention.last));
    }
    for (name, wanted, period) in periods(retention) {
        let mut seen = BTreeSet::new();
        for index in newest_first() {
            let local = times[index].to_zoned(zone.time_zone().clone());
            if seen.len() == count(wanted) {
                break;
            }
            if seen.insert(period(&local)) {
                reasons[index].push(format!("{name} {} of {wanted}", seen.len()));
            }
        }
    }
    if retention.within_ms > 0 {
        for (index, reason) in young(times, retention.within_ms) {
            reasons[index].push(reason);
        }
    }
    if let Some(newest) = reasons.last_mut().filter(|reasons| reasons.is_empty()) {
        newest.push("the newest".to_owned());
    }
    reasons
}

/// Those that are younger, newest first.
///
/// Age is what lies between neighbours, summed up from the newest: it never turns back where the clock did. A gap that is longer
/// than all of `within` tells nothing of age, since the clock may have been set forward in it: once, it counts as the longest one
/// behind it. A second one is what pruning leaves of old ones, and counts.
fn young(times: &[Timestamp], within_ms: u64) -> Vec<(usize, String)> {
    let within = SignedDuration::from_millis(i64::try_from(within_ms).unwrap_or(i64::MAX));
    let (mut age, mut longest, mut was_passed_over) = (SignedDuration::ZERO, SignedDuration::ZERO, false);
    let mut earliest = times.last().copied().unwrap_or_default();
    let mut young = Vec::new();
    for (index, time) in times.iter().enumerate().rev() {
        let gap = earliest.duration_since(*time).max(SignedDuration::ZERO);
        earliest = earliest.min(*time);
        if gap > within && !was_passed_over {
            was_passed_over = true;
            age += longest;
        } else {
            longest = longest.max(gap);
            age = age.saturating_add(gap);
        }
        if age >= within {
            break;
        }
        let gap = if was_passed_over { ", a longer gap aside" } else { "" };
        young.push((index, format!("younger than {within:#}{gap}")));
    }
    young
}

/// What tells one hour, day, week, month or year from another.
type Period = fn(&Zoned) -> (i16, i64);

fn periods(retention: &Retention) -> [(&'static str, u32, Period); 5] {
    [
        // The hour that is repeated when clocks go back is another one.
        ("hourly", retention.hourly, |time| (0, time.timestamp().as_second().div_euclid(3600))),
        ("daily", retention.daily, |time| (time.year(), time.day_of_year().into())),
        ("weekly", retention.weekly, |time| {
            let week = time.date().iso_week_date();
            (week.year(), week.week().into())
        }),
        ("monthly", retention.monthly, |time| (time.year(), time.month().into())),
        ("yearly", retention.yearly, |time| (time.year(), 0)),
    ]
}

fn count(wanted: u32) -> usize {
    usize::try_from(wanted).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests;
