//! Any history: a random sequence of writes, snapshots, reverts, deletions, volume snapshots, clones, VMs that run on
//! them, resizes, switching on and off, and crashes in the middle. After each act every snapshot and every disk reads what
//! it must, and what is refused has changed nothing.

use std::collections::BTreeSet;

use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::TestCaseResult;
use vmsnap::host::sim::{BLOCK, Fault, Mishap, Moment, Trigger};
use vmsnap::model::operation::OperationState;
use vmsnap::model::{
    CloneMode, Declared, DiskTarget, Quiesce, Reason, Request, RunState, SnapshotKind, SnapshotState,
};

use crate::simulated::{Disks, Life, Reading, Scene, Truth, disks};

#[derive(Debug, Clone)]
enum Act {
    Write { block: u64, value: u64 },
    WriteLast { value: u64 },
    SetVariables { value: u64 },
    Grow { disk: Index, blocks: u64 },
    Create { quiesce: Quiesce, memory: bool, only: Option<Index> },
    Revert { which: Index },
    TakeNow { disk: Index },
    TakeFrom { which: Index, disk: Index },
    RevertVolume { which: Index, disk: Index },
    Clone { which: Index, disk: Index, mode: CloneMode },
    Flatten { which: Index },
    DeleteClone { which: Index },
    UseClone { which: Index },
    WriteClone { which: Index, block: u64, value: u64 },
    LeaveClone { which: Index },
    TakeClone { which: Index },
    RevertClone { which: Index, to: Index },
    DeleteOfClone { which: Index, doomed: Vec<Index> },
    Delete { which: Vec<Index> },
    Declare { which: Index },
    Power,
    LoseCatalog,
}

/// An act, and the call at which the daemon dies, if it comes to that.
#[derive(Debug, Clone)]
struct Moved {
    act: Act,
    death: Option<(usize, Moment)>,
}

fn acts() -> impl Strategy<Value = Act> {
    let quiesce = prop_oneof![Just(Quiesce::Auto), Just(Quiesce::Required), Just(Quiesce::Off)];
    prop_oneof![
        3 => (0..8_u64, 1..1000_u64).prop_map(|(block, value)| Act::Write { block, value }),
        1 => (1..1000_u64).prop_map(|value| Act::WriteLast { value }),
        1 => (1..1000_u64).prop_map(|value| Act::SetVariables { value }),
        1 => (any::<Index>(), 1..4_u64).prop_map(|(disk, blocks)| Act::Grow { disk, blocks }),
        3 => (quiesce, prop::bool::weighted(0.2), prop::option::weighted(0.2, any::<Index>()))
            .prop_map(|(quiesce, memory, only)| {
                // Memory is consistent by itself, and goes with all disks: anything else is refused.
                let (quiesce, only) = if memory { (Quiesce::Off, None) } else { (quiesce, only) };
                Act::Create { quiesce, memory, only }
            }),
        2 => any::<Index>().prop_map(|which| Act::Revert { which }),
        1 => any::<Index>().prop_map(|disk| Act::TakeNow { disk }),
        1 => (any::<Index>(), any::<Index>()).prop_map(|(which, disk)| Act::TakeFrom { which, disk }),
        1 => (any::<Index>(), any::<Index>()).prop_map(|(which, disk)| Act::RevertVolume { which, disk }),
        1 => (any::<Index>(), any::<Index>(), any::<bool>()).prop_map(|(which, disk, is_full)| {
            let mode = if is_full { CloneMode::Full } else { CloneMode::Linked };
            Act::Clone { which, disk, mode }
        }),
        1 => any::<Index>().prop_map(|which| Act::Flatten { which }),
        1 => any::<Index>().prop_map(|which| Act::DeleteClone { which }),
        1 => any::<Index>().prop_map(|which| Act::UseClone { which }),
        1 => (any::<Index>(), 0..8_u64, 1..1000_u64)
            .prop_map(|(which, block, value)| Act::WriteClone { which, block, value }),
        1 => any::<Index>().prop_map(|which| Act::LeaveClone { which }),
        2 => any::<Index>().prop_map(|which| Act::TakeClone { which }),
        1 => (any::<Index>(), any::<Index>()).prop_map(|(which, to)| Act::RevertClone { which, to }),
        1 => (any::<Index>(), prop::collection::vec(any::<Index>(), 1..3))
            .prop_map(|(which, doomed)| Act::DeleteOfClone { which, doomed }),
        3 => prop::collection::vec(any::<Index>(), 1..4).prop_map(|which| Act::Delete { which }),
        1 => any::<Index>().prop_map(|which| Act::Declare { which }),
        1 => Just(Act::Power),
        1 => Just(Act::LoseCatalog),
    ]
}

