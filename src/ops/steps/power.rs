//! Steps of a revert on the VM itself: stop it, point it at other images, start it.

use std::time::Duration;

use futures_util::future::try_join_all;

use crate::host::{Definition, HostError, Result, StartFrom};
use crate::model::step::{ImageRef, PointedDisk, Start};
use crate::model::vm::{DiskSource, LastWritten, RunState};
use crate::model::{DiskTarget, Outcome, VmId, VmView};

use super::position::writes_to;
use super::switch::targets;
use super::{Context, Performed, make_so};

/// How long a start that somebody else has begun may take: as long as libvirt itself waits for QEMU's monitor, and more.
pub(super) const COMES_UP: Duration = Duration::from_secs(60);

/// The same with memory that is restored. libvirt knows no end of it, other than its own.
const IS_RESTORED: Duration = Duration::from_secs(30 * 60);

const BETWEEN_LOOKS: Duration = Duration::from_millis(500);

/// Which image of a pointed disk is meant.
#[derive(Clone, Copy)]
pub(super) enum Way {
    /// The new one.
    Forth,
    /// The former one.
    Back,
}

impl Way {
    fn opposite(self) -> Self {
        match self {
            Self::Forth => Self::Back,
            Self::Back => Self::Forth,
        }
    }

    /// The image that a disk is to have.
    fn which(self) -> fn(&PointedDisk) -> &ImageRef {
        match self {
            Self::Forth => |disk| &disk.to,
            Self::Back => |disk| &disk.from,
        }
    }
}

/// The VM has no process.
pub(super) async fn stop(context: &Context<'_>) -> Performed {
    let hypervisor = &context.host.hypervisor;
    let is_off = || async { Ok(context.look_at_vm().await?.run_state == RunState::Off) };
    make_so(is_off, || hypervisor.stop(context.vm())).await
}

/// The VM does again what it did: booted from its disks, for what it had in memory is gone.
pub(super) async fn start_again(context: &Context<'_>, was: RunState) -> Performed {
    let hypervisor = &context.host.hypervisor;
    let is_up = || async { is_up(context.look_at_vm().await?.run_state) };
    if matches!(context.look_at_vm().await, Err(HostError::Migrated)) {
        // Somebody has started it since, and let it go: nobody waits for it here.
        return Performed::done();
    }
    let paused = matches!(was, RunState::Paused(_));
    settle(context, context.vm(), COMES_UP).await;
    make_so(is_up, || hypervisor.start(context.vm(), &StartFrom::Disks, paused)).await
}

/// Waits while somebody who has died since lets a VM come up: the hypervisor goes on with that, or ends it.
pub(super) async fn settle(context: &Context<'_>, vm: VmId, patience: Duration) {
    let hypervisor = &context.host.hypervisor;
    let mut events = hypervisor.events();
    let settled = async {
        while hypervisor.observe(vm).await.is_ok_and(|view| view.run_state == RunState::Unsettled) {
            tokio::select! {
                biased;
                () = context.stopping.cancelled() => return,
                // Not every change between two states is told.
                _ = events.recv() => {}
                () = tokio::time::sleep(BETWEEN_LOOKS) => {}
            }
        }
    };
    // One that does not come up is told by whoever looks next.
    let _ = tokio::time::timeout(patience, settled).await;
}

/// Whether a VM that is to be started has come up. One that is on its way may still end: it is looked at again.
pub(super) fn is_up(run_state: RunState) -> Result<bool> {
    match run_state {
        RunState::Running | RunState::Paused(_) => Ok(true),
        RunState::Off => Ok(false),
        RunState::Migrated => Err(HostError::Migrated),
        RunState::Unsettled => Err(HostError::Busy("it is between two states".into())),
    }
}

