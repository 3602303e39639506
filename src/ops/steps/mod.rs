//! How each step is seen, made so and unmade. Look; act if needed; on an error look again: an error proves nothing.
//!
//! Decides only what was seen. Leaves what it means for the operation to the cursor. Must never choose a name, an
//! order or another step.

use std::collections::BTreeSet;
use std::future::Future;
use std::path::Path;

use jiff::Timestamp;
use tokio::sync::{broadcast, watch};
use tokio_util::sync::CancellationToken;

use crate::host::{Host, HostError, HostEvent, Result as HostResult};
use crate::model::step::Step;
use crate::model::vm::{Format, RunState};
use crate::model::{Cause, Failure, Finding, Operation, Outcome, SnapshotState, Turn, VmId, VmView};
use crate::plan::Places;
use crate::store::{Store, StoreError};

use super::board::Reporter;
use super::deadman::DeadMan;
use super::manifest::Manifests;
use super::{Engine, Limits, OpsError};

mod adopt;
mod background;
mod capture;
mod clone;
mod convergence;
mod detached;
mod images;
mod merge;
mod pause;
mod pivot;
mod position;
mod power;
mod quiesce;
mod switch;
mod switch_back;
mod unnoted;
mod variables;

pub(super) use position::SeenBefore;
pub(super) use quiesce::{Thawed, prove};

/// What a step may use.
pub(super) struct Context<'a> {
    /// To look at the VM with.
    pub(super) engine: &'a Engine,
    pub(super) host: &'a Host,
    pub(super) store: &'a Store,
    pub(super) places: &'a Places,
    pub(super) dead_man: &'a DeadMan,
    pub(super) manifests: &'a Manifests,
    pub(super) limits: &'a Limits,
    pub(super) reporter: &'a Reporter,
    pub(super) operation: &'a Operation,
    /// Whether this turn has never been tried before, in this life of the process or an earlier one.
    pub(super) is_fresh: bool,
    /// The most bytes per second that are copied for each disk; it may change at any time.
    pub(super) bandwidth: watch::Receiver<Option<u64>>,
    /// What was seen ahead of its switch, in this life.
    pub(super) seen_before: &'a SeenBefore,
    /// Somebody wants the operation undone.
    pub(super) cancelled: &'a CancellationToken,
    /// The daemon is going down.
    pub(super) stopping: &'a CancellationToken,
}

