//! Events as lines of the log: each kind has an id in the journal, and what it is about are fields that can be asked for, as in
//! `journalctl VMSNAP_VM_NAME=web`.
//!
//! Decides the names of the fields. What stands in an event is not logged beside it by whoever makes it; one that cannot be kept
//! is logged by `ops`.

use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::follow::Follower;
use crate::api;
use crate::model::event::{Event, Severity};
use crate::ops::{EVENTS, Engine, message_id};
use crate::store::NumberedEvent;

/// Events are logged, until this is ended.
pub(super) struct EventLog {
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl EventLog {
    /// Logs what happens from now on.
    pub(super) fn start(engine: &Engine) -> Self {
        let stop = CancellationToken::new();
        let task = tokio::spawn(log(Follower::new(engine), stop.clone()));
        Self { stop, task }
    }

    /// Logs what there is still. A catalog that cannot be read keeps nobody from going for longer than `patience`.
    pub(super) async fn end(self, patience: Duration) {
        self.stop.cancel();
        let _ = tokio::time::timeout(patience, self.task).await;
    }
}

async fn log(mut follower: Follower, stop: CancellationToken) {
    loop {
        let events = tokio::select! {
            events = follower.next() => events,
            () = stop.cancelled() => break,
        };
        events.iter().for_each(line);
    }
    while follower.is_behind() {
        follower.next().await.iter().for_each(line);
    }
}

/// Fields of which there is nothing to say are left out.
macro_rules! line {
    ($level:ident, $sequence:expr, $event:expr) => {
        tracing::$level!(
            target: EVENTS,
            message_id = message_id::of_event($event.kind),
            vmsnap_event = $event.kind.name(),
            vmsnap_sequence = $sequence,
            vmsnap_vm = $event.vm.map(tracing::field::display),
            vmsnap_vm_name = some(&$event.vm_name),
            vmsnap_snapshot = $event.snapshot.map(tracing::field::display),
            vmsnap_snapshot_name = some(&$event.snapshot_name),
            vmsnap_volume = $event.volume.map(tracing::field::display),
            vmsnap_operation = $event.operation.map(tracing::field::display),
            vmsnap_actor = some(&$event.actor),
            vmsnap_reason = $event.failure.as_ref().map(|failure| api::reason_name(failure.reason)),
            vmsnap_why = $event.failure.as_ref().map(|failure| failure.message.as_str()),
            vmsnap_facts = facts($event).as_deref(),
            "{}",
            $event.message
        )
    };
}

fn line(NumberedEvent { sequence, event }: &NumberedEvent) {
    match event.severity {
        Severity::Info => line!(info, sequence, event),
        Severity::Warning => line!(warn, sequence, event),
        Severity::Error => line!(error, sequence, event),
    }
}

fn some(text: &str) -> Option<&str> {
    Some(text).filter(|text| !text.is_empty())
}

/// `key=value`, with spaces between.
fn facts(event: &Event) -> Option<String> {
    let facts: Vec<String> = event.attributes.iter().map(|(key, value)| format!("{key}={value}")).collect();
    some(&facts.join(" ")).map(str::to_owned)
}
