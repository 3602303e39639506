//! A VM that was switched to overlays, and whose process ends before libvirt has noted it: what its guest wrote last is never
//! removed, and never booted past.

use std::path::{Path, PathBuf};

use vmsnap::host::sim::{Call, Complaint, Content, Fault, Method, Mishap, Moment, Trigger};
use vmsnap::model::operation::OperationState;
use vmsnap::model::step::{PointedDisk, Step};
use vmsnap::model::vm::{PauseReason, RunState};
use vmsnap::model::{Operation, OperationId, Quiesce, Reason};

use crate::simulated::{Life, Scene, Truth};

/// A create whose daemon died in a call. In the middle of the switch libvirt died with it: QEMU has switched, and no
/// definition tells.
struct Bed {
    scene: Scene,
    truth: Truth,
    operation: OperationId,
    disks: Vec<PointedDisk>,
}

impl Bed {
    fn new(quiesce: Quiesce, moment: Moment) -> Self {
        Self::dying(quiesce, (Method::SwitchDisks, 1), moment)
    }

    fn dying(quiesce: Quiesce, call: (Method, usize), moment: Moment) -> Self {
        let scene = Scene::forkable();
        let life = Life::start(&scene);
        scene.write(1, 10);
        let before = scene.active();
        strike(&scene, call, moment);
        let is_struck = || scene.calls_of(call.0) >= call.1;
        let operation = life.begin(scene.create("one", quiesce, false, &[]), || false).unwrap().unwrap();
        assert!(life.run(operation, is_struck).is_none(), "it dies in {call:?}");
        drop(life);
        scene.sim.reset_script();
        let variables = scene.variables(scene.vm);
        let truth = Truth {
            snapshots: [("one".to_owned(), before)].into(),
            kept_variables: [("one".to_owned(), variables)].into(),
            variables,
            ..Truth::default()
        };
        let disks = switched(&scene, operation);
        Self { scene, truth, operation, disks }
    }

    /// The guest writes, and its process ends.
    fn ends(&mut self, last_writes: &[(u64, u64)]) {
        // As the unit does when the daemon has died.
        self.scene.sim.someone_freezes(self.scene.vm, false);
        for (block, value) in last_writes {
            self.scene.write(*block, *value);
        }
        self.truth.active = self.scene.active();
        self.scene.sim.someone_stops(self.scene.vm);
    }

    fn goes_on(&self) -> Operation {
        Life::start(&self.scene).run(self.operation, || false).unwrap()
    }

    fn ends_as(&self, state: OperationState) {
        let ended = self.goes_on();
        assert_eq!(ended.cursor.state, state, "{ended:?}");
        self.scene.verify(&self.truth).unwrap();
    }

    fn is_stuck(&self) {
        let before = self.overlays();
        let stuck = self.goes_on();
        assert!(matches!(stuck.cursor.state, OperationState::Stuck { .. }), "{stuck:?}");
        let failure = stuck.later_failure.or(stuck.failure).unwrap();
        assert_eq!(failure.reason, Reason::ImageChanged);
        for path in [&self.disks[0].from.path, &self.disks[0].to.path] {
            assert!(failure.message.contains(&path.display().to_string()), "{failure:?}");
        }
        assert_eq!(self.overlays(), before, "no byte of them is touched");
    }

    fn has_no_snapshot(&mut self) {
        self.truth.snapshots.clear();
        self.truth.kept_variables.clear();
    }

    fn person_goes_on_with_the_bases(&mut self) {
        self.truth.active = self.scene.active();
        self.has_no_snapshot();
        for disk in &self.disks {
            let kept = kept(&disk.to.path);
            self.scene.sim.someone_moves(&disk.to.path, &kept);
            self.scene.keep(&kept);
        }
        self.retried(OperationState::Failed);
    }

    fn retried(&self, state: OperationState) {
        let life = Life::start(&self.scene);
        life.retry(self.operation);
        let ended = life.run(self.operation, || false).unwrap();
        assert_eq!(ended.cursor.state, state, "{ended:?}");
        drop(life);
        self.scene.verify(&self.truth).unwrap();
    }

