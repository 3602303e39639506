//! Schedules and their runs.

use jiff::Timestamp;
use prost_types::Duration;

use super::timestamp;
use crate::api::status;
use crate::host::VmSummary;
use crate::model::operation::Failure;
use crate::model::schedule::{
    Blackout, CatchUp, Retention, RunState, RunVm, ScheduleLimits, ScheduleWish, SnapshotTemplate, Timing,
    VmSelector,
};
use crate::model::{Quiesce, Reason, ScheduleRun};
use crate::plan::retention::{Decision, VmRetention};
use crate::proto::v1;
use crate::schedule::{Preview, Schedules};
use crate::store::KeptSchedule;

/// A schedule as a client sees it now.
pub(in crate::api) fn schedule(kept: &KeptSchedule, now: Timestamp) -> v1::Schedule {
    let schedule = &kept.schedule;
    v1::Schedule {
        id: schedule.id.to_string(),
        paused: schedule.is_paused,
        next_run_time: Schedules::next_run(kept, now).map(timestamp),
        last_run: kept.last_run.as_ref().map(schedule_run),
        create_time: Some(timestamp(schedule.created_at)),
        created_by: schedule.created_by.clone(),
        etag: schedule.generation.to_string(),
        ..schedule_wish(&schedule.wish)
    }
}

/// What people set of a schedule; what the daemon sets is left empty.
pub(in crate::api) fn schedule_wish(wish: &ScheduleWish) -> v1::Schedule {
    v1::Schedule {
        name: wish.name.to_string(),
        description: wish.description.clone(),
        selector: Some(selector(&wish.selector)),
        template: Some(template(&wish.template)),
        timing: Some(timing(&wish.timing)),
        retention: Some(retention(&wish.retention)),
        limits: Some(limits(wish.limits)),
        ..v1::Schedule::default()
    }
}

/// A run of a schedule.
pub(in crate::api) fn schedule_run(run: &ScheduleRun) -> v1::ScheduleRun {
    let (pruned_snapshots, pruned_bytes) = run.pruned();
    let state = match run.state {
        RunState::Running => v1::ScheduleRunState::Running,
        RunState::Succeeded => v1::ScheduleRunState::Succeeded,
        RunState::Partly => v1::ScheduleRunState::Partly,
        RunState::Failed => v1::ScheduleRunState::Failed,
    };
    v1::ScheduleRun {
        id: run.id.to_string(),
        schedule_id: run.schedule.id.to_string(),
        state: state.into(),
        due_time: run.due_at.map(timestamp),
        start_time: Some(timestamp(run.started_at)),
        end_time: run.ended_at.map(timestamp),
        vms: run.vms.iter().map(run_vm).collect(),
        pruned_snapshots,
        pruned_bytes,
        missing_vms: run.missing.iter().cloned().collect(),
    }
}

/// What a schedule with this retention will do. Of VMs that pruning would be refused for the first says why, and none gives
/// anything back.
pub(in crate::api) fn preview(preview: &Preview, retention: &Retention) -> v1::PreviewScheduleResponse {
    let freed = preview.of_vms.iter().filter(|of_vm| of_vm.refusal.is_none());
    let freed = freed.flat_map(|of_vm| &of_vm.decisions).filter(|decision| !decision.keep);
    let refusal = preview.of_vms.iter().find_map(|of_vm| of_vm.refusal.as_ref());
    v1::PreviewScheduleResponse {
        run_times: preview.runs.iter().copied().map(timestamp).collect(),
        vm_ids: preview.vms.iter().map(|vm| vm.id.to_string()).collect(),
        bytes_freed: freed.fold(0, |sum, decision| sum.saturating_add(decision.taken_up.freed)),
        decisions: preview.of_vms.iter().flat_map(decisions).collect(),
        refusal: refusal.map(|refusal| refused(refusal, retention)),
        skipped_vms: preview.skipped.iter().map(skipped).collect(),
        missing_vms: preview.missing.iter().cloned().collect(),
    }
}

fn skipped((vm, failure): &(VmSummary, Failure)) -> v1::SkippedVm {
    v1::SkippedVm {
        vm_id: vm.id.to_string(),
        vm_name: vm.name.clone(),
        error: Some(status::failure(failure, "")),
    }
}

