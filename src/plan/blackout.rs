//! Blackouts: how far one reaches, whatever its windows are made of.
//!
//! Decides by the times at which windows begin, as the cron expression gives them. Leaves to `due` what becomes of a run that would
//! begin in one. Must never know what time it is.
//!
//! Windows that adjoin are one: a window of a second in each second of a day is passed in one hop, not in 86,400.

use croner::CronComponent;
use jiff::{SignedDuration, Timestamp, Zoned};

use super::due::{local, previous};
use crate::model::schedule::{Blackout, Timing, Zone};

/// The end of the blackout that a time lies in. Another may begin right there.
pub(super) fn end_of(timing: &Timing, time: Timestamp) -> Option<Timestamp> {
    let end = |blackout: &Blackout| {
        let begin = previous(&blackout.cron, &timing.zone, time)?;
        let last = last_adjoining(blackout, &timing.zone, begin);
        last.checked_add(length(blackout)?).ok().filter(|end| time < *end)
    };
    timing.blackouts.iter().filter_map(end).max()
}

/// When the window began that a time lies in. Another may have ended right there.
pub(super) fn begin_of(timing: &Timing, time: Timestamp) -> Option<Timestamp> {
    let begin = |blackout: &Blackout| {
        let begin = previous(&blackout.cron, &timing.zone, time)?;
        begin.checked_add(length(blackout)?).ok().filter(|end| time < *end).map(|_| begin)
    };
    timing.blackouts.iter().filter_map(begin).min()
}

fn length(blackout: &Blackout) -> Option<SignedDuration> {
    i64::try_from(blackout.duration_ms).ok().map(SignedDuration::from_millis)
}

/// The last of the windows that begin with one at `begin` and adjoin each other, as far as the fields of the expression tell: within
/// the minute, the hour or the day.
fn last_adjoining(blackout: &Blackout, zone: &Zone, begin: Timestamp) -> Timestamp {
    let pattern = &blackout.cron.cron().pattern;
    let local = local(zone, begin);
    // One that daylight saving has moved stands where the fields do not tell.
    if !matches!(blackout.cron.cron().is_time_matching(&local), Ok(true)) {
        return begin;
    }
    let mut covered = i64::try_from(blackout.duration_ms / 1000).unwrap_or(i64::MAX);
    let (mut last, mut ahead) = (begin, 0);
    let fields = [
        (&pattern.seconds, 1, i64::from(local.second())),
        (&pattern.minutes, 60, i64::from(local.minute())),
        (&pattern.hours, 3600, i64::from(local.hour())),
    ];
    for (field, unit, at) in fields {
        let values = seconds(field, unit);
        // From the first begin of such a minute, hour or day all is covered, up to the end of its last window.
        let (Some(first), Some(end)) = (values.first(), values.last()) else { return last };
        if values.windows(2).any(|pair| pair[1] - pair[0] > covered) {
            return last;
        }
        covered = covered.saturating_add(end - first);
        ahead += end - at * unit;
        match begin.checked_add(SignedDuration::from_secs(ahead)) {
            Ok(there) if is_as_far(&local, there) => last = there,
            // The clock is changed in between: hop by smaller parts.
            Ok(_) | Err(_) => return last,
        }
    }
    last
}

/// Whether the clock on the wall goes as far as the time that passes.
fn is_as_far(from: &Zoned, to: Timestamp) -> bool {
    from.offset() == from.time_zone().to_offset(to)
}

