//! Simulated VMs that start, stop and resume.
//!
//! Decides when a start is refused, and what a guest finds in memory and on its disks. A guest whose memory does not
//! fit its disks is corrupt: that is a violation.

use std::collections::{BTreeMap, BTreeSet};

use super::super::{Definition, HostError, HostEvent, Result, StartFrom};
use super::agent::AgentBehaviour;
use super::background::NO_BACKGROUND;
use super::fault::Extent;
use super::files::MemoryFile;
use super::machine::{Described, GuestMemory, Live, Machine, Slot, SlotKind};
use super::view::check_definition;
use super::world::{World, refused};
use crate::model::step::{ImageRef, NewVm};
use crate::model::vm::{Format, PauseReason, RunState};
use crate::model::{DiskTarget, Labels, VmId};

const CALL: &str = "start the VM";

impl World {
    /// See [`crate::host::Hypervisor::start`]. Half of it: there is a process, and its processors stand still. One that boots
    /// is not up then, and the hypervisor ends it soon.
    pub(super) fn start(&mut self, vm: VmId, how: &StartFrom, paused: bool, extent: Extent) -> Result<()> {
        self.is_let_alone(vm, "is started");
        match how {
            StartFrom::Disks => self.boot(vm, paused, extent),
            StartFrom::Memory { image, definition, disks } => {
                let sources = sources(definition, disks)?;
                let memory = self.files.memory(image).map_err(|error| refused(CALL, error.to_string()))?;
                if !memory.is_complete || memory.vm != vm || sources.vm != vm {
                    return Err(refused(CALL, "the memory image is not one of this VM, or not complete"));
                }
                let memory = memory.clone();
                self.launch(vm, &sources.disks, Some(memory), (paused, PauseReason::Snapshot), extent)
            }
        }
    }

    /// Starts a VM from its stored definition. A managed save comes first: it has a definition of its own, with the
    /// images of then, whatever the stored one names by now.
    pub(super) fn boot(&mut self, vm: VmId, paused: bool, extent: Extent) -> Result<()> {
        let machine = self.machine(vm)?;
        let memory = machine.managed_save.clone();
        let disks = memory.as_ref().map_or_else(|| machine.stored.clone(), |saved| saved.sources.clone());
        let machine = self.machines.get(&vm).ok_or(HostError::NoSuchVm(vm))?;
        for (disk, stored) in machine.stored.iter().filter(|_| memory.is_none()) {
            let chain = self.files.chain(stored).map_err(|error| refused(CALL, error.to_string()))?;
            check_definition(machine, disk, &chain).map_err(|error| refused(CALL, error.to_string()))?;
        }
        self.launch(vm, &disks, memory, (paused, PauseReason::User), extent)?;
        self.machine(vm)?.managed_save = None;
        Ok(())
    }

    fn launch(
        &mut self,
        vm: VmId,
        disks: &BTreeMap<DiskTarget, ImageRef>,
        memory: Option<MemoryFile>,
        (paused, reason): (bool, PauseReason),
        extent: Extent,
    ) -> Result<()> {
        if self.machine(vm)?.live.is_some() {
            return Err(refused(CALL, "the VM is on already"));
        }
        let mut chains = BTreeMap::new();
        for (disk, image) in disks {
            let chain = self.files.chain(image).map_err(|error| refused(CALL, error.to_string()))?;
            self.check_locks(vm, &chain)?;
            self.check_formats(vm, &chain);
            chains.insert(disk.clone(), chain);
        }
        if let Some(memory) = &memory {
            self.check_memory(vm, memory, &chains);
        }
        self.boots += 1;
        let fresh = GuestMemory { counter: 0, token: self.boots };
        let run_state = match (extent, paused) {
            (Extent::Half, _) if memory.is_none() => RunState::Unsettled,
            (Extent::Half, _) => RunState::Paused(PauseReason::Snapshot),
            (Extent::Whole, true) => RunState::Paused(reason),
            (Extent::Whole, false) => RunState::Running,
        };
        let process = self.boots;
        // Whoever lets it run here knows that it does not run there.
        self.machine(vm)?.elsewhere = None;
        self.machine(vm)?.is_known_to_have_left = false;
        self.machine(vm)?.live = Some(Live {
            process,
            run_state,
            chains,
            memory: memory.map_or(fresh, |memory| memory.memory),
            writes: 0,
            frozen: BTreeSet::new(),
            jobs: BTreeMap::new(),
            loads: BTreeMap::new(),
            served: BTreeMap::new(),
            limits: BTreeMap::new(),
            capture: None,
            background: None,
            stalled: BTreeMap::new(),
            thresholds: BTreeMap::new(),
            is_known_wrongly: false,
            is_coming_up: run_state == RunState::Unsettled,
        });
        self.emit(HostEvent::VmChanged(vm));
        Ok(())
    }

