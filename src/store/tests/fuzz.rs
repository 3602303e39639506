//! Rows as a damaged disk or a stranger would have them: none is believed that cannot be carried on with.

use proptest::prelude::*;

use super::super::journal::parsed;
use super::*;
use crate::model::{Layer, LayerId, LayerTree, Ownership, Volume, VolumeId};
use crate::{model::Format, mutation};

fn bodies() -> Vec<String> {
    let mut undone = operation(2);
    undone.steps = vec![Step::ReserveSnapshot { snapshot: SnapshotId(Uuid::nil()) }, Step::Thaw];
    undone.cursor = Cursor::start(2, 1).unwrap();
    undone.record(Turn::Ensure(0), Outcome::Unknown, Vec::new(), None);
    [operation(1), undone].iter().map(|operation| to_json(operation, "operation").unwrap()).collect()
}

fn layer(number: u128) -> Layer {
    Layer {
        id: LayerId(Uuid::from_u128(number)),
        volume: VolumeId(Uuid::from_u128(9)),
        parent: (number > 1).then(|| LayerId(Uuid::from_u128(number - 1))),
        path: format!("/i/{number}").into(),
        format: Format::Qcow2,
        ownership: Ownership::Owned,
        virtual_size: 1 << 30,
        is_set_aside: false,
        seen: None,
    }
}

proptest! {
    #![proptest_config(mutation::config())]

    #[test]
    fn an_operation_that_is_read_can_be_carried_on_with(body in mutation::text(bodies())) {
        let Ok(mut operation) = parsed(&body) else { return Ok(()) };
        for outcome in [Outcome::Unknown, Outcome::Done, Outcome::NotApplied].into_iter().cycle().take(30) {
            let Some(turn) = operation.cursor.turn() else { break };
            let _ = operation.step(turn);
            operation.record(turn, outcome, Vec::new(), None);
        }
        prop_assert!(operation.cursor.fits(operation.steps.len()));
        prop_assert_eq!(parsed(&to_json(&operation, "operation").unwrap()).unwrap(), operation);
    }

    #[test]
    fn a_snapshot_that_is_read_is_one(body in mutation::text([to_json(&snapshot("one", 1), "snapshot").unwrap()])) {
        if let Ok(read) = from_json::<Snapshot>(&body, "snapshot") {
            prop_assert!(read.name.as_str().len() <= crate::model::SnapshotName::LIMIT);
            prop_assert_eq!(from_json::<Snapshot>(&to_json(&read, "snapshot").unwrap(), "snapshot").unwrap(), read);
        }
    }

    /// Parents may form a ring: no walk over them is endless.
    #[test]
    fn layers_in_any_order_are_walked_to_an_end(parents in proptest::collection::vec(0..12_u128, 11)) {
        let mut tree = LayerTree::empty(VM);
        for (number, parent) in (1..).zip(parents) {
            let parent = (parent > 0).then(|| LayerId(Uuid::from_u128(parent)));
            let layer = Layer { parent, ..layer(number) };
            tree.layers.insert(layer.id, layer);
        }
        let top = LayerId(Uuid::from_u128(11));
        tree.volumes.push(Volume {
            id: VolumeId(Uuid::from_u128(9)),
            target: "vda".parse().unwrap(),
            active: top,
        });
        prop_assert!(tree.chain(top).len() <= tree.layers.len() + 1);
        let _ = (tree.readers(top), tree.pending().count());
    }
}

/// The whole way through the file: an error that says what is wrong, and all other rows are read.
#[tokio::test]
async fn a_row_that_cannot_be_understood_is_told() {
    let store = Store::in_memory().unwrap();
    for number in [1, 2] {
        store.begin(operation(number), None, Reservation::None).await.unwrap();
    }
    let beside = bodies()[0].replace("\"at\":0", "\"at\":7");
    for body in ["", "{}", "\u{0}", &"[".repeat(100_000), &beside] {
        let body = body.to_owned();
        let damage = move |transaction: &Transaction<'_>| {
            let id = OperationId(Uuid::from_u128(1)).to_string();
            transaction.execute("UPDATE operation SET body = ? WHERE id = ?", [body, id])?;
            Ok(())
        };
        store.transact(damage).await.unwrap();
        let told = store.operation(OperationId(Uuid::from_u128(1))).await;
        assert!(matches!(told, Err(StoreError::Malformed { what: "operation", .. })), "{told:?}");
        assert!(store.open_operations().await.is_err(), "nothing is forgotten silently");
        assert!(store.operation(OperationId(Uuid::from_u128(2))).await.unwrap().is_some());
    }
}
