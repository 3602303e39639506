//! A simulated node with one VM, lives of the engine on it, and the oracle: what every snapshot and disk must read.
//!
//! The clock is the test's: it stands still while the catalog's thread works. See `vmsnap::host::sim` for the world.

#![allow(clippy::unwrap_used, reason = "a test stops where it fails")]
#![allow(dead_code, reason = "each test program uses its own part")]

mod life;
mod requests;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use tempfile::TempDir;
use tokio::runtime::Builder;
use uuid::Uuid;
use vmsnap::host::sim::{BLOCK, Content, Method, SimHost};
use vmsnap::model::manifest::Manifest;
use vmsnap::model::step::ImageRef;
use vmsnap::model::vm::Format;
use vmsnap::model::{
    CloneState, DiskTarget, Event, LayerTree, Operation, OperationId, Request, Snapshot, SnapshotId,
    SnapshotState, VmId, VolumeId,
};
use vmsnap::ops::{self, gather};
use vmsnap::plan::rebuild::{Report, rebuild};
use vmsnap::plan::{self, MemoryCompression, Places};
use vmsnap::store::{EventFilter, EventOrder, KeptManifest, Store, write_anew};

#[allow(unused_imports, reason = "each test program uses its own part")]
pub use life::{BOOT, Life, MERGE_POLICY, pass_time, settings, submit};

/// What a disk or an image reads.
#[derive(Debug, Clone, PartialEq)]
pub struct Reading {
    /// How large it is, in bytes.
    pub size: u64,
    /// What is in it.
    pub content: Content,
}

/// What disks read.
pub type Disks = BTreeMap<DiskTarget, Reading>;

/// What everything must read.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Truth {
    /// By name, the disks that are in each snapshot.
    pub snapshots: BTreeMap<String, Disks>,
    /// What the VM reads.
    pub active: Disks,
    /// By name, what each clone reads.
    pub clones: BTreeMap<String, Reading>,
    /// By name of the clone and of the snapshot, what the clones' own snapshots hold.
    pub of_clones: BTreeMap<String, BTreeMap<String, Reading>>,
    /// By name, the UEFI variables that are kept with each snapshot of the VM.
    pub kept_variables: BTreeMap<String, u64>,
    /// The VM's own.
    pub variables: u64,
}

/// A node with the VM `web` and its catalog.
pub struct Scene {
    pub sim: SimHost,
    pub store: Store,
    pub vm: VmId,
    /// What each life of the daemon is told.
    pub memory_compression: MemoryCompression,
    /// The images from before the first snapshot: the catalog may not know them, and they never go.
    first_images: Vec<PathBuf>,
    /// Where the catalog is, if it is not in memory.
    directory: Option<TempDir>,
}

/// A file system in memory: a catalog that is synced there costs nothing.
const MEMORY: &str = "/dev/shm";

/// The files of a catalog that nobody is writing to.
const CATALOG: [&str; 2] = ["catalog.db", "catalog.db-wal"];

impl Scene {
    /// A running VM of two disks.
    pub fn new() -> Self {
        Self::with(Store::in_memory().unwrap(), None)
    }

    /// As [`Scene::new`], and [`Scene::fork`] can be called.
    pub fn forkable() -> Self {
        let directory = tempfile::tempdir_in(MEMORY).unwrap();
        let store = Store::open(&directory.path().join(CATALOG[0])).unwrap();
        Self::with(store, Some(directory))
    }

    fn with(store: Store, directory: Option<TempDir>) -> Self {
        let sim = SimHost::new();
        let vm = sim.vm("web").disks(2).uefi().slow_capture(6).build();
        let first_images = sim.files();
        Self { sim, store, vm, memory_compression: MemoryCompression::None, first_images, directory }
    }

    /// Another one like this: what happens in one does not happen in the other. No daemon may be alive.
    pub fn fork(&self) -> Self {
        let from = self.directory.as_ref().unwrap().path();
        let directory = tempfile::tempdir_in(MEMORY).unwrap();
        for file in CATALOG.iter().filter(|file| from.join(file).exists()) {
            std::fs::copy(from.join(file), directory.path().join(file)).unwrap();
        }
        let store = Store::open(&directory.path().join(CATALOG[0])).unwrap();
        let first_images = self.first_images.clone();
        let Self { sim, vm, memory_compression, .. } = self;
        Self {
            sim: sim.fork(),
            store,
            vm: *vm,
            memory_compression: *memory_compression,
            first_images,
            directory: Some(directory),
        }
    }