/// The stored definition names the images.
pub(super) async fn point(context: &Context<'_>, pointed: &[PointedDisk], way: Way) -> Performed {
    let moved: Vec<&PointedDisk> = pointed.iter().filter(|disk| disk.from != disk.to).collect();
    let is_now = match change_definition(context, pointed, &moved, way).await {
        Ok(is_now) => is_now,
        Err(performed) => return performed,
    };
    match is_left_behind(context, &moved, way, is_now).await {
        Ok(false) => return Performed::done(),
        Ok(true) => {}
        Err(error) => return Performed::unknown(error),
    }
    // Its next cold start would be without what it writes now.
    let before = targets(pointed, way.opposite().which());
    match (way, context.host.hypervisor.point_disks(context.vm(), &before).await) {
        (Way::Forth, Ok(())) => Performed::not_applied(was_started()),
        (Way::Back, Ok(())) => Performed::gave_up(holds_more(&moved)),
        (_, Err(error)) => Performed::unknown(error),
    }
}

/// Whether somebody has started the VM in that moment, on the images that it was to be taken from. One that was started and
/// has ended is told by what it wrote: to the new images nobody else ever does. If the definition named the others before
/// (`is_now` is false), a person has said so.
async fn is_left_behind(
    context: &Context<'_>,
    moved: &[&PointedDisk],
    way: Way,
    is_now: bool,
) -> Result<bool> {
    if moved.is_empty() {
        return Ok(false);
    }
    let view = context.look_at_vm().await?;
    let source = way.opposite().which();
    if view.run_state.is_live() {
        return Ok(moved.iter().any(|disk| writes_to(&view, &disk.target, source(disk))));
    }
    match way {
        Way::Back if is_now => is_any_written(context, moved).await,
        Way::Forth | Way::Back => Ok(false),
    }
}

async fn is_any_written(context: &Context<'_>, moved: &[&PointedDisk]) -> Result<bool> {
    let written = moved.iter().map(|disk| context.host.images.last_written(&disk.to));
    Ok(try_join_all(written).await?.into_iter().any(|written| written != LastWritten::Never))
}

/// Gives whether it was changed now.
async fn change_definition(
    context: &Context<'_>,
    pointed: &[PointedDisk],
    moved: &[&PointedDisk],
    way: Way,
) -> std::result::Result<bool, Performed> {
    let disks = targets(pointed, way.which());
    let hypervisor = &context.host.hypervisor;
    let is_pointed = || async { Ok(names_all(&context.look_at_vm().await?, &disks)) };
    if is_pointed().await.map_err(Performed::unknown)? {
        return Ok(false);
    }
    check_left_alone(context, moved, way).await?;
    let performed = make_so(is_pointed, || hypervisor.point_disks(context.vm(), &disks)).await;
    if performed.is_done() { Ok(true) } else { Err(performed) }
}

/// That nobody has started the VM on the images that it is to be taken from.
async fn check_left_alone(
    context: &Context<'_>,
    moved: &[&PointedDisk],
    way: Way,
) -> std::result::Result<(), Performed> {
    if moved.is_empty() {
        return Ok(());
    }
    let is_live = context.look_at_vm().await.map_err(Performed::unknown)?.run_state.is_live();
    match way {
        Way::Forth if is_live => Err(Performed::not_applied(was_started())),
        Way::Back if is_live || is_any_written(context, moved).await.map_err(Performed::unknown)? => {
            Err(Performed::gave_up(holds_more(moved)))
        }
        Way::Forth | Way::Back => Ok(()),
    }
}

fn was_started() -> HostError {
    let cause = "somebody has started the VM meanwhile".into();
    HostError::Refused { call: "change the VM's definition", cause }
}

/// Of each disk, either image may hold what the other one lacks.
fn holds_more(moved: &[&PointedDisk]) -> HostError {
    let pair = |disk: &&PointedDisk| {
        format!("{}: {} instead of {}", disk.target, disk.to.path.display(), disk.from.path.display())
    };
    let pairs = moved.iter().map(pair).collect::<Vec<_>>().join(", ");
    let problem = format!(
        "somebody has started the VM meanwhile, which may have written to new images ({pairs}): they are not taken away from \
         it. Copy them if that is wanted; then stop the VM, let its definition name the others for all of these disks, with \
         'virsh edit', and let the operation try again: it removes the new ones"
    );
    let path = moved.first().map(|disk| disk.to.path.clone()).unwrap_or_default();
    HostError::BadImage { path, problem }
}

fn names_all(view: &VmView, disks: &[(DiskTarget, ImageRef)]) -> bool {
    disks.iter().all(|(target, image)| {
        view.disk(target).is_some_and(|disk| {
            matches!(&disk.source, DiskSource::Chain { persistent: Some(path), .. } if *path == image.path)
        })
    })
}

