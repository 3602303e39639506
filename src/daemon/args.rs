//! The command line of `vmsnapd`, and its exit codes: 0 clean, 1 failed, 2 usage, 78 configuration (sysexits.h).

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use super::config::Config;
use super::rebuild::{self, RebuildArgs};
use super::{advice, start, telemetry, thaw};
use crate::model::operation::in_one_line;

/// `EX_CONFIG`: starting again changes nothing. The unit does not restart on it.
const EXIT_CONFIG: u8 = 78;

/// Snapshot agent for KVM hypervisors.
#[derive(Debug, Parser)]
#[command(name = "vmsnapd", version)]
struct Args {
    /// Configuration file [default: /etc/vmsnapd/vmsnapd.toml, if it is there]
    #[arg(long, value_name = "FILE", global = true)]
    config: Option<PathBuf>,
    /// Unix socket to listen on, instead of the configured one
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// State directory, instead of the configured one
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    #[command(subcommand)]
    verb: Option<Verb>,
}

/// What to do instead of serving.
#[derive(Debug, Clone, Subcommand)]
enum Verb {
    /// Check the configuration and leave
    CheckConfig,
    /// Thaw the guests that a daemon which is gone has left frozen, and leave
    Thaw,
    /// Make a catalog that was lost anew, from the manifests beside the images, the images, and libvirt
    Rebuild(RebuildArgs),
}

/// The whole of `vmsnapd`.
#[must_use]
pub fn main() -> ExitCode {
    let args = Args::parse();
    let mut config = match Config::load(args.config.as_deref()) {
        Ok(config) => config,
        Err(error) => return complain(&error, EXIT_CONFIG),
    };
    if let Some(socket) = args.socket {
        config.socket = socket;
    }
    if let Some(directory) = args.state_dir {
        config.state_directory = directory;
    }
    if let Err(error) = config.check() {
        return complain(&error, EXIT_CONFIG);
    }
    if matches!(args.verb, Some(Verb::CheckConfig)) {
        return ExitCode::SUCCESS;
    }
    if let Err(error) = telemetry::start(&config.log) {
        return complain(&error, EXIT_CONFIG);
    }
    let ended = match &args.verb {
        Some(Verb::Rebuild(args)) => rebuild::run(&config, args),
        Some(Verb::Thaw) => thaw::run(&config),
        Some(Verb::CheckConfig) => Ok(()),
        None => start::run(&config),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let code = complain(&error, error.exit_code());
            if let Some(refused) = error.refused_catalog()
                && let Some(words) = advice::on(refused, &config.state_directory)
            {
                advise(&words);
            }
            code
        }
    }
}

/// One line with the whole chain of causes, on stderr: logging may not have started.
#[allow(clippy::print_stderr, reason = "the last words of a program that cannot start")]
fn complain(error: &(dyn Error + 'static), code: u8) -> ExitCode {
    eprintln!("vmsnapd: {}", in_one_line(error));
    ExitCode::from(code)
}

/// As the client tells of a failure.
#[allow(clippy::print_stderr, reason = "the last words of a program that cannot start")]
fn advise(words: &str) {
    eprintln!("  changed: nothing\n  do: {words}");
}
