//! Carries a run through: of each VM a snapshot, then what the retention lets go. Drawn in `model::schedule::run`.
//!
//! Decides nothing but the order. Whatever it asks for has a key made of the run and the VM: asked for again after a crash it is
//! the same operation. None, wherever it is given, says that the daemon goes down and the run is left to the next life.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::ledger::Ledger;
use super::{Schedules, actor, cause};
use crate::host::Link;
use crate::model::event::{of_failure, of_pruning};
use crate::model::operation::{Failure, OperationState, Reason};
use crate::model::request::FREEZE_TIMEOUT;
use crate::model::schedule::{RunStage, RunVm};
use crate::model::{
    CreateSnapshot, DeleteSnapshots, DeletionReason, Label, Operation, OperationId, Schedule, ScheduleRun,
    SnapshotId, SnapshotKind, SnapshotName,
};
use crate::ops::{Asked, OpsError, Result, Submitted};
use crate::plan::due;
use crate::store::RequestKey;

/// An operation of a run, and what is in the way of one, are waited for until the next run is due: one VM that takes long is not to
/// keep the others from their next snapshots. But for so long at least, where a schedule runs often.
const LEAST_PATIENCE: Duration = Duration::from_secs(60);

/// What is in the way is waited for no longer than this.
const MOST_PATIENCE: Duration = Duration::from_secs(3600);

/// Of the key of the operation that takes the snapshot.
const TAKE: &str = "take";

/// The same of another, where the daemon has died in the first.
const TAKE_AGAIN: &str = "take/2";

/// What came of an operation that was asked for.
type Came = std::result::Result<Option<SnapshotId>, Failure>;

impl Schedules {
    /// Carries a run to its end.
    pub(super) async fn carry(&self, run: ScheduleRun) -> Option<()> {
        let run = Arc::new(run);
        let ledger = Arc::new(Ledger::new(self.store().clone(), ScheduleRun::clone(&run)));
        let mut vms = JoinSet::new();
        for index in 0..run.vms.len() {
            let (schedules, run, ledger) = (self.clone(), Arc::clone(&run), Arc::clone(&ledger));
            vms.spawn(async move {
                OfVm { schedules: &schedules, run: &run, ledger: &ledger, index }.carry().await
            });
        }
        let all = vms.join_all().await;
        all.into_iter().collect::<Option<Vec<()>>>()?;
        let _telling = self.0.telling.lock().await;
        let now = Timestamp::now();
        let missed = noted(self.missed_meanwhile(run.schedule.id, now).await)?;
        noted(ledger.end(now, missed).await)
    }
}

/// What came of asking.
enum Attempt {
    Came(Came),
    /// It was undone, and only because the daemon died in it.
    CutShort(Failure),
    /// Not yet, and why not.
    Hindered(Hindrance, Failure),
}

/// What passes by itself.
#[derive(Debug, Clone, Copy)]
enum Hindrance {
    /// Another operation holds the VM.
    Held(OperationId),
    /// The hypervisor cannot be reached.
    Away,
}

fn hindrance(error: &OpsError) -> Option<Hindrance> {
    match error {
        OpsError::VmBusy(holder) => Some(Hindrance::Held(*holder)),
        error if error.reason() == Reason::HypervisorUnavailable => Some(Hindrance::Away),
        _ => None,
    }
}

fn deletion(snapshots: Vec<SnapshotId>) -> DeleteSnapshots {
    DeleteSnapshots {
        snapshots,
        with_children: false,
        bandwidth: None,
        merge_deadline_ms: None,
        generation: None,
        reason: DeletionReason::Pruned,
    }
}

/// A run, as far as it is about one VM.
struct OfVm<'a> {
    schedules: &'a Schedules,
    run: &'a ScheduleRun,
    ledger: &'a Ledger,
    index: usize,
}

