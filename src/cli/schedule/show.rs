//! Schedules in words: one, and many.
//!
//! Decides how a schedule reads. Leaves to `run` how its runs do. Must never know how it was got: it turns messages into text.

use super::run;
use crate::cli::table::Table;
use crate::cli::words;
use crate::proto::v1;

/// One a line.
pub(super) fn table(schedules: &[v1::Schedule]) -> Table {
    let mut table = Table::new(&["NAME", "CRON", "VMS", "KEEP", "NEXT", "LAST", "PAUSED", "ID"]);
    for schedule in schedules {
        let timing = schedule.timing.clone().unwrap_or_default();
        table.row(vec![
            schedule.name.clone(),
            format!("{} ({})", timing.cron, zone(&timing)),
            vms(schedule),
            keep(schedule),
            words::time(schedule.next_run_time),
            schedule.last_run.as_ref().map(run::in_short).unwrap_or_default(),
            if schedule.paused { "yes" } else { "no" }.to_owned(),
            schedule.id.clone(),
        ]);
    }
    table
}

/// All of one.
pub(super) fn details(schedule: &v1::Schedule) -> String {
    let next = match words::time(schedule.next_run_time) {
        _ if schedule.paused => "none: it rests".to_owned(),
        never if never.is_empty() => "none".to_owned(),
        next => next,
    };
    let mut lines = vec![
        ("id", schedule.id.clone()),
        ("name", schedule.name.clone()),
        ("description", schedule.description.clone()),
        ("paused", if schedule.paused { "yes" } else { "no" }.to_owned()),
        ("vms", vms(schedule)),
    ];
    lines.extend(timing(&schedule.timing.clone().unwrap_or_default()));
    lines.extend(template(&schedule.template.clone().unwrap_or_default()));
    lines.push(("keep", keep(schedule)));
    let minimum = schedule.retention.map_or(0, |retention| retention.minimum).max(1);
    lines.push(("minimum", format!("{minimum} of each VM")));
    lines.extend(limits(&schedule.limits.unwrap_or_default()));
    lines.extend([
        ("next run", next),
        ("last run", schedule.last_run.as_ref().map(run::in_short).unwrap_or_default()),
        ("created", words::time(schedule.create_time)),
        ("created by", schedule.created_by.clone()),
        ("etag", schedule.etag.clone()),
    ]);
    let lines = lines.into_iter().filter(|(_, value)| !value.is_empty());
    lines.map(|(label, value)| format!("{label:<13} {value}")).collect::<Vec<_>>().join("\n")
}

