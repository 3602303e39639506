//! What everything must read, at every turn. It learns only from what guests write and from what was asked for; what the
//! catalog says is never its source.
//!
//! The content of a disk changes when its guest writes, and when a revert that somebody asked for takes place: never
//! else. A snapshot reads for ever what its disks read when they were switched away from its images.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use vmsnap::host::sim::{Content, GuestMemory, SimHost};
use vmsnap::model::{
    CloneState, Consistency, DiskTarget, LayerTree, OperationId, RunState, Snapshot, SnapshotId,
    SnapshotState, VmId, VolumeId,
};

use crate::node::{Node, at_once};
use crate::simulated::{Disks, Reading, ensure};

/// All that is known to be true.
#[derive(Default)]
pub struct Oracle {
    pub vms: BTreeMap<VmId, VmTruth>,
    pub snapshots: BTreeMap<SnapshotId, SnapshotTruth>,
    pub clones: BTreeMap<VolumeId, Reading>,
    /// Reverts that may take place now.
    pub reverts: Vec<Revert>,
    /// Snapshots and clones that somebody wants gone, with how many requests say so.
    pub doomed: BTreeMap<SnapshotId, u32>,
    pub doomed_clones: BTreeSet<VolumeId>,
    /// What an image held when a VM ceased to write to it.
    left: BTreeMap<PathBuf, Left>,
    /// The files from before the first snapshot.
    pub first_files: BTreeSet<PathBuf>,
}

/// A VM.
pub struct VmTruth {
    /// What each disk writes to, as last seen.
    active: BTreeMap<DiskTarget, PathBuf>,
    pub reads: Disks,
    /// What its process had in memory, as last seen.
    memory: Option<GuestMemory>,
    pub is_frozen_by_somebody: bool,
    /// Somebody, or a mishap, may have stopped it.
    pub may_be_off: bool,
    /// Somebody, or a mishap, may have paused it.
    pub may_be_paused: bool,
    /// The write of each disk that found no room: it is made when the VM goes on.
    pub stalled: BTreeMap<DiskTarget, (u64, u64)>,
}

impl VmTruth {
    /// What the disks read when the writes that found no room are made.
    fn with_stalled_writes(&self) -> Disks {
        let mut reads = self.reads.clone();
        for (disk, (block, value)) in &self.stalled {
            reads.get_mut(disk).unwrap().content.insert(*block, *value);
        }
        reads
    }
}

/// A snapshot.
pub struct SnapshotTruth {
    pub vm: VmId,
    pub disks: Disks,
    /// What its memory image holds, if it has one.
    pub memory: Option<GuestMemory>,
    pub was_paused: bool,
}

/// A revert that was asked for.
pub struct Revert {
    pub key: String,
    pub vm: VmId,
    pub target: Disks,
    /// What the guest goes on with, if the snapshot has memory.
    memory: Option<GuestMemory>,
    /// A process was seen that reads the target, and goes on with that memory.
    has_resumed: bool,
    /// What the disks read before it took place.
    before: Disks,
    /// The VM was seen to read the target since it was asked for.
    is_seen: bool,
    /// It reads the target instead of what it read before.
    has_switched: bool,
}

/// What an image held.
#[derive(Clone)]
struct Left {
    reading: Reading,
    was_frozen: bool,
    memory: Option<Between>,
}

/// What a guest had in memory at a moment between two looks at it.
#[derive(Clone, Copy)]
struct Between {
    before: GuestMemory,
    /// None if its process has ended since.
    after: Option<GuestMemory>,
}

impl Between {
    fn has(&self, memory: GuestMemory) -> bool {
        let after = self.after.filter(|after| after.token == memory.token);
        memory.token == self.before.token
            && memory.counter >= self.before.counter
            && after.is_none_or(|after| memory.counter <= after.counter)
    }
}

