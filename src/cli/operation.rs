//! `vmsnap op`: what is under way and what has been.

use super::args::{OpVerb, Way};
use super::ask::confirm;
use super::connect::request_id;
use super::failure::Failure;
use super::output::{Shown, Text};
use super::table::Table;
use super::{Session, progress, words};
use crate::proto::v1;

pub(super) async fn carry_out(session: &Session, verb: OpVerb) -> Result<u8, Failure> {
    match verb {
        OpVerb::List { vm, open, limit } => list(session, vm.unwrap_or_default(), open, limit).await,
        OpVerb::Show { id } => {
            let request = v1::GetOperationRequest { operation_id: id };
            let answer = session.daemon.operations().get_operation(request).await?.into_inner();
            show(session, &answer.operation.unwrap_or_default())?;
            Ok(0)
        }
        OpVerb::Watch { id, timeout } => {
            let done = progress::wait(session, &id, timeout).await?;
            show(session, &done)?;
            if done.state() == v1::OperationState::Succeeded {
                Ok(0)
            } else {
                Err(Failure::of_operation(&done))
            }
        }
        OpVerb::Cancel { id, sure } => {
            if !sure.yes {
                confirm(&format!("Cancel operation {id}?"))?;
            }
            let request = v1::CancelOperationRequest { operation_id: id.clone(), request_id: request_id() };
            session.daemon.operations().cancel_operation(request).await?;
            let done = progress::wait(session, &id, None).await?;
            show(session, &done)?;
            // That it did not succeed is what was wanted; that it did means that the wish came too late.
            if done.state() == v1::OperationState::Failed { Ok(0) } else { Err(Failure::of_operation(&done)) }
        }
        OpVerb::Set { id, bandwidth } => {
            let request = v1::SetOperationBandwidthRequest {
                operation_id: id,
                bandwidth_bytes_per_second: bandwidth,
                request_id: request_id(),
            };
            let answer = session.daemon.operations().set_operation_bandwidth(request).await?.into_inner();
            show(session, &answer.operation.unwrap_or_default())?;
            Ok(0)
        }
        OpVerb::Resolve { id, way, comment, sure } => {
            if !sure.yes {
                confirm(&format!("Resolve operation {id}?"))?;
            }
            let action = match way {
                Way::Retry => v1::Resolution::Retry,
                Way::Abandon => v1::Resolution::Abandon,
            };
            let request = v1::ResolveOperationRequest {
                operation_id: id,
                action: action.into(),
                comment,
                request_id: request_id(),
            };
            let answer = session.daemon.operations().resolve_operation(request).await?.into_inner();
            show(session, &answer.operation.unwrap_or_default())?;
            Ok(0)
        }
    }
}

async fn list(session: &Session, vm: String, open: bool, limit: usize) -> Result<u8, Failure> {
    let states = [v1::OperationState::Running, v1::OperationState::Undoing, v1::OperationState::Stuck];
    let states = if open { states.map(i32::from).to_vec() } else { Vec::new() };
    let mut request = v1::ListOperationsRequest {
        filter: Some(v1::OperationFilter { vm, states, ..v1::OperationFilter::default() }),
        page_size: i32::try_from(limit.min(1000)).unwrap_or(1000),
        ..v1::ListOperationsRequest::default()
    };
    let mut answer = session.daemon.operations().list_operations(request.clone()).await?.into_inner();
    while !answer.next_page_token.is_empty() && answer.operations.len() < limit {
        request.page_token.clone_from(&answer.next_page_token);
        let mut page = session.daemon.operations().list_operations(request.clone()).await?.into_inner();
        answer.operations.append(&mut page.operations);
        answer.next_page_token = page.next_page_token;
    }
    answer.operations.truncate(limit);
    let mut table = Table::new(&["VM", "KIND", "SNAPSHOT", "STATE", "STEP", "AGE", "BY", "ID"]);
    for operation in &answer.operations {
        table.row(vec![
            operation.vm_name.clone(),
            words::operation_kind(operation.kind()),
            operation.snapshot_name.clone(),
            words::operation_state(operation.state()),
            format!("{}/{}", operation.current_step + 1, operation.steps.len()),
            words::age(operation.create_time),
            operation.created_by.clone(),
            operation.id.clone(),
        ]);
    }
    session.output.show(&Shown {
        message: &answer,
        name: "ListOperationsResponse",
        ids: answer.operations.iter().map(|operation| operation.id.clone()).collect(),
        text: Text::Table(table),
    })?;
    Ok(0)
}

/// Prints one operation.
pub(super) fn show(session: &Session, operation: &v1::Operation) -> Result<(), Failure> {
    session.output.show(&Shown {
        message: &v1::GetOperationResponse { operation: Some(operation.clone()) },
        name: "GetOperationResponse",
        ids: vec![operation.id.clone()],
        text: Text::Lines(details(operation)),
    })
}

fn details(operation: &v1::Operation) -> String {
    let mut lines = vec![
        format!("id        {}", operation.id),
        format!("kind      {}", words::operation_kind(operation.kind())),
        format!("vm        {}", operation.vm_name),
        format!("snapshot  {} ({})", operation.snapshot_name, operation.snapshot_id),
        format!("state     {}", words::operation_state(operation.state())),
        format!("begun     {} by {}", words::time(operation.create_time), operation.created_by),
    ];
    if operation.bandwidth_bytes_per_second > 0 {
        lines.push(format!("limit     {}/s", words::size(operation.bandwidth_bytes_per_second)));
    }
    for step in &operation.steps {
        let mark = if step.index == operation.commit_point { "  <- no way back from here" } else { "" };
        let number = step.index + 1;
        lines.push(format!("  {number}. {:<8} {}{mark}", words::step_state(step.state()), step.description));
    }
    for progress in &operation.progress {
        let (done, total) = (words::size(progress.bytes_done), words::size(progress.bytes_total));
        lines.push(format!("  {} {done} of {total}", progress.disk));
        lines.extend(words::convergence(progress).map(|words| format!("    {words}")));
    }
    for (label, error) in [("error", &operation.error), ("later", &operation.undo_error)] {
        if let Some(error) = error {
            lines.push(format!("{label}     {}", error.message));
            if !error.cause.is_empty() {
                lines.push(format!("  why     {}", error.cause));
            }
            if !error.remedy.is_empty() {
                lines.push(format!("  do      {}", error.remedy));
            }
        }
    }
    if !operation.resolutions.is_empty() {
        lines.push(format!("ways out  vmsnap op resolve {} retry|abandon", operation.id));
    }
    lines.join("\n")
}