fn moves() -> impl Strategy<Value = Moved> {
    let moment = prop_oneof![Just(Moment::Before), Just(Moment::Midway), Just(Moment::After)];
    let death = prop::option::weighted(0.3, (1..40_usize, moment));
    (acts(), death).prop_map(|(act, death)| Moved { act, death })
}

/// A node, its truth, and how many snapshots there have been.
struct History {
    scene: Scene,
    truth: Truth,
    taken: usize,
}

impl History {
    fn new() -> Self {
        let scene = Scene::new();
        scene.sim.set_job_notches(2);
        let truth = Truth { active: scene.active(), ..Truth::default() };
        Self { scene, truth, taken: 0 }
    }

    fn go(&mut self, moved: &Moved) -> TestCaseResult {
        let names: Vec<String> = self.truth.snapshots.keys().cloned().collect();
        match &moved.act {
            Act::Write { .. } | Act::WriteLast { .. } | Act::Power if self.is_off() => {
                self.scene.sim.someone_starts(self.scene.vm);
            }
            Act::Write { block, value } => {
                self.scene.write(*block, *value);
                self.truth.active = self.scene.active();
            }
            Act::WriteLast { value } => {
                self.scene.write_last(*value);
                self.truth.active = self.scene.active();
            }
            Act::SetVariables { value } => {
                self.scene.set_variables(*value);
                self.truth.variables = *value;
            }
            Act::Grow { disk, blocks } => {
                let disk = disk.get(&disks()).clone();
                let size = self.truth.active[&disk].size + blocks * BLOCK;
                self.scene.sim.someone_resizes(self.scene.vm, &disk, size);
                self.truth.active = self.scene.active();
            }
            Act::Power => self.scene.sim.someone_stops(self.scene.vm),
            Act::LoseCatalog => self.lose_catalog()?,
            Act::Create { quiesce, memory, only } => {
                let only: Vec<_> = only.iter().map(|only| only.get(&disks()).clone()).collect();
                let name = self.new_name();
                let request = self.scene.create(&name, *quiesce, *memory, &only);
                let is_in = |disk: &_| only.is_empty() || only.contains(disk);
                let active = self.truth.active.iter().filter(|(disk, _)| is_in(disk));
                let content: Disks = active.map(|(disk, content)| (disk.clone(), content.clone())).collect();
                self.carry_out(request, moved, |truth| {
                    truth.kept_variables.insert(name.clone(), truth.variables);
                    truth.snapshots.insert(name, content);
                })?;
            }
            Act::TakeNow { disk } => {
                let (name, disk) = (self.new_name(), disk.get(&disks()).clone());
                let content = Disks::from([(disk.clone(), self.truth.active[&disk].clone())]);
                let request = self.scene.take_now(&name, &disk);
                self.carry_out(request, moved, |truth| drop(truth.snapshots.insert(name, content)))?;
            }
            Act::Revert { .. }
            | Act::TakeFrom { .. }
            | Act::RevertVolume { .. }
            | Act::Clone { .. }
            | Act::Declare { .. }
            | Act::Delete { .. }
                if names.is_empty() => {}
            Act::Clone { which, disk, mode } => {
                let (name, source) = (self.new_name(), which.get(&names));
                let (disk, content) = self.disk_of(source, *disk);
                let request = self.scene.clone_volume(&name, source, &disk, *mode);
                self.carry_out(request, moved, |truth| drop(truth.clones.insert(name, content)))?;
            }
            Act::Flatten { .. }
            | Act::DeleteClone { .. }
            | Act::UseClone { .. }
            | Act::WriteClone { .. }
            | Act::LeaveClone { .. }
            | Act::TakeClone { .. }
            | Act::RevertClone { .. }
            | Act::DeleteOfClone { .. } => self.act_on_clone(moved)?,
            Act::TakeFrom { which, disk } => {
                let (name, source) = (self.new_name(), which.get(&names));
                let (disk, content) = self.disk_of(source, *disk);
                let request = self.scene.take_from(&name, source, &disk);
                let content = Disks::from([(disk, content)]);
                self.carry_out(request, moved, |truth| drop(truth.snapshots.insert(name, content)))?;
            }
            Act::RevertVolume { which, disk } => {
                let source = which.get(&names);
                let (disk, content) = self.disk_of(source, *disk);
                let request = self.scene.revert_volume(source, &disk);
                self.carry_out(request, moved, |truth| drop(truth.active.insert(disk, content)))?;
            }
            Act::Declare { which } => self.declare(which.get::<String>(&names))?,
            Act::Revert { which } if self.is_of_volume(which.get::<String>(&names)) => {}
            Act::Revert { which } => {
                let name = which.get(&names);
                let request = self.scene.revert(name);
                // Disks that are not in the snapshot stay as they are.
                self.carry_out(request, moved, |truth| {
                    truth.active.extend(truth.snapshots[name].clone());
                    truth.variables = truth.kept_variables[name];
                })?;
            }
            Act::Delete { which } => {
                let doomed: BTreeSet<&str> = which.iter().map(|which| which.get(&names).as_str()).collect();
                let doomed: Vec<&str> = doomed.into_iter().collect();
                let request = self.scene.delete(&doomed);
                self.carry_out(request, moved, |truth| {
                    truth.snapshots.retain(|name, _| !doomed.contains(&name.as_str()));
                    truth.kept_variables.retain(|name, _| !doomed.contains(&name.as_str()));
                })?;
            }
        }
        self.scene.verify(&self.truth).map_err(|problem| TestCaseError::fail(format!("{moved:?}: {problem}")))
    }