impl Oracle {
    pub fn new(sim: &SimHost, vms: &[VmId]) -> Self {
        let mut oracle = Self { first_files: sim.files().into_iter().collect(), ..Self::default() };
        for vm in vms {
            let truth = VmTruth {
                active: images(sim, *vm),
                reads: readings(sim, *vm),
                memory: sim.guest_memory(*vm),
                is_frozen_by_somebody: false,
                may_be_off: false,
                may_be_paused: false,
                stalled: BTreeMap::new(),
            };
            oracle.vms.insert(*vm, truth);
        }
        oracle
    }

    pub fn vm(&mut self, vm: VmId) -> &mut VmTruth {
        self.vms.get_mut(&vm).unwrap()
    }

    /// Somebody wants a VM back at what these disks read.
    pub fn wants_back(&mut self, key: &str, vm: VmId, target: Disks, memory: Option<GuestMemory>) {
        let revert = Revert {
            key: key.to_owned(),
            vm,
            target,
            memory,
            has_resumed: false,
            before: self.vms[&vm].reads.clone(),
            is_seen: false,
            has_switched: false,
        };
        self.reverts.push(revert);
    }

    /// A revert has ended, or was refused.
    pub fn revert_ended(&mut self, sim: &SimHost, key: &str, has_succeeded: bool) -> Result<(), String> {
        let Some(at) = self.reverts.iter().position(|revert| revert.key == key) else { return Ok(()) };
        if sim.run_state(self.reverts[at].vm).is_none() {
            // It was taken away in the meantime, and is looked at when it is back.
            self.reverts[at].key.clear();
            return Ok(());
        }
        let revert = self.reverts.remove(at);
        ensure(!has_succeeded || revert.is_seen, || format!("{key} has succeeded, and was never seen"))?;
        // One that somebody has stopped since has no memory to look at.
        let has_resumed = revert.memory.is_none() || revert.has_resumed || self.vms[&revert.vm].may_be_off;
        ensure(!has_succeeded || has_resumed, || format!("{key} has succeeded, without the memory"))?;
        ensure(has_succeeded || !revert.has_switched, || format!("{key} has failed, and is not undone"))
    }

    /// Somebody who wanted a snapshot gone does so no more.
    pub fn may_stay(&mut self, id: SnapshotId) {
        let count = self.doomed.entry(id).or_insert(1);
        *count -= 1;
        if *count == 0 {
            self.doomed.remove(&id);
        }
    }

    /// Looks at what a VM reads and writes to.
    fn look_at(&mut self, sim: &SimHost, vm: VmId) -> Result<(), String> {
        let (active, reads) = (images(sim, vm), readings(sim, vm));
        if active.is_empty() {
            // It is elsewhere.
            return Ok(());
        }
        let (is_frozen, memory) = (sim.is_guest_frozen(vm), sim.guest_memory(vm));
        let truth = self.vms.get_mut(&vm).unwrap();
        let before = truth.reads.clone();
        if reads != truth.reads && reads == truth.with_stalled_writes() {
            truth.reads = reads.clone();
        }
        if sim.run_state(vm).is_none_or(|state| !matches!(state, RunState::Paused(_))) {
            // They are made, or their process is gone.
            truth.stalled.clear();
        }
        for (disk, path) in truth.active.iter().filter(|(disk, path)| active.get(*disk) != Some(*path)) {
            // A write that had found no room may have been made before the VM ceased to write to it, or after that.
            let of_now = read_image(sim, path).ok();
            let is_it = |reading: &&&Reading| of_now.as_ref() == Some(**reading);
            let reading = [&before[disk], &truth.reads[disk]].iter().find(is_it).copied();
            let reading = reading.unwrap_or(&before[disk]).clone();
            let between = truth.memory.map(|before| Between { before, after: memory });
            let left = Left { reading, was_frozen: is_frozen, memory: between };
            self.left.insert(path.clone(), left);
        }
        // What a merge has brought back is written to again.
        self.left.retain(|path, _| !active.values().any(|active| active == path));
        if reads != truth.reads {
            let revert = self.reverts.iter_mut().find(|revert| {
                revert.vm == vm && (overlaid(&truth.reads, &revert.target) == reads || revert.before == reads)
            });
            let revert = revert.ok_or_else(|| {
                format!(
                    "{} reads {reads:?}, not {:?}; it writes to {active:?}",
                    name_of(sim, vm),
                    truth.reads
                )
            })?;
            revert.has_switched = !revert.has_switched;
            if revert.has_switched {
                revert.before = std::mem::replace(&mut truth.reads, reads);
            } else {
                truth.reads = reads;
            }
        }
        truth.active = active;
        truth.memory = memory;
        for revert in self.reverts.iter_mut().filter(|revert| revert.vm == vm) {
            let is_seen = overlaid(&truth.reads, &revert.target) == truth.reads;
            revert.is_seen |= is_seen;
            let tokens = [memory, revert.memory].map(|memory| memory.map(|memory| memory.token));
            revert.has_resumed |= is_seen && tokens[0] == tokens[1];
        }
        Ok(())
    }

