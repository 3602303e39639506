//! Schedules: when to ask `ops` for snapshots, and which to let go.
//!
//! Decides nothing of its own: when is `plan::due`, which go is `plan::retention`; each snapshot and each deletion is an ordinary
//! operation of `ops`. Must never know gRPC, libvirt or SQL.
//!
//! A run is durable before it begins. One that was cut off is gone on with by the next life of the daemon.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use tokio::sync::{Notify, Semaphore};

use crate::host::VmSummary;
use crate::model::access::Labels;
use crate::model::event::Cause;
use crate::model::operation::Failure;
use crate::model::schedule::{ScheduleWish, VmSelector};
use crate::model::snapshot::Owner;
use crate::model::{Schedule, ScheduleId, ScheduleRun, ScheduleRunId, VmId};
use crate::ops::{Asked, Engine, OpsError, Result};
use crate::plan::due;
use crate::plan::retention::VmRetention;
use crate::store::{KeptSchedule, ScheduleEdit, Store, StoreError};

mod clock;
mod ledger;
mod limits;
mod run;
mod snapshots;

/// Snapshots of a run that are taken at once: each freezes a guest, and all of them write to the same storage.
const AT_ONCE: usize = 8;

/// All schedules of the node. Cheap to clone.
#[derive(Clone)]
pub struct Schedules(Arc<Inner>);

struct Inner {
    engine: Engine,
    /// When this life of the daemon began: what was due before, nobody was there to begin.
    begun_at: Timestamp,
    /// Something about schedules has changed, or a run has ended.
    changed: Notify,
    /// The runs that are carried through, and their schedules.
    going: Mutex<BTreeMap<ScheduleRunId, ScheduleId>>,
    takes: Semaphore,
    /// What was missed is looked for and told by one at a time: by the clock while a run is going, and by the run as it ends.
    telling: tokio::sync::Mutex<()>,
}

/// What a schedule will do.
#[derive(Debug, Clone, PartialEq)]
pub struct Preview {
    /// When its next runs are due.
    pub runs: Vec<Timestamp>,
    /// The VMs that it takes now.
    pub vms: Vec<VmSummary>,
    /// Those of them that a run that begins now would skip, and why.
    pub skipped: Vec<(VmSummary, Failure)>,
    /// What it would prune.
    pub of_vms: Vec<VmRetention>,
    /// The names and UUIDs that the schedule gives and no VM has.
    pub missing: BTreeSet<String>,
}

impl Schedules {
    /// The schedules of an engine's node, in a life of the daemon that began then. [`Schedules::start`] lets them run.
    #[must_use]
    pub fn new(engine: Engine, begun_at: Timestamp) -> Self {
        Self(Arc::new(Inner {
            engine,
            begun_at,
            changed: Notify::new(),
            going: Mutex::default(),
            takes: Semaphore::new(AT_ONCE),
            telling: tokio::sync::Mutex::default(),
        }))
    }

    /// Makes a schedule.
    pub async fn create(&self, wish: ScheduleWish, is_paused: bool, asked: Asked) -> Result<KeptSchedule> {
        let now = Timestamp::now();
        check_runs(&wish, now)?;
        let schedule = Schedule {
            id: ScheduleId::new(),
            wish,
            is_paused,
            created_at: now,
            created_by: asked.by.clone(),
            generation: 1,
        };
        let kept = self.store().add_schedule(schedule, asked.key, cause(asked.by, now)).await?;
        self.0.changed.notify_one();
        Ok(kept)
    }

    /// Changes a schedule. A run that is going takes what it began with, and prunes by what is set now.
    pub async fn edit(
        &self,
        id: ScheduleId,
        edit: ScheduleEdit,
        seen: Option<u64>,
        asked: Asked,
    ) -> Result<KeptSchedule> {
        let now = Timestamp::now();
        if let ScheduleEdit::Set(wish) = &edit {
            check_runs(wish, now)?;
        }
        let cause = cause(asked.by, now);
        let kept = self.store().edit_schedule(id, edit, seen, asked.key, cause).await?;
        self.0.changed.notify_one();
        Ok(kept)
    }

    /// Deletes a schedule. Its snapshots stay.
    pub async fn delete(&self, id: ScheduleId, seen: Option<u64>, asked: Asked) -> Result<()> {
        let cause = cause(asked.by, Timestamp::now());
        let was_there = self.store().delete_schedule(id, seen, asked.key, cause).await?;
        if was_there { Ok(()) } else { Err(OpsError::NoSuchSchedule(id.to_string())) }
    }

