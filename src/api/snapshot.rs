//! `SnapshotService`: take, see, go back to and delete snapshots of VMs.

use std::collections::BTreeSet;
use std::time::Duration;

use tonic::{Request, Response, Status};

use super::request::duration;
use super::status::Violations;
use super::{Answer, Api, Caller, Reach, answered, convert, generation, status};
pub(super) use crate::model::request::FREEZE_TIMEOUT;
use crate::model::{
    CreateSnapshot, DeleteSnapshots, DeletionReason, DiskTarget, Label, PurgeSnapshot, Quiesce,
    RevertSnapshot, RunStateAfter, Snapshot, SnapshotKind,
};
use crate::ops::{Asked, OpsError, Submitted};
use crate::proto::v1;
use crate::proto::v1::snapshot_service_server::SnapshotService;

/// Longest freeze that one can ask for.
const LONGEST_FREEZE: Duration = Duration::from_secs(300);
/// Most snapshots of one request.
const BATCH_LIMIT: usize = 1000;
/// Most mount points of one request.
pub(super) const MOUNT_POINTS_LIMIT: usize = 256;

#[tonic::async_trait]
impl SnapshotService for Api {
    async fn create_snapshot(
        &self,
        request: Request<v1::CreateSnapshotRequest>,
    ) -> Answer<v1::CreateSnapshotResponse> {
        let Caller { by, reach, .. } = self.caller(&request).await?;
        let message = request.into_inner();
        let kind = v1::OperationKind::CreateSnapshot;
        let asked = asked(by, "CreateSnapshot", &message, &message.request_id, message.validate_only);
        if let Some(before) = self.repeated(&reach, &asked).await? {
            return Ok(answered(create_response(answer(before, kind))));
        }
        let wish = CreateWish::check(&message, &reach)?;
        let vm = self.found_vm(&reach, &message.vm).await.map_err(status::of)?;
        let request = wish.request(vm.id, message);
        let submitted = self.engine.create_snapshot(request, asked.clone()).await;
        let answer = answer_or_blocker(submitted, &asked, kind)?;
        Ok(answered(create_response(answer)))
    }

    async fn get_snapshot(
        &self,
        request: Request<v1::GetSnapshotRequest>,
    ) -> Answer<v1::GetSnapshotResponse> {
        let reach = self.caller(&request).await?.reach;
        let request = request.into_inner();
        let snapshot = self.find(&reach, &request.snapshot, &request.vm).await?;
        let snapshot = Some(self.shown(snapshot).await?);
        Ok(Response::new(v1::GetSnapshotResponse { snapshot }))
    }

    async fn list_snapshots(
        &self,
        request: Request<v1::ListSnapshotsRequest>,
    ) -> Answer<v1::ListSnapshotsResponse> {
        super::list::snapshots(self, self.caller(&request).await?, request.into_inner()).await
    }

    async fn get_snapshot_tree(
        &self,
        request: Request<v1::GetSnapshotTreeRequest>,
    ) -> Answer<v1::GetSnapshotTreeResponse> {
        super::list::tree(self, self.caller(&request).await?.reach, request.into_inner()).await
    }

    async fn revert_snapshot(
        &self,
        request: Request<v1::RevertSnapshotRequest>,
    ) -> Answer<v1::RevertSnapshotResponse> {
        let Caller { by, reach, .. } = self.caller(&request).await?;
        let message = request.into_inner();
        let kind = v1::OperationKind::RevertSnapshot;
        let asked = asked(by, "RevertSnapshot", &message, &message.request_id, message.validate_only);
        if let Some(before) = self.repeated(&reach, &asked).await? {
            let (operation, plan) = answer(before, kind);
            return Ok(answered(v1::RevertSnapshotResponse { operation, plan }));
        }
        let mut violations = Violations::default();
        violations.request_id(&message.request_id);
        let generation = violations.take("etag", generation(&message.etag)).flatten();
        violations.check()?;
        let snapshot = self.find(&reach, &message.snapshot, &message.vm).await?;
        let request = RevertSnapshot {
            snapshot: snapshot.id,
            run_state_after: run_state_after(message.run_state_after()),
            generation,
        };
        let submitted = self.engine.revert_snapshot(request, asked.clone()).await;
        let (operation, plan) = answer_or_blocker(submitted, &asked, kind)?;
        Ok(answered(v1::RevertSnapshotResponse { operation, plan }))
    }

