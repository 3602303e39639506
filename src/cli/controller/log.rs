//! What a receiver has: in memory, and in a file of JSON lines if there is one.
//!
//! Decides what is new, what is missing, and whether an inventory is owed: each follows from the reports so far, so that a
//! receiver that was killed knows it again. A line is on the disk before it counts; one that a crash tore is cut off when the
//! file is opened.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader};
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::io::AsyncWriteExt;

/// How a line begins.
const BEGIN: &[u8] = b"{\"node_id\":\"";

/// One report of one daemon.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Entry {
    /// The node's id.
    pub(super) node_id: String,
    /// The outbox that the report is out of.
    pub(super) outbox_id: String,
    /// `vmsnap.controller.v1.ReportRequest` in the JSON mapping of protobuf.
    pub(super) report: Value,
}

/// What is known of a node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Known {
    /// Its outbox.
    outbox: String,
    /// The last item of that outbox.
    pub(super) last: u64,
    /// Something may be missing, and no inventory has been complete since.
    pub(super) owes_inventory: bool,
}

/// All reports so far.
pub(super) struct Log {
    file: Option<Lines>,
    nodes: HashMap<String, Known>,
}

/// A file of whole lines.
struct Lines {
    file: tokio::fs::File,
    bytes: u64,
    /// It may end with half a line.
    is_torn: bool,
}

impl Known {
    /// Takes a report in. Gives whether it is new.
    fn take(&mut self, entry: &Entry) -> Result<bool, String> {
        if let Some(hello) = entry.report.get("hello") {
            let acknowledged = number(hello.get("acknowledged_sequence"));
            if self.outbox != entry.outbox_id {
                *self = Self { outbox: entry.outbox_id.clone(), last: acknowledged, owes_inventory: true };
            } else if acknowledged > self.last {
                // We have had it, and it is not kept there any more.
                (self.last, self.owes_inventory) = (acknowledged, true);
            }
            return Ok(true);
        }
        if entry.report.pointer("/inventory/last").is_some_and(|last| last == true) {
            self.owes_inventory = false;
        }
        match number(entry.report.get("sequence")) {
            0 => Ok(true),
            item if item <= self.last => Ok(false),
            item if item == self.last + 1 => {
                self.last = item;
                Ok(true)
            }
            item => Err(format!("item {item} follows item {}: something is missing", self.last)),
        }
    }
}

impl Log {
    /// The log at `path`, made if it is not there; None keeps nothing. Blocks.
    pub(super) fn open(path: Option<&Path>) -> io::Result<Self> {
        let mut nodes = HashMap::new();
        let Some(path) = path else { return Ok(Self { file: None, nodes }) };
        let file = OpenOptions::new().create(true).append(true).read(true).open(path)?;
        file.try_lock().map_err(|_| io::Error::other("another receiver uses it"))?;
        let bytes = read(&file, &mut nodes)?;
        file.set_len(bytes)?;
        let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        File::open(directory.unwrap_or(Path::new(".")))?.sync_all()?;
        let lines = Lines { file: tokio::fs::File::from_std(file), bytes, is_torn: false };
        Ok(Self { file: Some(lines), nodes })
    }

    /// Whether it outlives the receiver.
    pub(super) fn lasts(&self) -> bool {
        self.file.is_some()
    }

    /// What is known of a node.
    pub(super) fn known(&self, node: &str) -> Known {
        self.nodes.get(node).cloned().unwrap_or_default()
    }

    /// Keeps a report, if it is new: that is given.
    pub(super) async fn keep(&mut self, entry: &Entry) -> Result<bool, String> {
        let mut known = self.known(&entry.node_id);
        if !known.take(entry)? {
            return Ok(false);
        }
        if let Some(lines) = &mut self.file {
            let kept = lines.append(entry).await;
            kept.map_err(|error| format!("the report cannot be kept: {error}"))?;
        }
        self.nodes.insert(entry.node_id.clone(), known);
        Ok(true)
    }
}

impl Lines {
    /// The line is there whole and on the disk, or not at all.
    async fn append(&mut self, entry: &Entry) -> io::Result<()> {
        let mut line = serde_json::to_vec(entry)?;
        line.push(b'\n');
        if self.is_torn {
            self.file.set_len(self.bytes).await?;
        }
        self.is_torn = true;
        self.file.write_all(&line).await?;
        self.file.flush().await?;
        self.file.sync_data().await?;
        self.is_torn = false;
        self.bytes += line.len() as u64;
        Ok(())
    }
}

