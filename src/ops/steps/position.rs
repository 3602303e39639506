//! Which images the disks of a switch write to.
//!
//! Decides which look tells it. Leaves what follows to `switch`. Must never take what one of several disks does for what all do.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::host::{HostError, LiveImage, Result};
use crate::model::step::{ImageRef, PointedDisk, Step, SwitchDisks};
use crate::model::vm::RunState;
use crate::model::{DiskTarget, Failure, VmView};

use super::Context;
use super::unnoted::{self, Unsettled};

/// What all disks of the VM write to; of one that is off, will.
pub(super) enum Position {
    /// To what they wrote to before.
    Before,
    /// To what they wrote to before, or to what the VM's saved state names.
    Saved,
    /// To what they wrote to before; and the VM runs, which was off.
    Started,
    /// To the overlays.
    Switched,
}

/// When it was last seen, shortly ahead of a switch, that all disks write to what they are to be switched from.
#[derive(Default)]
pub(in crate::ops) struct SeenBefore(Mutex<Option<Instant>>);

/// Nobody plugs disks while a guest is being frozen; one who does needs longer than this, mostly.
const RECENT: Duration = Duration::from_secs(1);

impl SeenBefore {
    fn note(&self, at: Instant) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(at);
    }

    /// Whether it was just now. It is told once: whoever asks again has to look.
    pub(super) fn is_recent(&self) -> bool {
        let seen = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        seen.is_some_and(|at| at.elapsed() < RECENT)
    }
}

/// Looks while the guest goes on, so that it does not wait for it once it stands still.
pub(super) async fn look_ahead(context: &Context<'_>) {
    let switch = context.operation.steps.iter().find_map(|step| match step {
        Step::SwitchDisks(switch) => Some(switch),
        _ => None,
    });
    let (Some(switch), at) = (switch, Instant::now()) else { return };
    if let Some(Position::Before) = look_quickly(context, switch).await {
        context.seen_before.note(at);
    }
}

pub(super) async fn look(context: &Context<'_>, switch: &SwitchDisks) -> Result<Position> {
    position(&context.look_at_vm().await?, switch)
}

/// [`look`], where the switch may have been asked for before: the process that was asked may have ended since.
pub(super) async fn look_closely(
    context: &Context<'_>,
    switch: &SwitchDisks,
) -> std::result::Result<Position, Unsettled> {
    unnoted::settle(context, switch).await?;
    let view = context.look_at_vm().await?;
    match position(&view, switch)? {
        Position::Switched if view.has_managed_save => {
            Err(Unsettled::Undecided(may_be_saved_before_it(&switch.disks[0], &view)))
        }
        position => Ok(position),
    }
}

/// All at once or none. Anything between is nobody's plan.
fn position(view: &VmView, switch: &SwitchDisks) -> Result<Position> {
    let on_overlay = switch.disks.iter().filter(|disk| writes_to(view, &disk.target, &disk.to)).count();
    let on_base = switch.disks.iter().filter(|disk| writes_to(view, &disk.target, &disk.from)).count();
    match (on_overlay, on_base) {
        (all, 0) if all == switch.disks.len() => Ok(Position::Switched),
        (0, all) if all == switch.disks.len() && view.has_managed_save => Ok(Position::Saved),
        (0, all) if all == switch.disks.len() && was_started(view, switch) => Ok(Position::Started),
        (0, all) if all == switch.disks.len() => Ok(Position::Before),
        (_, _) => Err(HostError::Malformed {
            what: "the VM's disks",
            cause: format!(
                "{on_overlay} of {} write to their overlays, {on_base} to their bases",
                switch.disks.len()
            )
            .into(),
        }),
    }
}

/// What the process itself tells, at once: its guest may stand still, and a look at all of the VM takes long. None where that does
/// not say it all: of a VM that is off, of one that went to another node and may be on its way back, of disks that were resized.
pub(super) async fn look_quickly(context: &Context<'_>, switch: &SwitchDisks) -> Option<Position> {
    if switch.memory.is_some() || !switch.run_state.is_live() || context.engine.has_migrated(context.vm()) {
        return None;
    }
    // Whoever asks next tells why this could not be answered.
    let written = context.host.hypervisor.written_images(context.vm()).await.ok()?;
    let sizes: Vec<_> = context
        .operation
        .steps
        .iter()
        .filter_map(|step| match step {
            Step::CreateOverlay(overlay) => Some((&overlay.path, overlay.virtual_size)),
            _ => None,
        })
        .collect();
    let all = |image: fn(&PointedDisk) -> &ImageRef| {
        switch.disks.iter().all(|disk| {
            let planned = sizes.iter().find(|(path, _)| **path == disk.to.path).map(|(_, size)| *size);
            let is_it = |it: &LiveImage| {
                it.disk == disk.target && it.path == image(disk).path && Some(it.virtual_size) == planned
            };
            written.iter().any(is_it)
        })
    };
    match (all(|disk| &disk.from), all(|disk| &disk.to)) {
        (true, false) => Some(Position::Before),
        (false, true) => Some(Position::Switched),
        (true, true) | (false, false) => None,
    }
}

fn was_started(view: &VmView, switch: &SwitchDisks) -> bool {
    switch.run_state == RunState::Off && view.run_state.is_live()
}

/// A saved state has a definition of its own: the one that libvirt believed in when it saved it.
pub(super) fn may_be_saved_before_it(disk: &PointedDisk, view: &VmView) -> Failure {
    let (name, from, to) = (&view.name, disk.from.path.display(), disk.to.path.display());
    let problem = format!(
        "the VM has a saved state, and libvirt may not have noted when it saved it that the VM writes to {to}: look with 'virsh \
         managedsave-dumpxml {name}'. If that names {to}, start the VM; if it names {from}, remove the saved state with \
         'virsh managedsave-remove {name}'. Then let the operation try again"
    );
    HostError::BadImage { path: disk.to.path.clone(), problem }.into()
}

pub(super) fn writes_to(view: &VmView, target: &DiskTarget, image: &ImageRef) -> bool {
    view.disk(target).and_then(|disk| disk.active()).is_some_and(|active| active.path == image.path)
}
