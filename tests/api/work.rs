//! The main job through the contract: what one asks for is what one sees.

use tonic::Code;
use vmsnap::host::sim::{
    AgentBehaviour as Agent, Call, Complaint, Fault, Method, Mishap, Moment, SimHost, Trigger,
};
use vmsnap::model::vm::Uncovered;
use vmsnap::proto::v1;
use vmsnap::proto::v1::Quiesce::{Auto, Off, Required};

use super::client::succeed;
use super::node::{Node, assert_refused, create, delete, revert};

#[tokio::test]
async fn a_snapshot_is_shown_as_it_was_asked_for() {
    let node = Node::start();
    let request = v1::CreateSnapshotRequest {
        display_name: "Before the upgrade".to_owned(),
        description: "of 2026".to_owned(),
        quiesce: v1::Quiesce::Required.into(),
        account: "acme".to_owned(),
        domain: "eu".to_owned(),
        project: "shop".to_owned(),
        properties: [("ticket".to_owned(), "17".to_owned())].into(),
        disks: vec!["vda".to_owned()],
        ..create("web", "one")
    };
    let begun = node.snapshots().create_snapshot(request).await.unwrap().into_inner();
    let operation = begun.operation.unwrap();
    assert!(matches!(operation.state(), v1::OperationState::Running), "it answers before the end");
    let ended = node.end_of(&operation.id).await;
    assert_eq!(ended.state(), v1::OperationState::Succeeded);
    assert_eq!(ended.findings.unwrap().consistency(), v1::Consistency::Filesystem);

    let snapshot = node.snapshot("one").await;
    assert_eq!(snapshot.id, begun.snapshot_id);
    assert_eq!(snapshot.state(), v1::SnapshotState::Ready);
    assert_eq!(snapshot.kind(), v1::SnapshotKind::VmDisks);
    assert_eq!(snapshot.consistency(), v1::Consistency::Filesystem);
    assert_eq!(
        (snapshot.display_name.as_str(), snapshot.description.as_str()),
        ("Before the upgrade", "of 2026")
    );
    let owner = (snapshot.account.as_str(), snapshot.domain.as_str(), snapshot.project.as_str());
    assert_eq!(owner, ("acme", "eu", "shop"));
    assert_eq!(snapshot.properties["ticket"], "17");
    assert!(snapshot.current);
    assert!(snapshot.created_by.starts_with("uid:"), "{}", snapshot.created_by);
    let targets: Vec<&str> = snapshot.disks.iter().map(|disk| disk.target.as_str()).collect();
    assert_eq!(targets, ["vda"]);
    assert_eq!(snapshot.operation_id, "", "nothing is at work on it any more");
}

#[tokio::test]
async fn the_tree_follows_reverts_and_deletions() {
    let node = Node::start();
    node.write(1, 10);
    node.take("one").await;
    node.write(1, 20);
    node.take("two").await;
    node.write(1, 30);
    let begun = node.snapshots().revert_snapshot(revert("one")).await.unwrap().into_inner();
    let ended = node.end_of(&begun.operation.unwrap().id).await;
    assert_eq!(ended.state(), v1::OperationState::Succeeded, "{ended:?}");
    assert_eq!(node.read(1), [10, 10]);
    node.take("three").await;

    let request = v1::GetSnapshotTreeRequest { vm: "web".to_owned() };
    let tree = node.snapshots().get_snapshot_tree(request).await.unwrap().into_inner();
    let nodes: Vec<(String, u32)> =
        tree.nodes.iter().map(|node| (node.snapshot.clone().unwrap().name, node.depth)).collect();
    let expected = [("one", 0), ("two", 1), ("three", 1)].map(|(name, depth)| (name.to_owned(), depth));
    assert_eq!(nodes, expected);
    assert_eq!(tree.current_snapshot_id, node.snapshot("three").await.id);

    for name in ["three", "two", "one"] {
        let begun = node.snapshots().delete_snapshot(delete(name)).await.unwrap().into_inner();
        let ended = node.end_of(&begun.operation.unwrap().id).await;
        assert_eq!(ended.state(), v1::OperationState::Succeeded, "{name}: {ended:?}");
        assert_eq!(node.read(1), [10, 10]);
    }
    assert!(node.names().await.is_empty());
    assert_eq!(node.sim.violations(), Vec::<String>::new());
}

#[tokio::test]
async fn a_plan_is_shown_and_nothing_is_done() {
    let node = Node::start();
    node.take("one").await;
    let acts = node.acts();
    let plan = async |request| node.snapshots().create_snapshot(request).await.unwrap().into_inner();
    let asked = v1::CreateSnapshotRequest { validate_only: true, ..create("web", "two") };
    let answer = plan(asked.clone()).await;
    assert!(answer.operation.is_none());
    let shown = answer.plan.unwrap();
    assert!(shown.blockers.is_empty(), "{shown:?}");
    assert_eq!(shown.steps.iter().filter(|step| step.commit_point).count(), 1);

    let taken = v1::CreateSnapshotRequest { name: "one".to_owned(), ..asked };
    let blocked = plan(taken).await.plan.unwrap();
    assert_eq!(blocked.blockers[0].reason(), v1::Reason::SnapshotExists);
    let delete = v1::DeleteSnapshotRequest { validate_only: true, ..delete("one") };
    let shown = node.snapshots().delete_snapshot(delete).await.unwrap().into_inner().plan.unwrap();
    assert!(!shown.removals.is_empty(), "it says what will be gone");
    assert_eq!(node.acts(), acts);
    assert_eq!(node.names().await, ["one"]);
}

