//! What guests do on the simulated node, and what people do to it behind the daemon's back.
//!
//! Decides when a guest can write. What a guest reads is the oracle of every test: the contents, through the chain.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::super::{HostError, HostEvent, Link, Result as HostResult};
use super::fault::Extent;
use super::files::{BLOCK, Content, FileKind, Image, MemoryFile};
use super::machine::GuestMemory;
use super::world::World;
use super::{AgentBehaviour, SimHost};
use crate::model::step::ImageRef;
use crate::model::vm::{Format, PauseReason, RunState};
use crate::model::{DiskTarget, VmId};

/// Why a guest cannot do something.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GuestError {
    /// There is no process.
    #[error("the VM is off")]
    Off,
    /// Its processors stand still.
    #[error("the VM is paused")]
    Paused,
    /// The file system on the disk is frozen.
    #[error("the file system is frozen")]
    Frozen,
    /// There is no such disk.
    #[error("the guest has no such disk")]
    NoSuchDisk,
    /// The disk is not that large.
    #[error("the disk ends before that block")]
    BeyondTheEnd,
}

impl World {
    pub(super) fn guest_write(
        &mut self,
        vm: VmId,
        disk: &DiskTarget,
        block: u64,
        value: u64,
    ) -> Result<(), GuestError> {
        let live = self.machines.get_mut(&vm).and_then(|machine| machine.live.as_mut());
        let live = live.ok_or(GuestError::Off)?;
        if live.run_state != RunState::Running {
            return Err(GuestError::Paused);
        }
        let active = live.chains.get(disk).and_then(|chain| chain.first()).ok_or(GuestError::NoSuchDisk)?;
        if live.frozen.contains(disk) {
            return Err(GuestError::Frozen);
        }
        let active = active.path.clone();
        let end = self.files.image(&active).map(|image| image.virtual_size).unwrap_or_default();
        if (block + 1) * BLOCK > end {
            return Err(GuestError::BeyondTheEnd);
        }
        live.memory.counter += 1;
        if self.files.write(&active, block, value).is_err() {
            live.stalled.insert(disk.clone(), (block, value));
            self.set_run_state(vm, RunState::Paused(PauseReason::IoError));
            return Err(GuestError::Paused);
        }
        if let Some(job) = live.jobs.get_mut(disk).filter(|job| job.top == active)
            && job.guest_wrote(block)
            && self.files.write(job.target(), block, value).is_err()
        {
            // It is copied when there is room; the guest has nothing to do with it.
            job.has_to_copy(block);
        }
        self.cross_threshold(vm, &active);
        Ok(())
    }

    /// As `block-set-write-threshold`: it is told once.
    fn cross_threshold(&mut self, vm: VmId, path: &Path) {
        let Ok(facts) = self.files.facts(path, Format::Qcow2) else { return };
        let Some(live) = self.machines.get_mut(&vm).and_then(|machine| machine.live.as_mut()) else { return };
        if live.thresholds.get(path).is_some_and(|threshold| facts.length > *threshold) {
            live.thresholds.remove(path);
            self.emit(HostEvent::ThresholdCrossed(vm));
        }
    }

    /// See [`crate::host::Hypervisor::set_block_threshold`].
    pub(super) fn set_threshold(&mut self, vm: VmId, disk: &DiskTarget, bytes: u64) -> HostResult<()> {
        let live = self.live(vm, "watch an image grow")?;
        let chain = live.chains.get(disk).and_then(|chain| chain.first());
        let active = chain.ok_or_else(|| HostError::NoSuchDisk(disk.clone()))?.path.clone();
        live.thresholds.insert(active, bytes);
        Ok(())
    }

    /// What found no space is written now. QEMU does not tell the guest of it before that.
    pub(super) fn write_stalled(&mut self, vm: VmId) {
        let Some(live) = self.machines.get_mut(&vm).and_then(|machine| machine.live.as_mut()) else { return };
        for (disk, (block, value)) in std::mem::take(&mut live.stalled) {
            // One that fails stalls again.
            let _ = self.guest_write(vm, &disk, block, value);
        }
    }

