//! A fault at every call: for each kind of request, each call to the outside world fails, hangs, half happens or is
//! answered blindly; where it hangs the daemon dies and another one goes on. Whatever happens, the operation ends, the
//! guest runs thawed, every READY snapshot and the VM's disks read what they should, and no file is left over.

#![allow(clippy::unwrap_used, reason = "a test stops where it fails")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use vmsnap::host::Link;
use vmsnap::host::sim::{Complaint, Content, Fault, Mishap, Moment, SimHost, Trigger};
use vmsnap::model::operation::OperationState;
use vmsnap::model::snapshot::Owner;
use vmsnap::model::{
    CreateSnapshot, DeleteSnapshot, DiskTarget, Operation, OperationId, Quiesce, RevertSnapshot, RunState,
    RunStateAfter, SnapshotState, VmId,
};
use vmsnap::ops::{Asked, Engine, Settings, Submitted};
use vmsnap::plan::Places;
use vmsnap::store::Store;

/// So many turns of the scheduler are enough for any operation.
const PATIENCE: usize = 20_000;

/// What an image, or a disk, reads.
type Disks = BTreeMap<DiskTarget, Content>;

/// What is asked for.
#[derive(Debug, Clone, Copy)]
enum Wish {
    Create { quiesce: Quiesce, memory: bool },
    Revert { to: &'static str },
    Delete { name: &'static str },
}

/// A node with one VM and three snapshots, its catalog, and what everything must read.
struct Scene {
    sim: SimHost,
    store: Store,
    vm: VmId,
    snapshots: BTreeMap<String, Disks>,
    run_state: RunState,
}

/// One life of the daemon.
struct Life {
    runtime: Runtime,
    engine: Engine,
}

impl Scene {
    fn new(run_state: RunState) -> Self {
        let sim = SimHost::new();
        let vm = sim.vm("web").disks(2).build();
        let store = Store::in_memory().unwrap();
        let mut scene = Self { sim, store, vm, snapshots: BTreeMap::new(), run_state };
        scene.sim.set_job_notches(2);
        for (block, name) in (1..).zip(["one", "two", "three"]) {
            scene.write(block);
            scene.take(name, name == "two");
        }
        scene.write(9);
        if run_state == RunState::Off {
            scene.sim.someone_stops(vm);
        }
        scene.sim.reset_script();
        scene
    }

    fn write(&self, block: u64) {
        for disk in disks() {
            self.sim.guest_write(self.vm, &disk, block, block * 10).unwrap();
        }
    }

    fn take(&mut self, name: &str, memory: bool) {
        let life = self.life();
        let id = life.begin(create(self.vm, name, Quiesce::Auto, memory), || false).unwrap().unwrap();
        assert_eq!(life.run(id, || false).unwrap().cursor.state, OperationState::Succeeded);
        self.snapshots.insert(name.to_owned(), self.active());
    }

    fn active(&self) -> Disks {
        disks()
            .into_iter()
            .map(|disk| (disk.clone(), self.sim.disk_contents(self.vm, &disk).unwrap()))
            .collect()
    }

    fn life(&self) -> Life {
        let runtime = Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        let settings = Settings {
            places: Places { memory: "/memory".into(), overlays: None, reserve: 0 },
            concurrent_merges: 4,
            concurrent_captures: 2,
            boot_id: "boot".to_owned(),
        };
        let engine = runtime.block_on(async {
            let engine = Engine::new(self.sim.host(), self.store.clone(), settings).unwrap();
            engine.recover().await.unwrap();
            engine
        });
        Life { runtime, engine }
    }

    fn ask(&self, wish: Wish) -> Asking {
        let find = |name: &str| {
            let tree =
                Builder::new_current_thread().build().unwrap().block_on(self.store.tree(self.vm)).unwrap();
            tree.snapshots.iter().find(|snapshot| snapshot.name.as_str() == name).unwrap().id
        };
        match wish {
            Wish::Create { quiesce, memory } => create(self.vm, "new", quiesce, memory),
            Wish::Revert { to } => Asking::Revert(RevertSnapshot {
                snapshot: find(to),
                run_state_after: RunStateAfter::AsItWas,
                generation: None,
            }),
            Wish::Delete { name } => {
                Asking::Delete(DeleteSnapshot { snapshot: find(name), bandwidth: None, generation: None })
            }
        }
    }

    /// The operation that an earlier life left behind.
    fn open_operation(&self) -> Option<OperationId> {
        let runtime = Builder::new_current_thread().build().unwrap();
        let open = runtime.block_on(self.store.open_operations()).unwrap();
        open.first().map(|operation| operation.id)
    }

    /// Everything that must hold once an operation has ended.
    fn verify(&self, wish: Wish, before: &Disks, ended: &Operation) -> Result<(), String> {
        let runtime = Builder::new_current_thread().build().unwrap();
        let tree = runtime.block_on(self.store.tree(self.vm)).unwrap();
        let is_done = match ended.cursor.state {
            OperationState::Succeeded => true,
            OperationState::Failed => false,
            state => {
                return Err(format!("it ended in {state:?}: {:?} {:?}", ended.failure, ended.later_failure));
            }
        };
        let mut names: BTreeSet<&str> = self.snapshots.keys().map(String::as_str).collect();
        let mut snapshots = self.snapshots.clone();
        let mut active = before.clone();
        match wish {
            Wish::Create { .. } if is_done => {
                names.insert("new");
                snapshots.insert("new".to_owned(), before.clone());
            }
            Wish::Revert { to } if is_done => active = self.snapshots[to].clone(),
            Wish::Delete { name } if is_done => drop(names.remove(name)),
            Wish::Create { .. } | Wish::Revert { .. } | Wish::Delete { .. } => {}
        }
        let known: BTreeSet<&str> = tree.snapshots.iter().map(|snapshot| snapshot.name.as_str()).collect();
        ensure(known == names, || format!("snapshots are {known:?}, not {names:?}"))?;
        let mut files: BTreeSet<PathBuf> = tree.layers.values().map(|layer| layer.path.clone()).collect();
        for snapshot in &tree.snapshots {
            ensure(snapshot.state == SnapshotState::Ready, || {
                format!("{} is {:?}", snapshot.name, snapshot.state)
            })?;
            files.extend(snapshot.memory.iter().map(|memory| memory.path.clone()));
            for disk in &snapshot.disks {
                let reads =
                    self.sim.read_image(&tree.layers[&disk.layer].path).map_err(|error| error.to_string())?;
                let wanted = &snapshots[snapshot.name.as_str()][&disk.target];
                ensure(reads == *wanted, || format!("{} of {} reads {reads:?}", disk.target, snapshot.name))?;
            }
        }
        ensure(self.active() == active, || format!("the VM reads {:?}, not {active:?}", self.active()))?;
        let left: BTreeSet<PathBuf> = self.sim.files().into_iter().collect();
        ensure(left == files, || format!("files are {left:?}, not {files:?}"))?;
        ensure(!self.sim.is_guest_frozen(self.vm), || "the guest is frozen".to_owned())?;
        let state = self.sim.run_state(self.vm).unwrap();
        let from_memory = matches!(wish, Wish::Revert { to: "two" }) && is_done;
        let wanted = if from_memory { RunState::Running } else { self.run_state };
        ensure(state == wanted, || format!("the VM is {state:?}, not {wanted:?}"))?;
        let violations = self.sim.violations();
        ensure(violations.is_empty(), || violations.join("; "))
    }
}

fn ensure(holds: bool, otherwise: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(otherwise()) }
}

fn disks() -> [DiskTarget; 2] {
    ["vda", "vdb"].map(|disk| disk.parse().unwrap())
}

enum Asking {
    Create(Box<CreateSnapshot>),
    Revert(RevertSnapshot),
    Delete(DeleteSnapshot),
}

fn create(vm: VmId, name: &str, quiesce: Quiesce, memory: bool) -> Asking {
    Asking::Create(Box::new(CreateSnapshot {
        vm,
        name: Some(name.parse().unwrap()),
        display_name: String::new(),
        description: String::new(),
        memory,
        quiesce,
        mount_points: Vec::new(),
        freeze_timeout_ms: 60_000,
        disks: BTreeSet::new(),
        owner: Owner::default(),
        properties: BTreeMap::new(),
    }))
}

impl Life {
    /// Submits. None if the daemon is to die before it has answered.
    fn begin(&self, asking: Asking, dies: impl Fn() -> bool) -> Option<Result<OperationId, String>> {
        let asked = Asked { by: "test".to_owned(), key: None, validate_only: false };
        let engine = self.engine.clone();
        let submit = async move {
            let submitted = match asking {
                Asking::Create(request) => engine.create_snapshot(*request, asked).await,
                Asking::Revert(request) => engine.revert_snapshot(request, asked).await,
                Asking::Delete(request) => engine.delete_snapshot(request, asked).await,
            };
            match submitted {
                Ok(Submitted::Operation(view)) => Ok(view.operation.id),
                Ok(Submitted::Plan(_)) => unreachable!("nobody asked for a plan"),
                Err(error) => Err(error.to_string()),
            }
        };
        self.runtime.block_on(async {
            let task = tokio::spawn(submit);
            while !task.is_finished() {
                if dies() {
                    return None;
                }
                pass_time().await;
            }
            Some(task.await.unwrap())
        })
    }

