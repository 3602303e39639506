//! Steps of clones and of new VMs: copied, named, flattened, defined, started.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use tokio::sync::watch;

use crate::host::{Definition, HostError, Result, StartFrom};
use crate::model::step::{ImageRef, NewCopy, NewVm};
use crate::model::vm::{Format, RunState};
use crate::model::{DiskTarget, Failure, VmId};

use super::super::board::Phase;
use super::power::{COMES_UP, is_up, settle};
use super::{Context, Performed, images, make_so};

/// How often it is looked whether a process that was killed has gone, and how long after each other.
const LOOKS: u32 = 50;
const BETWEEN_LOOKS: Duration = Duration::from_millis(100);

/// The copy is made anew with each attempt: what a broken one left says nothing of itself.
pub(super) async fn copy(context: &Context<'_>, copy: &NewCopy) -> Performed {
    match images::remove_unused(context, &copy.path).await {
        Performed::Seen { failure: None, .. } => {}
        failed => return failed,
    }
    let (progress, seen) = watch::channel((0, 0));
    let copying = context.host.images.copy(copy, &progress);
    see_through(context, Some(&copy.target), seen, copying).await
}

/// Whether it lies on something can be seen; until it does not, an attempt costs time and nothing else. What says that it
/// failed, or was ended, is no proof that it does: so that is looked at again.
pub(super) async fn flatten(context: &Context<'_>, image: &ImageRef) -> Performed {
    let images = &context.host.images;
    match images.inspect(&image.path, image.format).await {
        Ok(facts) if facts.backing.is_none() => return Performed::done(),
        // The last attempt was ended, and what it had left at work is gone by now.
        Ok(_) if context.operation.cancel_requested && is_let_go(context, image).await => {
            return Performed::not_applied(Failure::cancelled("the operation was cancelled"));
        }
        Ok(_) => {}
        Err(error) => return Performed::unknown(error),
    }
    if let Err(error) = context.check_not_elsewhere(&[&image.path]).await {
        return Performed::unknown(error);
    }
    if let Err(error) = context.store.forget_seen(vec![image.path.clone()]).await {
        return Performed::unknown(error);
    }
    context.manifests.settle(&BTreeSet::from([context.vm()])).await;
    let (progress, seen) = watch::channel((0, 0));
    let ended = see_through(context, None, seen, images.pull(image, None, &progress)).await;
    let Performed::Seen { failure: Some(failure), .. } = ended else { return ended };
    if !is_let_go(context, image).await {
        return Performed::unknown(failure);
    }
    match images.inspect(&image.path, image.format).await {
        Ok(facts) if facts.backing.is_none() => Performed::done(),
        Ok(_) => Performed::not_applied(failure),
        Err(_) => Performed::unknown(failure),
    }
}

/// Whether nobody has the image open any more. A process that was killed is gone a moment later, and nothing tells when.
async fn is_let_go(context: &Context<'_>, image: &ImageRef) -> bool {
    for _ in 0..LOOKS {
        if let Ok(false) = context.host.images.is_in_use(&image.path, image.format).await {
            return true;
        }
        tokio::time::sleep(BETWEEN_LOOKS).await;
    }
    false
}

/// Shows how far it is. A wish to cancel, or the end of the daemon, ends it where it is.
async fn see_through(
    context: &Context<'_>,
    disk: Option<&DiskTarget>,
    mut progress: watch::Receiver<(u64, u64)>,
    copying: impl Future<Output = Result<()>>,
) -> Performed {
    let mut copying = std::pin::pin!(copying);
    loop {
        tokio::select! {
            biased;
            result = &mut copying => return match result {
                Ok(()) => Performed::done(),
                Err(error) => Performed::unknown(error),
            },
            () = context.cancelled.cancelled() => {
                return Performed::not_applied(Failure::cancelled("the operation was cancelled"));
            }
            () = context.stopping.cancelled() => return Performed::Interrupted,
            Ok(()) = progress.changed() => {
                let (done, total) = *progress.borrow_and_update();
                context.reporter.progress(Phase::Copy, disk, done, total);
            }
        }
    }
}

