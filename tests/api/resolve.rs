//! What somebody did behind the daemon's back is settled, the way that a person chooses: nothing that can be read goes, what
//! cannot be vouched for is said so, and the VM takes snapshots again.

use std::path::{Path, PathBuf};

use serde_json::Value;
use tonic::Code;
use vmsnap::host::sim::{BLOCK, Method, SimHost};
use vmsnap::model::DiskTarget;
use vmsnap::model::step::ImageRef;
use vmsnap::model::vm::Format;
use vmsnap::proto::v1;

use super::client::{json, run, succeed};
use super::differences::{differences, only, put_orphan, request};
use super::node::{Node, PATIENCE, assert_refused, vda};
use super::readers::settled;

const DIFFERS: i32 = 11;
const WAYS: [&str; 4] = ["adopt", "restore", "mark-lost", "remove-file"];

/// The file that holds what a snapshot has of vda.
async fn file_of(node: &Node, snapshot: &str) -> PathBuf {
    let shown = json(node, &format!("snapshot show web/{snapshot}")).await;
    shown["snapshot"]["disks"][0]["path"].as_str().unwrap().into()
}

fn active(node: &Node) -> PathBuf {
    node.sim.image_of(node.vm, &vda()).unwrap()
}

/// By name, the state of each snapshot and what it reads from block 1 of its first disk.
async fn snapshots(node: &Node) -> Vec<(String, String, Option<u64>)> {
    let list = json(node, "snapshot list web --sort created").await;
    let of = |snapshot: &Value| {
        let path = snapshot["disks"][0]["path"].as_str().unwrap_or_default();
        let reads =
            node.sim.read_image(path.as_ref()).ok().map(|content| content.get(&1).copied().unwrap_or(0));
        let state = snapshot["state"].as_str().unwrap().trim_start_matches("SNAPSHOT_STATE_").to_owned();
        (snapshot["name"].as_str().unwrap().to_owned(), state, reads)
    };
    let mut all: Vec<_> = list["snapshots"].as_array().unwrap().iter().map(of).collect();
    all.sort();
    all
}