impl Context<'_> {
    fn vm(&self) -> VmId {
        self.operation.vm
    }

    /// The most bytes per second that may be copied for each disk now.
    fn bandwidth(&self) -> Option<u64> {
        *self.bandwidth.borrow()
    }

    /// The VM as it is. An error if it went to another node: what is done to its disks from here would be done under it.
    async fn look_at_vm(&self) -> HostResult<VmView> {
        let view = self.engine.look_at_vm(self.vm()).await?;
        if view.run_state == RunState::Migrated { Err(HostError::Migrated) } else { Ok(view) }
    }

    /// That the VM is on this node, whatever is known of its disks.
    async fn check_here(&self) -> HostResult<()> {
        self.run_state(self.vm()).await?.map(|_| ()).ok_or(HostError::NoSuchVm(self.vm()))
    }

    /// What a VM does; None if there is none. An error if it went to another node.
    async fn run_state(&self, vm: VmId) -> HostResult<Option<RunState>> {
        let vms = self.host.hypervisor.vms().await?;
        let Some(summary) = vms.into_iter().find(|summary| summary.id == vm) else { return Ok(None) };
        match self.engine.with_departure(vm, summary.run_state).await {
            RunState::Migrated => Err(HostError::Migrated),
            run_state => Ok(Some(run_state)),
        }
    }

    /// That no VM which went to another node has one of the images: what has it open there shows no lock here.
    async fn check_not_elsewhere(&self, images: &[&Path]) -> HostResult<()> {
        let why = match self.engine.who_has_elsewhere(images).await {
            Ok(None) => return Ok(()),
            Ok(Some(vm)) => format!("VM {vm}, which has migrated to another node, has it"),
            Err(OpsError::Host(error)) => return Err(error),
            Err(error) => error.to_string(),
        };
        let path = images.first().map(|image| image.to_path_buf()).unwrap_or_default();
        Err(HostError::Needed { path, why })
    }

    /// That no other VM of this node reads or names one of the images: somebody may have made an overlay over one since this
    /// was planned. A VM that cannot be looked at may have any that somebody has open. Whoever else has one open, a backup
    /// say, goes on with that.
    async fn check_not_beside(&self, images: &[&Path]) -> HostResult<()> {
        if images.is_empty() {
            return Ok(());
        }
        let mut is_all_seen = true;
        for vm in self.host.hypervisor.vms().await? {
            if vm.id == self.vm() {
                continue;
            }
            // libvirt lets everybody wait who asks about a VM whose memory is captured.
            let seen = if self.engine.captures_memory(vm.id).await {
                Err(HostError::Busy("its memory is being captured".into()))
            } else {
                self.host.hypervisor.observe(vm.id).await
            };
            match seen {
                Ok(view) => {
                    if let Some(file) = view.files().find(|file| images.contains(&file.as_path())) {
                        return Err(HostError::ImageInUse(file.clone()));
                    }
                }
                Err(HostError::NoSuchVm(_)) => {}
                Err(error @ HostError::Unreachable(_)) => return Err(error),
                Err(_) => is_all_seen = false,
            }
        }
        for image in images.iter().filter(|_| !is_all_seen) {
            match self.host.images.is_in_use(image, Format::Raw).await {
                Ok(false) | Err(HostError::NoSuchImage(_)) => {}
                Ok(true) => return Err(HostError::ImageInUse(image.to_path_buf())),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// What a change of the catalog comes from.
    fn cause(&self) -> Cause {
        Cause {
            operation: Some(self.operation.id),
            actor: self.operation.created_by.clone(),
            at: Timestamp::now(),
        }
    }
}

/// What came of a turn.
pub(super) enum Performed {
    /// It was seen, or not.
    Seen {
        /// What was seen.
        outcome: Outcome,
        /// What was learned.
        findings: Vec<Finding>,
        /// What went wrong.
        failure: Option<Failure>,
    },
    /// It was left half way because the daemon is going down; the next life goes on with it.
    Interrupted,
}

impl Performed {
    fn done() -> Self {
        Self::learned(Vec::new())
    }

    fn learned(findings: Vec<Finding>) -> Self {
        Self::Seen { outcome: Outcome::Done, findings, failure: None }
    }

    fn is_done(&self) -> bool {
        matches!(self, Self::Seen { outcome: Outcome::Done, .. })
    }

    fn not_applied(failure: impl Into<Failure>) -> Self {
        Self::Seen { outcome: Outcome::NotApplied, findings: Vec::new(), failure: Some(failure.into()) }
    }

    fn gave_up(failure: impl Into<Failure>) -> Self {
        Self::Seen { outcome: Outcome::GaveUp, findings: Vec::new(), failure: Some(failure.into()) }
    }

    fn unknown(failure: impl Into<Failure>) -> Self {
        Self::Seen { outcome: Outcome::Unknown, findings: Vec::new(), failure: Some(failure.into()) }
    }
}

impl From<HostError> for Failure {
    fn from(error: HostError) -> Self {
        Self::new(error.reason(), &error)
    }
}

impl From<OpsError> for Failure {
    fn from(error: OpsError) -> Self {
        Self::new(error.reason(), &error)
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::new(error.reason(), &error)
    }
}

/// Carries out one turn.
pub(super) async fn perform(context: &Context<'_>, turn: Turn) -> Performed {
    let step = context.operation.step(turn);
    let performed = match turn {
        Turn::Ensure(_) => ensure(context, step).await,
        Turn::Undo(_) => undo(context, step).await,
    };
    if changes_catalog(step) {
        // Before anything is done that builds on it.
        context.manifests.settle(&BTreeSet::from([context.vm()])).await;
    }
    performed
}

fn changes_catalog(step: &Step) -> bool {
    matches!(step, Step::MarkDeleting { .. } | Step::MarkReverting { .. } | Step::Record(_))
}

async fn ensure(context: &Context<'_>, step: &Step) -> Performed {
    match step {
        // Entered together with the operation.
        Step::ReserveSnapshot { .. } | Step::ReserveClones { .. } => Performed::done(),
        Step::CopyImage(copy) => clone::copy(context, copy).await,
        Step::PublishImage { from, to } => clone::publish(context, from, to).await,
        Step::LinkImage { from, to } => detached::link(context, from, to).await,
        Step::ReplaceImage { from, to } => detached::replace(context, from, to).await,
        Step::CheckUnused { image } => clone::check_unused(context, image).await,
        Step::CheckUnwritten { image } => clone::check_unwritten(context, image).await,
        Step::FlattenImage { image } => clone::flatten(context, image).await,
        Step::DefineVm(new) => clone::define(context, new).await,
        Step::StartNewVm { vm, paused } => clone::start(context, *vm, *paused).await,
        Step::CreateOverlay(overlay) => images::create_overlay(context, overlay).await,
        Step::PrepareMemoryImage { path } => images::prepare_memory(context, path).await,
        Step::BeginMemoryImage { snapshot, path, format } => {
            background::begin_image(context, *snapshot, path, *format).await
        }
        Step::PauseVm { snapshot, timeout_ms } => pause::pause(context, *snapshot, *timeout_ms).await,
        Step::PrepareCapture { path } => background::prepare(context, path).await,
        Step::CaptureMemory { path } => background::begin(context, path).await,
        Step::ProveCapture { path } => background::prove(context, path).await,
        Step::ResumeVm => pause::resume_in_time(context).await,
        Step::AwaitMemory { path } => background::await_end(context, path).await,
        Step::FinishMemoryImage { path } => background::finish(context, path).await,
        Step::CopyVariables { from, to } => variables::copy(context, from, to).await,
        Step::RestoreVariables { from, to, .. } => variables::restore(context, from, to).await,
        Step::CheckMemoryImage { path, bytes } => images::check_memory(context, path, *bytes).await,
        Step::RemoveImages { images } => images::remove(context, images).await,
        Step::RemoveOrphan { file } => images::remove_orphan(context, file).await,
        Step::FlushImages { images } => images::flush(context, images).await,
        Step::Freeze(freeze) => quiesce::freeze(context, freeze).await,
        Step::Thaw => quiesce::thaw(context).await,
        Step::ConfirmQuiesce => quiesce::confirm(context),
        Step::SwitchDisks(switch) => switch::switch(context, switch).await,
        Step::Merge(merge) => merge::merge(context, merge).await,
        Step::Stop { .. } => power::stop(context).await,
        Step::PointDisks { disks } => power::point(context, disks, power::Way::Forth).await,
        Step::Start(start) => power::start(context, start).await,
        Step::MarkDeleting { snapshot, .. } => {
            let is_expired = context.operation.request.expired().contains(snapshot);
            stored(context.store.mark_deleting(*snapshot, is_expired, context.cause()).await)
        }
        Step::MarkReverting { snapshot } => {
            stored(context.store.set_state(*snapshot, SnapshotState::Reverting, context.cause()).await)
        }
        Step::Record(change) => adopt::record(context, change).await,
    }
}

async fn undo(context: &Context<'_>, step: &Step) -> Performed {
    match step {
        Step::ReserveSnapshot { snapshot } => {
            stored(context.store.forget_reservation(*snapshot, context.cause()).await)
        }
        Step::ReserveClones { clones } => {
            stored(context.store.forget_clones(clones.clone(), context.cause()).await)
        }
        Step::CopyImage(copy) => images::remove_unused(context, &copy.path).await,
        Step::PublishImage { from, to } => clone::take_back(context, from, to).await,
        Step::LinkImage { from, to } => detached::unlink(context, from, to).await,
        Step::DefineVm(new) => clone::undefine(context, new.vm).await,
        Step::StartNewVm { vm, .. } => clone::stop(context, *vm).await,
        Step::CreateOverlay(overlay) => images::remove_unused(context, &overlay.path).await,
        Step::PrepareMemoryImage { path } | Step::BeginMemoryImage { path, .. } => {
            images::remove_unused(context, path).await
        }
        Step::PauseVm { .. } => pause::resume(context).await,
        Step::CaptureMemory { .. } | Step::ProveCapture { .. } => background::undo_begin(context).await,
        Step::PrepareCapture { .. } | Step::AwaitMemory { .. } => background::take_back(context).await,
        Step::CopyVariables { to, .. } => images::remove_unused(context, to).await,
        Step::RestoreVariables { to, before, .. } => match before {
            Some(before) => variables::restore(context, before, to).await,
            None => images::remove_unused(context, to).await,
        },
        Step::Freeze(_) | Step::Thaw => quiesce::thaw(context).await,
        Step::SwitchDisks(switch) => switch_back::take_back(context, switch).await,
        Step::MarkDeleting { snapshot, was } => {
            stored(context.store.set_state(*snapshot, *was, context.cause()).await)
        }
        Step::MarkReverting { snapshot } => {
            stored(context.store.set_state(*snapshot, SnapshotState::Ready, context.cause()).await)
        }
        Step::Stop { was } => power::start_again(context, *was).await,
        Step::PointDisks { disks } => power::point(context, disks, power::Way::Back).await,
        Step::Start(_) => power::stop(context).await,
        // Nothing to take back: they only look, nothing reads otherwise for them, or they stand behind every commit
        // point.
        Step::CheckMemoryImage { .. }
        | Step::CheckUnused { .. }
        | Step::CheckUnwritten { .. }
        | Step::ReplaceImage { .. }
        | Step::FlattenImage { .. }
        | Step::FlushImages { .. }
        | Step::ConfirmQuiesce
        | Step::ResumeVm
        | Step::FinishMemoryImage { .. }
        | Step::Merge(_)
        | Step::RemoveImages { .. }
        | Step::RemoveOrphan { .. }
        | Step::Record(_) => Performed::done(),
    }
}

/// Until one of these is told. Of events that were lost nothing is told: whoever waits looks again in time.
async fn told(events: &mut broadcast::Receiver<HostEvent>, awaited: &[HostEvent]) {
    loop {
        match events.recv().await {
            Ok(event) if awaited.contains(&event) => return,
            Ok(_) => {}
            Err(_) => return std::future::pending().await,
        }
    }
}

/// A catalog write: done, or it is not known whether it was.
fn stored(result: Result<(), StoreError>) -> Performed {
    match result {
        Ok(()) => Performed::done(),
        Err(error @ StoreError::Edit(_)) => Performed::not_applied(error),
        Err(error) => Performed::unknown(error),
    }
}

/// Look; act if needed; look again.
///
/// A call that gave no answer in time may still take effect: then what is seen is no proof of absence.
async fn make_so<Look, Looking, Act, Acting>(look: Look, act: Act) -> Performed
where
    Look: Fn() -> Looking,
    Looking: Future<Output = HostResult<bool>>,
    Act: FnOnce() -> Acting,
    Acting: Future<Output = HostResult<()>>,
{
    match look().await {
        Ok(true) => return Performed::done(),
        Ok(false) => {}
        Err(error) => return Performed::unknown(error),
    }
    let acted = act().await;
    match (look().await, acted) {
        (Ok(true), _) => Performed::done(),
        (Ok(false), Ok(())) => Performed::unknown(HostError::Malformed {
            what: "a call that claims success without effect",
            cause: "the effect is not to be seen".into(),
        }),
        (Ok(false), Err(error)) if leaves_something_under_way(&error) => Performed::unknown(error),
        (Ok(false), Err(error)) => Performed::not_applied(error),
        (Err(error), Ok(())) | (Err(_), Err(error)) => Performed::unknown(error),
    }
}

/// Whether what was asked for may still come about. An answer that makes no sense is none.
fn leaves_something_under_way(error: &HostError) -> bool {
    matches!(error, HostError::TimedOut { .. } | HostError::Unreachable(_) | HostError::Malformed { .. })
}
