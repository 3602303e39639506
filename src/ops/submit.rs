//! From a request to an operation: looked at, planned whole, made durable, then run.
//!
//! Before the operation is durable nothing was promised; after it nothing is forgotten, whether the client stays or not.

use uuid::Uuid;

use crate::model::cursor::Cursor;
use crate::model::operation::{Findings, OperationState};
use crate::model::{
    CreateSnapshot, DeleteSnapshot, Operation, OperationId, Request, RevertSnapshot, Snapshot, SnapshotId,
    SnapshotName, VmId,
};
use crate::plan::{self, Plan, Refusal, World};
use crate::store::{Begun, RequestKey};

use super::runner::Runner;
use super::{Engine, OperationView, OpsError, Result, observe};

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

    /// Brings a VM back to a snapshot.
    pub async fn revert_snapshot(&self, request: RevertSnapshot, asked: Asked) -> Result<Submitted> {
        let snapshot = self.existing(request.snapshot).await?;
        self.submit(snapshot.vm, Some(snapshot.id), Request::RevertSnapshot(request), asked).await
    }

    /// Deletes a snapshot.
    pub async fn delete_snapshot(&self, request: DeleteSnapshot, asked: Asked) -> Result<Submitted> {
        let snapshot = self.existing(request.snapshot).await?;
        self.submit(snapshot.vm, Some(snapshot.id), Request::DeleteSnapshot(request), asked).await
    }

    /// What the same request has begun before, if it was made before. Asked first: what it names may be gone by now.
    pub async fn repeated(&self, key: Option<&RequestKey>) -> Result<Option<Submitted>> {
        let Some(key) = key else { return Ok(None) };
        let Some(begun) = self.0.store.find_request(key.clone()).await? else { return Ok(None) };
        self.begun_before(begun, Some(key)).await
    }

    async fn begun_before(&self, begun: Begun, key: Option<&RequestKey>) -> Result<Option<Submitted>> {
        match begun {
            Begun::New => Ok(None),
            Begun::Before(operation) => {
                Ok(Some(Submitted::Operation(Box::new(self.operation(operation.id).await?))))
            }
            Begun::KeyReused => {
                Err(OpsError::RequestIdReused(key.map(|key| key.id.clone()).unwrap_or_default()))
            }
        }
    }

    async fn existing(&self, id: SnapshotId) -> Result<Snapshot> {
        let snapshot = self.0.store.snapshot(id).await?;
        snapshot.ok_or_else(|| OpsError::NoSuchSnapshot(id.to_string()))
    }

    /// Carried through on a task of its own: a client that leaves half way changes nothing.
    async fn submit(
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
        let task = self.0.tasks.spawn(async move { engine.begin(vm, snapshot, request, asked).await });
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
        let permit = match self.0.gate.enter(vm, id) {
            Ok(permit) => permit,
            Err(holder) => return Err(self.busy_with(holder).await),
        };
        let world = observe::observe(&self.0.host, &self.0.store, &self.0.places, vm).await?;
        let plan = make_plan(&world, snapshot, &request, id, &asked.by)?;
        if asked.validate_only {
            return Ok(Submitted::Plan(Box::new(plan)));
        }
        let reservation = match &plan.reservation {
            Some(snapshot) => Some((snapshot.clone(), self.0.host.hypervisor.definition(vm).await?.0)),
            None => None,
        };
        let operation = new_operation(id, &world, snapshot, request, plan, &asked)?;
        let begun = self.0.store.begin(operation.clone(), asked.key.clone(), reservation).await?;
        if let Some(before) = self.begun_before(begun, asked.key.as_ref()).await? {
            return Ok(before);
        }
        let view = OperationView::of(operation.clone());
        let runner = Runner::new(self.clone(), operation, permit, true);
        self.0.tasks.spawn(runner.run());
        Ok(Submitted::Operation(Box::new(view)))
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

fn make_plan(
    world: &World,
    snapshot: Option<SnapshotId>,
    request: &Request,
    operation: OperationId,
    by: &str,
) -> Result<Plan> {
    let ids = &mut Uuid::now_v7;
    // Between the look at the snapshot and the gate it may have gone.
    let snapshot = || -> Result<&Snapshot> {
        let id = snapshot.map(|id| id.to_string()).unwrap_or_default();
        let found = snapshot.and_then(|id| world.tree.snapshot(id));
        found.ok_or(OpsError::NoSuchSnapshot(id))
    };
    let plan = match request {
        Request::CreateSnapshot(request) => plan::create(world, request, operation, by, ids)?,
        Request::RevertSnapshot(request) => plan::revert(world, snapshot()?, request, ids)?,
        Request::DeleteSnapshot(request) => plan::delete(world, snapshot()?, request)?,
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
    let (snapshot, snapshot_name) = named(world, snapshot, &plan)?;
    let cursor = Cursor::start(plan.steps.len(), plan.commit_point).ok_or(Refusal::NoDisks)?;
    let mut findings = Findings::default();
    for finding in plan.findings {
        findings.add(finding);
    }
    Ok(Operation {
        id,
        vm: world.vm.id,
        vm_name: world.vm.name.clone(),
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

fn named(world: &World, snapshot: Option<SnapshotId>, plan: &Plan) -> Result<(SnapshotId, SnapshotName)> {
    let existing = snapshot.and_then(|id| world.tree.snapshot(id));
    let named = plan.reservation.as_ref().or(existing).map(|snapshot| (snapshot.id, snapshot.name.clone()));
    named.ok_or_else(|| OpsError::NoSuchSnapshot(snapshot.map(|id| id.to_string()).unwrap_or_default()))
}
