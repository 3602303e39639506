//! Snapshots that a person has declared in ERROR, and READY again: nobody's word makes good what is not there as it was.

use std::path::PathBuf;

use serde_json::Value;
use tonic::Code;
use vmsnap::host::sim::{Complaint, Method, Mishap, SimHost};
use vmsnap::proto::v1;

use super::client::{json, run, succeed};
use super::differences::only;
use super::node::{Node, assert_refused, delete, vda};

const REFUSED: i32 = 6;

async fn shown(node: &Node, name: &str) -> Value {
    json(node, &format!("snapshot show web/{name}")).await["snapshot"].take()
}

async fn state(node: &Node, name: &str) -> String {
    let state = shown(node, name).await["state"].as_str().unwrap().to_owned();
    state.trim_start_matches("SNAPSHOT_STATE_").to_owned()
}

async fn file_of(node: &Node, name: &str) -> PathBuf {
    shown(node, name).await["disks"][0]["path"].as_str().unwrap().into()
}

/// Two snapshots, of which the first is declared in ERROR.
async fn declared() -> Node {
    let node = Node::start();
    for (value, name) in [(10, "one"), (20, "two")] {
        node.write(1, value);
        node.take(name).await;
    }
    succeed(&node, "snapshot reset-state web/one error").await;
    node
}

/// READY is refused with these words, and nothing is changed.
async fn check_refused(node: &Node, words: &str) {
    let before = shown(node, "one").await;
    let refused = run(node, "snapshot reset-state web/one ready").await;
    assert!(refused.code == REFUSED && refused.stderr.contains(words), "{words}: {refused:?}");
    assert_eq!(shown(node, "one").await, before);
}

#[tokio::test]
async fn one_that_is_declared_in_error_is_used_for_nothing_until_it_is_ready_again() {
    let node = declared().await;
    let one = shown(&node, "one").await;
    assert_eq!(one["state"], "SNAPSHOT_STATE_ERROR");
    assert_eq!(one["error"]["reason"], "REASON_DECLARED", "{one}");
    assert!(one["error"]["message"].as_str().unwrap().contains("has declared it in ERROR"), "{one}");
    for use_it in [
        "snapshot revert web/one --yes",
        "volume clone web/one --disk vda --to copy",
        "snapshot hold web/one x",
    ] {
        let refused = run(&node, use_it).await;
        assert!(refused.code == REFUSED && refused.stderr.contains("in ERROR"), "{use_it}: {refused:?}");
    }
    // What is so already stays as it is.
    succeed(&node, "snapshot reset-state web/one error").await;
    assert_eq!(shown(&node, "one").await, one);
    // It outlives the daemon.
    let mut node = node;
    node.crash();
    node.restart();
    assert_eq!(shown(&node, "one").await, one);

    succeed(&node, "snapshot reset-state web/one ready").await;
    let ready = shown(&node, "one").await;
    assert_eq!((&ready["state"], &ready["error"]), (&"SNAPSHOT_STATE_READY".into(), &Value::Null));
    assert_ne!(ready["etag"], one["etag"]);
    let events = succeed(&node, "snapshot events web/one").await;
    assert!(
        events.contains("snapshot one is in ERROR") && events.contains("snapshot one is READY"),
        "{events}"
    );
    succeed(&node, "snapshot revert web/one --yes").await;
    assert_eq!(node.read(1), [10, 10]);
    assert_eq!(node.sim.violations(), Vec::<String>::new());
}

#[tokio::test]
async fn one_that_is_declared_in_error_can_be_deleted() {
    let node = declared().await;
    succeed(&node, "snapshot delete web/one --yes").await;
    assert_eq!(node.names().await, ["two"]);
    succeed(&node, "snapshot revert web/two --yes").await;
    assert_eq!(node.read(1), [20, 20]);
    assert_eq!(node.sim.violations(), Vec::<String>::new());
}

