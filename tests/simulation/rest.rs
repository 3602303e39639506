//! A rest: nothing goes wrong any more. Everything that was begun ends, and then all that may be seen from outside is as
//! it should be: contents, files, states, guests.

use std::collections::BTreeSet;
use std::path::PathBuf;

use jiff::SignedDuration;
use vmsnap::host::Link;
use vmsnap::host::sim::AgentBehaviour;
use vmsnap::model::operation::OperationState;
use vmsnap::model::{Operation, RunState, Snapshot, SnapshotState, VmId};
use vmsnap::ops::{Engine, NodeCheck};
use vmsnap::plan;

use crate::mishaps::ROOM;
use crate::node::{Node, UnseenPivot, at_once, runtime};
use crate::people::adopt;
use crate::simulated::{ensure, pass_time, verify_manifests};

/// What does not end in so many turns does not end.
const TURNS: u32 = 6000;

/// A person lets what is stuck try again each so many turns.
const RETRY_TURNS: u32 = 40;

impl Node {
    /// Ends all that was begun, and looks at everything.
    pub fn rest(&mut self) -> Result<(), String> {
        self.trace.push(format!("turn {}: rest", self.turn));
        self.sim.set_link(Link::Up);
        self.sim.set_free_space(ROOM);
        self.sim.hold_events(false);
        let departures = at_once(self.store.departures()).map_err(|error| error.to_string())?;
        for vm in self.vms.clone() {
            self.sim.someone_brings_back(vm);
            // One that has migrated is left alone until it runs here, wherever it has ended.
            let has_left = departures.iter().any(|departure| departure.vm == vm);
            if has_left || self.sim.is_elsewhere(vm) || self.sim.run_state(vm) == Some(RunState::Migrated) {
                self.name_newer_images(vm);
                self.sim.someone_brings_home(vm, true);
            }
            self.sim.set_agent(vm, AgentBehaviour::Obeys);
        }
        self.live_in_peace(false)?;
        // A manifest that could not be written is written at the next start, if no operation comes first.
        self.live_in_peace(true)?;
        self.start_anew();
        self.look(true)
    }

    /// A life in which nothing goes wrong. At the end of the last one all must be as it should.
    fn live_in_peace(&mut self, is_last: bool) -> Result<(), String> {
        let runtime = runtime();
        runtime.block_on(async {
            let engine = self.engine();
            engine.recover().await.map_err(|error| error.to_string())?;
            engine.attend(SignedDuration::from_hours(24));
            self.end_everything(&engine, is_last).await?;
            if !is_last {
                return Ok(());
            }
            self.look(true)?;
            self.check_states()?;
            self.check_files()?;
            self.check_node(&engine).await
        })?;
        drop(runtime);
        self.forget_life();
        Ok(())
    }

    async fn end_everything(&mut self, engine: &Engine, is_last: bool) -> Result<(), String> {
        for turn in 1..=TURNS {
            self.turn += 1;
            self.people_help();
            self.ask(engine);
            pass_time().await;
            let has_acted = self.note_calls();
            self.hear(engine)?;
            self.look(turn % 8 == 0 || has_acted)?;
            self.drop_excuses()?;
            if turn % RETRY_TURNS == 0 {
                self.retry_what_is_stuck(engine)?;
                self.retire_deployed()?;
                self.vms.iter().for_each(|vm| adopt(engine, *vm));
            }
            let is_quiet = self.wishes.is_empty() && self.new_vms.is_empty() && engine.busy() == 0;
            if is_quiet && self.nothing_waits_for_people(engine, turn) && self.unsettled(is_last)?.is_none() {
                return Ok(());
            }
        }
        let waits = |vm: &VmId| at_once(self.store.tree(*vm)).map(|tree| engine.waits_for(&tree));
        let waits: Vec<_> = self.vms.iter().map(waits).collect();
        let unsettled = self.unsettled(is_last)?;
        Err(format!("it does not come to rest: {unsettled:?}, waits {waits:?}, by hand {:?}", self.by_hand))
    }

    /// Whether people have looked at what was done by hand, and have settled it.
    fn nothing_waits_for_people(&self, engine: &Engine, turn: u32) -> bool {
        let is_checked = self.by_hand.is_empty() || turn > RETRY_TURNS;
        is_checked && self.vms.iter().all(|vm| engine.last_check(*vm).is_empty())
    }

