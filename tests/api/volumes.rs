//! Single disks: their snapshots, taken now or out of a VM's snapshot, and going back to them.

use serde_json::Value;
use vmsnap::proto::v1;

use super::client::{run, succeed};
use super::node::{Node, delete};

async fn json(node: &Node, line: &str) -> Value {
    serde_json::from_str(&succeed(node, &format!("{line} -o json")).await).unwrap()
}

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
