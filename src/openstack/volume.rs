//! Volumes of Cinder's: shown, made out of a snapshot, deleted.
//!
//! Decides what of Cinder's volumes there is here: disks of VMs, clones, images in configured directories. A volume is made of a
//! snapshot, as a clone in the first of these directories; all other ways are answered as where a driver lacks them.

use std::sync::Arc;

use axum::Extension;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};
use tonic::Code;
use uuid::Uuid;

use super::calls::Refused;
use super::request::{Json, Metadata, is_true};
use super::shape::{self, gib};
use super::{Answer, Calls, Fault, Shared, id, snapshot};
use crate::proto::v1;

pub(super) async fn show(
    Extension(calls): Extension<Calls>,
    Path(id): Path<String>,
) -> Result<Answer, Fault> {
    let found = find(&calls, &id).await?;
    Ok(Answer(StatusCode::OK, json!({ "volume": shape::volume(&found) })))
}

/// Asks for a volume.
#[derive(Deserialize)]
pub(super) struct Create {
    volume: New,
}

#[derive(Deserialize)]
struct New {
    snapshot_id: Option<String>,
    name: Option<String>,
    description: Option<String>,
    metadata: Option<Metadata>,
    size: Option<Value>,
    availability_zone: Option<String>,
    volume_type: Option<Value>,
    multiattach: Option<Value>,
    #[serde(flatten)]
    others: serde_json::Map<String, Value>,
}

pub(super) async fn create(
    State(shared): State<Arc<Shared>>,
    Extension(calls): Extension<Calls>,
    Json(Create { volume: new }): Json<Create>,
) -> Result<Answer, Fault> {
    let source = new.source()?;
    let source = snapshot::find(&calls, &shared.making, source).await?;
    new.check_size(gib(source.bytes))?;
    let name =
        new.name.filter(|name| !name.is_empty()).unwrap_or_else(|| format!("volume-{}", Uuid::now_v7()));
    let mut properties = new.metadata.unwrap_or_default();
    if let Some(description) = new.description.filter(|description| !description.is_empty()) {
        properties.insert("description".to_owned(), description);
    }
    let request = v1::CloneVolumeRequest {
        source: Some(v1::SnapshotDiskReference {
            snapshot: source.id.snapshot.clone(),
            vm: String::new(),
            disk: source.id.disk.clone().unwrap_or_default(),
        }),
        path: format!("{name}.qcow2"),
        name,
        project: source.snapshot.project.clone(),
        account: source.snapshot.account.clone(),
        domain: source.snapshot.domain.clone(),
        properties,
        ..v1::CloneVolumeRequest::default()
    };
    let call = |calls: Calls| {
        let request = request.clone();
        async move { calls.clone_volume(request).await }
    };
    let begun = calls.once_free(call).await.map_err(snapshot::refused)?;
    let ended = calls.end_of(begun.operation).await?;
    if ended.state() == v1::OperationState::Failed {
        return Err(Fault::of_operation(&ended));
    }
    let made = find(&calls, &begun.volume_id).await?;
    Ok(Answer(StatusCode::ACCEPTED, json!({ "volume": shape::volume(&made) })))
}

impl New {
    /// The snapshot to make it of. Refuses what it is not made of here, and all that it would not have.
    fn source(&self) -> Result<&str, Fault> {
        let is_set = |value: &Value| !matches!(value, Value::Null | Value::Bool(false));
        if let Some((other, _)) = self.others.iter().find(|(_, value)| is_set(value)) {
            return Err(Fault::lacking(&format!("volumes with {other}")));
        }
        if self.volume_type.as_ref().is_some_and(is_set) {
            return Err(Fault::lacking("volume types"));
        }
        if is_true(self.multiattach.as_ref())? {
            return Err(Fault::lacking("volumes that several VMs write to"));
        }
        if let Some(zone) = self.availability_zone.as_ref().filter(|zone| *zone != shape::ZONE) {
            return Err(Fault::bad_request(format!("Availability zone '{zone}' is invalid.")));
        }
        self.snapshot_id.as_deref().ok_or_else(|| Fault::lacking("volumes that are not made of a snapshot"))
    }

    /// A clone has the size of what it is made of.
    fn check_size(&self, has: u64) -> Result<(), Fault> {
        let wanted = match &self.size {
            None | Some(Value::Null) => return Ok(()),
            Some(Value::String(text)) => text.parse().ok(),
            Some(number) => number.as_u64(),
        };
        match wanted {
            Some(wanted) if wanted == has => Ok(()),
            Some(wanted) if wanted > has => {
                Err(Fault::lacking("volumes that are larger than their snapshot"))
            }
            Some(wanted) => {
                let why = format!("Volume size {wanted}GB cannot be smaller than the snapshot size {has}GB.");
                Err(Fault::invalid_input(&why))
            }
            None => Err(Fault::invalid_input("size is a number of GiB")),
        }
    }
}

pub(super) async fn delete(
    Extension(calls): Extension<Calls>,
    Path(id): Path<String>,
) -> Result<Answer, Fault> {
    begin_deletion(&calls, &id).await
}

/// The deletion goes on by itself.
pub(super) async fn begin_deletion(calls: &Calls, id: &str) -> Result<Answer, Fault> {
    let found = find(calls, id).await?;
    let call = |calls: Calls| {
        let volume = found.id.clone();
        async move { calls.delete_volume(v1::DeleteVolumeRequest { volume, ..Default::default() }).await }
    };
    calls.once_free(call).await.map_err(refused)?;
    Ok(Answer(StatusCode::ACCEPTED, Value::Null))
}

pub(super) async fn update(
    Extension(calls): Extension<Calls>,
    Path(id): Path<String>,
) -> Result<Answer, Fault> {
    find(&calls, &id).await?;
    Err(Fault::lacking("changes of what is written on a volume"))
}

/// What Cinder has below a volume.
pub(super) async fn others(
    Extension(calls): Extension<Calls>,
    Path((id, rest)): Path<(String, String)>,
) -> Result<Answer, Fault> {
    let is_known = matches!(rest.split('/').next(), Some("metadata" | "encryption" | "action"));
    // A volume's own name has a slash: `web/vda`. A client that asks for it as if it were an id looks for it in the list then.
    find(&calls, &id).await.map_err(|fault| if is_known { fault } else { Fault::no_volume(&id) })?;
    if is_known { Err(Fault::lacking("that of volumes")) } else { Err(Fault::no_volume(&id)) }
}

/// The volume of an id.
pub(super) async fn find(calls: &Calls, text: &str) -> Result<v1::Volume, Fault> {
    let request = v1::GetVolumeRequest { volume: id::volume(text)? };
    let found = calls.get_volume(request).await;
    let found = found.map_err(|refused| Fault::from(refused).or(|| Fault::no_volume(text)))?;
    found.volume.ok_or_else(|| Fault::no_volume(text))
}

/// Cinder's words for a volume that is not so that something can be done with it.
pub(super) fn refused(refused: Refused) -> Fault {
    match refused.code() {
        Code::FailedPrecondition | Code::InvalidArgument => Fault::invalid_volume(&refused.message()),
        _ => refused.into(),
    }
}
