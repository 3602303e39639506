//! Carries plans out: what `api` may ask for, one runner for all, one operation per VM.
//!
//! Decides when something runs, waits or is refused for being in the way. Leaves what to do to `plan`, how to `host`.
//! Must never know of gRPC, XML or SQL.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use jiff::SignedDuration;
use tokio::sync::{Notify, Semaphore, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::host::{Host, VmSummary};
use crate::model::operation::OperationState;
use crate::model::vm::Format;
use crate::model::{
    Difference, ImageFacts, Labels, LayerTree, Operation, OperationId, Snapshot, SnapshotId, VmId, VmView,
};
use crate::plan::{BackgroundCaptures, LivePulls, MemoryCompression, MergePolicy, Places, SpeedPolicy};
use crate::store::{Departure, OperationFilter, Page, SnapshotFilter, SnapshotPage, Store};

mod backup;
mod board;
mod captures;
mod check;
mod clones;
mod deadman;
mod departure;
mod detached;
mod edit;
mod elsewhere;
mod error;
mod events;
mod expiry;
mod gate;
mod growth;
mod manifest;
pub mod message_id;
mod observe;
mod orphans;
mod presence;
mod readers;
mod rebuild;
mod recent;
mod recover;
mod resolve;
mod runner;
mod space;
mod spans;
mod steps;
mod submit;
mod throttle;
mod volumes;
mod waiting;

pub use board::{Course, OperationView, Phase, Progress};
pub use captures::{captured, end_captures};
pub use check::{NodeCheck, is_unreadable};
pub use error::OpsError;
pub use events::EVENTS;
pub use rebuild::gather;
pub use recent::Fresh;
pub use recover::thaw_guests;
pub use spans::SPANS;
pub use submit::{Asked, Submitted};
pub use throttle::free_guests;
pub use volumes::{VolumePlace, VolumeView};
pub use waiting::Wait;

use board::{Board, Command, Decision, Limit};
use deadman::DeadMan;
use gate::Gate;
use growth::Touched;
use manifest::Manifests;
use recent::Recent;
use throttle::Throttles;

/// A result of an engine call.
pub type Result<T> = std::result::Result<T, OpsError>;

/// The engine. Cheap to clone.
#[derive(Clone)]
pub struct Engine(Arc<Inner>);

struct Inner {
    host: Host,
    store: Store,
    places: Places,
    live_pulls: LivePulls,
    background_captures: BackgroundCaptures,
    memory_compression: MemoryCompression,
    limits: Limits,
    gate: Gate,
    board: Board,
    dead_man: DeadMan,
    manifests: Manifests,
    recent: Recent,
    /// VMs that operations have changed, for whoever keeps up with their disks.
    touched: Touched,
    /// VMs with layers that wait, and what for.
    waiting: Mutex<BTreeMap<VmId, waiting::Waiting>>,
    /// What the last check of each VM found.
    differences: Mutex<BTreeMap<VmId, Vec<Difference>>>,
    /// VMs that were seen to leave for another node, and not seen to run here since. The catalog keeps them, too.
    departed: Mutex<BTreeMap<VmId, Departure>>,
    /// A capture of memory may have been left.
    captures_left: Notify,
    tasks: TaskTracker,
    stopping: CancellationToken,
}

/// How much may go on at once, and where we are.
struct Limits {
    merges: Semaphore,
    captures: Semaphore,
    flushes: Semaphore,
    looks: Semaphore,
    backups: usize,
    merge_policy: MergePolicy,
    speed_policy: SpeedPolicy,
    throttles: Throttles,
    boot_id: String,
}

/// Images that are written out at once ahead of freezes and pauses. Guests that stand still already wait for the same threads.
const FLUSHES: usize = 2;

/// What an engine is told when it is built.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where new files go.
    pub places: Places,
    /// When running VMs may pull.
    pub live_pulls: LivePulls,
    /// When memory may be captured while its guest runs.
    pub background_captures: BackgroundCaptures,
    /// How memory is written that is captured while its guest runs.
    pub memory_compression: MemoryCompression,
    /// Deletions that may merge at once.
    pub concurrent_merges: usize,
    /// How long merges may be outrun by guests.
    pub merge_policy: MergePolicy,
    /// When merges are held back for the guest.
    pub speed_policy: SpeedPolicy,
    /// Memory captures at once.
    pub concurrent_captures: usize,
    /// Backups of the catalog that are kept.
    pub backups: usize,
    /// The boot of this node (`/proc/sys/kernel/random/boot_id`).
    pub boot_id: String,
}

