//! The catalog and the journal: one SQLite file, one writer, one transaction per call.
//!
//! Decides how things last. Leaves what they mean to `model`. Must never know a VM, an image or a client.
//!
//! `synchronous=FULL` in WAL mode: when a call returns, what it wrote outlives a power cut
//! (SQLite documentation, "PRAGMA synchronous"). All work is done on a thread of its own, so nothing here blocks the
//! runtime; a catalog in memory is worked on by whoever calls, so that a simulation is the same each time.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;

use rusqlite::{Connection, Params, Row, Transaction, TransactionBehavior};
use tokio::sync::{Semaphore, oneshot, watch};

use crate::model::{EditRefusal, Reason, ScheduleId, ScheduleName, VolumeName};

mod anew;
mod backup;
mod catalog;
mod clone;
mod conditions;
mod count;
mod departure;
mod edit;
mod event;
mod expiry;
mod file;
mod history;
mod journal;
mod lease;
mod manifest;
mod outbox;
mod pivot;
mod placed;
mod presence;
mod query;
mod request;
mod schedule;
mod schedule_run;
mod schema;
mod snapshot;
#[cfg(test)]
pub(crate) mod tests;
mod throttle;
mod way_back;

pub use anew::{put_in_place, write_anew};
pub use backup::Backup;
pub use departure::Departure;
pub use event::{EventFilter, EventOrder, EventPage, NumberedEvent};
pub use journal::{Begun, OperationFilter, Reservation};
pub use lease::{GuestLease, Standstill};
pub use manifest::KeptManifest;
pub use outbox::{News, Outbox, OutboxItem};
pub use pivot::AskedPivot;
pub use placed::Placed;
pub use presence::Kept;
pub use query::{Direction, OrderBy, Page, Position, SnapshotFilter, SnapshotPage};
pub use request::RequestKey;
pub use schedule::{KeptSchedule, ScheduleEdit};
pub use throttle::Throttle;

/// A result from the catalog.
pub type Result<T> = std::result::Result<T, StoreError>;

