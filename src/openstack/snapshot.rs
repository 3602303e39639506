//! Snapshots of Cinder's: shown, made, written on, deleted.
//!
//! Decides that a disk in a VM's snapshot is a snapshot of its volume, too, which is seen and cloned, and neither changed nor deleted
//! by itself. Leaves lists to `snapshot_list`.

use std::collections::HashMap;
use std::sync::Arc;

use axum::Extension;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use prost_types::FieldMask;
use serde::Deserialize;
use serde_json::{Value, json};
use tonic::Code;

use super::calls::Refused;
use super::id::{self, SnapshotId};
use super::making::Making;
use super::request::{Json, Metadata, is_true};
use super::shape::{Shown, snapshot_status, volume_status};
use super::{Answer, Calls, Fault, Shared};
use crate::proto::v1;
use crate::proto::v1::create_volume_snapshot_request::Source;

pub(super) async fn show(
    State(shared): State<Arc<Shared>>,
    Extension(calls): Extension<Calls>,
    Path(id): Path<String>,
) -> Result<Answer, Fault> {
    let found = find(&calls, &shared.making, &id).await?;
    Ok(Answer(StatusCode::OK, json!({ "snapshot": found.value() })))
}

/// Asks for a snapshot.
#[derive(Deserialize)]
pub(super) struct Create {
    snapshot: New,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct New {
    volume_id: String,
    name: Option<String>,
    description: Option<String>,
    metadata: Option<Metadata>,
    force: Option<Value>,
}

pub(super) async fn create(
    State(shared): State<Arc<Shared>>,
    Extension(calls): Extension<Calls>,
    Json(Create { snapshot: new }): Json<Create>,
) -> Result<Answer, Fault> {
    let is_forced = is_true(new.force.as_ref())?;
    let volume = super::volume::find(&calls, &new.volume_id).await?;
    match volume.state() {
        v1::VolumeState::Available => {}
        v1::VolumeState::InUse if is_forced => {}
        state => {
            let status = volume_status(state);
            let id = &volume.id;
            let why = format!("Volume {id} status must be available, but current status is: {status}.");
            return Err(Fault::invalid_volume(&why));
        }
    }
    let request = v1::CreateVolumeSnapshotRequest {
        source: Some(Source::Volume(volume.id.clone())),
        description: new.description.unwrap_or_default(),
        account: volume.account.clone(),
        domain: volume.domain.clone(),
        project: volume.project.clone(),
        properties: new.metadata.unwrap_or_default(),
        ..v1::CreateVolumeSnapshotRequest::default()
    };
    let begun = named(new.name.as_deref(), |name, display_name| {
        let request = v1::CreateVolumeSnapshotRequest { name, display_name, ..request.clone() };
        let calls = calls.clone();
        async move {
            let call = |calls: Calls| {
                let request = request.clone();
                async move { calls.create_volume_snapshot(request).await }
            };
            calls.once_free(call).await
        }
    });
    let begun = begun.await.map_err(refused)?;
    shared.making.begun(&begun.snapshot_id, &volume.id, volume.virtual_size_bytes);
    let ended = calls.end_of(begun.operation).await?;
    if ended.state() == v1::OperationState::Failed {
        return Err(Fault::of_operation(&ended));
    }
    let made = find(&calls, &shared.making, &begun.snapshot_id).await?;
    Ok(Answer(StatusCode::ACCEPTED, json!({ "snapshot": made.value() })))
}

/// Asks for other words on a snapshot.
#[derive(Deserialize)]
pub(super) struct Update {
    snapshot: Words,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Words {
    name: Option<String>,
    description: Option<String>,
}

pub(super) async fn update(
    State(shared): State<Arc<Shared>>,
    Extension(calls): Extension<Calls>,
    Path(id): Path<String>,
    Json(Update { snapshot: words }): Json<Update>,
) -> Result<Answer, Fault> {
    let found = find_own(&calls, &shared.making, &id).await?;
    if words.name.is_none() && words.description.is_none() {
        return Ok(Answer(StatusCode::OK, json!({ "snapshot": found.value() })));
    }
    let (is_named, has_description) = (words.name.is_some(), words.description.is_some());
    let request = v1::UpdateSnapshotRequest {
        snapshot: found.id.snapshot.clone(),
        description: words.description.unwrap_or_default(),
        ..v1::UpdateSnapshotRequest::default()
    };
    let changed = named(words.name.as_deref(), |name, display_name| {
        let mut paths = Vec::new();
        // An empty one takes the place of the one for people that was there, also where no other name is given.
        paths.extend(is_named.then_some("display_name"));
        paths.extend((!name.is_empty()).then_some("name"));
        paths.extend(has_description.then_some("description"));
        let update_mask = Some(FieldMask { paths: paths.into_iter().map(ToOwned::to_owned).collect() });
        let request = v1::UpdateSnapshotRequest { name, display_name, update_mask, ..request.clone() };
        let calls = calls.clone();
        async move { calls.update_snapshot(request).await }
    });
    let changed = changed.await.map_err(refused)?.snapshot.unwrap_or_default();
    let changed = shown(&calls, &shared.making, found.id, changed, &mut Looks::new()).await;
    Ok(Answer(StatusCode::OK, json!({ "snapshot": changed.value() })))
}

pub(super) async fn delete(
    State(shared): State<Arc<Shared>>,
    Extension(calls): Extension<Calls>,
    Path(id): Path<String>,
) -> Result<Answer, Fault> {
    begin_deletion(&calls, &shared.making, &id).await
}

/// The deletion goes on by itself.
pub(super) async fn begin_deletion(calls: &Calls, making: &Making, id: &str) -> Result<Answer, Fault> {
    let found = find_own(calls, making, id).await?;
    let call = |calls: Calls| {
        let snapshot = found.id.snapshot.clone();
        async move { calls.delete_snapshot(v1::DeleteSnapshotRequest { snapshot, ..Default::default() }).await }
    };
    calls.once_free(call).await.map_err(refused)?;
    Ok(Answer(StatusCode::ACCEPTED, Value::Null))
}

/// The snapshot of an id.
pub(super) async fn find(calls: &Calls, making: &Making, text: &str) -> Result<Shown, Fault> {
    let (id, snapshot) = found(calls, text).await?;
    Ok(shown(calls, making, id, snapshot, &mut Looks::new()).await)
}

/// The same as gRPC has it.
pub(super) async fn found(calls: &Calls, text: &str) -> Result<(SnapshotId, v1::Snapshot), Fault> {
    let id = SnapshotId::read(text)?;
    let request = v1::GetSnapshotRequest { snapshot: id.snapshot.clone(), ..Default::default() };
    let found = calls.get_snapshot(request).await;
    let found = found.map_err(|refused| Fault::from(refused).or(|| Fault::no_snapshot(text)))?;
    let snapshot =
        found.snapshot.filter(|snapshot| id.fits(snapshot)).ok_or_else(|| Fault::no_snapshot(text))?;
    Ok((id, snapshot))
}

/// The same of one that can be changed by itself.
pub(super) async fn find_own(calls: &Calls, making: &Making, text: &str) -> Result<Shown, Fault> {
    let found = find(calls, making, text).await?;
    if found.id.disk.is_none() {
        return Ok(found);
    }
    let (name, vm) = (&found.snapshot.name, &found.snapshot.vm_name);
    let why = format!("{text} is a disk in the snapshot {name} of the VM {vm}, which is changed as a whole.");
    Err(Fault::invalid_snapshot(&why))
}

/// Of each operation that was looked at for an answer, whether it needs a person.
pub(super) type Looks = HashMap<String, bool>;

/// A snapshot as it is shown under an id of it.
pub(super) async fn shown(
    calls: &Calls,
    making: &Making,
    id: SnapshotId,
    snapshot: v1::Snapshot,
    looks: &mut Looks,
) -> Shown {
    let status = snapshot_status(snapshot.state(), is_stuck(calls, &snapshot, looks).await);
    let held = id.disk_of(&snapshot).map(|held| (held.volume_id.clone(), held.virtual_size_bytes));
    let (volume, bytes) = held.or_else(|| making.of(&snapshot.id)).unwrap_or_default();
    Shown { id, snapshot, status, volume, bytes }
}

/// Whether what goes on with it needs a person. Not as long as that cannot be told: a whole list does not fail for it, and who
/// waits looks again.
async fn is_stuck(calls: &Calls, snapshot: &v1::Snapshot, looks: &mut Looks) -> bool {
    let may_be = matches!(snapshot.state(), v1::SnapshotState::Creating | v1::SnapshotState::Deleting);
    if !may_be || snapshot.operation_id.is_empty() {
        return false;
    }
    if let Some(known) = looks.get(&snapshot.operation_id) {
        return *known;
    }
    let request = v1::GetOperationRequest { operation_id: snapshot.operation_id.clone() };
    let operation = calls.get_operation(request).await.ok().and_then(|answer| answer.operation);
    let is_stuck = operation.is_some_and(|operation| operation.state() == v1::OperationState::Stuck);
    looks.insert(snapshot.operation_id.clone(), is_stuck);
    is_stuck
}

/// Makes a call with a name. One that Cinder allows and we do not, or that another one of the VM has, becomes the name for people.
async fn named<T, F>(name: Option<&str>, call: impl Fn(String, String) -> F) -> Result<T, Refused>
where
    F: Future<Output = Result<T, Refused>>,
{
    let name = name.unwrap_or_default();
    match call(name.to_owned(), String::new()).await {
        Err(refused) if !name.is_empty() && refused.is_about_name() => {
            call(String::new(), name.to_owned()).await
        }
        answer => answer,
    }
}

/// Cinder's words for a snapshot that is not so that something can be done with it.
pub(super) fn refused(refused: Refused) -> Fault {
    match refused.code() {
        Code::FailedPrecondition => Fault::invalid_snapshot(&refused.message()),
        Code::InvalidArgument => Fault::invalid_input(&refused.message()),
        _ => refused.into(),
    }
}

/// Where a volume is named by its id.
pub(super) fn volume_id(text: &str) -> Option<String> {
    id::volume(text).ok()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tonic::Status;

    use super::*;

    const CREATE: &str = r#"{"snapshot": {"volume_id": "x", "name": "one", "description": null, "metadata": {"a": "1"}, "force": true}}"#;
    const UPDATE: &str = r#"{"snapshot": {"name": "two", "description": "why"}}"#;

    proptest::proptest! {
        #![proptest_config(crate::mutation::config())]

        #[test]
        fn any_body_is_refused_or_understood(text in crate::mutation::text([CREATE, UPDATE])) {
            if let Ok(Create { snapshot }) = serde_json::from_str::<Create>(&text) {
                let _ = is_true(snapshot.force.as_ref());
            }
            let _ = serde_json::from_str::<Update>(&text);
        }
    }

    /// Calls that are all refused, and how many there were.
    fn answering(code: Code) -> (Calls, Arc<AtomicUsize>) {
        let asked = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&asked);
        let calls = Calls::new(tower::service_fn(move |_| {
            counted.fetch_add(1, Ordering::Relaxed);
            async move { Ok(Status::new(code, "").into_http()) }
        }));
        (calls, asked)
    }

    #[tokio::test]
    async fn an_operation_is_looked_at_once_and_may_fail() {
        let (calls, asked) = answering(Code::Unavailable);
        let snapshot = v1::Snapshot {
            id: uuid::Uuid::from_u128(1).to_string(),
            kind: v1::SnapshotKind::Volume.into(),
            state: v1::SnapshotState::Deleting.into(),
            operation_id: "x".to_owned(),
            ..v1::Snapshot::default()
        };
        let mut looks = Looks::new();
        for _ in 0..2 {
            let id = SnapshotId::all_of(&snapshot).remove(0);
            let shown = shown(&calls, &Making::default(), id, snapshot.clone(), &mut looks).await;
            assert_eq!(shown.status, "deleting");
        }
        assert_eq!(asked.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn the_samples_are_good() {
        assert!(
            serde_json::from_str::<Create>(CREATE).is_ok() && serde_json::from_str::<Update>(UPDATE).is_ok()
        );
    }
}
