//! What goes wrong, and when: a script over the calls of the traits.
//!
//! Decides at which call which mishap strikes. Leaves what a mishap does to `world`.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::super::HostError;
use super::agent::AgentBehaviour;
use crate::model::vm::PauseReason;
use crate::model::{DiskTarget, VmId};

macro_rules! methods {
    ($($method:ident $name:literal,)*) => {
        /// A method of one of the traits.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[allow(missing_docs, reason = "each is a method of the traits, which explain it")]
        pub enum Method {
            $($method,)*
        }

        impl fmt::Display for Method {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self {
                    $(Self::$method => $name,)*
                })
            }
        }
    };
}

methods! {
    About "about",
    Vms "vms",
    Labels "labels",
    Observe "observe",
    WrittenImage "written_image",
    WrittenImages "written_images",
    Definition "definition",
    SwitchDisks "switch_disks",
    PointDisks "point_disks",
    Start "start",
    Stop "stop",
    Define "define",
    Undefine "undefine",
    Pause "pause",
    Resume "resume",
    ProcessState "process_state",
    MemoryProgress "memory_progress",
    IsCapturing "is_capturing",
    AbortMemoryCapture "abort_memory_capture",
    BackgroundBlocker "background_blocker",
    CompressionBlocker "compression_blocker",
    PrepareBackgroundCapture "prepare_background_capture",
    BeginBackgroundCapture "begin_background_capture",
    ProveBackgroundCapture "prove_background_capture",
    BackgroundCapture "background_capture",
    EndBackgroundCapture "end_background_capture",
    StartCommit "start_commit",
    StartPull "start_pull",
    BlockJobs "block_jobs",
    Pivot "pivot",
    LimitBlockJob "limit_block_job",
    AbortBlockJob "abort_block_job",
    Served "served",
    IoLimits "io_limits",
    SetIoLimits "set_io_limits",
    SetBlockThreshold "set_block_threshold",
    Freeze "freeze",
    Thaw "thaw",
    IsFrozen "is_frozen",
    ThawNow "thaw_now",
    ResumeNow "resume_now",
    CreateOverlay "create_overlay",
    Inspect "inspect",
    LiesOn "lies_on",
    Commit "commit",
    ReadsSame "reads_same",
    LastWritten "last_written",
    Rebase "rebase",
    Copy "copy",
    Publish "publish",
    HardLink "hard_link",
    Replace "replace",
    List "list",
    CopyBytes "copy_bytes",
    Pull "pull",
    WriteFile "write_file",
    ReadFile "read_file",
    Remove "remove",
    IsInUse "is_in_use",
    IsWritten "is_written",
    FreeSpace "free_space",
    Measure "measure",
    MemoryImage "memory_image",
    MemoryFormat "memory_format",
    BeginMemoryImage "begin_memory_image",
    FinishMemoryImage "finish_memory_image",
    WriteBehind "write_behind",
    Sync "sync",
}

impl Method {
    /// Whether it only looks.
    #[must_use]
    pub fn is_look(self) -> bool {
        match self {
            Self::About
            | Self::Vms
            | Self::Labels
            | Self::Observe
            | Self::WrittenImage
            | Self::WrittenImages
            | Self::Definition
            | Self::MemoryProgress
            | Self::IsCapturing
            | Self::ProcessState
            | Self::BackgroundBlocker
            | Self::CompressionBlocker
            | Self::BackgroundCapture
            | Self::BlockJobs
            | Self::Served
            | Self::IoLimits
            | Self::IsFrozen
            | Self::Inspect
            | Self::LiesOn
            | Self::List
            | Self::ReadFile
            | Self::IsInUse
            | Self::IsWritten
            | Self::FreeSpace
            | Self::Measure
            | Self::ReadsSame
            | Self::LastWritten
            | Self::MemoryImage
            | Self::MemoryFormat
            // They change nothing that anybody reads.
            | Self::SetBlockThreshold
            | Self::WriteBehind
            | Self::ProveBackgroundCapture
            | Self::EndBackgroundCapture => true,
            Self::SwitchDisks
            | Self::PointDisks
            | Self::Start
            | Self::Stop
            | Self::Define
            | Self::Undefine
            | Self::Pause
            | Self::Resume
            | Self::AbortMemoryCapture
            | Self::PrepareBackgroundCapture
            | Self::BeginBackgroundCapture
            | Self::BeginMemoryImage
            | Self::FinishMemoryImage
            | Self::StartCommit
            | Self::StartPull
            | Self::Pivot
            | Self::LimitBlockJob
            | Self::AbortBlockJob
            | Self::SetIoLimits
            | Self::Freeze
            | Self::Thaw
            | Self::ThawNow
            | Self::ResumeNow
            | Self::CreateOverlay
            | Self::Commit
            | Self::Rebase
            | Self::Copy
            | Self::Publish
            | Self::HardLink
            | Self::Replace
            | Self::CopyBytes
            | Self::Pull
            | Self::WriteFile
            | Self::Remove
            | Self::Sync => false,
        }
    }

