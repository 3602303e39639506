//! How things are when somebody asks.

use std::path::Path;
use std::time::Duration;

use tokio::sync::watch;

use super::Metrics;
use crate::daemon::controller::Reporting;
use crate::host::Link;
use crate::model::SnapshotState;
use crate::model::operation::OperationState;
use crate::ops::{Engine, OpsError};
use crate::store::{Page, SnapshotFilter};

const SNAPSHOT_STATES: [(SnapshotState, &str); 6] = [
    (SnapshotState::Creating, "creating"),
    (SnapshotState::Ready, "ready"),
    (SnapshotState::Reverting, "reverting"),
    (SnapshotState::Deleting, "deleting"),
    (SnapshotState::Error, "error"),
    (SnapshotState::Lost, "lost"),
];

/// How long is waited for what is outside of the daemon.
const PATIENCE: Duration = Duration::from_secs(2);

/// Brings what is a state up to date. What cannot be learned now stays as it was, and `up` says so.
pub(in crate::daemon) async fn look(
    metrics: &Metrics,
    engine: &Engine,
    own: &Path,
    reporting: Option<&watch::Receiver<Reporting>>,
) {
    let up = |part: &str, is_up: bool| metrics.is_up.with_label_values(&[part]).set(i64::from(is_up));
    up("libvirt", *engine.host().hypervisor.link().borrow() == Link::Up);
    if let Some(reporting) = reporting {
        up("controller", reporting.borrow().is_ok());
    }
    look_at_operations(metrics, engine);
    up("catalog", look_at_catalog(metrics, engine).await.is_ok());
    // What else there is to tell does not wait for a hypervisor or a file system that hangs.
    if let Ok(Ok(vms)) = tokio::time::timeout(PATIENCE, engine.vms()).await {
        metrics.vms.set(whole(vms.len()));
    }
    let Ok(Ok(storage)) = tokio::time::timeout(PATIENCE, engine.storage(own)).await else { return };
    // A file system that images have left is not told of any more.
    metrics.free.reset();
    metrics.size.reset();
    for (directory, space) in storage {
        let path = directory.display().to_string();
        metrics.free.with_label_values(&[&path]).set(float(space.free));
        metrics.size.with_label_values(&[&path]).set(float(space.total));
    }
}

fn look_at_operations(metrics: &Metrics, engine: &Engine) {
    let (mut states, mut left, mut rate) = ([("running", 0), ("undoing", 0), ("stuck", 0)], 0_u64, 0.0);
    for view in engine.under_way_now() {
        let place = match view.operation.cursor.state {
            OperationState::Running { .. } => 0,
            OperationState::Undoing { .. } => 1,
            OperationState::Stuck { .. } => 2,
            OperationState::Succeeded | OperationState::Failed => continue,
        };
        states[place].1 += 1;
        for progress in &view.progress {
            left += progress.total.saturating_sub(progress.done);
            rate += progress.rate;
        }
    }
    for (state, number) in states {
        metrics.open.with_label_values(&[state]).set(number);
    }
    metrics.left_to_copy.set(i64::try_from(left).unwrap_or(i64::MAX));
    metrics.copy_rate.set(rate);
}

async fn look_at_catalog(metrics: &Metrics, engine: &Engine) -> Result<(), OpsError> {
    for (state, name) in SNAPSHOT_STATES {
        let filter = SnapshotFilter { states: vec![state], ..SnapshotFilter::default() };
        let page = engine.snapshots(filter, Page { limit: 1, ..Page::default() }).await?;
        metrics.snapshots.with_label_values(&[name]).set(i64::try_from(page.total).unwrap_or(i64::MAX));
    }
    let waiting = engine.store().outbox().await?.map_or(0, |outbox| outbox.last - outbox.acknowledged);
    metrics.outbox.set(i64::try_from(waiting).unwrap_or(i64::MAX));
    Ok(())
}

pub(super) fn whole(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

#[allow(clippy::cast_precision_loss, reason = "nobody reads the bytes beyond 8 PiB")]
fn float(number: u64) -> f64 {
    number as f64
}