type Line = (&'static str, String);

fn timing(timing: &v1::Timing) -> Vec<Line> {
    let mut lines = vec![
        ("cron", timing.cron.clone()),
        ("time zone", zone(timing).to_owned()),
        ("jitter", words::duration(timing.jitter)),
    ];
    lines.extend(
        timing
            .blackout_windows
            .iter()
            .map(|window| ("blackout", format!("{} for {}", window.cron, words::duration(window.duration)))),
    );
    lines.push(("catch up", words::catch_up(timing.catch_up())));
    lines
}

fn template(template: &v1::SnapshotTemplate) -> Vec<Line> {
    let disks = if template.disks.is_empty() { "all".to_owned() } else { template.disks.join(", ") };
    let mut lines = vec![
        ("disks", disks),
        ("memory", if template.memory { "captured" } else { "" }.to_owned()),
        ("quiesce", words::quiesce(template.quiesce())),
        ("mount points", template.mount_points.join(", ")),
        ("snapshots", template.name.clone()),
        ("described as", template.description.clone()),
        ("account", template.account.clone()),
        ("domain", template.domain.clone()),
        ("project", template.project.clone()),
    ];
    lines.extend(template.properties.iter().map(|(key, value)| ("property", format!("{key}={value}"))));
    lines
}

fn limits(limits: &v1::ScheduleLimits) -> Vec<Line> {
    let mut told = Vec::new();
    if limits.max_snapshots_per_vm > 0 {
        told.push(("limit", format!("{} snapshots of each VM", limits.max_snapshots_per_vm)));
    }
    if limits.max_bytes_per_vm > 0 {
        told.push(("limit", format!("{} of each VM", words::size(limits.max_bytes_per_vm))));
    }
    if limits.min_free_bytes > 0 {
        told.push(("limit", format!("{} stay free", words::size(limits.min_free_bytes))));
    }
    if limits.max_chain_depth > 0 {
        told.push(("limit", format!("{} layers behind each other", limits.max_chain_depth)));
    }
    told
}

fn zone(timing: &v1::Timing) -> &str {
    if timing.time_zone.is_empty() { "UTC" } else { &timing.time_zone }
}

/// Which VMs: those that any of it names, and a VM with labels has all of them.
fn vms(schedule: &v1::Schedule) -> String {
    let selector = schedule.selector.clone().unwrap_or_default();
    if selector.all {
        return "all".to_owned();
    }
    let mut ways = Vec::new();
    if !selector.vms.is_empty() {
        ways.push(selector.vms.join(", "));
    }
    let labels = selector.labels.iter().map(|label| match &label.value {
        Some(value) => format!("{}={value}", label.key),
        None => label.key.clone(),
    });
    let labels: Vec<String> = labels.collect();
    if !labels.is_empty() {
        ways.push(format!("with {}", labels.join(" and ")));
    }
    if !selector.account.is_empty() {
        ways.push(format!("of account {}", selector.account));
    }
    ways.join(" or ")
}

/// What stays: what any of it names.
fn keep(schedule: &v1::Schedule) -> String {
    let retention = schedule.retention.unwrap_or_default();
    let counts = [
        (retention.keep_last, "last"),
        (retention.keep_hourly, "hourly"),
        (retention.keep_daily, "daily"),
        (retention.keep_weekly, "weekly"),
        (retention.keep_monthly, "monthly"),
        (retention.keep_yearly, "yearly"),
    ];
    let counts = counts.into_iter().filter(|(count, _)| *count > 0);
    let mut rules: Vec<String> = counts.map(|(count, what)| format!("{count} {what}")).collect();
    rules.extend(retention.keep_within.map(|within| format!("all of {}", words::duration(Some(within)))));
    rules.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_vms(selector: v1::VmSelector, expected: &str) {
        assert_eq!(vms(&v1::Schedule { selector: Some(selector), ..v1::Schedule::default() }), expected);
    }

    #[test]
    fn a_selector_in_words() {
        let none = v1::VmSelector::default();
        let label = |key: &str, value: Option<&str>| v1::PropertyFilter {
            key: key.to_owned(),
            value: value.map(str::to_owned),
        };
        let named = v1::VmSelector { vms: vec!["web".to_owned(), "db".to_owned()], ..none.clone() };
        check_vms(v1::VmSelector { all: true, ..named.clone() }, "all");
        check_vms(named.clone(), "web, db");
        let labels = vec![label("env", Some("prod")), label("backup", None)];
        check_vms(v1::VmSelector { labels: labels.clone(), ..none }, "with env=prod and backup");
        let account = "acme".to_owned();
        let everything = v1::VmSelector { labels, account, ..named };
        check_vms(everything, "web, db or with env=prod and backup or of account acme");
    }

    fn check_keep(retention: v1::Retention, expected: &str) {
        assert_eq!(keep(&v1::Schedule { retention: Some(retention), ..v1::Schedule::default() }), expected);
    }

    #[test]
    fn a_retention_in_words() {
        let none = v1::Retention::default();
        check_keep(none, "");
        check_keep(v1::Retention { keep_last: 3, keep_daily: 7, ..none }, "3 last, 7 daily");
        let within = prost_types::Duration { seconds: 7 * 86400, nanos: 0 };
        let rules = v1::Retention { keep_hourly: 24, keep_yearly: 1, keep_within: Some(within), ..none };
        check_keep(rules, "24 hourly, 1 yearly, all of 7d");
    }

    fn nightly() -> v1::Schedule {
        v1::Schedule {
            id: "1".to_owned(),
            name: "nightly".to_owned(),
            selector: Some(v1::VmSelector { vms: vec!["web".to_owned()], ..v1::VmSelector::default() }),
            template: Some(v1::SnapshotTemplate {
                quiesce: v1::Quiesce::Required.into(),
                properties: [("k".to_owned(), "v".to_owned())].into(),
                ..v1::SnapshotTemplate::default()
            }),
            timing: Some(v1::Timing {
                cron: "0 3 * * *".to_owned(),
                blackout_windows: vec![v1::BlackoutWindow {
                    cron: "0 8 * * *".to_owned(),
                    duration: Some(prost_types::Duration { seconds: 3600, nanos: 0 }),
                }],
                catch_up: v1::CatchUp::Skip.into(),
                ..v1::Timing::default()
            }),
            retention: Some(v1::Retention { keep_daily: 7, ..v1::Retention::default() }),
            limits: Some(v1::ScheduleLimits { min_free_bytes: 2 << 30, ..v1::ScheduleLimits::default() }),
            paused: true,
            ..v1::Schedule::default()
        }
    }

    #[test]
    fn many_as_a_table() {
        let expected = "NAME     CRON             VMS  KEEP     NEXT  LAST  PAUSED  ID\n\
                        nightly  0 3 * * * (UTC)  web  7 daily  -     -     yes     1";
        assert_eq!(table(&[nightly()]).render(true), expected);
    }

    #[test]
    fn one_with_all_it_says() {
        let expected = "id            1\nname          nightly\npaused        yes\nvms           web\n\
                        cron          0 3 * * *\ntime zone     UTC\nblackout      0 8 * * * for 1h\n\
                        catch up      skip\ndisks         all\nquiesce       required\nproperty      k=v\n\
                        keep          7 daily\nminimum       1 of each VM\nlimit         2.0 GiB stay free\n\
                        next run      none: it rests";
        assert_eq!(details(&nightly()), expected);
    }
}
