//! What snapshots of other VMs and volumes read is theirs: no merge, no flatten and no purge of ours changes it.

use std::path::{Path, PathBuf};

use vmsnap::host::Images as _;
use vmsnap::host::sim::{Call, Fault, Method, Mishap, Moment, Trigger};
use vmsnap::model::step::{ImageRef, NewOverlay};
use vmsnap::model::vm::Format;

use super::client::{json, run, succeed};
use super::node::{Node, PATIENCE, vda};

fn qcow2(path: &str) -> ImageRef {
    ImageRef { path: path.into(), format: Format::Qcow2 }
}

/// What the file that a snapshot of a volume holds reads in its first block.
async fn held(node: &Node, snapshot: &str) -> u64 {
    let shown = json(node, &format!("snapshot show {snapshot}")).await;
    assert_eq!(shown["snapshot"]["state"], "SNAPSHOT_STATE_READY");
    let path = PathBuf::from(shown["snapshot"]["disks"][0]["path"].as_str().unwrap());
    node.sim.read_image(&path).unwrap().get(&1).copied().unwrap_or_default()
}

async fn state(node: &Node, snapshot: &str, wanted: &str) {
    let wanted = format!("SNAPSHOT_STATE_{wanted}");
    let is_so = async {
        while json(node, &format!("snapshot show {snapshot}")).await["snapshot"]["state"] != wanted.as_str() {
        }
    };
    tokio::time::timeout(PATIENCE, is_so).await.unwrap_or_else(|_| panic!("{snapshot} is not {wanted}"));
}

