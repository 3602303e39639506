//! Any request is refused, or a schedule that is shown as it was taken.

use prost::Message;

use super::*;
use crate::api::convert;
use crate::mutation;

fn lasting(seconds: i64) -> prost_types::Duration {
    prost_types::Duration { seconds, nanos: 0 }
}

/// One with something in every field that people set.
fn full() -> v1::Schedule {
    let label = |key: &str, value: Option<&str>| v1::PropertyFilter {
        key: key.to_owned(),
        value: value.map(ToOwned::to_owned),
    };
    v1::Schedule {
        name: "nightly".to_owned(),
        description: "each night".to_owned(),
        selector: Some(v1::VmSelector {
            vms: vec!["web".to_owned()],
            labels: vec![label("tier", Some("db")), label("backup", None)],
            account: "acme".to_owned(),
            all: false,
        }),
        template: Some(v1::SnapshotTemplate {
            name: "{vm}-{count}".to_owned(),
            disks: vec!["vda".to_owned()],
            quiesce: v1::Quiesce::Required.into(),
            mount_points: vec!["/srv".to_owned()],
            properties: [("a".to_owned(), "1".to_owned())].into(),
            ..v1::SnapshotTemplate::default()
        }),
        timing: Some(v1::Timing {
            cron: "0 3 * * *".to_owned(),
            time_zone: "Europe/Berlin".to_owned(),
            jitter: Some(lasting(600)),
            blackout_windows: vec![v1::BlackoutWindow {
                cron: "0 0 * * MON".to_owned(),
                duration: Some(lasting(7200)),
            }],
            catch_up: v1::CatchUp::Skip.into(),
        }),
        retention: Some(v1::Retention {
            keep_last: 3,
            keep_daily: 7,
            keep_within: Some(lasting(86_400)),
            minimum: 2,
            ..v1::Retention::default()
        }),
        limits: Some(v1::ScheduleLimits { max_snapshots_per_vm: 20, ..v1::ScheduleLimits::default() }),
        ..v1::Schedule::default()
    }
}

fn least() -> v1::Schedule {
    v1::Schedule {
        name: "hourly".to_owned(),
        selector: Some(v1::VmSelector { all: true, ..v1::VmSelector::default() }),
        timing: Some(v1::Timing { cron: "0 * * * *".to_owned(), ..v1::Timing::default() }),
        retention: Some(v1::Retention { keep_last: 1, ..v1::Retention::default() }),
        ..v1::Schedule::default()
    }
}

/// One that is taken is the same again when it is read from what is shown of it. Whether it is taken.
fn check(asked: &v1::Schedule) -> bool {
    let mut violations = Violations::default();
    let Some(wish) = violations.take_new_schedule("schedule", asked) else {
        violations.check().expect_err("nothing is wrong, and there is no schedule");
        return false;
    };
    if violations.check().is_err() {
        return false;
    }
    let mut violations = Violations::default();
    let again = violations.take_new_schedule("schedule", &convert::schedule_wish(&wish));
    violations.check().expect("what is shown is refused");
    assert_eq!(again, Some(wish));
    true
}

#[test]
fn good_ones_are_taken() {
    assert!(check(&full()) && check(&least()));
}

proptest::proptest! {
    #![proptest_config(mutation::config())]

    #[test]
    fn any_request_is_refused_or_a_schedule(
        bytes in mutation::bytes([full().encode_to_vec(), least().encode_to_vec()])
    ) {
        if let Ok(asked) = v1::Schedule::decode(bytes.as_slice()) {
            check(&asked);
        }
    }

    #[test]
    fn any_text_is_refused_or_a_time(
        cron in mutation::text(["0 3 * * *", "*/5 * * * * *", "30 2 L * MON#2", "0 0 29 2 *", "0 0 1-7,LW JAN-MAR/2 5L"]),
        time_zone in mutation::text(["Europe/Berlin", "UTC", "Etc/GMT+14", ""]),
        name in mutation::text(["{vm}-{schedule}-{time}-{count}", "{time}", ""]),
    ) {
        let mut asked = full();
        asked.timing = Some(v1::Timing { cron, time_zone, ..asked.timing.unwrap_or_default() });
        asked.template = Some(v1::SnapshotTemplate { name, ..asked.template.unwrap_or_default() });
        check(&asked);
    }
}
