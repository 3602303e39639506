//! What a person has declared in ERROR stays so when the catalog is lost, and is READY again on his word, as far as it is whole.

use vmsnap::model::{Declared, Failure, LayerTree, Reason, Snapshot, SnapshotState};

use super::{carry_out, set_up, verify};
use crate::simulated::{Life, Scene};

fn snapshot(scene: &Scene, name: &str) -> Snapshot {
    let LayerTree { snapshots, .. } = scene.tree();
    snapshots.into_iter().find(|snapshot| snapshot.name.as_str() == name).unwrap()
}

fn reason(scene: &Scene, name: &str) -> Option<Reason> {
    snapshot(scene, name).trouble.map(|Failure { reason, .. }| reason)
}

#[test]
fn a_word_outlives_the_catalog() {
    let (mut scene, truth) = set_up();
    let life = Life::start(&scene);
    life.declare("two", Declared::Error).unwrap();
    life.settle(&scene);
    drop(life);
    scene.rebuild_catalog();
    assert_eq!(snapshot(&scene, "two").state, SnapshotState::Error);
    assert_eq!(reason(&scene, "two"), Some(Reason::Declared));
    verify(&scene, &truth, &["two"]).unwrap();
    let life = Life::start(&scene);
    life.declare("two", Declared::Ready).unwrap();
    verify(&scene, &truth, &[]).unwrap();
    carry_out(&life, scene.revert("two"));
    drop(life);
    assert_eq!(scene.active(), truth.snapshots["two"]);
}

#[test]
fn a_word_does_not_hide_what_is_found() {
    let (mut scene, _) = set_up();
    let life = Life::start(&scene);
    life.declare("two", Declared::Error).unwrap();
    life.settle(&scene);
    drop(life);
    let memory = snapshot(&scene, "two").memory.unwrap().path;
    scene.sim.someone_removes(&memory);
    scene.rebuild_catalog();
    assert_eq!(reason(&scene, "two"), Some(Reason::ImageChanged));
    let life = Life::start(&scene);
    let refused = life.declare("two", Declared::Ready).unwrap_err();
    assert_eq!(refused.reason(), Reason::ImageChanged);
}
