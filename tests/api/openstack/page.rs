//! Every command of docs/OPENSTACK.md does what it says, with the client that it names.

use std::path::Path;
use std::process::Command;

use vmsnap::host::sim::SimHost;

use crate::node::Node;
use crate::page::{Page, python};
use crate::secured::rules;

const PAGE: Page = Page(include_str!("../../../docs/OPENSTACK.md"));
const OPERATIONS: Page = Page(include_str!("../../../docs/OPERATIONS.md"));

/// Runs commands one after the other in one shell, for they set variables for those behind.
fn run(commands: &[String], directory: &Path) -> String {
    let path = format!("{}:{}", python().display(), std::env::var("PATH").unwrap());
    let script = format!("set -e\n{}", commands.join("\n"));
    let mut shell = Command::new("sh");
    let output = shell.args(["-c", &script]).env("PATH", path).current_dir(directory).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{script}\n{said}\n{}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8(output.stdout).unwrap()
}

/// The commands for one endpoint: from the line that names it to the next one that does.
fn commands(endpoint: &str) -> Vec<&'static str> {
    let commands = PAGE.commands();
    let from = commands.iter().position(|command| command.contains(endpoint)).unwrap();
    let behind = commands[from + 1..].iter().position(|command| command.contains("OS_ENDPOINT="));
    commands[from..behind.map_or(commands.len(), |behind| from + 1 + behind)].to_vec()
}

#[tokio::test]
async fn on_the_node() {
    let place = tempfile::tempdir().unwrap();
    let sim = SimHost::new();
    let vm = sim.vm("web").disks(1).build();
    let sections = PAGE.blocks("toml");
    let (plain, _) = sections.rsplit_once("[openstack]").unwrap();
    let node = Node::configured(sim, vm, &plain.replace("127.0.0.1:8776", "127.0.0.1:0"));
    let commands = commands("OS_ENDPOINT=http://127.0.0.1:8776/v3");
    let here = format!("127.0.0.1:{}", node.openstack().port());
    let commands: Vec<String> = commands.iter().map(|line| line.replace("127.0.0.1:8776", &here)).collect();
    let said = run(&commands, place.path());
    assert!(said.contains("before 2.1") && said.contains("ticket='17'"), "{said}");
    assert!(node.sim.files().contains(&"/images/web-copy.qcow2".into()), "{said}");
}

#[tokio::test]
async fn with_a_password() {
    let place = tempfile::tempdir().unwrap();
    let sim = SimHost::new();
    let vm = sim.vm("web").disks(1).build();
    let sections = PAGE.blocks("toml");
    let (plain, _) = sections.rsplit_once("[openstack]").unwrap();
    let plain = plain.replace("\"loopback\"", "\"basic:nobody\"").replace("127.0.0.1:8776", "127.0.0.1:0");
    let node = Node::configured(sim, vm, &plain);
    node.take("one").await;
    let commands = commands("OS_AUTH_TYPE=http_basic");
    let here = format!("127.0.0.1:{}", node.openstack().port());
    let commands: Vec<String> = commands.iter().map(|line| line.replace("127.0.0.1:8776", &here)).collect();
    let said = run(&commands, place.path());
    assert!(said.contains("one.vda"), "{said}");
}

/// With the certificates that docs/OPERATIONS.md makes.
#[tokio::test]
async fn from_the_network() {
    let place = tempfile::tempdir().unwrap();
    for command in OPERATIONS.commands().iter().filter(|command| command.starts_with("openssl")) {
        run(&[(*command).to_owned()], place.path());
    }
    let sections = PAGE.blocks("toml");
    let (_, listener) = sections.rsplit_once("[openstack]").unwrap();
    let files = format!("{}/", place.path().display());
    let rule = rules(&[("uri:spiffe://cloud/controller", "viewer", "")]);
    let configuration = format!("{}{rule}[openstack]{listener}", tcp());
    let configuration = configuration.replace("/etc/vmsnapd/tls/", &files);
    let configuration = configuration.replace("[::]:7443", "127.0.0.1:0").replace("[::]:8776", "127.0.0.1:0");
    let sim = SimHost::new();
    let vm = sim.vm("web").disks(1).build();
    let node = Node::configured(sim, vm, &configuration);
    node.take("one").await;
    let here = format!("localhost:{}", node.openstack().port());
    let commands = commands("OS_ENDPOINT=https://localhost:8776/v3");
    let commands: Vec<String> = commands.iter().map(|line| line.replace("localhost:8776", &here)).collect();
    let said = run(&commands, place.path());
    assert!(said.contains("one.vda") && said.contains("available"), "{said}");
}

/// The section `[tcp]` of docs/OPERATIONS.md.
fn tcp() -> String {
    OPERATIONS.part("## Calls from the network").blocks("toml")
}