impl OfVm<'_> {
    async fn carry(&self) -> Option<()> {
        let mut vm = self.run.vms[self.index].clone();
        if vm.stage == RunStage::Waiting {
            self.wait(vm.turn_at).await?;
            vm = self.take(&vm).await?;
        }
        if vm.stage == RunStage::Pruning {
            self.prune().await?;
        }
        Some(())
    }

    /// Until it is the VM's turn.
    async fn wait(&self, turn: Timestamp) -> Option<()> {
        // Whatever the clock says: no longer than the jitter.
        let jitter = Duration::from_millis(self.run.schedule.wish.timing.jitter_ms);
        let wait =
            Duration::try_from(turn.duration_since(Timestamp::now())).unwrap_or(Duration::ZERO).min(jitter);
        let stopping = self.schedules.0.engine.draining();
        tokio::select! {
            biased;
            () = stopping.cancelled() => None,
            () = tokio::time::sleep(wait) => Some(()),
        }
    }

    async fn take(&self, vm: &RunVm) -> Option<RunVm> {
        // The line takes no patience: it counts from the first time that something is in the way.
        let (mut key, mut until) = (self.take_key(vm), None);
        let came = loop {
            // Whoever waits for somebody else keeps no turn.
            let turn = self.schedules.0.takes.acquire().await.ok()?;
            if let Some(failure) = self.obstacle(vm, &key).await {
                return self.not_taken(failure).await;
            }
            let attempt = match self.submit(|asked| self.take_now(vm, asked), &key).await? {
                Ok(operation) => {
                    self.note(|vm| vm.operation = Some(operation)).await?;
                    self.outcome(operation).await?
                }
                Err(attempt) => attempt,
            };
            drop(turn);
            match attempt {
                Attempt::Came(came) => break came,
                // Once: whoever dies in each of them is not helped by a third.
                Attempt::CutShort(_) if key == self.key(TAKE) => {
                    key = self
                        .take_key(&self.note(|vm| (vm.is_second_take, vm.operation) = (true, None)).await?);
                }
                Attempt::CutShort(error) => break Err(error),
                Attempt::Hindered(hindrance, error) => {
                    let until = *until.get_or_insert_with(|| self.deadline());
                    if !self.is_out_of_the_way(hindrance, until).await? {
                        break Err(error);
                    }
                }
            }
        };
        match came {
            Ok(snapshot) => {
                let stage = self.after_taking();
                self.note(|vm| (vm.snapshot, vm.stage) = (snapshot, stage)).await
            }
            Err(failure) => self.not_taken(failure).await,
        }
    }

    /// Pruning may be what makes room.
    async fn not_taken(&self, failure: Failure) -> Option<RunVm> {
        let is_for_room = matches!(failure.reason, Reason::ScheduleLimit | Reason::InsufficientSpace);
        let then = if is_for_room { self.after_taking() } else { RunStage::Done };
        self.failed(failure, then).await
    }

    /// What stands in the way of a snapshot that was not begun yet: a limit, or that its schedule is gone.
    async fn obstacle(&self, vm: &RunVm, key: &RequestKey) -> Option<Failure> {
        if !matches!(self.schedules.0.engine.repeated(Some(key)).await, Ok(None)) {
            return None;
        }
        if let Err(OpsError::NoSuchSchedule(_)) = self.now().await {
            return Some(Failure::cancelled("the schedule was deleted before it was the VM's turn"));
        }
        let (schedule, vm) = (&self.run.schedule, (vm.vm, vm.name.as_str()));
        match self.schedules.limit(Some(schedule.id), &schedule.wish, vm, self.run.is_late).await {
            Ok(limit) => limit,
            // What is in the way of looking is in the way of taking, which knows how to wait.
            Err(error) if hindrance(&error).is_some() => None,
            Err(error) => Some(failure(&error)),
        }
    }

    /// A late run does not prune: there are fewer snapshots than the policy thinks of.
    fn after_taking(&self) -> RunStage {
        if self.run.is_late { RunStage::Done } else { RunStage::Pruning }
    }

    async fn take_now(&self, vm: &RunVm, asked: Asked) -> Result<Submitted> {
        let schedule = &self.run.schedule;
        let template = &schedule.wish.template;
        let request = CreateSnapshot {
            vm: vm.vm,
            image: None,
            kind: if template.memory { SnapshotKind::VmDisksAndMemory } else { SnapshotKind::VmDisks },
            label: Label {
                name: Some(self.name(vm).await?),
                display_name: String::new(),
                description: template.description.clone(),
                owner: self.schedules.owner(&template.owner, vm.vm).await?,
                properties: template.properties.clone(),
                expires_at: None,
                schedule: Some(schedule.id),
            },
            quiesce: template.quiesce,
            mount_points: template.mount_points.clone(),
            freeze_timeout_ms: u64::try_from(FREEZE_TIMEOUT.as_millis()).unwrap_or(u64::MAX),
            max_pause_ms: None,
            disks: template.disks.clone(),
        };
        self.schedules.0.engine.create_snapshot(request, asked).await
    }

    /// The name that the template gives; with the number of the run behind it where a snapshot has it already.
    async fn name(&self, vm: &RunVm) -> Result<SnapshotName> {
        let (schedule, count) = (&self.run.schedule.wish, self.run.count);
        let name = schedule.template.name.fill(&vm.name, &schedule.name, self.run.started_at, count);
        let tree = self.schedules.store().tree(vm.vm).await?;
        let is_taken = tree.snapshots.iter().any(|snapshot| snapshot.name.as_str() == name);
        let name = if is_taken { format!("{name}-{count}") } else { name };
        name.parse().map_err(|cause| OpsError::NoName { name, cause })
    }

    async fn prune(&self) -> Option<RunVm> {
        let (key, until) = (self.key("prune"), self.deadline());
        let engine = &self.schedules.0.engine;
        let mut at_most = usize::MAX;
        let came = loop {
            // Decided anew each time: what was to go may be held or cloned by now.
            let doomed = match engine.repeated(Some(&key)).await {
                Ok(Some(_)) => self.run.vms[self.index].doomed.clone(),
                Ok(None) | Err(_) => match self.doom(at_most).await? {
                    Ok(doomed) => doomed,
                    Err(failure) => return self.failed(failure, RunStage::Done).await,
                },
            };
            if doomed.is_empty() {
                return self.note(|vm| vm.stage = RunStage::Done).await;
            }
            let delete = |asked| engine.delete_snapshots(deletion(doomed.clone()), asked);
            let attempt = match self.submit(delete, &key).await? {
                Ok(operation) => self.outcome(operation).await?,
                // What few need may be there, and be given back by them.
                Err(Attempt::Came(Err(failure)))
                    if failure.reason == Reason::InsufficientSpace && doomed.len() > 1 =>
                {
                    at_most = doomed.len() / 2;
                    continue;
                }
                Err(attempt) => attempt,
            };
            match attempt {
                Attempt::Came(came) => break came,
                Attempt::CutShort(error) => break Err(error),
                Attempt::Hindered(hindrance, error) => {
                    if !self.is_out_of_the_way(hindrance, until).await? {
                        break Err(error);
                    }
                }
            }
        };
        if let Err(failure) = came {
            return self.failed(failure, RunStage::Done).await;
        }
        let change = |vm: &mut RunVm| {
            vm.stage = RunStage::Done;
            vm.pruned = u32::try_from(vm.doomed.len()).unwrap_or(u32::MAX);
            vm.pruned_bytes = vm.doomed_bytes;
        };
        let by = cause(actor(&self.run.schedule), Timestamp::now());
        noted(self.ledger.note(self.index, change, |vm| Some(of_pruning(&self.run.schedule, vm, &by))).await)
    }

    /// Decides what goes, the oldest and so many at most, and writes it down.
    async fn doom(&self, at_most: usize) -> Option<std::result::Result<Vec<SnapshotId>, Failure>> {
        let (doomed, bytes) = match self.decide(at_most).await {
            Ok(doomed) => doomed,
            Err(failure) => return Some(Err(failure)),
        };
        let noted = self.note(|vm| (vm.doomed, vm.doomed_bytes) = (doomed, bytes)).await?;
        Some(Ok(noted.doomed))
    }

    /// By the schedule as it is now: whoever sees a slip in it can stop what has not gone yet. One that was paused meanwhile, or
    /// deleted, lets nothing go.
    async fn decide(&self, at_most: usize) -> std::result::Result<(Vec<SnapshotId>, u64), Failure> {
        let now = match self.now().await {
            Ok(now) => now,
            Err(OpsError::NoSuchSchedule(_)) => return Ok((Vec::new(), 0)),
            Err(error) => return Err(failure(&error)),
        };
        if now.is_paused && !self.run.schedule.is_paused {
            return Ok((Vec::new(), 0));
        }
        let vm = &self.run.vms[self.index];
        let decided = self.schedules.retention(Some(now.id), &now.wish, (vm.vm, &vm.name), None).await;
        let decided = decided.map_err(|error| failure(&error))?;
        match decided.refusal {
            Some(refusal) => Err(refusal),
            None => Ok(decided.first_doomed(at_most)),
        }
    }

    /// The schedule as it is now.
    async fn now(&self) -> Result<Schedule> {
        Ok(self.schedules.find(&self.run.schedule.id.to_string()).await?.schedule)
    }

    /// How long an operation is waited for from now on.
    fn patience(&self) -> Duration {
        let now = Timestamp::now();
        let next = due::next(&self.run.schedule.wish.timing, now);
        let wait = next.and_then(|next| Duration::try_from(next.duration_since(now)).ok());
        wait.unwrap_or(Duration::MAX).max(LEAST_PATIENCE)
    }

    /// Until when what is in the way is waited for.
    fn deadline(&self) -> Instant {
        Instant::now() + self.patience().min(MOST_PATIENCE)
    }

    /// What comes of an operation. One that goes on for too long is left to itself.
    async fn outcome(&self, id: OperationId) -> Option<Attempt> {
        match tokio::time::timeout(self.patience(), self.ended(id)).await {
            Ok(ended) => ended.as_ref().map(outcome),
            Err(_) => Some(Attempt::Came(Err(Failure {
                reason: Reason::VmBusy,
                message: format!(
                    "operation {id} goes on for longer than this run waits for it; it is left to itself"
                ),
                causes: Vec::new(),
            }))),
        }
    }

    /// Asks for an operation, or says what came of that.
    async fn submit<F>(
        &self,
        ask: impl FnOnce(Asked) -> F,
        key: &RequestKey,
    ) -> Option<std::result::Result<OperationId, Attempt>>
    where
        F: Future<Output = Result<Submitted>>,
    {
        let asked = Asked { by: actor(&self.run.schedule), key: Some(key.clone()), validate_only: false };
        // What it names may be gone by now.
        let submitted = match self.schedules.0.engine.repeated(Some(key)).await {
            Ok(Some(before)) => Ok(before),
            Ok(None) => ask(asked).await,
            Err(error) => Err(error),
        };
        Some(match submitted {
            Ok(Submitted::Operation(view)) => Ok(view.operation.id),
            Ok(Submitted::Plan(_)) => unreachable!("an operation was asked for"),
            Err(OpsError::Draining) => return None,
            Err(error) => Err(match hindrance(&error) {
                Some(hindrance) => Attempt::Hindered(hindrance, failure(&error)),
                None => Attempt::Came(Err(failure(&error))),
            }),
        })
    }

    /// Waits until what is in the way is gone. False if that takes too long.
    async fn is_out_of_the_way(&self, hindrance: Hindrance, until: Instant) -> Option<bool> {
        let engine = &self.schedules.0.engine;
        let (mut link, stopping) = (engine.host().hypervisor.link(), engine.draining());
        let gone = async {
            match hindrance {
                Hindrance::Held(by) => drop(self.ended(by).await),
                // It fails when the hypervisor's side is gone for good, and then time runs out.
                Hindrance::Away => drop(link.wait_for(|link| matches!(link, Link::Up)).await),
            }
        };
        tokio::select! {
            biased;
            () = stopping.cancelled() => None,
            gone = tokio::time::timeout_at(until, gone) => Some(gone.is_ok()),
        }
    }

    /// An operation when it has ended, or needs a person.
    async fn ended(&self, id: OperationId) -> Option<Operation> {
        let engine = &self.schedules.0.engine;
        let rests = |operation: &Operation| {
            operation.cursor.has_ended() || matches!(operation.cursor.state, OperationState::Stuck { .. })
        };
        if let Some(mut watcher) = engine.watch(id) {
            let stopping = engine.draining();
            tokio::select! {
                biased;
                () = stopping.cancelled() => return None,
                // It fails when the runner has gone, and then the journal knows.
                _ = watcher.wait_for(|view| rests(&view.operation)) => {}
            }
        }
        let view = engine.operation(id).await.ok()?;
        rests(&view.operation).then_some(view.operation)
    }

    fn take_key(&self, vm: &RunVm) -> RequestKey {
        self.key(if vm.is_second_take { TAKE_AGAIN } else { TAKE })
    }

    fn key(&self, what: &str) -> RequestKey {
        RequestKey {
            id: format!("{}/{}/{what}", self.run.id, self.run.vms[self.index].vm),
            principal: format!("schedule {}", self.run.schedule.id),
            digest: what.as_bytes().to_vec(),
        }
    }

    async fn note(&self, change: impl FnOnce(&mut RunVm)) -> Option<RunVm> {
        noted(self.ledger.note(self.index, change, |_| None).await)
    }

    async fn failed(&self, failure: Failure, then: RunStage) -> Option<RunVm> {
        let by = cause(actor(&self.run.schedule), Timestamp::now());
        let told = of_failure(self.run, &self.run.vms[self.index], &failure, &by);
        let change = |vm: &mut RunVm| {
            // The first one says more.
            vm.failure.get_or_insert(failure);
            vm.stage = then;
        };
        noted(self.ledger.note(self.index, change, |_| Some(told)).await)
    }
}