    /// Runs until the operation has ended, or the daemon is to die.
    fn run(&self, id: OperationId, dies: impl Fn() -> bool) -> Option<Operation> {
        self.runtime.block_on(async {
            for _ in 0..PATIENCE {
                let operation = self.engine.operation(id).await.unwrap().operation;
                let is_over = operation.cursor.turn().is_none() && self.engine.busy() == 0;
                if is_over || matches!(operation.cursor.state, OperationState::Stuck { .. }) {
                    return Some(operation);
                }
                if dies() {
                    return None;
                }
                pass_time().await;
            }
            let operation = self.engine.operation(id).await.unwrap().operation;
            panic!("it does not end: {:?} {:?}", operation.cursor, operation.failure)
        })
    }
}

/// Lets everybody else move. The clock is ours: it stands still while the catalog's thread works.
async fn pass_time() {
    tokio::task::yield_now().await;
    tokio::time::advance(Duration::from_millis(100)).await;
}

/// A wish with something that goes wrong at the n-th call. None once there is no such call any more.
fn strike(wish: Wish, run_state: RunState, call: usize, moment: Moment, mishap: &Mishap) -> Option<()> {
    let scene = Scene::new(run_state);
    let before = scene.active();
    let asking = scene.ask(wish);
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

    let life = scene.life();
    let begun = life.begin(asking, dies);
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
            let life = scene.life();
            life.run(open, || false).unwrap()
        }
    };
    if let Err(problem) = scene.verify(wish, &before, &ended) {
        let struck = scene.sim.calls().get(call.saturating_sub(1)).map(ToString::to_string);
        panic!(
            "{wish:?}, {run_state:?}, call {call} ({struck:?}), {moment:?} {mishap:?}: {problem}\n{ended:#?}"
        );
    }
    Some(())
}