    /// A live VM goes on on another node. What would come in the way of that there does so here. The definition stays.
    pub(super) fn migrate(&mut self, vm: VmId) -> Result<()> {
        const CALL: &str = "migrate the VM";
        let live = self.live(vm, CALL)?;
        // QEMU refuses what libvirt asks for in a migration as long as nobody has ended a background capture.
        let is_at_work = !live.jobs.is_empty() || live.capture.is_some() || live.background.is_some();
        if is_at_work || live.is_coming_up || live.is_known_wrongly {
            return Err(refused(CALL, "it has a job"));
        }
        let chains = self.live(vm, CALL)?.chains.clone();
        let machine = self.machine(vm)?;
        if machine.active_images() != machine.stored {
            return Err(refused(CALL, "its definition is not what it uses"));
        }
        self.stop(vm)?;
        if let Some(machine) = self.machines.get_mut(&vm) {
            machine.elsewhere = Some(chains);
            machine.has_left_unseen = true;
            machine.is_known_to_have_left = true;
        }
        self.emit(HostEvent::VmMigrated(vm));
        Ok(())
    }

    /// As libvirtd does with what the one before it had not brought up. It can be looked at before that.
    pub(super) fn end_what_is_not_up(&mut self, vm: VmId) {
        let live = self.machines.get(&vm).and_then(|machine| machine.live.as_ref());
        if live.is_some_and(|live| live.is_coming_up) {
            self.stop(vm).expect("it has a process");
        }
    }

    /// The active image is opened for writing, those below it for reading. Readers share, a writer does not.
    fn check_locks(&self, vm: VmId, chain: &[ImageRef]) -> Result<()> {
        for (depth, image) in chain.iter().enumerate() {
            let is_locked = if depth == 0 {
                self.is_open_elsewhere(&image.path, vm)
            } else {
                self.is_written_elsewhere(&image.path, vm)
            };
            if is_locked {
                return Err(refused(CALL, format!("{} is locked by another process", image.path.display())));
            }
        }
        Ok(())
    }

    fn check_formats(&mut self, vm: VmId, chain: &[ImageRef]) {
        let wrong = chain.iter().find(|image| {
            image.format == Format::Raw
                && self.files.image(&image.path).is_ok_and(|found| found.format == Format::Qcow2)
        });
        if let Some(image) = wrong {
            self.violate(format!("VM {vm} reads the qcow2 image {} as raw", image.path.display()));
        }
    }

    fn check_memory(&mut self, vm: VmId, memory: &MemoryFile, chains: &BTreeMap<DiskTarget, Vec<ImageRef>>) {
        for (disk, then) in &memory.disks {
            let now = chains.get(disk).map(|chain| self.files.content(chain)).unwrap_or_default();
            if now != *then {
                self.violate(format!(
                    "VM {vm} is resumed over a disk {disk} that has changed: it is corrupt"
                ));
            }
        }
    }

    /// Ends a process. Its block jobs vanish, whatever they have done so far.
    pub(super) fn stop(&mut self, vm: VmId) -> Result<()> {
        self.live(vm, "end the VM's process")?;
        self.break_capture(vm, "the VM has stopped");
        let machine = self.machine(vm)?;
        machine.live = None;
        if !machine.is_persistent {
            self.machines.remove(&vm);
        }
        self.emit(HostEvent::VmChanged(vm));
        Ok(())
    }

    /// See [`crate::host::Hypervisor::resume`].
    pub(super) fn resume(&mut self, vm: VmId) -> Result<()> {
        const CALL: &str = "resume the VM";
        let live = self.live(vm, CALL)?;
        if live.capture.is_some() {
            return Err(HostError::Busy("memory is being captured".into()));
        }
        match live.run_state {
            RunState::Paused(_) => {
                self.set_run_state(vm, RunState::Running);
                Ok(())
            }
            RunState::Running | RunState::Off | RunState::Migrated | RunState::Unsettled => {
                Err(refused(CALL, "the VM is not paused"))
            }
        }
    }

