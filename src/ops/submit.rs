//! From a request to an operation: looked at, planned whole, made durable, then run.
//!
//! Before the operation is durable nothing was promised; after it nothing is forgotten, whether the client stays or not.

use std::collections::BTreeSet;

use tracing::Instrument;
use uuid::Uuid;

use crate::model::cursor::Cursor;
use crate::model::operation::{Findings, OperationState};
use crate::model::{
    Attachment, ClonedVolume, CreateSnapshot, DeleteSnapshots, Difference, Operation, OperationId,
    PurgeSnapshot, Request, RevertSnapshot, RevertVolume, Snapshot, SnapshotId, SnapshotName,
    TakeFromSnapshot, VmId,
};
use crate::plan::{self, Plan, Refusal, World};
use crate::store::{Begun, RequestKey, Reservation};

use super::gate::Permit;
use super::runner::Runner;
use super::{Engine, OperationView, OpsError, Result};

/// Who asks, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// Who.
    pub by: String,
    /// What makes the request the same request, if the client cares.
    pub key: Option<RequestKey>,
    /// Only show what would be done.
    pub validate_only: bool,
}

/// What came of a request.
#[derive(Debug, Clone, PartialEq)]
pub enum Submitted {
    /// It is under way.
    Operation(Box<OperationView>),
    /// This would be done.
    Plan(Box<Plan>),
}

impl Engine {
    /// Takes a snapshot.
    pub async fn create_snapshot(&self, request: CreateSnapshot, asked: Asked) -> Result<Submitted> {
        let vm = request.vm;
        self.submit(vm, None, Request::CreateSnapshot(request), asked).await
    }

    /// Takes a snapshot of a volume out of a snapshot of its VM.
    pub async fn take_from_snapshot(&self, request: TakeFromSnapshot, asked: Asked) -> Result<Submitted> {
        let source = self.existing(request.snapshot).await?;
        self.submit(source.vm, Some(source.id), Request::TakeFromSnapshot(request), asked).await
    }

    /// Brings one volume back to a snapshot.
    pub async fn revert_volume(&self, request: RevertVolume, asked: Asked) -> Result<Submitted> {
        let snapshot = self.existing(request.snapshot).await?;
        self.submit(snapshot.vm, Some(snapshot.id), Request::RevertVolume(request), asked).await
    }

    /// Brings a VM back to a snapshot.
    pub async fn revert_snapshot(&self, request: RevertSnapshot, asked: Asked) -> Result<Submitted> {
        let snapshot = self.existing(request.snapshot).await?;
        self.submit(snapshot.vm, Some(snapshot.id), Request::RevertSnapshot(request), asked).await
    }

    /// Deletes snapshots of one VM.
    pub async fn delete_snapshots(&self, request: DeleteSnapshots, asked: Asked) -> Result<Submitted> {
        let mut vm = None;
        for id in &request.snapshots {
            let snapshot = self.existing(*id).await?;
            if *vm.get_or_insert(snapshot.vm) != snapshot.vm {
                return Err(OpsError::SeveralVms);
            }
        }
        let (Some(vm), first) = (vm, request.snapshots.first().copied()) else {
            return Err(OpsError::NoSuchSnapshot(String::new()));
        };
        self.submit(vm, first, Request::DeleteSnapshots(request), asked).await
    }

    /// Removes a snapshot that is lost.
    pub async fn purge_snapshot(&self, request: PurgeSnapshot, asked: Asked) -> Result<Submitted> {
        let snapshot = self.existing(request.snapshot).await?;
        self.submit(snapshot.vm, Some(snapshot.id), Request::PurgeSnapshot(request), asked).await
    }

    /// What the same request has begun before, if it was made before. Asked first: what it names may be gone by now.
    pub async fn repeated(&self, key: Option<&RequestKey>) -> Result<Option<Submitted>> {
        let Some(key) = key else { return Ok(None) };
        let Some(before) = self.0.store.find_request(key.clone()).await? else { return Ok(None) };
        Ok(Some(Submitted::Operation(Box::new(self.operation(before.id).await?))))
    }

    pub(super) async fn existing(&self, id: SnapshotId) -> Result<Snapshot> {
        let snapshot = self.0.store.snapshot(id).await?;
        snapshot.ok_or_else(|| OpsError::NoSuchSnapshot(id.to_string()))
    }