    /// What the daemon cannot do: somebody stops a VM that libvirt knows wrongly, and lets one go on that was paused: a
    /// guest that stands still cannot be thawed.
    fn people_help(&mut self) {
        for vm in self.vms.clone() {
            let is_paused = matches!(self.sim.run_state(vm), Some(RunState::Paused(_)));
            if is_paused && self.oracle.vm(vm).may_be_paused {
                self.sim.someone_resumes(vm);
            } else if self.sim.is_known_wrongly(vm) {
                self.oracle.vm(vm).may_be_off = true;
                self.sim.someone_stops(vm);
                // One that has left, and was not seen to run here since, is left alone until it is.
                if at_once(self.store.departures()).is_ok_and(|left| left.iter().any(|left| left.vm == vm)) {
                    self.sim.someone_starts(vm);
                }
            }
        }
    }

    fn retry_what_is_stuck(&mut self, engine: &Engine) -> Result<(), String> {
        let open = at_once(self.store.open_operations()).map_err(|error| error.to_string())?;
        for operation in open {
            let view = at_once(engine.operation(operation.id)).map_err(|error| error.to_string())?;
            if matches!(view.operation.cursor.state, OperationState::Stuck { .. }) {
                self.tally.stuck += 1;
                self.trace.push(format!("turn {}: an operation is {:?}", self.turn, operation.cursor.state));
                self.decide_pivots(&view.operation);
                let engine = engine.clone();
                // Nobody waits for what comes of it: it is looked at again and again.
                tokio::spawn(async move { engine.resolve(operation.id, false).await });
            }
        }
        Ok(())
    }

    /// A person who starts a VM that has ended in a pivot knows that it would boot the older image.
    fn name_newer_images(&self, vm: VmId) {
        for pivot in self.unseen_pivots.iter().filter(|pivot| pivot.vm == vm) {
            if self.sim.image_of(vm, &pivot.disk) == pivot.older {
                self.sim.someone_redefines(vm, &pivot.disk, pivot.newer.clone());
            }
        }
    }

    /// A person who is asked knows which image is the newer one, and lets the definition name it.
    fn decide_pivots(&mut self, stuck: &Operation) {
        let failure = stuck.failure.iter().chain(&stuck.later_failure);
        let words: Vec<&str> = failure.map(|failure| failure.message.as_str()).collect();
        for UnseenPivot { vm, disk, newer, .. } in &self.unseen_pivots {
            let name = newer.path.display().to_string();
            if *vm == stuck.vm && words.iter().any(|words| words.contains(&name)) {
                self.sim.someone_redefines(*vm, disk, newer.clone());
            }
        }
    }

    /// What could still go, or is not as it should be in the end, in words.
    fn unsettled(&self, is_last: bool) -> Result<Option<String>, String> {
        for vm in &self.vms {
            let tree = at_once(self.store.tree(*vm)).map_err(|error| error.to_string())?;
            let is_ready = |snapshot: &&Snapshot| snapshot.state == SnapshotState::Ready;
            if let Some(snapshot) = tree.snapshots.iter().find(|snapshot| !is_ready(snapshot)) {
                return Ok(Some(format!("{} of {vm} is {:?}", snapshot.name, snapshot.state)));
            }
            if !plan::collapse_tree(&tree, |_| false).is_empty() {
                return Ok(Some(format!("{vm} has layers that nothing needs")));
            }
            let due = at_once(self.store.manifests(*vm, true)).map_err(|error| error.to_string())?;
            if is_last && !due.is_empty() {
                return Ok(Some(format!("{vm} has manifests that are not written: {due:?}")));
            }
        }
        let leases = at_once(self.store.leases()).map_err(|error| error.to_string())?;
        let throttles = at_once(self.store.throttles()).map_err(|error| error.to_string())?;
        let is_noted = !leases.is_empty() || !throttles.is_empty();
        Ok(is_noted.then(|| format!("what is noted of guests: {leases:?}, {throttles:?}")))
    }