fn outcome(operation: &Operation) -> Attempt {
    let failure = match (operation.cursor.state, &operation.failure) {
        (OperationState::Succeeded, _) => {
            return Attempt::Came(Ok(operation.snapshot));
        }
        (OperationState::Stuck { .. }, failure) => Failure {
            reason: Reason::OperationStuck,
            message: format!("operation {} is stuck: a person is needed", operation.id),
            causes: failure.iter().map(|failure| failure.message.clone()).collect(),
        },
        (_, Some(failure)) if was_undone_by_death(operation, failure) => {
            return Attempt::CutShort(failure.clone());
        }
        (_, Some(failure)) => failure.clone(),
        (_, None) => Failure::cancelled("the operation was cancelled"),
    };
    Attempt::Came(Err(failure))
}

/// Whether it may be otherwise the next time: nobody saw to the guest any more. Room that is not there is not there then, either.
fn was_undone_by_death(operation: &Operation, failure: &Failure) -> bool {
    let is_of_the_guest =
        matches!(failure.reason, Reason::QuiesceFailed | Reason::HypervisorRefused | Reason::ImageChanged);
    let is_somebodys_wish = operation.was_abandoned || operation.cancel_requested;
    operation.findings.was_cut_short && !is_somebodys_wish && is_of_the_guest
}

fn failure(error: &OpsError) -> Failure {
    Failure::new(error.reason(), error)
}

/// What cannot be written is left as it was written last: the next life goes on from there.
fn noted<T>(written: Result<T>) -> Option<T> {
    written
        .inspect_err(|error| {
            let error: &dyn std::error::Error = error;
            tracing::warn!(
                error,
                "how a run of a schedule stands was not written: the next start goes on with it"
            );
        })
        .ok()
}
