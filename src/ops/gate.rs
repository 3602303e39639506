//! One operation per VM at a time. Decides who holds a VM; must never know what for.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use crate::model::{OperationId, VmId};

/// Who holds which VM.
#[derive(Clone, Default)]
pub(super) struct Gate {
    holders: Arc<Mutex<HashMap<VmId, OperationId>>>,
    /// Told when a VM is let go of, and when its holder has become an operation that can be seen: whoever waits longest is
    /// told first.
    changes: Arc<Notify>,
}

/// The right to change VMs, until dropped.
pub(super) struct Permit {
    gate: Gate,
    vms: BTreeSet<VmId>,
}

impl Gate {
    /// Lets `operation` have the VM, or names the one that has it.
    pub(super) fn enter(&self, vm: VmId, operation: OperationId) -> Result<Permit, OperationId> {
        self.enter_all(BTreeSet::from([vm]), operation)
    }

    /// Lets `operation` have all of them, or none.
    pub(super) fn enter_all(
        &self,
        vms: BTreeSet<VmId>,
        operation: OperationId,
    ) -> Result<Permit, OperationId> {
        let mut holders = self.holders.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(holder) = vms.iter().find_map(|vm| holders.get(vm)) {
            return Err(*holder);
        }
        holders.extend(vms.iter().map(|vm| (*vm, operation)));
        Ok(Permit { gate: self.clone(), vms })
    }

    /// When it may be worth to ask again. What happens from the moment that it is enabled is told.
    pub(super) fn changed(&self) -> Notified<'_> {
        self.changes.notified()
    }

    /// A holder can be seen now.
    pub(super) fn tell(&self) {
        self.changes.notify_waiters();
    }

    /// Who holds the VM.
    pub(super) fn holder(&self, vm: VmId) -> Option<OperationId> {
        self.holders.lock().unwrap_or_else(PoisonError::into_inner).get(&vm).copied()
    }
}

impl Permit {
    /// Hands the VMs on to another operation, without a gap.
    pub(super) fn hand_on(self, operation: OperationId) -> Self {
        let mut holders = self.gate.holders.lock().unwrap_or_else(PoisonError::into_inner);
        holders.extend(self.vms.iter().map(|vm| (*vm, operation)));
        drop(holders);
        self
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut holders = self.gate.holders.lock().unwrap_or_else(PoisonError::into_inner);
        holders.retain(|vm, _| !self.vms.contains(vm));
        drop(holders);
        self.gate.tell();
    }
}
