//! What the VM did before a switch, it does again.
//!
//! Decides whose a pause is. Leaves to the switch what became of the call.

use crate::host::Result;
use crate::model::step::SwitchDisks;
use crate::model::vm::{PauseReason, RunState};

use super::Context;

/// Which pauses the hypervisor's own work may have left.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Pauses {
    /// Those that it calls its own: it has told what came of the work.
    Named,
    /// Also those that it takes for a person's. A libvirtd that dies between the pause of a capture of memory and its note of
    /// it finds processors that stand still, and nobody who has stopped them (`qemuProcessUpdateState`).
    Any,
}

/// A VM that ran and stands still because of the hypervisor's own work on it runs on. A pause that a person or an I/O
/// error is behind is not ours to end.
pub(super) async fn restore_run_state(
    context: &Context<'_>,
    switch: &SwitchDisks,
    pauses: Pauses,
) -> Result<()> {
    if switch.run_state != RunState::Running {
        return Ok(());
    }
    let is_ours = match context.host.hypervisor.observe(context.vm()).await?.run_state {
        RunState::Paused(PauseReason::Snapshot) => true,
        // Without memory nobody stops the processors.
        RunState::Paused(PauseReason::User) => switch.memory.is_some() && pauses == Pauses::Any,
        RunState::Paused(PauseReason::IoError | PauseReason::Other)
        | RunState::Running
        | RunState::Off
        | RunState::Unsettled => false,
    };
    if is_ours {
        context.host.hypervisor.resume(context.vm()).await?;
    }
    Ok(())
}
