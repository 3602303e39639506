//! Whether a snapshot may be declared READY.
//!
//! Decides by what is there alone. Leaves to `model::declaration` whether anybody's word counts.

use super::revert::check_whole;
use super::{Refusal, World};
use crate::model::Snapshot;
use crate::model::vm::{Attachment, RunState};

/// That `snapshot`, which is in `world.tree`, can be gone back to as far as can be seen.
pub fn declare_ready(world: &World, snapshot: &Snapshot) -> Result<(), Refusal> {
    if world.vm.attachment == Attachment::Gone {
        return Err(Refusal::VmGone);
    }
    // What its files look like here says nothing of what is written to there.
    if world.vm.run_state == RunState::Migrated {
        return Err(Refusal::VmElsewhere);
    }
    check_whole(world, snapshot)
}
