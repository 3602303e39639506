//! `vmsnap schedule`: what can be said.
//!
//! Decides what a schedule's options are called, in groups as the contract has its messages. Leaves to the daemon whether a
//! cron expression, a time zone or a retention makes sense.

use std::time::Duration;

use clap::{ArgGroup, Args as ClapArgs, Subcommand, ValueEnum};

use super::Sure;
use super::snapshot::Quiesce;
use super::units::{bytes, duration, property, window};

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum ScheduleVerb {
    /// Make a schedule: which VMs, when, and what to keep
    Create(Box<CreateScheduleArgs>),
    /// List schedules
    #[command(alias = "ls")]
    List(ScheduleListArgs),
    /// Show a schedule
    Show {
        /// Name or id
        schedule: String,
    },
    /// Change a schedule: what is given, and nothing else
    ///
    /// Any of --vm, --label, --account and --all replaces all of them; --disk, --mount-point, --property and --blackout each
    /// replace what they said before.
    Set(Box<SetScheduleArgs>),
    /// Let a schedule rest: it neither takes nor prunes
    Pause {
        /// Name or id
        schedule: String,
    },
    /// Let a schedule that rests go on. What was due meanwhile is not made up for
    Resume {
        /// Name or id
        schedule: String,
    },
    /// Run a schedule now, whatever the clock says
    Run(RunScheduleArgs),
    /// Say when a schedule will run, and which snapshots it would keep and delete now, and why. Changes nothing
    Preview {
        /// Name or id
        schedule: String,
        /// How many of the next runs to name
        #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(i32).range(1..=1000))]
        runs: i32,
    },
    /// List the runs of a schedule, newest first
    Runs {
        /// Name or id
        schedule: String,
        /// At most so many
        #[arg(long, value_name = "N", default_value_t = 50)]
        limit: usize,
    },
    /// Delete schedules. Their snapshots stay
    #[command(alias = "rm")]
    Delete {
        /// Names or ids
        #[arg(required = true)]
        schedules: Vec<String>,
        #[command(flatten)]
        sure: Sure,
    },
}

#[derive(Debug, Clone, ClapArgs)]
#[command(group(ArgGroup::new("when").required(true).args(["cron"])))]
#[command(group(ArgGroup::new("which").required(true).multiple(true).args(["vms", "labels", "of_account", "all"])))]
pub(in crate::cli) struct CreateScheduleArgs {
    /// The schedule's name: letters, digits, '.', '_' and '-'
    pub(in crate::cli) name: String,
    /// Let it rest until it is resumed
    #[arg(long)]
    pub(in crate::cli) paused: bool,
    /// Only show when it would run, and which VMs it would take
    #[arg(long)]
    pub(in crate::cli) dry_run: bool,
    // Last: what stands below these options in the help would be under their last heading.
    #[command(flatten)]
    pub(in crate::cli) options: ScheduleOptions,
}

#[derive(Debug, Clone, ClapArgs)]
pub(in crate::cli) struct SetScheduleArgs {
    /// Name or id
    pub(in crate::cli) schedule: String,
    /// Another name
    #[arg(long)]
    pub(in crate::cli) name: Option<String>,
    /// Only if nobody has changed the schedule since this etag
    #[arg(long, value_name = "ETAG", default_value = "")]
    pub(in crate::cli) etag: String,
    #[command(flatten)]
    pub(in crate::cli) options: ScheduleOptions,
    #[command(flatten)]
    pub(in crate::cli) clear: ClearArgs,
}

/// What a schedule is told, when it is made and later.
#[derive(Debug, Clone, ClapArgs)]
pub(in crate::cli) struct ScheduleOptions {
    /// Any text; "" for none
    #[arg(long)]
    pub(in crate::cli) description: Option<String>,
    #[command(flatten)]
    pub(in crate::cli) which: SelectionArgs,
    #[command(flatten)]
    pub(in crate::cli) when: TimingArgs,
    #[command(flatten)]
    pub(in crate::cli) what: TemplateArgs,
    #[command(flatten)]
    pub(in crate::cli) keep: RetentionArgs,
    #[command(flatten)]
    pub(in crate::cli) limits: LimitArgs,
}

