//! Differences that somebody settles.

use tonic::Status;
use uuid::Uuid;

use super::snapshot::{OperationOrPlan, answer, answer_or_blocker, asked};
use super::status::Violations;
use super::{Answer, Api, Caller, Reach, answered, convert, status};
use crate::model::{DifferenceAction, Reason};
use crate::proto::v1;

pub(super) async fn resolve_vm(
    api: &Api,
    Caller { by, reach, .. }: Caller,
    message: v1::ResolveVmRequest,
) -> Answer<v1::ResolveVmResponse> {
    let kind = v1::OperationKind::ResolveVm;
    let asked = asked(by, "ResolveVm", &message, &message.request_id, message.validate_only);
    let (operation, plan): OperationOrPlan = if let Some(before) = api.repeated(&reach, &asked).await? {
        answer(before, kind)
    } else {
        let (difference, action) = check(&message)?;
        let submitted = if message.vm.is_empty() {
            api.engine.resolve_orphan(difference, action, asked.clone()).await
        } else {
            let vm = api.vm_id(&reach, &message.vm).await?;
            check_etag(api, &reach, &message).await?;
            api.engine.resolve_difference(vm, difference, action, asked.clone()).await
        };
        answer_or_blocker(submitted, &asked, kind)?
    };
    Ok(answered(v1::ResolveVmResponse { operation, plan }))
}

fn check(message: &v1::ResolveVmRequest) -> Result<(Uuid, DifferenceAction), Status> {
    let mut violations = Violations::default();
    violations.label("vm", &message.vm);
    violations.request_id(&message.request_id);
    violations.required("difference_id", &message.difference_id);
    let difference = violations.take_id("difference_id", &message.difference_id);
    let action = convert::asked_action(message.action());
    let action = violations.take("action", action.ok_or("it is not one of the difference's `actions`"));
    let both = difference.zip(action);
    violations.check()?;
    // What is none of them was noted.
    both.ok_or_else(|| status::plain(Reason::InvalidArgument, "the request is not complete", "name both"))
}

async fn check_etag(api: &Api, reach: &Reach, message: &v1::ResolveVmRequest) -> Result<(), Status> {
    if message.etag.is_empty() || api.one_vm(reach, &message.vm).await?.etag == message.etag {
        return Ok(());
    }
    Err(status::plain(Reason::EtagMismatch, "the VM was changed since", "look at the VM again"))
}