    /// Carried through on a task of its own: a client that leaves half way changes nothing.
    pub(super) async fn submit(
        &self,
        vm: VmId,
        snapshot: Option<SnapshotId>,
        request: Request,
        asked: Asked,
    ) -> Result<Submitted> {
        if self.0.stopping.is_cancelled() {
            return Err(OpsError::Draining);
        }
        let engine = self.clone();
        let begun = async move { engine.begin(vm, snapshot, request, asked).await };
        let task = self.0.tasks.spawn(begun.in_current_span());
        task.await.map_err(|_| OpsError::Draining)?
    }

    async fn begin(
        &self,
        vm: VmId,
        snapshot: Option<SnapshotId>,
        request: Request,
        asked: Asked,
    ) -> Result<Submitted> {
        let id = OperationId::new();
        let permit = self.enter(request.holds(vm), id).await?;
        let (submitted, runner) = self.prepare(id, permit, vm, snapshot, request, asked).await?;
        if let Some(runner) = runner {
            self.0.tasks.spawn(runner.run());
        }
        Ok(submitted)
    }

    /// Holds VMs for an operation, or names the one that does. Whoever is only being planned, by another client or by
    /// the daemon to see whether something could be merged, is waited for, and so is whoever has ended just now: there may be
    /// nothing to name in the end.
    pub(super) async fn enter(&self, vms: BTreeSet<VmId>, id: OperationId) -> Result<Permit> {
        loop {
            let mut changed = std::pin::pin!(self.0.gate.changed());
            changed.as_mut().enable();
            match self.0.gate.enter_all(vms.clone(), id) {
                Ok(permit) => return Ok(permit),
                Err(holder) if self.0.board.is_under_way(holder) => {
                    // Its end is in the journal a moment before it is shown.
                    if !self.is_journaled_as_ended(holder).await {
                        return Err(self.busy_with(holder).await);
                    }
                }
                Err(_) => {}
            }
            tokio::select! {
                biased;
                () = self.0.stopping.cancelled() => return Err(OpsError::Draining),
                () = changed => {}
            }
        }
    }

    /// Plans an operation and makes it durable. With the runner, if it is a new one.
    pub(super) async fn prepare(
        &self,
        id: OperationId,
        permit: Permit,
        vm: VmId,
        snapshot: Option<SnapshotId>,
        request: Request,
        asked: Asked,
    ) -> Result<(Submitted, Option<Runner>)> {
        let (mut world, found) = self.look_for(vm, &request).await?;
        self.look_around(&mut world, &request).await?;
        let clone = self.clone_of(&request).await?;
        let subject = Subject { snapshot, clone: clone.as_ref(), found: &found };
        let plan = self.plan(&mut world, subject, &request, id, &asked.by).await?;
        if asked.validate_only {
            return Ok((Submitted::Plan(Box::new(plan)), None));
        }
        let reservation = match &plan.reservation {
            Some(snapshot) => {
                let definition = match world.vm.attachment {
                    Attachment::Attached | Attachment::Gone => self.0.host.hypervisor.definition(vm).await?.0,
                    Attachment::Detached => String::new(),
                };
                Reservation::Snapshot(Box::new(snapshot.clone()), definition)
            }
            None if plan.clones.is_empty() => Reservation::None,
            None => Reservation::Clones(plan.clones.clone()),
        };
        let operation = new_operation(id, &world, snapshot, request, plan, &asked)?;
        let begun = self.0.store.begin(operation.clone(), asked.key.clone(), reservation).await?;
        if let Begun::Before(before) = begun {
            let before = self.operation(before.id).await?;
            return Ok((Submitted::Operation(Box::new(before)), None));
        }
        let view = OperationView::of(operation.clone());
        let runner = Runner::new(self.clone(), operation, permit, true);
        Ok((Submitted::Operation(Box::new(view)), Some(runner)))
    }