    /// Looks at what a VM's snapshots and clones read. Gives how many were read.
    fn look_at_tree(&mut self, sim: &SimHost, tree: &LayerTree) -> Result<u64, String> {
        let mut read = 0;
        for snapshot in &tree.snapshots {
            match snapshot.state {
                SnapshotState::Ready | SnapshotState::Reverting | SnapshotState::Lost => {}
                // Not there yet, or no promise any more.
                SnapshotState::Creating | SnapshotState::Deleting => continue,
                SnapshotState::Error => return Err(format!("{} is in error", snapshot.name)),
            }
            let reads = read_snapshot(sim, tree, snapshot)?;
            if !self.snapshots.contains_key(&snapshot.id) {
                let truth = self.first_sight(sim, snapshot, tree)?;
                self.snapshots.insert(snapshot.id, truth);
            }
            let SnapshotTruth { disks: expected, memory: remembered, .. } = &self.snapshots[&snapshot.id];
            ensure(reads == *expected, || format!("{} reads {reads:?}, not {expected:?}", snapshot.name))?;
            let memory = kept_memory(sim, snapshot);
            ensure(memory == *remembered, || {
                format!("{} remembers {memory:?}, not {remembered:?}", snapshot.name)
            })?;
            read += 1;
        }
        for clone in tree.clones.iter().filter(|clone| clone.state == CloneState::Available) {
            let reads = read_image(sim, &clone.path)?;
            let source = self.snapshots.get(&clone.source);
            let expected = self.clones.entry(clone.id).or_insert_with(|| {
                // Its source may be gone by now, and nobody writes to clones here.
                let of_source = source.and_then(|truth| truth.disks.values().find(|disk| **disk == reads));
                let as_it_is = source.is_none().then_some(&reads);
                of_source.or(as_it_is).cloned().unwrap_or(Reading { size: 0, content: Content::new() })
            });
            ensure(reads == *expected, || format!("clone {} reads {reads:?}, not {expected:?}", clone.name))?;
        }
        self.nothing_vanishes(tree)?;
        Ok(read)
    }

    /// What a snapshot must read that has just become one.
    fn first_sight(
        &self,
        sim: &SimHost,
        snapshot: &Snapshot,
        tree: &LayerTree,
    ) -> Result<SnapshotTruth, String> {
        let mut disks = Disks::new();
        let mut was_frozen = true;
        let memory = kept_memory(sim, snapshot);
        ensure(memory.is_some() == snapshot.memory.is_some(), || {
            format!("{} has no complete memory image", snapshot.name)
        })?;
        for disk in &snapshot.disks {
            let reading = if let Some(source) = &snapshot.source {
                let source = self.snapshots.get(source).ok_or("a snapshot is out of an unknown one")?;
                source.disks.get(&disk.target).cloned().ok_or("its source has no such disk")?
            } else {
                let left = self.left(tree.vm, &disk.target, &tree.layers[&disk.layer].path);
                let left = left.ok_or_else(|| format!("{} is of now", snapshot.name))?;
                was_frozen &= left.was_frozen;
                let is_of_then =
                    memory.is_none_or(|memory| left.memory.is_some_and(|between| between.has(memory)));
                ensure(is_of_then, || format!("{} remembers another moment: {memory:?}", snapshot.name))?;
                left.reading
            };
            disks.insert(disk.target.clone(), reading);
        }
        let says_frozen = snapshot.consistency == Some(Consistency::FileSystem);
        ensure(!says_frozen || snapshot.source.is_some() || was_frozen, || {
            format!("{} says that the guest was frozen, which it was not", snapshot.name)
        })?;
        let was_paused = matches!(snapshot.run_state, RunState::Paused(_));
        Ok(SnapshotTruth { vm: tree.vm, disks, memory, was_paused })
    }

