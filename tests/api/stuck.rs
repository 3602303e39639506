//! What does not go by itself: cancelling in time and too late, operations that are stuck and the ways out.

use tonic::Code;
use vmsnap::host::sim::{AgentBehaviour, Complaint, Fault, Method, Mishap, Moment, Trigger};
use vmsnap::proto::v1;

use super::node::{Node, assert_refused, create, delete, disks};

pub async fn cancel(node: &Node, id: &str) -> Result<v1::Operation, tonic::Status> {
    let request = v1::CancelOperationRequest { operation_id: id.to_owned(), ..Default::default() };
    node.operations().cancel_operation(request).await.map(|answer| answer.into_inner().operation.unwrap())
}

pub async fn resolve(node: &Node, id: &str, action: v1::Resolution) -> Result<v1::Operation, tonic::Status> {
    let request = v1::ResolveOperationRequest {
        operation_id: id.to_owned(),
        action: action.into(),
        ..Default::default()
    };
    node.operations().resolve_operation(request).await.map(|answer| answer.into_inner().operation.unwrap())
}

#[tokio::test]
async fn a_create_is_cancelled_before_the_switch() {
    let node = Node::start();
    let files = node.images();
    let hold = node.hold(Method::Freeze);
    let begun = node.begin("one").await;
    crate::node::reached(&hold).await;
    assert!(node.operation(&begun.id).await.cancellable);
    cancel(&node, &begun.id).await.unwrap();
    hold.release();
    let ended = node.end_of(&begun.id).await;
    assert_eq!(ended.state(), v1::OperationState::Failed);
    assert_eq!(ended.error.unwrap().reason(), v1::Reason::Cancelled);
    assert_eq!(node.images(), files, "nothing is left over");
    assert!(!node.sim.is_guest_frozen(node.vm));
    assert!(node.names().await.is_empty());
}

#[tokio::test]
async fn an_overlay_that_a_death_left_half_made_is_made_again() {
    let mut node = Node::start();
    let (at, moment) = (Trigger::Each(Method::CreateOverlay), Moment::Midway);
    node.sim.add_fault(Fault { at, moment, mishap: Mishap::Hang });
    let files = node.images().len();
    let begun = node.begin("one").await;
    while node.images().len() == files {
        tokio::task::yield_now().await;
    }
    node.crash();
    node.sim.reset_script();
    node.restart();
    let ended = node.end_of(&begun.id).await;
    assert_eq!(ended.state(), v1::OperationState::Succeeded, "{ended:?}");
    assert_eq!(node.names().await, ["one"]);
    assert_eq!(node.images().len(), files + 2, "an overlay for each disk");
}

/// QEMU has gone over to the base, and libvirtd died before it could note it. The guest writes on: from then on the base is
/// newer than the child, and must neither be merged into once more nor be left for the child by a cold start.
#[tokio::test]
async fn a_pivot_that_libvirt_does_not_know_of() {
    let mut node = Node::start();
    node.take("one").await;
    node.write(1, 10);
    let (at, moment) = (Trigger::Each(Method::Pivot), Moment::Midway);
    node.sim.add_fault(Fault { at, moment, mishap: Mishap::Hang });
    let answer = node.snapshots().delete_snapshot(delete("one")).await.unwrap();
    let begun = answer.into_inner().operation.unwrap();
    while node.calls_of(Method::Pivot) < 2 {
        tokio::task::yield_now().await;
    }
    node.sim.becomes_known_wrongly(node.vm);
    node.crash();
    node.sim.reset_script();
    node.write(1, 20);
    node.restart();
    let stuck = node.end_of(&begun.id).await;
    assert_eq!(
        stuck.state(),
        v1::OperationState::Stuck,
        "the files are left until it is known what has them open"
    );
    node.sim.someone_stops(node.vm);
    resolve(&node, &begun.id, v1::Resolution::Retry).await.unwrap();
    let ended = node.end_of(&begun.id).await;
    assert_eq!(ended.state(), v1::OperationState::Succeeded, "{ended:?}");
    node.sim.someone_starts(node.vm);
    assert_eq!(node.read(1), [20, 20]);
    assert_eq!(node.images().len(), 2, "only the first images are left");
    assert_eq!(node.sim.violations(), Vec::<String>::new());
}

/// QEMU has merged a layer that the VM reads and does not write to, and libvirtd died before it could note it in the
/// definition: that tells a chain with the layer that is merged, over which the VM must not be started, and cannot be once
/// the layer has gone.
#[tokio::test]
async fn a_definition_from_before_a_merge() {
    for is_off in [true, false] {
        check_definition_from_before_a_merge(is_off).await;
    }
}

