//! Backups: copies of the catalog, taken while it is in use.
//!
//! Decides what a backup is called, that it is whole before it has its name, and that nothing in it goes on by itself. The
//! copy is read over a connection of its own, on a thread of its own: in WAL mode a reader holds nobody up, and sees one
//! moment (SQLite documentation, "Write-Ahead Logging"). How many are kept is the caller's to say.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use jiff::Timestamp;
use rusqlite::{Connection, OpenFlags};
use tokio::sync::{OwnedMutexGuard, oneshot};

use super::request::{self, Answer, RequestKey};
use super::{Result, Store, StoreError, event, journal, schema};
use crate::model::Failure;
use crate::model::event::of_operation;
use crate::model::operation::Reason;

/// The directory, beside the catalog.
const DIRECTORY: &str = "backup";

/// What a backup has at its end while it is written: a crash leaves it, the next backup removes it.
const UNFINISHED: [&str; 2] = [PART, ".part-journal"];
const PART: &str = ".part";

/// A catalog of 100,000 snapshots is copied in seconds; a disk that takes longer than this is none to wait for.
const DEADLINE: Duration = Duration::from_secs(600);

/// A copy of the catalog.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backup {
    /// Absolute path.
    pub path: PathBuf,
    /// Its size, in bytes.
    pub bytes: u64,
}

impl Store {
    /// Copies the catalog as it is now. The copy is complete and durable when this returns; after an error there is none.
    /// Of the older ones only the newest stay, so that `kept` are there in the end. The same request again gives the copy
    /// that it made, unless somebody has taken that away since.
    pub async fn back_up(&self, key: Option<RequestKey>, kept: usize, now: Timestamp) -> Result<Backup> {
        let Some(catalog) = self.path.clone() else { return Err(StoreError::Closed) };
        let directory = catalog.with_file_name(DIRECTORY);
        let alone = Arc::clone(&self.backups).lock_owned().await;
        let before = self.backed_up_before(key.clone()).await?.map(|at| directory.join(file_name(at)));
        let path = directory.join(file_name(now));
        let failed = |cause| StoreError::Backup { path: path.clone(), cause };
        let target = path.clone();
        let write = move || before.and_then(still_there).map_or_else(|| write(&catalog, &target), Ok);
        let (backup, alone) = on_thread(write, alone).await.map_err(failed)??;
        let backup = backup?;
        if backup.path != path {
            return Ok(backup);
        }
        let remembered = self.remember_backup(key, now).await;
        let target = path.clone();
        let finish = move || match remembered {
            Ok(()) => {
                prune(&target, kept);
                Ok(backup)
            }
            // To whoever asked there is none.
            Err(error) => {
                remove(&target);
                Err(error)
            }
        };
        on_thread(finish, alone).await.map_err(failed)??.0
    }

    async fn remember_backup(&self, key: Option<RequestKey>, at: Timestamp) -> Result<()> {
        self.transact(move |transaction| {
            request::forget(transaction, key.as_ref())?;
            let answer = Answer::Backup(at.as_millisecond());
            request::remember(transaction, key.as_ref(), answer, at.as_millisecond())
        })
        .await
    }

    async fn backed_up_before(&self, key: Option<RequestKey>) -> Result<Option<Timestamp>> {
        let find = move |transaction: &rusqlite::Transaction<'_>| request::find(transaction, key.as_ref());
        Ok(match self.transact(find).await? {
            Some(Answer::Backup(at)) => Timestamp::from_millisecond(at).ok(),
            // The digest covers which call it was, so another answer is never the same request's.
            Some(_) | None => None,
        })
    }
}

/// Lets a thread of its own do work that blocks, while nobody else makes a backup. Whoever asked may have gone: it is done all
/// the same, and what is unfinished is only removed by whoever is alone.
async fn on_thread<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
    alone: OwnedMutexGuard<()>,
) -> io::Result<Result<(T, OwnedMutexGuard<()>)>> {
    let (answer, done) = oneshot::channel();
    let work = move || drop(answer.send((work(), alone)));
    thread::Builder::new().name("backup".to_owned()).spawn(work)?;
    Ok(done.await.map_err(|_| StoreError::Closed))
}

/// Names sort as the backups were made.
fn file_name(at: Timestamp) -> String {
    format!("catalog-{}.db", at.strftime("%Y%m%dT%H%M%S.%3fZ"))
}

/// Whether there is a copy of the catalog at this path.
pub(super) fn are_beside(catalog: &Path) -> bool {
    let directory = catalog.parent().map(|state| state.join(DIRECTORY));
    let files = directory.and_then(|directory| fs::read_dir(directory).ok());
    files.is_some_and(|files| files.flatten().any(|file| is_backup(&file.path())))
}

fn is_backup(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.starts_with("catalog-") && name.ends_with(".db")
}

fn is_unfinished(path: &Path) -> bool {
    let name = path.to_string_lossy();
    UNFINISHED.iter().any(|end| name.strip_suffix(end).is_some_and(|name| is_backup(Path::new(name))))
}

fn still_there(path: PathBuf) -> Option<Backup> {
    let bytes = fs::metadata(&path).ok()?.len();
    Some(Backup { path, bytes })
}

