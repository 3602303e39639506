//! A switch that the hypervisor has carried out and not noted: libvirt died in between.
//!
//! Looks at what the process writes to, at what the definition names, and at what the overlays hold; lets the definition name
//! what the guest wrote to last, and looks again. Leaves to `plan::switch` what follows from a look, to `switch` when it is
//! asked. Must never believe a look that it has acted upon.

use futures_util::future::try_join_all;

use crate::host::{HostError, Result, WrittenImage};
use crate::model::step::{ImageRef, PointedDisk, SwitchDisks};
use crate::model::vm::{DiskSource, LastWritten};
use crate::model::{DiskTarget, Failure, ProcessId};
use crate::plan::switch::{self, Next, Seen, Side, was_started_between};

use super::pause::Told;
use super::switch::targets;
use super::{Context, Performed};

/// Somebody may start the VM while its definition is changed.
const LOOKS: usize = 4;

/// Why it is not known which images hold what the guest wrote last.
pub(super) enum Unsettled {
    /// It could not be seen.
    Unseen(HostError),
    /// It was seen, and a person has to decide.
    Undecided(Failure),
}

impl From<HostError> for Unsettled {
    fn from(error: HostError) -> Self {
        Self::Unseen(error)
    }
}

impl Unsettled {
    pub(super) fn into_performed(self) -> Performed {
        match self {
            Self::Unseen(error) => Performed::unknown(error),
            // Trying again finds the same.
            Self::Undecided(failure) => Performed::gave_up(failure),
        }
    }
}

/// The definition names what the guest wrote to last, where that is not what the process tells by itself. To be asked before
/// anything is merged back only: from then on overlays tell nothing of the switch.
pub(super) async fn settle(
    context: &Context<'_>,
    switch: &SwitchDisks,
) -> std::result::Result<(), Unsettled> {
    settle_by(context, switch, switch::next).await
}

/// The same for what a process tells, which may be asked at any time.
pub(super) async fn settle_live(
    context: &Context<'_>,
    switch: &SwitchDisks,
) -> std::result::Result<(), Unsettled> {
    settle_by(context, switch, switch::next_of_live).await
}

async fn settle_by(
    context: &Context<'_>,
    switch: &SwitchDisks,
    next: fn(&[(&PointedDisk, Seen)]) -> Next,
) -> std::result::Result<(), Unsettled> {
    let mut acted_upon = None;
    for _ in 0..LOOKS {
        let seen = look(context, switch).await?;
        let disks: Vec<_> = switch.disks.iter().zip(seen).collect();
        if let Some(problem) = acted_upon.and_then(|before: Vec<_>| was_started_between(&before, &disks)) {
            return Err(undecided(switch, problem));
        }
        let images = match next(&disks) {
            Next::Nothing => return Ok(()),
            Next::PointAtOverlays => overlays(&disks),
            Next::PointAtBases => targets(&switch.disks, |disk| &disk.from),
            Next::Undecided(problem) => return Err(undecided(switch, problem)),
        };
        context.check_here().await?;
        context.host.hypervisor.point_disks(context.vm(), &images).await?;
        tracing::warn!(vm = %context.vm(), ?images, "libvirt had not noted a switch: the definition was mended");
        acted_upon = Some(disks);
    }
    Err(HostError::Busy("the VM starts and ends while it is looked at".into()).into())
}

/// Of a process those that it writes to. Else all of them at once: half of it would be a riddle to whoever looks next.
fn overlays(disks: &[(&PointedDisk, Seen)]) -> Vec<(DiskTarget, ImageRef)> {
    let is_written = |seen: &Seen| seen.live.is_none_or(|side| side == Side::Overlay);
    let written = disks.iter().filter(|(_, seen)| is_written(seen));
    written.map(|(disk, _)| (disk.target.clone(), disk.to.clone())).collect()
}

fn undecided(switch: &SwitchDisks, problem: String) -> Unsettled {
    let path = switch.disks[0].to.path.clone();
    Unsettled::Undecided(HostError::BadImage { path, problem }.into())
}

/// All disks of one process, or of none. First what it writes to, then what the images hold: a process that has ended by then
/// was there.
async fn look(context: &Context<'_>, switch: &SwitchDisks) -> Result<Vec<Seen>> {
    let written =
        switch.disks.iter().map(|disk| context.host.hypervisor.written_image(context.vm(), &disk.target));
    let written = try_join_all(written).await?;
    let processes: Vec<Option<&ProcessId>> = written.iter().map(|written| written.process.as_ref()).collect();
    if processes.windows(2).any(|pair| pair[0] != pair[1]) {
        return Err(HostError::Busy("the VM has started or ended while it was looked at".into()));
    }
    try_join_all(switch.disks.iter().zip(&written).map(|(disk, written)| look_at(context, disk, written)))
        .await
}

async fn look_at(context: &Context<'_>, disk: &PointedDisk, written: &WrittenImage) -> Result<Seen> {
    let side = |path| match path {
        _ if path == &disk.to.path => Side::Overlay,
        _ if path == &disk.from.path => Side::Base,
        _ => Side::Other,
    };
    let live = written.process.as_ref().map(|_| written.live.as_ref().map_or(Side::Other, side));
    let stored = written.stored.as_ref().map(|image| side(&image.path));
    let images = &context.host.images;
    if live == Some(Side::Overlay) {
        // It tells all there is to tell, and its guest may stand still meanwhile.
        return Ok(Seen { live, stored, base: LastWritten::Untold, overlay: LastWritten::Untold });
    }
    let base = images.last_written(&disk.from).await?;
    let overlay = match images.last_written(&disk.to).await {
        // A person has moved it away: its directory is there, for the base is.
        Err(HostError::NoSuchImage(_)) if disk.from.path.parent() == disk.to.path.parent() => {
            LastWritten::Never
        }
        Err(HostError::NoSuchImage(_)) => LastWritten::Untold,
        told => told?,
    };
    Ok(Seen { live, stored, base, overlay })
}

/// libvirt may die between QEMU's switch and its own note of it. The next cold start would then boot the bases, and write
/// to what snapshots refer to.
///
/// Where it does not tell that all is done, what it says of the definition is not what is on its disk: it changes what it
/// remembers first, and gives up if a file cannot be written (`qemuSnapshotDiskCreate`, `virDomainDefSave`).
pub(super) async fn mend_definition(context: &Context<'_>, switch: &SwitchDisks, told: Told) -> Result<()> {
    let view = context.look_at_vm().await?;
    let stored = |disk: &PointedDisk| match view.disk(&disk.target).map(|seen| &seen.source) {
        Some(DiskSource::Chain { persistent, .. }) => persistent.clone(),
        Some(DiskSource::Excluded(_) | DiskSource::Refused(_)) | None => None,
    };
    let is_behind = switch.disks.iter().any(|disk| stored(disk).is_some_and(|path| path == disk.from.path));
    let is_doubtful = told != Told::Done && switch.disks.iter().any(|disk| stored(disk).is_some());
    if !is_behind && !is_doubtful {
        return Ok(());
    }
    if is_behind {
        tracing::warn!(vm = %context.vm(), "the stored definition does not know of the switch: it is mended");
    }
    let overlays = targets(&switch.disks, |disk| &disk.to);
    context.host.hypervisor.point_disks(context.vm(), &overlays).await
}
