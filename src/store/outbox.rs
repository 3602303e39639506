//! The outbox: what a controller has to be told, in order, until it has acknowledged it.
//!
//! Decides how long an item stays, and what becomes of an outbox that grows too large. Leaves to whoever writes events and
//! operations what is put in: an item is entered in the transaction of what it tells. Nothing is put in while no controller
//! is configured.
//!
//! An outbox has no gaps. Where items are lost, another outbox begins, with an id of its own and with numbers from 1: a
//! controller that sees the new id asks for an inventory. They are lost when an outbox is full, when there is no controller,
//! and when the catalog is rebuilt, or put back from a backup. A catalog whose file somebody has copied back is only known to be
//! older while the controller is ahead of it.
//!
//! Guests that stand still wait for the thread that works here. So nothing is removed where it is given up, but in small
//! portions afterwards ([`Store::prune_outbox`]).

use jiff::Timestamp;
use rusqlite::{OptionalExtension, Transaction, params};
use uuid::Uuid;

use super::{NumberedEvent, Prepared, Result, Store, event, from_json, journal, parse, to_json};
use crate::model::event::of_dropped_outbox;
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

/// Items that are read at once end with the one that reaches so many bytes.
const READ_BYTES: usize = 256 * 1024;

/// So many items are removed at once.
const PORTION: i64 = 64;

/// The state's row.
struct State {
    outbox: Outbox,
    base: i64,
    most_bytes: i64,
}

/// A row of an item: where it stands, when it was put in, the place of its event, what it says.
type Row = (i64, i64, Option<i64>, String);

impl Store {
    /// The outbox, with room for so many bytes from now on. Where there is none, `new` begins. Writes nothing if all is so
    /// already.
    pub async fn open_outbox(&self, new: OutboxId, most_bytes: u64) -> Result<()> {
        self.transact(move |transaction| {
            let most = i64::try_from(most_bytes).unwrap_or(i64::MAX).max(LEAST_BYTES);
            match state(transaction)? {
                Some(state) if state.most_bytes == most => {}
                Some(_) => drop(transaction.run("UPDATE outbox_state SET most_bytes = ?", [most])?),
                None => begin(transaction, new, most)?,
            }
            Ok(())
        })
        .await
    }

    /// There is no controller any more: nothing is put in from now on. Writes nothing if there was none.
    pub async fn close_outbox(&self) -> Result<()> {
        self.transact(|transaction| {
            if state(transaction)?.is_some() {
                transaction.run("DELETE FROM outbox_state", [])?;
            }
            Ok(())
        })
        .await
    }

    /// Where the outbox stands; None if there is none.
    pub async fn outbox(&self) -> Result<Option<Outbox>> {
        self.read(|transaction| Ok(state(transaction)?.map(|state| state.outbox))).await
    }

    /// Some items behind `after`, oldest first, with where the outbox stands: at least one, if there is any.
    pub async fn outbox_items(&self, after: u64) -> Result<Option<(Outbox, Vec<OutboxItem>)>> {
        let read = self.read(move |transaction| {
            let Some(state) = state(transaction)? else { return Ok(None) };
            let mut statement = transaction.prepare_cached(
                "SELECT sequence - ?1, created_at, event, body FROM outbox WHERE sequence > ?1 + ?2 ORDER BY sequence",
            )?;
            let after = i64::try_from(after).unwrap_or(i64::MAX).min(i64::MAX - state.base);
            let mut rows = statement.query(params![state.base, after])?;
            let (mut items, mut bytes): (Vec<Row>, usize) = (Vec::new(), 0);
            while let Some(row) = rows.next()?
                && bytes < READ_BYTES
            {
                items.push((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?));
                bytes += items.last().map_or(0, |(.., body)| body.len());
            }
            Ok(Some((state.outbox, items)))
        });
        // What rows say is read by whoever asked, not by the thread for which all wait.
        let Some((outbox, rows)) = read.await? else { return Ok(None) };
        Ok(Some((outbox, rows.into_iter().map(item).collect::<Result<_>>()?)))
    }

    /// The controller has this item and all before it. Of another outbox than the present one nothing is believed.
    pub async fn acknowledge(&self, outbox: OutboxId, sequence: u64) -> Result<()> {
        self.transact(move |transaction| {
            let Some(state) = state(transaction)? else { return Ok(()) };
            if state.outbox.id == outbox
                && (state.outbox.acknowledged..=state.outbox.last).contains(&sequence)
            {
                let sequence = i64::try_from(sequence).unwrap_or(i64::MAX);
                transaction.run("UPDATE outbox_state SET acknowledged = ?", [sequence])?;
            }
            Ok(())
        })
        .await
    }

