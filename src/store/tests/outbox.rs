//! The outbox: what is put in, what stays, when another begins.

use super::*;
use crate::model::OutboxId;
use crate::model::event::{Event, EventKind};

const ROOM: u64 = 1 << 20;

fn id(number: u128) -> OutboxId {
    OutboxId(Uuid::from_u128(number))
}

fn said(message: &str) -> Event {
    Event::new(EventKind::DaemonStarted, message.to_owned(), &cause())
}

/// What is in it, in words.
async fn told(store: &Store, after: u64) -> Vec<(u64, String)> {
    let (_, items) = store.outbox_items(after).await.unwrap().unwrap();
    let words = items.into_iter().map(|item| {
        let words = match item.news {
            News::Operation(operation) => format!("{:?}", operation.cursor.state),
            News::Event(numbered) => numbered.event.message,
        };
        (item.sequence, words)
    });
    words.collect()
}

fn numbered(words: &[&str]) -> Vec<(u64, String)> {
    (1..).zip(words.iter().map(|words| (*words).to_owned())).collect()
}

#[tokio::test]
async fn without_a_controller_nothing_is_put_in() {
    let store = Store::in_memory().unwrap();
    store.tell(said("before")).await.unwrap();
    assert_eq!(store.outbox().await.unwrap(), None);
    assert_eq!(store.outbox_items(0).await.unwrap(), None);
    store.open_outbox(id(1), ROOM).await.unwrap();
    store.tell(said("with one")).await.unwrap();
    assert_eq!(told(&store, 0).await, numbered(&["with one"]));
    store.close_outbox().await.unwrap();
    store.tell(said("after")).await.unwrap();
    assert_eq!(store.outbox().await.unwrap(), None);
    store.open_outbox(id(2), ROOM).await.unwrap();
    let begun = store.outbox().await.unwrap();
    assert_eq!(begun, Some(Outbox { id: id(2), acknowledged: 0, last: 0 }));
}

/// There may be no room for a single write, and a guest to thaw.
#[tokio::test]
async fn opening_it_again_and_having_none_writes_nothing() {
    let store = Store::in_memory().unwrap();
    let changes = async || {
        let count = |transaction: &Transaction<'_>| {
            Ok(transaction.query_row("SELECT total_changes()", [], |row| row.get::<_, i64>(0))?)
        };
        store.transact(count).await.unwrap()
    };
    let none = changes().await;
    store.close_outbox().await.unwrap();
    assert_eq!(changes().await, none);
    store.open_outbox(id(1), ROOM).await.unwrap();
    let open = changes().await;
    store.open_outbox(id(2), ROOM).await.unwrap();
    assert_eq!(changes().await, open);
}

/// A state is told once, with what it was like then; a turn within it is not. All of it outlives the daemon.
#[tokio::test]
async fn each_state_and_each_event_is_told_in_order() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("catalog.db");
    let store = Store::open(&path).unwrap();
    store.open_outbox(id(1), ROOM).await.unwrap();
    let mut operation = operation(1);
    store.begin(operation.clone(), None, reserved("one", 1)).await.unwrap();
    operation.generation += 1;
    store.save(operation.clone()).await.unwrap();
    operation.cursor.state = OperationState::Succeeded;
    store.save(operation.clone()).await.unwrap();
    drop(store);

    let store = Store::open(&path).unwrap();
    store.open_outbox(id(2), ROOM).await.unwrap();
    let opened = store.outbox().await.unwrap();
    assert_eq!(opened, Some(Outbox { id: id(1), acknowledged: 0, last: 5 }), "it is the same one");
    let expected = numbered(&[
        "delete snapshot has begun",
        "Running { at: 0 }",
        "snapshot one is being made",
        "delete snapshot has succeeded",
        "Succeeded",
    ]);
    assert_eq!(told(&store, 0).await, expected);
    assert_eq!(told(&store, 3).await, expected[3..]);
}

#[tokio::test]
async fn what_is_acknowledged_goes() {
    let store = Store::in_memory().unwrap();
    store.open_outbox(id(1), ROOM).await.unwrap();
    for word in ["a", "b", "c"] {
        store.tell(said(word)).await.unwrap();
    }
    let left = async || {
        let outbox = store.outbox().await.unwrap().unwrap();
        (outbox.acknowledged, outbox.last, told(&store, 0).await.len())
    };
    for (outbox, sequence, expected) in [
        // Of another outbox, and of what was never put in.
        (2, 3, (0, 3, 3)),
        (1, 4, (0, 3, 3)),
        (1, 2, (2, 3, 1)),
        // A word that comes late takes nothing back.
        (1, 1, (2, 3, 1)),
        (1, 3, (3, 3, 0)),
    ] {
        store.acknowledge(id(outbox), sequence).await.unwrap();
        store.prune_outbox().await.unwrap();
        assert_eq!(left().await, expected, "{sequence} of {outbox}");
    }
    store.tell(said("d")).await.unwrap();
    assert_eq!(told(&store, 0).await, vec![(4, "d".to_owned())], "numbers go on");
}