    /// The image that a disk of a VM is written to, or would be after a start.
    fn active_image(&self, vm: VmId, disk: &DiskTarget) -> Option<ImageRef> {
        let machine = self.machines.get(&vm)?;
        match &machine.live {
            Some(live) => live.chains.get(disk)?.first().cloned(),
            None => machine.stored.get(disk).cloned(),
        }
    }

    /// What each disk of a VM reads: through the chains of the process, or as the headers say if it is off.
    pub(super) fn contents(&self, vm: VmId) -> BTreeMap<DiskTarget, Content> {
        let Some(machine) = self.machines.get(&vm) else { return BTreeMap::new() };
        match &machine.live {
            Some(live) => {
                live.chains.iter().map(|(disk, chain)| (disk.clone(), self.files.content(chain))).collect()
            }
            None => self.boot_contents(vm),
        }
    }

    /// What each disk of a VM would read after a cold start: as the stored definition and the headers say.
    fn boot_contents(&self, vm: VmId) -> BTreeMap<DiskTarget, Content> {
        let stored = self.machines.get(&vm).into_iter().flat_map(|machine| &machine.stored);
        stored
            .filter_map(|(disk, image)| Some((disk.clone(), self.files.chain(image).ok()?)))
            .map(|(disk, chain)| (disk, self.files.content(&chain)))
            .collect()
    }
}

/// What guests do.
impl SimHost {
    /// The guest writes one block.
    pub fn guest_write(&self, vm: VmId, disk: &DiskTarget, block: u64, value: u64) -> Result<(), GuestError> {
        self.world().guest_write(vm, disk, block, value)
    }

    /// What the guest reads from one block; of a VM that is off, what it would read after a start.
    pub fn guest_read(&self, vm: VmId, disk: &DiskTarget, block: u64) -> Result<u64, GuestError> {
        let contents = self.disk_contents(vm, disk).ok_or(GuestError::NoSuchDisk)?;
        Ok(contents.get(&block).copied().unwrap_or(0))
    }

    /// All that the guest reads from a disk; of a VM that is off, what it would read after a start. None if there is
    /// no such disk, or a chain is broken.
    #[must_use]
    pub fn disk_contents(&self, vm: VmId, disk: &DiskTarget) -> Option<Content> {
        self.world().contents(vm).remove(disk)
    }

    /// What the guest would read from its disks after a cold start, if all it has written were flushed.
    #[must_use]
    pub fn boot_contents(&self, vm: VmId) -> BTreeMap<DiskTarget, Content> {
        self.world().boot_contents(vm)
    }

    /// What the guest has in memory. None if it is off.
    #[must_use]
    pub fn guest_memory(&self, vm: VmId) -> Option<GuestMemory> {
        self.world().machines.get(&vm)?.live.as_ref().map(|live| live.memory)
    }

    /// How large the guest sees a disk, in bytes; of a VM that is off, how large it would. None if there is no such disk.
    #[must_use]
    pub fn disk_size(&self, vm: VmId, disk: &DiskTarget) -> Option<u64> {
        let world = self.world();
        let active = world.active_image(vm, disk)?;
        world.files.image(&active.path).ok().map(|image| image.virtual_size)
    }

    /// How large an image is for who reads it, in bytes.
    pub fn image_size(&self, path: &Path) -> HostResult<u64> {
        Ok(self.world().files.image(path)?.virtual_size)
    }

    /// What an image reads through its chain, as a fresh process would see it.
    pub fn read_image(&self, path: &Path) -> HostResult<Content> {
        let world = self.world();
        let format = world.files.image(path)?.format;
        let chain = world.files.chain(&ImageRef { path: path.to_owned(), format })?;
        Ok(world.files.content(&chain))
    }

