//! The simulated node as a whole: files, VMs, and what went wrong with them.
//!
//! Decides what a call comes to when faults strike it, who has an image open, and what counts as a violation: a thing
//! that no correct daemon lets happen. Leaves the effect of each call to the files beside this one.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::{broadcast, watch};

use super::super::{HostError, HostEvent, Link, Result};
use super::fault::{Complaint, Extent, Fault, Hold, Method, Mishap, Moment, Script};
use super::files::Files;
use super::looks::Looks;
use super::machine::{Live, Machine};
use crate::model::step::ImageRef;
use crate::model::vm::RunState;
use crate::model::{DiskTarget, VmId};

/// Everything.
#[derive(Debug)]
pub(super) struct World {
    pub(super) files: Files,
    pub(super) machines: BTreeMap<VmId, Machine>,
    pub(super) script: Script,
    pub(super) violations: Vec<String>,
    pub(super) events: broadcast::Sender<HostEvent>,
    link: Link,
    /// Who is told of the link. Each has a channel of its own: those who wait on one are told in any order.
    link_watchers: Vec<watch::Sender<Link>>,
    /// So many calls fail over a broken link before it comes back; None if it does not by itself.
    link_failures_left: Option<u32>,
    /// In how many notches a block job copies.
    pub(super) job_notches: u32,
    /// No block job gets anything written.
    pub(super) storage_hangs: bool,
    /// Why compressed memory can be neither written nor read here.
    pub(super) compression_blocker: Option<String>,
    /// Boots so far, of all VMs.
    pub(super) boots: u64,
    /// Captures of memory so far.
    pub(super) captures: u64,
    /// What became of captures that nobody has asked about yet.
    pub(super) captured: BTreeMap<u64, Result<()>>,
    /// How many turns the others get during each call; begins anew at its end.
    pub(super) pace: Vec<u8>,
    /// Events that nobody has been told of yet, while they are held.
    held_events: Option<Vec<HostEvent>>,
    /// VMs that were undefined and may come back.
    pub(super) away: BTreeMap<VmId, Machine>,
    pub(super) looks: Looks,
}

/// What a call comes to.
#[derive(Debug)]
pub(super) enum Answer<T> {
    Given(Result<T>),
    Late(Result<T>, Hold),
    Never,
}

impl World {
    pub(super) fn new() -> Self {
        Self {
            files: Files::new(),
            machines: BTreeMap::new(),
            script: Script::default(),
            violations: Vec::new(),
            events: broadcast::channel(4096).0,
            link: Link::Up,
            link_watchers: Vec::new(),
            link_failures_left: None,
            job_notches: 2,
            storage_hangs: false,
            compression_blocker: None,
            boots: 0,
            captures: 0,
            captured: BTreeMap::new(),
            pace: vec![1],
            held_events: None,
            away: BTreeMap::new(),
            looks: Looks::default(),
        }
    }

    /// Another world like this one, where nothing goes wrong yet and nobody listens.
    pub(super) fn fork(&self) -> Self {
        Self {
            files: self.files.clone(),
            machines: self.machines.clone(),
            violations: self.violations.clone(),
            job_notches: self.job_notches,
            boots: self.boots,
            captures: self.captures,
            ..Self::new()
        }
    }

