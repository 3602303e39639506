//! The way back from the switch of a create: what was written to the overlays goes into the images that they cover.
//!
//! Decides when it is known what the switch came to: from then on only the merge counts. Leaves the merge to `merge`.

use crate::model::VmView;
use crate::model::step::{How, Merge, MergeLayers, SwitchDisks};
use crate::model::vm::DiskSource;

use super::pause::{self, Told, restore_run_state};
use super::position::{may_be_saved_before_it, writes_to};
use super::{Context, Performed, background, merge, quiesce, unnoted};

/// The VM writes to its former images again, with all that was written since; and does what it did.
pub(super) async fn take_back(context: &Context<'_>, switch: &SwitchDisks) -> Performed {
    let merges = switch
        .disks
        .iter()
        .map(|disk| Merge {
            target: disk.target.clone(),
            base: disk.from.clone(),
            between: Vec::new(),
            child: disk.to.clone(),
            how: How::Commit { grandchildren: Vec::new() },
        })
        .collect();
    // The guest may stand still, and nothing is lost by letting it go on before what takes its time. If it cannot be proven
    // now, the step that froze it proves it when it is undone.
    let _ = quiesce::thaw(context).await;
    let _ = pause::resume(context).await;
    if context.operation.captures_in_background() {
        // Nobody attends that any more, and what comes next may take hours.
        let broken_off = background::break_off(context).await;
        if !broken_off.is_done() {
            return broken_off;
        }
    }
    let is_on_way_back = match context.store.is_on_way_back(context.operation.id).await {
        Ok(is_on_way_back) => is_on_way_back,
        Err(error) => return Performed::unknown(error),
    };
    // A VM that stops in the meantime must not be found on its bases: what it wrote since is in the overlays.
    let settled = if is_on_way_back {
        unnoted::settle_live(context, switch).await
    } else {
        unnoted::settle(context, switch).await
    };
    if let Err(unsettled) = settled {
        return unsettled.into_performed();
    }
    let view = match context.look_at_vm().await {
        Ok(view) => Some(view),
        // The merge may see past it.
        Err(_) if is_on_way_back => None,
        Err(error) => return Performed::unknown(error),
    };
    if !view.as_ref().is_some_and(|view| is_untouched(view, switch)) {
        if let Some(view) = view.filter(|view| view.has_managed_save) {
            return Performed::gave_up(may_be_saved_before_it(&switch.disks[0], &view));
        }
        // Once they are merged back the overlays tell nothing of the switch any more.
        if let Err(error) = context.store.enter_way_back(context.operation.id).await {
            return Performed::unknown(error);
        }
        // Disks that are back already are no work: but for the definition, which may name the overlay still.
        let back = merge::merge(context, &MergeLayers { merges, bandwidth: None }).await;
        if !back.is_done() {
            return back;
        }
    }
    // What was told of the switch is not known any more.
    match restore_run_state(context, switch, Told::Nothing).await {
        Ok(()) => Performed::done(),
        Err(error) => Performed::unknown(error),
    }
}

/// Whether nothing has gone over to the overlays, and no definition names one.
fn is_untouched(view: &VmView, switch: &SwitchDisks) -> bool {
    switch.disks.iter().all(|disk| {
        let stored = match view.disk(&disk.target).map(|seen| &seen.source) {
            Some(DiskSource::Chain { persistent, .. }) => persistent.as_ref(),
            Some(DiskSource::Excluded(_) | DiskSource::Refused(_)) | None => None,
        };
        writes_to(view, &disk.target, &disk.from) && stored.is_none_or(|stored| *stored == disk.from.path)
    })
}
