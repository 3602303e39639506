//! libvirt: the hypervisor and the guest agents of this node.
//!
//! Decides over which line and with which time limit each call is made. Leaves what a call says to the files beside
//! this one. Must never know of operations, snapshots or the catalog.
//!
//! Each lane has a line and threads of its own:
//!
//! | lane | threads | calls |
//! |---|---|---|
//! | look | 4 | questions; the events come over its line |
//! | change | 3 | switches of disks, block jobs, resume |
//! | power | 4 | start, stop, captures of memory |
//! | agent | 3 | freeze, thaw |
//! | emergency | 3 | thaw only, by whoever guards a freeze |

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use tokio::sync::{broadcast, watch};

use super::{
    About, BackgroundCapture, Commit, Definition, DiskSwitch, GuestAgent, HostError, HostEvent, Hypervisor,
    Link, LiveImage, Pull, Result, StartFrom, VmSummary, WrittenImage,
};
use crate::model::served::Served;
use crate::model::step::{ImageRef, NewVm};
use crate::model::vm::{BlockJob, PauseReason, RunState};
use crate::model::{DiskTarget, IoLimits, Labels, VmId, VmView};

mod agent;
mod awaited;
mod background;
mod chain;
mod change;
mod connection;
mod deadlines;
mod description;
mod edit;
mod ffi;
mod firmware;
#[cfg(test)]
mod fuzz;
mod given;
mod graph;
mod io_limits;
mod jobs;
mod labels;
mod lane;
mod memory_blocker;
mod migration;
mod monitor;
mod new_vm;
mod observe;
mod refusal;
mod requests;
mod served;
mod shape;
mod snapshot_xml;
mod told;
mod vms;

pub use agent::AgentLane;
pub use deadlines::Deadlines;
pub use ffi::give_back_memory;

use awaited::Awaited;
use connection::{Watch, start_lines};
use lane::Lane;
use observe::{BETWEEN_LOOKS, Doubt, Looked};

/// Events that a slow reader may be behind before it is told that it missed some.
const EVENTS_KEPT: usize = 4096;

/// QEMU tells at most once a second that a disk has failed (`BLOCK_IO_ERROR` in its monitor/monitor.c, since 10.0), and
/// keeps the last failure of the others until then. libvirt takes a VM for paused when it is told of one, and does not ask
/// QEMU (`qemuProcessHandleIOError`). So a VM that goes on within that second is called paused, for ever, while it runs.
const FAILURE_HELD_BACK: Duration = Duration::from_millis(1500);

/// libvirt on this node.
pub struct Libvirt {
    look: Lane,
    change: Lane,
    power: Lane,
    agent: AgentLane,
    emergency: Arc<AgentLane>,
    events: broadcast::Sender<HostEvent>,
    link: watch::Receiver<Link>,
    deadlines: Deadlines,
    /// The memory images that are being written for us.
    captures: Mutex<HashMap<VmId, PathBuf>>,
    awaited: Arc<Awaited>,
    /// Held by whoever reads a definition and writes it: of two at once one would undo the other.
    definitions: Arc<Mutex<()>>,
    _watch: Watch,
}

impl Libvirt {
    /// The libvirt at `uri`, as in `qemu:///system`. Starts down, and comes up by itself as soon as libvirtd answers.
    ///
    /// An error means that `uri` cannot be handed to libvirt at all.
    pub fn connect(uri: &str, deadlines: Deadlines) -> Result<Arc<Self>> {
        if uri.contains('\0') {
            return Err(HostError::Malformed {
                what: "the address of libvirt",
                cause: "it contains NUL".into(),
            });
        }
        let (events, _) = broadcast::channel(EVENTS_KEPT);
        let (link_sender, link) = watch::channel(Link::Down("not connected yet".to_owned()));
        let purposes = ["questions and events", "changes", "long calls", "guest agents", "emergencies"];
        let ([look, change, power, agent, emergency], watch) =
            start_lines(uri, purposes, events.clone(), link_sender);
        Ok(Arc::new(Self {
            look: Lane::start("libvirt-look", 4, look),
            change: Lane::start("libvirt-change", 3, change),
            power: Lane::start("libvirt-power", 4, power),
            agent: AgentLane(Lane::start("libvirt-agent", 3, agent)),
            emergency: Arc::new(AgentLane(Lane::start("libvirt-rescue", 3, emergency))),
            events,
            link,
            deadlines,
            captures: Mutex::new(HashMap::new()),
            awaited: Arc::default(),
            definitions: Arc::default(),
            _watch: watch,
        }))
    }

