//! Every command of docs/SCHEDULES.md does what it says, one after the other, on a simulated node.

use std::path::Path;

use tokio::process::Command;

use super::node::Node;
use super::page::Page;

const PAGE: Page = Page(include_str!("../../docs/SCHEDULES.md"));

#[tokio::test]
async fn every_command_of_the_page_works() {
    let node = Node::start();
    let programs = Path::new(env!("CARGO_BIN_EXE_vmsnap")).parent().unwrap();
    let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap());
    let commands = PAGE.commands();
    assert!(commands.len() > 10, "the commands were found");
    for command in commands {
        assert!(command.starts_with("vmsnap schedule "), "nobody knows how to test {command:?}");
        let mut shell = Command::new("sh");
        shell.args(["-c", command]).env("PATH", &path).env("VMSNAP_SOCKET", node.socket());
        let output = shell.output().await.unwrap();
        assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    }
    assert_eq!(node.names().await.len(), 1, "the run took one, and its schedule is gone");
}
