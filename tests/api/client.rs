//! The `vmsnap` program on a simulated node: what an operator sees, and the exit codes that scripts rely on.

use std::io::{Read, Write};
use std::path::Path;
use std::process::Stdio;

use serde_json::Value;
use tokio::process::{Child, Command};
use vmsnap::host::Link;
use vmsnap::host::sim::{Complaint, Method, Mishap};

use super::node::{Node, PATIENCE};

const PROGRAM: &str = env!("CARGO_BIN_EXE_vmsnap");

/// How a run ended.
#[derive(Debug)]
pub struct Reply {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

pub fn spawn(node: &Node, line: &str) -> Child {
    let mut command = Command::new(PROGRAM);
    command.env("VMSNAP_SOCKET", node.socket()).args(line.split(' ')).stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true).spawn().unwrap()
}

async fn end(child: Child) -> Reply {
    let output = tokio::time::timeout(PATIENCE, child.wait_with_output()).await.expect("it does not end");
    let output = output.unwrap();
    Reply {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// Runs `vmsnap LINE`; words are parted by single spaces.
pub async fn run(node: &Node, line: &str) -> Reply {
    end(spawn(node, line)).await
}

/// What a command prints for scripts.
pub async fn json(node: &Node, line: &str) -> Value {
    serde_json::from_str(&succeed(node, &format!("{line} -o json")).await).unwrap()
}

pub async fn succeed(node: &Node, line: &str) -> String {
    let reply = run(node, line).await;
    assert_eq!(reply.code, 0, "vmsnap {line}: {}", reply.stderr);
    reply.stdout
}

#[tokio::test]
async fn exit_codes() {
    let node = Node::start();
    node.take("one").await;
    let check = async |line: &str, code, words: &[&str]| {
        let reply = run(&node, line).await;
        assert_eq!(reply.code, code, "vmsnap {line}: {reply:?}");
        for word in words {
            assert!(reply.stderr.contains(word), "vmsnap {line} does not say {word:?}: {}", reply.stderr);
        }
        assert!(matches!(code, 0 | 3) || reply.stdout.is_empty(), "vmsnap {line}: {}", reply.stdout);
    };
    check("snapshot list web", 0, &[]).await;
    check("snapshot frobnicate", 2, &["unrecognized subcommand"]).await;
    check("snapshot create web a/b", 2, &["error: name: it contains '/'", "reason: INVALID_REQUEST"]).await;
    check("snapshot delete web/one", 2, &["there is no terminal to ask on", "add --yes"]).await;
    check("snapshot revert web/one", 2, &["there is no terminal to ask on", "add --yes"]).await;
    check("snapshot create nobody", 4, &["VM_NOT_FOUND", "changed: nothing", "vmsnap vm list"]).await;
    check("snapshot show web/two", 4, &["SNAPSHOT_NOT_FOUND", "vmsnap snapshot list"]).await;
    check("op show 7", 4, &["OPERATION_NOT_FOUND"]).await;
    check("snapshot create web one", 5, &["SNAPSHOT_EXISTS"]).await;
    check("--socket /nowhere/x.sock vm list", 8, &["vmsnapd cannot be reached", "start vmsnapd"]).await;
    check("snapshot delete web/one web/two --yes", 4, &["SNAPSHOT_NOT_FOUND", "changed: nothing"]).await;
    assert_eq!(node.names().await, ["one"], "of one VM all or none");
    node.sim.vm("db").disks(1).build();
    check("snapshot delete web/one db/two --yes", 3, &["db: error", "1 of 2 VMs failed"]).await;
    assert!(node.names().await.is_empty(), "what could be deleted is");

    node.sim.set_link(Link::Down("libvirtd is gone".to_owned()));
    check("snapshot create web", 8, &["LIBVIRT_UNAVAILABLE", "start libvirtd"]).await;
    node.sim.set_link(Link::Up);
    node.strike(Method::CreateOverlay, Mishap::Error(Complaint::NoSpace("/images".into())));
    check("snapshot create web full", 10, &["NO_SPACE", "changed: nothing"]).await;
    assert!(node.names().await.is_empty());
}

#[tokio::test]
async fn results_are_for_people_and_for_scripts() {
    let node = Node::start();
    succeed(&node, "snapshot create web one --description first --property ticket=17").await;
    succeed(&node, "snapshot create web two --memory").await;
    let table = succeed(&node, "snapshot list web").await;
    let rows: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0][..7], ["VM", "NAME", "KIND", "STATE", "CONSISTENCY", "SIZE", "CURRENT"], "{table}");
    assert_eq!(rows[1][..5], ["web", "one", "disks", "READY", "FILESYSTEM"], "{table}");
    assert_eq!(rows[2][..2], ["web", "two"], "{table}");
    assert!(rows[2].contains(&"*"), "{table}");
    assert_eq!(succeed(&node, "snapshot list web --no-headers").await.lines().count(), 2);

    let json: Value = serde_json::from_str(&succeed(&node, "snapshot list web -o json").await).unwrap();
    let one = &json["snapshots"][0];
    assert_eq!((&one["name"], &one["description"]), (&"one".into(), &"first".into()));
    assert_eq!(
        (&one["state"], &one["kind"]),
        (&"SNAPSHOT_STATE_READY".into(), &"SNAPSHOT_KIND_VM_DISKS".into())
    );
    assert_eq!(one["properties"]["ticket"], "17");
    let yaml: Value = serde_saphyr::from_str(&succeed(&node, "snapshot list web -o yaml").await).unwrap();
    assert_eq!(yaml["snapshots"][1]["name"], "two");
    let ids = succeed(&node, "snapshot list web -o name").await;
    assert_eq!(ids.lines().next(), one["id"].as_str());

    let tree = succeed(&node, "snapshot list web --tree").await;
    let lines: Vec<&str> = tree.lines().collect();
    assert_eq!(lines[0], "web (running)");
    assert!(lines[1].starts_with("└─ one  READY  disks  FILESYSTEM"), "{tree}");
    assert!(lines[2].starts_with("   └─ two  READY  disks+memory  MEMORY"), "{tree}");
    assert_eq!(lines[3], "      └─ current (you are here)");

    let shown = succeed(&node, "snapshot show web/one").await;
    assert!(shown.contains("description   first") && shown.contains("property      ticket=17"), "{shown}");
    let operations = succeed(&node, "op list web").await;
    assert!(operations.lines().count() == 3 && operations.contains("SUCCEEDED"), "{operations}");
    assert!(succeed(&node, "vm show web").await.contains("vdb"));
    assert!(succeed(&node, "vm list").await.contains("running"));
    assert!(succeed(&node, "node show").await.contains("libvirt   ok"));
}