#[tokio::test]
async fn what_is_not_as_it_was_is_not_ready() {
    type Act = fn(&SimHost, &std::path::Path);
    let acts: [(Act, &str); 5] = [
        (|sim, path| sim.someone_removes(path), "there is no image"),
        (|sim, path| sim.someone_replaces(path), "another file stands there"),
        (|sim, path| sim.someone_truncates(path), "IMAGE_CHANGED"),
        (|sim, path| sim.someone_blanks(path), "IMAGE_CHANGED"),
        (|sim, path| sim.someone_links(path), "is a link now"),
    ];
    for (act, words) in acts {
        let node = declared().await;
        let file = file_of(&node, "one").await;
        act(&node.sim, &file);
        check_refused(&node, words).await;
    }
}

/// Somebody merges into what it reads. That is known once it is taken in; and no word makes that good.
#[tokio::test]
async fn what_somebody_has_merged_is_not_ready() {
    let node = declared().await;
    let two = file_of(&node, "two").await;
    let one = file_of(&node, "one").await;
    node.sim.someone_commits(node.vm, &vda(), &two, &one);
    check_refused(&node, "somebody has merged").await;
    let id = only(&node, "LAYER_MERGED", &["adopt"]).await;
    succeed(&node, &format!("vm resolve web {id} --adopt --yes")).await;
    assert_eq!(shown(&node, "one").await["error"]["reason"], "REASON_IMAGE_CHANGED");
    check_refused(&node, "is not known any more").await;
}

/// What differs is told, and settled as for any other: then it may be READY.
#[tokio::test]
async fn a_copy_of_its_file_is_adopted_first() {
    let node = Node::start();
    for (value, name) in [(10, "root"), (20, "one")] {
        node.write(1, value);
        node.take(name).await;
    }
    succeed(&node, "snapshot revert web/root --yes").await;
    succeed(&node, "snapshot reset-state web/one error").await;
    node.sim.someone_replaces(&file_of(&node, "one").await);
    check_refused(&node, "another file stands there").await;
    let id = only(&node, "IMAGE_CHANGED", &["adopt"]).await;
    succeed(&node, &format!("vm resolve web {id} --adopt --yes")).await;
    succeed(&node, "snapshot reset-state web/one ready").await;
    succeed(&node, "snapshot revert web/one --yes").await;
    assert_eq!(node.read(1), [20, 20]);
}

/// A revert writes to nothing that its snapshot reads: who gives it up still has the snapshot.
#[tokio::test]
async fn the_snapshot_of_an_abandoned_revert_is_not_lost() {
    let node = declared().await;
    node.sim.reset_script();
    node.strike(Method::Start, Mishap::Error(Complaint::Refused));
    let revert = v1::RevertSnapshotRequest {
        snapshot: "two".to_owned(),
        vm: "web".to_owned(),
        ..v1::RevertSnapshotRequest::default()
    };
    let begun = node.snapshots().revert_snapshot(revert).await.unwrap().into_inner();
    let operation = begun.operation.unwrap().id;
    assert_eq!(node.end_of(&operation).await.state(), v1::OperationState::Stuck);
    succeed(&node, &format!("op resolve {operation} abandon --yes")).await;
    node.end_of(&operation).await;
    let two = shown(&node, "two").await;
    assert_eq!(
        (&two["state"], &two["error"]["reason"]),
        (&"SNAPSHOT_STATE_ERROR".into(), &"REASON_DECLARED".into())
    );
    node.sim.reset_script();
    succeed(&node, "snapshot reset-state web/two ready").await;
    succeed(&node, "snapshot revert web/two --yes").await;
    assert_eq!(node.read(1), [20, 20]);
}

