//! Layers that nothing needs any more and that are still there: what they wait for, and when it is tried again.
//!
//! ```text
//!   something may have changed         the VM is free, and its turn     looked at
//!   ------------------------> (queued) ---------------------------> (looks) -------> merges, or nothing can go now
//!                                                           |                         |
//!                                                           +-- whatever changes from here on begins anew, since
//!                                                               a VM that is looked at counts as one that waits
//! ```
//!
//! Decides when to look. Leaves who else reads a layer to [`super::elsewhere`], and what can go to `plan`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;
use std::sync::PoisonError;
use std::time::Duration;

use tokio::sync::SemaphorePermit;

use super::gate::Permit;
use super::presence::vm_changed;
use super::runner::Runner;
use super::submit::Asked;
use super::{Engine, OpsError};
use crate::host::HostError;
use crate::model::{LayerId, LayerTree, OperationId, Request, VmId};
use crate::plan::{self, Refusal};

/// VMs that are looked at at once for what waits. Each look asks about all VMs, by the few threads that everybody uses.
pub(super) const LOOKS: usize = 2;

/// A VM that is stopped or undefined changes several times in a row.
const BREATH: Duration = Duration::from_millis(500);

/// What layers wait for that nothing of their own VM needs.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wait {
    /// For a VM, by its name, that has the file.
    Vm(String, PathBuf),
    /// For an image that lies on one of them.
    Image(PathBuf),
    /// For a snapshot of another VM or volume.
    Snapshot {
        /// The VM's name.
        vm: String,
        /// Its own.
        name: String,
    },
    /// For a person, who knows whether the VM's guest wrote last to a layer or to this one below it.
    Decision(PathBuf),
    /// For room.
    Room,
    /// For the VM, to which nothing can be done now: why, in words.
    Refusal(String),
}

impl fmt::Display for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vm(name, file) => write!(f, "VM {name} has {}", file.display()),
            Self::Image(path) => write!(f, "{} lies on it", path.display()),
            Self::Snapshot { vm, name } => write!(f, "snapshot {name} of {vm} reads it"),
            Self::Decision(base) => {
                write!(f, "it is not known whether the guest wrote last to it or to {}", base.display())
            }
            Self::Room => write!(f, "there may not be room for it"),
            Self::Refusal(why) => f.write_str(why),
        }
    }
}

/// What was found to hold up layers of a VM.
#[derive(Default)]
pub(super) struct Waiting {
    layers: BTreeMap<LayerId, Wait>,
    is_for_room: bool,
    refused: Option<Refused>,
    /// Somebody will look once the VM is free, and sees whatever happens until then.
    is_queued: bool,
    /// How many look, and may not see what happens from now on: the next one begins before the last one has noted what it saw.
    looks: u32,
    /// How many have begun to look. What a later one has seen is not noted over.
    begun: u64,
}

/// Why nothing can be merged for a VM now.
enum Refused {
    /// It is not here, or lacks a disk, as it may for good: nobody has to be told.
    Silently,
    /// In words.
    Because(String),
}

impl Waiting {
    fn is_over(&self) -> bool {
        let is_held_up = self.is_for_room || !self.layers.is_empty() || self.refused.is_some();
        !is_held_up && !self.is_queued && self.looks == 0
    }
}

impl Engine {
    /// What layers that no snapshot needs were seen to wait for when somebody last looked.
    #[must_use]
    pub fn waits_for(&self, tree: &LayerTree) -> BTreeSet<Wait> {
        let waiting = self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(waiting) = waiting.get(&tree.vm) else { return BTreeSet::new() };
        let pending: BTreeSet<LayerId> = tree.pending().map(|layer| layer.id).collect();
        // A layer that is read holds up what it lies on, too.
        let holds_up = |layer: LayerId| tree.chain(layer).iter().any(|below| pending.contains(&below.id));
        let layers = waiting.layers.iter().filter(|(layer, _)| holds_up(**layer));
        let is_being_merged = self.holder(tree.vm).is_some();
        let is_due = !pending.is_empty() && !is_being_merged;
        let room = (waiting.is_for_room && is_due).then_some(Wait::Room);
        let refusal = match &waiting.refused {
            Some(Refused::Because(why)) if is_due => Some(Wait::Refusal(why.clone())),
            Some(Refused::Because(_) | Refused::Silently) | None => None,
        };
        layers.map(|(_, wait)| wait.clone()).chain(room).chain(refusal).collect()
    }

    /// The operation that merges and removes what nothing of a VM refers to any more, if anything can go now.
    ///
    /// Nobody asked for it, so nobody is told if it cannot be done: it is tried again after the next operation, and when
    /// something happens to a VM.
    pub(super) async fn collapse(&self, vm: VmId, permit: Permit) -> Option<Runner> {
        if self.0.stopping.is_cancelled() {
            return None;
        }
        let mut number = 0;
        self.note(vm, |waiting| {
            waiting.looks += 1;
            waiting.begun += 1;
            number = waiting.begun;
        });
        let (runner, refused) = self.look_what_can_go(vm, permit).await;
        self.note(vm, |waiting| {
            waiting.looks -= 1;
            if waiting.begun == number {
                waiting.refused = refused;
            }
        });
        runner
    }

