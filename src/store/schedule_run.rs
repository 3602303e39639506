//! Runs of schedules, and how each stands with each of its VMs: a row of its own, since it is written at each step.
//!
//! Decides nothing of what a step is. Leaves it to `schedule` to say how a run stands, and to `store::schedule` to begin one.

use std::collections::HashMap;

use jiff::Timestamp;
use rusqlite::{Params, Transaction, params};

use super::request::{self, Answer, RequestKey};
use super::schedule::legible;
use super::{Prepared, Result, Store, event, from_json, to_json};
use crate::model::event::Event;
use crate::model::schedule::{RunState, RunVm};
use crate::model::{ScheduleId, ScheduleRun, ScheduleRunId};

/// What a row is, for whoever cannot read it.
const RUN: &str = "run of a schedule";

impl Store {
    /// The run that the same request has begun before, as it is now. Asked first: its schedule may have another name by now.
    pub async fn run_before(&self, key: RequestKey) -> Result<Option<ScheduleRun>> {
        self.transact(move |transaction| match request::find(transaction, Some(&key))? {
            Some(Answer::ScheduleRun(id)) => read(transaction, id),
            Some(_) | None => Ok(None),
        })
        .await
    }

    /// Writes how a run stands with the VM at a place of its list, with what there is to tell of it.
    pub async fn write_run_vm(
        &self,
        run: ScheduleRunId,
        index: usize,
        vm: RunVm,
        told: Option<Event>,
    ) -> Result<()> {
        self.transact(move |transaction| {
            transaction.run(
                "UPDATE schedule_run_vm SET body = ?3 WHERE run = ?1 AND position = ?2",
                params![run.to_string(), position(index), to_json(&vm, RUN)?],
            )?;
            event::insert_all(transaction, told)
        })
        .await
    }

    /// Writes how a run has ended, with what there is to tell of it. Its VMs stay as they were written last. With it its schedule's
    /// clock goes on: whoever is cut off here neither makes up for what was due meanwhile nor forgets to tell of it.
    pub async fn end_run(
        &self,
        run: ScheduleRun,
        seen_until: Option<Timestamp>,
        told: Vec<Event>,
    ) -> Result<()> {
        self.transact(move |transaction| {
            let (id, is_open) = (run.id.to_string(), run.state == RunState::Running);
            let sql = "UPDATE schedule_run SET is_open = ?2, body = ?3 WHERE id = ?1";
            transaction.run(sql, params![id, is_open, body(&run)?])?;
            // Somebody may have set it further since it was looked at.
            let sql = "UPDATE schedule SET seen_until = max(seen_until, ?2) WHERE id = ?1";
            if let Some(seen_until) = seen_until {
                transaction.run(sql, params![run.schedule.id.to_string(), seen_until.as_millisecond()])?;
            }
            event::insert_all(transaction, told)
        })
        .await
    }

    /// The runs that have not ended, the oldest first. One that cannot be read is told of, and holds up no other.
    pub async fn open_runs(&self) -> Result<Vec<ScheduleRun>> {
        self.read(|transaction| {
            let runs = select(transaction, "WHERE is_open ORDER BY rowid", [])?;
            Ok(runs.into_iter().filter_map(legible).collect())
        })
        .await
    }

    /// A run as it stands.
    pub async fn run(&self, id: ScheduleRunId) -> Result<Option<ScheduleRun>> {
        self.read(move |transaction| read(transaction, id)).await
    }

    /// The runs of a schedule, newest first: at most `limit` that are older than `before`. With the number there are.
    /// One that cannot be read is told of, and left out.
    pub async fn runs(
        &self,
        schedule: ScheduleId,
        before: Option<ScheduleRunId>,
        limit: u32,
    ) -> Result<(Vec<ScheduleRun>, u64)> {
        self.read(move |transaction| {
            let schedule = schedule.to_string();
            let sql = "SELECT count(*) FROM schedule_run WHERE schedule = ?";
            let total: i64 = transaction.row(sql, [&schedule], |row| row.get(0))?;
            // Ids are made of the time, and clocks go back.
            let page = "WHERE schedule = ?1
                AND (?2 IS NULL OR rowid < (SELECT rowid FROM schedule_run WHERE id = ?2)) ORDER BY rowid DESC LIMIT ?3";
            let before = before.map(|id| id.to_string());
            let runs = select(transaction, page, params![schedule, before, limit])?;
            Ok((runs.into_iter().filter_map(legible).collect(), total.unsigned_abs()))
        })
        .await
    }
}