/// What an operation has left half way stays in ERROR, also where somebody had declared it so before.
#[tokio::test]
async fn what_was_abandoned_is_not_ready() {
    let node = Node::start();
    node.take("one").await;
    node.write(1, 10);
    succeed(&node, "snapshot reset-state web/one error").await;
    node.strike(Method::Pivot, Mishap::Error(Complaint::Refused));
    let begun = node.snapshots().delete_snapshot(delete("one")).await.unwrap().into_inner();
    let operation = begun.operation.unwrap().id;
    assert_eq!(node.end_of(&operation).await.state(), v1::OperationState::Stuck);
    let status = node.snapshots().reset_snapshot_state(request("one", v1::SnapshotState::Ready)).await;
    assert_refused(&status.unwrap_err(), Code::FailedPrecondition, "VM_STUCK");
    succeed(&node, &format!("op resolve {operation} abandon --yes")).await;
    node.end_of(&operation).await;
    assert_eq!(state(&node, "one").await, "ERROR");
    check_refused(&node, "was abandoned").await;
    assert_eq!(shown(&node, "one").await["error"]["reason"], "REASON_ABANDONED");
}

#[tokio::test]
async fn what_is_lost_is_not_declared() {
    let node = declared().await;
    node.sim.someone_stops(node.vm);
    node.sim.someone_undefines(node.vm);
    let lost = async { while state(&node, "two").await != "LOST" {} };
    tokio::time::timeout(super::node::PATIENCE, lost).await.expect("it is LOST");
    for what in ["ready", "error"] {
        let refused = run(&node, &format!("snapshot reset-state web/two {what}")).await;
        assert!(refused.code == REFUSED && refused.stderr.contains("LOST"), "{refused:?}");
    }
    // What is written to by a VM that is elsewhere cannot be seen here.
    let gone = run(&node, "snapshot reset-state web/one ready").await;
    assert!(gone.code == 4 && gone.stderr.contains("not on this node any more"), "{gone:?}");
}

fn request(name: &str, state: v1::SnapshotState) -> v1::ResetSnapshotStateRequest {
    v1::ResetSnapshotStateRequest {
        snapshot: name.to_owned(),
        vm: "web".to_owned(),
        state: state.into(),
        ..v1::ResetSnapshotStateRequest::default()
    }
}

#[tokio::test]
async fn requests() {
    let node = declared().await;
    let ask = async |request| node.snapshots().reset_snapshot_state(request).await;
    for state in [v1::SnapshotState::Unspecified, v1::SnapshotState::Creating, v1::SnapshotState::Lost] {
        let status = ask(request("one", state)).await.unwrap_err();
        assert_refused(&status, Code::InvalidArgument, "INVALID_REQUEST");
    }
    let old =
        v1::ResetSnapshotStateRequest { etag: "1".to_owned(), ..request("one", v1::SnapshotState::Ready) };
    assert_refused(&ask(old).await.unwrap_err(), Code::Aborted, "ETAG_MISMATCH");
    let nobodys = ask(request("three", v1::SnapshotState::Ready)).await.unwrap_err();
    assert_refused(&nobodys, Code::NotFound, "SNAPSHOT_NOT_FOUND");

    // Whoever holds the VM may be what makes it so or not.
    let hold = node.hold(Method::SwitchDisks);
    let begun = node.begin("three").await;
    crate::node::reached(&hold).await;
    let busy = ask(request("two", v1::SnapshotState::Error)).await.unwrap_err();
    assert_refused(&busy, Code::Aborted, "VM_BUSY");
    hold.release();
    node.end_of(&begun.id).await;

    let keyed = v1::ResetSnapshotStateRequest {
        request_id: "r-1".to_owned(),
        ..request("two", v1::SnapshotState::Error)
    };
    let first = ask(keyed.clone()).await.unwrap().into_inner();
    succeed(&node, "snapshot reset-state web/two ready").await;
    let again = ask(keyed).await.unwrap().into_inner();
    assert_eq!(first.snapshot.unwrap().state(), v1::SnapshotState::Error);
    assert_eq!(
        again.snapshot.unwrap().state(),
        v1::SnapshotState::Ready,
        "a repetition declares nothing anew"
    );
}
