//! What is asked for, out of what was typed: a new schedule, a change of one, a list.
//!
//! Decides which options make which fields, and which of them a change names. Leaves to the daemon whether the values make
//! sense, so that they are told wrong in one place and all at once. Must never know how an answer looks.

use std::time::Duration;

use crate::cli::args::{
    CatchUp, ClearArgs, CreateScheduleArgs, LimitArgs, Paused, RetentionArgs, ScheduleListArgs,
    ScheduleOptions, ScheduleSort, SelectionArgs, SetScheduleArgs, TemplateArgs, TimingArgs,
};
use crate::cli::connect::request_id;
use crate::cli::failure::{Failure, exit};
use crate::cli::list::property_filter;
use crate::cli::snapshot::{PAGE, quiesce};
use crate::proto::v1;

/// A schedule that is not there yet.
pub(super) fn draft(args: CreateScheduleArgs) -> v1::Schedule {
    let schedule = Fields::default().schedule(args.options, ClearArgs::default());
    v1::Schedule { name: args.name, paused: args.paused, ..schedule }
}

/// A change of what is given, and of nothing else.
pub(super) fn change(args: SetScheduleArgs) -> Result<v1::UpdateScheduleRequest, Failure> {
    let mut fields = Fields::default();
    let name = fields.one("name", args.name);
    let values = v1::Schedule { name, ..fields.schedule(args.options, args.clear) };
    if fields.given.is_empty() {
        // A mask that names nothing may be read as one that names everything.
        let remedy = "give what is to change; 'vmsnap schedule set --help' lists it";
        return Err(Failure::new(exit::USAGE, "nothing is to change", remedy));
    }
    Ok(v1::UpdateScheduleRequest {
        schedule: args.schedule,
        values: Some(values),
        update_mask: Some(prost_types::FieldMask { paths: fields.given }),
        etag: args.etag,
        request_id: request_id(),
    })
}

/// The first page of a list.
pub(super) fn list(args: ScheduleListArgs) -> v1::ListSchedulesRequest {
    let order_by = match (args.sort, args.reverse) {
        (ScheduleSort::Name, false) => "name",
        (ScheduleSort::Name, true) => "name desc",
        (ScheduleSort::Created, false) => "create_time",
        (ScheduleSort::Created, true) => "create_time desc",
        (ScheduleSort::Next, false) => "next_run_time",
        (ScheduleSort::Next, true) => "next_run_time desc",
    };
    v1::ListSchedulesRequest {
        filter: Some(v1::ScheduleFilter {
            vm: args.vm.unwrap_or_default(),
            name_prefix: args.name_prefix,
            paused: args.paused.map(|paused| paused == Paused::Yes),
        }),
        order_by: order_by.to_owned(),
        page_size: PAGE,
        page_token: String::new(),
    }
}

/// Makes messages out of options, and remembers which fields were given.
#[derive(Default)]
struct Fields {
    given: Vec<String>,
}

impl Fields {
    fn schedule(&mut self, options: ScheduleOptions, clear: ClearArgs) -> v1::Schedule {
        v1::Schedule {
            description: self.one("description", options.description),
            selector: Some(self.selector(options.which)),
            template: Some(self.template(options.what, clear)),
            timing: Some(self.timing(options.when, clear)),
            retention: Some(self.retention(&options.keep)),
            limits: Some(self.limits(&options.limits)),
            ..v1::Schedule::default()
        }
    }

    /// One whole: whoever says `--vm web` of a schedule that took every VM wants it to take no others.
    fn selector(&mut self, which: SelectionArgs) -> v1::VmSelector {
        let selector = v1::VmSelector {
            vms: which.vms,
            labels: which.labels.iter().map(|text| property_filter(text)).collect(),
            account: which.of_account.unwrap_or_default(),
            all: which.all,
        };
        self.given.extend((selector != v1::VmSelector::default()).then(|| "selector".to_owned()));
        selector
    }

