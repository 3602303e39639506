//! VMs that leave and come back: their snapshots are LOST meanwhile, and nothing of them goes without being asked for.

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde_json::Value;
use tonic::Code;
use vmsnap::host::sim::{Hold, Method, SimHost};
use vmsnap::model::step::ImageRef;
use vmsnap::model::vm::Format;
use vmsnap::model::{DiskTarget, VmId};
use vmsnap::proto::v1;

use super::client::{json, run, succeed};
use super::node::{Node, PATIENCE, assert_refused, create, delete};
use super::readers::settled;

async fn until_all_are(node: &Node, state: &str) {
    let settled = async {
        loop {
            let list = json(node, "snapshot list").await;
            let snapshots = list["snapshots"].as_array().cloned().unwrap_or_default();
            if snapshots.iter().all(|snapshot| snapshot["state"] == state) {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, settled).await.unwrap_or_else(|_| panic!("they do not become {state}"));
}

fn leave(node: &Node) {
    node.sim.someone_stops(node.vm);
    node.sim.someone_undefines(node.vm);
}

/// The images that the VM writes to.
fn images(node: &Node) -> Vec<(DiskTarget, PathBuf)> {
    let targets: Vec<DiskTarget> = super::node::disks().into();
    let active = |target: &DiskTarget| node.sim.image_of(node.vm, target).unwrap();
    targets.iter().map(|target| (target.clone(), active(target))).collect()
}

/// Defines the VM as it was, over these images.
fn come_back(sim: &SimHost, images: &[(DiskTarget, PathBuf)]) -> VmId {
    let mut vm = sim.vm("web");
    for (target, path) in images {
        vm = vm.image(target.as_str(), ImageRef { path: path.clone(), format: Format::Qcow2 });
    }
    vm.build()
}

#[tokio::test]
async fn a_vm_leaves_and_comes_back() {
    let mut node = Node::start();
    node.write(1, 10);
    node.take("one").await;
    node.write(1, 20);
    node.take("two").await;
    let (images, files) = (images(&node), node.sim.files());
    leave(&node);
    until_all_are(&node, "SNAPSHOT_STATE_LOST").await;
    node.crash();
    node.restart();
    let shown = json(&node, "snapshot show web/one").await;
    let error = &shown["snapshot"]["error"];
    assert!(error["message"].as_str().unwrap().contains("not on this node"), "{shown}");
    assert_eq!(error["reason"], "REASON_VM_NOT_FOUND");
    let vms = succeed(&node, "vm list").await;
    assert!(vms.contains("web") && vms.contains("gone"), "{vms}");
    assert_eq!(json(&node, "vm show web").await["vm"]["gone"], true);
    let events = succeed(&node, "event list web").await;
    assert!(events.contains("VM web has left this node: 2 snapshots are LOST"), "{events}");
    assert_eq!(node.sim.files(), files, "nothing goes with it");

    // Nothing that needs the VM; but what it held can be had.
    for (line, word) in [
        ("snapshot create web x", "VM_NOT_FOUND"),
        ("snapshot revert web/one --yes", "VM_NOT_FOUND"),
        ("snapshot delete web/one --yes", "VM_NOT_FOUND"),
    ] {
        let refused = run(&node, line).await;
        assert_eq!(refused.code, 4, "{line}: {refused:?}");
        assert!(refused.stderr.contains(word), "{line}: {refused:?}");
    }
    succeed(&node, "volume clone web/one --disk vda --to rescued --full").await;
    assert_eq!(node.sim.read_image("/images/rescued".as_ref()).unwrap().get(&1), Some(&10));

    assert_eq!(come_back(&node.sim, &images), node.vm);
    until_all_are(&node, "SNAPSHOT_STATE_READY").await;
    let shown = json(&node, "snapshot show web/one").await;
    assert_eq!(shown["snapshot"]["error"], Value::Null);
    let events = succeed(&node, "event list web").await;
    assert!(events.contains("VM web is back on this node"), "{events}");
    succeed(&node, "snapshot revert web/one --yes").await;
    assert_eq!(node.read(1), [10, 10]);
    assert_eq!(node.sim.violations(), Vec::<String>::new());
}

/// Nobody knows whether the VM goes on with its disks elsewhere: only what they do not read through may go.
#[tokio::test]
async fn a_purge_leaves_what_the_disks_read_through() {
    let node = Node::start();
    node.write(1, 10);
    node.take("root").await;
    node.write(1, 20);
    node.take("dead").await;
    succeed(&node, "snapshot revert web/root --yes").await;
    settled(&node).await;
    let images = images(&node);
    let held = json(&node, "snapshot show web/root").await;
    let dead = json(&node, "snapshot show web/dead").await;
    let paths = |shown: &Value| -> BTreeSet<PathBuf> {
        let disks = shown["snapshot"]["disks"].as_array().unwrap();
        disks.iter().map(|disk| PathBuf::from(disk["path"].as_str().unwrap())).collect()
    };
    let refused = run(&node, "snapshot purge web/dead --yes").await;
    assert_eq!(refused.code, 6, "{refused:?}");
    assert!(refused.stderr.contains("not LOST"), "{refused:?}");
    leave(&node);
    until_all_are(&node, "SNAPSHOT_STATE_LOST").await;

    succeed(&node, "snapshot hold web/dead audit").await;
    let refused = run(&node, "snapshot purge web/dead --yes").await;
    assert!(refused.code == 6 && refused.stderr.contains("audit"), "{refused:?}");
    succeed(&node, "snapshot release web/dead audit").await;
    succeed(&node, "snapshot purge web/dead --yes").await;
    let left: BTreeSet<PathBuf> = node.sim.files().into_iter().collect();
    assert!(left.is_disjoint(&paths(&dead)), "a dead branch goes");
    let plan = succeed(&node, "snapshot purge web/root --dry-run").await;
    assert!(plan.contains("the VM's disks read through it"), "{plan}");
    let stale = v1::PurgeSnapshotRequest {
        snapshot: held["snapshot"]["id"].as_str().unwrap().to_owned(),
        etag: "1".to_owned(),
        ..Default::default()
    };
    let status = node.snapshots().purge_snapshot(stale).await.unwrap_err();
    assert_refused(&status, Code::Aborted, "ETAG_MISMATCH");
    succeed(&node, "snapshot purge web/root --yes").await;
    let left: BTreeSet<PathBuf> = node.sim.files().into_iter().collect();
    assert!(left.is_superset(&paths(&held)), "the VM reads through these, wherever it is");
    assert!(node.names().await.is_empty());

    // It comes back and goes on with what it had, less what nothing needs any more.
    come_back(&node.sim, &images);
    assert_eq!(node.read(1), [10, 10]);
    settled(&node).await;
    assert_eq!(node.read(1), [10, 10]);
    node.take("again").await;
    let gone = node.snapshots().delete_snapshot(delete("again")).await.unwrap().into_inner();
    node.end_of(&gone.operation.unwrap().id).await;
    assert_eq!(node.read(1), [10, 10]);
    assert_eq!(node.sim.violations(), Vec::<String>::new());
}

/// What is to be merged on a disk that the VM does not have now is merged when it has it again.
#[tokio::test]
async fn a_disk_that_comes_back() {
    let node = Node::start();
    node.write(1, 10);
    node.take("one").await;
    node.write(1, 20);
    let vda = images(&node).swap_remove(0);
    let come_back_with = |images: &[(DiskTarget, PathBuf)]| {
        leave(&node);
        come_back(&node.sim, images);
    };
    come_back_with(&images(&node)[1..]);
    succeed(&node, "snapshot delete web/one --yes").await;
    let waits = async {
        loop {
            let vm = json(&node, "vm show web").await["vm"].clone();
            if vm["merge_debt"]["layers"].as_u64() == Some(1) && vm["operation_id"] == "" {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, waits).await.expect("the disk that is there is merged");
    let target: DiskTarget = "vdb".parse().unwrap();
    let vdb = (target.clone(), node.sim.image_of(node.vm, &target).unwrap());
    come_back_with(&[vda, vdb]);
    settled(&node).await;
    assert_eq!(node.read(1), [20, 20]);
    assert_eq!(node.sim.violations(), Vec::<String>::new());
}

/// Holds the next look, and lets this one go on.
fn next_hold(node: &Node, this: &Hold) -> Hold {
    let next = node.hold(Method::Observe);
    this.release();
    next
}

/// A VM that comes back while it is being looked what could be merged, and has been seen to be away: what tells that it is here
/// is not lost.
#[tokio::test]
async fn a_vm_that_comes_back_during_the_look() {
    let node = Node::start();
    node.write(1, 10);
    node.take("root").await;
    node.write(1, 20);
    let images = images(&node);
    leave(&node);
    until_all_are(&node, "SNAPSHOT_STATE_LOST").await;
    let id = json(&node, "snapshot show web/root").await["snapshot"]["id"].as_str().unwrap().to_owned();
    let request = v1::PurgeSnapshotRequest { snapshot: id, ..Default::default() };
    let mut hold = node.hold(Method::Observe);
    let purge = async { node.snapshots().purge_snapshot(request).await.map(drop).unwrap() };
    // Its plan looks. What could be merged is looked at once it is gone from the catalog.
    let looks = async {
        loop {
            crate::node::reached(&hold).await;
            if node.names().await.is_empty() {
                break;
            }
            hold = next_hold(&node, &hold);
        }
    };
    tokio::join!(purge, looks);
    let seen = node.calls_of(Method::Vms);
    come_back(&node.sim, &images);
    // Somebody else who is told of it has looked.
    let has_looked = async {
        while node.calls_of(Method::Vms) == seen {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, has_looked).await.expect("nobody looks");
    hold.release();
    settled(&node).await;
    assert_eq!(node.read(1), [20, 20]);
    assert_eq!(node.sim.violations(), Vec::<String>::new());
}

/// Snapshots that could not be vouched for any more are of no use to anybody once the VM is gone, whether others are LOST or
/// not.
#[tokio::test]
async fn snapshots_in_error_are_purged() {
    for with_lost in [true, false] {
        let node = Node::start();
        for name in ["one", "two"] {
            node.take(name).await;
        }
        let disk: DiskTarget = "vda".parse().unwrap();
        let two = json(&node, "snapshot show web/two").await;
        let two = PathBuf::from(two["snapshot"]["disks"][0]["path"].as_str().unwrap());
        let top = if with_lost { two } else { node.sim.image_of(node.vm, &disk).unwrap() };
        node.sim.someone_commits(node.vm, &disk, &top, "/images/web-vda".as_ref());
        let found: Value = serde_json::from_str(&run(&node, "vm check web -o json").await.stdout).unwrap();
        let id = found["differences"][0]["id"].as_str().unwrap();
        succeed(&node, &format!("vm resolve web {id} --adopt --yes")).await;
        let state = async |name: &str| {
            json(&node, &format!("snapshot show web/{name}")).await["snapshot"]["state"].clone()
        };
        assert_eq!(state("one").await, "SNAPSHOT_STATE_ERROR");
        let refused = run(&node, "snapshot purge web/one --yes").await;
        assert!(refused.code == 6 && refused.stderr.contains("its VM is here"), "{refused:?}");
        leave(&node);
        let lost = async { while with_lost && state("two").await != "SNAPSHOT_STATE_LOST" {} };
        tokio::time::timeout(PATIENCE, lost).await.expect("what was READY is LOST");
        assert_eq!(json(&node, "vm show web").await["vm"]["gone"], true);
        let found = run(&node, "vm check web -o json").await;
        assert!(found.stdout.contains("DIFFERENCE_KIND_VM_UNDEFINED"), "{found:?}");
        for name in ["one", "two"] {
            succeed(&node, &format!("snapshot purge web/{name} --yes")).await;
        }
        assert!(node.names().await.is_empty());
        assert_eq!(node.sim.violations(), Vec::<String>::new());
    }
}

/// The chain that a VM comes back with is not the one it left with: what reads wrong stays LOST.
#[tokio::test]
async fn a_vm_that_comes_back_without_an_image() {
    let node = Node::start();
    node.write(1, 10);
    node.take("one").await;
    node.write(1, 20);
    node.take("two").await;
    let images = images(&node);
    let two = json(&node, "snapshot show web/two").await;
    let lost = PathBuf::from(two["snapshot"]["disks"][0]["path"].as_str().unwrap());
    leave(&node);
    until_all_are(&node, "SNAPSHOT_STATE_LOST").await;
    node.sim.someone_removes(&lost);
    let other: Vec<_> = images.into_iter().filter(|(target, _)| target.as_str() == "vdb").collect();
    come_back(&node.sim, &other);
    let settled = async {
        while json(&node, "snapshot show web/one").await["snapshot"]["state"] != "SNAPSHOT_STATE_READY" {}
    };
    tokio::time::timeout(PATIENCE, settled).await.expect("what is whole is READY");
    let shown = json(&node, "snapshot show web/two").await;
    assert_eq!(shown["snapshot"]["state"], "SNAPSHOT_STATE_LOST");
}

/// A migration is told once, by an event: what is noted of it then lasts.
#[tokio::test]
async fn a_vm_that_migrates_away_and_back() {
    let mut node = Node::start();
    node.write(1, 10);
    node.take("one").await;
    node.write(1, 20);
    let images = images(&node);
    let migrated = async |node: &Node, blocks: bool| {
        let found = run(node, "vm check web -o json").await;
        let found: Value = serde_json::from_str(&found.stdout).unwrap();
        let [only] = &found["differences"].as_array().unwrap()[..] else { panic!("{found}") };
        assert_eq!(only["kind"], "DIFFERENCE_KIND_VM_MIGRATED", "{found}");
        assert_eq!((&only["blocks"], only["actions"].as_array().map_or(0, Vec::len)), (&blocks.into(), 0));
    };

    // Its definition stays: it is off here, and nobody may touch its disks.
    node.sim.someone_migrates(node.vm);
    let told = async { while run(&node, "snapshot create web x --dry-run").await.code != 6 {} };
    tokio::time::timeout(PATIENCE, told).await.expect("the VM is elsewhere");
    migrated(&node, true).await;
    let refused = run(&node, "snapshot create web x").await;
    assert!(refused.code == 6 && refused.stderr.contains("has migrated to another node"), "{refused:?}");

    // It follows.
    node.sim.someone_undefines(node.vm);
    until_all_are(&node, "SNAPSHOT_STATE_LOST").await;
    node.crash();
    node.restart();
    let shown = json(&node, "snapshot show web/one").await;
    assert!(
        shown["snapshot"]["error"]["message"].as_str().unwrap().contains("has migrated to another"),
        "{shown}"
    );
    migrated(&node, true).await;

    come_back(&node.sim, &images);
    until_all_are(&node, "SNAPSHOT_STATE_READY").await;
    assert_eq!(run(&node, "vm check web").await.code, 0);
    node.take("two").await;
    succeed(&node, "snapshot revert web/one --yes").await;
    assert_eq!(node.read(1), [10, 10]);

    // What leaves otherwise has not migrated.
    leave(&node);
    until_all_are(&node, "SNAPSHOT_STATE_LOST").await;
    let shown = json(&node, "snapshot show web/one").await;
    assert!(shown["snapshot"]["error"]["message"].as_str().unwrap().contains("was undefined"), "{shown}");
    let found = run(&node, "vm check web -o json").await;
    assert!(found.stdout.contains("DIFFERENCE_KIND_VM_UNDEFINED"), "{found:?}");
}

/// Its definition stays, and the daemon is not the one any more that was told: it looks like any VM that is off.
#[tokio::test]
async fn a_migration_outlives_the_daemon() {
    let mut node = Node::start();
    for (value, name) in [(10, "one"), (20, "two")] {
        node.write(1, value);
        node.take(name).await;
    }
    let files = node.sim.files();
    node.sim.someone_migrates(node.vm);
    until_departures_are(&node, 1).await;
    for _ in 0..2 {
        node.crash();
        node.restart();
        for line in [
            "snapshot create web x",
            "snapshot revert web/one --yes",
            "snapshot delete web/one --yes",
            "snapshot delete web/two --yes",
        ] {
            let refused = run(&node, line).await;
            assert_eq!(refused.code, 6, "{line}: {refused:?}");
            assert!(refused.stderr.contains("has migrated to another node"), "{line}: {refused:?}");
        }
        let found = run(&node, "vm check web -o json").await;
        assert!(found.stdout.contains("DIFFERENCE_KIND_VM_MIGRATED"), "{found:?}");
    }
    assert_eq!(node.sim.files(), files);

    // It runs here again: that lasts as well, and is seen by a daemon that was not there when it came.
    node.crash();
    node.sim.someone_starts(node.vm);
    node.restart();
    until_departures_are(&node, 0).await;
    node.sim.someone_stops(node.vm);
    node.crash();
    node.restart();
    succeed(&node, "snapshot revert web/one --yes").await;
    assert_eq!(node.sim.violations(), Vec::<String>::new());
}

/// A look from before the VM left once more does not tell that it is back.
#[tokio::test]
async fn a_vm_that_leaves_while_it_is_looked_for() {
    let node = Node::start();
    node.take("one").await;
    node.sim.someone_migrates(node.vm);
    until_departures_are(&node, 1).await;
    let before = node.store().departures().await.unwrap();
    node.sim.someone_starts(node.vm);
    let hold = node.hold(Method::Vms);
    crate::node::reached(&hold).await;
    node.sim.someone_migrates(node.vm);
    let noted = async { while node.store().departures().await.unwrap() == before {} };
    tokio::time::timeout(PATIENCE, noted).await.expect("it has left once more");
    let looks = || node.calls_of(Method::Vms);
    let so_far = looks();
    hold.release();
    // One look after the other.
    let ended = async {
        while looks() == so_far {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, ended).await.expect("there is another look");
    until_departures_are(&node, 1).await;
    let refused = run(&node, "snapshot create web x").await;
    assert!(refused.stderr.contains("has migrated to another node"), "{refused:?}");
}

/// While it comes back it is here, and its guest still executes over there; and it may fail to come.
#[tokio::test]
async fn a_vm_that_does_not_come_back() {
    let mut node = Node::start();
    for (value, name) in [(10, "one"), (20, "two")] {
        node.write(1, value);
        node.take(name).await;
    }
    let files = node.sim.files();
    let is_left_alone = async |node: &Node| {
        for line in
            ["snapshot create web x", "snapshot revert web/one --yes", "snapshot delete web/one --yes"]
        {
            let refused = run(node, line).await;
            let is_told = refused.stderr.contains("has migrated to another node");
            assert!(refused.code == 6 && is_told, "{line}: {refused:?}");
        }
    };
    node.sim.someone_migrates(node.vm);
    until_departures_are(&node, 1).await;
    node.sim.someone_begins_to_bring_home(node.vm);
    is_left_alone(&node).await;
    // It is looked for, too.
    node.crash();
    node.restart();
    is_left_alone(&node).await;
    node.sim.someone_stops(node.vm);
    assert!(node.sim.is_elsewhere(node.vm));
    is_left_alone(&node).await;
    node.crash();
    node.restart();
    is_left_alone(&node).await;
    assert_eq!(node.sim.files(), files);

    node.sim.someone_brings_home(node.vm, true);
    until_departures_are(&node, 0).await;
    succeed(&node, "snapshot revert web/one --yes").await;
    assert_eq!(node.read(1), [10, 10]);
    assert_eq!(node.sim.violations(), Vec::<String>::new());
}

/// A VM that has gone with a clone writes to it from there. What the clone was made out of is read by it, too; and its own
/// snapshots can be cloned and deployed, and clones of them deleted, wherever it is.
#[tokio::test]
async fn clones_and_vms_that_have_migrated() {
    let node = Node::start();
    node.take("one").await;
    succeed(&node, "volume clone web/one --disk vda --to used").await;
    succeed(&node, "volume clone web/one --disk vda --to free").await;
    let image = ImageRef { path: "/images/used".into(), format: Format::Qcow2 };
    let user = node.sim.vm("user").image("vda", image).build();
    node.sim.someone_migrates(user);
    until_departures_are(&node, 1).await;
    let refused = run(&node, "volume flatten used").await;
    assert!(refused.stderr.contains("has migrated to another node"), "{refused:?}");
    assert_ne!(run(&node, "volume delete used --yes").await.code, 0, "somebody has it");

    node.sim.someone_migrates(node.vm);
    until_departures_are(&node, 2).await;
    succeed(&node, "volume delete free --yes").await;
    succeed(&node, "volume clone web/one --disk vda --to whole --full").await;
    succeed(&node, "volume delete whole --yes").await;
    succeed(&node, "vm deploy web/one --name new --full").await;
    let open = run(&node, "op list --open -o json").await;
    let open: Value = serde_json::from_str(&open.stdout).unwrap();
    assert_eq!(open["operations"].as_array().map_or(0, Vec::len), 0, "{open}");
    assert_eq!(node.sim.violations(), Vec::<String>::new());
}

/// An operation that meets a migration before it has asked for anything turns back, and nobody is needed.
#[tokio::test]
async fn a_vm_that_leaves_before_its_snapshot_is_taken() {
    let node = Node::start();
    node.take("one").await;
    let files = node.sim.files();
    let hold = node.hold(Method::CreateOverlay);
    let request = v1::CreateSnapshotRequest { quiesce: v1::Quiesce::Off.into(), ..create("web", "two") };
    let begun = node.snapshots().create_snapshot(request).await.unwrap().into_inner().operation.unwrap();
    crate::node::reached(&hold).await;
    node.sim.someone_migrates(node.vm);
    hold.release();
    let ended = node.end_of(&begun.id).await;
    assert_eq!(ended.state(), v1::OperationState::Failed, "{ended:?}");
    assert_eq!(node.sim.files(), files, "what was made for it has gone");
    assert_eq!(node.sim.violations(), Vec::<String>::new());
}

async fn until_departures_are(node: &Node, count: usize) {
    let noted = async { while node.store().departures().await.unwrap().len() != count {} };
    tokio::time::timeout(PATIENCE, noted)
        .await
        .unwrap_or_else(|_| panic!("there are not {count} departures"));
}