fn strike_everywhere(wish: Wish, run_state: RunState) {
    let mishaps = [
        (Moment::Before, Mishap::Hang),
        (Moment::Midway, Mishap::Hang),
        (Moment::After, Mishap::Hang),
        (Moment::Before, Mishap::Error(Complaint::Refused)),
        (Moment::Midway, Mishap::Error(Complaint::Refused)),
        (Moment::After, Mishap::Error(Complaint::TimedOut)),
        (Moment::After, Mishap::Blind { looks: 1 }),
        (Moment::Before, Mishap::LinkDown { calls: 2 }),
    ];
    let mut struck = 0;
    for (moment, mishap) in mishaps {
        let mut call = 1;
        while strike(wish, run_state, call, moment, &mishap).is_some() {
            call += 1;
            struck += 1;
        }
    }
    assert!(struck > 50, "only {struck} faults struck");
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
fn the_oracle_can_fail() {
    let scene = Scene::new(RunState::Running);
    let before = scene.active();
    let wish = Wish::Delete { name: "one" };
    let life = scene.life();
    let id = life.begin(scene.ask(wish), || false).unwrap().unwrap();
    let ended = life.run(id, || false).unwrap();
    drop(life);
    scene.verify(wish, &before, &ended).unwrap();
    scene.write(5);
    assert!(scene.verify(wish, &before, &ended).is_err(), "another content is noticed");
    scene.sim.write_image(Path::new("/images/stray.qcow2"), 1, 1).unwrap_err();
}