    /// One call, with the faults that strike it.
    pub(super) fn perform<T>(
        &mut self,
        method: Method,
        effect: impl FnOnce(&mut Self, Extent) -> Result<T>,
    ) -> Answer<T> {
        let faults = self.script.begin(method);
        self.looks.begin_call();
        self.meanwhile(&faults, |moment| moment != Moment::After);
        if let Some(error) = self.unheard(method) {
            return Answer::Given(Err(error));
        }
        let end = faults.iter().find(|fault| fault.mishap.ends_the_call());
        let extent = match end {
            // Who did not get the VM did nothing with it, and libvirt says that in no other case.
            Some(Fault { mishap: Mishap::Error(Complaint::Busy), .. }) if method == Method::SwitchDisks => {
                None
            }
            None | Some(Fault { moment: Moment::After, .. } | Fault { mishap: Mishap::Late(_), .. }) => {
                Some(Extent::Whole)
            }
            Some(Fault { moment: Moment::Midway, .. }) if method.has_middle() => Some(Extent::Half),
            Some(Fault { moment: Moment::Midway | Moment::Before, .. }) => None,
        };
        let is_unanswered = end.is_some_and(|fault| {
            matches!(fault.mishap, Mishap::Hang | Mishap::Error(Complaint::Unreachable))
        });
        self.script.dies_midway = extent == Some(Extent::Half) && is_unanswered;
        let result = extent.map(|extent| effect(self, extent));
        let answer = match (end.map(|fault| fault.mishap.clone()), result) {
            (Some(Mishap::Hang), _) => Answer::Never,
            (Some(Mishap::Late(hold)), Some(result)) => Answer::Late(result, hold),
            (Some(Mishap::Blind { looks }), _) => {
                self.script.blind_looks = looks;
                Answer::Given(Err(no_answer()))
            }
            (Some(Mishap::Error(complaint)), _) => Answer::Given(Err(complaint.error())),
            (_, Some(result)) => Answer::Given(result),
            (_, None) => Answer::Given(Err(no_answer())),
        };
        self.meanwhile(&faults, |moment| moment == Moment::After);
        match answer {
            // The effect is there, the answer is lost.
            Answer::Given(_) if method.needs_link() && !self.is_linked() => {
                Answer::Given(Err(self.unlinked()))
            }
            answer => answer,
        }
    }

    /// Why a call does not get through at all.
    fn unheard(&mut self, method: Method) -> Option<HostError> {
        if method.needs_link() && !self.is_linked() {
            let error = self.unlinked();
            if let Some(left) = self.link_failures_left.as_mut() {
                *left = left.saturating_sub(1);
                if *left == 0 {
                    self.link_failures_left = None;
                    self.set_link(Link::Up);
                }
            }
            return Some(error);
        }
        if method.is_look() && self.script.blind_looks > 0 {
            self.script.blind_looks -= 1;
            return Some(no_answer());
        }
        None
    }

    pub(super) fn is_linked(&self) -> bool {
        self.link == Link::Up
    }

    pub(super) fn set_link(&mut self, link: Link) {
        if self.link != link {
            self.link = link;
            self.link_watchers.retain(|watcher| watcher.send(self.link.clone()).is_ok());
        }
    }

    pub(super) fn watch_link(&mut self) -> watch::Receiver<Link> {
        self.link_watchers.retain(|watcher| !watcher.is_closed());
        let (sender, receiver) = watch::channel(self.link.clone());
        self.link_watchers.push(sender);
        receiver
    }

    fn unlinked(&self) -> HostError {
        match &self.link {
            Link::Up => HostError::Unreachable(None),
            Link::Down(why) => HostError::Unreachable(Some(why.clone().into())),
        }
    }

    /// Breaks the link until so many calls have failed over it.
    pub(super) fn break_link(&mut self, calls: u32) {
        self.link_failures_left = Some(calls);
        self.set_link(Link::Down("the simulated link is down".to_owned()));
    }

    /// What happens to the world while a call is made.
    fn meanwhile(&mut self, faults: &[Fault], is_now: impl Fn(Moment) -> bool) {
        for fault in faults.iter().filter(|fault| is_now(fault.moment)) {
            match &fault.mishap {
                Mishap::Error(_) | Mishap::Blind { .. } | Mishap::Hang | Mishap::Late(_) => {}
                Mishap::LinkDown { calls } => self.break_link(*calls),
                Mishap::LinkUp => {
                    self.set_link(Link::Up);
                }
                Mishap::NoSpace => self.files.set_free(0),
                // One that cannot happen now does not: the VM is off already, or gone.
                Mishap::VmStops(vm) => drop(self.stop(*vm)),
                Mishap::VmStarts(vm) => drop(self.boot(*vm, false, Extent::Whole)),
                Mishap::VmPauses(vm, reason) => self.set_run_state(*vm, RunState::Paused(*reason)),
                // In the midst of a capture of its own libvirt refuses that.
                Mishap::VmResumes(vm) if self.is_captured(*vm) => {}
                Mishap::VmResumes(vm) => self.set_run_state(*vm, RunState::Running),
                Mishap::VmKnownWrongly(vm) => self.know_wrongly(*vm),
                Mishap::Agent(vm, behaviour) => self.set_agent(*vm, *behaviour),
            }
        }
    }

