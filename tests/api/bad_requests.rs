//! Bad requests: each gets its code, its reason and every field that is wrong; and nothing is changed.

use std::collections::BTreeMap;

use tonic::{Code, Status};
use tonic_types::StatusExt;
use vmsnap::host::Link;
use vmsnap::proto::v1;

use super::node::{Node, assert_refused, create, delete, revert};

#[tokio::test]
async fn creates() {
    let node = Node::start();
    node.take("one").await;
    let acts = node.acts();
    let check = async |request: v1::CreateSnapshotRequest, code, reason: &str, fields: &[&str]| {
        let status = node.snapshots().create_snapshot(request.clone()).await.expect_err("it is refused");
        assert_refused(&status, code, reason);
        let details = status.get_error_details();
        let violations = details.bad_request().map(|bad| bad.field_violations.clone()).unwrap_or_default();
        let named: Vec<&str> = violations.iter().map(|violation| violation.field.as_str()).collect();
        assert_eq!(named, fields, "{request:?}");
    };
    let named = |name: &str| create("web", name);
    let invalid = async |request, field: &str| {
        check(request, Code::InvalidArgument, "INVALID_REQUEST", &[field]).await;
    };

    invalid(create("", "two"), "vm").await;
    invalid(named("a/b"), "name").await;
    invalid(named("a\0b"), "name").await;
    invalid(named(&"n".repeat(300)), "name").await;
    invalid(named(".."), "name").await;
    invalid(named("-rf"), "name").await;
    invalid(named("two words"), "name").await;
    invalid(v1::CreateSnapshotRequest { disks: vec!["../vda".to_owned()], ..named("two") }, "disks").await;
    invalid(v1::CreateSnapshotRequest { request_id: "x".repeat(37), ..named("two") }, "request_id").await;
    invalid(v1::CreateSnapshotRequest { description: "\0".to_owned(), ..named("two") }, "description").await;
    invalid(v1::CreateSnapshotRequest { description: "d".repeat(5000), ..named("two") }, "description").await;
    invalid(
        v1::CreateSnapshotRequest { mount_points: vec!["etc".to_owned()], ..named("two") },
        "mount_points",
    )
    .await;
    let properties = BTreeMap::from([(String::new(), "x".to_owned())]);
    invalid(v1::CreateSnapshotRequest { properties, ..named("two") }, "properties").await;
    let timeout = Some(prost_types::Duration { seconds: 301, nanos: 0 });
    invalid(v1::CreateSnapshotRequest { freeze_timeout: timeout, ..named("two") }, "freeze_timeout").await;
    let timeout = Some(prost_types::Duration { seconds: i64::MIN, nanos: i32::MIN });
    invalid(v1::CreateSnapshotRequest { freeze_timeout: timeout, ..named("two") }, "freeze_timeout").await;
    // Of a hundred thousand that are wrong some are told.
    let disks = vec!["../vda".to_owned(); 100_000];
    let some = ["disks"; 16];
    check(
        v1::CreateSnapshotRequest { disks, ..named("two") },
        Code::InvalidArgument,
        "INVALID_REQUEST",
        &some,
    )
    .await;
    // All at once.
    let all = v1::CreateSnapshotRequest { account: "a".repeat(300), ..create("", "a/b") };
    check(all, Code::InvalidArgument, "INVALID_REQUEST", &["vm", "account", "name"]).await;

    check(create("nobody", "two"), Code::NotFound, "VM_NOT_FOUND", &[]).await;
    check(named("one"), Code::AlreadyExists, "SNAPSHOT_EXISTS", &[]).await;
    let disk = v1::CreateSnapshotRequest { disks: vec!["vdz".to_owned()], ..named("two") };
    check(disk, Code::NotFound, "DISK_NOT_FOUND", &[]).await;

    assert_eq!(node.acts(), acts, "something was done");
    assert_eq!(node.names().await, ["one"]);
    let list = node.operations().list_operations(v1::ListOperationsRequest::default()).await.unwrap();
    assert_eq!(list.into_inner().total_size, 1);
}

