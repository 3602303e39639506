//! What a controller is told: every state and every event, once after duplicates are dropped, in order, over broken streams
//! and deaths of the daemon.

use std::collections::BTreeMap;

use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use vmsnap::host::Link;
use vmsnap::host::sim::{Complaint, Method, Mishap};
use vmsnap::model::OutboxId;
use vmsnap::proto::controller::v1 as wire;
use vmsnap::proto::controller::v1::report_request::Message;
use vmsnap::proto::v1;

use super::client::succeed;
use super::node::{Node, PATIENCE, delete};

mod python;
mod receive;
#[path = "../bed/reports.rs"]
mod reports;
mod server;
mod tls;

use server::{Controller, Manners};

fn hellos(heard: &[wire::ReportRequest]) -> Vec<wire::Hello> {
    let hello = |report: &wire::ReportRequest| match &report.message {
        Some(Message::Hello(hello)) => Some(hello.clone()),
        _ => None,
    };
    heard.iter().filter_map(hello).collect()
}

/// The items without those that were heard before; each must be the same each time, and none may be missing.
fn items(heard: &[wire::ReportRequest]) -> Vec<wire::ReportRequest> {
    let mut items: BTreeMap<u64, wire::ReportRequest> = BTreeMap::new();
    for report in heard.iter().filter(|report| report.sequence > 0) {
        if let Some(before) = items.get(&report.sequence) {
            assert_eq!(before, report);
            continue;
        }
        assert_eq!(report.sequence, items.len() as u64 + 1, "in order, without gaps");
        items.insert(report.sequence, report.clone());
    }
    items.into_values().collect()
}

fn events(items: &[wire::ReportRequest]) -> Vec<v1::Event> {
    let event = |report: &wire::ReportRequest| match &report.message {
        Some(Message::Event(event)) => Some(event.clone()),
        _ => None,
    };
    items.iter().filter_map(event).collect()
}

/// The states of an operation.
fn states(items: &[wire::ReportRequest], id: &str) -> Vec<v1::OperationState> {
    let state = |report: &wire::ReportRequest| match &report.message {
        Some(Message::Operation(operation)) if operation.id == id => Some(operation.state()),
        _ => None,
    };
    items.iter().filter_map(state).collect()
}

fn has_ended(heard: &[wire::ReportRequest], id: &str) -> bool {
    let items: Vec<_> = heard.iter().filter(|report| report.sequence > 0).cloned().collect();
    states(&items, id).last() == Some(&v1::OperationState::Succeeded)
}

async fn all_events(node: &Node) -> Vec<v1::Event> {
    let request = v1::ListEventsRequest {
        order_by: "sequence".to_owned(),
        page_size: 1000,
        ..v1::ListEventsRequest::default()
    };
    node.events().list_events(request).await.unwrap().into_inner().events
}

/// Streams break, nothing is acknowledged for a while, the daemon dies: what was heard is what has happened.
#[tokio::test]
async fn everything_is_told_in_order_over_breaks_and_deaths() {
    let controller = Controller::start(Manners { breaks_after: 4, ..Manners::default() }).await;
    let mut node = Node::reporting_to(controller.endpoint());
    let first = node.begin("one").await;
    node.end_of(&first.id).await;
    // Each stream begins with what is not acknowledged.
    controller.until(|heard| hellos(heard).len() >= 2).await;
    controller.behave(Manners { acknowledges: true, ..Manners::default() });
    controller.until(|heard| has_ended(heard, &first.id)).await;
    node.crash();
    node.restart();
    let deletion = node.snapshots().delete_snapshot(delete("one")).await.unwrap().into_inner();
    let deletion = deletion.operation.unwrap();
    node.end_of(&deletion.id).await;

    let heard = controller.until(|heard| has_ended(heard, &deletion.id)).await;
    let items = items(&heard);
    let told = events(&items);
    assert_eq!(told, all_events(&node).await[..told.len()]);
    let ended = [v1::OperationState::Running, v1::OperationState::Succeeded];
    for operation in [&first, &deletion] {
        assert_eq!(states(&items, &operation.id), ended);
    }
    let hellos = hellos(&heard);
    assert!(hellos.iter().all(|hello| hello.outbox_id == hellos[0].outbox_id), "there is no gap");
    let nodes: Vec<_> = hellos.iter().map(|hello| hello.node.clone().unwrap().id).collect();
    assert!(nodes.iter().all(|id| !id.is_empty() && *id == nodes[0]), "{nodes:?}");
}

