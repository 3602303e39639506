//! A snapshot with what stands around it and is shown with it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use rusqlite::{OptionalExtension, Transaction};

use super::{Result, Store};
use crate::model::{LayerId, Snapshot};

/// A snapshot in its place.
#[derive(Debug, Clone, PartialEq)]
pub struct Placed {
    /// The snapshot.
    pub snapshot: Snapshot,
    /// Whether it is the one that its VM goes on from.
    pub is_current: bool,
    /// How many were made on top of it.
    pub children: u32,
    /// Where the layers that it holds are, as far as they are known.
    pub paths: BTreeMap<LayerId, PathBuf>,
}

impl Store {
    /// Tells what stands around snapshots.
    pub async fn placed(&self, snapshots: Vec<Snapshot>) -> Result<Vec<Placed>> {
        let each = move |transaction: &Transaction<'_>| {
            snapshots.into_iter().map(|snapshot| place(transaction, snapshot)).collect()
        };
        self.transact(each).await
    }
}

/// Tells what stands around a snapshot.
pub(super) fn place(transaction: &Transaction<'_>, snapshot: Snapshot) -> Result<Placed> {
    let id = snapshot.id.to_string();
    let is_current = transaction
        .prepare_cached("SELECT current IS ? FROM vm WHERE id = ?")?
        .query_row([&id, &snapshot.vm.to_string()], |row| row.get(0))
        .optional()?
        .unwrap_or(false);
    let children = transaction
        .prepare_cached("SELECT count(*) FROM snapshot WHERE parent = ?")?
        .query_row([&id], |row| row.get(0))?;
    let mut statement = transaction.prepare_cached("SELECT path FROM layer WHERE id = ?")?;
    let mut paths = BTreeMap::new();
    for disk in &snapshot.disks {
        let path = statement.query_row([disk.layer.to_string()], |row| row.get::<_, String>(0)).optional()?;
        paths.extend(path.map(|path| (disk.layer, PathBuf::from(path))));
    }
    Ok(Placed { snapshot, is_current, children, paths })
}
