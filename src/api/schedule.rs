//! `ScheduleService`: snapshots by the clock.
//!
//! Decides what a well-formed schedule is, and which fields of one a client may change. Leaves when one runs, which VMs it takes
//! and what it prunes to `schedule`. All calls are about the node: a caller with a scope makes none of them.

use jiff::Timestamp;
use tonic::{Request, Response, Status};

use super::about::About;
use super::status::Violations;
use super::{Answer, Api, answered, asked, convert, generation, status};
use crate::model::schedule::ScheduleWish;
use crate::model::{ScheduleId, ScheduleRun};
use crate::ops::{Asked, OpsError};
use crate::proto::v1;
use crate::proto::v1::preview_schedule_request::Subject;
use crate::proto::v1::schedule_service_server::ScheduleService;
use crate::store::{KeptSchedule, ScheduleEdit, StoreError};

mod list;
mod mask;
mod wish;

/// Runs that a preview names if the client does not say.
const PREVIEWED: usize = 10;

/// Most runs that it names.
const MOST_PREVIEWED: usize = 1000;

/// How often an edit is tried that others are faster than.
const EDIT_TRIES: usize = 10;

#[tonic::async_trait]
impl ScheduleService for Api {
    async fn create_schedule(
        &self,
        request: Request<v1::CreateScheduleRequest>,
    ) -> Answer<v1::CreateScheduleResponse> {
        let by = self.caller(&request).await?.by;
        let message = request.into_inner();
        let asked = asked(by, &message.request_id, status::digest("CreateSchedule", &message), false);
        let kept = if let Some(before) = self.schedule_before(&asked).await? {
            before
        } else {
            let (wish, is_paused) = check_create(&message)?;
            self.schedules.create(wish, is_paused, asked).await.map_err(status::of)?
        };
        Ok(answered(v1::CreateScheduleResponse { schedule: Some(shown(&kept)) }))
    }

    async fn get_schedule(
        &self,
        request: Request<v1::GetScheduleRequest>,
    ) -> Answer<v1::GetScheduleResponse> {
        let kept = self.found_schedule(&request.get_ref().schedule, Violations::default()).await?;
        Ok(Response::new(v1::GetScheduleResponse { schedule: Some(shown(&kept)) }))
    }

    async fn list_schedules(
        &self,
        request: Request<v1::ListSchedulesRequest>,
    ) -> Answer<v1::ListSchedulesResponse> {
        let reach = self.caller(&request).await?.reach;
        list::schedules(self, &reach, request.into_inner()).await
    }

    async fn update_schedule(
        &self,
        request: Request<v1::UpdateScheduleRequest>,
    ) -> Answer<v1::UpdateScheduleResponse> {
        let by = self.caller(&request).await?.by;
        let message = request.into_inner();
        let asked = asked(by, &message.request_id, status::digest("UpdateSchedule", &message), false);
        let kept = match self.schedule_before(&asked).await? {
            Some(kept) => kept,
            None => self.updated_schedule(&message, &asked).await?,
        };
        Ok(answered(v1::UpdateScheduleResponse { schedule: Some(shown(&kept)) }))
    }

    async fn delete_schedule(
        &self,
        request: Request<v1::DeleteScheduleRequest>,
    ) -> Answer<v1::DeleteScheduleResponse> {
        let by = self.caller(&request).await?.by;
        let message = request.into_inner();
        let asked = asked(by, &message.request_id, status::digest("DeleteSchedule", &message), false);
        let id = if let Some(deleted) = self.scheduled_before(&asked).await? {
            deleted
        } else {
            let mut violations = Violations::default();
            violations.request_id(&message.request_id);
            let seen = violations.take("etag", generation(&message.etag)).flatten();
            let id = self.found_schedule(&message.schedule, violations).await?.schedule.id;
            self.schedules.delete(id, seen, asked).await.map_err(status::of)?;
            id
        };
        let mut answer = Response::new(v1::DeleteScheduleResponse {});
        answer.extensions_mut().insert(About(format!("schedule {id}")));
        Ok(answer)
    }