async fn check_definition_from_before_a_merge(is_off: bool) {
    let mut node = Node::start();
    for (name, value) in [("one", 10), ("two", 20)] {
        node.write(1, value);
        node.take(name).await;
    }
    node.write(1, 30);
    let (at, moment) = (Trigger::Each(Method::StartCommit), Moment::After);
    node.sim.add_fault(Fault { at, moment, mishap: Mishap::Hang });
    let begun =
        node.snapshots().delete_snapshot(delete("one")).await.unwrap().into_inner().operation.unwrap();
    while node.calls_of(Method::StartCommit) < 2 {
        tokio::task::yield_now().await;
    }
    node.crash();
    node.sim.reset_script();
    for disk in ["vda", "vdb"] {
        node.sim.definition_lists_its_chain(node.vm, &disk.parse().unwrap());
    }
    for _ in 0..10 {
        node.sim.tick();
    }
    if is_off {
        node.sim.someone_stops(node.vm);
    }
    node.restart();
    let ended = node.end_of(&begun.id).await;
    assert_eq!(ended.state(), v1::OperationState::Succeeded, "{ended:?}");
    let pointed = node.calls_of(Method::PointDisks);
    assert_eq!(pointed, 2, "once for each disk");
    node.sim.someone_stops(node.vm);
    node.sim.someone_starts(node.vm);
    assert_eq!(node.read(1), [30, 30]);
    let answer = node.snapshots().revert_snapshot(super::node::revert("two")).await.unwrap();
    let reverted = node.end_of(&answer.into_inner().operation.unwrap().id).await;
    assert_eq!(reverted.state(), v1::OperationState::Succeeded, "{reverted:?}");
    assert_eq!(node.read(1), [20, 20]);
    assert_eq!(node.sim.violations(), Vec::<String>::new());
}

/// QEMU writes to the overlays, and libvirtd died before it could note it: a cold start must not boot what the snapshot holds.
#[tokio::test]
async fn a_switch_that_libvirt_does_not_know_of() {
    let mut node = Node::start();
    node.write(1, 10);
    let (at, moment) = (Trigger::Each(Method::SwitchDisks), Moment::Midway);
    node.sim.add_fault(Fault { at, moment, mishap: Mishap::Hang });
    let begun = node.begin("one").await;
    while !node.sim.calls().iter().any(|call| call.method == Method::SwitchDisks) {
        tokio::task::yield_now().await;
    }
    node.sim.becomes_known_wrongly(node.vm);
    node.crash();
    node.sim.reset_script();
    node.restart();
    let stuck = node.end_of(&begun.id).await;
    assert_eq!(stuck.state(), v1::OperationState::Stuck, "nothing can be seen of the VM until it stops");
    node.write(1, 20);
    node.sim.someone_stops(node.vm);
    node.sim.someone_starts(node.vm);
    assert_eq!(node.read(1), [20, 20]);
    node.write(1, 30);
    resolve(&node, &begun.id, v1::Resolution::Retry).await.unwrap();
    let ended = node.end_of(&begun.id).await;
    assert_eq!(ended.state(), v1::OperationState::Succeeded, "{ended:?}");
    let answer = node.snapshots().revert_snapshot(super::node::revert("one")).await.unwrap();
    let reverted = node.end_of(&answer.into_inner().operation.unwrap().id).await;
    assert_eq!(reverted.state(), v1::OperationState::Succeeded, "{reverted:?}");
    assert_eq!(node.read(1), [10, 10]);
    assert_eq!(node.sim.violations(), Vec::<String>::new());
}

/// The snapshot must be quiesced, and was not: its switch is taken back. The process has gone back to the base, libvirtd died
/// before it noted that, and the daemon, too: the definition names the overlay still.
#[tokio::test]
async fn a_switch_that_is_half_taken_back() {
    let mut node = Node::start();
    let images = node.images();
    node.sim.set_agent(node.vm, AgentBehaviour::ThawsByItself);
    node.write(1, 10);
    let (at, moment) = (Trigger::Each(Method::Pivot), Moment::Midway);
    node.sim.add_fault(Fault { at, moment, mishap: Mishap::Hang });
    let required = v1::Quiesce::Required.into();
    let request = v1::CreateSnapshotRequest { quiesce: required, ..create("web", "one") };
    let begun = node.snapshots().create_snapshot(request).await.unwrap().into_inner().operation.unwrap();
    while node.calls_of(Method::Pivot) < 2 {
        tokio::task::yield_now().await;
    }
    node.crash();
    node.sim.reset_script();
    node.write(1, 20);
    node.restart();
    let ended = node.end_of(&begun.id).await;
    assert_eq!(ended.state(), v1::OperationState::Failed, "{ended:?}");
    node.sim.someone_stops(node.vm);
    node.sim.someone_starts(node.vm);
    assert_eq!(node.read(1), [20, 20], "a cold start boots what the guest wrote to");
    assert_eq!(node.images(), images);
    assert_eq!(node.sim.violations(), Vec::<String>::new());
}

