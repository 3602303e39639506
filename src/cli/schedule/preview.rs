//! `vmsnap schedule preview`, and `create --dry-run`: what a schedule will do.
//!
//! Decides how a plan reads. Leaves to the daemon what the plan is: each reason is shown in its words.

use std::collections::BTreeMap;

use jiff::tz::TimeZone;

use crate::cli::failure::Failure;
use crate::cli::output::{Shown, Text};
use crate::cli::snapshot::PAGE;
use crate::cli::table::Table;
use crate::cli::{Session, words};
use crate::proto::v1;
use crate::proto::v1::preview_schedule_request::Subject;

/// Of a schedule that is there.
pub(super) async fn of_schedule(session: &Session, schedule: String, runs: i32) -> Result<u8, Failure> {
    // The preview does not tell the zone that its times are in, nor whether it rests.
    let request = v1::GetScheduleRequest { schedule };
    let found = session.daemon.schedules().get_schedule(request).await?.into_inner();
    let found = found.schedule.unwrap_or_default();
    preview(session, Subject::Schedule(found.id.clone()), &found, runs).await
}

/// Of one that is not there yet.
pub(super) async fn of_draft(session: &Session, draft: v1::Schedule) -> Result<u8, Failure> {
    preview(session, Subject::Draft(draft.clone()), &draft, 0).await
}

/// Gives 0 for a pruning that would be refused, too: it was asked what will be, and that is told.
async fn preview(
    session: &Session,
    subject: Subject,
    schedule: &v1::Schedule,
    run_count: i32,
) -> Result<u8, Failure> {
    let request = v1::PreviewScheduleRequest { subject: Some(subject), run_count };
    let answer = session.daemon.schedules().preview_schedule(request).await?.into_inner();
    let names = names(session, &answer).await?;
    let place = Place { local: TimeZone::system(), zone: zone(schedule) };
    session.output.show(&Shown {
        message: &answer,
        name: "PreviewScheduleResponse",
        ids: answer.vm_ids.clone(),
        text: Text::Lines(text(&answer, &names, schedule.paused, &place)),
    })?;
    Ok(0)
}

/// The VMs' names by their ids: the preview names only those that have snapshots or would be skipped.
async fn names(
    session: &Session,
    answer: &v1::PreviewScheduleResponse,
) -> Result<BTreeMap<String, String>, Failure> {
    let decided = answer.decisions.iter().map(|decision| (&decision.vm_id, &decision.vm_name));
    let skipped = answer.skipped_vms.iter().map(|vm| (&vm.vm_id, &vm.vm_name));
    let known = decided.chain(skipped).map(|(id, name)| (id.clone(), name.clone()));
    let mut names: BTreeMap<String, String> = known.collect();
    if answer.vm_ids.iter().all(|id| names.contains_key(id)) {
        return Ok(names);
    }
    let mut request = v1::ListVmsRequest { page_size: PAGE, ..v1::ListVmsRequest::default() };
    loop {
        let page = session.daemon.vms().list_vms(request.clone()).await?.into_inner();
        names.extend(page.vms.into_iter().map(|vm| (vm.id, vm.name)));
        if page.next_page_token.is_empty() {
            return Ok(names);
        }
        request.page_token = page.next_page_token;
    }
}

/// Where people are who read times.
struct Place {
    /// Here.
    local: TimeZone,
    /// Where the schedule is; None if this machine does not know that zone.
    zone: Option<TimeZone>,
}

fn zone(schedule: &v1::Schedule) -> Option<TimeZone> {
    let name = schedule.timing.as_ref().map(|timing| timing.time_zone.as_str()).unwrap_or_default();
    if name.is_empty() { Some(TimeZone::UTC) } else { TimeZone::get(name).ok() }
}