    /// Removes what nobody has to be told any more, in portions: others get their turn in between.
    pub async fn prune_outbox(&self) -> Result<()> {
        while self.prune_portion().await? {}
        Ok(())
    }

    /// Gives whether there may be more to remove.
    pub(super) async fn prune_portion(&self) -> Result<bool> {
        self.transact(|transaction| {
            let state = state(transaction)?;
            let (base, until) = match &state {
                Some(state) => {
                    let acknowledged = i64::try_from(state.outbox.acknowledged).unwrap_or(i64::MAX);
                    (state.base, state.base.saturating_add(acknowledged))
                }
                None => (i64::MAX, i64::MAX),
            };
            let last: Option<i64> = transaction.row(
                "SELECT max(sequence) FROM (SELECT sequence FROM outbox WHERE sequence <= ? ORDER BY sequence LIMIT ?)",
                [until, PORTION],
                |row| row.get(0),
            )?;
            let Some(last) = last else { return Ok(false) };
            transaction.run(
                "UPDATE outbox_state SET bytes = bytes -
                 (SELECT coalesce(sum(octet_length(body)), 0) FROM outbox WHERE sequence > ?1 AND sequence <= ?2)",
                [base, last],
            )?;
            transaction.run("DELETE FROM outbox WHERE sequence <= ?", [last])?;
            Ok(last < until)
        })
        .await
    }

    /// Lets `new` begin in the place of `old`, for this reason. Nothing happens if `old` is over already.
    pub async fn renew_outbox(
        &self,
        old: OutboxId,
        new: OutboxId,
        why: &'static str,
        at: Timestamp,
    ) -> Result<()> {
        self.transact(move |transaction| match state(transaction)? {
            Some(state) if state.outbox.id == old => drop_all(transaction, &state, new, why, at),
            Some(_) | None => Ok(()),
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
    if is_full && let Some(state) = state(transaction)? {
        // The catalog has no dice.
        let new = OutboxId(Uuid::new_v5(&state.outbox.id.0, &state.outbox.last.to_be_bytes()));
        drop_all(transaction, &state, new, "it was full: the controller was away for too long", at)?;
    }
    Ok(())
}

/// Lets `new` begin, and lets it say so.
fn drop_all(
    transaction: &Transaction<'_>,
    state: &State,
    new: OutboxId,
    why: &str,
    at: Timestamp,
) -> Result<()> {
    begin(transaction, new, state.most_bytes)?;
    let dropped = state.outbox.last - state.outbox.acknowledged;
    event::insert(transaction, &of_dropped_outbox(dropped, why, at))
}

/// Its first item is the next that is put in.
fn begin(transaction: &Transaction<'_>, id: OutboxId, most_bytes: i64) -> Result<()> {
    transaction.run("DELETE FROM outbox_state", [])?;
    transaction.run(
        "INSERT INTO outbox_state (id, base, acknowledged, bytes, most_bytes) VALUES
         (?, coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'outbox'), 0), 0, 0, ?)",
        params![id.to_string(), most_bytes],
    )?;
    Ok(())
}

fn state(transaction: &Transaction<'_>) -> Result<Option<State>> {
    let sql = "SELECT id, base, acknowledged, most_bytes,
               coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'outbox'), 0) - base FROM outbox_state";
    let read = |row: &rusqlite::Row<'_>| {
        let id: String = row.get(0)?;
        Ok((id, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?))
    };
    let Some((id, base, acknowledged, most_bytes, last)) = transaction.row(sql, [], read).optional()? else {
        return Ok(None);
    };
    let number = |number: i64| u64::try_from(number).unwrap_or(0);
    let id = parse(&id, "id of an outbox")?;
    let outbox = Outbox { id, acknowledged: number(acknowledged), last: number(last) };
    Ok(Some(State { outbox, base, most_bytes }))
}

fn item((sequence, at, event, body): Row) -> Result<OutboxItem> {
    let news = match event {
        Some(place) => News::Event(Box::new(NumberedEvent {
            sequence: place.unsigned_abs(),
            event: from_json(&body, "event")?,
        })),
        None => News::Operation(Box::new(journal::parsed(&body)?)),
    };
    let at = Timestamp::from_millisecond(at).unwrap_or(Timestamp::UNIX_EPOCH);
    Ok(OutboxItem { sequence: sequence.unsigned_abs(), at, news })
}
