//! What an answer is about, for whoever writes down what was done.

use tonic::Response;

use crate::proto::v1;

/// An operation, a snapshot, a VM or a schedule, as in `operation ID`. Among the extensions of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct About(pub String);

/// Answers that are about something.
pub(super) trait IsAbout {
    fn about(&self) -> Option<String>;
}

macro_rules! is_about {
    ($($field:ident: $word:literal, $id:ident, $($answer:ident)*;)*) => {
        $($(impl IsAbout for v1::$answer {
            fn about(&self) -> Option<String> {
                self.$field.as_ref().map(|about| format!(concat!($word, " {}"), about.$id))
            }
        })*)*
    };
}

is_about! {
    operation: "operation", id,
        CreateSnapshotResponse RevertSnapshotResponse DeleteSnapshotResponse BatchDeleteSnapshotsResponse
        PurgeSnapshotResponse CreateVolumeSnapshotResponse RevertVolumeResponse CloneVolumeResponse FlattenVolumeResponse
        DeleteVolumeResponse DeployVmResponse ResolveVmResponse CancelOperationResponse ResolveOperationResponse
        SetOperationBandwidthResponse;
    snapshot: "snapshot", id, UpdateSnapshotResponse AddSnapshotHoldResponse RemoveSnapshotHoldResponse
        ResetSnapshotStateResponse;
    comment: "snapshot", snapshot_id, AddSnapshotCommentResponse;
    vm: "vm", id, ResumeVmResponse;
    schedule: "schedule", id, CreateScheduleResponse UpdateScheduleResponse PauseScheduleResponse ResumeScheduleResponse;
    run: "schedule", schedule_id, RunScheduleResponse;
}

/// An answer, with what it is about beside it.
pub(super) fn answered<T: IsAbout>(message: T) -> Response<T> {
    let about = message.about().map(About);
    let mut answer = Response::new(message);
    if let Some(about) = about {
        answer.extensions_mut().insert(about);
    }
    answer
}
