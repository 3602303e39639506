//! When a schedule runs: what is due, what was missed, what comes next.
//!
//! Decides by the schedule's own clock: the time up to which runs were begun or told as missed. Leaves to `schedule` what the
//! time is, and to begin a run. A clock that is set forward makes one late run at most; one that is set back lets the schedule
//! wait no longer than it would have.

use jiff::{SignedDuration, Timestamp, Zoned};

use super::blackout;
use crate::model::schedule::{CatchUp, CronPattern, Timing, Zone};

/// A run that begins later than this was missed.
const GRACE: SignedDuration = SignedDuration::from_secs(60);

/// A clock is corrected by less than this, and what was begun stays begun; beyond it, it was set.
const CORRECTION: SignedDuration = SignedDuration::from_hours(1);

/// Missed runs are counted up to so many.
const COUNTED: u32 = 1000;

/// Blackouts that are hopped over, one after the other, before no time is found: of a day each, 27 years of them.
const HOPS: u32 = 10_000;

/// What is to be done now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Due {
    /// Nothing until then; None for ever.
    Wait(Option<Timestamp>),
    /// A run.
    Run {
        /// When it was due.
        at: Timestamp,
        /// It makes up for others, or comes too late to be that one.
        is_late: bool,
        /// How many before it were missed.
        missed: u32,
        /// When the last of them was due.
        last_missed: Option<Timestamp>,
    },
    /// Runs were missed, and are not made up for.
    Missed {
        /// How many.
        count: u32,
        /// When the last of them was due.
        last: Timestamp,
    },
    /// The clock was set back: the schedule's own goes back with it.
    SetBack,
}

/// What is due at `now`, where all up to `seen_until` was dealt with.
#[must_use]
pub fn due(timing: &Timing, seen_until: Timestamp, now: Timestamp) -> Due {
    if seen_until.duration_since(now) > CORRECTION {
        return Due::SetBack;
    }
    let (count, last) = passed(timing, seen_until, now);
    let Some(last) = last else { return Due::Wait(next(timing, clock(seen_until, now))) };
    let free = free_from(timing, now);
    if free != Some(now) {
        // It was due before.
        return Due::Wait(free);
    }
    let is_on_time = now.duration_since(last) <= GRACE;
    if timing.catch_up == CatchUp::Skip && !is_on_time {
        return Due::Missed { count, last };
    }
    let (missed, last_missed) = passed(timing, seen_until, before(last));
    Due::Run { at: last, is_late: !is_on_time || missed > 0, missed, last_missed }
}

/// From when on the next run is looked for: a clock that was corrected runs nothing again.
#[must_use]
pub fn clock(seen_until: Timestamp, now: Timestamp) -> Timestamp {
    if seen_until.duration_since(now) > CORRECTION { now } else { seen_until.max(now) }
}

/// The first time behind `after` at which a run is due.
#[must_use]
pub fn next(timing: &Timing, after: Timestamp) -> Option<Timestamp> {
    let mut hops = HOPS;
    next_within(timing, after, &mut hops)
}

/// [`next`] with so many hops at most, which are counted down.
fn next_within(timing: &Timing, after: Timestamp, hops: &mut u32) -> Option<Timestamp> {
    let mut after = after;
    loop {
        let time = occurrence(&timing.cron, &timing.zone, after)?;
        let Some(end) = blackout::end_of(timing, time) else { return Some(time) };
        *hops = hops.checked_sub(1)?;
        // Its end is no blackout any more.
        after = before(end).max(time);
    }
}

/// The last time up to `until` at which a run was due.
fn latest(timing: &Timing, until: Timestamp) -> Option<Timestamp> {
    let mut until = until;
    for _ in 0..HOPS {
        let time = previous(&timing.cron, &timing.zone, until)?;
        let Some(begin) = blackout::begin_of(timing, time) else { return Some(time) };
        until = before(begin);
    }
    None
}

/// The next times at which a run is due: so many.
#[must_use]
pub fn next_few(timing: &Timing, after: Timestamp, count: usize) -> Vec<Timestamp> {
    std::iter::successors(next(timing, after), |time| next(timing, *time)).take(count).collect()
}

/// The times behind `after` and up to `until`: how many, as far as they are counted, and the last.
#[must_use]
pub fn passed(timing: &Timing, after: Timestamp, until: Timestamp) -> (u32, Option<Timestamp>) {
    let (mut count, mut last, mut hops) = (0, None, HOPS);
    let mut at = after;
    while count < COUNTED
        && let Some(time) = next_within(timing, at, &mut hops).filter(|time| *time <= until)
    {
        (count, last, at) = (count + 1, Some(time), time);
    }
    if count < COUNTED && hops > 0 {
        return (count, last);
    }
    // The rest is not counted.
    let newest = latest(timing, until).filter(|newest| *newest > after);
    (count.max(u32::from(newest.is_some())), newest.max(last))
}

