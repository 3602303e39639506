//! Following operations: present state first, then every change; resumed after a crash; ended with a word when the
//! daemon goes; never in the way of the work.

use tonic::transport::Channel;
use tonic::{Code, Streaming};
use vmsnap::host::sim::Method;
use vmsnap::proto::v1;
use vmsnap::proto::v1::snapshot_service_client::SnapshotServiceClient;
use vmsnap::proto::v1::watch_operation_response::Update;

use super::node::{Node, PATIENCE, assert_refused, create, delete};

type Stream = Streaming<v1::WatchOperationResponse>;

async fn watch(node: &Node, id: &str, token: &str) -> Stream {
    let request = v1::WatchOperationRequest {
        operation_id: id.to_owned(),
        resume_token: token.to_owned(),
        heartbeat_interval: Some(prost_types::Duration { seconds: 1, nanos: 0 }),
    };
    node.operations().watch_operation(request).await.unwrap().into_inner()
}

async fn next(stream: &mut Stream) -> Option<v1::WatchOperationResponse> {
    let message = tokio::time::timeout(PATIENCE, stream.message()).await;
    message.expect("the stream is silent").unwrap()
}

/// The next state, heartbeats aside, with its token.
async fn next_state(stream: &mut Stream) -> (v1::Operation, String) {
    loop {
        let message = next(stream).await.expect("the stream goes on");
        match message.update.unwrap() {
            Update::Operation(operation) => return (operation, message.resume_token),
            Update::Heartbeat(_) => {}
            Update::Draining(_) => panic!("nobody told it to go"),
        }
    }
}

#[tokio::test]
async fn a_watch_begins_with_the_present_and_ends_with_the_end() {
    let node = Node::start();
    let hold = node.hold(Method::SwitchDisks);
    let begun = node.begin("one").await;
    crate::node::reached(&hold).await;
    let mut stream = watch(&node, &begun.id, "").await;
    let (mut last, _) = next_state(&mut stream).await;
    assert_eq!(last.state(), v1::OperationState::Running);
    // Nothing moves: a heartbeat says that the connection lives, with a token to come back with.
    let quiet = next(&mut stream).await.unwrap();
    assert!(matches!(quiet.update, Some(Update::Heartbeat(_))), "{quiet:?}");
    assert!(!quiet.resume_token.is_empty());
    hold.release();
    while let Some(message) = next(&mut stream).await {
        if let Some(Update::Operation(operation)) = message.update {
            assert!(operation.generation > last.generation, "it never goes back");
            last = operation;
        }
    }
    assert_eq!(last.state(), v1::OperationState::Succeeded);
    // One that has ended is shown once.
    let mut stream = watch(&node, &begun.id, "").await;
    assert_eq!(next_state(&mut stream).await.0, last);
    assert!(next(&mut stream).await.is_none());
}

/// They share what they are shown, and each has a connection of its own, a place of its own, and the end.
#[tokio::test]
async fn all_who_watch_an_operation_see_its_end() {
    let node = Node::start();
    let hold = node.hold(Method::SwitchDisks);
    let begun = node.begin("one").await;
    crate::node::reached(&hold).await;
    let mut early = Vec::new();
    for _ in 0..30 {
        early.push(watch(&node, &begun.id, "").await);
    }
    let (_, token) = next_state(&mut early[0]).await;
    // One knows the present state already, and one never looks.
    early.push(watch(&node, &begun.id, &token).await);
    let _idle = watch(&node, &begun.id, "").await;
    drop(early.remove(1));
    hold.release();
    let end = node.end_of(&begun.id).await;
    assert_eq!(end.state(), v1::OperationState::Succeeded);
    for (number, mut stream) in early.into_iter().enumerate() {
        let (mut states, mut last) = (Vec::new(), String::new());
        while let Some(message) = next(&mut stream).await {
            if let Some(Update::Operation(operation)) = message.update {
                states.push(operation);
                last = message.resume_token;
            }
        }
        assert!(states.is_sorted_by(|one, other| one.generation < other.generation), "{number}: {states:?}");
        assert_eq!(states.last(), Some(&end), "{number}");
        assert_eq!(last, end.generation.to_string(), "{number}");
    }
    assert_eq!(node.operation(&begun.id).await, end);
}

#[tokio::test]
async fn a_merge_shows_its_bytes() {
    let node = Node::start();
    node.take("one").await;
    for block in 0..64 {
        node.write(block, block);
    }
    node.sim.set_job_notches(20);
    let begun =
        node.snapshots().delete_snapshot(delete("one")).await.unwrap().into_inner().operation.unwrap();
    let mut stream = watch(&node, &begun.id, "").await;
    let mut seen = Vec::new();
    while let Some(message) = next(&mut stream).await {
        let Some(Update::Operation(operation)) = message.update else { continue };
        let vda = operation.progress.iter().find(|progress| progress.disk == "vda");
        seen.extend(vda.map(|progress| progress.bytes_done));
    }
    assert!(seen.is_sorted(), "{seen:?}");
    seen.dedup();
    assert!(seen.len() > 2, "{seen:?}");
}

