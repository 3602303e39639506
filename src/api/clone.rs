//! Clones and the VMs made of them.

use std::path::PathBuf;

use tonic::Status;

use super::snapshot::{OperationOrPlan, answer, answer_or_blocker, asked, bandwidth};
use super::status::Violations;
use super::volume::VolumeEtag;
use super::{Answer, Api, Caller, Reach, answered, convert, status};
use crate::model::request::NewVmState;
use crate::model::{
    CloneVolume, ClonedVolume, DeleteVolume, DeployVm, DiskTarget, FlattenVolume, VmName, VolumeId,
    VolumeName,
};
use crate::ops::{Asked, OpsError};
use crate::plan::Refusal;
use crate::proto::v1;

/// Longest path, in bytes: Linux's own limit.
const PATH_LIMIT: usize = 4095;

pub(super) async fn clone_volume(
    api: &Api,
    Caller { by, reach, .. }: Caller,
    message: v1::CloneVolumeRequest,
) -> Answer<v1::CloneVolumeResponse> {
    let kind = v1::OperationKind::CloneVolume;
    let asked = asked(by, "CloneVolume", &message, &message.request_id, message.validate_only);
    let (operation, plan) = if let Some(before) = api.repeated(&reach, &asked).await? {
        answer(before, kind)
    } else {
        let wish = CloneWish::check(api, &message)?;
        let source = message.source.clone().unwrap_or_default();
        let snapshot = api.find(&reach, &source.snapshot, &source.vm).await?;
        let request = wish.request(snapshot.id, message);
        answer_or_blocker(api.engine.clone_volume(request, asked.clone()).await, &asked, kind)?
    };
    let volume_id = operation.as_ref().map(|operation| operation.volume_id.clone()).unwrap_or_default();
    Ok(answered(v1::CloneVolumeResponse { operation, plan, volume_id }))
}

pub(super) async fn flatten_volume(
    api: &Api,
    Caller { by, reach, .. }: Caller,
    message: v1::FlattenVolumeRequest,
) -> Answer<v1::FlattenVolumeResponse> {
    let kind = v1::OperationKind::FlattenVolume;
    let asked = asked(by, "FlattenVolume", &message, &message.request_id, message.validate_only);
    let (operation, plan) = if let Some(before) = api.repeated(&reach, &asked).await? {
        answer(before, kind)
    } else {
        let mut violations = Violations::default();
        let merge_deadline_ms = violations.merge_deadline(message.merge_deadline);
        violations.check()?;
        let found = api.clone_named(&reach, &message.volume, &message.etag, &message.request_id).await?;
        let request = FlattenVolume {
            volume: found.id,
            bandwidth: bandwidth(message.bandwidth_bytes_per_second),
            merge_deadline_ms,
            generation: found.generation,
        };
        answer_or_blocker(api.engine.flatten_volume(request, asked.clone()).await, &asked, kind)?
    };
    Ok(answered(v1::FlattenVolumeResponse { operation, plan }))
}

pub(super) async fn delete_volume(
    api: &Api,
    Caller { by, reach, .. }: Caller,
    message: v1::DeleteVolumeRequest,
) -> Answer<v1::DeleteVolumeResponse> {
    let kind = v1::OperationKind::DeleteVolume;
    let asked = asked(by, "DeleteVolume", &message, &message.request_id, message.validate_only);
    let (operation, plan) = if let Some(before) = api.repeated(&reach, &asked).await? {
        answer(before, kind)
    } else {
        let found = api.clone_named(&reach, &message.volume, &message.etag, &message.request_id).await?;
        let request = DeleteVolume { volume: found.id, generation: found.generation };
        answer_or_blocker(api.engine.delete_volume(request, asked.clone()).await, &asked, kind)?
    };
    Ok(answered(v1::DeleteVolumeResponse { operation, plan }))
}

pub(super) async fn deploy_vm(
    api: &Api,
    Caller { by, reach, .. }: Caller,
    message: v1::DeployVmRequest,
) -> Answer<v1::DeployVmResponse> {
    let kind = v1::OperationKind::DeployVm;
    let asked = asked(by, "DeployVm", &message, &message.request_id, message.validate_only);
    let (operation, plan): OperationOrPlan = match api.repeated(&reach, &asked).await? {
        Some(before) => answer(before, kind),
        None => deploy(api, &reach, message, &asked, kind).await?,
    };
    let vm_id = operation.as_ref().map(|operation| operation.new_vm_id.clone()).unwrap_or_default();
    Ok(answered(v1::DeployVmResponse { operation, plan, vm_id }))
}

