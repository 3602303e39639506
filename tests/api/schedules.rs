//! Schedules as people set them: what is written is read back, what is listed is in order. What is wrong with one is in
//! `schedule_slips`, what they then do in `schedule_runs`.

use tonic::{Code, Status};
use tonic_types::StatusExt;
use vmsnap::host::sim::Method;
use vmsnap::proto::v1;
use vmsnap::proto::v1::preview_schedule_request::Subject;
use vmsnap::proto::v1::schedule_service_client::ScheduleServiceClient;

use super::node::{Node, assert_refused};
use super::secured::{Secured, rules};

/// One that takes every VM at three in the night.
pub fn nightly(name: &str) -> v1::Schedule {
    v1::Schedule {
        name: name.to_owned(),
        selector: Some(v1::VmSelector { all: true, ..Default::default() }),
        timing: Some(v1::Timing { cron: "0 3 * * *".to_owned(), ..Default::default() }),
        retention: Some(v1::Retention { keep_last: 2, ..Default::default() }),
        ..Default::default()
    }
}

/// The same, of these VMs.
pub fn of_vms(name: &str, vms: &[&str]) -> v1::Schedule {
    let vms = vms.iter().map(|vm| (*vm).to_owned()).collect();
    v1::Schedule { selector: Some(v1::VmSelector { vms, ..Default::default() }), ..nightly(name) }
}

pub fn create(schedule: v1::Schedule) -> v1::CreateScheduleRequest {
    v1::CreateScheduleRequest { schedule: Some(schedule), ..Default::default() }
}

pub fn update(schedule: &str, values: v1::Schedule, fields: &[&str]) -> v1::UpdateScheduleRequest {
    let paths = fields.iter().map(|field| (*field).to_owned()).collect();
    v1::UpdateScheduleRequest {
        schedule: schedule.to_owned(),
        values: Some(values),
        update_mask: Some(prost_types::FieldMask { paths }),
        ..Default::default()
    }
}

pub fn lasting(seconds: i64) -> prost_types::Duration {
    prost_types::Duration { seconds, nanos: 0 }
}

pub async fn made(node: &Node, schedule: v1::Schedule) -> v1::Schedule {
    node.schedules().create_schedule(create(schedule)).await.unwrap().into_inner().schedule.unwrap()
}

pub async fn got(node: &Node, schedule: &str) -> Result<v1::Schedule, Status> {
    let request = v1::GetScheduleRequest { schedule: schedule.to_owned() };
    Ok(node.schedules().get_schedule(request).await?.into_inner().schedule.unwrap())
}

pub async fn names(node: &Node) -> Vec<String> {
    let list = node.schedules().list_schedules(v1::ListSchedulesRequest::default()).await.unwrap();
    list.into_inner().schedules.into_iter().map(|schedule| schedule.name).collect()
}

/// What a schedule has of each, to be changed.
pub fn timing(schedule: &mut v1::Schedule) -> &mut v1::Timing {
    schedule.timing.as_mut().unwrap()
}

pub fn retention(schedule: &mut v1::Schedule) -> &mut v1::Retention {
    schedule.retention.as_mut().unwrap()
}

/// The fields that are wrong.
pub fn fields(status: &Status) -> Vec<String> {
    assert_refused(status, Code::InvalidArgument, "INVALID_REQUEST");
    let bad = status.get_error_details().bad_request().cloned().unwrap();
    bad.field_violations.into_iter().map(|violation| violation.field).collect()
}

