//! `vmsnap vm resolve` and `vmsnap node resolve`: differences that a person settles.

use super::Session;
use super::args::{ResolveArgs, Settling};
use super::ask::ask;
use super::connect::request_id;
use super::failure::{Failure, exit};
use super::output::{Shown, Text};
use super::snapshot::{see_through, show_plan};
use super::words;
use crate::proto::v1;

/// One that a check of a VM finds.
pub(super) async fn of_vm(session: &Session, vm: String, what: ResolveArgs) -> Result<u8, Failure> {
    let checked = session.daemon.vms().check_vm(v1::CheckVmRequest { vm: vm.clone() }).await?.into_inner();
    let found = choose(&checked.differences, &what.difference, &format!("vmsnap vm check {vm}"))?;
    resolve(session, found, what).await
}

/// One that a check of the node finds, whether it concerns a VM or none.
pub(super) async fn of_node(session: &Session, what: ResolveArgs) -> Result<u8, Failure> {
    let checked = session.daemon.nodes().check_node(v1::CheckNodeRequest {}).await?.into_inner();
    let found = choose(&checked.differences, &what.difference, "vmsnap node check")?;
    resolve(session, found, what).await
}

/// The one difference whose id begins so.
fn choose(found: &[v1::Difference], wanted: &str, check: &str) -> Result<v1::Difference, Failure> {
    let remedy = format!("'{check}' tells what differs now");
    let mut matching =
        found.iter().filter(|difference| !wanted.is_empty() && difference.id.starts_with(wanted));
    match (matching.next(), matching.next()) {
        (Some(only), None) => Ok(only.clone()),
        (Some(_), Some(_)) => {
            let message = format!("several differences have an id that begins with {wanted:?}");
            Err(Failure::new(exit::PRECONDITION, message, "give more of the id"))
        }
        (None, _) => Err(Failure::new(exit::NOT_FOUND, format!("there is no difference {wanted:?}"), remedy)),
    }
}

fn action(way: Settling) -> v1::DifferenceAction {
    match way {
        Settling { adopt: true, .. } => v1::DifferenceAction::Adopt,
        Settling { restore: true, .. } => v1::DifferenceAction::Restore,
        Settling { mark_lost: true, .. } => v1::DifferenceAction::MarkLost,
        Settling { remove_file: true, .. } => v1::DifferenceAction::RemoveFile,
        // The command line wants one of them.
        Settling { .. } => v1::DifferenceAction::Unspecified,
    }
}

async fn resolve(session: &Session, found: v1::Difference, what: ResolveArgs) -> Result<u8, Failure> {
    let mut request = v1::ResolveVmRequest {
        vm: found.vm_id,
        difference_id: found.id.clone(),
        action: action(what.way).into(),
        request_id: request_id(),
        validate_only: true,
        ..v1::ResolveVmRequest::default()
    };
    let answer = session.daemon.vms().resolve_vm(request.clone()).await?.into_inner();
    let plan = answer.plan.clone().unwrap_or_default();
    if what.how.dry_run {
        return show_plan(session, &answer, &plan, "ResolveVmResponse");
    }
    let question = format!("{}: {}?", found.description, words::difference_action(action(what.way)));
    ask(&[plan], &question, what.sure)?;
    request.validate_only = false;
    let answer = session.daemon.vms().resolve_vm(request).await?.into_inner();
    let Some(done) = see_through(session, answer.operation.unwrap_or_default(), what.how).await? else {
        return Ok(0);
    };
    session.output.show(&Shown {
        ids: vec![found.id],
        message: &v1::ResolveVmResponse { operation: Some(done), plan: None },
        name: "ResolveVmResponse",
        text: Text::Lines("settled".to_owned()),
    })?;
    Ok(0)
}
