//! The clock: begins what is due, and nothing twice.
//!
//! Decides when to look. Leaves what is due to `plan::due`, and what a run does to `run`.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::{Schedules, actor, cause};
use crate::model::event::{Event, Missed, of_missed_runs};
use crate::model::schedule::{RunState, RunVm};
use crate::model::{Schedule, ScheduleId, ScheduleRun, ScheduleRunId, VmId};
use crate::ops::{Asked, OpsError, Result};
use crate::plan::due::{self, Due};
use crate::store::{KeptSchedule, StoreError};

/// The longest between two looks. A clock can be set, and nobody tells us when.
const LOOK_INTERVAL: Duration = Duration::from_secs(60);

/// What was missed by a run that is still going is told after so long, if it has not ended and told of it by then.
const TOLD_AFTER: SignedDuration = SignedDuration::from_secs(60);

/// Until the next look after one that failed: libvirt may be away.
const AGAIN: Duration = Duration::from_secs(5);

/// How a run comes to begin.
#[derive(Debug, Clone, Copy)]
pub(super) struct Begin {
    pub(super) due_at: Option<Timestamp>,
    pub(super) is_late: bool,
    /// The schedule's clock goes on to here.
    pub(super) seen_until: Option<Timestamp>,
    pub(super) missed: Option<Missed>,
}

impl Schedules {
    /// Goes on with runs that an earlier life left, then begins what is due, from now until the daemon goes down.
    pub fn start(&self) {
        let schedules = self.clone();
        tokio::spawn(async move {
            let stopping = schedules.0.engine.draining();
            let mut is_resumed = false;
            loop {
                let looked = schedules.look(&mut is_resumed).await;
                let wait = looked.unwrap_or_else(|error| {
                    let error: &dyn std::error::Error = &error;
                    tracing::warn!(error, "cannot look for schedules that are due");
                    AGAIN
                });
                tokio::select! {
                    biased;
                    () = stopping.cancelled() => return,
                    () = schedules.0.changed.notified() => {}
                    () = tokio::time::sleep(wait) => {}
                }
            }
        });
    }

    /// Begins a run: durable first, then on a task of its own.
    pub(super) async fn begin(&self, schedule: &Schedule, begin: Begin, asked: Asked) -> Result<ScheduleRun> {
        let now = Timestamp::now();
        let vms = self.selected(&schedule.wish.selector).await?;
        let missing = schedule.wish.selector.missing(vms.iter().map(|vm| (vm.id, vm.name.as_str())));
        let turn = |vm: VmId| {
            let wait = SignedDuration::from_millis(i64::try_from(place(schedule, vm)).unwrap_or(0));
            now.checked_add(wait).unwrap_or(now)
        };
        let mut vms: Vec<RunVm> = vms.into_iter().map(|vm| RunVm::new(vm.id, vm.name, turn(vm.id))).collect();
        vms.sort_by_key(|vm| vm.turn_at);
        let run = ScheduleRun {
            id: ScheduleRunId::new(),
            schedule: schedule.clone(),
            count: 0,
            state: RunState::Running,
            due_at: begin.due_at,
            is_late: begin.is_late,
            started_at: now,
            ended_at: None,
            vms,
            missing,
        };
        let new = run.id;
        let cause = cause(asked.by, now);
        let run = self.store().begin_run(run, begin.seen_until, begin.missed, asked.key, cause).await?;
        // The same request again gets the run that it has begun before.
        if run.id == new {
            self.go_on(run.clone());
        }
        Ok(run)
    }

    /// Carries a run to its end, on a task of its own.
    fn go_on(&self, run: ScheduleRun) {
        let (schedules, id, schedule) = (self.clone(), run.id, run.schedule.id);
        // One that was begun by hand before all that were left could be read is among them.
        if self.going().insert(id, schedule).is_some() {
            return;
        }
        tokio::spawn(async move {
            if schedules.carry_through(run).await.is_some() {
                schedules.going().remove(&id);
                schedules.0.changed.notify_one();
            }
        });
    }

    /// Whatever fails on the way: the run is taken up again where it was written last. None when the daemon goes down.
    async fn carry_through(&self, mut run: ScheduleRun) -> Option<()> {
        let stopping = self.0.engine.draining();
        loop {
            let (schedules, attempt) = (self.clone(), run.clone());
            // On a task of its own: what panics is taken up again, too.
            let ended = tokio::spawn(async move { schedules.carry(attempt).await }).await;
            if let Ok(Some(())) = ended {
                return Some(());
            }
            tokio::select! {
                biased;
                () = stopping.cancelled() => return None,
                () = tokio::time::sleep(AGAIN) => {}
            }
            match self.store().run(run.id).await {
                Ok(Some(now)) if now.state != RunState::Running => return Some(()),
                Ok(Some(now)) => run = now,
                // Its catalog will be read, or the daemon will go down.
                Ok(None) | Err(_) => {}
            }
        }
    }

