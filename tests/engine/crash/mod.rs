//! A fault at every call: for each kind of request, each call to the outside world fails, hangs, half happens or is
//! answered blindly; where it hangs the daemon dies and another one goes on. Whatever happens, the operation ends, the
//! guest runs thawed, every READY snapshot and the VM's disks read what they should, and no file is left over.

mod before;
mod table;
mod wish;

use vmsnap::host::Link;
use vmsnap::host::sim::{Complaint, Fault, Method, Mishap, Moment, Trigger};
use vmsnap::model::operation::OperationState;
use vmsnap::model::{CloneMode, IoLimits, Operation, Quiesce, Reason, RunState};

use crate::simulated::{Life, Scene, Truth, ensure};
use before::set_up;
use table::Came;
use wish::{Wish, vdb};

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
    trouble: &Trouble,
) -> Option<()> {
    let Trouble { name, moment, mishap } = trouble;
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
    let struck = scene.sim.calls()[call - 1];
    drop(life);
    let ended = match (begun, ended) {
        (_, Some(ended)) => ended,
        // Refused: nothing may have been done.
        (Some(Err(_)), None) => {
            let acts = scene.sim.calls().iter().filter(|call| !call.method.is_look()).count();
            assert_eq!(acts, 0, "{wish:?} was refused at call {call} after it had acted");
            table::note(struck.method, name, Came::Refused);
            return Some(());
        }
        (Some(Ok(_)) | None, None) => {
            scene.sim.reset_script();
            let Some(open) = scene.open_operation() else {
                table::note(struck.method, name, Came::Refused);
                return Some(());
            };
            let life = Life::start(&scene);
            life.run(open, || false).unwrap()
        }
    };
    let ended = calm_down(&scene, wish, ended);
    let verified = verify(&scene, wish, run_state, truth, &ended);
    let is_left = wish.is_resolution() && ended.cursor.state == OperationState::Failed;
    let check = || if is_left { Ok(()) } else { check_node(&scene) };
    if let Err(problem) = verified.and_then(|()| check()) {
        panic!(
            "{wish:?}, {run_state:?}, call {call} ({struck}), {moment:?} {mishap:?}: {problem}\n{ended:#?}"
        );
    }
    let is_done = ended.cursor.state == OperationState::Succeeded;
    table::note(struck.method, name, if is_done { Came::Finished } else { Came::TurnedBack });
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

/// A fault, and when it strikes with regard to the effect of a call.
struct Trouble {
    name: &'static str,
    moment: Moment,
    mishap: Mishap,
}

fn troubles() -> [Trouble; 9] {
    let trouble = |name, moment, mishap| Trouble { name, moment, mishap };
    [
        trouble("vmsnapd dies before it", Moment::Before, Mishap::Hang),
        trouble("vmsnapd dies midway", Moment::Midway, Mishap::Hang),
        trouble("vmsnapd dies after it", Moment::After, Mishap::Hang),
        trouble("it is refused", Moment::Before, Mishap::Error(Complaint::Refused)),
        trouble("it half happens, and is refused", Moment::Midway, Mishap::Error(Complaint::Refused)),
        trouble("it happens, and is refused", Moment::After, Mishap::Error(Complaint::Refused)),
        trouble("it happens, and no answer comes", Moment::After, Mishap::Error(Complaint::TimedOut)),
        trouble("it happens, and nothing can be seen", Moment::After, Mishap::Blind { looks: 1 }),
        trouble("libvirt is away", Moment::Before, Mishap::LinkDown { calls: 2 }),
    ]
}

/// Gives how many faults struck.
fn strike_each(wish: Wish, run_state: RunState) -> usize {
    let troubles = troubles();
    let before = set_up(wish, run_state);
    // A sixth of them, spread over the calls, unless all are asked for: `make faults`.
    let step = if std::env::var_os("VMSNAP_ALL_FAULTS").is_some() { 1 } else { 6 };
    let mut struck = 0;
    for (index, trouble) in troubles.iter().enumerate() {
        let mut call = 1 + index % step;
        while strike(&before, wish, run_state, call, trouble).is_some() {
            call += step;
            struck += 1;
        }
    }
    table::write(&troubles.map(|trouble| trouble.name));
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
fn a_create_with_memory_behind_the_guests_back() {
    strike_everywhere(Wish::CreateBehind, RunState::Running);
}

/// What compresses it goes with the daemon.
#[test]
fn a_create_with_memory_that_is_compressed() {
    strike_everywhere(Wish::CreateCompressed, RunState::Running);
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
