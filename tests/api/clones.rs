//! Volumes and VMs out of snapshots, through the contract and the client.

use vmsnap::host::Images;
use vmsnap::host::sim::Method;
use vmsnap::model::RunState;
use vmsnap::model::step::{ImageRef, NewOverlay};
use vmsnap::model::vm::{ExcludedDisk, Format};
use vmsnap::proto::v1;

use super::client::{json, run, succeed};
use super::node::{Node, PATIENCE, delete};
use super::readers::settled;

#[tokio::test]
async fn a_linked_clone_holds_its_layer_until_it_is_flattened() {
    let mut node = Node::start();
    node.write(1, 10);
    let source = node.take("one").await;
    node.write(1, 20);
    let line = "volume clone web/one --disk vda --to copy --name mine --account acme --property a=1";
    let made = json(&node, line).await;
    let volume = &made["volume"];
    assert_eq!((&volume["name"], &volume["path"]), (&"mine".into(), &"/images/copy".into()));
    assert_eq!((&volume["state"], &volume["account"]), (&"VOLUME_STATE_AVAILABLE".into(), &"acme".into()));
    assert_eq!((&volume["source_snapshot_id"], &volume["properties"]["a"]), (&source.id.into(), &"1".into()));

    let begun = node.snapshots().delete_snapshot(delete("one")).await.unwrap().into_inner();
    assert_eq!(node.end_of(&begun.operation.unwrap().id).await.state(), v1::OperationState::Succeeded);
    node.crash();
    node.restart();
    let read = node.sim.read_image("/images/copy".as_ref()).unwrap();
    assert_eq!(read.get(&1), Some(&10), "it reads what the snapshot read, which is gone");
    let held = node.sim.files().len();
    let flat = json(&node, "volume flatten mine").await;
    assert_eq!(flat["volume"]["source_snapshot_id"], "");
    settled(&node).await;
    let again = run(&node, "volume flatten mine").await;
    assert_eq!(again.code, 2, "it stands alone already: {again:?}");
    assert_eq!(node.sim.read_image("/images/copy".as_ref()).unwrap(), read);
    succeed(&node, "volume delete mine --yes").await;
    assert!(node.sim.files().len() < held && !node.sim.files().contains(&"/images/copy".into()));
    assert_eq!(run(&node, "volume show mine").await.code, 4);
    assert_eq!(node.sim.violations(), Vec::<String>::new());
}

/// What a clone's own snapshot holds is not as it was: to write to it would hide that.
#[tokio::test]
async fn nothing_is_flattened_that_differs() {
    let node = Node::start();
    node.take("one").await;
    succeed(&node, "volume clone web/one --disk vda --to copy --name mine").await;
    succeed(&node, "volume snapshot create kept --volume mine").await;
    let kept = json(&node, "snapshot show kept").await["snapshot"].take();
    let file = kept["disks"][0]["path"].as_str().unwrap().to_owned();
    node.sim.someone_replaces(file.as_ref());
    let refused = run(&node, "volume flatten mine").await;
    assert!(refused.code == 6 && refused.stderr.contains("another file stands there"), "{refused:?}");
    let refused = run(&node, "volume clone kept --to again").await;
    assert!(refused.code == 6 && refused.stderr.contains("another file stands there"), "{refused:?}");
}

