//! A catalog that is lost at any moment, in the midst of an operation too: what comes back as READY from the disks reads what
//! it should, what cannot be vouched for is in ERROR or LOST with the reason, and later operations keep it so.

mod conflicts;
mod declared;
mod gone;
mod unwritten;

use std::collections::BTreeSet;
use std::path::PathBuf;

use vmsnap::host::sim::{Fault, Mishap, Moment, Trigger};
use vmsnap::model::operation::OperationState;
use vmsnap::model::{LayerTree, Quiesce, Reason, Request, SnapshotState};

use crate::simulated::{self, Life, Scene, Truth, ensure};

/// A VM with snapshots `one` to `three`, `two` with memory, and what everything reads.
fn set_up() -> (Scene, Truth) {
    let scene = Scene::forkable();
    scene.sim.set_job_notches(2);
    let mut truth = Truth::default();
    let life = Life::start(&scene);
    for (block, name) in (1..).zip(["one", "two", "three"]) {
        scene.write(block, block * 10);
        carry_out(&life, scene.create(name, Quiesce::Auto, name == "two", &[]));
        truth.snapshots.insert(name.to_owned(), scene.active());
    }
    drop(life);
    scene.write(9, 90);
    truth.active = scene.active();
    scene.sim.reset_script();
    (scene, truth)
}

fn carry_out(life: &Life, request: Request) {
    let id = life.begin(request, || false).unwrap().unwrap();
    let ended = life.run(id, || false).unwrap();
    assert_eq!(ended.cursor.state, OperationState::Succeeded, "{:?}", ended.failure);
}

/// What is READY reads what it should; only `excused` may not be READY.
fn verify(scene: &Scene, truth: &Truth, excused: &[&str]) -> Result<(), String> {
    let ready = scene.ready()?;
    for (name, reads) in &ready {
        let wanted = truth.snapshots.get(name);
        ensure(wanted.is_none_or(|wanted| wanted == reads), || {
            format!("{name} reads {reads:?}, not {wanted:?}")
        })?;
    }
    for name in truth.snapshots.keys().filter(|name| !excused.contains(&name.as_str())) {
        ensure(ready.contains_key(name), || format!("{name} is not READY: {:#?}", scene.tree().snapshots))?;
    }
    let active = scene.active();
    ensure(active == truth.active, || format!("the VM reads {active:?}, not {:?}", truth.active))?;
    let violations = scene.sim.violations();
    ensure(violations.is_empty(), || violations.join("; "))
}

/// The daemon dies at each call of an operation, and the catalog is lost with it.
fn strike_everywhere(request: fn(&Scene) -> Request, excused: &[&str]) {
    let (before, truth) = set_up();
    // A third of them, spread over the calls, unless all are asked for: `make faults`.
    let step = if std::env::var_os("VMSNAP_ALL_FAULTS").is_some() { 1 } else { 3 };
    for (index, moment) in [Moment::Before, Moment::Midway, Moment::After].into_iter().enumerate() {
        for call in (1 + index % step..).step_by(step) {
            let mut scene = before.fork();
            let at = Trigger::Number(call);
            scene.sim.add_fault(Fault { at, moment, mishap: Mishap::Hang });
            let dies = || scene.sim.calls().len() >= call;
            let life = Life::start(&scene);
            if let Some(Ok(id)) = life.begin(request(&scene), dies) {
                life.run(id, dies);
            }
            let is_struck = dies();
            drop(life);
            if !is_struck {
                assert!(call > 10, "only {call} calls");
                break;
            }
            let mut truth = truth.clone();
            // A revert may have been done.
            truth.active = scene.active();
            scene.sim.reset_script();
            let told = scene.rebuild_catalog();
            let what = || format!("{moment:?}, call {call}: {told:#?}");
            verify(&scene, &truth, excused).unwrap_or_else(|problem| panic!("{problem}: {}", what()));
            // Whatever is there can be let go, and nothing else changes.
            let life = Life::start(&scene);
            life.settle(&scene);
            for name in excused {
                let tree = scene.tree();
                if tree.snapshots.iter().any(|snapshot| snapshot.name.as_str() == *name) {
                    match life.begin(scene.delete(&[name]), || false).unwrap() {
                        Ok(id) => drop(life.run(id, || false).unwrap()),
                        // The job that the lost operation began is a stranger's now.
                        Err(refused) => assert_eq!(refused.reason(), Reason::BlockJobActive, "{refused}"),
                    }
                }
            }
            drop(life);
            verify(&scene, &truth, excused).unwrap_or_else(|problem| panic!("{problem}, later: {}", what()));
        }
    }
}

#[test]
fn while_a_snapshot_is_deleted() {
    strike_everywhere(|scene| scene.delete(&["one"]), &["one"]);
    strike_everywhere(|scene| scene.delete(&["three"]), &["three"]);
}

#[test]
fn while_two_are_deleted() {
    strike_everywhere(|scene| scene.delete(&["one", "two"]), &["one", "two"]);
}

#[test]
fn while_one_is_made() {
    strike_everywhere(|scene| scene.create("new", Quiesce::Auto, false, &[]), &["new"]);
}

#[test]
fn while_the_vm_goes_back() {
    strike_everywhere(|scene| scene.revert("one"), &[]);
}

