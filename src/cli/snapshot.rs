//! `vmsnap snapshot`: take, see, go back to, delete.

use super::args::{
    CreateArgs, DeleteArgs, How, ListArgs, Quiesce, RevertArgs, RunState, SnapshotVerb, Which,
};
use super::ask::{ask, describe};
use super::connect::request_id;
use super::failure::{Failure, exit};
use super::output::{Shown, Text};
use super::table::Table;
use super::{Session, edit, event, list, operation, output, progress, purge, tree, words};
use crate::proto::v1;

/// Most entries that one call gives.
pub(super) const PAGE: i32 = 1000;

pub(super) async fn carry_out(session: &Session, verb: SnapshotVerb) -> Result<u8, Failure> {
    match verb {
        SnapshotVerb::Create(args) => create(session, *args).await,
        SnapshotVerb::List(args) if args.tree => show_tree(session, args).await,
        SnapshotVerb::List(args) => table(session, args).await,
        SnapshotVerb::Show { which } => show(session, &which).await,
        SnapshotVerb::Revert(args) => revert(session, args).await,
        SnapshotVerb::Delete(args) => delete(session, args).await,
        SnapshotVerb::Purge(args) => purge::purge(session, args).await,
        SnapshotVerb::Set(args) => edit::set(session, *args).await,
        SnapshotVerb::Hold(args) => edit::hold(session, args).await,
        SnapshotVerb::Release { which, name } => edit::release(session, &which, name).await,
        SnapshotVerb::ResetState { which, state, etag } => {
            edit::reset_state(session, &which, state, etag).await
        }
        SnapshotVerb::Events { which } => event::of_snapshot(session, which).await,
        SnapshotVerb::Comment(args) => edit::comment(session, args).await,
        SnapshotVerb::Uncomment { id } => edit::uncomment(session, id).await,
    }
}

async fn create(session: &Session, args: CreateArgs) -> Result<u8, Failure> {
    let request = v1::CreateSnapshotRequest {
        vm: args.vm,
        name: args.name.unwrap_or_default(),
        display_name: args.label.display_name,
        description: args.label.description,
        memory: args.memory,
        quiesce: quiesce(args.quiesce).into(),
        mount_points: args.mount_points,
        freeze_timeout: args.freeze_timeout.try_into().ok(),
        max_pause: args.max_pause.and_then(|pause| pause.try_into().ok()),
        disks: args.disks,
        account: args.label.account,
        domain: args.label.domain,
        project: args.label.project,
        properties: args.label.properties.into_iter().collect(),
        expire_time: args.label.expire.map(Into::into),
        request_id: request_id(),
        validate_only: args.how.dry_run,
    };
    let answer = session.daemon.snapshots().create_snapshot(request).await?.into_inner();
    if let Some(plan) = answer.plan {
        return show_plan(
            session,
            &v1::CreateSnapshotResponse { plan: Some(plan.clone()), ..Default::default() },
            &plan,
            "CreateSnapshotResponse",
        );
    }
    let Some(done) = see_through(session, answer.operation.unwrap_or_default(), args.how).await? else {
        return Ok(0);
    };
    show(session, &Which { snapshot: done.snapshot_id, vm: None }).await
}

/// How far to quiesce, as the contract spells it.
pub(super) fn quiesce(asked: Option<Quiesce>) -> v1::Quiesce {
    match asked {
        None => v1::Quiesce::Unspecified,
        Some(Quiesce::Required) => v1::Quiesce::Required,
        Some(Quiesce::Auto) => v1::Quiesce::Auto,
        Some(Quiesce::Off) => v1::Quiesce::Off,
    }
}

pub(super) async fn show(session: &Session, which: &Which) -> Result<u8, Failure> {
    let (snapshot, vm) = locate(which);
    let request = v1::GetSnapshotRequest { snapshot, vm };
    let answer = session.daemon.snapshots().get_snapshot(request).await?.into_inner();
    let snapshot = answer.snapshot.clone().unwrap_or_default();
    session.output.show(&Shown {
        message: &answer,
        name: "GetSnapshotResponse",
        ids: vec![snapshot.id.clone()],
        text: Text::Lines(details(&snapshot)),
    })?;
    Ok(0)
}

