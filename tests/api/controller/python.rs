//! `examples/controller.py`, made and run as it says itself.

use std::path::Path;
use std::process::Stdio;

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use crate::node::{Node, PATIENCE, delete};
use crate::page::python;

const EXAMPLE: &str = include_str!("../../../examples/controller.py");

/// The commands that the example gives, in their order.
fn commands() -> Vec<String> {
    let whole = EXAMPLE.replace("\\\n", "");
    let commands = whole.lines().skip(1).take_while(|line| *line != "\"\"\"");
    commands.filter_map(|line| line.strip_prefix("    ")).map(str::to_owned).collect()
}

/// A shell in a directory with the project's `proto` and `examples`, and the interpreter of the bed.
fn shell(directory: &Path, command: &str) -> Command {
    let python = python();
    let path = std::env::var("PATH").unwrap();
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("exec {command}")]).current_dir(directory);
    shell.env("PATH", format!("{}:{path}", python.display())).kill_on_drop(true);
    shell
}

async fn serve(directory: &Path, command: &str) -> Child {
    let mut child = shell(directory, command).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.as_mut().unwrap()).lines();
    let said = tokio::time::timeout(PATIENCE, lines.next_line()).await.unwrap().unwrap().unwrap();
    assert!(said.starts_with("listening on "), "{said}");
    child
}

/// How many items it has, and whether they are all there are.
fn kept(directory: &Path) -> (i64, i64) {
    let database = rusqlite::Connection::open(directory.join("reports.db")).unwrap();
    let read = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?));
    database.query_row("SELECT count(*), coalesce(max(sequence), 0) FROM report", [], read).unwrap()
}

#[tokio::test]
async fn the_example_is_a_controller() {
    let directory = tempfile::tempdir().unwrap();
    for name in ["proto", "examples"] {
        let project = Path::new(env!("CARGO_MANIFEST_DIR"));
        std::os::unix::fs::symlink(project.join(name), directory.path().join(name)).unwrap();
    }
    let commands = commands();
    let (run, before) = commands.split_last().unwrap();
    for command in before {
        let done = shell(directory.path(), command).status().await.unwrap();
        assert!(done.success(), "{command}");
    }
    // A port that was free a moment ago.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let run = run.replace("PYTHONPATH", "env PYTHONPATH").replace("127.0.0.1:7443", &free.to_string());
    let python = serve(directory.path(), &run).await;
    let node = Node::reporting_to(format!("http://{free}"));
    node.take("one").await;
    drop(python);
    let deletion = node.snapshots().delete_snapshot(delete("one")).await.unwrap().into_inner();
    node.end_of(&deletion.operation.unwrap().id).await;
    let _python = serve(directory.path(), &run).await;
    let all_acknowledged = async {
        loop {
            let outbox = node.store().outbox().await.unwrap().unwrap();
            if outbox.acknowledged == outbox.last {
                return i64::try_from(outbox.last).unwrap();
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    };
    let last = tokio::time::timeout(PATIENCE, all_acknowledged).await.expect("it takes what it missed");
    assert_eq!(kept(directory.path()), (last, last));
}
