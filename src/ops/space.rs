//! Keeps up with the room that VMs have: tells before the file system of an image that grows is full, tells which disk had
//! none when a VM is paused for it, lets such a VM go on; and measures what merges need.
//!
//! Decides whom to look at, and when: by events of the hypervisor and ends of operations, never by the clock. Leaves to
//! `plan` where a threshold is set and what is low. What others write to the same file system is not told of by anybody;
//! each look takes it in.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio::sync::{Notify, broadcast, watch};

use super::events::by_itself;
use super::{Engine, OpsError, Result};
use crate::host::{HostEvent, Link, VmSummary};
use crate::model::event::{GrowingDisk, of_low_space, of_out_of_space};
use crate::model::step::ImageRef;
use crate::model::vm::Format;
use crate::model::{DiskTarget, OperationId, RunState, Space, VmId, VmView};
use crate::plan::{self, Refusal, World};

/// A VM that is started or reverted changes several times in a row.
const BREATH: Duration = Duration::from_millis(200);

/// VMs that operations have changed. A switch of disks is no event of the hypervisor.
#[derive(Default)]
pub(super) struct Touched {
    vms: Mutex<BTreeSet<VmId>>,
    told: Notify,
}

impl Touched {
    /// An operation on this VM has ended.
    pub(super) fn note(&self, vm: VmId) {
        self.vms.lock().unwrap_or_else(PoisonError::into_inner).insert(vm);
        self.told.notify_one();
    }

