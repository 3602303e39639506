//! What a schedule must not exceed. Looked at before each snapshot: a run that would is skipped for the VM.

use jiff::Timestamp;

use super::Schedules;
use crate::model::operation::{Failure, Reason};
use crate::model::schedule::{ScheduleWish, SnapshotTemplate};
use crate::model::{ScheduleId, VmId, VmView};
use crate::ops::Result;
use crate::plan::limits::{taken, written};

impl Schedules {
    /// The limit that one more snapshot of a VM would exceed.
    pub(super) async fn limit(
        &self,
        schedule: Option<ScheduleId>,
        wish: &ScheduleWish,
        (vm, name): (VmId, &str),
        is_late: bool,
    ) -> Result<Option<Failure>> {
        let limits = wish.limits;
        if (limits.snapshots > 0 || limits.bytes > 0)
            && let Some(failure) = self.too_many(schedule, wish, (vm, name), is_late).await?
        {
            return Ok(Some(failure));
        }
        if limits.chain_depth == 0 && limits.free_bytes == 0 {
            return Ok(None);
        }
        let (view, _) = self.0.engine.vm(vm).await?;
        if let Some(failure) = too_deep(&view, &wish.template, limits.chain_depth) {
            return Ok(Some(failure));
        }
        self.too_full(&view, &wish.template, limits.free_bytes).await
    }

    /// What its pruning lets go does not count, and the new one does. A late run does not prune.
    async fn too_many(
        &self,
        schedule: Option<ScheduleId>,
        wish: &ScheduleWish,
        vm: (VmId, &str),
        is_late: bool,
    ) -> Result<Option<Failure>> {
        let after = self.retention(schedule, wish, vm, Some(Timestamp::now())).await?;
        let (kept, bytes) = if is_late { after.all() } else { after.kept() };
        let most = usize::try_from(wish.limits.snapshots).unwrap_or(usize::MAX);
        if most > 0 && kept + 1 > most {
            let would = kept + 1;
            return Ok(exceeded(format!(
                "it would have {would} snapshots of the VM, and {most} are the most"
            )));
        }
        let most = wish.limits.bytes;
        if most > 0 && bytes > most {
            return Ok(exceeded(format!(
                "its snapshots of the VM take {bytes} bytes, and {most} are the most"
            )));
        }
        Ok(None)
    }

    async fn too_full(
        &self,
        view: &VmView,
        template: &SnapshotTemplate,
        least: u64,
    ) -> Result<Option<Failure>> {
        let directories = written(view, &template.disks, template.memory, self.0.engine.places());
        for directory in directories.into_iter().filter(|_| least > 0) {
            let free = self.0.engine.host().images.free_space(directory).await?.free;
            if free < least {
                let directory = directory.display();
                return Ok(exceeded(format!(
                    "{free} bytes are free in {directory}, and {least} must stay free"
                )));
            }
        }
        Ok(None)
    }
}

fn too_deep(view: &VmView, template: &SnapshotTemplate, most: u32) -> Option<Failure> {
    let most = usize::try_from(most).unwrap_or(usize::MAX);
    let deepest = taken(view, &template.disks).map(|disk| disk.chain().len() + 1).max()?;
    let message = || format!("a disk would have {deepest} layers, and {most} are the most");
    if most > 0 && deepest > most { exceeded(message()) } else { None }
}

#[allow(clippy::unnecessary_wraps, reason = "what its callers give")]
fn exceeded(message: String) -> Option<Failure> {
    Some(Failure { reason: Reason::ScheduleLimit, message, causes: Vec::new() })
}