    /// See [`crate::host::Hypervisor::point_disks`].
    pub(super) fn point_disks(&mut self, vm: VmId, disks: &[(DiskTarget, ImageRef)]) -> Result<()> {
        self.is_let_alone(vm, "is pointed at other images");
        let machine = self.machine(vm)?;
        if let Some((disk, _)) = disks.iter().find(|(disk, _)| !machine.stored.contains_key(disk)) {
            return Err(HostError::NoSuchDisk(disk.clone()));
        }
        machine.stored.extend(disks.iter().cloned());
        machine.listed.retain(|listed, _| !disks.iter().any(|(disk, _)| disk == listed));
        self.emit(HostEvent::VmChanged(vm));
        Ok(())
    }

    /// See [`crate::host::Hypervisor::define`]. Who has a definition here has disks that are chains, and an agent.
    pub(super) fn define(&mut self, definition: &Definition, new: &NewVm) -> Result<()> {
        const CALL: &str = "define the VM";
        let described: Described =
            serde_json::from_str(&definition.0).map_err(|error| malformed(error.into()))?;
        let is_taken = |(id, machine): (&VmId, &Machine)| *id == new.vm || machine.name == new.name.as_str();
        if self.machines.iter().any(is_taken) {
            return Err(refused(CALL, "there is such a VM already"));
        }
        if let Some((disk, _)) = new.disks.iter().find(|(disk, _)| !described.disks.contains_key(disk)) {
            return Err(HostError::NoSuchDisk(disk.clone()));
        }
        let slot =
            |(target, _): &(DiskTarget, ImageRef)| Slot { target: target.clone(), kind: SlotKind::Chain };
        let machine = Machine {
            name: new.name.to_string(),
            labels: Labels(described.labels),
            is_persistent: true,
            memory_bytes: 256 << 20,
            memory_blocker: None,
            background_blocker: Some(NO_BACKGROUND.to_owned()),
            pull_blocker: None,
            variables: new.variables.clone(),
            uncovered: Vec::new(),
            snapshots: Vec::new(),
            other_files: Vec::new(),
            unnamed_disks: Vec::new(),
            agent: AgentBehaviour::Obeys,
            slots: new.disks.iter().map(slot).collect(),
            stored: new.disks.iter().cloned().collect(),
            managed_save: None,
            listed: BTreeMap::new(),
            live: None,
            elsewhere: None,
            has_left_unseen: false,
            is_known_to_have_left: false,
            capture_notches: 0,
            background_notches: 0,
            written: BTreeMap::new(),
        };
        self.machines.insert(new.vm, machine);
        self.emit(HostEvent::VmChanged(new.vm));
        Ok(())
    }

    /// See [`crate::host::Hypervisor::undefine`].
    pub(super) fn undefine(&mut self, vm: VmId) -> Result<()> {
        if self.machines.get(&vm).is_some_and(|machine| machine.live.is_some()) {
            return Err(refused("undefine the VM", "it is live"));
        }
        if let Some(machine) = self.machines.remove(&vm) {
            // They are the VM's own, and go with it.
            machine.variables.iter().for_each(|path| self.files.remove(path));
            self.emit(HostEvent::VmChanged(vm));
        }
        Ok(())
    }

    /// See [`crate::host::Hypervisor::definition`].
    pub(super) fn definition(&mut self, vm: VmId) -> Result<Definition> {
        let machine = self.machine(vm)?;
        let (disks, labels) = (machine.active_images(), machine.labels.0.clone());
        let text = serde_json::to_string(&Described { vm, disks, labels });
        text.map(Definition).map_err(|error| malformed(error.into()))
    }
}

/// The disks of a definition, with other images.
fn sources(definition: &Definition, disks: &[(DiskTarget, ImageRef)]) -> Result<Described> {
    let mut described: Described =
        serde_json::from_str(&definition.0).map_err(|error| malformed(error.into()))?;
    for (disk, image) in disks {
        let source = described.disks.get_mut(disk).ok_or_else(|| HostError::NoSuchDisk(disk.clone()))?;
        *source = image.clone();
    }
    Ok(described)
}

fn malformed(cause: super::super::error::Cause) -> HostError {
    HostError::Malformed { what: "the definition of the VM", cause }
}
