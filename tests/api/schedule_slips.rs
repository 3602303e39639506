//! Schedules that are none: each field that is wrong is named, by whichever call it comes, and nothing is changed.

use prost::Message;
use tonic::Code;
use vmsnap::proto::v1;
use vmsnap::proto::v1::preview_schedule_request::Subject;

use super::node::Node;
use super::schedules::{
    create, fields, got, lasting, made, names, nightly, of_vms, preview_of, retention, timing, update,
};

/// One thing that is wrong with a schedule, and the path of the field.
type Slip = (&'static str, fn(&mut v1::Schedule));

fn template(schedule: &mut v1::Schedule) -> &mut v1::SnapshotTemplate {
    schedule.template.get_or_insert_default()
}

fn selector(schedule: &mut v1::Schedule) -> &mut v1::VmSelector {
    schedule.selector.as_mut().unwrap()
}

fn window(cron: &str, seconds: i64) -> v1::BlackoutWindow {
    v1::BlackoutWindow { cron: cron.to_owned(), duration: Some(lasting(seconds)) }
}

const SLIPS: [Slip; 56] = [
    ("name", |it| it.name.clear()),
    ("name", |it| it.name = "a/b".into()),
    ("name", |it| it.name = "01961e4c-7d2a-7c5e-8c0f-0123456789ab".into()),
    ("name", |it| it.name = "n".repeat(64)),
    ("description", |it| it.description = "d".repeat(5000)),
    ("description", |it| it.description = "\0".into()),
    ("selector", |it| it.selector = None),
    ("selector", |it| selector(it).all = false),
    ("selector.vms", |it| selector(it).vms = vec![String::new()]),
    ("selector.vms", |it| selector(it).vms = vec!["v".repeat(256)]),
    ("selector.vms", |it| selector(it).vms = (0..1001).map(|number| format!("vm-{number}")).collect()),
    ("selector.account", |it| selector(it).account = "a".repeat(256)),
    ("selector.labels", |it| selector(it).labels = vec![v1::PropertyFilter::default()]),
    ("selector.labels", |it| {
        let label = v1::PropertyFilter { key: "tier".to_owned(), value: None };
        selector(it).labels = vec![label; 2];
    }),
    ("selector.labels", |it| {
        let label = |number| v1::PropertyFilter { key: format!("key-{number}"), value: None };
        selector(it).labels = (0..65).map(label).collect();
    }),
    ("template.name", |it| template(it).name = "always-the-same".into()),
    ("template.name", |it| template(it).name = "{time}-{host}".into()),
    ("template.name", |it| template(it).name = "{time".into()),
    ("template.name", |it| template(it).name = "a b {count}".into()),
    ("template.name", |it| template(it).name = "{count}".repeat(100)),
    ("template.description", |it| template(it).description = "d".repeat(5000)),
    ("template.disks", |it| template(it).disks = vec!["../vda".to_owned()]),
    ("template.quiesce", |it| template(it).quiesce = 777),
    ("template.mount_points", |it| template(it).mount_points = vec!["srv".to_owned()]),
    ("template.mount_points", |it| template(it).mount_points = vec!["/a\0".to_owned()]),
    ("template.mount_points", |it| template(it).mount_points = vec!["/a".to_owned(); 257]),
    ("template.account", |it| template(it).account = "a".repeat(256)),
    ("template.domain", |it| template(it).domain = "a".repeat(256)),
    ("template.project", |it| template(it).project = "a".repeat(256)),
    ("template.properties", |it| template(it).properties = [(String::new(), "x".to_owned())].into()),
    ("template.properties", |it| {
        template(it).properties = (0..65).map(|key| (key.to_string(), String::new())).collect();
    }),
    ("timing.cron", |it| it.timing = None),
    ("timing.cron", |it| timing(it).cron = "61 * * * *".into()),
    ("timing.cron", |it| timing(it).cron = "0 3 30 2 *".into()),
    ("timing.cron", |it| timing(it).cron = "@daily".into()),
    ("timing.cron", |it| timing(it).cron = "* ".repeat(100_000)),
    ("timing.time_zone", |it| timing(it).time_zone = "Europe/Atlantis".into()),
    ("timing.time_zone", |it| timing(it).time_zone = "../../etc/passwd".into()),
    ("timing.time_zone", |it| timing(it).time_zone = "z".repeat(100_000)),
    ("timing.jitter", |it| timing(it).jitter = Some(lasting(-1))),
    ("timing.jitter", |it| timing(it).jitter = Some(lasting(86_401))),
    ("timing.jitter", |it| timing(it).jitter = Some(lasting(i64::MIN))),
    ("timing.catch_up", |it| timing(it).catch_up = 777),
    ("timing.blackout_windows", |it| timing(it).blackout_windows = vec![window("0 6 * * *", 60); 33]),
    ("timing.blackout_windows[0].cron", |it| timing(it).blackout_windows = vec![window("0 6 * *", 60)]),
    ("timing.blackout_windows[1].duration", |it| {
        timing(it).blackout_windows = vec![window("0 6 * * *", 60), window("0 6 * * *", 0)];
    }),
    ("timing.blackout_windows[0].duration", |it| {
        timing(it).blackout_windows = vec![window("0 6 * * *", 7 * 86_400 + 1)];
    }),
    ("timing.blackout_windows[0].duration", |it| {
        timing(it).blackout_windows = vec![v1::BlackoutWindow { duration: None, ..window("0 6 * * *", 1) }];
    }),
    ("retention", |it| it.retention = None),
    ("retention", |it| *retention(it) = v1::Retention { minimum: 3, ..Default::default() }),
    ("retention", |it| *retention(it) = v1::Retention { keep_last: 2, minimum: 3, ..Default::default() }),
    ("retention.keep_daily", |it| retention(it).keep_daily = 10_001),
    ("retention.minimum", |it| retention(it).minimum = u32::MAX),
    ("retention.keep_within", |it| retention(it).keep_within = Some(lasting(0))),
    ("retention.keep_within", |it| retention(it).keep_within = Some(lasting(-5))),
    ("retention.keep_within", |it| retention(it).keep_within = Some(lasting(101 * 366 * 86_400))),
];

/// What only the daemon can know of one that is to be made. An update passes it over.
const OF_DAEMON: [Slip; 6] = [
    ("id", |it| it.id = "x".into()),
    ("next_run_time", |it| it.next_run_time = Some(prost_types::Timestamp::default())),
    ("last_run", |it| it.last_run = Some(v1::ScheduleRun::default())),
    ("create_time", |it| it.create_time = Some(prost_types::Timestamp::default())),
    ("created_by", |it| it.created_by = "me".into()),
    ("etag", |it| it.etag = "1".into()),
];

const ALL_FIELDS: [&str; 7] =
    ["name", "description", "selector", "template", "timing", "retention", "limits"];

#[tokio::test]
async fn each_field_that_is_wrong_is_named() {
    let node = Node::start();
    let before = made(&node, nightly("nightly")).await;
    let acts = node.acts();
    let mut client = node.schedules();
    let mut check = async |slips: &[Slip], of_update: &[&str]| {
        let mut bent = nightly("other");
        for (_, slip) in slips {
            slip(&mut bent);
        }
        let at = |field: &str| slips.iter().map(|(path, _)| format!("{field}.{path}")).collect::<Vec<_>>();
        let refused = client.create_schedule(create(bent.clone())).await.expect_err("it is made");
        assert_eq!(fields(&refused), at("schedule"), "{refused:?}");
        let subject = Some(Subject::Draft(bent.clone()));
        let preview = v1::PreviewScheduleRequest { subject, run_count: 0 };
        let refused = client.preview_schedule(preview).await.expect_err("it is previewed");
        assert_eq!(fields(&refused), at("draft"), "{refused:?}");
        let updated = client.update_schedule(update("nightly", bent, of_update)).await;
        if !of_update.is_empty() {
            assert_eq!(fields(&updated.expect_err("it is changed")), at("values"));
        }
    };
    for slip in SLIPS {
        check(&[slip], &ALL_FIELDS).await;
    }
    for slip in OF_DAEMON {
        check(&[slip], &[]).await;
    }
    // All at once.
    let first = |path: &str| *SLIPS.iter().find(|(of, _)| *of == path).unwrap();
    let all = [
        "name",
        "description",
        "selector.account",
        "template.name",
        "template.quiesce",
        "timing.cron",
        "retention.keep_within",
    ];
    check(&all.map(first), &ALL_FIELDS).await;

    let nothing = client.create_schedule(v1::CreateScheduleRequest::default()).await.unwrap_err();
    assert_eq!(fields(&nothing), ["schedule"]);
    let both = v1::CreateScheduleRequest { request_id: "x".repeat(37), ..Default::default() };
    assert_eq!(fields(&client.create_schedule(both).await.unwrap_err()), ["request_id", "schedule"]);
    let nothing = v1::PreviewScheduleRequest { subject: None, run_count: 1001 };
    assert_eq!(fields(&client.preview_schedule(nothing).await.unwrap_err()), ["run_count", "schedule"]);
    let bound = v1::PreviewScheduleRequest { run_count: -1, ..preview_of("nightly") };
    assert_eq!(fields(&client.preview_schedule(bound).await.unwrap_err()), ["run_count"]);

    assert_eq!(names(&node).await, ["nightly"]);
    assert_eq!(got(&node, "nightly").await.unwrap(), before);
    assert_eq!(node.acts(), acts, "something was done");
}

/// At its bounds it is still one.
#[tokio::test]
async fn what_is_just_allowed() {
    let node = Node::start();
    let check = async |name: &str, change: fn(&mut v1::Schedule)| {
        let mut schedule = nightly(name);
        change(&mut schedule);
        made(&node, schedule).await;
    };
    check("jitter", |it| timing(it).jitter = Some(lasting(86_400))).await;
    check("no-jitter", |it| timing(it).jitter = Some(lasting(0))).await;
    check("windows", |it| timing(it).blackout_windows = vec![window("0 6 1 1 *", 7 * 86_400); 32]).await;
    check("leap-day", |it| timing(it).cron = "0 3 29 2 *".into()).await;
    check("many", |it| retention(it).keep_last = 10_000).await;
    check("by-age", |it| {
        *retention(it) = v1::Retention { keep_within: Some(lasting(36_525 * 86_400)), ..Default::default() };
    })
    .await;
    // VMs may come later.
    check("of-nobody-yet", |it| *it = of_vms("of-nobody-yet", &["later"])).await;
    check(&"n".repeat(63), |_| {}).await;
}

/// What is longer than any schedule is not even read.
#[tokio::test]
async fn requests_that_are_too_long() {
    let node = Node::start();
    let long = v1::Schedule { description: "d".repeat(10 << 20), ..nightly("a") };
    let refused = node.schedules().create_schedule(create(long.clone())).await.unwrap_err();
    assert_eq!(refused.code(), Code::OutOfRange, "{refused:?}");
    let refused = node.schedules().update_schedule(update("a", long, &["description"])).await.unwrap_err();
    assert_eq!(refused.code(), Code::OutOfRange, "{refused:?}");
    // Just short enough, and all of it wrong.
    let window = v1::BlackoutWindow { cron: "0 0 30 2 *".to_owned(), duration: Some(lasting(1)) };
    let mut many = nightly("a");
    timing(&mut many).blackout_windows = vec![window; 50_000];
    assert!(many.encoded_len() < 1 << 20);
    let refused = node.schedules().create_schedule(create(many)).await.unwrap_err();
    assert_eq!(fields(&refused).len(), 16);
    assert!(names(&node).await.is_empty());
}
