//! Expiry: a snapshot goes when its time has come, unless somebody holds it.

use std::time::{Duration, SystemTime};

use tokio_stream::StreamExt;
use tonic::Code;
use vmsnap::host::sim::Method;
use vmsnap::proto::v1;
use vmsnap::proto::v1::watch_events_response::Update;

use super::client::{run, succeed};
use super::node::{Node, PATIENCE, assert_refused, create};

fn soon() -> prost_types::Timestamp {
    (SystemTime::now() + Duration::from_secs(2)).into()
}

/// Waits until the daemon tells of the end of a deletion. Gives what it told until then.
async fn until_deleted(node: &Node, resume_token: String) -> Vec<v1::Event> {
    until_told(node, resume_token, "SUCCEEDED").await
}

async fn until_told(node: &Node, resume_token: String, state: &str) -> Vec<v1::Event> {
    let request = v1::WatchEventsRequest { resume_token, ..Default::default() };
    let mut stream = node.events().watch_events(request).await.unwrap().into_inner();
    let mut told = Vec::new();
    let listen = async {
        while let Some(message) = stream.next().await {
            let Some(Update::Event(event)) = message.unwrap().update else { continue };
            let is_end = event.attributes.get("to").is_some_and(|to| to == state);
            told.push(event);
            if is_end {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, listen).await.expect("no operation comes to that");
    told
}

async fn newest(node: &Node) -> String {
    node.events().list_events(v1::ListEventsRequest::default()).await.unwrap().into_inner().resume_token
}

async fn expire(node: &Node, snapshot: &str) {
    let request = v1::UpdateSnapshotRequest {
        snapshot: snapshot.to_owned(),
        vm: "web".to_owned(),
        update_mask: Some(prost_types::FieldMask { paths: vec!["expire_time".to_owned()] }),
        expire_time: Some(soon()),
        ..Default::default()
    };
    node.snapshots().update_snapshot(request).await.unwrap();
}

#[tokio::test]
async fn a_snapshot_goes_when_its_time_has_come() {
    let node = Node::start();
    node.take("stays").await;
    let doomed = node.take("goes").await;
    let token = newest(&node).await;
    expire(&node, "goes").await;
    let told = until_deleted(&node, token).await;
    assert_eq!(node.names().await, ["stays"]);
    let expired = told.iter().find(|event| event.kind() == v1::EventKind::SnapshotExpired).unwrap();
    assert_eq!((&expired.snapshot_id, expired.snapshot_name.as_str()), (&doomed.id, "goes"));
    assert_eq!(expired.actor, "vmsnapd");
    let deletion = node.operation(&expired.operation_id).await;
    assert_eq!(deletion.kind(), v1::OperationKind::DeleteSnapshot);
    assert_eq!(node.sim.violations(), Vec::<String>::new());
}

#[tokio::test]
async fn one_that_is_held_goes_when_it_is_released() {
    let mut node = Node::start();
    node.take("held").await;
    node.take("free").await;
    succeed(&node, "snapshot hold web/held audit").await;
    let token = newest(&node).await;
    expire(&node, "held").await;
    expire(&node, "free").await;
    until_deleted(&node, token).await;
    assert_eq!(node.names().await, ["held"], "its time came first, and it is still there");
    // A restart changes nothing about either.
    node.crash();
    node.restart();
    assert!(node.snapshot("held").await.expire_time.is_some());
    let token = newest(&node).await;
    succeed(&node, "snapshot release web/held audit").await;
    until_deleted(&node, token).await;
    assert!(node.names().await.is_empty());
}

#[tokio::test]
async fn it_is_said_when_it_is_taken_and_changed_later() {
    let node = Node::start();
    succeed(&node, "snapshot create web one --expire 2d").await;
    let at = node.snapshot("one").await.expire_time.unwrap();
    let days =
        SystemTime::try_from(at).unwrap().duration_since(SystemTime::now()).unwrap().as_secs_f64() / 86400.0;
    assert!((1.9..=2.0).contains(&days), "in {days} days");
    assert!(succeed(&node, "snapshot show web/one").await.contains("expires"));
    succeed(&node, "snapshot set web/one --expire 2099-01-31T12:00:00Z").await;
    assert_eq!(node.snapshot("one").await.expire_time.unwrap().seconds, 4_073_544_000);
    succeed(&node, "volume snapshot create disk --from web/one --disk vda --expire 30d").await;
    assert!(node.snapshot("disk").await.expire_time.is_some());
    succeed(&node, "snapshot set web/one --no-expire").await;
    assert_eq!(node.snapshot("one").await.expire_time, None);
}

#[tokio::test]
async fn a_time_that_has_passed_is_refused() {
    let node = Node::start();
    let request = v1::CreateSnapshotRequest {
        expire_time: Some(SystemTime::UNIX_EPOCH.into()),
        ..create("web", "one")
    };
    let refused = node.snapshots().create_snapshot(request).await.unwrap_err();
    assert_refused(&refused, Code::InvalidArgument, "INVALID_REQUEST");
    assert!(refused.message().contains("expire_time"), "{refused:?}");
    node.take("one").await;
    let reply = run(&node, "snapshot set web/one --expire 2020-01-01").await;
    assert_eq!(reply.code, 2, "{reply:?}");
    assert_eq!(node.snapshot("one").await.expire_time, None);
}

/// Between the look that its deletion was planned by and the deletion, somebody lets it live longer.
#[tokio::test]
async fn one_that_is_to_live_longer_after_all() {
    let node = Node::start();
    node.take("one").await;
    // The plan of its deletion looks for readers.
    let hold = node.hold(Method::LiesOn);
    expire(&node, "one").await;
    crate::node::reached(&hold).await;
    succeed(&node, "snapshot set web/one --no-expire").await;
    let token = newest(&node).await;
    hold.release();
    let told = until_told(&node, token, "FAILED").await;
    let deletion = node.operation(&told.last().unwrap().operation_id).await;
    assert_eq!(deletion.error.unwrap().reason(), v1::Reason::EtagMismatch);
    let kept = node.snapshot("one").await;
    assert_eq!((kept.state(), kept.expire_time), (v1::SnapshotState::Ready, None));
}