    fn captures(&self) -> MutexGuard<'_, HashMap<VmId, PathBuf>> {
        self.captures.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that a memory image is being written, until the note is dropped.
    fn capturing(&self, vm: VmId, image: PathBuf) -> CaptureNote<'_> {
        self.captures().insert(vm, image);
        CaptureNote { libvirt: self, vm }
    }

    /// Guest agents over a line of their own, which no other call can hold up. For the thaw at a deadline.
    ///
    /// Works for as long as this lives; holds the line open no longer.
    #[must_use]
    pub fn emergency(&self) -> Arc<AgentLane> {
        Arc::clone(&self.emergency)
    }
}

/// See [`Libvirt::capturing`].
struct CaptureNote<'a> {
    libvirt: &'a Libvirt,
    vm: VmId,
}

impl Drop for CaptureNote<'_> {
    fn drop(&mut self) {
        self.libvirt.captures().remove(&self.vm);
    }
}

impl fmt::Debug for Libvirt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Libvirt").field("link", &*self.link.borrow()).finish_non_exhaustive()
    }
}

#[async_trait]
impl Hypervisor for Libvirt {
    async fn about(&self) -> Result<About> {
        self.look.run("the question for versions", self.deadlines.query, vms::about).await
    }

    async fn vms(&self) -> Result<Vec<VmSummary>> {
        self.look.run("the list of VMs", self.deadlines.query, vms::list).await
    }

    async fn labels(&self, only: Option<VmId>) -> Result<HashMap<VmId, Labels>> {
        let read = move |line: &_| labels::written(line, only);
        self.look.run("the labels of the VMs", self.deadlines.query, read).await
    }

    async fn observe(&self, vm: VmId) -> Result<VmView> {
        let (mut doubt, began) = (Doubt::default(), Instant::now());
        loop {
            let look = move |line: &_| observe::observe(line, vm);
            match self.look.run("a look at the VM", self.deadlines.query, look).await? {
                Looked::Seen(view) => return Ok(*view),
                Looked::InDoubt { error, is_live }
                    if doubt.is_settled_by(&error, is_live) || began.elapsed() > self.deadlines.query =>
                {
                    return Err(error);
                }
                Looked::InDoubt { .. } => tokio::time::sleep(BETWEEN_LOOKS).await,
            }
        }
    }

    async fn written_image(&self, vm: VmId, disk: &DiskTarget) -> Result<WrittenImage> {
        let disk = disk.clone();
        let look = move |line: &_| observe::written_image(line, vm, &disk);
        self.look.run("the question for the written image", self.deadlines.query, look).await
    }

    async fn written_images(&self, vm: VmId) -> Result<Vec<LiveImage>> {
        let look = move |line: &_| observe::written_images(line, vm);
        self.look.run("the question for the written images", self.deadlines.query, look).await
    }

    async fn definition(&self, vm: VmId) -> Result<Definition> {
        let read = move |line: &_| vms::definition(line, vm);
        self.look.run("the definition of the VM", self.deadlines.query, read).await
    }

    async fn switch_disks(&self, vm: VmId, switch: &DiskSwitch) -> Result<()> {
        let (lane, deadline) = match switch.memory {
            None => (&self.change, self.deadlines.change),
            Some(_) => (&self.power, self.deadlines.memory_capture),
        };
        let _capture = switch.memory.as_ref().map(|memory| self.capturing(vm, memory.clone()));
        let switch = switch.clone();
        lane.run("the switch of disks", deadline, move |line| change::switch_disks(line, vm, &switch)).await
    }

    async fn point_disks(&self, vm: VmId, disks: &[(DiskTarget, ImageRef)]) -> Result<()> {
        let (disks, definitions) = (disks.to_vec(), Arc::clone(&self.definitions));
        let point = move |line: &_| {
            // It lasts as long as the calls do, whether anybody waits for them or not.
            let _alone = definitions.lock().unwrap_or_else(PoisonError::into_inner);
            change::point_disks(line, vm, &disks)
        };
        self.change.run("the change of the definition", self.deadlines.change, point).await
    }

    async fn define(&self, definition: &Definition, new: &NewVm) -> Result<()> {
        let (definition, new) = (definition.clone(), new.clone());
        let define = move |line: &_| change::define(line, &definition, &new);
        self.change.run("the definition of a VM", self.deadlines.change, define).await
    }

