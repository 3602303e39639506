//! How a run stands, written at each step. VMs of a run write to it at the same time.

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
    run: Mutex<ScheduleRun>,
}

impl Ledger {
    pub(super) fn new(store: Store, run: ScheduleRun) -> Self {
        Self { store, run: Mutex::new(run) }
    }

    /// Writes how it stands with a VM, and what there is to tell.
    pub(super) async fn note(
        &self,
        index: usize,
        change: impl FnOnce(&mut RunVm),
        tell: impl FnOnce(&RunVm) -> Option<Event>,
    ) -> Result<RunVm> {
        let mut run = self.run.lock().await;
        let mut next = run.clone();
        change(&mut next.vms[index]);
        let vm = next.vms[index].clone();
        let told = tell(&vm).into_iter().collect();
        self.store.write_run(next.clone(), told).await?;
        *run = next;
        Ok(vm)
    }

    /// All is over.
    pub(super) async fn end(&self) -> Result<()> {
        let run = self.run.lock().await;
        let now = Timestamp::now();
        let ended = run.clone().ended(now);
        let told = of_run(&ended, &cause(actor(&ended.schedule), now));
        Ok(self.store.write_run(ended, vec![told]).await?)
    }
}
