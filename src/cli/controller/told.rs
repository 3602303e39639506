//! Reports as a person reads them, one a line.

use crate::cli::words;
use crate::proto::controller::v1 as wire;
use crate::proto::controller::v1::report_request::Message;
use crate::proto::v1;

/// A report of a node.
pub(super) fn line(node: &str, report: &wire::ReportRequest) -> String {
    let place = match report.sequence {
        0 => "-".to_owned(),
        sequence => sequence.to_string(),
    };
    let told = report.message.as_ref().map(words_of).unwrap_or_default();
    format!("{}  {node}  {place}  {told}", words::time(report.time))
}

fn words_of(message: &Message) -> String {
    match message {
        Message::Hello(hello) => {
            let waiting = hello.last_sequence.saturating_sub(hello.acknowledged_sequence);
            format!("hello, {waiting} reports wait in outbox {}", hello.outbox_id)
        }
        Message::Inventory(part) => format!(
            "inventory: {} VMs, {} volumes, {} snapshots, {} operations{}",
            part.vms.len(),
            part.volumes.len(),
            part.snapshots.len(),
            part.operations.len(),
            if part.last { "" } else { " and more" }
        ),
        Message::Operation(operation) => of_operation(operation),
        Message::Event(event) => format!("{} {}", event.vm_name, event.message).trim_start().to_owned(),
        Message::Heartbeat(heartbeat) => {
            let is_ill = |part: &&v1::PartHealth| part.state() == v1::HealthState::NotServing;
            let ill: Vec<&str> =
                heartbeat.parts.iter().filter(is_ill).map(|part| part.name.as_str()).collect();
            if ill.is_empty() { "all is well".to_owned() } else { format!("not well: {}", ill.join(", ")) }
        }
    }
}

fn of_operation(operation: &v1::Operation) -> String {
    let kind = words::operation_kind(operation.kind());
    let what = [operation.vm_name.as_str(), operation.snapshot_name.as_str()];
    let what = what.into_iter().filter(|name| !name.is_empty()).collect::<Vec<_>>().join("/");
    let state = words::operation_state(operation.state());
    let moves = operation.progress.iter().filter(|progress| !progress.done).map(|progress| {
        format!(", {} of {}", words::size(progress.bytes_done), words::size(progress.bytes_total))
    });
    format!("{kind} {what} {state}{}", moves.collect::<String>())
}
