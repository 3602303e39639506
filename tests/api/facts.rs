//! The moving parts of an error come as metadata, under the keys that the contract names beside the reason.

use tonic::{Code, Status};
use tonic_types::StatusExt;
use vmsnap::host::sim::Method;
use vmsnap::proto::v1;

use super::node::{Node, create, delete, revert};

/// The reason, and what stands under a key.
fn fact(status: &Status, key: &str) -> (String, String) {
    let details = status.get_error_details();
    let info = details.error_info().unwrap_or_else(|| panic!("{status:?} has no reason"));
    let value = info.metadata.get(key).unwrap_or_else(|| panic!("{status:?} has no {key}"));
    (info.reason.clone(), value.clone())
}

fn is(reason: &str, value: &str) -> (String, String) {
    (reason.to_owned(), value.to_owned())
}

#[tokio::test]
async fn of_what_there_is_not() {
    let node = Node::start();
    let taking = async |request| node.snapshots().create_snapshot(request).await.unwrap_err();
    assert_eq!(fact(&taking(create("nobody", "one")).await, "vm"), is("VM_NOT_FOUND", "nobody"));
    let disk = v1::CreateSnapshotRequest { disks: vec!["vdz".to_owned()], ..create("web", "one") };
    assert_eq!(fact(&taking(disk).await, "disk"), is("DISK_NOT_FOUND", "vdz"));
    let reverting = node.snapshots().revert_snapshot(revert("two")).await.unwrap_err();
    assert_eq!(fact(&reverting, "snapshot"), is("SNAPSHOT_NOT_FOUND", "two"));
    let asked = v1::GetOperationRequest { operation_id: "none".to_owned() };
    let asked = node.operations().get_operation(asked).await.unwrap_err();
    assert_eq!(fact(&asked, "operation_id"), is("OPERATION_NOT_FOUND", "none"));
}

#[tokio::test]
async fn of_what_stands_in_the_way() {
    let node = Node::start();
    let one = node.take("one").await;
    let stale = v1::DeleteSnapshotRequest { etag: "999".to_owned(), ..delete("one") };
    let stale = node.snapshots().delete_snapshot(stale).await.unwrap_err();
    assert_eq!(fact(&stale, "etag"), is("ETAG_MISMATCH", &one.etag));
    let hold =
        v1::AddSnapshotHoldRequest { snapshot: one.id, name: "audit".to_owned(), ..Default::default() };
    node.snapshots().add_snapshot_hold(hold).await.unwrap();
    let refused = node.snapshots().delete_snapshot(delete("one")).await.unwrap_err();
    assert_eq!(fact(&refused, "hold"), is("SNAPSHOT_HELD", "audit"));
    // A plan says so, too.
    let plan = v1::DeleteSnapshotRequest { validate_only: true, ..delete("one") };
    let plan = node.snapshots().delete_snapshot(plan).await.unwrap().into_inner().plan.unwrap();
    assert_eq!(plan.blockers[0].metadata["hold"], "audit");
}

#[tokio::test]
async fn of_who_holds_a_vm() {
    let node = Node::start();
    let held = node.hold(Method::CreateOverlay);
    let begun = node.begin("one").await;
    let busy = node.snapshots().create_snapshot(create("web", "two")).await.unwrap_err();
    assert_eq!(fact(&busy, "operation_id"), is("VM_BUSY", &begun.id));
    held.release();
    node.end_of(&begun.id).await;
}

/// The deadline of a call is not one of libvirt.
#[test]
fn a_deadline_has_a_reason_of_its_own() {
    let late = vmsnap::api::late();
    assert_eq!(late.code(), Code::DeadlineExceeded);
    let (reason, remedy) = fact(&late, "remedy");
    assert_eq!(reason, "DEADLINE_EXCEEDED");
    assert!(remedy.contains("request_id"), "{remedy}");
    let details = late.get_error_details();
    let metadata = &details.error_info().unwrap().metadata;
    assert!(!metadata.contains_key("changed"), "nobody knows what it has changed");
}
