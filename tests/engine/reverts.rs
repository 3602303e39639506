//! A revert whose VM was started, and whose end nobody has seen: the daemon died in the start, and the VM has ended since. What
//! its guest wrote is what the VM has.

use vmsnap::host::sim::{Call, Complaint, Fault, Method, Mishap, Moment, Trigger};
use vmsnap::model::operation::OperationState;
use vmsnap::model::vm::RunState;
use vmsnap::model::{OperationId, Quiesce, Request};
use vmsnap::plan::MemoryCompression;

use crate::simulated::{Life, Scene, Truth};

fn done(life: &Life, request: Request) {
    let id = life.begin(request, || false).unwrap().unwrap();
    assert_eq!(life.run(id, || false).unwrap().cursor.state, OperationState::Succeeded);
}

/// A revert whose VM runs again, and whose daemon is dead.
fn started(memory: bool) -> (Scene, Truth, OperationId) {
    let scene = Scene::forkable();
    let life = Life::start(&scene);
    scene.write(1, 10);
    done(&life, scene.create("one", Quiesce::Auto, memory, &[]));
    let variables = scene.variables(scene.vm);
    let truth = Truth {
        snapshots: [("one".to_owned(), scene.active())].into(),
        kept_variables: [("one".to_owned(), variables)].into(),
        variables,
        ..Truth::default()
    };
    scene.write(2, 20);
    scene.sim.reset_script();
    let at = Trigger::Call(Call { method: Method::Start, occurrence: 1 });
    scene.sim.add_fault(Fault { at, moment: Moment::After, mishap: Mishap::Hang });
    let id = life.begin(scene.revert("one"), || false).unwrap().unwrap();
    assert!(life.run(id, || scene.calls_of(Method::Start) >= 1).is_none(), "it dies in the start");
    drop(life);
    scene.sim.reset_script();
    (scene, truth, id)
}

/// The memory belongs to what the disks held before: neither is it restored over them, nor are they taken for unused.
#[test]
fn what_the_guest_wrote_since_stays() {
    for memory in [false, true] {
        for refuses in [false, true] {
            let (scene, mut truth, id) = started(memory);
            scene.write(3, 30);
            truth.active = scene.active();
            scene.sim.someone_stops(scene.vm);
            if refuses {
                let at = Trigger::Call(Call { method: Method::Start, occurrence: 1 });
                let mishap = Mishap::Error(Complaint::Refused);
                scene.sim.add_fault(Fault { at, moment: Moment::Before, mishap });
            }
            let ended = Life::start(&scene).run(id, || false).unwrap();
            assert_eq!(ended.cursor.state, OperationState::Succeeded, "{memory} {refuses}: {ended:?}");
            assert_eq!(
                scene.sim.run_state(scene.vm),
                Some(RunState::Off),
                "whoever has ended it may have wanted that"
            );
            scene.verify(&truth).unwrap();
        }
    }
}

/// One whose guest has written nothing may be started once more.
#[test]
fn a_vm_that_has_written_nothing_is_started() {
    for memory in [false, true] {
        let (scene, mut truth, id) = started(memory);
        truth.active = scene.active();
        scene.sim.someone_stops(scene.vm);
        let ended = Life::start(&scene).run(id, || false).unwrap();
        assert_eq!(ended.cursor.state, OperationState::Succeeded, "{ended:?}");
        assert_eq!(scene.sim.run_state(scene.vm), Some(RunState::Running));
        scene.verify(&truth).unwrap();
    }
}

/// Its VM is stopped for nothing otherwise: what it was doing would be lost, and nothing be brought back.
#[test]
fn memory_that_cannot_be_read_any_more_stops_no_vm() {
    let mut scene = Scene::forkable();
    scene.memory_compression = MemoryCompression::Zstd;
    scene.sim.learns_to_capture_behind(scene.vm, 2);
    let life = Life::start(&scene);
    done(&life, scene.create("one", Quiesce::Auto, true, &[]));
    scene.write(2, 20);
    scene.sim.reset_script();
    let before = scene.active();
    scene.sim.set_compression_blocker(Some("the program zstd is not installed"));
    let revert = || {
        let id = life.begin(scene.revert("one"), || false).unwrap().unwrap();
        life.run(id, || false).unwrap()
    };
    let failed = revert();
    assert_eq!(failed.cursor.state, OperationState::Failed, "{failed:?}");
    let failure = failed.failure.unwrap();
    assert!(failure.causes.iter().any(|cause| cause.contains("zstd is not installed")), "{failure:?}");
    assert_eq!((scene.calls_of(Method::Stop), scene.active()), (0, before));
    scene.sim.set_compression_blocker(None);
    assert_eq!(revert().cursor.state, OperationState::Succeeded);
}
