//! What each task of the engine saw last.
//!
//! Decides whether a task could know that a VM has left. Leaves what it does then to `world`. Must never excuse who has done
//! anything else since: what was seen must be seen again before it is acted upon.

use std::collections::HashMap;

use tokio::task;

use crate::model::VmId;

/// The last call of each task, if it was a look.
#[derive(Debug, Default)]
pub(super) struct Looks {
    /// The VMs that were on this node in it. Whoever is no task is one more.
    last: HashMap<Option<task::Id>, Vec<VmId>>,
    /// The same of the call before the present one, by who makes that.
    before: Vec<VmId>,
}

impl Looks {
    /// A call begins. It is the present one from now on.
    pub(super) fn begin_call(&mut self) {
        self.before = self.last.remove(&task::try_id()).unwrap_or_default();
    }

    /// The present call sees a VM on this node.
    pub(super) fn see(&mut self, vm: VmId) {
        self.last.entry(task::try_id()).or_default().push(vm);
    }

    /// Whether who makes the present call saw the VM here in the call before it.
    pub(super) fn has_just_seen(&self, vm: VmId) -> bool {
        self.before.contains(&vm)
    }
}