    async fn undefine(&self, vm: VmId) -> Result<()> {
        let undefine = move |line: &_| change::undefine(line, vm);
        self.change.run("the removal of a definition", self.deadlines.change, undefine).await
    }

    async fn start(&self, vm: VmId, how: &StartFrom, paused: bool) -> Result<()> {
        let deadline = match how {
            StartFrom::Disks => self.deadlines.power,
            StartFrom::Memory { .. } => self.deadlines.memory_restore,
        };
        let how = how.clone();
        let start = move |line: &_| change::start(line, vm, &how, paused);
        self.power.run("the start of the VM", deadline, start).await
    }

    async fn stop(&self, vm: VmId) -> Result<()> {
        let stop = move |line: &_| change::stop(line, vm);
        self.power.run("the stop of the VM", self.deadlines.power, stop).await
    }

    async fn pause(&self, vm: VmId) -> Result<()> {
        let pause = move |line: &_| change::pause(line, vm);
        self.change.run("the pause of the VM", self.deadlines.change, pause).await
    }

    async fn resume(&self, vm: VmId) -> Result<()> {
        let look = move |line: &_| vms::state(&vms::lookup(line, vm)?, vm);
        let state = self.look.run("a look at the VM", self.deadlines.query, look).await?;
        if state == RunState::Paused(PauseReason::IoError) {
            // Nothing tells that there was nothing held back.
            tokio::time::sleep(FAILURE_HELD_BACK).await;
        }
        let resume = move |line: &_| change::resume(line, vm);
        self.change.run("the resume of the VM", self.deadlines.change, resume).await
    }

    async fn process_state(&self, vm: VmId) -> Result<Option<RunState>> {
        let look = move |line: &_| change::process_state(line, vm);
        self.look.run("the question whether the VM runs", self.deadlines.query, look).await
    }

    async fn memory_progress(&self, vm: VmId) -> Result<Option<(u64, u64)>> {
        let Some(image) = self.captures().get(&vm).cloned() else { return Ok(None) };
        let read = move |line: &_| change::memory_progress(line, vm, &image);
        self.look.run("the progress of the capture", self.deadlines.query, read).await
    }

    async fn is_capturing(&self, vm: VmId) -> Result<bool> {
        let look = move |line: &_| change::is_capturing(line, vm);
        self.look.run("the question for a capture", self.deadlines.query, look).await
    }

    async fn abort_memory_capture(&self, vm: VmId, image: &Path) -> Result<()> {
        let image = image.to_owned();
        let abort = move |line: &_| change::abort_memory_capture(line, vm, &image);
        self.change.run("the end of the capture", self.deadlines.change, abort).await
    }

    async fn background_blocker(&self, vm: VmId) -> Result<Option<String>> {
        let awaited = Arc::clone(&self.awaited);
        let look = move |line: &_| background::blocker(line, &awaited, vm);
        self.change.run("the question for background snapshots", self.deadlines.change, look).await
    }

    async fn compression_blocker(&self) -> Result<Option<String>> {
        self.look.run("the question for versions", self.deadlines.query, vms::compression_blocker).await
    }

    async fn prepare_background_capture(&self, vm: VmId, image: &Path) -> Result<()> {
        let image = image.to_owned();
        let awaited = Arc::clone(&self.awaited);
        let prepare = move |line: &_| background::prepare(line, &awaited, vm, &image);
        self.change.run("what a capture needs", self.deadlines.change, prepare).await
    }

    async fn begin_background_capture(&self, vm: VmId, image: &Path) -> Result<()> {
        let image = image.to_owned();
        let awaited = Arc::clone(&self.awaited);
        let begin = move |line: &_| background::begin(line, &awaited, vm, &image);
        self.change.run("the beginning of the capture", self.deadlines.change, begin).await
    }

    async fn prove_background_capture(&self, vm: VmId, image: &Path) -> Result<()> {
        let image = image.to_owned();
        let awaited = Arc::clone(&self.awaited);
        let prove = move |line: &_| background::prove(line, &awaited, vm, &image);
        self.change.run("the proof of the capture", self.deadlines.change, prove).await
    }

    async fn background_capture(&self, vm: VmId, image: &Path) -> Result<BackgroundCapture> {
        let image = image.to_owned();
        let awaited = Arc::clone(&self.awaited);
        let look = move |line: &_| background::look(line, &awaited, vm, &image);
        self.look.run("the progress of the capture", self.deadlines.query, look).await
    }

