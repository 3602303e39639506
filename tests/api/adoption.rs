//! The daemon dies between the look that an adoption was planned by and its record. What is there then counts.

use std::path::PathBuf;

use serde_json::Value;
use vmsnap::host::sim::{Call, Fault, Hold, Method, Mishap, Moment, Trigger};
use vmsnap::proto::v1;

use super::client::{run, succeed};
use super::node::{Node, PATIENCE, vda};

fn active(node: &Node) -> PathBuf {
    node.sim.image_of(node.vm, &vda()).unwrap()
}

async fn file_of(node: &Node, snapshot: &str) -> PathBuf {
    let disks = node.snapshot(snapshot).await.disks;
    disks.into_iter().find(|disk| disk.target == "vda").unwrap().path.into()
}

/// The one difference of the VM.
async fn only(node: &Node) -> Value {
    let found: Value = serde_json::from_str(&run(node, "vm check web -o json").await.stdout).unwrap();
    let [only] = &found["differences"].as_array().unwrap()[..] else { panic!("{found}") };
    only.clone()
}

async fn states(node: &Node) -> Vec<(String, String)> {
    let list: Value = serde_json::from_str(&succeed(node, "snapshot list web -o json").await).unwrap();
    let word = |value: &Value| value.as_str().unwrap().to_owned();
    let all = list["snapshots"].as_array().unwrap().iter();
    let mut all: Vec<_> = all.map(|snapshot| (word(&snapshot["name"]), word(&snapshot["state"]))).collect();
    all.sort();
    all
}

async fn adopt(node: &Node, is_plan: bool) -> Option<String> {
    let request = v1::ResolveVmRequest {
        vm: "web".to_owned(),
        difference_id: only(node).await["id"].as_str().unwrap().to_owned(),
        action: v1::DifferenceAction::Adopt.into(),
        validate_only: is_plan,
        ..Default::default()
    };
    let answer = node.vms().resolve_vm(request).await.unwrap().into_inner();
    answer.operation.map(|operation| operation.id)
}

/// Three snapshots, and what somebody does then.
async fn changed(act: impl AsyncFnOnce(&Node)) -> Node {
    let node = Node::start();
    succeed(&node, "snapshot create web memory --memory").await;
    for (value, name) in [(10, "one"), (20, "two")] {
        node.write(1, value);
        node.take(name).await;
    }
    node.write(1, 30);
    act(&node).await;
    node
}

/// `act` is to be adopted, and `meanwhile` happens while no daemon is there: nothing is adopted, and what is there now can be.
async fn check(act: impl AsyncFnOnce(&Node), meanwhile: impl AsyncFnOnce(&Node), can_be_adopted: bool) {
    let mut node = changed(act).await;
    let before = states(&node).await;
    // Made by nothing but a look that tells of differences.
    let looks = || node.calls_of(Method::MemoryImage);
    let found = only(&node).await;
    let so_far = looks();
    adopt(&node, true).await;
    // With a check of what differs; the look after those of the plan is that of the record.
    let (hold, occurrence) = (Hold::default(), 2 * looks() - so_far + 1);
    let at = Trigger::Call(Call { method: Method::MemoryImage, occurrence });
    node.sim.add_fault(Fault { at, moment: Moment::Before, mishap: Mishap::Late(hold.clone()) });
    let id = adopt(&node, false).await.unwrap();
    tokio::time::timeout(PATIENCE, hold.reached()).await.expect("nobody looks again before it is recorded");
    node.crash();
    meanwhile(&node).await;
    node.restart();
    let ended = node.end_of(&id).await;
    assert_eq!(ended.state(), v1::OperationState::Failed, "{ended:?}");
    assert_eq!(states(&node).await, before, "nothing is recorded");
    let now = only(&node).await;
    assert_eq!(now["kind"], found["kind"], "{now}");
    let ways = now["actions"].as_array().cloned().unwrap_or_default();
    assert_eq!(ways.contains(&"DIFFERENCE_ACTION_ADOPT".into()), can_be_adopted, "{now}");
    if can_be_adopted {
        let id = adopt(&node, false).await.unwrap();
        assert_eq!(node.end_of(&id).await.state(), v1::OperationState::Succeeded);
        assert_eq!(run(&node, "vm check web").await.code, 0);
    }
    assert_eq!(node.read(1)[1], 30);
    assert_eq!(node.sim.violations(), Vec::<String>::new());
}

#[tokio::test]
async fn a_file_that_is_replaced_once_more() {
    let replace = async |node: &Node| node.sim.someone_replaces(&file_of(node, "two").await);
    let file = async |node: &Node| {
        // The daemon is gone: the catalog is asked.
        let tree = node.store().tree(node.vm).await.unwrap();
        let two = tree.snapshots.iter().find(|snapshot| snapshot.name.as_str() == "two").unwrap();
        let held = two.disks.iter().find(|disk| disk.target == vda()).unwrap();
        tree.layers[&held.layer].path.clone()
    };
    check(replace, async |node: &Node| node.sim.someone_replaces(&file(node).await), true).await;
    check(replace, async |node: &Node| node.sim.someone_truncates(&file(node).await), false).await;
}

#[tokio::test]
async fn an_overlay_that_gets_another_one() {
    let act = async |node: &Node| node.sim.someone_overlays(node.vm, &vda(), "/images/mine".as_ref());
    let more = async |node: &Node| node.sim.someone_overlays(node.vm, &vda(), "/images/more".as_ref());
    check(act, more, false).await;
}

#[tokio::test]
async fn a_merge_that_goes_on() {
    let act = async |node: &Node| {
        let two = file_of(node, "two").await;
        node.sim.someone_commits(node.vm, &vda(), &active(node), &two);
    };
    let more = async |node: &Node| {
        node.sim.someone_commits(node.vm, &vda(), &active(node), "/images/web-vda".as_ref());
    };
    check(act, more, true).await;
}

/// It dies right after the record: that counts, and is not taken back.
async fn check_recorded(act: impl AsyncFnOnce(&Node)) {
    let mut node = changed(act).await;
    only(&node).await;
    let hold = node.hold(Method::WriteFile);
    let id = adopt(&node, false).await.unwrap();
    tokio::time::timeout(PATIENCE, hold.reached()).await.expect("a manifest is written after the record");
    let before = states(&node).await;
    node.crash();
    node.restart();
    let ended = node.end_of(&id).await;
    assert_eq!(ended.state(), v1::OperationState::Succeeded, "{ended:?}");
    assert_eq!(states(&node).await, before);
    assert_eq!(run(&node, "vm check web").await.code, 0);
    assert_eq!(node.sim.violations(), Vec::<String>::new());
}

#[tokio::test]
async fn an_adoption_that_is_recorded() {
    check_recorded(async |node: &Node| node.sim.someone_overlays(node.vm, &vda(), "/images/mine".as_ref()))
        .await;
    let merge = async |node: &Node| {
        let two = file_of(node, "two").await;
        node.sim.someone_commits(node.vm, &vda(), &active(node), &two);
    };
    check_recorded(merge).await;
}