#[tokio::test]
async fn what_is_set_is_read_back_after_a_restart_too() {
    let mut node = Node::start();
    let label = |key: &str, value: Option<&str>| v1::PropertyFilter {
        key: key.to_owned(),
        value: value.map(ToOwned::to_owned),
    };
    let full = v1::Schedule {
        name: "hourly".to_owned(),
        description: "each hour".to_owned(),
        selector: Some(v1::VmSelector {
            vms: vec!["web".to_owned()],
            labels: vec![label("backup", None), label("tier", Some("db"))],
            account: "acme".to_owned(),
            all: true,
        }),
        template: Some(v1::SnapshotTemplate {
            name: "{vm}-{count}".to_owned(),
            description: "by the clock".to_owned(),
            disks: vec!["vda".to_owned()],
            memory: true,
            quiesce: v1::Quiesce::Off.into(),
            mount_points: vec!["/srv".to_owned()],
            account: "acme".to_owned(),
            domain: "eu".to_owned(),
            project: "shop".to_owned(),
            properties: [("a".to_owned(), "1".to_owned())].into(),
        }),
        timing: Some(v1::Timing {
            cron: "30 0 * * * *".to_owned(),
            time_zone: "Europe/Berlin".to_owned(),
            jitter: Some(lasting(60)),
            blackout_windows: vec![v1::BlackoutWindow {
                cron: "0 6 * * *".to_owned(),
                duration: Some(lasting(3600)),
            }],
            catch_up: v1::CatchUp::Skip.into(),
        }),
        retention: Some(v1::Retention {
            keep_last: 1,
            keep_hourly: 2,
            keep_daily: 3,
            keep_weekly: 4,
            keep_monthly: 5,
            keep_yearly: 6,
            keep_within: Some(lasting(86_400)),
            minimum: 2,
        }),
        limits: Some(v1::ScheduleLimits {
            max_snapshots_per_vm: 20,
            max_bytes_per_vm: u64::MAX,
            min_free_bytes: 1 << 30,
            max_chain_depth: 16,
        }),
        paused: true,
        ..Default::default()
    };
    let first = made(&node, full.clone()).await;
    assert!(first.created_by.starts_with("uid:") && first.create_time.is_some(), "{first:?}");
    assert_eq!((first.next_run_time, first.last_run.clone()), (None, None), "it rests");
    let people_set = v1::Schedule {
        id: String::new(),
        create_time: None,
        created_by: String::new(),
        etag: String::new(),
        ..first.clone()
    };
    assert_eq!(people_set, full);

    let least = made(&node, nightly("nightly")).await;
    assert!(least.next_run_time.is_some() && !least.paused, "{least:?}");
    let (timing, template) = (least.timing.clone().unwrap(), least.template.clone().unwrap());
    assert_eq!((timing.time_zone.as_str(), timing.catch_up()), ("UTC", v1::CatchUp::Once));
    assert_eq!((template.name.as_str(), template.quiesce()), ("{schedule}-{time}", v1::Quiesce::Auto));
    assert_eq!(least.limits, Some(v1::ScheduleLimits::default()));

    node.crash();
    node.restart();
    assert_eq!(got(&node, "hourly").await.unwrap(), first);
    assert_eq!(got(&node, &first.id).await.unwrap(), first);
    let info = node.nodes().get_node(v1::GetNodeRequest {}).await.unwrap().into_inner().node.unwrap();
    assert!(info.capabilities.unwrap().schedules);
}

pub fn preview_of(schedule: &str) -> v1::PreviewScheduleRequest {
    v1::PreviewScheduleRequest { subject: Some(Subject::Schedule(schedule.to_owned())), run_count: 0 }
}

#[tokio::test]
async fn only_what_is_named_changes() {
    let node = Node::start();
    let first = made(&node, nightly("nightly")).await;
    let values = v1::Schedule {
        description: "changed".to_owned(),
        timing: Some(v1::Timing {
            cron: "0 4 * * *".to_owned(),
            time_zone: "Europe/Berlin".to_owned(),
            ..Default::default()
        }),
        retention: Some(v1::Retention { keep_daily: 7, ..Default::default() }),
        // These it would not take.
        name: "a/b".to_owned(),
        selector: None,
        etag: "of another one".to_owned(),
        ..Default::default()
    };
    let check = async |fields: &[&str], change: fn(&mut v1::Schedule)| {
        let before = got(&node, "nightly").await.unwrap();
        let request = update("nightly", values.clone(), fields);
        let after = node.schedules().update_schedule(request).await.unwrap().into_inner().schedule.unwrap();
        let mut expected =
            v1::Schedule { etag: after.etag.clone(), next_run_time: after.next_run_time, ..before.clone() };
        change(&mut expected);
        assert_eq!(after, expected, "{fields:?}");
        assert_ne!(after.etag, before.etag, "{fields:?}");
        assert_eq!(got(&node, "nightly").await.unwrap(), after);
    };
    check(&["description"], |it| it.description = "changed".into()).await;
    check(&["timing.cron"], |it| timing(it).cron = "0 4 * * *".into()).await;
    check(&["retention.keep_daily", "timing.time_zone"], |it| {
        retention(it).keep_daily = 7;
        timing(it).time_zone = "Europe/Berlin".into();
    })
    .await;
    check(&["retention"], |it| *retention(it) = v1::Retention { keep_daily: 7, ..Default::default() }).await;
    let back = update("nightly", nightly("nightly"), &["timing", "retention", "description"]);
    let back = node.schedules().update_schedule(back).await.unwrap().into_inner().schedule.unwrap();
    let (etag, next_run_time) = (back.etag.clone(), back.next_run_time);
    assert_eq!(back, v1::Schedule { etag, next_run_time, ..first });

    let wrong = async |fields_of_mask: &[&str], expected: &[&str]| {
        let request = update("nightly", values.clone(), fields_of_mask);
        let refused = node.schedules().update_schedule(request).await.unwrap_err();
        assert_eq!(fields(&refused), expected, "{fields_of_mask:?}");
        refused
    };
    wrong(&[], &["update_mask"]).await;
    let refused = wrong(&["paused", "etag", "colour"], &["update_mask"; 3]).await;
    assert!(refused.message().contains("\"colour\""), "{refused:?}");
    wrong(&["timing.cron.minute", "timing."], &["update_mask"; 2]).await;
    wrong(&["name", "selector", "x"], &["update_mask", "values.name", "values.selector"]).await;
    let request = v1::UpdateScheduleRequest { update_mask: None, ..update("", values.clone(), &[]) };
    let refused = node.schedules().update_schedule(request).await.unwrap_err();
    assert_eq!(fields(&refused), ["schedule", "update_mask"]);
    assert_eq!(got(&node, "nightly").await.unwrap(), back);
}

