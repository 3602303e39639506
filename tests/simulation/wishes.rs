//! What clients ask for, and what they hear of it. A client that got no answer asks the same again, under the same key.

use std::collections::BTreeMap;

use tokio::task::JoinHandle;
use vmsnap::model::operation::OperationState;
use vmsnap::model::request::DeletionReason;
use vmsnap::model::snapshot::Owner;
use vmsnap::model::{
    CloneMode, CloneState, CloneVolume, ClonedVolume, CreateSnapshot, DeleteSnapshots, DeleteVolume,
    FlattenVolume, Label, LayerTree, OperationId, PurgeSnapshot, Quiesce, Reason, Request, RevertSnapshot,
    RevertVolume, RunStateAfter, Snapshot, SnapshotKind, SnapshotState, TakeFromSnapshot, VmId,
};
use vmsnap::ops::{Asked, Engine, OpsError, Submitted};
use vmsnap::store::RequestKey;

use crate::node::{ChooseWeighted, Node, at_once};
use crate::oracle::Oracle;
use crate::simulated::{Disks, submit};

/// So many clients ask at once.
const CLIENTS: usize = 4;

/// A request and what came of it so far.
pub struct Wish {
    key: RequestKey,
    pub vm: VmId,
    request: Request,
    /// What disks read when it is granted: of the VM, if it is a revert; of the new one, if it is a deployment.
    target: Option<Disks>,
    stage: Stage,
}

enum Stage {
    /// Nobody has been asked in this life of the daemon.
    Unasked,
    /// The answer is not there yet.
    Asked(JoinHandle<Result<Submitted, OpsError>>),
    /// It is under way.
    Begun(OperationId),
}

impl Wish {
    /// Whether it is for a new VM of this name.
    pub fn deploys(&self, name: &str) -> bool {
        matches!(&self.request, Request::DeployVm(request) if request.name.as_str() == name)
    }

    pub fn forget_life(&mut self) {
        if let Stage::Asked(_) = self.stage {
            self.stage = Stage::Unasked;
        }
    }
}

impl Node {
    /// A client wants something.
    pub fn make_wish(&mut self) -> Result<(), String> {
        if self.wishes.len() >= CLIENTS {
            return Ok(());
        }
        // What a snapshot holds that is wanted back has to be known by then.
        self.look(true)?;
        let vm = *self.pick(&self.vms.clone()).unwrap();
        let tree = at_once(self.store.tree(vm)).map_err(|error| error.to_string())?;
        let Some(request) = self.request(vm, &tree) else { return Ok(()) };
        let target = target(&request, &tree, &self.oracle);
        let key = self.new_name("wish");
        match &request {
            Request::DeleteSnapshots(request) => {
                request.snapshots.iter().for_each(|id| *self.oracle.doomed.entry(*id).or_default() += 1);
            }
            Request::PurgeSnapshot(request) => {
                *self.oracle.doomed.entry(request.snapshot).or_default() += 1;
            }
            Request::DeleteVolume(request) => drop(self.oracle.doomed_clones.insert(request.volume)),
            _ => {}
        }
        self.trace.push(format!("turn {}: {key}: {} of {vm}", self.turn, request.name()));
        let key = RequestKey { id: key, principal: "client".to_owned(), digest: Vec::new() };
        self.wishes.push(Wish { key, vm, request, target, stage: Stage::Unasked });
        Ok(())
    }