#[tokio::test]
async fn a_watch_is_resumed_in_the_next_life() {
    let mut node = Node::start();
    let hold = node.hold(Method::SwitchDisks);
    let begun = node.begin("one").await;
    crate::node::reached(&hold).await;
    let mut stream = watch(&node, &begun.id, "").await;
    let (seen, token) = next_state(&mut stream).await;
    node.crash();
    assert!(stream.message().await.is_err(), "the connection broke");
    assert!(node.sim.is_guest_frozen(node.vm), "it died at a bad moment");
    node.sim.reset_script();
    node.restart();

    let mut stream = watch(&node, &begun.id, &token).await;
    let mut last = seen;
    while let Some(message) = next(&mut stream).await {
        if let Some(Update::Operation(operation)) = message.update {
            assert!(operation.generation > last.generation, "what was seen is not told again");
            last = operation;
        }
    }
    assert_eq!(last.state(), v1::OperationState::Succeeded, "{last:?}");
    assert!(!node.sim.is_guest_frozen(node.vm));
    // The disks were switched under the freeze, but the next life cannot know when it was lost.
    let snapshot = node.snapshot("one").await;
    assert_eq!(snapshot.consistency(), v1::Consistency::Crash);
    assert!(snapshot.consistency_reason.contains("restarted"), "{}", snapshot.consistency_reason);
}

#[tokio::test]
async fn a_watch_ends_with_a_word_when_the_daemon_goes() {
    let mut node = Node::start();
    node.take("one").await;
    // A merge that takes for ever, as far as the test is concerned: each look at the VM lets it copy one block.
    node.sim.set_job_notches(1_000_000);
    for block in 0..200 {
        node.write(block, 1);
    }
    let begun =
        node.snapshots().delete_snapshot(delete("one")).await.unwrap().into_inner().operation.unwrap();
    let mut stream = watch(&node, &begun.id, "").await;
    let mut idle = watch(&node, &begun.id, "").await;
    next_state(&mut stream).await;

    let going = node.tell_to_go();
    let token = loop {
        let message = next(&mut stream).await.expect("a word first");
        if let Some(Update::Draining(_)) = message.update {
            break message.resume_token;
        }
    };
    assert_refused(&stream.message().await.unwrap_err(), Code::Unavailable, "DRAINING");
    // A watcher that never reads holds nobody up.
    going.gone().await;
    assert!(!node.socket().exists());
    while let Ok(Some(_)) = idle.message().await {}

    node.sim.set_job_notches(1);
    node.restart();
    let mut stream = watch(&node, &begun.id, &token).await;
    let (operation, _) = next_state(&mut stream).await;
    assert!(matches!(operation.state(), v1::OperationState::Running | v1::OperationState::Succeeded));
}

#[tokio::test]
async fn a_guest_that_is_frozen_is_thawed_before_the_daemon_goes() {
    let mut node = Node::start();
    let hold = node.hold(Method::SwitchDisks);
    let begun = node.begin("one").await;
    crate::node::reached(&hold).await;
    assert!(node.sim.is_guest_frozen(node.vm));
    let going = node.tell_to_go();
    hold.release();
    going.gone().await;
    assert!(!node.sim.is_guest_frozen(node.vm));

    node.restart();
    assert_eq!(node.end_of(&begun.id).await.state(), v1::OperationState::Succeeded);
    let snapshot = node.snapshot("one").await;
    assert_eq!(snapshot.consistency(), v1::Consistency::Filesystem, "{}", snapshot.consistency_reason);
}

#[tokio::test]
async fn a_daemon_that_goes_takes_no_new_work() {
    let mut node = Node::start();
    let hold = node.hold(Method::SwitchDisks);
    node.begin("one").await;
    crate::node::reached(&hold).await;
    let mut client = node.snapshots();
    // The connection is there before.
    client.list_snapshots(v1::ListSnapshotsRequest::default()).await.unwrap();
    let mut health = node.health();
    let request = tonic_health::pb::HealthCheckRequest { service: String::new() };
    let mut watched = health.watch(request).await.unwrap().into_inner();
    let mut status = async || watched.message().await.unwrap().unwrap().status();
    assert_eq!(status().await, tonic_health::pb::health_check_response::ServingStatus::Serving);
    let going = node.tell_to_go();
    assert_eq!(status().await, tonic_health::pb::health_check_response::ServingStatus::NotServing);
    assert_refused(&refused(&mut client).await, Code::Unavailable, "DRAINING");
    hold.release();
    going.gone().await;
}

/// What comes of a create once the VM is not the reason.
async fn refused(client: &mut SnapshotServiceClient<Channel>) -> tonic::Status {
    loop {
        // Health goes first, the gate a moment later: until then the VM is simply busy.
        let status = client.create_snapshot(create("web", "two")).await.unwrap_err();
        if status.code() != Code::Aborted {
            return status;
        }
    }
}

/// Its row is closed then: no later start would bring it to its end.
#[tokio::test]
async fn an_operation_whose_last_step_ends_while_the_daemon_goes() {
    let mut node = Node::start();
    node.take("one").await;
    let images = node.images().len();
    let mut removing = node.hold(Method::Remove);
    let begun = node.snapshots().delete_snapshot(delete("one")).await.unwrap().into_inner();
    crate::node::reached(&removing).await;
    // Manifests go before images.
    while node.images().len() == images {
        let next = node.hold(Method::Remove);
        std::mem::replace(&mut removing, next).release();
        crate::node::reached(&removing).await;
    }
    let mut client = node.snapshots();
    client.list_snapshots(v1::ListSnapshotsRequest::default()).await.unwrap();
    let going = node.tell_to_go();
    assert_refused(&refused(&mut client).await, Code::Unavailable, "DRAINING");
    removing.release();
    going.gone().await;
    node.restart();
    let ended = node.operation(&begun.operation.unwrap().id).await;
    assert_eq!(ended.state(), v1::OperationState::Succeeded, "{ended:?}");
    assert!(ended.end_time.is_some(), "it has come to its end");
}
