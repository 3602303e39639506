//! Operations: what was meant, how far it is. Written before each turn.

use rusqlite::{OptionalExtension, Transaction, params, params_from_iter};

use super::conditions::{Conditions, MAKES_CLONES};
use super::request::{self, Answer, RequestKey};
use super::{
    Prepared, Result, Store, StoreError, clone, event, from_json, outbox, snapshot, to_json, way_back,
};
use crate::model::event::{Cause, of_clone, of_expiry, of_operation, of_snapshot};
use crate::model::{ClonedVolume, Operation, OperationId, Snapshot, SnapshotState, VmId};

/// What came of beginning an operation.
#[derive(Debug, Clone, PartialEq)]
pub enum Begun {
    /// It is new.
    New,
    /// The same request has begun this one before.
    Before(Box<Operation>),
}

/// What is entered into the catalog together with an operation.
#[derive(Debug, Clone, PartialEq)]
pub enum Reservation {
    /// Nothing.
    None,
    /// A snapshot, and the definition that belongs to it.
    Snapshot(Box<Snapshot>, String),
    /// Clones.
    Clones(Vec<ClonedVolume>),
}

impl Store {
    /// Makes an operation durable, its request's key and its snapshot's reservation with it.
    /// [`StoreError::NameTaken`] if the snapshot's name is, [`StoreError::KeyReused`] if the key is another request's.
    pub async fn begin(
        &self,
        operation: Operation,
        key: Option<RequestKey>,
        reservation: Reservation,
    ) -> Result<Begun> {
        self.transact(move |transaction| {
            if let Some(before) = begun_before(transaction, key.as_ref())? {
                return Ok(Begun::Before(Box::new(before)));
            }
            let answer = Answer::Operation(operation.id);
            request::remember(transaction, key.as_ref(), answer, operation.created_at.as_millisecond())?;
            let cause = Cause {
                operation: Some(operation.id),
                actor: operation.created_by.clone(),
                at: operation.created_at,
            };
            tell(transaction, None, &operation)?;
            for expired in operation.request.expired() {
                let expired = snapshot::read(transaction, *expired)?;
                event::insert_all(transaction, expired.map(|expired| of_expiry(&expired, &cause)))?;
            }
            match &reservation {
                Reservation::None => {}
                Reservation::Snapshot(snapshot, definition) => {
                    snapshot::reserve(transaction, snapshot, definition)?;
                    event::insert_all(transaction, of_snapshot(None, Some(snapshot), &cause))?;
                }
                Reservation::Clones(clones) => {
                    for new in clones {
                        clone::reserve(transaction, new)?;
                        event::insert_all(transaction, of_clone(None, Some(new), &cause))?;
                    }
                }
            }
            write(transaction, &operation)?;
            Ok(Begun::New)
        })
        .await
    }

    /// The operation that the same request has begun before.
    pub async fn find_request(&self, key: RequestKey) -> Result<Option<Operation>> {
        self.transact(move |transaction| begun_before(transaction, Some(&key))).await
    }

    /// Makes the present state of an operation durable.
    pub async fn save(&self, operation: Operation) -> Result<()> {
        self.transact(move |transaction| save(transaction, &operation)).await
    }

    /// [`Store::save`], of one that nobody goes on with: what it was in the midst of is in ERROR.
    pub async fn abandon(&self, operation: Operation) -> Result<()> {
        self.transact(move |transaction| {
            for id in operation.snapshots() {
                let Some(before) = snapshot::read(transaction, id)? else { continue };
                let Some(why) = operation.abandonment(&before) else { continue };
                let changed = Snapshot {
                    state: SnapshotState::Error,
                    trouble: Some(why),
                    generation: before.generation + 1,
                    ..before.clone()
                };
                snapshot::write(transaction, &changed)?;
                let actor = operation.created_by.clone();
                let cause = Cause { operation: Some(operation.id), actor, at: operation.updated_at };
                event::insert_all(transaction, of_snapshot(Some(&before), Some(&changed), &cause))?;
            }
            save(transaction, &operation)
        })
        .await
    }

    /// One operation.
    pub async fn operation(&self, id: OperationId) -> Result<Option<Operation>> {
        self.read(move |transaction| read(transaction, id)).await
    }

    /// The operations that have not ended, oldest first.
    pub async fn open_operations(&self) -> Result<Vec<Operation>> {
        self.transact(read_open).await
    }

