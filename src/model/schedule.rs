//! A schedule: which VMs, what to take of them, when, and what to keep.
//!
//! Decides what a well-formed schedule is. Leaves when it is due and what goes to `plan`, runs to `schedule`. Must never know
//! what time it is.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use croner::Cron;
use jiff::Timestamp;
use jiff::tz::{TimeZone, TimeZoneDatabase};
use serde::{Deserialize, Serialize};

use super::access::Labels;
use super::ids::{DiskTarget, ScheduleId, ScheduleName, VmId};
use super::request::Quiesce;
use super::snapshot::Owner;

mod run;

pub use run::{RunStage, RunState, RunVm, ScheduleRun};

/// Takes and prunes snapshots by the clock.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Schedule {
    /// Its identity.
    pub id: ScheduleId,
    /// What people set.
    #[serde(flatten)]
    pub wish: ScheduleWish,
    /// It rests: it neither takes nor prunes.
    pub is_paused: bool,
    /// When it was made.
    pub created_at: Timestamp,
    /// Who made it.
    pub created_by: String,
    /// Rises with every change. The `etag` of the contract.
    pub generation: u64,
}

/// What people set of a schedule.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ScheduleWish {
    /// Its name.
    pub name: ScheduleName,
    /// Any text.
    pub description: String,
    /// Which VMs.
    pub selector: VmSelector,
    /// What to take of each.
    pub template: SnapshotTemplate,
    /// When.
    pub timing: Timing,
    /// What to keep.
    pub retention: Retention,
    /// What not to exceed.
    pub limits: ScheduleLimits,
}

/// Which VMs: those that any of these names.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmSelector {
    /// By name or UUID.
    pub vms: BTreeSet<String>,
    /// With all of these labels, and this value where one is given.
    pub labels: BTreeMap<String, Option<String>>,
    /// Whose label `account` is this; empty for none.
    pub account: String,
    /// Every VM of the node.
    pub all: bool,
}

/// What to take of a VM.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SnapshotTemplate {
    /// How snapshots are called.
    pub name: NameTemplate,
    /// Their description.
    pub description: String,
    /// The disks to take; empty for all.
    pub disks: BTreeSet<DiskTarget>,
    /// Capture memory, too.
    pub memory: bool,
    /// How far to quiesce the guest.
    pub quiesce: Quiesce,
    /// The mount points to freeze; empty for all.
    pub mount_points: Vec<String>,
    /// Whose the snapshots are.
    pub owner: Owner,
    /// Their properties.
    pub properties: BTreeMap<String, String>,
}

/// When a schedule runs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Timing {
    /// At which times.
    pub cron: CronPattern,
    /// In which time zone.
    pub zone: Zone,
    /// The VMs are spread over so many milliseconds.
    pub jitter_ms: u64,
    /// No run begins within these.
    pub blackouts: Vec<Blackout>,
    /// What becomes of runs that were missed.
    pub catch_up: CatchUp,
}

/// A time in which no run begins.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Blackout {
    /// When it begins, in the schedule's time zone.
    pub cron: CronPattern,
    /// How long it lasts, in milliseconds.
    pub duration_ms: u64,
}

/// What becomes of runs that were missed while the daemon was down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CatchUp {
    /// One run, late, however many were missed.
    Once,
    /// None: the next time is waited for.
    Skip,
}

/// What a schedule keeps of its own READY snapshots of each VM. A snapshot stays if any rule keeps it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retention {
    /// The newest so many.
    pub last: u32,
    /// The newest of each of the last so many hours that have one.
    pub hourly: u32,
    /// The same of days.
    pub daily: u32,
    /// The same of weeks, which begin on Monday.
    pub weekly: u32,
    /// The same of months.
    pub monthly: u32,
    /// The same of years.
    pub yearly: u32,
    /// All that are younger than so many milliseconds; 0 for none.
    pub within_ms: u64,
    /// Nothing is pruned that would leave fewer.
    pub minimum: u32,
}