    /// What an image held when it was left. One that a VM left which is off may not have been looked at since.
    fn left(&self, vm: VmId, disk: &DiskTarget, path: &Path) -> Option<Left> {
        let truth = &self.vms[&vm];
        let unseen = || {
            let is_it = truth.active.get(disk).is_some_and(|active| active == path);
            let memory = truth.memory.map(|before| Between { before, after: None });
            is_it.then(|| Left { reading: truth.reads[disk].clone(), was_frozen: false, memory })
        };
        self.left.get(path).cloned().or_else(unseen)
    }

    /// What nobody wants gone is there.
    fn nothing_vanishes(&mut self, tree: &LayerTree) -> Result<(), String> {
        let there: BTreeSet<SnapshotId> = tree.snapshots.iter().map(|snapshot| snapshot.id).collect();
        let gone: Vec<SnapshotId> = self
            .snapshots
            .iter()
            .filter(|(id, truth)| truth.vm == tree.vm && !there.contains(id))
            .map(|(id, _)| *id)
            .collect();
        for id in gone {
            ensure(self.doomed.contains_key(&id), || format!("snapshot {id} has vanished"))?;
            self.snapshots.remove(&id);
        }
        Ok(())
    }
}

impl Node {
    /// Looks whether all is as it must be: always at what VMs read, and at everything else too if `is_whole`.
    pub fn look(&mut self, is_whole: bool) -> Result<(), String> {
        let violations = self.sim.violations();
        ensure(violations.is_empty(), || violations.join("; "))?;
        let is_off = |vm: &VmId| self.sim.run_state(*vm) == Some(RunState::Off);
        let held: BTreeSet<VmId> = if self.vms.iter().any(is_off) {
            let open = at_once(self.store.open_operations()).map_err(|error| error.to_string())?;
            open.iter().map(|operation| operation.vm).collect()
        } else {
            BTreeSet::new()
        };
        for vm in self.vms.clone() {
            // What a VM that is off would read is settled when the operation on it has ended.
            if !(is_off_now(&self.sim, vm) && held.contains(&vm)) {
                self.oracle.look_at(&self.sim, vm)?;
            }
        }
        self.look_at_freezes()?;
        if !is_whole {
            return Ok(());
        }
        self.look_at_deployed()?;
        for vm in self.vms.clone() {
            let tree = at_once(self.store.tree(vm)).map_err(|error| error.to_string())?;
            self.tally.snapshots_read += self.oracle.look_at_tree(&self.sim, &tree)?;
            self.tally.quiesced +=
                count(&tree, |snapshot| snapshot.consistency == Some(Consistency::FileSystem));
            self.tally.lost += count(&tree, |snapshot| snapshot.state == SnapshotState::Lost);
        }
        Ok(())
    }