#[tokio::test]
async fn a_change_of_what_was_seen() {
    let node = Node::start();
    let first = made(&node, nightly("a")).await;
    made(&node, nightly("b")).await;
    let change = |etag: &str, name: &str| v1::UpdateScheduleRequest {
        etag: etag.to_owned(),
        ..update("a", nightly(name), &["name"])
    };
    let mut client = node.schedules();
    let taken = client.update_schedule(change("", "b")).await.unwrap_err();
    assert_refused(&taken, Code::AlreadyExists, "SCHEDULE_EXISTS");
    let taken = client.create_schedule(create(nightly("b"))).await.unwrap_err();
    assert_refused(&taken, Code::AlreadyExists, "SCHEDULE_EXISTS");
    let b = got(&node, "b").await.unwrap();
    assert_eq!(taken.get_error_details().error_info().unwrap().metadata["schedule"], b.id);

    let again =
        v1::UpdateScheduleRequest { etag: first.etag.clone(), ..update("a", nightly("a"), &["name"]) };
    let same = client.update_schedule(again).await.unwrap().into_inner().schedule.unwrap();
    assert_eq!(same.etag, first.etag, "nothing has changed");
    let pause = v1::PauseScheduleRequest { schedule: "a".to_owned(), ..Default::default() };
    let paused = client.pause_schedule(pause.clone()).await.unwrap().into_inner().schedule.unwrap();
    assert!(paused.paused && paused.next_run_time.is_none() && paused.etag != first.etag, "{paused:?}");
    let still = client.pause_schedule(pause).await.unwrap().into_inner().schedule.unwrap();
    assert_eq!(still, paused);
    let stale = client.update_schedule(change(&first.etag, "c")).await.unwrap_err();
    assert_refused(&stale, Code::Aborted, "ETAG_MISMATCH");
    assert_eq!(stale.get_error_details().error_info().unwrap().metadata["etag"], paused.etag);
    let malformed = client.update_schedule(change("yesterday", "c")).await.unwrap_err();
    assert_eq!(fields(&malformed), ["etag"]);
    let resume = v1::ResumeScheduleRequest { schedule: first.id.clone(), ..Default::default() };
    let resumed = client.resume_schedule(resume).await.unwrap().into_inner().schedule.unwrap();
    assert!(!resumed.paused && resumed.next_run_time.is_some(), "{resumed:?}");

    let delete = |etag: &str| v1::DeleteScheduleRequest {
        schedule: "a".to_owned(),
        etag: etag.to_owned(),
        ..Default::default()
    };
    let stale = client.delete_schedule(delete(&first.etag)).await.unwrap_err();
    assert_refused(&stale, Code::Aborted, "ETAG_MISMATCH");
    client.delete_schedule(delete(&resumed.etag)).await.unwrap();
    assert_eq!(names(&node).await, ["b"]);
}