    /// Whether any file system of the guest is frozen.
    #[must_use]
    pub fn is_guest_frozen(&self, vm: VmId) -> bool {
        let world = self.world();
        let live = world.machines.get(&vm).and_then(|machine| machine.live.as_ref());
        live.is_some_and(|live| !live.frozen.is_empty())
    }

    /// The file with the UEFI variables of a VM.
    #[must_use]
    pub fn variables(&self, vm: VmId) -> Option<PathBuf> {
        self.world().machines.get(&vm).and_then(|machine| machine.variables.clone())
    }

    /// The VM of this name.
    #[must_use]
    pub fn find_vm(&self, name: &str) -> Option<VmId> {
        self.world().machines.iter().find(|(_, machine)| machine.name == name).map(|(id, _)| *id)
    }

    /// What the VM does, whatever the link says. None if there is no such VM.
    #[must_use]
    pub fn run_state(&self, vm: VmId) -> Option<RunState> {
        self.world().machines.get(&vm).map(super::machine::Machine::run_state)
    }
}

/// What people do behind the daemon's back. What cannot be done is not done.
impl SimHost {
    /// Somebody starts the VM.
    pub fn someone_starts(&self, vm: VmId) {
        self.change(|world| drop(world.boot(vm, false, Extent::Whole)));
    }

    /// The VM ends: somebody killed it, or the guest shut down.
    pub fn someone_stops(&self, vm: VmId) {
        self.change(|world| drop(world.stop(vm)));
    }

    /// Somebody, or a disk error, pauses the VM.
    pub fn someone_pauses(&self, vm: VmId, reason: PauseReason) {
        self.change(|world| world.set_run_state(vm, RunState::Paused(reason)));
    }

    /// The length of its image that is to be told of, for a disk of a VM that runs.
    #[must_use]
    pub fn block_threshold(&self, vm: VmId, disk: &DiskTarget) -> Option<u64> {
        let world = self.world();
        let active = world.active_image(vm, disk)?;
        world.machines.get(&vm)?.live.as_ref()?.thresholds.get(&active.path).copied()
    }

    /// Somebody resumes the VM.
    pub fn someone_resumes(&self, vm: VmId) {
        self.change(|world| world.set_run_state(vm, RunState::Running));
    }

    /// The VM is in a state that nobody may touch: suspended by its guest, or on its way down.
    pub fn becomes_unsettled(&self, vm: VmId) {
        self.change(|world| world.set_run_state(vm, RunState::Unsettled));
    }

    /// The image that the process writes to; of a VM that is off, the one that its definition names.
    #[must_use]
    pub fn image_of(&self, vm: VmId, disk: &DiskTarget) -> Option<PathBuf> {
        self.world().active_image(vm, disk).map(|image| image.path)
    }

    /// Somebody saves the VM's memory for the next start, and stops it. The saved state names the images that the hypervisor
    /// believes in: of a switch that it has not noted, those from before.
    pub fn someone_saves(&self, vm: VmId) {
        let unnoted = self.unnoted_switches(vm);
        self.change(|world| {
            let disks = world.contents(vm);
            let Some(machine) = world.machines.get_mut(&vm) else { return };
            let Some(live) = &machine.live else { return };
            let (memory, bytes) = (live.memory, machine.memory_bytes);
            let mut sources = machine.active_images();
            sources.extend(unnoted.into_iter().map(|disk| (disk.clone(), machine.stored[&disk].clone())));
            machine.managed_save = Some(MemoryFile { vm, is_complete: true, bytes, memory, sources, disks });
            drop(world.stop(vm));
        });
    }

    /// Somebody removes what was saved of the VM's memory.
    pub fn someone_removes_saved_state(&self, vm: VmId) {
        self.change(|world| {
            if let Some(machine) = world.machines.get_mut(&vm) {
                machine.managed_save = None;
            }
        });
    }

    /// Somebody undefines the VM. A process goes on without a definition.
    pub fn someone_undefines(&self, vm: VmId) {
        self.change(|world| {
            let Some(machine) = world.machines.get_mut(&vm) else { return };
            machine.is_persistent = false;
            if machine.live.is_none() {
                world.machines.remove(&vm);
            }
            world.emit(HostEvent::VmChanged(vm));
        });
    }