#[tokio::test]
async fn what_is_acknowledged_is_not_told_again() {
    let controller = Controller::start(Manners { acknowledges: true, ..Manners::default() }).await;
    let mut node = Node::reporting_to(controller.endpoint());
    let operation = node.begin("one").await;
    controller.until(|heard| has_ended(heard, &operation.id)).await;
    let acknowledged = async {
        loop {
            let outbox = node.store().outbox().await.unwrap().unwrap();
            if outbox.acknowledged == outbox.last {
                return outbox;
            }
            tokio::task::yield_now().await;
        }
    };
    let outbox = tokio::time::timeout(PATIENCE, acknowledged).await.unwrap();
    node.crash();
    node.restart();
    let heard = controller.until(|heard| hellos(heard).len() >= 2).await;
    assert!(hellos(&heard)[1].acknowledged_sequence >= outbox.acknowledged);
    controller.until(|heard| heard.iter().any(|report| report.sequence > outbox.last)).await;
    items(&controller.heard());
}

/// What a client would list; and while there is no hypervisor, what happens is told all the same.
#[tokio::test]
async fn an_inventory_is_all_there_is() {
    let welcome = wire::Welcome { send_inventory: true, ..wire::Welcome::default() };
    let controller = Controller::start(Manners { welcome, acknowledges: true, ..Manners::default() }).await;
    let mut node = Node::reporting_to(controller.endpoint());
    let is_last = |report: &wire::ReportRequest| match &report.message {
        Some(Message::Inventory(part)) => part.last,
        _ => false,
    };
    controller.until(|heard| heard.iter().any(is_last)).await;
    node.take("one").await;
    node.sim.set_link(Link::Down("libvirtd is gone".to_owned()));
    node.crash();
    node.restart();
    let after = controller.until(|heard| hellos(heard).len() >= 2).await.len();
    let last = hellos(&controller.heard())[1].last_sequence;
    controller.until(|heard| heard.iter().any(|report| report.sequence >= last)).await;
    let is_inventory = |report: &wire::ReportRequest| matches!(report.message, Some(Message::Inventory(_)));
    assert!(!controller.heard()[after..].iter().any(is_inventory), "VMs cannot be listed");
    node.sim.set_link(Link::Up);

    let heard = controller.until(|heard| heard[after..].iter().any(is_last)).await;
    let mut whole = wire::Inventory::default();
    for report in &heard[after..] {
        if let Some(Message::Inventory(part)) = report.message.clone() {
            whole.vms.extend(part.vms);
            whole.volumes.extend(part.volumes);
            whole.snapshots.extend(part.snapshots);
            whole.operations.extend(part.operations);
        }
    }
    assert_eq!(whole.vms.iter().map(|vm| vm.name.as_str()).collect::<Vec<_>>(), ["web"]);
    assert_eq!(whole.volumes.len(), 2);
    let listed = node.snapshots().list_snapshots(v1::ListSnapshotsRequest::default()).await.unwrap();
    assert_eq!(whole.snapshots, listed.into_inner().snapshots);
    assert!(whole.operations.is_empty());
}

/// An operation that stands still in a step is shown in it, with number 0, between its begin and its end, and not after that.
#[tokio::test]
async fn progress_is_told_between_the_states() {
    let welcome = wire::Welcome {
        heartbeat_interval: Some(prost_types::Duration { seconds: 1, nanos: 0 }),
        ..wire::Welcome::default()
    };
    let controller = Controller::start(Manners { welcome, acknowledges: true, ..Manners::default() }).await;
    let node = Node::reporting_to(controller.endpoint());
    node.take("one").await;
    let hold = node.hold(Method::Remove);
    let deletion = node.snapshots().delete_snapshot(delete("one")).await.unwrap().into_inner();
    let deletion = deletion.operation.unwrap();
    let is_progress = |report: &wire::ReportRequest| match &report.message {
        Some(Message::Operation(operation)) => report.sequence == 0 && operation.id == deletion.id,
        _ => false,
    };
    controller.until(|heard| heard.iter().any(is_progress)).await;
    drop(hold);
    let end =
        |heard: &[wire::ReportRequest]| (0..heard.len()).find(|end| has_ended(&heard[..=*end], &deletion.id));
    // Two heartbeats later nothing of it is on its way any more.
    let is_heartbeat = |report: &&wire::ReportRequest| matches!(report.message, Some(Message::Heartbeat(_)));
    let heard = controller
        .until(|heard| end(heard).is_some_and(|end| heard[end..].iter().filter(is_heartbeat).count() >= 2))
        .await;
    let end = end(&heard).unwrap();
    assert!(!heard[end..].iter().any(is_progress), "{heard:#?}");
    let of_it = heard.iter().filter_map(|report| match &report.message {
        Some(Message::Operation(operation)) if operation.id == deletion.id => Some(operation.generation),
        _ => None,
    });
    assert!(of_it.is_sorted(), "it never goes back: {heard:#?}");
}

