//! Memory captured behind the guest's back: the VM stands still while QEMU makes ready to keep apart what the guest changes, and
//! its disks go over meanwhile; its memory is written while it runs again.
//!
//! Decides when what was captured can be trusted. Leaves the switch between to `switch`, the pause to `pause`. Must never
//! trust a capture whose beginning it has not seen: the guest may have run since, and its memory would be of another instant than
//! its disks. So it does not outlive the daemon either: whoever starts next ends what is under way.

use std::path::Path;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Fuse, FusedFuture};
use tokio::time::Instant;

use crate::host::{BackgroundCapture, Definition, HostError, HostEvent, Result};
use crate::model::vm::{MemoryFormat, PauseReason, RunState};
use crate::model::{Failure, Finding, SnapshotId};

use super::super::board::Phase;
use super::capture::is_cancelled;
use super::images::remove_unused;
use super::{Context, Performed, pause, told};

/// Progress is asked for so often: the hypervisor has no event for it, only for the end.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(250);

/// A guest that changes what is not saved yet waits until it is (Linux, userfaultfd write protection): as long as nothing is
/// written, it stands still, whatever the hypervisor calls it.
const PATIENCE: Duration = Duration::from_secs(10);

/// Of memory that is on its way from us to the image the guest waits for nothing: storage may take its time.
const FOLLOWS_WITHIN: Duration = Duration::from_secs(600);

/// The image has everything but the memory.
pub(super) async fn begin_image(
    context: &Context<'_>,
    snapshot: SnapshotId,
    path: &Path,
    format: MemoryFormat,
) -> Performed {
    if !context.is_fresh {
        let removed = remove_unused(context, path).await;
        if !removed.is_done() {
            return removed;
        }
    }
    let definition = match context.host.hypervisor.definition(context.vm()).await {
        Ok(definition) => definition,
        Err(error) => return Performed::unknown(error),
    };
    if let Err(error) = context.store.keep_definition(snapshot, definition.0.clone()).await {
        return Performed::unknown(error);
    }
    match context.host.images.begin_memory_image(path, &definition, format).await {
        Ok(()) => Performed::done(),
        Err(error) => Performed::unknown(error),
    }
}

/// A device may have come or gone since: memory is restored only over those that it had.
pub(super) async fn check_definition(
    context: &Context<'_>,
    snapshot: SnapshotId,
) -> std::result::Result<(), Performed> {
    let kept = context.store.definition(snapshot).await.map_err(Performed::unknown)?;
    let now = context.host.hypervisor.definition(context.vm()).await.map_err(Performed::unknown)?;
    if kept.map(Definition).as_ref() == Some(&now) {
        return Ok(());
    }
    let cause = "the VM's definition was changed meanwhile".into();
    Err(Performed::not_applied(HostError::Refused { call: "capture memory", cause }))
}

/// What can be done ahead, the guest does not wait for.
pub(super) async fn prepare(context: &Context<'_>, path: &Path) -> Performed {
    match context.host.hypervisor.prepare_background_capture(context.vm(), path).await {
        Ok(()) => Performed::done(),
        Err(error) => give_up(context, error).await,
    }
}

/// QEMU makes ready, which takes it as long as the guest has memory.
pub(super) async fn begin(context: &Context<'_>, path: &Path) -> Performed {
    while_unbroken(context, context.host.hypervisor.begin_background_capture(context.vm(), path)).await
}

/// What the guest changes from now on is kept apart.
pub(super) async fn prove(context: &Context<'_>, path: &Path) -> Performed {
    let proving = context.host.hypervisor.prove_background_capture(context.vm(), path);
    let proven = while_unbroken(context, proving).await;
    if !proven.is_done() {
        return proven;
    }
    // That it stands still now is not enough: it may have run in between, and stopped for another reason.
    match pause::check_unbroken(context) {
        Ok(()) => proven,
        Err(failure) => give_up(context, failure).await,
    }
}

/// A call that is worth something only as long as the VM stands still because of us. Whether it has stood still all the time cannot
/// be told once an attempt was broken off.
async fn while_unbroken(context: &Context<'_>, call: impl Future<Output = Result<()>>) -> Performed {
    if !context.is_fresh {
        let cause = "it is not known whether the VM stood still when it began".into();
        return give_up(context, HostError::Refused { call: "capture memory", cause }).await;
    }
    if let Err(failure) = pause::check_unbroken(context) {
        return give_up(context, failure).await;
    }
    match call.await {
        Ok(()) => Performed::done(),
        Err(error) => give_up(context, error).await,
    }
}

/// Nothing is written any more, and the guest does not wait for what is done next.
pub(super) async fn undo_begin(context: &Context<'_>) -> Performed {
    let resumed = pause::resume(context).await;
    let broken_off = break_off(context).await;
    if broken_off.is_done() { resumed } else { broken_off }
}

/// Nothing is written any more, and a guest that was let go on before that does.
///
/// QEMU stops a guest that runs on before its capture has come so far, and may leave it so when it is told to give up then
/// (`bg_migration_thread`).
pub(super) async fn break_off(context: &Context<'_>) -> Performed {
    let ended = take_back(context).await;
    if !ended.is_done() {
        return ended;
    }
    let hypervisor = &context.host.hypervisor;
    match hypervisor.process_state(context.vm()).await {
        Ok(Some(RunState::Paused(PauseReason::Snapshot))) => match hypervisor.resume(context.vm()).await {
            Ok(()) => ended,
            Err(error) => Performed::unknown(error),
        },
        Ok(_) | Err(HostError::NoSuchVm(_)) => ended,
        Err(error) => Performed::unknown(error),
    }
}

