//! The outbox: what a controller has to be told, in order, until it has acknowledged it.
//!
//! Decides how long an item stays, and what becomes of an outbox that grows too large. Leaves to whoever writes events and
//! operations what is put in: an item is entered in the transaction of what it tells. Nothing is put in while no controller
//! is configured.
//!
//! An outbox has no gaps. Where items are lost, another outbox begins, with an id of its own and with numbers from 1: a
//! controller that sees the new id asks for an inventory. They are lost when an outbox is full, when there is no controller,
//! and when the catalog is rebuilt, or put back from a backup.

use jiff::Timestamp;
use rusqlite::{OptionalExtension, Transaction, params};
use uuid::Uuid;

use super::{NumberedEvent, Prepared, Result, Store, StoreError, event, from_json, journal, parse, to_json};
use crate::model::event::of_full_outbox;
use crate::model::{Operation, OutboxId};

/// Where an outbox stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outbox {
    /// Which one it is.
    pub id: OutboxId,
    /// The controller has this item and all before it; 0 for none.
    pub acknowledged: u64,
    /// The last item that was ever put in; 0 for none.
    pub last: u64,
}

/// Something that a controller has to be told.
#[derive(Debug, Clone, PartialEq)]
pub struct OutboxItem {
    /// Its place, from 1, without gaps.
    pub sequence: u64,
    /// When it was put in.
    pub at: Timestamp,
    /// What it tells.
    pub news: News,
}

/// What an item tells.
#[derive(Debug, Clone, PartialEq)]
pub enum News {
    /// An operation has come to another state: it was like this then.
    Operation(Box<Operation>),
    /// Something has happened.
    Event(Box<NumberedEvent>),
}

/// An outbox has room at least for the event that says that another was full.
const LEAST_BYTES: i64 = 4096;

impl Store {
    /// The outbox, with room for so many bytes from now on. Where there is none, `new` begins.
    pub async fn open_outbox(&self, new: OutboxId, most_bytes: u64) -> Result<Outbox> {
        self.transact(move |transaction| {
            let most = i64::try_from(most_bytes).unwrap_or(i64::MAX).max(LEAST_BYTES);
            if transaction.run("UPDATE outbox_state SET most_bytes = ?", [most])? == 0 {
                begin(transaction, new, most)?;
            }
            state(transaction)?.ok_or(StoreError::Closed)
        })
        .await
    }

    /// There is no controller any more: nothing is put in from now on.
    pub async fn close_outbox(&self) -> Result<()> {
        self.transact(|transaction| {
            clear(transaction)?;
            transaction.run("DELETE FROM outbox_state", [])?;
            Ok(())
        })
        .await
    }

    /// Where the outbox stands; None if there is none.
    pub async fn outbox(&self) -> Result<Option<Outbox>> {
        self.read(state).await
    }

    /// At most `limit` items behind `after`, oldest first, with where the outbox stands.
    pub async fn outbox_items(&self, after: u64, limit: u32) -> Result<Option<(Outbox, Vec<OutboxItem>)>> {
        self.read(move |transaction| {
            let Some(outbox) = state(transaction)? else { return Ok(None) };
            let mut statement = transaction.prepare_cached(
                "SELECT sequence, created_at, event, body FROM outbox WHERE sequence > ? ORDER BY sequence LIMIT ?",
            )?;
            let after = i64::try_from(after).unwrap_or(i64::MAX);
            let rows = statement.query_map(params![after, limit], |row| {
                Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))
            })?;
            let items = rows.map(|row| {
                let (sequence, at, event, body): (i64, i64, Option<i64>, String) = row?;
                item(sequence, at, event, &body)
            });
            Ok(Some((outbox, items.collect::<Result<_>>()?)))
        })
        .await
    }

    /// The controller has this item and all before it: they go. Of another outbox than the present one nothing does.
    pub async fn acknowledge(&self, outbox: OutboxId, sequence: u64) -> Result<()> {
        self.transact(move |transaction| {
            if state(transaction)?.is_none_or(|now| now.id != outbox || sequence > now.last) {
                return Ok(());
            }
            let sequence = i64::try_from(sequence).unwrap_or(i64::MAX);
            transaction.run(
                "UPDATE outbox_state SET acknowledged = max(acknowledged, ?1), bytes = bytes -
                 (SELECT coalesce(sum(octet_length(body)), 0) FROM outbox WHERE sequence <= ?1)",
                [sequence],
            )?;
            transaction.run("DELETE FROM outbox WHERE sequence <= ?", [sequence])?;
            Ok(())
        })
        .await
    }

    /// Another outbox begins in the place of `old`: what the controller says it has of that one was never put in.
    pub async fn renew_outbox(&self, old: OutboxId) -> Result<()> {
        self.transact(move |transaction| {
            let is_present = state(transaction)?.is_some_and(|now| now.id == old);
            if is_present { succeed(transaction) } else { Ok(()) }
        })
        .await
    }
}

