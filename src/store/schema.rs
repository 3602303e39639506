//! The tables, and how an older file becomes a newer one. A migration, once released, is never edited.

use std::fs::{self, OpenOptions, Permissions};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use rusqlite::Connection;
use rusqlite::config::DbConfig;

use super::{Result, StoreError, count, file};

/// "vmsn": tells our file from anybody else's (SQLite documentation, "PRAGMA `application_id`").
const APPLICATION_ID: i64 = 0x766d_736e;

/// How many statements stay prepared: more than there are, without the lists, which differ with what is asked.
const STATEMENTS: usize = 128;

/// Step `n` brings a file of version `n` to version `n + 1`.
const MIGRATIONS: &[&str] = &[V1, V2, V3, V4, V5, V6, V7, V8, V9];

const V1: &str = "
CREATE TABLE operation (
    id          TEXT PRIMARY KEY,
    vm          TEXT NOT NULL,
    snapshot    TEXT NOT NULL,
    is_open     INTEGER NOT NULL,
    created_at  INTEGER NOT NULL,
    body        TEXT NOT NULL
) STRICT;
CREATE INDEX operation_open ON operation (is_open, id);
CREATE INDEX operation_vm ON operation (vm, id);

CREATE TABLE request (
    id          TEXT NOT NULL,
    principal   TEXT NOT NULL,
    digest      BLOB NOT NULL,
    answer      TEXT NOT NULL,
    created_at  INTEGER NOT NULL,
    PRIMARY KEY (principal, id)
) STRICT, WITHOUT ROWID;

CREATE TABLE vm (
    id          TEXT PRIMARY KEY,
    current     TEXT
) STRICT;

CREATE TABLE volume (
    vm          TEXT NOT NULL,
    id          TEXT NOT NULL,
    target      TEXT NOT NULL,
    active      TEXT NOT NULL,
    PRIMARY KEY (vm, id)
) STRICT, WITHOUT ROWID;

CREATE TABLE layer (
    id          TEXT PRIMARY KEY,
    vm          TEXT NOT NULL,
    path        TEXT NOT NULL,
    body        TEXT NOT NULL
) STRICT;
CREATE INDEX layer_vm ON layer (vm);
CREATE INDEX layer_path ON layer (path);

CREATE TABLE snapshot (
    number      INTEGER PRIMARY KEY AUTOINCREMENT,
    id          TEXT NOT NULL UNIQUE,
    vm          TEXT NOT NULL,
    vm_name     TEXT NOT NULL,
    name        TEXT NOT NULL,
    state       TEXT NOT NULL,
    kind        TEXT NOT NULL,
    parent      TEXT NOT NULL,
    held        INTEGER NOT NULL,
    account     TEXT NOT NULL,
    domain      TEXT NOT NULL,
    project     TEXT NOT NULL,
    created_at  INTEGER NOT NULL,
    expires_at  INTEGER,
    UNIQUE (vm, name)
) STRICT;
CREATE INDEX snapshot_created ON snapshot (created_at);
CREATE INDEX snapshot_name ON snapshot (name);
CREATE INDEX snapshot_vm_name ON snapshot (vm_name);
CREATE INDEX snapshot_vm ON snapshot (vm, created_at);
CREATE INDEX snapshot_state ON snapshot (state, created_at);
CREATE INDEX snapshot_kind ON snapshot (kind, created_at);
CREATE INDEX snapshot_parent ON snapshot (parent);
CREATE INDEX snapshot_held ON snapshot (held, created_at);
CREATE INDEX snapshot_expires ON snapshot (expires_at) WHERE expires_at IS NOT NULL;
CREATE INDEX snapshot_account ON snapshot (account, created_at);
CREATE INDEX snapshot_domain ON snapshot (domain, created_at);
CREATE INDEX snapshot_project ON snapshot (project, created_at);

CREATE TABLE snapshot_body (
    snapshot    INTEGER PRIMARY KEY REFERENCES snapshot (number) ON DELETE CASCADE,
    definition  TEXT NOT NULL,
    body        TEXT NOT NULL
) STRICT;

