//! Schedules, and how their runs begin. How runs go on is in `schedule_run`.
//!
//! A run is entered in the transaction that moves its schedule's clock on: none is begun twice, and none is forgotten.

use jiff::Timestamp;
use rusqlite::{OptionalExtension, Transaction, params};

use super::request::{self, Answer, RequestKey};
use super::{Prepared, Result, Store, StoreError, event, from_json, parse, schedule_run, snapshot, to_json};
use crate::model::event::{Cause, Missed, ScheduleChange, of_missed_runs, of_run, of_schedule};
use crate::model::schedule::ScheduleWish;
use crate::model::{Schedule, ScheduleId, ScheduleRun, Snapshot, VmId};

/// A schedule, and where its clock stands.
#[derive(Debug, Clone, PartialEq)]
pub struct KeptSchedule {
    /// The schedule.
    pub schedule: Schedule,
    /// Runs that were due up to here were begun, or told as missed.
    pub seen_until: Timestamp,
    /// How many runs it has had.
    pub runs: u64,
    /// The newest run.
    pub last_run: Option<ScheduleRun>,
}

/// What people want of a schedule.
#[derive(Debug, Clone, PartialEq)]
pub enum ScheduleEdit {
    /// Other settings.
    Set(Box<ScheduleWish>),
    /// To let it rest.
    Pause,
    /// To let it go on.
    Resume,
}

impl Store {
    /// Enters a new schedule. The same request again gives the first one.
    pub async fn add_schedule(
        &self,
        schedule: Schedule,
        key: Option<RequestKey>,
        cause: Cause,
    ) -> Result<KeptSchedule> {
        self.transact(move |transaction| {
            if let Some(Answer::Schedule(before)) = request::find(transaction, key.as_ref())? {
                return read(transaction, before)?.ok_or(StoreError::ScheduleGone(before));
            }
            check_name(transaction, &schedule)?;
            transaction.run(
                "INSERT INTO schedule (id, name, body, seen_until, runs) VALUES (?, ?, ?, ?, 0)",
                params![
                    schedule.id.to_string(),
                    schedule.wish.name.as_str(),
                    to_json(&schedule, "schedule")?,
                    cause.at.as_millisecond(),
                ],
            )?;
            event::insert(transaction, &of_schedule(&schedule, ScheduleChange::Created, &cause))?;
            let answer = Answer::Schedule(schedule.id);
            request::remember(transaction, key.as_ref(), answer, cause.at.as_millisecond())?;
            read(transaction, schedule.id)?.ok_or(StoreError::ScheduleGone(schedule.id))
        })
        .await
    }

    /// Changes a schedule, if it still is of the generation that was seen. The same request again changes nothing. One that goes
    /// on after a rest has missed nothing meanwhile.
    pub async fn edit_schedule(
        &self,
        id: ScheduleId,
        edit: ScheduleEdit,
        seen: Option<u64>,
        key: Option<RequestKey>,
        cause: Cause,
    ) -> Result<KeptSchedule> {
        self.transact(move |transaction| {
            let before = read(transaction, id)?.ok_or(StoreError::ScheduleGone(id))?;
            if request::find(transaction, key.as_ref())?.is_some() {
                return Ok(before);
            }
            check_generation(&before.schedule, seen)?;
            let old = before.schedule;
            let (after, change) = match edit {
                ScheduleEdit::Set(wish) => (Schedule { wish: *wish, ..old.clone() }, ScheduleChange::Updated),
                ScheduleEdit::Pause => (Schedule { is_paused: true, ..old.clone() }, ScheduleChange::Paused),
                ScheduleEdit::Resume => (Schedule { is_paused: false, ..old.clone() }, ScheduleChange::Resumed),
            };
            if after != old {
                // What was due by another clock, or while it rested, was not missed.
                let is_anew = after.wish.timing != old.wish.timing || old.is_paused != after.is_paused;
                let after = Schedule { generation: old.generation + 1, ..after };
                check_name(transaction, &after)?;
                transaction.run(
                    "UPDATE schedule SET name = ?2, body = ?3, seen_until = iif(?4, ?5, seen_until) WHERE id = ?1",
                    params![
                        id.to_string(),
                        after.wish.name.as_str(),
                        to_json(&after, "schedule")?,
                        is_anew,
                        cause.at.as_millisecond(),
                    ],
                )?;
                event::insert(transaction, &of_schedule(&after, change, &cause))?;
            }
            request::remember(transaction, key.as_ref(), Answer::Schedule(id), cause.at.as_millisecond())?;
            read(transaction, id)?.ok_or(StoreError::ScheduleGone(id))
        })
        .await
    }

