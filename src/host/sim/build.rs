//! VMs for tests, defined in a few words.
//!
//! Decides names and sizes that nobody cares about: images stand in `/images`, named from VM and disk.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use uuid::Uuid;

use super::super::HostEvent;
use super::background::NO_BACKGROUND;
use super::fault::Extent;
use super::files::{BLOCK, Content, FileKind, Image};
use super::machine::{Machine, Slot, SlotKind};
use super::{AgentBehaviour, SimHost};
use crate::model::step::ImageRef;
use crate::model::vm::{ExcludedDisk, Format, PauseReason, RefusedDisk, RunState, Uncovered};
use crate::model::{DiskTarget, Labels, VmId};

/// Size of every disk that does not lie on a template.
pub const DISK_SIZE: u64 = 1024 * BLOCK;

/// Guest memory, unless the test says otherwise.
const MEMORY: u64 = 256 << 20;

/// Where images are.
const DIRECTORY: &str = "/images";

/// A VM in the making.
#[derive(Debug)]
#[must_use]
pub struct VmBuilder {
    host: SimHost,
    id: VmId,
    name: String,
    labels: Labels,
    disks: Vec<(Slot, Option<ImageRef>)>,
    agent: AgentBehaviour,
    memory_bytes: u64,
    memory_blocker: Option<String>,
    background_blocker: Option<String>,
    pull_blocker: Option<String>,
    variables: Option<PathBuf>,
    uncovered: Vec<Uncovered>,
    other_files: Vec<PathBuf>,
    unnamed_disks: Vec<DiskTarget>,
    capture_notches: u32,
    background_notches: u32,
    is_persistent: bool,
    run_state: RunState,
}

impl VmBuilder {
    pub(super) fn new(host: SimHost, name: &str) -> Self {
        Self {
            host,
            id: VmId(Uuid::new_v5(&Uuid::NAMESPACE_OID, name.as_bytes())),
            name: name.to_owned(),
            labels: Labels::default(),
            disks: Vec::new(),
            agent: AgentBehaviour::Obeys,
            memory_bytes: MEMORY,
            memory_blocker: None,
            background_blocker: Some(NO_BACKGROUND.to_owned()),
            pull_blocker: None,
            variables: None,
            uncovered: Vec::new(),
            other_files: Vec::new(),
            unnamed_disks: Vec::new(),
            capture_notches: 0,
            background_notches: 0,
            is_persistent: true,
            run_state: RunState::Running,
        }
    }

