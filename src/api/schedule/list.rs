//! Lists of schedules and of their runs. There are a handful of the first: they are filtered and ordered here.

use std::cmp::Ordering;

use jiff::Timestamp;
use tonic::{Response, Status};

use crate::api::{Answer, Api, Reach, convert, paging, status};
use crate::model::ScheduleRunId;
use crate::proto::v1;

/// Most runs of one page.
const RUNS: u32 = 25;

/// A page of schedules.
pub(super) async fn schedules(
    api: &Api,
    reach: &Reach,
    mut request: v1::ListSchedulesRequest,
) -> Answer<v1::ListSchedulesResponse> {
    let limit = usize::try_from(paging::size(request.page_size)?).unwrap_or(usize::MAX);
    let token = std::mem::take(&mut request.page_token);
    request.page_size = 0;
    let query = status::digest("ListSchedules", &request);
    let order = Order::parse(&request.order_by)?;
    let after = paging::position(&query, &token)?;
    let mut schedules = matching(api, reach, request.filter.unwrap_or_default()).await?;
    schedules.sort_by_cached_key(|schedule| order.place(schedule));
    if order.is_descending {
        schedules.reverse();
    }
    let total_size = i64::try_from(schedules.len()).unwrap_or(i64::MAX);
    if let Some(last) = after {
        let beyond = if order.is_descending { Ordering::Less } else { Ordering::Greater };
        schedules.retain(|schedule| order.place(schedule).as_str().cmp(last) == beyond);
    }
    let next_page_token = match schedules.get(limit.saturating_sub(1)) {
        Some(last) if schedules.len() > limit => paging::token(&query, &order.place(last)),
        Some(_) | None => String::new(),
    };
    schedules.truncate(limit);
    Ok(Response::new(v1::ListSchedulesResponse { schedules, next_page_token, total_size }))
}

/// A page of the runs of a schedule.
pub(super) async fn runs(
    api: &Api,
    mut request: v1::ListScheduleRunsRequest,
) -> Answer<v1::ListScheduleRunsResponse> {
    // Each may have hundreds of VMs.
    let limit = paging::size(request.page_size)?.min(RUNS);
    let token = std::mem::take(&mut request.page_token);
    request.page_size = 0;
    let query = status::digest("ListScheduleRuns", &request);
    let before = paging::position(&query, &token)?;
    let before = before.map(str::parse::<ScheduleRunId>).transpose().map_err(|_| paging::invalid())?;
    let id = api.found_schedule(&request.schedule, status::Violations::default()).await?.schedule.id;
    let runs = api.schedules.runs(id, before, limit.saturating_add(1)).await;
    let (mut runs, total) = runs.map_err(status::of)?;
    let has_more = runs.len() > usize::try_from(limit).unwrap_or(usize::MAX);
    if has_more {
        runs.pop();
    }
    let last = runs.last().filter(|_| has_more);
    Ok(Response::new(v1::ListScheduleRunsResponse {
        next_page_token: last.map(|last| paging::token(&query, &last.id.to_string())).unwrap_or_default(),
        total_size: i64::try_from(total).unwrap_or(i64::MAX),
        runs: runs.iter().map(convert::schedule_run).collect(),
    }))
}

/// The schedules that a filter lets through. The hypervisor is asked for the VM and what is written on it, once for all of them.
async fn matching(api: &Api, reach: &Reach, filter: v1::ScheduleFilter) -> Result<Vec<v1::Schedule>, Status> {
    let mut violations = status::Violations::default();
    violations.label("filter.vm", &filter.vm);
    violations.label("filter.name_prefix", &filter.name_prefix);
    violations.check()?;
    let vm = match filter.vm.as_str() {
        "" => None,
        vm => Some(api.found_vm(reach, vm).await.map_err(status::of)?),
    };
    let mut all = api.schedules.all().await.map_err(status::of)?;
    all.retain(|kept| {
        let is_named = kept.schedule.wish.name.as_str().starts_with(&filter.name_prefix);
        is_named && filter.paused.is_none_or(|paused| paused == kept.schedule.is_paused)
    });
    if let Some(vm) = vm {
        let labels = if all.iter().any(|kept| kept.schedule.wish.selector.goes_by_labels()) {
            api.engine.labels(Some(vm.id)).await.map_err(status::of)?.remove(&vm.id)
        } else {
            None
        };
        let labels = labels.unwrap_or_default();
        all.retain(|kept| kept.schedule.wish.selector.takes(vm.id, &vm.name, &labels));
    }
    let now = Timestamp::now();
    Ok(all.iter().map(|kept| convert::schedule(kept, now)).collect())
}

/// By what schedules are ordered.
struct Order {
    by: By,
    is_descending: bool,
}

#[derive(Clone, Copy)]
enum By {
    Name,
    Created,
    NextRun,
}

impl Order {
    fn parse(order_by: &str) -> Result<Self, Status> {
        let (field, is_descending) = paging::order(order_by);
        let by = match field {
            "" if order_by.is_empty() => By::Name,
            "name" => By::Name,
            "create_time" => By::Created,
            "next_run_time" => By::NextRun,
            _ => {
                let allowed = "name, create_time or next_run_time, and if you like \" desc\" behind it";
                return Err(paging::bad_order(allowed));
            }
        };
        Ok(Self { by, is_descending })
    }

    /// Where a schedule stands: a text that sorts as the schedules do, different for each. One that does not run again is last.
    fn place(&self, schedule: &v1::Schedule) -> String {
        let time = |at: Option<prost_types::Timestamp>| match at {
            Some(at) => format!("{:020}.{:09}", at.seconds.max(0), at.nanos),
            None => "~".to_owned(),
        };
        let key = match self.by {
            By::Name => schedule.name.clone(),
            By::Created => time(schedule.create_time),
            By::NextRun => time(schedule.next_run_time),
        };
        format!("{key} {}", schedule.id)
    }
}
