//! The catalog: what lasts, what is refused, what is found again.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use uuid::Uuid;

use super::*;
use crate::model::cursor::Cursor;
use crate::model::snapshot::Owner;
use crate::model::step::Step;
use crate::model::vm::{Attachment, RunState};
use crate::model::{
    Cause, DeleteSnapshots, DeletionReason, DiskTarget, Findings, Operation, OperationId, OperationState,
    Outcome, ProcessId, Request, Snapshot, SnapshotId, SnapshotKind, SnapshotState, Turn, VmId,
};

const VM: VmId = VmId(Uuid::from_u128(1));

fn snapshot(name: &str, number: u128) -> Snapshot {
    Snapshot {
        id: SnapshotId(Uuid::from_u128(number)),
        vm: VM,
        vm_name: "web".to_owned(),
        attachment: Attachment::Attached,
        name: name.parse().unwrap(),
        display_name: String::new(),
        description: String::new(),
        kind: SnapshotKind::VmDisks,
        state: SnapshotState::Creating,
        trouble: None,
        parent: None,
        source: None,
        disks: Vec::new(),
        memory: None,
        variables: None,
        run_state: RunState::Running,
        consistency: None,
        frozen_ms: 0.0,
        paused_ms: 0.0,
        owner: Owner { account: "alice".to_owned(), ..Owner::default() },
        properties: BTreeMap::from([("number".to_owned(), number.to_string())]),
        holds: Vec::new(),
        comments: 0,
        expires_at: None,
        created_at: Timestamp::from_millisecond(i64::try_from(number).unwrap() * 1000).unwrap(),
        schedule: None,
        created_by: "test".to_owned(),
        operation: OperationId(Uuid::from_u128(number)),
        generation: 1,
    }
}

fn cause() -> Cause {
    Cause { operation: None, actor: "test".to_owned(), at: Timestamp::UNIX_EPOCH }
}

fn reserved(name: &str, number: u128) -> Reservation {
    Reservation::Snapshot(Box::new(snapshot(name, number)), "definition".to_owned())
}

pub(crate) fn operation(number: u128) -> Operation {
    let snapshot = SnapshotId(Uuid::from_u128(number));
    Operation {
        id: OperationId(Uuid::from_u128(number)),
        vm: VM,
        vm_name: "web".to_owned(),
        attachment: Attachment::Attached,
        snapshot: Some(snapshot),
        snapshot_name: Some("one".parse().unwrap()),
        request: Request::DeleteSnapshots(DeleteSnapshots {
            snapshots: vec![snapshot],
            with_children: false,
            bandwidth: None,
            merge_deadline_ms: None,
            generation: None,
            reason: DeletionReason::Asked,
        }),
        created_by: "test".to_owned(),
        request_id: String::new(),
        steps: vec![Step::Thaw],
        cursor: Cursor::start(1, 0).unwrap(),
        failure: None,
        later_failure: None,
        findings: Findings::default(),
        cancel_requested: false,
        was_abandoned: false,
        created_at: Timestamp::UNIX_EPOCH,
        updated_at: Timestamp::UNIX_EPOCH,
        ended_at: None,
        generation: 1,
    }
}

fn key(id: &str, body: &str) -> RequestKey {
    RequestKey { id: id.to_owned(), principal: "alice".to_owned(), digest: body.as_bytes().to_vec() }
}

#[tokio::test]
async fn a_request_that_is_repeated_begins_nothing() {
    let store = Store::in_memory().unwrap();
    let first = operation(1);
    let begun = store.begin(first.clone(), Some(key("r", "body")), Reservation::None).await.unwrap();
    assert_eq!(begun, Begun::New);
    let begun = store.begin(operation(2), Some(key("r", "body")), Reservation::None).await.unwrap();
    assert_eq!(begun, Begun::Before(Box::new(first.clone())));
    let refused = store.begin(operation(3), Some(key("r", "another body")), Reservation::None).await;
    assert!(matches!(refused, Err(StoreError::KeyReused(id)) if id == "r"));
    assert_eq!(store.find_request(key("s", "body")).await.unwrap(), None);
    assert_eq!(store.open_operations().await.unwrap(), vec![first]);
}