    /// A plan that depends on how much room merges need is made again once that is measured.
    async fn plan(
        &self,
        world: &mut World,
        subject: Subject<'_>,
        request: &Request,
        operation: OperationId,
        by: &str,
    ) -> Result<Plan> {
        match make_plan(world, subject, request, operation, by) {
            Err(OpsError::Refused(Refusal::NotMeasured(runs))) => {
                self.measure(world, runs).await;
                // What does not fit waits: whatever ends next may have made room.
                self.note_waiting_for_room(world.vm.id, true);
                make_plan(world, subject, request, operation, by)
            }
            planned => {
                if planned.is_ok() && matches!(request, Request::Collapse { .. }) {
                    self.note_waiting_for_room(world.vm.id, false);
                }
                planned
            }
        }
    }

    async fn is_journaled_as_ended(&self, id: OperationId) -> bool {
        let journaled = self.0.store.operation(id).await;
        journaled.is_ok_and(|operation| operation.is_some_and(|operation| operation.cursor.has_ended()))
    }

    async fn busy_with(&self, holder: OperationId) -> OpsError {
        match self.operation(holder).await {
            Ok(view) if matches!(view.operation.cursor.state, OperationState::Stuck { .. }) => {
                OpsError::VmStuck(holder)
            }
            Ok(_) | Err(_) => OpsError::VmBusy(holder),
        }
    }
}

/// What a request is about.
#[derive(Clone, Copy)]
struct Subject<'a> {
    snapshot: Option<SnapshotId>,
    clone: Option<&'a ClonedVolume>,
    /// What differs.
    found: &'a [Difference],
}

fn make_plan(
    world: &World,
    subject: Subject<'_>,
    request: &Request,
    operation: OperationId,
    by: &str,
) -> Result<Plan> {
    let ids = &mut Uuid::now_v7;
    // Between the look at the snapshot and the gate it may have gone.
    let snapshot = || -> Result<&Snapshot> {
        let id = subject.snapshot.map(|id| id.to_string()).unwrap_or_default();
        let found = subject.snapshot.and_then(|id| world.tree.snapshot(id));
        found.ok_or(OpsError::NoSuchSnapshot(id))
    };
    let clone = || subject.clone.ok_or_else(|| OpsError::NoSuchVolume(String::new()));
    let plan = match request {
        Request::CreateSnapshot(request) => plan::create(world, request, operation, by, ids)?,
        Request::TakeFromSnapshot(request) => {
            plan::take_from_snapshot(world, snapshot()?, request, operation, by, ids)?
        }
        Request::RevertSnapshot(request) => plan::revert(world, snapshot()?, request, ids)?,
        Request::RevertVolume(request) => plan::revert_volume(world, snapshot()?, request, ids)?,
        Request::DeleteSnapshots(request) => {
            snapshot()?;
            plan::delete(world, request)?
        }
        Request::PurgeSnapshot(request) => plan::purge(world, snapshot()?, request)?,
        Request::CloneVolume(request) => plan::clone_volume(world, snapshot()?, request, ids)?,
        Request::FlattenVolume(request) => plan::flatten_volume(world, clone()?, request)?,
        Request::DeleteVolume(request) => plan::delete_volume(world, clone()?, request)?,
        Request::DeployVm(request) => plan::deploy_vm(world, snapshot()?, request, ids)?,
        Request::ResolveDifference(request) => {
            plan::resolve(world, subject.found, request, (operation, by), ids)?
        }
        Request::Collapse { .. } => plan::collapse(world)?,
    };
    Ok(plan)
}

fn new_operation(
    id: OperationId,
    world: &World,
    snapshot: Option<SnapshotId>,
    request: Request,
    plan: Plan,
    asked: &Asked,
) -> Result<Operation> {
    let (snapshot, snapshot_name) = named(world, snapshot, &plan).unzip();
    let cursor = Cursor::start(plan.steps.len(), plan.commit_point).ok_or(Refusal::NoDisks)?;
    let mut findings = Findings::default();
    for finding in plan.findings {
        findings.add(finding);
    }
    Ok(Operation {
        id,
        vm: world.vm.id,
        vm_name: world.vm.name.clone(),
        attachment: world.vm.attachment,
        snapshot,
        snapshot_name,
        request,
        created_by: asked.by.clone(),
        request_id: asked.key.as_ref().map(|key| key.id.clone()).unwrap_or_default(),
        steps: plan.steps,
        cursor,
        failure: None,
        later_failure: None,
        findings,
        cancel_requested: false,
        was_abandoned: false,
        created_at: world.now,
        updated_at: world.now,
        ended_at: None,
        generation: 1,
    })
}

