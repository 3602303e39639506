//! Block jobs of simulated VMs: a commit copies block by block, so that the base is a mixture until it has ended. A pull
//! copies the other way.
//!
//! Decides what a notch of progress copies, and how a job ends. Leaves when there is a notch to `world`.
//!
//! ```text
//!                       the guest writes (active)
//!                          +----------+
//!                          v          |
//!   start_commit ------> COPYING -----+----> READY (active) ----> pivot: the top is dropped
//!   start_pull             |   |
//!          the VM stops,   |   +-----------> ended (intermediate, pull): the top, or what was pulled, is dropped
//!          no space, abort v
//!                       vanished: the base stays a mixture; a top that was pulled into reads the same
//! ```

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::super::{Commit, HostError, HostEvent, Pull, Result};
use super::fault::Extent;
use super::files::BLOCK;
use super::world::{World, refused};
use crate::model::step::ImageRef;
use crate::model::vm::{BlockJob, BlockJobKind};
use crate::model::{DiskTarget, VmId};

/// A commit or a pull under way.
#[derive(Debug, Clone)]
pub(super) struct Job {
    work: Work,
    pub(super) top: PathBuf,
    /// Blocks that are still to be copied.
    pending: BTreeSet<u64>,
    copied: u64,
    /// Blocks that are copied in one notch.
    blocks_per_notch: usize,
    is_ready: bool,
    /// As it was told. Its pace is the notches'.
    bandwidth: Option<u64>,
}

/// What a job does.
#[derive(Debug, Clone)]
enum Work {
    Commit {
        is_active: bool,
        base: PathBuf,
    },
    Pull {
        /// What the top will lie on.
        below: Option<PathBuf>,
    },
}

impl Job {
    fn new(
        work: Work,
        top: PathBuf,
        pending: BTreeSet<u64>,
        (notches, bandwidth): (u32, Option<u64>),
    ) -> Self {
        let blocks_per_notch = pending.len().div_ceil(notches.max(1) as usize).max(1);
        Self { work, top, pending, copied: 0, blocks_per_notch, is_ready: false, bandwidth }
    }

    /// The image that it writes to.
    pub(super) fn target(&self) -> &PathBuf {
        match &self.work {
            Work::Commit { base, .. } => base,
            Work::Pull { .. } => &self.top,
        }
    }

    pub(super) fn view(&self) -> BlockJob {
        let kind = match self.work {
            Work::Commit { is_active: true, .. } => BlockJobKind::ActiveCommit,
            Work::Commit { is_active: false, .. } => BlockJobKind::Commit,
            Work::Pull { .. } => BlockJobKind::Pull,
        };
        let total = (self.copied + self.pending.len() as u64) * BLOCK;
        BlockJob { kind, done: self.copied * BLOCK, total, ready: self.is_ready, bandwidth: self.bandwidth }
    }

    /// The guest has written a block of the top. True if the base must get it at once.
    pub(super) fn guest_wrote(&mut self, block: u64) -> bool {
        if let Work::Pull { .. } = self.work {
            // What the guest wrote is newer than what lies below.
            self.pending.remove(&block);
            return false;
        }
        if !self.is_ready {
            self.pending.insert(block);
        }
        self.is_ready
    }

    /// The base lacks what the guest wrote last.
    pub(super) fn has_to_copy(&mut self, block: u64) {
        self.pending.insert(block);
        self.is_ready = false;
    }
}

impl World {
    /// See [`crate::host::Hypervisor::start_commit`].
    pub(super) fn start_commit(&mut self, vm: VmId, commit: &Commit) -> Result<()> {
        const CALL: &str = "start the merge";
        self.nothing_is_captured(vm, "a merge begins");
        let (top_at, base_at) = self.check_commit(vm, commit)?;
        let notches = self.job_notches;
        self.note_write(&commit.base);
        let live = self.live(vm, CALL)?;
        let chain = &live.chains[&commit.disk][top_at..base_at];
        let chain = chain.to_vec();
        let mut pending = BTreeSet::new();
        let mut size = 0;
        for image in &chain {
            let image = self.files.image(&image.path)?;
            pending.extend(image.blocks.keys());
            size = size.max(image.virtual_size);
        }
        let base = self.files.image_mut(&commit.base)?;
        base.virtual_size = base.virtual_size.max(size);
        let work = Work::Commit { is_active: commit.is_active, base: commit.base.clone() };
        let job = Job::new(work, commit.top.clone(), pending, (notches, commit.bandwidth));
        self.live(vm, CALL)?.jobs.insert(commit.disk.clone(), job);
        Ok(())
    }