    async fn delete_snapshot(
        &self,
        request: Request<v1::DeleteSnapshotRequest>,
    ) -> Answer<v1::DeleteSnapshotResponse> {
        let Caller { by, reach, .. } = self.caller(&request).await?;
        let message = request.into_inner();
        let kind = v1::OperationKind::DeleteSnapshot;
        let asked = asked(by, "DeleteSnapshot", &message, &message.request_id, message.validate_only);
        if let Some(before) = self.repeated(&reach, &asked).await? {
            let (operation, plan) = answer(before, kind);
            return Ok(answered(v1::DeleteSnapshotResponse { operation, plan }));
        }
        let mut violations = Violations::default();
        violations.request_id(&message.request_id);
        let generation = violations.take("etag", generation(&message.etag)).flatten();
        let merge_deadline_ms = violations.merge_deadline(message.merge_deadline);
        violations.check()?;
        let snapshot = self.find(&reach, &message.snapshot, &message.vm).await?;
        let request = DeleteSnapshots {
            snapshots: vec![snapshot.id],
            with_children: false,
            bandwidth: bandwidth(message.bandwidth_bytes_per_second),
            merge_deadline_ms,
            generation,
            reason: DeletionReason::Asked,
        };
        let submitted = self.engine.delete_snapshots(request, asked.clone()).await;
        let (operation, plan) = answer_or_blocker(submitted, &asked, kind)?;
        Ok(answered(v1::DeleteSnapshotResponse { operation, plan }))
    }

    async fn batch_delete_snapshots(
        &self,
        request: Request<v1::BatchDeleteSnapshotsRequest>,
    ) -> Answer<v1::BatchDeleteSnapshotsResponse> {
        let Caller { by, reach, .. } = self.caller(&request).await?;
        let message = request.into_inner();
        let rpc = "BatchDeleteSnapshots";
        let asked = asked(by, rpc, &message, &message.request_id, message.validate_only);
        if let Some(before) = self.repeated(&reach, &asked).await? {
            return Ok(answered(batch_delete_response(Ok(before), &asked)?));
        }
        let mut violations = Violations::default();
        violations.request_id(&message.request_id);
        if message.snapshots.is_empty() {
            violations.add("snapshots", "it is empty");
        }
        if message.snapshots.len() > BATCH_LIMIT {
            violations.add("snapshots", format!("at most {BATCH_LIMIT}"));
        }
        if !message.etag.is_empty() {
            violations.add("etag", "this version gives VMs no etag");
        }
        let merge_deadline_ms = violations.merge_deadline(message.merge_deadline);
        violations.check()?;
        let mut snapshots = Vec::with_capacity(message.snapshots.len());
        for snapshot in &message.snapshots {
            snapshots.push(self.find(&reach, snapshot, &message.vm).await?.id);
        }
        let request = DeleteSnapshots {
            snapshots,
            with_children: message.include_children,
            bandwidth: bandwidth(message.bandwidth_bytes_per_second),
            merge_deadline_ms,
            generation: None,
            reason: DeletionReason::Asked,
        };
        let submitted = self.engine.delete_snapshots(request, asked.clone()).await;
        Ok(answered(batch_delete_response(submitted, &asked)?))
    }

    async fn purge_snapshot(
        &self,
        request: Request<v1::PurgeSnapshotRequest>,
    ) -> Answer<v1::PurgeSnapshotResponse> {
        let Caller { by, reach, .. } = self.caller(&request).await?;
        let message = request.into_inner();
        let kind = v1::OperationKind::PurgeSnapshot;
        let asked = asked(by, "PurgeSnapshot", &message, &message.request_id, message.validate_only);
        if let Some(before) = self.repeated(&reach, &asked).await? {
            let (operation, plan) = answer(before, kind);
            return Ok(answered(v1::PurgeSnapshotResponse { operation, plan }));
        }
        let mut violations = Violations::default();
        violations.request_id(&message.request_id);
        let generation = violations.take("etag", generation(&message.etag)).flatten();
        violations.check()?;
        let snapshot = self.find(&reach, &message.snapshot, "").await?;
        let request = PurgeSnapshot { snapshot: snapshot.id, generation };
        let submitted = self.engine.purge_snapshot(request, asked.clone()).await;
        let (operation, plan) = answer_or_blocker(submitted, &asked, kind)?;
        Ok(answered(v1::PurgeSnapshotResponse { operation, plan }))
    }

    async fn update_snapshot(
        &self,
        request: Request<v1::UpdateSnapshotRequest>,
    ) -> Answer<v1::UpdateSnapshotResponse> {
        super::edit::update(self, self.caller(&request).await?, request.into_inner()).await
    }

    async fn add_snapshot_hold(
        &self,
        request: Request<v1::AddSnapshotHoldRequest>,
    ) -> Answer<v1::AddSnapshotHoldResponse> {
        super::edit::add_hold(self, self.caller(&request).await?, request.into_inner()).await
    }