    /// The schedule that answers to a name or an id.
    pub async fn find(&self, wanted: &str) -> Result<KeptSchedule> {
        let id = wanted.parse::<ScheduleId>().ok();
        let is_meant =
            |kept: &KeptSchedule| kept.schedule.wish.name.as_str() == wanted || Some(kept.schedule.id) == id;
        let found = self.all().await?.into_iter().find(is_meant);
        found.ok_or_else(|| OpsError::NoSuchSchedule(wanted.to_owned()))
    }

    /// All of them, by name.
    pub async fn all(&self) -> Result<Vec<KeptSchedule>> {
        Ok(self.store().schedules().await?)
    }

    /// Begins a run now, whatever the clock says.
    pub async fn run_now(&self, id: ScheduleId, asked: Asked) -> Result<ScheduleRun> {
        let begin = clock::Begin { due_at: None, is_late: false, seen_until: None, missed: None };
        loop {
            let kept = self.find(&id.to_string()).await?;
            match self.begin(&kept.schedule, begin, asked.clone()).await {
                // Somebody has changed it since it was looked at.
                Err(OpsError::Store(StoreError::ScheduleChanged { .. })) => {}
                answer => return answer,
            }
        }
    }

    /// The runs of a schedule, newest first: at most `limit` that are older than `before`. With the number there are.
    pub async fn runs(
        &self,
        id: ScheduleId,
        before: Option<ScheduleRunId>,
        limit: u32,
    ) -> Result<(Vec<ScheduleRun>, u64)> {
        Ok(self.store().runs(id, before, limit).await?)
    }

    /// What a schedule with these settings will do: one that there is, or one that there is not yet.
    pub async fn preview(&self, wish: &ScheduleWish, of: Option<ScheduleId>, runs: usize) -> Result<Preview> {
        let now = Timestamp::now();
        let vms = self.selected(&wish.selector).await?;
        let missing = wish.selector.missing(vms.iter().map(|vm| (vm.id, vm.name.as_str())));
        let (mut skipped, mut of_vms) = (Vec::new(), Vec::new());
        for vm in &vms {
            let limit = self.limit(of, wish, (vm.id, &vm.name), false).await?;
            // One that is skipped is pruned all the same, without a new one.
            let next = limit.is_none().then_some(now);
            skipped.extend(limit.map(|limit| (vm.clone(), limit)));
            of_vms.push(self.retention(of, wish, (vm.id, &vm.name), next).await?);
        }
        Ok(Preview { runs: due::next_few(&wish.timing, now, runs), vms, skipped, of_vms, missing })
    }

    /// When the next run is due; None for one that rests, or never.
    #[must_use]
    pub fn next_run(kept: &KeptSchedule, now: Timestamp) -> Option<Timestamp> {
        if kept.schedule.is_paused {
            return None;
        }
        due::next(&kept.schedule.wish.timing, due::clock(kept.seen_until, now))
    }

    /// The VMs that a selector takes now, by name.
    pub async fn selected(&self, selector: &VmSelector) -> Result<Vec<VmSummary>> {
        let mut vms = self.0.engine.vms().await?;
        let labels =
            if selector.goes_by_labels() { self.0.engine.labels(None).await? } else { HashMap::default() };
        let none = Labels::default();
        vms.retain(|vm| selector.takes(vm.id, &vm.name, labels.get(&vm.id).unwrap_or(&none)));
        vms.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(vms)
    }

    /// Whose a snapshot of a VM is: what the template leaves empty is written on the VM.
    async fn owner(&self, template: &Owner, vm: VmId) -> Result<Owner> {
        let labels = self.0.engine.labels(Some(vm)).await?;
        Ok(template.clone().or_of(labels.get(&vm).unwrap_or(&Labels::default())))
    }

    fn store(&self) -> &Store {
        self.0.engine.store()
    }

    fn going(&self) -> MutexGuard<'_, BTreeMap<ScheduleRunId, ScheduleId>> {
        self.0.going.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn check_runs(wish: &ScheduleWish, now: Timestamp) -> Result<()> {
    due::next(&wish.timing, now).map(drop).ok_or(OpsError::NeverRuns)
}

fn cause(actor: String, at: Timestamp) -> Cause {
    Cause { operation: None, actor, at }
}

/// What somebody is called who asks for what a schedule wants.
fn actor(schedule: &Schedule) -> String {
    format!("schedule {}", schedule.wish.name)
}

#[cfg(test)]
mod tests;