fn refused(refusal: &Failure, retention: &Retention) -> v1::Error {
    let mut error = status::failure(refusal, "nothing");
    if refusal.reason == Reason::RetentionMinimum {
        error.metadata.insert("minimum".to_owned(), retention.least().to_string());
    }
    error
}

fn decisions(of_vm: &VmRetention) -> impl Iterator<Item = v1::RetentionDecision> {
    of_vm.decisions.iter().map(|decision: &Decision| v1::RetentionDecision {
        snapshot_id: decision.snapshot.to_string(),
        snapshot_name: decision.name.to_string(),
        vm_id: of_vm.vm.to_string(),
        vm_name: of_vm.vm_name.clone(),
        create_time: Some(timestamp(decision.created_at)),
        keep: decision.keep,
        reasons: decision.reasons.clone(),
    })
}

fn run_vm(vm: &RunVm) -> v1::ScheduleRunVm {
    v1::ScheduleRunVm {
        vm_id: vm.vm.to_string(),
        vm_name: vm.name.clone(),
        operation_id: vm.operation.map(|operation| operation.to_string()).unwrap_or_default(),
        snapshot_id: vm.snapshot.map(|snapshot| snapshot.to_string()).unwrap_or_default(),
        error: vm.failure.as_ref().map(|failure| status::failure(failure, "")),
    }
}

fn selector(selector: &VmSelector) -> v1::VmSelector {
    let label = |(key, value): (&String, &Option<String>)| v1::PropertyFilter {
        key: key.clone(),
        value: value.clone(),
    };
    v1::VmSelector {
        vms: selector.vms.iter().cloned().collect(),
        labels: selector.labels.iter().map(label).collect(),
        account: selector.account.clone(),
        all: selector.all,
    }
}

fn template(template: &SnapshotTemplate) -> v1::SnapshotTemplate {
    let quiesce = match template.quiesce {
        Quiesce::Required => v1::Quiesce::Required,
        Quiesce::Auto => v1::Quiesce::Auto,
        Quiesce::Off => v1::Quiesce::Off,
    };
    v1::SnapshotTemplate {
        name: template.name.as_str().to_owned(),
        description: template.description.clone(),
        disks: template.disks.iter().map(ToString::to_string).collect(),
        memory: template.memory,
        quiesce: quiesce.into(),
        mount_points: template.mount_points.clone(),
        account: template.owner.account.clone(),
        domain: template.owner.domain.clone(),
        project: template.owner.project.clone(),
        properties: template.properties.clone(),
    }
}

fn timing(timing: &Timing) -> v1::Timing {
    let catch_up = match timing.catch_up {
        CatchUp::Once => v1::CatchUp::Once,
        CatchUp::Skip => v1::CatchUp::Skip,
    };
    let window = |blackout: &Blackout| v1::BlackoutWindow {
        cron: blackout.cron.as_str().to_owned(),
        duration: some_time(blackout.duration_ms),
    };
    v1::Timing {
        cron: timing.cron.as_str().to_owned(),
        time_zone: timing.zone.as_str().to_owned(),
        jitter: some_time(timing.jitter_ms),
        blackout_windows: timing.blackouts.iter().map(window).collect(),
        catch_up: catch_up.into(),
    }
}

fn retention(retention: &Retention) -> v1::Retention {
    v1::Retention {
        keep_last: retention.last,
        keep_hourly: retention.hourly,
        keep_daily: retention.daily,
        keep_weekly: retention.weekly,
        keep_monthly: retention.monthly,
        keep_yearly: retention.yearly,
        keep_within: some_time(retention.within_ms),
        minimum: retention.minimum,
    }
}

fn limits(limits: ScheduleLimits) -> v1::ScheduleLimits {
    v1::ScheduleLimits {
        max_snapshots_per_vm: limits.snapshots,
        max_bytes_per_vm: limits.bytes,
        min_free_bytes: limits.free_bytes,
        max_chain_depth: limits.chain_depth,
    }
}

/// Milliseconds; none are left out.
fn some_time(ms: u64) -> Option<Duration> {
    let duration = std::time::Duration::from_millis(ms);
    Duration::try_from(duration).ok().filter(|_| ms > 0)
}
