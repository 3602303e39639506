//! What people write on snapshots: names, owner, properties, holds, comments; and what they declare them.

use jiff::Timestamp;
use tonic::{Response, Status};

use super::reach::NOT_YOURS;
use super::status::Violations;
use super::{Answer, Api, Caller, Reach, answered, convert, paging, status};
use crate::model::{CommentId, Declaration, Declared, Edit, Hold, HoldName, SnapshotName, Update};
use crate::ops::{Asked, OpsError};
use crate::proto::v1;

/// The fields that `update_mask` may name and this version changes.
const FIELDS: [&str; 7] =
    ["name", "display_name", "description", "account", "domain", "project", "expire_time"];

/// Longest reason of a hold, in bytes.
const REASON_LIMIT: usize = 1024;

pub(super) async fn update(
    api: &Api,
    Caller { by, reach, .. }: Caller,
    message: v1::UpdateSnapshotRequest,
) -> Answer<v1::UpdateSnapshotResponse> {
    let asked = asked(by, "UpdateSnapshot", &message, &message.request_id);
    let update = check_update(&message, &reach)?;
    let which = (message.snapshot.as_str(), message.vm.as_str());
    let snapshot = api.edit(&reach, which, Edit::Update(Box::new(update)), asked).await?;
    Ok(answered(v1::UpdateSnapshotResponse { snapshot: Some(snapshot) }))
}

pub(super) async fn add_hold(
    api: &Api,
    Caller { by, reach, .. }: Caller,
    message: v1::AddSnapshotHoldRequest,
) -> Answer<v1::AddSnapshotHoldResponse> {
    let asked = asked(by, "AddSnapshotHold", &message, &message.request_id);
    let mut violations = Violations::default();
    violations.request_id(&message.request_id);
    violations.limited("reason", &message.reason, REASON_LIMIT);
    let name = violations.take("name", message.name.parse::<HoldName>());
    violations.check()?;
    let created_by = asked.by.clone();
    let hold = name.map(|name| Hold {
        name,
        reason: message.reason.clone(),
        created_at: Timestamp::now(),
        created_by,
    });
    let hold = hold.expect("a name that is none was refused");
    let snapshot = api.edit(&reach, (&message.snapshot, &message.vm), Edit::AddHold(hold), asked).await?;
    Ok(answered(v1::AddSnapshotHoldResponse { snapshot: Some(snapshot) }))
}

pub(super) async fn remove_hold(
    api: &Api,
    Caller { by, reach, .. }: Caller,
    message: v1::RemoveSnapshotHoldRequest,
) -> Answer<v1::RemoveSnapshotHoldResponse> {
    let asked = asked(by, "RemoveSnapshotHold", &message, &message.request_id);
    let mut violations = Violations::default();
    violations.request_id(&message.request_id);
    let name = violations.take("name", message.name.parse::<HoldName>());
    violations.check()?;
    let name = name.expect("a name that is none was refused");
    let snapshot = api.edit(&reach, (&message.snapshot, &message.vm), Edit::RemoveHold(name), asked).await?;
    Ok(answered(v1::RemoveSnapshotHoldResponse { snapshot: Some(snapshot) }))
}

pub(super) async fn reset_state(
    api: &Api,
    Caller { by, reach, .. }: Caller,
    message: v1::ResetSnapshotStateRequest,
) -> Answer<v1::ResetSnapshotStateResponse> {
    let asked = asked(by, "ResetSnapshotState", &message, &message.request_id);
    let mut violations = Violations::default();
    violations.request_id(&message.request_id);
    let generation = violations.take("etag", super::generation(&message.etag)).flatten();
    let what = match message.state() {
        v1::SnapshotState::Ready => Some(Declared::Ready),
        v1::SnapshotState::Error => Some(Declared::Error),
        _ => None,
    };
    if what.is_none() {
        violations.add("state", "READY or ERROR is declared");
    }
    violations.required("snapshot", &message.snapshot);
    violations.check()?;
    let what = what.expect("a state that is none of these was refused");
    let edit = Edit::Declare(Declaration { what, by: asked.by.clone(), generation, at: Timestamp::now() });
    let snapshot = api.edit(&reach, (&message.snapshot, &message.vm), edit, asked).await?;
    Ok(answered(v1::ResetSnapshotStateResponse { snapshot: Some(snapshot) }))
}

pub(super) async fn add_comment(
    api: &Api,
    Caller { by, reach, .. }: Caller,
    message: v1::AddSnapshotCommentRequest,
) -> Answer<v1::AddSnapshotCommentResponse> {
    let asked = asked(by, "AddSnapshotComment", &message, &message.request_id);
    let mut violations = Violations::default();
    violations.request_id(&message.request_id);
    if message.text.is_empty() {
        violations.add("text", "it is empty");
    }
    violations.text("text", &message.text);
    violations.check()?;
    let found = api.find(&reach, &message.snapshot, &message.vm).await?;
    let comment = api.engine.add_comment(found.id, message.text, asked).await.map_err(status::of)?;
    Ok(answered(v1::AddSnapshotCommentResponse { comment: Some(convert::comment(&comment)) }))
}

