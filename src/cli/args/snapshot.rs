//! `vmsnap snapshot`: what can be said.

use std::time::{Duration, SystemTime};

use clap::{Args as ClapArgs, Subcommand, ValueEnum};

use super::units::{ago, bytes, duration, from_now, property};
use super::{How, LabelFilter, Sure};

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum SnapshotVerb {
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
    /// Remove a snapshot that is LOST because its VM has left, and the files that were kept for it
    Purge(PurgeArgs),
    /// Delete snapshots, of any tree. The guest is not paused
    #[command(alias = "rm")]
    Delete(DeleteArgs),
    /// Change what is written on a snapshot: names, description, owner, properties
    Set(Box<SetArgs>),
    /// Hold a snapshot: it cannot be deleted until it is released
    Hold(HoldArgs),
    /// Release a hold
    Release {
        #[command(flatten)]
        which: Which,
        /// Which hold
        #[arg(value_name = "HOLD")]
        name: String,
    },
    /// Declare a snapshot READY or in ERROR, after a look at it. READY only if all that it reads is as recorded
    ResetState {
        #[command(flatten)]
        which: Which,
        /// What it is
        #[arg(value_enum)]
        state: DeclaredState,
        /// Only if it is as it was seen: the etag of 'snapshot show -o json'
        #[arg(long, default_value = "", value_name = "ETAG")]
        etag: String,
    },
    /// List what happened to a snapshot, newest first
    Events {
        #[command(flatten)]
        which: Which,
    },
    /// Write a comment under a snapshot; without a text, list what was written
    Comment(CommentArgs),
    /// Delete a comment
    Uncomment {
        /// The comment's id
        id: String,
    },
}

/// A snapshot.
#[derive(Debug, Clone, ClapArgs)]
pub(in crate::cli) struct Which {
    /// Id, NAME, or VM/NAME
    pub(in crate::cli) snapshot: String,
    /// The VM that a name is within
    #[arg(long)]
    pub(in crate::cli) vm: Option<String>,
}

#[derive(Debug, Clone, ClapArgs)]
pub(in crate::cli) struct CreateArgs {
    /// The VM: name or UUID
    pub(in crate::cli) vm: String,
    /// The snapshot's name: letters, digits, '.', '_' and '-' [default: made from the time]
    pub(in crate::cli) name: Option<String>,
    /// Capture memory, too. The guest runs on while it is written, where its host can do that
    #[arg(long)]
    pub(in crate::cli) memory: bool,
    /// The longest that the guest may stand still for it; refused where that cannot be kept [default: as long as it takes]
    #[arg(long, value_name = "DURATION", value_parser = duration, requires = "memory")]
    pub(in crate::cli) max_pause: Option<Duration>,
    /// Whether to freeze the guest's file systems [default: auto; off with --memory]
    #[arg(long, value_enum)]
    pub(in crate::cli) quiesce: Option<Quiesce>,
    /// Freeze only what is mounted here; again for more
    #[arg(long = "mount-point", value_name = "PATH")]
    pub(in crate::cli) mount_points: Vec<String>,
    /// Longest freeze: the guest is thawed then, whatever happens
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "10s")]
    pub(in crate::cli) freeze_timeout: Duration,
    /// Take only this disk; again for more
    #[arg(long = "disk", value_name = "TARGET")]
    pub(in crate::cli) disks: Vec<String>,
    #[command(flatten)]
    pub(in crate::cli) label: LabelArgs,
    #[command(flatten)]
    pub(in crate::cli) how: How,
}