/// The VM is live, writes to the right images, and runs or stands still as it should; or it was, and has ended since.
///
/// Once its guest has written to them the images are no more what the memory belongs to, and hold what nobody else has: the
/// memory is not restored over them, and nothing turns back.
pub(super) async fn start(context: &Context<'_>, start: &Start) -> Performed {
    let how = match start_from(context, start).await {
        Ok(how) => how,
        Err(performed) => return performed,
    };
    let hypervisor = &context.host.hypervisor;
    let from_memory = start.from_memory.is_some();
    // Whatever else it is between two states for is not waited for so long again and again.
    let is_first = context.operation.cursor.attempts == 0;
    settle(context, context.vm(), if from_memory && is_first { IS_RESTORED } else { COMES_UP }).await;
    // Somebody else may have started it, too, since it was pointed at the images.
    if !context.is_fresh || from_memory {
        match has_run(context, start).await {
            Ok(Run::Ended) => return has_ended(context),
            Ok(Run::Never | Run::IsUp) => {}
            Err(error) => return Performed::unknown(error),
        }
    }
    let performed =
        make_so(|| is_started(context, start), || hypervisor.start(context.vm(), &how, start.paused)).await;
    if performed.is_done() {
        return performed;
    }
    let is_refused = matches!(performed, Performed::Seen { outcome: Outcome::NotApplied, .. });
    match has_run(context, start).await {
        Ok(Run::Ended) => has_ended(context),
        // Somebody has started it meanwhile: the next look tells what it writes to.
        Ok(Run::IsUp) if is_refused => {
            Performed::unknown(HostError::Busy("the VM was started meanwhile".into()))
        }
        Ok(Run::Never | Run::IsUp) => performed,
        Err(error) => Performed::unknown(error),
    }
}

fn has_ended(context: &Context<'_>) -> Performed {
    tracing::warn!(vm = %context.vm(), "the VM was started, and has ended since");
    Performed::done()
}

/// What became of a VM that was to be started.
enum Run {
    /// It is off, and nothing was written to its images: they were made for it, and empty.
    Never,
    /// It is not off.
    IsUp,
    /// It is off, and has written to its images.
    Ended,
}

async fn has_run(context: &Context<'_>, start: &Start) -> Result<Run> {
    if context.look_at_vm().await?.run_state != RunState::Off {
        return Ok(Run::IsUp);
    }
    let images = start.disks.iter().map(|disk| context.host.images.last_written(&disk.to));
    let is_written = try_join_all(images).await?.into_iter().any(|written| written != LastWritten::Never);
    Ok(if is_written { Run::Ended } else { Run::Never })
}

async fn start_from(context: &Context<'_>, start: &Start) -> std::result::Result<StartFrom, Performed> {
    let Some(memory) = &start.from_memory else { return Ok(StartFrom::Disks) };
    let definition = context.store.definition(memory.snapshot).await.map_err(Performed::unknown)?;
    let definition = definition.ok_or_else(|| {
        Performed::not_applied(HostError::Malformed {
            what: "the snapshot",
            cause: "no definition is stored with it".into(),
        })
    })?;
    Ok(StartFrom::Memory {
        image: memory.path.clone(),
        definition: Definition(definition),
        disks: targets(&start.disks, |disk| &disk.to),
    })
}

async fn is_started(context: &Context<'_>, start: &Start) -> Result<bool> {
    let hypervisor = &context.host.hypervisor;
    let view = context.look_at_vm().await?;
    if !is_up(view.run_state)? {
        return Ok(false);
    }
    if let Some(disk) = start.disks.iter().find(|disk| !writes_to(&view, &disk.target, &disk.to)) {
        return Err(HostError::BadImage {
            path: disk.to.path.clone(),
            problem: format!("the VM runs, but disk {} does not write to it", disk.target),
        });
    }
    // Started by an earlier attempt that died before it could let it run.
    if !start.paused && matches!(view.run_state, RunState::Paused(_)) {
        hypervisor.resume(context.vm()).await?;
    }
    Ok(true)
}
