//! Room: a VM that stands still for lack of it, merges that do not fit, the warning before it is used up.

use vmsnap::host::sim::{BLOCK, Call, Complaint, Fault, Method, Mishap, Moment, Trigger};
use vmsnap::model::RunState;
use vmsnap::model::vm::PauseReason;
use vmsnap::proto::v1;

use super::client::{json, run, succeed};
use super::node::{Node, PATIENCE, delete, disks, vda};

/// What the daemon leaves free unless it is configured otherwise.
const RESERVE: u64 = 256 << 20;

/// More than anything here needs.
const PLENTY: u64 = 1 << 40;

/// The events of a kind, oldest first.
async fn told(node: &Node, kind: v1::EventKind) -> Vec<v1::Event> {
    let filter = v1::EventFilter { kinds: vec![kind.into()], ..Default::default() };
    let order_by = "sequence".to_owned();
    let request = v1::ListEventsRequest { filter: Some(filter), order_by, ..Default::default() };
    node.events().list_events(request).await.unwrap().into_inner().events
}

async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let wait = async {
        while !holds().await {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("{what}: not in time"));
}

/// The guest writes, and finds no space.
fn stall(node: &Node, block: u64) {
    node.sim.set_free_space(0);
    node.sim.guest_write(node.vm, &vda(), block, 7).unwrap_err();
}

#[tokio::test]
async fn a_vm_without_space_is_named_and_goes_on_when_there_is_some() {
    let node = Node::start();
    node.write(1, 10);
    node.take("one").await;
    stall(&node, 2);
    let list = succeed(&node, "vm list").await;
    assert!(list.contains("paused: vda has no space"), "{list}");
    let shown = succeed(&node, "vm show web").await;
    assert!(shown.contains("state      paused: vda has no space"), "{shown}");
    assert_eq!(json(&node, "vm show web").await["vm"]["full_disks"][0], "vda");
    until("it is told", async || !told(&node, v1::EventKind::VmOutOfSpace).await.is_empty()).await;
    let event = told(&node, v1::EventKind::VmOutOfSpace).await.remove(0);
    assert_eq!(event.severity(), v1::Severity::Error);
    assert_eq!(event.attributes["disk"], "vda");
    assert_eq!(event.attributes["free_bytes"], "0");
    let image = node.sim.image_of(node.vm, &vda()).unwrap();
    assert_eq!(event.attributes["path"], image.display().to_string());
    let message = event.message.as_str();
    assert!(
        message.contains("'vmsnap vm resume web'") && message.contains("/images has 0 bytes free"),
        "{message}"
    );

    for free in [0, RESERVE - 1] {
        node.sim.set_free_space(free);
        let acts = node.acts();
        let refused = run(&node, "vm resume web").await;
        assert_eq!(refused.code, 10, "{refused:?}");
        assert!(
            refused.stderr.contains("NO_SPACE") && refused.stderr.contains(&format!("{free} bytes free"))
        );
        assert_eq!(node.acts(), acts, "nothing was tried");
    }
    node.sim.set_free_space(RESERVE);
    assert_eq!(succeed(&node, "vm resume web").await, "web is running\n");
    assert_eq!(node.sim.guest_read(node.vm, &vda(), 2), Ok(7), "what the guest was writing is written");
    assert_eq!(node.read(1), [10, 10]);
    let acts = node.acts();
    assert_eq!(succeed(&node, "vm resume web").await, "web is running\n");
    assert_eq!(node.acts(), acts, "what is so already is not done again");
    assert_eq!(told(&node, v1::EventKind::VmOutOfSpace).await.len(), 1);
    assert_eq!(node.sim.violations(), Vec::<String>::new());
}

#[tokio::test]
async fn others_that_are_paused_are_left_alone() {
    let node = Node::start();
    for reason in [PauseReason::User, PauseReason::Snapshot, PauseReason::IoError] {
        node.sim.someone_pauses(node.vm, reason);
        let refused = run(&node, "vm resume web").await;
        assert_eq!(refused.code, 6, "{reason:?}: {refused:?}");
        assert!(refused.stderr.contains("VM_NOT_OUT_OF_SPACE"), "{reason:?}: {refused:?}");
        assert_eq!(node.sim.run_state(node.vm), Some(RunState::Paused(reason)));
    }
    node.sim.someone_stops(node.vm);
    assert_eq!(run(&node, "vm resume web").await.code, 6);
    assert_eq!(run(&node, "vm resume nobody").await.code, 4);
}