    fn take(&self) -> BTreeSet<VmId> {
        std::mem::take(&mut self.vms.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Engine {
    /// Lets a VM go on that is paused because a disk had no space. One that runs is a success.
    pub async fn resume_vm(&self, vm: VmId) -> Result<()> {
        if self.0.stopping.is_cancelled() {
            return Err(OpsError::Draining);
        }
        let engine = self.clone();
        // Carried through: a client that leaves half way changes nothing.
        let task = self.0.tasks.spawn(async move { engine.let_go_on(vm).await });
        task.await.map_err(|_| OpsError::Draining)?
    }

    async fn let_go_on(&self, vm: VmId) -> Result<()> {
        let _permit = self.enter(BTreeSet::from([vm]), OperationId::new()).await?;
        if !self.has_to_be_resumed(vm).await? {
            return Ok(());
        }
        let resumed = self.0.host.hypervisor.resume(vm).await;
        // It may run in spite of an error; and it may stand still again by now, which is told in the words of the plan.
        if self.has_to_be_resumed(vm).await? {
            resumed?;
            return Err(self.still_full(vm).await?.into());
        }
        tracing::info!(%vm, "a VM that had no space goes on");
        Ok(())
    }

    async fn has_to_be_resumed(&self, vm: VmId) -> Result<bool> {
        let view = self.0.host.hypervisor.observe(vm).await?;
        let mut spaces = BTreeMap::new();
        for directory in view.full_disks.iter().filter_map(|target| directory_of(&view, target)) {
            spaces.insert(directory.to_owned(), self.0.host.images.free_space(directory).await?);
        }
        Ok(plan::resume(&view, &spaces, self.0.places.reserve)?)
    }

    /// It was resumed and had no space again at once, although there is more than nothing.
    async fn still_full(&self, vm: VmId) -> Result<Refusal> {
        let view = self.0.host.hypervisor.observe(vm).await?;
        let directory = view.full_disks.iter().find_map(|target| directory_of(&view, target));
        let Some(directory) = directory else { return Ok(Refusal::NotOutOfSpace("is paused again")) };
        let Space { free, .. } = self.0.host.images.free_space(directory).await?;
        let reserve = self.0.places.reserve;
        Ok(Refusal::NoSpace {
            directory: directory.to_owned(),
            needed: free.saturating_add(1).max(reserve),
            reserve,
            free,
        })
    }

    /// Puts into the world what runs of layers would take as one image. One that cannot be measured is left to guesses.
    pub(super) async fn measure(&self, world: &mut World, runs: Vec<Vec<ImageRef>>) {
        for run in runs {
            let measured = self.0.host.images.measure(&run).await;
            if let Err(error) = &measured {
                let error: &dyn std::error::Error = error;
                tracing::warn!(vm = %world.vm.id, error, "it cannot be measured how much room a merge needs");
            }
            world.measured.insert(run.into_iter().map(|image| image.path).collect(), measured.ok());
        }
    }

    /// The file systems in use, each with one directory on it. One that cannot be asked is left out.
    pub async fn storage(&self, own: &Path) -> Result<Vec<(PathBuf, Space)>> {
        let mut directories = vec![own.to_owned()];
        directories.extend(self.directories_of_files().await?);
        let mut found: Vec<(PathBuf, Space)> = Vec::new();
        for directory in directories {
            match self.0.host.images.free_space(&directory).await {
                Ok(space) if found.iter().any(|(_, seen)| seen.file_system == space.file_system) => {}
                Ok(space) => found.push((directory, space)),
                Err(error) => {
                    let error: &dyn std::error::Error = &error;
                    tracing::debug!(directory = %directory.display(), error, "a directory has no room to tell of");
                }
            }
        }
        Ok(found)
    }

    /// Keeps up with the room of VMs, from now until the daemon goes down.
    pub fn watch_space(&self) {
        let engine = self.clone();
        self.0.tasks.spawn(async move {
            let hypervisor = &engine.0.host.hypervisor;
            let mut news = News { events: hypervisor.events(), link: hypervisor.link() };
            let stopping = engine.draining();
            let mut watch = Watch::default();
            let mut changed = Changed::All;
            loop {
                if let Err(error) = watch.look(&engine, &changed).await {
                    let error: &dyn std::error::Error = &error;
                    tracing::info!(error, "it cannot be told how much room the VMs have");
                }
                changed = tokio::select! {
                    next = news.next(&engine.0.touched) => match next {
                        Some(changed) => changed,
                        None => return,
                    },
                    () = stopping.cancelled() => return,
                };
            }
        });
    }
}

/// The directory of the image that a disk writes to; none for a block device.
fn directory_of<'a>(view: &'a VmView, target: &DiskTarget) -> Option<&'a Path> {
    let image = view.disk(target)?.active().filter(|image| !image.is_block_device)?;
    image.path.parent()
}

/// Which VMs to look at.
enum Changed {
    /// The link was down, or events were lost.
    All,
    These(BTreeSet<VmId>),
}

/// Where one learns that something has changed.
struct News {
    events: broadcast::Receiver<HostEvent>,
    link: watch::Receiver<Link>,
}

impl News {
    /// None when nothing will be told any more.
    async fn next(&mut self, touched: &Touched) -> Option<Changed> {
        let mut vms = BTreeSet::new();
        loop {
            tokio::select! {
                event = self.events.recv() => match event {
                    // What grows does not wait.
                    Ok(HostEvent::ThresholdCrossed(vm)) => drop(vms.insert(vm)),
                    Ok(HostEvent::VmChanged(vm) | HostEvent::BlockJobChanged(vm)) => {
                        vms.insert(vm);
                        tokio::time::sleep(BREATH).await;
                    }
                    Ok(HostEvent::AgentChanged(_) | HostEvent::VmMigrated(_)) => continue,
                    Err(RecvError::Lagged(_)) => return Some(Changed::All),
                    Err(RecvError::Closed) => return None,
                },
                Ok(()) = self.link.changed() => match *self.link.borrow_and_update() {
                    Link::Up => return Some(Changed::All),
                    Link::Down(_) => continue,
                },
                () = touched.told.notified() => {}
            }
            break;
        }
        loop {
            match self.events.try_recv() {
                Ok(
                    HostEvent::VmChanged(vm)
                    | HostEvent::BlockJobChanged(vm)
                    | HostEvent::ThresholdCrossed(vm),
                ) => drop(vms.insert(vm)),
                Ok(HostEvent::AgentChanged(_) | HostEvent::VmMigrated(_)) => {}
                Err(TryRecvError::Lagged(_)) => return Some(Changed::All),
                Err(TryRecvError::Empty | TryRecvError::Closed) => break,
            }
        }
        vms.extend(touched.take());
        Some(Changed::These(vms))
    }
}

/// An image that a running VM writes to.
struct Growing {
    vm_name: String,
    image: PathBuf,
    file_system: u64,
    /// The length that the hypervisor tells of; None if none is set.
    threshold: Option<u64>,
    /// It was told that there is little room, and there has been little since.
    is_told: bool,
}

/// What is watched.
#[derive(Default)]
struct Watch {
    growing: BTreeMap<(VmId, DiskTarget), Growing>,
    /// Disks that had no space, and whose VMs are paused for it: that is told already.
    full: BTreeSet<(VmId, DiskTarget)>,
}

impl Watch {
    async fn look(&mut self, engine: &Engine, changed: &Changed) -> Result<()> {
        if *engine.0.host.hypervisor.link().borrow() != Link::Up {
            return Ok(());
        }
        let here = engine.vms().await?;
        let mut known: BTreeSet<VmId> = self.growing.keys().map(|(vm, _)| *vm).collect();
        known.extend(here.iter().map(|vm| vm.id));
        let is_meant = |vm: &VmId| match changed {
            Changed::All => true,
            Changed::These(vms) => vms.contains(vm),
        };
        let mut spaces = BTreeMap::new();
        for vm in known.into_iter().filter(is_meant) {
            let summary = here.iter().find(|here| here.id == vm);
            self.look_at(engine, vm, summary, &mut spaces).await?;
        }
        for space in spaces.values() {
            self.set_thresholds(engine, space, &is_meant).await;
        }
        Ok(())
    }

