//! What is said to an operation is heard, or refused, whatever it waits for.

use vmsnap::host::Link;
use vmsnap::host::sim::Method;
use vmsnap::proto::v1;
use vmsnap::store::{GuestLease, Standstill};

use super::client::json;
use super::node::{Node, PATIENCE, delete};
use super::stuck::{resolve, stuck};
use super::thaw::boot;

/// One that is stuck does not run before the guest of its lease is looked after, which takes as long as libvirt is away.
#[tokio::test]
async fn a_decision_that_comes_before_the_operation_goes_on() {
    for (decision, end) in [
        (v1::Resolution::Abandon, v1::OperationState::Failed),
        (v1::Resolution::Retry, v1::OperationState::Succeeded),
    ] {
        let mut node = Node::start();
        let operation = stuck(&node).await;
        node.crash();
        node.sim.reset_script();
        let lease = GuestLease {
            vm: node.vm,
            operation: operation.id.parse().unwrap(),
            standstill: Standstill::Frozen,
            boot_id: boot(),
            since_ms: 0,
            deadline_ms: 0,
            is_thawed: false,
        };
        node.store().put_lease(lease).await.unwrap();
        node.sim.set_link(Link::Down("libvirtd is away".to_owned()));
        node.restart();
        let deciding = async {
            let decided = resolve(&node, &operation.id, decision).await.unwrap();
            assert_ne!(decided.state(), v1::OperationState::Stuck, "the answer shows what came of it");
        };
        let linking = async {
            // Long enough for it to have come.
            for _ in 0..20 {
                assert_eq!(node.operation(&operation.id).await.state(), v1::OperationState::Stuck);
            }
            node.sim.set_link(Link::Up);
        };
        tokio::time::timeout(PATIENCE, async { tokio::join!(deciding, linking) }).await.expect("it is heard");
        assert_eq!(node.end_of(&operation.id).await.state(), end, "{decision:?}");
    }
}

#[tokio::test]
async fn a_limit_that_comes_while_libvirt_is_away() {
    let node = Node::start();
    node.take("one").await;
    let writing = node.hold(Method::WriteFile);
    let begun = node.snapshots().delete_snapshot(delete("one")).await.unwrap().into_inner();
    let id = begun.operation.unwrap().id;
    crate::node::reached(&writing).await;
    node.sim.set_link(Link::Down("libvirtd is away".to_owned()));
    writing.release();
    for megabytes in 1..=6 {
        let command = format!("op set {id} --bandwidth {megabytes}M");
        tokio::time::timeout(PATIENCE, json(&node, &command)).await.expect("it is answered");
    }
    node.sim.set_link(Link::Up);
    let ended = node.end_of(&id).await;
    assert_eq!(ended.state(), v1::OperationState::Succeeded, "{ended:?}");
    assert_eq!(ended.bandwidth_bytes_per_second, 6 << 20);
}
