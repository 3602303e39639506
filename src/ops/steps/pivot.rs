//! A pivot: noted before it is asked for, and looked for until it is known what came of it.
//!
//! Decides whether the process that was asked is the one that runs now. Leaves what follows from that to `plan::merge`.
//!
//! ```text
//!   ready --note durable--> noted --asked--> the definition names the base: note gone
//!                             |  ^     |
//!                             |  +-----+ refused because it is not ready: as if never noted
//!                             +--> (crash) --> the process is there: it tells. It is not: plan::merge::Pivot::Unseen
//! ```

use crate::host::{HostError, Result as HostResult};
use crate::model::step::Merge;
use crate::ops::OpsError;
use crate::plan::merge::Pivot;
use crate::store::AskedPivot;

use super::Context;

/// The pivot of one merge.
#[derive(Default)]
pub(super) struct Asked {
    note: Option<AskedPivot>,
    /// One of two other images of the disk, of which it was not seen what came of it.
    another: Option<AskedPivot>,
    /// What a comparison has told, as long as no process runs.
    reads_same: Option<bool>,
}

impl Asked {
    /// What an earlier attempt, or an earlier life, has asked for. Whichever operation that was.
    pub(super) async fn load(context: &Context<'_>, merge: &Merge) -> Result<Self, OpsError> {
        let Some(vm) = context.operation.of_vm() else { return Ok(Self::default()) };
        let asked = context.store.pivot(vm, &merge.target).await?;
        let is_of = |note: &AskedPivot| note.child == merge.child.path && note.base == merge.base.path;
        let (note, another) = if asked.as_ref().is_some_and(is_of) { (asked, None) } else { (None, asked) };
        Ok(Self { note, another, reads_same: None })
    }

    /// Whether one may have been carried out.
    pub(super) fn is_pending(&self) -> bool {
        self.note.is_some()
    }

    pub(super) fn compared(&mut self, reads_same: bool) {
        self.reads_same = Some(reads_same);
    }

    /// Lets the VM write to the base.
    pub(super) async fn pivot(&mut self, context: &Context<'_>, merge: &Merge) -> Result<(), OpsError> {
        let was_asked = self.is_pending();
        self.put(context, merge).await?;
        let result = context.host.hypervisor.pivot(context.vm(), &merge.target).await;
        if let (Err(HostError::NotReady(_)), false) = (&result, was_asked) {
            // The hypervisor has not passed it on, and no earlier one is under way.
            self.forget(context, merge).await?;
        }
        Ok(result?)
    }

    /// The note, durable.
    async fn put(&mut self, context: &Context<'_>, merge: &Merge) -> Result<(), OpsError> {
        let written = context.host.hypervisor.written_image(context.vm(), &merge.target).await?;
        let Some(process) = written.process else {
            let cause = "the VM has just ended".into();
            return Err(HostError::Refused { call: "pivot", cause }.into());
        };
        if self.note.as_ref().is_some_and(|note| note.process == process) {
            return Ok(());
        }
        if let Some(another) = self.another.as_ref().filter(|another| another.process != process) {
            let view = context.look_at_vm().await?;
            if view.disk(&merge.target).is_some_and(|disk| disk.uses(&another.child)) {
                return Err(undecided(another).into());
            }
        }
        let note = AskedPivot {
            vm: context.vm(),
            disk: merge.target.clone(),
            operation: context.operation.id,
            process,
            child: merge.child.path.clone(),
            base: merge.base.path.clone(),
        };
        context.store.put_pivot(note.clone()).await?;
        self.note = Some(note);
        Ok(())
    }

    /// It is known what came of it.
    pub(super) async fn forget(&mut self, context: &Context<'_>, merge: &Merge) -> Result<(), OpsError> {
        if self.is_pending() {
            context.store.clear_pivot(context.vm(), merge.target.clone()).await?;
            self.note = None;
        }
        Ok(())
    }

    /// What is known of it, beside a look at the VM that has just found it live or off.
    pub(super) async fn look(
        &self,
        context: &Context<'_>,
        merge: &Merge,
        was_live: bool,
    ) -> HostResult<Pivot> {
        let is_merged = |note: &&AskedPivot| {
            let layers = [&merge.base, &merge.child].into_iter().chain(&merge.between);
            layers.into_iter().any(|layer| layer.path == note.child)
        };
        let another = self.another.as_ref().filter(is_merged);
        let Some(note) = self.note.as_ref().or(another) else { return Ok(Pivot::Seen) };
        let process = context.host.hypervisor.written_image(context.vm(), &merge.target).await?.process;
        if process.is_some() != was_live {
            let cause = "it has started or ended while it was looked at".into();
            return Err(HostError::Busy(cause));
        }
        if process.as_ref() == Some(&note.process) {
            return Ok(Pivot::Seen);
        }
        if let Some(another) = another {
            return Err(undecided(another));
        }
        Ok(Pivot::Unseen { reads_same: self.reads_same.filter(|_| !was_live) })
    }
}

/// Whatever is merged into its child, or out of it, may go over what is newer.
fn undecided(another: &AskedPivot) -> HostError {
    let problem = format!(
        "an earlier merge has asked the VM to write to {} instead, and it has ended before it was seen whether it did: \
         delete first what was deleted then, and decide which of the two is newer",
        another.base.display()
    );
    HostError::BadImage { path: another.child.clone(), problem }
}
