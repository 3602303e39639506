//! What people write on snapshots: names, owner, properties, holds, comments. It is read back as it was written, by
//! both clients and after a restart.

use tonic::Code;
use tonic_types::StatusExt;
use vmsnap::proto::v1;

use super::client::{run, succeed};
use super::node::{Node, assert_refused, delete};

fn update(fields: &[&str]) -> v1::UpdateSnapshotRequest {
    let paths = fields.iter().map(|field| (*field).to_owned()).collect();
    v1::UpdateSnapshotRequest {
        snapshot: "one".to_owned(),
        vm: "web".to_owned(),
        update_mask: Some(prost_types::FieldMask { paths }),
        ..Default::default()
    }
}

fn hold(name: &str, reason: &str) -> v1::AddSnapshotHoldRequest {
    v1::AddSnapshotHoldRequest {
        snapshot: "one".to_owned(),
        vm: "web".to_owned(),
        name: name.to_owned(),
        reason: reason.to_owned(),
        ..Default::default()
    }
}

fn comment(text: &str) -> v1::AddSnapshotCommentRequest {
    v1::AddSnapshotCommentRequest {
        snapshot: "one".to_owned(),
        vm: "web".to_owned(),
        text: text.to_owned(),
        ..Default::default()
    }
}

#[tokio::test]
async fn what_is_set_is_read_back_after_a_restart_too() {
    let mut node = Node::start();
    node.take("one").await;
    let request = v1::UpdateSnapshotRequest {
        name: "first".to_owned(),
        display_name: "The first".to_owned(),
        description: "of all".to_owned(),
        account: "acme".to_owned(),
        domain: "eu".to_owned(),
        project: "shop".to_owned(),
        set_properties: [("a".to_owned(), "1".to_owned()), ("b".to_owned(), "2".to_owned())].into(),
        request_id: "rename".to_owned(),
        ..update(&["name", "display_name", "description", "account", "domain", "project"])
    };
    let changed = node.snapshots().update_snapshot(request.clone()).await.unwrap().into_inner();
    let changed = changed.snapshot.unwrap();
    node.snapshots().add_snapshot_hold(hold_of("first", "audit", "until May")).await.unwrap();
    let written = v1::AddSnapshotCommentRequest { snapshot: "first".to_owned(), ..comment("looks good") };
    let written = node.snapshots().add_snapshot_comment(written).await.unwrap().into_inner().comment.unwrap();
    node.crash();
    node.restart();

    let snapshot = node.snapshot("first").await;
    let words = [&snapshot.display_name, &snapshot.description].map(String::as_str);
    assert_eq!(words, ["The first", "of all"]);
    let owner = [&snapshot.account, &snapshot.domain, &snapshot.project].map(String::as_str);
    assert_eq!(owner, ["acme", "eu", "shop"]);
    assert_eq!((snapshot.properties["a"].as_str(), snapshot.properties["b"].as_str()), ("1", "2"));
    assert_eq!((snapshot.holds[0].name.as_str(), snapshot.holds[0].reason.as_str()), ("audit", "until May"));
    assert!(snapshot.holds[0].created_by.starts_with("uid:"), "{:?}", snapshot.holds);
    assert_eq!(snapshot.comment_count, 1);
    assert_ne!(snapshot.etag, changed.etag, "a hold is a change");
    let list = v1::ListSnapshotCommentsRequest {
        snapshot: "first".to_owned(),
        vm: "web".to_owned(),
        ..Default::default()
    };
    let comments = node.snapshots().list_snapshot_comments(list).await.unwrap().into_inner();
    assert_eq!((comments.comments, comments.total_size), (vec![written], 1));

    // The same request finds its snapshot, which has another name now.
    let again = node.snapshots().update_snapshot(request).await.unwrap().into_inner().snapshot.unwrap();
    assert_eq!(again.etag, snapshot.etag, "it is not done twice");
}

fn hold_of(snapshot: &str, name: &str, reason: &str) -> v1::AddSnapshotHoldRequest {
    v1::AddSnapshotHoldRequest { snapshot: snapshot.to_owned(), ..hold(name, reason) }
}

#[tokio::test]
async fn only_what_is_named_changes() {
    let node = Node::start();
    node.take("one").await;
    let set = async |request| {
        node.snapshots().update_snapshot(request).await.unwrap().into_inner().snapshot.unwrap()
    };
    let both = v1::UpdateSnapshotRequest {
        description: "kept".to_owned(),
        account: "acme".to_owned(),
        ..update(&["description", "account"])
    };
    let first = set(both).await;
    let cleared =
        set(v1::UpdateSnapshotRequest { description: "ignored".to_owned(), ..update(&["account"]) }).await;
    assert_eq!((cleared.description.as_str(), cleared.account.as_str()), ("kept", ""));

    let stale = v1::UpdateSnapshotRequest { etag: first.etag, ..update(&["account"]) };
    let status = node.snapshots().update_snapshot(stale).await.unwrap_err();
    assert_refused(&status, Code::Aborted, "ETAG_MISMATCH");
    node.take("two").await;
    let taken = v1::UpdateSnapshotRequest { name: "two".to_owned(), ..update(&["name"]) };
    let status = node.snapshots().update_snapshot(taken).await.unwrap_err();
    assert_refused(&status, Code::AlreadyExists, "SNAPSHOT_EXISTS");
}

