//! Events of the node: read, followed, let go of in time; and those of the daemon itself.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::sync::watch;

use crate::model::event::{Cause, Event, EventKind};
use crate::store::{EventFilter, EventOrder, EventPage};

use super::{Engine, Result};

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

    /// Whoever follows events logs them; only one that cannot be kept is logged here.
    pub(super) async fn tell(&self, event: Event) {
        let message = event.message.clone();
        if let Err(error) = self.0.store.tell(event).await {
            let error: &dyn std::error::Error = &error;
            tracing::warn!(error, "an event cannot be kept: {message}");
        }
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

pub(super) fn by_itself() -> Cause {
    Cause { operation: None, actor: "vmsnapd".to_owned(), at: Timestamp::now() }
}
