//! The snapshots that a schedule has of a VM, what they take, and what its retention makes of them.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use super::Schedules;
use crate::host::HostError;
use crate::model::schedule::ScheduleWish;
use crate::model::{LayerId, LayerTree, ScheduleId, Snapshot, SnapshotState, VmId};
use crate::ops::Result;
use crate::plan::limits::{self, TakenUp};
use crate::plan::retention::{self, Candidate, VmRetention};

impl Schedules {
    /// What becomes of the snapshots of one VM, of which a schedule that is not there yet has none; `next` is when another is
    /// made that is not there yet.
    pub(super) async fn retention(
        &self,
        schedule: Option<ScheduleId>,
        wish: &ScheduleWish,
        (vm, name): (VmId, &str),
        next: Option<Timestamp>,
    ) -> Result<VmRetention> {
        let tree = self.store().tree(vm).await?;
        let mut ready = match schedule {
            Some(schedule) => self.store().snapshots_of_schedule(schedule, vm).await?,
            None => Vec::new(),
        };
        ready.retain(|snapshot| snapshot.state == SnapshotState::Ready);
        let allocated = self.allocated(&tree, &ready).await?;
        let taken_up = |snapshot: &Snapshot| limits::taken_up(&tree, snapshot, &allocated);
        let candidates: Vec<Candidate> =
            ready.iter().map(|snapshot| candidate(snapshot, &tree, taken_up(snapshot))).collect();
        Ok(retention::decide((vm, name), &candidates, next, &wish.retention, &wish.timing.zone))
    }

    /// What layers take now. One that is not there, or is no image, takes nothing that could be given back.
    async fn allocated(&self, tree: &LayerTree, snapshots: &[Snapshot]) -> Result<BTreeMap<LayerId, u64>> {
        let weighed: BTreeSet<LayerId> =
            snapshots.iter().flat_map(|snapshot| limits::weighed(tree, snapshot)).collect();
        let mut allocated = BTreeMap::new();
        for layer in weighed.iter().filter_map(|layer| tree.layers.get(layer)) {
            match self.0.engine.host().images.inspect(&layer.path, layer.format).await {
                Ok(facts) => drop(allocated.insert(layer.id, facts.allocated)),
                Err(HostError::NoSuchImage(_) | HostError::BadImage { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(allocated)
    }
}

fn candidate(snapshot: &Snapshot, tree: &LayerTree, taken_up: TakenUp) -> Candidate {
    let held = snapshot.holds.iter().map(|hold| format!("held by {}", hold.name));
    let is_cloned = snapshot.disks.iter().any(|disk| tree.is_cloned(disk.layer));
    Candidate {
        id: snapshot.id,
        name: snapshot.name.clone(),
        created_at: snapshot.created_at,
        taken_up,
        tied_by: held.chain(is_cloned.then(|| "a linked clone lies on it".to_owned())).collect(),
    }
}
