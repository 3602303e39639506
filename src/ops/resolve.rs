//! Differences are settled the way that a person has chosen.
//!
//! Leaves to `plan` which ways there are, and to the gate that the difference is still what it was when the person saw it.

use uuid::Uuid;

use super::{Asked, Engine, Result, Submitted};
use crate::model::{Difference, DifferenceAction, Request, ResolveDifference, VmId, VolumeId};
use crate::plan::Refusal;

impl Engine {
    /// Settles a difference of a VM, or of what stands for one.
    pub async fn resolve_difference(
        &self,
        vm: VmId,
        difference: Uuid,
        action: DifferenceAction,
        asked: Asked,
    ) -> Result<Submitted> {
        let request = ResolveDifference { difference, action, orphan: None };
        self.submit(vm, None, Request::ResolveDifference(request), asked).await
    }

    /// Settles a difference that concerns no VM: a file that nobody needs.
    pub async fn resolve_orphan(
        &self,
        difference: Uuid,
        action: DifferenceAction,
        asked: Asked,
    ) -> Result<Submitted> {
        let orphans = self.orphans_or_busy().await?;
        let found = orphans.into_iter().find(|orphan: &Difference| orphan.id() == difference);
        let path = found.and_then(|orphan| orphan.path).ok_or(Refusal::NoSuchDifference(difference))?;
        let nobody = VmId::of_detached(VolumeId::of_image(&path));
        let request = ResolveDifference { difference, action, orphan: Some(path) };
        self.submit(nobody, None, Request::ResolveDifference(request), asked).await
    }

    /// Tells what is settled, and lets snapshots be READY that have all they need. Whoever asks holds the VM.
    pub(super) async fn look_again(&self, vm: VmId) {
        if let Err(error) = self.regain(vm).await {
            let error: &dyn std::error::Error = &error;
            tracing::info!(%vm, error, "whether snapshots have what they need is seen at the next look");
        }
        match self.look(vm).await {
            Ok((_, differences)) => self.tell_differences(vm, &differences).await,
            Err(error) => {
                let error: &dyn std::error::Error = &error;
                tracing::info!(%vm, error, "what differs is seen at the next look");
            }
        }
    }
}
