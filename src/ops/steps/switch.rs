//! The switch of a create: all disks at one instant, memory with them if asked.

use tokio::time::Instant;

use crate::host::{DiskSwitch, HostError, Result};
use crate::model::operation::Reason;
use crate::model::step::{ImageRef, PointedDisk, SwitchDisks};
use crate::model::vm::{DiskView, RunState};
use crate::model::{DiskTarget, Failure, Finding, Findings, VmView};

use super::pause::{self, Told, restore_run_state};
use super::position::{Position, look, look_closely, look_quickly};
use super::unnoted::{self, Unsettled};
use super::{Context, Performed, capture, images, leaves_something_under_way};

/// The VM writes to the overlays and does what it did before.
pub(super) async fn switch(context: &Context<'_>, switch: &SwitchDisks) -> Performed {
    // Before anything is looked at: what is seen has to hold until the hypervisor is asked.
    let _turn = match capture::turn(context, switch).await {
        Ok(turn) => turn,
        Err(performed) => return performed,
    };
    match prepare(context, switch).await {
        Ok(()) => ask(context, switch).await,
        Err(performed) => performed,
    }
}

/// Looks whether there is anything to ask for, and whether it may be. If not, gives what came of the step.
async fn prepare(context: &Context<'_>, switch: &SwitchDisks) -> std::result::Result<(), Performed> {
    if !context.is_fresh {
        capture::wait_for_earlier(context, switch).await?;
    }
    // The first attempt may hold a guest up, and nobody has asked for anything before it.
    let ahead = (context.is_fresh && context.seen_before.is_recent()).then_some(Position::Before);
    let is_ahead = ahead.is_some();
    let quick = match ahead {
        None if context.is_fresh => look_quickly(context, switch).await,
        ahead => ahead,
    };
    // What was seen ahead may have been resized since; the images tell that without the hypervisor.
    let sizes_fit = quick.is_some() && !is_ahead;
    let seen = match quick {
        Some(position) => Ok(position),
        None if context.is_fresh => look(context, switch).await.map_err(Unsettled::Unseen),
        None => look_closely(context, switch).await,
    };
    match seen {
        Ok(Position::Switched) => return Err(finish(context, switch, Told::Nothing, Vec::new()).await),
        Ok(Position::Before) => {}
        // It would boot from that, and write to what the snapshot holds.
        Ok(Position::Saved) => {
            let cause = "the VM has a saved state now".into();
            let call = "let the VM write to other images";
            return Err(Performed::not_applied(HostError::Refused { call, cause }));
        }
        // It would be switched as it runs, and called one that was off.
        Ok(Position::Started) => {
            if !context.is_fresh && may_be_under_way(context).await {
                return Err(Performed::unknown(HostError::Busy("it is still at work on the VM".into())));
            }
            let cause = "the VM was off, and somebody has started it meanwhile".into();
            let call = "let the VM write to other images";
            return Err(Performed::not_applied(HostError::Refused { call, cause }));
        }
        // Somebody has changed its disks since the plan was made, and nothing was asked for yet.
        Err(Unsettled::Unseen(error @ HostError::Malformed { .. })) if context.is_fresh => {
            return Err(Performed::not_applied(error));
        }
        // Nothing was asked for yet here either, and what was made for it can go.
        Err(Unsettled::Unseen(error @ HostError::Migrated)) if context.is_fresh => {
            return Err(Performed::not_applied(error));
        }
        Err(unsettled) => return Err(unsettled.into_performed()),
    }
    if !context.is_fresh {
        // A guest does not stand still while what was broken off is tried again.
        restore_run_state(context, switch, Told::Nothing).await.map_err(Performed::unknown)?;
    }
    if switch.memory.is_some() && capture::is_cancelled(context) {
        return Err(Performed::not_applied(Failure::cancelled(
            "it was cancelled before memory was captured",
        )));
    }
    if switch.quiesce_required
        && let Some(reason) = not_frozen(context)
    {
        return Err(Performed::not_applied(Failure {
            reason: Reason::QuiesceFailed,
            message: "the freeze was lost before the switch".to_owned(),
            causes: vec![reason],
        }));
    }
    if !sizes_fit {
        check_sizes(context, switch).await.map_err(Performed::not_applied)?;
    }
    pause::check_unbroken(context).map_err(Performed::not_applied)?;
    if switch.memory.is_some() {
        keep_definition(context).await?;
    }
    match &switch.memory {
        // What is still written to what is left of an earlier capture does not come into the next one.
        Some(memory) if !context.is_fresh => match images::remove_unused(context, memory).await {
            removed if removed.is_done() => Ok(()),
            failed => Err(failed),
        },
        Some(_) | None => Ok(()),
    }
}

