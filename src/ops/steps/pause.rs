//! The pause around a switch with memory: ours, or the hypervisor's own. What the VM did before, it does again.
//!
//! Decides whose a pause is. Leaves to the switch what became of the call. A lease is durable and the dead-man armed before the
//! VM is paused by us.

use std::time::Duration;

use tokio::time::Instant;

use crate::host::{Host, HostError, Result};
use crate::model::step::{Step, SwitchDisks};
use crate::model::vm::{PauseReason, RunState};
use crate::model::{CreateSnapshot, Failure, Finding, Outcome, Request, SnapshotId, VmId};
use crate::store::{Standstill, Store};

use super::quiesce::{Thawed, let_go_on, take_lease};
use super::{Context, Performed, background, position};

/// So often one resume is tried before somebody else goes on with it.
const ATTEMPTS: u32 = 3;

/// The processors stand still because of us.
pub(super) async fn pause(context: &Context<'_>, snapshot: SnapshotId, timeout_ms: u64) -> Performed {
    if let Err(performed) = background::check_definition(context, snapshot).await {
        return performed;
    }
    let is_ours = match context.store.lease(context.vm()).await {
        Ok(lease) => lease.is_some_and(|it| it.operation == context.operation.id && !it.is_thawed),
        Err(error) => return Performed::unknown(error),
    };
    if !context.is_fresh && !is_ours {
        // What was prepared for it went with the life that had prepared it.
        let cause = "vmsnapd was restarted before the pause".into();
        return Performed::not_applied(HostError::Refused { call: "pause the VM", cause });
    }
    match context.look_at_vm().await {
        Ok(view) if view.run_state == RunState::Running => {}
        // By an earlier attempt.
        Ok(view) if is_ours && view.run_state == RunState::Paused(PauseReason::User) => {}
        Ok(_) => {
            let cause = "it does not run any more".into();
            return Performed::not_applied(HostError::Refused { call: "pause the VM", cause });
        }
        Err(error) => return Performed::unknown(error),
    }
    position::look_ahead(context).await;
    let (timeout, began) = (Duration::from_millis(timeout_ms), Instant::now());
    if let Err(error) = take_lease(context, Standstill::Paused, timeout).await {
        return Performed::not_applied(error);
    }
    let paused = context.host.hypervisor.pause(context.vm()).await;
    // Its time may have come before there was anything to end. Whatever is seen now, and if nothing is: somebody ends it.
    let left = timeout.saturating_sub(began.elapsed());
    context.dead_man.arm(context.vm(), context.operation.id, Standstill::Paused, left);
    match (context.host.hypervisor.process_state(context.vm()).await, paused) {
        (Ok(Some(RunState::Paused(PauseReason::User))), _) => Performed::done(),
        (_, Err(error)) | (Err(error), Ok(())) => Performed::unknown(error),
        (Ok(_), Ok(())) => {
            let cause = "somebody has resumed it at once, or it has ended".into();
            Performed::not_applied(HostError::Refused { call: "pause the VM", cause })
        }
    }
}

/// That a VM which was to stand still from its pause on has not: its memory would be of another instant than its disks.
pub(super) fn check_unbroken(context: &Context<'_>) -> std::result::Result<(), Failure> {
    let is_paused = context.operation.steps.iter().any(|step| matches!(step, Step::PauseVm { .. }));
    if !is_paused || context.dead_man.holds(context.vm(), context.operation.id) {
        return Ok(());
    }
    let cause = "the VM was resumed: its pause took too long, or vmsnapd was restarted".into();
    Err(HostError::Refused { call: "capture memory", cause }.into())
}

