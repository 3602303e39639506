//! What is there before the faults: a VM, its snapshots and clones, and what they read.

use std::collections::BTreeMap;

use vmsnap::model::operation::OperationState;
use vmsnap::model::{CloneMode, Quiesce, RunState};

use super::wish::{Wish, vdb};
use crate::simulated::{Life, Scene, Truth};

/// A VM with three snapshots, `two` with memory, and what everything reads.
pub fn set_up(wish: Wish, run_state: RunState) -> (Scene, Truth) {
    let mut scene = Scene::forkable();
    let mut truth = Truth::default();
    scene.sim.set_job_notches(2);
    let life = Life::start(&scene);
    for (block, name) in (1..).zip(["one", "two", "three"]) {
        scene.write(block, block * 10);
        if name == "three" && matches!(wish, Wish::DeleteOutrun) {
            // More than what lies on it will have: then it is merged down.
            (30..60).for_each(|block| scene.write(block, block));
        }
        scene.set_variables(block);
        let request = scene.create(name, Quiesce::Auto, name == "two", &[]);
        let id = life.begin(request, || false).unwrap().unwrap();
        assert_eq!(life.run(id, || false).unwrap().cursor.state, OperationState::Succeeded);
        truth.snapshots.insert(name.to_owned(), scene.active());
        truth.kept_variables.insert(name.to_owned(), block);
    }
    let request = scene.clone_volume("clone", "two", &vdb(), CloneMode::Linked);
    let id = life.begin(request, || false).unwrap().unwrap();
    assert_eq!(life.run(id, || false).unwrap().cursor.state, OperationState::Succeeded);
    truth.clones.insert("clone".to_owned(), truth.snapshots["two"][&vdb()].clone());
    if wish.is_detached() {
        give_snapshots(&scene, &life, wish, &mut truth);
    }
    drop(life);
    if matches!(wish, Wish::FlattenLive) {
        scene.use_clone("clone");
    }
    wish.happen(&mut scene);
    scene.write(9, 90);
    if matches!(wish, Wish::DeleteByPull { .. }) {
        scene.write(10, 100);
    }
    truth.active = scene.active();
    scene.set_variables(9);
    truth.variables = 9;
    if run_state == RunState::Off {
        scene.sim.someone_stops(scene.vm);
    }
    if matches!(wish, Wish::DeleteOutrun) {
        scene.sim.guest_writes_on(scene.vm, &vdb(), 3, 15, 10);
    }
    scene.sim.reset_script();
    (scene, truth)
}

/// Snapshots of the clone's own.
fn give_snapshots(scene: &Scene, life: &Life, wish: Wish, truth: &mut Truth) {
    let mut held = BTreeMap::new();
    // Of the layer that `second` is, and of what is written after it.
    let blocks = if matches!(wish, Wish::DeleteDetachedByPull) { [1, 4] } else { [4, 1] };
    for (name, blocks) in [("first", 1), ("second", blocks[0]), ("", blocks[1])] {
        for block in 0..blocks {
            truth
                .clones
                .insert("clone".to_owned(), scene.write_detached("clone", block, 10 * block + blocks));
        }
        if !name.is_empty() {
            let id = life.begin(scene.take_clone(name, "clone"), || false).unwrap().unwrap();
            assert_eq!(life.run(id, || false).unwrap().cursor.state, OperationState::Succeeded);
            held.insert(name.to_owned(), truth.clones["clone"].clone());
        }
    }
    truth.of_clones.insert("clone".to_owned(), held);
}