/// What is open is kept, and so is what answers to its request.
#[tokio::test]
async fn what_is_over_goes_when_it_is_old() {
    let store = Store::in_memory().unwrap();
    let day = |day: i64| Timestamp::from_second(day * 24 * 3600).unwrap();
    for (number, is_open) in [(1, true), (2, false), (3, false)] {
        let mut operation =
            Operation { created_at: day(i64::try_from(number).unwrap()), ..operation(number) };
        let key = Some(key(&number.to_string(), "body"));
        store.begin(operation.clone(), key, Reservation::None).await.unwrap();
        if !is_open {
            operation.ended_at = Some(operation.created_at);
            operation.cursor.state = OperationState::Succeeded;
            store.save(operation).await.unwrap();
        }
    }
    let kept = async || {
        let (operations, _) = store.operations(OperationFilter::default(), None, 10).await.unwrap();
        let mut kept: Vec<u128> = operations.iter().map(|operation| operation.id.0.as_u128()).collect();
        kept.sort_unstable();
        kept
    };
    let requests = async || {
        let mut answered = Vec::new();
        for id in ["1", "2", "3"] {
            answered.push(store.find_request(key(id, "body")).await.unwrap().is_some());
        }
        answered
    };
    // One that ended long after it was begun.
    let mut late = Operation { created_at: day(1), ended_at: Some(day(90)), ..operation(4) };
    late.cursor.state = OperationState::Succeeded;
    store.begin(late, None, Reservation::None).await.unwrap();
    store.prune_history(SignedDuration::from_hours(24 * 30), day(31)).await.unwrap();
    assert_eq!((kept().await, requests().await), (vec![1, 2, 3, 4], vec![true; 3]));
    store.prune_history(SignedDuration::from_hours(24 * 30), day(33)).await.unwrap();
    assert_eq!((kept().await, requests().await), (vec![1, 3, 4], vec![true, false, true]));
    store.prune_history(SignedDuration::from_hours(24 * 30), day(99)).await.unwrap();
    assert_eq!((kept().await, requests().await), (vec![1, 4], vec![true, false, false]));
}

#[tokio::test]
async fn a_name_that_is_taken_begins_nothing() {
    let store = Store::in_memory().unwrap();
    let reservation = |number| reserved("one", number);
    store.begin(operation(1), None, reservation(1)).await.unwrap();
    let begun = store.begin(operation(2), Some(key("r", "body")), reservation(2)).await;
    assert!(matches!(begun, Err(StoreError::NameTaken)), "{begun:?}");
    assert_eq!(store.open_operations().await.unwrap().len(), 1);
    assert_eq!(store.find_request(key("r", "body")).await.unwrap(), None, "all of it lasts, or nothing");
}