    /// The catalog is lost, and made anew from the disks. No daemon may be alive. Gives what is told of it.
    pub fn rebuild_catalog(&mut self) -> Report {
        let runtime = Builder::new_current_thread().build().unwrap();
        let evidence = runtime.block_on(gather(&self.sim.host(), &places(), &[])).unwrap();
        let rebuilt = rebuild(&evidence, &mut Uuid::now_v7);
        let directory = tempfile::tempdir_in(MEMORY).unwrap();
        let path = directory.path().join(CATALOG[0]);
        write_anew(&path, &rebuilt.trees, Timestamp::now()).unwrap();
        self.store = Store::open(&path).unwrap();
        self.directory = Some(directory);
        rebuilt.report
    }

    /// Somebody changes the catalog behind the daemon's back.
    pub fn meddle_with_catalog(&self, sql: &str) {
        let path = self.directory.as_ref().unwrap().path().join(CATALOG[0]);
        rusqlite::Connection::open(path).unwrap().execute(sql, []).unwrap();
    }

    /// By name, what each snapshot reads that the catalog says is READY.
    pub fn ready(&self) -> Result<BTreeMap<String, Disks>, String> {
        let tree = self.tree();
        let ready = tree.snapshots.iter().filter(|snapshot| snapshot.state == SnapshotState::Ready);
        let read = |snapshot: &Snapshot| {
            let disks = snapshot.disks.iter();
            let disks =
                disks.map(|disk| Ok((disk.target.clone(), self.read_image(&tree.layers[&disk.layer].path)?)));
            Ok((snapshot.name.to_string(), disks.collect::<Result<Disks, String>>()?))
        };
        ready.map(read).collect()
    }

    /// The guest writes one block of each disk.
    pub fn write(&self, block: u64, value: u64) {
        for disk in disks() {
            self.sim.guest_write(self.vm, &disk, block, value).unwrap();
        }
    }

    /// The guest writes the last block of each disk.
    pub fn write_last(&self, value: u64) {
        for disk in disks() {
            let last = self.sim.disk_size(self.vm, &disk).unwrap() / BLOCK - 1;
            self.sim.guest_write(self.vm, &disk, last, value).unwrap();
        }
    }

    /// The firmware writes its variables.
    pub fn set_variables(&self, value: u64) {
        self.sim.write_image(&self.sim.variables(self.vm).unwrap(), 0, value).unwrap();
    }

    /// The UEFI variables of a VM.
    pub fn variables(&self, vm: VmId) -> u64 {
        self.read_variables(&self.sim.variables(vm).unwrap()).unwrap()
    }

    fn read_variables(&self, path: &Path) -> Result<u64, String> {
        let content = self.sim.read_image(path).map_err(|error| error.to_string())?;
        Ok(content.get(&0).copied().unwrap_or_default())
    }

    /// What the VM reads now.
    pub fn active(&self) -> Disks {
        let read = |disk: &DiskTarget| Reading {
            size: self.sim.disk_size(self.vm, disk).unwrap(),
            content: self.sim.disk_contents(self.vm, disk).unwrap(),
        };
        disks().into_iter().map(|disk| (disk.clone(), read(&disk))).collect()
    }

    fn read_image(&self, path: &Path) -> Result<Reading, String> {
        let size = self.sim.image_size(path).map_err(|error| error.to_string())?;
        let content = self.sim.read_image(path).map_err(|error| error.to_string())?;
        Ok(Reading { size, content })
    }

    /// What the catalog says.
    pub fn tree(&self) -> LayerTree {
        Builder::new_current_thread().build().unwrap().block_on(self.store.tree(self.vm)).unwrap()
    }

    /// A file that nobody may miss, and that the catalog need not know.
    pub fn keep(&mut self, path: &Path) {
        self.first_images.push(path.to_owned());
    }

    /// What the catalog says of a clone's own snapshots.
    pub fn tree_of_clone(&self, clone: &str) -> LayerTree {
        let vm = VmId::of_detached(self.find_clone(clone));
        Builder::new_current_thread().build().unwrap().block_on(self.store.tree(vm)).unwrap()
    }

