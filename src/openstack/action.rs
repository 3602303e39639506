//! Actions: what Cinder has no better place for.
//!
//! Decides what `set --state` means. A state is what is, not what somebody would like: the one that a snapshot is in is accepted,
//! and `available` and `error` are asked of the call that declares them. All others are refused.

use std::sync::Arc;

use axum::Extension;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde_json::{Map, Value};

use super::request::Json;
use super::snapshot::{begin_deletion, find, find_own, refused};
use super::{Answer, Calls, Fault, Shared, volume};
use crate::proto::v1;

/// The states that Cinder lets one declare.
const STATES: [&str; 5] = ["available", "creating", "deleting", "error", "error_deleting"];

pub(super) async fn on_snapshot(
    State(shared): State<Arc<Shared>>,
    Extension(calls): Extension<Calls>,
    Path(id): Path<String>,
    Json(body): Json<Map<String, Value>>,
) -> Result<Answer, Fault> {
    let (action, value) = only(&body)?;
    match action {
        // It is nobody's wish that a hold is broken, or a layer removed that others read.
        "os-force_delete" => begin_deletion(&calls, &shared.making, &id).await,
        "os-reset_status" => reset(&calls, &shared, &id, value).await,
        "os-update_snapshot_status" | "os-unmanage" => {
            find(&calls, &shared.making, &id).await?;
            Err(Fault::lacking(action))
        }
        other => Err(no_action(other)),
    }
}

async fn reset(calls: &Calls, shared: &Shared, id: &str, value: &Value) -> Result<Answer, Fault> {
    let wanted = value.get("status").and_then(Value::as_str).unwrap_or_default();
    if !STATES.contains(&wanted) {
        return Err(Fault::invalid_input(&format!("status: {wanted:?} is none of {}", STATES.join(", "))));
    }
    let found = find_own(calls, &shared.making, id).await?;
    // What is so needs no declaration, nor anybody who may declare.
    if wanted == found.status {
        return Ok(Answer(StatusCode::ACCEPTED, Value::Null));
    }
    let state = match wanted {
        "available" => v1::SnapshotState::Ready,
        "error" => v1::SnapshotState::Error,
        _ => {
            let why = format!("Snapshot {id} is {}, and nobody can declare it {wanted}.", found.status);
            return Err(Fault::invalid_snapshot(&why));
        }
    };
    let call = |calls: Calls| {
        let snapshot = found.id.snapshot.clone();
        let request = v1::ResetSnapshotStateRequest { snapshot, state: state.into(), ..Default::default() };
        async move { calls.reset_snapshot_state(request).await }
    };
    calls.once_free(call).await.map_err(refused)?;
    Ok(Answer(StatusCode::ACCEPTED, Value::Null))
}

pub(super) async fn on_volume(
    State(shared): State<Arc<Shared>>,
    Extension(calls): Extension<Calls>,
    Path(id): Path<String>,
    Json(body): Json<Map<String, Value>>,
) -> Result<Answer, Fault> {
    let (action, value) = only(&body)?;
    match action {
        // What others read of it is no less needed by them.
        "os-force_delete" => volume::begin_deletion(&calls, &id).await,
        "revert" => revert(&calls, &shared, &id, value).await,
        other => {
            volume::find(&calls, &id).await?;
            Err(if other.starts_with("os-") { Fault::lacking(other) } else { no_action(other) })
        }
    }
}

async fn revert(calls: &Calls, shared: &Shared, id: &str, value: &Value) -> Result<Answer, Fault> {
    let found = volume::find(calls, id).await?;
    let snapshot = value.get("snapshot_id").and_then(Value::as_str).unwrap_or_default();
    let snapshot = find_own(calls, &shared.making, snapshot).await?;
    if snapshot.volume != found.id {
        let why = format!("{} is not a snapshot of volume {}.", snapshot.id.snapshot, found.id);
        return Err(Fault::invalid_snapshot(&why));
    }
    let call = |calls: Calls| {
        let (volume, snapshot) = (found.id.clone(), snapshot.id.snapshot.clone());
        async move {
            calls.revert_volume(v1::RevertVolumeRequest { volume, snapshot, ..Default::default() }).await
        }
    };
    let begun = calls.once_free(call).await.map_err(volume::refused)?;
    let ended = calls.end_of(begun.operation).await?;
    if ended.state() == v1::OperationState::Failed {
        return Err(Fault::of_operation(&ended));
    }
    Ok(Answer(StatusCode::ACCEPTED, Value::Null))
}

fn only(body: &Map<String, Value>) -> Result<(&str, &Value), Fault> {
    let mut actions = body.iter();
    match (actions.next(), actions.next()) {
        (Some((action, value)), None) => Ok((action, value)),
        _ => Err(Fault::bad_request("Malformed request body: one action is named")),
    }
}

fn no_action(action: &str) -> Fault {
    Fault::bad_request(format!("There is no such action: {action}"))
}
