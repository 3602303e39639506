//! `vmsnap event`: what can be said.

use std::time::Duration;

use clap::{Args as ClapArgs, Subcommand};

use super::units::duration;

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum EventVerb {
    /// List events, newest first
    #[command(alias = "ls")]
    List {
        #[command(flatten)]
        which: WhichEvents,
        /// At most so many
        #[arg(long, value_name = "N", default_value_t = 100)]
        limit: usize,
    },
    /// Print events as they happen, until interrupted; with JSON one a line
    Watch {
        #[command(flatten)]
        which: WhichEvents,
        /// Begin with those of so long ago, as in 1h
        #[arg(long, value_name = "DURATION", value_parser = duration)]
        since: Option<Duration>,
    },
}

/// Which events.
#[derive(Debug, Clone, ClapArgs)]
pub(in crate::cli) struct WhichEvents {
    /// Only of this VM: name or UUID
    pub(in crate::cli) vm: Option<String>,
    /// Only of this snapshot: id, NAME, or VM/NAME; one that is gone by its id
    #[arg(long)]
    pub(in crate::cli) snapshot: Option<String>,
    /// Only of this operation: id
    #[arg(long, default_value = "")]
    pub(in crate::cli) operation: String,
    /// Only warnings and errors
    #[arg(long)]
    pub(in crate::cli) warnings: bool,
}
