//! Where log lines go: to the journal when systemd listens, else to stderr; and spans, to a collector, if one is named.
//!
//! Decides nothing else. Spans are not made where nobody takes them.

use std::env;
use std::error::Error;
use std::os::unix::fs::MetadataExt;

use tracing::Metadata;
use tracing_journald::{Priority, PriorityMappings};
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, fmt};

use super::traces::Traces;
use crate::ops::SPANS;

/// Lasts as long as there is something to tell.
#[must_use]
pub(super) struct Telemetry(#[allow(dead_code, reason = "it is sent when this is dropped")] Option<Traces>);

/// Starts logging. `filter` as in [`EnvFilter`]; `VMSNAPD_LOG` goes before it. Neither holds back the audit trail, nor spans.
pub(super) fn start(filter: &str, traces: Option<Traces>) -> Result<Telemetry, Box<dyn Error + Send + Sync>> {
    let filter = EnvFilter::try_from_env("VMSNAPD_LOG").unwrap_or_else(|_| EnvFilter::new(filter));
    let spans = if traces.is_some() { "info" } else { "off" };
    let filter = filter
        .add_directive(format!("{}=info", super::audit::TARGET).parse()?)
        .add_directive(format!("{SPANS}={spans}").parse()?);
    let taken = traces.as_ref().map(|traces| traces.layer().with_filter(filter_fn(is_span)));
    let registry = tracing_subscriber::registry().with(filter).with(taken);
    let is_logged = filter_fn(|metadata: &Metadata<'_>| !is_span(metadata));
    match tracing_journald::layer() {
        Ok(journal) if stderr_is_the_journal() => {
            let journal = journal.with_field_prefix(None).with_priority_mappings(priorities());
            registry.with(journal.with_filter(is_logged)).try_init()?;
        }
        Ok(_) | Err(_) => {
            registry.with(fmt::layer().with_writer(std::io::stderr).with_filter(is_logged)).try_init()?;
        }
    }
    Ok(Telemetry(traces))
}

fn is_span(metadata: &Metadata<'_>) -> bool {
    metadata.target() == SPANS
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
