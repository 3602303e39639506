//! A catalog that cannot be used: the daemon itself refuses to start, says what happened, that nothing was changed and what
//! to do, and ends with the exit code that its unit does not restart on.

#![allow(clippy::unwrap_used, reason = "a test stops where it fails")]
#![allow(clippy::disallowed_methods, reason = "tests run programs: they are the outside")]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rusqlite::Connection;
use tempfile::TempDir;
use vmsnap::store::Store;

/// A daemon ends at once, or serves. What only a broken one does not do in time.
const PATIENCE: Duration = Duration::from_secs(60);

/// `EX_CONFIG`: see `systemd/vmsnapd.service`.
const NEEDS_A_PERSON: i32 = 78;

struct State(TempDir);

impl State {
    /// A state directory with a catalog in it.
    fn new() -> Self {
        let state = Self(tempfile::tempdir().unwrap());
        drop(Store::open(&state.catalog()).unwrap());
        // The thread that writes it ends after its last handle.
        let closed = Instant::now();
        while state.path("catalog.db-wal").exists() && closed.elapsed() < PATIENCE {
            std::thread::yield_now();
        }
        state
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn catalog(&self) -> PathBuf {
        self.path("catalog.db")
    }

    fn sql(&self, sql: &str) {
        Connection::open(self.catalog()).unwrap().execute_batch(sql).unwrap();
    }

    fn command(&self, verb: &[&str]) -> Command {
        let configuration = self.0.path().join("vmsnapd.toml");
        let lines = format!(
            "socket = \"{}\"\nstate_directory = \"{}\"\nlibvirt_uri = \"test:///default\"\n",
            self.path("vmsnapd.sock").display(),
            self.0.path().display()
        );
        fs::write(&configuration, lines).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_vmsnapd"));
        command.arg("--config").arg(configuration).args(verb).stdin(Stdio::null());
        command
    }

    /// The catalog, its log and what else lies there. An empty log is none.
    fn content(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let files = fs::read_dir(self.0.path()).unwrap().map(|entry| entry.unwrap().path());
        let files = files.filter(|file| file.extension().is_some_and(|end| end == "db" || end == "db-wal"));
        files
            .filter_map(|file| Some((file.clone(), fs::read(file).ok()?)))
            .filter(|(_, bytes)| !bytes.is_empty())
            .collect()
    }

    /// The daemon, and who thaws for it, end so and say all of these words. The files stay as they were.
    #[track_caller]
    fn check_refused(&self, words: &[&str]) {
        let before = self.content();
        self.check_told(&[], words);
        self.check_told(&["thaw"], words);
        assert!(self.content() == before, "a refused catalog is left as it was");
    }

    #[track_caller]
    fn check_told(&self, verb: &[&str], words: &[&str]) {
        let output = self.command(verb).output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(NEEDS_A_PERSON), "{verb:?}: {told}");
        for word in ["vmsnapd: ", "\n  changed: nothing\n  do: "].iter().chain(words) {
            assert!(told.contains(word), "{verb:?} does not say {word:?}: {told}");
        }
    }

    /// The daemon serves.
    fn serve(&self) -> Serving {
        Serving::until_it_serves(self.command(&[]), &self.path("vmsnapd.sock"))
    }
}

/// A daemon that serves; it is ended with the value.
struct Serving(Child);

