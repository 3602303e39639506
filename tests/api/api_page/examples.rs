//! The examples for `buf` and Python, run as they stand, but for the socket, the port and the certificates of a node of the tests.

use std::path::Path;
use std::process::{Output, Stdio};

use tokio::process::Command;

use super::PAGE;
use crate::node::{Node, PATIENCE};
use crate::page::python;
use crate::secured::{Secured, rules};

/// Where the page has the socket.
const SOCKET: &str = "/run/vmsnapd/vmsnapd.sock";

/// Runs a program of the page in a directory of its own, with those of the bed. What it says is given if it succeeds.
async fn run(program: &str, arguments: &[&str], directory: &Path) -> String {
    let path = format!("{}:{}", python().display(), std::env::var("PATH").unwrap());
    let mut command = Command::new(program);
    command.args(arguments).current_dir(directory).env("PATH", path).env("PYTHONPATH", "stubs");
    // buf keeps a cache at home.
    command.env("HOME", directory).stdin(Stdio::null()).kill_on_drop(true);
    let output =
        tokio::time::timeout(3 * PATIENCE, command.output()).await.expect("it does not end").unwrap();
    said(&output)
}

fn said(output: &Output) -> String {
    let [said, errors] =
        [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text).into_owned());
    assert!(output.status.success(), "{said}{errors}");
    said + &errors
}

/// A directory with the project's `proto` in it, as whoever reads the page has one.
fn place() -> tempfile::TempDir {
    let place = tempfile::tempdir().unwrap();
    let proto = Path::new(env!("CARGO_MANIFEST_DIR")).join("proto");
    std::os::unix::fs::symlink(proto, place.path().join("proto")).unwrap();
    place
}

async fn node() -> Node {
    let node = Node::start();
    node.take("a-first").await;
    node
}

fn at(text: &str, node: &Node) -> String {
    assert!(text.contains(SOCKET), "{text} does not name the socket");
    text.replace(SOCKET, node.socket().to_str().unwrap())
}

#[tokio::test]
async fn buf() {
    let (node, place) = (node().await, place());
    let commands = PAGE.part("### buf").commands();
    let (here, there): (Vec<&str>, Vec<&str>) =
        commands.into_iter().partition(|line| !line.contains("https://"));
    let said = run("sh", &["-ec", &at(&here.join("\n"), &node)], place.path()).await;
    let wanted = [
        "\"name\": \"web\"",
        "\"state\": \"OPERATION_STATE_SUCCEEDED\"",
        "\"name\": \"by-buf\"",
        "\n\"EVENT_KIND_OPERATION_STATE_CHANGED\"\n",
        "\"code\": \"not_found\"",
    ];
    for words in wanted {
        assert!(said.contains(words), "{words}: {said}");
    }
    assert_eq!(node.names().await, ["a-first", "by-buf"]);
    assert_eq!(there.len(), 1, "{there:?}");
}

/// The one from another machine.
#[tokio::test]
async fn buf_over_tls() {
    let secured = Secured::start(&rules(&[("uri:spiffe://test/controller", "viewer", "")]));
    let files = secured.client("spiffe://test/controller", 1);
    let commands = PAGE.part("### buf").commands();
    let command = commands.into_iter().find(|line| line.contains("https://")).unwrap();
    let command = command
        .replace("controller.pem", files.certificate.to_str().unwrap())
        .replace("controller.key", files.key.to_str().unwrap())
        .replace("localhost:7443", &format!("localhost:{}", secured.node.network().port()));
    let said = run("sh", &["-ec", &command], secured.path()).await;
    assert!(said.contains("\"name\": \"web\""), "{said}");
}

#[tokio::test]
async fn what_is_said_of_versions() {
    let commands = PAGE.part("## Versions").commands();
    assert!(!commands.is_empty());
    run("sh", &["-ec", &commands.join("\n")], place().path()).await;
}

/// Every command of the page is run by one of these, or held against the contract by `grpcurl`.
#[test]
fn no_command_is_passed_over() {
    let tested = ["## Versions", "### buf", "### grpcurl", "### Python"];
    let tested: usize = tested.iter().map(|heading| PAGE.part(heading).commands().len()).sum();
    assert_eq!(tested, PAGE.commands().len());
    assert_eq!(PAGE.part("### Python").blocks("python"), PAGE.blocks("python"));
}

#[tokio::test]
async fn in_python() {
    let (node, place) = (node().await, place());
    let part = PAGE.part("### Python");
    run("sh", &["-ec", &part.commands().join("\n")], place.path()).await;
    let said = run("python3", &["-c", &at(&part.blocks("python"), &node)], place.path()).await;
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(
        lines,
        [
            "VM web",
            "operation OPERATION_STATE_SUCCEEDED ",
            "refused NOT_FOUND SNAPSHOT_NOT_FOUND none",
            "snapshots a-first by-python",
            "event EVENT_KIND_OPERATION_STATE_CHANGED",
        ]
    );
    assert_eq!(node.names().await, ["a-first"]);
}