    /// Tells whoever listens. Over a broken link nobody hears.
    pub(super) fn emit(&mut self, event: HostEvent) {
        if let Some(held) = &mut self.held_events {
            held.push(event);
        } else if self.is_linked() {
            // Nobody listens: nobody is told.
            let _ = self.events.send(event);
        }
    }

    /// From now on events come late, or what came late is told.
    pub(super) fn hold_events(&mut self, is_held: bool) {
        if is_held {
            self.held_events.get_or_insert_default();
            return;
        }
        for event in self.held_events.take().unwrap_or_default() {
            self.emit(event);
        }
    }

    /// What comes late is never told, and what comes from now on in time.
    pub(super) fn lose_events(&mut self) {
        self.held_events = None;
    }

    /// How many turns the others get during the next call.
    pub(super) fn turns(&self) -> u8 {
        self.pace.get(self.script.count() % self.pace.len().max(1)).copied().unwrap_or(1)
    }

    pub(super) fn machine(&mut self, vm: VmId) -> Result<&mut Machine> {
        self.machines.get_mut(&vm).ok_or(HostError::NoSuchVm(vm))
    }

    /// The process of a VM.
    pub(super) fn live(&mut self, vm: VmId, call: &'static str) -> Result<&mut Live> {
        self.machine(vm)?.live.as_mut().ok_or_else(|| refused(call, "the VM is off"))
    }

    /// Something that no correct daemon lets happen.
    pub(super) fn violate(&mut self, what: String) {
        self.violations.push(what);
    }

    /// Before an image is written to by a merge.
    pub(super) fn note_write(&mut self, path: &Path) {
        if self.files.image(path).is_ok_and(|image| image.is_template) {
            self.violate(format!("the template {} is written to", path.display()));
        }
        self.note_change(path);
    }

    /// Before an image is changed that VMs on other nodes may have open.
    pub(super) fn note_change(&mut self, path: &Path) {
        let reads = |machine: &&Machine| is_open_on_another_node(machine, path);
        if let Some(name) =
            self.machines.values().chain(self.away.values()).find(reads).map(|machine| machine.name.clone())
        {
            self.violate(format!("{} is changed, but VM {name} has it open on another node", path.display()));
        }
    }

    /// Whether the process of another VM than this one has an image open.
    pub(super) fn is_open_elsewhere(&self, path: &Path, vm: VmId) -> bool {
        self.machines.iter().any(|(id, machine)| *id != vm && uses(machine, path))
    }

    /// Whether the process of any VM has an image open.
    pub(super) fn is_open(&self, path: &Path) -> bool {
        self.machines.values().any(|machine| uses(machine, path))
    }

    /// Whether the process of another VM than this one writes to an image.
    pub(super) fn is_written_elsewhere(&self, path: &Path, vm: VmId) -> bool {
        self.machines.iter().any(|(id, machine)| *id != vm && writes(machine, path))
    }

    /// Whether the process of any VM writes to an image.
    pub(super) fn is_written(&self, path: &Path) -> bool {
        self.machines.values().any(|machine| writes(machine, path))
    }