    /// Deletes a schedule with its runs that have ended. Its snapshots stay. Whether it was there.
    pub async fn delete_schedule(
        &self,
        id: ScheduleId,
        seen: Option<u64>,
        key: Option<RequestKey>,
        cause: Cause,
    ) -> Result<bool> {
        self.transact(move |transaction| {
            if request::find(transaction, key.as_ref())?.is_some() {
                return Ok(true);
            }
            let Some(before) = read(transaction, id)? else { return Ok(false) };
            check_generation(&before.schedule, seen)?;
            transaction.run("DELETE FROM schedule WHERE id = ?", [id.to_string()])?;
            // A run that is going looks for it before it takes or prunes anything more.
            transaction
                .run("DELETE FROM schedule_run WHERE schedule = ? AND is_open = 0", [id.to_string()])?;
            event::insert(transaction, &of_schedule(&before.schedule, ScheduleChange::Deleted, &cause))?;
            request::remember(transaction, key.as_ref(), Answer::Schedule(id), cause.at.as_millisecond())?;
            Ok(true)
        })
        .await
    }

    /// All schedules, by name: there are a handful. One that cannot be read is told of, and holds up no other.
    pub async fn schedules(&self) -> Result<Vec<KeptSchedule>> {
        self.read(|transaction| {
            let mut statement = transaction.prepare_cached("SELECT id FROM schedule ORDER BY name")?;
            let ids = statement.query_map([], |row| row.get::<_, String>(0))?;
            let ids: Vec<String> = ids.collect::<rusqlite::Result<_>>()?;
            let kept = |id: &String| legible(read(transaction, parse(id, "schedule id").ok()?)).flatten();
            Ok(ids.iter().filter_map(kept).collect())
        })
        .await
    }

    /// The schedule that the same request has made or changed before. Asked first: it may be gone or have another name by now.
    pub async fn scheduled_before(&self, key: RequestKey) -> Result<Option<ScheduleId>> {
        self.transact(move |transaction| match request::find(transaction, Some(&key))? {
            Some(Answer::Schedule(id)) => Ok(Some(id)),
            Some(_) | None => Ok(None),
        })
        .await
    }

    /// Begins a run, and lets the schedule's clock go on to `seen_until`. What was missed is told with it.
    pub async fn begin_run(
        &self,
        run: ScheduleRun,
        seen_until: Option<Timestamp>,
        missed: Option<Missed>,
        key: Option<RequestKey>,
        cause: Cause,
    ) -> Result<ScheduleRun> {
        self.transact(move |transaction| {
            if let Some(Answer::ScheduleRun(before)) = request::find(transaction, key.as_ref())? {
                return schedule_run::read(transaction, before)?
                    .ok_or(StoreError::ScheduleGone(run.schedule.id));
            }
            let id = run.schedule.id;
            let kept = read(transaction, id)?.ok_or(StoreError::ScheduleGone(id))?;
            // It begins as it is, or not at all.
            check_generation(&kept.schedule, Some(run.schedule.generation))?;
            schedule_run::close_illegible(transaction, id)?;
            if schedule_run::is_running(transaction, id)? {
                return Err(StoreError::ScheduleRunning(kept.schedule.wish.name));
            }
            let run = ScheduleRun { count: kept.runs + 1, ..run };
            move_clock(transaction, id, seen_until)?;
            transaction.run("UPDATE schedule SET runs = runs + 1 WHERE id = ?", [id.to_string()])?;
            if let Some(missed) = missed {
                event::insert(transaction, &of_missed_runs(&kept.schedule, missed, &cause))?;
            }
            event::insert(transaction, &of_run(&run, &cause))?;
            schedule_run::insert(transaction, &run)?;
            request::remember(
                transaction,
                key.as_ref(),
                Answer::ScheduleRun(run.id),
                cause.at.as_millisecond(),
            )?;
            Ok(run)
        })
        .await
    }