/// What is in no disk is named before a snapshot is taken, and beside the VM.
#[tokio::test]
async fn what_a_snapshot_does_not_hold_is_told() {
    let sim = SimHost::new();
    let vm = sim.vm("web").disks(2).uncovered(Uncovered::Tpm("tpm-crb".to_owned())).build();
    let node = Node::start_with(sim, vm);
    assert!(succeed(&node, "vm show web").await.contains("tpm        its state is not in snapshots"));
    let plan = succeed(&node, "snapshot create web one --dry-run").await;
    assert!(plan.contains("not in the snapshot: the state of its TPM (tpm-crb)"), "{plan}");
}

/// UEFI variables are kept with a snapshot; the plan of a revert says what comes in their place.
#[tokio::test]
async fn uefi_variables_are_kept() {
    let sim = SimHost::new();
    let vm = sim.vm("web").disks(1).uefi().build();
    let node = Node::start_with(sim, vm);
    assert!(succeed(&node, "vm show web").await.contains("firmware   UEFI"));
    succeed(&node, "snapshot create web one").await;
    assert!(node.snapshot("one").await.has_nvram);
    let shown = succeed(&node, "snapshot show web/one").await;
    assert!(shown.contains("firmware      UEFI variables are kept with it"), "{shown}");
    let plan = succeed(&node, "snapshot revert web/one --dry-run").await;
    assert!(plan.contains("the VM's UEFI variables as they are now"), "{plan}");
    assert!(plan.contains("bring back UEFI variables /nvram/web.fd"), "{plan}");
}

#[tokio::test]
async fn consistency_is_told_as_it_was_obtained() {
    let check = async |behaviour, quiesce: v1::Quiesce, expected: Result<v1::Consistency, &str>| {
        let sim = SimHost::new();
        let vm = sim.vm("web").disks(2).agent(behaviour).build();
        let node = Node::start_with(sim, vm);
        let request = v1::CreateSnapshotRequest { quiesce: quiesce.into(), ..create("web", "one") };
        match (node.snapshots().create_snapshot(request).await, expected) {
            (Ok(begun), Ok(level)) => {
                let ended = node.end_of(&begun.into_inner().operation.unwrap().id).await;
                assert_eq!(ended.state(), v1::OperationState::Succeeded, "{behaviour:?}: {ended:?}");
                let snapshot = node.snapshot("one").await;
                assert_eq!(snapshot.consistency(), level, "{behaviour:?}");
                let needs_reason = level == v1::Consistency::Crash;
                assert_eq!(!snapshot.consistency_reason.is_empty(), needs_reason, "{behaviour:?}");
            }
            (Ok(begun), Err(reason)) => {
                let ended = node.end_of(&begun.into_inner().operation.unwrap().id).await;
                assert_eq!(ended.state(), v1::OperationState::Failed, "{behaviour:?}: {ended:?}");
                let error = ended.error.unwrap();
                assert_eq!(error.reason().as_str_name(), format!("REASON_{reason}"), "{behaviour:?}");
                assert_eq!(error.changed, "nothing");
            }
            (Err(status), Err(reason)) => assert_refused(&status, Code::FailedPrecondition, reason),
            (Err(status), Ok(_)) => panic!("{behaviour:?}: {status:?}"),
        }
        assert!(!node.sim.is_guest_frozen(vm), "{behaviour:?}");
    };
    check(Agent::Obeys, Required, Ok(v1::Consistency::Filesystem)).await;
    check(Agent::Obeys, Auto, Ok(v1::Consistency::Filesystem)).await;
    check(Agent::Obeys, Off, Ok(v1::Consistency::Crash)).await;
    check(Agent::NoChannel, Auto, Ok(v1::Consistency::Crash)).await;
    check(Agent::NoChannel, Required, Err("AGENT_UNAVAILABLE")).await;
    check(Agent::NotConnected, Auto, Ok(v1::Consistency::Crash)).await;
    check(Agent::NotConnected, Required, Err("AGENT_UNAVAILABLE")).await;
    check(Agent::RefusesToFreeze, Auto, Ok(v1::Consistency::Crash)).await;
    check(Agent::RefusesToFreeze, Required, Err("QUIESCE_FAILED")).await;
    check(Agent::ThawsByItself, Auto, Ok(v1::Consistency::Crash)).await;
    check(Agent::ThawsByItself, Required, Err("QUIESCE_FAILED")).await;
}

/// An answer that says no is no proof: all is looked at again, and the merge is under way.
#[tokio::test]
async fn a_merge_that_was_refused_and_has_begun() {
    let sim = SimHost::new();
    let vm = sim.vm("web").disks(1).build();
    let node = Node::start_with(sim, vm);
    let write = |value| node.sim.guest_write(vm, &"vda".parse().unwrap(), 1, value).unwrap();
    write(10);
    node.take("one").await;
    write(20);
    node.take("two").await;
    write(30);
    let at = Trigger::Call(Call { method: Method::StartCommit, occurrence: 1 });
    let mishap = Mishap::Error(Complaint::Refused);
    node.sim.add_fault(Fault { at, moment: Moment::After, mishap });
    succeed(&node, "snapshot delete web/one --yes").await;
    assert_eq!(node.calls_of(Method::StartCommit), 1);
    let held = node.snapshot("two").await.disks[0].path.clone();
    assert_eq!(node.sim.read_image(held.as_ref()).unwrap().get(&1), Some(&20));
    assert_eq!(node.sim.violations(), Vec::<String>::new());
}