    /// Who needs an image, in words.
    pub(super) fn needs(&self, path: &Path) -> Vec<String> {
        let mut needs: Vec<String> =
            self.files.overlays_on(path).map(|overlay| format!("{} lies on it", overlay.display())).collect();
        for machine in self.away.values().filter(|machine| is_open_on_another_node(machine, path)) {
            needs.push(format!("VM {} has it open on another node", machine.name));
        }
        for machine in self.machines.values() {
            if uses(machine, path) {
                needs.push(format!("VM {} has it open", machine.name));
            }
            if is_open_on_another_node(machine, path) {
                needs.push(format!("VM {} has it open on another node", machine.name));
            }
            if machine.stored.values().any(|image| image.path == path) {
                needs.push(format!("the definition of VM {} names it", machine.name));
            }
            if machine.other_files.iter().any(|file| file == path) {
                needs.push(format!("the definition of VM {} names it for another disk", machine.name));
            }
        }
        needs
    }

    /// The stored definition names another image, if it named the one that the process wrote to.
    pub(super) fn store_if_named(&mut self, vm: VmId, disk: &DiskTarget, from: &PathBuf, to: ImageRef) {
        let Some(machine) = self.machines.get_mut(&vm) else { return };
        if let Some(stored) = machine.stored.get_mut(disk)
            && stored.path == *from
        {
            *stored = to;
            machine.listed.remove(disk);
        }
    }

    /// A notch of progress for everything that is under way on a VM.
    pub(super) fn advance(&mut self, vm: VmId) {
        self.advance_load(vm);
        self.advance_served(vm);
        self.advance_jobs(vm);
        self.advance_capture(vm);
        self.advance_background(vm);
        self.end_what_is_not_up(vm);
    }

    /// Nothing is done to a VM that runs on another node, or comes back from there. Who has looked before it left, and done
    /// nothing in between, cannot know.
    pub(super) fn is_let_alone(&mut self, vm: VmId, what: &str) {
        let has_left = |machine: &Machine| machine.elsewhere.is_some() && !machine.has_left_unseen;
        if self.machines.get(&vm).is_some_and(has_left) && !self.looks.has_just_seen(vm) {
            self.violate(format!("VM {vm} {what}, but runs on another node"));
        }
    }

    /// A VM that comes from another node is busy with that, but for its end (libvirt: `qemuDomainTrackJob`).
    pub(super) fn check_not_coming(&self, vm: VmId) -> Result<()> {
        let is_coming = |machine: &Machine| machine.live.is_some() && machine.elsewhere.is_some();
        if self.machines.get(&vm).is_some_and(is_coming) {
            return Err(HostError::Busy("it is being migrated".into()));
        }
        Ok(())
    }

    /// What waits for its guest, which executes elsewhere, is not let go.
    pub(super) fn set_run_state(&mut self, vm: VmId, run_state: RunState) {
        if self.machines.get(&vm).is_some_and(|machine| machine.elsewhere.is_some()) {
            return;
        }
        if let Some(live) = self.machines.get_mut(&vm).and_then(|machine| machine.live.as_mut()) {
            live.run_state = run_state;
            self.emit(HostEvent::VmChanged(vm));
            if run_state == RunState::Running {
                self.write_stalled(vm);
            }
        }
    }
}

fn writes(machine: &Machine, path: &Path) -> bool {
    machine.live.as_ref().is_some_and(|live| {
        live.chains.values().any(|chain| chain.first().is_some_and(|image| image.path == path))
            || live.jobs.values().any(|job| job.target() == path)
    })
}

fn is_open_on_another_node(machine: &Machine, path: &Path) -> bool {
    let Some(chains) = &machine.elsewhere else { return false };
    let has_variables = machine.variables.as_deref() == Some(path);
    has_variables || chains.values().flatten().any(|image| image.path == path)
}

fn uses(machine: &Machine, path: &Path) -> bool {
    let chains = machine.live.iter().flat_map(|live| live.chains.values());
    let has_variables = machine.live.is_some() && machine.variables.as_deref() == Some(path);
    has_variables || chains.flatten().any(|image| image.path == path)
}

/// What was asked is refused.
pub(super) fn refused(call: &'static str, why: impl Into<String>) -> HostError {
    HostError::Refused { call, cause: why.into().into() }
}

fn no_answer() -> HostError {
    HostError::TimedOut { call: "the call", after: Duration::from_secs(30) }
}