    /// Lets a schedule's clock go on without a run.
    pub async fn skip_runs(
        &self,
        id: ScheduleId,
        seen_until: Timestamp,
        missed: Option<Missed>,
        cause: Cause,
    ) -> Result<()> {
        self.transact(move |transaction| {
            let Some(kept) = read(transaction, id)? else { return Ok(()) };
            move_clock(transaction, id, Some(seen_until))?;
            match missed {
                Some(missed) => event::insert(transaction, &of_missed_runs(&kept.schedule, missed, &cause)),
                None => Ok(()),
            }
        })
        .await
    }

    /// The snapshots that a schedule has of a VM, in the order that they were entered in.
    pub async fn snapshots_of_schedule(&self, schedule: ScheduleId, vm: VmId) -> Result<Vec<Snapshot>> {
        self.transact(move |transaction| {
            let sql = "SELECT number FROM snapshot WHERE schedule = ? AND schedule <> '' AND vm = ? ORDER BY number";
            let mut statement = transaction.prepare_cached(sql)?;
            let rows = statement.query_map([schedule.to_string(), vm.to_string()], |row| row.get(0))?;
            let numbers: Vec<i64> = rows.collect::<rusqlite::Result<_>>()?;
            snapshot::read_numbered(transaction, &numbers)
        })
        .await
    }
}

fn read(transaction: &Transaction<'_>, id: ScheduleId) -> Result<Option<KeptSchedule>> {
    let id = id.to_string();
    let row = transaction
        .row("SELECT body, seen_until, runs FROM schedule WHERE id = ?", [&id], |row| {
            Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?, row.get::<_, i64>(2)?))
        })
        .optional()?;
    let Some((body, seen_until, runs)) = row else { return Ok(None) };
    Ok(Some(KeptSchedule {
        schedule: from_json(&body, "schedule")?,
        seen_until: Timestamp::from_millisecond(seen_until).unwrap_or(Timestamp::UNIX_EPOCH),
        runs: runs.unsigned_abs(),
        // It tells how it went, and nothing else goes by it.
        last_run: legible(schedule_run::newest(transaction, &id)).flatten(),
    }))
}

/// What can be read; the rest is told of.
pub(super) fn legible<T>(read: Result<T>) -> Option<T> {
    read.inspect_err(|error| {
        let error: &dyn std::error::Error = error;
        tracing::error!(error, "a schedule, or a run of one, cannot be read: it is passed over");
    })
    .ok()
}

fn move_clock(transaction: &Transaction<'_>, id: ScheduleId, to: Option<Timestamp>) -> Result<()> {
    let Some(to) = to else { return Ok(()) };
    let sql = "UPDATE schedule SET seen_until = ?2 WHERE id = ?1";
    transaction.run(sql, params![id.to_string(), to.as_millisecond()])?;
    Ok(())
}

fn check_name(transaction: &Transaction<'_>, schedule: &Schedule) -> Result<()> {
    let name = &schedule.wish.name;
    let sql = "SELECT id FROM schedule WHERE name = ? AND id <> ?";
    let taken =
        transaction.row(sql, [name.to_string(), schedule.id.to_string()], |row| row.get::<_, String>(0));
    match taken.optional()? {
        None => Ok(()),
        Some(by) => Err(StoreError::ScheduleNameTaken { name: name.clone(), by: parse(&by, "schedule id")? }),
    }
}

fn check_generation(schedule: &Schedule, seen: Option<u64>) -> Result<()> {
    match seen {
        Some(seen) if seen != schedule.generation => {
            Err(StoreError::ScheduleChanged { actual: schedule.generation })
        }
        Some(_) | None => Ok(()),
    }
}
