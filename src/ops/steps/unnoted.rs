//! A switch that the hypervisor has carried out and not noted: libvirt died in between.
//!
//! Looks at what the process writes to, at what the definition names, and at what the overlays hold; lets the definition name
//! what the guest wrote to last. Leaves to `plan::switch` what follows from the overlays, to `switch` when it is asked.

use std::time::SystemTime;

use crate::host::{HostError, Result};
use crate::model::step::{ImageRef, PointedDisk, SwitchDisks};
use crate::model::vm::DiskSource;
use crate::plan::switch::{Seen, Switched, switched};

use super::Context;
use super::switch::targets;

/// Whether the VM wrote to the overlays until its process ended; its definition names them then. Nothing is done as long as
/// the process or the definition tells of the overlays by itself. To be asked only before anything is merged back: then it is
/// not the switch any more that the overlays tell of.
pub(super) async fn settle_ended(context: &Context<'_>, switch: &SwitchDisks) -> Result<bool> {
    let mut disks = Vec::with_capacity(switch.disks.len());
    for disk in &switch.disks {
        let Some(is_live) = is_on_base(context, disk).await? else { return Ok(false) };
        disks.push((disk, Seen { is_live, base: None, overlay: last_written(context, &disk.to).await? }));
    }
    if switched(&disks) == Switched::No {
        return Ok(false);
    }
    for (disk, seen) in disks.iter_mut().filter(|(_, seen)| !seen.is_live) {
        seen.base = last_written(context, &disk.from).await?;
    }
    match switched(&disks) {
        Switched::No => Ok(false),
        Switched::Unnoted => {
            tracing::warn!(vm = %context.vm(), "libvirt has not noted the switch of a VM that has ended: it is mended");
            let overlays = targets(&switch.disks, |disk| &disk.to);
            context.host.hypervisor.point_disks(context.vm(), &overlays).await?;
            Ok(true)
        }
        Switched::Undecided(problem) => {
            Err(HostError::BadImage { path: switch.disks[0].to.path.clone(), problem })
        }
    }
}

/// Whether a process writes to the base; None if that is not what the disk writes to, or will at the next start.
async fn is_on_base(context: &Context<'_>, disk: &PointedDisk) -> Result<Option<bool>> {
    let written = context.host.hypervisor.written_image(context.vm(), &disk.target).await?;
    let is_live = written.process.is_some();
    let image = if is_live { written.live } else { written.stored.map(|image| image.path) };
    Ok((image.as_ref() == Some(&disk.from.path)).then_some(is_live))
}

/// A file that is not there was never written to, as far as anybody can tell: a person may have moved it away.
async fn last_written(context: &Context<'_>, image: &ImageRef) -> Result<Option<SystemTime>> {
    match context.host.images.last_written(image).await {
        Err(HostError::NoSuchImage(_)) => Ok(None),
        told => told,
    }
}

/// libvirt may die between QEMU's switch and its own note of it. The next cold start would then boot the bases, and write
/// to what snapshots refer to.
pub(super) async fn mend_definition(context: &Context<'_>, switch: &SwitchDisks) -> Result<()> {
    let view = context.host.hypervisor.observe(context.vm()).await?;
    let is_behind = |disk: &PointedDisk| {
        view.disk(&disk.target).is_some_and(|seen| {
            matches!(&seen.source, DiskSource::Chain { persistent: Some(path), .. } if *path == disk.from.path)
        })
    };
    if !switch.disks.iter().any(is_behind) {
        return Ok(());
    }
    tracing::warn!(vm = %context.vm(), "the stored definition does not know of the switch: it is mended");
    let overlays = targets(&switch.disks, |disk| &disk.to);
    context.host.hypervisor.point_disks(context.vm(), &overlays).await
}

/// The same where libvirt died before it could note anything: until the VM stops it believes that it writes to the bases, and
/// nothing else can be seen of it. The next cold start must not believe so.
pub(super) async fn mend_unseen(context: &Context<'_>, switch: &SwitchDisks) -> Result<()> {
    let hypervisor = &context.host.hypervisor;
    for disk in &switch.disks {
        let written = hypervisor.written_image(context.vm(), &disk.target).await?;
        if written.live.as_ref() != Some(&disk.to.path)
            || written.stored.as_ref().map(|image| &image.path) != Some(&disk.from.path)
        {
            continue;
        }
        let overlay = [(disk.target.clone(), disk.to.clone())];
        hypervisor.point_disks(context.vm(), &overlay).await?;
        tracing::warn!(vm = %context.vm(), disk = %disk.target, "libvirt does not know of the switch: it is mended");
    }
    Ok(())
}
