//! What somebody does to VMs and files behind the daemon's back is told, by its class, and nothing is made of it.

use std::path::PathBuf;

use serde_json::Value;
use vmsnap::host::Link;
use vmsnap::host::sim::{BLOCK, Method, SimHost};
use vmsnap::model::step::ImageRef;
use vmsnap::model::vm::Format;

use super::client::{Reply, run, succeed};
use super::node::{Node, PATIENCE, vda};

/// What a check ends with when it has found something.
const DIFFERS: i32 = 11;

fn differences(reply: &Reply) -> Vec<(String, bool, usize)> {
    let answer: Value = serde_json::from_str(&reply.stdout).unwrap();
    let found = answer["differences"].as_array().cloned().unwrap_or_default();
    let of = |found: &Value| {
        let kind = found["kind"].as_str().unwrap().trim_start_matches("DIFFERENCE_KIND_").to_owned();
        let snapshots = found["snapshot_ids"].as_array().map_or(0, Vec::len);
        (kind, found["blocks"].as_bool().unwrap(), snapshots)
    };
    found.iter().map(of).collect()
}

/// The file that holds what a snapshot has of vda.
async fn file_of(node: &Node, snapshot: &str) -> PathBuf {
    let shown = succeed(node, &format!("snapshot show web/{snapshot} -o json")).await;
    let shown: Value = serde_json::from_str(&shown).unwrap();
    shown["snapshot"]["disks"][0]["path"].as_str().unwrap().into()
}

async fn until_told(node: &Node, words: &str) {
    let told = async {
        while !succeed(node, "event list web").await.contains(words) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, told).await.unwrap_or_else(|_| panic!("nobody tells that {words}"));
}

/// What somebody does, and what a check tells of it.
struct Case {
    kind: &'static str,
    /// What tells it from others of its kind.
    words: &'static str,
    blocks: bool,
    snapshots: usize,
}

async fn check(act: impl AsyncFn(&Node), case: Case) {
    let node = Node::start();
    node.write(1, 10);
    node.take("one").await;
    node.write(1, 20);
    node.take("two").await;
    let well = succeed(&node, "vm check web").await;
    assert_eq!(well, "web: the catalog and what is there agree\n");
    act(&node).await;

    let files = node.sim.files();
    let found = run(&node, "vm check web -o json").await;
    assert_eq!(found.code, DIFFERS, "{found:?}");
    assert_eq!(differences(&found), [(case.kind.to_owned(), case.blocks, case.snapshots)], "{found:?}");
    let told = run(&node, "vm check web").await;
    assert!(told.stdout.contains(case.words), "{told:?}");
    assert_eq!(run(&node, "node check -o json").await.code, DIFFERS);
    let events: Value = serde_json::from_str(&succeed(&node, "event list web -o json").await).unwrap();
    let told = events["events"].as_array().unwrap().iter();
    let told = told.filter(|event| event["kind"] == "EVENT_KIND_VM_DIFFERENCE");
    assert_eq!(told.count(), 1, "it is told once, and not with every look: {events}");
    let vm: Value = serde_json::from_str(&succeed(&node, "vm show web -o json").await).unwrap();
    assert_eq!(vm["vm"]["difference_count"], 1, "{vm}");
    assert_eq!(vm["vm"]["blocked_reason"].as_str().unwrap_or_default() != "", case.blocks, "{vm}");
    assert_eq!(node.sim.files(), files, "a check adopts nothing and removes nothing");
    let created = run(&node, "snapshot create web three").await;
    assert_eq!(created.code, if case.blocks { 6 } else { 0 }, "{created:?}");
    assert_eq!(node.sim.violations(), Vec::<String>::new());
}

#[tokio::test]
async fn an_image_that_is_gone() {
    let act = async |node: &Node| node.sim.someone_removes(&file_of(node, "one").await);
    check(act, Case { kind: "IMAGE_MISSING", words: "there is no image", blocks: true, snapshots: 2 }).await;
}

#[tokio::test]
async fn an_image_that_is_another_file() {
    let act = async |node: &Node| node.sim.someone_replaces(&file_of(node, "two").await);
    check(
        act,
        Case { kind: "IMAGE_CHANGED", words: "another file stands there", blocks: false, snapshots: 1 },
    )
    .await;
}

#[tokio::test]
async fn an_image_that_was_cut() {
    let act = async |node: &Node| node.sim.someone_truncates(&file_of(node, "two").await);
    check(act, Case { kind: "IMAGE_CHANGED", words: "bytes, not", blocks: false, snapshots: 1 }).await;
}