    /// Clients ask what they have not asked in this life.
    pub fn ask(&mut self, engine: &Engine) {
        for wish in self.wishes.iter_mut().filter(|wish| matches!(wish.stage, Stage::Unasked)) {
            self.tally.asked += 1;
            if let Some(target) = &wish.target
                && matches!(wish.request, Request::RevertSnapshot(_) | Request::RevertVolume(_))
                && !self.oracle.reverts.iter().any(|revert| revert.key == wish.key.id)
            {
                let memory = match &wish.request {
                    Request::RevertSnapshot(request) => {
                        self.oracle.snapshots.get(&request.snapshot).and_then(|truth| truth.memory)
                    }
                    _ => None,
                };
                self.oracle.wants_back(&wish.key.id, wish.vm, target.clone(), memory);
            }
            let asked = Asked { by: "client".to_owned(), key: Some(wish.key.clone()), validate_only: false };
            let (engine, vm) = (engine.clone(), wish.vm);
            let (request, key) = (wish.request.clone(), wish.key.clone());
            wish.stage = Stage::Asked(tokio::spawn(async move {
                match engine.repeated(Some(&key)).await? {
                    Some(before) => Ok(before),
                    None => submit(&engine, vm, request, asked).await,
                }
            }));
        }
    }

    /// Clients hear what became of what they asked for.
    pub fn hear(&mut self, engine: &Engine) -> Result<(), String> {
        let mut open = Vec::new();
        for mut wish in std::mem::take(&mut self.wishes) {
            if let Stage::Asked(task) = &mut wish.stage
                && task.is_finished()
            {
                match at_once(task).map_err(|error| error.to_string())? {
                    Ok(Submitted::Operation(view)) => wish.stage = Stage::Begun(view.operation.id),
                    Ok(Submitted::Plan(_)) => return Err("nobody asked for a plan".to_owned()),
                    Err(refusal) => {
                        self.refused(&wish, &refusal)?;
                        continue;
                    }
                }
            }
            match wish.stage {
                Stage::Begun(id) if self.has_ended(engine, &wish, id)? => {}
                _ => open.push(wish),
            }
        }
        self.wishes = open;
        Ok(())
    }

    /// A client wants what it has asked for no more. What has gone too far goes on.
    pub fn client_cancels(&mut self, engine: &Engine) {
        let begun = |wish: &Wish| match wish.stage {
            Stage::Begun(id) => Some((id, wish.key.id.clone())),
            Stage::Unasked | Stage::Asked(_) => None,
        };
        let begun: Vec<(OperationId, String)> = self.wishes.iter().filter_map(begun).collect();
        let Some((id, key)) = self.pick(&begun).cloned() else { return };
        self.trace.push(format!("turn {}: {key} is cancelled", self.turn));
        let engine = engine.clone();
        tokio::spawn(async move { engine.cancel(id).await });
    }

    fn refused(&mut self, wish: &Wish, refusal: &OpsError) -> Result<(), String> {
        self.tally.refused += 1;
        let reason = refusal.reason();
        self.trace.push(format!("turn {}: {} is refused: {reason:?}", self.turn, wish.key.id));
        // What the outside world says may be anything.
        let is_wrong = matches!(reason, Reason::Internal | Reason::CatalogFailed | Reason::NotImplemented);
        if is_wrong && !matches!(refusal, OpsError::Host(_) | OpsError::VmUnreadable { .. }) {
            return Err(format!("{} is refused: {refusal:?}", wish.key.id));
        }
        self.is_wanted_no_more(wish);
        self.oracle.revert_ended(&self.sim, &wish.key.id, false)
    }

    fn is_wanted_no_more(&mut self, wish: &Wish) {
        match &wish.request {
            Request::PurgeSnapshot(request) => self.oracle.may_stay(request.snapshot),
            Request::DeleteSnapshots(request) => {
                request.snapshots.iter().for_each(|id| self.oracle.may_stay(*id));
            }
            Request::DeleteVolume(request) => drop(self.oracle.doomed_clones.remove(&request.volume)),
            _ => {}
        }
    }