    async fn remove_snapshot_hold(
        &self,
        request: Request<v1::RemoveSnapshotHoldRequest>,
    ) -> Answer<v1::RemoveSnapshotHoldResponse> {
        super::edit::remove_hold(self, self.caller(&request).await?, request.into_inner()).await
    }

    async fn add_snapshot_comment(
        &self,
        request: Request<v1::AddSnapshotCommentRequest>,
    ) -> Answer<v1::AddSnapshotCommentResponse> {
        super::edit::add_comment(self, self.caller(&request).await?, request.into_inner()).await
    }

    async fn delete_snapshot_comment(
        &self,
        request: Request<v1::DeleteSnapshotCommentRequest>,
    ) -> Answer<v1::DeleteSnapshotCommentResponse> {
        super::edit::delete_comment(self, self.caller(&request).await?.by, request.into_inner()).await
    }

    async fn list_snapshot_comments(
        &self,
        request: Request<v1::ListSnapshotCommentsRequest>,
    ) -> Answer<v1::ListSnapshotCommentsResponse> {
        super::edit::comments(self, self.caller(&request).await?.reach, request.into_inner()).await
    }

    async fn reset_snapshot_state(
        &self,
        request: Request<v1::ResetSnapshotStateRequest>,
    ) -> Answer<v1::ResetSnapshotStateResponse> {
        super::edit::reset_state(self, self.caller(&request).await?, request.into_inner()).await
    }
}

/// An operation, or a plan.
pub(super) type OperationOrPlan = (Option<v1::Operation>, Option<v1::Plan>);

fn create_response((operation, plan): OperationOrPlan) -> v1::CreateSnapshotResponse {
    let snapshot_id = operation.as_ref().map(|operation| operation.snapshot_id.clone()).unwrap_or_default();
    v1::CreateSnapshotResponse { operation, plan, snapshot_id }
}

/// The answer names everything that goes, children included.
fn batch_delete_response(
    submitted: Result<Submitted, OpsError>,
    asked: &Asked,
) -> Result<v1::BatchDeleteSnapshotsResponse, Status> {
    let snapshot_ids = match &submitted {
        Ok(Submitted::Operation(view)) => view.operation.snapshots().map(|id| id.to_string()).collect(),
        Ok(Submitted::Plan(plan)) => plan.removals.iter().map(|removal| removal.id.clone()).collect(),
        Err(_) => Vec::new(),
    };
    let (operation, plan) = answer_or_blocker(submitted, asked, v1::OperationKind::DeleteSnapshot)?;
    Ok(v1::BatchDeleteSnapshotsResponse { operation, plan, snapshot_ids })
}

pub(super) fn bandwidth(limit: u64) -> Option<u64> {
    (limit > 0).then_some(limit)
}

/// How a mutation is asked for; its digest tells a repetition from another request under the same id.
pub(super) fn asked<M: prost::Message>(
    by: String,
    rpc: &str,
    message: &M,
    request_id: &str,
    validate_only: bool,
) -> Asked {
    super::asked(by, request_id, status::digest(rpc, message), validate_only)
}

pub(super) fn answer(submitted: Submitted, kind: v1::OperationKind) -> OperationOrPlan {
    match submitted {
        Submitted::Operation(view) => (Some(convert::operation(&view)), None),
        Submitted::Plan(plan) => (None, Some(convert::plan(&plan, kind))),
    }
}

/// One that only asks is told what is in the way; one that wants it done is refused.
pub(super) fn answer_or_blocker(
    submitted: Result<Submitted, OpsError>,
    asked: &Asked,
    kind: v1::OperationKind,
) -> Result<OperationOrPlan, Status> {
    match submitted {
        Ok(submitted) => Ok(answer(submitted, kind)),
        Err(error @ (OpsError::Refused(_) | OpsError::VmBusy(_) | OpsError::VmStuck(_)))
            if asked.validate_only =>
        {
            Ok((None, Some(convert::blocked_plan(&error, kind))))
        }
        Err(error) => Err(status::of(error)),
    }
}

impl Api {
    /// What came of the same request before. Nothing, if that is about what its caller may not know of any more.
    pub(super) async fn repeated(&self, reach: &Reach, asked: &Asked) -> Result<Option<Submitted>, Status> {
        let before = self.engine.repeated(asked.key.as_ref()).await.map_err(status::of)?;
        if let Some(Submitted::Operation(view)) = &before
            && !reach.sees(&view.operation)
        {
            return Err(status::of(OpsError::NoSuchOperation(view.operation.id.to_string())));
        }
        Ok(before)
    }