/// Nothing is written any more.
pub(super) async fn take_back(context: &Context<'_>) -> Performed {
    ended(context, Performed::done()).await
}

/// All of it is written.
pub(super) async fn await_end(context: &Context<'_>, path: &Path) -> Performed {
    let (mut written, mut since, mut patience) = (0, Instant::now(), PATIENCE);
    let mut events = context.host.hypervisor.events();
    let ends = [HostEvent::CaptureMoved(context.vm()), HostEvent::VmChanged(context.vm())];
    // What was captured goes to the disk meanwhile: left to the end it would stand before the guest's own writes all at once.
    let mut behind = context.host.images.write_behind(path).fuse();
    loop {
        if behind.is_terminated() {
            behind = context.host.images.write_behind(path).fuse();
        }
        let look = context.host.hypervisor.background_capture(context.vm(), path);
        // A QEMU that waits for what it writes to may answer nothing.
        let Ok(seen) = tokio::time::timeout(PATIENCE, look).await else {
            return give_up(context, stands_still(PATIENCE)).await;
        };
        match seen {
            Ok(BackgroundCapture::Complete) => break,
            Ok(BackgroundCapture::Active { done, total }) => {
                context.reporter.progress(Phase::CaptureMemory, None, done, total);
                if done > written {
                    (written, since) = (done, Instant::now());
                }
            }
            Ok(BackgroundCapture::Following { total }) => {
                context.reporter.progress(Phase::CaptureMemory, None, total, total);
                patience = FOLLOWS_WITHIN;
            }
            Ok(BackgroundCapture::Failed(why)) => {
                return give_up(context, HostError::Refused { call: "capture memory", cause: why.into() })
                    .await;
            }
            Ok(BackgroundCapture::None) | Err(HostError::NoSuchVm(_)) => {
                let cause = "it was ended, or the VM was".into();
                return give_up(context, HostError::Refused { call: "capture memory", cause }).await;
            }
            Err(error) => return Performed::unknown(error),
        }
        if since.elapsed() >= patience {
            return give_up(context, stands_still(patience)).await;
        }
        if is_cancelled(context) {
            return give_up(context, Failure::cancelled("it was cancelled while memory was captured")).await;
        }
        tokio::select! {
            biased;
            () = context.cancelled.cancelled() => {}
            () = context.stopping.cancelled() => return Performed::Interrupted,
            () = told(&mut events, &ends) => {}
            () = breath(&mut behind) => {}
        }
    }
    ended(context, Performed::done()).await
}

fn stands_still(patience: Duration) -> HostError {
    let seconds = patience.as_secs();
    let cause = format!(
        "nothing was written for {seconds} s, and the guest may stand still for it: is the storage slow?"
    );
    HostError::Refused { call: "capture memory", cause: cause.into() }
}

/// Until it is time to look again. What is written meanwhile is not waited for: storage that hangs is for the look to find.
async fn breath(behind: &mut Fuse<BoxFuture<'_, Result<()>>>) {
    let mut time = std::pin::pin!(tokio::time::sleep(PROGRESS_INTERVAL));
    let begun = tokio::select! {
        biased;
        () = &mut time => return,
        begun = behind => begun,
    };
    if let Err(error) = begun {
        let error: &dyn std::error::Error = &error;
        tracing::debug!(error, "what was captured so far is not being written to the disk yet");
    }
    time.await;
}

/// The image is complete and durable.
pub(super) async fn finish(context: &Context<'_>, path: &Path) -> Performed {
    let images = &context.host.images;
    if !context.is_fresh {
        // It is called complete only once all of it is durable. What was not, nobody can make sure of any more: a file system
        // tells of a lost write only once.
        return match images.memory_image(path).await {
            Ok(Some(_)) => match images.finish_memory_image(path).await {
                Ok(bytes) => Performed::learned(vec![Finding::Memory { bytes }]),
                Err(error) => Performed::unknown(error),
            },
            Ok(None) => {
                let problem = "it is not known whether all of it was written".to_owned();
                Performed::not_applied(HostError::BadImage { path: path.to_owned(), problem })
            }
            Err(error) => Performed::unknown(error),
        };
    }
    match images.finish_memory_image(path).await {
        Ok(bytes) => Performed::learned(vec![Finding::Memory { bytes }]),
        Err(error @ HostError::TimedOut { .. }) => Performed::unknown(error),
        Err(error) => Performed::not_applied(error),
    }
}

/// Proof that there is nothing to be had: it is ended first.
async fn give_up(context: &Context<'_>, failure: impl Into<Failure>) -> Performed {
    ended(context, Performed::not_applied(failure)).await
}

/// `then`, once nothing is written any more.
async fn ended(context: &Context<'_>, then: Performed) -> Performed {
    match context.host.hypervisor.end_background_capture(context.vm()).await {
        // It went with its process.
        Ok(()) | Err(HostError::NoSuchVm(_)) => then,
        Err(error) => Performed::unknown(error),
    }
}