#[tokio::test]
async fn all_that_is_wrong_is_told_at_once() {
    let node = Node::start();
    node.take("one").await;
    let request = v1::UpdateSnapshotRequest {
        name: "a/b".to_owned(),
        account: "a".repeat(300),
        set_properties: [(String::new(), "x".to_owned())].into(),
        etag: "x".to_owned(),
        ..update(&["name", "account", "state"])
    };
    let status = node.snapshots().update_snapshot(request).await.unwrap_err();
    assert_refused(&status, Code::InvalidArgument, "INVALID_REQUEST");
    let bad = status.get_error_details().bad_request().cloned().unwrap();
    let mut fields: Vec<String> = bad.field_violations.into_iter().map(|violation| violation.field).collect();
    fields.sort();
    assert_eq!(fields, ["account", "etag", "name", "properties", "update_mask"]);
    let status = node.snapshots().update_snapshot(update(&[])).await.unwrap_err();
    assert_refused(&status, Code::InvalidArgument, "INVALID_REQUEST");
    let status = node.snapshots().add_snapshot_comment(comment("")).await.unwrap_err();
    assert_refused(&status, Code::InvalidArgument, "INVALID_REQUEST");
    let status = node.snapshots().add_snapshot_hold(hold("a b", &"r".repeat(2000))).await.unwrap_err();
    assert_eq!(status.get_error_details().bad_request().unwrap().field_violations.len(), 2);
}

#[tokio::test]
async fn a_held_snapshot_is_not_deleted() {
    let node = Node::start();
    node.take("one").await;
    node.snapshots().add_snapshot_hold(hold("audit", "until May")).await.unwrap();
    let status = node.snapshots().add_snapshot_hold(hold("audit", "")).await.unwrap_err();
    assert_refused(&status, Code::AlreadyExists, "HOLD_EXISTS");
    let acts = node.acts();
    let status = node.snapshots().delete_snapshot(delete("one")).await.unwrap_err();
    assert_refused(&status, Code::FailedPrecondition, "SNAPSHOT_HELD");
    assert!(status.message().contains("audit (until May)"), "it names the holder: {status:?}");
    let refused = run(&node, "snapshot delete web/one --yes").await;
    assert_eq!(refused.code, 6, "{refused:?}");
    assert!(refused.stderr.contains("audit (until May)"), "{refused:?}");
    assert_eq!(node.acts(), acts);

    let release = v1::RemoveSnapshotHoldRequest {
        snapshot: "one".to_owned(),
        vm: "web".to_owned(),
        name: "audit".to_owned(),
        ..Default::default()
    };
    node.snapshots().remove_snapshot_hold(release.clone()).await.unwrap();
    let status = node.snapshots().remove_snapshot_hold(release).await.unwrap_err();
    assert_refused(&status, Code::NotFound, "HOLD_NOT_FOUND");
    succeed(&node, "snapshot delete web/one --yes").await;
}

#[tokio::test]
async fn comments_are_written_once_listed_in_pages_and_deleted() {
    let node = Node::start();
    node.take("one").await;
    for text in ["a", "b", "b", "c"] {
        let request = v1::AddSnapshotCommentRequest { request_id: format!("id-{text}"), ..comment(text) };
        node.snapshots().add_snapshot_comment(request).await.unwrap();
    }
    let mut list = v1::ListSnapshotCommentsRequest {
        snapshot: "one".to_owned(),
        vm: "web".to_owned(),
        page_size: 2,
        ..Default::default()
    };
    let page = async |list| node.snapshots().list_snapshot_comments(list).await.unwrap().into_inner();
    let first = page(list.clone()).await;
    list.page_token = first.next_page_token;
    let second = page(list).await;
    let texts: Vec<&str> =
        first.comments.iter().chain(&second.comments).map(|comment| comment.text.as_str()).collect();
    assert_eq!(texts, ["a", "b", "c"], "oldest first, and a repetition is written once");
    assert_eq!((second.total_size, second.next_page_token.as_str()), (3, ""));

    let delete = v1::DeleteSnapshotCommentRequest {
        comment_id: first.comments[0].id.clone(),
        request_id: String::new(),
    };
    node.snapshots().delete_snapshot_comment(delete.clone()).await.unwrap();
    let status = node.snapshots().delete_snapshot_comment(delete).await.unwrap_err();
    assert_refused(&status, Code::NotFound, "COMMENT_NOT_FOUND");
    assert_eq!(node.snapshot("one").await.comment_count, 2);
}