#[tokio::test]
async fn a_vm_is_deployed_and_its_volumes_are_its_own() {
    let node = Node::start();
    node.write(1, 10);
    node.take("one").await;
    node.write(1, 20);
    let plan = succeed(&node, "vm deploy web/one --name copy --then running --dry-run").await;
    assert!(plan.contains("define VM copy") && plan.contains("start the new VM"), "{plan}");
    let shown = json(&node, "vm deploy web/one --name copy --then running").await;
    assert_eq!(
        (&shown["vm"]["name"], &shown["vm"]["run_state"]),
        (&"copy".into(), &"RUN_STATE_RUNNING".into())
    );
    let copy = node.sim.find_vm("copy").unwrap();
    assert_eq!(node.sim.guest_read(copy, &"vda".parse().unwrap(), 1).unwrap(), 10);
    assert_eq!(node.read(1), [20, 20], "the source goes on");
    assert_eq!(node.sim.run_state(node.vm), Some(RunState::Running));

    let volumes = succeed(&node, "volume list copy").await;
    assert!(volumes.contains("copy-vda") && volumes.contains("IN_USE"), "{volumes}");
    let refused = run(&node, "volume delete copy-vda --yes").await;
    assert_eq!(
        (refused.code, refused.stderr.contains("VM copy is using the volume")),
        (6, true),
        "{refused:?}"
    );
    succeed(&node, "volume flatten copy-vda").await;
    assert_eq!(node.sim.guest_read(copy, &"vda".parse().unwrap(), 1).unwrap(), 10, "while it runs");
    succeed(&node, "snapshot create copy mine").await;
    let refused = run(&node, "volume flatten copy-vdb").await;
    assert_eq!(refused.code, 6, "its VM writes to an overlay over it: {refused:?}");
    let shown = json(&node, "volume show copy-vda").await;
    assert_eq!((&shown["volume"]["target"], &shown["volume"]["snapshot_count"]), (&"vda".into(), &1.into()));
    assert_eq!(run(&node, "vm deploy web/one --name copy").await.code, 5, "the name is taken");
    assert_eq!(node.sim.violations(), Vec::<String>::new());
}

#[tokio::test]
async fn bad_requests_change_nothing() {
    let node = Node::start();
    node.take("one").await;
    let acts = node.acts();
    let check = async |line: &str, code, word: &str| {
        let reply = run(&node, line).await;
        assert_eq!(reply.code, code, "{line}: {reply:?}");
        assert!(reply.stderr.contains(word), "{line}: {reply:?}");
    };
    check("volume clone web/one --disk vda --to /etc/passwd", 7, "PATH_NOT_ALLOWED").await;
    check("volume clone web/one --disk vda --to /images/../etc/x", 7, "PATH_NOT_ALLOWED").await;
    check("volume clone web/one --disk vda --to ../x", 2, "path").await;
    check("volume clone web/one --disk vda --to web-vda", 5, "FILE_EXISTS").await;
    check("volume clone web/one --to x", 2, "vda, vdb").await;
    check("volume clone web/two --disk vda --to x", 4, "SNAPSHOT_NOT_FOUND").await;
    check("volume clone web/one --disk vda --to x --bandwidth 5M", 2, "--full").await;
    check("volume delete web/vda --yes", 2, "not a clone of ours").await;
    check("vm deploy web/one --name a/b", 2, "name").await;
    check("vm deploy web/one --name web", 5, "VM_EXISTS").await;
    assert_eq!(node.acts(), acts);
}

/// The VM that runs on it would have to copy, and its QEMU might not survive that.
#[tokio::test]
async fn a_clone_is_not_flattened_at_the_risk_of_its_vm() {
    let node = Node::start();
    node.take("one").await;
    succeed(&node, "volume clone web/one --disk vda --to copy").await;
    let image = ImageRef { path: "/images/copy".into(), format: Format::Qcow2 };
    let other = node.sim.vm("other").pull_blocker("QEMU 10.0.2 may crash").image("vda", image).build();
    let refused = run(&node, "volume flatten copy").await;
    assert_eq!(refused.code, 6, "{refused:?}");
    for word in ["HOST_LACKS_FEATURE", "QEMU 10.0.2 may crash", "shut the VM down"] {
        assert!(refused.stderr.contains(word), "{refused:?}");
    }
    node.sim.someone_stops(other);
    succeed(&node, "volume flatten copy").await;
    assert_eq!(node.sim.violations(), Vec::<String>::new());
}