/// None of two changes that are made at once is lost.
#[tokio::test]
async fn changes_at_once() {
    let node = Node::start();
    made(&node, nightly("a")).await;
    let changes = (1..=8_u32).map(|number| {
        let mut client = node.schedules();
        async move {
            let limits = v1::ScheduleLimits { max_chain_depth: number, ..Default::default() };
            let values =
                v1::Schedule { limits: Some(limits), description: number.to_string(), ..Default::default() };
            let field = if number % 2 == 0 { "limits.max_chain_depth" } else { "description" };
            client.update_schedule(update("a", values, &[field])).await.unwrap();
        }
    });
    futures_util::future::join_all(changes).await;
    let after = got(&node, "a").await.unwrap();
    let depth = after.limits.unwrap().max_chain_depth;
    let description: u32 = after.description.parse().unwrap();
    assert!(depth % 2 == 0 && depth > 0 && description % 2 == 1, "{depth} {description}");
    assert_eq!(after.etag, "9");
}

#[tokio::test]
async fn a_request_id_stands_for_one_request() {
    let node = Node::start();
    let mut client = node.schedules();
    let id = |id: &str| id.to_owned();
    let request = v1::CreateScheduleRequest { request_id: id("create"), ..create(nightly("a")) };
    let first = client.create_schedule(request.clone()).await.unwrap().into_inner().schedule.unwrap();
    let again = client.create_schedule(request.clone()).await.unwrap().into_inner().schedule.unwrap();
    assert_eq!(again, first);
    let other = v1::CreateScheduleRequest { request_id: id("create"), ..create(nightly("b")) };
    let refused = client.create_schedule(other).await.unwrap_err();
    assert_refused(&refused, Code::InvalidArgument, "REQUEST_ID_REUSED");
    let pause = v1::PauseScheduleRequest { schedule: id("a"), request_id: id("create") };
    let refused = client.pause_schedule(pause.clone()).await.unwrap_err();
    assert_refused(&refused, Code::InvalidArgument, "REQUEST_ID_REUSED");

    // Each finds its schedule, which has another name by then.
    let pause = v1::PauseScheduleRequest { request_id: id("pause"), ..pause };
    client.pause_schedule(pause.clone()).await.unwrap();
    let resume = v1::ResumeScheduleRequest { schedule: id("a"), request_id: id("resume") };
    client.resume_schedule(resume.clone()).await.unwrap();
    let rename =
        v1::UpdateScheduleRequest { request_id: id("rename"), ..update("a", nightly("z"), &["name"]) };
    let renamed = client.update_schedule(rename.clone()).await.unwrap().into_inner().schedule.unwrap();
    for again in [
        client.update_schedule(rename).await.unwrap().into_inner().schedule,
        client.pause_schedule(pause).await.unwrap().into_inner().schedule,
        client.resume_schedule(resume).await.unwrap().into_inner().schedule,
        client.create_schedule(request.clone()).await.unwrap().into_inner().schedule,
    ] {
        assert_eq!(again.unwrap(), renamed, "it is not done twice");
    }
    let delete =
        v1::DeleteScheduleRequest { schedule: id("z"), request_id: id("delete"), ..Default::default() };
    client.delete_schedule(delete.clone()).await.unwrap();
    client.delete_schedule(delete).await.unwrap();
    let gone = client.create_schedule(request).await.unwrap_err();
    assert_refused(&gone, Code::NotFound, "SCHEDULE_NOT_FOUND");
    assert!(names(&node).await.is_empty());
}

