//! Runs of schedules: each VM of a run has a row of its own, also one that an earlier version has written.

use std::collections::BTreeSet;

use rusqlite::Connection;

use super::*;
use crate::model::event::{of_pruning, of_run};
use crate::model::schedule::{
    CatchUp, Retention, RunStage, RunState, RunVm, ScheduleLimits, ScheduleWish, SnapshotTemplate, Timing,
    VmSelector,
};
use crate::model::{Event, Quiesce, Schedule, ScheduleRun, ScheduleRunId};

fn schedule() -> Schedule {
    let template = SnapshotTemplate {
        name: "{count}".parse().unwrap(),
        description: String::new(),
        disks: [].into(),
        memory: false,
        quiesce: Quiesce::Auto,
        mount_points: Vec::new(),
        owner: Owner::default(),
        properties: [].into(),
    };
    let timing = Timing {
        cron: "0 3 * * *".parse().unwrap(),
        zone: "UTC".parse().unwrap(),
        jitter_ms: 0,
        blackouts: Vec::new(),
        catch_up: CatchUp::Once,
    };
    let wish = ScheduleWish {
        name: "nightly".parse().unwrap(),
        description: String::new(),
        selector: VmSelector { all: true, ..VmSelector::default() },
        template,
        timing,
        retention: Retention { last: 2, ..Retention::default() },
        limits: ScheduleLimits::default(),
    };
    Schedule {
        id: ScheduleId(Uuid::from_u128(1)),
        wish,
        is_paused: false,
        created_at: Timestamp::UNIX_EPOCH,
        created_by: "test".to_owned(),
        generation: 1,
    }
}

/// One that is going, with so many VMs, each of them at another point.
fn run(number: u128, vms: usize) -> ScheduleRun {
    let stages = [RunStage::Waiting, RunStage::Pruning, RunStage::Done];
    let vm = |index: usize| RunVm {
        stage: stages[index % 3],
        doomed: vec![SnapshotId(Uuid::from_u128(number)); index % 2],
        doomed_bytes: u64::MAX - number_of(index),
        ..RunVm::new(VmId(Uuid::from_u128(index as u128)), format!("vm \"{index}\" é"), Timestamp::UNIX_EPOCH)
    };
    ScheduleRun {
        id: ScheduleRunId(Uuid::from_u128(number)),
        schedule: schedule(),
        count: u64::try_from(number).unwrap(),
        state: RunState::Running,
        due_at: None,
        is_late: false,
        started_at: Timestamp::UNIX_EPOCH,
        ended_at: None,
        vms: (0..vms).map(vm).collect(),
        missing: BTreeSet::new(),
    }
}

fn number_of(index: usize) -> u64 {
    u64::try_from(index).unwrap()
}

fn pruned(run: &ScheduleRun, index: usize) -> Event {
    of_pruning(&run.schedule, &run.vms[index], &cause())
}

/// Takes the VM at a place a step further, as a run does.
async fn step(store: &Store, run: &mut ScheduleRun, index: usize) {
    run.vms[index].stage = RunStage::Done;
    let told = Some(pruned(run, index));
    store.write_run_vm(run.id, index, run.vms[index].clone(), told).await.unwrap();
}

async fn end(store: &Store, run: ScheduleRun) -> ScheduleRun {
    let ended = run.ended(Timestamp::UNIX_EPOCH);
    store.end_run(ended.clone(), None, vec![of_run(&ended, &cause())]).await.unwrap();
    ended
}

/// A catalog of version 8 had one row for a run and all of its VMs.
#[tokio::test]
async fn runs_of_an_earlier_version_are_carried_over() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("catalog.db");
    schema::make_old(&path, 8);
    let mut ended = run(1, 3).ended(Timestamp::UNIX_EPOCH);
    let (empty, mut open) = (run(2, 0).ended(Timestamp::UNIX_EPOCH), run(3, 12));
    let old = Connection::open(&path).unwrap();
    let insert = |id: &str, is_open: bool, body: &str| {
        let sql = "INSERT INTO schedule_run (id, schedule, is_open, started_at, body) VALUES (?, ?, ?, 0, ?)";
        old.execute(sql, (id, schedule().id.to_string(), is_open, body)).unwrap();
    };
    for run in [&ended, &empty, &open] {
        let body = to_json(run, "run").unwrap();
        insert(&run.id.to_string(), run.state == RunState::Running, &body);
    }
    // What cannot be read then cannot be read now, and holds up no other.
    for (id, body) in
        [("a", "{"), ("b", "{}"), ("c", r#"{"vms": 3}"#), ("d", r#"{"vms": [3, null]}"#), ("e", "")]
    {
        insert(id, true, body);
    }
    drop(old);

    let store = Store::open(&path).unwrap();
    assert_eq!(store.open_runs().await.unwrap(), [open.clone()]);
    assert_eq!(store.run(ended.id).await.unwrap(), Some(ended.clone()));
    assert_eq!(store.run(empty.id).await.unwrap(), Some(empty));
    step(&store, &mut open, 10).await;
    assert_eq!(store.run(open.id).await.unwrap(), Some(open.clone()));
    let open = end(&store, open).await;
    assert_eq!(store.run(open.id).await.unwrap(), Some(open));
    assert_eq!(store.open_runs().await.unwrap(), []);
    step(&store, &mut ended, 0).await;
    assert_eq!(store.run(ended.id).await.unwrap(), Some(ended));
}

#[tokio::test]
async fn a_page_of_runs_has_the_vms_of_each_in_their_order() {
    let store = Store::in_memory().unwrap();
    store.add_schedule(schedule(), None, cause()).await.unwrap();
    let mut runs = Vec::new();
    for number in 1..=5_u128 {
        let begun = store.begin_run(run(number, 11), None, None, None, cause()).await.unwrap();
        runs.insert(0, end(&store, begun).await);
    }
    let id = schedule().id;
    assert_eq!(store.runs(id, None, 3).await.unwrap(), (runs[..3].to_vec(), 5));
    assert_eq!(store.runs(id, Some(runs[2].id), 3).await.unwrap(), (runs[3..].to_vec(), 5));
    let kept = store.schedules().await.unwrap();
    assert_eq!(kept[0].last_run.as_ref(), runs.first());
    // What goes takes its VMs with it.
    store.prune_history(SignedDuration::ZERO, Timestamp::MAX).await.unwrap();
    let vms = |transaction: &Transaction<'_>| {
        Ok(transaction.row("SELECT count(*) FROM schedule_run_vm", [], |row| row.get::<_, i64>(0))?)
    };
    assert_eq!(store.read(vms).await.unwrap(), 0);
}