async fn deploy(
    api: &Api,
    reach: &Reach,
    message: v1::DeployVmRequest,
    asked: &Asked,
    kind: v1::OperationKind,
) -> Result<OperationOrPlan, Status> {
    let mut violations = Violations::default();
    violations.request_id(&message.request_id);
    violations.required("snapshot", &message.snapshot);
    let name = violations.take("name", message.name.parse::<VmName>());
    let then = match message.run_state_after() {
        v1::RunState::Unspecified | v1::RunState::Off => NewVmState::Off,
        v1::RunState::Paused => NewVmState::Paused,
        v1::RunState::Running => NewVmState::Running,
        v1::RunState::Unknown | v1::RunState::Migrated => {
            violations.add("run_state_after", "OFF, PAUSED or RUNNING");
            NewVmState::Off
        }
    };
    violations.check()?;
    let snapshot = api.find(reach, &message.snapshot, &message.vm).await?;
    let request = DeployVm {
        snapshot: snapshot.id,
        name: name.expect("a name that is none was refused"),
        mode: convert::clone_mode(message.mode()),
        then,
        new_serials: message.new_serials,
        bandwidth: bandwidth(message.bandwidth_bytes_per_second),
    };
    answer_or_blocker(api.engine.deploy_vm(request, asked.clone()).await, asked, kind)
}

/// The fields of a clone request that are checked for shape.
struct CloneWish {
    disk: Option<DiskTarget>,
    path: PathBuf,
    name: VolumeName,
    owner: crate::model::snapshot::Owner,
}

impl CloneWish {
    fn check(api: &Api, message: &v1::CloneVolumeRequest) -> Result<Self, Status> {
        let mut violations = Violations::default();
        violations.request_id(&message.request_id);
        let source = message.source.clone().unwrap_or_default();
        violations.required("source.snapshot", &source.snapshot);
        let disk = match source.disk.as_str() {
            "" => None,
            disk => violations.take("source.disk", disk.parse::<DiskTarget>()),
        };
        violations.limited("path", &message.path, PATH_LIMIT);
        let path = violations.take("path", place(api, &message.path)).unwrap_or_default();
        let file = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let name = match message.name.as_str() {
            "" => violations.take("name", file.parse::<VolumeName>()),
            name => violations.take("name", name.parse::<VolumeName>()),
        };
        let owner = violations.take_owner([&message.account, &message.domain, &message.project]);
        violations.properties("properties", message.properties.iter());
        violations.check()?;
        Ok(Self { disk, path, name: name.expect("a name that is none was refused"), owner })
    }

    fn request(self, snapshot: crate::model::SnapshotId, message: v1::CloneVolumeRequest) -> CloneVolume {
        CloneVolume {
            snapshot,
            disk: self.disk,
            path: self.path,
            name: self.name,
            mode: convert::clone_mode(message.mode()),
            bandwidth: bandwidth(message.bandwidth_bytes_per_second),
            owner: self.owner,
            properties: message.properties,
        }
    }
}

/// An absolute path, or a file name in the first directory that may hold clones. Whether it may be there is the plan's.
fn place(api: &Api, path: &str) -> Result<PathBuf, &'static str> {
    let asked = PathBuf::from(path);
    if path.chars().any(char::is_control) {
        return Err("it contains control characters");
    }
    if asked.is_absolute() {
        return Ok(asked);
    }
    match (path, asked.file_name()) {
        ("" | "." | "..", _) | (_, None) => Err("it names no file"),
        (_, Some(_)) if path.contains('/') => Err("an absolute path, or the name of a file"),
        (_, Some(name)) => {
            let first =
                api.engine.image_directories().first().ok_or("no image_directories are configured")?;
            Ok(first.join(name))
        }
    }
}

/// A clone that answers to a name, and the generation of it that the client has seen.
struct NamedClone {
    id: VolumeId,
    generation: Option<u64>,
}

impl Api {
    async fn clone_named(
        &self,
        reach: &Reach,
        volume: &str,
        etag: &str,
        request_id: &str,
    ) -> Result<NamedClone, Status> {
        let mut violations = Violations::default();
        violations.request_id(request_id);
        violations.required("volume", volume);
        let etag = violations.take("etag", VolumeEtag::parse(etag)).flatten();
        violations.check()?;
        let found = self.found_volume(reach, volume).await?;
        let generation = match etag {
            None => None,
            Some(VolumeEtag::Generation(generation)) => Some(generation),
            Some(VolumeEtag::Layer(layer)) if found.state == Some(layer) => None,
            Some(VolumeEtag::Layer(_)) => return Err(status::of(Refusal::VolumeChanged.into())),
        };
        let clone: Option<ClonedVolume> = found.clone;
        let clone = clone.ok_or_else(|| status::of(OpsError::NotAClone(found.name)))?;
        Ok(NamedClone { id: clone.id, generation })
    }
}
