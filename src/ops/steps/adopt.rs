//! What somebody did to the disks is taken in: only as it is now, and not as it was when a person saw it.

use crate::model::step::{CatalogChange, Step};
use crate::model::{DifferenceAction, Failure, Request, ResolveDifference};
use crate::plan;

use super::super::OpsError;
use super::switch::{check_whole, confirm};
use super::{Context, Performed, stored};

/// The catalog says so.
pub(super) async fn record(context: &Context<'_>, change: &CatalogChange) -> Performed {
    if let Request::ResolveDifference(request) = &context.operation.request
        && request.action == DifferenceAction::Adopt
    {
        match context.store.tree(context.vm()).await {
            Ok(tree) if plan::is_adopted(&tree, change) => return Performed::done(),
            Ok(_) => {}
            Err(error) => return Performed::unknown(error),
        }
        // The catalog does not say so: whatever is seen now, nothing has happened.
        if let Err(failure) = check(context, request, change).await {
            return Performed::not_applied(failure);
        }
    }
    if let CatalogChange::SnapshotTaken { .. } = change {
        let switch = context.operation.steps.iter().find_map(|step| match step {
            Step::SwitchDisks(switch) => Some(switch),
            _ => None,
        });
        if let Some(switch) = switch {
            if let Err(performed) = confirm(context, switch).await {
                return performed;
            }
            if let Err(performed) = check_whole(context, switch).await {
                return performed;
            }
        }
    }
    let findings = context.operation.findings.clone();
    stored(context.store.apply(context.vm(), change.clone(), findings, context.cause()).await)
}

async fn check(
    context: &Context<'_>,
    request: &ResolveDifference,
    change: &CatalogChange,
) -> Result<(), Failure> {
    let (world, found) = context.engine.look(context.vm()).await?;
    let checked = plan::check_adoption(&world, &found, request, change);
    Ok(checked.map_err(OpsError::Refused)?)
}
