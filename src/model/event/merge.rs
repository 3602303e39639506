//! What is told of a merge that makes no headway.

use jiff::Timestamp;

use super::{Cause, Event, EventKind, Severity};
use crate::model::convergence::Pace;
use crate::model::ids::DiskTarget;
use crate::model::operation::Operation;

/// How a merge goes that does not go as it should.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MergeNews {
    /// The guest writes as fast as is copied, or faster.
    Outrun,
    /// Nothing is copied.
    Still,
    /// The guest's writes are slowed.
    Slowed {
        /// Bytes per second.
        limit: u64,
    },
    /// Less and less is left again.
    Gaining,
}

/// News of the merge of a disk.
#[must_use]
pub fn of_merge(
    operation: &Operation,
    disk: &DiskTarget,
    news: MergeNews,
    pace: Pace,
    at: Timestamp,
) -> Event {
    let Pace { copied, written } = pace;
    let (severity, change, message) = match news {
        MergeNews::Outrun => (
            Severity::Warning,
            "outrun",
            format!(
                "the merge of disk {disk} does not converge: {written} bytes/s are written, {copied} copied"
            ),
        ),
        MergeNews::Still => {
            (Severity::Warning, "still", format!("the merge of disk {disk} stands still: nothing is copied"))
        }
        MergeNews::Slowed { limit } => (
            Severity::Warning,
            "slowed",
            format!("the guest's writes to disk {disk} are slowed to {limit} bytes/s until it is merged"),
        ),
        MergeNews::Gaining => (
            Severity::Info,
            "gaining",
            format!("the merge of disk {disk} converges: {written} bytes/s are written, {copied} copied"),
        ),
    };
    let cause = Cause { operation: Some(operation.id), actor: operation.created_by.clone(), at };
    let event =
        Event { severity, ..Event::new(EventKind::MergeNotConverging, message, &cause).about(operation) };
    let event = event.with("disk", disk).with("change", change);
    let event = event.with("write_rate", written).with("copy_rate", copied);
    match news {
        MergeNews::Slowed { limit } => event.with("limit", limit),
        MergeNews::Outrun | MergeNews::Still | MergeNews::Gaining => event,
    }
}
