//! What a schedule must not exceed. Looked at before each snapshot: a run that would is skipped for the VM.

use jiff::Timestamp;

use super::Schedules;
use crate::model::operation::{Failure, Reason};
use crate::model::schedule::RunVm;
use crate::model::{Schedule, VmView};
use crate::ops::Result;

impl Schedules {
    /// The limit that one more snapshot of a VM would exceed.
    pub(super) async fn limit(
        &self,
        schedule: &Schedule,
        vm: &RunVm,
        is_late: bool,
    ) -> Result<Option<Failure>> {
        let limits = schedule.wish.limits;
        let next = Some(Timestamp::now());
        let after = self.retention(schedule.id, &schedule.wish, (vm.vm, &vm.name), next).await?;
        // What its pruning lets go does not count, and the new one does. A late run does not prune.
        let (kept, bytes) = if is_late { after.all() } else { after.kept() };
        let most = usize::try_from(limits.snapshots).unwrap_or(usize::MAX);
        if most > 0 && kept + 1 > most {
            return Ok(exceeded(format!(
                "it would have {} snapshots of the VM, and {most} are the most",
                kept + 1
            )));
        }
        if limits.bytes > 0 && bytes > limits.bytes {
            let most = limits.bytes;
            return Ok(exceeded(format!(
                "its snapshots of the VM take {bytes} bytes, and {most} are the most"
            )));
        }
        if limits.chain_depth == 0 && limits.free_bytes == 0 {
            return Ok(None);
        }
        let (view, _) = self.0.engine.vm(vm.vm).await?;
        if let Some(failure) = too_deep(&view, limits.chain_depth) {
            return Ok(Some(failure));
        }
        self.too_full(&view, limits.free_bytes).await
    }

    async fn too_full(&self, view: &VmView, least: u64) -> Result<Option<Failure>> {
        let images = view.disks.iter().filter_map(|disk| disk.active());
        for directory in images.filter_map(|image| image.path.parent()).filter(|_| least > 0) {
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

fn too_deep(view: &VmView, most: u32) -> Option<Failure> {
    let most = usize::try_from(most).unwrap_or(usize::MAX);
    let deepest = view.disks.iter().map(|disk| disk.chain().len() + 1).max()?;
    let message = || format!("a disk would have {deepest} layers, and {most} are the most");
    if most > 0 && deepest > most { exceeded(message()) } else { None }
}

#[allow(clippy::unnecessary_wraps, reason = "what its callers give")]
fn exceeded(message: String) -> Option<Failure> {
    Some(Failure { reason: Reason::ScheduleLimit, message, causes: Vec::new() })
}