/// The file has its user's name: it was made under another one, so it is the one that is not there any more.
pub(super) async fn publish(context: &Context<'_>, from: &Path, to: &Path) -> Performed {
    let images = &context.host.images;
    make_so(|| is_renamed(context, from, to), || images.publish(from, to)).await
}

/// The file has the name again that it was made under.
pub(super) async fn take_back(context: &Context<'_>, from: &Path, to: &Path) -> Performed {
    match is_renamed(context, from, to).await {
        // It was never renamed, or neither is there.
        Ok(false) | Err(HostError::NoSuchImage(_)) => return Performed::done(),
        Ok(true) => {}
        Err(error) => return Performed::unknown(error),
    }
    let images = &context.host.images;
    make_so(|| async { Ok(!is_renamed(context, from, to).await?) }, || images.publish(to, from)).await
}

pub(super) async fn is_renamed(context: &Context<'_>, from: &Path, to: &Path) -> Result<bool> {
    let images = &context.host.images;
    match images.inspect(from, Format::Qcow2).await {
        Ok(_) => return Ok(false),
        Err(HostError::NoSuchImage(_)) => {}
        Err(error) => return Err(error),
    }
    images.inspect(to, Format::Qcow2).await.map(|_| true)
}

/// No process has the image open. One that is not there is open to nobody.
pub(super) async fn check_unused(context: &Context<'_>, image: &ImageRef) -> Performed {
    if let Err(error) = context.check_not_elsewhere(&[&image.path]).await {
        return Performed::not_applied(error);
    }
    unused(image, context.host.images.is_in_use(&image.path, image.format).await)
}

/// No process may write to the image; some may read it.
pub(super) async fn check_unwritten(context: &Context<'_>, image: &ImageRef) -> Performed {
    unused(image, context.host.images.is_written(&image.path).await)
}

fn unused(image: &ImageRef, is_used: Result<bool>) -> Performed {
    match is_used {
        Ok(false) | Err(HostError::NoSuchImage(_)) => Performed::done(),
        Ok(true) => Performed::not_applied(HostError::ImageInUse(image.path.clone())),
        Err(error) => Performed::unknown(error),
    }
}

/// The VM is defined.
pub(super) async fn define(context: &Context<'_>, new: &NewVm) -> Performed {
    let definition = match context.store.definition(new.snapshot).await {
        Ok(Some(definition)) => Definition(definition),
        Ok(None) => {
            return Performed::not_applied(HostError::Malformed {
                what: "the snapshot",
                cause: "no definition is stored with it".into(),
            });
        }
        Err(error) => return Performed::unknown(error),
    };
    let hypervisor = &context.host.hypervisor;
    make_so(|| is_defined(context, new.vm), || hypervisor.define(&definition, new)).await
}

/// The VM is not defined.
pub(super) async fn undefine(context: &Context<'_>, vm: VmId) -> Performed {
    let hypervisor = &context.host.hypervisor;
    make_so(|| async { Ok(!is_defined(context, vm).await?) }, || hypervisor.undefine(vm)).await
}

async fn is_defined(context: &Context<'_>, vm: VmId) -> Result<bool> {
    Ok(context.run_state(vm).await?.is_some())
}

/// The VM that was defined is live, and runs or stands still as it should.
pub(super) async fn start(context: &Context<'_>, vm: VmId, paused: bool) -> Performed {
    let hypervisor = &context.host.hypervisor;
    let is_started = || async {
        let run_state = context.run_state(vm).await?.ok_or(HostError::NoSuchVm(vm))?;
        if !is_up(run_state)? {
            return Ok(false);
        }
        // Started by an earlier attempt that died before it could let it run.
        if !paused && matches!(run_state, RunState::Paused(_)) {
            hypervisor.resume(vm).await?;
        }
        Ok(true)
    };
    settle(context, vm, COMES_UP).await;
    make_so(is_started, || hypervisor.start(vm, &StartFrom::Disks, paused)).await
}

/// The VM that was defined is off.
pub(super) async fn stop(context: &Context<'_>, vm: VmId) -> Performed {
    let hypervisor = &context.host.hypervisor;
    let is_off = || async { Ok(context.run_state(vm).await?.is_none_or(|state| !state.is_live())) };
    make_so(is_off, || hypervisor.stop(vm)).await
}