    fn overlays(&self) -> Vec<Content> {
        self.disks.iter().map(|disk| self.scene.sim.read_image(&disk.to.path).unwrap()).collect()
    }
}

fn strike(scene: &Scene, (method, occurrence): (Method, usize), moment: Moment) {
    let at = Trigger::Call(Call { method, occurrence });
    scene.sim.add_fault(Fault { at, moment, mishap: Mishap::Hang });
}

fn switched(scene: &Scene, operation: OperationId) -> Vec<PointedDisk> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let open = runtime.block_on(scene.store.operation(operation)).unwrap().unwrap();
    let disks = open.steps.iter().find_map(|step| match step {
        Step::SwitchDisks(switch) => Some(switch.disks.clone()),
        _ => None,
    });
    disks.unwrap()
}

#[test]
fn what_the_guest_wrote_after_it_is_in_the_vm() {
    for last_writes in [&[(1, 20), (5, 21)][..], &[]] {
        let mut bed = Bed::new(Quiesce::Off, Moment::Midway);
        bed.ends(last_writes);
        bed.ends_as(OperationState::Succeeded);
    }
}

#[test]
fn a_switch_that_did_not_take_place_is_none() {
    let mut bed = Bed::new(Quiesce::Off, Moment::Before);
    bed.ends(&[]);
    bed.ends_as(OperationState::Succeeded);
}

/// The freeze was lost with the process, so the switch is taken back, with what was written since.
#[test]
fn what_the_guest_wrote_is_merged_back() {
    let mut bed = Bed::new(Quiesce::Required, Moment::Midway);
    bed.ends(&[(1, 20)]);
    bed.has_no_snapshot();
    bed.ends_as(OperationState::Failed);
}

/// Once it is merged back an overlay says nothing of the switch any more.
#[test]
fn a_way_back_that_was_cut_off_goes_on() {
    // The definition names the overlays first, twice, and then one base after the other.
    let (mended, half_back, back) =
        ((Method::PointDisks, 1), (Method::PointDisks, 3), (Method::PointDisks, 4));
    let (merged, removed) = ((Method::Commit, 1), (Method::Remove, 1));
    for (call, moment) in [
        (mended, Moment::After),
        (merged, Moment::Midway),
        (merged, Moment::After),
        (half_back, Moment::After),
        (back, Moment::After),
        (removed, Moment::Before),
    ] {
        let mut bed = Bed::new(Quiesce::Required, Moment::Midway);
        bed.ends(&[(1, 20)]);
        strike(&bed.scene, call, moment);
        let is_struck = || bed.scene.calls_of(call.0) >= call.1;
        let ended = Life::start(&bed.scene).run(bed.operation, is_struck);
        assert!(ended.is_none(), "it dies in {call:?}");
        bed.scene.sim.reset_script();
        // It is started, writes, and ends: from the images that it was merged back into, or from the overlays.
        bed.scene.sim.someone_starts(bed.scene.vm);
        bed.ends(&[(2, 30)]);
        bed.has_no_snapshot();
        bed.ends_as(OperationState::Failed);
    }
}

/// It booted the bases: each of the two images of a disk has what the other one lacks.
#[test]
fn a_vm_that_was_started_again_needs_a_person() {
    for quiesce in [Quiesce::Off, Quiesce::Required] {
        for is_off_again in [false, true] {
            let mut bed = Bed::new(quiesce, Moment::Midway);
            bed.ends(&[(1, 20)]);
            bed.scene.sim.someone_starts(bed.scene.vm);
            bed.scene.write(3, 30);
            if is_off_again {
                bed.scene.sim.someone_stops(bed.scene.vm);
            }
            bed.is_stuck();
            bed.person_goes_on_with_the_bases();
        }
    }
}

/// The look at it was true when it was taken.
#[test]
fn a_vm_that_is_started_while_its_definition_is_changed_needs_a_person() {
    for quiesce in [Quiesce::Off, Quiesce::Required] {
        let mut bed = Bed::new(quiesce, Moment::Midway);
        bed.ends(&[(1, 20)]);
        let at = Trigger::Call(Call { method: Method::PointDisks, occurrence: 1 });
        let mishap = Mishap::VmStarts(bed.scene.vm);
        bed.scene.sim.add_fault(Fault { at, moment: Moment::Before, mishap });
        bed.is_stuck();
        bed.scene.sim.reset_script();
        bed.scene.write(3, 30);
        bed.person_goes_on_with_the_bases();
    }
}

