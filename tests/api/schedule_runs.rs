//! What schedules do: they take, keep and prune as their previews say, through the ordinary operations. How they are written
//! down is in `schedules`.

use std::collections::BTreeSet;
use std::time::Duration;

use tonic::Code;
use tonic_types::StatusExt;
use vmsnap::host::sim::{Call, Complaint, Fault, Method, Mishap, Moment, Trigger};
use vmsnap::proto::v1;
use vmsnap::proto::v1::preview_schedule_request::Subject;

use super::client::{json, succeed};
use super::node::{Node, PATIENCE, assert_refused, oldest_first};
use super::schedules::{made, nightly, of_vms};

/// One with names that tell which run it was.
fn counted(keep_last: u32) -> v1::Schedule {
    let template = v1::SnapshotTemplate { name: "{schedule}-{count}".to_owned(), ..Default::default() };
    let retention = v1::Retention { keep_last, ..Default::default() };
    v1::Schedule { template: Some(template), retention: Some(retention), ..nightly("nightly") }
}

fn run(request_id: &str) -> v1::RunScheduleRequest {
    v1::RunScheduleRequest { schedule: "nightly".to_owned(), request_id: request_id.to_owned() }
}

async fn runs(node: &Node) -> Vec<v1::ScheduleRun> {
    let request = v1::ListScheduleRunsRequest { schedule: "nightly".to_owned(), ..Default::default() };
    node.schedules().list_schedule_runs(request).await.unwrap().into_inner().runs
}