/// An error does not prove that nothing happened, and a success not that it stays so.
#[tokio::test]
async fn after_a_resume_it_is_looked_again() {
    let node = Node::start();
    stall(&node, 2);
    node.sim.set_free_space(PLENTY);
    let complain = |occurrence, moment| {
        let at = Trigger::Call(Call { method: Method::Resume, occurrence });
        node.sim.add_fault(Fault { at, moment, mishap: Mishap::Error(Complaint::TimedOut) });
    };
    complain(1, Moment::Before);
    complain(2, Moment::After);
    assert_eq!(run(&node, "vm resume web").await.code, 9);
    assert_eq!(node.sim.run_state(node.vm), Some(RunState::Paused(PauseReason::IoError)));
    assert_eq!(succeed(&node, "vm resume web").await, "web is running\n");

    // Somebody was faster, and has used up the room that was there.
    stall(&node, 3);
    node.sim.set_free_space(PLENTY);
    let at = Trigger::Call(Call { method: Method::Resume, occurrence: 3 });
    node.sim.add_fault(Fault { at, moment: Moment::Before, mishap: Mishap::NoSpace });
    let refused = run(&node, "vm resume web").await;
    assert!(refused.code == 10 && refused.stderr.contains("NO_SPACE"), "{refused:?}");
    node.sim.set_free_space(PLENTY);
    succeed(&node, "vm resume web").await;
    assert_eq!(node.sim.guest_read(node.vm, &vda(), 3), Ok(7));
}

#[tokio::test]
async fn a_vm_that_an_operation_holds_is_not_resumed() {
    let node = Node::start();
    stall(&node, 2);
    node.sim.set_free_space(PLENTY);
    let hold = node.hold(Method::SwitchDisks);
    let begun = node.begin("one").await;
    crate::node::reached(&hold).await;
    let refused = run(&node, "vm resume web").await;
    assert!(refused.code == 6 && refused.stderr.contains("VM_BUSY"), "{refused:?}");
    hold.release();
    node.end_of(&begun.id).await;
    succeed(&node, "vm resume web").await;
}

/// It may be stuck for that very pause.
#[tokio::test]
async fn a_vm_that_is_stuck_is_resumed() {
    let node = Node::start();
    node.take("one").await;
    node.strike(Method::Pivot, Mishap::Error(Complaint::Refused));
    let begun = node.snapshots().delete_snapshot(delete("one")).await.unwrap().into_inner();
    let stuck = node.end_of(&begun.operation.unwrap().id).await;
    assert_eq!(stuck.state(), v1::OperationState::Stuck, "{stuck:?}");
    stall(&node, 2);
    node.sim.set_free_space(PLENTY);
    assert_eq!(succeed(&node, "vm resume web").await, "web is running\n");
}

/// Blocks of one image that the guest has written over in the next need no new room.
#[tokio::test]
async fn a_merge_that_does_not_fit_is_refused_before_anything_is_touched() {
    let node = Node::start();
    for block in 0..40 {
        node.write(block, 1);
    }
    node.take("one").await;
    for block in 20..60 {
        node.write(block, 2);
    }
    let files = node.sim.files();
    // 20 new blocks for each disk, and a table.
    node.sim.set_free_space(RESERVE + 2 * 21 * BLOCK - 1);
    let acts = node.acts();
    let refused = run(&node, "snapshot delete web/one --yes").await;
    assert_eq!(refused.code, 10, "{refused:?}");
    for word in ["NO_SPACE", "in /images", "bytes free", "changed: nothing", "--with-children"] {
        assert!(refused.stderr.contains(word), "{word}: {}", refused.stderr);
    }
    assert_eq!((node.acts(), node.sim.files()), (acts, files));
    assert_eq!(node.names().await, ["one"]);
    assert_eq!(run(&node, "snapshot delete web/one --dry-run").await.code, 10);

    node.sim.set_free_space(RESERVE + 2 * 21 * BLOCK);
    succeed(&node, "snapshot delete web/one --yes").await;
    let read = [0, 20, 59].map(|block| node.read(block));
    assert_eq!(read, [[1, 1], [2, 2], [2, 2]]);
    assert_eq!(node.sim.violations(), Vec::<String>::new());
}

