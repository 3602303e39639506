//! Operations.

use std::time::Duration;

use super::{consistency, timestamp};
use crate::api::status;
use crate::model::convergence::Trend;
use crate::model::operation::{Direction, OperationState};
use crate::model::{Consistency, Operation, Request, ResolveDifference, RunState, SnapshotKind};
use crate::ops::{Course, OperationView, Phase, Progress};
use crate::plan::describe;
use crate::proto::v1;

/// An operation as a client sees it.
pub(in crate::api) fn operation(view: &OperationView) -> v1::Operation {
    let operation = &view.operation;
    let cursor = operation.cursor;
    let has_ended = cursor.has_ended();
    v1::Operation {
        id: operation.id.to_string(),
        request_id: operation.request_id.clone(),
        kind: kind(&operation.request).into(),
        state: state(cursor.state).into(),
        vm_id: operation.of_vm().map(|vm| vm.to_string()).unwrap_or_default(),
        vm_name: operation.vm_name.clone(),
        volume_id: volume(operation),
        new_vm_id: operation.new_vm().map(|new| new.vm.to_string()).unwrap_or_default(),
        snapshot_id: operation.snapshot.map(|id| id.to_string()).unwrap_or_default(),
        snapshot_name: operation.snapshot_name.as_ref().map(ToString::to_string).unwrap_or_default(),
        steps: steps(operation),
        current_step: index(current_step(operation)),
        commit_point: index(cursor.commit_point),
        cancellable: operation.can_cancel(),
        progress: view.progress.iter().map(|progress| progress_of(progress, has_ended)).collect(),
        generation: view.revision,
        error: error(operation),
        undo_error: operation.later_failure.as_ref().map(|failure| status::failure(failure, "")),
        resolutions: resolutions(cursor.state),
        findings: Some(findings(operation)),
        create_time: Some(timestamp(operation.created_at)),
        update_time: Some(timestamp(operation.updated_at)),
        end_time: operation.ended_at.map(timestamp),
        created_by: operation.created_by.clone(),
        bandwidth_bytes_per_second: operation.bandwidth().unwrap_or(0),
    }
}

/// The volume that an operation is about.
fn volume(operation: &Operation) -> String {
    match &operation.request {
        Request::RevertVolume(request) => request.volume.to_string(),
        Request::FlattenVolume(request) => request.volume.to_string(),
        Request::DeleteVolume(request) => request.volume.to_string(),
        Request::CloneVolume(_) | Request::DeployVm(_) => {
            operation.new_volumes().next().map(ToString::to_string).unwrap_or_default()
        }
        // It is about a file, which is no volume.
        Request::ResolveDifference(ResolveDifference { orphan: Some(_), .. }) => String::new(),
        Request::CreateSnapshot(_)
        | Request::TakeFromSnapshot(_)
        | Request::RevertSnapshot(_)
        | Request::DeleteSnapshots(_)
        | Request::PurgeSnapshot(_)
        | Request::ResolveDifference(_)
        | Request::Collapse { .. } => match operation.of_vm() {
            Some(_) => String::new(),
            // Its own id is what stands for the VM of a volume that no VM has.
            None => operation.vm.to_string(),
        },
    }
}

fn kind(request: &Request) -> v1::OperationKind {
    match request {
        Request::CreateSnapshot(request) if request.kind == SnapshotKind::Volume => {
            v1::OperationKind::CreateVolumeSnapshot
        }
        Request::CreateSnapshot(_) => v1::OperationKind::CreateSnapshot,
        Request::TakeFromSnapshot(_) => v1::OperationKind::CreateVolumeSnapshot,
        Request::RevertVolume(_) => v1::OperationKind::RevertVolume,
        Request::CloneVolume(_) => v1::OperationKind::CloneVolume,
        Request::FlattenVolume(_) => v1::OperationKind::FlattenVolume,
        Request::DeleteVolume(_) => v1::OperationKind::DeleteVolume,
        Request::DeployVm(_) => v1::OperationKind::DeployVm,
        Request::RevertSnapshot(_) => v1::OperationKind::RevertSnapshot,
        Request::DeleteSnapshots(_) => v1::OperationKind::DeleteSnapshot,
        Request::PurgeSnapshot(_) => v1::OperationKind::PurgeSnapshot,
        Request::ResolveDifference(_) => v1::OperationKind::ResolveVm,
        Request::Collapse { .. } => v1::OperationKind::Collapse,
    }
}

fn state(state: OperationState) -> v1::OperationState {
    match state {
        OperationState::Running { .. } => v1::OperationState::Running,
        OperationState::Undoing { .. } => v1::OperationState::Undoing,
        OperationState::Succeeded => v1::OperationState::Succeeded,
        OperationState::Failed => v1::OperationState::Failed,
        OperationState::Stuck { .. } => v1::OperationState::Stuck,
    }
}

fn steps(operation: &Operation) -> Vec<v1::OperationStep> {
    let steps = operation.steps.iter().enumerate();
    steps
        .map(|(at, step)| v1::OperationStep {
            index: index(at),
            description: describe(step),
            state: step_state(operation.cursor.state, at).into(),
            ..v1::OperationStep::default()
        })
        .collect()
}