/// Enters a run that begins.
pub(super) fn insert(transaction: &Transaction<'_>, run: &ScheduleRun) -> Result<()> {
    let id = run.id.to_string();
    transaction.run(
        "INSERT INTO schedule_run (id, schedule, is_open, started_at, body) VALUES (?, ?, 1, ?, ?)",
        params![id, run.schedule.id.to_string(), run.started_at.as_millisecond(), body(run)?],
    )?;
    for (index, vm) in run.vms.iter().enumerate() {
        let sql = "INSERT INTO schedule_run_vm (run, position, body) VALUES (?, ?, ?)";
        transaction.run(sql, params![id, position(index), to_json(vm, RUN)?])?;
    }
    Ok(())
}

/// A run as it stands.
pub(super) fn read(transaction: &Transaction<'_>, id: ScheduleRunId) -> Result<Option<ScheduleRun>> {
    select(transaction, "WHERE id = ?", [id.to_string()])?.pop().transpose()
}

/// The run of a schedule that was entered last.
pub(super) fn newest(transaction: &Transaction<'_>, schedule: &str) -> Result<Option<ScheduleRun>> {
    select(transaction, "WHERE schedule = ? ORDER BY rowid DESC LIMIT 1", [schedule])?.pop().transpose()
}

/// Ends the runs of a schedule that nobody can go on with: it would wait for them for ever.
pub(super) fn close_illegible(transaction: &Transaction<'_>, schedule: ScheduleId) -> Result<()> {
    let mut statement =
        transaction.prepare_cached("SELECT id FROM schedule_run WHERE is_open AND schedule = ?")?;
    let ids = statement.query_map([schedule.to_string()], |row| row.get(0))?;
    let ids: Vec<String> = ids.collect::<rusqlite::Result<_>>()?;
    for id in ids {
        let is_legible =
            select(transaction, "WHERE id = ?", [&id])?.into_iter().all(|run| legible(run).is_some());
        if !is_legible {
            transaction.run("UPDATE schedule_run SET is_open = 0 WHERE id = ?", [id])?;
        }
    }
    Ok(())
}

/// Whether a run of a schedule has not ended.
pub(super) fn is_running(transaction: &Transaction<'_>, schedule: ScheduleId) -> Result<bool> {
    let sql = "SELECT EXISTS (SELECT 1 FROM schedule_run WHERE schedule = ? AND is_open)";
    Ok(transaction.row(sql, [schedule.to_string()], |row| row.get(0))?)
}

/// Runs with their VMs, in two statements however many there are.
fn select(
    transaction: &Transaction<'_>,
    which: &str,
    values: impl Params,
) -> Result<Vec<Result<ScheduleRun>>> {
    let mut statement = transaction.prepare_cached(&format!("SELECT id, body FROM schedule_run {which}"))?;
    let rows = statement.query_map(values, |row| Ok((row.get(0)?, row.get(1)?)))?;
    let runs: Vec<(String, String)> = rows.collect::<rusqlite::Result<_>>()?;
    let ids: Vec<&str> = runs.iter().map(|(id, _)| id.as_str()).collect();
    let mut statement = transaction.prepare_cached(
        "SELECT run, body FROM schedule_run_vm WHERE run IN (SELECT value FROM json_each(?)) ORDER BY run, position",
    )?;
    let rows = statement.query_map([to_json(&ids, RUN)?], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let mut vms: HashMap<String, Vec<String>> = HashMap::new();
    for row in rows {
        let (run, body) = row?;
        vms.entry(run).or_default().push(body);
    }
    let whole = |(id, body): (String, String)| {
        let bodies = vms.remove(&id).unwrap_or_default();
        let vms = bodies.iter().map(|body| from_json(body, RUN)).collect::<Result<_>>()?;
        Ok(ScheduleRun { vms, ..from_json(&body, RUN)? })
    };
    Ok(runs.into_iter().map(whole).collect())
}

/// Of the run itself: its VMs have rows of their own.
fn body(run: &ScheduleRun) -> Result<String> {
    to_json(&ScheduleRun { vms: Vec::new(), ..run.clone() }, RUN)
}

fn position(index: usize) -> i64 {
    i64::try_from(index).unwrap_or(i64::MAX)
}
