//! The hypervisor of the simulated node. Decides nothing: each call is an effect on the world, and an answer.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::{broadcast, watch};

use super::super::{
    About, BackgroundCapture, Commit, Definition, DiskSwitch, HostEvent, Hypervisor, Link, LiveImage, Pull,
    Result, StartFrom, VmSummary, WrittenImage,
};
use super::SimHost;
use super::capture::Switch;
use super::fault::{Extent, Method};
use crate::model::served::Served;
use crate::model::step::{ImageRef, NewVm};
use crate::model::vm::{BlockJob, RunState};
use crate::model::{DiskTarget, IoLimits, Labels, VmId, VmView};

#[async_trait]
impl Hypervisor for SimHost {
    async fn about(&self) -> Result<About> {
        let about = About {
            libvirt: "0.0.0".to_owned(),
            qemu: "0.0.0".to_owned(),
            host_name: "simulation".to_owned(),
        };
        self.call(Method::About, |_, _| Ok(about)).await
    }

    async fn vms(&self) -> Result<Vec<VmSummary>> {
        self.call(Method::Vms, |world, _| Ok(world.vms())).await
    }

    async fn labels(&self, only: Option<VmId>) -> Result<HashMap<VmId, Labels>> {
        self.call(Method::Labels, |world, _| Ok(world.labels(only))).await
    }

    async fn observe(&self, vm: VmId) -> Result<VmView> {
        self.call(Method::Observe, |world, _| world.observe(vm)).await
    }

    async fn written_image(&self, vm: VmId, disk: &DiskTarget) -> Result<WrittenImage> {
        self.call(Method::WrittenImage, |world, _| world.written_image(vm, disk)).await
    }

    async fn written_images(&self, vm: VmId) -> Result<Vec<LiveImage>> {
        self.call(Method::WrittenImages, |world, _| world.written_images(vm)).await
    }

    async fn definition(&self, vm: VmId) -> Result<Definition> {
        self.call(Method::Definition, |world, _| world.definition(vm)).await
    }

    async fn switch_disks(&self, vm: VmId, switch: &DiskSwitch) -> Result<()> {
        let effect = |world: &mut super::World, extent| {
            world.check_not_coming(vm)?;
            world.switch_disks(vm, switch, extent)
        };
        match self.call(Method::SwitchDisks, effect).await? {
            Switch::Done => Ok(()),
            Switch::Capturing(number) => self.captured(number).await,
        }
    }

    async fn point_disks(&self, vm: VmId, disks: &[(DiskTarget, ImageRef)]) -> Result<()> {
        self.call(Method::PointDisks, |world, _| world.point_disks(vm, disks)).await
    }

    async fn define(&self, definition: &Definition, new: &NewVm) -> Result<()> {
        self.call(Method::Define, |world, _| world.define(definition, new)).await
    }

    async fn undefine(&self, vm: VmId) -> Result<()> {
        self.call(Method::Undefine, |world, _| world.undefine(vm)).await
    }

    async fn start(&self, vm: VmId, how: &StartFrom, paused: bool) -> Result<()> {
        self.call(Method::Start, |world, extent| world.start(vm, how, paused, extent)).await
    }

    async fn stop(&self, vm: VmId) -> Result<()> {
        let effect = |world: &mut super::World, _| {
            if world.check_not_coming(vm).is_err() {
                world.is_let_alone(vm, "is stopped");
            }
            world.stop(vm)
        };
        self.call(Method::Stop, effect).await
    }

    async fn pause(&self, vm: VmId) -> Result<()> {
        let effect = |world: &mut super::World, _| {
            world.check_not_coming(vm)?;
            world.pause(vm)
        };
        self.call(Method::Pause, effect).await
    }

    async fn resume(&self, vm: VmId) -> Result<()> {
        let effect = |world: &mut super::World, _| {
            world.check_not_coming(vm)?;
            world.resume(vm)
        };
        self.call(Method::Resume, effect).await
    }

    async fn process_state(&self, vm: VmId) -> Result<Option<RunState>> {
        self.call(Method::ProcessState, |world, _| world.process_state(vm)).await
    }

    async fn memory_progress(&self, vm: VmId) -> Result<Option<(u64, u64)>> {
        self.call(Method::MemoryProgress, |world, _| world.memory_progress(vm)).await
    }

    async fn is_capturing(&self, vm: VmId) -> Result<bool> {
        self.call(Method::IsCapturing, |world, _| world.is_capturing(vm)).await
    }