fn named(world: &World, snapshot: Option<SnapshotId>, plan: &Plan) -> Option<(SnapshotId, SnapshotName)> {
    let existing = snapshot.and_then(|id| world.tree.snapshot(id));
    plan.reservation.as_ref().or(existing).map(|snapshot| (snapshot.id, snapshot.name.clone()))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::host::sim::SimHost;
    use crate::model::Quiesce;
    use crate::model::snapshot::{Label, SnapshotKind};
    use crate::ops::Settings;
    use crate::plan::{BackgroundCaptures, LivePulls, MemoryCompression, MergePolicy, Places, SpeedPolicy};
    use crate::store::{Store, tests::operation};

    fn engine(sim: &SimHost) -> Engine {
        let settings = Settings {
            places: Places {
                memory: "/memory".into(),
                images: Vec::new(),
                overlays: None,
                reserve: 0,
                low_space: 0,
            },
            live_pulls: LivePulls::WhenSafe,
            background_captures: BackgroundCaptures::WhenPossible,
            memory_compression: MemoryCompression::None,
            concurrent_merges: 1,
            merge_policy: MergePolicy {
                patience: Duration::from_secs(1),
                deadline: Duration::from_secs(1),
                slowest_writes: 1,
            },
            speed_policy: SpeedPolicy { longest_wait: Duration::ZERO, slowest: 1 },
            concurrent_captures: 1,
            backups: 0,
            boot_id: "boot".to_owned(),
        };
        Engine::new(sim.host(), Store::in_memory().unwrap(), settings).unwrap()
    }

    /// Whoever has seen an end, shown or in the journal, and comes at once is not told that the VM is busy with it.
    #[tokio::test]
    async fn whoever_has_ended_just_now_is_waited_for() {
        let running = OperationState::Running { at: 0 };
        for (shown, journaled, expected) in [
            (running, running, Err(())),
            (running, OperationState::Succeeded, Ok(())),
            (OperationState::Failed, running, Ok(())),
            (OperationState::Failed, OperationState::Failed, Ok(())),
        ] {
            let (engine, mut holder) = (engine(&SimHost::new()), operation(1));
            holder.cursor.state = journaled;
            engine.0.store.begin(holder.clone(), None, Reservation::None).await.unwrap();
            let permit = engine.0.gate.enter(holder.vm, holder.id).ok().unwrap();
            holder.cursor.state = shown;
            let (reporter, _commands) = engine.0.board.enter(&holder);
            assert_eq!(engine.under_way(holder.vm), (shown == running).then_some(holder.id), "{shown:?}");
            let entering = engine.enter(BTreeSet::from([holder.vm]), OperationId::new());
            // It asks first.
            let (entered, ()) = tokio::join!(entering, async { drop((reporter, permit)) });
            assert_eq!(entered.map(drop).map_err(drop), expected, "{shown:?}, {journaled:?}");
        }
    }

    /// What is reserved comes with the operation: it goes with it, too.
    #[tokio::test]
    async fn a_create_that_is_cancelled_before_its_first_step() {
        let sim = SimHost::new();
        let (engine, vm) = (engine(&sim), sim.vm("web").disks(1).build());
        let id = OperationId::new();
        let permit = engine.enter(BTreeSet::from([vm]), id).await.unwrap();
        let request = Request::CreateSnapshot(CreateSnapshot {
            vm,
            image: None,
            kind: SnapshotKind::VmDisks,
            label: Label::default(),
            quiesce: Quiesce::Off,
            mount_points: Vec::new(),
            freeze_timeout_ms: 1,
            max_pause_ms: None,
            disks: BTreeSet::new(),
        });
        let asked = Asked { by: "somebody".to_owned(), key: None, validate_only: false };
        let (_, runner) = engine.prepare(id, permit, vm, None, request, asked).await.unwrap();
        assert_eq!(engine.0.store.tree(vm).await.unwrap().snapshots.len(), 1, "it is CREATING");
        engine.cancel(id).await.unwrap();
        runner.unwrap().run().await;
        let ended = engine.operation(id).await.unwrap().operation;
        assert_eq!(ended.cursor.state, OperationState::Failed, "{ended:?}");
        assert_eq!(engine.0.store.tree(vm).await.unwrap().snapshots, []);
    }
}
