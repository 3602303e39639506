//! Every command of the README does what it says: installed, and run on a simulated node called as it is there.
//!
//! `make test` is what runs this; the program of `make demo` is run by `tests/demo.rs`.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::client::at_a_terminal;
use super::node::{Node, PATIENCE};
use super::page::Page;

const README: Page = Page(include_str!("../../README.md"));

#[tokio::test]
async fn every_command_of_the_readme_works() {
    let root = tempfile::tempdir().unwrap();
    let node = Node::start();
    for command in README.commands() {
        match command.split_once(' ') {
            Some(("make", "demo" | "test")) => {}
            Some(("make", "install")) => install(root.path()),
            Some(("vmsnapd", arguments)) => check_config(root.path(), arguments),
            None if command == "vmsnapd" => serve(root.path()).await,
            Some(("vmsnap", arguments)) => {
                let (code, seen) =
                    at_a_terminal(&node, &program(root.path(), "vmsnap"), arguments, "y").await;
                assert_eq!(code, 0, "{command}: {seen}");
            }
            Some(_) | None => panic!("nobody knows how to test {command:?}"),
        }
    }
    assert_eq!(node.names().await, ["with-memory"], "the README's own story");
}

pub fn program(root: &Path, name: &str) -> PathBuf {
    root.join("usr/bin").join(name)
}

/// `make install`, of what has been built for the tests.
pub fn install(root: &Path) {
    let output = Command::new("make")
        .args(["install", "PROFILE=dev", "--assume-old=build"])
        .arg(format!("DESTDIR={}", root.display()))
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for file in [
        "lib/systemd/system/vmsnapd.service",
        "lib/systemd/system/vmsnapd.socket",
        "share/vmsnapd/network.conf",
        "share/vmsnapd/vmsnapd.toml",
        "lib/sysusers.d/vmsnapd.conf",
        "lib/tmpfiles.d/vmsnapd.conf",
        "share/bash-completion/completions/vmsnap",
        "share/man/man1/vmsnap-snapshot-create.1",
    ] {
        assert!(root.join("usr").join(file).exists(), "{file} is not installed");
    }
}

pub fn check_config(root: &Path, arguments: &str) {
    assert_eq!(arguments, "check-config");
    let status = Command::new(program(root, "vmsnapd")).arg(arguments).status().unwrap();
    assert!(status.success());
}

/// The daemon with all its defaults, except where it would get in the way of one that runs here.
async fn serve(root: &Path) {
    let socket = root.join("vmsnapd.sock");
    let mut daemon = tokio::process::Command::new(program(root, "vmsnapd"))
        .arg("--socket")
        .arg(&socket)
        .arg("--state-dir")
        .arg(root.join("state"))
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let is_served = async {
        // A process tells systemd when it is ready, and nobody else: the socket has to be tried.
        while tokio::net::UnixStream::connect(&socket).await.is_err() {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, is_served).await.expect("vmsnapd does not listen");
    let process = nix::unistd::Pid::from_raw(daemon.id().unwrap().try_into().unwrap());
    nix::sys::signal::kill(process, nix::sys::signal::Signal::SIGTERM).unwrap();
    let status = tokio::time::timeout(PATIENCE, daemon.wait()).await.expect("vmsnapd does not end").unwrap();
    assert!(status.success());
}
