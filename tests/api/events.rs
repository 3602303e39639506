//! Events: each change is told once, in order, with who and why and the numbers; they last, and a watch that was cut off
//! misses none.

use tonic::Code;
use vmsnap::host::sim::{Complaint, Method, Mishap};
use vmsnap::proto::v1;
use vmsnap::proto::v1::watch_events_response::Update;

use super::client::{run, spawn, succeed};
use super::node::{Node, PATIENCE, assert_refused, delete};

async fn list(node: &Node, filter: v1::EventFilter) -> v1::ListEventsResponse {
    let request = v1::ListEventsRequest {
        filter: Some(filter),
        order_by: "sequence".to_owned(),
        ..v1::ListEventsRequest::default()
    };
    node.events().list_events(request).await.unwrap().into_inner()
}

/// As `KIND from->to`, the parts that an event has.
fn outline(events: &[v1::Event]) -> Vec<String> {
    let part = |event: &v1::Event, key: &str| event.attributes.get(key).cloned().unwrap_or_default();
    let line = |event: &v1::Event| {
        let kind = event.kind().as_str_name().trim_start_matches("EVENT_KIND_");
        match (part(event, "from"), part(event, "to")) {
            (from, to) if from.is_empty() && to.is_empty() => kind.to_owned(),
            (from, to) => format!("{kind} {from}->{to}"),
        }
    };
    events.iter().map(line).collect()
}

#[tokio::test]
async fn a_snapshots_life_is_told_in_order() {
    let mut node = Node::start();
    let snapshot = node.take("one").await;
    succeed(&node, "snapshot set web/one --description x").await;
    succeed(&node, "snapshot hold web/one audit").await;
    succeed(&node, "snapshot release web/one audit").await;
    succeed(&node, "snapshot comment web/one seen").await;
    let begun = node.snapshots().delete_snapshot(delete("one")).await.unwrap().into_inner();
    node.end_of(&begun.operation.unwrap().id).await;
    node.crash();
    node.restart();

    let of_it = v1::EventFilter { snapshot_id: snapshot.id, ..Default::default() };
    let events = list(&node, of_it).await.events;
    let expected = [
        "OPERATION_STATE_CHANGED ->RUNNING",
        "SNAPSHOT_STATE_CHANGED ->CREATING",
        "GUEST_FROZEN",
        "GUEST_THAWED",
        "SNAPSHOT_STATE_CHANGED CREATING->READY",
        "OPERATION_STATE_CHANGED RUNNING->SUCCEEDED",
        "SNAPSHOT_UPDATED",
        "SNAPSHOT_HELD",
        "SNAPSHOT_HELD",
        "SNAPSHOT_COMMENTED",
        "OPERATION_STATE_CHANGED ->RUNNING",
        "SNAPSHOT_STATE_CHANGED READY->DELETING",
        "SNAPSHOT_STATE_CHANGED DELETING->",
        "OPERATION_STATE_CHANGED RUNNING->SUCCEEDED",
    ];
    assert_eq!(outline(&events), expected);
    assert!(events.windows(2).all(|pair| pair[0].sequence < pair[1].sequence));
    let ready = &events[4];
    assert_eq!(ready.attributes["consistency"], "FILESYSTEM");
    assert!(ready.actor.starts_with("uid:") && !ready.operation_id.is_empty(), "{ready:?}");
    assert_eq!(events[6].attributes["fields"], "description");
    assert_eq!(
        (events[7].attributes["hold"].as_str(), events[7].attributes["change"].as_str()),
        ("audit", "added")
    );
}