#[tokio::test]
async fn lists_are_filtered_ordered_and_paged() {
    let sim = vmsnap::host::sim::SimHost::new();
    let vm = sim.vm("web").disks(2).label("account", "acme").label("tier", "db").build();
    sim.vm("other").disks(1).build();
    let node = Node::start_with(sim, vm);
    let later = v1::Timing { cron: "0 3 1 1 *".to_owned(), ..Default::default() };
    let labelled = v1::PropertyFilter { key: "tier".to_owned(), value: Some("db".to_owned()) };
    for schedule in [
        of_vms("b-other", &["other"]),
        v1::Schedule { timing: Some(later), ..of_vms("a-web", &["web"]) },
        v1::Schedule {
            selector: Some(v1::VmSelector { account: "acme".to_owned(), ..Default::default() }),
            paused: true,
            ..nightly("b-acme")
        },
        v1::Schedule {
            selector: Some(v1::VmSelector { labels: vec![labelled], ..Default::default() }),
            ..nightly("a-db")
        },
    ] {
        made(&node, schedule).await;
    }
    let check = async |filter: v1::ScheduleFilter, order: &str, expected: &[&str]| {
        let (filter, order_by) = (Some(filter), order.to_owned());
        let mut request = v1::ListSchedulesRequest { filter, order_by, ..Default::default() };
        let all = node.schedules().list_schedules(request.clone()).await.unwrap().into_inner();
        let named = |page: &v1::ListSchedulesResponse| {
            page.schedules.iter().map(|schedule| schedule.name.clone()).collect::<Vec<_>>()
        };
        assert_eq!(named(&all), expected, "{request:?}");
        assert_eq!(
            (all.next_page_token.as_str(), all.total_size),
            ("", i64::try_from(expected.len()).unwrap())
        );
        // One by one it is the same.
        request.page_size = 1;
        let mut paged = Vec::new();
        while paged.len() < expected.len() {
            let page = node.schedules().list_schedules(request.clone()).await.unwrap().into_inner();
            assert_eq!(page.total_size, all.total_size);
            paged.extend(named(&page));
            request.page_token = page.next_page_token;
        }
        assert_eq!(
            (paged, request.page_token.as_str()),
            (expected.iter().map(ToString::to_string).collect(), "")
        );
    };
    let any = v1::ScheduleFilter::default;
    check(any(), "", &["a-db", "a-web", "b-acme", "b-other"]).await;
    check(any(), "name desc", &["b-other", "b-acme", "a-web", "a-db"]).await;
    check(any(), "create_time", &["b-other", "a-web", "b-acme", "a-db"]).await;
    check(any(), "create_time desc", &["a-db", "b-acme", "a-web", "b-other"]).await;
    let active = || v1::ScheduleFilter { paused: Some(false), ..any() };
    check(v1::ScheduleFilter { paused: Some(true), ..any() }, "", &["b-acme"]).await;
    check(active(), "", &["a-db", "a-web", "b-other"]).await;
    check(v1::ScheduleFilter { name_prefix: "b-".to_owned(), ..any() }, "", &["b-acme", "b-other"]).await;
    let of_vm = |vm: &str| v1::ScheduleFilter { vm: vm.to_owned(), ..any() };
    check(of_vm("web"), "", &["a-db", "a-web", "b-acme"]).await;
    check(of_vm(&node.vm.to_string()), "", &["a-db", "a-web", "b-acme"]).await;
    check(of_vm("other"), "", &["b-other"]).await;
    // The hypervisor is asked once for all schedules.
    let asked = || [node.calls_of(Method::Vms), node.calls_of(Method::Labels)];
    let before = asked();
    let of_web = v1::ListSchedulesRequest { filter: Some(of_vm("web")), ..Default::default() };
    let listed = node.schedules().list_schedules(of_web).await.unwrap().into_inner();
    assert_eq!(listed.schedules.len(), 3);
    let after = asked();
    assert_eq!([after[0] - before[0], after[1] - before[1]], [1, 1]);
    let next_run = v1::ListSchedulesRequest { order_by: "next_run_time".to_owned(), ..Default::default() };
    let next_run = node.schedules().list_schedules(next_run).await.unwrap().into_inner().schedules;
    assert_eq!(next_run[3].name, "b-acme", "one that rests comes last");

    let refused = async |request: v1::ListSchedulesRequest, code, reason: &str| {
        assert_refused(&node.schedules().list_schedules(request).await.unwrap_err(), code, reason);
    };
    let listed = |filter, order: &str, token: &str, page_size| v1::ListSchedulesRequest {
        filter: Some(filter),
        order_by: order.to_owned(),
        page_token: token.to_owned(),
        page_size,
    };
    let invalid = Code::InvalidArgument;
    refused(listed(any(), "beauty", "", 0), invalid, "INVALID_REQUEST").await;
    refused(listed(any(), "name up", "", 0), invalid, "INVALID_REQUEST").await;
    refused(listed(any(), "", "", -1), invalid, "INVALID_REQUEST").await;
    refused(listed(any(), "", "next, please", 0), invalid, "PAGE_TOKEN_INVALID").await;
    refused(listed(of_vm("nobody"), "", "", 0), Code::NotFound, "VM_NOT_FOUND").await;
    refused(listed(of_vm(&"v".repeat(100_000)), "", "", 0), invalid, "INVALID_REQUEST").await;
    let first = node.schedules().list_schedules(listed(any(), "", "", 1)).await.unwrap().into_inner();
    refused(listed(active(), "", &first.next_page_token, 1), invalid, "PAGE_TOKEN_INVALID").await;
}