async fn ask(context: &Context<'_>, switch: &SwitchDisks) -> Performed {
    let began = Instant::now();
    let called = call(context, switch).await;
    let elapsed_ms = began.elapsed().as_secs_f64() * 1000.0;
    let may_wait = called.is_ok() && switch.memory.is_none() && stands_still(context);
    if may_wait && still_runs(context).await {
        // A guest does not stand still for a look that finds what was told: see `confirm`.
        return Performed::done();
    }
    let (seen, told) = match &called {
        Ok(()) => match look_quickly(context, switch).await {
            Some(position) => (Ok(position), Told::Done),
            None => (look(context, switch).await.map_err(Unsettled::Unseen), Told::Done),
        },
        Err(error)
            if leaves_something_under_way(error) || may_still_capture(context, switch, error).await =>
        {
            (look_closely(context, switch).await, Told::Nothing)
        }
        Err(_) => (look_closely(context, switch).await, Told::Failed),
    };
    match (seen, called) {
        (Ok(Position::Switched), called) => {
            if let Err(error) = called {
                let error: &dyn std::error::Error = &error;
                tracing::warn!(vm = %context.vm(), error, "the disks are switched, although the call failed");
            }
            // Memory is captured with the processors stopped: the call is the pause, and a little more.
            let stood_still = switch.memory.is_some() && switch.run_state == RunState::Running;
            let pause = stood_still.then_some(Finding::Paused { ms: elapsed_ms });
            finish(context, switch, told, pause.into_iter().collect()).await
        }
        (Ok(Position::Before | Position::Started | Position::Saved), Err(error)) if told == Told::Failed => {
            if let Err(error) = restore_run_state(context, switch, told).await {
                return Performed::unknown(error);
            }
            Performed::not_applied(failure(context, error))
        }
        (Ok(Position::Before | Position::Started | Position::Saved), Ok(())) => {
            Performed::unknown(HostError::Malformed {
                what: "a switch that claims success without effect",
                cause: "the disks are not on the overlays".into(),
            })
        }
        (Err(undecided @ Unsettled::Undecided(_)), _) => undecided.into_performed(),
        (
            Ok(Position::Before | Position::Started | Position::Saved) | Err(Unsettled::Unseen(_)),
            Err(error),
        )
        | (Err(Unsettled::Unseen(error)), Ok(())) => Performed::unknown(error),
    }
}

/// Each overlay is as large as the image that it takes the place of. QEMU does not look: a disk that somebody made larger
/// since the overlay was made would be cut off for the guest.
async fn check_sizes(context: &Context<'_>, switch: &SwitchDisks) -> Result<()> {
    let Some((disk, from, to)) = sizes(context, switch).await?.into_iter().find(|(_, from, to)| from != to)
    else {
        return Ok(());
    };
    let problem = format!("it has {to} bytes, and disk {} has {from}: it was resized meanwhile", disk.target);
    Err(HostError::BadImage { path: disk.to.path.clone(), problem })
}

