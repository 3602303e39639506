//! Events of the node: read, followed, let go of in time; and those of the daemon itself.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::sync::watch;

use crate::model::event::{Cause, Event, EventKind, Severity};
use crate::store::{EventFilter, EventOrder, EventPage, Store};

use super::{Engine, Result, message_id};

/// What lines about events are known by in the log.
pub const EVENTS: &str = "vmsnapd::event";

/// How often old events are looked for. Their age is in days.
const PRUNE_INTERVAL: Duration = Duration::from_secs(6 * 60 * 60);

impl Engine {
    /// A part of the events.
    pub async fn events(&self, filter: EventFilter, order: EventOrder, limit: u32) -> Result<EventPage> {
        Ok(self.0.store.events(filter, order, limit).await?)
    }

    /// Tells whenever there are new events: the place of the newest.
    #[must_use]
    pub fn newest_event(&self) -> watch::Receiver<u64> {
        self.0.store.newest_event()
    }

    /// Notes that the daemon has started.
    pub(super) async fn tell_start(&self, open_operations: usize) {
        let version = env!("CARGO_PKG_VERSION");
        let mut event =
            Event::new(EventKind::DaemonStarted, format!("vmsnapd {version} has started"), &by_itself());
        event.attributes = [
            ("version".to_owned(), version.to_owned()),
            ("open_operations".to_owned(), open_operations.to_string()),
        ]
        .into();
        self.tell(event).await;
    }

    /// Notes that the daemon is going down.
    pub(super) async fn tell_stop(&self) {
        let message = "vmsnapd is going down".to_owned();
        self.tell(Event::new(EventKind::DaemonStopping, message, &by_itself())).await;
    }

    pub(super) async fn tell(&self, event: Event) {
        tell(&self.0.store, event).await;
    }

    /// Lets go of events, and of operations that have ended, older than `kept`, from now until the daemon goes down.
    pub fn keep_history_for(&self, kept: SignedDuration) {
        let engine = self.clone();
        self.0.tasks.spawn(async move {
            let stopping = engine.draining();
            loop {
                if let Err(error) = engine.0.store.prune_history(kept, Timestamp::now()).await {
                    let error: &dyn std::error::Error = &error;
                    tracing::warn!(error, "what is old cannot be removed");
                }
                tokio::select! {
                    biased;
                    () = stopping.cancelled() => return,
                    () = tokio::time::sleep(PRUNE_INTERVAL) => {}
                }
            }
        });
    }
}

/// Whoever follows events logs them. One that cannot be kept is logged here: the disk that is full may be that of the catalog.
pub(super) async fn tell(store: &Store, event: Event) {
    let Err(error) = store.tell(event.clone()).await else { return };
    let error: &dyn std::error::Error = &error;
    macro_rules! line {
        ($level:ident) => {
            tracing::$level!(
                target: EVENTS,
                message_id = message_id::of_event(event.kind),
                vmsnap_event = event.kind.name(),
                vmsnap_vm = event.vm.map(tracing::field::display),
                vmsnap_vm_name = event.vm_name,
                vmsnap_operation = event.operation.map(tracing::field::display),
                error,
                "{} (the catalog cannot keep that)",
                event.message
            )
        };
    }
    match event.severity {
        Severity::Info | Severity::Warning => line!(warn),
        Severity::Error => line!(error),
    }
}

pub(super) fn by_itself() -> Cause {
    Cause { operation: None, actor: "vmsnapd".to_owned(), at: Timestamp::now() }
}