    /// Somebody asks the agent to freeze all file systems, or to thaw them. A guest that stands still is not asked.
    pub fn someone_freezes(&self, vm: VmId, is_frozen: bool) {
        self.change(|world| {
            let live = world.machines.get_mut(&vm).and_then(|machine| machine.live.as_mut());
            if let Some(live) = live.filter(|live| live.run_state == RunState::Running) {
                live.frozen = if is_frozen { live.chains.keys().cloned().collect() } else { BTreeSet::new() };
            }
        });
    }

    /// Somebody undefines a VM that is off, and keeps its definition elsewhere.
    pub fn someone_takes_away(&self, vm: VmId) {
        self.change(|world| {
            if world.machines.get(&vm).is_none_or(|machine| machine.live.is_some()) {
                return;
            }
            if let Some(machine) = world.machines.remove(&vm) {
                world.away.insert(vm, machine);
                world.emit(HostEvent::VmChanged(vm));
            }
        });
    }

    /// Somebody defines a VM again as it was when it was taken away.
    pub fn someone_brings_back(&self, vm: VmId) {
        self.change(|world| {
            if let Some(machine) = world.away.remove(&vm) {
                world.machines.insert(vm, machine);
                world.emit(HostEvent::VmChanged(vm));
            }
        });
    }

    /// Somebody lets a live VM go on on another node. Its definition stays.
    pub fn someone_migrates(&self, vm: VmId) {
        self.change(|world| drop(world.migrate(vm)));
    }

    /// Whether the VM runs on another node.
    #[must_use]
    pub fn is_elsewhere(&self, vm: VmId) -> bool {
        self.world().machines.get(&vm).is_some_and(|machine| machine.elsewhere.is_some())
    }

    /// The hypervisor starts anew, and does not know any more that the VM has migrated.
    pub fn forgets_migration(&self, vm: VmId) {
        self.change(|world| {
            if let Some(machine) = world.machines.get_mut(&vm) {
                machine.is_known_to_have_left = false;
            }
        });
    }

    /// A VM that has migrated begins to come back: it is here, and its guest executes on the other node until all is copied.
    pub fn someone_begins_to_bring_home(&self, vm: VmId) {
        self.change(|world| {
            let Some(elsewhere) = world.machines.get_mut(&vm).and_then(|machine| machine.elsewhere.take())
            else {
                return;
            };
            drop(world.boot(vm, true, Extent::Whole));
            world.set_run_state(vm, RunState::Paused(PauseReason::Snapshot));
            if let Some(machine) = world.machines.get_mut(&vm) {
                machine.elsewhere = Some(elsewhere);
            }
        });
    }

    /// A VM that has migrated is back, or has ended on the other node.
    pub fn someone_brings_home(&self, vm: VmId, runs: bool) {
        self.change(|world| {
            if let Some(machine) = world.machines.get_mut(&vm) {
                machine.elsewhere = None;
            }
            if runs {
                drop(world.boot(vm, false, Extent::Whole));
                world.set_run_state(vm, RunState::Running);
            } else {
                drop(world.stop(vm));
            }
        });
    }

    /// Somebody merges the layers from `top` down to just above `base` into that, of a VM that runs, as `virsh blockcommit`
    /// does. If `top` is the active layer, the VM writes to the base then. The files stay.
    pub fn someone_commits(&self, vm: VmId, disk: &DiskTarget, top: &Path, base: &Path) {
        self.change(|world| world.commit_by_hand(vm, disk, top, base));
    }

    /// Somebody lets a disk lie on nothing, of a VM that runs, as `virsh blockpull` does. The files stay.
    pub fn someone_pulls(&self, vm: VmId, disk: &DiskTarget) {
        self.change(|world| world.pull_by_hand(vm, disk));
    }

