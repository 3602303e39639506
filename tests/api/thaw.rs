//! A daemon that dies while a guest is frozen: what `vmsnapd thaw` does without it, and what the next start knows.

use std::time::Duration;

use vmsnap::host::sim::{AgentBehaviour, Complaint, Method, Mishap};
use vmsnap::ops::thaw_guests;
use vmsnap::proto::v1;
use vmsnap::store::GuestLease;

use super::node::{Node, PATIENCE, create};

/// This boot of the node.
pub fn boot() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap().trim().to_owned()
}

/// A node whose daemon died while it had the guest frozen, with the operation.
async fn frozen() -> (Node, String) {
    let mut node = Node::start();
    let hold = node.hold(Method::SwitchDisks);
    let begun = node.begin("one").await;
    crate::node::reached(&hold).await;
    node.crash();
    assert!(node.sim.is_guest_frozen(node.vm), "nobody is there to thaw it");
    (node, begun.id)
}

#[tokio::test]
async fn no_guest_stays_frozen_while_the_daemon_is_gone() {
    let (mut node, operation) = frozen().await;
    let host = node.sim.host();
    assert_eq!(thaw_guests(&host, node.store(), &boot()).await.unwrap(), []);
    assert!(!node.sim.is_guest_frozen(node.vm));
    node.write(1, 10);

    // Somebody else freezes it meanwhile: that is theirs to thaw, for this program and for the daemon.
    host.agent.freeze(node.vm, &[], Duration::from_secs(5)).await.unwrap();
    assert_eq!(thaw_guests(&host, node.store(), &boot()).await.unwrap(), []);
    assert!(node.sim.is_guest_frozen(node.vm));
    node.restart();
    let ended = node.end_of(&operation).await;
    assert!(node.sim.is_guest_frozen(node.vm), "it is still theirs");
    // The snapshot does not pretend that the guest was frozen all the while.
    assert_eq!(ended.state(), v1::OperationState::Succeeded, "{ended:?}");
    let snapshot = node.snapshot("one").await;
    assert_eq!(snapshot.consistency(), v1::Consistency::Crash);
    assert!(snapshot.consistency_reason.contains("restarted"), "{}", snapshot.consistency_reason);
    assert_eq!(node.store().leases().await.unwrap(), [], "it is settled");
}

/// What is frozen after a boot of the node was frozen by somebody else: the guest that we had frozen is gone.
#[tokio::test]
async fn a_freeze_of_an_earlier_boot_is_over() {
    let (mut node, operation) = frozen().await;
    let lease = node.store().leases().await.unwrap().remove(0);
    let lease = GuestLease { boot_id: "an earlier one".to_owned(), ..lease };
    node.store().put_lease(lease).await.unwrap();
    assert_eq!(thaw_guests(&node.sim.host(), node.store(), &boot()).await.unwrap(), []);
    assert!(node.sim.is_guest_frozen(node.vm));
    node.restart();
    let ended = node.end_of(&operation).await;
    assert_eq!(ended.state(), v1::OperationState::Succeeded, "{ended:?}");
    assert!(node.sim.is_guest_frozen(node.vm), "it is still theirs");
    assert_eq!(node.snapshot("one").await.consistency(), v1::Consistency::Crash);
    assert_eq!(node.store().leases().await.unwrap(), []);
}

