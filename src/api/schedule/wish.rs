//! What people set of a schedule, as a client writes it: read, and checked.
//!
//! Decides how much there may be of anything, and what is missing; tells of all that is wrong at once, by the path of the field.
//! Leaves to `model` what a cron expression, a time zone or a name is, and to `schedule` whether it ever runs. Must never know
//! whether the schedule exists, or what VMs there are.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::api::request::duration;
use crate::api::snapshot::{MOUNT_POINTS_LIMIT, quiesce};
use crate::api::status::Violations;
use crate::model::DiskTarget;
use crate::model::schedule::{
    Blackout, CatchUp, Retention, ScheduleLimits, ScheduleWish, SnapshotTemplate, Timing, VmSelector,
};
use crate::model::snapshot::Owner;
use crate::proto::v1;

const DAY: u64 = 24 * 60 * 60;

/// Most VMs that are named, and most disks.
const NAMES_LIMIT: usize = 1000;

/// Most windows in which no run begins.
const WINDOWS_LIMIT: usize = 32;

/// Longest of them.
const LONGEST_WINDOW: Duration = Duration::from_secs(7 * DAY);

/// Longest time that VMs are spread over.
const LONGEST_JITTER: Duration = Duration::from_secs(DAY);

/// Longest age by which snapshots are kept: a hundred years of the Julian calendar.
const LONGEST_AGE: Duration = Duration::from_secs(36_525 * DAY);

/// The shortest time that is kept as one.
const MILLISECOND: Duration = Duration::from_millis(1);

/// Most snapshots that one rule keeps.
const KEEP_LIMIT: u32 = 10_000;

impl Violations {
    /// What people set, of a schedule that stands in the field `at`. None if anything is wrong.
    pub(super) fn take_schedule(&mut self, at: &str, asked: &v1::Schedule) -> Option<ScheduleWish> {
        let name = self.take(&format!("{at}.name"), asked.name.parse());
        self.text(&format!("{at}.description"), &asked.description);
        let part = |part: &str| format!("{at}.{part}");
        let selector = self.take_selector(&part("selector"), &asked.selector.clone().unwrap_or_default());
        let template = self.take_template(&part("template"), &asked.template.clone().unwrap_or_default());
        let timing = self.take_timing(&part("timing"), &asked.timing.clone().unwrap_or_default());
        let retention = self.take_retention(&part("retention"), asked.retention.unwrap_or_default());
        let asked_limits = asked.limits.unwrap_or_default();
        let limits = ScheduleLimits {
            snapshots: asked_limits.max_snapshots_per_vm,
            bytes: asked_limits.max_bytes_per_vm,
            free_bytes: asked_limits.min_free_bytes,
            chain_depth: asked_limits.max_chain_depth,
        };
        let description = asked.description.clone();
        Some(ScheduleWish {
            name: name?,
            description,
            selector,
            template: template?,
            timing: timing?,
            retention,
            limits,
        })
    }

    /// The same of one that is to be made: its client does not say what only the daemon can know.
    pub(super) fn take_new_schedule(&mut self, at: &str, asked: &v1::Schedule) -> Option<ScheduleWish> {
        for (field, is_set) in [
            ("id", !asked.id.is_empty()),
            ("next_run_time", asked.next_run_time.is_some()),
            ("last_run", asked.last_run.is_some()),
            ("create_time", asked.create_time.is_some()),
            ("created_by", !asked.created_by.is_empty()),
            ("etag", !asked.etag.is_empty()),
        ] {
            if is_set {
                self.add(&format!("{at}.{field}"), "the daemon sets it: leave it empty");
            }
        }
        self.take_schedule(at, asked)
    }

    fn take_selector(&mut self, at: &str, asked: &v1::VmSelector) -> VmSelector {
        let field = format!("{at}.vms");
        self.at_most(&field, asked.vms.len(), NAMES_LIMIT);
        for vm in &asked.vms {
            self.required(&field, vm);
        }
        self.label(&format!("{at}.account"), &asked.account);
        let labels = self.take_labels(&format!("{at}.labels"), &asked.labels);
        if asked.vms.is_empty() && asked.labels.is_empty() && asked.account.is_empty() && !asked.all {
            self.add(at, "it takes no VM: name some, or labels, or an account, or take all");
        }
        let vms = asked.vms.iter().cloned().collect();
        VmSelector { vms, labels, account: asked.account.clone(), all: asked.all }
    }

    fn take_labels(&mut self, at: &str, asked: &[v1::PropertyFilter]) -> BTreeMap<String, Option<String>> {
        self.few(at, asked.len());
        let mut labels = BTreeMap::new();
        for label in asked {
            self.required(at, &label.key);
            self.label(at, label.value.as_deref().unwrap_or_default());
            if labels.insert(label.key.clone(), label.value.clone()).is_some() {
                self.add(at, "a key stands there twice, and no VM has two values of one label");
            }
        }
        labels
    }