    /// Somebody lets the VM have no such disk any more.
    pub fn someone_unplugs(&self, vm: VmId, disk: &DiskTarget) {
        self.change(|world| {
            let Some(machine) = world.machines.get_mut(&vm) else { return };
            machine.slots.retain(|slot| slot.target != *disk);
            machine.stored.remove(disk);
            if let Some(live) = &mut machine.live {
                live.chains.remove(disk);
            }
            world.emit(HostEvent::VmChanged(vm));
        });
    }

    /// The hypervisor keeps a snapshot of its own, for which these images were made; with none it forgets it.
    pub fn someone_keeps_a_snapshot(&self, vm: VmId, name: &str, images: &[&Path]) {
        self.change(|world| {
            let Some(machine) = world.machines.get_mut(&vm) else { return };
            machine.snapshots.retain(|(known, _)| known != name);
            if !images.is_empty() {
                let images = images.iter().map(|image| image.to_path_buf()).collect();
                machine.snapshots.push((name.to_owned(), images));
            }
        });
    }

    /// Somebody makes a disk larger, of a VM that runs or not. Nothing happens if it is not larger, or a block job has the
    /// disk (QEMU: "node is busy").
    pub fn someone_resizes(&self, vm: VmId, disk: &DiskTarget, bytes: u64) {
        self.change(|world| {
            let live = world.machines.get(&vm).and_then(|machine| machine.live.as_ref());
            let is_busy = live.is_some_and(|live| live.jobs.contains_key(disk));
            let active = world.active_image(vm, disk).filter(|_| !is_busy);
            if let Some(Ok(image)) = active.map(|active| world.files.image_mut(&active.path)) {
                image.virtual_size = image.virtual_size.max(bytes);
            }
        });
    }

    /// Somebody lets the stored definition name another image, whatever the process uses.
    pub fn someone_redefines(&self, vm: VmId, disk: &DiskTarget, image: ImageRef) {
        self.change(|world| {
            if let Some(machine) = world.machines.get_mut(&vm) {
                machine.stored.insert(disk.clone(), image);
            }
            world.emit(HostEvent::VmChanged(vm));
        });
    }

    /// The disks of a live VM that write to an image below the one that its definition names: QEMU has pivoted, and the
    /// hypervisor has not noted it. Each with that image.
    #[must_use]
    pub fn unnoted_pivots(&self, vm: VmId) -> Vec<(DiskTarget, ImageRef)> {
        let world = self.world();
        let Some(machine) = world.machines.get(&vm).filter(|machine| machine.live.is_some()) else {
            return Vec::new();
        };
        let is_below = |disk: &DiskTarget, image: &ImageRef| {
            let chain = machine.stored.get(disk).and_then(|stored| world.files.chain(stored).ok());
            chain.is_some_and(|chain| chain.iter().skip(1).any(|below| below == image))
        };
        machine.active_images().into_iter().filter(|(disk, image)| is_below(disk, image)).collect()
    }

    /// The disks of a live VM that write to an image above the one that its definition names: QEMU has switched, and the
    /// hypervisor has not noted it.
    #[must_use]
    pub fn unnoted_switches(&self, vm: VmId) -> Vec<DiskTarget> {
        let world = self.world();
        let Some(machine) = world.machines.get(&vm) else { return Vec::new() };
        let Some(live) = &machine.live else { return Vec::new() };
        let is_above = |disk: &&DiskTarget| {
            let stored = machine.stored.get(*disk);
            stored.is_some_and(|stored| live.chains[*disk].iter().skip(1).any(|below| below == stored))
        };
        live.chains.keys().filter(is_above).cloned().collect()
    }

