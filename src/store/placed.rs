//! A snapshot with what stands around it and is shown with it.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;

use rusqlite::Transaction;
use rusqlite::types::FromSql;

use super::{Result, Store, to_json};
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
        self.transact(|transaction| place(transaction, snapshots)).await
    }
}

/// Tells what stands around snapshots: one statement for each kind of thing, however many snapshots there are.
pub(super) fn place(transaction: &Transaction<'_>, snapshots: Vec<Snapshot>) -> Result<Vec<Placed>> {
    let current: HashMap<String, Option<String>> = looked_up(
        transaction,
        "SELECT id, current FROM vm WHERE id IN (SELECT value FROM json_each(?))",
        snapshots.iter().map(|snapshot| snapshot.vm),
    )?;
    let children: HashMap<String, u32> = looked_up(
        transaction,
        "SELECT parent, count(*) FROM snapshot WHERE parent IN (SELECT value FROM json_each(?)) GROUP BY parent",
        snapshots.iter().map(|snapshot| snapshot.id),
    )?;
    let paths: HashMap<String, String> = looked_up(
        transaction,
        "SELECT id, path FROM layer WHERE id IN (SELECT value FROM json_each(?))",
        snapshots.iter().flat_map(|snapshot| &snapshot.disks).map(|disk| disk.layer),
    )?;
    let placed = |snapshot: Snapshot| {
        let id = snapshot.id.to_string();
        let path = |layer: LayerId| Some((layer, PathBuf::from(paths.get(&layer.to_string())?)));
        Placed {
            is_current: current
                .get(&snapshot.vm.to_string())
                .is_some_and(|current| current.as_ref() == Some(&id)),
            children: children.get(&id).copied().unwrap_or(0),
            paths: snapshot.disks.iter().filter_map(|disk| path(disk.layer)).collect(),
            snapshot,
        }
    };
    Ok(snapshots.into_iter().map(placed).collect())
}

/// What a statement that takes a list of ids gives for each of them.
fn looked_up<V: FromSql, I: ToString>(
    transaction: &Transaction<'_>,
    sql: &str,
    ids: impl Iterator<Item = I>,
) -> Result<HashMap<String, V>> {
    let ids: Vec<String> = ids.map(|id| id.to_string()).collect();
    let mut statement = transaction.prepare_cached(sql)?;
    let rows = statement.query_map([to_json(&ids, "list of ids")?], |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}