/// The first time from this one on that lies in no blackout.
fn free_from(timing: &Timing, time: Timestamp) -> Option<Timestamp> {
    let mut time = time;
    for _ in 0..HOPS {
        match blackout::end_of(timing, time) {
            Some(end) => time = end,
            None => return Some(time),
        }
    }
    None
}

fn before(time: Timestamp) -> Timestamp {
    time.checked_sub(SignedDuration::from_nanos(1)).unwrap_or(time)
}

fn occurrence(cron: &CronPattern, zone: &Zone, after: Timestamp) -> Option<Timestamp> {
    cron.cron().find_next_occurrence(&local(zone, after), false).ok().map(|time| time.timestamp())
}

/// The last time up to `until`.
pub(super) fn previous(cron: &CronPattern, zone: &Zone, until: Timestamp) -> Option<Timestamp> {
    cron.cron().find_previous_occurrence(&local(zone, until), true).ok().map(|time| time.timestamp())
}

/// In whole seconds, as patterns are.
pub(super) fn local(zone: &Zone, time: Timestamp) -> Zoned {
    Timestamp::from_second(time.as_second()).unwrap_or(time).to_zoned(zone.time_zone().clone())
}

#[cfg(test)]
mod tests {
    use crate::model::schedule::Blackout;

    use super::*;

    fn timing(cron: &str, zone: &str) -> Timing {
        Timing {
            cron: cron.parse().unwrap(),
            zone: zone.parse().unwrap(),
            jitter_ms: 0,
            blackouts: Vec::new(),
            catch_up: CatchUp::Once,
        }
    }