    fn template(&mut self, what: TemplateArgs, clear: ClearArgs) -> v1::SnapshotTemplate {
        v1::SnapshotTemplate {
            name: self.one("template.name", what.snapshot_name),
            description: self.one("template.description", what.snapshot_description),
            disks: self.several("template.disks", what.disks, clear.all_disks),
            memory: self.one("template.memory", (what.memory || clear.no_memory).then_some(what.memory)),
            quiesce: self.one("template.quiesce", what.quiesce.map(|how| i32::from(quiesce(Some(how))))),
            mount_points: self.several("template.mount_points", what.mount_points, clear.all_mount_points),
            account: self.one("template.account", what.snapshot_account),
            domain: self.one("template.domain", what.snapshot_domain),
            project: self.one("template.project", what.snapshot_project),
            properties: self
                .several("template.properties", what.properties, clear.no_properties)
                .into_iter()
                .collect(),
        }
    }

    fn timing(&mut self, when: TimingArgs, clear: ClearArgs) -> v1::Timing {
        let catch_up = when.catch_up.map(|catch_up| match catch_up {
            CatchUp::Once => v1::CatchUp::Once.into(),
            CatchUp::Skip => v1::CatchUp::Skip.into(),
        });
        let windows = self.several("timing.blackout_windows", when.blackouts, clear.no_blackout);
        let windows =
            windows.into_iter().map(|(cron, lasts)| v1::BlackoutWindow { cron, duration: Some(span(lasts)) });
        v1::Timing {
            cron: self.one("timing.cron", when.cron),
            time_zone: self.one("timing.time_zone", when.time_zone),
            jitter: self.one("timing.jitter", when.jitter.map(unless_zero)),
            blackout_windows: windows.collect(),
            catch_up: self.one("timing.catch_up", catch_up),
        }
    }

    fn retention(&mut self, keep: &RetentionArgs) -> v1::Retention {
        v1::Retention {
            keep_last: self.one("retention.keep_last", keep.keep_last),
            keep_hourly: self.one("retention.keep_hourly", keep.keep_hourly),
            keep_daily: self.one("retention.keep_daily", keep.keep_daily),
            keep_weekly: self.one("retention.keep_weekly", keep.keep_weekly),
            keep_monthly: self.one("retention.keep_monthly", keep.keep_monthly),
            keep_yearly: self.one("retention.keep_yearly", keep.keep_yearly),
            keep_within: self.one("retention.keep_within", keep.keep_within.map(unless_zero)),
            minimum: self.one("retention.minimum", keep.minimum),
        }
    }

    fn limits(&mut self, limits: &LimitArgs) -> v1::ScheduleLimits {
        v1::ScheduleLimits {
            max_snapshots_per_vm: self.one("limits.max_snapshots_per_vm", limits.max_snapshots),
            max_bytes_per_vm: self.one("limits.max_bytes_per_vm", limits.max_bytes),
            min_free_bytes: self.one("limits.min_free_bytes", limits.min_free),
            max_chain_depth: self.one("limits.max_chain_depth", limits.max_depth),
        }
    }

    fn one<T: Default>(&mut self, field: &str, value: Option<T>) -> T {
        self.given.extend(value.is_some().then(|| field.to_owned()));
        value.unwrap_or_default()
    }

    /// As a whole: what is given replaces what was there.
    fn several<T>(&mut self, field: &str, values: Vec<T>, is_cleared: bool) -> Vec<T> {
        self.given.extend((is_cleared || !values.is_empty()).then(|| field.to_owned()));
        values
    }
}

/// One that no message can hold becomes the longest, for the daemon to refuse: left out, it would mean something else.
fn span(duration: Duration) -> prost_types::Duration {
    duration.try_into().unwrap_or(prost_types::Duration { seconds: i64::MAX, nanos: 0 })
}

