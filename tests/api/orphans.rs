//! A file of ours that the catalog does not need goes only if nobody reads it, and nobody may: neither when it is looked for
//! nor when it is removed.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tonic::Code;
use vmsnap::host::sim::{BLOCK, Call, Complaint, Fault, Hold, Method, Mishap, Moment, Trigger};
use vmsnap::model::step::ImageRef;
use vmsnap::model::vm::{ExcludedDisk, Format};
use vmsnap::proto::v1;

use super::client::{run, succeed};
use super::differences::{ORPHAN, differences, put_orphan, request};
use super::node::{Node, assert_refused, vda};

/// A second name of the orphan.
const ALIAS: &str = "/links/image";

async fn orphans(node: &Node) -> Vec<Value> {
    let found: Value = serde_json::from_str(&run(node, "node check -o json").await.stdout).unwrap();
    let found = found["differences"].as_array().cloned().unwrap_or_default().into_iter();
    found.filter(|difference| difference["path"] == ORPHAN).collect()
}

async fn alias(node: &Node) {
    node.sim.host().images.hard_link(ORPHAN.as_ref(), ALIAS.as_ref()).await.unwrap();
}

/// With `act`, the orphan stays: it is not offered, and says why with this word; no word where it is no orphan at all. The
/// same if it happens only once the removal is under way.
async fn check(act: impl AsyncFn(&Node), word: Option<&str>) {
    let node = with_orphan().await;
    act(&node).await;
    match (&orphans(&node).await[..], word) {
        ([], None) => {}
        ([told], Some(word)) => {
            let description = told["description"].as_str().unwrap();
            assert!(description.contains(word), "{description}");
            assert_eq!(told["actions"].as_array().map_or(0, Vec::len), 0, "{told}");
            let resolve = format!("node resolve {} --remove-file --yes", told["id"].as_str().unwrap());
            let refused = run(&node, &resolve).await;
            assert!(refused.code == 6 && refused.stderr.contains("RESOLUTION_NOT_OFFERED"), "{refused:?}");
        }
        (found, _) => panic!("{found:?}"),
    }
    check_meanwhile(act, word).await;
}

async fn check_meanwhile(act: impl AsyncFn(&Node), word: Option<&str>) {
    let node = with_orphan().await;
    let [told] = &orphans(&node).await[..] else { panic!("no orphan") };
    let request = v1::ResolveVmRequest {
        difference_id: told["id"].as_str().unwrap().to_owned(),
        action: v1::DifferenceAction::RemoveFile.into(),
        ..Default::default()
    };
    let looks = || node.calls_of(Method::Inspect);
    let before = looks();
    let plan = v1::ResolveVmRequest { validate_only: true, ..request.clone() };
    node.vms().resolve_vm(plan).await.unwrap();
    // The next look after the plan is the step's own first one.
    let (hold, occurrence) = (Hold::default(), 2 * looks() - before + 1);
    let at = Trigger::Call(Call { method: Method::Inspect, occurrence });
    node.sim.add_fault(Fault { at, moment: Moment::After, mishap: Mishap::Late(hold.clone()) });
    let begun = node.vms().resolve_vm(request).await.unwrap().into_inner().operation.unwrap();
    crate::node::reached(&hold).await;
    act(&node).await;
    hold.release();
    let ended = node.end_of(&begun.id).await;
    assert_eq!(ended.state(), v1::OperationState::Failed, "{ended:?}");
    let why = ended.error.unwrap();
    assert_eq!(why.reason(), v1::Reason::LayerInUse, "{why:?}");
    assert!(why.message.contains(word.unwrap_or("VM other has it")), "{why:?}");
    assert!(node.sim.files().contains(&ORPHAN.into()));
    assert_eq!(node.sim.violations(), Vec::<String>::new());
}

/// A node with an orphan that could be removed.
async fn with_orphan() -> Node {
    let node = Node::start();
    node.take("one").await;
    node.sim.put_image(ORPHAN.as_ref(), Format::Qcow2, BLOCK, false).unwrap();
    let [told] = &orphans(&node).await[..] else { panic!("no orphan") };
    assert_eq!(told["actions"][0], "DIFFERENCE_ACTION_REMOVE_FILE");
    node
}