CREATE TABLE snapshot_property (
    snapshot    INTEGER NOT NULL REFERENCES snapshot (number) ON DELETE CASCADE,
    key         TEXT NOT NULL,
    value       TEXT NOT NULL,
    PRIMARY KEY (snapshot, key)
) STRICT, WITHOUT ROWID;
CREATE INDEX snapshot_property_value ON snapshot_property (key, value, snapshot);

CREATE TABLE snapshot_volume (
    snapshot    INTEGER NOT NULL REFERENCES snapshot (number) ON DELETE CASCADE,
    volume      TEXT NOT NULL,
    PRIMARY KEY (snapshot, volume)
) STRICT, WITHOUT ROWID;
CREATE INDEX snapshot_volume_volume ON snapshot_volume (volume, snapshot);

CREATE TABLE clone (
    id          TEXT PRIMARY KEY,
    vm          TEXT NOT NULL,
    name        TEXT NOT NULL UNIQUE,
    body        TEXT NOT NULL
) STRICT;
CREATE INDEX clone_vm ON clone (vm);

CREATE TABLE comment (
    id          TEXT PRIMARY KEY,
    snapshot    TEXT NOT NULL REFERENCES snapshot (id) ON DELETE CASCADE,
    body        TEXT NOT NULL
) STRICT;
CREATE INDEX comment_snapshot ON comment (snapshot, id);

CREATE TABLE event (
    sequence    INTEGER PRIMARY KEY AUTOINCREMENT,
    created_at  INTEGER NOT NULL,
    kind        TEXT NOT NULL,
    severity    INTEGER NOT NULL,
    vm          TEXT NOT NULL,
    snapshot    TEXT NOT NULL,
    volume      TEXT NOT NULL,
    operation   TEXT NOT NULL,
    body        TEXT NOT NULL
) STRICT;
CREATE INDEX event_created ON event (created_at);
CREATE INDEX event_vm ON event (vm);
CREATE INDEX event_snapshot ON event (snapshot);
CREATE INDEX event_operation ON event (operation);

CREATE TABLE lease (
    vm          TEXT PRIMARY KEY,
    body        TEXT NOT NULL
) STRICT;

CREATE TABLE probe (at INTEGER NOT NULL) STRICT;
INSERT INTO probe VALUES (0);
";

/// What is there already has no manifest yet.
const V2: &str = "
CREATE TABLE throttle (
    vm          TEXT NOT NULL,
    disk        TEXT NOT NULL,
    body        TEXT NOT NULL,
    PRIMARY KEY (vm, disk)
) STRICT, WITHOUT ROWID;