/// The values of a field.
fn seconds(field: &CronComponent, unit: i64) -> Vec<i64> {
    field.values().into_iter().map(|value| i64::from(value) * unit).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;
    use proptest::sample::select;

    use super::*;
    use crate::model::schedule::{CatchUp, CronPattern};
    use crate::mutation;
    use crate::plan::due::{Due, due, next, next_few};

    fn timing(cron: &str, zone: &str, blackouts: &[(&str, f64)]) -> Timing {
        let blackout = |(cron, hours): &(&str, f64)| Blackout {
            cron: cron.parse().unwrap(),
            duration_ms: Duration::from_secs_f64(hours * 3600.0).as_millis().try_into().unwrap(),
        };
        Timing {
            cron: cron.parse().unwrap(),
            zone: zone.parse().unwrap(),
            jitter_ms: 0,
            blackouts: blackouts.iter().map(blackout).collect(),
            catch_up: CatchUp::Once,
        }
    }

    fn time(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    /// From a time on, the next at which a run begins; empty for never.
    #[track_caller]
    fn check(cron: &str, zone: &str, blackouts: &[(&str, f64)], after: &str, expected: &str) {
        let found = next(&timing(cron, zone, blackouts), time(after));
        let expected = (!expected.is_empty()).then(|| time(expected));
        assert_eq!(found, expected, "{cron} in {zone:?} with {blackouts:?} from {after}");
    }

    const SECOND: f64 = 1.0 / 3600.0;

    #[test]
    fn long_and_adjoining_and_overlapping() {
        let (each_second, after) = ("* * * * * *", "2026-11-23T00:00:00Z");
        // Several days, which 2026-11-28, a Saturday, begins.
        check(each_second, "", &[("0 0 * * SAT", 96.0)], "2026-11-27T23:59:59Z", "2026-12-02T00:00:00Z");
        check(each_second, "", &[("0 0 * * SAT", 168.0)], "2026-11-27T23:59:59Z", "");
        // It begins where the other ends, or before.
        let adjoining = [("0 1 * * *", 2.0), ("0 3 * * *", 4.0), ("0 7 * * *", 1.5)];
        check(each_second, "", &adjoining, "2026-11-23T00:59:59Z", "2026-11-23T08:30:00Z");
        let overlapping = [("0 6 * * *", 3.0), ("0 1 * * *", 5.5), ("30 2 * * *", 1.0)];
        check(each_second, "", &overlapping, "2026-11-23T00:59:59Z", "2026-11-23T09:00:00Z");
        // So many that adjoin that they cannot be counted one by one.
        check(each_second, "", &[("* * 0-22 * * *", SECOND)], after, "2026-11-23T23:00:00Z");
        check(each_second, "", &[("* * * 1-27 * *", SECOND)], after, "2026-11-28T00:00:00Z");
        check(each_second, "", &[("*/10 * * 1-27 * *", 10.0 * SECOND)], after, "2026-11-28T00:00:00Z");
        check(each_second, "", &[("*/10 * * * NOV *", 9.0 * SECOND)], after, "2026-11-23T00:00:09Z");
        check(
            each_second,
            "",
            &[("7-59/4 10-59/7 */3 * * *", 2.0)],
            "2026-11-23T00:10:06Z",
            "2026-11-23T02:59:59Z",
        );
    }

    #[test]
    fn one_that_covers_everything() {
        for blackout in
            [("* * * * * *", SECOND), ("0 0 * * *", 25.0), ("0 0 * * *", 168.0), ("*/5 * * * *", 0.5)]
        {
            check("* * * * * *", "Europe/Berlin", &[blackout], "2026-11-23T00:00:00Z", "");
            check("0 3 * * *", "", &[blackout], "2026-11-23T00:00:00Z", "");
        }
        let halves = [("0 0 * * *", 12.0), ("0 12 * * *", 12.0)];
        check("* * * * * *", "", &halves, "2026-11-23T00:00:00Z", "");
        // Two that leave a second between them, at which nothing is due.
        check("*/2 * * * * *", "", &[("*/2 * * * * *", SECOND)], "2026-11-23T00:00:00Z", "");
        let (all, now) = (timing("0 3 * * *", "", &halves), time("2026-11-23T04:00:00Z"));
        assert_eq!(due(&all, time("2026-11-20T00:00:00Z"), now), Due::Wait(None));
    }

    /// In Berlin clocks go from 02:00 to 03:00 on 2026-03-29, and from 03:00 to 02:00 on 2026-10-25: a window lasts as long as it says.
    #[test]
    fn over_daylight_saving() {
        let (each_second, berlin) = ("* * * * * *", "Europe/Berlin");
        let (spring, autumn) = ("2026-03-28T23:30:00Z", "2026-10-24T22:30:00Z");
        let window = [("0 1 * * *", 4.0)];
        check(each_second, berlin, &window, "2026-03-29T00:00:00Z", "2026-03-29T04:00:00Z");
        check(each_second, berlin, &window, "2026-10-24T23:00:00Z", "2026-10-25T03:00:00Z");
        // What begins in the gap begins at its end; what is repeated begins once.
        let window = [("30 2 * * *", 1.0)];
        check(each_second, berlin, &window, "2026-03-29T00:59:59Z", "2026-03-29T02:00:00Z");
        check(each_second, berlin, &window, "2026-10-25T00:29:59Z", "2026-10-25T01:30:00Z");
        // Windows of a second each, over the change and in the hours around it.
        check(each_second, berlin, &[("* * 0-4 * * *", SECOND)], spring, "2026-03-29T03:00:00Z");
        check(each_second, berlin, &[("* * 0-4 * * *", SECOND)], autumn, "2026-10-25T04:00:00Z");
        check(
            each_second,
            berlin,
            &[("* * 2 * * *", SECOND)],
            "2026-03-29T00:59:59Z",
            "2026-03-29T01:00:00Z",
        );
        check(
            each_second,
            berlin,
            &[("* * 2 * * *", SECOND)],
            "2026-10-24T23:59:59Z",
            "2026-10-25T02:00:00Z",
        );
        // Half an hour, at two.
        let lord_howe = "Australia/Lord_Howe";
        check(
            each_second,
            lord_howe,
            &[("* * 1-2 * * *", SECOND)],
            "2026-10-03T14:29:59Z",
            "2026-10-03T16:00:00Z",
        );
        check(
            each_second,
            lord_howe,
            &[("* * 1-2 * * *", SECOND)],
            "2026-04-04T13:59:59Z",
            "2026-04-04T16:30:00Z",
        );
    }

    fn begins(cron: &CronPattern, zone: &Zone, from: Timestamp, to: Timestamp) -> Vec<Timestamp> {
        let mut at = local(zone, from);
        let mut begins = Vec::new();
        while let Ok(next) = cron.cron().find_next_occurrence(&at, false) {
            if next.timestamp() > to {
                break;
            }
            begins.push(next.timestamp());
            at = next;
        }
        begins
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..mutation::config() })]

        /// As one finds who holds each time against each window.
        #[test]
        fn it_is_what_one_finds_step_by_step(
            cron in select(vec!["*/17 * * * * *", "0 * * * *", "30 2 * * *", "*/10 1-4 * * *", "0 59 * * * *"]),
            windows in proptest::collection::vec(
                (
                    select(vec![
                        "*/20 * 0-3 * * *", "5,35 */2 * * * *", "*/30 1-3 * * *", "30 2 * * *", "0 1 * * SUN",
                        "15-45/10 10-50/20 1,2,4 * * *", "0 */2 * * *", "0 30 2 * * *",
                    ]),
                    select(vec![1_u64, 999, 1000, 10_000, 20_000, 30_000, 90_000, 1_800_000, 3_600_000, 9_000_000]),
                ),
                0..3,
            ),
            zone in select(vec!["UTC", "Europe/Berlin", "Australia/Lord_Howe", "America/New_York"]),
            start in select(vec![
                "2026-03-28T22:00:00Z", "2026-10-24T21:00:00Z", "2026-04-04T12:00:00Z", "2026-10-03T12:00:00Z",
                "2026-03-08T04:00:00Z", "2026-11-01T03:00:00Z", "2026-06-01T00:00:00Z",
            ]),
            minutes in 0..300_i64,
        ) {
            let blackouts: Vec<Blackout> = windows
                .iter()
                .map(|(cron, duration_ms)| Blackout { cron: cron.parse().unwrap(), duration_ms: *duration_ms })
                .collect();
            let timing = Timing { blackouts, ..timing(cron, zone, &[]) };
            let after = time(start) + SignedDuration::from_mins(minutes);
            let until = after + SignedDuration::from_hours(6);
            let windows: Vec<(Timestamp, Timestamp)> = timing
                .blackouts
                .iter()
                .flat_map(|blackout| {
                    let begins = begins(&blackout.cron, &timing.zone, after - SignedDuration::from_hours(3), until);
                    let length = length(blackout).unwrap();
                    begins.into_iter().map(move |begin| (begin, begin + length))
                })
                .collect();
            let is_free = |time: &Timestamp| windows.iter().all(|(begin, end)| time < begin || time >= end);
            let mut expected = begins(&timing.cron, &timing.zone, after, until);
            expected.retain(is_free);
            expected.truncate(20);
            let mut found = next_few(&timing, after, 20);
            found.retain(|time| *time <= until);
            prop_assert_eq!(found, expected);
        }
    }
}