    /// A guest that is frozen by us has a lease, which outlives us; one that somebody else froze stays frozen.
    fn look_at_freezes(&mut self) -> Result<(), String> {
        let frozen: Vec<VmId> = self.vms.iter().copied().filter(|vm| self.sim.is_guest_frozen(*vm)).collect();
        for (vm, truth) in &mut self.oracle.vms {
            let is_live = self.sim.run_state(*vm).is_some_and(RunState::is_live);
            truth.is_frozen_by_somebody &= is_live;
            ensure(!truth.is_frozen_by_somebody || frozen.contains(vm), || {
                format!("{} was thawed, and it was not frozen by us", name_of(&self.sim, *vm))
            })?;
        }
        let is_ours = |vm: &&VmId| !self.oracle.vms[*vm].is_frozen_by_somebody;
        if frozen.iter().any(|vm| is_ours(&vm)) {
            let leases = at_once(self.store.leases()).map_err(|error| error.to_string())?;
            for vm in frozen.iter().filter(is_ours) {
                ensure(leases.iter().any(|lease| lease.vm == *vm && !lease.is_thawed), || {
                    format!("{} is frozen, and nobody will thaw it", name_of(&self.sim, *vm))
                })?;
            }
        }
        Ok(())
    }

    /// The operation of a wish has ended. Looks at what must be so now.
    pub fn check_end(&mut self, operation: OperationId, snapshot: Option<SnapshotId>) -> Result<(), String> {
        let Some(snapshot) = snapshot else { return Ok(()) };
        let found = at_once(self.store.snapshot(snapshot)).map_err(|error| error.to_string())?;
        ensure(found.is_some() || self.oracle.doomed.contains_key(&snapshot), || {
            format!("{operation} has succeeded, and there is no snapshot")
        })
    }
}

fn count(tree: &LayerTree, is_counted: impl Fn(&Snapshot) -> bool) -> u64 {
    tree.snapshots.iter().filter(|snapshot| is_counted(snapshot)).count() as u64
}

fn is_off_now(sim: &SimHost, vm: VmId) -> bool {
    sim.run_state(vm) == Some(RunState::Off)
}

/// What some disks read when others of them read something else.
fn overlaid(all: &Disks, some: &Disks) -> Disks {
    all.iter().map(|(disk, reading)| (disk.clone(), some.get(disk).unwrap_or(reading).clone())).collect()
}

fn read_snapshot(sim: &SimHost, tree: &LayerTree, snapshot: &Snapshot) -> Result<Disks, String> {
    let mut reads = Disks::new();
    for disk in &snapshot.disks {
        let layer = tree
            .layers
            .get(&disk.layer)
            .ok_or_else(|| format!("{} holds a layer of {} that is not there", snapshot.name, disk.target))?;
        let reading = read_image(sim, &layer.path).map_err(|error| format!("{}: {error}", snapshot.name))?;
        ensure(reading.size == disk.virtual_size, || {
            format!("{} says that {} has {} bytes", snapshot.name, disk.target, disk.virtual_size)
        })?;
        reads.insert(disk.target.clone(), reading);
    }
    Ok(reads)
}

pub fn read_image(sim: &SimHost, path: &Path) -> Result<Reading, String> {
    let size = sim.image_size(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let content = sim.read_image(path).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(Reading { size, content })
}

fn kept_memory(sim: &SimHost, snapshot: &Snapshot) -> Option<GuestMemory> {
    snapshot.memory.as_ref().and_then(|memory| sim.kept_memory(&memory.path))
}

/// What each disk of a VM is written to.
fn images(sim: &SimHost, vm: VmId) -> BTreeMap<DiskTarget, PathBuf> {
    targets().filter_map(|disk| sim.image_of(vm, &disk).map(|path| (disk, path))).collect()
}

/// What each disk of a VM reads; of one that is off, after a start.
pub fn readings(sim: &SimHost, vm: VmId) -> Disks {
    let read = |disk: DiskTarget| {
        let content = sim.disk_contents(vm, &disk)?;
        let size = sim.disk_size(vm, &disk)?;
        Some((disk, Reading { size, content }))
    };
    targets().filter_map(read).collect()
}

fn targets() -> impl Iterator<Item = DiskTarget> {
    ["vda", "vdb"].into_iter().map(|target| target.parse().unwrap())
}

fn name_of(sim: &SimHost, vm: VmId) -> String {
    ["web", "db", "mail"]
        .into_iter()
        .find(|name| sim.find_vm(name) == Some(vm))
        .map_or(vm.to_string(), str::to_owned)
}