    /// Somebody puts an overlay on what a running VM writes to, as `virsh snapshot-create-as` does.
    pub fn someone_overlays(&self, vm: VmId, disk: &DiskTarget, path: &Path) {
        self.change(|world| {
            let Some(below) = world.active_image(vm, disk) else { return };
            let Ok(virtual_size) = world.files.image(&below.path).map(|image| image.virtual_size) else {
                return;
            };
            let kind = FileKind::Image(Image {
                format: Format::Qcow2,
                virtual_size,
                backing: Some(below),
                blocks: Content::new(),
                is_template: false,
            });
            let overlay = ImageRef { path: path.to_owned(), format: Format::Qcow2 };
            if world.files.create(path, kind).is_ok() {
                world.switch_live(vm, &[(disk.clone(), overlay)], Extent::Whole);
            }
        });
    }

    /// The hypervisor believes something wrong of the images that the VM uses, because it died before it could note a
    /// switch: no look at the VM succeeds any more, until it stops.
    pub fn becomes_known_wrongly(&self, vm: VmId) {
        self.change(|world| world.know_wrongly(vm));
    }

    /// The stored definition lists the images below the one that it names. If the hypervisor dies before it notes how a
    /// block job has ended, it lists them for ever: of a job below the active layer it does not know here.
    pub fn definition_lists_its_chain(&self, vm: VmId, disk: &DiskTarget) {
        self.change(|world| {
            let Some(machine) = world.machines.get_mut(&vm) else { return };
            let chain = machine.stored.get(disk).and_then(|stored| world.files.chain(stored).ok());
            let below = chain.unwrap_or_default().into_iter().skip(1).map(|image| image.path);
            machine.listed.insert(disk.clone(), below.collect());
        });
    }

    /// Whether it is so now.
    #[must_use]
    pub fn is_known_wrongly(&self, vm: VmId) -> bool {
        let world = self.world();
        let live = world.machines.get(&vm).and_then(|machine| machine.live.as_ref());
        live.is_some_and(|live| live.is_known_wrongly)
    }

    /// A block job ends early: the base stays a mixture.
    pub fn someone_aborts_block_job(&self, vm: VmId, disk: &DiskTarget) {
        self.change(|world| world.drop_job(vm, disk));
    }

    /// Somebody writes to an image file directly.
    pub fn write_image(&self, path: &Path, block: u64, value: u64) -> HostResult<()> {
        self.world().files.write(path, block, value)
    }

    /// Somebody removes a file.
    pub fn someone_removes(&self, path: &Path) {
        self.world().files.remove(path);
    }

    /// Somebody gives a file another name.
    pub fn someone_moves(&self, from: &Path, to: &Path) {
        drop(self.world().files.rename(from, to));
    }

    /// Somebody copies a file elsewhere and back.
    pub fn someone_replaces(&self, path: &Path) {
        self.world().files.renew(path);
    }

    /// Somebody moves a file elsewhere and puts a link to it in its place.
    pub fn someone_links(&self, path: &Path) {
        self.world().files.make_link(path);
    }

    /// Somebody cuts the end of a file off, and with it a block.
    pub fn someone_truncates(&self, path: &Path) {
        if let Ok(image) = self.world().files.image_mut(path) {
            image.blocks.pop_last();
        }
    }

    /// Somebody cuts a file off to nothing: there is no image in it any more.
    pub fn someone_blanks(&self, path: &Path) {
        self.world().files.blank(path);
    }

    /// Somebody puts an image without backing at a path: a template, if nobody may write to it.
    pub fn put_image(
        &self,
        path: &Path,
        format: Format,
        virtual_size: u64,
        is_template: bool,
    ) -> HostResult<()> {
        let image = Image { format, virtual_size, blocks: Content::new(), backing: None, is_template };
        self.world().files.create(path, FileKind::Image(image))
    }

    /// The guest agent changes its ways.
    pub fn set_agent(&self, vm: VmId, behaviour: AgentBehaviour) {
        self.change(|world| world.set_agent(vm, behaviour));
    }

    /// From now on so many bytes are free.
    pub fn set_free_space(&self, bytes: u64) {
        self.world().files.set_free(bytes);
    }

    /// The link to the hypervisor breaks, or comes back.
    pub fn set_link(&self, link: Link) {
        self.change(|world| world.set_link(link));
    }
}