    /// No guest is left in a state that nobody wanted.
    fn check_states(&mut self) -> Result<(), String> {
        for vm in self.vms.clone() {
            let state = self.sim.run_state(vm).ok_or_else(|| format!("{vm} is not there"))?;
            let truth = self.oracle.vm(vm);
            let is_wanted = match state {
                RunState::Running => true,
                RunState::Off => truth.may_be_off,
                RunState::Paused(_) => truth.may_be_paused,
                RunState::Unsettled | RunState::Migrated => false,
            };
            ensure(is_wanted, || format!("{vm} is {state:?}, and nobody wanted it"))?;
            self.tally.states_checked += u64::from(!truth.may_be_off && !truth.may_be_paused);
            ensure(!self.sim.is_captured_behind(vm), || format!("nobody can migrate {vm} any more"))?;
            let is_frozen = self.sim.is_guest_frozen(vm);
            let by_somebody = self.oracle.vm(vm).is_frozen_by_somebody;
            ensure(!is_frozen || by_somebody, || format!("{vm} is frozen"))?;
            self.check_boot(vm)?;
        }
        Ok(())
    }

    /// A cold start reads what the VM reads now.
    fn check_boot(&mut self, vm: VmId) -> Result<(), String> {
        let boot = self.sim.boot_contents(vm);
        for (disk, reading) in &self.oracle.vm(vm).reads {
            ensure(boot.get(disk) == Some(&reading.content), || {
                format!("a cold start of {vm} would read {:?} from {disk}, not {reading:?}", boot.get(disk))
            })?;
        }
        Ok(())
    }

    /// There is no file too many and none too few.
    fn check_files(&mut self) -> Result<(), String> {
        let mut needed: BTreeSet<PathBuf> = self.oracle.first_files.clone();
        for vm in &self.vms {
            let tree = at_once(self.store.tree(*vm)).map_err(|error| error.to_string())?;
            let manifests = at_once(self.store.manifests(*vm, false)).map_err(|error| error.to_string())?;
            needed.extend(verify_manifests(&self.sim, &tree, manifests)?);
            needed.extend(tree.layers.values().map(|layer| layer.path.clone()));
            needed.extend(tree.clones.iter().map(|clone| clone.path.clone()));
            for snapshot in &tree.snapshots {
                needed.extend(snapshot.memory.iter().map(|memory| memory.path.clone()));
                needed.extend(snapshot.variables.iter().map(|variables| variables.path.clone()));
            }
        }
        self.tally.adopted += self.by_hand.intersection(&needed).count() as u64;
        // What the catalog knows nothing of is its maker's.
        let is_ours = |path: &PathBuf| needed.contains(path) || !self.by_hand.contains(path);
        let there: BTreeSet<PathBuf> = self.sim.files().into_iter().filter(is_ours).collect();
        let (more, less): (Vec<_>, Vec<_>) =
            (there.difference(&needed).collect(), needed.difference(&there).collect());
        ensure(more.is_empty() && less.is_empty(), || format!("files too many: {more:?}, too few: {less:?}"))
    }

    /// The daemon's own check agrees that nothing differs. What somebody has just begun to settle is waited for.
    async fn check_node(&mut self, engine: &Engine) -> Result<(), String> {
        let mut skipped = Vec::new();
        for _ in 0..RETRY_TURNS {
            let found = check_once(engine).await?;
            ensure(found.differences.is_empty(), || format!("differences: {:#?}", found.differences))?;
            if found.skipped.is_empty() {
                return Ok(());
            }
            skipped = found.skipped;
        }
        Err(format!("not looked at: {skipped:?}"))
    }

    /// All VMs run, thawed: so begins the next day.
    fn start_anew(&mut self) {
        for vm in self.vms.clone() {
            self.sim.someone_starts(vm);
            self.sim.someone_resumes(vm);
            self.sim.someone_freezes(vm, false);
            let truth = self.oracle.vm(vm);
            truth.is_frozen_by_somebody = false;
            truth.may_be_off = false;
            truth.may_be_paused = false;
        }
    }
}

async fn check_once(engine: &Engine) -> Result<NodeCheck, String> {
    let engine = engine.clone();
    let checking = tokio::spawn(async move { engine.check_node().await });
    while !checking.is_finished() {
        pass_time().await;
    }
    checking.await.unwrap().map_err(|error| error.to_string())
}