/// Reads what is there. Gives how many bytes of it are whole lines.
fn read(file: &File, nodes: &mut HashMap<String, Known>) -> io::Result<u64> {
    let (mut reader, mut line, mut bytes) = (BufReader::new(file), Vec::new(), 0);
    loop {
        line.clear();
        let length = reader.read_until(b'\n', &mut line)?;
        if line.last() != Some(&b'\n') {
            let is_ours = line.starts_with(BEGIN) || BEGIN.starts_with(&line);
            return if is_ours { Ok(bytes) } else { Err(io::Error::other("it is no log of a receiver")) };
        }
        let entry: Entry = serde_json::from_slice(&line)?;
        let known: &mut Known = nodes.entry(entry.node_id.clone()).or_default();
        known.take(&entry).map_err(io::Error::other)?;
        bytes += length as u64;
    }
}

/// JSON has 64-bit numbers as text, and leaves out zeros.
fn number(value: Option<&Value>) -> u64 {
    value.and_then(Value::as_str).and_then(|text| text.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn entry(outbox: &str, report: Value) -> Entry {
        Entry { node_id: "n".to_owned(), outbox_id: outbox.to_owned(), report }
    }

    fn hello(outbox: &str, acknowledged: u64) -> Entry {
        entry(outbox, json!({ "hello": { "acknowledged_sequence": acknowledged.to_string() } }))
    }

    fn item(outbox: &str, sequence: u64) -> Entry {
        entry(outbox, json!({ "sequence": sequence.to_string() }))
    }

    fn inventory(outbox: &str, last: bool) -> Entry {
        entry(outbox, json!({ "inventory": { "last": last } }))
    }

    fn check(log: &Log, last: u64, owes_inventory: bool) {
        let known = log.known("n");
        assert_eq!((known.last, known.owes_inventory), (last, owes_inventory));
    }

    #[tokio::test]
    async fn what_was_kept_is_known_again_and_a_torn_line_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let mut log = Log::open(Some(&path)).unwrap();
        for entry in [hello("a", 0), inventory("a", false), item("a", 1), item("a", 2)] {
            assert_eq!(log.keep(&entry).await, Ok(true));
        }
        assert!(Log::open(Some(&path)).is_err(), "one log, one receiver");
        drop(log);
        let whole = std::fs::read(&path).unwrap();
        for torn in ["{\"node_id\":\"n\",\"outbox_id\":\"a\",\"rep", "{\"no", ""] {
            std::fs::write(&path, [whole.as_slice(), torn.as_bytes()].concat()).unwrap();
            check(&Log::open(Some(&path)).unwrap(), 2, true);
            assert_eq!(std::fs::read(&path).unwrap(), whole);
        }
        let mut log = Log::open(Some(&path)).unwrap();
        for (entry, is_new) in [
            (item("a", 2), Ok(false)),
            (item("a", 4), Err("item 4 follows item 2: something is missing".to_owned())),
            (item("a", 3), Ok(true)),
            (inventory("a", true), Ok(true)),
        ] {
            assert_eq!(log.keep(&entry).await, is_new);
        }
        drop(log);
        check(&Log::open(Some(&path)).unwrap(), 3, false);
    }

    /// Until it was complete, over deaths of the receiver too.
    #[tokio::test]
    async fn an_inventory_is_owed_whenever_something_may_be_missing() {
        let mut log = Log::open(None).unwrap();
        for (entry, last, owes) in [
            (hello("a", 0), 0, true),
            (inventory("a", true), 0, false),
            (item("a", 1), 1, false),
            (hello("a", 1), 1, false),
            // It was acknowledged by us, and we have lost it.
            (hello("a", 5), 5, true),
            (item("a", 6), 6, true),
            (hello("a", 5), 6, true),
            (inventory("a", true), 6, false),
            (hello("b", 0), 0, true),
            (inventory("b", true), 0, false),
            // One that comes back is another one.
            (hello("a", 6), 6, true),
        ] {
            assert_eq!(log.keep(&entry).await, Ok(true));
            check(&log, last, owes);
        }
    }

    #[test]
    fn another_file_is_left_as_it_is() {
        let directory = tempfile::tempdir().unwrap();
        for text in ["not ours\n", "{\"a\":1}", "{\"a\":1}\n"] {
            let path = directory.path().join("notes");
            std::fs::write(&path, text).unwrap();
            assert!(Log::open(Some(&path)).is_err());
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        }
    }
}
