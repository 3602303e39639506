//! Follows the events of the node, as they are kept.
//!
//! Decides nothing about them. What is told to a controller, counted and logged is one and the same: nothing has to be told twice.

use std::time::Duration;

use tokio::sync::watch;

use crate::model::operation::in_one_line;
use crate::ops::{Engine, OpsError};
use crate::store::{EventFilter, EventOrder, NumberedEvent, StoreError};

/// Events that are read at once.
const BATCH: u32 = 64;

/// Until the next attempt where the catalog cannot be read: nothing tells when it can.
const AGAIN: Duration = Duration::from_secs(5);

/// A place in the events, and what is behind it.
pub(super) struct Follower {
    engine: Engine,
    newest: watch::Receiver<u64>,
    last: u64,
    /// That they cannot be read.
    is_told: bool,
}

impl Follower {
    /// Of what happens from now on.
    pub(super) fn new(engine: &Engine) -> Self {
        let newest = engine.newest_event();
        let last = *newest.borrow();
        Self { engine: engine.clone(), newest, last, is_told: false }
    }

    /// The next events, in order, as soon as there are any. Pending for ever once there can be no more. May be dropped at any time:
    /// what it did not give comes with the next call.
    pub(super) async fn next(&mut self) -> Vec<NumberedEvent> {
        let mut at_once = BATCH;
        loop {
            let last = self.last;
            if self.newest.wait_for(|newest| *newest > last).await.is_err() {
                std::future::pending::<()>().await;
            }
            let everything = EventFilter { uncounted: true, ..EventFilter::default() };
            match self.engine.events(everything, EventOrder::After(last), at_once).await {
                // An event that was let go of before it was read leaves none behind.
                Ok(page) if page.events.is_empty() => self.last = page.newest,
                Ok(page) => {
                    self.last = page.events.last().map_or(last, |event| event.sequence);
                    return page.events;
                }
                Err(OpsError::Store(StoreError::Malformed { .. })) if at_once > 1 => at_once = 1,
                Err(error @ OpsError::Store(StoreError::Malformed { .. })) => {
                    // Wherever it stands behind this place: what follows is read all the same.
                    self.last += 1;
                    tracing::error!(why = in_one_line(&error), "an event cannot be read, and is left out");
                }
                Err(error) => {
                    if !std::mem::replace(&mut self.is_told, true) {
                        tracing::warn!(
                            why = in_one_line(&error),
                            "events cannot be read: they are followed later"
                        );
                    }
                    tokio::time::sleep(AGAIN).await;
                    continue;
                }
            }
            self.is_told = false;
        }
    }

    /// Whether there are events that were not given.
    pub(super) fn is_behind(&self) -> bool {
        *self.newest.borrow() > self.last
    }
}
