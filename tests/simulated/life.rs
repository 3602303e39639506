//! Lives of the engine on a simulated node.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::runtime::{Builder, Runtime};
use vmsnap::host::sim::BLOCK;
use vmsnap::model::operation::OperationState;
use vmsnap::model::{Declaration, Declared, Edit, Operation, OperationId, Request, Snapshot, VmId};
use vmsnap::ops::{Asked, Engine, NodeCheck, OpsError, Settings, Submitted};
use vmsnap::plan::{self, BackgroundCaptures, LivePulls, MemoryCompression, MergePolicy, SpeedPolicy};

use super::{Scene, ensure, places};

/// What only a broken engine does not do in time. The catalog works on a thread of its own, which a busy machine may keep
/// waiting: so this is real time, not turns of the scheduler.
const PATIENCE: Duration = Duration::from_secs(120);

/// So long a decision may take to be heard.
const HEARD: Duration = Duration::from_secs(5);

/// Short, and longer than anything takes that goes as it should.
pub const MERGE_POLICY: MergePolicy = MergePolicy {
    patience: Duration::from_secs(5),
    deadline: Duration::from_secs(60),
    slowest_writes: BLOCK / 8,
};

/// What a guest may wait for a disk, and the least that is copied meanwhile.
pub const SPEED_POLICY: SpeedPolicy =
    SpeedPolicy { longest_wait: Duration::from_millis(30), slowest: BLOCK / 8 };

/// The only boot of the node.
pub const BOOT: &str = "boot";

/// What every engine of a simulation is told.
pub fn settings(memory_compression: MemoryCompression) -> Settings {
    Settings {
        places: places(),
        live_pulls: LivePulls::WhenSafe,
        background_captures: BackgroundCaptures::WhenPossible,
        memory_compression,
        concurrent_merges: 4,
        merge_policy: MERGE_POLICY,
        speed_policy: SPEED_POLICY,
        concurrent_captures: 2,
        backups: 2,
        boot_id: BOOT.to_owned(),
    }
}

/// Asks the engine.
pub async fn submit(
    engine: &Engine,
    vm: VmId,
    request: Request,
    asked: Asked,
) -> Result<Submitted, OpsError> {
    match request {
        Request::CreateSnapshot(request) => engine.create_snapshot(request, asked).await,
        Request::TakeFromSnapshot(request) => engine.take_from_snapshot(request, asked).await,
        Request::RevertSnapshot(request) => engine.revert_snapshot(request, asked).await,
        Request::RevertVolume(request) => engine.revert_volume(request, asked).await,
        Request::DeleteSnapshots(request) => engine.delete_snapshots(request, asked).await,
        Request::PurgeSnapshot(request) => engine.purge_snapshot(request, asked).await,
        Request::CloneVolume(request) => engine.clone_volume(request, asked).await,
        Request::FlattenVolume(request) => engine.flatten_volume(request, asked).await,
        Request::DeleteVolume(request) => engine.delete_volume(request, asked).await,
        Request::DeployVm(request) => engine.deploy_vm(request, asked).await,
        Request::ResolveDifference(request) if request.orphan.is_some() => {
            engine.resolve_orphan(request.difference, request.action, asked).await
        }
        Request::ResolveDifference(request) => {
            engine.resolve_difference(vm, request.difference, request.action, asked).await
        }
        Request::Collapse { .. } => unreachable!("nobody asks for it"),
    }
}

/// One life of the daemon. Dropping it is a crash.
pub struct Life {
    runtime: Runtime,
    engine: Engine,
    vm: VmId,
}

impl Life {
    /// Recovers what an earlier life left.
    pub fn start(scene: &Scene) -> Self {
        let runtime = Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        let engine = runtime.block_on(async {
            let settings = settings(scene.memory_compression);
            let engine = Engine::new(scene.sim.host(), scene.store.clone(), settings).unwrap();
            engine.recover().await.unwrap();
            engine
        });
        Self { runtime, engine, vm: scene.vm }
    }

