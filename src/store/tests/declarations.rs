//! What somebody says of a snapshot, as it is written down.

use jiff::Timestamp;

use super::{Reservation, cause, operation, snapshot};
use crate::model::{
    Declaration, Declared, Edit, EditRefusal, Failure, Reason, Snapshot, SnapshotState, Update,
};
use crate::store::{Store, StoreError};

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

/// A snapshot of this state and trouble, which expires at 100 s, is declared READY at 50 s, and at 100 s.
async fn check(state: SnapshotState, trouble: Option<Reason>, expected: [Result<SnapshotState, Reason>; 2]) {
    for (now, expected) in [50, 100].into_iter().zip(expected) {
        let store = Store::in_memory().unwrap();
        let why = |reason| Failure { reason, message: String::new(), causes: Vec::new() };
        let before =
            Snapshot { state, trouble: trouble.map(why), expires_at: Some(at(100)), ..snapshot("one", 1) };
        let reservation = Reservation::Snapshot(Box::new(before.clone()), String::new());
        store.begin(operation(1), None, reservation).await.unwrap();
        let declaration =
            Declaration { what: Declared::Ready, by: "test".to_owned(), generation: None, at: at(now) };
        let declared = store.edit(before.id, Edit::Declare(declaration), None, cause()).await;
        let declared = match declared {
            Ok(after) => Ok(after.unwrap().state),
            Err(StoreError::Edit(refusal)) => Err(refusal.reason()),
            Err(other) => panic!("{other}"),
        };
        assert_eq!(declared, expected, "{state} {trouble:?} at {now}");
        let kept = store.snapshot(before.id).await.unwrap().unwrap();
        assert_eq!(kept.trouble.is_none(), kept.state == SnapshotState::Ready || trouble.is_none());
        assert_eq!(kept == before, expected.is_err() || state == SnapshotState::Ready);
    }
}

#[tokio::test]
async fn what_may_be_ready() {
    use SnapshotState::{Creating, Deleting, Error, Lost, Ready, Reverting};
    let no = |reason| [Err(reason), Err(reason)];
    check(Error, Some(Reason::Declared), [Ok(Ready), Err(Reason::SnapshotNotReady)]).await;
    check(Error, Some(Reason::Abandoned), no(Reason::ImageChanged)).await;
    check(Error, Some(Reason::ImageChanged), no(Reason::ImageChanged)).await;
    check(Error, None, no(Reason::ImageChanged)).await;
    check(Ready, None, [Ok(Ready), Ok(Ready)]).await;
    for state in [Creating, Reverting, Deleting, Lost] {
        check(state, None, no(Reason::SnapshotNotReady)).await;
    }
}

/// Whoever has lost it for its time may let it last first.
#[tokio::test]
async fn what_has_expired_is_let_last_first() {
    let store = Store::in_memory().unwrap();
    let trouble = Failure { reason: Reason::Declared, message: String::new(), causes: Vec::new() };
    let before = Snapshot {
        state: SnapshotState::Error,
        trouble: Some(trouble),
        expires_at: Some(at(1)),
        ..snapshot("one", 1)
    };
    let reservation = Reservation::Snapshot(Box::new(before.clone()), String::new());
    store.begin(operation(1), None, reservation).await.unwrap();
    let declare = async || {
        let declaration =
            Declaration { what: Declared::Ready, by: "test".to_owned(), generation: None, at: at(2) };
        store.edit(before.id, Edit::Declare(declaration), None, cause()).await
    };
    let refused = declare().await.unwrap_err();
    assert!(matches!(refused, StoreError::Edit(EditRefusal::Expired(_))), "{refused}");
    let lasts = Edit::Update(Box::new(Update { expires_at: Some(None), ..Update::default() }));
    store.edit(before.id, lasts, None, cause()).await.unwrap();
    assert_eq!(declare().await.unwrap().unwrap().state, SnapshotState::Ready);
}