/// Where it went nobody can tell, so nothing more is done to its image; which reads the same at each moment.
#[tokio::test]
async fn a_clone_whose_vm_goes_while_it_is_flattened() {
    let node = Node::start();
    node.write(1, 10);
    node.take("one").await;
    node.write(1, 20);
    node.sim.set_job_notches(1_000_000);
    succeed(&node, "vm deploy web/one --name copy --then running").await;
    let copy = node.sim.find_vm("copy").unwrap();
    let hold = node.hold(Method::StartPull);
    let (client, meanwhile) = (run(&node, "volume flatten copy-vda"), async {
        crate::node::reached(&hold).await;
        node.sim.someone_stops(copy);
        node.sim.someone_undefines(copy);
        hold.release();
    });
    let (flattened, ()) = tokio::join!(client, meanwhile);
    assert_eq!(flattened.code, 4, "{flattened:?}");
    let shown = json(&node, "volume show copy-vda").await;
    let path = shown["volume"]["path"].as_str().unwrap();
    assert_eq!(node.sim.read_image(path.as_ref()).unwrap().get(&1), Some(&10));
    succeed(&node, "volume flatten copy-vda").await;
    assert_eq!(node.sim.read_image(path.as_ref()).unwrap().get(&1), Some(&10));
    assert_eq!(node.sim.violations(), Vec::<String>::new());
}

/// Somebody made a VM over a snapshot's image behind our back: what it reads stays until it has gone.
#[tokio::test]
async fn what_another_vm_reads_waits() {
    let node = Node::start();
    node.write(1, 10);
    let one = node.take("one").await;
    node.write(1, 20);
    node.take("two").await;
    let path = std::path::PathBuf::from("/images/by-hand");
    let overlay = NewOverlay {
        target: "vda".parse().unwrap(),
        path: path.clone(),
        backing_path: one.disks[0].path.clone().into(),
        backing_format: Format::Qcow2,
        virtual_size: one.disks[0].virtual_size_bytes,
    };
    node.sim.create_overlay(&overlay).await.unwrap();
    let other =
        node.sim.vm("other").image("vda", ImageRef { path: path.clone(), format: Format::Qcow2 }).build();
    let plan = succeed(&node, "snapshot delete web/one --dry-run").await;
    assert!(plan.contains("1 layers are read by other VMs"), "{plan}");
    succeed(&node, "snapshot delete web/one --yes").await;
    assert_eq!(json(&node, "vm show web").await["vm"]["merge_debt"]["layers"], 1, "vdb has gone");
    assert_eq!(node.sim.guest_read(other, &"vda".parse().unwrap(), 1).unwrap(), 10);
    // Off it still has a definition.
    node.sim.someone_stops(other);
    succeed(&node, "snapshot delete web/two --yes").await;
    assert_eq!(node.sim.read_image(&path).unwrap().get(&1), Some(&10));
    // What lies there by hand may be wanted again.
    node.sim.someone_removes(&path);
    node.sim.someone_undefines(other);
    let settled = async {
        while json(&node, "vm show web").await["vm"]["merge_debt"]["layers"] != 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, settled).await.expect("it is merged by itself");
    assert_eq!(node.read(1), [20, 20]);
    assert_eq!(node.sim.violations(), Vec::<String>::new());
}

/// Of a VM that is off nothing is locked, and a disk that is not handled is no chain.
#[tokio::test]
async fn a_clone_that_is_a_disk_which_is_not_handled_is_not_deleted() {
    let node = Node::start();
    node.take("one").await;
    json(&node, "volume clone web/one --disk vda --to copy --name mine").await;
    let other = node.sim.vm("other").excluded("vda", ExcludedDisk::ReadOnly);
    other.names("/images/copy".as_ref()).off().build();
    let refused = run(&node, "volume delete mine --yes").await;
    assert!(refused.code == 6 && refused.stderr.contains("VOLUME_IN_USE"), "{refused:?}");
    assert!(node.sim.files().contains(&"/images/copy".into()));
}