    /// Whether [`Moment::Midway`] means anything to it.
    pub(super) fn has_middle(self) -> bool {
        matches!(
            self,
            Self::SwitchDisks
                | Self::Start
                | Self::Pivot
                | Self::CreateOverlay
                | Self::Commit
                | Self::Copy
                | Self::CopyBytes
                | Self::Pull
                | Self::WriteFile
                | Self::BeginMemoryImage
        )
    }

    /// Whether it goes over the link to the hypervisor. The calls on files do not.
    pub(super) fn needs_link(self) -> bool {
        self < Self::CreateOverlay
    }
}

/// One call: the n-th of its method, counted from one. Shown as `observe#3`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Call {
    /// The method.
    pub method: Method,
    /// Which of its calls.
    pub occurrence: usize,
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}#{}", self.method, self.occurrence)
    }
}

/// Something that goes wrong at a call.
#[derive(Debug, Clone)]
pub struct Fault {
    /// At which call.
    pub at: Trigger,
    /// When, with regard to the effect of the call.
    pub moment: Moment,
    /// What.
    pub mishap: Mishap,
}

/// At which call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trigger {
    /// At this one.
    Call(Call),
    /// At the n-th of all calls, counted from one.
    Number(usize),
    /// At each of a method.
    Each(Method),
}

/// When, with regard to the effect of the call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// There is no effect.
    Before,
    /// The effect is half: see [`super`] for what that means. A call without a middle has no effect.
    Midway,
    /// There is the effect, or the call's own error is lost.
    After,
}

/// How much of its effect a call is to have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Extent {
    /// All.
    Whole,
    /// Half, and then something breaks.
    Half,
}

/// What goes wrong. Only the first four end the call themselves.
#[derive(Debug, Clone)]
pub enum Mishap {
    /// The call gives an error.
    Error(Complaint),
    /// The call gives no answer in time, nor do so many looks after it.
    Blind {
        /// How many.
        looks: u32,
    },
    /// The call never returns. Whoever waits for it is as good as dead.
    Hang,
    /// The call has its effect and does not return before it is let go on.
    Late(Hold),
    /// The link to the hypervisor breaks. It comes back when so many calls have failed over it.
    LinkDown {
        /// How many.
        calls: u32,
    },
    /// The link comes back.
    LinkUp,
    /// No space is left.
    NoSpace,
    /// A VM ends.
    VmStops(VmId),
    /// Somebody starts a VM.
    VmStarts(VmId),
    /// A VM is paused.
    VmPauses(VmId, PauseReason),
    /// Somebody resumes a VM.
    VmResumes(VmId),
    /// The hypervisor dies before it can note what it has changed: it believes something wrong of the images that a VM
    /// uses, until the VM stops.
    VmKnownWrongly(VmId),
    /// A guest agent changes its ways.
    Agent(VmId, AgentBehaviour),
}

impl Mishap {
    pub(super) fn ends_the_call(&self) -> bool {
        match self {
            Self::Error(_) | Self::Blind { .. } | Self::Hang | Self::Late(_) => true,
            Self::LinkDown { .. }
            | Self::LinkUp
            | Self::NoSpace
            | Self::VmStops(_)
            | Self::VmStarts(_)
            | Self::VmPauses(..)
            | Self::VmResumes(_)
            | Self::VmKnownWrongly(_)
            | Self::Agent(..) => false,
        }
    }
}

