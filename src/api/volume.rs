//! `VolumeService`: single disks, their snapshots and their reverts.

use std::collections::{BTreeSet, HashMap};

use tonic::{Request, Response, Status};

use super::snapshot::{FREEZE_TIMEOUT, answer, answer_or_blocker, asked, quiesce};
use super::status::Violations;
use super::{Answer, Api, Caller, Reach, answered, clone, convert, status};
use crate::model::{
    CreateSnapshot, DiskTarget, Label, LayerId, RevertVolume, SnapshotKind, TakeFromSnapshot, VmId,
};
use crate::ops::{Asked, OpsError, Submitted};
use crate::plan::Refusal;
use crate::proto::v1;
use crate::proto::v1::create_volume_snapshot_request::Source;
use crate::proto::v1::volume_service_server::VolumeService;

#[tonic::async_trait]
impl VolumeService for Api {
    async fn get_volume(&self, request: Request<v1::GetVolumeRequest>) -> Answer<v1::GetVolumeResponse> {
        let reach = self.caller(&request).await?.reach;
        let wanted = request.into_inner().volume;
        let mut violations = Violations::default();
        violations.required("volume", &wanted);
        violations.check()?;
        let volume = self.found_volume(&reach, &wanted).await?;
        // As they are now: what is made of it may be given its owner.
        let labels = match &volume.user {
            Some(place) => self.engine.labels(Some(place.vm.id)).await.map_err(status::of)?,
            None => HashMap::new(),
        };
        Ok(Response::new(v1::GetVolumeResponse { volume: Some(convert::volume(&volume, &labels)) }))
    }

    async fn list_volumes(
        &self,
        request: Request<v1::ListVolumesRequest>,
    ) -> Answer<v1::ListVolumesResponse> {
        super::volume_list::list(self, self.caller(&request).await?.reach, request.into_inner()).await
    }

    async fn create_volume_snapshot(
        &self,
        request: Request<v1::CreateVolumeSnapshotRequest>,
    ) -> Answer<v1::CreateVolumeSnapshotResponse> {
        let Caller { by, reach, .. } = self.caller(&request).await?;
        let message = request.into_inner();
        let kind = v1::OperationKind::CreateVolumeSnapshot;
        let asked = asked(by, "CreateVolumeSnapshot", &message, &message.request_id, message.validate_only);
        let submitted = match self.repeated(&reach, &asked).await? {
            Some(before) => Ok(before),
            None => self.take(&reach, message, asked.clone()).await?,
        };
        let (operation, plan) = answer_or_blocker(submitted, &asked, kind)?;
        let snapshot_id =
            operation.as_ref().map(|operation| operation.snapshot_id.clone()).unwrap_or_default();
        Ok(answered(v1::CreateVolumeSnapshotResponse { operation, plan, snapshot_id }))
    }

    async fn revert_volume(
        &self,
        request: Request<v1::RevertVolumeRequest>,
    ) -> Answer<v1::RevertVolumeResponse> {
        let Caller { by, reach, .. } = self.caller(&request).await?;
        let message = request.into_inner();
        let kind = v1::OperationKind::RevertVolume;
        let asked = asked(by, "RevertVolume", &message, &message.request_id, message.validate_only);
        if let Some(before) = self.repeated(&reach, &asked).await? {
            let (operation, plan) = answer(before, kind);
            return Ok(answered(v1::RevertVolumeResponse { operation, plan }));
        }
        let submitted = self.revert(&reach, message, asked.clone()).await?;
        let (operation, plan) = answer_or_blocker(submitted, &asked, kind)?;
        Ok(answered(v1::RevertVolumeResponse { operation, plan }))
    }

    async fn clone_volume(
        &self,
        request: Request<v1::CloneVolumeRequest>,
    ) -> Answer<v1::CloneVolumeResponse> {
        let caller = self.caller(&request).await?;
        clone::clone_volume(self, caller, request.into_inner()).await
    }

    async fn flatten_volume(
        &self,
        request: Request<v1::FlattenVolumeRequest>,
    ) -> Answer<v1::FlattenVolumeResponse> {
        let caller = self.caller(&request).await?;
        clone::flatten_volume(self, caller, request.into_inner()).await
    }

    async fn delete_volume(
        &self,
        request: Request<v1::DeleteVolumeRequest>,
    ) -> Answer<v1::DeleteVolumeResponse> {
        let caller = self.caller(&request).await?;
        clone::delete_volume(self, caller, request.into_inner()).await
    }
}