CREATE TABLE manifest (
    id          TEXT PRIMARY KEY,
    vm          TEXT NOT NULL,
    places      TEXT NOT NULL,
    checksum    TEXT NOT NULL,
    mark        INTEGER NOT NULL,
    settled     INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX manifest_vm ON manifest (vm);
CREATE INDEX manifest_due ON manifest (vm) WHERE mark <> settled;
INSERT INTO manifest SELECT id, vm, '[]', '', 1, 0 FROM snapshot;
INSERT INTO manifest SELECT id, vm, '[]', '', 1, 0 FROM clone;
";

/// Which VMs an earlier life saw migrate is not known any more.
const V3: &str = "
CREATE TABLE departure (
    vm          TEXT PRIMARY KEY,
    mark        TEXT NOT NULL
) STRICT, WITHOUT ROWID;
";

const V4: &str = "
CREATE TABLE pivot (
    vm          TEXT NOT NULL,
    disk        TEXT NOT NULL,
    body        TEXT NOT NULL,
    PRIMARY KEY (vm, disk)
) STRICT, WITHOUT ROWID;
";

const V5: &str = "
CREATE TABLE way_back (operation TEXT PRIMARY KEY) STRICT, WITHOUT ROWID;
";

/// `event` is the place of an event; NULL: the body is an operation. There is a state while there is a controller. Numbers go on from
/// one outbox to the next: what is told is the number behind `base`. `bytes` are those of all bodies behind it.
const V6: &str = "
CREATE TABLE outbox (
    sequence    INTEGER PRIMARY KEY AUTOINCREMENT,
    created_at  INTEGER NOT NULL,
    event       INTEGER,
    body        TEXT NOT NULL
) STRICT;
CREATE TABLE outbox_state (
    id          TEXT NOT NULL,
    base        INTEGER NOT NULL,
    acknowledged INTEGER NOT NULL,
    bytes       INTEGER NOT NULL,
    most_bytes  INTEGER NOT NULL
) STRICT;
";

/// The operations that callers with a scope see nothing of: `conditions::MAKES_CLONES` has to spell the same.
const V7: &str = "
CREATE INDEX operation_of_clones ON operation (id) WHERE
    iif(json_valid(body), json_extract(body, '$.request.request'), '')
    IN ('clone_volume', 'flatten_volume', 'delete_volume', 'deploy_vm');
";

/// `seen_until` is the time up to which a schedule's runs were begun or told as missed, `runs` how many there were; both change
/// with each run and are no change of the schedule.
const V8: &str = "
CREATE TABLE schedule (
    id          TEXT PRIMARY KEY,
    name        TEXT NOT NULL UNIQUE,
    body        TEXT NOT NULL,
    seen_until  INTEGER NOT NULL,
    runs        INTEGER NOT NULL
) STRICT;
CREATE TABLE schedule_run (
    id          TEXT PRIMARY KEY,
    schedule    TEXT NOT NULL,
    is_open     INTEGER NOT NULL,
    started_at  INTEGER NOT NULL,
    body        TEXT NOT NULL
) STRICT;
CREATE INDEX schedule_run_schedule ON schedule_run (schedule, id);
CREATE INDEX schedule_run_open ON schedule_run (is_open) WHERE is_open;
ALTER TABLE snapshot ADD COLUMN schedule TEXT NOT NULL DEFAULT '';
CREATE INDEX snapshot_schedule ON snapshot (schedule, vm) WHERE schedule <> '';
ALTER TABLE event ADD COLUMN schedule TEXT NOT NULL DEFAULT '';
CREATE INDEX event_schedule ON event (schedule) WHERE schedule <> '';
";

/// How a run stands with each VM. The body of the run itself has no VMs any more: one step of one VM is one small row. What has no
/// list of VMs stays as it is, and is told when it is read.
const V9: &str = "
CREATE TABLE schedule_run_vm (
    run         TEXT NOT NULL REFERENCES schedule_run (id) ON DELETE CASCADE,
    position    INTEGER NOT NULL,
    body        TEXT NOT NULL,
    PRIMARY KEY (run, position)
) STRICT, WITHOUT ROWID;
INSERT INTO schedule_run_vm (run, position, body)
    SELECT schedule_run.id, vm.key, vm.value
    FROM schedule_run, json_each(iif(json_valid(schedule_run.body), schedule_run.body, '{}'), '$.vms') AS vm
    WHERE vm.type = 'object';
DROP INDEX schedule_run_schedule;
DROP INDEX schedule_run_open;
CREATE INDEX schedule_run_schedule ON schedule_run (schedule);
CREATE INDEX schedule_run_open ON schedule_run (schedule) WHERE is_open;
UPDATE schedule_run SET body = json_replace(body, '$.vms', json('[]'))
    WHERE iif(json_valid(body), json_type(body, '$.vms'), '') = 'array';
";

/// The tables without which a plan would be wrong, and that have indexes.
const PLANNED_BY: [&str; 4] = ["operation", "layer", "snapshot", "clone"];

/// Opens the file, 0600, and brings it to this version. One that is refused is left as it was.
pub(super) fn open(path: &Path) -> Result<Connection> {
    file::check(path)?;
    // SQLite would make the file with the mode of the umask.
    let file = OpenOptions::new().create(true).append(true).mode(0o600).open(path);
    // It is closed before SQLite has it: whoever closes any of his descriptors of a file loses all his locks of it, and the next
    // one to open the catalog would take himself for the last, and remove its log (SQLite, "How To Corrupt", 2.2).
    drop(file.map_err(StoreError::Unreadable)?);
    let connection = Connection::open(path)?;
    connection.busy_timeout(Duration::from_secs(5))?;
    // Whoever closes a file last would write the log into it.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    check(&connection)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, false)?;
    // It may have stood there with a wider mode; failing to narrow it is no reason not to start.
    let _ = fs::set_permissions(path, Permissions::from_mode(0o600));
    connection.pragma_update(None, "journal_mode", "WAL")?;
    prepare(connection)
}

/// A catalog in memory.
pub(super) fn open_in_memory() -> Result<Connection> {
    prepare(Connection::open_in_memory()?)
}

fn prepare(mut connection: Connection) -> Result<Connection> {
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    // In KiB if negative. It fills up as the catalog grows, and is most of what the daemon grows by. Of 100,000 snapshots,
    // a page by a property took 3.6 ms with this, 2.4 with 8 MiB; the other 14 of benches/lists.rs did not differ.
    connection.pragma_update(None, "cache_size", -2 * 1024)?;
    // SQLite is built with STAT4, and would plan a statement anew for each value that is bound to it: for statistics that are
    // never taken (SQLite, "The SQLite Query Planner Stability Guarantee").
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    migrate(&mut connection)?;
    count::prepare(&connection)?;
    Ok(connection)
}

/// Refuses what is not ours, too new, or damaged, before anything is written.
pub(super) fn check(connection: &Connection) -> Result<()> {
    let application: i64 =
        connection.pragma_query_value(None, "application_id", |row| row.get(0)).map_err(damaged)?;
    let tables: i64 =
        connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0)).map_err(damaged)?;
    if application != APPLICATION_ID && tables > 0 {
        return Err(StoreError::Foreign);
    }
    let found = version(connection)?;
    let known = known_version();
    if found > known {
        return Err(StoreError::TooNew { found, known });
    }
    let sound = |verdict: String| if verdict == "ok" { Ok(()) } else { Err(StoreError::Corrupt(verdict)) };
    sound(connection.pragma_query_value(None, "quick_check", |row| row.get(0)).map_err(damaged)?)?;
    // That does not hold indexes against their tables, and what an index has lost is not found. What plans are made of is few.
    for table in PLANNED_BY.iter().filter(|_| found > 0) {
        let sql = format!("PRAGMA integrity_check({table})");
        sound(connection.query_row(&sql, [], |row| row.get(0)).map_err(damaged)?)?;
    }
    Ok(())
}

