//! Backups: what is in them, what is left when one fails, how many there are.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::*;
use crate::model::cursor::Direction as Way;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> =
        fs::read_dir(directory.join("backup")).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

/// Writers are not held up, and each copy is the catalog as it was at one moment: a prefix of what was written.
#[tokio::test]
async fn a_copy_is_one_moment_of_a_catalog_that_is_written_to() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(&directory.path().join("catalog.db")).unwrap();
    let writing = async {
        for number in 1..=60 {
            let name = format!("s{number}");
            store.begin(operation(number), None, reserved(&name, number)).await.unwrap();
        }
    };
    let backing_up = async {
        let mut copies = Vec::new();
        for second in 1..=5 {
            copies.push(store.back_up(None, 10, at(second)).await.unwrap());
        }
        copies
    };
    let ((), copies) = tokio::join!(writing, backing_up);
    let whole = store.tree(VM).await.unwrap().snapshots;
    let mut last = 0;
    for (index, copy) in copies.iter().chain([&store.back_up(None, 10, at(9)).await.unwrap()]).enumerate() {
        let meta = fs::metadata(&copy.path).unwrap();
        assert_eq!((meta.permissions().mode() & 0o777, meta.len()), (0o600, copy.bytes));
        let elsewhere = directory.path().join(format!("copy-{index}.db"));
        fs::copy(&copy.path, &elsewhere).unwrap();
        let opened = Store::open(&elsewhere).unwrap();
        let held = opened.tree(VM).await.unwrap().snapshots;
        assert_eq!(held, whole[..held.len()]);
        assert_eq!(
            opened.open_operations().await.unwrap().len(),
            held.len(),
            "all of a transaction, or nothing"
        );
        assert!(held.len() >= last);
        last = held.len();
    }
    assert_eq!(last, 60, "the last copy has all");
}

/// By the time that somebody puts it in place the images have moved on.
#[tokio::test]
async fn nothing_in_a_copy_goes_on_by_itself() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(&directory.path().join("catalog.db")).unwrap();
    let (forward, mut back) = (operation(1), operation(2));
    back.steps = vec![Step::Thaw, Step::Thaw];
    back.cursor = Cursor::start(2, 1).unwrap();
    back.record(Turn::Ensure(0), Outcome::Unknown, Vec::new(), None);
    assert!(matches!(back.cursor.state, OperationState::Undoing { .. }), "{back:?}");
    for open in [&forward, &back] {
        store.begin(open.clone(), None, Reservation::None).await.unwrap();
        store.save(open.clone()).await.unwrap();
    }
    let lease = GuestLease {
        vm: VM,
        operation: forward.id,
        boot_id: "boot".to_owned(),
        since_ms: 0,
        deadline_ms: 1,
        standstill: Standstill::Frozen,
        is_thawed: false,
    };
    store.put_lease(lease.clone()).await.unwrap();
    let copy = store.back_up(None, 10, at(1)).await.unwrap();
    let elsewhere = directory.path().join("put-back.db");
    fs::copy(&copy.path, &elsewhere).unwrap();
    let put_back = Store::open(&elsewhere).unwrap();
    assert_eq!(put_back.leases().await.unwrap(), [], "who is frozen then was frozen by somebody else");
    assert_eq!(store.leases().await.unwrap(), [lease]);
    let held = put_back.open_operations().await.unwrap();
    let state = |at: usize| &held[at].cursor.state;
    assert_eq!(*state(0), OperationState::Stuck { at: 0, direction: Way::Forward });
    assert_eq!(*state(1), OperationState::Stuck { at: 0, direction: Way::Back });
    for operation in &held {
        let told = operation.later_failure.as_ref().or(operation.failure.as_ref()).unwrap();
        assert!(told.message.contains("put back from a backup"), "{told:?}");
    }
    assert_eq!(
        store.open_operations().await.unwrap(),
        [forward, back],
        "the catalog itself knows nothing of it"
    );
}

#[tokio::test]
async fn the_same_request_makes_no_second_copy() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(&directory.path().join("catalog.db")).unwrap();
    let first = store.back_up(Some(key("r", "backup")), 10, at(1)).await.unwrap();
    assert_eq!(store.back_up(Some(key("r", "backup")), 10, at(2)).await.unwrap(), first);
    assert_eq!(files(directory.path()), std::slice::from_ref(&first.path));
    let reused = store.back_up(Some(key("r", "another")), 10, at(3)).await;
    assert!(matches!(reused, Err(StoreError::KeyReused(_))), "{reused:?}");
    // Nobody is told of a copy that is not there.
    fs::remove_file(&first.path).unwrap();
    let again = store.back_up(Some(key("r", "backup")), 10, at(4)).await.unwrap();
    assert_eq!(files(directory.path()), std::slice::from_ref(&again.path));
    assert_eq!(store.back_up(Some(key("r", "backup")), 10, at(5)).await.unwrap(), again);
}

#[tokio::test]
async fn the_newest_are_kept_and_nothing_else_is_touched() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(&directory.path().join("catalog.db")).unwrap();
    store.back_up(None, 2, at(1)).await.unwrap();
    let notes = directory.path().join("backup/notes");
    fs::write(&notes, "mine").unwrap();
    // A crash left it.
    fs::write(directory.path().join("backup/catalog-19700101T000000.000Z.db.part"), "half").unwrap();
    let second = store.back_up(None, 2, at(2)).await.unwrap().path;
    let third = store.back_up(None, 2, at(3)).await.unwrap().path;
    assert_eq!(files(directory.path()), [second, third, notes]);
}

#[tokio::test]
async fn a_failure_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(&directory.path().join("catalog.db")).unwrap();
    fs::write(directory.path().join("backup"), "a file stands in the way").unwrap();
    let failed = store.back_up(None, 2, at(1)).await.unwrap_err();
    assert!(matches!(failed, StoreError::Backup { .. }), "{failed:?}");
    assert_eq!(failed.reason(), Reason::CatalogFailed);
    fs::remove_file(directory.path().join("backup")).unwrap();
    let kept = store.back_up(None, 1, at(2)).await.unwrap();
    // The name is taken, by what no file can replace.
    fs::create_dir(directory.path().join("backup/catalog-19700101T000003.000Z.db")).unwrap();
    store.back_up(None, 1, at(3)).await.unwrap_err();
    fs::remove_dir(directory.path().join("backup/catalog-19700101T000003.000Z.db")).unwrap();
    assert_eq!(files(directory.path()), [kept.path], "nothing is left, and nothing was removed");
    assert!(store.probe().await.is_ok());
}

/// The copy is whole, but who asked is told of a failure: it does not stay, and takes the place of none.
#[tokio::test]
async fn a_copy_whose_request_cannot_be_noted_does_not_stay() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("catalog.db");
    let store = Store::open(&path).unwrap();
    let kept = store.back_up(None, 1, at(1)).await.unwrap();
    let somebody = rusqlite::Connection::open(&path).unwrap();
    let full = "CREATE TRIGGER full BEFORE INSERT ON request BEGIN SELECT RAISE(ABORT, 'full'); END";
    somebody.execute(full, []).unwrap();
    let failed = store.back_up(Some(key("r", "backup")), 1, at(2)).await.unwrap_err();
    assert!(matches!(failed, StoreError::Sqlite(_)), "{failed:?}");
    assert_eq!(files(directory.path()), std::slice::from_ref(&kept.path));
    somebody.execute("DROP TRIGGER full", []).unwrap();
    let made = store.back_up(Some(key("r", "backup")), 1, at(3)).await.unwrap();
    assert_eq!(files(directory.path()), [made.path]);
}
