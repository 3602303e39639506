//! The row of a snapshot, and what lists filter by beside it.
//!
//! The body is the snapshot. The columns and two more tables only repeat what lists look for. Bodies are in a table of
//! their own: a list of 100,000 counts rows of some bytes, not of some kilobytes. Rows are numbered in the order that
//! they were entered in, which is the order of equals.

use jiff::Timestamp;
use rusqlite::{OptionalExtension, ToSql, Transaction, params};

use super::{Prepared, Result, StoreError, from_json, manifest, to_json};
use crate::model::{Snapshot, SnapshotId, SnapshotKind, SnapshotState, VmId};

/// Enters a snapshot that is being made, with the definition that belongs to it.
pub(super) fn reserve(transaction: &Transaction<'_>, snapshot: &Snapshot, definition: &str) -> Result<()> {
    let mut statement = transaction.prepare_cached(
        "INSERT INTO snapshot (id, vm, vm_name, name, kind, created_at, schedule, state, parent, held, account, domain, project)
         VALUES (?, ?, ?, ?, ?, ?, ?, '', '', 0, '', '', '') RETURNING number",
    )?;
    let row = params![
        snapshot.id.to_string(),
        snapshot.vm.to_string(),
        snapshot.vm_name,
        snapshot.name.as_str(),
        kind_column(snapshot.kind),
        snapshot.created_at.as_millisecond(),
        snapshot.schedule.map(|schedule| schedule.to_string()).unwrap_or_default(),
    ];
    let number: i64 = statement.query_row(row, |row| row.get(0)).map_err(StoreError::from_insert)?;
    transaction
        .prepare_cached("INSERT INTO snapshot_body (snapshot, definition, body) VALUES (?, ?, '')")?
        .execute(params![number, definition])?;
    write(transaction, snapshot)
}

/// Writes what can change of a snapshot. One that is not there is not made.
pub(super) fn write(transaction: &Transaction<'_>, snapshot: &Snapshot) -> Result<()> {
    let mut statement = transaction.prepare_cached(
        "UPDATE snapshot SET name = ?2, state = ?3, parent = ?4, held = ?5, account = ?6, domain = ?7, project = ?8,
                             expires_at = ?9
         WHERE id = ?1 RETURNING number",
    )?;
    let row = params![
        snapshot.id.to_string(),
        snapshot.name.as_str(),
        state_column(snapshot.state),
        snapshot.parent.map(|parent| parent.to_string()).unwrap_or_default(),
        !snapshot.holds.is_empty(),
        snapshot.owner.account,
        snapshot.owner.domain,
        snapshot.owner.project,
        snapshot.expires_at.map(Timestamp::as_millisecond),
    ];
    let written = statement.query_row(row, |row| row.get(0)).optional().map_err(StoreError::from_insert)?;
    let Some(number) = written else { return Ok(()) };
    manifest::mark(transaction, snapshot.vm, snapshot.id.0)?;
    write_beside(transaction, number, snapshot)
}

fn write_beside(transaction: &Transaction<'_>, number: i64, snapshot: &Snapshot) -> Result<()> {
    let write = |sql: &str, values: &[&dyn ToSql]| transaction.prepare_cached(sql)?.execute(values);
    let body = to_json(snapshot, "snapshot")?;
    write("UPDATE snapshot_body SET body = ? WHERE snapshot = ?", &[&body, &number])?;
    write("DELETE FROM snapshot_property WHERE snapshot = ?", &[&number])?;
    for (key, value) in &snapshot.properties {
        let sql = "INSERT INTO snapshot_property (snapshot, key, value) VALUES (?, ?, ?)";
        write(sql, &[&number, key, value])?;
    }
    write("DELETE FROM snapshot_volume WHERE snapshot = ?", &[&number])?;
    for disk in &snapshot.disks {
        let sql = "INSERT OR IGNORE INTO snapshot_volume (snapshot, volume) VALUES (?, ?)";
        write(sql, &[&number, &disk.volume.to_string()])?;
    }
    Ok(())
}

/// A snapshot; None if there is none.
pub(super) fn read(transaction: &Transaction<'_>, id: SnapshotId) -> Result<Option<Snapshot>> {
    let sql = "SELECT body FROM snapshot JOIN snapshot_body ON snapshot = number WHERE id = ?";
    Ok(read_all(transaction, sql, &id.to_string())?.pop())
}

/// The snapshots in these rows, in this order.
pub(super) fn read_numbered(transaction: &Transaction<'_>, numbers: &[i64]) -> Result<Vec<Snapshot>> {
    // One whose body is lost is told of, not left out.
    let sql = "SELECT body FROM json_each(?) LEFT JOIN snapshot_body ON snapshot = value ORDER BY key";
    read_all(transaction, sql, &to_json(&numbers, "list of numbers")?)
}

/// The snapshots of a VM, oldest first.
pub(super) fn read_of_vm(transaction: &Transaction<'_>, vm: VmId) -> Result<Vec<Snapshot>> {
    let sql = "SELECT body FROM snapshot JOIN snapshot_body ON snapshot = number WHERE vm = ? ORDER BY created_at, number";
    read_all(transaction, sql, &vm.to_string())
}

/// The snapshots whose bodies a statement with one parameter gives.
fn read_all(transaction: &Transaction<'_>, sql: &str, parameter: &str) -> Result<Vec<Snapshot>> {
    let mut statement = transaction.prepare_cached(sql)?;
    let mut rows = statement.query([parameter])?;
    let mut snapshots = Vec::new();
    while let Some(row) = rows.next()? {
        let body = row.get_ref(0)?.as_str().map_err(rusqlite::Error::from)?;
        snapshots.push(from_json(body, "snapshot")?);
    }
    Ok(snapshots)
}

/// The definition that was stored with a snapshot.
pub(super) fn read_definition(transaction: &Transaction<'_>, id: SnapshotId) -> Result<Option<String>> {
    let sql = "SELECT definition FROM snapshot JOIN snapshot_body ON snapshot = number WHERE id = ?";
    Ok(transaction.row(sql, [id.to_string()], |row| row.get(0)).optional()?)
}

/// Keeps another definition with a snapshot. One that is not there is not made.
pub(super) fn write_definition(
    transaction: &Transaction<'_>,
    id: SnapshotId,
    definition: &str,
) -> Result<()> {
    let sql = "UPDATE snapshot_body SET definition = ?2 WHERE snapshot = (SELECT number FROM snapshot WHERE id = ?1)";
    transaction.run(sql, params![id.to_string(), definition])?;
    Ok(())
}

/// A state as the column spells it.
pub(super) fn state_column(state: SnapshotState) -> &'static str {
    match state {
        SnapshotState::Creating => "creating",
        SnapshotState::Ready => "ready",
        SnapshotState::Reverting => "reverting",
        SnapshotState::Deleting => "deleting",
        SnapshotState::Error => "error",
        SnapshotState::Lost => "lost",
    }
}

/// A kind as the column spells it.
pub(super) fn kind_column(kind: SnapshotKind) -> &'static str {
    match kind {
        SnapshotKind::VmDisks => "vm_disks",
        SnapshotKind::VmDisksAndMemory => "vm_disks_and_memory",
        SnapshotKind::Volume => "volume",
    }
}