fn text(
    answer: &v1::PreviewScheduleResponse,
    names: &BTreeMap<String, String>,
    is_paused: bool,
    place: &Place,
) -> String {
    let name = |id: &String| names.get(id).unwrap_or(id).clone();
    let vms = match &answer.vm_ids[..] {
        [] => "vms: none now".to_owned(),
        ids => format!("vms: {}", ids.iter().map(name).collect::<Vec<_>>().join(", ")),
    };
    let mut parts = vec![runs(&answer.run_times, place), vms];
    if is_paused {
        parts.insert(0, "it rests: nothing of this is done until it is resumed".to_owned());
    }
    if !answer.missing_vms.is_empty() {
        parts.push(format!("there is no VM {}", answer.missing_vms.join(", ")));
    }
    parts.extend(skipped(&answer.skipped_vms));
    parts.extend(decisions(&answer.decisions));
    if answer.decisions.iter().any(|decision| !decision.keep) {
        parts.push(format!("pruning would give back about {}", words::size(answer.bytes_freed)));
    }
    if let Some(refusal) = &answer.refusal {
        let mut lines = vec![format!("pruning would be refused: {}", refusal.message)];
        lines.extend((!refusal.remedy.is_empty()).then(|| format!("  do: {}", refusal.remedy)));
        parts.push(lines.join("\n"));
    }
    parts.join("\n\n")
}

/// In the schedule's own zone, too: that is where its cron expression is read.
fn runs(times: &[prost_types::Timestamp], place: &Place) -> String {
    if times.is_empty() {
        return "it will not run".to_owned();
    }
    let mut table = Table::new(&["NEXT RUNS", "IN ITS TIME ZONE"]);
    for time in times {
        let there = place.zone.as_ref().map(|zone| words::time_in(*time, zone)).unwrap_or_default();
        table.row(vec![words::time_in(*time, &place.local), there]);
    }
    table.render(true)
}

/// Which VMs nothing would be taken of.
fn skipped(vms: &[v1::SkippedVm]) -> Option<String> {
    let mut table = Table::new(&["SKIPPED", "WHY"]);
    for vm in vms {
        let why = vm.error.as_ref().map(|error| error.message.clone()).unwrap_or_default();
        table.row(vec![vm.vm_name.clone(), why]);
    }
    (!vms.is_empty()).then(|| table.render(true))
}

/// A table for each VM, in the order in which the daemon names them.
fn decisions(all: &[v1::RetentionDecision]) -> Vec<String> {
    let mut vms: Vec<Vec<&v1::RetentionDecision>> = Vec::new();
    for decision in all {
        match vms.iter_mut().find(|vm| vm[0].vm_id == decision.vm_id) {
            Some(vm) => vm.push(decision),
            None => vms.push(vec![decision]),
        }
    }
    vms.iter().map(|vm| of_vm(vm)).collect()
}