/// It must be quiesced, so the switch is not the point of no return; libvirtd dies in the middle of it, and the way back must
/// not leave the overlays, which hold what the guest has written since.
#[tokio::test]
async fn a_switch_that_must_be_taken_back_and_that_libvirt_does_not_know_of() {
    let node = Node::start();
    let images = node.images();
    node.write(1, 10);
    let at = Trigger::Each(Method::SwitchDisks);
    let wrongly = Mishap::VmKnownWrongly(node.vm);
    node.sim.add_fault(Fault { at, moment: Moment::After, mishap: wrongly });
    let unreachable = Mishap::Error(Complaint::Unreachable);
    node.sim.add_fault(Fault { at, moment: Moment::Midway, mishap: unreachable });
    let required = v1::Quiesce::Required.into();
    let request = v1::CreateSnapshotRequest { quiesce: required, ..create("web", "one") };
    let begun = node.snapshots().create_snapshot(request).await.unwrap().into_inner().operation.unwrap();
    let stuck = node.end_of(&begun.id).await;
    assert_eq!(stuck.state(), v1::OperationState::Stuck, "nothing can be seen of the VM until it stops");
    assert!(!node.sim.is_guest_frozen(node.vm), "it is thawed before anything else is taken back");
    node.sim.reset_script();
    node.write(1, 20);
    node.sim.someone_stops(node.vm);
    resolve(&node, &begun.id, v1::Resolution::Retry).await.unwrap();
    let ended = node.end_of(&begun.id).await;
    assert_eq!(ended.state(), v1::OperationState::Failed, "{ended:?}");
    node.sim.someone_starts(node.vm);
    assert_eq!(node.read(1), [20, 20]);
    assert_eq!(node.images(), images);
    assert_eq!(node.sim.violations(), Vec::<String>::new());
}

/// However often a person lets it try again.
#[tokio::test]
async fn a_stuck_operation_is_tried_again_and_again() {
    let node = Node::start();
    node.take("one").await;
    let (at, moment) = (Trigger::Each(Method::Pivot), Moment::Before);
    node.sim.add_fault(Fault { at, moment, mishap: Mishap::Error(Complaint::Refused) });
    let begun =
        node.snapshots().delete_snapshot(delete("one")).await.unwrap().into_inner().operation.unwrap();
    for _ in 0..2 {
        let stuck = node.end_of(&begun.id).await;
        assert_eq!(stuck.state(), v1::OperationState::Stuck, "{stuck:?}");
        resolve(&node, &begun.id, v1::Resolution::Retry).await.unwrap();
    }
    node.end_of(&begun.id).await;
    node.sim.reset_script();
    resolve(&node, &begun.id, v1::Resolution::Retry).await.unwrap();
    let ended = node.end_of(&begun.id).await;
    assert_eq!(ended.state(), v1::OperationState::Succeeded, "{ended:?}");
}

#[tokio::test]
async fn past_the_point_of_no_return_it_is_too_late() {
    let node = Node::start();
    node.take("one").await;
    let hold = node.hold(Method::StartCommit);
    let begun =
        node.snapshots().delete_snapshot(delete("one")).await.unwrap().into_inner().operation.unwrap();
    crate::node::reached(&hold).await;
    assert!(!node.operation(&begun.id).await.cancellable);
    let status = cancel(&node, &begun.id).await.unwrap_err();
    assert_refused(&status, Code::FailedPrecondition, "OPERATION_NOT_CANCELLABLE");
    hold.release();
    assert_eq!(node.end_of(&begun.id).await.state(), v1::OperationState::Succeeded);
}

#[tokio::test]
async fn a_vm_does_one_thing_at_a_time() {
    let node = Node::start();
    node.sim.vm("db").disks(1).build();
    let hold = node.hold(Method::SwitchDisks);
    let begun = node.begin("one").await;
    crate::node::reached(&hold).await;
    let status = node.snapshots().create_snapshot(create("web", "two")).await.unwrap_err();
    assert_refused(&status, Code::Aborted, "VM_BUSY");
    assert!(status.message().contains(&begun.id), "{}", status.message());
    // Another VM is not held up.
    let other = node.snapshots().create_snapshot(create("db", "one")).await.unwrap().into_inner();
    assert_eq!(node.end_of(&other.operation.unwrap().id).await.state(), v1::OperationState::Succeeded);
    hold.release();
    node.end_of(&begun.id).await;
    node.take("two").await;
}

