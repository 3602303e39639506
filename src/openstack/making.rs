//! Volume snapshots that are being made: the catalog says which volume one holds only when it is there.
//!
//! Decides what is said of that meanwhile. It is lost with the daemon, and nothing depends on it.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

/// More than are made at once, one of each VM.
const MOST: usize = 4096;

/// Which volume, and its size in bytes, by the snapshot's id.
#[derive(Debug, Default)]
pub(super) struct Making(Mutex<HashMap<String, (String, u64)>>);

impl Making {
    pub(super) fn begun(&self, snapshot: &str, volume: &str, bytes: u64) {
        let mut making = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if making.len() >= MOST {
            making.clear();
        }
        making.insert(snapshot.to_owned(), (volume.to_owned(), bytes));
    }

    pub(super) fn of(&self, snapshot: &str) -> Option<(String, u64)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(snapshot).cloned()
    }
}
