//! What the VM did before a switch, it does again.
//!
//! Decides whose a pause is. Leaves to the switch what became of the call.

use crate::host::Result;
use crate::model::step::SwitchDisks;
use crate::model::vm::{PauseReason, RunState};

use super::Context;

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