    /// See [`crate::host::Hypervisor::start_pull`].
    pub(super) fn start_pull(&mut self, vm: VmId, pull: &Pull) -> Result<()> {
        const CALL: &str = "start the pull";
        let notches = self.job_notches;
        let chain = self.free_chain(vm, &pull.disk, CALL)?;
        let [top, others @ ..] = &chain[..] else { return Err(refused(CALL, "the disk has no images")) };
        let end = match &pull.below {
            None => others.len(),
            Some(below) => others
                .iter()
                .position(|image| image.path == *below)
                .ok_or_else(|| refused(CALL, "the image to lie on is not in the chain"))?,
        };
        self.note_write(&top.path);
        let mut pending = BTreeSet::new();
        for image in &others[..end] {
            pending.extend(self.files.image(&image.path)?.blocks.keys());
        }
        let own = &self.files.image(&top.path)?.blocks;
        pending.retain(|block| !own.contains_key(block));
        let job = Job::new(
            Work::Pull { below: pull.below.clone() },
            top.path.clone(),
            pending,
            (notches, pull.bandwidth),
        );
        self.live(vm, CALL)?.jobs.insert(pull.disk.clone(), job);
        Ok(())
    }

    /// A commit from `top` into `base`, from its start to its end at once.
    pub(super) fn commit_by_hand(&mut self, vm: VmId, disk: &DiskTarget, top: &Path, base: &Path) {
        let Ok(chain) = self.free_chain(vm, disk, "merge") else { return };
        let is_active = chain.first().is_some_and(|image| image.path == top);
        let (top, base) = (top.to_owned(), base.to_owned());
        let commit = Commit { disk: disk.clone(), top, base, is_active, bandwidth: None };
        if self.start_commit(vm, &commit).is_err() {
            return;
        }
        while self.job_of(vm, disk).is_some_and(|job| !job.is_ready) {
            self.advance_jobs(vm);
        }
        drop(self.pivot(vm, disk, Extent::Whole));
    }

    /// A pull of all that a disk reads from others, from its start to its end at once.
    pub(super) fn pull_by_hand(&mut self, vm: VmId, disk: &DiskTarget) {
        let pull = Pull { disk: disk.clone(), below: None, bandwidth: None };
        if self.start_pull(vm, &pull).is_ok() {
            while self.job_of(vm, disk).is_some() {
                self.advance_jobs(vm);
            }
        }
    }

    fn job_of(&self, vm: VmId, disk: &DiskTarget) -> Option<&Job> {
        self.machines.get(&vm)?.live.as_ref()?.jobs.get(disk)
    }

    /// The chain of a disk that a job may be started on.
    fn free_chain(&mut self, vm: VmId, disk: &DiskTarget, call: &'static str) -> Result<Vec<ImageRef>> {
        let live = self.live(vm, call)?;
        if live.capture.is_some() {
            return Err(HostError::Busy("memory is being captured".into()));
        }
        let chain = live.chains.get(disk).ok_or_else(|| refused(call, "the VM has no such disk"))?;
        if live.jobs.contains_key(disk) {
            return Err(refused(call, "the disk has a block job already"));
        }
        Ok(chain.clone())
    }

    /// Where top and base are in the chain, if such a commit can be started.
    fn check_commit(&mut self, vm: VmId, commit: &Commit) -> Result<(usize, usize)> {
        const CALL: &str = "start the merge";
        let chain = self.free_chain(vm, &commit.disk, CALL)?;
        let at = |path: &PathBuf| chain.iter().position(|image| image.path == *path);
        let top_at = at(&commit.top).ok_or_else(|| refused(CALL, "the top is not in the chain"))?;
        let base_at = at(&commit.base).ok_or_else(|| refused(CALL, "the base is not in the chain"))?;
        if base_at <= top_at {
            return Err(refused(CALL, "the base is not below the top"));
        }
        if commit.is_active != (top_at == 0) {
            return Err(refused(CALL, "whether the top is the active layer is said wrongly"));
        }
        if self.is_open_elsewhere(&commit.base, vm) {
            return Err(refused(CALL, "the base is locked by another process"));
        }
        Ok((top_at, base_at))
    }

    /// A notch of progress for each job of a VM.
    pub(super) fn advance_jobs(&mut self, vm: VmId) {
        let Some(live) = self.machines.get(&vm).and_then(|machine| machine.live.as_ref()) else { return };
        let disks: Vec<DiskTarget> = live.jobs.keys().cloned().collect();
        for disk in disks {
            if self.advance_job(vm, &disk).is_err() {
                // No space: the job fails, and the guest goes on with the chain as it was.
                self.drop_job(vm, &disk);
            }
        }
    }

