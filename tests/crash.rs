//! A fault at every call: for each kind of request, each call to the outside world fails, hangs, half happens or is
//! answered blindly; where it hangs the daemon dies and another one goes on. Whatever happens, the operation ends, the
//! guest runs thawed, every READY snapshot and the VM's disks read what they should, and no file is left over.

#![allow(clippy::unwrap_used, reason = "a test stops where it fails")]

mod simulated;

use std::collections::BTreeMap;

use vmsnap::host::Link;
use vmsnap::host::sim::{BLOCK, Complaint, Fault, Method, Mishap, Moment, Trigger};
use vmsnap::model::operation::OperationState;
use vmsnap::model::step::ImageRef;
use vmsnap::model::vm::Format;
use vmsnap::model::{
    CloneMode, DifferenceAction, DiskTarget, IoLimits, Operation, Quiesce, Reason, Request, RunState,
};

use simulated::{Disks, Life, Scene, Truth, ensure};

/// What is asked for.
#[derive(Debug, Clone, Copy)]
enum Wish {
    Create {
        quiesce: Quiesce,
        memory: bool,
    },
    Revert {
        to: &'static str,
    },
    Delete {
        name: &'static str,
    },
    /// What lies below the VM's own layer is less than what it has written: it is pulled up.
    DeleteByPull {
        name: &'static str,
    },
    /// The guest writes faster than is copied, and is slowed.
    DeleteOutrun,
    TakeNow,
    TakeFrom {
        source: &'static str,
    },
    RevertVolume {
        to: &'static str,
    },
    Clone {
        mode: CloneMode,
    },
    Flatten,
    /// While a VM runs on the clone.
    FlattenLive,
    DeleteClone,
    Deploy {
        mode: CloneMode,
    },
    /// Of a clone that no VM has; it has snapshots `first` and `second` already.
    TakeDetached,
    RevertDetached {
        to: &'static str,
    },
    /// The older layer is the larger one: what lies on it goes down, and it takes the name.
    DeleteDetached {
        names: &'static [&'static str],
    },
    /// The image has more than the layer below it: that goes up.
    DeleteDetachedByPull,
    FlattenDetached,
    /// Somebody has put an overlay on vdb.
    AdoptOverlay,
    /// Somebody lets vdb lie on nothing.
    AdoptMerge,
    /// Somebody lets the stored definition name another image.
    RestoreDefinition,
    RemoveOrphan,
}

const ORPHAN: &str = "/images/vmsnap-0199aaaa-0000-7000-8000-000000000001.qcow2";

impl Wish {
    /// Whether it settles what somebody has done.
    fn is_resolution(self) -> bool {
        matches!(self, Self::AdoptOverlay | Self::AdoptMerge | Self::RestoreDefinition | Self::RemoveOrphan)
    }

    /// What somebody has done.
    fn happen(self, scene: &mut Scene) {
        let sim = scene.sim.clone();
        match self {
            Self::AdoptOverlay => {
                sim.someone_overlays(scene.vm, &vdb(), "/images/mine".as_ref());
                scene.keep("/images/mine".as_ref());
            }
            Self::AdoptMerge => sim.someone_pulls(scene.vm, &vdb()),
            Self::RestoreDefinition => {
                let tree = scene.tree();
                let held = tree.snapshots[0].disks.iter().find(|disk| disk.target == vdb()).unwrap();
                let path = tree.layers[&held.layer].path.clone();
                sim.someone_redefines(scene.vm, &vdb(), ImageRef { path, format: Format::Qcow2 });
            }
            Self::RemoveOrphan => sim.put_image(ORPHAN.as_ref(), Format::Qcow2, BLOCK, false).unwrap(),
            _ => {}
        }
    }

    fn is_detached(self) -> bool {
        matches!(
            self,
            Self::TakeDetached
                | Self::RevertDetached { .. }
                | Self::DeleteDetached { .. }
                | Self::DeleteDetachedByPull
                | Self::FlattenDetached
        )
    }
}

