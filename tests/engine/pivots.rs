//! A VM that was asked to write to the base of a merge, and whose process ends before anybody has seen whether it did: the
//! child is never merged into a base that may be newer.

use std::path::{Path, PathBuf};

use vmsnap::host::Link;
use vmsnap::host::sim::{Call, Complaint, Content, Fault, Method, Mishap, Moment, Trigger};
use vmsnap::model::operation::OperationState;
use vmsnap::model::step::{ImageRef, Step};
use vmsnap::model::{DiskTarget, Operation, OperationId, Quiesce, Reason};

use crate::simulated::{self, Life, Scene, Truth};

/// How far the pivot of `vda` came before everything died.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pivoted {
    /// QEMU was not reached.
    No,
    /// QEMU writes to the base, and libvirt has not noted it.
    Yes,
}

/// A deletion whose daemon died in the pivot of `vda`.
struct Bed {
    scene: Scene,
    truth: Truth,
    operation: OperationId,
    child: PathBuf,
    base: ImageRef,
}

fn vda() -> DiskTarget {
    "vda".parse().unwrap()
}

impl Bed {
    fn new(pivoted: Pivoted) -> Self {
        Self::over(&[], pivoted)
    }

    /// With snapshots that were taken before the one that is deleted.
    fn over(snapshots: &[&str], pivoted: Pivoted) -> Self {
        let scene = Scene::forkable();
        let life = Life::start(&scene);
        let mut truth = Truth::default();
        for name in snapshots {
            let id = life.begin(scene.create(name, Quiesce::Auto, false, &[]), || false).unwrap().unwrap();
            assert_eq!(life.run(id, || false).unwrap().cursor.state, OperationState::Succeeded);
            truth.snapshots.insert((*name).to_owned(), scene.active());
            truth.kept_variables.insert((*name).to_owned(), scene.variables(scene.vm));
        }
        // The base has more than what lies on it: that is merged down.
        (0..8).for_each(|block| scene.write(block, 10 + block));
        let id = life.begin(scene.create("one", Quiesce::Auto, false, &[vda()]), || false).unwrap().unwrap();
        assert_eq!(life.run(id, || false).unwrap().cursor.state, OperationState::Succeeded);
        scene.write(1, 20);
        scene.sim.reset_script();
        let at = Trigger::Call(Call { method: Method::Pivot, occurrence: 1 });
        let moment = if pivoted == Pivoted::Yes { Moment::Midway } else { Moment::Before };
        scene.sim.add_fault(Fault { at, moment, mishap: Mishap::Hang });
        let is_struck = || scene.calls_of(Method::Pivot) > 0;
        let operation = life.begin(scene.delete(&["one"]), || false).unwrap().unwrap();
        assert!(life.run(operation, is_struck).is_none(), "it dies in the pivot");
        drop(life);
        scene.sim.reset_script();
        let (child, base) = layers(&scene, operation);
        truth.active = scene.active();
        Self { scene, truth, operation, child, base }
    }

    /// The guest writes, and its process ends.
    fn ends(&mut self, last_writes: &[(u64, u64)]) {
        for (block, value) in last_writes {
            self.scene.write(*block, *value);
        }
        self.truth.active = self.scene.active();
        self.scene.sim.someone_stops(self.scene.vm);
    }

    /// The base lacks what the child got last: it was not copied yet when the process ended.
    fn base_lags(&mut self, block: u64) {
        self.scene.sim.write_image(&self.child, block, 77).unwrap();
        self.truth.active.get_mut(&vda()).unwrap().content.insert(block, 77);
    }

    fn goes_on(&self) -> Operation {
        Life::start(&self.scene).run(self.operation, || false).unwrap()
    }

    fn is_stuck(&self) {
        let before = self.files();
        let stuck = self.goes_on();
        assert!(matches!(stuck.cursor.state, OperationState::Stuck { .. }), "{stuck:?}");
        let failure = stuck.failure.unwrap();
        assert_eq!(failure.reason, Reason::ImageChanged);
        for path in [&self.child, &self.base.path] {
            assert!(failure.message.contains(&path.display().to_string()), "{failure:?}");
        }
        assert_eq!(self.files(), before, "no byte of either is touched");
    }

    /// What both images of `vda` hold, each with all that it lies on.
    fn files(&self) -> [Content; 2] {
        [self.child.as_path(), &self.base.path].map(|path: &Path| self.scene.sim.read_image(path).unwrap())
    }

    fn person_decides_for_the_base(&self) {
        self.scene.sim.someone_redefines(self.scene.vm, &vda(), self.base.clone());
    }

    fn succeeds(&self) {
        let life = Life::start(&self.scene);
        life.retry(self.operation);
        let ended = life.run(self.operation, || false).unwrap();
        assert_eq!(ended.cursor.state, OperationState::Succeeded, "{ended:?}");
        drop(life);
        self.verify();
    }

    fn verify(&self) {
        self.scene.verify(&self.truth).unwrap();
        assert!(!self.scene.sim.files().contains(&self.child), "the child is gone");
        assert_eq!(pivots(&self.scene), 0, "nothing is noted any more");
    }
}

fn layers(scene: &Scene, operation: OperationId) -> (PathBuf, ImageRef) {
    let open = block_on(scene.store.operation(operation)).unwrap().unwrap();
    let merges = open.steps.iter().find_map(|step| match step {
        Step::Merge(layers) => Some(&layers.merges),
        _ => None,
    });
    let merge = merges.unwrap().iter().find(|merge| merge.target == vda()).unwrap();
    (merge.child.path.clone(), merge.base.clone())
}