/// Nothing waits to be merged any more, and nobody is at it.
pub async fn settled(node: &Node) {
    let is_settled = async {
        loop {
            let vm = json(node, "vm show web").await["vm"].clone();
            if vm["merge_debt"]["layers"].as_u64() == Some(0) && vm["operation_id"] == "" {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, is_settled).await.expect("it is merged by itself");
}

async fn agrees(node: &Node) {
    let checked = run(node, "node check").await;
    assert_eq!(checked.code, 0, "{checked:?}");
    assert_eq!(node.sim.violations(), Vec::<String>::new());
}

/// A node where somebody has made an image over a snapshot's, by hand.
async fn covered(path: &str) -> Node {
    let node = Node::start();
    node.write(1, 10);
    let one = node.take("one").await;
    node.write(1, 20);
    let disk = one.disks.iter().find(|disk| disk.target == "vda").unwrap();
    let overlay = NewOverlay {
        target: vda(),
        path: path.into(),
        backing_path: disk.path.clone().into(),
        backing_format: Format::Qcow2,
        virtual_size: disk.virtual_size_bytes,
    };
    node.sim.create_overlay(&overlay).await.unwrap();
    node
}

/// A linked clone with a snapshot of its own, and a VM that has it.
async fn used_clone(node: &Node) -> vmsnap::model::VmId {
    node.write(1, 10);
    node.take("one").await;
    node.write(1, 20);
    succeed(node, "volume clone web/one --disk vda --to copy").await;
    succeed(node, "volume snapshot create own --volume copy").await;
    node.sim.vm("other").image("vda", qcow2("/images/copy")).build()
}

#[tokio::test]
async fn a_clone_keeps_its_own_snapshots_when_it_is_flattened_for_its_vm() {
    let node = Node::start();
    let other = used_clone(&node).await;
    node.sim.guest_write(other, &vda(), 1, 30).unwrap();
    let refused = run(&node, "volume flatten copy").await;
    assert!(refused.code == 6 && refused.stderr.contains("VM other is using"), "{refused:?}");
    node.sim.someone_stops(other);
    succeed(&node, "volume flatten copy").await;
    agrees(&node).await;
    succeed(&node, "snapshot delete web/one --yes").await;
    node.write(1, 40);
    assert_eq!(held(&node, "copy/own").await, 10, "it stands on its own");
    assert_eq!(node.sim.read_image("/images/copy".as_ref()).unwrap().get(&1), Some(&30));
    let (images, files) = (json(&node, "vm show web").await, node.sim.files());
    assert_eq!(images["vm"]["disks"][0]["chain_depth"], 1, "nothing of the source is held: {files:?}");
    agrees(&node).await;
}

/// Its VM has snapshots, too: what the catalog knows of that VM follows.
#[tokio::test]
async fn a_flatten_is_known_to_every_tree_that_has_the_image() {
    let node = Node::start();
    node.write(1, 10);
    node.take("one").await;
    succeed(&node, "volume clone web/one --disk vda --to copy").await;
    let other = node.sim.vm("other").image("vda", qcow2("/images/copy")).build();
    succeed(&node, "snapshot create other mine").await;
    node.sim.someone_stops(other);
    succeed(&node, "volume flatten copy").await;
    agrees(&node).await;
    succeed(&node, "snapshot delete web/one --yes").await;
    node.write(1, 20);
    assert_eq!(held(&node, "other/mine").await, 10);
    succeed(&node, "snapshot revert other/mine --yes").await;
    succeed(&node, "snapshot delete other/mine --yes").await;
    agrees(&node).await;
}

/// Snapshots of such an image are taken here. No VM has it.
#[tokio::test]
async fn a_layer_that_snapshots_of_another_volume_read_waits_for_them() {
    let node = covered("/images/by-hand.qcow2").await;
    succeed(&node, "volume snapshot create own --volume by-hand.qcow2").await;
    succeed(&node, "snapshot delete web/one --yes").await;
    node.write(1, 30);
    assert_eq!(held(&node, "by-hand.qcow2/own").await, 10, "it is not merged away");
    let debt = json(&node, "vm show web").await["vm"]["merge_debt"].clone();
    assert_eq!(debt["layers"], 1);
    assert_eq!(debt["waits_for"], serde_json::json!(["snapshot own of by-hand.qcow2 reads it"]));

    // Without snapshots it still lies there, for whatever it was made.
    succeed(&node, "snapshot delete by-hand.qcow2/own --yes").await;
    node.write(1, 40);
    assert_eq!(node.sim.read_image("/images/by-hand.qcow2".as_ref()).unwrap().get(&1), Some(&10));
    node.sim.someone_removes(Path::new("/images/by-hand.qcow2"));
    // Nothing tells that a file has gone. The next operation looks, unless what the deletion has left to do comes first.
    let created = run(&node, "snapshot create web two").await;
    if created.code != 0 {
        assert!(created.stderr.contains("VM_BUSY"), "{created:?}");
        settled(&node).await;
        node.take("two").await;
    }
    settled(&node).await;
    assert_eq!(node.read(1), [40, 40]);
    agrees(&node).await;
}

/// With the last snapshot that reads it goes what held a layer up, without another operation on the VM.
#[tokio::test]
async fn a_layer_that_waited_for_lost_snapshots_is_merged_by_itself() {
    let node = covered("/elsewhere/by-hand").await;
    let other = node.sim.vm("other").image("vda", qcow2("/elsewhere/by-hand")).build();
    succeed(&node, "snapshot create other mine").await;
    node.sim.someone_stops(other);
    node.sim.someone_undefines(other);
    state(&node, "other/mine", "LOST").await;
    succeed(&node, "snapshot delete web/one --yes").await;
    assert_eq!(json(&node, "vm show web").await["vm"]["merge_debt"]["layers"], 1);
    assert_eq!(node.sim.read_image("/elsewhere/by-hand".as_ref()).unwrap().get(&1), Some(&10));
    // The disk of the VM goes with it; the snapshot keeps what it reads until it is purged.
    for file in node.sim.files().iter().filter(|file| file.starts_with("/elsewhere")) {
        node.sim.someone_removes(file);
    }
    succeed(&node, "snapshot purge other/mine --yes").await;
    settled(&node).await;
    assert_eq!(node.read(1), [20, 20]);
}

/// The VM has left. What its LOST snapshots read is kept for the day it comes back.
#[tokio::test]
async fn a_layer_that_lost_snapshots_read_waits_for_them() {
    let node = Node::start();
    let other = used_clone(&node).await;
    succeed(&node, "snapshot create other mine").await;
    node.sim.someone_stops(other);
    node.sim.someone_undefines(other);
    state(&node, "other/mine", "LOST").await;
    let files = node.images();
    succeed(&node, "snapshot delete copy/own --yes").await;
    assert_eq!(node.images(), files, "its chain stays as it was");
    succeed(&node, "snapshot purge other/mine --yes").await;
}

/// The VM is back without an image: nothing brings such a snapshot back, so it can be let go.
#[tokio::test]
async fn a_lost_snapshot_of_a_vm_that_is_here_is_deleted() {
    let node = Node::start();
    node.write(1, 10);
    node.take("one").await;
    node.write(1, 20);
    succeed(&node, "snapshot create web two --memory").await;
    let is_memory = |file: &PathBuf| file.extension().is_some_and(|extension| extension == "memory");
    let memory = node.sim.files().into_iter().find(is_memory).unwrap();
    let images: Vec<_> = super::node::disks()
        .into_iter()
        .map(|disk| (disk.clone(), node.sim.image_of(node.vm, &disk)))
        .collect();
    node.sim.someone_stops(node.vm);
    node.sim.someone_undefines(node.vm);
    state(&node, "web/two", "LOST").await;
    node.sim.someone_removes(&memory);
    let mut vm = node.sim.vm("web");
    for (disk, path) in &images {
        vm = vm.image(disk.as_str(), ImageRef { path: path.clone().unwrap(), format: Format::Qcow2 });
    }
    vm.build();
    state(&node, "web/one", "READY").await;
    state(&node, "web/two", "LOST").await;
    succeed(&node, "snapshot delete web/two --yes").await;
    assert_eq!(node.read(1), [20, 20]);
    succeed(&node, "snapshot revert web/one --yes").await;
    assert_eq!(node.read(1), [10, 10]);
    agrees(&node).await;
}

/// What is copied must not get a snapshot of its own meanwhile; and it can be had back as it was.
#[tokio::test]
async fn a_flatten_holds_the_clone_and_is_cancelled() {
    let node = Node::start();
    node.write(1, 10);
    node.take("one").await;
    succeed(&node, "volume clone web/one --disk vda --to copy").await;
    // Half is copied when it comes to a halt.
    let at = Trigger::Call(Call { method: Method::Pull, occurrence: 1 });
    node.sim.add_fault(Fault { at, moment: Moment::Midway, mishap: Mishap::Hang });
    let begun = json(&node, "volume flatten copy --no-wait").await;
    let id = begun["operation"]["id"].as_str().unwrap().to_owned();
    let halted = async {
        while !node.sim.calls().iter().any(|call| call.method == Method::Pull) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, halted).await.unwrap();
    let refused = run(&node, "volume snapshot create own --volume copy").await;
    assert!(refused.code == 6 && refused.stderr.contains("VM_BUSY"), "{refused:?}");
    succeed(&node, &format!("op cancel {id} --yes")).await;
    let ended = node.end_of(&id).await;
    assert_eq!(ended.error.unwrap().reason(), vmsnap::proto::v1::Reason::Cancelled);
    assert_eq!(held_by_clone(&node).await, 1, "it is linked as before");
    succeed(&node, "volume snapshot create own --volume copy").await;
    assert_eq!(held(&node, "copy/own").await, 10);
    agrees(&node).await;
}

/// How many images lie below the clone.
async fn held_by_clone(node: &Node) -> usize {
    let facts = node.sim.inspect("/images/copy".as_ref(), Format::Qcow2).await.unwrap();
    usize::from(facts.backing.is_some())
}
