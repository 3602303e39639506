//! A VM that was switched to overlays, and whose process ends before libvirt has noted it: what its guest wrote last is never
//! removed, and never booted past.

#![allow(clippy::unwrap_used, reason = "a test stops where it fails")]

mod simulated;

use std::path::{Path, PathBuf};

use vmsnap::host::sim::{Call, Content, Fault, Method, Mishap, Moment, Trigger};
use vmsnap::model::operation::OperationState;
use vmsnap::model::step::{PointedDisk, Step};
use vmsnap::model::{Operation, OperationId, Quiesce, Reason};

use simulated::{Life, Scene, Truth};

/// A create whose daemon died in the switch, as did libvirt: QEMU has switched, and no definition tells.
struct Bed {
    scene: Scene,
    truth: Truth,
    operation: OperationId,
    disks: Vec<PointedDisk>,
}

impl Bed {
    fn new(quiesce: Quiesce, moment: Moment) -> Self {
        let scene = Scene::forkable();
        let life = Life::start(&scene);
        scene.write(1, 10);
        let before = scene.active();
        strike(&scene, (Method::SwitchDisks, 1), moment);
        let is_struck = || count(&scene, Method::SwitchDisks) > 0;
        let operation = life.begin(scene.create("one", quiesce, false, &[]), || false).unwrap().unwrap();
        assert!(life.run(operation, is_struck).is_none(), "it dies in the switch");
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

fn count(scene: &Scene, method: Method) -> usize {
    scene.sim.calls().iter().filter(|call| call.method == method).count()
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
    bed.truth.snapshots.clear();
    bed.truth.kept_variables.clear();
    bed.ends_as(OperationState::Failed);
}

/// Once it is merged back an overlay says nothing of the switch any more.
#[test]
fn a_way_back_that_was_cut_off_goes_on() {
    // The definition names the overlays first, and then one base after the other.
    let (mended, back) = ((Method::PointDisks, 1), (Method::PointDisks, 3));
    let (merged, removed) = ((Method::Commit, 1), (Method::Remove, 1));
    for (call, moment) in [
        (mended, Moment::After),
        (merged, Moment::Midway),
        (merged, Moment::After),
        (back, Moment::After),
        (removed, Moment::Before),
    ] {
        let mut bed = Bed::new(Quiesce::Required, Moment::Midway);
        bed.ends(&[(1, 20)]);
        strike(&bed.scene, call, moment);
        let is_struck = || count(&bed.scene, call.0) >= call.1;
        let ended = Life::start(&bed.scene).run(bed.operation, is_struck);
        assert!(ended.is_none(), "it dies in {call:?}");
        bed.scene.sim.reset_script();
        // It is started, writes, and ends: from the images that it was merged back into, or from the overlays.
        bed.scene.sim.someone_starts(bed.scene.vm);
        bed.ends(&[(2, 30)]);
        bed.truth.snapshots.clear();
        bed.truth.kept_variables.clear();
        bed.ends_as(OperationState::Failed);
    }
}

/// It booted the bases: each of the two images of a disk has what the other one lacks.
#[test]
fn a_vm_that_was_started_again_needs_a_person() {
    for is_off_again in [false, true] {
        let mut bed = Bed::new(Quiesce::Off, Moment::Midway);
        bed.ends(&[(1, 20)]);
        bed.scene.sim.someone_starts(bed.scene.vm);
        bed.scene.write(3, 30);
        if is_off_again {
            bed.scene.sim.someone_stops(bed.scene.vm);
        }
        bed.is_stuck();
        bed.truth.active = bed.scene.active();
        bed.truth.snapshots.clear();
        bed.truth.kept_variables.clear();
        for disk in &bed.disks {
            bed.scene.sim.someone_moves(&disk.to.path, &kept(&disk.to.path));
        }
        let kept: Vec<PathBuf> = bed.disks.iter().map(|disk| kept(&disk.to.path)).collect();
        for path in &kept {
            bed.scene.keep(path);
        }
        let life = Life::start(&bed.scene);
        life.retry(bed.operation);
        let ended = life.run(bed.operation, || false).unwrap();
        assert_eq!(ended.cursor.state, OperationState::Failed, "{ended:?}");
        drop(life);
        bed.scene.verify(&bed.truth).unwrap();
    }
}

/// Where a person puts an overlay that is not wanted in the VM.
fn kept(overlay: &Path) -> PathBuf {
    Path::new("/kept").join(overlay.file_name().unwrap())
}
