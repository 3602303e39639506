//! `vmsnap event`: what happened, and what happens.

use std::time::{Duration, SystemTime};

use tokio_stream::StreamExt;

use super::args::{EventVerb, Which, WhichEvents};
use super::failure::{Failure, exit};
use super::output::{Shown, Text};
use super::snapshot::{PAGE, locate};
use super::table::Table;
use super::{Session, words};
use crate::proto::v1;
use crate::proto::v1::watch_events_response::Update;

/// Without a word from the daemon for so long, the connection is taken for dead.
const SILENCE: Duration = Duration::from_secs(30);

/// Between attempts to reach a daemon that is away.
const PAUSE: Duration = Duration::from_secs(1);

pub(super) async fn carry_out(session: &Session, verb: EventVerb) -> Result<u8, Failure> {
    match verb {
        EventVerb::List { which, limit } => list(session, which, limit).await,
        EventVerb::Watch { which, since } => watch(session, which, since).await,
    }
}

/// The events of one snapshot.
pub(super) async fn of_snapshot(session: &Session, which: Which) -> Result<u8, Failure> {
    let snapshot = match which.vm {
        Some(vm) => format!("{vm}/{}", which.snapshot),
        None => which.snapshot,
    };
    let which = WhichEvents { vm: None, snapshot: Some(snapshot), operation: String::new(), warnings: false };
    list(session, which, usize::MAX).await
}

async fn list(session: &Session, which: WhichEvents, limit: usize) -> Result<u8, Failure> {
    let mut request = v1::ListEventsRequest {
        filter: Some(filter(session, which).await?),
        page_size: i32::try_from(limit).unwrap_or(PAGE).min(PAGE),
        ..v1::ListEventsRequest::default()
    };
    let mut answer = session.daemon.events().list_events(request.clone()).await?.into_inner();
    while !answer.next_page_token.is_empty() && answer.events.len() < limit {
        request.page_token.clone_from(&answer.next_page_token);
        let mut page = session.daemon.events().list_events(request.clone()).await?.into_inner();
        answer.events.append(&mut page.events);
        answer.next_page_token = page.next_page_token;
    }
    answer.events.truncate(limit);
    let mut table = Table::new(&["TIME", "VM", "SNAPSHOT", "SEVERITY", "EVENT", "BY"]);
    for event in &answer.events {
        table.row(vec![
            words::time(event.create_time),
            event.vm_name.clone(),
            event.snapshot_name.clone(),
            words::severity(event.severity()),
            event.message.clone(),
            event.actor.clone(),
        ]);
    }
    session.output.show(&Shown {
        message: &answer,
        name: "ListEventsResponse",
        ids: answer.events.iter().map(|event| event.id.clone()).collect(),
        text: Text::Table(table),
    })?;
    Ok(0)
}

/// Until interrupted; over dropped connections and restarts of the daemon, missing nothing.
async fn watch(session: &Session, which: WhichEvents, since: Option<Duration>) -> Result<u8, Failure> {
    let since =
        since.and_then(|since| SystemTime::now().checked_sub(since)).map(prost_types::Timestamp::from);
    let filter = filter(session, which).await?;
    let mut token = String::new();
    let follow = async {
        loop {
            match watch_once(session, &filter, since, &mut token).await {
                Ok(()) => {}
                Err(failure) if failure.code == exit::UNAVAILABLE && !token.is_empty() => {}
                Err(failure) => return Err(failure),
            }
            tokio::time::sleep(PAUSE).await;
        }
    };
    tokio::select! {
        result = follow => result,
        _ = tokio::signal::ctrl_c() => Ok(exit::INTERRUPTED),
    }
}

/// One connection, until it breaks.
async fn watch_once(
    session: &Session,
    filter: &v1::EventFilter,
    since: Option<prost_types::Timestamp>,
    token: &mut String,
) -> Result<(), Failure> {
    let request = v1::WatchEventsRequest {
        filter: Some(filter.clone()),
        resume_token: token.clone(),
        since,
        ..v1::WatchEventsRequest::default()
    };
    let mut stream = session.daemon.events().watch_events(request).await?.into_inner();
    while let Ok(Some(message)) = tokio::time::timeout(SILENCE, stream.next()).await {
        let message = message?;
        if let Some(Update::Event(event)) = &message.update {
            show(session, event)?;
        }
        token.clone_from(&message.resume_token);
    }
    Ok(())
}

fn show(session: &Session, event: &v1::Event) -> Result<(), Failure> {
    let place = match (event.vm_name.as_str(), event.snapshot_name.as_str()) {
        ("", _) => String::new(),
        (vm, "") => format!("  {vm}"),
        (vm, snapshot) => format!("  {vm}/{snapshot}"),
    };
    session.output.show_line(&Shown {
        message: event,
        name: "Event",
        ids: vec![event.id.clone()],
        text: Text::Lines(format!("{}{place}  {}", words::time(event.create_time), event.message)),
    })
}

async fn filter(session: &Session, which: WhichEvents) -> Result<v1::EventFilter, Failure> {
    let snapshot_id = match which.snapshot {
        // One that is gone has no name any more.
        Some(id) if uuid::Uuid::parse_str(&id).is_ok() => id,
        Some(named) => {
            let (snapshot, vm) = locate(&Which { snapshot: named, vm: None });
            let request = v1::GetSnapshotRequest { snapshot, vm };
            let answer = session.daemon.snapshots().get_snapshot(request).await?.into_inner();
            answer.snapshot.unwrap_or_default().id
        }
        None => String::new(),
    };
    let severity = if which.warnings { v1::Severity::Warning } else { v1::Severity::Unspecified };
    Ok(v1::EventFilter {
        vm: which.vm.unwrap_or_default(),
        snapshot_id,
        operation_id: which.operation,
        min_severity: severity.into(),
        ..v1::EventFilter::default()
    })
}
