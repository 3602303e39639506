//! How many snapshots a list has, counted once for all of its pages.
//!
//! Counts are kept in a temporary table of the connection, and whatever touches what lists look for clears it, in the
//! same transaction: triggers do, so that no writer can forget to. A count is thus exact, what is rolled back was never
//! counted, and the file knows nothing of it. Counters that last would have to be kept for each filter that there can be.

use rusqlite::types::Value;
use rusqlite::{Connection, OptionalExtension, Transaction, params, params_from_iter};

use super::{Prepared, Result};

/// How many counts are kept: more lists than that are not looked through at a time.
const KEPT: i64 = 64;

/// What a client asks for may be as long as a message; in bytes, what is worth keeping.
const LONGEST: usize = 1024;

/// What lists look for.
const LOOKED_FOR: [&str; 3] = ["snapshot", "snapshot_property", "snapshot_volume"];

/// Sets up the counts of a connection.
pub(super) fn prepare(connection: &Connection) -> rusqlite::Result<()> {
    connection.execute_batch(
        "CREATE TEMP TABLE kept_count (number INTEGER PRIMARY KEY, asked TEXT NOT NULL UNIQUE, total INTEGER NOT NULL)
         STRICT",
    )?;
    for table in LOOKED_FOR {
        for change in ["INSERT", "UPDATE", "DELETE"] {
            connection.execute_batch(&format!(
                "CREATE TEMP TRIGGER {table}_{change} AFTER {change} ON main.{table} BEGIN DELETE FROM kept_count; END"
            ))?;
        }
    }
    Ok(())
}

/// What a statement that counts snapshots gives.
pub(super) fn total(transaction: &Transaction<'_>, sql: &str, values: Vec<Value>) -> Result<u64> {
    // Texts are quoted in it: two that ask for different things differ.
    let asked = format!("{sql} {values:?}");
    let kept = transaction
        .row("SELECT total FROM kept_count WHERE asked = ?", [&asked], |row| row.get::<_, i64>(0))
        .optional()?;
    if let Some(total) = kept {
        return Ok(total.unsigned_abs());
    }
    let total: i64 = transaction.row(sql, params_from_iter(values), |row| row.get(0))?;
    if asked.len() <= LONGEST {
        transaction.run("INSERT INTO kept_count (asked, total) VALUES (?, ?)", params![asked, total])?;
        let beyond = transaction.last_insert_rowid() - KEPT;
        transaction.run("DELETE FROM kept_count WHERE number <= ?", [beyond])?;
    }
    Ok(total.unsigned_abs())
}