#[tokio::test]
async fn what_was_written_is_there_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("catalog.db");
    let mut operation = operation(1);
    let store = Store::open(&path).unwrap();
    store.begin(operation.clone(), None, reserved("one", 1)).await.unwrap();
    operation.record(Turn::Ensure(0), Outcome::Unknown, Vec::new(), None);
    store.save(operation.clone()).await.unwrap();
    drop(store);

    let store = Store::open(&path).unwrap();
    assert_eq!(store.open_operations().await.unwrap(), vec![operation.clone()]);
    assert_eq!(store.tree(VM).await.unwrap().snapshots, vec![snapshot("one", 1)]);
    let definition = store.definition(SnapshotId(Uuid::from_u128(1))).await.unwrap();
    assert_eq!(definition.as_deref(), Some("definition"));
    operation.cursor.state = OperationState::Succeeded;
    store.save(operation).await.unwrap();
    assert!(store.open_operations().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_reservation_is_taken_back_only_while_it_is_one() {
    let store = Store::in_memory().unwrap();
    let id = SnapshotId(Uuid::from_u128(1));
    store.begin(operation(1), None, reserved("one", 1)).await.unwrap();
    store.set_state(id, SnapshotState::Ready, cause()).await.unwrap();
    store.forget_reservation(id, cause()).await.unwrap();
    assert_eq!(store.snapshot(id).await.unwrap().map(|snapshot| snapshot.generation), Some(2));
    store.set_state(id, SnapshotState::Creating, cause()).await.unwrap();
    store.forget_reservation(id, cause()).await.unwrap();
    assert_eq!(store.snapshot(id).await.unwrap(), None);
}

#[tokio::test]
async fn leases_last_until_cleared() {
    let store = Store::in_memory().unwrap();
    let lease = GuestLease {
        vm: VM,
        operation: OperationId(Uuid::from_u128(1)),
        boot_id: "boot".to_owned(),
        since_ms: 1,
        deadline_ms: 2,
        standstill: Standstill::Frozen,
        is_thawed: false,
    };
    store.put_lease(lease.clone()).await.unwrap();
    assert_eq!(store.leases().await.unwrap(), vec![lease.clone()]);
    assert_eq!(store.lease(VM).await.unwrap(), Some(lease.clone()));
    store.clear_lease(VM, OperationId::new()).await.unwrap();
    assert_eq!(store.leases().await.unwrap().len(), 1, "it is another operation's");
    store.clear_lease(VM, lease.operation).await.unwrap();
    assert_eq!(store.lease(VM).await.unwrap(), None);
}

#[tokio::test]
async fn pivots_last_until_cleared() {
    let store = Store::in_memory().unwrap();
    let [vda, vdb] = ["vda", "vdb"].map(|disk| disk.parse::<DiskTarget>().unwrap());
    let pivot = |disk: &DiskTarget, process: &str| AskedPivot {
        vm: VM,
        disk: disk.clone(),
        operation: OperationId(Uuid::from_u128(1)),
        process: ProcessId(process.to_owned()),
        child: "/child".into(),
        base: "/base".into(),
    };
    for asked in [pivot(&vda, "first"), pivot(&vda, "second"), pivot(&vdb, "second")] {
        store.put_pivot(asked).await.unwrap();
    }
    assert_eq!(store.pivot(VM, &vda).await.unwrap(), Some(pivot(&vda, "second")));
    store.clear_pivot(VM, vda.clone()).await.unwrap();
    assert_eq!(store.pivot(VM, &vda).await.unwrap(), None);
    assert_eq!(store.pivot(VM, &vdb).await.unwrap(), Some(pivot(&vdb, "second")));
}

/// A client asks and goes, over and over: what it asked for is not done behind its back, and a write does not wait for it.
#[tokio::test]
async fn reads_of_callers_that_have_gone_are_not_done() {
    use futures_util::FutureExt;
    use std::sync::atomic::{AtomicUsize, Ordering};

    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(&directory.path().join("catalog.db")).unwrap();
    let (go, waits) = mpsc::channel::<()>();
    let busy = store.transact(move |_| Ok(waits.recv().is_ok()));
    let mut busy = Box::pin(busy);
    assert!(busy.as_mut().now_or_never().is_none(), "it is in the queue");
    let done = Arc::new(AtomicUsize::new(0));
    for _ in 0..10_000 {
        let done = Arc::clone(&done);
        let read = store.read(move |_| Ok(done.fetch_add(1, Ordering::Relaxed)));
        assert!(read.now_or_never().is_none());
    }
    go.send(()).unwrap();
    assert!(busy.await.unwrap());
    store.probe().await.unwrap();
    assert_eq!(done.load(Ordering::Relaxed), QUEUED_READS);
    store.read(|_| Ok(())).await.unwrap();
}

mod backup;
mod declarations;
mod events;
mod fuzz;
mod lists;
mod lists_model;
mod outbox;
mod schedule_runs;
