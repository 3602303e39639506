//! `vmsnap snapshot purge`: what is kept for VMs that have left.

use super::Session;
use super::args::PurgeArgs;
use super::ask::ask;
use super::connect::request_id;
use super::failure::Failure;
use super::output::{Shown, Text};
use super::snapshot::{locate, see_through, show_plan};
use crate::proto::v1;

pub(super) async fn purge(session: &Session, args: PurgeArgs) -> Result<u8, Failure> {
    let (snapshot, vm) = locate(&args.which);
    // The contract wants the id: what is removed for good is named beyond doubt.
    let found = session.daemon.snapshots().get_snapshot(v1::GetSnapshotRequest { snapshot, vm }).await?;
    let snapshot = found.into_inner().snapshot.unwrap_or_default();
    let mut request = v1::PurgeSnapshotRequest {
        snapshot: snapshot.id.clone(),
        etag: snapshot.etag,
        request_id: request_id(),
        validate_only: true,
    };
    let answer = session.daemon.snapshots().purge_snapshot(request.clone()).await?.into_inner();
    let plan = answer.plan.clone().unwrap_or_default();
    if args.how.dry_run {
        return show_plan(session, &answer, &plan, "PurgeSnapshotResponse");
    }
    ask(&[plan], &format!("Purge {}?", args.which.snapshot), args.sure)?;
    request.validate_only = false;
    let answer = session.daemon.snapshots().purge_snapshot(request).await?.into_inner();
    let Some(done) = see_through(session, answer.operation.unwrap_or_default(), args.how).await? else {
        return Ok(0);
    };
    session.output.show(&Shown {
        ids: vec![snapshot.id],
        message: &v1::PurgeSnapshotResponse { operation: Some(done), plan: None },
        name: "PurgeSnapshotResponse",
        text: Text::Lines(format!("{} purged", snapshot.name)),
    })?;
    Ok(0)
}