    /// Begins what is due. Gives how long nothing else will be.
    async fn look(&self, is_resumed: &mut bool) -> Result<Duration> {
        if !*is_resumed {
            for run in self.store().open_runs().await? {
                self.go_on(run);
            }
            *is_resumed = true;
        }
        let mut wait = LOOK_INTERVAL;
        for kept in self.all().await? {
            if kept.schedule.is_paused {
                continue;
            }
            let is_going = self.going().values().any(|going| *going == kept.schedule.id);
            let looked = if is_going { self.tell_of_missed(&kept).await } else { self.look_at(&kept).await };
            // One that cannot begin holds up no other.
            match looked {
                Ok(next) => wait = wait.min(next),
                Err(error) => {
                    let error: &dyn std::error::Error = &error;
                    tracing::warn!(schedule = %kept.schedule.wish.name, error, "a run cannot begin");
                    wait = wait.min(AGAIN);
                }
            }
        }
        Ok(wait)
    }

    async fn look_at(&self, kept: &KeptSchedule) -> Result<Duration> {
        let (schedule, now) = (&kept.schedule, Timestamp::now());
        let by_itself = || cause(actor(schedule), now);
        let missed = |count, last: Option<Timestamp>| {
            last.map(|last_due| Missed {
                count,
                last_due,
                why: "nobody was there to begin them, or the clock was set",
            })
        };
        match due::due(&schedule.wish.timing, kept.seen_until, now) {
            Due::Wait(None) => return Ok(LOOK_INTERVAL),
            Due::Wait(Some(at)) => {
                return Ok(Duration::try_from(at.duration_since(now)).unwrap_or(Duration::ZERO));
            }
            Due::Run { at, is_late, missed: count, last_missed } => {
                let missed = missed(count, last_missed);
                let begin = Begin { due_at: Some(at), is_late, seen_until: Some(at), missed };
                let asked = Asked { by: actor(schedule), key: None, validate_only: false };
                match self.begin(schedule, begin, asked).await {
                    // Somebody has changed it since it was looked at: it is looked at again.
                    Ok(_) | Err(OpsError::Store(StoreError::ScheduleChanged { .. })) => {}
                    Err(error) => return Err(error),
                }
            }
            Due::Missed { count, last } => {
                self.store().skip_runs(schedule.id, now, missed(count, Some(last)), by_itself()).await?;
            }
            Due::SetBack => self.store().skip_runs(schedule.id, now, None, by_itself()).await?,
        }
        Ok(Duration::ZERO)
    }

    /// What to tell of what was due up to `now` while a run was going, if anything was: it is not made up for.
    pub(super) async fn missed_meanwhile(&self, id: ScheduleId, now: Timestamp) -> Result<Option<Event>> {
        let kept = match self.find(&id.to_string()).await {
            Ok(kept) => kept,
            Err(OpsError::NoSuchSchedule(_)) => return Ok(None),
            Err(error) => return Err(error),
        };
        let missed = self.missed_of(&kept, now).filter(|_| !kept.schedule.is_paused);
        Ok(missed.map(|missed| of_missed_runs(&kept.schedule, missed, &cause(actor(&kept.schedule), now))))
    }

    /// Tells of what was missed for some time while a run is going: one that goes on for days is not to hide it.
    async fn tell_of_missed(&self, kept: &KeptSchedule) -> Result<Duration> {
        let _telling = self.0.telling.lock().await;
        let id = kept.schedule.id;
        // The run may have ended since, and told of it.
        let kept = self.find(&id.to_string()).await?;
        let now = Timestamp::now();
        let until = now.checked_sub(TOLD_AFTER).unwrap_or(now);
        if let Some(missed) = self.missed_of(&kept, until).filter(|_| !kept.schedule.is_paused) {
            let by_itself = cause(actor(&kept.schedule), now);
            self.store().skip_runs(id, until, Some(missed), by_itself).await?;
        }
        Ok(LOOK_INTERVAL)
    }

    /// What was due up to `until` while a run was going.
    fn missed_of(&self, kept: &KeptSchedule, until: Timestamp) -> Option<Missed> {
        let timing = &kept.schedule.wish.timing;
        // What was due while nobody was there is made up for like any other, as the schedule has it.
        if due::passed(timing, kept.seen_until, self.0.begun_at).1.is_some() {
            return None;
        }
        let (count, last) = due::passed(timing, kept.seen_until, until);
        last.map(|last_due| Missed { count, last_due, why: "the run before was still going" })
    }
}

/// How long a VM waits in each run, in milliseconds: always the same, spread over the jitter.
pub(super) fn place(schedule: &Schedule, vm: VmId) -> u64 {
    // Both are random bits; of version 7 the last ones.
    let mixed = uuid::Uuid::new_v5(&schedule.id.0, vm.0.as_bytes()).as_u128();
    let within = u128::from(schedule.wish.timing.jitter_ms).max(1);
    u64::try_from(mixed % within).unwrap_or(0)
}