    fn take_template(&mut self, at: &str, asked: &v1::SnapshotTemplate) -> Option<SnapshotTemplate> {
        let part = |part: &str| format!("{at}.{part}");
        let name = self.parse(&part("name"), &asked.name);
        self.text(&part("description"), &asked.description);
        let disks = self.take_disks(&part("disks"), &asked.disks);
        let is_known = v1::Quiesce::try_from(asked.quiesce).is_ok();
        self.known(&part("quiesce"), is_known);
        let mount_points = part("mount_points");
        self.at_most(&mount_points, asked.mount_points.len(), MOUNT_POINTS_LIMIT);
        for path in &asked.mount_points {
            self.text(&mount_points, path);
            if !path.starts_with('/') {
                self.add(&mount_points, "each is an absolute path in the guest");
            }
        }
        for (field, value) in
            [("account", &asked.account), ("domain", &asked.domain), ("project", &asked.project)]
        {
            self.label(&part(field), value);
        }
        self.properties(&part("properties"), asked.properties.iter());
        let [account, domain, project] = [&asked.account, &asked.domain, &asked.project].map(Clone::clone);
        Some(SnapshotTemplate {
            name: name?,
            description: asked.description.clone(),
            disks,
            memory: asked.memory,
            quiesce: quiesce(asked.quiesce()),
            mount_points: asked.mount_points.clone(),
            owner: Owner { account, domain, project },
            properties: asked.properties.clone(),
        })
    }

    fn take_disks(&mut self, at: &str, asked: &[String]) -> BTreeSet<DiskTarget> {
        self.at_most(at, asked.len(), NAMES_LIMIT);
        asked.iter().filter_map(|disk| self.take(at, disk.parse())).collect()
    }

    fn take_timing(&mut self, at: &str, asked: &v1::Timing) -> Option<Timing> {
        let part = |part: &str| format!("{at}.{part}");
        let cron = self.parse(&part("cron"), &asked.cron);
        let zone = self.parse(&part("time_zone"), &asked.time_zone);
        let jitter_ms = self.take_millis(&part("jitter"), asked.jitter, Duration::ZERO, LONGEST_JITTER);
        let blackouts = self.take_blackouts(&part("blackout_windows"), &asked.blackout_windows);
        let is_known = v1::CatchUp::try_from(asked.catch_up).is_ok();
        self.known(&part("catch_up"), is_known);
        let catch_up = match asked.catch_up() {
            v1::CatchUp::Unspecified | v1::CatchUp::Once => CatchUp::Once,
            v1::CatchUp::Skip => CatchUp::Skip,
        };
        Some(Timing { cron: cron?, zone: zone?, jitter_ms, blackouts, catch_up })
    }

    fn take_blackouts(&mut self, at: &str, asked: &[v1::BlackoutWindow]) -> Vec<Blackout> {
        self.at_most(at, asked.len(), WINDOWS_LIMIT);
        let mut blackouts = Vec::new();
        // To find out that an expression never comes to pass takes a while: not for as many as fit into a request.
        for (index, window) in asked.iter().take(WINDOWS_LIMIT).enumerate() {
            let cron = self.parse(&format!("{at}[{index}].cron"), &window.cron);
            let field = format!("{at}[{index}].duration");
            if window.duration.is_none() {
                self.add(&field, "it is missing");
            }
            let duration_ms = self.take_millis(&field, window.duration, MILLISECOND, LONGEST_WINDOW);
            blackouts.extend(cron.map(|cron| Blackout { cron, duration_ms }));
        }
        blackouts
    }

    fn take_retention(&mut self, at: &str, asked: v1::Retention) -> Retention {
        let part = |part: &str| format!("{at}.{part}");
        for (field, count) in [
            ("keep_last", asked.keep_last),
            ("keep_hourly", asked.keep_hourly),
            ("keep_daily", asked.keep_daily),
            ("keep_weekly", asked.keep_weekly),
            ("keep_monthly", asked.keep_monthly),
            ("keep_yearly", asked.keep_yearly),
            ("minimum", asked.minimum),
        ] {
            if count > KEEP_LIMIT {
                self.add(&part(field), format!("at most {KEEP_LIMIT}"));
            }
        }
        let within = asked.keep_within;
        let retention = Retention {
            last: asked.keep_last,
            hourly: asked.keep_hourly,
            daily: asked.keep_daily,
            weekly: asked.keep_weekly,
            monthly: asked.keep_monthly,
            yearly: asked.keep_yearly,
            within_ms: self.take_millis(&part("keep_within"), within, MILLISECOND, LONGEST_AGE),
            minimum: asked.minimum,
        };
        // One that is wrong is told of already.
        if !retention.keeps_something() && within.is_none() {
            self.add(at, "it keeps nothing: at least one of its rules has to");
        }
        if retention.minimum <= KEEP_LIMIT && retention.never_prunes() {
            self.add(at, "its rules keep fewer than the minimum, so that nothing would ever be pruned");
        }
        retention
    }

    /// Milliseconds; 0 where none are given.
    fn take_millis(
        &mut self,
        field: &str,
        asked: Option<prost_types::Duration>,
        least: Duration,
        most: Duration,
    ) -> u64 {
        let Some(asked) = asked else { return 0 };
        let wanted = duration(asked).filter(|wanted| (least..=most).contains(wanted));
        let millis = wanted.and_then(|wanted| u64::try_from(wanted.as_millis()).ok());
        let problem = || format!("from {} s to {} s", least.as_secs_f64(), most.as_secs());
        self.take(field, millis.ok_or_else(problem)).unwrap_or_default()
    }

    fn at_most(&mut self, field: &str, number: usize, most: usize) {
        if number > most {
            self.add(field, format!("it has {number} entries, at most {most} are kept"));
        }
    }
}

#[cfg(test)]
mod tests;