/// Deleting is how people make room: what goes as it is needs none. What waits for room is tried again.
#[tokio::test]
async fn what_the_daemon_merges_by_itself_waits_for_room() {
    let node = Node::start();
    let other = node.sim.vm("db").disks(1).build();
    node.write(0, 1);
    node.take("root").await;
    node.take("left").await;
    succeed(&node, "snapshot revert web/root --yes").await;
    for block in 0..40 {
        node.write(block, 2);
    }
    succeed(&node, "snapshot delete web/root --yes").await;
    node.sim.set_free_space(RESERVE);
    succeed(&node, "snapshot delete web/left --yes").await;
    let debt = async || json(&node, "vm show web").await["vm"]["merge_debt"]["layers"].as_u64().unwrap_or(0);
    assert_eq!(debt().await, 2, "a layer of each disk waits for room");
    // The daemon looks once more behind the deletion's end.
    until("it waits for room", async || {
        run(&node, "vm show web").await.stdout.contains("waits for  there may not be room for it")
    })
    .await;
    let measured = node.calls_of(Method::Measure);
    assert!(measured > 0, "it was measured first");
    node.sim.set_free_space(PLENTY);
    // Whatever ends next.
    succeed(&node, "snapshot create db one").await;
    until("it is merged", async || debt().await == 0).await;
    assert_eq!(node.read(39), [2, 2]);
    assert_eq!(node.sim.run_state(other), Some(RunState::Running));
    assert_eq!(node.sim.violations(), Vec::<String>::new());
}

/// A merge that nobody asked for makes room, too.
#[tokio::test]
async fn what_waits_for_room_is_tried_again_after_a_merge() {
    let node = Node::start();
    let db = node.sim.vm("db").disks(1).build();
    let write = |block| node.sim.guest_write(db, &"vda".parse().unwrap(), block, 1).unwrap();
    // Whichever way it is merged.
    write(0);
    for vm in ["web", "db"] {
        for name in ["root", "left"] {
            succeed(&node, &format!("snapshot create {vm} {name}")).await;
        }
        succeed(&node, &format!("snapshot revert {vm}/root --yes")).await;
        succeed(&node, &format!("snapshot delete {vm}/root --yes")).await;
    }
    for block in 0..40 {
        node.write(block, 2);
    }
    (0..10).for_each(write);
    node.sim.set_free_space(RESERVE);
    for vm in ["web", "db"] {
        succeed(&node, &format!("snapshot delete {vm}/left --yes")).await;
    }
    let debt = async |vm: &str| {
        let vm = json(&node, &format!("vm show {vm}")).await["vm"].clone();
        vm["merge_debt"]["layers"].as_u64().unwrap_or(0)
    };
    assert_eq!((debt("web").await, debt("db").await), (2, 1), "a layer of each disk waits for room");
    // Enough for the one that has written less.
    let hold = node.hold(Method::StartCommit);
    node.sim.set_free_space(RESERVE + 15 * BLOCK);
    node.sim.someone_resumes(node.vm);
    crate::node::reached(&hold).await;
    until("nobody looks any more", async || json(&node, "vm show web").await["vm"]["operation_id"] == "")
        .await;
    node.sim.set_free_space(PLENTY);
    hold.release();
    until("it is merged", async || debt("web").await == 0).await;
    assert_eq!(node.read(39), [2, 2]);
    assert_eq!(node.sim.violations(), Vec::<String>::new());
}

/// Writes block by block, each time after the daemon has taken in what it was told before.
async fn write_until_told(node: &Node, blocks: std::ops::Range<u64>, kind: v1::EventKind) -> u64 {
    let last = blocks.end - 1;
    for block in blocks {
        until("a threshold is set", async || node.sim.block_threshold(node.vm, &vda()).is_some()).await;
        node.sim.guest_write(node.vm, &vda(), block, 3).unwrap();
        if !told(node, kind).await.is_empty() {
            return block;
        }
    }
    until("it is told", async || !told(node, kind).await.is_empty()).await;
    last
}

