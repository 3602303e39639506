//! Events: what a filter lets through in the catalog, it lets through in memory.

use proptest::prelude::*;

use super::*;
use crate::model::VolumeId;
use crate::model::event::{Event, EventKind, Severity};
use crate::mutation;

fn events() -> impl Strategy<Value = Event> {
    let ids = (0..3_u128, 0..3_u128, 0..3_u128, 0..3_u128);
    (ids, 0..EventKind::ALL.len(), 0..3_usize, 0..4_i64).prop_map(|(ids, kind, severity, at)| {
        let id = |id: u128| (id > 0).then(|| Uuid::from_u128(id));
        let at = Timestamp::from_millisecond(at).unwrap();
        let cause = Cause { operation: id(ids.0).map(OperationId), actor: String::new(), at };
        Event {
            vm: id(ids.1).map(VmId),
            snapshot: id(ids.2).map(SnapshotId),
            volume: id(ids.3).map(VolumeId),
            severity: [Severity::Info, Severity::Warning, Severity::Error][severity],
            ..Event::new(EventKind::ALL[kind], String::new(), &cause)
        }
    })
}

fn filters() -> impl Strategy<Value = EventFilter> {
    let of = |ids: Option<u128>| ids.map(Uuid::from_u128);
    let ids = (
        proptest::option::of(proptest::collection::vec(1..3_u128, 0..3)),
        proptest::option::weighted(0.2, 1..3_u128),
        proptest::option::weighted(0.2, 1..3_u128),
        proptest::option::weighted(0.2, 1..3_u128),
    );
    let times = (proptest::option::of(0..4_i64), proptest::option::of(0..4_i64));
    let kinds = proptest::collection::vec(proptest::sample::select(&EventKind::ALL[..]), 0..8);
    let severity = proptest::option::of(proptest::sample::select(vec![Severity::Info, Severity::Error]));
    (ids, times, kinds, severity).prop_map(move |(ids, times, kinds, min_severity)| {
        let at = |at: Option<i64>| at.map(|at| Timestamp::from_millisecond(at).unwrap());
        EventFilter {
            vms: ids.0.map(|vms| vms.into_iter().map(|vm| VmId(Uuid::from_u128(vm))).collect()),
            snapshot: of(ids.1).map(SnapshotId),
            volume: of(ids.2).map(VolumeId),
            operation: of(ids.3).map(OperationId),
            kinds,
            min_severity,
            created_after: at(times.0),
            created_before: at(times.1),
            ..EventFilter::default()
        }
    })
}

proptest! {
    #![proptest_config(mutation::config())]

    #[test]
    fn memory_and_catalog_let_the_same_through(
        events in proptest::collection::vec(events(), 1..12),
        filter in filters(),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let (told, found) = runtime.block_on(async {
            let store = Store::in_memory().unwrap();
            for event in &events {
                store.tell(event.clone()).await.unwrap();
            }
            let all = EventFilter::default();
            let all = store.events(all, EventOrder::After(0), 100).await.unwrap().events;
            (all, store.events(filter.clone(), EventOrder::After(0), 100).await.unwrap().events)
        });
        let told: Vec<_> = told.into_iter().filter(|told| filter.lets_through(&told.event).unwrap()).collect();
        prop_assert_eq!(told, found);
    }
}
