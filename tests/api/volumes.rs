//! Single disks: their snapshots, taken now or out of a VM's snapshot, and going back to them.

use std::path::Path;

use serde_json::Value;
use vmsnap::model::step::ImageRef;
use vmsnap::model::vm::Format;
use vmsnap::proto::v1;

use tonic::Code;

use super::client::{json, run, succeed};
use super::node::{Node, PATIENCE, assert_refused, delete};

#[tokio::test]
async fn a_volume_is_taken_out_of_a_snapshot_and_outlives_it() {
    let node = Node::start();
    node.write(1, 10);
    let source = node.take("one").await;
    node.write(1, 20);
    let acts = node.acts();
    let shown = json(&node, "volume snapshot create disk --from web/one --disk vdb --property a=1").await;
    assert_eq!(node.acts(), acts, "no image is touched");
    let taken = &shown["snapshot"];
    assert_eq!(taken["kind"], "SNAPSHOT_KIND_VOLUME");
    assert_eq!(
        (&taken["source_snapshot_id"], &taken["properties"]["a"]),
        (&source.id.clone().into(), &"1".into())
    );
    assert_eq!(taken["consistency"], "CONSISTENCY_FILESYSTEM", "as good as where it comes from");
    let time = |snapshot: &v1::Snapshot| snapshot.create_time;
    assert_eq!(time(&node.snapshot("disk").await), time(&source), "it is of the same instant");
    assert!(node.snapshot("one").await.current, "the VM has not gone anywhere");
    let tree = succeed(&node, "snapshot list web --tree").await;
    assert!(!tree.contains("disk  READY"), "it is no place that the VM has been at: {tree}");

    let begun = node.snapshots().delete_snapshot(delete("one")).await.unwrap().into_inner();
    node.end_of(&begun.operation.unwrap().id).await;
    assert_eq!(node.names().await, ["disk"]);
    succeed(&node, "volume revert web/vdb disk --stop --yes").await;
    assert_eq!(node.read(1), [20, 10], "vda has not gone back");
    assert_eq!(node.sim.violations(), Vec::<String>::new());
}

#[tokio::test]
async fn one_volume_is_taken_and_goes_back() {
    let node = Node::start();
    node.write(1, 10);
    succeed(&node, "volume snapshot create before --volume web/vda").await;
    node.write(1, 20);
    let used = run(&node, "volume revert web/vda before --yes").await;
    assert_eq!(used.code, 6, "{used:?}");
    assert!(used.stderr.contains("VOLUME_IN_USE") && used.stderr.contains("--stop"), "{used:?}");
    let plan = succeed(&node, "volume revert web/vda before --stop --dry-run").await;
    assert!(plan.contains("stop the VM") && plan.contains("what was written to disk vda"), "{plan}");
    let back = json(&node, "volume revert web/vda before --stop --yes").await;
    assert_eq!((&back["volume"]["name"], &back["volume"]["snapshot_count"]), (&"web/vda".into(), &1.into()));
    assert_eq!(node.read(1), [10, 20]);

    let volumes = succeed(&node, "volume list web").await;
    assert!(volumes.contains("web/vda") && volumes.contains("web/vdb"), "{volumes}");
    let by_id = back["volume"]["id"].as_str().unwrap();
    assert!(succeed(&node, &format!("volume show {by_id}")).await.contains("web/vda"));
    succeed(&node, "snapshot delete web/before --yes").await;
    assert_eq!(node.sim.files().len(), 2, "only the first images are left");
}

#[tokio::test]
async fn what_makes_no_sense_is_refused() {
    let node = Node::start();
    node.take("one").await;
    succeed(&node, "volume snapshot create disk --from web/one --disk vda").await;
    let check = async |line: &str, code, word: &str| {
        let reply = run(&node, line).await;
        assert_eq!(reply.code, code, "{line}: {reply:?}");
        assert!(reply.stderr.contains(word), "{line}: {reply:?}");
    };
    check("volume snapshot create x --from web/one", 2, "vda, vdb").await;
    check("volume snapshot create x --from web/one --disk vdz", 4, "DISK_NOT_FOUND").await;
    check("volume snapshot create disk --from web/one --disk vda", 5, "SNAPSHOT_EXISTS").await;
    check("volume snapshot create x", 2, "--volume").await;
    check("volume snapshot create x --volume web/vdz", 4, "VOLUME_NOT_FOUND").await;
    check("volume show nothing", 4, "vmsnap volume list").await;
    check("volume revert web/vdb disk --stop --yes", 4, "does not hold the volume").await;
    check("snapshot revert web/disk --yes", 2, "vmsnap volume revert").await;
}

/// An image that nobody told the daemon of, in the directory that is configured for images.
fn put_image(node: &Node, name: &str) {
    node.sim.put_image(Path::new(&format!("/images/{name}")), Format::Qcow2, 1 << 20, false).unwrap();
}

fn read(node: &Node) -> u64 {
    node.sim.read_image("/images/data.qcow2".as_ref()).unwrap().get(&1).copied().unwrap_or_default()
}