    /// Whether the operation has ended. Then looks whether what came of it is there.
    fn has_ended(&mut self, engine: &Engine, wish: &Wish, id: OperationId) -> Result<bool, String> {
        let view = at_once(engine.operation(id)).map_err(|error| error.to_string())?;
        let operation = view.operation;
        let has_succeeded = match operation.cursor.state {
            OperationState::Succeeded => true,
            OperationState::Failed => false,
            OperationState::Running { .. }
            | OperationState::Undoing { .. }
            | OperationState::Stuck { .. } => {
                return Ok(false);
            }
        };
        self.trace.push(format!("turn {}: {} succeeded: {has_succeeded}", self.turn, wish.key.id));
        self.look(false)?;
        self.oracle.revert_ended(&self.sim, &wish.key.id, has_succeeded)?;
        if !has_succeeded {
            self.tally.failed += 1;
            let reason = operation.failure.as_ref().map(|failure| failure.reason);
            self.tally.cancelled += u64::from(reason == Some(Reason::Cancelled));
            self.is_wanted_no_more(wish);
            return Ok(true);
        }
        self.tally.succeeded += 1;
        match &wish.request {
            Request::CreateSnapshot(_) | Request::TakeFromSnapshot(_) => {
                self.check_end(id, operation.snapshot)?;
            }
            Request::RevertSnapshot(request) => {
                self.tally.reverts += 1;
                let truth = self.oracle.snapshots.get(&request.snapshot);
                self.tally.resumed += u64::from(truth.is_some_and(|truth| truth.memory.is_some()));
                let was_paused = truth.is_none_or(|truth| truth.was_paused);
                self.oracle.vm(wish.vm).may_be_paused |= was_paused;
            }
            Request::RevertVolume(_) => self.tally.reverts += 1,
            Request::PurgeSnapshot(_) => self.tally.purged += 1,
            Request::DeployVm(request) => self.is_deployed(request, wish.target.as_ref())?,
            Request::DeleteVolume(request) => drop(self.oracle.clones.remove(&request.volume)),
            _ => {}
        }
        Ok(true)
    }

    fn request(&mut self, vm: VmId, tree: &LayerTree) -> Option<Request> {
        let ready: Vec<&Snapshot> =
            tree.snapshots.iter().filter(|snapshot| snapshot.state == SnapshotState::Ready).collect();
        let of_vm: Vec<&Snapshot> =
            ready.iter().copied().filter(|snapshot| snapshot.kind != SnapshotKind::Volume).collect();
        let clones: Vec<&ClonedVolume> =
            tree.clones.iter().filter(|clone| clone.state == CloneState::Available).collect();
        if let Some(lost) = tree.snapshots.iter().find(|snapshot| snapshot.state == SnapshotState::Lost)
            && self.dice.u32(0..8) == 0
        {
            return Some(Request::PurgeSnapshot(PurgeSnapshot { snapshot: lost.id, generation: None }));
        }
        match self.dice.choose_weighted(&[6, 3, 5, 1, 1, 1, 2, 1, 1, 1]) {
            0 => Some(self.create(vm)),
            1 => {
                let snapshot = self.pick(&of_vm)?.id;
                let run_state_after = RunStateAfter::AsItWas;
                Some(Request::RevertSnapshot(RevertSnapshot { snapshot, run_state_after, generation: None }))
            }
            2 => {
                let mut snapshots = vec![self.pick(&ready)?.id];
                if self.dice.u32(0..3) == 0 {
                    snapshots.push(self.pick(&ready)?.id);
                    snapshots.dedup();
                }
                Some(Request::DeleteSnapshots(DeleteSnapshots {
                    snapshots,
                    with_children: self.dice.u32(0..8) == 0,
                    bandwidth: None,
                    merge_deadline_ms: None,
                    generation: None,
                    reason: DeletionReason::Asked,
                }))
                .filter(|request| takes_no_others(request, tree))
            }
            3 => {
                let Request::CreateSnapshot(request) = self.create(vm) else { return None };
                let disk = tree.volumes.first()?.target.clone();
                let (kind, disks) = (SnapshotKind::Volume, [disk].into());
                Some(Request::CreateSnapshot(CreateSnapshot { kind, disks, ..request }))
            }
            4 => {
                let source = *self.pick(&of_vm)?;
                let disk = Some(self.pick(&source.disks)?.target.clone());
                let label = self.label();
                Some(Request::TakeFromSnapshot(TakeFromSnapshot { snapshot: source.id, disk, label }))
            }
            5 => {
                let snapshot = *self.pick(&ready)?;
                let volume = self.pick(&snapshot.disks)?.volume;
                let snapshot = snapshot.id;
                Some(Request::RevertVolume(RevertVolume { volume, snapshot, stop: true, active: None }))
            }
            6 => {
                let snapshot = *self.pick(&ready)?;
                Some(self.clone_of(snapshot))
            }
            7 => {
                let volume = self.pick(&clones)?.id;
                let (bandwidth, merge_deadline_ms) = (None, None);
                Some(Request::FlattenVolume(FlattenVolume {
                    volume,
                    bandwidth,
                    merge_deadline_ms,
                    generation: None,
                }))
            }
            8 => {
                let snapshot = *self.pick(&of_vm)?;
                Some(self.deploy(snapshot))
            }
            _ => {
                let volume = self.pick(&clones)?.id;
                Some(Request::DeleteVolume(DeleteVolume { volume, generation: None }))
            }
        }
    }

