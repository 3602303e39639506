//! Lists of snapshots: each filter, each order, page by page.

use super::*;
use crate::model::{DiskTarget, Edit, Hold, LayerId, SnapshotDisk, Update, VolumeId};
use crate::store::{Direction, OrderBy, Page, Position, SnapshotFilter};

const ALL: [&str; 4] = ["gamma", "beta", "betb", "alpha"];

fn id(number: u128) -> SnapshotId {
    SnapshotId(Uuid::from_u128(number))
}

fn second(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

/// Four snapshots of four VMs: the VMs' names are in another order than the snapshots' and their times.
async fn shelf() -> Store {
    let store = Store::in_memory().unwrap();
    for (number, (name, vm)) in (1..).zip(ALL.iter().zip(["web-3", "web-4", "web-1", "web-2"])) {
        let snapshot = Snapshot { vm_name: vm.to_owned(), ..marked(name, number) };
        let reservation = Reservation::Snapshot(Box::new(snapshot), String::new());
        store.begin(operation(number), None, reservation).await.unwrap();
    }
    store
}

/// Each differs from the others in what one filter looks for.
fn marked(name: &str, number: u128) -> Snapshot {
    let mut snapshot = snapshot(name, number);
    match number {
        2 => snapshot.kind = SnapshotKind::Volume,
        3 => {
            snapshot.parent = Some(id(1));
            snapshot.holds = vec![Hold {
                name: "audit".parse().unwrap(),
                reason: String::new(),
                created_at: Timestamp::UNIX_EPOCH,
                created_by: "test".to_owned(),
            }];
        }
        4 => {
            snapshot.state = SnapshotState::Error;
            snapshot.disks = vec![SnapshotDisk {
                target: "vda".parse::<DiskTarget>().unwrap(),
                volume: VolumeId(Uuid::from_u128(70)),
                layer: LayerId(Uuid::from_u128(80)),
                virtual_size: 1,
                allocated: 1,
            }];
        }
        _ => {}
    }
    snapshot
}

/// Walks a list in pages of three.
async fn names(store: &Store, filter: &SnapshotFilter, order: OrderBy, direction: Direction) -> Vec<String> {
    let mut after: Option<Position> = None;
    let mut names = Vec::new();
    loop {
        let page = Page { limit: 3, after, order, direction };
        let part = store.snapshots(filter.clone(), page).await.unwrap();
        assert!(part.snapshots.len() <= 3);
        names.extend(part.snapshots.iter().map(|placed| placed.snapshot.name.to_string()));
        after = part.next;
        if after.is_none() {
            assert_eq!(part.total, names.len() as u64, "{filter:?}");
            return names;
        }
    }
}

#[tokio::test]
async fn filters() {
    let store = shelf().await;
    let all = SnapshotFilter::default;
    let check = async |filter: SnapshotFilter, expected: &[&str]| {
        let found = names(&store, &filter, OrderBy::Created, Direction::Ascending).await;
        assert_eq!(found, expected, "{filter:?}");
    };
    check(all(), &ALL).await;
    check(SnapshotFilter { vms: Some(vec![VmId(Uuid::nil())]), ..all() }, &[]).await;
    check(SnapshotFilter { name: "beta".to_owned(), ..all() }, &["beta"]).await;
    check(SnapshotFilter { name_prefix: "bet".to_owned(), ..all() }, &["beta", "betb"]).await;
    check(SnapshotFilter { name_prefix: "%".to_owned(), ..all() }, &[]).await;
    check(SnapshotFilter { account: "bob".to_owned(), ..all() }, &[]).await;
    check(SnapshotFilter { account: "alice".to_owned(), ..all() }, &ALL).await;
    check(SnapshotFilter { domain: "somewhere".to_owned(), ..all() }, &[]).await;
    check(SnapshotFilter { states: vec![SnapshotState::Ready], ..all() }, &[]).await;
    check(SnapshotFilter { states: vec![SnapshotState::Ready, SnapshotState::Error], ..all() }, &["alpha"])
        .await;
    check(SnapshotFilter { kinds: vec![SnapshotKind::VmDisksAndMemory], ..all() }, &[]).await;
    check(SnapshotFilter { kinds: vec![SnapshotKind::Volume], ..all() }, &["beta"]).await;
    check(SnapshotFilter { held: Some(true), ..all() }, &["betb"]).await;
    check(SnapshotFilter { held: Some(false), ..all() }, &["gamma", "beta", "alpha"]).await;
    check(SnapshotFilter { parent: Some(id(1)), ..all() }, &["betb"]).await;
    check(SnapshotFilter { volume: Some(VolumeId(Uuid::from_u128(70))), ..all() }, &["alpha"]).await;
    let property = |value: Option<&str>| vec![("number".to_owned(), value.map(str::to_owned))];
    check(SnapshotFilter { properties: property(Some("2")), ..all() }, &["beta"]).await;
    check(SnapshotFilter { properties: property(None), ..all() }, &ALL).await;
    check(SnapshotFilter { properties: vec![("numb".to_owned(), None)], ..all() }, &[]).await;
    let window = SnapshotFilter { created_after: Some(second(2)), created_before: Some(second(4)), ..all() };
    check(window, &["beta", "betb"]).await;
}

#[tokio::test]
async fn each_order_goes_both_ways() {
    let store = shelf().await;
    let check = async |order, expected: [&str; 4]| {
        let filter = SnapshotFilter::default();
        assert_eq!(names(&store, &filter, order, Direction::Ascending).await, expected);
        let mut backwards = expected;
        backwards.reverse();
        assert_eq!(names(&store, &filter, order, Direction::Descending).await, backwards);
    };
    check(OrderBy::Created, ALL).await;
    check(OrderBy::Name, ["alpha", "beta", "betb", "gamma"]).await;
    check(OrderBy::VmName, ["betb", "alpha", "gamma", "beta"]).await;
}

/// A filter looks at what a snapshot is now.
#[tokio::test]
async fn what_is_filtered_by_follows_the_snapshot() {
    let store = shelf().await;
    let edit = Edit::Update(Box::new(Update {
        name: Some("delta".parse().unwrap()),
        account: Some("bob".to_owned()),
        set_properties: BTreeMap::from([("number".to_owned(), "70".to_owned())]),
        ..Update::default()
    }));
    store.set_state(id(1), SnapshotState::Ready, cause()).await.unwrap();
    store.edit(id(1), edit, None, cause()).await.unwrap().unwrap();
    let all = SnapshotFilter::default;
    for (filter, expected) in [
        (SnapshotFilter { name: "gamma".to_owned(), ..all() }, 0),
        (SnapshotFilter { name: "delta".to_owned(), ..all() }, 1),
        (SnapshotFilter { account: "bob".to_owned(), ..all() }, 1),
        (SnapshotFilter { states: vec![SnapshotState::Ready], ..all() }, 1),
        (SnapshotFilter { properties: vec![("number".to_owned(), Some("70".to_owned()))], ..all() }, 1),
        (SnapshotFilter { properties: vec![("number".to_owned(), Some("1".to_owned()))], ..all() }, 0),
    ] {
        let found = names(&store, &filter, OrderBy::Created, Direction::Ascending).await;
        assert_eq!(found.len(), expected, "{filter:?}");
    }
}

#[tokio::test]
async fn a_snapshot_is_shown_with_what_stands_around_it() {
    let store = shelf().await;
    let page =
        store.snapshots(SnapshotFilter::default(), Page { limit: 10, ..Page::default() }).await.unwrap();
    let children: Vec<u32> = page.snapshots.iter().map(|placed| placed.children).collect();
    assert_eq!(children, [1, 0, 0, 0]);
    assert!(page.snapshots.iter().all(|placed| !placed.is_current && placed.paths.is_empty()));
    let snapshots = page.snapshots.iter().map(|placed| placed.snapshot.clone()).collect();
    assert_eq!(store.placed(snapshots).await.unwrap(), page.snapshots);
}

/// Few are collected first, many are looked up one by one, and of one alone an index knows the number: each finds the same.
#[tokio::test]
async fn common_and_rare_properties() {
    let store = Store::in_memory().unwrap();
    let count = 1200_u128;
    for number in 1..=count {
        let mut snapshot = snapshot(&format!("s{number:04}"), number);
        let parity = if number % 2 == 0 { "even" } else { "odd" };
        snapshot.properties.insert("parity".to_owned(), parity.to_owned());
        if number > 1190 {
            snapshot.properties.insert("late".to_owned(), String::new());
        }
        let reservation = Reservation::Snapshot(Box::new(snapshot), String::new());
        store.begin(operation(number), None, reservation).await.unwrap();
    }
    let check = async |properties: &[(&str, Option<&str>)], prefix: &str, expected: u64, last: &str| {
        let owned = properties.iter().map(|(key, value)| ((*key).to_owned(), value.map(str::to_owned)));
        let filter = SnapshotFilter {
            properties: owned.collect(),
            name_prefix: prefix.to_owned(),
            ..SnapshotFilter::default()
        };
        let page = Page { limit: 1, direction: Direction::Descending, ..Page::default() };
        let part = store.snapshots(filter, page).await.unwrap();
        assert_eq!(part.total, expected, "{properties:?} {prefix:?}");
        assert_eq!(part.snapshots[0].snapshot.name.as_str(), last, "{properties:?} {prefix:?}");
    };
    check(&[("parity", None)], "", 1200, "s1200").await;
    check(&[("parity", None)], "s000", 9, "s0009").await;
    check(&[("parity", Some("odd"))], "", 600, "s1199").await;
    check(&[("late", None)], "", 10, "s1200").await;
    check(&[("late", None), ("parity", None)], "", 10, "s1200").await;
    check(&[("late", None), ("parity", Some("odd"))], "s119", 5, "s1199").await;
}
