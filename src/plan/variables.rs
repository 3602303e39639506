//! UEFI variables: kept with each snapshot of a VM, brought back by a revert, given to a VM that is made out of it.
//!
//! Decides when the file can be copied, and names what a snapshot does not hold. The copy is made right before the freeze,
//! not in it: the firmware of a guest writes when it boots and when somebody changes what it boots, and a longer freeze
//! is felt each time. Captured memory has the variables in it as they are at its own instant, which counts when a VM
//! starts from it.

use std::path::PathBuf;

use crate::model::snapshot::KeptVariables;
use crate::model::step::{ImageRef, Step};
use crate::model::vm::Format;
use crate::model::{Snapshot, SnapshotId, VmId};

use super::names::Content;
use super::{NewIds, Refusal, World, directory_of};

/// What a snapshot of the VM keeps, and where; None if there is nothing that can be copied.
pub(super) fn kept(world: &World, snapshot: SnapshotId) -> Option<KeptVariables> {
    let bytes = *world.variables.get(&copyable(world)?.path)?;
    let path = Content::Variables.path(&world.places.memory, snapshot.0);
    Some(KeptVariables { path, bytes })
}

/// The step that keeps them.
pub(super) fn keep(world: &World, kept: &KeptVariables) -> Option<Step> {
    let from = copyable(world)?.path.clone();
    Some(Step::CopyVariables { from, to: kept.path.clone() })
}

/// The VM's file, if it can be copied now. QEMU keeps the metadata of a qcow2 image to itself for a while, so that the
/// file of a live VM may be half an image.
fn copyable(world: &World) -> Option<&ImageRef> {
    let is_whole = |file: &&ImageRef| file.format == Format::Raw || !world.vm.run_state.is_live();
    world.vm.variables.as_ref().filter(is_whole)
}

/// What a snapshot without memory does not hold, in words.
pub(super) fn uncovered(world: &World) -> Vec<String> {
    let path = |file: &ImageRef| format!("the UEFI variables ({})", file.path.display());
    let of_variables = match (&world.vm.variables, copyable(world)) {
        (Some(file), None) => Some(format!("{}: while the VM is live, qcow2 is not copied", path(file))),
        (Some(file), Some(_)) if !world.variables.contains_key(&file.path) => {
            Some(format!("{}: there is no such file yet", path(file)))
        }
        (Some(_), Some(_)) | (None, _) => None,
    };
    of_variables.into_iter().chain(world.vm.uncovered.iter().map(ToString::to_string)).collect()
}

/// How a revert brings variables back.
pub(super) struct Restoring {
    /// Those of the snapshot.
    from: PathBuf,
    /// The VM's own.
    to: PathBuf,
    /// Where those of now are kept until the VM has started. None if it has none.
    before: Option<PathBuf>,
}

impl Restoring {
    /// None if the snapshot, or the VM, has no variables.
    pub(super) fn new(world: &World, snapshot: &Snapshot, ids: NewIds<'_>) -> Result<Option<Self>, Refusal> {
        let (Some(kept), Some(file)) = (&snapshot.variables, &world.vm.variables) else { return Ok(None) };
        check(world, kept)?;
        let is_there = world.variables.contains_key(&file.path);
        let before = is_there.then(|| Content::Variables.path(&world.places.memory, ids()));
        Ok(Some(Self { from: kept.path.clone(), to: file.path.clone(), before }))
    }

    /// The steps, of a VM that is off by then.
    pub(super) fn steps(&self) -> Vec<Step> {
        let Self { from, to, before } = self;
        let keep = before.iter().map(|before| Step::CopyVariables { from: to.clone(), to: before.clone() });
        let mut steps: Vec<Step> = keep.collect();
        steps.push(Step::RestoreVariables { from: from.clone(), to: to.clone(), before: before.clone() });
        steps
    }

    /// The file that is of no use any more in the end.
    pub(super) fn left_over(&self) -> Option<&PathBuf> {
        self.before.as_ref()
    }
}

/// The variables of a VM made out of `snapshot`: the file, and the step that makes it. It stands beside the source's,
/// where QEMU may reach it.
pub(super) fn of_new_vm(
    world: &World,
    snapshot: &Snapshot,
    vm: VmId,
) -> Result<Option<(PathBuf, Step)>, Refusal> {
    let (Some(kept), Some(file)) = (&snapshot.variables, &world.vm.variables) else { return Ok(None) };
    check(world, kept)?;
    let to = Content::Firmware.path(&directory_of(&file.path), vm.0);
    Ok(Some((to.clone(), Step::CopyVariables { from: kept.path.clone(), to })))
}

pub(super) fn check(world: &World, kept: &KeptVariables) -> Result<(), Refusal> {
    match world.variables.get(&kept.path) {
        None => Err(Refusal::ImageMissing(kept.path.clone())),
        Some(bytes) if *bytes != kept.bytes => Err(Refusal::ImageChanged {
            path: kept.path.clone(),
            problem: format!("it has {bytes} bytes, not {}", kept.bytes),
        }),
        Some(_) => Ok(()),
    }
}