/// `VM/NAME`, or a name with `--vm`, or an id.
pub(super) fn locate(which: &Which) -> (String, String) {
    match (&which.vm, which.snapshot.split_once('/')) {
        (Some(vm), _) => (which.snapshot.clone(), vm.clone()),
        (None, Some((vm, name))) => (name.to_owned(), vm.to_owned()),
        (None, None) => (which.snapshot.clone(), String::new()),
    }
}

pub(super) fn details(snapshot: &v1::Snapshot) -> String {
    let consistency = match snapshot.consistency_reason.as_str() {
        "" => words::consistency(snapshot.consistency()),
        reason => format!("{} ({reason})", words::consistency(snapshot.consistency())),
    };
    let mut lines = vec![
        ("id", snapshot.id.clone()),
        ("name", snapshot.name.clone()),
        ("display name", snapshot.display_name.clone()),
        ("description", snapshot.description.clone()),
        ("vm", format!("{} ({})", snapshot.vm_name, snapshot.vm_id)),
        ("kind", words::snapshot_kind(snapshot.kind()).to_owned()),
        ("state", words::snapshot_state(snapshot.state())),
        ("because", snapshot.error.as_ref().map(|error| error.message.clone()).unwrap_or_default()),
        ("current", if snapshot.current { "yes" } else { "no" }.to_owned()),
        ("consistency", consistency),
        ("frozen for", words::milliseconds(snapshot.frozen_ms)),
        ("paused for", words::milliseconds(snapshot.paused_ms)),
        ("vm was", words::run_state(snapshot.recorded_run_state())),
        (
            "memory",
            if snapshot.memory_bytes > 0 { words::size(snapshot.memory_bytes) } else { String::new() },
        ),
        ("firmware", if snapshot.has_nvram { "UEFI variables are kept with it" } else { "" }.to_owned()),
        ("parent", snapshot.parent_id.clone()),
        ("created", words::time(snapshot.create_time)),
        ("created by", snapshot.created_by.clone()),
        ("expires", words::time(snapshot.expire_time)),
        ("account", snapshot.account.clone()),
        ("domain", snapshot.domain.clone()),
        ("project", snapshot.project.clone()),
        ("operation", snapshot.operation_id.clone()),
        ("etag", snapshot.etag.clone()),
    ];
    lines.extend(snapshot.disks.iter().map(|disk| {
        let sizes =
            format!("{} of {}", words::size(disk.allocated_bytes), words::size(disk.virtual_size_bytes));
        ("disk", format!("{}  {sizes}  {}", disk.target, disk.path))
    }));
    lines.extend(snapshot.properties.iter().map(|(key, value)| ("property", format!("{key}={value}"))));
    lines.extend(snapshot.holds.iter().map(|hold| ("held by", words::hold(hold))));
    if snapshot.comment_count > 0 {
        lines.push(("comments", snapshot.comment_count.to_string()));
    }
    let lines = lines.into_iter().filter(|(_, value)| !value.is_empty());
    lines.map(|(label, value)| format!("{label:<13} {value}")).collect::<Vec<_>>().join("\n")
}

async fn table(session: &Session, args: ListArgs) -> Result<u8, Failure> {
    let answer = list::all(session, args).await?;
    let mut table =
        Table::new(&["VM", "NAME", "KIND", "STATE", "CONSISTENCY", "SIZE", "CURRENT", "AGE", "ID"]);
    for snapshot in &answer.snapshots {
        table.row(vec![
            snapshot.vm_name.clone(),
            snapshot.name.clone(),
            words::snapshot_kind(snapshot.kind()).to_owned(),
            words::snapshot_state(snapshot.state()),
            words::consistency(snapshot.consistency()),
            words::size(bytes(snapshot)),
            if snapshot.current { "*" } else { "" }.to_owned(),
            words::age(snapshot.create_time),
            snapshot.id.clone(),
        ]);
    }
    session.output.show(&Shown {
        message: &answer,
        name: "ListSnapshotsResponse",
        ids: answer.snapshots.iter().map(|snapshot| snapshot.id.clone()).collect(),
        text: Text::Table(table),
    })?;
    Ok(0)
}