    fn create(&mut self, vm: VmId) -> Request {
        let has_memory = self.dice.u32(0..5) == 0;
        let quiesce = if has_memory {
            Quiesce::Off
        } else {
            [Quiesce::Auto, Quiesce::Required, Quiesce::Off][self.dice.usize(0..3)]
        };
        Request::CreateSnapshot(CreateSnapshot {
            vm,
            image: None,
            kind: if has_memory { SnapshotKind::VmDisksAndMemory } else { SnapshotKind::VmDisks },
            label: self.label(),
            quiesce,
            mount_points: Vec::new(),
            freeze_timeout_ms: 60_000,
            max_pause_ms: None,
            disks: [].into(),
        })
    }

    fn clone_of(&mut self, snapshot: &Snapshot) -> Request {
        let name = self.new_name("clone");
        let disk = self.pick(&snapshot.disks).map(|disk| disk.target.clone());
        Request::CloneVolume(CloneVolume {
            snapshot: snapshot.id,
            disk,
            path: format!("/images/{name}").into(),
            name: name.parse().unwrap(),
            mode: [CloneMode::Linked, CloneMode::Full][self.dice.usize(0..2)],
            bandwidth: None,
            owner: Owner::default(),
            properties: BTreeMap::new(),
        })
    }

    fn label(&mut self) -> Label {
        Label { name: Some(self.new_name("s").parse().unwrap()), ..Label::default() }
    }
}

/// What disks of a VM read after a revert.
fn target(request: &Request, tree: &LayerTree, oracle: &Oracle) -> Option<Disks> {
    let (snapshot, volume) = match request {
        Request::RevertSnapshot(request) => (request.snapshot, None),
        Request::RevertVolume(request) => (request.snapshot, Some(request.volume)),
        Request::DeployVm(request) => (request.snapshot, None),
        _ => return None,
    };
    let held = &tree.snapshot(snapshot)?.disks;
    let disk = volume.and_then(|volume| held.iter().find(|disk| disk.volume == volume));
    let mut disks = oracle.snapshots.get(&snapshot)?.disks.clone();
    disks.retain(|target, _| disk.is_none_or(|disk| disk.target == *target));
    Some(disks)
}

/// Children go, too: the oracle is told of each that is named only.
fn takes_no_others(request: &Request, tree: &LayerTree) -> bool {
    let Request::DeleteSnapshots(request) = request else { return true };
    let is_parent = |snapshot: &Snapshot| {
        snapshot.parent.is_some_and(|parent| request.snapshots.contains(&parent))
            || snapshot.source.is_some_and(|source| request.snapshots.contains(&source))
    };
    !request.with_children || !tree.snapshots.iter().any(is_parent)
}