#[tokio::test]
async fn a_failure_is_told_with_its_cause() {
    let node = Node::start();
    node.strike(Method::CreateOverlay, Mishap::Error(Complaint::NoSpace("/images".into())));
    let begun = node.begin("one").await;
    node.end_of(&begun.id).await;
    let of_it = v1::EventFilter { operation_id: begun.id, ..Default::default() };
    let events = list(&node, of_it.clone()).await.events;
    let expected = [
        "OPERATION_STATE_CHANGED ->RUNNING",
        "SNAPSHOT_STATE_CHANGED ->CREATING",
        "OPERATION_STATE_CHANGED RUNNING->UNDOING",
        "SNAPSHOT_STATE_CHANGED CREATING->",
        "OPERATION_STATE_CHANGED UNDOING->FAILED",
    ];
    assert_eq!(outline(&events), expected);
    assert_eq!(events[4].error.as_ref().unwrap().reason(), v1::Reason::NoSpace);
    let warnings = v1::EventFilter { min_severity: v1::Severity::Warning.into(), ..of_it };
    assert_eq!(list(&node, warnings).await.total_size, 2);
}

#[tokio::test]
async fn a_watch_that_was_cut_off_misses_nothing() {
    let mut node = Node::start();
    let request = v1::WatchEventsRequest::default();
    let mut stream = node.events().watch_events(request).await.unwrap().into_inner();
    node.take("one").await;
    let mut seen = Vec::new();
    let mut token = String::new();
    while seen.len() < 3 {
        let message = stream.message().await.unwrap().unwrap();
        token = message.resume_token;
        if let Some(Update::Event(event)) = message.update {
            seen.push(event);
        }
    }
    drop(stream);
    node.take("two").await;
    node.crash();
    node.restart();
    node.take("three").await;

    let request = v1::WatchEventsRequest { resume_token: token, ..Default::default() };
    let mut stream = node.events().watch_events(request).await.unwrap().into_inner();
    let all = list(&node, v1::EventFilter::default()).await;
    let first = seen[0].sequence;
    let wanted: Vec<v1::Event> = all.events.into_iter().filter(|event| event.sequence >= first).collect();
    let rest = async {
        while seen.len() < wanted.len() {
            if let Some(Update::Event(event)) = stream.message().await.unwrap().unwrap().update {
                seen.push(event);
            }
        }
    };
    tokio::time::timeout(PATIENCE, rest).await.expect("events are missing");
    assert_eq!(outline(&seen), outline(&wanted));
    assert_eq!(seen, wanted);

    let ahead = v1::WatchEventsRequest { resume_token: "999999".to_owned(), ..Default::default() };
    let status = node.events().watch_events(ahead).await.unwrap_err();
    assert_refused(&status, Code::OutOfRange, "RESUME_TOKEN_EXPIRED");
    let nonsense = v1::WatchEventsRequest { resume_token: "x".to_owned(), ..Default::default() };
    let status = node.events().watch_events(nonsense).await.unwrap_err();
    assert_refused(&status, Code::InvalidArgument, "RESUME_TOKEN_INVALID");
}

#[tokio::test]
async fn the_client_lists_and_follows() {
    let mut node = Node::start();
    node.take("one").await;
    let events = succeed(&node, "event list web").await;
    assert!(events.contains("snapshot one is READY") && events.contains("uid:"), "{events}");
    let events = succeed(&node, "snapshot events web/one").await;
    assert!(events.lines().count() == 7, "{events}");
    assert_eq!(succeed(&node, "event list --warnings --no-headers").await.trim(), "");
    assert_eq!(run(&node, "event list nobody").await.code, 4);

    // Over a restart of the daemon.
    let mut child = spawn(&node, "event watch web --since 1h -o json");
    let mut lines =
        tokio::io::AsyncBufReadExt::lines(tokio::io::BufReader::new(child.stdout.take().unwrap()));
    let mut next_ready = async |name: &str| {
        let find = async {
            loop {
                let line = lines.next_line().await.unwrap().unwrap();
                let event: serde_json::Value = serde_json::from_str(&line).unwrap();
                if event["snapshot_name"] == name && event["attributes"]["to"] == "READY" {
                    return;
                }
            }
        };
        tokio::time::timeout(PATIENCE, find).await.expect("it is not told");
    };
    next_ready("one").await;
    node.tell_to_go().gone().await;
    node.restart();
    node.take("after").await;
    next_ready("after").await;
}