impl Engine {
    /// An engine over a world and a catalog. Call [`Engine::recover`] before it is given work.
    pub fn new(host: Host, store: Store, settings: Settings) -> std::io::Result<Self> {
        let dead_man = DeadMan::start(Arc::clone(&host.emergency))?;
        let manifests = Manifests::new(Arc::clone(&host.images), store.clone(), settings.places.clone());
        let recent = Recent::new(&store);
        Ok(Self(Arc::new(Inner {
            host,
            store,
            places: settings.places,
            live_pulls: settings.live_pulls,
            background_captures: settings.background_captures,
            memory_compression: settings.memory_compression,
            limits: Limits {
                merges: Semaphore::new(settings.concurrent_merges),
                captures: Semaphore::new(settings.concurrent_captures),
                flushes: Semaphore::new(FLUSHES),
                looks: Semaphore::new(waiting::LOOKS),
                backups: settings.backups,
                merge_policy: settings.merge_policy,
                speed_policy: settings.speed_policy,
                throttles: Throttles::default(),
                boot_id: settings.boot_id,
            },
            gate: Gate::default(),
            board: Board::default(),
            dead_man,
            manifests,
            recent,
            touched: Touched::default(),
            waiting: Mutex::default(),
            differences: Mutex::default(),
            departed: Mutex::default(),
            captures_left: Notify::new(),
            tasks: TaskTracker::new(),
            stopping: CancellationToken::new(),
        })))
    }

    /// Does what nobody asks for, from now until the daemon goes down: snapshots expire, what waited is merged, VMs that
    /// leave and come back are noted, the node is checked. Events are kept so long.
    pub fn attend(&self, event_retention: SignedDuration) {
        self.keep_history_for(event_retention);
        self.expire_snapshots();
        self.collapse_when_vms_change();
        self.keep_presence();
        self.check_when_linked();
        self.watch_space();
    }

    /// The outside world, to look at.
    #[must_use]
    pub fn host(&self) -> &Host {
        &self.0.host
    }

