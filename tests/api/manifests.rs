//! Manifests: what they say, when they are written, and that nobody waits for one that cannot be.

use std::path::PathBuf;

use vmsnap::host::sim::{Complaint, Method, Mishap};
use vmsnap::model::manifest::{Manifest, SnapshotManifest};
use vmsnap::model::{Snapshot, SnapshotState};

use super::client::{run, succeed};
use super::node::{Node, PATIENCE};

/// All manifests of the node, as they were written.
fn written(node: &Node) -> Vec<(PathBuf, Manifest)> {
    let files = node.sim.files().into_iter();
    let files = files.filter(|file| file.extension().is_some_and(|ending| ending == "manifest"));
    files
        .map(|file| (file.clone(), Manifest::decode(&node.sim.small_file(&file).unwrap()).unwrap()))
        .collect()
}

fn of_snapshot(node: &Node, name: &str) -> Option<SnapshotManifest> {
    written(node).into_iter().find_map(|(_, manifest)| match manifest {
        Manifest::Snapshot(of) if of.snapshot.name.as_str() == name => Some(*of),
        _ => None,
    })
}

async fn until(node: &Node, what: &str, is_so: impl Fn(&Node) -> bool) {
    let waiting = async {
        while !is_so(node) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("{what}: {:#?}", written(node)));
}

#[tokio::test]
async fn a_manifest_follows_its_snapshot() {
    let node = Node::start();
    node.take("one").await;
    node.take("two").await;
    let [one, two] = ["one", "two"].map(|name| of_snapshot(&node, name).unwrap());
    assert_eq!((one.is_current, two.is_current), (false, true));
    assert_eq!(two.snapshot.parent, Some(one.snapshot.id));
    assert_eq!((one.layers.len(), two.layers.len()), (2, 4), "each disk's layer, and what that lies on");
    let stored = node.store().snapshot(one.snapshot.id).await.unwrap().unwrap();
    assert_eq!(one.snapshot, stored);
    assert_eq!(Some(one.definition), node.store().definition(stored.id).await.unwrap());

    succeed(&node, "snapshot set web/one --property a=b --description words").await;
    let is_told = |node: &Node| of_snapshot(node, "one").unwrap().snapshot.description == "words";
    until(&node, "an edit is written", is_told).await;
    succeed(&node, "snapshot comment web/one remark").await;
    let is_told =
        |node: &Node| of_snapshot(node, "one").unwrap().comments.iter().any(|one| one.text == "remark");
    until(&node, "a comment is written", is_told).await;
    succeed(&node, "volume clone web/two --disk vda --to copy").await;
    assert_eq!(written(&node).len(), 3);
    succeed(&node, "snapshot delete web/one --yes").await;
    let two = of_snapshot(&node, "two").unwrap();
    assert_eq!((of_snapshot(&node, "one"), two.snapshot.parent), (None, None));
    succeed(&node, "volume delete copy --yes").await;
    // What the clone held up is merged by itself, and holds the VM meanwhile.
    let deleting = async {
        loop {
            let refused = run(&node, "snapshot delete web/two --yes").await;
            if refused.code == 0 {
                break;
            }
            assert!(refused.stderr.contains("VM_BUSY"), "{refused:?}");
        }
    };
    tokio::time::timeout(PATIENCE, deleting).await.unwrap();
    assert_eq!(node.sim.files().len(), 2, "only the first images are left");
}

/// Everything goes on without manifests; once they can be written, the next operation writes them.
#[tokio::test]
async fn a_manifest_that_cannot_be_written_holds_nobody_up() {
    let node = Node::start();
    node.strike(Method::WriteFile, Mishap::Error(Complaint::NoSpace("/images".into())));
    node.take("one").await;
    node.take("two").await;
    succeed(&node, "snapshot revert web/one --yes").await;
    succeed(&node, "snapshot delete web/two --yes").await;
    assert_eq!(written(&node), []);
    let checked = run(&node, "node check").await;
    assert!(
        checked.stdout.contains("manifest unwritten") && checked.stdout.contains("no space"),
        "{checked:?}"
    );
    node.sim.reset_script();
    node.take("three").await;
    assert!(of_snapshot(&node, "one").is_some() && of_snapshot(&node, "three").is_some());
    assert_eq!(run(&node, "node check").await.code, 0);
}

/// The next start writes what is due.
#[tokio::test]
async fn a_start_writes_what_is_due() {
    let mut node = Node::start();
    node.strike(Method::WriteFile, Mishap::Error(Complaint::NoSpace("/images".into())));
    node.take("one").await;
    node.crash();
    node.sim.reset_script();
    node.restart();
    until(&node, "it is written", |node| of_snapshot(node, "one").is_some()).await;
}

/// At no moment may a manifest promise what a layer does not read any more.
#[tokio::test]
async fn before_a_merge_nothing_is_promised_that_it_breaks() {
    let node = Node::start();
    node.write(1, 10);
    node.take("one").await;
    node.write(1, 20);
    node.take("two").await;
    let merging = node.hold(Method::StartCommit);
    let begun = node.snapshots().delete_snapshot(super::node::delete("one")).await.unwrap().into_inner();
    crate::node::reached(&merging).await;
    assert_eq!(of_snapshot(&node, "one").unwrap().snapshot.state, SnapshotState::Deleting);
    merging.release();
    node.end_of(&begun.operation.unwrap().id).await;

    // It cannot be written, so it is taken away.
    node.strike(Method::WriteFile, Mishap::Error(Complaint::NoSpace("/images".into())));
    let merging = node.hold(Method::StartCommit);
    let begun = node.snapshots().delete_snapshot(super::node::delete("two")).await.unwrap().into_inner();
    crate::node::reached(&merging).await;
    assert_eq!(of_snapshot(&node, "two"), None);
    merging.release();
    node.end_of(&begun.operation.unwrap().id).await;
    node.sim.reset_script();

    // It cannot be taken away either: the snapshot stays.
    let three = node.take("three").await;
    node.strike(Method::WriteFile, Mishap::Error(Complaint::Refused));
    node.strike(Method::Remove, Mishap::Error(Complaint::Refused));
    let refused = run(&node, "snapshot delete web/three --yes").await;
    assert_ne!(refused.code, 0, "{refused:?}");
    let kept: Snapshot = node.store().snapshot(three.id.parse().unwrap()).await.unwrap().unwrap();
    assert_eq!(kept.state, SnapshotState::Ready);
    assert_eq!(node.sim.violations(), Vec::<String>::new());
}

/// One that a stranger put there, or that was left, is told.
#[tokio::test]
async fn a_manifest_of_nothing_is_an_orphan() {
    let node = Node::start();
    node.take("one").await;
    assert_eq!(run(&node, "node check").await.code, 0);
    let (path, _) = written(&node).remove(0);
    let orphan = "/images/vmsnap-0199aaaa-0000-7000-8000-000000000001.manifest";
    let content = node.sim.small_file(&path).unwrap();
    node.sim.host().images.write_file(orphan.as_ref(), &content).await.unwrap();
    let found = run(&node, "node check").await;
    assert!(found.stdout.contains("orphan file") && found.stdout.contains(orphan), "{found:?}");
    assert!(!found.stdout.contains(path.to_str().unwrap()), "{found:?}");
}
