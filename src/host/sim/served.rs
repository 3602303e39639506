//! What simulated disks serve their guests: guests that ask by themselves, and wait the longer the faster a block job copies.
//!
//! Decides how long a request takes. Leaves when there is a notch to `world`.

use std::time::Duration;

use super::SimHost;
use super::world::World;
use crate::host::Result;
use crate::model::served::{Requests, Served};
use crate::model::{DiskTarget, VmId};

/// So many requests come in each notch.
const REQUESTS: u32 = 4;

/// How long a guest waits for a disk.
#[derive(Debug, Clone, Copy)]
pub struct Waits {
    /// For a request while nothing is copied, or slowly.
    pub calm: Duration,
    /// While a block job may copy faster than `slowly`.
    pub busy: Duration,
    /// In bytes per second.
    pub slowly: u64,
}

impl World {
    /// A notch of what the guest asks for by itself.
    pub(super) fn advance_served(&mut self, vm: VmId) {
        let Some(live) = self.machines.get_mut(&vm).and_then(|machine| machine.live.as_mut()) else { return };
        for (disk, (waits, served)) in &mut live.served {
            let is_fast = |limit: Option<u64>| limit.is_none_or(|limit| limit > waits.slowly);
            let is_busy = live.jobs.get(disk).is_some_and(|job| is_fast(job.view().bandwidth));
            let wait = if is_busy { waits.busy } else { waits.calm };
            served.flushes = Requests {
                count: served.flushes.count + u64::from(REQUESTS),
                time: served.flushes.time + wait * REQUESTS,
            };
        }
    }

    /// See [`crate::host::Hypervisor::served`].
    pub(super) fn served(&mut self, vm: VmId, disk: &DiskTarget) -> Result<Option<Served>> {
        let Some(live) = &self.machine(vm)?.live else { return Ok(None) };
        let served = live.served.get(disk).map(|(_, served)| *served);
        Ok(live.chains.contains_key(disk).then_some(served.unwrap_or_default()))
    }
}

impl SimHost {
    /// From now on the guest asks a disk for something at each notch, and waits so long for it.
    pub fn guest_waits(&self, vm: VmId, disk: &DiskTarget, waits: Waits) {
        self.change(|world| {
            if let Some(live) = world.machines.get_mut(&vm).and_then(|machine| machine.live.as_mut()) {
                live.served.entry(disk.clone()).or_insert((waits, Served::default())).0 = waits;
            }
        });
    }
}