/// What somebody does, how it is settled, and what the snapshots are and read then.
struct Case {
    kind: &'static str,
    ways: &'static [&'static str],
    way: &'static str,
    one: (&'static str, u64),
    two: (&'static str, u64),
}

async fn check(act: impl AsyncFn(&Node), case: Case) {
    let node = Node::start();
    for (value, name) in [(10, "one"), (20, "two")] {
        node.write(1, value);
        node.take(name).await;
    }
    node.write(1, 30);
    act(&node).await;
    let files = node.images();
    let id = only(&node, case.kind, case.ways).await;
    for way in WAYS.iter().filter(|way| !case.ways.contains(way)) {
        let refused = run(&node, &format!("vm resolve web {id} --{way} --yes")).await;
        assert!(refused.code == 6 && refused.stderr.contains("RESOLUTION_NOT_OFFERED"), "{way}: {refused:?}");
    }
    let asked = run(&node, &format!("vm resolve web {id} --{}", case.way)).await;
    assert_eq!(asked.code, 2, "it is asked first: {asked:?}");
    succeed(&node, &format!("vm resolve web {id} --{} --dry-run", case.way)).await;
    assert_eq!(only(&node, case.kind, case.ways).await, id, "nothing was done so far");

    succeed(&node, &format!("vm resolve web {} --{} --yes", &id[..8], case.way)).await;
    assert_eq!(node.images(), files, "no file comes or goes");
    assert_eq!(json(&node, "vm show web").await["vm"]["difference_count"], 0, "it is seen at once");
    assert_eq!(run(&node, "vm check web").await.code, 0);
    let again = request("web", &id, v1::DifferenceAction::Adopt);
    let status = node.vms().resolve_vm(again).await.unwrap_err();
    assert_refused(&status, Code::NotFound, "DIFFERENCE_NOT_FOUND");
    let known = snapshots(&node).await;
    for (name, (state, reads)) in [("one", case.one), ("two", case.two)] {
        let (_, is, content) = known.iter().find(|(known, ..)| known == name).unwrap();
        assert_eq!(is, state, "{name}: {known:?}");
        assert!(state != "READY" || *content == Some(reads), "{name}: {known:?}");
    }

    // The VM is as any other.
    assert_eq!(node.read(1)[0], 30);
    node.write(2, 40);
    node.take("three").await;
    node.write(1, 50);
    succeed(&node, "snapshot revert web/three --yes").await;
    assert_eq!((node.read(1)[0], node.read(2)[0]), (30, 40));
    let before = snapshots(&node).await;
    for (name, ..) in before {
        succeed(&node, &format!("snapshot delete web/{name} --yes")).await;
        let left = snapshots(&node).await;
        for (name, state, reads) in left.iter().filter(|(_, state, _)| state == "READY") {
            let known = known.iter().find(|(known, ..)| known == name);
            assert!(known.is_none_or(|(.., before)| before == reads), "{name} {state}: {left:?}");
        }
        assert_eq!((node.read(1)[0], node.read(2)[0]), (30, 40));
    }
    assert_eq!(run(&node, "vm check web").await.code, 0);
    assert_eq!(node.sim.violations(), Vec::<String>::new());
}

#[tokio::test]
async fn an_overlay_is_adopted_with_what_it_was_put_on() {
    let act = async |node: &Node| node.sim.someone_overlays(node.vm, &vda(), "/images/mine".as_ref());
    let case = Case {
        kind: "UNKNOWN_OVERLAY",
        ways: &["adopt"],
        way: "adopt",
        one: ("READY", 10),
        two: ("READY", 20),
    };
    check(act, case).await;
}

/// What somebody froze is kept until somebody deletes it, and read by nobody but its snapshot.
#[tokio::test]
async fn what_an_overlay_froze_is_a_snapshot() {
    let node = Node::start();
    node.write(1, 10);
    node.take("one").await;
    node.write(1, 20);
    let (frozen, mine) = (active(&node), Path::new("/images/mine"));
    node.sim.someone_overlays(node.vm, &vda(), mine);
    node.write(1, 30);
    // libvirt's own snapshot of it would be a second owner.
    node.sim.someone_keeps_a_snapshot(node.vm, "by-hand", &[mine]);
    only(&node, "UNKNOWN_OVERLAY", &[]).await;
    let told = run(&node, "vm check web").await;
    assert!(told.stdout.contains("'virsh snapshot-delete VM by-hand --metadata'"), "{told:?}");
    node.sim.someone_keeps_a_snapshot(node.vm, "by-hand", &[]);
    let id = only(&node, "UNKNOWN_OVERLAY", &["adopt"]).await;
    succeed(&node, &format!("vm resolve web {id} --adopt --yes")).await;

    let list = json(&node, "snapshot list web --sort created").await;
    let list = list["snapshots"].as_array().unwrap();
    let taken = list.iter().find(|snapshot| snapshot["name"] != "one").unwrap();
    assert_eq!(taken["kind"], "SNAPSHOT_KIND_VOLUME", "{taken}");
    assert_eq!(taken["consistency"], "CONSISTENCY_CRASH", "{taken}");
    assert_eq!(taken["disks"][0]["path"].as_str(), frozen.to_str(), "{taken}");
    assert_eq!(node.sim.read_image(&frozen).unwrap().get(&1), Some(&20));
    assert_eq!(active(&node), mine);
    let name = taken["name"].as_str().unwrap();
    succeed(&node, &format!("snapshot delete web/{name} --yes")).await;
    assert_eq!(node.read(1), [30, 30]);
    assert_eq!(node.sim.read_image(&file_of(&node, "one").await).unwrap().get(&1), Some(&10));
    assert_eq!(node.sim.violations(), Vec::<String>::new());
}

/// An image over what a snapshot holds, and the VM made to write to it: a branch by hand. What the VM wrote to before is kept.
#[tokio::test]
async fn a_branch_by_hand_is_adopted() {
    let act = async |node: &Node| {
        let (one, before) = (file_of(node, "one").await, active(node));
        node.sim.someone_stops(node.vm);
        node.sim.someone_redefines(node.vm, &vda(), ImageRef { path: one, format: Format::Qcow2 });
        node.sim.someone_starts(node.vm);
        node.sim.someone_overlays(node.vm, &vda(), "/images/mine".as_ref());
        assert_eq!(node.read(1), [10, 30]);
        node.sim.guest_write(node.vm, &vda(), 1, 30).unwrap();
        assert_eq!(node.sim.read_image(&before).unwrap().get(&1), Some(&30));
    };
    let case = Case {
        kind: "UNKNOWN_OVERLAY",
        ways: &["adopt"],
        way: "adopt",
        one: ("READY", 10),
        two: ("READY", 20),
    };
    check(act, case).await;
}

#[tokio::test]
async fn several_overlays_are_not_adopted_at_once() {
    let node = Node::start();
    node.take("one").await;
    for path in ["/images/mine", "/images/mine-too"] {
        node.sim.someone_overlays(node.vm, &vda(), path.as_ref());
    }
    only(&node, "UNKNOWN_OVERLAY", &[]).await;
}

#[tokio::test]
async fn layers_that_somebody_merged() {
    let act = async |node: &Node| {
        let (one, two) = (file_of(node, "one").await, file_of(node, "two").await);
        node.sim.someone_commits(node.vm, &vda(), &two, &one);
    };
    let case = Case {
        kind: "LAYER_MERGED",
        ways: &["adopt"],
        way: "adopt",
        // Its file reads what `two` reads.
        one: ("ERROR", 0),
        two: ("READY", 20),
    };
    check(act, case).await;
}

/// Between the merge and its adoption, too. The file is as long as it was.
#[tokio::test]
async fn what_somebody_merged_is_not_cloned() {
    let node = Node::start();
    for (value, name) in [(10, "one"), (20, "two")] {
        node.write(1, value);
        node.take(name).await;
    }
    let (one, two) = (file_of(&node, "one").await, file_of(&node, "two").await);
    let length = async || node.sim.host().images.inspect(&one, Format::Qcow2).await.unwrap().length;
    let before = length().await;
    node.sim.someone_commits(node.vm, &vda(), &two, &one);
    assert_eq!(length().await, before);
    let files = node.sim.files();
    for line in [
        "volume clone web/one --disk vda --to copy",
        "volume clone web/one --disk vda --to copy --full",
        "volume snapshot create taken --from web/one --disk vda",
        "vm deploy web/one --name new",
    ] {
        let refused = run(&node, line).await;
        assert!(refused.code == 6 && refused.stderr.contains("has merged layers of disk vda"), "{refused:?}");
    }
    assert_eq!(node.sim.files(), files);
    succeed(&node, "volume clone web/two --disk vda --to copy").await;
}

#[tokio::test]
async fn an_active_layer_that_somebody_merged() {
    let act = async |node: &Node| {
        let two = file_of(node, "two").await;
        node.sim.someone_commits(node.vm, &vda(), &active(node), &two);
    };
    let case =
        Case { kind: "LAYER_MERGED", ways: &["adopt"], way: "adopt", one: ("READY", 10), two: ("ERROR", 0) };
    check(act, case).await;
}

#[tokio::test]
async fn all_layers_that_somebody_merged() {
    let act = async |node: &Node| {
        let one = file_of(node, "one").await;
        node.sim.someone_commits(node.vm, &vda(), &active(node), &one);
    };
    let case =
        Case { kind: "LAYER_MERGED", ways: &["adopt"], way: "adopt", one: ("ERROR", 0), two: ("ERROR", 0) };
    check(act, case).await;
}

/// What is pulled up leaves all below as it was: nothing is lost.
#[tokio::test]
async fn layers_that_somebody_pulled_up() {
    let act = async |node: &Node| node.sim.someone_pulls(node.vm, &vda());
    let case =
        Case { kind: "LAYER_MERGED", ways: &["adopt"], way: "adopt", one: ("READY", 10), two: ("READY", 20) };
    check(act, case).await;
}

#[tokio::test]
async fn a_definition_that_is_put_right() {
    let act = async |node: &Node| {
        let image = ImageRef { path: file_of(node, "one").await, format: Format::Qcow2 };
        node.sim.someone_redefines(node.vm, &vda(), image);
    };
    let case = Case {
        kind: "DEFINITION_DIFFERS",
        ways: &["restore"],
        way: "restore",
        one: ("READY", 10),
        two: ("READY", 20),
    };
    check(act, case).await;
}

#[tokio::test]
async fn another_file_with_the_same_content() {
    let act = async |node: &Node| node.sim.someone_replaces(&file_of(node, "two").await);
    let case = Case {
        kind: "IMAGE_CHANGED",
        ways: &["adopt", "mark-lost"],
        way: "adopt",
        one: ("READY", 10),
        two: ("READY", 20),
    };
    check(act, case).await;
}

/// A VM with a branch that it does not read: `dead`, over `root`.
async fn with_a_branch() -> (Node, PathBuf) {
    let node = Node::start();
    node.write(1, 10);
    node.take("root").await;
    node.write(1, 20);
    node.take("dead").await;
    succeed(&node, "snapshot revert web/root --yes").await;
    let file = file_of(&node, "dead").await;
    (node, file)
}

async fn until(node: &Node, snapshot: &str, state: &str) {
    let settled = async {
        let is =
            async || json(node, &format!("snapshot show web/{snapshot}")).await["snapshot"]["state"].clone();
        while is().await != format!("SNAPSHOT_STATE_{state}") {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, settled)
        .await
        .unwrap_or_else(|_| panic!("{snapshot} does not become {state}"));
}

/// Given up, it is LOST and says why; when the file is back as it was, it is READY.
#[tokio::test]
async fn a_snapshot_that_is_given_up_and_comes_back() {
    let (node, file) = with_a_branch().await;
    node.sim.someone_moves(&file, "/images/aside".as_ref());
    let id = only(&node, "IMAGE_MISSING", &["mark-lost"]).await;
    let plan = succeed(&node, &format!("vm resolve web {id} --mark-lost --dry-run")).await;
    assert!(plan.contains("record 1 snapshots as LOST"), "{plan}");
    succeed(&node, &format!("vm resolve web {id} --mark-lost --yes")).await;
    assert_eq!(run(&node, "vm check web").await.code, 0);
    let shown = json(&node, "snapshot show web/dead").await;
    assert_eq!(shown["snapshot"]["state"], "SNAPSHOT_STATE_LOST");
    assert_eq!(shown["snapshot"]["error"]["reason"], "REASON_IMAGE_MISSING", "{shown}");
    assert_eq!(run(&node, "snapshot revert web/dead --yes").await.code, 6);
    node.take("next").await;

    node.sim.someone_moves("/images/aside".as_ref(), &file);
    // Something happens to the VM: it is looked at.
    node.sim.someone_resumes(node.vm);
    until(&node, "dead", "READY").await;
    let events = succeed(&node, "event list web").await;
    assert!(!events.contains("is back on this node"), "it has not been away: {events}");
    succeed(&node, "snapshot revert web/dead --yes").await;
    assert_eq!(node.read(1), [20, 20]);
}

/// It comes back as a copy: that it reads the same is somebody's word, and he has to have a way to give it.
#[tokio::test]
async fn a_snapshot_that_is_given_up_and_comes_back_as_a_copy() {
    let (node, file) = with_a_branch().await;
    node.sim.someone_moves(&file, "/images/aside".as_ref());
    let id = only(&node, "IMAGE_MISSING", &["mark-lost"]).await;
    succeed(&node, &format!("vm resolve web {id} --mark-lost --yes")).await;
    node.sim.someone_moves("/images/aside".as_ref(), &file);
    node.sim.someone_replaces(&file);
    let id = only(&node, "IMAGE_CHANGED", &["adopt"]).await;
    succeed(&node, &format!("vm resolve web {id} --adopt --yes")).await;
    until(&node, "dead", "READY").await;
    succeed(&node, "snapshot revert web/dead --yes").await;
    assert_eq!(node.read(1), [20, 20]);
}

/// The layer below one that is not as it was is not merged: what lies on it would be pointed elsewhere, and seen as it is then.
#[tokio::test]
async fn no_merge_hides_what_differs() {
    for act in [SimHost::someone_truncates, SimHost::someone_replaces] {
        let node = Node::start();
        for (value, name) in [(10, "one"), (20, "two"), (30, "three")] {
            node.write(1, value);
            node.take(name).await;
        }
        succeed(&node, "snapshot revert web/two --yes").await;
        let three = file_of(&node, "three").await;
        act(&node.sim, &three);
        let differs = async || differences(&node, "vm check web").await;
        let before = differs().await;
        assert_eq!(before.len(), 1, "{before:?}");
        succeed(&node, "snapshot delete web/one --yes").await;
        assert_eq!(differs().await, before);
        let shown = succeed(&node, "vm show web").await;
        assert!(shown.contains(&format!("{} is missing, or not as it was left", three.display())), "{shown}");
        let refused = run(&node, "volume clone web/three --disk vda --to copy").await;
        assert!(refused.code == 6 && refused.stderr.contains("IMAGE_CHANGED"), "{refused:?}");
        // What waited goes when that is settled.
        succeed(&node, "snapshot delete web/three --yes").await;
        settled(&node).await;
        succeed(&node, "snapshot revert web/two --yes").await;
        assert_eq!(node.read(1), [20, 20]);
        assert_eq!(run(&node, "vm check web").await.code, 0);
        assert_eq!(node.sim.violations(), Vec::<String>::new());
    }
}

#[tokio::test]
async fn a_file_that_was_cut_is_no_way_back() {
    let (node, file) = with_a_branch().await;
    node.sim.someone_truncates(&file);
    let id = only(&node, "IMAGE_CHANGED", &["mark-lost"]).await;
    let refused = run(&node, "snapshot revert web/dead --yes").await;
    assert!(refused.code == 6 && refused.stderr.contains("IMAGE_CHANGED"), "{refused:?}");
    succeed(&node, &format!("vm resolve web {id} --mark-lost --yes")).await;
    // It is looked at again, and is not what it was.
    node.sim.someone_resumes(node.vm);
    node.take("next").await;
    until(&node, "dead", "LOST").await;
    succeed(&node, "snapshot delete web/dead --yes").await;
    assert_eq!(run(&node, "vm check web").await.code, 0);
}

#[tokio::test]
async fn a_link_is_never_adopted() {
    let (node, file) = with_a_branch().await;
    node.sim.someone_links(&file);
    only(&node, "IMAGE_CHANGED", &["mark-lost"]).await;
}

#[tokio::test]
async fn memory_that_is_given_up() {
    let node = Node::start();
    succeed(&node, "snapshot create web memory --memory").await;
    let is_memory = |file: &PathBuf| file.extension().is_some_and(|extension| extension == "memory");
    let file = node.sim.files().into_iter().find(is_memory).unwrap();
    node.sim.someone_removes(&file);
    let id = only(&node, "IMAGE_MISSING", &["mark-lost"]).await;
    succeed(&node, &format!("vm resolve web {id} --mark-lost --yes")).await;
    assert_eq!(run(&node, "vm check web").await.code, 0);
    succeed(&node, "volume clone web/memory --disk vda --to rescued --full").await;
}

/// What the VM itself reads cannot be given up: the snapshots can, and the VM still says what it lacks.
#[tokio::test]
async fn what_the_vm_reads_is_not_settled_by_giving_snapshots_up() {
    let node = Node::start();
    node.take("one").await;
    node.sim.someone_removes(&file_of(&node, "one").await);
    let id = only(&node, "IMAGE_MISSING", &["mark-lost"]).await;
    succeed(&node, &format!("vm resolve web {id} --mark-lost --yes")).await;
    assert_eq!(only(&node, "IMAGE_MISSING", &[]).await, id);
    until(&node, "one", "LOST").await;
}

/// A disk that was taken away is meant to be: its image stays whole, whatever becomes of the snapshots.
#[tokio::test]
async fn a_disk_that_was_taken_away() {
    let node = Node::start();
    node.write(1, 10);
    node.take("one").await;
    node.write(1, 20);
    let image = active(&node);
    node.sim.someone_unplugs(node.vm, &vda());
    let id = only(&node, "DISK_SET_CHANGED", &["adopt"]).await;
    succeed(&node, &format!("vm resolve web {id} --adopt --yes")).await;
    assert_eq!(run(&node, "vm check web").await.code, 0);
    node.take("two").await;
    for name in ["one", "two"] {
        succeed(&node, &format!("snapshot delete web/{name} --yes")).await;
    }
    assert_eq!(node.sim.read_image(&image).unwrap().get(&1), Some(&20), "whoever has it reads all of it");
    assert_eq!(run(&node, "node check").await.code, 0, "nobody calls it an orphan");

    // Its image is gone as well: nothing is left to be kept.
    let second = "vdb".parse::<DiskTarget>().unwrap();
    let image = node.sim.image_of(node.vm, &second).unwrap();
    node.sim.someone_unplugs(node.vm, &second);
    node.sim.someone_removes(&image);
    let found = differences(&node, "vm check web").await;
    let (.., id) = found.iter().find(|(kind, ..)| kind == "DISK_SET_CHANGED").unwrap();
    succeed(&node, &format!("vm resolve web {id} --adopt --yes")).await;
    assert_eq!(run(&node, "vm check web").await.code, 0);
    assert_eq!(node.sim.violations(), Vec::<String>::new());
}

/// A disk was taken away while the storage that it is on is: that comes back, with all that the disk reads through.
#[tokio::test]
async fn a_disk_that_was_taken_away_with_its_storage() {
    let sim = SimHost::new();
    let pool = ImageRef { path: "/pool/data".into(), format: Format::Qcow2 };
    sim.put_image(&pool.path, Format::Qcow2, 1024 * BLOCK, false).unwrap();
    let vm = sim.vm("web").disk("vda", Format::Qcow2).image("vdb", pool.clone()).build();
    let node = Node::start_with(sim, vm);
    node.write(1, 10);
    node.take("one").await;
    node.write(1, 20);
    node.take("two").await;
    let vdb = "vdb".parse::<DiskTarget>().unwrap();
    let image = node.sim.image_of(vm, &vdb).unwrap();
    node.sim.someone_unplugs(vm, &vdb);
    let in_pool = |file: &PathBuf| file.starts_with("/pool");
    let files: Vec<PathBuf> = node.sim.files().into_iter().filter(in_pool).collect();
    let away = |file: &Path| Path::new("/away").join(file.file_name().unwrap());
    for file in &files {
        node.sim.someone_moves(file, &away(file));
    }
    let found = differences(&node, "vm check web").await;
    let (.., id) = found.iter().find(|(kind, ..)| kind == "DISK_SET_CHANGED").unwrap();
    succeed(&node, &format!("vm resolve web {id} --adopt --yes")).await;
    for file in &files {
        node.sim.someone_moves(&away(file), file);
    }
    for name in ["one", "two"] {
        succeed(&node, &format!("snapshot delete web/{name} --yes")).await;
    }
    assert_eq!(node.sim.read_image(&image).unwrap().get(&1), Some(&20), "whoever has it reads all of it");
    assert_eq!(node.sim.violations(), Vec::<String>::new());
}

#[tokio::test]
async fn a_vm_that_is_busy() {
    let node = Node::start();
    node.take("one").await;
    put_orphan(&node);
    node.sim.someone_redefines(
        node.vm,
        &vda(),
        ImageRef { path: file_of(&node, "one").await, format: Format::Qcow2 },
    );
    let id = only(&node, "DEFINITION_DIFFERS", &["restore"]).await;
    let orphan = differences(&node, "node check").await;
    let (.., orphan) = orphan.iter().find(|(kind, ..)| kind == "ORPHAN_FILE").unwrap();
    let hold = node.hold(Method::PointDisks);
    let begun = node.vms().resolve_vm(request("web", &id, v1::DifferenceAction::Restore)).await.unwrap();
    crate::node::reached(&hold).await;
    let again = node.vms().resolve_vm(request("web", &id, v1::DifferenceAction::Restore)).await.unwrap_err();
    assert_refused(&again, Code::Aborted, "VM_BUSY");
    let status =
        node.vms().resolve_vm(request("", orphan, v1::DifferenceAction::RemoveFile)).await.unwrap_err();
    assert_refused(&status, Code::Aborted, "VM_BUSY");
    hold.release();
    let operation = begun.into_inner().operation.unwrap();
    assert_eq!(operation.kind(), v1::OperationKind::ResolveVm);
    node.end_of(&operation.id).await;
    assert_eq!(run(&node, "vm check web").await.code, 0);
}

#[tokio::test]
async fn requests_that_are_not_complete() {
    let node = Node::start();
    let id = "0199aaaa-0000-7000-8000-000000000001";
    let adopt = v1::DifferenceAction::Adopt;
    let cases = [
        (request("web", "", adopt), Code::InvalidArgument, "INVALID_REQUEST"),
        (request("web", "first", adopt), Code::InvalidArgument, "INVALID_REQUEST"),
        (request("web", id, v1::DifferenceAction::Unspecified), Code::InvalidArgument, "INVALID_REQUEST"),
        (request("nobody", id, adopt), Code::NotFound, "VM_NOT_FOUND"),
        (request("web", id, adopt), Code::NotFound, "DIFFERENCE_NOT_FOUND"),
        (request("", id, adopt), Code::NotFound, "DIFFERENCE_NOT_FOUND"),
        (
            v1::ResolveVmRequest { etag: "7".to_owned(), ..request("web", id, adopt) },
            Code::Aborted,
            "ETAG_MISMATCH",
        ),
    ];
    for (request, code, reason) in cases {
        let status = node.vms().resolve_vm(request).await.unwrap_err();
        assert_refused(&status, code, reason);
    }
    assert_eq!(node.acts(), 0);
    assert_eq!(run(&node, "vm resolve web 00 --adopt --restore").await.code, 2);
    assert_eq!(run(&node, "vm resolve web 00").await.code, 2);
    assert_ne!(run(&node, "vm check web").await.code, DIFFERS);
}