#[tokio::test]
async fn little_room_is_told_once_and_before_there_is_none() {
    const LOW: v1::EventKind = v1::EventKind::SpaceLow;
    let mut node = Node::start();
    node.take("one").await;
    // 8 MiB above what is low, which is no less than the reserve.
    node.sim.set_free_space(RESERVE + (8 << 20));
    node.sim.someone_pauses(node.vm, PauseReason::User);
    node.sim.someone_resumes(node.vm);
    let near = image_length(&node) + (8 << 20);
    until("it is set for little room", async || {
        node.sim.block_threshold(node.vm, &vda()).is_some_and(|threshold| threshold <= near)
    })
    .await;
    let last = write_until_told(&node, 0..512, LOW).await;
    assert!(last > 16, "not before it is so");
    let event = told(&node, LOW).await.remove(0);
    assert_eq!((event.severity(), event.vm_name.as_str()), (v1::Severity::Warning, "web"));
    let free: u64 = event.attributes["free_bytes"].parse().unwrap();
    assert!(free < RESERVE && free > RESERVE / 2, "{free}");
    assert_eq!(event.attributes["disk"], "vda");
    let message = event.message.as_str();
    let image = node.sim.image_of(node.vm, &vda()).unwrap();
    assert!(message.contains(&image.display().to_string()) && message.contains("make room"), "{message}");

    // It stays low: told already.
    node.sim.someone_pauses(node.vm, PauseReason::User);
    node.sim.someone_resumes(node.vm);
    // There is room, and then there is little again.
    node.sim.set_free_space(PLENTY);
    node.sim.someone_pauses(node.vm, PauseReason::User);
    node.sim.someone_resumes(node.vm);
    let far = image_length(&node) + (1 << 30);
    until("it is set for all the room", async || {
        node.sim.block_threshold(node.vm, &vda()).is_some_and(|threshold| threshold > far)
    })
    .await;
    let of_vda =
        async || told(&node, LOW).await.iter().filter(|event| event.attributes["disk"] == "vda").count();
    assert_eq!(of_vda().await, 1);
    node.sim.set_free_space(RESERVE - 1);
    node.sim.someone_pauses(node.vm, PauseReason::User);
    node.sim.someone_resumes(node.vm);
    until("it is told again", async || of_vda().await == 2).await;

    // A switch, a restart of the daemon and one of the VM each ask for another one.
    node.sim.set_free_space(PLENTY);
    let is_set = async || disks().iter().all(|disk| node.sim.block_threshold(node.vm, disk).is_some());
    node.take("two").await;
    until("it is set after a switch", is_set).await;
    succeed(&node, "snapshot revert web/one --yes").await;
    until("it is set after a revert", is_set).await;
    node.crash();
    node.sim.someone_stops(node.vm);
    node.sim.someone_starts(node.vm);
    assert_eq!(node.sim.run_state(node.vm), Some(RunState::Running));
    assert_eq!(node.sim.block_threshold(node.vm, &vda()), None);
    node.restart();
    until("it is set after a restart", async || node.sim.block_threshold(node.vm, &vda()).is_some()).await;
}

fn image_length(node: &Node) -> u64 {
    let image = node.sim.image_of(node.vm, &vda()).unwrap();
    node.sim.read_image(&image).unwrap().len() as u64 * BLOCK
}

/// A libvirt that cannot watch images, or is asked at a bad moment, is no error.
#[tokio::test]
async fn without_thresholds_all_else_goes_on() {
    let node = Node::start();
    node.strike(Method::SetBlockThreshold, Mishap::Error(Complaint::Refused));
    node.take("one").await;
    stall(&node, 2);
    until("it is told", async || !told(&node, v1::EventKind::VmOutOfSpace).await.is_empty()).await;
    node.sim.set_free_space(PLENTY);
    succeed(&node, "vm resume web").await;
    succeed(&node, "snapshot delete web/one --yes").await;
}

#[tokio::test]
async fn the_node_shows_its_room() {
    let node = Node::start();
    node.sim.set_free_space(3 << 30);
    let shown = succeed(&node, "node show").await;
    assert!(shown.contains("3.0 GiB of") && shown.contains("free: "), "{shown}");
    let storage = json(&node, "node show").await["node"]["storage"].as_array().cloned().unwrap();
    assert_eq!(storage.len(), 1, "each file system once");
    assert_eq!(storage[0]["free_bytes"], (3_u64 << 30).to_string());
}