    /// The snapshot that answers to an id, a name within `vm`, or a name that is unique on the node.
    pub(super) async fn find(&self, reach: &Reach, snapshot: &str, vm: &str) -> Result<Snapshot, Status> {
        let mut violations = Violations::default();
        violations.required("snapshot", snapshot);
        violations.check()?;
        let vms = self.vms_of(reach, vm).await?;
        self.engine.find_snapshot(snapshot, vms).await.map_err(status::of)
    }

    /// A snapshot with what stands around it.
    pub(super) async fn shown(&self, snapshot: Snapshot) -> Result<v1::Snapshot, Status> {
        let holder = self.engine.under_way(snapshot.vm);
        let placed = self.engine.store().placed(vec![snapshot]).await;
        let placed = placed.map_err(|error| status::of(error.into()))?;
        Ok(convert::snapshot(placed.first().expect("each snapshot is placed"), holder))
    }
}

/// The fields of a create that are checked for shape.
struct CreateWish {
    label: Label,
    quiesce: Quiesce,
    freeze_timeout: Duration,
    max_pause: Option<Duration>,
    disks: BTreeSet<DiskTarget>,
}

impl CreateWish {
    fn check(message: &v1::CreateSnapshotRequest, reach: &Reach) -> Result<Self, Status> {
        let mut violations = Violations::default();
        violations.required("vm", &message.vm);
        violations.request_id(&message.request_id);
        let label = violations.take_label(message, reach);
        if message.max_pause.is_some() && !message.memory {
            violations.add("max_pause", "only memory is captured with a pause");
        }
        let max_pause = violations.take("max_pause", max_pause(message.max_pause)).flatten();
        if message.mount_points.len() > MOUNT_POINTS_LIMIT {
            violations.add("mount_points", format!("at most {MOUNT_POINTS_LIMIT}"));
        }
        if message.mount_points.iter().any(|path| !path.starts_with('/') || path.contains('\0')) {
            violations.add("mount_points", "each is an absolute path in the guest");
        }
        let disks = message.disks.iter().filter_map(|disk| violations.take("disks", disk.parse())).collect();
        let freeze_timeout = violations.take("freeze_timeout", freeze_timeout(message.freeze_timeout));
        let quiesce = quiesce(message.quiesce());
        violations.check()?;
        let freeze_timeout = freeze_timeout.unwrap_or(FREEZE_TIMEOUT);
        Ok(Self { label, quiesce, freeze_timeout, max_pause, disks })
    }

    fn request(self, vm: crate::model::VmId, message: v1::CreateSnapshotRequest) -> CreateSnapshot {
        CreateSnapshot {
            vm,
            image: None,
            kind: if message.memory { SnapshotKind::VmDisksAndMemory } else { SnapshotKind::VmDisks },
            label: self.label,
            quiesce: self.quiesce,
            mount_points: message.mount_points,
            freeze_timeout_ms: millis(self.freeze_timeout),
            max_pause_ms: self.max_pause.map(millis),
            disks: self.disks,
        }
    }
}

/// How far to quiesce.
pub(super) fn quiesce(asked: v1::Quiesce) -> Quiesce {
    match asked {
        v1::Quiesce::Required => Quiesce::Required,
        v1::Quiesce::Auto | v1::Quiesce::Unspecified => Quiesce::Auto,
        v1::Quiesce::Off => Quiesce::Off,
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn max_pause(asked: Option<prost_types::Duration>) -> Result<Option<Duration>, String> {
    let Some(asked) = asked else { return Ok(None) };
    let wanted = duration(asked).filter(|wanted| wanted.as_millis() > 0);
    wanted.map(Some).ok_or_else(|| "at least a millisecond".to_owned())
}

fn freeze_timeout(asked: Option<prost_types::Duration>) -> Result<Duration, String> {
    let Some(asked) = asked else { return Ok(FREEZE_TIMEOUT) };
    let wanted = duration(asked).filter(|wanted| !wanted.is_zero() && *wanted <= LONGEST_FREEZE);
    wanted.ok_or_else(|| format!("more than 0 and at most {} s", LONGEST_FREEZE.as_secs()))
}

fn run_state_after(asked: v1::RunStateAfter) -> RunStateAfter {
    match asked {
        v1::RunStateAfter::Unspecified => RunStateAfter::AsItWas,
        v1::RunStateAfter::Running => RunStateAfter::Running,
        v1::RunStateAfter::Paused => RunStateAfter::Paused,
        v1::RunStateAfter::Off => RunStateAfter::Off,
    }
}