/// What a schedule must not exceed for each VM; 0 is no limit. A run that would is skipped for the VM.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScheduleLimits {
    /// Snapshots of the schedule.
    pub snapshots: u32,
    /// Bytes that they take.
    pub bytes: u64,
    /// Bytes that must stay free where the disks are.
    pub free_bytes: u64,
    /// Layers behind each other on a disk.
    pub chain_depth: u32,
}

impl VmSelector {
    /// Whether it takes a VM, on which these labels are written.
    #[must_use]
    pub fn takes(&self, id: VmId, name: &str, labels: &Labels) -> bool {
        let written = |key: &str| labels.0.get(key);
        let has = |(key, value): (&String, &Option<String>)| {
            written(key).is_some_and(|written| value.as_ref().is_none_or(|value| value == written))
        };
        self.all
            || self.vms.contains(name)
            || self.vms.iter().any(|wanted| wanted.parse() == Ok(id))
            || (!self.labels.is_empty() && self.labels.iter().all(has))
            || (!self.account.is_empty() && written("account") == Some(&self.account))
    }

    /// The names and UUIDs that none of these VMs has, which are all that it takes.
    #[must_use]
    pub fn missing<'a>(&self, taken: impl Iterator<Item = (VmId, &'a str)>) -> BTreeSet<String> {
        let mut missing = self.vms.clone();
        for (id, name) in taken {
            missing.retain(|wanted| wanted != name && wanted.parse() != Ok(id));
        }
        missing
    }

    /// Whether what is written on VMs has to be known to say which it takes.
    #[must_use]
    pub fn goes_by_labels(&self) -> bool {
        !self.labels.is_empty() || !self.account.is_empty()
    }

    /// Whether it can take any VM at all.
    #[must_use]
    pub fn names_something(&self) -> bool {
        *self != Self::default()
    }
}

impl Retention {
    /// Whether there is anything that it keeps.
    #[must_use]
    pub fn keeps_something(&self) -> bool {
        let counts = [self.last, self.hourly, self.daily, self.weekly, self.monthly, self.yearly];
        counts.iter().any(|count| *count > 0) || self.within_ms > 0
    }

    /// Whether what all rules keep together is less than the minimum, whatever there is.
    #[must_use]
    pub fn never_prunes(&self) -> bool {
        let counts = [self.last, self.hourly, self.daily, self.weekly, self.monthly, self.yearly];
        let most: u64 = counts.into_iter().map(u64::from).sum();
        self.within_ms == 0 && most > 0 && most < u64::from(self.minimum)
    }

    /// The least number of READY snapshots that a pruning leaves.
    #[must_use]
    pub fn least(&self) -> usize {
        usize::try_from(self.minimum.max(1)).unwrap_or(usize::MAX)
    }
}

/// Why a text is no pattern of times.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidTime {
    /// Neither five nor six fields.
    #[error(
        "it has {0} fields: minute, hour, day of month, month, day of week, with seconds before them if wanted"
    )]
    Fields(usize),
    /// It cannot be read.
    #[error("it cannot be read: {0}")]
    Unreadable(String),
    /// No such day comes.
    #[error("no time is like that")]
    Never,
    /// There is no such zone.
    #[error("there is no time zone {0:?}; 'Europe/Berlin' and 'UTC' are some")]
    NoSuchZone(String),
}

/// A cron expression: five fields, or six with seconds first.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CronPattern {
    text: String,
    cron: Cron,
}

impl CronPattern {
    /// The parsed expression.
    #[must_use]
    pub fn cron(&self) -> &Cron {
        &self.cron
    }

    /// As it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl FromStr for CronPattern {
    type Err = InvalidTime;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let fields = text.split_whitespace().count();
        // A library takes a year for a seventh, and names for all of them.
        if !matches!(fields, 5 | 6) {
            return Err(InvalidTime::Fields(fields));
        }
        let cron: Cron = text
            .parse()
            .map_err(|error: croner::errors::CronError| InvalidTime::Unreadable(error.to_string()))?;
        // Whether such a day ever comes does not depend on when one asks: leap years come each 8 years at least.
        let start = Timestamp::UNIX_EPOCH.to_zoned(TimeZone::UTC);
        cron.find_next_occurrence(&start, false).map_err(|_| InvalidTime::Never)?;
        Ok(Self { text: text.to_owned(), cron })
    }
}