#[tokio::test]
async fn a_volume_that_no_vm_has() {
    let mut node = Node::start();
    put_image(&node, "data.qcow2");
    let write = |node: &Node, value| {
        node.sim.write_image("/images/data.qcow2".as_ref(), 1, value).unwrap();
    };
    let listed = succeed(&node, "volume list").await;
    assert!(listed.contains("data.qcow2") && listed.contains("AVAILABLE"), "{listed}");
    write(&node, 10);
    let plan = succeed(&node, "volume snapshot create one --volume data.qcow2 --dry-run").await;
    assert!(plan.contains("take the place of /images/data.qcow2"), "{plan}");
    let shown = json(&node, "volume snapshot create one --volume data.qcow2 --property a=1").await;
    let taken = &shown["snapshot"];
    assert_eq!((&taken["vm_id"], &taken["vm_name"]), (&"".into(), &"data.qcow2".into()));
    assert_eq!((&taken["kind"], &taken["properties"]["a"]), (&"SNAPSHOT_KIND_VOLUME".into(), &"1".into()));
    assert_eq!(taken["disks"][0]["volume_id"], json(&node, "volume show data.qcow2").await["volume"]["id"]);
    write(&node, 20);
    succeed(&node, "volume snapshot create two --volume /images/data.qcow2").await;
    write(&node, 30);

    node.crash();
    node.restart();
    let before = json(&node, "volume show data.qcow2").await;
    assert_eq!(
        (&before["volume"]["path"], &before["volume"]["snapshot_count"]),
        (&"/images/data.qcow2".into(), &2.into())
    );
    let list = succeed(&node, "snapshot list data.qcow2").await;
    assert!(list.contains("one") && list.contains("two"), "{list}");
    let back = json(&node, "volume revert data.qcow2 one --yes").await;
    assert_ne!(back["volume"]["etag"], before["volume"]["etag"], "it is another state");
    assert_eq!(read(&node), 10);
    let stale = v1::RevertVolumeRequest {
        volume: "data.qcow2".to_owned(),
        snapshot: "two".to_owned(),
        etag: before["volume"]["etag"].as_str().unwrap().to_owned(),
        ..Default::default()
    };
    let refused = node.volumes().revert_volume(stale).await.unwrap_err();
    assert_refused(&refused, Code::Aborted, "ETAG_MISMATCH");

    // A copy of an older state, and then the snapshots go; the copy and the newest state stay.
    succeed(&node, "volume clone data.qcow2/two --to copy.qcow2 --full").await;
    succeed(&node, "snapshot delete data.qcow2/one data.qcow2/two --yes").await;
    let files: Vec<_> = node.images().into_iter().filter(|file| file.starts_with("/images")).collect();
    assert!(!files.iter().any(|file| file.to_string_lossy().contains("vmsnap-")), "{files:?}");
    assert_eq!(read(&node), 10);
    let events = succeed(&node, "event list").await;
    assert!(events.contains("snapshot one is READY") && events.contains("snapshot one is gone"), "{events}");
    assert_eq!(node.sim.violations(), Vec::<String>::new());
}

#[tokio::test]
async fn what_a_vm_has_or_others_read_is_its_own_matter() {
    let node = Node::start();
    put_image(&node, "data.qcow2");
    put_image(&node, "template.qcow2");
    succeed(&node, "volume snapshot create one --volume data.qcow2").await;
    let check = async |line: &str, code, word: &str| {
        let reply = run(&node, line).await;
        assert_eq!(reply.code, code, "{line}: {reply:?}");
        assert!(reply.stderr.contains(word), "{line}: {reply:?}");
    };

    // Under an overlay that somebody made, it is no volume but what the overlay reads.
    let template = ImageRef { path: "/images/template.qcow2".into(), format: Format::Qcow2 };
    let overlay = vmsnap::model::step::NewOverlay {
        target: "vda".parse().unwrap(),
        path: "/images/by-hand.qcow2".into(),
        backing_path: template.path.clone(),
        backing_format: Format::Qcow2,
        virtual_size: 1 << 20,
    };
    vmsnap::host::Images::create_overlay(&node.sim, &overlay).await.unwrap();
    let reads_it = "/images/by-hand.qcow2 reads it";
    check("volume snapshot create x --volume template.qcow2", 6, reads_it).await;
    check("volume snapshot create x --volume /images/template.qcow2", 6, "LAYER_IN_USE").await;
    check("volume snapshot create x --volume /images/nothing.qcow2", 4, "VOLUME_NOT_FOUND").await;

    // A VM takes the volume: from then on its snapshots are taken with the VM, and the older ones wait.
    let image = ImageRef { path: "/images/data.qcow2".into(), format: Format::Qcow2 };
    let other = node.sim.vm("other").image("vda", image).build();
    let shown = json(&node, "volume show other/vda").await;
    assert_eq!(
        (&shown["volume"]["vm_name"], &shown["volume"]["snapshot_count"]),
        (&"other".into(), &1.into())
    );
    check("volume revert other/vda one --stop --yes", 6, "VM other is using the volume").await;
    succeed(&node, "volume snapshot create two --volume other/vda").await;
    let snapshots = json(&node, "snapshot list").await;
    let one = snapshots["snapshots"].as_array().unwrap().iter().find(|it| it["name"] == "one").unwrap();
    let id = one["id"].as_str().unwrap();
    let files = node.images();
    succeed(&node, &format!("snapshot delete {id} --yes")).await;
    assert_eq!(node.images(), files, "the VM reads through it");
    let waits = json(&node, "volume show other/vda").await["volume"]["merge_debt"].clone();
    assert_eq!(waits, Value::Null, "it is the VM's now");
    succeed(&node, "snapshot delete other/two --yes").await;

    // Once it has gone, what waited is merged by itself.
    node.sim.someone_stops(other);
    node.sim.someone_undefines(other);
    let settled = async {
        while node.sim.files().iter().any(|file| file.to_string_lossy().contains("/images/vmsnap-")) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, settled).await.expect("it is merged by itself");
    assert_eq!(node.sim.violations(), Vec::<String>::new());
}