    /// The catalog, to look at.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.0.store
    }

    /// Where clones may be made by name; the first is meant when only a file is named.
    #[must_use]
    pub fn image_directories(&self) -> &[PathBuf] {
        &self.0.places.images
    }

    /// Where new files go.
    #[must_use]
    pub fn places(&self) -> &Places {
        &self.0.places
    }

    /// How many operations are under way or stuck.
    #[must_use]
    pub fn busy(&self) -> usize {
        self.0.board.len()
    }

    /// Takes no new work, lets each operation come to a durable stop, no guest frozen.
    pub async fn drain(&self) {
        self.tell_stop().await;
        self.0.stopping.cancel();
        self.0.tasks.close();
        self.0.tasks.wait().await;
    }

    /// Fires when the engine begins to drain.
    #[must_use]
    pub fn draining(&self) -> CancellationToken {
        self.0.stopping.clone()
    }

    /// All VMs.
    pub async fn vms(&self) -> Result<Vec<VmSummary>> {
        let mut vms = self.0.host.hypervisor.vms().await?;
        for vm in &mut vms {
            vm.run_state = self.with_departure(vm.id, vm.run_state).await;
        }
        Ok(vms)
    }

    /// What is written on the VMs that the hypervisor knows, or on one of them.
    pub async fn labels(&self, only: Option<VmId>) -> Result<HashMap<VmId, Labels>> {
        Ok(self.0.host.hypervisor.labels(only).await?)
    }

    /// The VM that answers to a name or an id.
    pub async fn find_vm(&self, wanted: &str) -> Result<VmSummary> {
        let id = wanted.parse::<VmId>().ok();
        let vms = self.vms().await?;
        vms.into_iter()
            .find(|vm| Some(vm.id) == id || vm.name == wanted)
            .ok_or_else(|| OpsError::NoSuchVm(wanted.to_owned()))
    }

    /// A VM and what the catalog knows of it.
    pub async fn vm(&self, vm: VmId) -> Result<(VmView, LayerTree)> {
        let view = self.look_at_vm(vm).await?;
        Ok((view, self.0.store.tree(vm).await?))
    }

    /// What images say of themselves. One that cannot be read is left out.
    pub async fn sizes<'a>(
        &self,
        images: impl Iterator<Item = (&'a PathBuf, Format)> + Send,
    ) -> HashMap<PathBuf, ImageFacts> {
        let mut sizes = HashMap::new();
        for (path, format) in images {
            if let Ok(facts) = self.0.host.images.inspect(path, format).await {
                sizes.insert(path.clone(), facts);
            }
        }
        sizes
    }

    /// Who holds a VM: an operation, or one that is only being planned and may come to nothing, or one that has just ended.
    #[must_use]
    pub fn holder(&self, vm: VmId) -> Option<OperationId> {
        self.0.gate.holder(vm)
    }

    /// The operation that is under way on a VM.
    #[must_use]
    pub fn under_way(&self, vm: VmId) -> Option<OperationId> {
        self.holder(vm).filter(|holder| self.0.board.is_under_way(*holder))
    }

    /// The snapshot that answers to an id, or to a name within `vms` or, where none are named, anywhere, if it is unique there.
    pub async fn find_snapshot(&self, wanted: &str, vms: Option<Vec<VmId>>) -> Result<Snapshot> {
        let nobody = || OpsError::NoSuchSnapshot(wanted.to_owned());
        if let Ok(id) = wanted.parse::<SnapshotId>() {
            let found = self.0.store.snapshot(id).await?;
            let is_within = |snapshot: &Snapshot| vms.as_ref().is_none_or(|vms| vms.contains(&snapshot.vm));
            return found.filter(is_within).ok_or_else(nobody);
        }
        if wanted.is_empty() {
            return Err(nobody());
        }
        let filter = SnapshotFilter { vms, name: wanted.to_owned(), ..SnapshotFilter::default() };
        let page = self.0.store.snapshots(filter, Page { limit: 10, ..Page::default() }).await?;
        let mut found: Vec<_> = page.snapshots.into_iter().map(|placed| placed.snapshot).collect();
        match (found.pop(), found.is_empty()) {
            (None, _) => Err(nobody()),
            (Some(snapshot), true) => Ok(snapshot),
            (Some(last), false) => Err(OpsError::AmbiguousSnapshot {
                name: wanted.to_owned(),
                candidates: found
                    .iter()
                    .chain([&last])
                    .map(|snapshot| format!("{} ({}/{})", snapshot.id, snapshot.vm_name, snapshot.name))
                    .collect(),
            }),
        }
    }

    /// A page of snapshots.
    pub async fn snapshots(&self, filter: SnapshotFilter, page: Page) -> Result<SnapshotPage> {
        Ok(self.0.store.snapshots(filter, page).await?)
    }

    /// An operation as it is now.
    pub async fn operation(&self, id: OperationId) -> Result<OperationView> {
        if let Some(watcher) = self.0.board.watch(id) {
            return Ok(watcher.borrow().clone());
        }
        let operation = self.0.store.operation(id).await?;
        operation.map(OperationView::of).ok_or_else(|| OpsError::NoSuchOperation(id.to_string()))
    }

    /// Operations, newest first. With the number there are.
    pub async fn operations(
        &self,
        filter: OperationFilter,
        before: Option<OperationId>,
        limit: u32,
    ) -> Result<(Vec<Operation>, u64)> {
        Ok(self.0.store.operations(filter, before, limit).await?)
    }

    /// Follows an operation under way. None for one that has ended.
    #[must_use]
    pub fn watch(&self, id: OperationId) -> Option<watch::Receiver<OperationView>> {
        self.0.board.watch(id)
    }

    /// Tells whenever any operation moves.
    #[must_use]
    pub fn moves(&self) -> watch::Receiver<u64> {
        self.0.board.moves()
    }

    /// All operations under way, as they are now.
    #[must_use]
    pub fn under_way_now(&self) -> Vec<OperationView> {
        self.0.board.views()
    }

    /// Asks an operation to turn back.
    pub async fn cancel(&self, id: OperationId) -> Result<OperationView> {
        let view = self.operation(id).await?;
        if !view.operation.can_cancel() {
            return Err(OpsError::NotCancellable);
        }
        self.say(id, Command::Cancel, OpsError::NotCancellable).await?;
        self.operation(id).await
    }

    /// Lets a stuck operation try again, or give up where it stands. Gives it as it is after that.
    pub async fn resolve(&self, id: OperationId, abandon: bool) -> Result<OperationView> {
        let mut watcher = self.0.board.watch(id);
        let view = self.operation(id).await?;
        if !matches!(view.operation.cursor.state, OperationState::Stuck { .. }) {
            return Err(OpsError::NotStuck);
        }
        let (told, answer) = oneshot::channel();
        self.say(id, Command::Resolve(Decision { abandon, told }), OpsError::NotStuck).await?;
        let taken = answer.await.unwrap_or_else(|_| Err(self.unheard(OpsError::NotStuck)))?;
        if let Some(watcher) = &mut watcher {
            // It fails when the runner has gone, and then the journal knows.
            let _ = watcher.wait_for(|now| now.revision > taken).await;
        }
        self.operation(id).await
    }

    /// Lets an operation copy so many bytes per second at most, for each disk; None for no limit. It holds for what is copied now
    /// and later, over restarts too, but for a copy that `qemu-img` has begun.
    pub async fn limit(&self, id: OperationId, bandwidth: Option<u64>) -> Result<OperationView> {
        if !self.operation(id).await?.operation.can_limit() {
            return Err(OpsError::NothingToLimit);
        }
        let (told, answer) = oneshot::channel();
        self.say(id, Command::Limit(Limit { bandwidth, told }), OpsError::NothingToLimit).await?;
        answer.await.unwrap_or_else(|_| Err(self.unheard(OpsError::NothingToLimit)))?;
        self.operation(id).await
    }

    /// Why there is no answer: an operation ends without one when it is over, and when the daemon goes down.
    fn unheard(&self, otherwise: OpsError) -> OpsError {
        if self.0.stopping.is_cancelled() { OpsError::Draining } else { otherwise }
    }

    async fn say(&self, id: OperationId, command: Command, otherwise: OpsError) -> Result<()> {
        let Some(commands) = self.0.board.commands(id) else { return Err(otherwise) };
        commands.send(command).await.map_err(|_| otherwise)
    }
}