    /// Written on it.
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.labels.0.insert(key.to_owned(), value.to_owned());
        self
    }

    /// So many qcow2 disks without backing: `vda`, `vdb`, ...
    pub fn disks(mut self, count: u8) -> Self {
        for letter in (b'a'..).take(usize::from(count)) {
            self = self.disk(&format!("vd{}", char::from(letter)), Format::Qcow2);
        }
        self
    }

    /// A disk without backing.
    ///
    /// # Panics
    /// If the target is no name of a disk, or an image stands there already.
    pub fn disk(self, target: &str, format: Format) -> Self {
        let path = self.path(target);
        let put = self.host.put_image(&path, format, DISK_SIZE, false);
        put.expect("a test names each disk once");
        self.chain(target, ImageRef { path, format })
    }

    /// A disk that is an overlay on a template. The template is made if it is not there.
    ///
    /// # Panics
    /// If the target is no name of a disk, or an image stands there already.
    pub fn disk_over(self, target: &str, template: &str) -> Self {
        let path = self.path(target);
        let base = Path::new(template);
        // One that is there already serves several VMs.
        drop(self.host.put_image(base, Format::Qcow2, DISK_SIZE, true));
        let image = Image {
            format: Format::Qcow2,
            virtual_size: DISK_SIZE,
            blocks: Content::new(),
            backing: Some(ImageRef { path: base.to_owned(), format: Format::Qcow2 }),
            is_template: false,
        };
        let made = self.host.world().files.create(&path, FileKind::Image(image));
        made.expect("a test names each disk once");
        self.chain(target, ImageRef { path, format: Format::Qcow2 })
    }

    /// A disk with an image that is there already.
    ///
    /// # Panics
    /// If the target is no name of a disk.
    pub fn image(self, target: &str, image: ImageRef) -> Self {
        self.chain(target, image)
    }

    /// A disk that a snapshot leaves out.
    pub fn excluded(mut self, target: &str, excluded: ExcludedDisk) -> Self {
        self.disks.push((slot(target, SlotKind::Excluded(excluded)), None));
        self
    }

    /// A disk that is refused.
    pub fn refused(mut self, target: &str, refused: RefusedDisk) -> Self {
        self.disks.push((slot(target, SlotKind::Refused(refused)), None));
        self
    }

    /// Another agent than one that obeys.
    pub fn agent(mut self, behaviour: AgentBehaviour) -> Self {
        self.agent = behaviour;
        self
    }

    /// Bytes of guest memory.
    pub fn memory(mut self, bytes: u64) -> Self {
        self.memory_bytes = bytes;
        self
    }

    /// A definition of it names a file for a disk that is not handled, or that its process does not have.
    pub fn names(mut self, path: &Path) -> Self {
        self.other_files.push(path.to_owned());
        self
    }

    /// It has a disk whose file no definition names.
    ///
    /// # Panics
    /// If the target is no name of a disk.
    pub fn unnamed(mut self, target: &str) -> Self {
        let slot = slot(target, SlotKind::Refused(RefusedDisk::Kind("volume".to_owned())));
        self.unnamed_disks.push(slot.target.clone());
        self.disks.push((slot, None));
        self
    }

    /// It boots by UEFI, with a file of variables of its own.
    ///
    /// # Panics
    /// If the file stands there already.
    pub fn uefi(mut self) -> Self {
        let path = PathBuf::from(format!("/nvram/{}.fd", self.name));
        self.host.put_image(&path, Format::Raw, BLOCK, false).expect("a test names each VM once");
        self.variables = Some(path);
        self
    }

    /// It keeps something that is in no disk of its.
    pub fn uncovered(mut self, what: Uncovered) -> Self {
        self.uncovered.push(what);
        self
    }

    /// Something makes it dangerous to let its process pull layers up.
    pub fn pull_blocker(mut self, blocker: &str) -> Self {
        self.pull_blocker = Some(blocker.to_owned());
        self
    }

    /// Something stands in the way of capturing memory.
    pub fn memory_blocker(mut self, blocker: &str) -> Self {
        self.memory_blocker = Some(blocker.to_owned());
        self
    }

    /// Memory can be captured while the guest runs. That takes so many looks.
    pub fn captures_behind_its_back(mut self, notches: u32) -> Self {
        self.background_blocker = None;
        self.background_notches = notches;
        self
    }

    /// A capture of memory by the hypervisor itself takes so many looks, instead of none.
    pub fn slow_capture(mut self, notches: u32) -> Self {
        self.capture_notches = notches;
        self
    }

    /// Without a stored definition.
    pub fn transient(mut self) -> Self {
        self.is_persistent = false;
        self
    }

    /// Off, not running.
    pub fn off(mut self) -> Self {
        self.run_state = RunState::Off;
        self
    }

    /// Paused by a person, not running.
    pub fn paused(mut self) -> Self {
        self.run_state = RunState::Paused(PauseReason::User);
        self
    }

    /// Defines it, and starts it if it is not to be off.
    ///
    /// # Panics
    /// If it cannot be started.
    #[allow(clippy::must_use_candidate, reason = "a test may know the id by the name")]
    pub fn build(self) -> VmId {
        let mut stored = BTreeMap::new();
        let mut slots = Vec::new();
        for (slot, image) in self.disks {
            if let Some(image) = image {
                stored.insert(slot.target.clone(), image);
            }
            slots.push(slot);
        }
        let machine = Machine {
            name: self.name,
            labels: self.labels,
            is_persistent: self.is_persistent,
            memory_bytes: self.memory_bytes,
            memory_blocker: self.memory_blocker,
            background_blocker: self.background_blocker,
            pull_blocker: self.pull_blocker,
            variables: self.variables,
            uncovered: self.uncovered,
            snapshots: Vec::new(),
            other_files: self.other_files,
            unnamed_disks: self.unnamed_disks,
            agent: self.agent,
            slots,
            listed: BTreeMap::new(),
            stored,
            managed_save: None,
            live: None,
            elsewhere: None,
            has_left_unseen: false,
            is_known_to_have_left: false,
            capture_notches: self.capture_notches,
            background_notches: self.background_notches,
            written: BTreeMap::new(),
        };
        let mut world = self.host.world();
        world.machines.insert(self.id, machine);
        world.emit(HostEvent::VmChanged(self.id));
        if self.run_state != RunState::Off {
            let paused = self.run_state != RunState::Running;
            world.boot(self.id, paused, Extent::Whole).expect("a test defines a VM that can start");
        }
        self.id
    }

    fn path(&self, target: &str) -> PathBuf {
        PathBuf::from(format!("{DIRECTORY}/{}-{target}", self.name))
    }

    fn chain(mut self, target: &str, image: ImageRef) -> Self {
        self.disks.push((slot(target, SlotKind::Chain), Some(image)));
        self
    }
}

fn slot(target: &str, kind: SlotKind) -> Slot {
    let target: DiskTarget = target.parse().expect("a test knows what a disk may be called");
    Slot { target, kind }
}