/// Somebody has let the definition name one overlay of two: that there was a switch is known then.
#[test]
fn a_definition_that_is_half_mended() {
    for (quiesce, state) in
        [(Quiesce::Off, OperationState::Succeeded), (Quiesce::Required, OperationState::Failed)]
    {
        for half in 0..2 {
            let mut bed = Bed::new(quiesce, Moment::Midway);
            bed.ends(&[(1, 20)]);
            let disk = bed.disks[half].clone();
            bed.scene.sim.someone_redefines(bed.scene.vm, &disk.target, disk.to);
            if state == OperationState::Failed {
                bed.has_no_snapshot();
            }
            bed.ends_as(state);
        }
    }
}

/// Started from that, the VM would write to the bases, with the memory of a guest that wrote to the overlays.
#[test]
fn a_state_that_was_saved_before_libvirt_knew_needs_a_person() {
    let mut bed = Bed::new(Quiesce::Off, Moment::Midway);
    bed.scene.write(1, 20);
    bed.truth.active = bed.scene.active();
    bed.scene.sim.someone_saves(bed.scene.vm);
    bed.is_stuck();
    bed.scene.sim.someone_removes_saved_state(bed.scene.vm);
    bed.retried(OperationState::Succeeded);
}

/// The same where libvirt knew: what is merged back is no more where the saved state looks for it.
#[test]
fn a_state_that_was_saved_on_the_overlays_is_not_pulled_from_under() {
    let mut bed = Bed::new(Quiesce::Required, Moment::After);
    bed.scene.sim.someone_freezes(bed.scene.vm, false);
    bed.scene.write(1, 20);
    bed.truth.active = bed.scene.active();
    bed.scene.sim.someone_saves(bed.scene.vm);
    bed.is_stuck();
    bed.scene.sim.someone_starts(bed.scene.vm);
    bed.has_no_snapshot();
    bed.retried(OperationState::Failed);
}

/// It was saved while the overlays were made: started from that, the VM would write to what the snapshot holds.
#[test]
fn a_vm_that_was_saved_before_the_switch_is_not_switched() {
    let mut bed = Bed::dying(Quiesce::Off, (Method::CreateOverlay, 2), Moment::Before);
    bed.truth.active = bed.scene.active();
    bed.scene.sim.someone_saves(bed.scene.vm);
    bed.has_no_snapshot();
    bed.ends_as(OperationState::Failed);
}

/// libvirt dies in a capture of memory, before it has noted that it paused the VM: it calls that a person's pause. What a
/// person has paused before stays so.
#[test]
fn a_pause_that_libvirt_did_not_note() {
    for mishap in [Mishap::Hang, Mishap::Error(Complaint::Unreachable)] {
        for (was, is_afterwards) in [
            (RunState::Running, RunState::Running),
            (RunState::Paused(PauseReason::User), RunState::Paused(PauseReason::User)),
        ] {
            let scene = Scene::forkable();
            let life = Life::start(&scene);
            if was != RunState::Running {
                scene.sim.someone_pauses(scene.vm, PauseReason::User);
            }
            let at = Trigger::Call(Call { method: Method::SwitchDisks, occurrence: 1 });
            scene.sim.add_fault(Fault { at, moment: Moment::Midway, mishap: mishap.clone() });
            let request = scene.create("one", Quiesce::Off, true, &[]);
            let operation = life.begin(request, || false).unwrap().unwrap();
            let dies = || matches!(mishap, Mishap::Hang) && scene.calls_of(Method::SwitchDisks) >= 1;
            let ended = life.run(operation, dies).unwrap_or_else(|| {
                scene.sim.reset_script();
                Life::start(&scene).run(operation, || false).unwrap()
            });
            assert_eq!(ended.cursor.state, OperationState::Succeeded, "{mishap:?}, {was:?}: {ended:?}");
            assert_eq!(scene.sim.run_state(scene.vm), Some(is_afterwards), "{mishap:?}, {was:?}");
        }
    }
}

