//! Events: entered in the transaction of what they tell, read in order, kept for a while.

use jiff::Timestamp;
use rusqlite::types::Value;
use rusqlite::{Connection, OptionalExtension, Transaction, params, params_from_iter};

use super::conditions::{Conditions, MAKES_CLONES};
use super::{Prepared, Result, Store, StoreError, from_json, outbox, to_json};
use crate::model::event::{Event, EventKind, Severity};
use crate::model::{OperationId, ScheduleId, SnapshotId, VmId, VolumeId};

/// Which events; each part left empty lets all through.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EventFilter {
    /// Of one of these VMs. None: of any, and of none.
    pub vms: Option<Vec<VmId>>,
    /// Neither about clones nor part of an operation on them, nor of what differs, which may name them.
    pub without_clones: bool,
    /// Nobody wants to know how many there are in all: that takes longest.
    pub uncounted: bool,
    /// Of this snapshot.
    pub snapshot: Option<SnapshotId>,
    /// Of this volume.
    pub volume: Option<VolumeId>,
    /// Of this operation.
    pub operation: Option<OperationId>,
    /// Of this schedule.
    pub schedule: Option<ScheduleId>,
    /// Of these kinds.
    pub kinds: Vec<EventKind>,
    /// At least this severe.
    pub min_severity: Option<Severity>,
    /// At or after.
    pub created_after: Option<Timestamp>,
    /// Before.
    pub created_before: Option<Timestamp>,
}

/// An event and its place in the order of the node.
#[derive(Debug, Clone, PartialEq)]
pub struct NumberedEvent {
    /// Its place, from 1. It grows over restarts, too.
    pub sequence: u64,
    /// What happened.
    pub event: Event,
}

/// A part of the events, and where they stand.
#[derive(Debug, Clone, PartialEq)]
pub struct EventPage {
    /// The events.
    pub events: Vec<NumberedEvent>,
    /// How many match in all.
    pub total: u64,
    /// Whether there are more behind these.
    pub has_more: bool,
    /// The newest there is, whether it matches or not; 0 for none ever.
    pub newest: u64,
    /// The oldest that is kept; one more than the newest if none is.
    pub oldest: u64,
}

/// From where, and which way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventOrder {
    /// Those behind this place, oldest first.
    After(u64),
    /// Those before this place, newest first; None for all.
    Before(Option<u64>),
}

impl EventFilter {
    /// Whether an event matches; None where only the catalog can tell.
    #[must_use]
    pub fn lets_through(&self, event: &Event) -> Option<bool> {
        if self.without_clones {
            // Of which kind its operation was does not stand in it.
            return None;
        }
        Some(
            self.vms.as_ref().is_none_or(|vms| event.vm.is_some_and(|vm| vms.contains(&vm)))
                && (self.snapshot.is_none() || self.snapshot == event.snapshot)
                && (self.volume.is_none() || self.volume == event.volume)
                && (self.operation.is_none() || self.operation == event.operation)
                && (self.schedule.is_none() || self.schedule == event.schedule)
                && (self.kinds.is_empty() || self.kinds.contains(&event.kind))
                && self.min_severity.is_none_or(|least| event.severity >= least)
                && self.created_after.is_none_or(|after| event.at.as_millisecond() >= after.as_millisecond())
                && self
                    .created_before
                    .is_none_or(|before| event.at.as_millisecond() < before.as_millisecond()),
        )
    }
}

impl Store {
    /// Enters an event that is part of no other change.
    pub async fn tell(&self, event: Event) -> Result<()> {
        self.transact(move |transaction| insert(transaction, &event)).await
    }

    /// A part of the events.
    pub async fn events(&self, filter: EventFilter, order: EventOrder, limit: u32) -> Result<EventPage> {
        let turn = self.event_reads.acquire().await.map_err(|_| StoreError::Closed)?;
        let page = self.read(move |transaction| read(transaction, &filter, order, limit)).await;
        drop(turn);
        page
    }
}

/// Enters events.
pub(super) fn insert_all(
    transaction: &Transaction<'_>,
    events: impl IntoIterator<Item = Event>,
) -> Result<()> {
    events.into_iter().try_for_each(|event| insert(transaction, &event))
}

