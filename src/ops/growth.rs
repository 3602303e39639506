//! Keeps up with the images that grow: tells before the file system of one is full, and tells which disk had no space when
//! a VM is paused for it.
//!
//! Decides whom to look at, and when: by events of the hypervisor and ends of operations, never by the clock. Leaves to
//! `plan` at which length to be told, and what is low. What others write to the same file system is told by nobody; each
//! look takes it in.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio::sync::{Notify, broadcast, watch};

use super::events::by_itself;
use super::space::directory_of;
use super::{Engine, Result};
use crate::host::{HostError, HostEvent, Link};
use crate::model::event::{GrowingDisk, of_low_space, of_out_of_space};
use crate::model::vm::Format;
use crate::model::{DiskTarget, RunState, Space, VmId, VmView};
use crate::plan;

/// A VM that is started or reverted changes several times in a row.
const BREATH: Duration = Duration::from_millis(200);

impl Engine {
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
                    biased;
                    () = stopping.cancelled() => return,
                    next = news.next(&engine.0.touched) => match next {
                        Some(changed) => changed,
                        None => return,
                    },
                };
            }
        });
    }
}

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
                biased;
                event = self.events.recv() => match event {
                    // What grows does not wait.
                    Ok(HostEvent::ThresholdCrossed(vm)) => drop(vms.insert(vm)),
                    Ok(HostEvent::VmChanged(vm) | HostEvent::BlockJobChanged(vm)) => {
                        vms.insert(vm);
                        tokio::time::sleep(BREATH).await;
                    }
                    Ok(
                        HostEvent::AgentChanged(_) | HostEvent::CaptureMoved(_) | HostEvent::VmMigrated(_),
                    ) => continue,
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
                Ok(HostEvent::AgentChanged(_) | HostEvent::CaptureMoved(_) | HostEvent::VmMigrated(_)) => {}
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
        let vms = match changed {
            Changed::These(vms) => vms.clone(),
            Changed::All => {
                let mut vms: BTreeSet<VmId> = engine.vms().await?.into_iter().map(|vm| vm.id).collect();
                vms.extend(self.growing.keys().map(|(vm, _)| *vm));
                vms
            }
        };
        let mut spaces = BTreeMap::new();
        for vm in &vms {
            self.look_at(engine, *vm, &mut spaces).await?;
        }
        for space in spaces.values() {
            self.set_thresholds(engine, space, &vms).await;
        }
        Ok(())
    }

    /// What a VM writes to now. The file systems of that are put into `spaces`.
    async fn look_at(&mut self, engine: &Engine, vm: VmId, spaces: &mut BTreeMap<u64, Space>) -> Result<()> {
        if engine.captures_memory(vm).await {
            // libvirt lets everybody who asks about such a VM wait. The end of that brings us here again.
            return Ok(());
        }
        let view = match engine.0.host.hypervisor.observe(vm).await {
            Ok(view) => {
                Some(view).filter(|view| matches!(view.run_state, RunState::Running | RunState::Paused(_)))
            }
            Err(HostError::NoSuchVm(_)) => None,
            Err(error) => {
                let error: &dyn std::error::Error = &error;
                tracing::debug!(%vm, error, "a VM cannot be looked at for the room it has");
                // What was set may have been told: whoever looks next sets it anew.
                let of_vm = self.growing.iter_mut().filter(|((of, _), _)| *of == vm);
                of_vm.for_each(|(_, growing)| growing.threshold = None);
                return Ok(());
            }
        };
        let of_vm = self.growing.iter().filter(|((of, _), growing)| *of == vm && growing.is_told);
        let told: BTreeSet<(DiskTarget, u64)> =
            of_vm.map(|((_, disk), growing)| (disk.clone(), growing.file_system)).collect();
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
                is_told: told.contains(&(disk.target.clone(), space.file_system)),
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
            engine.tell(of_out_of_space(&disk, &by_itself())).await;
        }
    }

    /// Sets when to be told of the images on a file system, and tells if it is low: of those that were looked at.
    async fn set_thresholds(&mut self, engine: &Engine, space: &Space, seen: &BTreeSet<VmId>) {
        let bound = plan::low_water(space, &engine.0.places);
        let on_it = |growing: &Growing| growing.file_system == space.file_system;
        let count = self.growing.values().filter(|growing| on_it(growing)).count() as u64;
        for ((vm, target), growing) in self.growing.iter_mut().filter(|(_, growing)| on_it(growing)) {
            let is_low = plan::is_low(space, bound, growing.is_told);
            if is_low && !growing.is_told && seen.contains(vm) {
                let disk = GrowingDisk {
                    vm: *vm,
                    vm_name: &growing.vm_name,
                    disk: target,
                    image: &growing.image,
                    free: Some(space.free),
                };
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
