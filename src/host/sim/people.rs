//! What people do to the simulated node behind the daemon's back. What cannot be done is not done.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::super::{HostEvent, Link, Result as HostResult};
use super::fault::Extent;
use super::files::{Content, FileKind, Image, MemoryFile};
use super::{AgentBehaviour, SimHost};
use crate::model::step::ImageRef;
use crate::model::vm::{Format, MemoryFormat, PauseReason, RunState};
use crate::model::{DiskTarget, VmId};

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

    /// Somebody resumes the VM. In the midst of a capture of its own libvirt refuses that.
    pub fn someone_resumes(&self, vm: VmId) {
        self.change(|world| {
            if !world.is_captured(vm) {
                world.set_run_state(vm, RunState::Running);
            }
        });
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
            world.is_not_left_on(vm, "it is saved");
            let disks = world.contents(vm);
            let Some(machine) = world.machines.get_mut(&vm) else { return };
            let Some(live) = &machine.live else { return };
            let (memory, bytes) = (live.memory, machine.memory_bytes);
            let mut sources = machine.active_images();
            sources.extend(unnoted.into_iter().map(|disk| (disk.clone(), machine.stored[&disk].clone())));
            machine.managed_save = Some(MemoryFile {
                vm,
                is_written: true,
                is_complete: true,
                bytes,
                format: MemoryFormat::Raw,
                memory,
                sources,
                disks,
            });
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

    /// Somebody makes an image larger, or smaller, beside the VM that may have it.
    pub fn someone_resizes_image(&self, path: &Path, bytes: u64) {
        if let Ok(image) = self.world().files.image_mut(path) {
            image.virtual_size = bytes;
        }
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

    /// Somebody writes a label on a VM. Nobody is told.
    pub fn someone_labels(&self, vm: VmId, key: &str, value: &str) {
        if let Some(machine) = self.world().machines.get_mut(&vm) {
            machine.labels.0.insert(key.to_owned(), value.to_owned());
        }
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
