//! `vmsnap snapshot set`, `hold`, `release`, `comment`, `reset-state`: what people write on snapshots, and say of them.

use super::args::{CommentArgs, DeclaredState, HoldArgs, SetArgs, Which};
use super::connect::request_id;
use super::failure::Failure;
use super::output::{Shown, Text};
use super::snapshot::{PAGE, details, locate};
use super::table::Table;
use super::{Session, words};
use crate::proto::v1;

pub(super) async fn set(session: &Session, args: SetArgs) -> Result<u8, Failure> {
    let (snapshot, vm) = locate(&args.which);
    let mut mask = prost_types::FieldMask::default();
    mask.paths.extend((args.expire.is_some() || args.no_expire).then(|| "expire_time".to_owned()));
    let mut take = |field: &str, value: Option<String>| {
        mask.paths.extend(value.is_some().then(|| field.to_owned()));
        value.unwrap_or_default()
    };
    let request = v1::UpdateSnapshotRequest {
        snapshot,
        vm,
        expire_time: args.expire.map(Into::into),
        name: take("name", args.name),
        display_name: take("display_name", args.display_name),
        description: take("description", args.description),
        account: take("account", args.account),
        domain: take("domain", args.domain),
        project: take("project", args.project),
        clear_properties: args.clear_properties,
        remove_properties: args.no_properties,
        set_properties: args.properties.into_iter().collect(),
        etag: args.etag,
        request_id: request_id(),
        update_mask: Some(mask),
    };
    let answer = session.daemon.snapshots().update_snapshot(request).await?.into_inner();
    show(session, &answer, "UpdateSnapshotResponse", answer.snapshot.as_ref())
}

pub(super) async fn hold(session: &Session, args: HoldArgs) -> Result<u8, Failure> {
    let (snapshot, vm) = locate(&args.which);
    let request = v1::AddSnapshotHoldRequest {
        snapshot,
        vm,
        name: args.name,
        reason: args.reason,
        request_id: request_id(),
    };
    let answer = session.daemon.snapshots().add_snapshot_hold(request).await?.into_inner();
    show(session, &answer, "AddSnapshotHoldResponse", answer.snapshot.as_ref())
}

pub(super) async fn release(session: &Session, which: &Which, name: String) -> Result<u8, Failure> {
    let (snapshot, vm) = locate(which);
    let request = v1::RemoveSnapshotHoldRequest { snapshot, vm, name, request_id: request_id() };
    let answer = session.daemon.snapshots().remove_snapshot_hold(request).await?.into_inner();
    show(session, &answer, "RemoveSnapshotHoldResponse", answer.snapshot.as_ref())
}

pub(super) async fn reset_state(
    session: &Session,
    which: &Which,
    state: DeclaredState,
    etag: String,
) -> Result<u8, Failure> {
    let (snapshot, vm) = locate(which);
    let state = match state {
        DeclaredState::Ready => v1::SnapshotState::Ready,
        DeclaredState::Error => v1::SnapshotState::Error,
    };
    let request =
        v1::ResetSnapshotStateRequest { snapshot, vm, state: state.into(), etag, request_id: request_id() };
    let answer = session.daemon.snapshots().reset_snapshot_state(request).await?.into_inner();
    show(session, &answer, "ResetSnapshotStateResponse", answer.snapshot.as_ref())
}

pub(super) async fn comment(session: &Session, args: CommentArgs) -> Result<u8, Failure> {
    let (snapshot, vm) = locate(&args.which);
    let Some(text) = args.text else { return list(session, snapshot, vm).await };
    let request = v1::AddSnapshotCommentRequest { snapshot, vm, text, request_id: request_id() };
    let answer = session.daemon.snapshots().add_snapshot_comment(request).await?.into_inner();
    let id = answer.comment.as_ref().map(|comment| comment.id.clone()).unwrap_or_default();
    session.output.show(&Shown {
        message: &answer,
        name: "AddSnapshotCommentResponse",
        text: Text::Lines(format!("comment {id} written")),
        ids: vec![id],
    })?;
    Ok(0)
}

/// All pages as one answer.
async fn list(session: &Session, snapshot: String, vm: String) -> Result<u8, Failure> {
    let mut request =
        v1::ListSnapshotCommentsRequest { snapshot, vm, page_size: PAGE, page_token: String::new() };
    let mut answer = session.daemon.snapshots().list_snapshot_comments(request.clone()).await?.into_inner();
    while !answer.next_page_token.is_empty() {
        request.page_token.clone_from(&answer.next_page_token);
        let mut page = session.daemon.snapshots().list_snapshot_comments(request.clone()).await?.into_inner();
        answer.comments.append(&mut page.comments);
        answer.next_page_token = page.next_page_token;
    }
    let mut table = Table::new(&["TIME", "AUTHOR", "COMMENT", "ID"]);
    for comment in &answer.comments {
        table.row(vec![
            words::time(comment.create_time),
            comment.author.clone(),
            comment.text.clone(),
            comment.id.clone(),
        ]);
    }
    session.output.show(&Shown {
        message: &answer,
        name: "ListSnapshotCommentsResponse",
        ids: answer.comments.iter().map(|comment| comment.id.clone()).collect(),
        text: Text::Table(table),
    })?;
    Ok(0)
}

pub(super) async fn uncomment(session: &Session, comment_id: String) -> Result<u8, Failure> {
    let told = format!("comment {comment_id} deleted");
    let request = v1::DeleteSnapshotCommentRequest { comment_id, request_id: request_id() };
    let answer = session.daemon.snapshots().delete_snapshot_comment(request).await?.into_inner();
    session.output.show(&Shown {
        message: &answer,
        name: "DeleteSnapshotCommentResponse",
        ids: Vec::new(),
        text: Text::Lines(told),
    })?;
    Ok(0)
}

/// The snapshot as it is now.
fn show<M: prost::Message>(
    session: &Session,
    message: &M,
    name: &'static str,
    snapshot: Option<&v1::Snapshot>,
) -> Result<u8, Failure> {
    session.output.show(&Shown {
        message,
        name,
        ids: snapshot.iter().map(|snapshot| snapshot.id.clone()).collect(),
        text: Text::Lines(snapshot.map(details).unwrap_or_default()),
    })?;
    Ok(0)
}