/// Holds a call: a test waits until it is there, looks around, and lets it go on. Clones are the same hold.
#[derive(Debug, Clone, Default)]
pub struct Hold {
    reached: CancellationToken,
    released: CancellationToken,
}

impl Hold {
    /// Until the call is there, its effect included.
    pub async fn reached(&self) {
        self.reached.cancelled().await;
    }

    /// Lets the call return.
    pub fn release(&self) {
        self.released.cancel();
    }

    pub(super) async fn hold(&self) {
        self.reached.cancel();
        self.released.cancelled().await;
    }
}

/// An error to be given.
#[derive(Debug, Clone)]
pub enum Complaint {
    /// [`HostError::Refused`].
    Refused,
    /// [`HostError::Busy`].
    Busy,
    /// [`HostError::TimedOut`].
    TimedOut,
    /// [`HostError::Unreachable`].
    Unreachable,
    /// [`HostError::NotReady`].
    NotReady(DiskTarget),
    /// [`HostError::AgentUnavailable`].
    AgentUnavailable,
    /// [`HostError::AgentRefused`].
    AgentRefused,
    /// [`HostError::NoSpace`].
    NoSpace(PathBuf),
    /// [`HostError::Program`].
    Program,
    /// [`HostError::Malformed`]: an answer that makes no sense.
    Garbage,
}

impl Complaint {
    pub(super) fn error(self) -> HostError {
        let cause = || "a fault that was asked for".into();
        match self {
            Self::Refused => HostError::Refused { call: "do what was asked", cause: cause() },
            Self::Busy => HostError::Busy(cause()),
            Self::TimedOut => HostError::TimedOut { call: "the call", after: Duration::from_secs(30) },
            Self::Unreachable => HostError::Unreachable(Some(cause())),
            Self::NotReady(disk) => HostError::NotReady(disk),
            Self::AgentUnavailable => HostError::AgentUnavailable(Some(cause())),
            Self::AgentRefused => HostError::AgentRefused(cause()),
            Self::NoSpace(path) => HostError::NoSpace(path),
            Self::Program => HostError::Program { program: "qemu-img", output: "a fault".to_owned() },
            Self::Garbage => HostError::Malformed { what: "an answer", cause: cause() },
        }
    }
}

/// The calls so far, and the faults to come.
#[derive(Debug, Default)]
pub(super) struct Script {
    calls: Vec<Call>,
    occurrences: BTreeMap<Method, usize>,
    faults: Vec<Fault>,
    /// So many looks fail from now on.
    pub(super) blind_looks: u32,
    /// The hypervisor dies in the middle of the present call, and notes nothing more.
    pub(super) dies_midway: bool,
}

impl Script {
    pub(super) fn add(&mut self, fault: Fault) {
        self.faults.push(fault);
    }

    /// No more faults; the calls are counted from one again.
    pub(super) fn reset(&mut self) {
        *self = Self::default();
    }

    pub(super) fn calls(&self) -> Vec<Call> {
        self.calls.clone()
    }

    pub(super) fn calls_after(&self, count: usize) -> Vec<Call> {
        self.calls.get(count..).unwrap_or_default().to_vec()
    }

    /// The next call of a method.
    pub(super) fn next(&self, method: Method) -> Call {
        Call { method, occurrence: 1 + self.occurrences.get(&method).copied().unwrap_or_default() }
    }

    /// How many calls there were.
    pub(super) fn count(&self) -> usize {
        self.calls.len()
    }

    /// Counts a call. Gives the faults that strike it.
    pub(super) fn begin(&mut self, method: Method) -> Vec<Fault> {
        let call = self.next(method);
        self.occurrences.insert(method, call.occurrence);
        self.calls.push(call);
        let number = self.calls.len();
        let strikes = |fault: &&Fault| match fault.at {
            Trigger::Call(at) => at == call,
            Trigger::Number(at) => at == number,
            Trigger::Each(at) => at == method,
        };
        self.faults.iter().filter(strikes).cloned().collect()
    }
}