    async fn end_background_capture(&self, vm: VmId) -> Result<()> {
        let awaited = Arc::clone(&self.awaited);
        // First, and whether libvirt can be reached or not: QEMU may wait for us to read what it writes, and hear nothing else
        // meanwhile. If this task dies, so has the process.
        let giving_up = Arc::clone(&self.awaited);
        let _ = tokio::task::spawn_blocking(move || giving_up.give_up(vm)).await;
        let end = move |line: &_| background::end(line, &awaited, vm);
        // It is asked of all VMs, and a QEMU that hangs is not to hold up what is done to the others.
        self.power.run("the end of the capture", self.deadlines.change, end).await
    }

    async fn start_commit(&self, vm: VmId, commit: &Commit) -> Result<()> {
        let commit = commit.clone();
        let start = move |line: &_| jobs::start_commit(line, vm, &commit);
        self.change.run("the start of the merge", self.deadlines.change, start).await
    }

    async fn start_pull(&self, vm: VmId, pull: &Pull) -> Result<()> {
        let pull = pull.clone();
        let start = move |line: &_| jobs::start_pull(line, vm, &pull);
        self.change.run("the start of the pull", self.deadlines.change, start).await
    }

    async fn block_jobs(&self, vm: VmId) -> Result<Vec<(DiskTarget, BlockJob)>> {
        let read = move |line: &_| jobs::block_jobs(line, vm);
        self.look.run("the list of block jobs", self.deadlines.query, read).await
    }

    async fn pivot(&self, vm: VmId, disk: &DiskTarget) -> Result<()> {
        let disk = disk.clone();
        let pivot = move |line: &_| jobs::pivot(line, vm, &disk);
        self.change.run("the pivot", self.deadlines.change, pivot).await
    }

    async fn limit_block_job(&self, vm: VmId, disk: &DiskTarget, bandwidth: Option<u64>) -> Result<()> {
        let disk = disk.clone();
        let limit = move |line: &_| jobs::limit(line, vm, &disk, bandwidth);
        self.change.run("another limit on the block job", self.deadlines.change, limit).await
    }

    async fn abort_block_job(&self, vm: VmId, disk: &DiskTarget) -> Result<()> {
        let disk = disk.clone();
        let abort = move |line: &_| jobs::abort(line, vm, &disk);
        self.change.run("the end of the block job", self.deadlines.change, abort).await
    }

    async fn served(&self, vm: VmId, disk: &DiskTarget) -> Result<Option<Served>> {
        let disk = disk.clone();
        let read = move |line: &_| served::read(line, vm, &disk);
        self.look.run("the question for what a disk has served", self.deadlines.query, read).await
    }

    async fn io_limits(&self, vm: VmId, disk: &DiskTarget) -> Result<Option<IoLimits>> {
        let disk = disk.clone();
        let read = move |line: &_| io_limits::read(line, vm, &disk);
        self.look.run("the question for I/O limits", self.deadlines.query, read).await
    }

    async fn set_io_limits(&self, vm: VmId, disk: &DiskTarget, limits: &IoLimits) -> Result<()> {
        let (disk, limits) = (disk.clone(), limits.clone());
        let set = move |line: &_| io_limits::set(line, vm, &disk, &limits);
        self.change.run("the change of I/O limits", self.deadlines.change, set).await
    }

    async fn set_block_threshold(&self, vm: VmId, disk: &DiskTarget, bytes: u64) -> Result<()> {
        let disk = disk.clone();
        let set = move |line: &_| jobs::set_threshold(line, vm, &disk, bytes);
        self.change.run("the watch over an image", self.deadlines.change, set).await
    }

    fn events(&self) -> broadcast::Receiver<HostEvent> {
        self.events.subscribe()
    }

    fn link(&self) -> watch::Receiver<Link> {
        self.link.clone()
    }
}

#[async_trait]
impl GuestAgent for Libvirt {
    async fn freeze(&self, vm: VmId, mount_points: &[String], deadline: std::time::Duration) -> Result<u32> {
        self.agent.freeze(vm, mount_points, deadline).await
    }

    async fn thaw(&self, vm: VmId, deadline: std::time::Duration) -> Result<u32> {
        self.agent.thaw(vm, deadline).await
    }

    async fn is_frozen(&self, vm: VmId, deadline: std::time::Duration) -> Result<bool> {
        self.agent.is_frozen(vm, deadline).await
    }
}