/// The same once it is switched, and the guest is thawed: a disk that was made larger since is cut off, until it is made larger
/// anew.
pub(super) async fn check_whole(
    context: &Context<'_>,
    switch: &SwitchDisks,
) -> std::result::Result<(), Performed> {
    let sizes = sizes(context, switch).await.map_err(Performed::unknown)?;
    let Some((disk, from, to)) = sizes.into_iter().find(|(_, from, to)| to < from) else { return Ok(()) };
    let (target, name) = (&disk.target, &context.operation.vm_name);
    let problem = format!(
        "disk {target} was resized to {from} bytes in the moment of the switch, and has {to}: 'virsh blockresize {name} \
         {target} {from}B' gives the rest back, 'qemu-img resize {}' if it is off; then let the operation try again",
        disk.to.path.display()
    );
    Err(Performed::gave_up(HostError::BadImage { path: disk.to.path.clone(), problem }))
}

/// How large each disk was, and is. The guest may stand still meanwhile, so all are looked at together.
async fn sizes<'a>(
    context: &Context<'_>,
    switch: &'a SwitchDisks,
) -> Result<Vec<(&'a PointedDisk, u64, u64)>> {
    let size = async |image: &ImageRef| {
        let facts = context.host.images.inspect(&image.path, image.format).await?;
        Ok::<_, HostError>(facts.virtual_size)
    };
    let looks = switch.disks.iter().map(async |disk| {
        let (from, to) = tokio::try_join!(size(&disk.from), size(&disk.to))?;
        Ok((disk, from, to))
    });
    futures_util::future::try_join_all(looks).await
}

/// The definition of now is kept with the memory of now: devices may have come and gone since this was planned, and memory
/// is restored only over those that it had.
async fn keep_definition(context: &Context<'_>) -> std::result::Result<(), Performed> {
    let Some(snapshot) = context.operation.snapshot else { return Ok(()) };
    let definition = context.host.hypervisor.definition(context.vm()).await;
    let definition = definition.map_err(Performed::not_applied)?.0;
    context.store.keep_definition(snapshot, definition).await.map_err(Performed::not_applied)
}

/// A capture that was ended because somebody cancelled did not fail: it was cancelled.
fn failure(context: &Context<'_>, error: HostError) -> Failure {
    let mut failure = Failure::from(error);
    if capture::is_cancelled(context) {
        failure.reason = Reason::Cancelled;
    }
    failure
}

async fn call(context: &Context<'_>, switch: &SwitchDisks) -> Result<()> {
    let hypervisor = &context.host.hypervisor;
    let request = DiskSwitch {
        disks: targets(&switch.disks, |disk| &disk.to),
        others: switch.others.clone(),
        memory: switch.memory.clone(),
    };
    let switched = hypervisor.switch_disks(context.vm(), &request);
    match &switch.memory {
        Some(memory) => capture::attend(context, memory, switched).await,
        None => switched.await,
    }
}

async fn finish(
    context: &Context<'_>,
    switch: &SwitchDisks,
    told: Told,
    mut findings: Vec<Finding>,
) -> Performed {
    // Before anything that may fail: its guest stands still.
    if let Err(error) = restore_run_state(context, switch, told).await {
        return Performed::unknown(error);
    }
    // A guest that stands still does not wait for a look that mostly finds nothing: see `confirm`.
    let may_wait = told == Told::Done && stands_still(context);
    if !may_wait && let Err(error) = unnoted::mend_definition(context, switch, told).await {
        return Performed::unknown(error);
    }
    // Nobody can tell whether it was started before the switch or after it.
    if switch.run_state == RunState::Off {
        match context.look_at_vm().await {
            Ok(view) if view.run_state.is_live() => {
                let reason = "the VM was off, and was started in the moment of the switch".to_owned();
                findings.push(Finding::NotFrozen { reason });
            }
            Ok(_) => {}
            Err(error) => return Performed::unknown(error),
        }
    }
    if let Some(path) = &switch.memory {
        let bytes = match context.host.images.memory_image(path).await {
            Ok(Some(bytes)) => bytes,
            // libvirt removes what it has captured if anything fails after it.
            Ok(None) => return Performed::gave_up(capture::memory_is_lost(path)),
            Err(error) => return Performed::unknown(error),
        };
        if let Err(error) = context.host.images.sync(path).await {
            return Performed::unknown(error);
        }
        findings.push(Finding::Memory { bytes });
    }
    Performed::learned(findings)
}