    /// Operations, newest first, at most `limit`, older than `before`. With the number there are.
    pub async fn operations(
        &self,
        filter: OperationFilter,
        before: Option<OperationId>,
        limit: u32,
    ) -> Result<(Vec<Operation>, u64)> {
        self.read(move |transaction| {
            let mut wanted = Conditions::none();
            wanted.of_vms(filter.vms.as_deref());
            if filter.only_open {
                wanted.and("is_open = 1", []);
            }
            if filter.without_clones {
                wanted.and(&format!("id NOT IN {MAKES_CLONES}"), []);
            }
            let total: i64 = transaction.row(
                &format!("SELECT count(*) FROM operation WHERE {}", wanted.text),
                params_from_iter(&wanted.values),
                |row| row.get(0),
            )?;
            if let Some(before) = before {
                wanted.and("id < ?", [before.to_string().into()]);
            }
            let sql = format!("SELECT body FROM operation WHERE {} ORDER BY id DESC LIMIT ?", wanted.text);
            let mut statement = transaction.prepare_cached(&sql)?;
            wanted.values.push(limit.into());
            let rows =
                statement.query_map(params_from_iter(&wanted.values), |row| row.get::<_, String>(0))?;
            let operations = rows.map(|row| parsed(&row?)).collect::<Result<_>>()?;
            Ok((operations, total.unsigned_abs()))
        })
        .await
    }
}

/// Which operations. The default lets all through.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OperationFilter {
    /// On one of these VMs. None: on any.
    pub vms: Option<Vec<VmId>>,
    /// That have not ended.
    pub only_open: bool,
    /// That are not about clones: see [`Request::makes_clones`](crate::model::Request::makes_clones).
    pub without_clones: bool,
}

fn save(transaction: &Transaction<'_>, operation: &Operation) -> Result<()> {
    let before = read(transaction, operation.id)?;
    tell(transaction, before.as_ref(), operation)?;
    if operation.cursor.has_ended() {
        way_back::leave(transaction, operation.id)?;
    }
    write(transaction, operation)
}

/// Tells what is new of an operation.
fn tell(transaction: &Transaction<'_>, before: Option<&Operation>, now: &Operation) -> Result<()> {
    event::insert_all(transaction, of_operation(before, now))?;
    outbox::put_operation(transaction, before, now)
}

fn begun_before(transaction: &Transaction<'_>, key: Option<&RequestKey>) -> Result<Option<Operation>> {
    match request::find(transaction, key)? {
        Some(Answer::Operation(id)) => read(transaction, id),
        // The digest covers which call it was, so another answer is never the same request's.
        Some(_) | None => Ok(None),
    }
}

/// See [`Store::open_operations`].
pub(super) fn read_open(transaction: &Transaction<'_>) -> Result<Vec<Operation>> {
    let mut statement =
        transaction.prepare_cached("SELECT body FROM operation WHERE is_open = 1 ORDER BY id")?;
    let rows = statement.query_map([], |row| row.get::<_, String>(0))?;
    rows.map(|row| parsed(&row?)).collect()
}

fn read(transaction: &Transaction<'_>, id: OperationId) -> Result<Option<Operation>> {
    let body: Option<String> = transaction
        .row("SELECT body FROM operation WHERE id = ?", [id.to_string()], |row| row.get(0))
        .optional()?;
    body.map(|body| parsed(&body)).transpose()
}

/// An operation out of its row. One whose cursor points beside its plan is not carried on with.
pub(super) fn parsed(body: &str) -> Result<Operation> {
    let operation: Operation = from_json(body, "operation")?;
    if operation.cursor.fits(operation.steps.len()) {
        return Ok(operation);
    }
    let cause = "its cursor is not one of its plan".into();
    Err(StoreError::Malformed { what: "operation", cause })
}

pub(super) fn write(transaction: &Transaction<'_>, operation: &Operation) -> Result<()> {
    transaction.run(
        "INSERT INTO operation (id, vm, snapshot, is_open, created_at, body) VALUES (?, ?, ?, ?, ?, ?)
         ON CONFLICT (id) DO UPDATE SET is_open = excluded.is_open, body = excluded.body",
        params![
            operation.id.to_string(),
            operation.vm.to_string(),
            operation.snapshot.map(|id| id.to_string()).unwrap_or_default(),
            !operation.cursor.has_ended(),
            operation.created_at.as_millisecond(),
            to_json(operation, "operation")?,
        ],
    )?;
    Ok(())
}

impl StoreError {
    /// Whether it was the uniqueness of a name that was hurt.
    pub(super) fn from_insert(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(rusqlite::ErrorCode::ConstraintViolation) => Self::NameTaken,
            _ => Self::Sqlite(error),
        }
    }
}
