//! The newest events, in memory: with a thousand who watch, each is read out of the catalog once, and not a thousand times.
//!
//! Decides how many are kept. It is filled by whoever asks first, while all others wait for just that; where nobody watches,
//! nothing is read.

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::sync::Mutex;

use super::{Engine, Result};
use crate::store::{EventFilter, EventOrder, NumberedEvent, Store};

/// How many are kept: more than happen while one who watches is a little late. Whoever is later reads the catalog.
const KEPT: usize = 256;

/// Events that are read at once.
const BATCH: u32 = 64;

/// All events behind `start`, up to `end`.
pub(super) struct Recent(Mutex<Kept>);

struct Kept {
    start: u64,
    end: u64,
    events: VecDeque<Arc<NumberedEvent>>,
}

/// The events behind a place.
#[derive(Debug, Clone, PartialEq)]
pub struct Fresh {
    /// In order.
    pub events: Vec<Arc<NumberedEvent>>,
    /// The newest that there was: all up to here were looked at.
    pub newest: u64,
}

impl Recent {
    /// Of what happens from now on.
    pub(super) fn new(store: &Store) -> Self {
        let newest = *store.newest_event().borrow();
        Self(Mutex::new(Kept { start: newest, end: newest, events: VecDeque::new() }))
    }
}

impl Engine {
    /// All events behind a place. None if some of them are in the catalog alone.
    pub async fn fresh_events(&self, place: u64) -> Result<Option<Fresh>> {
        let mut kept = self.0.recent.0.lock().await;
        kept.catch_up(&self.0.store).await?;
        if place < kept.start {
            return Ok(None);
        }
        let behind = kept.events.partition_point(|event| event.sequence <= place);
        Ok(Some(Fresh { events: kept.events.range(behind..).cloned().collect(), newest: kept.end }))
    }
}

impl Kept {
    async fn catch_up(&mut self, store: &Store) -> Result<()> {
        let newest = store.newest_event();
        while self.end < *newest.borrow() {
            let everything = EventFilter { uncounted: true, ..EventFilter::default() };
            let page = store.events(everything, EventOrder::After(self.end), BATCH).await?;
            let last = page.events.last().map(|event| event.sequence);
            self.end = if page.has_more { last.unwrap_or(page.newest) } else { page.newest };
            self.events.extend(page.events.into_iter().map(Arc::new));
            while self.events.len() > KEPT {
                self.start = self.events.pop_front().map_or(self.end, |event| event.sequence);
            }
        }
        Ok(())
    }
}
