//! `vmsnap schedule`: snapshots by the clock, and which of them to keep.
//!
//! Decides which call a verb is, and what is asked before one. Leaves to `request` what is asked for, to `show` how schedules
//! read, to `preview` and `run` theirs. Computes neither times nor what retention keeps: the daemon says both.

use super::args::{CreateScheduleArgs, ScheduleListArgs, ScheduleVerb, SetScheduleArgs, Sure};
use super::ask::confirm;
use super::connect::request_id;
use super::failure::{Failure, exit};
use super::output::{Shown, Text};
use super::{Session, output, words};
use crate::proto::v1;

mod preview;
mod request;
mod run;
mod show;

pub(super) async fn carry_out(session: &Session, verb: ScheduleVerb) -> Result<u8, Failure> {
    match verb {
        ScheduleVerb::Create(args) => create(session, *args).await,
        ScheduleVerb::List(args) => list(session, args).await,
        ScheduleVerb::Show { schedule } => {
            let request = v1::GetScheduleRequest { schedule };
            let answer = session.daemon.schedules().get_schedule(request).await?.into_inner();
            whole(session, &answer, "GetScheduleResponse", answer.schedule.as_ref())
        }
        ScheduleVerb::Set(args) => set(session, *args).await,
        ScheduleVerb::Pause { schedule } => pause(session, schedule).await,
        ScheduleVerb::Resume { schedule } => resume(session, schedule).await,
        ScheduleVerb::Run(args) => run::run(session, args).await,
        ScheduleVerb::Preview { schedule, runs } => preview::of_schedule(session, schedule, runs).await,
        ScheduleVerb::Runs { schedule, limit } => run::runs(session, schedule, limit).await,
        ScheduleVerb::Delete { schedules, sure } => delete(session, schedules, sure).await,
    }
}

async fn create(session: &Session, args: CreateScheduleArgs) -> Result<u8, Failure> {
    let is_dry = args.dry_run;
    let draft = request::draft(args);
    if is_dry {
        return preview::of_draft(session, draft).await;
    }
    let request = v1::CreateScheduleRequest { schedule: Some(draft), request_id: request_id() };
    let answer = session.daemon.schedules().create_schedule(request).await?.into_inner();
    whole(session, &answer, "CreateScheduleResponse", answer.schedule.as_ref())
}

async fn set(session: &Session, args: SetScheduleArgs) -> Result<u8, Failure> {
    let request = request::change(args)?;
    let answer = session.daemon.schedules().update_schedule(request).await?.into_inner();
    whole(session, &answer, "UpdateScheduleResponse", answer.schedule.as_ref())
}

/// All pages as one answer.
async fn list(session: &Session, args: ScheduleListArgs) -> Result<u8, Failure> {
    let mut request = request::list(args);
    let mut answer = session.daemon.schedules().list_schedules(request.clone()).await?.into_inner();
    while !answer.next_page_token.is_empty() {
        request.page_token.clone_from(&answer.next_page_token);
        let mut page = session.daemon.schedules().list_schedules(request.clone()).await?.into_inner();
        answer.schedules.append(&mut page.schedules);
        answer.next_page_token = page.next_page_token;
    }
    session.output.show(&Shown {
        message: &answer,
        name: "ListSchedulesResponse",
        ids: answer.schedules.iter().map(|schedule| schedule.id.clone()).collect(),
        text: Text::Table(show::table(&answer.schedules)),
    })?;
    Ok(0)
}

async fn pause(session: &Session, schedule: String) -> Result<u8, Failure> {
    let request = v1::PauseScheduleRequest { schedule, request_id: request_id() };
    let answer = session.daemon.schedules().pause_schedule(request).await?.into_inner();
    let schedule = answer.schedule.clone().unwrap_or_default();
    let told = format!("{} rests", schedule.name);
    tell(session, &answer, "PauseScheduleResponse", schedule.id, told)
}

async fn resume(session: &Session, schedule: String) -> Result<u8, Failure> {
    let request = v1::ResumeScheduleRequest { schedule, request_id: request_id() };
    let answer = session.daemon.schedules().resume_schedule(request).await?.into_inner();
    let schedule = answer.schedule.clone().unwrap_or_default();
    let told = match words::time(schedule.next_run_time) {
        never if never.is_empty() => format!("{} goes on", schedule.name),
        next => format!("{} goes on, at {next}", schedule.name),
    };
    tell(session, &answer, "ResumeScheduleResponse", schedule.id, told)
}

/// One that is not there is told before any of the others goes.
async fn delete(session: &Session, names: Vec<String>, sure: Sure) -> Result<u8, Failure> {
    let mut schedules = Vec::new();
    for schedule in names {
        let request = v1::GetScheduleRequest { schedule };
        let answer = session.daemon.schedules().get_schedule(request).await?.into_inner();
        schedules.push(answer.schedule.unwrap_or_default());
    }
    if !sure.yes {
        output::complaint(&show::table(&schedules).render(true));
        output::complaint("Their snapshots stay, and no schedule prunes them from then on.");
        let names: Vec<&str> = schedules.iter().map(|schedule| schedule.name.as_str()).collect();
        confirm(&format!("Delete {}?", names.join(", ")))?;
    }
    delete_each(session, schedules).await
}

/// One after the other; one that fails does not hold up the others.
async fn delete_each(session: &Session, schedules: Vec<v1::Schedule>) -> Result<u8, Failure> {
    let all = schedules.len();
    let mut failures = Vec::new();
    for schedule in schedules {
        let name = schedule.name.clone();
        match delete_one(session, schedule).await {
            Ok(()) => {}
            Err(failure) if all == 1 => return Err(failure),
            Err(failure) => {
                output::complaint(&format!("{name}: {failure}"));
                failures.push(failure.code);
            }
        }
    }
    if failures.is_empty() {
        return Ok(0);
    }
    output::complaint(&format!("{} of {all} schedules failed", failures.len()));
    Ok(if failures.len() < all { exit::PARTLY } else { failures[0] })
}

/// As it was when it was shown: the etag sees to that.
async fn delete_one(session: &Session, schedule: v1::Schedule) -> Result<(), Failure> {
    let request = v1::DeleteScheduleRequest {
        schedule: schedule.id.clone(),
        etag: schedule.etag,
        request_id: request_id(),
    };
    let answer = session.daemon.schedules().delete_schedule(request).await?.into_inner();
    let told = format!("{} deleted; its snapshots stay", schedule.name);
    tell(session, &answer, "DeleteScheduleResponse", schedule.id, told).map(|_| ())
}

/// A schedule as it is now.
fn whole<M: prost::Message>(
    session: &Session,
    message: &M,
    name: &'static str,
    schedule: Option<&v1::Schedule>,
) -> Result<u8, Failure> {
    let id = schedule.map(|schedule| schedule.id.clone()).unwrap_or_default();
    tell(session, message, name, id, schedule.map(show::details).unwrap_or_default())
}

fn tell<M: prost::Message>(
    session: &Session,
    message: &M,
    name: &'static str,
    id: String,
    text: String,
) -> Result<u8, Failure> {
    session.output.show(&Shown { message, name, ids: vec![id], text: Text::Lines(text) })?;
    Ok(0)
}
