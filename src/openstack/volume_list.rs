//! Lists of volumes, by name or the newest first. There are as many as disks on the node: all are asked for, and a page cut out here.

use std::sync::Arc;

use axum::Extension;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri};
use serde_json::{Value, json};

use super::request::Asked;
use super::shape::{self, volume_status};
use super::snapshot_list::next;
use super::{Answer, Calls, Fault, Shared, discovery};
use crate::proto::v1;

/// Volumes that are asked for at once.
const BATCH: i32 = 1000;

pub(super) async fn details(
    State(shared): State<Arc<Shared>>,
    Extension(calls): Extension<Calls>,
    uri: Uri,
    headers: HeaderMap,
    asked: Asked,
) -> Result<Answer, Fault> {
    let base = discovery::base(shared.scheme, &headers);
    list(&calls, &asked, (&base, uri.path()), shape::volume).await
}

/// The same, and of each its name alone.
pub(super) async fn summaries(
    State(shared): State<Arc<Shared>>,
    Extension(calls): Extension<Calls>,
    uri: Uri,
    headers: HeaderMap,
    asked: Asked,
) -> Result<Answer, Fault> {
    let base = discovery::base(shared.scheme, &headers);
    let summary = |volume: &v1::Volume| json!({ "id": volume.id, "name": volume.name, "links": [] });
    list(&calls, &asked, (&base, uri.path()), summary).await
}

async fn list(
    calls: &Calls,
    asked: &Asked,
    (base, path): (&str, &str),
    value: impl Fn(&v1::Volume) -> Value,
) -> Result<Answer, Fault> {
    let mut volumes = all(calls, asked).await?;
    let count = volumes.iter().filter(|volume| fits(asked, volume)).count();
    // It may be one that the filter leaves out by now.
    if let Some(marker) = &asked.marker {
        let place = volumes.iter().position(|volume| volume.id.eq_ignore_ascii_case(marker));
        volumes.drain(..=place.ok_or_else(|| Fault::no_volume(marker))?);
    }
    volumes.retain(|volume| fits(asked, volume));
    let page: Vec<&v1::Volume> = volumes.iter().skip(asked.offset).take(asked.limit).collect();
    let mut answer = json!({ "volumes": page.iter().map(|volume| value(volume)).collect::<Vec<_>>() });
    if asked.with_count {
        answer["count"] = count.into();
    }
    if let Some(last) = page.last().filter(|_| page.len() == asked.limit) {
        answer["volumes_links"] = next(base, path, asked, &last.id);
    }
    Ok(Answer(StatusCode::OK, answer))
}

/// In the order that was asked for.
async fn all(calls: &Calls, asked: &Asked) -> Result<Vec<v1::Volume>, Fault> {
    let project = asked.project_id.clone().unwrap_or_default();
    let filter = Some(v1::VolumeFilter { project, ..Default::default() });
    let order_by = if asked.newest_first { "create_time desc" } else { "name" }.to_owned();
    let mut request = v1::ListVolumesRequest { filter, order_by, page_size: BATCH, ..Default::default() };
    let mut volumes = Vec::new();
    loop {
        let answer = calls.list_volumes(request.clone()).await?;
        volumes.extend(answer.volumes);
        if answer.next_page_token.is_empty() {
            return Ok(volumes);
        }
        request.page_token = answer.next_page_token;
    }
}

fn fits(asked: &Asked, volume: &v1::Volume) -> bool {
    asked.name.as_ref().is_none_or(|name| volume.name == *name)
        && asked.volume_id.as_ref().is_none_or(|id| volume.id.eq_ignore_ascii_case(id))
        && asked.status.as_ref().is_none_or(|status| volume_status(volume.state()) == status)
}