/// What somebody does to the files after the catalog is lost, and what is told of each snapshot then.
fn check(act: impl FnOnce(&Scene, &LayerTree), expected: [(&str, SnapshotState, &str); 3], left_out: usize) {
    let (mut scene, _) = set_up();
    let tree = scene.tree();
    act(&scene, &tree);
    let told = scene.rebuild_catalog();
    assert_eq!(told.left_out.len(), left_out, "{told:#?}");
    let tree = scene.tree();
    for (name, state, words) in expected {
        let found = tree.snapshots.iter().find(|snapshot| snapshot.name.as_str() == name).unwrap();
        let why = found.trouble.as_ref().map(|trouble| trouble.message.clone()).unwrap_or_default();
        assert_eq!(found.state, state, "{name}: {why}");
        assert!(why.contains(words) && why.is_empty() == words.is_empty(), "{name}: {why}");
    }
    assert_eq!(told.restored[0].snapshots.len(), 3, "{told:#?}");
}

fn layer_of(tree: &LayerTree, name: &str) -> PathBuf {
    let snapshot = tree.snapshots.iter().find(|snapshot| snapshot.name.as_str() == name).unwrap();
    tree.layers[&snapshot.disks[0].layer].path.clone()
}

const READY: SnapshotState = SnapshotState::Ready;
const ERROR: SnapshotState = SnapshotState::Error;
const LOST: SnapshotState = SnapshotState::Lost;

#[test]
fn nothing_has_happened() {
    check(|_, _| {}, [("one", READY, ""), ("two", READY, ""), ("three", READY, "")], 0);
}

#[test]
fn an_image_is_gone() {
    let act = |scene: &Scene, tree: &LayerTree| scene.sim.someone_removes(&layer_of(tree, "two"));
    let words = "there is no usable image";
    // Such a VM cannot be looked at: it is READY as soon as it can be.
    let unseen = "its VM cannot be looked at";
    check(act, [("one", LOST, unseen), ("two", ERROR, words), ("three", ERROR, words)], 0);
}

/// What went into `one` is what `two` reads still; what `three` reads cannot be told.
#[test]
fn somebody_has_merged_layers() {
    let act = |scene: &Scene, tree: &LayerTree| {
        let (top, base) = (layer_of(tree, "two"), layer_of(tree, "one"));
        scene.sim.someone_commits(scene.vm, &simulated::disks()[0], &top, &base);
    };
    check(act, [("one", ERROR, "may read a mixture"), ("two", READY, ""), ("three", ERROR, "not lie on")], 0);
}

/// Nothing lies on what was merged but what the VM writes to.
#[test]
fn somebody_has_merged_the_newest_layer() {
    let act = |scene: &Scene, tree: &LayerTree| {
        let (top, base) = (layer_of(tree, "three"), layer_of(tree, "two"));
        scene.sim.someone_commits(scene.vm, &simulated::disks()[0], &top, &base);
    };
    check(act, [("one", READY, ""), ("two", ERROR, "may read a mixture"), ("three", READY, "")], 0);
}

/// No header tells of it.
#[test]
fn somebody_has_written_to_a_frozen_image() {
    let act = |scene: &Scene, tree: &LayerTree| {
        scene.sim.write_image(&layer_of(tree, "two"), 40, 1).unwrap();
    };
    let words = "bytes, not";
    check(act, [("one", READY, ""), ("two", ERROR, words), ("three", ERROR, words)], 0);
}

#[test]
fn the_vm_is_gone() {
    let act = |scene: &Scene, _: &LayerTree| {
        scene.sim.someone_stops(scene.vm);
        scene.sim.someone_undefines(scene.vm);
    };
    let words = "its VM is not on this node";
    check(act, [("one", LOST, words), ("two", LOST, words), ("three", LOST, words)], 0);
}

#[test]
fn the_memory_image_is_gone() {
    let act = |scene: &Scene, tree: &LayerTree| {
        let memory = tree.snapshots.iter().find_map(|snapshot| snapshot.memory.clone()).unwrap();
        scene.sim.someone_removes(&memory.path);
    };
    check(act, [("one", READY, ""), ("two", ERROR, "no complete memory image"), ("three", READY, "")], 0);
}

#[test]
fn a_vm_writes_to_a_frozen_image() {
    let act = |scene: &Scene, tree: &LayerTree| {
        let image = vmsnap::model::step::ImageRef {
            path: layer_of(tree, "three"),
            format: vmsnap::model::vm::Format::Qcow2,
        };
        scene.sim.someone_stops(scene.vm);
        scene.sim.someone_redefines(scene.vm, &simulated::disks()[0], image);
    };
    check(act, [("one", READY, ""), ("two", READY, ""), ("three", ERROR, "a VM writes to")], 0);
}

/// One that was damaged is named and left out; the others do not need it.
#[test]
fn a_damaged_manifest() {
    let (mut scene, _) = set_up();
    let is_manifest = |file: &PathBuf| file.extension().is_some_and(|ending| ending == "manifest");
    let manifests: Vec<PathBuf> = scene.sim.files().into_iter().filter(is_manifest).collect();
    let mut content = scene.sim.small_file(&manifests[1]).unwrap();
    content.truncate(content.len() / 2);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(scene.sim.host().images.write_file(&manifests[1], &content)).unwrap();
    let told = scene.rebuild_catalog();
    assert_eq!(told.left_out.iter().map(|out| &out.path).collect::<Vec<_>>(), [&manifests[1]]);
    assert!(told.left_out[0].why.contains("checksum"), "{told:#?}");
    let names: BTreeSet<String> = scene.ready().unwrap().into_keys().collect();
    assert_eq!(names.len(), 2, "{names:?}");
    // What it told of is left alone by the next start: the manifest may be found again.
    let read_all = |scene: &Scene| -> Vec<_> {
        let files = scene.sim.files().into_iter();
        files.filter_map(|file| Some((file.clone(), scene.sim.read_image(&file).ok()?))).collect()
    };
    let before = read_all(&scene);
    Life::start(&scene).settle(&scene);
    assert_eq!(read_all(&scene), before);
}