fn of_vm(decisions: &[&v1::RetentionDecision]) -> String {
    let mut table = Table::new(&["SNAPSHOT", "CREATED", "FATE", "WHY"]);
    for decision in decisions {
        table.row(vec![
            decision.snapshot_name.clone(),
            words::time(decision.create_time),
            if decision.keep { "KEEP" } else { "DELETE" }.to_owned(),
            decision.reasons.join(", "),
        ]);
    }
    let name = decisions.first().map(|decision| decision.vm_name.as_str()).unwrap_or_default();
    let kept = decisions.iter().filter(|decision| decision.keep).count();
    format!("{name}: {kept} stay, {} go\n{}", decisions.len() - kept, table.render(true))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As it reads in London.
    fn check(answer: &v1::PreviewScheduleResponse, zone: Option<&str>, is_paused: bool, expected: &str) {
        let names = [("1".to_owned(), "web".to_owned())].into();
        let local = TimeZone::get("Europe/London").unwrap();
        let place = Place { local, zone: zone.map(|zone| TimeZone::get(zone).unwrap()) };
        assert_eq!(text(answer, &names, is_paused, &place), expected);
    }

    fn decision(vm: &str, snapshot: &str, keep: bool, reasons: &[&str]) -> v1::RetentionDecision {
        v1::RetentionDecision {
            vm_id: vm.to_owned(),
            vm_name: format!("vm-{vm}"),
            snapshot_name: snapshot.to_owned(),
            keep,
            reasons: reasons.iter().map(|reason| (*reason).to_owned()).collect(),
            ..v1::RetentionDecision::default()
        }
    }

    #[test]
    fn times_are_told_here_and_there() {
        let summer = prost_types::Timestamp { seconds: 1_792_803_600, nanos: 0 };
        let winter = prost_types::Timestamp { seconds: 1_792_980_000, nanos: 0 };
        let answer = v1::PreviewScheduleResponse {
            run_times: vec![summer, winter],
            vm_ids: vec!["1".to_owned(), "2".to_owned()],
            ..v1::PreviewScheduleResponse::default()
        };
        let there = "NEXT RUNS                IN ITS TIME ZONE\n\
                     2026-10-24 02:00:00 BST  2026-10-24 03:00:00 CEST\n\
                     2026-10-26 02:00:00 GMT  2026-10-26 03:00:00 CET\n\nvms: web, 2";
        check(&answer, Some("Europe/Berlin"), false, there);
        let unknown = "NEXT RUNS                IN ITS TIME ZONE\n2026-10-24 02:00:00 BST  -\n\
                       2026-10-26 02:00:00 GMT  -\n\nvms: web, 2";
        check(&answer, None, false, unknown);
    }

    #[test]
    fn each_snapshot_has_its_fate_and_why() {
        let answer = v1::PreviewScheduleResponse {
            decisions: vec![
                decision("1", "a", false, &["no rule keeps it"]),
                decision("2", "b", true, &["held by audit"]),
                decision("1", "c", true, &["last 1 of 3", "daily 1 of 7"]),
            ],
            bytes_freed: 3 << 30,
            ..v1::PreviewScheduleResponse::default()
        };
        let plan = "it will not run\n\nvms: none now\n\n\
                    vm-1: 1 stay, 1 go\nSNAPSHOT  CREATED  FATE    WHY\n\
                    a         -        DELETE  no rule keeps it\n\
                    c         -        KEEP    last 1 of 3, daily 1 of 7\n\n\
                    vm-2: 1 stay, 0 go\nSNAPSHOT  CREATED  FATE  WHY\nb         -        KEEP  held by audit\n\n\
                    pruning would give back about 3.0 GiB";
        check(&answer, None, false, plan);
        let refusal = v1::Error {
            message: "too few".to_owned(),
            remedy: "keep more".to_owned(),
            ..v1::Error::default()
        };
        let refused = v1::PreviewScheduleResponse { refusal: Some(refusal), ..answer };
        let rests = "it rests: nothing of this is done until it is resumed";
        let why = "pruning would be refused: too few\n  do: keep more";
        check(&refused, None, true, &format!("{rests}\n\n{plan}\n\n{why}"));
    }

    #[test]
    fn who_is_skipped_and_who_is_missing() {
        let skipped = |name: &str, why: &str| v1::SkippedVm {
            vm_name: name.to_owned(),
            error: Some(v1::Error { message: why.to_owned(), ..v1::Error::default() }),
            ..v1::SkippedVm::default()
        };
        let answer = v1::PreviewScheduleResponse {
            vm_ids: vec!["1".to_owned()],
            skipped_vms: vec![skipped("web", "it is full"), skipped("database", "it is too deep")],
            missing_vms: vec!["a".to_owned(), "b".to_owned()],
            ..v1::PreviewScheduleResponse::default()
        };
        let plan = "it will not run\n\nvms: web\n\nthere is no VM a, b\n\n\
                    SKIPPED   WHY\nweb       it is full\ndatabase  it is too deep";
        check(&answer, None, false, plan);
    }
}