/// One file that nobody reads now is no reason to know nothing of all the others.
#[tokio::test]
async fn an_image_of_another_branch_that_cannot_be_read() {
    let act = async |node: &Node| {
        succeed(node, "snapshot revert web/one --yes").await;
        node.sim.someone_blanks(&file_of(node, "two").await);
    };
    check(act, Case { kind: "IMAGE_CHANGED", words: "cannot be read", blocks: false, snapshots: 1 }).await;
}

#[tokio::test]
async fn kept_variables_that_are_gone() {
    let sim = SimHost::new();
    let vm = sim.vm("web").disks(1).uefi().build();
    let node = Node::start_with(sim, vm);
    node.take("one").await;
    succeed(&node, "vm check web").await;
    let is_kept = |file: &PathBuf| file.extension().is_some_and(|extension| extension == "nvram");
    let kept = node.sim.files().into_iter().find(is_kept).unwrap();
    node.sim.someone_removes(&kept);
    let found = run(&node, "vm check web -o json").await;
    assert_eq!(differences(&found), [("IMAGE_MISSING".to_owned(), false, 1)], "{found:?}");
}

#[tokio::test]
async fn an_image_that_is_a_link_now() {
    let act = async |node: &Node| node.sim.someone_links(&file_of(node, "one").await);
    check(act, Case { kind: "IMAGE_CHANGED", words: "is a link now", blocks: false, snapshots: 2 }).await;
}

#[tokio::test]
async fn a_definition_that_names_another_image() {
    let act = async |node: &Node| {
        let image = ImageRef { path: file_of(node, "one").await, format: Format::Qcow2 };
        node.sim.someone_redefines(node.vm, &vda(), image);
    };
    check(act, Case { kind: "DEFINITION_DIFFERS", words: "virsh edit", blocks: true, snapshots: 0 }).await;
}

/// It is told while there is time: with its end, its snapshots are LOST.
#[tokio::test]
async fn a_vm_that_is_undefined_while_it_runs() {
    let act = async |node: &Node| node.sim.someone_undefines(node.vm);
    check(act, Case { kind: "VM_UNDEFINED", words: "virsh define web.xml", blocks: false, snapshots: 0 })
        .await;
}

#[tokio::test]
async fn an_image_that_lies_on_another() {
    let act = async |node: &Node| {
        succeed(node, "snapshot revert web/one --yes").await;
        let image = ImageRef { path: file_of(node, "two").await, format: Format::Qcow2 };
        let template = ImageRef { path: "/images/other".into(), format: Format::Qcow2 };
        node.sim.put_image(&template.path, Format::Qcow2, 1024 * BLOCK, false).unwrap();
        node.sim.host().images.rebase(&image, &template).await.unwrap();
    };
    check(
        act,
        Case {
            kind: "IMAGE_CHANGED",
            words: "it lies on /images/other, not on",
            blocks: false,
            snapshots: 1,
        },
    )
    .await;
}

#[tokio::test]
async fn an_overlay_that_is_not_ours() {
    let act = async |node: &Node| node.sim.someone_overlays(node.vm, &vda(), "/images/mine".as_ref());
    check(act, Case { kind: "UNKNOWN_OVERLAY", words: "virsh blockcommit", blocks: true, snapshots: 0 })
        .await;
}

#[tokio::test]
async fn a_memory_image_that_is_gone() {
    let act = async |node: &Node| {
        succeed(node, "snapshot create web memory --memory").await;
        let is_memory = |file: &PathBuf| file.extension().is_some_and(|extension| extension == "memory");
        let memory = node.sim.files().into_iter().find(is_memory).unwrap();
        node.sim.someone_removes(&memory);
    };
    check(
        act,
        Case { kind: "IMAGE_MISSING", words: "no complete memory image", blocks: false, snapshots: 1 },
    )
    .await;
}

#[tokio::test]
async fn a_clone_that_is_gone() {
    let act = async |node: &Node| {
        succeed(node, "volume clone web/one --disk vda --to copy --full").await;
        node.sim.someone_removes("/images/copy".as_ref());
    };
    check(act, Case { kind: "IMAGE_MISSING", words: "", blocks: false, snapshots: 0 }).await;
}

