//! What a case needs of a node, and short words for it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::broadcast;
use vmsnap::host::{Commit, DiskSwitch, GuestAgent, HostError, HostEvent, Hypervisor, Images, Result};
use vmsnap::model::step::{DoomedImage, ImageRef, NewOverlay};
use vmsnap::model::vm::{BlockJob, DiskSource, Format};
use vmsnap::model::{DiskTarget, VmId, VmView};

/// Bytes of a block: what one write fills.
pub const BLOCK: u64 = 64 << 10;

/// Blocks of every disk.
pub const BLOCKS: u64 = 64;

/// Size of every disk.
pub const DISK: u64 = BLOCKS * BLOCK;

/// Longest wait for anything. Reached only when something is broken.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// A node, simulated or real.
#[async_trait]
pub trait Node: Send + Sync {
    fn hypervisor(&self) -> &dyn Hypervisor;
    fn agent(&self) -> &dyn GuestAgent;
    fn images(&self) -> &dyn Images;

    /// A place for a file.
    fn path(&self, name: &str) -> PathBuf;

    /// An empty image without backing, of so many bytes.
    fn put_image(&self, path: &Path, format: Format, size: u64);

    /// A VM that is off.
    fn define(&self, disks: &[(&str, &ImageRef)]) -> VmId;

    /// Somebody pauses it.
    fn suspend(&self, vm: VmId);

    /// Somebody saves its memory for the next start.
    fn managed_save(&self, vm: VmId);

    /// Somebody lets the stored definition name this image for `vda`, whatever the process uses.
    fn redefine(&self, vm: VmId, image: &ImageRef);

    /// Somebody undefines it.
    fn undefine(&self, vm: VmId);

    /// Fills one block of an image that nobody has open.
    fn write_image(&self, image: &ImageRef, block: u64, value: u8);

    /// Fills one block of a disk of a running VM.
    fn write_disk(&self, vm: VmId, disk: &str, block: u64, value: u8);

    /// The values of all blocks of an image, as a fresh process reads them.
    fn read_image(&self, image: &ImageRef) -> Vec<u8>;

    /// Waits until something may have happened to a block job.
    async fn job_moves(&self, events: &mut broadcast::Receiver<HostEvent>, vm: VmId);

    /// The simulation notices more than the real thing tells. Here are these, in the simulation.
    fn check_violations(&self, expected: usize);
}

impl dyn Node + '_ {
    pub fn image(&self, name: &str, format: Format) -> ImageRef {
        let path = self.path(name);
        self.put_image(&path, format, DISK);
        ImageRef { path, format }
    }

    pub async fn overlay(&self, name: &str, over: &ImageRef) -> ImageRef {
        self.images().create_overlay(&self.new_overlay(name, over)).await.unwrap();
        ImageRef { path: self.path(name), format: Format::Qcow2 }
    }

    pub fn new_overlay(&self, name: &str, over: &ImageRef) -> NewOverlay {
        NewOverlay {
            target: target("vda"),
            path: self.path(name),
            backing_path: over.path.clone(),
            backing_format: over.format,
            virtual_size: DISK,
        }
    }

    /// A chain of overlays on a fresh image, base first. Block n of each layer says n + 1, and its first block, too.
    pub async fn layers(&self, names: &[&str]) -> Vec<ImageRef> {
        let mut layers: Vec<ImageRef> = Vec::new();
        for (number, name) in (0_u8..).zip(names) {
            let layer = match layers.last() {
                None => self.image(name, Format::Qcow2),
                Some(below) => self.overlay(name, below).await,
            };
            self.write_image(&layer, 0, number + 1);
            self.write_image(&layer, u64::from(number), number + 1);
            layers.push(layer);
        }
        layers
    }

    pub async fn start(&self, vm: VmId) {
        self.hypervisor().start(vm, &vmsnap::host::StartFrom::Disks, false).await.unwrap();
    }

    /// A running VM with one disk.
    pub async fn running(&self, image: &ImageRef) -> VmId {
        let vm = self.define(&[("vda", image)]);
        self.start(vm).await;
        vm
    }

    pub async fn view(&self, vm: VmId) -> VmView {
        self.hypervisor().observe(vm).await.unwrap()
    }

    pub async fn chain(&self, vm: VmId, disk: &str) -> Vec<PathBuf> {
        let view = self.view(vm).await;
        view.disk(&target(disk)).unwrap().chain().iter().map(|image| image.path.clone()).collect()
    }

    /// The image that the stored definition names.
    pub async fn stored(&self, vm: VmId, disk: &str) -> Option<PathBuf> {
        match self.view(vm).await.disk(&target(disk)).unwrap().source.clone() {
            DiskSource::Chain { persistent, .. } => persistent,
            DiskSource::Excluded(_) | DiskSource::Refused(_) => None,
        }
    }

    pub async fn job(&self, vm: VmId) -> Option<BlockJob> {
        let jobs = self.hypervisor().block_jobs(vm).await.unwrap();
        jobs.into_iter().find(|(disk, _)| *disk == target("vda")).map(|(_, job)| job)
    }

    /// Lets the job on `vda` end: pivots if it must.
    pub async fn finish_job(&self, vm: VmId, mut events: broadcast::Receiver<HostEvent>) {
        while let Some(job) = self.job(vm).await {
            if job.ready {
                self.hypervisor().pivot(vm, &target("vda")).await.unwrap();
            } else {
                self.job_moves(&mut events, vm).await;
            }
        }
    }

    pub async fn remove(&self, path: &Path) {
        self.images().remove(&DoomedImage { path: path.to_owned(), identity: None }).await.unwrap();
    }

    /// The values of the first blocks.
    pub fn read(&self, image: &ImageRef) -> [u8; 4] {
        self.read_image(image)[..4].try_into().unwrap()
    }
}