#[tokio::test]
async fn any_snapshot_of_a_tree_is_deleted() {
    let node = Node::start();
    for name in ["root", "left"] {
        succeed(&node, &format!("snapshot create web {name}")).await;
    }
    succeed(&node, "snapshot revert web/root --yes").await;
    succeed(&node, "snapshot create web right").await;
    let told = succeed(&node, "snapshot delete web/root --yes").await;
    assert_eq!(told, "root deleted\n");
    let vm = succeed(&node, "vm show web").await;
    assert!(vm.contains("to merge   2 layers"), "a layer of each disk waits for one of its branches: {vm}");
    let json: Value = serde_json::from_str(&succeed(&node, "vm list -o json").await).unwrap();
    assert_eq!(json["vms"][0]["merge_debt"]["layers"], 2);
    succeed(&node, "snapshot create web leaf").await;
    let told = succeed(&node, "snapshot delete web/right --children --yes").await;
    assert_eq!(told, "2 snapshots deleted\n");
    assert_eq!(node.names().await, ["left"]);
    // With the VM itself there are still two branches.
    succeed(&node, "snapshot delete web/left --yes").await;
    assert!(!succeed(&node, "vm show web").await.contains("to merge"));
    assert_eq!(node.sim.files().len(), 2, "only the first images are left");
}

#[tokio::test]
async fn a_dry_run_shows_the_plan() {
    let node = Node::start();
    node.take("one").await;
    let acts = node.acts();
    let plan = succeed(&node, "snapshot delete web/one --dry-run").await;
    assert!(plan.contains("<- no way back from here") && plan.contains("gone for good"), "{plan}");
    let blocked = run(&node, "snapshot create web one --dry-run").await;
    assert_eq!(blocked.code, 5, "as the real one would end");
    assert!(blocked.stdout.contains("in the way"), "{}", blocked.stdout);
    assert_eq!(node.acts(), acts);
}

#[tokio::test]
async fn waiting_goes_over_a_crash_of_the_daemon() {
    let mut node = Node::start();
    let hold = node.hold(Method::SwitchDisks);
    let child = spawn(&node, "snapshot create web one");
    crate::node::reached(&hold).await;
    node.crash();
    node.sim.reset_script();
    node.restart();
    let reply = end(child).await;
    assert_eq!(reply.code, 0, "{}", reply.stderr);
    assert!(reply.stdout.contains("one"), "{}", reply.stdout);
}