fn unless_zero(duration: Duration) -> Option<prost_types::Duration> {
    (!duration.is_zero()).then(|| span(duration))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::args::{Args, Command, ScheduleVerb};

    /// Words are parted by spaces; an underscore stands for a space within one.
    fn parse(line: &str) -> ScheduleVerb {
        let words = ["vmsnap", "schedule"].into_iter().chain(line.split(' '));
        let args = Args::try_parse_from(words.map(|word| word.replace('_', " "))).unwrap();
        match args.command {
            Command::Schedule(verb) => verb,
            other => panic!("{other:?}"),
        }
    }

    fn empty() -> v1::Schedule {
        v1::Schedule {
            selector: Some(v1::VmSelector::default()),
            template: Some(v1::SnapshotTemplate::default()),
            timing: Some(v1::Timing::default()),
            retention: Some(v1::Retention::default()),
            limits: Some(v1::ScheduleLimits::default()),
            ..v1::Schedule::default()
        }
    }

    fn seconds(seconds: i64) -> prost_types::Duration {
        prost_types::Duration { seconds, nanos: 0 }
    }

    /// What follows `create nightly --cron 0_3_*_*_*` makes this of a schedule that has nothing else.
    fn check_draft(options: &str, expected: impl FnOnce(&mut v1::Schedule)) {
        let ScheduleVerb::Create(args) = parse(&format!("create nightly --cron 0_3_*_*_* {options}")) else {
            panic!("{options}")
        };
        let mut schedule = empty();
        "nightly".clone_into(&mut schedule.name);
        "0 3 * * *".clone_into(&mut schedule.timing.as_mut().unwrap().cron);
        expected(&mut schedule);
        assert_eq!(draft(*args), schedule, "{options}");
    }

    #[test]
    fn options_become_a_schedule() {
        check_draft("--vm web --vm db --label env=prod --label backup", |schedule| {
            let labels = vec![
                v1::PropertyFilter { key: "env".to_owned(), value: Some("prod".to_owned()) },
                v1::PropertyFilter { key: "backup".to_owned(), value: None },
            ];
            let vms = vec!["web".to_owned(), "db".to_owned()];
            schedule.selector = Some(v1::VmSelector { vms, labels, ..v1::VmSelector::default() });
        });
        check_draft("--account acme --description for_audits --paused", |schedule| {
            schedule.selector.as_mut().unwrap().account = "acme".to_owned();
            schedule.description = "for audits".to_owned();
            schedule.paused = true;
        });
        check_draft(
            "--all --time-zone Europe/Berlin --jitter 10m --blackout 0_8_*_*_1-5/10h --catch-up skip",
            |schedule| {
                schedule.selector.as_mut().unwrap().all = true;
                schedule.timing = Some(v1::Timing {
                    cron: "0 3 * * *".to_owned(),
                    time_zone: "Europe/Berlin".to_owned(),
                    jitter: Some(seconds(600)),
                    blackout_windows: vec![v1::BlackoutWindow {
                        cron: "0 8 * * 1-5".to_owned(),
                        duration: Some(seconds(36000)),
                    }],
                    catch_up: v1::CatchUp::Skip.into(),
                });
            },
        );
        check_draft(
            "--all --keep-last 3 --keep-hourly 24 --keep-daily 7 --keep-weekly 4 --keep-monthly 12 --keep-yearly 2 \
             --keep-within 7d --minimum 2 --max-snapshots 50 --max-bytes 1G --min-free 2G --max-depth 30",
            |schedule| {
                schedule.selector.as_mut().unwrap().all = true;
                schedule.retention = Some(v1::Retention {
                    keep_last: 3,
                    keep_hourly: 24,
                    keep_daily: 7,
                    keep_weekly: 4,
                    keep_monthly: 12,
                    keep_yearly: 2,
                    keep_within: Some(seconds(7 * 86400)),
                    minimum: 2,
                });
                schedule.limits = Some(v1::ScheduleLimits {
                    max_snapshots_per_vm: 50,
                    max_bytes_per_vm: 1 << 30,
                    min_free_bytes: 2 << 30,
                    max_chain_depth: 30,
                });
            },
        );
        check_draft(
            "--all --disk vda --memory --quiesce off --mount-point /var --snapshot-name {vm}-{time} \
             --snapshot-description by_night --snapshot-account a --snapshot-domain d --snapshot-project p --property k=v",
            |schedule| {
                schedule.selector.as_mut().unwrap().all = true;
                schedule.template = Some(v1::SnapshotTemplate {
                    name: "{vm}-{time}".to_owned(),
                    description: "by night".to_owned(),
                    disks: vec!["vda".to_owned()],
                    memory: true,
                    quiesce: v1::Quiesce::Off.into(),
                    mount_points: vec!["/var".to_owned()],
                    account: "a".to_owned(),
                    domain: "d".to_owned(),
                    project: "p".to_owned(),
                    properties: [("k".to_owned(), "v".to_owned())].into(),
                });
            },
        );
    }

    /// What follows `set nightly` names these fields, and makes this of a schedule that has nothing else.
    fn check_change(options: &str, mask: &[&str], expected: impl FnOnce(&mut v1::Schedule)) {
        let ScheduleVerb::Set(args) = parse(&format!("set nightly {options}")) else { panic!("{options}") };
        let request = change(*args).unwrap();
        let mut schedule = empty();
        expected(&mut schedule);
        assert_eq!(request.update_mask.unwrap().paths, mask, "{options}");
        assert_eq!(request.values, Some(schedule), "{options}");
        assert_eq!(request.schedule, "nightly");
    }

    #[test]
    fn a_change_names_what_is_given() {
        check_change("--name daily --description ", &["name", "description"], |schedule| {
            schedule.name = "daily".to_owned();
        });
        check_change("--cron 0_4_*_*_* --jitter 0", &["timing.cron", "timing.jitter"], |schedule| {
            schedule.timing.as_mut().unwrap().cron = "0 4 * * *".to_owned();
        });
        check_change("--vm web", &["selector"], |schedule| {
            schedule.selector.as_mut().unwrap().vms = vec!["web".to_owned()];
        });
        check_change(
            "--keep-daily 0 --keep-within 0",
            &["retention.keep_daily", "retention.keep_within"],
            |_| {},
        );
        check_change("--memory --quiesce auto", &["template.memory", "template.quiesce"], |schedule| {
            let template = schedule.template.as_mut().unwrap();
            (template.memory, template.quiesce) = (true, v1::Quiesce::Auto.into());
        });
        let cleared = [
            "template.disks",
            "template.memory",
            "template.mount_points",
            "template.properties",
            "timing.blackout_windows",
        ];
        let options = "--all-disks --no-memory --all-mount-points --no-properties --no-blackout";
        check_change(options, &cleared, |_| {});
        check_change(
            "--min-free 1K --max-depth 0",
            &["limits.min_free_bytes", "limits.max_chain_depth"],
            |schedule| {
                schedule.limits.as_mut().unwrap().min_free_bytes = 1024;
            },
        );
    }

    #[test]
    fn a_change_of_nothing_is_refused() {
        let ScheduleVerb::Set(args) = parse("set nightly --etag 1") else { panic!() };
        assert_eq!(change(*args).map_err(|failure| failure.code), Err(exit::USAGE));
    }

    fn check_list(options: &str, order_by: &str, vm: &str, name_prefix: &str, paused: Option<bool>) {
        let ScheduleVerb::List(args) = parse(&format!("list{options}")) else { panic!("{options}") };
        let request = list(args);
        let (vm, name_prefix) = (vm.to_owned(), name_prefix.to_owned());
        assert_eq!(request.filter, Some(v1::ScheduleFilter { vm, name_prefix, paused }), "{options}");
        assert_eq!(request.order_by, order_by, "{options}");
    }

    #[test]
    fn lists_are_filtered_and_sorted() {
        check_list("", "name", "", "", None);
        check_list(" web --sort next --reverse", "next_run_time desc", "web", "", None);
        check_list(" --name-prefix n --paused --sort created", "create_time", "", "n", Some(true));
        check_list(" --paused=no", "name", "", "", Some(false));
    }
}