/// What is written on a new snapshot.
#[derive(Debug, Clone, ClapArgs)]
pub(in crate::cli) struct LabelArgs {
    /// A name for people
    #[arg(long, default_value = "")]
    pub(in crate::cli) display_name: String,
    /// Any text
    #[arg(long, default_value = "")]
    pub(in crate::cli) description: String,
    /// A property; again for more
    #[arg(long = "property", value_name = "KEY=VALUE", value_parser = property)]
    pub(in crate::cli) properties: Vec<(String, String)>,
    /// The account it belongs to
    #[arg(long, default_value = "")]
    pub(in crate::cli) account: String,
    /// The tenant domain it belongs to
    #[arg(long, default_value = "")]
    pub(in crate::cli) domain: String,
    /// The project it belongs to
    #[arg(long, default_value = "")]
    pub(in crate::cli) project: String,
    /// When it is to be deleted by itself: a time, a day, or 7d for in seven days [default: never]
    #[arg(long, value_name = "TIME", value_parser = from_now)]
    pub(in crate::cli) expire: Option<SystemTime>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(in crate::cli) enum Quiesce {
    /// Fail if they cannot be frozen
    Required,
    /// Freeze them if the guest agent answers
    Auto,
    /// Leave them alone
    Off,
}

#[derive(Debug, Clone, ClapArgs)]
pub(in crate::cli) struct ListArgs {
    /// Only of this VM: name or UUID
    pub(in crate::cli) vm: Option<String>,
    /// As a tree that ends in where the VM is now
    #[arg(long, requires = "vm")]
    pub(in crate::cli) tree: bool,
    #[command(flatten)]
    pub(in crate::cli) label: LabelFilter,
    /// Only those in this state; again for more
    #[arg(long = "state", value_enum)]
    pub(in crate::cli) states: Vec<State>,
    /// Only those of this kind; again for more
    #[arg(long = "kind", value_enum)]
    pub(in crate::cli) kinds: Vec<Kind>,
    /// Only those that hold this volume: its id
    #[arg(long, default_value = "", value_name = "ID")]
    pub(in crate::cli) volume: String,
    /// Only those that were made on top of this snapshot: its id
    #[arg(long, default_value = "", value_name = "ID")]
    pub(in crate::cli) parent: String,
    /// Only those that are held; --held=no for those that nothing holds
    #[arg(long, value_enum, require_equals = true, num_args = 0..=1, default_missing_value = "yes")]
    pub(in crate::cli) held: Option<Held>,
    /// Only those made then or later: a time, a day, or 2d for two days ago
    #[arg(long, value_name = "TIME", value_parser = ago)]
    pub(in crate::cli) created_after: Option<SystemTime>,
    /// Only those made before
    #[arg(long, value_name = "TIME", value_parser = ago)]
    pub(in crate::cli) created_before: Option<SystemTime>,
    /// What to sort by
    #[arg(long, value_enum, default_value_t = Sort::Created)]
    pub(in crate::cli) sort: Sort,
    /// The other way round: newest first
    #[arg(long, short)]
    pub(in crate::cli) reverse: bool,
    /// At most so many [default: all]
    #[arg(long, value_name = "N")]
    pub(in crate::cli) limit: Option<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(in crate::cli) enum State {
    Creating,
    Ready,
    Reverting,
    Deleting,
    Error,
    Lost,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(in crate::cli) enum DeclaredState {
    /// It reads what it should
    Ready,
    /// It does not: nobody can go back to it, or clone it
    Error,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(in crate::cli) enum Kind {
    /// Disks of a VM
    Disks,
    /// Disks of a VM and its memory
    #[value(name = "disks+memory", alias = "memory")]
    DisksAndMemory,
    /// One volume
    Volume,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(in crate::cli) enum Held {
    Yes,
    No,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(in crate::cli) enum Sort {
    /// When they were made
    Created,
    /// Their names
    Name,
    /// Their VMs' names
    Vm,
}

#[derive(Debug, Clone, ClapArgs)]
pub(in crate::cli) struct RevertArgs {
    #[command(flatten)]
    pub(in crate::cli) which: Which,
    /// What the VM does afterwards [default: with memory what it did then, without what it does now]
    #[arg(long, value_enum, value_name = "STATE")]
    pub(in crate::cli) then: Option<RunState>,
    #[command(flatten)]
    pub(in crate::cli) sure: Sure,
    #[command(flatten)]
    pub(in crate::cli) how: How,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(in crate::cli) enum RunState {
    /// It runs
    Running,
    /// It stands still, ready to be resumed
    Paused,
    /// It is off
    Off,
}

#[derive(Debug, Clone, ClapArgs)]
pub(in crate::cli) struct DeleteArgs {
    /// Ids, NAMEs, or VM/NAMEs
    #[arg(required = true)]
    pub(in crate::cli) snapshots: Vec<String>,
    /// The VM that names are within
    #[arg(long)]
    pub(in crate::cli) vm: Option<String>,
    /// Everything that was made on top of them, too
    #[arg(long)]
    pub(in crate::cli) children: bool,
    /// Most bytes per second that the merge of one disk moves, as in 50M
    #[arg(long, value_name = "BYTES", value_parser = bytes)]
    pub(in crate::cli) bandwidth: Option<u64>,
    /// Longest time that a merge may be without headway before it is ended, as in 30m; else as vmsnapd is configured
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(in crate::cli) merge_deadline: Option<Duration>,
    #[command(flatten)]
    pub(in crate::cli) sure: Sure,
    #[command(flatten)]
    pub(in crate::cli) how: How,
}

#[derive(Debug, Clone, ClapArgs)]
pub(in crate::cli) struct PurgeArgs {
    #[command(flatten)]
    pub(in crate::cli) which: Which,
    #[command(flatten)]
    pub(in crate::cli) sure: Sure,
    #[command(flatten)]
    pub(in crate::cli) how: How,
}

#[derive(Debug, Clone, ClapArgs)]
pub(in crate::cli) struct SetArgs {
    #[command(flatten)]
    pub(in crate::cli) which: Which,
    /// Another name
    #[arg(long)]
    pub(in crate::cli) name: Option<String>,
    /// Another name for people; "" for none
    #[arg(long)]
    pub(in crate::cli) display_name: Option<String>,
    /// Another text; "" for none
    #[arg(long)]
    pub(in crate::cli) description: Option<String>,
    /// The account it belongs to; "" for none
    #[arg(long)]
    pub(in crate::cli) account: Option<String>,
    /// The tenant domain it belongs to; "" for none
    #[arg(long)]
    pub(in crate::cli) domain: Option<String>,
    /// The project it belongs to; "" for none
    #[arg(long)]
    pub(in crate::cli) project: Option<String>,
    /// Set a property; again for more
    #[arg(long = "property", value_name = "KEY=VALUE", value_parser = property)]
    pub(in crate::cli) properties: Vec<(String, String)>,
    /// Remove a property; again for more
    #[arg(long = "no-property", value_name = "KEY")]
    pub(in crate::cli) no_properties: Vec<String>,
    /// Remove all properties first
    #[arg(long)]
    pub(in crate::cli) clear_properties: bool,
    /// When it is to be deleted by itself: a time, a day, or 7d for in seven days
    #[arg(long, value_name = "TIME", value_parser = from_now)]
    pub(in crate::cli) expire: Option<SystemTime>,
    /// It is not to be deleted by itself
    #[arg(long, conflicts_with = "expire")]
    pub(in crate::cli) no_expire: bool,
    /// Only if nobody has changed the snapshot since this etag
    #[arg(long, value_name = "ETAG", default_value = "")]
    pub(in crate::cli) etag: String,
}

#[derive(Debug, Clone, ClapArgs)]
pub(in crate::cli) struct HoldArgs {
    #[command(flatten)]
    pub(in crate::cli) which: Which,
    /// Who holds: letters, digits, '.', '_' and '-'
    #[arg(value_name = "HOLD")]
    pub(in crate::cli) name: String,
    /// Why
    #[arg(long, default_value = "")]
    pub(in crate::cli) reason: String,
}

#[derive(Debug, Clone, ClapArgs)]
pub(in crate::cli) struct CommentArgs {
    #[command(flatten)]
    pub(in crate::cli) which: Which,
    /// What to write
    pub(in crate::cli) text: Option<String>,
}