#[tokio::test]
async fn leaving_never_stops_the_work() {
    let node = Node::start();
    let hold = node.hold(Method::SwitchDisks);
    let begun: Value =
        serde_json::from_str(&succeed(&node, "snapshot create web one --no-wait -o json").await).unwrap();
    let id = begun["operation"]["id"].as_str().unwrap();
    crate::node::reached(&hold).await;
    let late = run(&node, &format!("op watch {id} --timeout 100ms")).await;
    assert_eq!(late.code, 9);
    assert!(late.stderr.contains(&format!("vmsnap op watch {id}")), "{}", late.stderr);

    let mut child = spawn(&node, &format!("op watch {id}"));
    // Its first line: it follows, so an interrupt finds it waiting.
    let mut stderr = tokio::io::BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    tokio::io::AsyncBufReadExt::read_line(&mut stderr, &mut line).await.unwrap();
    let process = nix::unistd::Pid::from_raw(child.id().unwrap().try_into().unwrap());
    nix::sys::signal::kill(process, nix::sys::signal::Signal::SIGINT).unwrap();
    assert_eq!(end(child).await.code, 130);

    hold.release();
    let reply = run(&node, &format!("op watch {id}")).await;
    assert_eq!(reply.code, 0, "{}", reply.stderr);
    assert_eq!(node.names().await, ["one"]);
}

#[tokio::test]
async fn a_person_is_asked_and_can_say_no() {
    let node = Node::start();
    node.take("one").await;
    let (code, seen) = at_a_terminal(&node, Path::new(PROGRAM), "snapshot delete web/one", "n").await;
    assert_eq!(code, 130, "{seen}");
    assert!(seen.contains("gone for good") && seen.contains("Delete web/one?"), "{seen}");
    assert!(seen.contains("nothing was done"), "{seen}");
    assert_eq!(node.names().await, ["one"]);
    let (code, seen) = at_a_terminal(&node, Path::new(PROGRAM), "snapshot delete web/one", "y").await;
    assert_eq!(code, 0, "{seen}");
    assert!(node.names().await.is_empty());
}

/// Runs `PROGRAM LINE` at a terminal and types `answer` when it asks. Gives its exit code and all that was seen.
pub async fn at_a_terminal(node: &Node, program: &Path, line: &str, answer: &str) -> (i32, String) {
    let terminal = nix::pty::openpty(None, None).unwrap();
    let end = || Stdio::from(terminal.slave.try_clone().unwrap());
    let mut command = Command::new(program);
    command.env("VMSNAP_SOCKET", node.socket()).env("TERM", "xterm").args(line.split(' '));
    let mut child = command.stdin(end()).stdout(end()).stderr(end()).spawn().unwrap();
    drop((command, terminal.slave));
    let mut screen = std::fs::File::from(terminal.master);
    let answer = answer.to_owned();
    let reader = tokio::task::spawn_blocking(move || {
        let (mut seen, mut piece, mut has_answered) = (Vec::new(), [0; 4096], false);
        // A terminal that nobody has open any more ends with an error.
        while let Ok(count @ 1..) = screen.read(&mut piece) {
            seen.extend_from_slice(&piece[..count]);
            if !has_answered && seen.windows(5).any(|window| window == b"[y/N]") {
                screen.write_all(answer.as_bytes()).unwrap();
                has_answered = true;
            }
        }
        String::from_utf8_lossy(&seen).into_owned()
    });
    let status = tokio::time::timeout(PATIENCE, child.wait()).await.expect("it does not end").unwrap();
    (status.code().unwrap(), reader.await.unwrap())
}

#[tokio::test]
async fn a_stuck_operation_is_shown_with_its_ways_out() {
    let node = Node::start();
    node.take("one").await;
    node.strike(Method::Pivot, Mishap::Error(Complaint::Refused));
    let reply = run(&node, "snapshot delete web/one --yes").await;
    assert_ne!(reply.code, 0);
    assert!(
        reply.stderr.contains("is stuck") && reply.stderr.contains("vmsnap op resolve"),
        "{}",
        reply.stderr
    );
    let id = succeed(&node, "op list web --open -o name").await;
    let id = id.trim();
    assert!(succeed(&node, &format!("op show {id}")).await.contains("retry|abandon"));
    node.sim.reset_script();
    succeed(&node, &format!("op resolve {id} retry --yes")).await;
    succeed(&node, &format!("op watch {id}")).await;
    assert!(node.names().await.is_empty());
}

#[tokio::test]
async fn completions_and_manuals_are_generated() {
    let node = Node::start();
    for shell in ["bash", "zsh", "fish"] {
        let script = succeed(&node, &format!("completions {shell}")).await;
        for word in ["snapshot", "quiesce", "schedule", "keep-daily"] {
            assert!(script.contains(word), "{shell}: {script}");
        }
    }
    let directory = tempfile::tempdir().unwrap();
    succeed(&node, &format!("man --dir {}", directory.path().display())).await;
    let manual = std::fs::read_to_string(directory.path().join("vmsnap.1")).unwrap();
    assert!(manual.contains("Exit codes"), "{manual}");
    for verb in ["snapshot-create", "schedule-create", "schedule-preview"] {
        assert!(directory.path().join(format!("vmsnap-{verb}.1")).exists(), "{verb}");
    }
}