/// What a snapshot takes on the host.
pub(super) fn bytes(snapshot: &v1::Snapshot) -> u64 {
    snapshot.disks.iter().map(|disk| disk.allocated_bytes).sum::<u64>() + snapshot.memory_bytes
}

async fn show_tree(session: &Session, args: ListArgs) -> Result<u8, Failure> {
    let request = v1::GetSnapshotTreeRequest { vm: args.vm.unwrap_or_default() };
    let answer = session.daemon.snapshots().get_snapshot_tree(request).await?.into_inner();
    session.output.show(&Shown {
        message: &answer,
        name: "GetSnapshotTreeResponse",
        ids: answer
            .nodes
            .iter()
            .filter_map(|node| node.snapshot.as_ref())
            .map(|snapshot| snapshot.id.clone())
            .collect(),
        text: Text::Lines(tree::draw(&answer)),
    })?;
    Ok(0)
}

async fn revert(session: &Session, args: RevertArgs) -> Result<u8, Failure> {
    let (snapshot, vm) = locate(&args.which);
    let then = match args.then {
        None => v1::RunStateAfter::Unspecified,
        Some(RunState::Running) => v1::RunStateAfter::Running,
        Some(RunState::Paused) => v1::RunStateAfter::Paused,
        Some(RunState::Off) => v1::RunStateAfter::Off,
    };
    let mut request = v1::RevertSnapshotRequest {
        snapshot,
        vm,
        run_state_after: then.into(),
        request_id: request_id(),
        validate_only: true,
        ..v1::RevertSnapshotRequest::default()
    };
    let answer = session.daemon.snapshots().revert_snapshot(request.clone()).await?.into_inner();
    let plan = answer.plan.clone().unwrap_or_default();
    if args.how.dry_run {
        return show_plan(session, &answer, &plan, "RevertSnapshotResponse");
    }
    ask(&[plan], &format!("Bring the VM back to {}?", args.which.snapshot), args.sure)?;
    request.validate_only = false;
    let answer = session.daemon.snapshots().revert_snapshot(request).await?.into_inner();
    let Some(done) = see_through(session, answer.operation.unwrap_or_default(), args.how).await? else {
        return Ok(0);
    };
    show(session, &Which { snapshot: done.snapshot_id, vm: None }).await
}

async fn delete(session: &Session, args: DeleteArgs) -> Result<u8, Failure> {
    let requests = delete_requests(&args);
    if args.how.dry_run || !args.sure.yes {
        let mut answers = Vec::new();
        for request in &requests {
            let look = v1::BatchDeleteSnapshotsRequest { validate_only: true, ..request.clone() };
            answers.push(session.daemon.snapshots().batch_delete_snapshots(look).await?.into_inner());
        }
        if args.how.dry_run {
            let mut code = 0;
            for answer in answers {
                let plan = answer.plan.clone().unwrap_or_default();
                code = code.max(show_plan(session, &answer, &plan, "BatchDeleteSnapshotsResponse")?);
            }
            return Ok(code);
        }
        let plans: Vec<v1::Plan> = answers.into_iter().filter_map(|answer| answer.plan).collect();
        ask(&plans, &format!("Delete {}?", args.snapshots.join(", ")), args.sure)?;
    }
    delete_each(session, requests, args.how).await
}