fn step_state(state: OperationState, step: usize) -> v1::StepState {
    match state {
        OperationState::Succeeded => v1::StepState::Done,
        OperationState::Failed => v1::StepState::Undone,
        OperationState::Running { at } | OperationState::Undoing { at } if step == at => {
            v1::StepState::Running
        }
        OperationState::Stuck { at, .. } if step == at => v1::StepState::Failed,
        OperationState::Running { at }
        | OperationState::Undoing { at }
        | OperationState::Stuck { at, direction: Direction::Forward | Direction::Back }
            if step < at =>
        {
            v1::StepState::Done
        }
        OperationState::Undoing { .. } | OperationState::Stuck { direction: Direction::Back, .. } => {
            v1::StepState::Undone
        }
        OperationState::Running { .. } | OperationState::Stuck { direction: Direction::Forward, .. } => {
            v1::StepState::Pending
        }
    }
}

fn current_step(operation: &Operation) -> usize {
    match operation.cursor.state {
        OperationState::Running { at }
        | OperationState::Undoing { at }
        | OperationState::Stuck { at, .. } => at,
        OperationState::Succeeded => operation.cursor.steps.saturating_sub(1),
        OperationState::Failed => 0,
    }
}

/// An ended operation that failed says why; one that is on its way back, or stuck, does so, too.
fn error(operation: &Operation) -> Option<v1::Error> {
    let failure = operation.failure.as_ref()?;
    let changed = match operation.cursor.state {
        OperationState::Failed if operation.was_abandoned => "what was done so far; it was abandoned there",
        OperationState::Failed => "nothing",
        OperationState::Running { .. }
        | OperationState::Undoing { .. }
        | OperationState::Succeeded
        | OperationState::Stuck { .. } => "",
    };
    Some(status::failure(failure, changed))
}

fn resolutions(state: OperationState) -> Vec<i32> {
    match state {
        OperationState::Stuck { .. } => vec![v1::Resolution::Retry.into(), v1::Resolution::Abandon.into()],
        OperationState::Running { .. }
        | OperationState::Undoing { .. }
        | OperationState::Succeeded
        | OperationState::Failed => Vec::new(),
    }
}

fn findings(operation: &Operation) -> v1::Findings {
    let findings = &operation.findings;
    let consistency_of_create = match (&operation.request, operation.cursor.state) {
        (Request::CreateSnapshot(request), OperationState::Succeeded) => {
            Some(if request.kind == SnapshotKind::VmDisksAndMemory {
                Consistency::Memory
            } else if operation.run_state_before() == Some(RunState::Off) {
                Consistency::Off
            } else {
                findings.disk_consistency()
            })
        }
        (_, _) => None,
    };
    let (level, reason) = consistency_of_create.as_ref().map(consistency).unwrap_or_default();
    v1::Findings {
        consistency: level.into(),
        consistency_reason: reason,
        frozen_ms: findings.thawed.map(|_| findings.frozen_ms),
        paused_ms: (findings.paused_ms > 0.0).then_some(findings.paused_ms),
        ..v1::Findings::default()
    }
}

fn progress_of(progress: &Progress, has_ended: bool) -> v1::Progress {
    let (bytes_per_second, eta) = match &progress.course {
        Some(Course { trend: Trend::Gaining { left }, pace, .. }) => (pace.copied, Some(*left)),
        Some(Course { trend: Trend::Behind | Trend::Still, pace, .. }) => (pace.copied, None),
        Some(Course { trend: Trend::Unknown, .. }) | None => so_far(progress),
    };
    v1::Progress {
        phase: match progress.phase {
            Phase::CaptureMemory => v1::ProgressPhase::SaveMemory,
            Phase::Merge => v1::ProgressPhase::Commit,
            Phase::Copy => v1::ProgressPhase::Copy,
        }
        .into(),
        disk: progress.disk.as_ref().map(ToString::to_string).unwrap_or_default(),
        bytes_done: progress.done,
        bytes_total: progress.total,
        bytes_per_second,
        eta: eta.and_then(|eta| eta.try_into().ok()),
        done: has_ended,
        convergence: progress
            .course
            .map_or(v1::Convergence::Unspecified, |course| convergence(course.trend))
            .into(),
        write_bytes_per_second: progress.course.map_or(0, |course| course.pace.written),
        writes_limited_to_bytes_per_second: progress.course.and_then(|course| course.slowed_to).unwrap_or(0),
        held_to_bytes_per_second: progress.course.and_then(|course| course.held_to).unwrap_or(0),
        guest_wait: progress.course.and_then(|course| course.wait).and_then(|wait| wait.try_into().ok()),
    }
}

fn convergence(trend: Trend) -> v1::Convergence {
    match trend {
        Trend::Unknown => v1::Convergence::Unspecified,
        Trend::Gaining { .. } => v1::Convergence::Gaining,
        Trend::Behind => v1::Convergence::Outrun,
        Trend::Still => v1::Convergence::Still,
    }
}

/// The rate since it began, and the time left at that rate.
fn so_far(progress: &Progress) -> (u64, Option<Duration>) {
    let left = progress.total.saturating_sub(progress.done);
    #[allow(clippy::cast_precision_loss, reason = "an estimate for people")]
    let eta = (progress.rate > 1.0).then(|| Duration::from_secs_f64((left as f64 / progress.rate).min(1e9)));
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a rate is positive and modest"
    )]
    let bytes_per_second = progress.rate as u64;
    (bytes_per_second, eta)
}

fn index(index: usize) -> u32 {
    u32::try_from(index).unwrap_or(u32::MAX)
}