/// The processors run, proven, and stood still for no longer than was allowed.
pub(super) async fn resume_in_time(context: &Context<'_>) -> Performed {
    let resumed = resume(context).await;
    let Request::CreateSnapshot(CreateSnapshot { max_pause_ms: Some(most), .. }) = &context.operation.request
    else {
        return resumed;
    };
    let paused = match &resumed {
        Performed::Seen { outcome: Outcome::Done, findings, .. } => findings.iter().find_map(paused_ms),
        Performed::Seen { .. } | Performed::Interrupted => None,
    };
    #[allow(clippy::cast_precision_loss, reason = "milliseconds of a pause are few")]
    match paused {
        None if resumed.is_done() => {
            let cause = "it is not known how long the guest stood still".into();
            Performed::not_applied(HostError::Refused { call: "capture memory", cause })
        }
        Some(ms) if ms > *most as f64 => {
            let cause = format!("the guest stood still for {ms} ms, {most} were allowed").into();
            Performed::not_applied(HostError::Refused { call: "capture memory", cause })
        }
        Some(_) | None => resumed,
    }
}

fn paused_ms(finding: &Finding) -> Option<f64> {
    match finding {
        Finding::Paused { ms } => Some(*ms),
        _ => None,
    }
}

/// The processors run, proven, if it was us who stopped them.
pub(super) async fn resume(context: &Context<'_>) -> Performed {
    let (performed, after_ms) = let_go_on(context, Standstill::Paused).await;
    match after_ms {
        Some(ms) => Performed::learned(vec![Finding::Paused { ms }]),
        None => performed,
    }
}

/// Resumes until the VM's process says that it runs. Gives up after a few attempts.
pub(super) async fn prove_resume(host: &Host, store: &Store, vm: VmId) -> Result<Thawed> {
    let mut last = Ok(Thawed::Unproven);
    for _ in 0..ATTEMPTS {
        match host.hypervisor.process_state(vm).await {
            // One that stands still for an I/O error goes on when that is mended.
            Ok(Some(RunState::Running | RunState::Paused(PauseReason::IoError | PauseReason::Other))) => {
                return Ok(Thawed::Proven { file_systems: 0 });
            }
            Ok(None | Some(RunState::Off)) | Err(HostError::NoSuchVm(_)) => {
                // Its guest went with it as it was.
                let has_left = store.departures().await.is_ok_and(|all| all.iter().any(|it| it.vm == vm));
                return if has_left {
                    Err(HostError::Migrated)
                } else {
                    Ok(Thawed::Proven { file_systems: 0 })
                };
            }
            Ok(Some(RunState::Migrated)) => return Err(HostError::Migrated),
            Ok(Some(RunState::Paused(PauseReason::User | PauseReason::Snapshot))) => {
                // What it answers is not what counts: the question after it does.
                last = host.hypervisor.resume(vm).await.map(|()| Thawed::Unproven);
            }
            Ok(Some(RunState::Unsettled)) => last = Ok(Thawed::Unproven),
            Err(error) => last = Err(error),
        }
    }
    match host.hypervisor.process_state(vm).await {
        Ok(Some(RunState::Running)) => Ok(Thawed::Proven { file_systems: 0 }),
        _ => last,
    }
}

/// What the hypervisor has told of a switch that it was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Told {
    /// That all of it is done, and noted.
    Done,
    /// That it failed. What it did before that may not be noted.
    Failed,
    /// Nothing: the call was broken off, or an earlier life made it.
    Nothing,
}

/// A VM that ran and stands still because of the hypervisor's own work on it runs on. A pause that a person or an I/O
/// error is behind is not ours to end.
///
/// A libvirtd that dies between the pause of a capture of memory and its note of it finds processors that stand still, and
/// nobody who has stopped them: it takes that for a person's pause (`qemuProcessUpdateState`).
pub(super) async fn restore_run_state(context: &Context<'_>, switch: &SwitchDisks, told: Told) -> Result<()> {
    // Without memory nobody stops the processors.
    if switch.run_state != RunState::Running || switch.memory.is_none() {
        return Ok(());
    }
    let is_ours = match context.look_at_vm().await?.run_state {
        RunState::Paused(PauseReason::Snapshot) => true,
        RunState::Paused(PauseReason::User) => told == Told::Nothing,
        RunState::Paused(PauseReason::IoError | PauseReason::Other)
        | RunState::Running
        | RunState::Off
        | RunState::Migrated
        | RunState::Unsettled => false,
    };
    if is_ours {
        context.host.hypervisor.resume(context.vm()).await?;
    }
    Ok(())
}