    fn advance_job(&mut self, vm: VmId, disk: &DiskTarget) -> Result<()> {
        const CALL: &str = "advance a block job";
        let stands_still = self.storage_hangs;
        let live = self.live(vm, CALL)?;
        let chain = live.chains[disk].clone();
        let Some(job) = live.jobs.get_mut(disk) else { return Ok(()) };
        if job.is_ready || stands_still {
            return Ok(());
        }
        if job.pending.is_empty() {
            return self.all_copied(vm, disk);
        }
        let blocks: Vec<u64> = job.pending.iter().copied().take(job.blocks_per_notch).collect();
        let (top, target) = (job.top.clone(), job.target().clone());
        let end = match &job.work {
            Work::Commit { base, .. } => Some(base.clone()),
            Work::Pull { below } => below.clone(),
        };
        let from_top = chain.into_iter().skip_while(|image| image.path != top);
        let read: Vec<ImageRef> = from_top.take_while(|image| Some(&image.path) != end.as_ref()).collect();
        for block in blocks {
            let value = self.topmost(&read, block);
            self.files.write(&target, block, value)?;
            if let Some(job) = self.live(vm, CALL)?.jobs.get_mut(disk) {
                job.pending.remove(&block);
                job.copied += 1;
            }
        }
        Ok(())
    }

    /// The value of a block in the first of these images that has it.
    fn topmost(&self, images: &[ImageRef], block: u64) -> u64 {
        let mut found = images.iter().filter_map(|image| self.files.image(&image.path).ok());
        found.find_map(|image| image.blocks.get(&block).copied()).unwrap_or(0)
    }

    fn all_copied(&mut self, vm: VmId, disk: &DiskTarget) -> Result<()> {
        let live = self.live(vm, "end a block job")?;
        let Some(job) = live.jobs.get_mut(disk) else { return Ok(()) };
        let chain = live.chains.entry(disk.clone()).or_default();
        let top = job.top.clone();
        match &job.work {
            Work::Commit { is_active: true, .. } => {
                job.is_ready = true;
                self.emit(HostEvent::BlockJobChanged(vm));
                return Ok(());
            }
            Work::Commit { is_active: false, base } => {
                let above = chain.iter().take_while(|image| image.path != top).last().cloned();
                let base_image = drop_between(chain, &top, base);
                if let (Some(above), Some(base_image)) = (above, base_image) {
                    self.files.image_mut(&above.path)?.backing = Some(base_image);
                }
            }
            Work::Pull { below } => {
                let kept = chain.iter().position(|image| Some(&image.path) == below.as_ref());
                chain.drain(1..kept.unwrap_or(chain.len()));
                let below = chain.get(1).cloned();
                self.files.image_mut(&top)?.backing = below;
            }
        }
        self.drop_job(vm, disk);
        Ok(())
    }

    /// See [`crate::host::Hypervisor::pivot`]. Half of it: QEMU has pivoted, and the stored definition does not know.
    pub(super) fn pivot(&mut self, vm: VmId, disk: &DiskTarget, extent: Extent) -> Result<()> {
        const CALL: &str = "pivot";
        let live = self.live(vm, CALL)?;
        let job = live.jobs.get(disk).ok_or_else(|| refused(CALL, "the disk has no block job"))?;
        let Work::Commit { is_active: true, base } = &job.work else {
            return Err(refused(CALL, "the block job is none that pivots"));
        };
        if !job.is_ready {
            return Err(HostError::NotReady(disk.clone()));
        }
        let (top, base) = (job.top.clone(), base.clone());
        let chain = live.chains.entry(disk.clone()).or_default();
        let base_image = drop_between(chain, &top, &base);
        if let (Some(base_image), Extent::Whole) = (base_image, extent) {
            self.store_if_named(vm, disk, &top, base_image);
        }
        self.drop_job(vm, disk);
        Ok(())
    }

    /// See [`crate::host::Hypervisor::limit_block_job`].
    pub(super) fn limit_block_job(
        &mut self,
        vm: VmId,
        disk: &DiskTarget,
        bandwidth: Option<u64>,
    ) -> Result<()> {
        const CALL: &str = "limit the block job";
        let job = self.live(vm, CALL)?.jobs.get_mut(disk);
        job.ok_or_else(|| refused(CALL, "the disk has no block job"))?.bandwidth = bandwidth;
        Ok(())
    }

    /// See [`crate::host::Hypervisor::abort_block_job`].
    pub(super) fn abort_block_job(&mut self, vm: VmId, disk: &DiskTarget) -> Result<()> {
        let live = self.machine(vm)?.live.as_ref();
        if live.is_some_and(|live| live.jobs.contains_key(disk)) {
            self.drop_job(vm, disk);
        }
        Ok(())
    }

    /// The job is no more, whatever it has done so far.
    pub(super) fn drop_job(&mut self, vm: VmId, disk: &DiskTarget) {
        if let Some(live) = self.machines.get_mut(&vm).and_then(|machine| machine.live.as_mut()) {
            live.jobs.remove(disk);
        }
        self.emit(HostEvent::BlockJobChanged(vm));
    }
}

/// Takes the images from `top` to just above `base` out of a chain. Gives the base.
fn drop_between(chain: &mut Vec<ImageRef>, top: &PathBuf, base: &PathBuf) -> Option<ImageRef> {
    let top_at = chain.iter().position(|image| image.path == *top)?;
    let base_at = chain.iter().position(|image| image.path == *base)?;
    chain.drain(top_at..base_at);
    chain.get(top_at).cloned()
}