/// A schedule whose newest run cannot be read is there all the same, and begins another.
#[tokio::test]
async fn a_run_that_cannot_be_read_holds_up_nothing() {
    for damage in [
        "UPDATE schedule_run SET body = '{}'",
        "UPDATE schedule_run_vm SET body = '[]'",
        "UPDATE schedule_run SET body = replace(body, 'generation', 'age')",
    ] {
        let store = Store::in_memory().unwrap();
        store.add_schedule(schedule(), None, cause()).await.unwrap();
        store.begin_run(run(1, 3), None, None, None, cause()).await.unwrap();
        let refused = store.begin_run(run(2, 3), None, None, None, cause()).await.unwrap_err();
        assert!(matches!(refused, StoreError::ScheduleRunning(_)), "{damage}: {refused}");
        store.transact(move |transaction| Ok(transaction.execute_batch(damage)?)).await.unwrap();
        let kept = store.schedules().await.unwrap();
        assert_eq!((kept.len(), &kept[0].last_run), (1, &None), "{damage}");
        let begun = store.begin_run(run(2, 3), None, None, None, cause()).await.unwrap();
        assert_eq!(store.open_runs().await.unwrap(), std::slice::from_ref(&begun), "{damage}");
        assert_eq!(store.runs(schedule().id, None, 9).await.unwrap(), (vec![begun], 2), "{damage}");
    }
}

/// What somebody has set or paused since it was looked at does not begin as it was.
#[tokio::test]
async fn a_run_begins_as_its_schedule_is() {
    let store = Store::in_memory().unwrap();
    store.add_schedule(schedule(), None, cause()).await.unwrap();
    store.edit_schedule(schedule().id, ScheduleEdit::Pause, None, None, cause()).await.unwrap();
    let refused = store.begin_run(run(1, 3), None, None, None, cause()).await.unwrap_err();
    assert!(matches!(refused, StoreError::ScheduleChanged { actual: 2 }), "{refused}");
    assert_eq!(store.open_runs().await.unwrap(), []);
}

/// A VM's step and what is told of it last together, or not at all.
#[tokio::test]
async fn a_step_that_cannot_be_told_is_not_written() {
    let store = Store::in_memory().unwrap();
    store.add_schedule(schedule(), None, cause()).await.unwrap();
    let begun = store.begin_run(run(1, 3), None, None, None, cause()).await.unwrap();
    let full = "CREATE TRIGGER full BEFORE INSERT ON event BEGIN SELECT RAISE(ABORT, 'no room'); END";
    store.transact(move |transaction| Ok(transaction.execute_batch(full)?)).await.unwrap();
    let mut vm = begun.vms[0].clone();
    vm.stage = RunStage::Done;
    let written = store.write_run_vm(begun.id, 0, vm, Some(pruned(&begun, 0))).await;
    assert!(written.is_err(), "{written:?}");
    let told = vec![of_run(&begun, &cause())];
    let written = store.end_run(begun.clone(), Some(Timestamp::MAX), told).await;
    assert!(written.is_err(), "{written:?}");
    assert_eq!(store.schedules().await.unwrap()[0].seen_until, Timestamp::UNIX_EPOCH);
    assert_eq!(store.run(begun.id).await.unwrap(), Some(begun));
}

/// How much is written for a step does not depend on how many other VMs a run has.
#[tokio::test]
async fn a_step_of_one_vm_writes_little() {
    let mut most = 0;
    for vms in [5, 500] {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("catalog.db");
        let store = Store::open(&path).unwrap();
        // Nothing is taken out of the log, so its length is what was written.
        let keep = |transaction: &Transaction<'_>| {
            Ok(transaction.row("PRAGMA wal_autocheckpoint = 0", [], |_| Ok(()))?)
        };
        store.transact(keep).await.unwrap();
        store.add_schedule(schedule(), None, cause()).await.unwrap();
        let mut begun = store.begin_run(run(1, vms), None, None, None, cause()).await.unwrap();
        let log = || std::fs::metadata(directory.path().join("catalog.db-wal")).unwrap().len();
        let before = log();
        for index in 0..vms {
            step(&store, &mut begun, index).await;
        }
        let each = (log() - before) / number_of(vms);
        most = most.max(each);
    }
    assert!(most < 100_000, "{most} bytes for one step");
}