/// QEMU has captured memory and switched, and libvirt believes otherwise, as long as the VM runs. Its next cold start boots
/// the overlays all the same.
#[test]
fn a_switch_with_memory_that_libvirt_does_not_know_of() {
    let scene = Scene::forkable();
    let life = Life::start(&scene);
    scene.write(1, 10);
    let before = scene.active();
    let at = Trigger::Call(Call { method: Method::SwitchDisks, occurrence: 1 });
    for mishap in [Mishap::VmKnownWrongly(scene.vm), Mishap::Hang] {
        scene.sim.add_fault(Fault { at, moment: Moment::After, mishap });
    }
    let operation = life.begin(scene.create("one", Quiesce::Off, true, &[]), || false).unwrap().unwrap();
    assert!(life.run(operation, || scene.calls_of(Method::SwitchDisks) >= 1).is_none());
    drop(life);
    scene.sim.reset_script();
    // The capture goes on without the daemon.
    while scene.sim.run_state(scene.vm) != Some(RunState::Running) {
        scene.sim.tick();
    }
    for disk in switched(&scene, operation) {
        scene.sim.someone_redefines(scene.vm, &disk.target, disk.from);
    }
    scene.write(2, 20);
    let variables = scene.variables(scene.vm);
    let truth = Truth {
        snapshots: [("one".to_owned(), before)].into(),
        kept_variables: [("one".to_owned(), variables)].into(),
        variables,
        active: scene.active(),
        ..Truth::default()
    };
    let life = Life::start(&scene);
    let stuck = life.run(operation, || false).unwrap();
    assert!(matches!(stuck.cursor.state, OperationState::Stuck { .. }), "{stuck:?}");
    drop(life);
    // What a person is told to do.
    scene.sim.someone_stops(scene.vm);
    scene.sim.someone_starts(scene.vm);
    assert_eq!(scene.active(), truth.active, "it boots what its guest wrote last");
    let life = Life::start(&scene);
    life.retry(operation);
    let ended = life.run(operation, || false).unwrap();
    assert_eq!(ended.cursor.state, OperationState::Succeeded, "{ended:?}");
    drop(life);
    scene.verify(&truth).unwrap();
}

/// libvirt changes what it remembers of the definition before it writes that down, and gives up if it cannot. It remembers
/// until it is started anew.
#[test]
fn a_definition_that_could_not_be_written() {
    let scene = Scene::forkable();
    let life = Life::start(&scene);
    let at = Trigger::Call(Call { method: Method::SwitchDisks, occurrence: 1 });
    let mishap = Mishap::Error(Complaint::Refused);
    scene.sim.add_fault(Fault { at, moment: Moment::After, mishap });
    let operation = life.begin(scene.create("one", Quiesce::Off, false, &[]), || false).unwrap().unwrap();
    let ended = life.run(operation, || false).unwrap();
    assert_eq!(ended.cursor.state, OperationState::Succeeded, "{ended:?}");
    assert_eq!(scene.calls_of(Method::PointDisks), 1, "it is let write once more");
}

/// Somebody takes a disk from the VM after the plan was made: nothing was asked for yet.
#[test]
fn a_disk_that_was_changed_before_the_switch() {
    let scene = Scene::forkable();
    let life = Life::start(&scene);
    let at = Trigger::Call(Call { method: Method::CreateOverlay, occurrence: 2 });
    scene.sim.add_fault(Fault { at, moment: Moment::After, mishap: Mishap::Hang });
    let operation = life.begin(scene.create("one", Quiesce::Off, false, &[]), || false).unwrap().unwrap();
    assert!(life.run(operation, || scene.calls_of(Method::CreateOverlay) >= 2).is_none());
    drop(life);
    scene.sim.reset_script();
    scene.sim.someone_unplugs(scene.vm, &"vdb".parse().unwrap());
    let ended = Life::start(&scene).run(operation, || false).unwrap();
    assert_eq!(ended.cursor.state, OperationState::Failed, "{ended:?}");
}

/// Where a person puts an overlay that is not wanted in the VM.
fn kept(overlay: &Path) -> PathBuf {
    Path::new("/kept").join(overlay.file_name().unwrap())
}