/// Waits until the runs are as wanted: nobody can follow one.
async fn until(node: &Node, what: &str, wanted: impl Fn(&[v1::ScheduleRun]) -> bool) -> Vec<v1::ScheduleRun> {
    let look = async {
        loop {
            let runs = runs(node).await;
            if wanted(&runs) {
                return runs;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, look).await.unwrap_or_else(|_| panic!("{what}"))
}

/// Runs it by hand, to the end.
async fn ran(node: &Node) -> v1::ScheduleRun {
    let begun = node.schedules().run_schedule(run("")).await.unwrap().into_inner().run.unwrap();
    assert_eq!((begun.state(), begun.due_time), (v1::ScheduleRunState::Running, None), "{begun:?}");
    let has_ended = |run: &v1::ScheduleRun| run.id == begun.id && run.end_time.is_some();
    let runs = until(node, "the run does not end", |runs| runs.iter().any(has_ended)).await;
    runs.into_iter().find(has_ended).unwrap()
}

/// The names of what a schedule has taken, oldest first.
async fn taken(node: &Node, schedule: &v1::Schedule) -> Vec<String> {
    let filter = v1::SnapshotFilter { schedule_id: schedule.id.clone(), ..Default::default() };
    let request = v1::ListSnapshotsRequest { filter: Some(filter), ..oldest_first() };
    let list = node.snapshots().list_snapshots(request).await.unwrap().into_inner();
    list.snapshots.into_iter().map(|snapshot| snapshot.name).collect()
}

async fn preview(node: &Node) -> v1::PreviewScheduleResponse {
    let subject = Some(Subject::Schedule("nightly".to_owned()));
    let request = v1::PreviewScheduleRequest { subject, run_count: 3 };
    node.schedules().preview_schedule(request).await.unwrap().into_inner()
}

#[tokio::test]
async fn it_keeps_what_it_should_and_its_preview_says_so() {
    let mut node = Node::start();
    node.take("mine").await;
    let schedule = made(&node, counted(2)).await;
    for number in 1..=3 {
        let run = ran(&node).await;
        assert_eq!(run.state(), v1::ScheduleRunState::Succeeded, "{run:?}");
        assert_eq!((run.schedule_id.as_str(), run.vms.len()), (schedule.id.as_str(), 1));
        let vm = &run.vms[0];
        assert_eq!((vm.vm_name.as_str(), vm.vm_id.as_str()), ("web", node.vm.to_string().as_str()));
        assert!(vm.error.is_none() && !vm.operation_id.is_empty() && !vm.snapshot_id.is_empty(), "{vm:?}");
        assert_eq!(node.operation(&vm.operation_id).await.snapshot_id, vm.snapshot_id);
        assert_eq!(run.pruned_snapshots, u32::from(number == 3), "{run:?}");
    }
    assert_eq!(taken(&node, &schedule).await, ["nightly-2", "nightly-3"]);
    assert_eq!(node.names().await, ["mine", "nightly-2", "nightly-3"]);
    assert_eq!(node.snapshot("mine").await.schedule_id, "");

    // The next run takes one, and lets one go; where less is to be kept, more go with the runs after it.
    let seen = preview(&node).await;
    assert!(seen.refusal.is_none() && seen.run_times.len() == 3, "{seen:?}");
    assert_eq!(seen.vm_ids, [node.vm.to_string()]);
    let kept: Vec<(&str, bool)> =
        seen.decisions.iter().map(|decision| (decision.snapshot_name.as_str(), decision.keep)).collect();
    let kept: BTreeSet<_> = kept.into_iter().collect();
    assert_eq!(kept, [("nightly-2", false), ("nightly-3", true)].into());
    assert!(seen.decisions.iter().all(|decision| !decision.reasons.is_empty()), "{seen:?}");
    let update = v1::UpdateScheduleRequest {
        schedule: "nightly".to_owned(),
        values: Some(counted(1)),
        update_mask: Some(prost_types::FieldMask { paths: vec!["retention.keep_last".to_owned()] }),
        ..Default::default()
    };
    node.schedules().update_schedule(update).await.unwrap();
    let seen = preview(&node).await;
    let doomed: Vec<String> =
        seen.decisions.into_iter().filter(|it| !it.keep).map(|it| it.snapshot_name).collect();
    assert_eq!(doomed, ["nightly-2"]);
    let before = taken(&node, &schedule).await;
    assert_eq!(ran(&node).await.pruned_snapshots, 1);
    let after = taken(&node, &schedule).await;
    let gone: Vec<String> = before.into_iter().filter(|name| !after.contains(name)).collect();
    assert_eq!(gone, doomed);

    // It is told, and outlives the daemon.
    let filter = v1::EventFilter { schedule_id: schedule.id.clone(), ..Default::default() };
    let request = v1::ListEventsRequest { filter: Some(filter), ..Default::default() };
    let events = node.events().list_events(request).await.unwrap().into_inner().events;
    let count = |kind: v1::EventKind| events.iter().filter(|event| event.kind() == kind).count();
    assert_eq!(count(v1::EventKind::ScheduleRun), 8, "each run begins and ends");
    assert_eq!(count(v1::EventKind::SchedulePruned), 2);
    let all = runs(&node).await;
    node.crash();
    node.restart();
    assert_eq!(runs(&node).await, all);
    assert_eq!(all.len(), 4);
    assert!(all.windows(2).all(|pair| pair[0].id > pair[1].id), "the newest first");
    let got = v1::GetScheduleRequest { schedule: "nightly".to_owned() };
    let got = node.schedules().get_schedule(got).await.unwrap().into_inner().schedule.unwrap();
    assert_eq!(got.last_run.as_ref(), all.first());

    // Page by page it is the same.
    let mut request =
        v1::ListScheduleRunsRequest { schedule: "nightly".to_owned(), page_size: 3, ..Default::default() };
    let first = node.schedules().list_schedule_runs(request.clone()).await.unwrap().into_inner();
    request.page_token = first.next_page_token;
    let second = node.schedules().list_schedule_runs(request).await.unwrap().into_inner();
    assert_eq!((second.next_page_token.as_str(), second.total_size), ("", 4));
    assert_eq!([first.runs, second.runs].concat(), all);
}

#[tokio::test]
async fn one_that_is_going_is_not_begun_again() {
    let node = Node::start();
    let schedule = made(&node, counted(2)).await;
    let hold = node.hold(Method::SwitchDisks);
    let begun = node.schedules().run_schedule(run("once")).await.unwrap().into_inner().run.unwrap();
    tokio::time::timeout(PATIENCE, hold.reached()).await.expect("it takes no snapshot");
    let refused = node.schedules().run_schedule(run("")).await.unwrap_err();
    assert_refused(&refused, Code::FailedPrecondition, "SCHEDULE_RUNNING");
    assert_eq!(refused.get_error_details().error_info().unwrap().metadata["schedule"], "nightly");
    let again = node.schedules().run_schedule(run("once")).await.unwrap().into_inner().run.unwrap();
    assert_eq!(again.id, begun.id);
    hold.release();
    until(&node, "the run does not end", |runs| runs.iter().all(|run| run.end_time.is_some())).await;
    // Whatever it is called by then.
    let update = v1::UpdateScheduleRequest {
        schedule: "nightly".to_owned(),
        values: Some(v1::Schedule { name: "other".to_owned(), ..Default::default() }),
        update_mask: Some(prost_types::FieldMask { paths: vec!["name".to_owned()] }),
        ..Default::default()
    };
    node.schedules().update_schedule(update).await.unwrap();
    let again = node.schedules().run_schedule(run("once")).await.unwrap().into_inner().run.unwrap();
    assert_eq!((again.state(), again.id), (v1::ScheduleRunState::Succeeded, begun.id));
    assert_eq!(taken(&node, &schedule).await.len(), 1);
}

/// A VM that fails holds up no other, and its failure is in the run.
#[tokio::test]
async fn one_vm_fails() {
    let sim = vmsnap::host::sim::SimHost::new();
    let vm = sim.vm("web").disks(2).build();
    sim.vm("empty").build();
    let node = Node::start_with(sim, vm);
    made(&node, counted(2)).await;
    let run = ran(&node).await;
    assert_eq!(run.state(), v1::ScheduleRunState::Partly, "{run:?}");
    let failed: Vec<&v1::ScheduleRunVm> = run.vms.iter().filter(|vm| vm.error.is_some()).collect();
    assert_eq!((failed.len(), failed[0].vm_name.as_str()), (1, "empty"), "{run:?}");
    assert_eq!(failed[0].error.as_ref().unwrap().reason(), v1::Reason::NoDisks);
    assert_eq!(node.names().await, ["nightly-1"]);

    node.strike(Method::CreateOverlay, Mishap::Error(Complaint::NoSpace("/images".into())));
    let run = ran(&node).await;
    assert_eq!(run.state(), v1::ScheduleRunState::Failed, "{run:?}");
    let of_web = run.vms.iter().find(|vm| vm.vm_name == "web").unwrap();
    assert_eq!(of_web.error.as_ref().unwrap().reason(), v1::Reason::NoSpace, "{run:?}");
    assert_eq!(run.pruned_snapshots, 0);
    assert_eq!(node.names().await, ["nightly-1"]);
}

/// What somebody holds stays, and so does what a schedule has left behind.
#[tokio::test]
async fn what_is_held_stays() {
    let node = Node::start();
    let schedule = made(&node, counted(1)).await;
    ran(&node).await;
    let hold = v1::AddSnapshotHoldRequest {
        snapshot: "nightly-1".to_owned(),
        vm: "web".to_owned(),
        name: "audit".to_owned(),
        ..Default::default()
    };
    node.snapshots().add_snapshot_hold(hold).await.unwrap();
    for _ in 0..2 {
        ran(&node).await;
    }
    assert_eq!(taken(&node, &schedule).await, ["nightly-1", "nightly-3"]);
    let seen = preview(&node).await;
    let kept = seen.decisions.iter().find(|decision| decision.snapshot_name == "nightly-1").unwrap();
    assert!(kept.keep && kept.reasons.iter().any(|reason| reason.contains("audit")), "{kept:?}");
    let delete = v1::DeleteScheduleRequest { schedule: "nightly".to_owned(), ..Default::default() };
    node.schedules().delete_schedule(delete).await.unwrap();
    assert_eq!(node.names().await, ["nightly-1", "nightly-3"]);
}

/// What a linked clone was made of stays until the clone is gone.
#[tokio::test]
async fn what_a_linked_clone_lies_on_stays() {
    let node = Node::start();
    let schedule = made(&node, counted(1)).await;
    ran(&node).await;
    succeed(&node, "volume clone web/nightly-1 --disk vda --to copy --name mine").await;
    for _ in 0..2 {
        ran(&node).await;
    }
    assert_eq!(taken(&node, &schedule).await, ["nightly-1", "nightly-3"]);
    let seen = preview(&node).await;
    let kept = seen.decisions.iter().find(|decision| decision.snapshot_name == "nightly-1").unwrap();
    assert_eq!((kept.keep, &kept.reasons[..]), (true, &["a linked clone lies on it".to_owned()][..]));
    succeed(&node, "volume delete mine --yes").await;
    ran(&node).await;
    assert_eq!(taken(&node, &schedule).await, ["nightly-3", "nightly-4"]);
}

/// Who is not there, and who would be skipped.
#[tokio::test]
async fn a_preview_names_those_that_nothing_is_taken_of() {
    let node = Node::start();
    let limits = v1::ScheduleLimits { max_chain_depth: 1, ..Default::default() };
    let draft = v1::Schedule { limits: Some(limits), ..of_vms("nightly", &["web", "gone"]) };
    let subject = Some(Subject::Draft(draft.clone()));
    let request = v1::PreviewScheduleRequest { subject, run_count: 1 };
    let of_draft = node.schedules().preview_schedule(request).await.unwrap().into_inner();
    made(&node, draft).await;
    for seen in [of_draft, preview(&node).await] {
        assert_eq!(
            (&seen.missing_vms[..], seen.skipped_vms.len()),
            (&["gone".to_owned()][..], 1),
            "{seen:?}"
        );
        let skipped = &seen.skipped_vms[0];
        assert_eq!((skipped.vm_name.as_str(), &skipped.vm_id), ("web", &node.vm.to_string()));
        assert_eq!(skipped.error.as_ref().unwrap().reason(), v1::Reason::ScheduleLimit);
    }
    let shown = succeed(&node, "schedule preview nightly").await;
    assert!(shown.contains("there is no VM gone") && shown.contains("would have 2 layers"), "{shown}");
    assert_eq!(json(&node, "schedule preview nightly").await["missing_vms"][0], "gone");
}

/// Each second, by the clock; it rests when it is told to.
#[tokio::test]
async fn by_the_clock() {
    let node = Node::start();
    let timing = v1::Timing { cron: "* * * * * *".to_owned(), ..Default::default() };
    let schedule = made(&node, v1::Schedule { timing: Some(timing), ..counted(2) }).await;
    let has_run = |runs: &[v1::ScheduleRun]| runs.iter().filter(|run| run.end_time.is_some()).count() >= 3;
    until(&node, "it does not run", has_run).await;
    let pause = v1::PauseScheduleRequest { schedule: "nightly".to_owned(), ..Default::default() };
    let paused = node.schedules().pause_schedule(pause).await.unwrap().into_inner().schedule.unwrap();
    assert!(paused.next_run_time.is_none(), "{paused:?}");
    let is_over = |runs: &[v1::ScheduleRun]| runs.iter().all(|run| run.end_time.is_some());
    let runs = until(&node, "it does not rest", is_over).await;
    assert!(runs.iter().all(|run| run.due_time.is_some()), "{runs:?}");
    let due: BTreeSet<i64> = runs.iter().map(|run| run.due_time.unwrap().seconds).collect();
    assert_eq!(due.len(), runs.len(), "a time is taken once");
    assert!(taken(&node, &schedule).await.len() <= 3);
}

/// What is written on the VM, where the template does not say it. Nobody takes one before that is known.
#[tokio::test]
async fn a_snapshot_belongs_to_whom_its_vm_does() {
    let sim = vmsnap::host::sim::SimHost::new();
    let vm = sim.vm("web").disks(1).label("account", "acme").label("project", "p-1").build();
    let node = Node::start_with(sim, vm);
    let mut schedule = counted(5);
    schedule.template.as_mut().unwrap().project = "p-2".to_owned();
    made(&node, schedule).await;
    let at = Trigger::Call(Call { method: Method::Labels, occurrence: node.calls_of(Method::Labels) + 1 });
    let mishap = Mishap::Error(Complaint::Unreachable);
    node.sim.add_fault(Fault { at, moment: Moment::Before, mishap });
    let run = ran(&node).await;
    assert_eq!(run.state(), v1::ScheduleRunState::Succeeded, "{run:?}");
    let taken = node.snapshot("nightly-1").await;
    let owner = [taken.account, taken.domain, taken.project];
    assert_eq!(owner, ["acme", "", "p-2"]);
}