fn damaged(error: rusqlite::Error) -> StoreError {
    match error.sqlite_error_code() {
        Some(rusqlite::ErrorCode::NotADatabase) => StoreError::Foreign,
        Some(rusqlite::ErrorCode::DatabaseCorrupt) => StoreError::Corrupt(error.to_string()),
        _ => StoreError::Sqlite(error),
    }
}

fn migrate(connection: &mut Connection) -> Result<()> {
    let transaction = connection.transaction()?;
    let found = version(&transaction)?;
    if found == known_version() {
        // There may be no room for a single write, and a guest to thaw.
        return Ok(());
    }
    for migration in MIGRATIONS.iter().skip(usize::try_from(found).unwrap_or(0)) {
        transaction.execute_batch(migration)?;
    }
    transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
    transaction.pragma_update(None, "user_version", known_version())?;
    transaction.commit()?;
    Ok(())
}

fn version(connection: &Connection) -> Result<i64> {
    Ok(connection.pragma_query_value(None, "user_version", |row| row.get(0))?)
}

fn known_version() -> i64 {
    i64::try_from(MIGRATIONS.len()).expect("a handful of migrations")
}

/// The file of an earlier version.
#[cfg(test)]
pub(super) fn make_old(path: &Path, version: usize) {
    let old = Connection::open(path).unwrap();
    for migration in &MIGRATIONS[..version] {
        old.execute_batch(migration).unwrap();
    }
    old.pragma_update(None, "application_id", APPLICATION_ID).unwrap();
    old.pragma_update(None, "user_version", i64::try_from(version).unwrap()).unwrap();
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    fn check_refusal(prepare: &str, expected: fn(&StoreError) -> bool) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("catalog.db");
        Connection::open(&path).unwrap().execute_batch(prepare).unwrap();
        let before = std::fs::read(&path).unwrap();
        let error = open(&path).map(|_| ()).unwrap_err();
        assert!(expected(&error), "{error:?}");
        assert_eq!(std::fs::read(&path).unwrap(), before, "a refused file is left as it was");
    }

    #[test]
    fn foreign_and_newer_files_are_refused() {
        check_refusal("CREATE TABLE mine (a)", |error| matches!(error, StoreError::Foreign));
        check_refusal(
            "PRAGMA application_id = 1986884462; PRAGMA user_version = 99; CREATE TABLE later (a)",
            |error| matches!(error, StoreError::TooNew { found: 99, .. }),
        );
    }

    /// The log that a crash left stays beside its file, and is not written into it.
    #[test]
    fn a_refused_file_keeps_its_log() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("catalog.db");
        let other = Connection::open(&path).unwrap();
        other.pragma_update(None, "journal_mode", "WAL").unwrap();
        other.execute_batch("CREATE TABLE mine (a)").unwrap();
        let crashed = directory.path().join("crashed.db");
        for end in ["", "-wal"] {
            let name = |path: &Path| format!("{}{end}", path.display());
            std::fs::copy(name(&path), name(&crashed)).unwrap();
        }
        let read = || ["", "-wal"].map(|end| std::fs::read(format!("{}{end}", crashed.display())).unwrap());
        let before = read();
        assert!(matches!(open(&crashed), Err(StoreError::Foreign)));
        assert_eq!(read(), before);
    }

    /// Whatever bit is flipped: it is refused, or opened, and nothing breaks.
    #[test]
    fn flipped_bits_and_cut_ends() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("catalog.db");
        let connection = open(&path).unwrap();
        for number in 0..200 {
            let sql = "INSERT INTO lease (vm, body) VALUES (?, ?)";
            connection.execute(sql, (format!("vm-{number}"), "x".repeat(100))).unwrap();
        }
        drop(connection);
        let whole = std::fs::read(&path).unwrap();
        let mut refused = 0;
        for at in (0..whole.len()).step_by(whole.len() / 150) {
            let mut damaged = whole.clone();
            damaged[at] ^= 0x41;
            std::fs::write(&path, &damaged).unwrap();
            refused += u32::from(open(&path).is_err());
            std::fs::write(&path, &whole[..at]).unwrap();
            assert!(at == 0 || open(&path).is_err(), "cut at {at}");
        }
        assert!(refused > 0, "no damage was found");
        std::fs::write(&path, &whole).unwrap();
        assert!(open(&path).is_ok());
    }

    #[test]
    fn a_file_that_is_no_database_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("catalog.db");
        std::fs::write(&path, "this is not a database, it is a letter to my aunt".repeat(50)).unwrap();
        assert!(matches!(open(&path), Err(StoreError::Foreign)));
    }

    /// What an index does not list is not found, and a plan would do without it.
    #[test]
    fn an_index_that_does_not_fit_its_table_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("catalog.db");
        let connection = open(&path).unwrap();
        let swapped = "
            INSERT INTO layer VALUES ('a', 'vm-1', '/i/2', ''), ('b', 'vm-2', '/i/1', '');
            PRAGMA writable_schema = ON;
            CREATE TEMP TABLE root AS SELECT name, rootpage FROM sqlite_schema WHERE name IN ('layer_vm', 'layer_path');
            UPDATE sqlite_schema SET rootpage = (SELECT rootpage FROM root WHERE name <> sqlite_schema.name)
            WHERE name IN ('layer_vm', 'layer_path');
        ";
        connection.execute_batch(swapped).unwrap();
        drop(connection);
        assert!(matches!(open(&path), Err(StoreError::Corrupt(_))));
    }

    /// While it is open, nobody else takes himself for the last one to close it, and removes its log.
    #[test]
    fn an_open_catalog_is_locked() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("catalog.db");
        let _open = open(&path).unwrap();
        let file = format!(":{} ", std::fs::metadata(&path).unwrap().ino());
        let locks = std::fs::read_to_string("/proc/locks").unwrap();
        assert!(locks.lines().any(|lock| lock.contains(&file) && lock.contains("READ")), "{locks}");
    }

    /// There may be no room for anything.
    #[test]
    fn opening_twice_changes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("catalog.db");
        drop(open(&path).unwrap());
        let before = std::fs::read(&path).unwrap();
        let connection = open(&path).unwrap();
        assert_eq!(version(&connection).unwrap(), known_version());
        let log = std::fs::metadata(format!("{}-wal", path.display())).map_or(0, |log| log.len());
        assert_eq!((std::fs::read(&path).unwrap(), log), (before, 0));
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }
}