impl Wish {
    fn request(self, scene: &Scene) -> Request {
        match self {
            Self::Create { quiesce, memory } => scene.create("new", quiesce, memory, &[]),
            Self::Revert { to } => scene.revert(to),
            Self::Delete { name } | Self::DeleteByPull { name } => scene.delete(&[name]),
            Self::DeleteOutrun => scene.delete(&["three"]),
            Self::TakeNow => scene.take_now("new", &vdb()),
            Self::TakeFrom { source } => scene.take_from("new", source, &vdb()),
            Self::RevertVolume { to } => scene.revert_volume(to, &vdb()),
            Self::Clone { mode } => scene.clone_volume("new", "one", &vdb(), mode),
            Self::Flatten | Self::FlattenLive | Self::FlattenDetached => scene.flatten("clone"),
            Self::TakeDetached => scene.take_clone("new", "clone"),
            Self::RevertDetached { to } => scene.revert_clone(to, "clone"),
            Self::DeleteDetached { names } => scene.delete_of_clone(names, "clone"),
            Self::DeleteDetachedByPull => scene.delete_of_clone(&["second"], "clone"),
            Self::DeleteClone => scene.delete_volume("clone"),
            Self::Deploy { mode } => scene.deploy("new", "one", mode),
            Self::AdoptOverlay | Self::AdoptMerge => scene.resolve(DifferenceAction::Adopt),
            Self::RestoreDefinition => scene.resolve(DifferenceAction::Restore),
            Self::RemoveOrphan => scene.resolve(DifferenceAction::RemoveFile),
        }
    }

    /// What must be true when it has been done.
    fn apply(self, scene: &Scene, truth: &mut Truth) {
        match self {
            Self::AdoptOverlay => {
                // Nobody has said what it is called.
                let is_new = |name: &&String| !truth.snapshots.contains_key(*name);
                let names: Vec<String> =
                    scene.tree().snapshots.iter().map(|found| found.name.to_string()).collect();
                let name = names.iter().find(is_new).unwrap().clone();
                let held = only_vdb(&truth.snapshots["three"]);
                truth.snapshots.insert(name, held);
            }
            Self::Create { .. } => {
                truth.snapshots.insert("new".to_owned(), truth.active.clone());
                truth.kept_variables.insert("new".to_owned(), truth.variables);
            }
            Self::Revert { to } => {
                truth.active = truth.snapshots[to].clone();
                truth.variables = truth.kept_variables[to];
            }
            Self::Delete { name } | Self::DeleteByPull { name } => {
                truth.snapshots.remove(name);
                truth.kept_variables.remove(name);
            }
            Self::DeleteOutrun => {
                truth.snapshots.remove("three");
                truth.kept_variables.remove("three");
            }
            Self::TakeNow => drop(truth.snapshots.insert("new".to_owned(), only_vdb(&truth.active))),
            Self::TakeFrom { source } => {
                let taken = only_vdb(&truth.snapshots[source]);
                truth.snapshots.insert("new".to_owned(), taken);
            }
            Self::Clone { .. } => {
                let content = truth.snapshots["one"][&vdb()].clone();
                truth.clones.insert("new".to_owned(), content);
            }
            Self::Flatten
            | Self::FlattenLive
            | Self::FlattenDetached
            | Self::AdoptMerge
            | Self::RestoreDefinition
            | Self::RemoveOrphan => {}
            Self::TakeDetached => {
                let reads = truth.clones["clone"].clone();
                truth.of_clones.get_mut("clone").unwrap().insert("new".to_owned(), reads);
            }
            Self::RevertDetached { to } => {
                let reads = truth.of_clones["clone"][to].clone();
                truth.clones.insert("clone".to_owned(), reads);
            }
            Self::DeleteDetached { names } => {
                let held = truth.of_clones.get_mut("clone").unwrap();
                held.retain(|name, _| !names.contains(&name.as_str()));
            }
            Self::DeleteDetachedByPull => drop(truth.of_clones.get_mut("clone").unwrap().remove("second")),
            Self::DeleteClone => drop(truth.clones.remove("clone")),
            Self::Deploy { .. } => {
                let disks = truth.snapshots["one"].clone();
                truth
                    .clones
                    .extend(disks.into_iter().map(|(disk, content)| (format!("new-{disk}"), content)));
            }
            Self::RevertVolume { to } => truth.active.extend(only_vdb(&truth.snapshots[to])),
        }
    }
}