/// The catalog was put back: the numbers that the controller knows stand for something else.
#[tokio::test]
async fn a_controller_that_is_ahead_gets_another_outbox() {
    let welcome = wire::Welcome { acknowledged_sequence: 1000, ..wire::Welcome::default() };
    let controller = Controller::start(Manners { welcome, ..Manners::default() }).await;
    let node = Node::reporting_to(controller.endpoint());
    controller.until(|heard| !hellos(heard).is_empty()).await;
    controller.behave(Manners { acknowledges: true, ..Manners::default() });
    let heard = controller.until(|heard| hellos(heard).len() >= 2).await;
    let hellos = hellos(&heard);
    assert_ne!(hellos[0].outbox_id, hellos[1].outbox_id);
    let operation = node.begin("one").await;
    controller.until(|heard| has_ended(heard, &operation.id)).await;
}

#[tokio::test]
async fn whether_there_is_a_controller_is_told() {
    let controller = Controller::start(Manners::default()).await;
    let node = Node::reporting_to(controller.endpoint());
    let request = HealthCheckRequest { service: "controller".to_owned() };
    let mut watch = node.health().watch(request).await.unwrap().into_inner();
    let serves =
        async { while watch.message().await.unwrap().unwrap().status() != ServingStatus::Serving {} };
    tokio::time::timeout(PATIENCE, serves).await.expect("it takes us");
    let shown = succeed(&node, "node show").await;
    assert!(shown.contains("controller"), "{shown}");
}

/// What a controller says is believed as far as it can be true, and nothing that it does holds the daemon up.
#[tokio::test]
async fn a_controller_that_is_wrong_is_left() {
    let ahead = Manners { claims: 1000, ..Manners::default() };
    let endless = wire::Welcome {
        heartbeat_interval: Some(prost_types::Duration { seconds: i64::MAX, nanos: 0 }),
        ..wire::Welcome::default()
    };
    let controller = Controller::start(ahead).await;
    let mut node = Node::reporting_to(controller.endpoint());
    node.until_part_says("controller", "acknowledged what was never sent").await;
    let first = node.begin("one").await;
    controller.behave(Manners { welcome: endless, acknowledges: true, ..Manners::default() });
    // It is called again late; a daemon that starts calls at once.
    node.crash();
    node.restart();
    let heard = controller.until(|heard| has_ended(heard, &first.id)).await;
    items(&heard);
}

/// The stream is of an outbox that was. One half of it has ended, and the controller does not mind.
#[tokio::test]
async fn another_outbox_is_told_on_another_stream() {
    let controller =
        Controller::start(Manners { acknowledges: true, stays: true, ..Manners::default() }).await;
    let node = Node::reporting_to(controller.endpoint());
    node.take("one").await;
    let old = node.store().outbox().await.unwrap().unwrap().id;
    let now = "2026-01-01T00:00:00Z".parse().unwrap();
    node.store().renew_outbox(old, OutboxId::new(), "of a test", now).await.unwrap();
    let heard = controller.until(|heard| hellos(heard).len() >= 2).await;
    let hellos = hellos(&heard);
    assert_ne!(hellos[0].outbox_id, hellos[1].outbox_id);
    let deletion = node.snapshots().delete_snapshot(delete("one")).await.unwrap().into_inner();
    let deletion = deletion.operation.unwrap();
    controller.until(|heard| has_ended(heard, &deletion.id)).await;
}

/// It is tried again; what happens is told meanwhile.
#[tokio::test]
async fn an_inventory_that_fails_holds_nothing_up() {
    let welcome = wire::Welcome { send_inventory: true, ..wire::Welcome::default() };
    let controller = Controller::start(Manners { welcome, acknowledges: true, ..Manners::default() }).await;
    let mut node = Node::reporting_to(controller.endpoint());
    node.take("one").await;
    node.crash();
    node.strike(Method::Vms, Mishap::Error(Complaint::TimedOut));
    node.restart();
    let after = controller.until(|heard| hellos(heard).len() >= 2).await.len();
    let last = hellos(&controller.heard())[1].last_sequence;
    let heard = controller.until(|heard| heard.iter().any(|report| report.sequence >= last)).await;
    let is_inventory = |report: &wire::ReportRequest| matches!(report.message, Some(Message::Inventory(_)));
    assert!(!heard[after..].iter().any(is_inventory));
}

/// Nobody is to be told: nothing is kept.
#[tokio::test]
async fn without_a_controller_there_is_no_outbox() {
    let node = Node::start();
    node.take("one").await;
    assert_eq!(node.store().outbox().await.unwrap(), None);
}