    /// Somebody writes to a clone that no VM has. Gives what it reads then.
    pub fn write_detached(&self, clone: &str, block: u64, value: u64) -> Reading {
        self.sim.write_image(&clone_path(clone), block, value).unwrap();
        self.read_image(&clone_path(clone)).unwrap()
    }

    /// Whether a VM runs on a clone.
    pub fn is_used(&self, clone: &str) -> bool {
        self.user_of(clone).is_some()
    }

    /// Another VM runs on a clone from now on, if none does.
    pub fn use_clone(&self, name: &str) {
        if self.user_of(name).is_none() {
            let image = ImageRef { path: clone_path(name), format: Format::Qcow2 };
            self.sim.vm(&user_name(name)).image("vda", image).build();
        }
    }

    /// No VM runs on a clone from now on.
    pub fn leave_clone(&self, name: &str) {
        if let Some(vm) = self.user_of(name) {
            self.sim.someone_stops(vm);
            self.sim.someone_undefines(vm);
        }
    }

    /// The VM that runs on a clone writes one block. Gives what the clone reads then; None if no VM runs on it.
    pub fn write_clone(&self, name: &str, block: u64, value: u64) -> Option<Reading> {
        let (vm, disk) = (self.user_of(name)?, "vda".parse().unwrap());
        self.sim.guest_write(vm, &disk, block, value).unwrap();
        let content = self.sim.disk_contents(vm, &disk).unwrap();
        Some(Reading { size: self.sim.disk_size(vm, &disk).unwrap(), content })
    }

    fn user_of(&self, clone: &str) -> Option<VmId> {
        self.sim.find_vm(&user_name(clone))
    }

    fn find_clone(&self, name: &str) -> VolumeId {
        self.tree().clones.iter().find(|clone| clone.name.as_str() == name).unwrap().id
    }

    /// How many disks may be slowed because of us.
    pub fn throttles(&self) -> usize {
        let runtime = Builder::new_current_thread().build().unwrap();
        runtime.block_on(self.store.throttles()).unwrap().len()
    }

    /// The limits on writes that may be in force because of us.
    pub fn noted_limits(&self) -> Vec<u64> {
        let runtime = Builder::new_current_thread().build().unwrap();
        let throttles = runtime.block_on(self.store.throttles()).unwrap();
        throttles.into_iter().flat_map(|throttle| throttle.writes_at_most).collect()
    }

    /// How often the daemon has made such a call, since the script was reset last.
    pub fn calls_of(&self, method: Method) -> usize {
        self.sim.calls().iter().filter(|call| call.method == method).count()
    }

    /// What `vmsnapd thaw` does for guests that are slowed. Gives the VMs of those that stay so.
    pub fn free_guests(&self) -> BTreeSet<VmId> {
        let runtime = Builder::new_current_thread().build().unwrap();
        runtime.block_on(ops::free_guests(&self.sim.host(), &self.store)).unwrap()
    }

    /// All that was told, oldest first.
    pub fn events(&self) -> Vec<Event> {
        let runtime = Builder::new_current_thread().build().unwrap();
        let events = self.store.events(EventFilter::default(), EventOrder::After(0), 10_000);
        runtime.block_on(events).unwrap().events.into_iter().map(|numbered| numbered.event).collect()
    }

    fn find(&self, name: &str) -> SnapshotId {
        find(&self.tree(), name)
    }

    /// The operation that an earlier life left behind.
    pub fn open_operation(&self) -> Option<OperationId> {
        let runtime = Builder::new_current_thread().build().unwrap();
        let open = runtime.block_on(self.store.open_operations()).unwrap();
        open.first().map(|operation| operation.id)
    }

    /// The newest operation that somebody asked for.
    pub fn last_asked(&self) -> Option<Operation> {
        let runtime = Builder::new_current_thread().build().unwrap();
        let (newest, _) = runtime
            .block_on(self.store.operations(vmsnap::store::OperationFilter::default(), None, 3))
            .unwrap();
        newest.into_iter().find(|operation| !matches!(operation.request, Request::Collapse { .. }))
    }