/// Puts in an event, as it was entered.
pub(super) fn put_event(transaction: &Transaction<'_>, at: Timestamp, place: i64, body: &str) -> Result<()> {
    put(transaction, at, Some(place), body)
}

/// Puts in an operation, if it has come to another state.
pub(super) fn put_operation(
    transaction: &Transaction<'_>,
    before: Option<&Operation>,
    now: &Operation,
) -> Result<()> {
    if before.is_some_and(|before| before.is_in_state_of(now)) {
        return Ok(());
    }
    put(transaction, now.updated_at, None, &to_json(now, "operation")?)
}

fn put(transaction: &Transaction<'_>, at: Timestamp, event: Option<i64>, body: &str) -> Result<()> {
    let bytes = i64::try_from(body.len()).unwrap_or(i64::MAX);
    let sql = "UPDATE outbox_state SET bytes = bytes + ? RETURNING bytes > most_bytes";
    let is_full = transaction.row(sql, [bytes], |row| row.get(0)).optional()?;
    let Some(is_full) = is_full else { return Ok(()) };
    transaction.run(
        "INSERT INTO outbox (created_at, event, body) VALUES (?, ?, ?)",
        params![at.as_millisecond(), event, body],
    )?;
    if is_full {
        let dropped: i64 = transaction.row("SELECT count(*) FROM outbox", [], |row| row.get(0))?;
        succeed(transaction)?;
        event::insert(transaction, &of_full_outbox(dropped.unsigned_abs(), at))?;
    }
    Ok(())
}

/// Lets another outbox begin in the place of this one. Its id is made of the old one: the catalog has no dice.
fn succeed(transaction: &Transaction<'_>) -> Result<()> {
    let Some(old) = state(transaction)? else { return Ok(()) };
    let most = transaction.row("SELECT most_bytes FROM outbox_state", [], |row| row.get(0))?;
    begin(transaction, OutboxId(Uuid::new_v5(&old.id.0, &old.last.to_be_bytes())), most)
}

fn begin(transaction: &Transaction<'_>, id: OutboxId, most_bytes: i64) -> Result<()> {
    clear(transaction)?;
    transaction.run("DELETE FROM outbox_state", [])?;
    transaction.run(
        "INSERT INTO outbox_state (id, acknowledged, bytes, most_bytes) VALUES (?, 0, 0, ?)",
        params![id.to_string(), most_bytes],
    )?;
    Ok(())
}

/// Removes all items; the next one is the first.
fn clear(transaction: &Transaction<'_>) -> Result<()> {
    transaction.run("DELETE FROM outbox", [])?;
    transaction.run("DELETE FROM sqlite_sequence WHERE name = 'outbox'", [])?;
    Ok(())
}

fn state(transaction: &Transaction<'_>) -> Result<Option<Outbox>> {
    let sql = "SELECT id, acknowledged, coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'outbox'), 0)
               FROM outbox_state";
    let read = transaction.row(sql, [], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?))).optional()?;
    let Some((id, acknowledged, last)): Option<(String, i64, i64)> = read else { return Ok(None) };
    Ok(Some(Outbox {
        id: parse(&id, "id of an outbox")?,
        acknowledged: acknowledged.unsigned_abs(),
        last: last.unsigned_abs(),
    }))
}

fn item(sequence: i64, at: i64, event: Option<i64>, body: &str) -> Result<OutboxItem> {
    let news = match event {
        Some(place) => News::Event(Box::new(NumberedEvent {
            sequence: place.unsigned_abs(),
            event: from_json(body, "event")?,
        })),
        None => News::Operation(Box::new(journal::parsed(body)?)),
    };
    let at = Timestamp::from_millisecond(at).unwrap_or(Timestamp::UNIX_EPOCH);
    Ok(OutboxItem { sequence: sequence.unsigned_abs(), at, news })
}
