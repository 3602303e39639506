//! `vmsnap volume`: what can be said.

use std::time::Duration;

use clap::{Args as ClapArgs, Subcommand, ValueEnum};

use super::snapshot::{LabelArgs, Quiesce, Which};
use super::units::{bytes, duration, property};
use super::{How, LabelFilter, Sure};

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum VolumeVerb {
    /// List volumes
    #[command(alias = "ls")]
    List(Box<VolumeListArgs>),
    /// Show a volume
    Show {
        /// VM/TARGET, a name, an id, or the path of its image
        volume: String,
    },
    /// Snapshots of single volumes. 'vmsnap snapshot' lists, shows and deletes them
    #[command(subcommand, alias = "snap")]
    Snapshot(VolumeSnapshotVerb),
    /// Make a volume out of a disk of a snapshot: linked to it, or a full copy
    Clone(Box<CloneArgs>),
    /// Let a linked clone stand alone, while its VM runs (QEMU 10.2 or later) or not
    Flatten {
        /// Its name, or id
        volume: String,
        /// Most bytes per second that a running VM copies, as in 50M
        #[arg(long, value_name = "BYTES", value_parser = bytes)]
        bandwidth: Option<u64>,
        /// Longest time that the copy may stand still before it is ended, as in 30m; else as vmsnapd is configured
        #[arg(long, value_name = "DURATION", value_parser = duration)]
        merge_deadline: Option<Duration>,
        #[command(flatten)]
        how: How,
    },
    /// Delete a clone
    #[command(alias = "rm")]
    Delete {
        /// Its name, or id
        volume: String,
        #[command(flatten)]
        sure: Sure,
        #[command(flatten)]
        how: How,
    },
    /// Bring one volume back to a snapshot. What was written to it since the last one is gone
    Revert(RevertVolumeArgs),
}

#[derive(Debug, Clone, ClapArgs)]
pub(in crate::cli) struct VolumeListArgs {
    /// Only of this VM: name or UUID
    pub(in crate::cli) vm: Option<String>,
    #[command(flatten)]
    pub(in crate::cli) label: LabelFilter,
    /// Only those in this state; again for more
    #[arg(long = "state", value_enum)]
    pub(in crate::cli) states: Vec<VolumeState>,
    /// What to sort by
    #[arg(long, value_enum, default_value_t = VolumeSort::Name)]
    pub(in crate::cli) sort: VolumeSort,
    /// The other way round
    #[arg(long, short)]
    pub(in crate::cli) reverse: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(in crate::cli) enum VolumeState {
    Creating,
    /// No VM has it
    Available,
    /// A VM has it
    InUse,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(in crate::cli) enum VolumeSort {
    Name,
    Created,
    Size,
}

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum VolumeSnapshotVerb {
    /// Take a snapshot of one volume: as it is now, or as it was in a VM's snapshot
    Create(Box<CreateVolumeSnapshotArgs>),
}

#[derive(Debug, Clone, ClapArgs)]
#[command(group(clap::ArgGroup::new("source").required(true).args(["volume", "from"])))]
pub(in crate::cli) struct CreateVolumeSnapshotArgs {
    /// The snapshot's name: letters, digits, '.', '_' and '-' [default: made from the time]
    pub(in crate::cli) name: Option<String>,
    /// Of this volume, as it is now: VM/TARGET, a name, an id, or the path of its image
    #[arg(long)]
    pub(in crate::cli) volume: Option<String>,
    /// Out of this snapshot of a VM: id, NAME, or VM/NAME. No byte is copied
    #[arg(long, value_name = "SNAPSHOT")]
    pub(in crate::cli) from: Option<String>,
    /// Which disk of the snapshot, as in vda; needed if it holds several
    #[arg(long, value_name = "TARGET", requires = "from", default_value = "")]
    pub(in crate::cli) disk: String,
    /// Whether to freeze the guest's file systems [default: auto]
    #[arg(long, value_enum, conflicts_with = "from")]
    pub(in crate::cli) quiesce: Option<Quiesce>,
    #[command(flatten)]
    pub(in crate::cli) label: LabelArgs,
    #[command(flatten)]
    pub(in crate::cli) how: How,
}

#[derive(Debug, Clone, ClapArgs)]
pub(in crate::cli) struct CloneArgs {
    #[command(flatten)]
    pub(in crate::cli) which: Which,
    /// Which disk of the snapshot, as in vda; needed if it holds several
    #[arg(long, value_name = "TARGET", default_value = "")]
    pub(in crate::cli) disk: String,
    /// The file to make: a path, or a name in the first of the directories that vmsnapd is configured for
    #[arg(long, value_name = "FILE")]
    pub(in crate::cli) to: String,
    /// The volume's name [default: the file's]
    #[arg(long, default_value = "")]
    pub(in crate::cli) name: String,
    #[command(flatten)]
    pub(in crate::cli) mode: Mode,
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
    #[command(flatten)]
    pub(in crate::cli) how: How,
}

/// How clones relate to the snapshot.
#[derive(Debug, Clone, Copy, ClapArgs)]
pub(in crate::cli) struct Mode {
    /// Lie on the snapshot's layer, and hold it: made at once [default]
    #[arg(long, conflicts_with = "full")]
    pub(in crate::cli) linked: bool,
    /// Copy everything, and stand alone
    #[arg(long)]
    pub(in crate::cli) full: bool,
    /// Most bytes per second that a copy moves, as in 50M
    #[arg(long, value_name = "BYTES", value_parser = bytes, requires = "full")]
    pub(in crate::cli) bandwidth: Option<u64>,
}

#[derive(Debug, Clone, ClapArgs)]
pub(in crate::cli) struct RevertVolumeArgs {
    /// VM/TARGET, a name, an id, or the path of its image
    pub(in crate::cli) volume: String,
    /// The snapshot, of the volume or of its VM: its name or id
    pub(in crate::cli) snapshot: String,
    /// Stop the VM if it runs, and start it afterwards
    #[arg(long)]
    pub(in crate::cli) stop: bool,
    #[command(flatten)]
    pub(in crate::cli) sure: Sure,
    #[command(flatten)]
    pub(in crate::cli) how: How,
}