    /// Everything that must hold between operations: all reads right, every snapshot READY or in ERROR by a person's word alone, no
    /// file too many or too few, no guest frozen, nothing done that no correct daemon does.
    pub fn verify(&self, truth: &Truth) -> Result<(), String> {
        let tree = self.tree();
        let known: BTreeSet<&str> = tree.snapshots.iter().map(|snapshot| snapshot.name.as_str()).collect();
        let names: BTreeSet<&str> = truth.snapshots.keys().map(String::as_str).collect();
        ensure(known == names, || format!("snapshots are {known:?}, not {names:?}"))?;
        let mut files: BTreeSet<PathBuf> = self.first_images.iter().cloned().collect();
        files.extend(tree.layers.values().map(|layer| layer.path.clone()));
        for snapshot in &tree.snapshots {
            ensure(snapshot.state == SnapshotState::Ready || snapshot.is_only_declared(), || {
                format!("{} is {:?}", snapshot.name, snapshot.state)
            })?;
            files.extend(snapshot.memory.iter().map(|memory| memory.path.clone()));
            files.extend(snapshot.variables.iter().map(|variables| variables.path.clone()));
            let kept = snapshot.variables.as_ref().map(|kept| self.read_variables(&kept.path)).transpose()?;
            let wanted = truth.kept_variables.get(snapshot.name.as_str());
            ensure(kept.as_ref() == wanted, || format!("{} keeps {kept:?}, not {wanted:?}", snapshot.name))?;
            let mut reads = Disks::new();
            for disk in &snapshot.disks {
                let path = &tree.layers[&disk.layer].path;
                reads.insert(disk.target.clone(), self.read_image(path)?);
                ensure(reads[&disk.target].size == disk.virtual_size, || {
                    format!("{} says that {} has {} bytes", snapshot.name, disk.target, disk.virtual_size)
                })?;
            }
            let wanted = &truth.snapshots[snapshot.name.as_str()];
            ensure(reads == *wanted, || format!("{} reads {reads:?}, not {wanted:?}", snapshot.name))?;
            if let Some(memory) = &snapshot.memory {
                let then = self.sim.kept_disks(&memory.path);
                let is_of_then = then
                    .is_some_and(|then| then.iter().all(|(disk, content)| reads[disk].content == *content));
                ensure(is_of_then, || format!("the memory of {} is of another moment", snapshot.name))?;
            }
        }
        let clones: BTreeSet<&str> = tree.clones.iter().map(|clone| clone.name.as_str()).collect();
        let wanted: BTreeSet<&str> = truth.clones.keys().map(String::as_str).collect();
        ensure(clones == wanted, || format!("clones are {clones:?}, not {wanted:?}"))?;
        for clone in &tree.clones {
            ensure(clone.state == CloneState::Available, || format!("{} is not complete", clone.name))?;
            let reads = self.read_image(&clone.path)?;
            let wanted = &truth.clones[clone.name.as_str()];
            ensure(reads == *wanted, || format!("clone {} reads {reads:?}, not {wanted:?}", clone.name))?;
            files.insert(clone.path.clone());
            files.extend(self.verify_of_clone(clone.name.as_str(), truth)?);
        }
        let left_over = plan::collapse_tree(&tree, |_| false);
        ensure(left_over.is_empty(), || format!("nothing needs {left_over:?}"))?;
        let active = self.active();
        ensure(active == truth.active, || format!("the VM reads {active:?}, not {:?}", truth.active))?;
        let boot = self.sim.boot_contents(self.vm);
        let contents = truth.active.iter().map(|(disk, reads)| (disk.clone(), reads.content.clone()));
        ensure(boot == contents.collect(), || {
            format!("a cold start would read {boot:?}, not {:?}", truth.active)
        })?;
        let variables = self.variables(self.vm);
        ensure(variables == truth.variables, || {
            format!("variables are {variables}, not {}", truth.variables)
        })?;
        files.extend(self.sim.find_vm("new").and_then(|vm| self.sim.variables(vm)));
        let trees =
            tree.clones.iter().map(|clone| self.tree_of_clone(clone.name.as_str())).chain([tree.clone()]);
        for tree in trees {
            files.extend(self.verify_manifests(&tree)?);
        }
        // A catalog that was made anew knows nothing of a disk without snapshots.
        files.extend(disks().iter().filter_map(|disk| self.sim.image_of(self.vm, disk)));
        let left: BTreeSet<PathBuf> = self.sim.files().into_iter().collect();
        ensure(left == files, || format!("files are {left:?}, not {files:?}"))?;
        ensure(!self.sim.is_guest_frozen(self.vm), || "the guest is frozen".to_owned())?;
        let violations = self.sim.violations();
        ensure(violations.is_empty(), || violations.join("; "))
    }