/// What can go wrong with the catalog.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// SQLite said no.
    #[error("the catalog failed")]
    Sqlite(#[from] rusqlite::Error),
    /// A row that cannot be understood.
    #[error("the catalog holds a {what} that cannot be understood")]
    Malformed {
        /// What it should be.
        what: &'static str,
        /// Why it is not.
        #[source]
        cause: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The file belongs to another program.
    #[error("the file is not a catalog of vmsnapd")]
    Foreign,
    /// The file was written by a later version.
    #[error("the catalog has version {found}, this program knows versions up to {known}")]
    TooNew {
        /// Its version.
        found: i64,
        /// Ours.
        known: i64,
    },
    /// It is no regular file.
    #[error("there is {0} where the catalog should be")]
    NotAFile(&'static str),
    /// It cannot be opened.
    #[error("the file cannot be opened")]
    Unreadable(#[source] std::io::Error),
    /// The log beside it is not its own.
    #[error("the log beside it, catalog.db-wal, is that of another file")]
    ForeignLog,
    /// SQLite found it damaged.
    #[error("the catalog is damaged: {0}")]
    Corrupt(String),
    /// There were snapshots here, and there is nothing that tells of them.
    #[error("there is no catalog, or an empty one, and there are backups of one")]
    Lost,
    /// A copy cannot be written.
    #[error("cannot write the backup {}", .path.display())]
    Backup {
        /// Where it was to be.
        path: PathBuf,
        /// Why.
        #[source]
        cause: std::io::Error,
    },
    /// The thread that writes it is gone.
    #[error("the catalog is closed")]
    Closed,
    /// The name is taken.
    #[error("the VM has a snapshot of that name already")]
    NameTaken,
    /// The name is taken.
    #[error("there is a volume {0} already")]
    VolumeNameTaken(VolumeName),
    /// The name is taken.
    #[error("there is a schedule {name} already")]
    ScheduleNameTaken {
        /// The name.
        name: ScheduleName,
        /// Whose it is.
        by: ScheduleId,
    },
    /// There is no such schedule any more.
    #[error("there is no schedule {0} any more")]
    ScheduleGone(ScheduleId),
    /// It was changed meanwhile.
    #[error("the schedule was changed meanwhile")]
    ScheduleChanged {
        /// Its generation now.
        actual: u64,
    },
    /// A run of it is going.
    #[error("a run of schedule {0} is still going")]
    ScheduleRunning(ScheduleName),
    /// The client used the id for something else before.
    #[error("the request id {0:?} was used for another request")]
    KeyReused(String),
    /// The snapshot may not be changed so.
    #[error(transparent)]
    Edit(#[from] EditRefusal),
}

impl StoreError {
    /// The stable reason.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            Self::NameTaken => Reason::SnapshotExists,
            Self::VolumeNameTaken(_) => Reason::VolumeExists,
            Self::ScheduleNameTaken { .. } => Reason::ScheduleExists,
            Self::ScheduleGone(_) => Reason::ScheduleNotFound,
            Self::ScheduleChanged { .. } => Reason::EtagMismatch,
            Self::ScheduleRunning(_) => Reason::ScheduleRunning,
            Self::KeyReused(_) => Reason::RequestIdReused,
            Self::Edit(refusal) => refusal.reason(),
            Self::Backup { cause, .. } if is_full(cause) => Reason::InsufficientSpace,
            Self::Sqlite(_)
            | Self::Backup { .. }
            | Self::Malformed { .. }
            | Self::Foreign
            | Self::TooNew { .. }
            | Self::NotAFile(_)
            | Self::Unreadable(_)
            | Self::ForeignLog
            | Self::Corrupt(_)
            | Self::Lost
            | Self::Closed => Reason::CatalogFailed,
        }
    }
}

/// Reads that may be in the queue at once: enough that the thread is never idle while somebody wants to read.
const QUEUED_READS: usize = 32;

/// Reads of events among them: each event is read for each who watches, and operations have to read, too.
const QUEUED_EVENT_READS: usize = 8;

fn is_full(cause: &std::io::Error) -> bool {
    matches!(cause.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded)
}

/// A handle on the catalog. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    desk: Desk,
    reads: Arc<Semaphore>,
    /// Of these, those that read events.
    event_reads: Arc<Semaphore>,
    /// The place of the newest event.
    newest_event: watch::Receiver<u64>,
    /// Where the file is; None in memory.
    path: Option<PathBuf>,
    /// Held by whoever writes a backup.
    backups: Arc<tokio::sync::Mutex<()>>,
}

/// Where the work is done.
#[derive(Clone)]
enum Desk {
    /// On a thread of its own.
    Thread(mpsc::Sender<Job>),
    /// Where it is asked for.
    InPlace(Arc<Mutex<Catalog>>),
}

/// The file, and who is told of what is new in it.
struct Catalog {
    connection: Connection,
    newest_event: watch::Sender<u64>,
}

type Job = Box<dyn FnOnce(&mut Catalog) + Send>;

impl Store {
    /// Opens the catalog at `path`, makes it if there is none, brings it to this version. Blocks.
    pub fn open(path: &Path) -> Result<Self> {
        file::check_not_lost(path)?;
        let (mut catalog, newest_event) = Catalog::new(schema::open(path)?)?;
        let (jobs, queue) = mpsc::channel::<Job>();
        thread::Builder::new()
            .name("store".to_owned())
            .spawn(move || {
                while let Ok(job) = queue.recv() {
                    job(&mut catalog);
                }
            })
            .map_err(|_| StoreError::Closed)?;
        Ok(Self::at(Desk::Thread(jobs), newest_event, Some(path)))
    }

    /// A catalog that is gone with its last handle; for simulations.
    pub fn in_memory() -> Result<Self> {
        let (catalog, newest_event) = Catalog::new(schema::open_in_memory()?)?;
        Ok(Self::at(Desk::InPlace(Arc::new(Mutex::new(catalog))), newest_event, None))
    }

    fn at(desk: Desk, newest_event: watch::Receiver<u64>, path: Option<&Path>) -> Self {
        let (reads, event_reads) = (Semaphore::new(QUEUED_READS), Semaphore::new(QUEUED_EVENT_READS));
        Self {
            desk,
            reads: Arc::new(reads),
            event_reads: Arc::new(event_reads),
            newest_event,
            path: path.map(Path::to_owned),
            backups: Arc::default(),
        }
    }

    /// Runs `work` in one transaction: all of it lasts, or nothing. Once it has begun it is carried through, even if the
    /// caller stops waiting.
    async fn transact<T, W>(&self, work: W) -> Result<T>
    where
        T: Send + 'static,
        W: FnOnce(&Transaction<'_>) -> Result<T> + Send + 'static,
    {
        match &self.desk {
            Desk::Thread(jobs) => {
                let (answer, result) = oneshot::channel();
                // Whoever asked may have gone; the work is done all the same.
                let job: Job = Box::new(move |catalog| drop(answer.send(catalog.transact(work))));
                jobs.send(job).map_err(|_| StoreError::Closed)?;
                result.await.map_err(|_| StoreError::Closed)?
            }
            Desk::InPlace(catalog) => {
                // As with a thread, others get their turn before the work is done and before the answer is there.
                tokio::task::yield_now().await;
                let result = catalog.lock().unwrap_or_else(PoisonError::into_inner).transact(work);
                tokio::task::yield_now().await;
                result
            }
        }
    }

    /// [`Self::transact`] for work that changes nothing. It waits for its turn outside of the queue: reads whose callers have
    /// gone meanwhile are not done, and a crowd of them does not stand before what is to be written.
    async fn read<T, W>(&self, work: W) -> Result<T>
    where
        T: Send + 'static,
        W: FnOnce(&Transaction<'_>) -> Result<T> + Send + 'static,
    {
        let turn = Arc::clone(&self.reads).acquire_owned().await.map_err(|_| StoreError::Closed)?;
        self.transact(move |transaction| {
            // It is in the queue, whatever becomes of its caller, until it is done.
            let _turn = turn;
            work(transaction)
        })
        .await
    }

    /// Tells whenever there are new events: the place of the newest.
    #[must_use]
    pub fn newest_event(&self) -> watch::Receiver<u64> {
        self.newest_event.clone()
    }

    /// Whether the catalog can be written now.
    pub async fn probe(&self) -> Result<()> {
        self.transact(|transaction| {
            transaction.run("UPDATE probe SET at = at + 1", [])?;
            Ok(())
        })
        .await
    }
}

impl Catalog {
    fn new(connection: Connection) -> Result<(Self, watch::Receiver<u64>)> {
        let newest = event::newest(&connection)?;
        let (newest_event, receiver) = watch::channel(newest);
        Ok((Self { connection, newest_event }, receiver))
    }

    fn transact<T>(&mut self, work: impl FnOnce(&Transaction<'_>) -> Result<T>) -> Result<T> {
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let value = work(&transaction)?;
        let newest = event::newest(&transaction)?;
        transaction.commit()?;
        self.newest_event.send_if_modified(|known| std::mem::replace(known, newest) != newest);
        Ok(value)
    }
}

/// Statements that stay prepared, for work of which it matters how long it takes: some is done while a guest stands still.
trait Prepared {
    /// Gives how many rows it has changed.
    fn run(&self, sql: &str, parameters: impl Params) -> rusqlite::Result<usize>;

    /// Gives the first row.
    fn row<T>(
        &self,
        sql: &str,
        parameters: impl Params,
        read: impl FnOnce(&Row<'_>) -> rusqlite::Result<T>,
    ) -> rusqlite::Result<T>;
}

impl Prepared for Transaction<'_> {
    fn run(&self, sql: &str, parameters: impl Params) -> rusqlite::Result<usize> {
        self.prepare_cached(sql)?.execute(parameters)
    }

    fn row<T>(
        &self,
        sql: &str,
        parameters: impl Params,
        read: impl FnOnce(&Row<'_>) -> rusqlite::Result<T>,
    ) -> rusqlite::Result<T> {
        self.prepare_cached(sql)?.query_row(parameters, read)
    }
}

/// A value as a JSON column.
fn to_json<T: serde::Serialize>(value: &T, what: &'static str) -> Result<String> {
    serde_json::to_string(value).map_err(|cause| StoreError::Malformed { what, cause: Box::new(cause) })
}

/// A JSON column as a value.
fn from_json<T: serde::de::DeserializeOwned>(text: &str, what: &'static str) -> Result<T> {
    serde_json::from_str(text).map_err(|cause| StoreError::Malformed { what, cause: Box::new(cause) })
}

/// A text column as an id.
fn parse<T: std::str::FromStr>(text: &str, what: &'static str) -> Result<T>
where
    T::Err: std::error::Error + Send + Sync + 'static,
{
    text.parse().map_err(|cause| StoreError::Malformed { what, cause: Box::new(cause) })
}
