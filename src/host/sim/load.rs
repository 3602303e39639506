//! Guests that write by themselves, without end, to one disk. What such a guest has written is known to it and to no
//! daemon: that is the oracle of tests on merges that it outruns.
//!
//! Decides how much it writes in a notch, and that it keeps to the disk's limits. Leaves when there is a notch to `world`.

use super::SimHost;
use super::files::{BLOCK, Content};
use super::job::Job;
use super::world::{World, refused};
use crate::host::Result;
use crate::model::{BlockJob, DiskTarget, IoLimits, VmId};

/// A look costs a quarter of a second of the guest's time.
const NOTCHES_PER_SECOND: u64 = 4;

/// What one guest writes to one disk.
#[derive(Debug, Clone)]
pub(super) struct Load {
    blocks_per_notch: u64,
    /// It writes these blocks, one after the other, and begins anew.
    first: u64,
    blocks: u64,
    next: u64,
    /// The value of the last write.
    value: u64,
    /// Bytes that it may write by its limit and has not written.
    allowance: u64,
}

impl Load {
    /// Blocks of this notch, under a limit of so many bytes per second; 0 for none.
    fn notch(&mut self, limit: u64) -> Vec<(u64, u64)> {
        let mut count = self.blocks_per_notch;
        if limit > 0 {
            self.allowance += limit / NOTCHES_PER_SECOND;
            count = count.min(self.allowance / BLOCK);
            self.allowance -= count * BLOCK;
            // What is not used up is lost but for one block: a limit is no savings account.
            self.allowance = self.allowance.min(BLOCK);
        }
        let mut writes = Vec::new();
        for _ in 0..count {
            self.value += 1;
            writes.push((self.first + self.next, self.value));
            self.next = (self.next + 1) % self.blocks;
        }
        writes
    }
}

impl World {
    /// A notch of what the guest writes by itself.
    pub(super) fn advance_load(&mut self, vm: VmId) {
        let Some(live) = self.machines.get_mut(&vm).and_then(|machine| machine.live.as_mut()) else { return };
        let mut writes = Vec::new();
        for (disk, load) in &mut live.loads {
            let limits = live.limits.get(disk).cloned().unwrap_or_default();
            let limit = if limits.bytes.both.rate > 0 { limits.bytes.both } else { limits.bytes.write };
            writes.extend(load.notch(limit.rate).into_iter().map(|write| (disk.clone(), write)));
        }
        for (disk, (block, value)) in writes {
            if self.guest_write(vm, &disk, block, value).is_ok() {
                let loaded = self.machines.get_mut(&vm).map(|machine| &mut machine.written);
                loaded.and_then(|written| written.entry(disk).or_default().insert(block, value));
            }
        }
    }

    /// See [`crate::host::Hypervisor::io_limits`].
    pub(super) fn io_limits(&mut self, vm: VmId, disk: &DiskTarget) -> Result<Option<IoLimits>> {
        let Some(live) = &self.machine(vm)?.live else { return Ok(None) };
        let has_disk = live.chains.contains_key(disk);
        Ok(has_disk.then(|| live.limits.get(disk).cloned().unwrap_or_default()))
    }

    /// See [`crate::host::Hypervisor::set_io_limits`].
    pub(super) fn set_io_limits(&mut self, vm: VmId, disk: &DiskTarget, limits: &IoLimits) -> Result<()> {
        const CALL: &str = "limit the I/O";
        let (both, write) = (limits.bytes.both, limits.bytes.write);
        if both.rate > 0 && (write.rate > 0 || limits.bytes.read.rate > 0) {
            return Err(refused(CALL, "total and read/write of bytes_sec cannot be set at the same time"));
        }
        let live = self.live(vm, CALL)?;
        if !live.chains.contains_key(disk) {
            return Err(refused(CALL, "the VM has no such disk"));
        }
        let group = live.limits.get(disk).and_then(|limits| limits.group.clone());
        live.limits.insert(disk.clone(), IoLimits { group, ..limits.clone() });
        Ok(())
    }
}

impl SimHost {
    /// From now on the guest writes so many blocks of a disk at each notch, one after the other from `first` on, `blocks`
    /// in all, and then again.
    pub fn guest_writes_on(
        &self,
        vm: VmId,
        disk: &DiskTarget,
        blocks_per_notch: u64,
        first: u64,
        blocks: u64,
    ) {
        let load = Load { blocks_per_notch, first, blocks, next: 0, value: 1000, allowance: 0 };
        self.change(|world| {
            if let Some(live) = world.machines.get_mut(&vm).and_then(|machine| machine.live.as_mut()) {
                live.loads.insert(disk.clone(), load);
            }
        });
    }

    /// The guest writes nothing more by itself.
    pub fn guest_calms_down(&self, vm: VmId) {
        self.change(|world| {
            if let Some(live) = world.machines.get_mut(&vm).and_then(|machine| machine.live.as_mut()) {
                live.loads.clear();
            }
        });
    }

    /// The newest of what the guest has written to a disk by itself.
    #[must_use]
    pub fn written_by_itself(&self, vm: VmId, disk: &DiskTarget) -> Content {
        let world = self.world();
        let written = world.machines.get(&vm).and_then(|machine| machine.written.get(disk));
        written.cloned().unwrap_or_default()
    }

    /// The limits that the process has on a disk now, whatever the link says; none at all if it is off.
    #[must_use]
    pub fn limits_of(&self, vm: VmId, disk: &DiskTarget) -> IoLimits {
        self.world().io_limits(vm, disk).ok().flatten().unwrap_or_default()
    }

    /// Whether a block job has the disk.
    #[must_use]
    pub fn has_block_job(&self, vm: VmId, disk: &DiskTarget) -> bool {
        self.block_job_of(vm, disk).is_some()
    }

    /// The block job of a disk. Nothing moves because it is looked at so.
    #[must_use]
    pub fn block_job_of(&self, vm: VmId, disk: &DiskTarget) -> Option<BlockJob> {
        let world = self.world();
        let live = world.machines.get(&vm).and_then(|machine| machine.live.as_ref())?;
        live.jobs.get(disk).map(Job::view)
    }

    /// Somebody limits the block job of a disk (`virsh blockjob --bandwidth`).
    pub fn someone_limits_job(&self, vm: VmId, disk: &DiskTarget, bandwidth: Option<u64>) {
        self.change(|world| drop(world.limit_block_job(vm, disk, bandwidth)));
    }

    /// Somebody limits a disk of a running VM, the group included.
    pub fn someone_limits(&self, vm: VmId, disk: &DiskTarget, limits: IoLimits) {
        self.change(|world| {
            if let Some(live) = world.machines.get_mut(&vm).and_then(|machine| machine.live.as_mut()) {
                live.limits.insert(disk.clone(), limits);
            }
        });
    }
}
