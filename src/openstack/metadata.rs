//! The metadata of snapshots: our properties.

use std::sync::Arc;

use axum::Extension;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};

use super::request::{Json, Metadata};
use super::shape::Shown;
use super::snapshot::{Looks, find, find_own, refused, shown};
use super::{Answer, Calls, Fault, Shared};
use crate::proto::v1;

/// Several entries.
#[derive(Deserialize)]
pub(super) struct Entries {
    metadata: Metadata,
}

/// One entry.
#[derive(Deserialize)]
pub(super) struct Entry {
    meta: Metadata,
}

pub(super) async fn all(
    State(shared): State<Arc<Shared>>,
    Extension(calls): Extension<Calls>,
    Path(id): Path<String>,
) -> Result<Answer, Fault> {
    Ok(answer(&find(&calls, &shared.making, &id).await?))
}

pub(super) async fn one(
    State(shared): State<Arc<Shared>>,
    Extension(calls): Extension<Calls>,
    Path((id, key)): Path<(String, String)>,
) -> Result<Answer, Fault> {
    let metadata = find(&calls, &shared.making, &id).await?.metadata();
    let value = metadata.get(&key).ok_or_else(|| no_key(&id, &key))?;
    Ok(Answer(StatusCode::OK, json!({ "meta": { key: value } })))
}

/// Adds entries to those that are there.
pub(super) async fn merge(
    State(shared): State<Arc<Shared>>,
    Extension(calls): Extension<Calls>,
    Path(id): Path<String>,
    Json(Entries { metadata }): Json<Entries>,
) -> Result<Answer, Fault> {
    let change = v1::UpdateSnapshotRequest { set_properties: metadata, ..Default::default() };
    changed(&calls, &shared, &id, change).await.map(|changed| answer(&changed))
}

/// Puts entries in the place of those that are there.
pub(super) async fn replace(
    State(shared): State<Arc<Shared>>,
    Extension(calls): Extension<Calls>,
    Path(id): Path<String>,
    Json(Entries { metadata }): Json<Entries>,
) -> Result<Answer, Fault> {
    let change =
        v1::UpdateSnapshotRequest { clear_properties: true, set_properties: metadata, ..Default::default() };
    changed(&calls, &shared, &id, change).await.map(|changed| answer(&changed))
}

pub(super) async fn set(
    State(shared): State<Arc<Shared>>,
    Extension(calls): Extension<Calls>,
    Path((id, key)): Path<(String, String)>,
    Json(Entry { meta }): Json<Entry>,
) -> Result<Answer, Fault> {
    if meta.len() != 1 || !meta.contains_key(&key) {
        return Err(Fault::bad_request(
            "Request body contains too many items, or another than the path names",
        ));
    }
    let change = v1::UpdateSnapshotRequest { set_properties: meta.clone(), ..Default::default() };
    changed(&calls, &shared, &id, change).await?;
    Ok(Answer(StatusCode::OK, json!({ "meta": meta })))
}

pub(super) async fn remove(
    State(shared): State<Arc<Shared>>,
    Extension(calls): Extension<Calls>,
    Path((id, key)): Path<(String, String)>,
) -> Result<Answer, Fault> {
    let found = find_own(&calls, &shared.making, &id).await?;
    if !found.snapshot.properties.contains_key(&key) {
        return Err(no_key(&id, &key));
    }
    let change = v1::UpdateSnapshotRequest { remove_properties: vec![key], ..Default::default() };
    changed(&calls, &shared, &id, change).await?;
    Ok(Answer(StatusCode::OK, Value::Null))
}

async fn changed(
    calls: &Calls,
    shared: &Shared,
    id: &str,
    change: v1::UpdateSnapshotRequest,
) -> Result<Shown, Fault> {
    let found = find_own(calls, &shared.making, id).await?;
    if !change.clear_properties && change.remove_properties.is_empty() && change.set_properties.is_empty() {
        return Ok(found);
    }
    let request = v1::UpdateSnapshotRequest { snapshot: found.id.snapshot.clone(), ..change };
    let changed = calls.update_snapshot(request).await.map_err(refused)?.snapshot.unwrap_or_default();
    Ok(shown(calls, &shared.making, found.id, changed, &mut Looks::new()).await)
}

fn answer(shown: &Shown) -> Answer {
    Answer(StatusCode::OK, json!({ "metadata": shown.metadata() }))
}

fn no_key(id: &str, key: &str) -> Fault {
    Fault::new(StatusCode::NOT_FOUND, format!("Snapshot {id} has no metadata with key {key}."))
}
