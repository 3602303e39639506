//! The command line: what can be said. Decides defaults; nothing is done here.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};

mod controller;
mod event;
mod schedule;
mod snapshot;
mod units;
mod volume;

pub(super) use controller::{ControllerVerb, ReceiveArgs};
pub(super) use event::{EventVerb, WhichEvents};
pub(super) use schedule::{
    CatchUp, ClearArgs, CreateScheduleArgs, LimitArgs, Paused, RetentionArgs, RunScheduleArgs,
    ScheduleListArgs, ScheduleOptions, ScheduleSort, ScheduleVerb, SelectionArgs, SetScheduleArgs,
    TemplateArgs, TimingArgs,
};
pub(super) use snapshot::{
    CommentArgs, CreateArgs, DeclaredState, DeleteArgs, Held, HoldArgs, Kind, ListArgs, PurgeArgs, Quiesce,
    RevertArgs, RunState, SetArgs, SnapshotVerb, Sort, State, Which,
};

pub(super) use volume::{
    CloneArgs, CreateVolumeSnapshotArgs, Mode, RevertVolumeArgs, VolumeListArgs, VolumeSnapshotVerb,
    VolumeSort, VolumeState, VolumeVerb,
};

use units::{bandwidth, duration};

/// Snapshots of the VMs on a KVM hypervisor
///
/// Exit codes: 0 ok, 1 failed, 2 usage, 3 partly done, 4 not found, 5 exists already, 6 precondition or conflict,
/// 7 permission, 8 unavailable, 9 timed out (the work goes on), 10 no space, 11 a check found differences,
/// 130 interrupted (the work goes on).
#[derive(Debug, Parser)]
#[command(name = "vmsnap", version, disable_help_subcommand = true)]
pub struct Args {
    #[command(flatten)]
    pub(super) global: Global,
    #[command(subcommand)]
    pub(super) command: Command,
}

/// What every verb takes.
#[derive(Debug, Clone, ClapArgs)]
pub(super) struct Global {
    /// Socket of vmsnapd
    #[arg(
        long,
        global = true,
        env = "VMSNAP_SOCKET",
        default_value = "/run/vmsnapd/vmsnapd.sock",
        value_name = "PATH"
    )]
    pub(super) socket: PathBuf,
    #[command(flatten)]
    pub(super) remote: Remote,
    /// How to print the result
    #[arg(short, long, global = true, value_enum, default_value_t = Format::Table)]
    pub(super) output: Format,
    /// Leave out the header of tables
    #[arg(long, global = true)]
    pub(super) no_headers: bool,
    /// Show no progress
    #[arg(short, long, global = true)]
    pub(super) quiet: bool,
}

/// vmsnapd on another node, instead of the socket of this one.
#[derive(Debug, Clone, ClapArgs)]
pub(super) struct Remote {
    /// vmsnapd on another node, by a name in its certificate. Takes --tls-ca, --tls-certificate and --tls-key
    #[arg(
        long,
        global = true,
        env = "VMSNAP_HOST",
        value_name = "NAME:PORT",
        requires_all = ["tls_ca", "tls_certificate", "tls_key"]
    )]
    pub(super) host: Option<String>,
    /// Certificates that may sign that of vmsnapd, PEM
    #[arg(long, global = true, env = "VMSNAP_TLS_CA", value_name = "FILE")]
    pub(super) tls_ca: Option<PathBuf>,
    /// Certificate to show, PEM
    #[arg(long, global = true, env = "VMSNAP_TLS_CERTIFICATE", value_name = "FILE")]
    pub(super) tls_certificate: Option<PathBuf>,
    /// Its private key, PEM
    #[arg(long, global = true, env = "VMSNAP_TLS_KEY", value_name = "FILE")]
    pub(super) tls_key: Option<PathBuf>,
}

/// How a result is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// For people
    Table,
    /// The response in the JSON mapping of protobuf, with the field names of the protos
    Json,
    /// The same as YAML
    Yaml,
    /// Ids, one a line
    Name,
}

