//! Requests that a client named: what each came to, so that a repetition gets the same answer.

use rusqlite::{OptionalExtension, Transaction, params};
use serde::{Deserialize, Serialize};

use super::{Prepared, Result, StoreError, from_json, to_json};
use crate::model::{CommentId, OperationId, ScheduleId, ScheduleRunId, SnapshotId};

/// What makes a request the same request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestKey {
    /// The client's choice.
    pub id: String,
    /// Whose choice.
    pub principal: String,
    /// Of the whole request: the same id with another body is a mistake of the client.
    pub digest: Vec<u8>,
}

/// What a request came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Answer {
    /// This operation was begun.
    Operation(OperationId),
    /// This snapshot was edited.
    Edit(SnapshotId),
    /// This comment was written.
    Comment(CommentId),
    /// This comment was deleted.
    Uncomment(CommentId),
    /// This schedule was made, changed or deleted.
    Schedule(ScheduleId),
    /// This run was begun.
    ScheduleRun(ScheduleRunId),
    /// A backup was made, of this time: milliseconds since the epoch.
    Backup(i64),
}

/// What the same request came to before. [`StoreError::KeyReused`] if it was another one.
pub(super) fn find(transaction: &Transaction<'_>, key: Option<&RequestKey>) -> Result<Option<Answer>> {
    let Some(key) = key else { return Ok(None) };
    let found: Option<(Vec<u8>, String)> = transaction
        .row(
            "SELECT digest, answer FROM request WHERE principal = ? AND id = ?",
            params![key.principal, key.id],
            |row| Ok((row.get(0)?, row.get(1)?)),
        )
        .optional()?;
    match found {
        None => Ok(None),
        Some((digest, _)) if digest != key.digest => Err(StoreError::KeyReused(key.id.clone())),
        Some((_, answer)) => from_json(&answer, "answer to a request").map(Some),
    }
}

/// Lets a request be a new one again.
pub(super) fn forget(transaction: &Transaction<'_>, key: Option<&RequestKey>) -> Result<()> {
    let Some(key) = key else { return Ok(()) };
    let sql = "DELETE FROM request WHERE principal = ? AND id = ?";
    transaction.run(sql, params![key.principal, key.id])?;
    Ok(())
}

/// Enters what a request came to.
pub(super) fn remember(
    transaction: &Transaction<'_>,
    key: Option<&RequestKey>,
    answer: Answer,
    at_ms: i64,
) -> Result<()> {
    let Some(key) = key else { return Ok(()) };
    transaction.run(
        "INSERT INTO request (id, principal, digest, answer, created_at) VALUES (?, ?, ?, ?, ?)",
        params![key.id, key.principal, key.digest, to_json(&answer, "answer to a request")?, at_ms],
    )?;
    Ok(())
}