    /// With why not, if nothing can go.
    async fn look_what_can_go(&self, vm: VmId, permit: Permit) -> (Option<Runner>, Option<Refused>) {
        if self.is_settled(vm).await {
            return (None, None);
        }
        let id = OperationId::new();
        let permit = permit.hand_on(id);
        let asked = Asked { by: "vmsnapd".to_owned(), key: None, validate_only: false };
        let error = match self.prepare(id, permit, vm, None, Request::Collapse { vm }, asked).await {
            Ok((_, runner)) => return (runner, None),
            Err(error) => error,
        };
        let refused = match &error {
            // What waits for readers or for room is noted as that.
            OpsError::Refused(
                Refusal::NothingToCollapse | Refusal::NoSpaceToMerge { .. } | Refusal::VmGone,
            )
            | OpsError::Host(HostError::NoSuchVm(_)) => Refused::Silently,
            _ => Refused::Because(error.to_string()),
        };
        let error: &dyn std::error::Error = &error;
        tracing::info!(%vm, error, "what nothing refers to waits");
        (None, Some(refused))
    }

    /// Whether nothing of a VM's tree could go, as far as the catalog can say.
    async fn is_settled(&self, vm: VmId) -> bool {
        let tree = self.0.store.tree(vm).await;
        tree.is_ok_and(|tree| plan::collapse_tree(&tree, |_| false).is_empty())
    }

    /// Merges what can be merged for a VM, once it is free and can be looked at.
    pub(super) async fn collapse_when_free(&self, vm: VmId) {
        if !self.waiting().contains(&vm) && self.is_settled(vm).await {
            return;
        }
        let mut is_first = false;
        self.note(vm, |waiting| is_first = !std::mem::replace(&mut waiting.is_queued, true));
        if !is_first {
            return;
        }
        let entered = tokio::select! {
            biased;
            () = self.0.stopping.cancelled() => None,
            entered = self.enter_in_turn(vm) => entered,
        };
        self.note(vm, |waiting| waiting.is_queued = false);
        let Some((permit, turn)) = entered else { return };
        let runner = self.collapse(vm, permit).await;
        drop(turn);
        if let Some(runner) = runner {
            runner.run().await;
        }
    }

    /// Holds a VM once it is free and not too many others are looked at. No VM is held that waits for its turn, and no turn by
    /// whoever waits for a VM. None if the daemon goes down.
    async fn enter_in_turn(&self, vm: VmId) -> Option<(Permit, SemaphorePermit<'_>)> {
        if !self.is_linked().await {
            return None;
        }
        loop {
            let mut changed = std::pin::pin!(self.0.gate.changed());
            changed.as_mut().enable();
            if self.0.gate.holder(vm).is_none() {
                let turn = self.0.limits.looks.acquire().await.ok()?;
                if let Ok(permit) = self.0.gate.enter(vm, OperationId::new()) {
                    return Some((permit, turn));
                }
            }
            changed.await;
        }
    }

    /// Merges what waits, now that something may have changed; but for one VM, if somebody sees to that.
    pub(super) fn collapse_waiting(&self, but: Option<VmId>) {
        // Each on its own: one that merges for long, or is stuck, holds up no other.
        for vm in self.waiting().into_iter().filter(|vm| Some(*vm) != but) {
            let engine = self.clone();
            self.0.tasks.spawn(async move { engine.collapse_when_free(vm).await });
        }
    }

    /// Notes what was found to hold up layers of a VM: nothing, and they do not wait.
    pub(super) fn note_waiting(&self, vm: VmId, layers: BTreeMap<LayerId, Wait>) {
        self.note(vm, |waiting| waiting.layers = layers);
    }

    /// Notes whether merges of a VM depend on how much room there is.
    pub(super) fn note_waiting_for_room(&self, vm: VmId, is_for_room: bool) {
        self.note(vm, |waiting| waiting.is_for_room = is_for_room);
    }

    fn note(&self, vm: VmId, change: impl FnOnce(&mut Waiting)) {
        let mut waiting = self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        change(waiting.entry(vm).or_default());
        waiting.retain(|_, waiting| !waiting.is_over());
    }

    /// Merges what waited for VMs when one of them has changed, or the hypervisor is back, from now until the daemon goes down.
    pub fn collapse_when_vms_change(&self) {
        // From here on, not from when the task is begun.
        let mut events = self.0.host.hypervisor.events();
        let mut link = self.0.host.hypervisor.link();
        let engine = self.clone();
        self.0.tasks.spawn(async move {
            let stopping = engine.draining();
            loop {
                tokio::select! {
                    biased;
                    () = stopping.cancelled() => return,
                    goes_on = vm_changed(&mut events) => if !goes_on { return },
                    Ok(()) = link.changed() => {}
                }
                if engine.waiting().is_empty() {
                    continue;
                }
                tokio::select! {
                    biased;
                    () = stopping.cancelled() => return,
                    () = tokio::time::sleep(BREATH) => {}
                }
                // What happens from here on is seen by the next look.
                events = events.resubscribe();
                engine.collapse_waiting(None);
            }
        });
    }

    fn waiting(&self) -> BTreeSet<VmId> {
        self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner).keys().copied().collect()
    }
}