/// The nouns.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// VMs of this node
    #[command(subcommand)]
    Vm(VmVerb),
    /// Snapshots of VMs
    #[command(subcommand, alias = "snap")]
    Snapshot(SnapshotVerb),
    /// Volumes: single disks
    #[command(subcommand, alias = "vol")]
    Volume(VolumeVerb),
    /// Schedules: snapshots by the clock, and which of them to keep
    #[command(subcommand, alias = "sched")]
    Schedule(ScheduleVerb),
    /// Operations: what is under way and what has been
    #[command(subcommand, alias = "operation")]
    Op(OpVerb),
    /// Events: what has happened and what happens
    #[command(subcommand)]
    Event(EventVerb),
    /// This node and its daemon
    #[command(subcommand)]
    Node(NodeVerb),
    /// The other end: what a controller is told
    #[command(subcommand)]
    Controller(ControllerVerb),
    /// Print completions for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Write the manual pages
    Man {
        /// Where to
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
    },
    /// Print the versions of the client and of the daemon
    Version,
}

#[derive(Debug, Subcommand)]
pub(super) enum VmVerb {
    /// List VMs
    #[command(alias = "ls")]
    List,
    /// Show a VM and its disks
    Show {
        /// Name or UUID
        vm: String,
    },
    /// Compare what the catalog says of a VM with what is there. Changes nothing
    Check {
        /// Name or UUID
        vm: String,
    },
    /// Settle a difference that a check has found, one of the ways it offers
    Resolve {
        /// Name or UUID
        vm: String,
        #[command(flatten)]
        what: ResolveArgs,
    },
    /// Let a VM go on that is paused because a disk had no space
    Resume {
        /// Name or UUID
        vm: String,
    },
    /// Make a new VM out of a snapshot. The VM that the snapshot is of goes on
    Deploy(DeployArgs),
}

#[derive(Debug, Clone, ClapArgs)]
pub(super) struct ResolveArgs {
    /// Id of the difference, or its beginning
    pub(super) difference: String,
    #[command(flatten)]
    pub(super) way: Settling,
    #[command(flatten)]
    pub(super) sure: Sure,
    #[command(flatten)]
    pub(super) how: How,
}

/// The way to settle a difference.
#[derive(Debug, Clone, Copy, ClapArgs)]
#[group(required = true, multiple = false)]
#[allow(clippy::struct_excessive_bools, reason = "one flag for each way")]
pub(super) struct Settling {
    /// Take what is there into the catalog
    #[arg(long)]
    pub(super) adopt: bool,
    /// Bring the VM to what the catalog says
    #[arg(long)]
    pub(super) restore: bool,
    /// Declare the snapshots concerned LOST. Their files are kept
    #[arg(long)]
    pub(super) mark_lost: bool,
    /// Remove the orphan file
    #[arg(long)]
    pub(super) remove_file: bool,
}

#[derive(Debug, Clone, ClapArgs)]
pub(super) struct DeployArgs {
    #[command(flatten)]
    pub(super) which: Which,
    /// The new VM's name: letters, digits, '.', '_' and '-'
    #[arg(long)]
    pub(super) name: String,
    #[command(flatten)]
    pub(super) mode: Mode,
    /// What it does afterwards
    #[arg(long, value_enum, value_name = "STATE", default_value_t = RunState::Off)]
    pub(super) then: RunState,
    /// Give its disks new serial numbers
    #[arg(long)]
    pub(super) new_serials: bool,
    #[command(flatten)]
    pub(super) how: How,
}

#[derive(Debug, Subcommand)]
pub(super) enum NodeVerb {
    /// Show the node: versions, parts, what is under way
    Show,
    /// Compare the catalog with what is there: VMs, images, files that nobody needs. Changes nothing
    Check,
    /// Copy the catalog into the state directory, while the daemon runs
    Backup,
    /// Let the daemon read its configuration and certificates again
    Reload {
        /// Only say what would change
        #[arg(long)]
        dry_run: bool,
    },
    /// Settle a difference that a check of the node has found, one of the ways it offers
    Resolve(ResolveArgs),
}

/// Which of a list, by what users have said of them.
#[derive(Debug, Clone, ClapArgs)]
pub(super) struct LabelFilter {
    /// Only of this account
    #[arg(long, default_value = "")]
    pub(super) account: String,
    /// Only of this tenant domain
    #[arg(long, default_value = "")]
    pub(super) domain: String,
    /// Only of this project
    #[arg(long, default_value = "")]
    pub(super) project: String,
    /// Only those whose name starts so
    #[arg(long, default_value = "", value_name = "PREFIX")]
    pub(super) name_prefix: String,
    /// Only those with this property, or with any value of it
    #[arg(long = "property", value_name = "KEY[=VALUE]")]
    pub(super) properties: Vec<String>,
}