fn pivots(scene: &Scene) -> usize {
    let noted = simulated::disks().into_iter().map(|disk| block_on(scene.store.pivot(scene.vm, &disk)));
    noted.filter(|noted| noted.as_ref().unwrap().is_some()).count()
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

#[test]
fn a_base_that_the_guest_wrote_to_is_not_overwritten() {
    let mut bed = Bed::new(Pivoted::Yes);
    bed.ends(&[(1, 30), (5, 31)]);
    bed.is_stuck();
    bed.is_stuck();
    bed.person_decides_for_the_base();
    bed.succeeds();
}

#[test]
fn a_child_that_is_newer_is_not_forgotten() {
    let mut bed = Bed::new(Pivoted::No);
    bed.ends(&[]);
    bed.base_lags(1);
    bed.is_stuck();
    // A person commits it by hand.
    bed.scene.sim.write_image(&bed.base.path, 1, 77).unwrap();
    bed.person_decides_for_the_base();
    bed.succeeds();
}

#[test]
fn what_reads_the_same_needs_no_person() {
    for pivoted in [Pivoted::No, Pivoted::Yes] {
        let mut bed = Bed::new(pivoted);
        bed.ends(&[]);
        assert_eq!(bed.goes_on().cursor.state, OperationState::Succeeded, "{pivoted:?}");
        bed.verify();
    }
}

/// The operation was given up, and what is on top of the child now goes down through it.
#[test]
fn another_merge_goes_over_neither() {
    let mut bed = Bed::new(Pivoted::Yes);
    bed.ends(&[(1, 30)]);
    bed.is_stuck();
    let scene = &bed.scene;
    let life = Life::start(scene);
    life.abandon(bed.operation);
    assert_eq!(life.run(bed.operation, || false).unwrap().cursor.state, OperationState::Failed);
    let id = life.begin(scene.create("later", Quiesce::Auto, false, &[vda()]), || false).unwrap().unwrap();
    assert_eq!(life.run(id, || false).unwrap().cursor.state, OperationState::Succeeded);
    let before = bed.files();
    let id = life.begin(scene.delete(&["one", "later"]), || false).unwrap().unwrap();
    assert_eq!(life.run(id, || false).unwrap().cursor.state, OperationState::Succeeded);
    // They go; what they need not any more waits for a person.
    assert_eq!(bed.files(), before, "no byte of either is touched");
}

/// It booted what may be the older one. What is in the other one can still be told.
#[test]
fn a_vm_that_was_started_again_is_not_merged() {
    let mut bed = Bed::new(Pivoted::Yes);
    bed.ends(&[(1, 30)]);
    bed.scene.sim.someone_starts(bed.scene.vm);
    bed.is_stuck();
    bed.scene.sim.someone_stops(bed.scene.vm);
    bed.person_decides_for_the_base();
    bed.succeeds();
}

/// The same process goes on with either: it tells which.
#[test]
fn a_process_that_is_there_is_believed() {
    for pivoted in [Pivoted::No, Pivoted::Yes] {
        let mut bed = Bed::new(pivoted);
        bed.scene.write(1, 30);
        bed.truth.active = bed.scene.active();
        assert_eq!(bed.goes_on().cursor.state, OperationState::Succeeded, "{pivoted:?}");
        bed.verify();
    }
}

/// The daemon lives, libvirt is away, and comes back when the VM is gone.
#[test]
fn libvirt_dies_with_the_pivot_and_qemu_before_it_is_back() {
    let bed = Bed::new(Pivoted::No);
    let (scene, truth) = (&bed.scene, &bed.truth);
    let at = Trigger::Call(Call { method: Method::Pivot, occurrence: 1 });
    let down = Mishap::LinkDown { calls: u32::MAX };
    scene.sim.add_fault(Fault { at, moment: Moment::After, mishap: down });
    scene.sim.add_fault(Fault { at, moment: Moment::Midway, mishap: Mishap::Error(Complaint::Unreachable) });
    let mut told = None;
    let life = Life::start(scene);
    let mut looks = 0;
    let stuck = life.run_watching(bed.operation, || {
        if scene.calls_of(Method::Pivot) > 0 && told.is_none() {
            scene.write(1, 40);
            told = Some(scene.active());
            scene.sim.someone_stops(scene.vm);
        }
        looks += u32::from(told.is_some());
        if looks == 20 {
            scene.sim.set_link(Link::Up);
        }
        false
    });
    let stuck = stuck.unwrap();
    assert!(matches!(stuck.cursor.state, OperationState::Stuck { .. }), "{stuck:?}");
    drop(life);
    scene.sim.reset_script();
    let truth = Truth { active: told.unwrap(), ..truth.clone() };
    let base = bed.base.clone();
    let bed = Bed { truth, base, ..bed };
    bed.person_decides_for_the_base();
    bed.succeeds();
}

/// Whoever goes back to what lies below both lets both go, whichever is the newer one.
#[test]
fn a_revert_lets_both_go() {
    let mut bed = Bed::over(&["zero"], Pivoted::Yes);
    bed.ends(&[(1, 30)]);
    bed.is_stuck();
    let life = Life::start(&bed.scene);
    life.abandon(bed.operation);
    assert_eq!(life.run(bed.operation, || false).unwrap().cursor.state, OperationState::Failed);
    for request in [bed.scene.revert("zero"), bed.scene.delete(&["one"])] {
        let id = life.begin(request, || false).unwrap().unwrap();
        assert_eq!(life.run(id, || false).unwrap().cursor.state, OperationState::Succeeded);
        assert!(!bed.scene.sim.files().contains(&bed.child));
    }
    life.settle(&bed.scene);
    drop(life);
    assert!(!bed.scene.sim.files().contains(&bed.base.path));
}
