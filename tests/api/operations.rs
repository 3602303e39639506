//! Every command of docs/OPERATIONS.md does what it says. Those on libvirt's own metadata are run by `tests/host_libvirt`, those on
//! the package by `make package-test`.

use std::path::Path;
use std::process::Command;

use vmsnap::host::sim::SimHost;

use super::node::Node;
use super::page::Page;
use super::readme::{check_config, install, program};

const PAGE: Page = Page(include_str!("../../docs/OPERATIONS.md"));
/// `make package-test`: what it makes, and what it runs in a clean Debian root.
const PACKAGE_TEST: &str =
    concat!(include_str!("../package/run.sh"), include_str!("../package/installed.sh"));

#[tokio::test]
async fn every_command_of_the_page_works() {
    let (root, place) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for command in PAGE.commands().iter().filter(|command| command.starts_with("openssl")) {
        let output = Command::new("sh").args(["-c", command]).current_dir(place.path()).output().unwrap();
        assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    }
    let sim = SimHost::new();
    let vm = sim.vm("web").disks(1).label("account", "acme").build();
    let files = format!("{}/", place.path().display());
    let configuration =
        PAGE.blocks("toml").replace("[::]:7443", "127.0.0.1:0").replace("/etc/vmsnapd/tls/", &files);
    let node = Node::configured(sim, vm, &configuration);
    for command in PAGE.commands() {
        match command.split_once(' ').unwrap() {
            ("make", "install") => install(root.path()),
            ("vmsnapd", arguments @ "check-config") => check_config(root.path(), arguments),
            ("vmsnapd", arguments) => run(&node, &program(root.path(), "vmsnapd"), arguments, place.path()),
            ("vmsnap", arguments) => {
                let port = format!("localhost:{}", node.network().port());
                let arguments = arguments.replace("localhost:7443", &port);
                run(&node, &program(root.path(), "vmsnap"), &arguments, place.path());
            }
            ("make", "deb") | ("apt", _) => is_in_the_package_test(command),
            ("openssl" | "virsh", _) => {}
            _ => panic!("nobody knows how to test {command:?}"),
        }
    }
}

/// Word for word, and as a command: not in a comment.
#[track_caller]
fn is_in_the_package_test(command: &str) {
    let runs = |line: &str| !line.trim_start().starts_with('#') && line.contains(command);
    assert!(PACKAGE_TEST.lines().any(runs), "nobody runs {command:?}");
}

fn run(node: &Node, program: &Path, arguments: &str, directory: &Path) {
    let mut command = Command::new(program);
    // The one takes it as an option, the other as a variable.
    if program.ends_with("vmsnapd") {
        command.arg("--socket").arg(node.socket());
    }
    command.env("VMSNAP_SOCKET", node.socket()).args(arguments.split(' ')).current_dir(directory);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A probe that executes a program: what it ends with, and what it says.
#[tokio::test]
async fn a_probe() {
    let node = Node::start();
    let check = |arguments: &str, code: i32, words: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vmsnapd"));
        let output = command.arg("--socket").arg(node.socket()).args(arguments.split(' ')).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments}: {said}");
        assert!(said.contains(words), "{said}");
    };
    check("health", 0, "");
    check("health --part libvirt", 0, "");
    check("health --part magic", 1, "vmsnapd has no part \"magic\"");
    node.sim.set_link(vmsnap::host::Link::Down("libvirtd is away".to_owned()));
    let is_down = async {
        loop {
            let request = tonic_health::pb::HealthCheckRequest { service: "libvirt".to_owned() };
            let answer = node.health().check(request).await.unwrap().into_inner();
            if answer.status != tonic_health::ServingStatus::Serving as i32 {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(super::node::PATIENCE, is_down).await.unwrap();
    check("health --part libvirt", 1, "the part libvirt of vmsnapd is not serving");
    check("health", 0, "");
    let mut node = node;
    node.crash();
    let mut command = Command::new(env!("CARGO_BIN_EXE_vmsnapd"));
    let output = command.arg("--socket").arg(node.socket()).arg("health").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("vmsnapd cannot be asked on"), "{output:?}");
}