/// A read-only disk, one that is refused, one that only the stored definition names.
#[tokio::test]
async fn a_disk_that_is_not_handled() {
    let act = async |node: &Node| {
        let other = node.sim.vm("other").excluded("vda", ExcludedDisk::ReadOnly);
        other.names(ORPHAN.as_ref()).off().build();
    };
    check(act, None).await;
}

#[tokio::test]
async fn what_a_disk_that_is_not_handled_lies_on() {
    let act = async |node: &Node| {
        // Where no image is looked for.
        node.overlay("/elsewhere/middle", ORPHAN).await;
        node.overlay("/far/away/top", "/elsewhere/middle").await;
        node.sim.vm("other").names("/far/away/top".as_ref()).off().build();
    };
    check(act, Some("/elsewhere/middle lies on it")).await;
}

#[tokio::test]
async fn another_name_of_it() {
    let act = async |node: &Node| {
        alias(node).await;
        node.sim.vm("other").names(ALIAS.as_ref()).off().build();
    };
    check(act, None).await;
    let act = async |node: &Node| {
        alias(node).await;
        node.overlay("/images/by-another-name", ALIAS).await;
    };
    check(act, Some("/images/by-another-name lies on it")).await;
}

#[tokio::test]
async fn an_overlay_of_any_name_beside_any_image() {
    let act = async |node: &Node| node.overlay("/images/by-hand.img", ORPHAN).await;
    check(act, Some("/images/by-hand.img lies on it")).await;
    let act = async |node: &Node| {
        let beside = ImageRef { path: "/pool/disk".into(), format: Format::Raw };
        node.sim.put_image(&beside.path, Format::Raw, BLOCK, false).unwrap();
        node.sim.vm("other").image("vda", beside).off().build();
        node.overlay("/pool/by-hand", ORPHAN).await;
    };
    check(act, Some("/pool/by-hand lies on it")).await;
}

#[tokio::test]
async fn an_image_that_makes_no_sense() {
    let act = async |node: &Node| {
        node.sim.put_image("/images/broken.qcow2".as_ref(), Format::Raw, BLOCK, false).unwrap();
    };
    check(act, Some("something may lie on it: the image /images/broken.qcow2 cannot be used")).await;
}

#[tokio::test]
async fn images_and_directories_that_cannot_be_read() {
    let strike = |method| async move |node: &Node| node.strike(method, Mishap::Error(Complaint::Garbage));
    check(strike(Method::LiesOn), Some("something may lie on it")).await;
    check_meanwhile(strike(Method::List), Some("something may lie on it")).await;
}

#[tokio::test]
async fn vms_that_may_have_any_file() {
    let act = async |node: &Node| {
        node.sim.vm("other").unnamed("vda").off().build();
    };
    check(act, Some("disk vda of VM other is a volume of a pool")).await;
    let act = async |node: &Node| {
        let other = node.sim.vm("other").build();
        node.sim.someone_saves(other);
    };
    check(act, Some("VM other is saved with its memory")).await;
}

/// What is raw is read as it is: a guest cannot keep a file by what it writes. Files that are no images lie on nothing.
#[tokio::test]
async fn what_lies_on_nothing() {
    let node = with_orphan().await;
    let raw = ImageRef { path: "/images/guest.qcow2".into(), format: Format::Raw };
    node.sim.put_image(&raw.path, Format::Raw, BLOCK, false).unwrap();
    node.sim.vm("other").image("vda", raw).names("/images/gone".as_ref()).build();
    node.sim.put_image("/images/some.iso".as_ref(), Format::Raw, BLOCK, false).unwrap();
    let host = node.sim.host();
    host.images.write_file(Path::new("/images/letter"), b"to my aunt").await.unwrap();
    let told = orphans(&node).await;
    let resolve = format!("node resolve {} --remove-file --yes", told[0]["id"].as_str().unwrap());
    assert_eq!(run(&node, &resolve).await.code, 0);
    assert!(!node.sim.files().contains(&ORPHAN.into()));
    assert_eq!(node.sim.violations(), Vec::<String>::new());
}