#[tokio::test]
async fn of_what_there_is_not() {
    let node = Node::start();
    made(&node, nightly("a")).await;
    let check = |result: Result<(), Status>, wanted: &str| {
        let refused = result.expect_err("it is found");
        if wanted.is_empty() || wanted.len() > 255 {
            assert_eq!(fields(&refused), ["schedule"]);
            return;
        }
        assert_refused(&refused, Code::NotFound, "SCHEDULE_NOT_FOUND");
        assert_eq!(refused.get_error_details().error_info().unwrap().metadata["schedule"], wanted);
    };
    let mut client = node.schedules();
    for wanted in ["b", "", "01961e4c-7d2a-7c5e-8c0f-0123456789ab", "a' OR '1'='1", &"n".repeat(100_000)] {
        let schedule = wanted.to_owned();
        check(got(&node, wanted).await.map(drop), wanted);
        check(client.update_schedule(update(wanted, nightly("c"), &["name"])).await.map(drop), wanted);
        let delete = v1::DeleteScheduleRequest { schedule: schedule.clone(), ..Default::default() };
        check(client.delete_schedule(delete).await.map(drop), wanted);
        let pause = v1::PauseScheduleRequest { schedule: schedule.clone(), ..Default::default() };
        check(client.pause_schedule(pause).await.map(drop), wanted);
        let resume = v1::ResumeScheduleRequest { schedule: schedule.clone(), ..Default::default() };
        check(client.resume_schedule(resume).await.map(drop), wanted);
        let run = v1::RunScheduleRequest { schedule: schedule.clone(), ..Default::default() };
        check(client.run_schedule(run).await.map(drop), wanted);
        check(client.preview_schedule(preview_of(wanted)).await.map(drop), wanted);
        let runs = v1::ListScheduleRunsRequest { schedule, ..Default::default() };
        check(client.list_schedule_runs(runs).await.map(drop), wanted);
    }
    let runs = |token: &str, page_size| v1::ListScheduleRunsRequest {
        schedule: "a".to_owned(),
        page_token: token.to_owned(),
        page_size,
    };
    let bad = client.list_schedule_runs(runs("next, please", 0)).await.unwrap_err();
    assert_refused(&bad, Code::InvalidArgument, "PAGE_TOKEN_INVALID");
    let bad = client.list_schedule_runs(runs("", -1)).await.unwrap_err();
    assert_refused(&bad, Code::InvalidArgument, "INVALID_REQUEST");
    let listed = client.list_schedule_runs(runs("", 0)).await.unwrap().into_inner();
    assert_eq!(listed, v1::ListScheduleRunsResponse::default());
    assert_eq!(names(&node).await, ["a"]);
}

#[tokio::test]
async fn roles() {
    let scoped = "account = 'acme'";
    let secured = Secured::start(&rules(&[
        ("uri:spiffe://test/viewer", "viewer", ""),
        ("uri:spiffe://test/operator", "operator", ""),
        ("uri:spiffe://test/tenant", "admin", scoped),
    ]));
    for (serial, (who, may_look, may_change)) in
        (1..).zip([("viewer", true, false), ("operator", true, true), ("tenant", false, false)])
    {
        let channel = secured.channel(&secured.client(&format!("spiffe://test/{who}"), serial));
        let mut client = ScheduleServiceClient::new(channel);
        let check = |result: Result<(), Status>, may: bool| match result {
            Ok(()) => assert!(may, "{who}"),
            Err(refused) if may => panic!("{who}: {refused:?}"),
            Err(refused) => assert_refused(&refused, Code::PermissionDenied, "PERMISSION_DENIED"),
        };
        check(client.create_schedule(create(nightly(who))).await.map(drop), may_change);
        let any = v1::ListSchedulesRequest::default();
        check(client.list_schedules(any).await.map(drop), may_look);
        let subject = Some(Subject::Draft(nightly("draft")));
        let preview = v1::PreviewScheduleRequest { subject, run_count: 0 };
        check(client.preview_schedule(preview).await.map(drop), may_look);
        let delete = v1::DeleteScheduleRequest { schedule: who.to_owned(), ..Default::default() };
        check(client.delete_schedule(delete).await.map(drop), may_change);
    }
    assert!(names(&secured.node).await.is_empty());
    let lines = super::secured::audit_lines(&["spiffe://test/operator", "DeleteSchedule", "schedule "]);
    assert_eq!(lines.len(), 1, "it is written down which one: {lines:?}");
}