/// One whose agent takes its time holds up no other.
#[tokio::test]
async fn guests_are_thawed_all_at_once() {
    let (node, _) = frozen().await;
    let other = node.sim.vm("db").disks(1).build();
    let host = node.sim.host();
    host.agent.freeze(other, &[], Duration::from_secs(5)).await.unwrap();
    let lease = node.store().leases().await.unwrap().remove(0);
    node.store().put_lease(GuestLease { vm: other, ..lease }).await.unwrap();
    let hold = node.hold(Method::Thaw);
    let boot = boot();
    let meanwhile = async {
        crate::node::reached(&hold).await;
        let are_thawed = async {
            while node.sim.is_guest_frozen(node.vm) || node.sim.is_guest_frozen(other) {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, are_thawed).await.expect("both are thawed while one has not answered");
        hold.release();
    };
    let (unproven, ()) = tokio::join!(thaw_guests(&host, node.store(), &boot), meanwhile);
    assert_eq!(unproven.unwrap(), []);
}

#[tokio::test]
async fn a_guest_that_does_not_answer_is_told_and_tried_again() {
    let (mut node, operation) = frozen().await;
    node.sim.set_agent(node.vm, AgentBehaviour::Hangs);
    let vm = node.vm;
    assert_eq!(thaw_guests(&node.sim.host(), node.store(), &boot()).await.unwrap(), [vm]);
    assert!(node.sim.is_guest_frozen(vm));
    node.sim.set_agent(node.vm, AgentBehaviour::Obeys);
    node.restart();
    node.end_of(&operation).await;
    assert!(!node.sim.is_guest_frozen(vm), "the next start goes on");
}

async fn until_thawed(node: &Node) {
    let is_thawed = async {
        while node.sim.is_guest_frozen(node.vm) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, is_thawed).await.expect("nobody thaws it");
}

fn emergencies(node: &Node) -> usize {
    node.calls_of(Method::ThawNow)
}

/// Whatever the operation waits for, no guest stands still for longer than was said.
#[tokio::test]
async fn a_freeze_that_lasts_too_long_is_ended() {
    let node = Node::start();
    let hold = node.hold(Method::SwitchDisks);
    let freeze_timeout = Some(prost_types::Duration { seconds: 0, nanos: 50_000_000 });
    let request = v1::CreateSnapshotRequest { freeze_timeout, ..create("web", "one") };
    let begun = node.snapshots().create_snapshot(request).await.unwrap().into_inner().operation.unwrap();
    crate::node::reached(&hold).await;
    until_thawed(&node).await;
    assert!(emergencies(&node) > 0);
    hold.release();
    let ended = node.end_of(&begun.id).await;
    assert_eq!(ended.state(), v1::OperationState::Succeeded, "{ended:?}");
    assert_eq!(node.snapshot("one").await.consistency(), v1::Consistency::Crash);
}

/// It may have waited for its turn until its time was over: nobody has thawed what is frozen only then.
#[tokio::test]
async fn a_freeze_that_comes_too_late_is_ended() {
    let node = Node::start();
    let (freezing, switching) = (node.hold(Method::Freeze), node.hold(Method::SwitchDisks));
    let freeze_timeout = Some(prost_types::Duration { seconds: 0, nanos: 50_000_000 });
    let request = v1::CreateSnapshotRequest { freeze_timeout, ..create("web", "one") };
    let begun = node.snapshots().create_snapshot(request).await.unwrap().into_inner().operation.unwrap();
    crate::node::reached(&freezing).await;
    until_thawed(&node).await;
    node.sim.host().agent.freeze(node.vm, &[], Duration::from_secs(5)).await.unwrap();
    freezing.release();
    crate::node::reached(&switching).await;
    until_thawed(&node).await;
    switching.release();
    let ended = node.end_of(&begun.id).await;
    assert_eq!(ended.state(), v1::OperationState::Succeeded, "{ended:?}");
    assert_eq!(node.snapshot("one").await.consistency(), v1::Consistency::Crash);
}

/// The next life has the dead-man, too.
#[tokio::test]
async fn a_guest_that_the_next_start_cannot_thaw_is_thawed_later() {
    let (mut node, operation) = frozen().await;
    node.sim.reset_script();
    node.strike(Method::Thaw, Mishap::Error(Complaint::AgentRefused));
    node.restart();
    until_thawed(&node).await;
    assert!(emergencies(&node) > 0);
    let ended = node.end_of(&operation).await;
    assert_eq!(ended.state(), v1::OperationState::Succeeded, "{ended:?}");
}