    fn time(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn check_next(cron: &str, zone: &str, after: &str, expected: &[&str]) {
        let times = next_few(&timing(cron, zone), time(after), expected.len());
        assert_eq!(times, expected.iter().map(|text| time(text)).collect::<Vec<_>>(), "{cron} in {zone}");
    }

    /// In Berlin clocks go from 02:00 to 03:00 on 2026-03-29, and from 03:00 to 02:00 on 2026-10-25.
    #[test]
    fn daylight_saving() {
        let berlin = "Europe/Berlin";
        let before = "2026-03-28T00:00:00Z";
        check_next(
            "30 2 * * *",
            berlin,
            before,
            &["2026-03-28T01:30:00Z", "2026-03-29T01:00:00Z", "2026-03-30T00:30:00Z"],
        );
        let before = "2026-10-24T12:00:00Z";
        check_next("30 2 * * *", berlin, before, &["2026-10-25T00:30:00Z", "2026-10-26T01:30:00Z"]);
        let before = "2026-10-24T23:59:00Z";
        let hours =
            ["2026-10-25T00:00:00Z", "2026-10-25T01:00:00Z", "2026-10-25T02:00:00Z", "2026-10-25T03:00:00Z"];
        check_next("0 * * * *", berlin, before, &hours);
        check_next(
            "0 * * * *",
            berlin,
            "2026-03-29T00:30:00Z",
            &["2026-03-29T01:00:00Z", "2026-03-29T02:00:00Z"],
        );
        // Twice a day is no fixed time: it misses the gap, and runs both times in the hour that is repeated.
        check_next(
            "30 2,14 * * *",
            berlin,
            "2026-03-28T12:00:00Z",
            &["2026-03-28T13:30:00Z", "2026-03-29T12:30:00Z", "2026-03-30T00:30:00Z"],
        );
        let twice = ["2026-10-25T00:30:00Z", "2026-10-25T01:30:00Z", "2026-10-25T13:30:00Z"];
        check_next("30 2,14 * * *", berlin, "2026-10-24T13:00:00Z", &twice);
        // Nor are several seconds of one minute.
        check_next("*/30 30 2 * * *", berlin, "2026-03-29T00:00:00Z", &["2026-03-30T00:30:00Z"]);
        check_next("0 30 2 * * *", berlin, "2026-03-29T00:00:00Z", &["2026-03-29T01:00:00Z"]);
        check_next("0 3 29 2 *", "", "2026-11-28T00:00:00Z", &["2028-02-29T03:00:00Z"]);
    }

    #[test]
    fn nothing_begins_in_a_blackout() {
        let mut timing = timing("*/30 * * * *", "");
        let blackout =
            |cron: &str, hours: u64| Blackout { cron: cron.parse().unwrap(), duration_ms: hours * 3_600_000 };
        timing.blackouts = vec![blackout("0 8 * * MON-FRI", 10)];
        let times = next_few(&timing, time("2026-11-27T07:15:00Z"), 2);
        assert_eq!(times, [time("2026-11-27T07:30:00Z"), time("2026-11-27T18:00:00Z")]);
        timing.blackouts = vec![blackout("0 0 * * *", 25)];
        assert_eq!(next(&timing, time("2026-11-27T07:15:00Z")), None, "it is always in one");
    }

    /// Of what was missed the last is told, also where it lies before a blackout and thousands before it.
    #[test]
    fn the_last_that_was_missed_is_not_in_a_blackout() {
        let mut timing = timing("30 * * * *", "");
        timing.blackouts = vec![Blackout { cron: "0 8 * * *".parse().unwrap(), duration_ms: 10 * 3_600_000 }];
        let (count, last) = passed(&timing, time("2026-01-01T00:00:00Z"), time("2026-11-27T18:10:00Z"));
        assert_eq!((count, last), (COUNTED, Some(time("2026-11-27T07:30:00Z"))));
        // Where there are more blackouts than are looked at, too: a minute of each but a second, save in the last hour of a day.
        let mut timing = self::timing("* * * * *", "");
        timing.blackouts = vec![Blackout { cron: "* 0-22 * * *".parse().unwrap(), duration_ms: 59_000 }];
        let (count, last) = passed(&timing, time("2026-01-01T00:00:00Z"), time("2026-01-30T12:00:30Z"));
        assert_eq!((count, last), (420, Some(time("2026-01-29T23:59:00Z"))));
    }

    #[allow(clippy::needless_pass_by_value, reason = "cases read better by value")]
    fn check_due(timing: &Timing, seen_until: &str, now: &str, expected: Due) {
        assert_eq!(due(timing, time(seen_until), time(now)), expected, "seen until {seen_until}, now {now}");
    }

    #[test]
    fn what_is_due() {
        let run = |at: &str, is_late, missed, last: Option<&str>| Due::Run {
            at: time(at),
            is_late,
            missed,
            last_missed: last.map(time),
        };
        let mut hourly = timing("0 * * * *", "");
        let at = |hour: &str| format!("2026-11-28T{hour}Z");
        let (one, two) = (at("01:00:00"), at("02:00:00"));
        check_due(&hourly, &one, &at("01:59:59"), Due::Wait(Some(time(&two))));
        check_due(&hourly, &one, &at("02:00:30"), run(&two, false, 0, None));
        check_due(&hourly, &one, &at("02:30:00"), run(&two, true, 0, None));
        check_due(&hourly, &one, &at("05:30:00"), run(&at("05:00:00"), true, 3, Some(&at("04:00:00"))));
        // Years later: one, and no storm.
        let later = due(&hourly, time(&one), time("2036-11-28T05:30:00Z"));
        assert!(matches!(later, Due::Run { is_late: true, missed: COUNTED, .. }), "{later:?}");
        hourly.catch_up = CatchUp::Skip;
        check_due(&hourly, &one, &at("05:30:00"), Due::Missed { count: 4, last: time(&at("05:00:00")) });
        check_due(&hourly, &one, &at("05:00:10"), run(&at("05:00:00"), true, 3, Some(&at("04:00:00"))));
        // An hour more than a correction, and less.
        check_due(&hourly, &at("05:00:00"), &at("03:59:59"), Due::SetBack);
        check_due(&hourly, &at("05:00:00"), &at("04:30:00"), Due::Wait(Some(time(&at("06:00:00")))));
        check_due(&hourly, "2036-01-01T00:00:00Z", &at("05:00:00"), Due::SetBack);
    }

    #[test]
    fn what_is_made_up_for_waits_for_the_end_of_a_blackout() {
        let mut daily = timing("0 3 * * *", "");
        daily.blackouts = vec![Blackout { cron: "0 8 * * *".parse().unwrap(), duration_ms: 3_600_000 }];
        let seen = "2026-11-27T03:00:00Z";
        check_due(&daily, seen, "2026-11-28T08:30:00Z", Due::Wait(Some(time("2026-11-28T09:00:00Z"))));
        let made_up = due(&daily, time(seen), time("2026-11-28T09:00:00Z"));
        assert!(matches!(made_up, Due::Run { is_late: true, .. }), "{made_up:?}");
    }
}