#[tokio::test]
async fn an_orphan_is_removed_and_nothing_else() {
    let node = Node::start();
    node.take("one").await;
    let files: BTreeSet<PathBuf> = node.sim.files().into_iter().collect();
    put_orphan(&node);
    let found = differences(&node, "node check").await;
    let [(kind, ways, id)] = &found[..] else { panic!("{found:?}") };
    assert_eq!((kind.as_str(), &ways[..]), ("ORPHAN_FILE", &["remove-file".to_owned()][..]));
    let plan = succeed(&node, &format!("node resolve {id} --remove-file --dry-run")).await;
    assert!(plan.contains(&format!("gone for good: {ORPHAN}")), "{plan}");
    let refused = run(&node, &format!("node resolve {id} --adopt --yes")).await;
    assert_eq!(refused.code, 6, "{refused:?}");
    succeed(&node, &format!("node resolve {} --remove-file --yes", &id[..8])).await;
    assert_eq!(node.sim.files().into_iter().collect::<BTreeSet<_>>(), files);
    assert_eq!(run(&node, "node check").await.code, 0);
    let status = node.vms().resolve_vm(request("", id, v1::DifferenceAction::RemoveFile)).await.unwrap_err();
    assert_refused(&status, Code::NotFound, "DIFFERENCE_NOT_FOUND");
    let refused = run(&node, "node resolve 00 --remove-file --yes").await;
    assert_eq!(refused.code, 4, "{refused:?}");
    assert_eq!(node.sim.violations(), Vec::<String>::new());
}

#[tokio::test]
async fn what_an_image_lies_on_is_not_removed() {
    let node = Node::start();
    node.take("one").await;
    put_orphan(&node);
    let (_, _, id) = differences(&node, "node check").await.remove(0);
    let vm =
        node.sim.vm("other").image("vda", ImageRef { path: ORPHAN.into(), format: Format::Qcow2 }).build();
    node.sim.someone_overlays(vm, &vda(), "/images/mine".as_ref());
    // Another VM reads it: it is no orphan.
    assert_eq!(run(&node, "node check").await.code, 0);
    let status = node.vms().resolve_vm(request("", &id, v1::DifferenceAction::RemoveFile)).await.unwrap_err();
    assert_refused(&status, Code::NotFound, "DIFFERENCE_NOT_FOUND");
    node.sim.someone_stops(vm);
    node.sim.someone_undefines(vm);
    // Nobody has the image that lies on it; that is there all the same.
    let found = differences(&node, "node check").await;
    let [(kind, ways, id)] = &found[..] else { panic!("{found:?}") };
    assert_eq!((kind.as_str(), ways.len()), ("ORPHAN_FILE", 0));
    let status = node.vms().resolve_vm(request("", id, v1::DifferenceAction::RemoveFile)).await.unwrap_err();
    assert_refused(&status, Code::FailedPrecondition, "RESOLUTION_NOT_OFFERED");
    node.sim.someone_removes("/images/mine".as_ref());
    let (_, _, id) = differences(&node, "node check").await.remove(0);
    succeed(&node, &format!("node resolve {id} --remove-file --yes")).await;
    assert_eq!(node.sim.violations(), Vec::<String>::new());
}

/// Between the look that it was planned by and its removal, a VM is defined with it.
#[tokio::test]
async fn an_orphan_that_somebody_takes_meanwhile() {
    let node = Node::start();
    node.take("one").await;
    put_orphan(&node);
    let (_, _, id) = differences(&node, "node check").await.remove(0);
    let remove = request("", &id, v1::DifferenceAction::RemoveFile);
    let looks = || node.calls_of(Method::Inspect);
    let before = looks();
    node.vms().resolve_vm(v1::ResolveVmRequest { validate_only: true, ..remove.clone() }).await.unwrap();
    let planning = looks() - before;
    // The next look after the plan is the step's own first one.
    let (hold, occurrence) = (Hold::default(), looks() + planning + 1);
    let at = Trigger::Call(Call { method: Method::Inspect, occurrence });
    node.sim.add_fault(Fault { at, moment: Moment::After, mishap: Mishap::Late(hold.clone()) });
    let begun = node.vms().resolve_vm(remove).await.unwrap().into_inner().operation.unwrap();
    crate::node::reached(&hold).await;
    node.sim.vm("other").image("vda", ImageRef { path: ORPHAN.into(), format: Format::Qcow2 }).off().build();
    hold.release();
    let ended = node.end_of(&begun.id).await;
    assert_eq!(ended.state(), v1::OperationState::Failed, "{ended:?}");
    assert_eq!(ended.error.unwrap().reason(), v1::Reason::LayerInUse);
    assert!(node.sim.files().contains(&ORPHAN.into()));
    assert_eq!(node.sim.violations(), Vec::<String>::new());
}
