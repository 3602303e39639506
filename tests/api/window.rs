//! What the catalog says of a guest that stands still: it was written before, and is not written again until the guest goes on.
//! Whoever goes on from it claims nothing that was not written down.

use vmsnap::host::sim::{Method, SimHost};
use vmsnap::model::{Operation, OperationId, RunState, Step, Turn};
use vmsnap::proto::v1;

use super::node::{Node, create};

/// A VM whose memory can be captured while it runs.
fn node() -> Node {
    let sim = SimHost::new();
    let vm = sim.vm("web").disks(2).captures_behind_its_back(3).build();
    Node::start_with(sim, vm)
}

/// What is done while a guest stands still for its memory.
const WITH_MEMORY: [Method; 5] = [
    Method::Pause,
    Method::BeginBackgroundCapture,
    Method::SwitchDisks,
    Method::ProveBackgroundCapture,
    Method::Resume,
];

async fn journaled(node: &Node, id: &str) -> Operation {
    let id: OperationId = id.parse().unwrap();
    node.store().operation(id).await.unwrap().unwrap()
}

fn quiesced() -> v1::CreateSnapshotRequest {
    create("web", "one")
}

fn with_memory() -> v1::CreateSnapshotRequest {
    v1::CreateSnapshotRequest { memory: true, ..create("web", "one") }
}

/// Begins a snapshot, and holds it in these calls one after the other. Gives it, and what the catalog said in each.
async fn hold(node: &Node, request: v1::CreateSnapshotRequest, calls: &[Method]) -> (String, Vec<Operation>) {
    let holds: Vec<_> = calls.iter().map(|method| node.hold(*method)).collect();
    let begun = node.snapshots().create_snapshot(request).await.unwrap().into_inner().operation.unwrap();
    let mut said = Vec::new();
    for (at, hold) in holds.iter().enumerate() {
        crate::node::reached(hold).await;
        said.push(journaled(node, &begun.id).await);
        if at + 1 < holds.len() {
            hold.release();
        }
    }
    (begun.id, said)
}

#[tokio::test]
async fn nothing_is_written_while_a_guest_stands_still() {
    let check = async |request, calls: &[Method], intent: fn(&Step) -> bool| {
        let node = node();
        let (_, said) = hold(&node, request, calls).await;
        assert_eq!(node.calls_of(Method::Sync), 2, "both disks were written out before");
        assert!(said.windows(2).all(|pair| pair[0] == pair[1]), "{said:#?}");
        let Some(Turn::Ensure(at)) = said[0].cursor.turn() else { panic!("{said:#?}") };
        assert!(intent(&said[0].steps[at]), "{:?}", said[0].steps[at]);
    };
    check(quiesced(), &[Method::Freeze, Method::SwitchDisks, Method::Thaw], |step| {
        matches!(step, Step::SwitchDisks(_))
    })
    .await;
    check(with_memory(), &WITH_MEMORY, |step| matches!(step, Step::ProveCapture { .. })).await;
}

/// The journal says already that the disks may be switched, and nobody has been asked to freeze: nothing is switched for a snapshot
/// that must be quiesced.
#[tokio::test]
async fn a_daemon_that_dies_before_it_freezes() {
    let mut node = node();
    let files = node.images();
    let request = v1::CreateSnapshotRequest { quiesce: v1::Quiesce::Required.into(), ..quiesced() };
    let (operation, _) = hold(&node, request, &[Method::IsFrozen]).await;
    node.crash();
    node.sim.reset_script();
    node.restart();
    let ended = node.end_of(&operation).await;
    assert_eq!(ended.state(), v1::OperationState::Failed, "{ended:?}");
    assert_eq!(ended.error.unwrap().reason(), v1::Reason::QuiesceFailed);
    assert_eq!((node.calls_of(Method::SwitchDisks), node.images()), (0, files));
}

/// What came of it is what can be told without what was not written down.
#[tokio::test]
async fn a_daemon_that_dies_while_a_guest_stands_still() {
    let check = async |request: v1::CreateSnapshotRequest, at, expected: Result<&str, v1::Reason>| {
        let mut node = node();
        let (files, what) = (node.images(), format!("{request:?} at {at}"));
        let (operation, _) = hold(&node, request, &[at]).await;
        node.crash();
        node.sim.reset_script();
        node.restart();
        let ended = node.end_of(&operation).await;
        assert!(!node.sim.is_guest_frozen(node.vm), "{what}");
        assert_eq!(node.sim.run_state(node.vm), Some(RunState::Running), "{what}");
        match expected {
            Ok(reason) => {
                assert_eq!(ended.state(), v1::OperationState::Succeeded, "{what}: {ended:?}");
                let snapshot = node.snapshot("one").await;
                assert_eq!(snapshot.consistency(), v1::Consistency::Crash, "{what}");
                assert_eq!(snapshot.consistency_reason, reason, "{what}");
            }
            Err(reason) => {
                assert_eq!(ended.state(), v1::OperationState::Failed, "{what}: {ended:?}");
                assert_eq!(ended.error.unwrap().reason(), reason, "{what}");
                assert_eq!(node.images(), files, "{what}");
            }
        }
        assert_eq!(node.sim.violations(), Vec::<String>::new(), "{what}");
    };
    let required = || v1::CreateSnapshotRequest { quiesce: v1::Quiesce::Required.into(), ..quiesced() };
    let restarted = "vmsnapd was restarted while the guest was frozen";
    for at in [Method::Freeze, Method::SwitchDisks, Method::Thaw] {
        check(quiesced(), at, Ok(restarted)).await;
        check(required(), at, Err(v1::Reason::QuiesceFailed)).await;
    }
    for at in WITH_MEMORY {
        check(with_memory(), at, Err(v1::Reason::HostCallFailed)).await;
    }
}