    fn act_on_clone(&mut self, moved: &Moved) -> TestCaseResult {
        let clones: Vec<String> = self.truth.clones.keys().cloned().collect();
        if clones.is_empty() {
            return Ok(());
        }
        match &moved.act {
            Act::UseClone { which } => self.scene.use_clone(which.get::<String>(&clones)),
            Act::LeaveClone { which } => {
                self.scene.leave_clone(which.get::<String>(&clones));
                Life::start(&self.scene).settle(&self.scene);
            }
            Act::WriteClone { which, block, value } => {
                let name = which.get::<String>(&clones);
                let reads = self.scene.write_clone(name, *block, *value);
                let reads = reads.unwrap_or_else(|| self.scene.write_detached(name, *block, *value));
                self.truth.clones.insert(name.clone(), reads);
            }
            Act::TakeClone { which } => {
                let (name, clone) = (self.new_name(), which.get::<String>(&clones));
                let reads = self.truth.clones[clone].clone();
                let request = self.scene.take_clone(&name, clone);
                self.carry_out(request, moved, |truth| {
                    truth.of_clones.entry(clone.clone()).or_default().insert(name, reads);
                })?;
            }
            Act::RevertClone { which, .. } | Act::DeleteOfClone { which, .. } => {
                let clone = which.get::<String>(&clones);
                let held = self.truth.of_clones.get(clone).cloned().unwrap_or_default();
                let names: Vec<String> = held.into_keys().collect();
                if !names.is_empty() {
                    self.act_on_snapshots_of_clone(moved, clone, &names)?;
                }
            }
            Act::Flatten { which } => {
                let request = self.scene.flatten(which.get::<String>(&clones));
                self.carry_out(request, moved, |_| {})?;
            }
            Act::DeleteClone { which } => {
                let name = which.get::<String>(&clones);
                let request = self.scene.delete_volume(name);
                self.carry_out(request, moved, |truth| drop(truth.clones.remove(name)))?;
            }
            _ => unreachable!("it is about a clone"),
        }
        Ok(())
    }

