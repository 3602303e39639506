//! Captures of memory behind guests' backs that nobody waits for any more: as long as nobody has ended one its VM cannot be
//! migrated.
//!
//! Decides which are left, and when to look again. Leaves those that an operation waits for to the operation.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

use crate::host::{Host, HostError, Link};
use crate::model::{Operation, OperationId, VmId};
use crate::store::Store;

use super::{Engine, Result};

/// What could not be looked at is looked at again so often: nothing tells when it would work.
const AGAIN: Duration = Duration::from_secs(10);

/// Ends the captures of memory that a daemon which is gone has left under way behind the guests' backs. The next start takes
/// back what they were for. Gives the VMs that it cannot be said of.
pub async fn end_captures(host: &Host, store: &Store) -> Result<BTreeSet<VmId>> {
    let asked = captured(&store.open_operations().await?).into_iter();
    let asked = asked.map(|vm| async move { (vm, is_ended(host, vm).await) });
    let answers: Vec<(VmId, bool)> = asked.collect::<FuturesUnordered<_>>().collect().await;
    Ok(answers.into_iter().filter(|(_, is_ended)| !is_ended).map(|(vm, _)| vm).collect())
}

/// Ends what captures a VM's memory behind its guest's back. Whether nothing does any more; why that cannot be said is logged.
async fn is_ended(host: &Host, vm: VmId) -> bool {
    match host.hypervisor.end_background_capture(vm).await {
        Ok(()) | Err(HostError::NoSuchVm(_)) => true,
        Err(error) => {
            let error: &dyn std::error::Error = &error;
            tracing::warn!(%vm, error, "it cannot be seen whether a capture of memory was left");
            false
        }
    }
}

/// The VMs whose memory open operations may have begun to capture behind their guests' backs.
#[must_use]
pub fn captured(open: &[Operation]) -> BTreeSet<VmId> {
    open.iter().filter(|operation| operation.captures_in_background()).map(|operation| operation.vm).collect()
}

impl Engine {
    /// Why a VM's memory cannot be captured while it runs. Who asks QEMU that begins what has to be ended: where that failed it is
    /// looked for again.
    pub(super) async fn background_blocker(&self, vm: VmId) -> Result<Option<String>> {
        let asked = self.0.host.hypervisor.background_blocker(vm).await;
        if asked.is_err() {
            self.0.captures_left.notify_one();
        }
        Ok(asked?)
    }

    /// Ends what an earlier life has left, and what nobody waits for since: at each start, whenever the hypervisor is back, when a
    /// person gives an operation up, and when it could not be asked whether a VM can do it.
    pub(super) async fn end_captures_left(&self) {
        let mut link = self.0.host.hypervisor.link();
        let mut left = None;
        while self.is_linked().await {
            left = self.end_captures_of(left).await;
            let is_done = left.as_ref().is_some_and(BTreeSet::is_empty);
            let again = async {
                if is_done {
                    self.0.captures_left.notified().await;
                } else {
                    tokio::time::sleep(AGAIN).await;
                }
            };
            tokio::select! {
                biased;
                () = self.0.stopping.cancelled() => return,
                down = link.wait_for(|link| *link != Link::Up) => {
                    if down.is_err() {
                        return;
                    }
                    left = None;
                }
                () = again => {
                    if is_done {
                        left = None;
                    }
                }
            }
        }
    }

    /// Of these VMs, or of all. Gives those of which it cannot be said yet; None if it is not known which there are.
    async fn end_captures_of(&self, vms: Option<BTreeSet<VmId>>) -> Option<BTreeSet<VmId>> {
        let vms = if let Some(vms) = vms {
            vms
        } else {
            let vms = self.0.host.hypervisor.vms().await.ok()?;
            vms.into_iter().filter(|vm| vm.run_state.is_live()).map(|vm| vm.id).collect()
        };
        let mut left = BTreeSet::new();
        for vm in vms {
            if self.0.stopping.is_cancelled() {
                break;
            }
            let Ok(_permit) = self.enter(BTreeSet::from([vm]), OperationId::new()).await else {
                left.insert(vm);
                continue;
            };
            if !is_ended(&self.0.host, vm).await {
                left.insert(vm);
            }
        }
        Some(left)
    }
}