#[tokio::test]
async fn others() {
    let node = Node::start();
    let one = node.begin("one").await;
    node.end_of(&one.id).await;
    let acts = node.acts();
    let check = |result: Result<(), Status>, code, reason: &str| {
        assert_refused(&result.expect_err("it is refused"), code, reason);
    };
    let reverting = async |request| node.snapshots().revert_snapshot(request).await.map(drop);
    let deleting = async |request| node.snapshots().delete_snapshot(request).await.map(drop);

    check(reverting(revert("two")).await, Code::NotFound, "SNAPSHOT_NOT_FOUND");
    check(deleting(delete("two")).await, Code::NotFound, "SNAPSHOT_NOT_FOUND");
    check(deleting(delete("")).await, Code::InvalidArgument, "INVALID_REQUEST");
    let other_vm = v1::DeleteSnapshotRequest { vm: "nobody".to_owned(), ..delete("one") };
    check(deleting(other_vm).await, Code::NotFound, "VM_NOT_FOUND");
    let stale = v1::DeleteSnapshotRequest { etag: "999999".to_owned(), ..delete("one") };
    check(deleting(stale).await, Code::Aborted, "ETAG_MISMATCH");
    let stale = v1::RevertSnapshotRequest { etag: "999999".to_owned(), ..revert("one") };
    check(reverting(stale).await, Code::Aborted, "ETAG_MISMATCH");
    let no_etag = v1::RevertSnapshotRequest { etag: "yesterday".to_owned(), ..revert("one") };
    check(reverting(no_etag).await, Code::InvalidArgument, "INVALID_REQUEST");

    let listing = async |request| node.snapshots().list_snapshots(request).await.map(drop);
    let list = v1::ListSnapshotsRequest { page_size: -1, ..Default::default() };
    check(listing(list).await, Code::InvalidArgument, "INVALID_REQUEST");
    let list = v1::ListSnapshotsRequest { page_token: "next, please".to_owned(), ..Default::default() };
    check(listing(list).await, Code::InvalidArgument, "PAGE_TOKEN_INVALID");
    let list = v1::ListSnapshotsRequest { order_by: "beauty".to_owned(), ..Default::default() };
    check(listing(list).await, Code::InvalidArgument, "INVALID_REQUEST");

    // What only a later daemon knows is not what one asks for who asks for nothing.
    for filter in [
        v1::SnapshotFilter { states: vec![v1::SnapshotState::Ready.into(), 777], ..Default::default() },
        v1::SnapshotFilter { kinds: vec![777], ..Default::default() },
    ] {
        let list = v1::ListSnapshotsRequest { filter: Some(filter), ..Default::default() };
        check(listing(list).await, Code::InvalidArgument, "INVALID_REQUEST");
    }
    let filter = v1::EventFilter { kinds: vec![777], ..Default::default() };
    let list = v1::ListEventsRequest { filter: Some(filter), ..Default::default() };
    check(node.events().list_events(list).await.map(drop), Code::Unimplemented, "NOT_IMPLEMENTED");

    // Each would be a condition of its own.
    let property = v1::PropertyFilter { key: "ticket".to_owned(), value: None };
    let filter = v1::SnapshotFilter {
        properties: vec![property; 10_000],
        states: vec![v1::SnapshotState::Ready.into(); 100_000],
        ..Default::default()
    };
    let list = v1::ListSnapshotsRequest { filter: Some(filter), ..Default::default() };
    check(listing(list).await, Code::InvalidArgument, "INVALID_REQUEST");
    let filter =
        v1::EventFilter { kinds: vec![v1::EventKind::DaemonStarted.into(); 100_000], ..Default::default() };
    let list = v1::ListEventsRequest { filter: Some(filter), ..Default::default() };
    let listed = node.events().list_events(list).await.map(drop);
    check(listed, Code::InvalidArgument, "INVALID_REQUEST");

    let watching = async |request| node.operations().watch_operation(request).await.map(drop);
    let watch = |id: &str, token: &str| v1::WatchOperationRequest {
        operation_id: id.to_owned(),
        resume_token: token.to_owned(),
        ..Default::default()
    };
    check(watching(watch("no-such-id", "")).await, Code::NotFound, "OPERATION_NOT_FOUND");
    let id = &one.id;
    check(watching(watch(id, "not ours")).await, Code::InvalidArgument, "RESUME_TOKEN_INVALID");
    check(watching(watch(id, "99999999999999")).await, Code::OutOfRange, "RESUME_TOKEN_EXPIRED");
    let heartbeat_interval = Some(prost_types::Duration { seconds: 0, nanos: 1000 });
    let hasty = v1::WatchOperationRequest { heartbeat_interval, ..watch(id, "") };
    check(watching(hasty).await, Code::InvalidArgument, "INVALID_REQUEST");

    let cancel = v1::CancelOperationRequest { operation_id: id.clone(), ..Default::default() };
    let cancelled = node.operations().cancel_operation(cancel).await.map(drop);
    check(cancelled, Code::FailedPrecondition, "OPERATION_NOT_CANCELLABLE");
    let resolve = v1::ResolveOperationRequest {
        operation_id: id.clone(),
        action: v1::Resolution::Retry.into(),
        ..Default::default()
    };
    let resolved = node.operations().resolve_operation(resolve).await.map(drop);
    check(resolved, Code::FailedPrecondition, "OPERATION_NOT_STUCK");

    let nobody = v1::CheckVmRequest::default();
    check(node.vms().check_vm(nobody).await.map(drop), Code::InvalidArgument, "INVALID_REQUEST");
    let nobody = v1::ResumeVmRequest::default();
    check(node.vms().resume_vm(nobody).await.map(drop), Code::InvalidArgument, "INVALID_REQUEST");
    let nothing = v1::ResetSnapshotStateRequest::default();
    check(
        node.snapshots().reset_snapshot_state(nothing).await.map(drop),
        Code::InvalidArgument,
        "INVALID_REQUEST",
    );
    assert_eq!(node.acts(), acts, "something was done");
    assert_eq!(node.names().await, ["one"]);
}

