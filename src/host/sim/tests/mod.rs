//! The simulation itself: does it do what it says, and does it notice what is wrong.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::super::{Commit, DiskSwitch, GuestAgent, HostError, Hypervisor, Images};
use super::*;
use crate::model::step::{DoomedImage, ImageRef, NewOverlay};
use crate::model::vm::{DiskSource, Format, RunState};
use crate::model::{DiskTarget, VmId, VmView};

mod agents;
mod faults;
mod files;
mod merges;
mod powers;
mod switches;

const SOON: Duration = Duration::from_secs(5);

/// A node with one VM, and short words for what tests do to it.
struct Bed {
    sim: SimHost,
    vm: VmId,
}

impl Bed {
    /// `web` with two qcow2 disks, as it is built by `build`.
    fn new(build: impl FnOnce(VmBuilder) -> VmBuilder) -> Self {
        let sim = SimHost::new();
        let vm = build(sim.vm("web").disks(2)).build();
        Self { sim, vm }
    }

    fn running() -> Self {
        Self::new(|vm| vm)
    }

    fn off() -> Self {
        Self::new(VmBuilder::off)
    }

    fn write(&self, disk: &str, block: u64, value: u64) {
        self.sim.guest_write(self.vm, &target(disk), block, value).unwrap();
    }

    /// What the guest reads from the first blocks.
    fn reads(&self, disk: &str) -> [u64; 4] {
        first(&self.sim.disk_contents(self.vm, &target(disk)).unwrap())
    }

    /// What an image reads in its first blocks.
    fn image(&self, path: &str) -> [u64; 4] {
        first(&self.sim.read_image(Path::new(path)).unwrap())
    }

    async fn overlay(&self, path: &str, over: &str) -> ImageRef {
        let size = self.sim.inspect(Path::new(over), Format::Qcow2).await.unwrap().virtual_size;
        self.sim.create_overlay(&overlay(path, over, size)).await.unwrap();
        qcow2(path)
    }

    /// Switches disks to fresh overlays over what they write to now, leaving the others alone.
    async fn snapshot(&self, disks: &[(&str, &str)], memory: Option<&str>) {
        let view = self.view().await;
        let mut switch = switch(&[], memory);
        for disk in &view.disks {
            match disks.iter().find(|(name, _)| *name == disk.target.as_str()) {
                Some((_, path)) => {
                    let active = disk.active().unwrap().path.to_str().unwrap().to_owned();
                    switch.disks.push((disk.target.clone(), self.overlay(path, &active).await));
                }
                None => switch.others.push(disk.target.clone()),
            }
        }
        self.sim.switch_disks(self.vm, &switch).await.unwrap();
    }

    async fn view(&self) -> VmView {
        self.sim.observe(self.vm).await.unwrap()
    }

    async fn chain(&self, disk: &str) -> Vec<PathBuf> {
        let view = self.view().await;
        view.disk(&target(disk)).unwrap().chain().iter().map(|image| image.path.clone()).collect()
    }

    async fn stored(&self, disk: &str) -> Option<PathBuf> {
        match self.view().await.disk(&target(disk)).unwrap().source.clone() {
            DiskSource::Chain { persistent, .. } => persistent,
            DiskSource::Excluded(_) | DiskSource::Refused(_) => None,
        }
    }

    async fn start_commit(&self, top: &str, base: &str, is_active: bool) -> Result<()> {
        self.sim.start_commit(self.vm, &commit("vda", top, base, is_active)).await
    }

    async fn remove(&self, path: &str) -> Result<()> {
        self.sim.remove(&DoomedImage { path: path.into(), identity: None }).await
    }

    #[track_caller]
    fn check_violations(&self, expected: &[&str]) {
        assert_eq!(self.sim.violations(), expected);
    }
}

const VDA: &str = "/images/web-vda";
const VDB: &str = "/images/web-vdb";

fn target(name: &str) -> DiskTarget {
    name.parse().unwrap()
}

fn first(content: &Content) -> [u64; 4] {
    std::array::from_fn(|block| content.get(&(block as u64)).copied().unwrap_or(0))
}

fn qcow2(path: &str) -> ImageRef {
    ImageRef { path: path.into(), format: Format::Qcow2 }
}

fn paths(paths: &[&str]) -> Vec<PathBuf> {
    paths.iter().map(PathBuf::from).collect()
}

fn overlay(path: &str, over: &str, virtual_size: u64) -> NewOverlay {
    NewOverlay {
        target: target("vda"),
        path: path.into(),
        backing_path: over.into(),
        backing_format: Format::Qcow2,
        virtual_size,
    }
}

fn switch(disks: &[(&str, ImageRef)], memory: Option<&str>) -> DiskSwitch {
    DiskSwitch {
        disks: disks.iter().map(|(disk, image)| (target(disk), image.clone())).collect(),
        others: Vec::new(),
        memory: memory.map(Into::into),
    }
}

fn commit(disk: &str, top: &str, base: &str, is_active: bool) -> Commit {
    Commit { disk: target(disk), top: top.into(), base: base.into(), is_active, bandwidth: None }
}

/// An error without what is in it: enough to tell it from others.
fn kind<T>(result: &Result<T>) -> &'static str {
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