    async fn pause_schedule(
        &self,
        request: Request<v1::PauseScheduleRequest>,
    ) -> Answer<v1::PauseScheduleResponse> {
        let by = self.caller(&request).await?.by;
        let message = request.into_inner();
        let asked = asked(by, &message.request_id, status::digest("PauseSchedule", &message), false);
        let which = (message.schedule.as_str(), message.request_id.as_str());
        let schedule = self.steered_schedule(which, ScheduleEdit::Pause, asked).await?;
        Ok(answered(v1::PauseScheduleResponse { schedule: Some(schedule) }))
    }

    async fn resume_schedule(
        &self,
        request: Request<v1::ResumeScheduleRequest>,
    ) -> Answer<v1::ResumeScheduleResponse> {
        let by = self.caller(&request).await?.by;
        let message = request.into_inner();
        let asked = asked(by, &message.request_id, status::digest("ResumeSchedule", &message), false);
        let which = (message.schedule.as_str(), message.request_id.as_str());
        let schedule = self.steered_schedule(which, ScheduleEdit::Resume, asked).await?;
        Ok(answered(v1::ResumeScheduleResponse { schedule: Some(schedule) }))
    }

    async fn run_schedule(
        &self,
        request: Request<v1::RunScheduleRequest>,
    ) -> Answer<v1::RunScheduleResponse> {
        let by = self.caller(&request).await?.by;
        let message = request.into_inner();
        let asked = asked(by, &message.request_id, status::digest("RunSchedule", &message), false);
        let run = if let Some(begun) = self.run_before(&asked).await? {
            begun
        } else {
            let mut violations = Violations::default();
            violations.request_id(&message.request_id);
            let id = self.found_schedule(&message.schedule, violations).await?.schedule.id;
            self.schedules.run_now(id, asked).await.map_err(status::of)?
        };
        Ok(answered(v1::RunScheduleResponse { run: Some(convert::schedule_run(&run)) }))
    }

    async fn preview_schedule(
        &self,
        request: Request<v1::PreviewScheduleRequest>,
    ) -> Answer<v1::PreviewScheduleResponse> {
        let message = request.into_inner();
        let mut violations = Violations::default();
        let runs = violations.take("run_count", run_count(message.run_count)).unwrap_or_default();
        let subject = violations.take("schedule", message.subject.ok_or("name one, or give a draft"));
        let draft = match &subject {
            Some(Subject::Draft(draft)) => violations.take_new_schedule("draft", draft),
            Some(Subject::Schedule(wanted)) => {
                violations.required("schedule", wanted);
                None
            }
            None => None,
        };
        violations.check()?;
        let (wish, id) = match subject {
            Some(Subject::Schedule(wanted)) => {
                let schedule = self.schedules.find(&wanted).await.map_err(status::of)?.schedule;
                (schedule.wish, Some(schedule.id))
            }
            Some(Subject::Draft(_)) | None => (draft.expect("what is none was refused"), None),
        };
        let preview = self.schedules.preview(&wish, id, runs).await.map_err(status::of)?;
        Ok(Response::new(convert::preview(&preview, &wish.retention)))
    }

    async fn list_schedule_runs(
        &self,
        request: Request<v1::ListScheduleRunsRequest>,
    ) -> Answer<v1::ListScheduleRunsResponse> {
        list::runs(self, request.into_inner()).await
    }
}

impl Api {
    /// The schedule of a name or an id, if nothing else is wrong with the request.
    async fn found_schedule(&self, wanted: &str, mut violations: Violations) -> Result<KeptSchedule, Status> {
        violations.required("schedule", wanted);
        violations.check()?;
        self.schedules.find(wanted).await.map_err(status::of)
    }

    /// The schedule that the same request has made, changed or deleted before.
    async fn scheduled_before(&self, asked: &Asked) -> Result<Option<ScheduleId>, Status> {
        let Some(key) = asked.key.clone() else { return Ok(None) };
        self.engine.store().scheduled_before(key).await.map_err(|error| status::of(error.into()))
    }

    /// That schedule as it is now.
    async fn schedule_before(&self, asked: &Asked) -> Result<Option<KeptSchedule>, Status> {
        let Some(id) = self.scheduled_before(asked).await? else { return Ok(None) };
        self.schedules.find(&id.to_string()).await.map(Some).map_err(status::of)
    }

