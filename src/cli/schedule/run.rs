//! `vmsnap schedule run` and `runs`: begin a run, wait for it, and how runs read.
//!
//! Decides how long to wait, and which exit code a run has. Leaves what a run does to the daemon, and each snapshot of it to
//! `vmsnap op`.

use std::time::Duration;

use crate::cli::args::RunScheduleArgs;
use crate::cli::connect::request_id;
use crate::cli::failure::{Failure, exit};
use crate::cli::output::{Shown, Text};
use crate::cli::progress::ABSENCE;
use crate::cli::snapshot::PAGE;
use crate::cli::table::Table;
use crate::cli::{Session, output, words};
use crate::proto::v1;

/// Where a run is looked for that was begun just now.
const FEW: i32 = 5;

/// Between two looks. The contract has no watch of runs: they are few, and take seconds at least.
const LOOK: Duration = Duration::from_secs(1);

pub(super) async fn run(session: &Session, args: RunScheduleArgs) -> Result<u8, Failure> {
    let request = v1::RunScheduleRequest { schedule: args.schedule.clone(), request_id: request_id() };
    let answer = session.daemon.schedules().run_schedule(request).await?.into_inner();
    let begun = answer.run.unwrap_or_default();
    if args.no_wait {
        show(session, &begun)?;
        return Ok(0);
    }
    let done = wait(session, begun, &args).await?;
    show(session, &done)?;
    ended(&done)
}

/// Like an operation that failed: it is shown, and the failure told.
fn ended(run: &v1::ScheduleRun) -> Result<u8, Failure> {
    match run.state() {
        v1::ScheduleRunState::Succeeded => Ok(0),
        v1::ScheduleRunState::Partly => Ok(exit::PARTLY),
        v1::ScheduleRunState::Failed | v1::ScheduleRunState::Running | v1::ScheduleRunState::Unspecified => {
            let first = run.vms.iter().find_map(|vm| vm.error.clone()).unwrap_or_default();
            let message = match first.message.as_str() {
                "" if !run.missing_vms.is_empty() => {
                    format!("no VM went well: there is no VM {}", run.missing_vms.join(", "))
                }
                "" => "no VM went well".to_owned(),
                why => format!("no VM went well: {why}"),
            };
            Err(Failure::new(exit::FAILED, message, first.remedy))
        }
    }
}

