//! What the journal gets of the daemon, as systemd runs it: fields that can be asked for, and ids that are explained.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const CATALOG: &str = "systemd/vmsnapd.catalog";
const PATIENCE: Duration = Duration::from_secs(60);

/// In a view of the files in which the journal's socket is ours, and stderr is what systemd says that it is.
const AS_A_UNIT: &str = "mount -t tmpfs none /run && mkdir -p /run/systemd/journal && mount --bind \"$JOURNAL\" \
     /run/systemd/journal && export JOURNAL_STREAM=$(stat -Lc %d:%i /proc/self/fd/2) && exec \"$0\" \"$@\"";

type Entry = BTreeMap<String, String>;

/// What the journal is handed, as its native protocol has it: `NAME`, a line's end, the length, the value, a line's end.
fn entry(mut bytes: &[u8]) -> Entry {
    let mut entry = Entry::new();
    while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
        let (line, rest) = (std::str::from_utf8(&bytes[..end]).unwrap(), &bytes[end + 1..]);
        let (name, value, rest) = if let Some((name, value)) = line.split_once('=') {
            (name, value.as_bytes(), rest)
        } else {
            let (length, rest) = rest.split_first_chunk().unwrap();
            let length = usize::try_from(u64::from_le_bytes(*length)).unwrap();
            (line, &rest[..length], &rest[length + 1..])
        };
        entry.insert(name.to_owned(), String::from_utf8(value.to_owned()).unwrap());
        bytes = rest;
    }
    entry
}

struct Journal(UnixDatagram);

impl Journal {
    /// The next entry of which this is so.
    #[track_caller]
    fn until(&self, name: &str, value: &str) -> Entry {
        let mut buffer = vec![0; 64 * 1024];
        let mut all = Vec::new();
        loop {
            let Ok(length) = self.0.recv(&mut buffer) else { panic!("no {name}={value} in {all:#?}") };
            let entry = entry(&buffer[..length]);
            if entry.get(name).map(String::as_str) == Some(value) {
                return entry;
            }
            all.push(entry);
        }
    }
}

#[track_caller]
fn is_explained(entry: &Entry) {
    let explained = fs::read_to_string(CATALOG).unwrap();
    assert!(explained.contains(&format!("\n-- {}\n", entry["MESSAGE_ID"])), "{entry:#?}");
}

struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        drop((self.0.kill(), self.0.wait()));
    }
}

fn start(state: &Path, journal: &Path) -> Daemon {
    let lines = format!(
        "socket = \"{0}/vmsnapd.sock\"\nstate_directory = \"{0}\"\nlibvirt_uri = \"test:///default\"\n",
        state.display()
    );
    fs::write(state.join("vmsnapd.toml"), lines).unwrap();
    let stderr = fs::File::create(state.join("stderr")).unwrap();
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", AS_A_UNIT, env!("CARGO_BIN_EXE_vmsnapd"), "--config"]);
    command.arg(state.join("vmsnapd.toml")).env("JOURNAL", journal);
    Daemon(command.stdin(Stdio::null()).stderr(stderr).spawn().unwrap())
}

#[test]
fn events_and_calls_are_entries_with_fields() {
    let directory = tempfile::tempdir().unwrap();
    let (state, at) = (directory.path().join("state"), directory.path().join("journal"));
    fs::create_dir(&state).unwrap();
    fs::create_dir(&at).unwrap();
    let journal = Journal(UnixDatagram::bind(at.join("socket")).unwrap());
    journal.0.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut daemon = start(&state, &at);

    let started = journal.until("VMSNAP_EVENT", "daemon_started");
    assert_eq!((started["PRIORITY"].as_str(), started["SYSLOG_IDENTIFIER"].as_str()), ("6", "vmsnapd"));
    is_explained(&started);
    assert_eq!(started["VMSNAP_FACTS"], format!("open_operations=0 version={}", env!("CARGO_PKG_VERSION")));
    assert!(!started.contains_key("VMSNAP_VM"), "it is about no VM: {started:#?}");

    journal.until("MESSAGE", "vmsnapd is ready");
    let socket = state.join("vmsnapd.sock");
    let reload = Command::new(env!("CARGO_BIN_EXE_vmsnap"))
        .arg("--socket")
        .arg(socket)
        .args(["node", "reload"])
        .output();
    assert!(reload.unwrap().status.success());
    let call = journal.until("TARGET", "vmsnapd::audit");
    is_explained(&call);
    assert_eq!((call["DECISION"].as_str(), call["PRINCIPAL"].as_str()), ("allowed", "uid:0"));

    kill(Pid::from_raw(i32::try_from(daemon.0.id()).unwrap()), Signal::SIGTERM).unwrap();
    journal.until("VMSNAP_EVENT", "daemon_stopping");
    assert!(daemon.0.wait().unwrap().success());
    assert_eq!(fs::read_to_string(state.join("stderr")).unwrap(), "", "nothing is said twice");
}

/// Where systemd is installed, it understands the explanations; and what they advise is there to be done.
#[test]
fn the_catalog_is_understood() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    let installed = root.join("usr/lib/systemd/catalog");
    fs::create_dir_all(&installed).unwrap();
    fs::create_dir_all(root.join("var/lib/systemd/catalog")).unwrap();
    fs::copy(CATALOG, installed.join("vmsnapd.catalog")).unwrap();
    let journalctl = |argument| Command::new("journalctl").arg("--root").arg(root).arg(argument).output();
    let text = fs::read_to_string(CATALOG).unwrap();
    if let Ok(updated) = journalctl("--update-catalog") {
        assert!(updated.status.success(), "{}", String::from_utf8_lossy(&updated.stderr));
        let listed = String::from_utf8(journalctl("--list-catalog").unwrap().stdout).unwrap();
        assert_eq!(listed.lines().count(), text.lines().filter(|line| line.starts_with("-- ")).count());
    }
    let advised: Vec<&str> = text.split('\'').filter(|quoted| quoted.starts_with("vmsnap ")).collect();
    assert!(!advised.is_empty());
    for advice in advised {
        let words: Vec<&str> = advice.split_whitespace().skip(1).take(2).collect();
        let known = Command::new(env!("CARGO_BIN_EXE_vmsnap")).args(words).arg("--help").output().unwrap();
        assert!(known.status.success(), "{advice}");
    }
}
