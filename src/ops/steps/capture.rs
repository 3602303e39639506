//! The capture of memory that a switch comes with: its turn, what an earlier life has begun, its progress and its end.
//!
//! Decides when to ask for an end. Leaves what the disks write to, and what follows from that, to `switch`.

use std::path::Path;
use std::time::Duration;

use tokio::sync::SemaphorePermit;

use crate::host::{HostError, Result};
use crate::model::step::SwitchDisks;

use super::super::board::Phase;
use super::{Context, Performed};

/// Progress is asked for so often: the hypervisor has no event for it.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(250);

/// Waits until one more may be under way. None without memory, and for one that is cancelled: what is under way of it is
/// ended, and nothing is begun.
pub(super) async fn turn<'a>(
    context: &Context<'a>,
    switch: &SwitchDisks,
) -> std::result::Result<Option<SemaphorePermit<'a>>, Performed> {
    if switch.memory.is_none() {
        return Ok(None);
    }
    tokio::select! {
        biased;
        turn = context.limits.captures.acquire() => Ok(turn.ok()),
        () = context.cancelled.cancelled() => Ok(None),
        () = context.stopping.cancelled() => Err(Performed::Interrupted),
    }
}

/// Tells how far the capture is, and ends it if it is cancelled.
pub(super) async fn attend(
    context: &Context<'_>,
    memory: &Path,
    switched: impl Future<Output = Result<()>>,
) -> Result<()> {
    let mut switched = std::pin::pin!(switched);
    loop {
        tokio::select! {
            biased;
            result = &mut switched => return result,
            () = tokio::time::sleep(PROGRESS_INTERVAL) => {}
        }
        if is_cancelled(context) {
            // One that came too early has ended nothing.
            abort(context, memory).await;
        } else if let Ok(Some((done, total))) = context.host.hypervisor.memory_progress(context.vm()).await {
            context.reporter.progress(Phase::CaptureMemory, None, done, total);
        }
    }
}

/// A capture that an earlier life has begun goes on without it, and switches the disks at its end. Until then they look
/// as if it had never been; asked again, the hypervisor would carry out both, one over the other.
pub(super) async fn wait_for_earlier(
    context: &Context<'_>,
    switch: &SwitchDisks,
) -> std::result::Result<(), Performed> {
    let Some(memory) = &switch.memory else { return Ok(()) };
    let mut is_surely_none = false;
    loop {
        let is_capturing = is_capturing(context, switch).await.map_err(Performed::unknown)?;
        // One that waits for the end of somebody else's work on the VM begins a moment after it.
        if !is_capturing && is_surely_none {
            return Ok(());
        }
        is_surely_none = !is_capturing;
        // Once it is complete, what works on the VM is somebody else's.
        let is_complete = || async { !matches!(context.host.images.memory_image(memory).await, Ok(None)) };
        if is_capturing && is_cancelled(context) && !is_complete().await {
            abort(context, memory).await;
        }
        tokio::select! {
            biased;
            () = context.stopping.cancelled() => return Err(Performed::Interrupted),
            () = tokio::time::sleep(PROGRESS_INTERVAL) => {}
        }
    }
}

async fn is_capturing(context: &Context<'_>, switch: &SwitchDisks) -> Result<bool> {
    let hypervisor = &context.host.hypervisor;
    // The question is let through only once a capture that has just begun can be seen. What libvirt believes of the disks
    // is of no matter: it may not have noted the switch.
    hypervisor.written_image(context.vm(), &switch.disks[0].target).await?;
    hypervisor.is_capturing(context.vm()).await
}

/// In this attempt or an earlier one.
pub(super) fn is_cancelled(context: &Context<'_>) -> bool {
    context.cancelled.is_cancelled() || context.operation.cancel_requested
}

async fn abort(context: &Context<'_>, memory: &Path) {
    match context.host.hypervisor.abort_memory_capture(context.vm(), memory).await {
        Ok(()) => {}
        Err(error @ HostError::Refused { .. }) => {
            let error: &dyn std::error::Error = &error;
            tracing::debug!(error, "the capture of memory cannot be ended yet");
        }
        Err(error) => {
            let error: &dyn std::error::Error = &error;
            tracing::warn!(error, "the capture of memory cannot be ended");
        }
    }
}

/// Nothing brings it back.
pub(super) fn memory_is_lost(path: &Path) -> HostError {
    let problem = "the VM writes to its overlays, but the captured memory is not complete: something failed after it. Give \
                   the operation up, and settle what 'vmsnap vm check' finds: nothing of the disks is lost";
    HostError::BadImage { path: path.to_owned(), problem: problem.to_owned() }
}
