//! A simulated VM, seen.
//!
//! Decides what a look shows: the chains of the process, held against the headers; of a VM that is off, the headers.

use std::collections::HashMap;

use super::super::{HostError, LiveImage, Result, VmSummary, WrittenImage};
use super::files::bad;
use super::machine::{Machine, SlotKind};
use super::world::World;
use crate::model::step::ImageRef;
use crate::model::vm::{Attachment, BlockJob, ChainImage, DiskSource, DiskView, Format};
use crate::model::{DiskTarget, Labels, ProcessId, VmId, VmView};

impl World {
    /// See [`crate::host::Hypervisor::observe`]. Looking costs time: what is under way moves on.
    pub(super) fn observe(&mut self, vm: VmId) -> Result<VmView> {
        let view = self.view(vm);
        self.be_seen(vm);
        self.advance(vm);
        view
    }

    fn be_seen(&mut self, vm: VmId) {
        let Some(machine) = self.machines.get_mut(&vm) else { return };
        machine.has_left_unseen = false;
        if machine.elsewhere.is_none() {
            self.looks.see(vm);
        }
    }

    fn view(&self, vm: VmId) -> Result<VmView> {
        let machine = self.machines.get(&vm).ok_or(HostError::NoSuchVm(vm))?;
        if machine.live.as_ref().is_some_and(|live| live.is_known_wrongly) {
            return Err(HostError::Disagreement("the simulation says so".into()));
        }
        Ok(VmView {
            id: vm,
            attachment: Attachment::Attached,
            name: machine.name.clone(),
            run_state: machine.run_state(),
            full_disks: machine.full_disks(),
            persistent: machine.is_persistent,
            has_managed_save: machine.managed_save.is_some(),
            agent: machine.agent.channel(machine.live.is_some()),
            memory_bytes: machine.memory_bytes,
            memory_blocker: machine.memory_blocker.clone(),
            pull_blocker: machine.pull_blocker.clone().filter(|_| machine.live.is_some()),
            variables: machine.variables.clone().map(|path| ImageRef { path, format: Format::Raw }),
            uncovered: machine.uncovered.clone(),
            snapshots_elsewhere: machine.snapshots.clone(),
            other_files: machine.other_files.clone(),
            unnamed_disks: machine.unnamed_disks.clone(),
            disks: machine
                .slots
                .iter()
                .map(|slot| {
                    Ok(DiskView {
                        target: slot.target.clone(),
                        source: self.source(machine, &slot.target, &slot.kind)?,
                        block_job: job(machine, &slot.target),
                    })
                })
                .collect::<Result<_>>()?,
        })
    }

    fn source(&self, machine: &Machine, disk: &DiskTarget, kind: &SlotKind) -> Result<DiskSource> {
        let chain = match kind {
            SlotKind::Excluded(excluded) => return Ok(DiskSource::Excluded(*excluded)),
            SlotKind::Refused(refused) => return Ok(DiskSource::Refused(refused.clone())),
            SlotKind::Chain => match &machine.live {
                Some(live) => self.checked(live.chains.get(disk).map_or(&[], Vec::as_slice))?,
                None => match machine.stored.get(disk) {
                    Some(stored) => {
                        let chain = self.files.chain(stored)?;
                        check_definition(machine, disk, &chain)?;
                        chain
                    }
                    None => Vec::new(),
                },
            },
        };
        let persistent = machine.stored.get(disk).map(|image| image.path.clone());
        Ok(DiskSource::Chain {
            images: chain
                .into_iter()
                .map(|image| ChainImage { path: image.path, format: image.format, is_block_device: false })
                .collect(),
            persistent: persistent.filter(|_| machine.is_persistent),
            persistent_below: machine.listed.get(disk).cloned().unwrap_or_default(),
        })
    }