/// Writes the copy under another name, then gives it its own. Blocks.
fn write(catalog: &Path, path: &Path) -> Result<Backup> {
    let failed = |cause| StoreError::Backup { path: path.to_owned(), cause };
    let directory = path.parent().unwrap_or(path);
    make_directory(directory).map_err(failed)?;
    let files = list(directory).map_err(failed)?;
    files.iter().filter(|file| is_unfinished(file)).for_each(|file| drop(fs::remove_file(file)));

    let unfinished = PathBuf::from(format!("{}{PART}", path.display()));
    let finished = fill(catalog, &unfinished)
        .and_then(|bytes| fs::rename(&unfinished, path).map(|()| bytes))
        .and_then(|bytes| File::open(directory)?.sync_all().map(|()| bytes));
    if finished.is_err() {
        // An error has to leave nothing that somebody could take for a backup.
        drop((fs::remove_file(&unfinished), fs::remove_file(path)));
    }
    let bytes = finished.map_err(failed)?;
    Ok(Backup { path: path.to_owned(), bytes })
}

fn fill(catalog: &Path, unfinished: &Path) -> io::Result<u64> {
    // SQLite would make the file with the mode of the umask. It takes an empty one as it takes none.
    let file = OpenOptions::new().create_new(true).write(true).mode(0o600).open(unfinished)?;
    let connection =
        Connection::open_with_flags(catalog, OpenFlags::SQLITE_OPEN_READ_ONLY).map_err(sqlite)?;
    let name = unfinished.to_str().ok_or(io::ErrorKind::InvalidFilename)?;
    within_deadline(&connection, || connection.execute("VACUUM INTO ?", [name]))?;
    file.sync_all()?;
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE;
    let mut copy = Connection::open_with_flags(unfinished, flags).map_err(sqlite)?;
    // A backup that nobody could open is none.
    schema::check(&copy).map_err(io::Error::other)?;
    // What is told from the copy on is not what was told after it was made: another outbox has to begin.
    let dropped = copy.execute("DELETE FROM outbox", []).map_err(sqlite)?;
    copy.execute("DELETE FROM outbox_state", []).map_err(sqlite)?;
    hold_operations(&mut copy).map_err(io::Error::other)?;
    if dropped > 0 {
        // It may have been most of the copy.
        within_deadline(&copy, || copy.execute("VACUUM", []))?;
    }
    drop(copy);
    file.sync_all()?;
    Ok(file.metadata()?.len())
}

/// Whoever puts the copy in place does so when the images have moved on: what is under way now has ended by then, or was left
/// half way. Carried on with from here it would stop a VM, or let one write to what snapshots refer to.
fn hold_operations(copy: &mut Connection) -> Result<()> {
    let transaction = copy.transaction()?;
    // Whoever is frozen when the copy is put in place was frozen by somebody else.
    transaction.execute("DELETE FROM lease", [])?;
    for mut operation in journal::read_open(&transaction)? {
        let before = operation.clone();
        operation.hold(Failure {
            reason: Reason::VmChanged,
            message: "the catalog was put back from a backup that was made while this was under way; by now it may have \
                      ended, and its images may be used otherwise. Give it up, and look at what 'vmsnap vm check' finds"
                .to_owned(),
            causes: Vec::new(),
        });
        event::insert_all(&transaction, of_operation(Some(&before), &operation))?;
        journal::write(&transaction, &operation)?;
    }
    Ok(transaction.commit()?)
}

/// Lets SQLite break off what takes too long.
fn within_deadline<T>(connection: &Connection, work: impl FnOnce() -> rusqlite::Result<T>) -> io::Result<T> {
    let interrupt = connection.get_interrupt_handle();
    let (done, ended) = std::sync::mpsc::channel::<()>();
    let watch = thread::Builder::new().name("backup-deadline".to_owned()).spawn(move || {
        if ended.recv_timeout(DEADLINE) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
            interrupt.interrupt();
        }
    })?;
    let result = work().map_err(sqlite);
    drop(done);
    // It has nothing left to wait for.
    drop(watch.join());
    result
}

fn make_directory(directory: &Path) -> io::Result<()> {
    match fs::DirBuilder::new().mode(0o700).create(directory) {
        Ok(()) => File::open(directory.parent().unwrap_or(directory))?.sync_all(),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
    }
}

fn list(directory: &Path) -> io::Result<Vec<PathBuf>> {
    fs::read_dir(directory)?.map(|entry| Ok(entry?.path())).collect()
}

/// Removes the oldest but for `new`, so that with it `kept` are left. What cannot be removed is only more than was asked for.
fn prune(new: &Path, kept: usize) {
    let there = list(new.parent().unwrap_or(new)).unwrap_or_default();
    let mut backups: Vec<PathBuf> = there.into_iter().filter(|path| is_backup(path) && path != new).collect();
    backups.sort();
    let too_many = (backups.len() + 1).saturating_sub(kept);
    backups.iter().take(too_many).for_each(|old| remove(old));
}

fn remove(backup: &Path) {
    if let Err(error) = fs::remove_file(backup) {
        tracing::warn!(path = %backup.display(), %error, "a backup of the catalog stays that nobody needs");
    }
}

fn sqlite(error: rusqlite::Error) -> io::Error {
    let kind = match error.sqlite_error_code() {
        Some(rusqlite::ErrorCode::DiskFull) => io::ErrorKind::StorageFull,
        Some(rusqlite::ErrorCode::OperationInterrupted) => io::ErrorKind::TimedOut,
        _ => io::ErrorKind::Other,
    };
    io::Error::new(kind, error)
}