impl TryFrom<String> for CronPattern {
    type Error = InvalidTime;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<CronPattern> for String {
    fn from(pattern: CronPattern) -> Self {
        pattern.text
    }
}

impl fmt::Debug for CronPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.text)
    }
}

/// A time zone of the IANA database: that of the node, or the one that the program brings along.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Zone {
    name: String,
    zone: TimeZone,
}

impl Zone {
    /// What tells local times.
    #[must_use]
    pub fn time_zone(&self) -> &TimeZone {
        &self.zone
    }

    /// Its name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.name
    }
}

impl FromStr for Zone {
    type Err = InvalidTime;

    /// An empty name is UTC.
    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let name = if name.is_empty() { "UTC" } else { name };
        // The database of a node may have lost names that it had.
        let zone = TimeZone::get(name).or_else(|_| TimeZoneDatabase::bundled().get(name));
        let zone = zone.map_err(|_| InvalidTime::NoSuchZone(name.to_owned()))?;
        Ok(Self { name: name.to_owned(), zone })
    }
}

impl TryFrom<String> for Zone {
    type Error = InvalidTime;

    fn try_from(name: String) -> Result<Self, Self::Error> {
        name.parse()
    }
}

impl From<Zone> for String {
    fn from(zone: Zone) -> Self {
        zone.name
    }
}

impl fmt::Debug for Zone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.name)
    }
}

/// How the snapshots of a schedule are called: `{vm}`, `{schedule}`, `{time}` and `{count}` stand for what changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NameTemplate(String);

/// Why a text is no template of names.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidTemplate {
    /// Something in braces that stands for nothing.
    #[error("{{{0}}} stands for nothing: there are {{vm}}, {{schedule}}, {{time}} and {{count}}")]
    Unknown(String),
    /// Each run would take the same name.
    #[error("it is the same for each run: it needs {{time}} or {{count}}")]
    Constant,
    /// What comes out is no name of a snapshot.
    #[error("{name:?} would be no name of a snapshot: {cause}")]
    NoName {
        /// What comes out.
        name: String,
        /// Why it is none.
        cause: super::ids::InvalidName,
    },
}

impl NameTemplate {
    /// If none is given.
    pub const DEFAULT: &str = "{schedule}-{time}";

    const WORDS: [&str; 4] = ["vm", "schedule", "time", "count"];

    /// The template as it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name for one snapshot. A VM's name may have characters that a snapshot's cannot: each becomes a `-`.
    #[must_use]
    pub fn fill(&self, vm: &str, schedule: &ScheduleName, time: Timestamp, count: u64) -> String {
        let plain = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' };
        let vm: String = vm.chars().map(plain).collect();
        let filled = self.0.replace("{vm}", &vm).replace("{schedule}", schedule.as_str());
        let time = time.strftime("%Y%m%dT%H%M%SZ").to_string();
        filled.replace("{time}", &time).replace("{count}", &count.to_string())
    }
}

impl FromStr for NameTemplate {
    type Err = InvalidTemplate;

    /// An empty text is [`NameTemplate::DEFAULT`].
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = if text.is_empty() { Self::DEFAULT } else { text };
        for part in text.split('{').skip(1) {
            let word = part.split('}').next().unwrap_or_default();
            if !part.contains('}') || !Self::WORDS.contains(&word) {
                return Err(InvalidTemplate::Unknown(word.to_owned()));
            }
        }
        if !text.contains("{time}") && !text.contains("{count}") {
            return Err(InvalidTemplate::Constant);
        }
        let template = Self(text.to_owned());
        let schedule = "s".parse().expect("a letter is a name");
        let name = template.fill("vm", &schedule, Timestamp::UNIX_EPOCH, 1);
        match name.parse::<super::ids::SnapshotName>() {
            Ok(_) => Ok(template),
            Err(cause) => Err(InvalidTemplate::NoName { name, cause }),
        }
    }
}