/// Why the guest is not known to be frozen; None if it is. A journal that was written before the freeze says nothing of it.
fn not_frozen(context: &Context<'_>) -> Option<String> {
    let Findings { frozen, crash_reason, .. } = &context.operation.findings;
    let is_unknown = || frozen.is_none().then(|| "vmsnapd was restarted meanwhile".to_owned());
    crash_reason.clone().or_else(is_unknown)
}

/// Whether the guest is made to stand still around the switch.
fn stands_still(context: &Context<'_>) -> bool {
    context.operation.window().is_some()
}

/// Of a VM that ended or left while it was asked for the switch, the definition alone was changed, and that is called success, too.
async fn still_runs(context: &Context<'_>) -> bool {
    let state = context.host.hypervisor.process_state(context.vm()).await;
    state.is_ok_and(|state| state.is_some_and(RunState::is_live))
}

/// Once the guest goes on: it writes to the overlays, which lie on what the snapshot holds, and its definition names them. Of one that is gone or elsewhere there is nothing to confirm, and what somebody has done to its disks since is not
/// undone.
pub(super) async fn confirm(
    context: &Context<'_>,
    switch: &SwitchDisks,
) -> std::result::Result<(), Performed> {
    if !stands_still(context) {
        return Ok(());
    }
    match unnoted::settle_live(context, switch).await {
        Ok(()) => {}
        Err(Unsettled::Unseen(HostError::NoSuchVm(_) | HostError::Migrated)) => return Ok(()),
        Err(unsettled) => return Err(unsettled.into_performed()),
    }
    match context.look_at_vm().await {
        Ok(view) if view.run_state.is_live() => check_effect(switch, &view).map_err(Performed::unknown),
        Ok(_) | Err(HostError::NoSuchVm(_) | HostError::Migrated) => Ok(()),
        Err(error) => Err(Performed::unknown(error)),
    }
}

/// That a switch which was said to be done is, and as it was meant: the guest stood still, and nobody has looked at once.
fn check_effect(switch: &SwitchDisks, view: &VmView) -> Result<()> {
    const WHAT: &str = "a switch that claims success";
    for disk in &switch.disks {
        let chain = view.disk(&disk.target).map(DiskView::chain).unwrap_or_default();
        let mut paths = chain.iter().map(|image| &image.path);
        let cause = if paths.any(|path| *path == disk.to.path) {
            match paths.next() {
                Some(below) if *below != disk.from.path => {
                    format!(
                        "{} lies on {}, not on {}",
                        disk.to.path.display(),
                        below.display(),
                        disk.from.path.display()
                    )
                }
                Some(_) | None => continue,
            }
        } else if chain.first().is_some_and(|active| active.path == disk.from.path) {
            format!("disk {} writes to {}", disk.target, disk.from.path.display())
        } else {
            // Somebody has done something else to it since.
            continue;
        };
        return Err(HostError::Malformed { what: WHAT, cause: cause.into() });
    }
    Ok(())
}

/// Whether memory may be captured on, whatever the hypervisor has answered. To be asked before the disks are looked at: what
/// ends after that look has switched them unseen.
async fn may_still_capture(context: &Context<'_>, switch: &SwitchDisks, error: &HostError) -> bool {
    match error {
        // Nothing was begun. What works on the VM is somebody else's, a migration say, which is not waited for.
        HostError::Busy(_) => false,
        _ => switch.memory.is_some() && may_be_under_way(context).await,
    }
}

/// What an earlier attempt has asked for may wait in the hypervisor until the VM is up.
async fn may_be_under_way(context: &Context<'_>) -> bool {
    context.host.hypervisor.is_capturing(context.vm()).await.unwrap_or(true)
}

/// The disks with one of their two images.
pub(super) fn targets(
    disks: &[PointedDisk],
    which: fn(&PointedDisk) -> &ImageRef,
) -> Vec<(DiskTarget, ImageRef)> {
    disks.iter().map(|disk| (disk.target.clone(), which(disk).clone())).collect()
}