    /// Submits. None if the daemon is to die before it has answered.
    pub fn begin(&self, request: Request, dies: impl Fn() -> bool) -> Option<Result<OperationId, OpsError>> {
        let asked = Asked { by: "test".to_owned(), key: None, validate_only: false };
        let (engine, vm) = (self.engine.clone(), self.vm);
        let submit = async move {
            submit(&engine, vm, request, asked).await.map(|submitted| match submitted {
                Submitted::Operation(view) => view.operation.id,
                Submitted::Plan(_) => unreachable!("nobody asked for a plan"),
            })
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

    /// A person declares a snapshot READY, or in ERROR.
    #[allow(dead_code, reason = "not every test has a person")]
    pub fn declare(&self, name: &str, what: Declared) -> Result<Snapshot, OpsError> {
        let asked = Asked { by: "test".to_owned(), key: None, validate_only: false };
        let declaration = Declaration { what, by: "test".to_owned(), generation: None, at: Timestamp::now() };
        self.runtime.block_on(async {
            let id = self.engine.find_snapshot(name, None).await?.id;
            self.engine.edit_snapshot(id, Edit::Declare(declaration), asked).await
        })
    }

    /// A person gives up an operation that is stuck.
    #[allow(dead_code, reason = "not every test has a person")]
    pub fn abandon(&self, id: OperationId) {
        self.resolve(id, true);
    }

    /// A person says that a stuck operation is to go on.
    pub fn retry(&self, id: OperationId) {
        self.resolve(id, false);
    }

    fn resolve(&self, id: OperationId, abandon: bool) {
        self.runtime.block_on(async {
            // What recovers shows itself first.
            for _ in 0..10 {
                pass_time().await;
            }
            self.engine.resolve(id, abandon).await.unwrap();
            // It is taken in a moment later. What is stuck again by then is told by the run.
            let is_stuck = async || {
                let state = self.engine.operation(id).await.unwrap().operation.cursor.state;
                matches!(state, OperationState::Stuck { .. })
            };
            let asked = Instant::now();
            while is_stuck().await && asked.elapsed() < HEARD {
                pass_time().await;
            }
        });
    }

    /// Runs until the operation has ended, or the daemon is to die.
    pub fn run(&self, id: OperationId, dies: impl Fn() -> bool) -> Option<Operation> {
        self.run_watching(id, dies)
    }

    /// As [`Life::run`], for one who takes notes.
    pub fn run_watching(&self, id: OperationId, mut dies: impl FnMut() -> bool) -> Option<Operation> {
        self.runtime.block_on(async {
            let patience = Instant::now();
            while patience.elapsed() < PATIENCE {
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

impl Life {
    /// Runs until no guest is slowed.
    pub fn settle_throttles(&self, scene: &Scene) {
        self.runtime.block_on(async {
            let patience = Instant::now();
            while !scene.store.throttles().await.unwrap().is_empty() {
                assert!(patience.elapsed() < PATIENCE, "a guest stays slowed");
                pass_time().await;
            }
        });
    }

    /// Runs until nothing is under way, and what nothing needs has gone.
    pub fn settle(&self, scene: &Scene) {
        self.runtime.block_on(async {
            let patience = Instant::now();
            while patience.elapsed() < PATIENCE {
                let due = scene.store.vms_with_due_manifests().await.unwrap();
                if self.engine.busy() == 0 && due.is_empty() && Self::is_settled(scene).await {
                    return;
                }
                pass_time().await;
            }
        });
    }
}

impl Life {
    /// What a check of the node finds to differ. Nothing, as long as nobody else does anything.
    pub fn check(&self, scene: &Scene) -> Result<(), String> {
        // A link that was cut at the very end comes back after some calls.
        let found = (0..5).find_map(|_| self.check_once().ok()).ok_or("the node cannot be checked")?;
        // What it has learned of images is told by manifests, too.
        self.settle(scene);
        let is_known = !scene.tree().layers.is_empty();
        ensure(found.vms > 0 || !is_known, || "the VM was not checked".to_owned())?;
        ensure(found.differences.is_empty(), || format!("differences: {:#?}", found.differences))
    }

    pub fn check_once(&self) -> Result<NodeCheck, OpsError> {
        let engine = self.engine.clone();
        self.runtime.block_on(async {
            let task = tokio::spawn(async move { engine.check_node().await });
            while !task.is_finished() {
                pass_time().await;
            }
            task.await.unwrap()
        })
    }

    /// Whether nothing could go any more, but for what VMs read that the catalog does not know.
    async fn is_settled(scene: &Scene) -> bool {
        let mut trees = vec![scene.store.tree(scene.vm).await.unwrap()];
        for clone in trees[0].clones.clone() {
            if !scene.is_used(clone.name.as_str()) {
                trees.push(scene.store.tree(VmId::of_detached(clone.id)).await.unwrap());
            }
        }
        trees.iter().all(|tree| plan::collapse_tree(tree, |_| false).is_empty())
    }
}

/// Lets everybody else move, the catalog's thread too.
pub async fn pass_time() {
    std::thread::yield_now();
    tokio::task::yield_now().await;
    tokio::time::advance(Duration::from_millis(100)).await;
}