/// To the end of a run. Leaving never stops it.
async fn wait(
    session: &Session,
    begun: v1::ScheduleRun,
    args: &RunScheduleArgs,
) -> Result<v1::ScheduleRun, Failure> {
    let leave = |code, why: &str| {
        let remedy = format!("look at it with 'vmsnap schedule runs {}'", args.schedule);
        Failure::new(code, format!("{why}; the work goes on"), remedy)
    };
    let deadline = async {
        match args.timeout {
            Some(timeout) => tokio::time::sleep(timeout).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        done = follow(session, begun) => done,
        () = deadline => Err(leave(exit::TIMED_OUT, "it takes longer than that")),
        _ = tokio::signal::ctrl_c() => Err(leave(exit::INTERRUPTED, "interrupted")),
    }
}

/// Over restarts of the daemon, as operations are followed.
async fn follow(session: &Session, mut run: v1::ScheduleRun) -> Result<v1::ScheduleRun, Failure> {
    let (mut away, mut told) = (Duration::ZERO, String::new());
    while run.state() == v1::ScheduleRunState::Running {
        let now = headway(&run);
        if now != told && !session.global.quiet {
            output::complaint(&now);
            told = now;
        }
        tokio::time::sleep(LOOK).await;
        match look(session, &run).await {
            Ok(found) => (run, away) = (found, Duration::ZERO),
            Err(failure) if failure.code == exit::UNAVAILABLE && away < ABSENCE => away += LOOK,
            Err(failure) => return Err(failure),
        }
    }
    Ok(run)
}

/// A run as it is now. The newest are looked through: it began a moment ago. By the schedule's id, for its name may change.
async fn look(session: &Session, run: &v1::ScheduleRun) -> Result<v1::ScheduleRun, Failure> {
    let request = v1::ListScheduleRunsRequest {
        schedule: run.schedule_id.clone(),
        page_size: FEW,
        ..v1::ListScheduleRunsRequest::default()
    };
    let answer = session.daemon.schedules().list_schedule_runs(request).await?.into_inner();
    answer.runs.into_iter().find(|found| found.id == run.id).ok_or_else(|| {
        let remedy = "'vmsnap op list' tells what is under way";
        Failure::new(exit::NOT_FOUND, format!("run {} is not known any more", run.id), remedy)
    })
}

/// What one is told while waiting.
fn headway(run: &v1::ScheduleRun) -> String {
    let (begun, failed) = (run.vms.len(), run.vms.iter().filter(|vm| vm.error.is_some()).count());
    match failed {
        0 => format!("running: {begun} VMs so far"),
        failed => format!("running: {begun} VMs so far, {failed} of them failed or skipped"),
    }
}

pub(super) async fn runs(session: &Session, schedule: String, limit: usize) -> Result<u8, Failure> {
    let page_size = i32::try_from(limit).unwrap_or(PAGE).min(PAGE);
    let mut request = v1::ListScheduleRunsRequest { schedule, page_size, page_token: String::new() };
    let mut answer = session.daemon.schedules().list_schedule_runs(request.clone()).await?.into_inner();
    while !answer.next_page_token.is_empty() && answer.runs.len() < limit {
        request.page_token.clone_from(&answer.next_page_token);
        let mut page = session.daemon.schedules().list_schedule_runs(request.clone()).await?.into_inner();
        answer.runs.append(&mut page.runs);
        answer.next_page_token = page.next_page_token;
    }
    answer.runs.truncate(limit);
    session.output.show(&Shown {
        message: &answer,
        name: "ListScheduleRunsResponse",
        ids: answer.runs.iter().map(|run| run.id.clone()).collect(),
        text: Text::Table(table(&answer.runs)),
    })?;
    Ok(0)
}

/// One a line.
fn table(runs: &[v1::ScheduleRun]) -> Table {
    let mut table = Table::new(&["BEGUN", "DUE", "STATE", "TOOK", "VMS", "FAILED", "PRUNED", "ID"]);
    for run in runs {
        table.row(vec![
            words::time(run.start_time),
            due(run),
            words::schedule_run_state(run.state()),
            took(run),
            run.vms.len().to_string(),
            failures(run).to_string(),
            pruned(run),
            run.id.clone(),
        ]);
    }
    table
}

fn show(session: &Session, run: &v1::ScheduleRun) -> Result<(), Failure> {
    session.output.show(&Shown {
        message: &v1::RunScheduleResponse { run: Some(run.clone()) },
        name: "RunScheduleResponse",
        ids: vec![run.id.clone()],
        text: Text::Lines(details(run)),
    })
}

/// One, with what came of each VM.
fn details(run: &v1::ScheduleRun) -> String {
    let lines = [
        ("run", run.id.clone()),
        ("state", words::schedule_run_state(run.state())),
        ("due", due(run)),
        ("begun", words::time(run.start_time)),
        ("ended", words::time(run.end_time)),
        ("pruned", pruned(run)),
        ("no VM", run.missing_vms.join(", ")),
    ];
    let lines = lines.into_iter().filter(|(_, value)| !value.is_empty());
    let mut lines: Vec<String> = lines.map(|(label, value)| format!("{label:<7} {value}")).collect();
    if !run.vms.is_empty() {
        let mut table = Table::new(&["VM", "SNAPSHOT", "OPERATION", "RESULT"]);
        for vm in &run.vms {
            let (name, snapshot) = (vm.vm_name.clone(), vm.snapshot_id.clone());
            table.row(vec![name, snapshot, vm.operation_id.clone(), result(run, vm)]);
        }
        lines.extend([String::new(), table.render(true)]);
    }
    lines.join("\n")
}

fn result(run: &v1::ScheduleRun, vm: &v1::ScheduleRunVm) -> String {
    match &vm.error {
        Some(error) if error.remedy.is_empty() => error.message.clone(),
        Some(error) => format!("{}; {}", error.message, error.remedy),
        None if run.state() == v1::ScheduleRunState::Running => "under way".to_owned(),
        None => "taken".to_owned(),
    }
}

/// Its state and when it was.
pub(super) fn in_short(run: &v1::ScheduleRun) -> String {
    format!("{} {} ago", words::schedule_run_state(run.state()), words::age(run.start_time))
}

fn due(run: &v1::ScheduleRun) -> String {
    match run.due_time {
        None => "by hand".to_owned(),
        due => words::time(due),
    }
}

fn failures(run: &v1::ScheduleRun) -> usize {
    run.vms.iter().filter(|vm| vm.error.is_some()).count() + run.missing_vms.len()
}

fn pruned(run: &v1::ScheduleRun) -> String {
    match run.pruned_snapshots {
        0 => String::new(),
        count => format!("{count} ({})", words::size(run.pruned_bytes)),
    }
}

/// Nothing while it goes, or if the clock was set back meanwhile.
fn took(run: &v1::ScheduleRun) -> String {
    let (Some(start), Some(end)) = (run.start_time, run.end_time) else { return String::new() };
    let seconds = Some(end.seconds - start.seconds).filter(|seconds| *seconds >= 0);
    words::duration(seconds.map(|seconds| prost_types::Duration { seconds, nanos: 0 }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> prost_types::Timestamp {
        prost_types::Timestamp { seconds, nanos: 0 }
    }

    fn vm(name: &str, error: Option<(&str, &str)>) -> v1::ScheduleRunVm {
        let error = error.map(|(message, remedy)| v1::Error {
            message: message.to_owned(),
            remedy: remedy.to_owned(),
            ..v1::Error::default()
        });
        let snapshot_id = if error.is_none() { "s" } else { "" }.to_owned();
        v1::ScheduleRunVm { vm_name: name.to_owned(), snapshot_id, error, ..v1::ScheduleRunVm::default() }
    }

    fn a_run(state: v1::ScheduleRunState, vms: Vec<v1::ScheduleRunVm>) -> v1::ScheduleRun {
        v1::ScheduleRun { id: "r".to_owned(), state: state.into(), vms, ..v1::ScheduleRun::default() }
    }

    #[test]
    fn a_run_has_the_exit_code_of_its_state() {
        let check = |state, expected: Result<u8, &str>| {
            let run = a_run(state, vec![vm("web", Some(("it is full", "make room")))]);
            let told = ended(&run).map_err(|failure| (failure.code, failure.to_string()));
            assert_eq!(told, expected.map_err(|text| (exit::FAILED, text.to_owned())));
        };
        check(v1::ScheduleRunState::Succeeded, Ok(0));
        check(v1::ScheduleRunState::Partly, Ok(exit::PARTLY));
        let failed = "error: no VM went well: it is full\n  do: make room";
        check(v1::ScheduleRunState::Failed, Err(failed));
    }

    #[test]
    fn runs_as_a_table() {
        let begun = Some(at(1_000));
        let mut ended =
            a_run(v1::ScheduleRunState::Partly, vec![vm("web", None), vm("db", Some(("full", "")))]);
        (ended.start_time, ended.end_time, ended.due_time) = (begun, Some(at(1_090)), begun);
        (ended.pruned_snapshots, ended.pruned_bytes) = (2, 3 << 30);
        let going = v1::ScheduleRun { start_time: begun, ..a_run(v1::ScheduleRunState::Running, Vec::new()) };
        let time = words::time(begun);
        let pad = " ".repeat(time.len() - "by hand".len());
        let expected = format!(
            "{time}  {time}  PARTLY   90s  2  1  2 (3.0 GiB)  r\n{time}  by hand{pad}  RUNNING  -    0  0  -            r"
        );
        assert_eq!(table(&[ended, going]).render(false), expected);
    }

    #[test]
    fn one_with_what_came_of_each_vm() {
        let check = |state, vms, expected: &str| assert_eq!(details(&a_run(state, vms)), expected);
        check(
            v1::ScheduleRunState::Partly,
            vec![vm("web", None), vm("db", Some(("it is full", "make room")))],
            "run     r\nstate   PARTLY\ndue     by hand\n\nVM   SNAPSHOT  OPERATION  RESULT\n\
             web  s         -          taken\ndb   -         -          it is full; make room",
        );
        check(
            v1::ScheduleRunState::Running,
            vec![vm("web", None)],
            "run     r\nstate   RUNNING\ndue     by hand\n\nVM   SNAPSHOT  OPERATION  RESULT\n\
             web  s         -          under way",
        );
        check(v1::ScheduleRunState::Succeeded, Vec::new(), "run     r\nstate   SUCCEEDED\ndue     by hand");
    }
}
