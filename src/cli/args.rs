//! The command line: what can be said. Decides defaults; nothing is done here.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};

/// Snapshots of the VMs on a KVM hypervisor
///
/// Exit codes: 0 ok, 1 failed, 2 usage, 3 partly done, 4 not found, 5 exists already, 6 precondition or conflict,
/// 7 permission, 8 unavailable, 9 timed out (the work goes on), 10 no space, 130 interrupted (the work goes on).
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
    /// Operations: what is under way and what has been
    #[command(subcommand, alias = "operation")]
    Op(OpVerb),
    /// This node and its daemon
    #[command(subcommand)]
    Node(NodeVerb),
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
}

#[derive(Debug, Subcommand)]
pub(super) enum NodeVerb {
    /// Show the node: versions, parts, what is under way
    Show,
}

#[derive(Debug, Subcommand)]
pub(super) enum SnapshotVerb {
    /// Take a snapshot of a VM
    Create(Box<CreateArgs>),
    /// List snapshots
    #[command(alias = "ls")]
    List(ListArgs),
    /// Show a snapshot
    Show {
        #[command(flatten)]
        which: Which,
    },
    /// Bring the VM back to a snapshot. What was written since the last one is gone
    Revert(RevertArgs),
    /// Delete snapshots, of any tree. The guest is not paused
    #[command(alias = "rm")]
    Delete(DeleteArgs),
}

/// A snapshot.
#[derive(Debug, Clone, ClapArgs)]
pub(super) struct Which {
    /// Id, NAME, or VM/NAME
    pub(super) snapshot: String,
    /// The VM that a name is within
    #[arg(long)]
    pub(super) vm: Option<String>,
}

#[derive(Debug, Clone, ClapArgs)]
pub(super) struct CreateArgs {
    /// The VM: name or UUID
    pub(super) vm: String,
    /// The snapshot's name: letters, digits, '.', '_' and '-' [default: made from the time]
    pub(super) name: Option<String>,
    /// Capture memory, too. The guest is paused meanwhile
    #[arg(long)]
    pub(super) memory: bool,
    /// Whether to freeze the guest's file systems [default: auto; off with --memory]
    #[arg(long, value_enum)]
    pub(super) quiesce: Option<Quiesce>,
    /// Freeze only what is mounted here; again for more
    #[arg(long = "mount-point", value_name = "PATH")]
    pub(super) mount_points: Vec<String>,
    /// Longest freeze: the guest is thawed then, whatever happens
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "10s")]
    pub(super) freeze_timeout: Duration,
    /// Take only this disk; again for more
    #[arg(long = "disk", value_name = "TARGET")]
    pub(super) disks: Vec<String>,
    /// A name for people
    #[arg(long, default_value = "")]
    pub(super) display_name: String,
    /// Any text
    #[arg(long, default_value = "")]
    pub(super) description: String,
    /// A property; again for more
    #[arg(long = "property", value_name = "KEY=VALUE", value_parser = property)]
    pub(super) properties: Vec<(String, String)>,
    /// The account it belongs to
    #[arg(long, default_value = "")]
    pub(super) account: String,
    /// The tenant domain it belongs to
    #[arg(long, default_value = "")]
    pub(super) domain: String,
    /// The project it belongs to
    #[arg(long, default_value = "")]
    pub(super) project: String,
    #[command(flatten)]
    pub(super) how: How,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Quiesce {
    /// Fail if they cannot be frozen
    Required,
    /// Freeze them if the guest agent answers
    Auto,
    /// Leave them alone
    Off,
}

#[derive(Debug, Clone, ClapArgs)]
pub(super) struct ListArgs {
    /// Only of this VM: name or UUID
    pub(super) vm: Option<String>,
    /// As a tree that ends in where the VM is now
    #[arg(long, requires = "vm")]
    pub(super) tree: bool,
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
    /// Newest first
    #[arg(long)]
    pub(super) newest: bool,
    /// At most so many [default: all]
    #[arg(long, value_name = "N")]
    pub(super) limit: Option<usize>,
}

#[derive(Debug, Clone, ClapArgs)]
pub(super) struct RevertArgs {
    #[command(flatten)]
    pub(super) which: Which,
    /// What the VM does afterwards [default: with memory what it did then, without what it does now]
    #[arg(long, value_enum, value_name = "STATE")]
    pub(super) then: Option<RunState>,
    #[command(flatten)]
    pub(super) sure: Sure,
    #[command(flatten)]
    pub(super) how: How,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum RunState {
    /// It runs
    Running,
    /// It stands still, ready to be resumed
    Paused,
    /// It is off
    Off,
}

#[derive(Debug, Clone, ClapArgs)]
pub(super) struct DeleteArgs {
    /// Ids, NAMEs, or VM/NAMEs
    #[arg(required = true)]
    pub(super) snapshots: Vec<String>,
    /// The VM that names are within
    #[arg(long)]
    pub(super) vm: Option<String>,
    /// Everything that was made on top of them, too
    #[arg(long)]
    pub(super) children: bool,
    /// Most bytes per second that the merge of one disk moves, as in 50M
    #[arg(long, value_name = "BYTES", value_parser = bytes)]
    pub(super) bandwidth: Option<u64>,
    #[command(flatten)]
    pub(super) sure: Sure,
    #[command(flatten)]
    pub(super) how: How,
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

/// A number and a unit: `90`, `90s`, `5m`, `2h`, `500ms`.
fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let seconds = match unit {
        "ms" => 0.001,
        "" | "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        "d" => 86400.0,
        _ => return Err(format!("{unit:?} is not a unit of time: ms, s, m, h or d")),
    };
    let number: f64 = number.parse().map_err(|_| "a number is missing, as in 30s".to_owned())?;
    Duration::try_from_secs_f64(number * seconds).map_err(|error| error.to_string())
}

/// A number and a unit of 1024: `1000`, `64K`, `50M`, `1G`.
fn bytes(text: &str) -> Result<u64, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let shift = match unit.trim_end_matches("iB").trim_end_matches('B') {
        "" => 0,
        "K" | "k" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => return Err(format!("{unit:?} is not a unit of bytes: K, M, G or T")),
    };
    let number: u64 = number.parse().map_err(|_| "a number is missing, as in 50M".to_owned())?;
    number.checked_mul(1 << shift).ok_or_else(|| "it is too much".to_owned())
}

fn property(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("it is KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_holds_together() {
        Args::command().debug_assert();
    }

    fn check_duration(text: &str, expected: Option<Duration>) {
        assert_eq!(duration(text).ok(), expected, "{text:?}");
    }

    #[test]
    fn durations() {
        check_duration("90", Some(Duration::from_secs(90)));
        check_duration("1.5s", Some(Duration::from_millis(1500)));
        check_duration("500ms", Some(Duration::from_millis(500)));
        check_duration("2h", Some(Duration::from_secs(7200)));
        check_duration("", None);
        check_duration("5 parsec", None);
        check_duration("-5s", None);
    }

    fn check_bytes(text: &str, expected: Option<u64>) {
        assert_eq!(bytes(text).ok(), expected, "{text:?}");
    }

    #[test]
    fn amounts() {
        check_bytes("1000", Some(1000));
        check_bytes("64K", Some(65536));
        check_bytes("50MiB", Some(50 << 20));
        check_bytes("9999999999T", None);
        check_bytes("fast", None);
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
    }
}