/// What is acknowledged makes room, once it is removed; numbers begin anew, and nothing of the old outbox is told.
#[tokio::test]
async fn a_full_outbox_is_followed_by_another_that_says_so() {
    let store = Store::in_memory().unwrap();
    store.open_outbox(id(1), 4096).await.unwrap();
    let first = store.outbox().await.unwrap().unwrap();
    let long = "x".repeat(1000);
    for round in 0..10 {
        store.tell(said(&long)).await.unwrap();
        store.acknowledge(first.id, round + 1).await.unwrap();
        store.prune_outbox().await.unwrap();
    }
    assert_eq!(store.outbox().await.unwrap(), Some(Outbox { acknowledged: 10, last: 10, ..first }));
    for _ in 0..4 {
        store.tell(said(&long)).await.unwrap();
    }
    let second = store.outbox().await.unwrap().unwrap();
    assert_ne!(second.id, first.id);
    assert_eq!((second.acknowledged, second.last), (0, 1));
    let (_, items) = store.outbox_items(0).await.unwrap().unwrap();
    let News::Event(full) = &items[0].news else { panic!("{items:?}") };
    assert_eq!((items.len(), items[0].sequence, full.event.kind), (1, 1, EventKind::OutboxDropped));
    assert_eq!(full.event.attributes["dropped"], "4");
    let page = store.events(EventFilter::default(), EventOrder::After(0), 100).await.unwrap();
    assert_eq!(page.total, 15, "the events themselves are all there");
    store.prune_outbox().await.unwrap();
    assert_eq!(store.outbox_items(0).await.unwrap().unwrap().1, items, "what is given up goes, and no more");

    let renew = async |old| store.renew_outbox(old, id(3), "of a test", Timestamp::UNIX_EPOCH).await.unwrap();
    renew(first.id).await;
    assert_eq!(store.outbox().await.unwrap(), Some(second), "it is over already");
    renew(second.id).await;
    let third = store.outbox().await.unwrap().unwrap();
    assert_eq!((third.id, third.last), (id(3), 1), "it says so, too");
}

/// Nobody waits for all that a controller has acknowledged to be removed.
#[tokio::test]
async fn much_is_removed_in_portions() {
    let store = Store::in_memory().unwrap();
    store.open_outbox(id(1), ROOM).await.unwrap();
    for _ in 0..200 {
        store.tell(said("x")).await.unwrap();
    }
    store.acknowledge(id(1), 190).await.unwrap();
    let mut portions = 1;
    while store.prune_portion().await.unwrap() {
        portions += 1;
    }
    assert_eq!(portions, 3);
    assert_eq!(told(&store, 0).await.len(), 10);
    store.close_outbox().await.unwrap();
    store.prune_outbox().await.unwrap();
    store.open_outbox(id(2), ROOM).await.unwrap();
    assert_eq!(told(&store, 0).await, []);
}

/// Whatever is told after the copy was made would have the numbers of what was told before it is put back.
#[tokio::test]
async fn a_backup_has_no_outbox() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(&directory.path().join("catalog.db")).unwrap();
    store.open_outbox(id(1), ROOM).await.unwrap();
    store.begin(operation(1), None, Reservation::None).await.unwrap();
    let small = store.back_up(None, 3, Timestamp::UNIX_EPOCH).await.unwrap().bytes;
    let long = "x".repeat(1000);
    for _ in 0..500 {
        store.tell(said(&long)).await.unwrap();
    }
    store.prune_history(SignedDuration::from_hours(1), Timestamp::now()).await.unwrap();
    let backup = store.back_up(None, 3, Timestamp::now()).await.unwrap();
    assert!(backup.bytes < small + 100_000, "nor the room that it took: {small}, then {}", backup.bytes);
    let copy = Store::open(&backup.path).unwrap();
    assert_eq!(copy.outbox().await.unwrap(), None);
    copy.open_outbox(id(2), ROOM).await.unwrap();
    let begun = copy.outbox().await.unwrap().unwrap();
    assert_eq!((begun.id, begun.last), (id(2), 0));
}
