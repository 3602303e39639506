//! `vmsnap controller receive`: what it prints and keeps, and that a controller which is killed over and over has all of it.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

use super::reports;
use crate::client::run;
use crate::node::{Node, PATIENCE, delete};

/// A running receiver.
pub struct Receiver {
    child: Child,
    stdout: Lines<BufReader<ChildStdout>>,
    pub address: String,
}

impl Receiver {
    async fn start(listen: &str, log: &Path, format: &str) -> Self {
        Self::start_with(listen, log, format, &[]).await
    }

    pub async fn start_with(listen: &str, log: &Path, format: &str, tls: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vmsnap"));
        command.args(["controller", "receive", "--listen", listen, "-o", format, "--log"]).arg(log).args(tls);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut stderr = BufReader::new(child.stderr.take().unwrap()).lines();
        let said = tokio::time::timeout(PATIENCE, stderr.next_line()).await.unwrap().unwrap().unwrap();
        let address = said.strip_prefix("listening on ").unwrap_or_else(|| panic!("{said}")).to_owned();
        Self { child, stdout, address }
    }

    /// Reads lines until one has all these words.
    pub async fn until(&mut self, words: &[&str]) -> Vec<String> {
        let mut lines = Vec::new();
        let read = async {
            loop {
                let line = self.stdout.next_line().await.unwrap().expect("it goes on");
                lines.push(line);
                if lines.last().is_some_and(|line| words.iter().all(|words| line.contains(words))) {
                    return;
                }
            }
        };
        let found = tokio::time::timeout(PATIENCE, read).await;
        assert!(found.is_ok(), "{words:?} is not in {lines:#?}");
        lines
    }

    async fn kill(mut self) {
        self.child.kill().await.unwrap();
    }
}

fn log(directory: &tempfile::TempDir) -> PathBuf {
    directory.path().join("reports.jsonl")
}

#[tokio::test]
async fn a_receiver_that_is_killed_again_and_again_has_everything() {
    let directory = tempfile::tempdir().unwrap();
    let mut receiver = Receiver::start("127.0.0.1:0", &log(&directory), "json").await;
    let address = receiver.address.clone();
    let node = Node::reporting_to(format!("http://{address}"));
    let mut operations = Vec::new();
    for name in ["one", "two", "three"] {
        let taken = node.begin(name).await;
        receiver.until(&[&taken.id]).await;
        receiver.kill().await;
        let deleted = node.end_of(&taken.id).await;
        operations.push(deleted.id);
        let deletion = node.snapshots().delete_snapshot(delete(name)).await.unwrap().into_inner();
        operations.push(node.end_of(&deletion.operation.unwrap().id).await.id);
        receiver = Receiver::start(&address, &log(&directory), "json").await;
    }
    let last = operations.last().unwrap();
    receiver.until(&[last, "OPERATION_STATE_SUCCEEDED"]).await;
    receiver.kill().await;
    let items = reports::items(&log(&directory));
    for operation in &operations {
        let states = reports::states(&items, operation);
        assert_eq!(states, ["OPERATION_STATE_RUNNING", "OPERATION_STATE_SUCCEEDED"]);
    }
}

#[tokio::test]
async fn what_a_person_sees() {
    let directory = tempfile::tempdir().unwrap();
    let mut receiver = Receiver::start("127.0.0.1:0", &log(&directory), "table").await;
    let node = Node::reporting_to(format!("http://{}", receiver.address));
    let hello = receiver.until(&["hello"]).await.pop().unwrap();
    assert!(hello.contains("simulation  -  hello, "), "{hello}");
    receiver.until(&["inventory: 1 VMs, 0 volumes, 0 snapshots, 0 operations and more"]).await;
    node.take("one").await;
    receiver.until(&["create snapshot web/one RUNNING"]).await;
    receiver.until(&["web snapshot one is READY"]).await;
    receiver.until(&["create snapshot web/one SUCCEEDED"]).await;
}

#[tokio::test]
async fn it_listens_to_other_machines_with_tls_only() {
    let node = Node::start();
    let reply = run(&node, "controller receive --listen 0.0.0.0:0").await;
    assert_eq!(reply.code, 2, "{reply:?}");
    assert!(reply.stderr.contains("--client-ca"), "{reply:?}");
    let reply = run(&node, "controller receive --listen 127.0.0.1:0 --certificate /x").await;
    assert_eq!(reply.code, 2, "{reply:?}");
}