/// Which VMs.
#[derive(Debug, Clone, ClapArgs)]
#[command(next_help_heading = "Which VMs: those that any of these names")]
pub(in crate::cli) struct SelectionArgs {
    /// This VM: name or UUID; again for more
    #[arg(long = "vm", value_name = "VM")]
    pub(in crate::cli) vms: Vec<String>,
    /// VMs with this label, or with any value of it; again for VMs that have all of them
    #[arg(long = "label", value_name = "KEY[=VALUE]")]
    pub(in crate::cli) labels: Vec<String>,
    /// VMs of this account: with it in the label `account`
    #[arg(long = "account", value_name = "ACCOUNT")]
    pub(in crate::cli) of_account: Option<String>,
    /// Every VM of the node, those that come later too
    #[arg(long)]
    pub(in crate::cli) all: bool,
}

/// When.
#[derive(Debug, Clone, ClapArgs)]
#[command(next_help_heading = "When")]
pub(in crate::cli) struct TimingArgs {
    /// When it runs: minute, hour, day, month and day of the week, as in '0 3 * * *'; or six fields, seconds first
    #[arg(long, value_name = "CRON")]
    pub(in crate::cli) cron: Option<String>,
    /// The time zone of that, as in Europe/Berlin [default: UTC]
    #[arg(long, value_name = "ZONE")]
    pub(in crate::cli) time_zone: Option<String>,
    /// Spread the VMs over this long, each always at its own place in it; 0 for all at once [default: 0]
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(in crate::cli) jitter: Option<Duration>,
    /// Begin no run within this time: when it begins and how long it lasts, as in '0 8 * * 1-5/10h'; again for more
    #[arg(long = "blackout", value_name = "CRON/DURATION", value_parser = window)]
    pub(in crate::cli) blackouts: Vec<(String, Duration)>,
    /// What to do about runs that were missed while vmsnapd was down [default: once]
    #[arg(long, value_enum)]
    pub(in crate::cli) catch_up: Option<CatchUp>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(in crate::cli) enum CatchUp {
    /// Run once, late, however many were missed
    Once,
    /// Wait for the next time
    Skip,
}

/// What to take of each VM.
#[derive(Debug, Clone, ClapArgs)]
#[command(next_help_heading = "What to take")]
pub(in crate::cli) struct TemplateArgs {
    /// Take only this disk; again for more
    #[arg(long = "disk", value_name = "TARGET")]
    pub(in crate::cli) disks: Vec<String>,
    /// Capture memory, too
    #[arg(long)]
    pub(in crate::cli) memory: bool,
    /// Whether to freeze the guest's file systems [default: auto]
    #[arg(long, value_enum)]
    pub(in crate::cli) quiesce: Option<Quiesce>,
    /// Freeze only what is mounted here; again for more
    #[arg(long = "mount-point", value_name = "PATH")]
    pub(in crate::cli) mount_points: Vec<String>,
    /// The snapshots' name, with {vm}, {schedule}, {time} and {count} [default: {schedule}-{time}]
    #[arg(long, value_name = "TEMPLATE")]
    pub(in crate::cli) snapshot_name: Option<String>,
    /// Any text, for each snapshot; "" for none
    #[arg(long, value_name = "TEXT")]
    pub(in crate::cli) snapshot_description: Option<String>,
    /// The account the snapshots belong to; "" for the VM's label `account` [default: ""]
    #[arg(long, value_name = "ACCOUNT")]
    pub(in crate::cli) snapshot_account: Option<String>,
    /// The tenant domain the snapshots belong to; "" for the VM's label `domain` [default: ""]
    #[arg(long, value_name = "DOMAIN")]
    pub(in crate::cli) snapshot_domain: Option<String>,
    /// The project the snapshots belong to; "" for the VM's label `project` [default: ""]
    #[arg(long, value_name = "PROJECT")]
    pub(in crate::cli) snapshot_project: Option<String>,
    /// A property of the snapshots; again for more
    #[arg(long = "property", value_name = "KEY=VALUE", value_parser = property)]
    pub(in crate::cli) properties: Vec<(String, String)>,
}

/// What to keep.
#[derive(Debug, Clone, ClapArgs)]
#[command(next_help_heading = "What to keep of each VM: what any of these keeps; 0 turns one off")]
pub(in crate::cli) struct RetentionArgs {
    /// The newest so many
    #[arg(long, value_name = "N")]
    pub(in crate::cli) keep_last: Option<u32>,
    /// The newest of each of the last so many hours that have one
    #[arg(long, value_name = "N")]
    pub(in crate::cli) keep_hourly: Option<u32>,
    /// The newest of each of the last so many days that have one
    #[arg(long, value_name = "N")]
    pub(in crate::cli) keep_daily: Option<u32>,
    /// The newest of each of the last so many weeks, Monday first, that have one
    #[arg(long, value_name = "N")]
    pub(in crate::cli) keep_weekly: Option<u32>,
    /// The newest of each of the last so many months that have one
    #[arg(long, value_name = "N")]
    pub(in crate::cli) keep_monthly: Option<u32>,
    /// The newest of each of the last so many years that have one
    #[arg(long, value_name = "N")]
    pub(in crate::cli) keep_yearly: Option<u32>,
    /// All that are younger than this, as in 7d
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(in crate::cli) keep_within: Option<Duration>,
    /// Never prune below so many READY snapshots of a VM [default: 1]
    #[arg(long, value_name = "N")]
    pub(in crate::cli) minimum: Option<u32>,
}

/// What not to exceed.
#[derive(Debug, Clone, ClapArgs)]
#[command(next_help_heading = "What not to exceed: a VM of which a run would is skipped; 0 for no limit")]
pub(in crate::cli) struct LimitArgs {
    /// Snapshots of the schedule for each VM
    #[arg(long, value_name = "N")]
    pub(in crate::cli) max_snapshots: Option<u32>,
    /// What they take on the storage for each VM, as in 200G
    #[arg(long, value_name = "BYTES", value_parser = bytes)]
    pub(in crate::cli) max_bytes: Option<u64>,
    /// What must stay free on the storage, as in 50G
    #[arg(long, value_name = "BYTES", value_parser = bytes)]
    pub(in crate::cli) min_free: Option<u64>,
    /// Layers behind each other on a disk
    #[arg(long, value_name = "N")]
    pub(in crate::cli) max_depth: Option<u32>,
}

/// What a schedule is to have no more, where no value says so.
#[derive(Debug, Clone, Copy, Default, ClapArgs)]
#[command(next_help_heading = "What to take back")]
#[allow(clippy::struct_excessive_bools, reason = "one flag for each option that can be taken back")]
pub(in crate::cli) struct ClearArgs {
    /// Take all disks again
    #[arg(long, conflicts_with = "disks")]
    pub(in crate::cli) all_disks: bool,
    /// Capture no memory any more
    #[arg(long, conflicts_with = "memory")]
    pub(in crate::cli) no_memory: bool,
    /// Freeze all that is mounted again
    #[arg(long, conflicts_with = "mount_points")]
    pub(in crate::cli) all_mount_points: bool,
    /// Give the snapshots no properties any more
    #[arg(long, conflicts_with = "properties")]
    pub(in crate::cli) no_properties: bool,
    /// Begin runs at any time again
    #[arg(long, conflicts_with = "blackouts")]
    pub(in crate::cli) no_blackout: bool,
}

#[derive(Debug, Clone, ClapArgs)]
pub(in crate::cli) struct ScheduleListArgs {
    /// Only those that take this VM: name or UUID
    pub(in crate::cli) vm: Option<String>,
    /// Only those whose name starts so
    #[arg(long, default_value = "", value_name = "PREFIX")]
    pub(in crate::cli) name_prefix: String,
    /// Only those that rest; --paused=no for those that do not
    #[arg(long, value_enum, require_equals = true, num_args = 0..=1, default_missing_value = "yes")]
    pub(in crate::cli) paused: Option<Paused>,
    /// What to sort by
    #[arg(long, value_enum, default_value_t = ScheduleSort::Name)]
    pub(in crate::cli) sort: ScheduleSort,
    /// The other way round
    #[arg(long, short)]
    pub(in crate::cli) reverse: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(in crate::cli) enum Paused {
    Yes,
    No,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(in crate::cli) enum ScheduleSort {
    /// Their names
    Name,
    /// When they were made
    Created,
    /// When they run next
    Next,
}

#[derive(Debug, Clone, ClapArgs)]
pub(in crate::cli) struct RunScheduleArgs {
    /// Name or id
    pub(in crate::cli) schedule: String,
    /// Do not wait for the end; print the run
    #[arg(long, conflicts_with = "timeout")]
    pub(in crate::cli) no_wait: bool,
    /// Wait no longer than this; the work goes on
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(in crate::cli) timeout: Option<Duration>,
}