/// What is settled is told too, without a restart; and operations go on.
#[tokio::test]
async fn what_is_settled_blocks_nothing() {
    let node = Node::start();
    node.write(1, 10);
    node.take("one").await;
    let right = ImageRef { path: node.sim.image_of(node.vm, &vda()).unwrap(), format: Format::Qcow2 };
    let wrong = ImageRef { path: file_of(&node, "one").await, format: Format::Qcow2 };
    node.sim.someone_redefines(node.vm, &vda(), wrong);
    // Nobody has checked: an operation finds it as well.
    assert_eq!(run(&node, "snapshot create web two").await.code, 6);
    let shown = succeed(&node, "vm show web").await;
    assert!(shown.contains("blocked    ") && shown.contains("virsh edit"), "{shown}");
    node.sim.someone_redefines(node.vm, &vda(), right);
    succeed(&node, "snapshot create web two").await;
    let shown = succeed(&node, "vm show web").await;
    assert!(!shown.contains("blocked"), "{shown}");
    let events = succeed(&node, "event list web").await;
    assert!(events.contains("settled: "), "{events}");
    assert_eq!(run(&node, "vm check web").await.code, 0);
}

/// Files that have a name of ours and that nothing needs are told to whoever looks at the node.
#[tokio::test]
async fn an_orphan_and_a_stranger() {
    let node = Node::start();
    node.take("one").await;
    let well = succeed(&node, "node check").await;
    assert_eq!(well, "1 VMs with 4 images: the catalog and what is there agree\n");
    let orphan = "/images/vmsnap-0199aaaa-0000-7000-8000-000000000001.qcow2";
    for path in [orphan, "/images/of-somebody-else.qcow2", "/images/vmsnap-notes.qcow2"] {
        node.sim.put_image(path.as_ref(), Format::Qcow2, BLOCK, false).unwrap();
    }
    let found = run(&node, "node check").await;
    assert_eq!(found.code, DIFFERS, "{found:?}");
    let told: Vec<&str> = found.stdout.lines().skip(1).collect();
    assert!(matches!(told[..], [line] if line.contains("orphan file") && line.contains(orphan)), "{told:?}");
    assert!(node.sim.files().iter().any(|file| file.to_str() == Some(orphan)), "it is only told");
}

/// The daemon looks by itself when it starts.
#[tokio::test]
async fn a_start_finds_what_happened_meanwhile() {
    let mut node = Node::start();
    node.write(1, 10);
    node.take("one").await;
    let file = file_of(&node, "one").await;
    node.crash();
    node.sim.someone_removes(&file);
    node.restart();
    until_told(&node, "there is no image").await;
}

/// What an operation works on is left out and named, and what it makes is not taken for an orphan.
#[tokio::test]
async fn a_check_beside_an_operation() {
    let node = Node::start();
    node.take("one").await;
    let hold = node.hold(Method::SwitchDisks);
    let begun = node.begin("two").await;
    crate::node::reached(&hold).await;
    let found = run(&node, "node check").await;
    assert_eq!(found.code, 3, "{found:?}");
    assert!(
        found
            .stderr
            .contains(&format!("left out, for an operation holds them or they gave no answer: {}", node.vm))
    );
    assert!(!found.stdout.contains("orphan"), "{found:?}");
    hold.release();
    node.end_of(&begun.id).await;
    assert_eq!(run(&node, "node check").await.code, 0);
}

/// The daemon looks by itself when the hypervisor is back.
#[tokio::test]
async fn a_link_that_is_back_finds_what_happened_meanwhile() {
    let node = Node::start();
    node.take("one").await;
    let file = file_of(&node, "one").await;
    node.sim.set_link(Link::Down("libvirtd is away".to_owned()));
    node.sim.someone_removes(&file);
    node.sim.set_link(Link::Up);
    until_told(&node, "there is no image").await;
}

/// No look at such a VM succeeds, and none at what else is wrong with it.
#[tokio::test]
async fn a_vm_that_libvirt_and_qemu_do_not_agree_on() {
    let node = Node::start();
    node.take("one").await;
    node.sim.becomes_known_wrongly(node.vm);
    let found = run(&node, "vm check web -o json").await;
    assert_eq!(found.code, DIFFERS, "{found:?}");
    assert_eq!(differences(&found), [("IMAGE_CHANGED".to_owned(), true, 0)], "{found:?}");
    let shown = succeed(&node, "vm show web").await;
    assert!(shown.contains("blocked    libvirt and QEMU do not agree"), "{shown}");
    assert_ne!(run(&node, "snapshot create web two").await.code, 0);
}