    /// What a VM writes to now. The file systems of that are put into `spaces`.
    async fn look_at(
        &mut self,
        engine: &Engine,
        vm: VmId,
        summary: Option<&VmSummary>,
        spaces: &mut BTreeMap<u64, Space>,
    ) -> Result<()> {
        let is_live =
            |summary: &&VmSummary| matches!(summary.run_state, RunState::Running | RunState::Paused(_));
        let view = match summary.filter(is_live) {
            // libvirt lets everybody who asks about such a VM wait; its end brings us here again.
            Some(_) if engine.captures_memory(vm).await => return Ok(()),
            Some(summary) => match engine.0.host.hypervisor.observe(vm).await {
                Ok(view) => Some(view),
                Err(error) => {
                    let error: &dyn std::error::Error = &error;
                    tracing::debug!(vm = summary.name, error, "a VM cannot be looked at for the room it has");
                    None
                }
            },
            None => None,
        };
        let told: BTreeSet<(DiskTarget, PathBuf)> = self
            .growing
            .iter()
            .filter(|((of, _), growing)| *of == vm && growing.is_told)
            .map(|((_, disk), growing)| (disk.clone(), growing.image.clone()))
            .collect();
        self.growing.retain(|(of, _), _| *of != vm);
        let Some(view) = view else {
            self.full.retain(|(of, _)| *of != vm);
            return Ok(());
        };
        self.tell_full(engine, &view).await;
        let tree = engine.0.store.tree(vm).await?;
        let volumes = engine.0.store.volumes_without_vm().await?;
        for disk in &view.disks {
            let Some(active) = disk.active().filter(|active| plan::grows(active)) else { continue };
            let is_ours = tree.volume_writing(&active.path).is_some()
                || volumes.iter().any(|(path, _)| *path == active.path);
            let Some(directory) = active.path.parent().filter(|_| is_ours) else { continue };
            let Ok(space) = engine.0.host.images.free_space(directory).await else { continue };
            spaces.insert(space.file_system, space);
            let growing = Growing {
                vm_name: view.name.clone(),
                image: active.path.clone(),
                file_system: space.file_system,
                threshold: None,
                is_told: told.contains(&(disk.target.clone(), active.path.clone())),
            };
            self.growing.insert((vm, disk.target.clone()), growing);
        }
        Ok(())
    }

    async fn tell_full(&mut self, engine: &Engine, view: &VmView) {
        self.full.retain(|(of, disk)| *of != view.id || view.full_disks.contains(disk));
        for target in &view.full_disks {
            let Some(image) = view.disk(target).and_then(|disk| disk.active()) else { continue };
            if !self.full.insert((view.id, target.clone())) {
                continue;
            }
            let free = match directory_of(view, target) {
                Some(directory) => engine.0.host.images.free_space(directory).await.ok(),
                None => None,
            };
            let disk = GrowingDisk {
                vm: view.id,
                vm_name: &view.name,
                disk: target,
                image: &image.path,
                free: free.map(|space| space.free),
            };
            tracing::error!(vm = view.name, disk = %target, image = %image.path.display(), "a VM is paused: no space");
            engine.tell(of_out_of_space(&disk, &by_itself())).await;
        }
    }

    /// Sets when to be told of the images on a file system, and tells if it is low: of those that were looked at.
    async fn set_thresholds(&mut self, engine: &Engine, space: &Space, is_meant: &impl Fn(&VmId) -> bool) {
        let bound = plan::low_water(space, &engine.0.places);
        let on_it = |growing: &Growing| growing.file_system == space.file_system;
        let count = self.growing.values().filter(|growing| on_it(growing)).count() as u64;
        for ((vm, target), growing) in self.growing.iter_mut().filter(|(_, growing)| on_it(growing)) {
            let is_low = plan::is_low(space, bound, growing.is_told);
            if is_low && !growing.is_told && is_meant(vm) {
                let disk = GrowingDisk {
                    vm: *vm,
                    vm_name: &growing.vm_name,
                    disk: target,
                    image: &growing.image,
                    free: Some(space.free),
                };
                tracing::warn!(vm = growing.vm_name, disk = %target, free = space.free, "there is little room");
                engine.tell(of_low_space(&disk, &by_itself())).await;
                growing.is_told = true;
            }
            growing.is_told &= is_low;
            let Ok(facts) = engine.0.host.images.inspect(&growing.image, Format::Qcow2).await else {
                continue;
            };
            let next = plan::next_threshold(space, bound, count, facts.length, growing.threshold);
            let Some(next) = next else { continue };
            match engine.0.host.hypervisor.set_block_threshold(*vm, target, next).await {
                Ok(()) => growing.threshold = Some(next),
                // It has stopped, or switched, and then there is more news; or this libvirt cannot, and nothing is told.
                Err(error) => {
                    let error: &dyn std::error::Error = &error;
                    tracing::debug!(vm = growing.vm_name, disk = %target, error, "an image is not watched");
                }
            }
        }
    }
}