/// Enters an event.
pub(super) fn insert(transaction: &Transaction<'_>, event: &Event) -> Result<()> {
    let text = |id: Option<String>| id.unwrap_or_default();
    let body = to_json(event, "event")?;
    let mut statement = transaction.prepare_cached(
        "INSERT INTO event (created_at, kind, severity, vm, snapshot, volume, operation, schedule, body)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
    )?;
    let place = statement.insert(params![
        event.at.as_millisecond(),
        to_json(&event.kind, "kind of event")?,
        rank(event.severity),
        text(event.vm.map(|id| id.to_string())),
        text(event.snapshot.map(|id| id.to_string())),
        text(event.volume.map(|id| id.to_string())),
        text(event.operation.map(|id| id.to_string())),
        text(event.schedule.map(|id| id.to_string())),
        body,
    ])?;
    outbox::put_event(transaction, event.at, place, &body)
}

/// The place of the newest event ever.
pub(super) fn newest(connection: &Connection) -> Result<u64> {
    let mut statement = connection.prepare_cached("SELECT seq FROM sqlite_sequence WHERE name = 'event'")?;
    let newest: Option<i64> = statement.query_row([], |row| row.get(0)).optional()?;
    Ok(newest.unwrap_or(0).unsigned_abs())
}

fn read(
    transaction: &Transaction<'_>,
    filter: &EventFilter,
    order: EventOrder,
    limit: u32,
) -> Result<EventPage> {
    let newest = newest(transaction)?;
    let oldest: Option<i64> = transaction.row("SELECT min(sequence) FROM event", [], |row| row.get(0))?;
    let mut wanted = conditions(filter)?;
    let total: i64 = if filter.uncounted {
        0
    } else {
        let sql = format!("SELECT count(*) FROM event WHERE {}", wanted.text);
        transaction.row(&sql, params_from_iter(&wanted.values), |row| row.get(0))?
    };
    let place = |place: u64| [Value::from(i64::try_from(place).unwrap_or(i64::MAX))];
    let direction = match order {
        EventOrder::After(last) => {
            wanted.and("sequence > ?", place(last));
            "ASC"
        }
        EventOrder::Before(Some(last)) => {
            wanted.and("sequence < ?", place(last));
            "DESC"
        }
        EventOrder::Before(None) => "DESC",
    };
    let sql = format!(
        "SELECT sequence, body FROM event WHERE {} ORDER BY sequence {direction} LIMIT {}",
        wanted.text,
        u64::from(limit) + 1
    );
    let mut statement = transaction.prepare(&sql)?;
    let rows = statement.query_map(params_from_iter(&wanted.values), |row| {
        Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?))
    })?;
    let mut events = rows
        .map(|row| {
            let (sequence, body) = row?;
            Ok(NumberedEvent { sequence: sequence.unsigned_abs(), event: from_json(&body, "event")? })
        })
        .collect::<Result<Vec<_>>>()?;
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let has_more = events.len() > limit;
    events.truncate(limit);
    let oldest = oldest.map_or(newest + 1, i64::unsigned_abs);
    Ok(EventPage { events, total: total.unsigned_abs(), has_more, newest, oldest })
}

fn conditions(filter: &EventFilter) -> Result<Conditions> {
    let mut wanted = Conditions::none();
    wanted.of_vms(filter.vms.as_deref());
    if filter.without_clones {
        // What differs at a VM may name its clones.
        let kinds = [EventKind::VolumeStateChanged, EventKind::VmDifference];
        for kind in kinds {
            wanted.and("kind <> ?", [to_json(&kind, "kind of event")?.into()]);
        }
        wanted.and(&format!("operation NOT IN {MAKES_CLONES}"), []);
    }
    for (column, id) in [
        ("snapshot", filter.snapshot.map(|id| id.to_string())),
        ("volume", filter.volume.map(|id| id.to_string())),
        ("operation", filter.operation.map(|id| id.to_string())),
        ("schedule", filter.schedule.map(|id| id.to_string())),
    ] {
        wanted.one_of(column, id.into_iter().map(Value::from).collect());
    }
    let kinds = filter.kinds.iter().map(|kind| Ok(to_json(kind, "kind of event")?.into()));
    wanted.one_of("kind", kinds.collect::<Result<_>>()?);
    for (condition, value) in [
        ("severity >= ?", filter.min_severity.map(rank)),
        ("created_at >= ?", filter.created_after.map(Timestamp::as_millisecond)),
        ("created_at < ?", filter.created_before.map(Timestamp::as_millisecond)),
    ] {
        if let Some(value) = value {
            wanted.and(condition, [value.into()]);
        }
    }
    Ok(wanted)
}

fn rank(severity: Severity) -> i64 {
    match severity {
        Severity::Info => 1,
        Severity::Warning => 2,
        Severity::Error => 3,
    }
}
