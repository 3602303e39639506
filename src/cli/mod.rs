//! `vmsnap`, the client: verbs in, calls out, answers shown. Decides how things look and which exit code they have.
//!
//! Leaves every decision about VMs to the daemon. Knows the contract and nothing else: it is a crate root of its own,
//! so it links no libvirt and starts in milliseconds.

use std::process::ExitCode;

use clap::parser::ValueSource;
use clap::{CommandFactory, FromArgMatches};

mod args;
mod ask;
mod check;
mod connect;
mod controller;
mod edit;
mod event;
mod failure;
mod list;
mod node;
mod operation;
mod output;
mod progress;
mod purge;
mod resolve;
mod schedule;
mod snapshot;
mod table;
mod tree;
mod vm;
mod volume;
mod words;

pub use args::Args;

use args::{Command, Global};
use connect::Daemon;
use failure::Failure;
use output::Output;

/// What a verb needs besides its own arguments.
struct Session {
    daemon: Daemon,
    output: Output,
    global: Global,
}

/// The whole of `vmsnap`. Gives the exit code that the manual documents.
pub async fn run() -> anyhow::Result<ExitCode> {
    let matches = Args::command().get_matches();
    let mut args = Args::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    let is_typed = |name: &str| matches.value_source(name) == Some(ValueSource::CommandLine);
    if is_typed("socket") && !is_typed("host") {
        // What is typed goes before a node that the environment names.
        args.global.remote.host = None;
    }
    let command = match args.command {
        Command::Completions { shell } => {
            output::completions(shell);
            return Ok(ExitCode::SUCCESS);
        }
        Command::Man { dir } => {
            output::manuals(&dir)?;
            return Ok(ExitCode::SUCCESS);
        }
        Command::Version => return Ok(version(&args.global).await),
        Command::Controller(verb) => {
            let ended = controller::carry_out(&args.global, verb).await;
            return Ok(ended.map_or_else(|failure| failure.show(), ExitCode::from));
        }
        command => command,
    };
    let output = Output::new(&args.global);
    let daemon = match Daemon::new(&args.global) {
        Ok(daemon) => daemon,
        Err(failure) => return Ok(failure.show()),
    };
    let session = Session { daemon, output, global: args.global };
    Ok(match session.carry_out(command).await {
        Ok(code) => ExitCode::from(code),
        Err(failure) => failure.show(),
    })
}

impl Session {
    async fn carry_out(&self, command: Command) -> Result<u8, Failure> {
        match command {
            Command::Vm(verb) => vm::carry_out(self, verb).await,
            Command::Snapshot(verb) => snapshot::carry_out(self, verb).await,
            Command::Volume(verb) => volume::carry_out(self, verb).await,
            Command::Schedule(verb) => schedule::carry_out(self, verb).await,
            Command::Event(verb) => event::carry_out(self, verb).await,
            Command::Op(verb) => operation::carry_out(self, verb).await,
            Command::Node(verb) => node::carry_out(self, verb).await,
            // Taken care of before a daemon was needed.
            Command::Completions { .. } | Command::Man { .. } | Command::Controller(_) | Command::Version => {
                Ok(0)
            }
        }
    }
}

/// Ours, and the daemon's if it answers.
async fn version(global: &Global) -> ExitCode {
    output::line(&format!("vmsnap {}", env!("CARGO_PKG_VERSION")));
    let daemon = match Daemon::new(global) {
        Ok(daemon) => daemon,
        Err(failure) => return failure.show(),
    };
    if let Ok(versions) = node::versions(&daemon).await {
        output::line(&format!(
            "vmsnapd {}, libvirt {}, QEMU {}",
            versions.agent, versions.libvirt, versions.qemu
        ));
    }
    ExitCode::SUCCESS
}