/// A state of a volume, as an etag tells it.
pub(super) enum VolumeEtag {
    /// The catalog knows its layers.
    Layer(LayerId),
    /// It is a clone that nothing was done with.
    Generation(u64),
}

impl VolumeEtag {
    /// None for no etag.
    pub(super) fn parse(etag: &str) -> Result<Option<Self>, &'static str> {
        if etag.is_empty() {
            return Ok(None);
        }
        let layer = etag.parse().map(Self::Layer).ok();
        let generation = || etag.parse().map(Self::Generation).ok();
        layer.or_else(generation).map(Some).ok_or("it is not an etag of a volume")
    }
}

type Taken = Result<Submitted, OpsError>;

impl Api {
    async fn revert(
        &self,
        reach: &Reach,
        message: v1::RevertVolumeRequest,
        asked: Asked,
    ) -> Result<Taken, Status> {
        let mut violations = Violations::default();
        violations.request_id(&message.request_id);
        violations.required("volume", &message.volume);
        violations.required("snapshot", &message.snapshot);
        let etag = violations.take("etag", VolumeEtag::parse(&message.etag)).flatten();
        violations.check()?;
        let volume = self.found_volume(reach, &message.volume).await?;
        let active = match etag {
            None => None,
            Some(VolumeEtag::Layer(layer)) => Some(layer),
            // Whatever it was then, it had no snapshot to go back to.
            Some(VolumeEtag::Generation(_)) => return Ok(Err(Refusal::VolumeChanged.into())),
        };
        let detached = VmId::of_detached(volume.id);
        let vm = volume.user.as_ref().map_or(detached, |place| place.vm.id);
        let snapshot = match self.engine.find_snapshot(&message.snapshot, Some(vec![vm])).await {
            // Taken before a VM had it.
            Err(OpsError::NoSuchSnapshot(_)) if vm != detached && !reach.is_scoped() => {
                self.engine.find_snapshot(&message.snapshot, Some(vec![detached])).await
            }
            found => found,
        };
        let snapshot = snapshot.map_err(status::of)?;
        let request = RevertVolume { volume: volume.id, snapshot: snapshot.id, stop: message.stop, active };
        Ok(self.engine.revert_volume(request, asked).await)
    }

    async fn take(
        &self,
        reach: &Reach,
        message: v1::CreateVolumeSnapshotRequest,
        asked: Asked,
    ) -> Result<Taken, Status> {
        let mut violations = Violations::default();
        violations.request_id(&message.request_id);
        let label = violations.take_label(&message, reach);
        let disk = match &message.source {
            None => {
                violations.add("volume", "name a volume, or a disk of a snapshot");
                None
            }
            Some(Source::Volume(volume)) => {
                violations.required("volume", volume);
                None
            }
            Some(Source::SnapshotDisk(source)) => {
                violations.required("snapshot_disk.snapshot", &source.snapshot);
                match source.disk.as_str() {
                    "" => None,
                    disk => violations.take("snapshot_disk.disk", disk.parse::<DiskTarget>()),
                }
            }
        };
        violations.check()?;
        match message.source {
            Some(Source::SnapshotDisk(source)) => {
                let snapshot = self.find(reach, &source.snapshot, &source.vm).await?;
                let request = TakeFromSnapshot { snapshot: snapshot.id, disk, label };
                Ok(self.engine.take_from_snapshot(request, asked).await)
            }
            Some(Source::Volume(ref volume)) => self.take_now(reach, &message, volume, label, asked).await,
            None => unreachable!("a request without a source was refused"),
        }
    }

    async fn take_now(
        &self,
        reach: &Reach,
        message: &v1::CreateVolumeSnapshotRequest,
        volume: &str,
        label: Label,
        asked: Asked,
    ) -> Result<Taken, Status> {
        let volume = self.found_volume(reach, volume).await?;
        let (vm, image, disks) = match &volume.user {
            Some(place) => (place.vm.id, None, BTreeSet::from([place.target.clone()])),
            None => (VmId::of_detached(volume.id), Some(volume.image.path), BTreeSet::new()),
        };
        let request = CreateSnapshot {
            vm,
            image,
            kind: SnapshotKind::Volume,
            label,
            quiesce: quiesce(message.quiesce()),
            mount_points: Vec::new(),
            freeze_timeout_ms: u64::try_from(FREEZE_TIMEOUT.as_millis()).unwrap_or(u64::MAX),
            max_pause_ms: None,
            disks,
        };
        Ok(self.engine.create_snapshot(request, asked).await)
    }
}
