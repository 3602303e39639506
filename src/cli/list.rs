//! Lists of snapshots: what is asked for, and all pages as one answer.

use super::Session;
use super::args::{Held, Kind, ListArgs, Sort, State};
use super::failure::Failure;
use super::snapshot::PAGE;
use crate::proto::v1;

/// All pages as one answer.
pub(super) async fn all(session: &Session, args: ListArgs) -> Result<v1::ListSnapshotsResponse, Failure> {
    let limit = args.limit.unwrap_or(usize::MAX);
    let mut request = v1::ListSnapshotsRequest {
        order_by: order_by(args.sort, args.reverse).to_owned(),
        filter: Some(filter(args)),
        page_size: PAGE.min(i32::try_from(limit).unwrap_or(PAGE)),
        ..v1::ListSnapshotsRequest::default()
    };
    let mut answer = session.daemon.snapshots().list_snapshots(request.clone()).await?.into_inner();
    while !answer.next_page_token.is_empty() && answer.snapshots.len() < limit {
        request.page_token.clone_from(&answer.next_page_token);
        let mut page = session.daemon.snapshots().list_snapshots(request.clone()).await?.into_inner();
        answer.snapshots.append(&mut page.snapshots);
        answer.next_page_token = page.next_page_token;
    }
    answer.snapshots.truncate(limit);
    Ok(answer)
}

fn filter(args: ListArgs) -> v1::SnapshotFilter {
    v1::SnapshotFilter {
        vm: args.vm.unwrap_or_default(),
        volume_id: args.volume,
        account: args.label.account,
        domain: args.label.domain,
        project: args.label.project,
        states: args.states.into_iter().map(|state| snapshot_state(state).into()).collect(),
        kinds: args.kinds.into_iter().map(|kind| snapshot_kind(kind).into()).collect(),
        name_prefix: args.label.name_prefix,
        properties: args.label.properties.iter().map(|text| property_filter(text)).collect(),
        created_after: args.created_after.map(Into::into),
        created_before: args.created_before.map(Into::into),
        held: args.held.map(|held| held == Held::Yes),
        parent_id: args.parent,
        ..v1::SnapshotFilter::default()
    }
}

/// A property as people filter by it: `KEY=VALUE`, or `KEY` for any value.
pub(super) fn property_filter(text: &str) -> v1::PropertyFilter {
    match text.split_once('=') {
        Some((key, value)) => v1::PropertyFilter { key: key.to_owned(), value: Some(value.to_owned()) },
        None => v1::PropertyFilter { key: text.to_owned(), value: None },
    }
}

/// People read a table downwards in time, so the oldest comes first.
fn order_by(sort: Sort, is_reverse: bool) -> &'static str {
    match (sort, is_reverse) {
        (Sort::Created, false) => "create_time",
        (Sort::Created, true) => "create_time desc",
        (Sort::Name, false) => "name",
        (Sort::Name, true) => "name desc",
        (Sort::Vm, false) => "vm_name",
        (Sort::Vm, true) => "vm_name desc",
    }
}

fn snapshot_state(state: State) -> v1::SnapshotState {
    match state {
        State::Creating => v1::SnapshotState::Creating,
        State::Ready => v1::SnapshotState::Ready,
        State::Reverting => v1::SnapshotState::Reverting,
        State::Deleting => v1::SnapshotState::Deleting,
        State::Error => v1::SnapshotState::Error,
        State::Lost => v1::SnapshotState::Lost,
    }
}

fn snapshot_kind(kind: Kind) -> v1::SnapshotKind {
    match kind {
        Kind::Disks => v1::SnapshotKind::VmDisks,
        Kind::DisksAndMemory => v1::SnapshotKind::VmDisksAndMemory,
        Kind::Volume => v1::SnapshotKind::Volume,
    }
}