impl TryFrom<String> for NameTemplate {
    type Error = InvalidTemplate;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<NameTemplate> for String {
    fn from(template: NameTemplate) -> Self {
        template.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[allow(clippy::needless_pass_by_value, reason = "cases read better by value")]
    fn check<T: FromStr>(text: &str, expected: Result<(), T::Err>)
    where
        T::Err: PartialEq + fmt::Debug,
    {
        assert_eq!(text.parse::<T>().map(drop), expected, "{text:?}");
    }

    #[test]
    fn patterns_of_times() {
        check::<CronPattern>("0 3 * * *", Ok(()));
        check::<CronPattern>("*/5 * * * * *", Ok(()));
        check::<CronPattern>("0 3 29 2 *", Ok(()));
        check::<CronPattern>("30 2 L * MON#2", Ok(()));
        check::<CronPattern>("0 3 30 2 *", Err(InvalidTime::Never));
        check::<CronPattern>("", Err(InvalidTime::Fields(0)));
        check::<CronPattern>("@daily", Err(InvalidTime::Fields(1)));
        check::<CronPattern>("0 0 0 1 1 * 2030", Err(InvalidTime::Fields(7)));
        for text in ["61 * * * *", "a b c d e", "* 24 * * *", "*/0 * * * *", "5-1 * * * *"] {
            assert!(matches!(text.parse::<CronPattern>(), Err(InvalidTime::Unreadable(_))), "{text}");
        }
    }

    #[test]
    fn selected_vms() {
        let id = VmId(uuid::Uuid::from_u128(7));
        let labels =
            Labels([("account", "a"), ("tier", "gold")].map(|(k, v)| (k.to_owned(), v.to_owned())).into());
        let named = |name: &str| VmSelector { vms: [name.to_owned()].into(), ..VmSelector::default() };
        let labelled = |labels: &[(&str, Option<&str>)]| VmSelector {
            labels: labels.iter().map(|(key, value)| ((*key).to_owned(), value.map(str::to_owned))).collect(),
            ..VmSelector::default()
        };
        let of = |account: &str| VmSelector { account: account.to_owned(), ..VmSelector::default() };
        for (selector, expected) in [
            (VmSelector::default(), false),
            (VmSelector { all: true, ..VmSelector::default() }, true),
            (named("web"), true),
            (named("db"), false),
            (named(&id.to_string()), true),
            (labelled(&[("tier", None)]), true),
            (labelled(&[("tier", Some("gold")), ("account", Some("a"))]), true),
            (labelled(&[("tier", Some("gold")), ("account", Some("b"))]), false),
            (labelled(&[("zone", None)]), false),
            (of("a"), true),
            (of("b"), false),
        ] {
            assert_eq!(selector.takes(id, "web", &labels), expected, "{selector:?}");
        }
    }

    #[test]
    fn zones() {
        check::<Zone>("Europe/Berlin", Ok(()));
        check::<Zone>("", Ok(()));
        for name in ["Europe/Atlantis", "../../etc/passwd", "/etc/localtime", "a\0b"] {
            check::<Zone>(name, Err(InvalidTime::NoSuchZone(name.to_owned())));
        }
    }

    #[test]
    fn templates_of_names() {
        check::<NameTemplate>("", Ok(()));
        check::<NameTemplate>("{vm}.{count}", Ok(()));
        check::<NameTemplate>("nightly", Err(InvalidTemplate::Constant));
        check::<NameTemplate>("{time}-{host}", Err(InvalidTemplate::Unknown("host".to_owned())));
        check::<NameTemplate>("{time", Err(InvalidTemplate::Unknown("time".to_owned())));
        assert!(matches!("a/{count}".parse::<NameTemplate>(), Err(InvalidTemplate::NoName { .. })));
        let template: NameTemplate = "{vm}-{schedule}-{time}-{count}".parse().unwrap();
        let name = template.fill("my vm", &"daily".parse().unwrap(), Timestamp::UNIX_EPOCH, 7);
        assert_eq!(name, "my-vm-daily-19700101T000000Z-7");
    }
}
