//! The snapshots that a schedule has of a VM, and what its retention makes of them.

use jiff::Timestamp;

use super::Schedules;
use crate::model::schedule::ScheduleWish;
use crate::model::{LayerTree, ScheduleId, Snapshot, SnapshotState, VmId};
use crate::ops::Result;
use crate::plan::retention::{self, Candidate, VmRetention};

impl Schedules {
    /// What becomes of the snapshots of one VM; `next` is when another is made that is not there yet.
    pub(super) async fn retention(
        &self,
        schedule: ScheduleId,
        wish: &ScheduleWish,
        (vm, name): (VmId, &str),
        next: Option<Timestamp>,
    ) -> Result<VmRetention> {
        let tree = self.store().tree(vm).await?;
        let ready = self.store().snapshots_of_schedule(schedule, vm).await?;
        let is_ready = |snapshot: &&Snapshot| snapshot.state == SnapshotState::Ready;
        let candidates: Vec<Candidate> =
            ready.iter().filter(is_ready).map(|snapshot| candidate(snapshot, &tree)).collect();
        Ok(retention::decide((vm, name), &candidates, next, &wish.retention, &wish.timing.zone))
    }
}

fn candidate(snapshot: &Snapshot, tree: &LayerTree) -> Candidate {
    let held = snapshot.holds.iter().map(|hold| format!("held by {}", hold.name));
    let is_cloned = snapshot.disks.iter().any(|disk| tree.is_cloned(disk.layer));
    let disks: u64 = snapshot.disks.iter().map(|disk| disk.allocated).sum();
    Candidate {
        id: snapshot.id,
        name: snapshot.name.clone(),
        created_at: snapshot.created_at,
        bytes: disks + snapshot.memory.as_ref().map_or(0, |memory| memory.bytes),
        tied_by: held.chain(is_cloned.then(|| "used by a clone".to_owned())).collect(),
    }
}
