//! The command line of `vmsnapd`, and its exit codes: 0 clean, 1 failed, 2 usage, 78 configuration (sysexits.h).

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use super::config::{Config, Origin};
use super::rebuild::{self, RebuildArgs};
use super::traces::Traces;
use super::{access, advice, probe, start, telemetry, thaw};
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
    /// Ask the daemon that runs whether it serves, and leave: 0 if it does, else 1
    Health {
        /// Ask for this part alone: libvirt, catalog, storage, controller
        #[arg(long, value_name = "PART", default_value = "", hide_default_value = true)]
        part: String,
    },
    /// Thaw the guests that a daemon which is gone has left frozen, and leave
    Thaw,
    /// Make a catalog that was lost anew, from the manifests beside the images, the images, and libvirt
    Rebuild(RebuildArgs),
}

/// The whole of `vmsnapd`.
#[must_use]
pub fn main() -> ExitCode {
    let args = Args::parse();
    let origin = Origin { path: args.config, socket: args.socket, state_directory: args.state_dir };
    let config = match Config::load(&origin) {
        Ok(config) => config,
        Err(error) => return complain(&error, EXIT_CONFIG),
    };
    if matches!(args.verb, Some(Verb::CheckConfig)) {
        // The files that it names, too: a daemon that is started with them would need them.
        return access::InForce::read(&config)
            .map_or_else(|error| complain(&error, EXIT_CONFIG), |_| ExitCode::SUCCESS);
    }
    if let Some(Verb::Health { part }) = &args.verb {
        return probe::ask(&config, part).map_or_else(|error| complain(&error, 1), |()| ExitCode::SUCCESS);
    }
    // A collector is no reason not to serve, nor not to thaw.
    let traces = if args.verb.is_none() { Traces::start() } else { Ok(None) };
    let (traces, untraced) = traces.map_or_else(|error| (None, Some(error)), |traces| (traces, None));
    let _telemetry = match telemetry::start(&config.log, traces) {
        Ok(telemetry) => telemetry,
        Err(error) => return complain(error.as_ref(), EXIT_CONFIG),
    };
    if let Some(error) = untraced {
        tracing::warn!(why = in_one_line(&error), "no traces are sent");
    }
    let ended = match &args.verb {
        Some(Verb::Rebuild(args)) => rebuild::run(&config, args),
        Some(Verb::Thaw) => thaw::run(&config),
        Some(Verb::CheckConfig | Verb::Health { .. }) => Ok(()),
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