impl Serving {
    #[track_caller]
    fn until_it_serves(mut command: Command, socket: &Path) -> Self {
        let mut serving = Self(command.stderr(Stdio::null()).spawn().unwrap());
        let started = Instant::now();
        while std::os::unix::net::UnixStream::connect(socket).is_err() {
            assert!(serving.0.try_wait().unwrap().is_none(), "vmsnapd has ended");
            assert!(started.elapsed() < PATIENCE, "vmsnapd does not serve");
            std::thread::yield_now();
        }
        serving
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs `vmsnap WORDS`. Gives its exit code and what it said.
fn vmsnap(socket: &Path, words: &[&str]) -> (i32, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_vmsnap"))
        .arg("--socket")
        .arg(socket)
        .args(words)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let told = [output.stdout, output.stderr].concat();
    (output.status.code().unwrap(), String::from_utf8(told).unwrap())
}

#[test]
fn one_that_is_not_ours() {
    let state = State::new();
    fs::write(state.catalog(), "a letter to my aunt, who is no database".repeat(30)).unwrap();
    state.check_refused(&["the file is not a catalog of vmsnapd", "state_directory"]);
    fs::remove_file(state.catalog()).unwrap();
    state.sql("CREATE TABLE mine (a)");
    state.check_refused(&["the file is not a catalog of vmsnapd", "state_directory"]);
}

#[test]
fn one_of_a_later_version() {
    let state = State::new();
    state.sql("PRAGMA user_version = 99");
    state.check_refused(&["the catalog has version 99", "install the version of vmsnapd that wrote it"]);
}

#[test]
fn one_that_is_damaged() {
    let state = State::new();
    let whole = fs::read(state.catalog()).unwrap();
    fs::write(state.catalog(), &whole[..whole.len() / 2]).unwrap();
    state.check_refused(&["the catalog is damaged", "backup"]);
    let mut damaged = whole.clone();
    damaged[4096..].fill(0x55);
    fs::write(state.catalog(), damaged).unwrap();
    state.check_refused(&["the catalog is damaged", "backup"]);
    fs::write(state.catalog(), whole).unwrap();
    drop(state.serve());
}

/// Whoever has copies of it had snapshots, and does not want to begin with none.
#[test]
fn one_that_is_lost() {
    let state = State::new();
    let serving = state.serve();
    let (code, told) = vmsnap(&state.path("vmsnapd.sock"), &["node", "backup", "-o", "name"]);
    assert_eq!(code, 0, "{told}");
    drop(serving);
    let backup = fs::read(told.trim()).unwrap();
    for end in ["", "-wal", "-shm"] {
        let _ = fs::remove_file(state.path(&format!("catalog.db{end}")));
    }
    state.check_told(&[], &["there is no catalog", "backup", "vmsnapd rebuild"]);
    fs::write(state.catalog(), []).unwrap();
    state.check_refused(&["there is no catalog, or an empty one", "backup"]);
    // What is advised is not refused for the same reason.
    let rebuilt = state.command(&["rebuild", "--replace"]).output().unwrap();
    assert!(rebuilt.status.success(), "{rebuilt:?}");
    fs::write(state.catalog(), backup).unwrap();
    drop(state.serve());
    fs::remove_dir_all(state.path("backup")).unwrap();
    fs::remove_file(state.catalog()).unwrap();
    for end in ["-wal", "-shm"] {
        let _ = fs::remove_file(state.path(&format!("catalog.db{end}")));
    }
    drop(state.serve());
}

#[test]
fn one_that_is_no_file() {
    let state = State::new();
    let elsewhere = state.path("elsewhere.db");
    fs::rename(state.catalog(), &elsewhere).unwrap();
    symlink(&elsewhere, state.catalog()).unwrap();
    state.check_refused(&["there is a symbolic link where the catalog should be", "state_directory"]);
    fs::remove_file(state.catalog()).unwrap();
    fs::create_dir(state.catalog()).unwrap();
    state.check_refused(&["there is a directory where the catalog should be", "state_directory"]);
}

/// Somebody puts a backup in place and leaves the log of the file that was there.
#[test]
fn one_with_the_log_of_another() {
    let state = State::new();
    let serving = state.serve();
    let socket = state.path("vmsnapd.sock");
    let (code, told) = vmsnap(&socket, &["node", "backup", "-o", "name"]);
    assert_eq!(code, 0, "{told}");
    drop(serving);
    assert!(fs::metadata(state.path("catalog.db-wal")).unwrap().len() > 0, "a killed daemon leaves its log");
    fs::copy(told.trim(), state.catalog()).unwrap();
    state.check_refused(&["that of another file", "move catalog.db-wal and catalog.db-shm out of"]);
    // What is advised works.
    for log in ["catalog.db-wal", "catalog.db-shm"] {
        fs::rename(state.path(log), state.path(&format!("old-{log}"))).unwrap();
    }
    drop(state.serve());
    // A log without its file is not thrown away.
    fs::rename(state.catalog(), state.path("moved")).unwrap();
    state.check_told(&[], &["that of another file"]);
}

/// Without knowing what is under way, or who may be frozen, the daemon does not go on.
#[test]
fn one_whose_open_operations_or_leases_cannot_be_understood() {
    let state = State::new();
    state.sql("INSERT INTO lease (vm, body) VALUES ('x', '{')");
    for verb in [&[][..], &["thaw"]] {
        state.check_told(verb, &["a lease that cannot be understood", "do: keep the files", "backup"]);
    }
    state.sql("DELETE FROM lease; INSERT INTO operation VALUES ('x', 'x', '', 1, 0, '{')");
    state.check_told(&[], &["operation that cannot be understood", "do: keep the files", "backup"]);
}

/// Its own file system, seen through the process that has it: nobody else's disk is filled.
#[test]
fn a_backup_on_a_full_disk_leaves_nothing() {
    let state = State::new();
    let daemon = state.command(&[]);
    let words: Vec<_> = daemon.get_args().map(|word| word.display().to_string()).collect();
    let script = format!(
        "mount -t tmpfs -o size=2m none {0} && mkdir {0}/backup && exec {1} {2}",
        state.path("small").display(),
        env!("CARGO_BIN_EXE_vmsnapd"),
        words.join(" ")
    );
    fs::create_dir(state.path("small")).unwrap();
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", &script]).stdin(Stdio::null());
    let configuration = state.path("vmsnapd.toml");
    let text = fs::read_to_string(&configuration).unwrap();
    let (was, is) = (state.0.path().display().to_string(), state.path("small").display().to_string());
    fs::write(
        &configuration,
        text.replace(&format!("state_directory = \"{was}\""), &format!("state_directory = \"{is}\"")),
    )
    .unwrap();
    let socket = state.path("vmsnapd.sock");
    let serving = Serving::until_it_serves(command, &socket);

    let seen = PathBuf::from(format!("/proc/{}/root{is}", serving.0.id()));
    let list = || fs::read_dir(seen.join("backup")).unwrap().count();
    fs::write(seen.join("filler"), vec![1; 4 << 20]).unwrap_err();
    let (code, told) = vmsnap(&socket, &["node", "backup"]);
    assert_eq!(code, 10, "{told}");
    for word in ["NO_SPACE", "changed: nothing", "make room"] {
        assert!(told.contains(word), "{told}");
    }
    assert_eq!(list(), 0, "no file is left");
    fs::remove_file(seen.join("filler")).unwrap();
    let (code, told) = vmsnap(&socket, &["node", "backup"]);
    assert_eq!((code, list()), (0, 1), "{told}");
}
