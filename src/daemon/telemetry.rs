//! Where log lines go: to the journal when systemd listens, else to stderr. Decides nothing else.

use std::env;
use std::os::unix::fs::MetadataExt;

use tracing_journald::{Priority, PriorityMappings};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, fmt};

/// Starts logging. `filter` as in [`EnvFilter`]; `VMSNAPD_LOG` goes before it. Neither holds back the audit trail.
pub fn start(filter: &str) -> Result<(), tracing_subscriber::util::TryInitError> {
    let filter = EnvFilter::try_from_env("VMSNAPD_LOG").unwrap_or_else(|_| EnvFilter::new(filter));
    let audit = format!("{}=info", super::audit::TARGET);
    let filter = match audit.parse() {
        Ok(audit) => filter.add_directive(audit),
        Err(_) => filter,
    };
    let registry = tracing_subscriber::registry().with(filter);
    match tracing_journald::layer() {
        Ok(journal) if stderr_is_the_journal() => {
            registry.with(journal.with_field_prefix(None).with_priority_mappings(priorities())).try_init()
        }
        Ok(_) | Err(_) => registry.with(fmt::layer().with_writer(std::io::stderr)).try_init(),
    }
}

/// What is for the record is `info` for the journal, too: by itself the layer makes it `notice`, which is shown in bold.
fn priorities() -> PriorityMappings {
    PriorityMappings { info: Priority::Informational, debug: Priority::Debug, ..PriorityMappings::new() }
}

/// systemd tells which file stderr was when it started us (systemd.exec(5), `$JOURNAL_STREAM`).
fn stderr_is_the_journal() -> bool {
    let Some(expected) = env::var("JOURNAL_STREAM").ok() else { return false };
    let Ok(stderr) = std::fs::metadata("/proc/self/fd/2") else { return false };
    expected == format!("{}:{}", stderr.dev(), stderr.ino())
}