fn vdb() -> DiskTarget {
    "vdb".parse().unwrap()
}

fn only_vdb(disks: &Disks) -> Disks {
    Disks::from([(vdb(), disks[&vdb()].clone())])
}

/// A VM with three snapshots, `two` with memory, and what everything reads.
fn set_up(wish: Wish, run_state: RunState) -> (Scene, Truth) {
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

/// The daemon's own check finds nothing, whatever has happened.
fn check_node(scene: &Scene) -> Result<(), String> {
    scene.sim.reset_script();
    let life = Life::start(scene);
    life.settle(scene);
    life.settle_throttles(scene);
    life.check(scene)
}

/// Everything that must hold once the operation has ended.
fn verify(
    scene: &Scene,
    wish: Wish,
    run_state: RunState,
    mut truth: Truth,
    ended: &Operation,
) -> Result<(), String> {
    let is_done = match ended.cursor.state {
        OperationState::Succeeded => true,
        OperationState::Failed => false,
        state => return Err(format!("it ended in {state:?}: {:?} {:?}", ended.failure, ended.later_failure)),
    };
    if is_done {
        wish.apply(scene, &mut truth);
    } else if wish.is_resolution() {
        // It is as somebody has left it.
        let violations = scene.sim.violations();
        return ensure(violations.is_empty() && scene.active() == truth.active, || violations.join("; "));
    }
    scene.sim.guest_calms_down(scene.vm);
    let written = scene.sim.written_by_itself(scene.vm, &vdb());
    truth.active.get_mut(&vdb()).unwrap().content.extend(written);
    scene.verify(&truth)?;
    let limits = scene.sim.limits_of(scene.vm, &vdb());
    ensure(limits == IoLimits::default(), || format!("the guest is left slowed: {limits:?}"))?;
    verify_new_vm(scene, wish, is_done)?;
    if matches!(wish, Wish::Flatten | Wish::FlattenLive | Wish::FlattenDetached) {
        let is_linked = scene.tree().clones[0].layer.is_some();
        ensure(is_linked != is_done, || format!("done: {is_done}, linked: {is_linked}"))?;
    }
    let state = scene.sim.run_state(scene.vm).unwrap();
    let from_memory = matches!(wish, Wish::Revert { to: "two" }) && is_done;
    let wanted = if from_memory { RunState::Running } else { run_state };
    ensure(state == wanted, || format!("the VM is {state:?}, not {wanted:?}"))?;
    if state == RunState::Running {
        // What comes after goes where it should, and nowhere else.
        scene.write(11, 110);
        truth.active = scene.active();
        scene.verify(&truth)?;
    }
    Ok(())
}

/// A VM that was to be made is there with its disks, and runs; or it is not there.
fn verify_new_vm(scene: &Scene, wish: Wish, is_done: bool) -> Result<(), String> {
    if !matches!(wish, Wish::Deploy { .. }) {
        return Ok(());
    }
    let new = scene.sim.find_vm("new");
    ensure(new.is_some() == is_done, || format!("done: {is_done}, but the VM is there: {}", new.is_some()))?;
    let variables = new.map(|vm| scene.variables(vm));
    ensure(!is_done || variables == Some(1), || format!("the new VM has variables {variables:?}"))?;
    let state = new.and_then(|vm| scene.sim.run_state(vm));
    ensure(!is_done || state == Some(RunState::Running), || format!("the new VM is {state:?}"))
}

/// A wish with something that goes wrong at the n-th call. None once there is no such call any more.
fn strike(
    (before, truth): &(Scene, Truth),
    wish: Wish,
    run_state: RunState,
    call: usize,
    (moment, mishap): &(Moment, Mishap),
) -> Option<()> {
    let (scene, truth, moment) = (before.fork(), truth.clone(), *moment);
    let request = wish.request(&scene);
    scene.sim.add_fault(Fault { at: Trigger::Number(call), moment, mishap: mishap.clone() });
    let hangs = matches!(mishap, Mishap::Hang);
    let is_struck = || scene.sim.calls().len() >= call;
    let dies = || {
        if is_struck() && matches!(mishap, Mishap::LinkDown { .. }) {
            // Nobody calls over a link that is down: it must come back by itself.
            scene.sim.set_link(Link::Up);
        }
        hangs && is_struck()
    };

    let life = Life::start(&scene);
    let begun = life.begin(request, dies);
    let ended = match &begun {
        Some(Ok(id)) => life.run(*id, dies),
        Some(Err(_)) | None => None,
    };
    if !is_struck() {
        return None;
    }
    drop(life);
    let ended = match (begun, ended) {
        (_, Some(ended)) => ended,
        // Refused: nothing may have been done.
        (Some(Err(_)), None) => {
            let acts = scene.sim.calls().iter().filter(|call| !call.method.is_look()).count();
            assert_eq!(acts, 0, "{wish:?} was refused at call {call} after it had acted");
            return Some(());
        }
        (Some(Ok(_)) | None, None) => {
            scene.sim.reset_script();
            let Some(open) = scene.open_operation() else { return Some(()) };
            let life = Life::start(&scene);
            life.run(open, || false).unwrap()
        }
    };
    let struck = scene.sim.calls().get(call.saturating_sub(1)).map(ToString::to_string);
    let ended = calm_down(&scene, wish, ended);
    let verified = verify(&scene, wish, run_state, truth, &ended);
    let is_left = wish.is_resolution() && ended.cursor.state == OperationState::Failed;
    let check = || if is_left { Ok(()) } else { check_node(&scene) };
    if let Err(problem) = verified.and_then(|()| check()) {
        panic!(
            "{wish:?}, {run_state:?}, call {call} ({struck:?}), {moment:?} {mishap:?}: {problem}\n{ended:#?}"
        );
    }
    Some(())
}

/// A merge that was given up, since the guest could not be slowed, goes on when the guest is calm and a person says so.
fn calm_down(scene: &Scene, wish: Wish, ended: Operation) -> Operation {
    let reason = ended.failure.as_ref().map(|failure| failure.reason);
    let is_stuck = matches!(ended.cursor.state, OperationState::Stuck { .. });
    if !is_stuck || !matches!(wish, Wish::DeleteOutrun) || reason != Some(Reason::MergeNotConverging) {
        return ended;
    }
    scene.sim.reset_script();
    scene.sim.guest_calms_down(scene.vm);
    let life = Life::start(scene);
    life.retry(ended.id);
    life.run(ended.id, || false).unwrap()
}

fn strike_everywhere(wish: Wish, run_state: RunState) {
    let struck = strike_each(wish, run_state);
    assert!(struck > 25, "only {struck} faults struck");
}

/// Gives how many faults struck.
fn strike_each(wish: Wish, run_state: RunState) -> usize {
    let mishaps = [
        (Moment::Before, Mishap::Hang),
        (Moment::Midway, Mishap::Hang),
        (Moment::After, Mishap::Hang),
        (Moment::Before, Mishap::Error(Complaint::Refused)),
        (Moment::Midway, Mishap::Error(Complaint::Refused)),
        (Moment::After, Mishap::Error(Complaint::Refused)),
        (Moment::After, Mishap::Error(Complaint::TimedOut)),
        (Moment::After, Mishap::Blind { looks: 1 }),
        (Moment::Before, Mishap::LinkDown { calls: 2 }),
    ];
    let before = set_up(wish, run_state);
    // A fourth of them, spread over the calls, unless all are asked for: `make faults`.
    let step = if std::env::var_os("VMSNAP_ALL_FAULTS").is_some() { 1 } else { 4 };
    let mut struck = 0;
    for (index, mishap) in mishaps.iter().enumerate() {
        let mut call = 1 + index % step;
        while strike(&before, wish, run_state, call, mishap).is_some() {
            call += step;
            struck += 1;
        }
    }
    struck
}

#[test]
fn a_create() {
    strike_everywhere(Wish::Create { quiesce: Quiesce::Auto, memory: false }, RunState::Running);
}

#[test]
fn a_create_that_must_be_quiesced() {
    strike_everywhere(Wish::Create { quiesce: Quiesce::Required, memory: false }, RunState::Running);
}

#[test]
fn a_create_with_memory() {
    strike_everywhere(Wish::Create { quiesce: Quiesce::Auto, memory: true }, RunState::Running);
}

#[test]
fn a_create_of_a_vm_that_is_off() {
    strike_everywhere(Wish::Create { quiesce: Quiesce::Auto, memory: false }, RunState::Off);
}

#[test]
fn a_revert() {
    strike_everywhere(Wish::Revert { to: "one" }, RunState::Running);
}

#[test]
fn a_revert_with_memory() {
    strike_everywhere(Wish::Revert { to: "two" }, RunState::Running);
}

#[test]
fn a_revert_of_a_vm_that_is_off() {
    strike_everywhere(Wish::Revert { to: "one" }, RunState::Off);
}

#[test]
fn a_deletion_that_the_guest_outruns() {
    let (scene, _) = set_up(Wish::DeleteOutrun, RunState::Running);
    let life = Life::start(&scene);
    let id = life.begin(Wish::DeleteOutrun.request(&scene), || false).unwrap().unwrap();
    assert_eq!(life.run(id, || false).unwrap().cursor.state, OperationState::Succeeded);
    for method in [Method::StartCommit, Method::SetIoLimits] {
        assert!(scene.sim.calls().iter().any(|call| call.method == method), "{method} is struck");
    }
    drop(life);
    strike_everywhere(Wish::DeleteOutrun, RunState::Running);
}

#[test]
fn deletions() {
    for name in ["one", "two", "three"] {
        strike_everywhere(Wish::Delete { name }, RunState::Running);
    }
}

#[test]
fn deletions_of_a_vm_that_is_off() {
    for name in ["one", "three"] {
        strike_everywhere(Wish::Delete { name }, RunState::Off);
    }
}

#[test]
fn deletions_that_pull() {
    let wish = Wish::DeleteByPull { name: "three" };
    for (run_state, method) in [(RunState::Running, Method::StartPull), (RunState::Off, Method::Pull)] {
        let (scene, _) = set_up(wish, run_state);
        let life = Life::start(&scene);
        let id = life.begin(wish.request(&scene), || false).unwrap().unwrap();
        assert_eq!(life.run(id, || false).unwrap().cursor.state, OperationState::Succeeded);
        let pulls = scene.sim.calls().iter().filter(|call| call.method == method).count();
        assert_eq!(pulls, 2, "one for each disk");
        strike_everywhere(wish, run_state);
    }
}

#[test]
fn the_oracle_can_fail() {
    let (scene, truth) = set_up(Wish::Delete { name: "one" }, RunState::Running);
    scene.verify(&truth).unwrap();
    scene.write(5, 50);
    assert!(scene.verify(&truth).unwrap_err().contains("the VM reads"));
    let truth = Truth { active: scene.active(), ..truth };
    let life = Life::start(&scene);
    let id = life.begin(scene.delete(&["one"]), || false).unwrap().unwrap();
    let ended = life.run(id, || false).unwrap();
    assert!(scene.verify(&truth).unwrap_err().contains("snapshots are"));
    verify(&scene, Wish::Delete { name: "one" }, RunState::Running, truth, &ended).unwrap();
}

#[test]
fn a_snapshot_of_a_volume() {
    strike_everywhere(Wish::TakeNow, RunState::Running);
}

#[test]
fn a_snapshot_of_a_volume_out_of_another() {
    // It touches nothing: there is little that can be struck.
    strike_each(Wish::TakeFrom { source: "one" }, RunState::Running);
}

#[test]
fn a_revert_of_a_volume() {
    strike_everywhere(Wish::RevertVolume { to: "one" }, RunState::Running);
}

#[test]
fn a_revert_of_a_volume_of_a_vm_that_is_off() {
    strike_everywhere(Wish::RevertVolume { to: "two" }, RunState::Off);
}

#[test]
fn a_linked_clone() {
    strike_each(Wish::Clone { mode: CloneMode::Linked }, RunState::Running);
}

#[test]
fn a_full_clone() {
    strike_each(Wish::Clone { mode: CloneMode::Full }, RunState::Running);
}

#[test]
fn a_clone_that_is_flattened() {
    strike_each(Wish::Flatten, RunState::Running);
}

#[test]
fn a_clone_that_is_flattened_under_its_vm() {
    strike_each(Wish::FlattenLive, RunState::Running);
}

#[test]
fn a_clone_that_is_deleted() {
    strike_each(Wish::DeleteClone, RunState::Running);
}

#[test]
fn a_new_vm() {
    strike_everywhere(Wish::Deploy { mode: CloneMode::Linked }, RunState::Running);
}

#[test]
fn a_new_vm_of_full_copies() {
    strike_everywhere(Wish::Deploy { mode: CloneMode::Full }, RunState::Off);
}

#[test]
fn a_snapshot_of_a_volume_that_no_vm_has() {
    strike_everywhere(Wish::TakeDetached, RunState::Running);
}

#[test]
fn a_revert_of_a_volume_that_no_vm_has() {
    strike_everywhere(Wish::RevertDetached { to: "first" }, RunState::Running);
}

#[test]
fn deletions_of_snapshots_of_a_volume_that_no_vm_has() {
    for names in [&["first"][..], &["second"], &["first", "second"]] {
        strike_everywhere(Wish::DeleteDetached { names }, RunState::Running);
    }
    strike_everywhere(Wish::DeleteDetachedByPull, RunState::Running);
}

#[test]
fn they_go_the_way_that_moves_less() {
    let ways = [
        (Wish::DeleteDetached { names: &["second"] }, Method::Replace),
        (Wish::DeleteDetachedByPull, Method::Pull),
    ];
    for (wish, method) in ways {
        let (scene, _) = set_up(wish, RunState::Running);
        let life = Life::start(&scene);
        let id = life.begin(wish.request(&scene), || false).unwrap().unwrap();
        assert_eq!(life.run(id, || false).unwrap().cursor.state, OperationState::Succeeded);
        assert_eq!(scene.sim.calls().iter().filter(|call| call.method == method).count(), 1, "{method}");
    }
}

#[test]
fn differences_that_are_settled() {
    let wishes = [Wish::AdoptOverlay, Wish::AdoptMerge, Wish::RestoreDefinition, Wish::RemoveOrphan];
    for wish in wishes {
        let struck = strike_each(wish, RunState::Running);
        assert!(struck > 10, "{wish:?}: only {struck} faults struck");
    }
    strike_each(Wish::AdoptOverlay, RunState::Off);
}

#[test]
fn a_clone_with_snapshots_is_flattened() {
    strike_everywhere(Wish::FlattenDetached, RunState::Running);
}