pub(super) async fn comments(
    api: &Api,
    reach: Reach,
    mut message: v1::ListSnapshotCommentsRequest,
) -> Answer<v1::ListSnapshotCommentsResponse> {
    let limit = paging::size(message.page_size)?;
    let token = std::mem::take(&mut message.page_token);
    message.page_size = 0;
    let query = status::digest("ListSnapshotComments", &message);
    let after = paging::position(&query, &token)?
        .map(|position| position.parse::<CommentId>().map_err(|_| paging::invalid()))
        .transpose()?;
    let found = api.find(&reach, &message.snapshot, &message.vm).await?;
    let (mut comments, total) =
        api.engine.comments(found.id, after, limit.saturating_add(1)).await.map_err(status::of)?;
    let has_more = comments.len() > usize::try_from(limit).unwrap_or(usize::MAX);
    if has_more {
        comments.pop();
    }
    let last = comments.last().filter(|_| has_more);
    Ok(Response::new(v1::ListSnapshotCommentsResponse {
        next_page_token: last.map(|last| paging::token(&query, &last.id.to_string())).unwrap_or_default(),
        total_size: i64::try_from(total).unwrap_or(i64::MAX),
        comments: comments.iter().map(convert::comment).collect(),
    }))
}

pub(super) async fn delete_comment(
    api: &Api,
    by: String,
    message: v1::DeleteSnapshotCommentRequest,
) -> Answer<v1::DeleteSnapshotCommentResponse> {
    let asked = asked(by, "DeleteSnapshotComment", &message, &message.request_id);
    let mut violations = Violations::default();
    violations.request_id(&message.request_id);
    violations.check()?;
    let nobody = || status::of(OpsError::NoSuchComment(message.comment_id.clone()));
    let id = message.comment_id.parse().map_err(|_| nobody())?;
    api.engine.delete_comment(id, asked).await.map_err(status::of)?;
    Ok(Response::new(v1::DeleteSnapshotCommentResponse {}))
}

fn asked<M: prost::Message>(by: String, rpc: &str, message: &M, request_id: &str) -> Asked {
    super::asked(by, request_id, status::digest(rpc, message), false)
}

impl Api {
    /// Changes the snapshot of this name, of this VM.
    async fn edit(
        &self,
        reach: &Reach,
        (snapshot, vm): (&str, &str),
        edit: Edit,
        asked: Asked,
    ) -> Result<v1::Snapshot, Status> {
        let before = self.engine.edited_before(asked.key.as_ref()).await.map_err(status::of)?;
        let snapshot = if let Some(snapshot) = before {
            if !reach.has(snapshot.vm) {
                return Err(status::of(OpsError::NoSuchSnapshot(snapshot.id.to_string())));
            }
            snapshot
        } else {
            let found = self.find(reach, snapshot, vm).await?;
            self.engine.edit_snapshot(found.id, edit, asked).await.map_err(status::of)?
        };
        self.shown(snapshot).await
    }
}

/// What is named is checked, and taken.
fn check_update(message: &v1::UpdateSnapshotRequest, reach: &Reach) -> Result<Update, Status> {
    let mut violations = Violations::default();
    violations.request_id(&message.request_id);
    let paths = message.update_mask.as_ref().map_or(&[][..], |mask| mask.paths.as_slice());
    for path in paths {
        match path.as_str() {
            field if FIELDS.contains(&field) => {}
            other => violations.add("update_mask", format!("{other:?} is not a field that can be changed")),
        }
    }
    let named = |field: &str| paths.iter().any(|path| path == field);
    let text = |field: &str, value: &String| named(field).then(|| value.clone());
    for (field, value) in [
        ("display_name", &message.display_name),
        ("account", &message.account),
        ("domain", &message.domain),
        ("project", &message.project),
    ] {
        violations.label(field, if named(field) { value } else { "" });
    }
    for (field, value) in
        [("account", &message.account), ("domain", &message.domain), ("project", &message.project)]
    {
        if named(field) && !reach.may_own(field, value) {
            violations.add(field, NOT_YOURS);
        }
    }
    violations.text("description", if named("description") { &message.description } else { "" });
    violations.properties("properties", message.set_properties.iter());
    let update = Update {
        generation: violations.take("etag", super::generation(&message.etag)).flatten(),
        name: named("name").then(|| violations.take("name", message.name.parse::<SnapshotName>())).flatten(),
        display_name: text("display_name", &message.display_name),
        description: text("description", &message.description),
        account: text("account", &message.account),
        domain: text("domain", &message.domain),
        project: text("project", &message.project),
        expires_at: named("expire_time").then(|| violations.take_expiry(message.expire_time)),
        clear_properties: message.clear_properties,
        remove_properties: message.remove_properties.iter().cloned().collect(),
        set_properties: message.set_properties.clone().into_iter().collect(),
    };
    if update == (Update { generation: update.generation, ..Update::default() }) {
        violations.add("update_mask", "there is nothing to change");
    }
    violations.check()?;
    Ok(update)
}