#[tokio::test]
async fn a_request_id_stands_for_one_request() {
    let node = Node::start();
    let request = v1::CreateSnapshotRequest { request_id: "r-1".to_owned(), ..create("web", "one") };
    let first = node.snapshots().create_snapshot(request.clone()).await.unwrap().into_inner();
    let id = first.operation.unwrap().id;
    node.end_of(&id).await;
    let acts = node.acts();

    let again = node.snapshots().create_snapshot(request.clone()).await.unwrap().into_inner();
    assert_eq!(again.operation.unwrap().id, id);
    assert_eq!(again.snapshot_id, first.snapshot_id);
    let other = v1::CreateSnapshotRequest { name: "two".to_owned(), ..request };
    let status = node.snapshots().create_snapshot(other).await.unwrap_err();
    assert_refused(&status, Code::InvalidArgument, "REQUEST_ID_REUSED");
    // Under another RPC it is another request, too.
    let delete_one = v1::DeleteSnapshotRequest { request_id: "r-1".to_owned(), ..delete("one") };
    let status = node.snapshots().delete_snapshot(delete_one.clone()).await.unwrap_err();
    assert_refused(&status, Code::InvalidArgument, "REQUEST_ID_REUSED");
    assert_eq!(node.acts(), acts);
    assert_eq!(node.names().await, ["one"]);

    // A deletion is repeated although what it names is gone.
    let delete = v1::DeleteSnapshotRequest { request_id: "r-2".to_owned(), ..delete_one };
    let deleted = node.snapshots().delete_snapshot(delete.clone()).await.unwrap().into_inner();
    let id = deleted.operation.unwrap().id;
    node.end_of(&id).await;
    let again = node.snapshots().delete_snapshot(delete).await.unwrap().into_inner();
    assert_eq!(again.operation.unwrap().id, id);
}

#[tokio::test]
async fn a_hypervisor_that_is_away() {
    let node = Node::start();
    node.take("one").await;
    node.sim.set_link(Link::Down("libvirtd is gone".to_owned()));
    let status = node.snapshots().create_snapshot(create("web", "two")).await.unwrap_err();
    assert_refused(&status, Code::Unavailable, "LIBVIRT_UNAVAILABLE");
    assert!(status.get_error_details().retry_info().is_some(), "it says when to try again");
    let status = node.vms().list_vms(v1::ListVmsRequest::default()).await.unwrap_err();
    assert_refused(&status, Code::Unavailable, "LIBVIRT_UNAVAILABLE");
    // What the catalog knows can be seen all the same.
    assert_eq!(node.names().await, ["one"]);
    node.sim.set_link(Link::Up);
    node.take("two").await;
}