#[tokio::test]
async fn the_client_writes_and_shows_them() {
    let node = Node::start();
    node.take("one").await;
    let line = "snapshot set web/one --display-name First --account acme --property a=1 --property b=2";
    let shown = succeed(&node, line).await;
    assert!(shown.contains("display name  First") && shown.contains("property      b=2"), "{shown}");
    let shown = succeed(&node, "snapshot set web/one --no-property a --name first --account=").await;
    assert!(!shown.contains("a=1") && !shown.contains("acme") && shown.contains("b=2"), "{shown}");
    succeed(&node, "snapshot hold web/first audit --reason May").await;
    let told = succeed(&node, "snapshot comment web/first seen").await;
    let id = told.split(' ').nth(1).unwrap().to_owned();
    let shown = succeed(&node, "snapshot show web/first").await;
    assert!(shown.contains("held by       audit (May)") && shown.contains("comments      1"), "{shown}");
    let comments = succeed(&node, "snapshot comment web/first").await;
    assert!(comments.contains("uid:") && comments.contains("seen"), "{comments}");
    succeed(&node, &format!("snapshot uncomment {id}")).await;
    assert_eq!(succeed(&node, "snapshot comment web/first --no-headers").await.trim(), "");
    succeed(&node, "snapshot release web/first audit").await;
    assert_eq!(run(&node, "snapshot release web/first audit").await.code, 4);
    assert_eq!(run(&node, "snapshot set web/first").await.code, 2, "there is nothing to change");
}

/// Each attribute that can be asked for, by the client; read back by the client and by gRPC, by a daemon of another life.
#[tokio::test]
async fn every_attribute_outlives_a_restart() {
    let mut node = Node::start();
    let line = "snapshot create web one --display-name First --description of-all --account acme --domain eu \
                --project shop --property a=1 --property b=2 --expire 30d --quiesce off --disk vda -o json";
    let line: Vec<&str> = line.split_whitespace().collect();
    succeed(&node, &line.join(" ")).await;
    succeed(&node, "snapshot hold web/one audit --reason May").await;
    succeed(&node, "snapshot comment web/one seen").await;
    let shown = succeed(&node, "snapshot show web/one -o json").await;
    let people = succeed(&node, "snapshot show web/one").await;
    node.crash();
    node.restart();

    assert_eq!(succeed(&node, "snapshot show web/one -o json").await, shown);
    assert_eq!(succeed(&node, "snapshot show web/one").await, people);
    let snapshot = node.snapshot("one").await;
    let text = [
        (&snapshot.name, "one"),
        (&snapshot.display_name, "First"),
        (&snapshot.description, "of-all"),
        (&snapshot.account, "acme"),
        (&snapshot.domain, "eu"),
        (&snapshot.project, "shop"),
        (&snapshot.properties["a"], "1"),
        (&snapshot.properties["b"], "2"),
        (&snapshot.vm_name, "web"),
        (&snapshot.vm_id, &node.vm.to_string()),
        (&snapshot.parent_id, ""),
        (&snapshot.holds[0].name, "audit"),
        (&snapshot.holds[0].reason, "May"),
        (&snapshot.disks[0].target, "vda"),
    ];
    for (actual, expected) in text {
        assert_eq!(actual, expected);
        assert!(shown.contains(expected), "{expected}: {shown}");
    }
    assert_eq!((snapshot.kind(), snapshot.state()), (v1::SnapshotKind::VmDisks, v1::SnapshotState::Ready));
    assert_eq!((snapshot.current, snapshot.comment_count), (true, 1));
    assert_eq!(snapshot.consistency(), v1::Consistency::Crash);
    assert!(snapshot.consistency_reason.contains("asked for no freeze"), "{snapshot:?}");
    let days = |time: Option<prost_types::Timestamp>| time.unwrap().seconds / 86400;
    assert_eq!(days(snapshot.expire_time) - days(snapshot.create_time), 30);
    assert!(snapshot.disks[0].virtual_size_bytes > 0 && snapshot.disks[0].allocated_bytes > 0);
    assert!(snapshot.created_by.starts_with("uid:"), "{snapshot:?}");
    let comments = succeed(&node, "snapshot comment web/one").await;
    assert!(comments.contains("seen"), "{comments}");
    let events = succeed(&node, "snapshot events web/one").await;
    assert!(events.contains("is READY") && events.contains("is held by audit"), "{events}");
}
