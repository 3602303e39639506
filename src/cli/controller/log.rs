//! What a receiver has: in memory, and in a file of JSON lines if there is one.
//!
//! Decides what is new. A line is on the disk before it counts; one that a crash tore is cut off when the file is opened.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader};
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::io::AsyncWriteExt;

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

/// All reports so far.
pub(super) struct Log {
    file: Option<tokio::fs::File>,
    /// By outbox, the last item of it.
    last: HashMap<String, u64>,
}

/// The last items of outboxes, out of a file, and how many bytes of it are whole lines.
#[derive(Debug, Default, PartialEq, Eq)]
struct Found {
    last: HashMap<String, u64>,
    bytes: u64,
}

impl Log {
    /// The log at `path`, made if it is not there; None keeps nothing. Blocks.
    pub(super) fn open(path: Option<&Path>) -> io::Result<Self> {
        let Some(path) = path else { return Ok(Self { file: None, last: HashMap::new() }) };
        let file = OpenOptions::new().create(true).append(true).read(true).open(path)?;
        let found = read(&file)?;
        file.set_len(found.bytes)?;
        Ok(Self { file: Some(tokio::fs::File::from_std(file)), last: found.last })
    }

    /// The last item of an outbox that is here; None if nothing of it is.
    pub(super) fn last(&self, outbox: &str) -> Option<u64> {
        self.last.get(outbox).copied()
    }

    /// Keeps a report, which is item `sequence` of its outbox; 0 if it is none.
    pub(super) async fn keep(&mut self, entry: &Entry, sequence: u64) -> io::Result<()> {
        if let Some(file) = &mut self.file {
            let mut line = serde_json::to_vec(entry)?;
            line.push(b'\n');
            file.write_all(&line).await?;
            file.flush().await?;
            file.sync_data().await?;
        }
        let last = self.last.entry(entry.outbox_id.clone()).or_default();
        *last = sequence.max(*last);
        Ok(())
    }
}

fn read(file: &File) -> io::Result<Found> {
    let mut found = Found::default();
    let (mut reader, mut line) = (BufReader::new(file), Vec::new());
    loop {
        line.clear();
        let bytes = reader.read_until(b'\n', &mut line)?;
        if line.pop() != Some(b'\n') {
            return Ok(found);
        }
        let entry: Entry = serde_json::from_slice(&line)?;
        found.bytes += bytes as u64;
        let last = found.last.entry(entry.outbox_id).or_default();
        *last = sequence(&entry.report).max(*last);
    }
}

/// JSON has 64-bit numbers as text.
fn sequence(report: &Value) -> u64 {
    report.get("sequence").and_then(Value::as_str).and_then(|text| text.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(outbox: &str, sequence: u64) -> Entry {
        let report = serde_json::json!({ "sequence": sequence.to_string() });
        Entry { node_id: "n".to_owned(), outbox_id: outbox.to_owned(), report }
    }

    #[tokio::test]
    async fn what_was_kept_is_known_again_and_a_torn_line_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let mut log = Log::open(Some(&path)).unwrap();
        for (outbox, sequence) in [("a", 1), ("a", 2), ("b", 1), ("a", 0)] {
            log.keep(&entry(outbox, sequence), sequence).await.unwrap();
        }
        drop(log);
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, [whole.as_slice(), b"{\"node_id\":\"n\",\"outbox_id\":\"a\",\"rep"].concat())
            .unwrap();
        let mut log = Log::open(Some(&path)).unwrap();
        assert_eq!([log.last("a"), log.last("b"), log.last("c")], [Some(2), Some(1), None]);
        assert_eq!(std::fs::read(&path).unwrap(), whole);
        log.keep(&entry("a", 3), 3).await.unwrap();
        drop(log);
        assert_eq!(Log::open(Some(&path)).unwrap().last("a"), Some(3));
    }

    #[test]
    fn another_file_is_left_as_it_is() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notes");
        std::fs::write(&path, "not ours\n").unwrap();
        assert!(Log::open(Some(&path)).is_err());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "not ours\n");
    }
}