    fn act_on_snapshots_of_clone(
        &mut self,
        moved: &Moved,
        clone: &String,
        names: &[String],
    ) -> TestCaseResult {
        match &moved.act {
            Act::RevertClone { to, .. } => {
                let name = to.get(names);
                let request = self.scene.revert_clone(name, clone);
                self.carry_out(request, moved, |truth| {
                    let reads = truth.of_clones[clone][name].clone();
                    truth.clones.insert(clone.clone(), reads);
                })
            }
            Act::DeleteOfClone { doomed, .. } => {
                let doomed: BTreeSet<&str> = doomed.iter().map(|which| which.get(names).as_str()).collect();
                let doomed: Vec<&str> = doomed.into_iter().collect();
                let request = self.scene.delete_of_clone(&doomed, clone);
                self.carry_out(request, moved, |truth| {
                    let held = truth.of_clones.get_mut(clone).unwrap();
                    held.retain(|name, _| !doomed.contains(&name.as_str()));
                })
            }
            _ => unreachable!("it is about a snapshot of a clone"),
        }
    }

    /// What was there is there again, from the disks alone.
    fn lose_catalog(&mut self) -> TestCaseResult {
        let told = self.scene.rebuild_catalog();
        prop_assert!(told.left_out.is_empty(), "{:#?}", told);
        self.scene.sim.reset_script();
        let life = Life::start(&self.scene);
        life.settle(&self.scene);
        life.check(&self.scene)
            .map_err(|problem| TestCaseError::fail(format!("after a rebuild: {problem}: {told:#?}")))
    }

    /// All that is in ERROR here is so by a word alone: nothing may stand in the way of the other word.
    fn declare(&self, name: &str) -> TestCaseResult {
        let what = if self.is_in_error(name) { Declared::Ready } else { Declared::Error };
        let life = Life::start(&self.scene);
        let declared = life.declare(name, what);
        prop_assert!(declared.is_ok(), "{} is not declared {:?}: {:?}", name, what, declared);
        life.settle(&self.scene);
        Ok(())
    }

    fn new_name(&mut self) -> String {
        self.taken += 1;
        format!("s{}", self.taken)
    }

    /// One of the disks that a snapshot holds, and what it reads there.
    fn disk_of(&self, snapshot: &str, disk: Index) -> (DiskTarget, Reading) {
        let held: Vec<_> = self.truth.snapshots[snapshot].iter().collect();
        let (disk, content) = held[disk.index(held.len())];
        (disk.clone(), content.clone())
    }

    fn is_of_volume(&self, name: &str) -> bool {
        let tree = self.scene.tree();
        let found = tree.snapshots.iter().find(|snapshot| snapshot.name.as_str() == name);
        found.is_some_and(|snapshot| snapshot.kind == SnapshotKind::Volume)
    }

    fn is_in_error(&self, name: &str) -> bool {
        let tree = self.scene.tree();
        let found = tree.snapshots.iter().find(|snapshot| snapshot.name.as_str() == name);
        found.is_some_and(|snapshot| snapshot.state == SnapshotState::Error)
    }

    fn is_off(&self) -> bool {
        self.scene.sim.run_state(self.scene.vm) == Some(RunState::Off)
    }