pub fn target(name: &str) -> DiskTarget {
    name.parse().unwrap()
}

pub fn paths(images: &[&ImageRef]) -> Vec<PathBuf> {
    images.iter().map(|image| image.path.clone()).collect()
}

pub fn switch(disks: &[(&str, &ImageRef)], others: &[&str], memory: Option<PathBuf>) -> DiskSwitch {
    DiskSwitch {
        disks: disks.iter().map(|(disk, image)| (target(disk), (*image).clone())).collect(),
        others: others.iter().map(|disk| target(disk)).collect(),
        memory,
    }
}

/// A merge on `vda`.
pub fn commit(top: &ImageRef, base: &ImageRef, is_active: bool) -> Commit {
    Commit { disk: target("vda"), top: top.path.clone(), base: base.path.clone(), is_active, bandwidth: None }
}

/// An error without what is in it: the part of it that plans and answers rest on.
pub fn kind<T>(result: &Result<T>) -> &'static str {
    match result {
        Ok(_) => "ok",
        Err(HostError::Unreachable(_)) => "unreachable",
        Err(HostError::TimedOut { .. }) => "timed out",
        Err(HostError::Refused { .. }) => "refused",
        Err(HostError::Busy(_)) => "busy",
        Err(HostError::NoSuchVm(_)) => "no such vm",
        Err(HostError::Migrated) => "migrated",
        Err(HostError::NoSuchDisk(_)) => "no such disk",
        Err(HostError::NotReady(_)) => "not ready",
        Err(HostError::AgentUnavailable(_)) => "agent unavailable",
        Err(HostError::AgentRefused(_)) => "agent refused",
        Err(HostError::NoSuchImage(_)) => "no such image",
        Err(HostError::BadImage { .. }) => "bad image",
        Err(HostError::ImageInUse(_)) => "image in use",
        Err(HostError::Needed { .. }) => "needed",
        Err(HostError::NoSpace(_)) => "no space",
        Err(HostError::Io { .. }) => "io",
        Err(HostError::Program { .. }) => "program",
        Err(HostError::Disagreement(_)) => "disagreement",
        Err(HostError::Malformed { .. }) => "malformed",
    }
}

/// A result and what it should be.
#[track_caller]
pub fn expect<T: std::fmt::Debug>(result: &Result<T>, expected: &str) {
    assert_eq!(kind(result), expected, "{result:?}");
}