    fn verify_manifests(&self, tree: &LayerTree) -> Result<Vec<PathBuf>, String> {
        let runtime = Builder::new_current_thread().build().unwrap();
        let kept = runtime.block_on(self.store.manifests(tree.vm, false)).unwrap();
        verify_manifests(&self.sim, tree, kept)
    }

    /// A clone's own snapshots are READY and read what they must. Gives the files that they need.
    fn verify_of_clone(&self, clone: &str, truth: &Truth) -> Result<Vec<PathBuf>, String> {
        let tree = self.tree_of_clone(clone);
        let mut reads = BTreeMap::new();
        for snapshot in &tree.snapshots {
            ensure(snapshot.state == SnapshotState::Ready, || {
                format!("{} of {clone} is {:?}", snapshot.name, snapshot.state)
            })?;
            let layer = &tree.layers[&snapshot.disks[0].layer];
            reads.insert(snapshot.name.to_string(), self.read_image(&layer.path)?);
        }
        let wanted = truth.of_clones.get(clone).cloned().unwrap_or_default();
        ensure(reads == wanted, || format!("snapshots of {clone} read {reads:?}, not {wanted:?}"))?;
        let left_over = plan::collapse_tree(&tree, |_| false);
        // What a VM reads through waits until it has gone.
        ensure(left_over.is_empty() || self.is_used(clone), || format!("nothing needs {left_over:?}"))?;
        Ok(tree.layers.into_values().map(|layer| layer.path).collect())
    }
}

fn find(tree: &LayerTree, name: &str) -> SnapshotId {
    tree.snapshots.iter().find(|snapshot| snapshot.name.as_str() == name).unwrap().id
}

/// The VM that runs on a clone.
fn user_name(clone: &str) -> String {
    format!("user-of-{clone}")
}

/// Where a clone is made.
fn clone_path(name: &str) -> PathBuf {
    PathBuf::from(format!("/images/{name}"))
}

/// Where the daemon puts files.
pub fn places() -> Places {
    Places {
        memory: "/memory".into(),
        images: vec!["/images".into()],
        overlays: None,
        low_space: 0,
        reserve: 0,
    }
}

/// An error unless it holds.
pub fn ensure(holds: bool, otherwise: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(otherwise()) }
}

pub fn disks() -> [DiskTarget; 2] {
    ["vda", "vdb"].map(|disk| disk.parse().unwrap())
}

/// Each snapshot and each clone of a tree has its manifest, which says what the catalog says. Gives where they are.
pub fn verify_manifests(
    sim: &SimHost,
    tree: &LayerTree,
    kept: Vec<KeptManifest>,
) -> Result<Vec<PathBuf>, String> {
    let due: Vec<_> = kept.iter().filter(|kept| kept.is_due).collect();
    ensure(due.is_empty(), || format!("manifests are due: {due:?}"))?;
    let of_snapshots = tree.snapshots.iter().map(|snapshot| snapshot.id.0);
    let all: BTreeSet<_> = of_snapshots.chain(tree.clones.iter().map(|clone| clone.id.0)).collect();
    let known: BTreeSet<_> = kept.iter().map(|kept| kept.id).collect();
    ensure(known == all, || format!("manifests are of {known:?}, not of {all:?}"))?;
    let mut files = Vec::new();
    for kept in kept {
        let wanted = kept.wanted.unwrap();
        let path = plan::manifest_path(&wanted, &places());
        ensure(kept.places == [path.clone()], || format!("{} is not at {}", kept.id, path.display()))?;
        let content = sim.small_file(&path).ok_or_else(|| format!("there is no {}", path.display()))?;
        let written = Manifest::decode(&content).map_err(|error| error.to_string())?;
        ensure(written == wanted, || format!("{} says {written:#?}, not {wanted:#?}", path.display()))?;
        files.push(path);
    }
    Ok(files)
}