    async fn abort_memory_capture(&self, vm: VmId, image: &Path) -> Result<()> {
        self.call(Method::AbortMemoryCapture, |world, _| world.abort_memory_capture(vm, image)).await
    }

    async fn background_blocker(&self, vm: VmId) -> Result<Option<String>> {
        self.call(Method::BackgroundBlocker, |world, _| world.background_blocker(vm)).await
    }

    async fn compression_blocker(&self) -> Result<Option<String>> {
        self.call(Method::CompressionBlocker, |world, _| Ok(world.compression_blocker.clone())).await
    }

    async fn prepare_background_capture(&self, vm: VmId, image: &Path) -> Result<()> {
        let effect = |world: &mut super::World, _| {
            world.check_not_coming(vm)?;
            world.prepare_background(vm, image, Arc::downgrade(&self.user))
        };
        self.call(Method::PrepareBackgroundCapture, effect).await
    }

    async fn begin_background_capture(&self, vm: VmId, image: &Path) -> Result<()> {
        let effect = |world: &mut super::World, _| {
            world.check_not_coming(vm)?;
            world.begin_background(vm, image)
        };
        self.call(Method::BeginBackgroundCapture, effect).await
    }

    async fn prove_background_capture(&self, vm: VmId, image: &Path) -> Result<()> {
        self.call(Method::ProveBackgroundCapture, |world, _| world.prove_background(vm, image)).await
    }

    async fn background_capture(&self, vm: VmId, image: &Path) -> Result<BackgroundCapture> {
        self.call(Method::BackgroundCapture, |world, _| world.look_at_background(vm, image)).await
    }

    async fn end_background_capture(&self, vm: VmId) -> Result<()> {
        self.call(Method::EndBackgroundCapture, |world, _| world.end_background(vm)).await
    }

    async fn start_commit(&self, vm: VmId, commit: &Commit) -> Result<()> {
        let effect = |world: &mut super::World, _| {
            world.check_not_coming(vm)?;
            world.start_commit(vm, commit)
        };
        self.call(Method::StartCommit, effect).await
    }

    async fn start_pull(&self, vm: VmId, pull: &Pull) -> Result<()> {
        let effect = |world: &mut super::World, _| {
            world.check_not_coming(vm)?;
            world.start_pull(vm, pull)
        };
        self.call(Method::StartPull, effect).await
    }

    async fn block_jobs(&self, vm: VmId) -> Result<Vec<(DiskTarget, BlockJob)>> {
        self.call(Method::BlockJobs, |world, _| world.block_jobs(vm)).await
    }

    async fn pivot(&self, vm: VmId, disk: &DiskTarget) -> Result<()> {
        self.call(Method::Pivot, |world, extent: Extent| world.pivot(vm, disk, extent)).await
    }

    async fn limit_block_job(&self, vm: VmId, disk: &DiskTarget, bandwidth: Option<u64>) -> Result<()> {
        self.call(Method::LimitBlockJob, |world, _| world.limit_block_job(vm, disk, bandwidth)).await
    }

    async fn abort_block_job(&self, vm: VmId, disk: &DiskTarget) -> Result<()> {
        self.call(Method::AbortBlockJob, |world, _| world.abort_block_job(vm, disk)).await
    }

    async fn served(&self, vm: VmId, disk: &DiskTarget) -> Result<Option<Served>> {
        self.call(Method::Served, |world, _| world.served(vm, disk)).await
    }

    async fn io_limits(&self, vm: VmId, disk: &DiskTarget) -> Result<Option<IoLimits>> {
        self.call(Method::IoLimits, |world, _| world.io_limits(vm, disk)).await
    }

    async fn set_io_limits(&self, vm: VmId, disk: &DiskTarget, limits: &IoLimits) -> Result<()> {
        self.call(Method::SetIoLimits, |world, _| world.set_io_limits(vm, disk, limits)).await
    }

    async fn set_block_threshold(&self, vm: VmId, disk: &DiskTarget, bytes: u64) -> Result<()> {
        self.call(Method::SetBlockThreshold, |world, _| world.set_threshold(vm, disk, bytes)).await
    }

    fn events(&self) -> broadcast::Receiver<HostEvent> {
        self.world().events.subscribe()
    }

    fn link(&self) -> watch::Receiver<Link> {
        self.world().watch_link()
    }
}
