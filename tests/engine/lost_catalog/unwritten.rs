//! Manifests that cannot be written: each VM is on its own, and so is each row of the catalog.

use vmsnap::host::sim::{Call, Complaint, Fault, Method, Mishap, Moment, Trigger};
use vmsnap::model::operation::OperationState;
use vmsnap::model::{CreateSnapshot, Quiesce, Request, VmId};

use super::carry_out;
use crate::simulated::{Life, Scene};

fn create(scene: &Scene, vm: VmId, name: &str) -> Request {
    let Request::CreateSnapshot(request) = scene.create(name, Quiesce::Off, false, &[]) else {
        unreachable!("it is a create");
    };
    Request::CreateSnapshot(CreateSnapshot { vm, ..request })
}

/// The names of the snapshots that have manifests.
fn written(scene: &Scene) -> Vec<String> {
    let of_snapshot = |found| match found {
        vmsnap::model::manifest::Manifest::Snapshot(of) => Some(of.snapshot.name.to_string()),
        vmsnap::model::manifest::Manifest::Clone(_) => None,
    };
    let mut names: Vec<String> =
        super::conflicts::manifests(scene).into_iter().filter_map(of_snapshot).collect();
    names.sort();
    names
}

/// What works on the VM goes on after a while, and what works on another one does at once.
#[test]
fn storage_that_hangs_holds_up_nobody_else() {
    let scene = Scene::new();
    let other = scene.sim.vm("other").disks(1).build();
    let life = Life::start(&scene);
    let at = Trigger::Call(Call { method: Method::WriteFile, occurrence: 1 });
    scene.sim.add_fault(Fault { at, moment: Moment::Before, mishap: Mishap::Hang });
    let hung = life.begin(create(&scene, scene.vm, "hung"), || false).unwrap().unwrap();
    let is_hung = || scene.sim.calls().iter().any(|call| call.method == Method::WriteFile);
    assert!(life.run(hung, is_hung).is_none(), "it does not end before its manifest hangs");
    let free = life.begin(create(&scene, other, "free"), || false).unwrap().unwrap();
    let is_written = || written(&scene) == ["free"];
    assert!(life.run(free, is_written).is_none(), "the other one still waits");
    let ended = life.run(hung, || false).unwrap();
    assert_eq!(ended.cursor.state, OperationState::Succeeded);
    assert_eq!(written(&scene), ["free", "hung"], "it is tried again at the end");
}

/// One row, and one whole tree, that cannot be read: what can be is written.
#[test]
fn a_row_that_cannot_be_read_is_left_out() {
    let scene = Scene::forkable();
    let [unreadable, other] = ["unreadable", "other"].map(|name| scene.sim.vm(name).disks(1).build());
    let life = Life::start(&scene);
    let at = Trigger::Each(Method::WriteFile);
    let mishap = Mishap::Error(Complaint::NoSpace("/images".into()));
    scene.sim.add_fault(Fault { at, moment: Moment::Before, mishap });
    for (vm, name) in [(unreadable, "gone"), (scene.vm, "one"), (scene.vm, "two"), (other, "three")] {
        carry_out(&life, create(&scene, vm, name));
    }
    drop(life);
    assert!(written(&scene).is_empty());
    scene.sim.reset_script();
    let one = scene.tree().snapshots[0].id;
    scene.meddle_with_catalog(&format!("INSERT INTO comment VALUES ('x', '{one}', 'no comment')"));
    scene.meddle_with_catalog(&format!("UPDATE layer SET body = 'no layer' WHERE vm = '{unreadable}'"));
    scene.meddle_with_catalog("INSERT INTO manifest VALUES ('x', 'no VM', '[]', '', 1, 0)");
    let life = Life::start(&scene);
    carry_out(&life, create(&scene, other, "four"));
    assert_eq!(written(&scene), ["four", "three", "two"]);
}