    /// Submits, dies if it is to, goes on in another life; then notes what must be true now.
    fn carry_out(
        &mut self,
        request: Request,
        moved: &Moved,
        done: impl FnOnce(&mut Truth),
    ) -> TestCaseResult {
        let sim = &self.scene.sim;
        sim.reset_script();
        if let Some((call, moment)) = moved.death {
            sim.add_fault(Fault { at: Trigger::Number(call), moment, mishap: Mishap::Hang });
        }
        let dies = || moved.death.is_some_and(|(call, _)| sim.calls().len() >= call);
        let before = self.scene.last_asked().map(|operation| operation.id);
        let life = Life::start(&self.scene);
        match life.begin(request, dies) {
            Some(Err(refusal)) => {
                let is_in_error = self.truth.snapshots.keys().any(|name| self.is_in_error(name));
                let is_expected = is_expected(&moved.act, self.is_off(), is_in_error, refusal.reason());
                prop_assert!(is_expected, "{:?} is refused: {}", moved, refusal);
                // What was to kill it has not come to it, and would meet whoever calls next.
                sim.reset_script();
                return Ok(());
            }
            Some(Ok(id)) => drop(life.run(id, dies)),
            None => {}
        }
        drop(life);
        sim.reset_script();
        // Whatever was left is seen through by the next life.
        let life = Life::start(&self.scene);
        life.settle(&self.scene);
        life.check(&self.scene).map_err(|problem| TestCaseError::fail(format!("{moved:?}: {problem}")))?;
        let ended = self.scene.last_asked().filter(|operation| Some(operation.id) != before);
        match ended.map(|operation| operation.cursor.state) {
            Some(OperationState::Succeeded) => done(&mut self.truth),
            // It died before the operation was durable, or all is undone.
            None | Some(OperationState::Failed) => {}
            Some(state) => prop_assert!(false, "{:?} ended in {:?}", moved, state),
        }
        Ok(())
    }
}

/// What may be refused: anything else would be refused without need.
fn is_expected(act: &Act, is_off: bool, is_in_error: bool, reason: Reason) -> bool {
    match act {
        Act::Revert { .. } | Act::TakeFrom { .. } | Act::RevertVolume { .. } | Act::Clone { .. } => {
            is_in_error && reason == Reason::SnapshotNotReady
        }
        Act::Create { memory: true, .. } => is_off && reason == Reason::MemoryNotSupported,
        // It stands alone already; or a VM runs on it, and it has snapshots of its own.
        Act::Flatten { .. } => matches!(reason, Reason::InvalidArgument | Reason::VolumeInUse),
        // A VM runs on it; or it has snapshots of its own.
        Act::DeleteClone { .. } | Act::TakeClone { .. } | Act::RevertClone { .. } => {
            reason == Reason::VolumeInUse
        }
        Act::Create { quiesce: Quiesce::Required, .. } => is_off && reason == Reason::AgentUnavailable,
        Act::Write { .. }
        | Act::WriteLast { .. }
        | Act::SetVariables { .. }
        | Act::Grow { .. }
        | Act::Create { .. }
        | Act::TakeNow { .. }
        | Act::UseClone { .. }
        | Act::WriteClone { .. }
        | Act::LeaveClone { .. }
        | Act::DeleteOfClone { .. }
        | Act::Delete { .. }
        | Act::Declare { .. }
        | Act::Power
        | Act::LoseCatalog => false,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn everything_reads_what_it_must(history in prop::collection::vec(moves(), 1..24)) {
        let mut now = History::new();
        for moved in &history {
            now.go(moved)?;
        }
    }
}

/// What may be needed by somebody whose manifest was not found is foreign from the first loss on. What the VM writes to is ours all
/// the same, as its manifest tells.
#[test]
fn a_catalog_that_is_lost_again_and_again() {
    let mut now = History::new();
    let (scene, disk) = (&now.scene, &disks()[0]);
    let steps: [&dyn Fn() -> Request; 4] = [
        &|| scene.create("vm", Quiesce::Auto, false, &[]),
        &|| scene.take_now("volume", disk),
        &|| scene.revert("vm"),
        &|| scene.delete(&["vm"]),
    ];
    for request in steps {
        let life = Life::start(scene);
        let id = life.begin(request(), || false).unwrap().unwrap();
        assert_eq!(life.run(id, || false).unwrap().cursor.state, OperationState::Succeeded);
        life.settle(scene);
    }
    for _ in 0..3 {
        now.lose_catalog().unwrap();
    }
}
