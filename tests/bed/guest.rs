//! A real guest: defined, started, looked at, ended.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::definition::{self, Agent, Format, Spec};
use super::scratch::Scratch;
use super::slot::Slot;
use super::{virsh, wait_until};

/// A guest boots in about three seconds; this is for a machine that is busy with other things.
const BOOT: Duration = Duration::from_secs(180);
const STATE: Duration = Duration::from_secs(60);

/// A VM of its own name, in a directory of its own. It goes with the value.
pub struct Guest {
    scratch: Scratch,
    agent: Agent,
    slot: Arc<Slot>,
}

impl Guest {
    /// Defines and starts a guest and waits until it is up.
    #[track_caller]
    pub fn boot(spec: &Spec) -> Self {
        let guest = Self::define(spec);
        guest.start();
        guest
    }

    /// Defines a guest that is off. Waits for its turn if too many guests run.
    #[track_caller]
    pub fn define(spec: &Spec) -> Self {
        Self::define_in(spec, Arc::new(Slot::take()))
    }

    /// Defines a second guest for a test that has one already; it counts as one with that.
    #[track_caller]
    pub fn define_beside(&self, spec: &Spec) -> Self {
        Self::define_in(spec, Arc::clone(&self.slot))
    }

    /// Defines and starts a guest while no other one runs.
    #[track_caller]
    pub fn boot_alone(spec: &Spec) -> Self {
        let guest = Self::define_in(spec, Arc::new(Slot::take_all()));
        guest.start();
        guest
    }

    #[track_caller]
    fn define_in(spec: &Spec, slot: Arc<Slot>) -> Self {
        let mut scratch = Scratch::new();
        let xml = scratch.join("domain.xml");
        fs::write(&xml, definition::prepare(spec, &scratch)).expect("the directory is ours");
        let name = scratch.name().to_owned();
        scratch.owns_vm(&name);
        virsh::run(&["define", &xml.display().to_string()]);
        Self { scratch, agent: spec.agent, slot }
    }

    /// A guest that somebody else defines while `make` runs, under the name that it is told. It has an agent; it counts
    /// as one with this.
    #[track_caller]
    pub fn made_by(&self, make: impl FnOnce(&str)) -> Self {
        let mut scratch = Scratch::new();
        let name = scratch.name().to_owned();
        scratch.owns_vm(&name);
        make(&name);
        Self { scratch, agent: Agent::Answers, slot: Arc::clone(&self.slot) }
    }

    /// The VM's name.
    pub fn name(&self) -> &str {
        self.scratch.name()
    }

    /// The directory with its images.
    pub fn directory(&self) -> &Path {
        self.scratch.path()
    }

    /// Starts the VM and waits until the guest is up.
    #[track_caller]
    pub fn start(&self) {
        virsh::run(&["start", self.name()]);
        self.wait_until_up();
    }

    /// Waits until the guest has booted: until its agent answers, or, where it has none, until its console says so.
    #[track_caller]
    pub fn wait_until_up(&self) {
        let is_up = || match self.agent {
            Agent::Answers => self.agent_answers(),
            Agent::Absent => self.console().contains("vmsnap guest: up"),
        };
        wait_until(&format!("{} is up", self.name()), BOOT, || {
            assert!(self.state() == "running", "{} did not boot:\n{}", self.name(), self.console());
            is_up()
        });
    }

    /// What the guest wrote on its console since it was last started.
    pub fn console(&self) -> String {
        let bytes = fs::read(self.scratch.join("console.log")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The run state in libvirt's words: `running`, `paused`, `shut off`.
    #[track_caller]
    pub fn state(&self) -> String {
        virsh::run(&["domstate", self.name()])
    }

    /// Waits for a run state in libvirt's words.
    #[track_caller]
    pub fn wait_for_state(&self, state: &str) {
        wait_until(&format!("{} is {state}", self.name()), STATE, || self.state() == state);
    }

    /// Runs `virsh VERB NAME REST...`.
    #[track_caller]
    pub fn virsh(&self, verb: &str, rest: &[&str]) -> String {
        virsh::run(&[&[verb, self.name()], rest].concat())
    }

    /// Pulls the plug.
    #[track_caller]
    pub fn destroy(&self) {
        self.virsh("destroy", &[]);
    }

    /// Shuts the guest down from inside, filesystems unmounted, and waits until it is off.
    #[track_caller]
    pub fn shutdown(&self) {
        self.virsh("shutdown", &["--mode", "agent"]);
        self.wait_for_state("shut off");
    }

    /// The disk targets with their active images, as libvirt tells them.
    #[track_caller]
    pub fn disks(&self) -> Vec<(String, PathBuf)> {
        let table = self.virsh("domblklist", &[]);
        let row =
            |line: &str| line.trim().split_once(' ').map(|(t, path)| (t.to_owned(), path.trim().into()));
        table.lines().filter_map(row).collect()
    }

    /// The active image of a disk.
    #[track_caller]
    pub fn image(&self, target: &str) -> PathBuf {
        let found = self.disks().into_iter().find(|(name, _)| name == target);
        found.unwrap_or_else(|| panic!("{} has no disk {target}", self.name())).1
    }

    /// Plugs a disk into the running guest. It is not mounted there.
    #[track_caller]
    pub fn attach(&self, target: &str, image: &Path, format: Format) {
        let xml = self.scratch.join(format!("{target}.xml"));
        fs::write(&xml, definition::disk_xml(format, image, target)).expect("the directory is ours");
        self.virsh("attach-device", &[&xml.display().to_string(), "--live"]);
    }

    /// Where the writers' reports come out.
    pub(super) fn progress_socket(&self) -> PathBuf {
        self.scratch.join("progress.socket")
    }
}