/// One request per VM, so that neighbouring layers are merged once.
fn delete_requests(args: &DeleteArgs) -> Vec<v1::BatchDeleteSnapshotsRequest> {
    let mut requests: Vec<v1::BatchDeleteSnapshotsRequest> = Vec::new();
    for snapshot in &args.snapshots {
        let (snapshot, vm) = locate(&Which { snapshot: snapshot.clone(), vm: args.vm.clone() });
        if let Some(request) = requests.iter_mut().find(|request| request.vm == vm) {
            request.snapshots.push(snapshot);
            continue;
        }
        requests.push(v1::BatchDeleteSnapshotsRequest {
            snapshots: vec![snapshot],
            vm,
            include_children: args.children,
            bandwidth_bytes_per_second: args.bandwidth.unwrap_or(0),
            merge_deadline: args.merge_deadline.and_then(|deadline| deadline.try_into().ok()),
            request_id: request_id(),
            ..v1::BatchDeleteSnapshotsRequest::default()
        });
    }
    requests
}

/// One VM after the other; one that fails does not hold up the others.
async fn delete_each(
    session: &Session,
    requests: Vec<v1::BatchDeleteSnapshotsRequest>,
    how: How,
) -> Result<u8, Failure> {
    let all = requests.len();
    let mut failures = Vec::new();
    for request in requests {
        let vm = request.vm.clone();
        match delete_of_one_vm(session, request, how).await {
            Ok(()) => {}
            Err(failure) if all == 1 || matches!(failure.code, exit::INTERRUPTED | exit::TIMED_OUT) => {
                return Err(failure);
            }
            Err(failure) => {
                output::complaint(&format!("{vm}: {failure}"));
                failures.push(failure.code);
            }
        }
    }
    if failures.is_empty() {
        return Ok(0);
    }
    output::complaint(&format!("{} of {all} VMs failed", failures.len()));
    Ok(if failures.len() < all { exit::PARTLY } else { failures[0] })
}

async fn delete_of_one_vm(
    session: &Session,
    request: v1::BatchDeleteSnapshotsRequest,
    how: How,
) -> Result<(), Failure> {
    let answer = session.daemon.snapshots().batch_delete_snapshots(request).await?.into_inner();
    let ids = answer.snapshot_ids;
    let Some(done) = see_through(session, answer.operation.unwrap_or_default(), how).await? else {
        return Ok(());
    };
    let told = match ids.len() {
        1 => format!("{} deleted", done.snapshot_name),
        several => format!("{several} snapshots deleted"),
    };
    session.output.show(&Shown {
        message: &v1::BatchDeleteSnapshotsResponse {
            operation: Some(done),
            snapshot_ids: ids.clone(),
            plan: None,
        },
        name: "BatchDeleteSnapshotsResponse",
        ids,
        text: Text::Lines(told),
    })
}

/// Waits for the end. None if nobody wanted to wait; the operation has been printed then.
pub(super) async fn see_through(
    session: &Session,
    begun: v1::Operation,
    how: How,
) -> Result<Option<v1::Operation>, Failure> {
    if how.no_wait {
        operation::show(session, &begun)?;
        return Ok(None);
    }
    let done = progress::wait(session, &begun.id, how.timeout).await?;
    if done.state() == v1::OperationState::Succeeded {
        Ok(Some(done))
    } else {
        Err(Failure::of_operation(&done))
    }
}

/// A plan as the result. One that is blocked fails with the exit code that the call would have had.
pub(super) fn show_plan<M: prost::Message>(
    session: &Session,
    answer: &M,
    plan: &v1::Plan,
    name: &'static str,
) -> Result<u8, Failure> {
    session.output.show(&Shown {
        message: answer,
        name,
        ids: Vec::new(),
        text: Text::Lines(describe(plan)),
    })?;
    Ok(plan.blockers.first().map_or(0, |blocker| {
        let operation = v1::Operation { error: Some(blocker.clone()), ..v1::Operation::default() };
        Failure::of_operation(&operation).code
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(snapshot: &str, vm: Option<&str>, expected: (&str, &str)) {
        let which = Which { snapshot: snapshot.to_owned(), vm: vm.map(str::to_owned) };
        assert_eq!(locate(&which), (expected.0.to_owned(), expected.1.to_owned()));
    }

    #[test]
    fn snapshots_are_named_in_three_ways() {
        check("one", None, ("one", ""));
        check("web/one", None, ("one", "web"));
        check("one", Some("web"), ("one", "web"));
    }
}
