//! One operation per VM at a time. Decides who holds a VM; must never know what for.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

use crate::model::{OperationId, VmId};

/// Who holds which VM.
#[derive(Clone, Default)]
pub(super) struct Gate {
    holders: Arc<Mutex<HashMap<VmId, OperationId>>>,
    /// Told when a VM is let go of, and when its holder has become an operation that can be seen.
    changes: Arc<watch::Sender<()>>,
}

/// The right to change a VM, until dropped.
pub(super) struct Permit {
    gate: Gate,
    vm: VmId,
}

impl Gate {
    /// Lets `operation` have the VM, or names the one that has it.
    pub(super) fn enter(&self, vm: VmId, operation: OperationId) -> Result<Permit, OperationId> {
        let mut holders = self.holders.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(holder) = holders.get(&vm) {
            return Err(*holder);
        }
        holders.insert(vm, operation);
        Ok(Permit { gate: self.clone(), vm })
    }

    /// Tells when it may be worth to ask again.
    pub(super) fn changes(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }

    /// A holder can be seen now.
    pub(super) fn tell(&self) {
        self.changes.send_replace(());
    }

    /// Who holds the VM.
    pub(super) fn holder(&self, vm: VmId) -> Option<OperationId> {
        self.holders.lock().unwrap_or_else(PoisonError::into_inner).get(&vm).copied()
    }
}

impl Permit {
    /// Hands the VM on to another operation, without a gap.
    pub(super) fn hand_on(self, operation: OperationId) -> Self {
        self.gate.holders.lock().unwrap_or_else(PoisonError::into_inner).insert(self.vm, operation);
        self
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.gate.holders.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.vm);
        self.gate.tell();
    }
}