    /// See [`crate::host::Hypervisor::written_image`].
    pub(super) fn written_image(&mut self, vm: VmId, disk: &DiskTarget) -> Result<WrittenImage> {
        let machine = self.machine(vm)?;
        let chain = machine.live.as_ref().and_then(|live| live.chains.get(disk));
        let live = chain.and_then(|chain| chain.first()).map(|image| image.path.clone());
        let stored = machine.stored.get(disk).cloned();
        let process = machine.live.as_ref().map(|live| ProcessId(live.process.to_string()));
        Ok(WrittenImage { live, stored: stored.filter(|_| machine.is_persistent), process })
    }

    /// See [`crate::host::Hypervisor::written_images`]. Only what runs here is seen to be here.
    pub(super) fn written_images(&mut self, vm: VmId) -> Result<Vec<LiveImage>> {
        let machine = self.machine(vm)?;
        let is_away = machine.elsewhere.is_some();
        let chains = machine.live.as_ref().map(|live| live.chains.clone());
        let Some(chains) = chains else { return Ok(Vec::new()) };
        if !is_away {
            self.looks.see(vm);
        }
        let active = chains.into_iter().filter_map(|(disk, chain)| Some((disk, chain.into_iter().next()?)));
        let written = active.map(|(disk, image)| {
            let virtual_size = self.files.image(&image.path)?.virtual_size;
            Ok(LiveImage { disk, path: image.path, virtual_size })
        });
        written.collect()
    }

    /// The hypervisor died before it could note what it has changed.
    pub(super) fn know_wrongly(&mut self, vm: VmId) {
        if let Some(live) = self.machines.get_mut(&vm).and_then(|machine| machine.live.as_mut()) {
            live.is_known_wrongly = true;
        }
    }

    /// The chain of a process, if the headers agree with it.
    fn checked(&self, chain: &[ImageRef]) -> Result<Vec<ImageRef>> {
        for (depth, image) in chain.iter().enumerate() {
            let below = self.files.header(image)?;
            if below != chain.get(depth + 1) {
                return Err(bad(&image.path, "its header names another backing file than the process uses"));
            }
        }
        Ok(chain.to_vec())
    }

    /// See [`crate::host::Hypervisor::vms`]. Looking costs time here, too.
    pub(super) fn vms(&mut self) -> Vec<VmSummary> {
        let summary = |(id, machine): (&VmId, &Machine)| VmSummary {
            id: *id,
            name: machine.name.clone(),
            run_state: machine.run_state(),
            full_disks: machine.full_disks(),
        };
        let vms: Vec<VmSummary> = self.machines.iter().map(summary).collect();
        for vm in &vms {
            self.be_seen(vm.id);
            self.end_what_is_not_up(vm.id);
        }
        vms
    }

    /// See [`crate::host::Hypervisor::labels`].
    pub(super) fn labels(&self, only: Option<VmId>) -> HashMap<VmId, Labels> {
        let machines = self.machines.iter().filter(|(id, _)| only.is_none_or(|only| only == **id));
        machines.map(|(id, machine)| (*id, machine.labels.clone())).collect()
    }

    /// See [`crate::host::Hypervisor::block_jobs`]. Looking costs time: what is under way moves on.
    pub(super) fn block_jobs(&mut self, vm: VmId) -> Result<Vec<(DiskTarget, BlockJob)>> {
        let machine = self.machine(vm)?;
        let slots = machine.slots.iter();
        let jobs =
            slots.filter_map(|slot| Some((slot.target.clone(), job(machine, &slot.target)?))).collect();
        self.advance_jobs(vm);
        Ok(jobs)
    }
}

/// What the definition lists below the image of a disk that it names is what the headers say, as far as it does.
pub(super) fn check_definition(machine: &Machine, disk: &DiskTarget, chain: &[ImageRef]) -> Result<()> {
    let Some(listed) = machine.listed.get(disk) else { return Ok(()) };
    if chain.iter().skip(1).map(|image| &image.path).eq(listed) {
        return Ok(());
    }
    let path = chain.first().map(|image| image.path.clone()).unwrap_or_default();
    Err(bad(&path, "its header names another backing file than the definition"))
}

fn job(machine: &Machine, disk: &DiskTarget) -> Option<BlockJob> {
    machine.live.as_ref().and_then(|live| live.jobs.get(disk)).map(super::job::Job::view)
}