    /// The run that the same request has begun before, as it is now.
    async fn run_before(&self, asked: &Asked) -> Result<Option<ScheduleRun>, Status> {
        let Some(key) = asked.key.clone() else { return Ok(None) };
        self.engine.store().run_before(key).await.map_err(|error| status::of(error.into()))
    }

    /// Lets a schedule rest or go on, for a request that says no more than which.
    async fn steered_schedule(
        &self,
        (wanted, request_id): (&str, &str),
        edit: ScheduleEdit,
        asked: Asked,
    ) -> Result<v1::Schedule, Status> {
        if let Some(kept) = self.schedule_before(&asked).await? {
            return Ok(shown(&kept));
        }
        let mut violations = Violations::default();
        violations.request_id(request_id);
        let id = self.found_schedule(wanted, violations).await?.schedule.id;
        let kept = self.schedules.edit(id, edit, None, asked).await.map_err(status::of)?;
        Ok(shown(&kept))
    }

    /// Changes what a request names, and nothing that others have changed meanwhile.
    async fn updated_schedule(
        &self,
        message: &v1::UpdateScheduleRequest,
        asked: &Asked,
    ) -> Result<KeptSchedule, Status> {
        let mut tries = 0;
        loop {
            let update = self.check_update(message).await?;
            let edit = ScheduleEdit::Set(Box::new(update.wish));
            let edited = self.schedules.edit(update.id, edit, Some(update.seen), asked.clone()).await;
            tries += 1;
            match edited {
                Err(OpsError::Store(StoreError::ScheduleChanged { .. }))
                    if message.etag.is_empty() && tries < EDIT_TRIES => {}
                edited => return edited.map_err(status::of),
            }
        }
    }

    /// What an update comes to, of the schedule as it is now.
    async fn check_update(&self, message: &v1::UpdateScheduleRequest) -> Result<Update, Status> {
        let mut violations = Violations::default();
        violations.request_id(&message.request_id);
        violations.required("schedule", &message.schedule);
        let seen = violations.take("etag", generation(&message.etag)).flatten();
        let paths = message.update_mask.as_ref().map_or(&[][..], |mask| mask.paths.as_slice());
        if paths.is_empty() {
            violations.add("update_mask", "it names nothing to change");
        }
        let found = self.schedules.find(&message.schedule).await;
        let before = found.as_ref().map(|kept| convert::schedule_wish(&kept.schedule.wish));
        let values = message.values.clone().unwrap_or_default();
        let after = mask::with(&mut violations, before.unwrap_or_default(), &values, paths);
        // What is wrong with one that there is not yet nobody can tell.
        let wish = found.is_ok().then(|| violations.take_schedule("values", &after)).flatten();
        violations.check()?;
        let schedule = found.map_err(status::of)?.schedule;
        let wish = wish.expect("what is no schedule was refused");
        Ok(Update { id: schedule.id, wish, seen: seen.unwrap_or(schedule.generation) })
    }
}

/// A change of a schedule.
struct Update {
    id: ScheduleId,
    wish: ScheduleWish,
    /// The generation that it is meant for.
    seen: u64,
}

/// A new schedule, and whether it rests.
fn check_create(message: &v1::CreateScheduleRequest) -> Result<(ScheduleWish, bool), Status> {
    let mut violations = Violations::default();
    violations.request_id(&message.request_id);
    let asked = violations.take("schedule", message.schedule.as_ref().ok_or("it is missing"));
    let wish = asked.and_then(|asked| violations.take_new_schedule("schedule", asked));
    violations.check()?;
    let is_paused = asked.is_some_and(|asked| asked.paused);
    Ok((wish.expect("what is no schedule was refused"), is_paused))
}

fn run_count(asked: i32) -> Result<usize, String> {
    let wanted = usize::try_from(asked).ok().filter(|wanted| *wanted <= MOST_PREVIEWED);
    let wanted = wanted.map(|wanted| if wanted == 0 { PREVIEWED } else { wanted });
    wanted.ok_or_else(|| format!("from 1 to {MOST_PREVIEWED}, or 0 for {PREVIEWED}"))
}

fn shown(kept: &KeptSchedule) -> v1::Schedule {
    convert::schedule(kept, Timestamp::now())
}