/// For verbs that cannot be taken back.
#[derive(Debug, Clone, Copy, ClapArgs)]
pub(super) struct Sure {
    /// Do not ask
    #[arg(short, long)]
    pub(super) yes: bool,
}

/// How long to stay.
#[derive(Debug, Clone, Copy, ClapArgs)]
pub(super) struct How {
    /// Only show what would be done
    #[arg(long)]
    pub(super) dry_run: bool,
    /// Do not wait for the end; print the operation
    #[arg(long, conflicts_with = "timeout")]
    pub(super) no_wait: bool,
    /// Wait no longer than this; the work goes on
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(super) timeout: Option<Duration>,
}

#[derive(Debug, Subcommand)]
pub(super) enum OpVerb {
    /// List operations, newest first
    #[command(alias = "ls")]
    List {
        /// Only of this VM: name or UUID
        vm: Option<String>,
        /// Only those that have not ended
        #[arg(long)]
        open: bool,
        /// At most so many
        #[arg(long, value_name = "N", default_value_t = 50)]
        limit: usize,
    },
    /// Show an operation: its steps, what went wrong, the ways out
    Show {
        /// Id
        id: String,
    },
    /// Follow an operation to its end
    Watch {
        /// Id
        id: String,
        /// Wait no longer than this
        #[arg(long, value_name = "DURATION", value_parser = duration)]
        timeout: Option<Duration>,
    },
    /// Undo an operation that has not passed its point of no return
    Cancel {
        /// Id
        id: String,
        #[command(flatten)]
        sure: Sure,
    },
    /// Let an operation copy faster or slower from now on
    Set {
        /// Id
        id: String,
        /// Most bytes per second that are copied for each disk, as in 50M; 'none' for as many as there can be. A copy that
        /// qemu-img has begun keeps its limit
        #[arg(long, value_name = "BYTES", value_parser = bandwidth)]
        bandwidth: u64,
    },
    /// Let a stuck operation try again, or give it up where it stands
    Resolve {
        /// Id
        id: String,
        /// The way out
        #[arg(value_enum)]
        way: Way,
        /// Why, for the log
        #[arg(long, default_value = "")]
        comment: String,
        #[command(flatten)]
        sure: Sure,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Way {
    /// Try again
    Retry,
    /// Give up: the operation ends as it stands, its snapshot is marked ERROR
    Abandon,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_holds_together() {
        Args::command().debug_assert();
    }

    #[test]
    fn impossible_wishes_are_usage_errors() {
        let check =
            |line: &str| Args::try_parse_from(line.split(' ')).map(|_| ()).map_err(|error| error.exit_code());
        assert_eq!(check("vmsnap snapshot list web --tree"), Ok(()));
        assert_eq!(check("vmsnap snapshot list --tree"), Err(2));
        assert_eq!(check("vmsnap snapshot delete"), Err(2));
        assert_eq!(check("vmsnap snapshot create web --no-wait --timeout 5s"), Err(2));
        assert_eq!(check("vmsnap snapshot create web --property broken"), Err(2));
        assert_eq!(check("vmsnap schedule create nightly --cron @daily --vm web --keep-daily 7"), Ok(()));
        assert_eq!(check("vmsnap schedule create nightly --cron @daily --all --label env=prod"), Ok(()));
        assert_eq!(check("vmsnap schedule create nightly --cron @daily"), Err(2));
        assert_eq!(check("vmsnap schedule create nightly --all"), Err(2));
        assert_eq!(check("vmsnap schedule create nightly --cron @daily --all --keep-daily -1"), Err(2));
        assert_eq!(check("vmsnap schedule set nightly --blackout x --no-blackout"), Err(2));
        assert_eq!(check("vmsnap schedule run nightly --no-wait --timeout 5s"), Err(2));
        assert_eq!(check("vmsnap schedule preview nightly --runs 1001"), Err(2));
        assert_eq!(check("vmsnap schedule delete"), Err(2));
    }
}