/// A deletion that is stuck: the pivot is refused again and again.
pub async fn stuck(node: &Node) -> v1::Operation {
    node.take("one").await;
    node.write(1, 10);
    node.strike(Method::Pivot, Mishap::Error(Complaint::Refused));
    let begun =
        node.snapshots().delete_snapshot(delete("one")).await.unwrap().into_inner().operation.unwrap();
    let stuck = node.end_of(&begun.id).await;
    assert_eq!(stuck.state(), v1::OperationState::Stuck, "{stuck:?}");
    assert!(stuck.error.is_some(), "it says why");
    stuck
}

#[tokio::test]
async fn a_stuck_operation_tries_again_when_it_is_told_to() {
    let mut node = Node::start();
    let operation = stuck(&node).await;
    let status = node.snapshots().create_snapshot(create("web", "two")).await.unwrap_err();
    assert_refused(&status, Code::FailedPrecondition, "VM_STUCK");
    // A restart forgets nothing, and does nothing by itself.
    node.crash();
    node.restart();
    assert_eq!(node.operation(&operation.id).await.state(), v1::OperationState::Stuck);
    let status = resolve(&node, &operation.id, v1::Resolution::TurnBack).await.unwrap_err();
    assert_refused(&status, Code::FailedPrecondition, "RESOLUTION_NOT_OFFERED");
    let status = resolve(&node, &operation.id, v1::Resolution::Unspecified).await.unwrap_err();
    assert_refused(&status, Code::InvalidArgument, "INVALID_REQUEST");

    node.sim.reset_script();
    let going_on = resolve(&node, &operation.id, v1::Resolution::Retry).await.unwrap();
    assert_ne!(going_on.state(), v1::OperationState::Stuck, "the answer shows that it moves");
    let ended = node.end_of(&operation.id).await;
    assert_eq!(ended.state(), v1::OperationState::Succeeded, "{ended:?}");
    assert!(node.names().await.is_empty());
    assert_eq!(node.read(1), [10, 10]);
}

#[tokio::test]
async fn a_stuck_operation_is_given_up() {
    let node = Node::start();
    let operation = stuck(&node).await;
    resolve(&node, &operation.id, v1::Resolution::Abandon).await.unwrap();
    let ended = node.end_of(&operation.id).await;
    assert_eq!(ended.state(), v1::OperationState::Failed);
    assert_ne!(ended.error.unwrap().changed, "nothing", "it says that something was done");
    let snapshot = node.snapshot("one").await;
    assert_eq!(snapshot.state(), v1::SnapshotState::Error, "nobody vouches for it");
    assert_eq!(node.read(1), [10, 10], "the guest has its data");
}

/// Between the plan and the switch, somebody makes a disk larger. An overlay of the old size would cut it off.
#[tokio::test]
async fn a_disk_that_is_resized_meanwhile() {
    let node = Node::start();
    let hold = node.hold(Method::Freeze);
    let begun = node.begin("one").await;
    crate::node::reached(&hold).await;
    let vda = &disks()[0];
    let larger = 2 * node.sim.disk_size(node.vm, vda).unwrap();
    node.sim.someone_resizes(node.vm, vda, larger);
    hold.release();
    let ended = node.end_of(&begun.id).await;
    assert_eq!(ended.state(), v1::OperationState::Failed, "{ended:?}");
    let error = ended.error.unwrap();
    assert!(error.message.contains("resized meanwhile"), "{error:?}");
    assert_eq!(error.changed, "nothing");
    assert!(node.names().await.is_empty() && !node.sim.is_guest_frozen(node.vm));
    let next = node.take("two").await;
    assert_eq!(next.disks[0].virtual_size_bytes, larger);
    assert_eq!(node.sim.violations(), Vec::<String>::new());
}

/// Whoever comes while another request is only being planned is told of the operation that comes of it, never of none.
#[tokio::test]
async fn who_holds_a_vm_can_be_seen() {
    let node = Node::start();
    // Only a plan asks for the definition; at its start the daemon looks at VMs by itself.
    let (planning, switching) = (node.hold(Method::Definition), node.hold(Method::SwitchDisks));
    let ask = |name: &str| {
        let mut snapshots = node.snapshots();
        let request = create("web", name);
        tokio::spawn(async move { snapshots.create_snapshot(request).await })
    };
    let first = ask("one");
    crate::node::reached(&planning).await;
    let second = ask("two");
    planning.release();
    let first = first.await.unwrap().unwrap().into_inner().operation.unwrap();
    let status = second.await.unwrap().unwrap_err();
    assert_refused(&status, Code::Aborted, "VM_BUSY");
    assert!(status.message().contains(&first.id), "{status:?}");
    switching.release();
    assert_eq!(node.end_of(&first.id).await.state(), v1::OperationState::Succeeded);
}
