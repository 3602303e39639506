//! How a run stands, written at each step. VMs of a run write to it at the same time, each its own row.

use jiff::Timestamp;
use tokio::sync::Mutex;

use super::{actor, cause};
use crate::model::ScheduleRun;
use crate::model::event::{Event, of_run};
use crate::model::schedule::RunVm;
use crate::ops::Result;
use crate::store::Store;

/// A run that is going.
pub(super) struct Ledger {
    store: Store,
    /// As it began; how its VMs stand is in `vms`.
    run: ScheduleRun,
    vms: Vec<Mutex<RunVm>>,
}

impl Ledger {
    pub(super) fn new(store: Store, run: ScheduleRun) -> Self {
        let vms = run.vms.iter().cloned().map(Mutex::new).collect();
        Self { store, run, vms }
    }

    /// Writes how it stands with a VM, and what there is to tell.
    pub(super) async fn note(
        &self,
        index: usize,
        change: impl FnOnce(&mut RunVm),
        tell: impl FnOnce(&RunVm) -> Option<Event>,
    ) -> Result<RunVm> {
        let mut vm = self.vms[index].lock().await;
        let mut next = vm.clone();
        change(&mut next);
        let told = tell(&next);
        self.store.write_run_vm(self.run.id, index, next.clone(), told).await?;
        vm.clone_from(&next);
        Ok(next)
    }

    /// All is over; what was missed meanwhile is told with it, and not made up for.
    pub(super) async fn end(&self, now: Timestamp, missed: Option<Event>) -> Result<()> {
        let mut run = self.run.clone();
        for (vm, written) in run.vms.iter_mut().zip(&self.vms) {
            vm.clone_from(&*written.lock().await);
        }
        let ended = run.ended(now);
        let seen_until = missed.is_some().then_some(now);
        let told = of_run(&ended, &cause(actor(&ended.schedule), now));
        let told = [told].into_iter().chain(missed).collect();
        Ok(self.store.end_run(ended, seen_until, told).await?)
    }
}
