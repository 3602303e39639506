//! `vmsnap volume`: single disks.

use super::args::{
    CloneArgs, CreateVolumeSnapshotArgs, How, Mode, RevertVolumeArgs, Sure, VolumeListArgs,
    VolumeSnapshotVerb, VolumeSort, VolumeState, VolumeVerb, Which,
};
use super::ask::ask;
use super::connect::request_id;
use super::failure::Failure;
use super::list::property_filter;
use super::output::{Shown, Text};
use super::snapshot::{PAGE, locate, quiesce, see_through, show_plan};
use super::table::Table;
use super::{Session, snapshot, words};
use crate::proto::v1;
use crate::proto::v1::create_volume_snapshot_request::Source;

pub(super) async fn carry_out(session: &Session, verb: VolumeVerb) -> Result<u8, Failure> {
    match verb {
        VolumeVerb::List(args) => list(session, *args).await,
        VolumeVerb::Show { volume } => show(session, volume).await,
        VolumeVerb::Snapshot(VolumeSnapshotVerb::Create(args)) => create_snapshot(session, *args).await,
        VolumeVerb::Clone(args) => clone(session, *args).await,
        VolumeVerb::Flatten { volume, bandwidth, merge_deadline, how } => {
            let request = v1::FlattenVolumeRequest {
                volume,
                bandwidth_bytes_per_second: bandwidth.unwrap_or(0),
                merge_deadline: merge_deadline.and_then(|deadline| deadline.try_into().ok()),
                request_id: request_id(),
                validate_only: how.dry_run,
                ..v1::FlattenVolumeRequest::default()
            };
            flatten(session, request, how).await
        }
        VolumeVerb::Delete { volume, sure, how } => delete(session, volume, sure, how).await,
        VolumeVerb::Revert(args) => revert(session, args).await,
    }
}

async fn list(session: &Session, args: VolumeListArgs) -> Result<u8, Failure> {
    let mut request = v1::ListVolumesRequest {
        order_by: order_by(args.sort, args.reverse).to_owned(),
        filter: Some(v1::VolumeFilter {
            vm: args.vm.unwrap_or_default(),
            account: args.label.account,
            domain: args.label.domain,
            project: args.label.project,
            name_prefix: args.label.name_prefix,
            properties: args.label.properties.iter().map(|text| property_filter(text)).collect(),
            states: args.states.into_iter().map(|state| volume_state(state).into()).collect(),
            ..v1::VolumeFilter::default()
        }),
        page_size: PAGE,
        ..v1::ListVolumesRequest::default()
    };
    let mut answer = session.daemon.volumes().list_volumes(request.clone()).await?.into_inner();
    while !answer.next_page_token.is_empty() {
        request.page_token.clone_from(&answer.next_page_token);
        let mut page = session.daemon.volumes().list_volumes(request.clone()).await?.into_inner();
        answer.volumes.append(&mut page.volumes);
        answer.next_page_token = page.next_page_token;
    }
    let mut table = Table::new(&["NAME", "STATE", "FORMAT", "SIZE", "USED", "SNAPSHOTS", "ID"]);
    for volume in &answer.volumes {
        table.row(vec![
            volume.name.clone(),
            words::volume_state(volume.state()),
            words::image_format(volume.format()),
            words::size(volume.virtual_size_bytes),
            words::size(volume.allocated_bytes),
            volume.snapshot_count.to_string(),
            volume.id.clone(),
        ]);
    }
    session.output.show(&Shown {
        message: &answer,
        name: "ListVolumesResponse",
        ids: answer.volumes.iter().map(|volume| volume.id.clone()).collect(),
        text: Text::Table(table),
    })?;
    Ok(0)
}

fn order_by(sort: VolumeSort, is_reverse: bool) -> &'static str {
    match (sort, is_reverse) {
        (VolumeSort::Name, false) => "name",
        (VolumeSort::Name, true) => "name desc",
        (VolumeSort::Created, false) => "create_time",
        (VolumeSort::Created, true) => "create_time desc",
        (VolumeSort::Size, false) => "virtual_size_bytes",
        (VolumeSort::Size, true) => "virtual_size_bytes desc",
    }
}

fn volume_state(state: VolumeState) -> v1::VolumeState {
    match state {
        VolumeState::Creating => v1::VolumeState::Creating,
        VolumeState::Available => v1::VolumeState::Available,
        VolumeState::InUse => v1::VolumeState::InUse,
    }
}

/// What no snapshot needs and is not merged yet; empty for nothing.
fn waiting(debt: Option<v1::MergeDebt>) -> String {
    let debt = debt.filter(|debt| debt.layers > 0);
    let Some(debt) = debt else { return String::new() };
    let layers = format!("{} layers with {} to merge", debt.layers, words::size(debt.bytes));
    [layers].into_iter().chain(debt.waits_for).collect::<Vec<_>>().join("; ")
}

async fn show(session: &Session, volume: String) -> Result<u8, Failure> {
    let request = v1::GetVolumeRequest { volume };
    let answer = session.daemon.volumes().get_volume(request).await?.into_inner();
    let volume = answer.volume.clone().unwrap_or_default();
    let lines = [
        ("id", volume.id.clone()),
        ("name", volume.name.clone()),
        ("state", words::volume_state(volume.state())),
        ("vm", volume.vm_name.clone()),
        ("target", volume.target.clone()),
        ("image", volume.path.clone()),
        ("format", words::image_format(volume.format())),
        ("size", words::size(volume.virtual_size_bytes)),
        ("used", words::size(volume.allocated_bytes)),
        ("snapshots", volume.snapshot_count.to_string()),
        ("waiting", waiting(volume.merge_debt)),
        ("clone of", volume.source_snapshot_id.clone()),
        ("account", volume.account.clone()),
        ("domain", volume.domain.clone()),
        ("project", volume.project.clone()),
        ("created", words::time(volume.create_time)),
        ("operation", volume.operation_id.clone()),
        ("etag", volume.etag.clone()),
    ];
    let properties = volume.properties.iter().map(|(key, value)| ("property", format!("{key}={value}")));
    let lines = lines.into_iter().chain(properties).filter(|(_, value)| !value.is_empty());
    let lines: Vec<String> = lines.map(|(label, value)| format!("{label:<10} {value}")).collect();
    session.output.show(&Shown {
        message: &answer,
        name: "GetVolumeResponse",
        ids: vec![volume.id],
        text: Text::Lines(lines.join("\n")),
    })?;
    Ok(0)
}

async fn create_snapshot(session: &Session, args: CreateVolumeSnapshotArgs) -> Result<u8, Failure> {
    let source = match (args.volume, args.from) {
        (_, Some(from)) => {
            let (snapshot, vm) = locate(&Which { snapshot: from, vm: None });
            Source::SnapshotDisk(v1::SnapshotDiskReference { snapshot, vm, disk: args.disk })
        }
        (volume, None) => Source::Volume(volume.unwrap_or_default()),
    };
    let request = v1::CreateVolumeSnapshotRequest {
        source: Some(source),
        name: args.name.unwrap_or_default(),
        display_name: args.label.display_name,
        description: args.label.description,
        quiesce: quiesce(args.quiesce).into(),
        account: args.label.account,
        domain: args.label.domain,
        project: args.label.project,
        properties: args.label.properties.into_iter().collect(),
        expire_time: args.label.expire.map(Into::into),
        request_id: request_id(),
        validate_only: args.how.dry_run,
    };
    let answer = session.daemon.volumes().create_volume_snapshot(request).await?.into_inner();
    if let Some(plan) = &answer.plan {
        return show_plan(session, &answer, plan, "CreateVolumeSnapshotResponse");
    }
    let Some(done) = see_through(session, answer.operation.unwrap_or_default(), args.how).await? else {
        return Ok(0);
    };
    snapshot::show(session, &Which { snapshot: done.snapshot_id, vm: None }).await
}

async fn clone(session: &Session, args: CloneArgs) -> Result<u8, Failure> {
    let (snapshot, vm) = locate(&args.which);
    let request = v1::CloneVolumeRequest {
        source: Some(v1::SnapshotDiskReference { snapshot, vm, disk: args.disk }),
        path: args.to,
        name: args.name,
        mode: mode(args.mode).into(),
        bandwidth_bytes_per_second: args.mode.bandwidth.unwrap_or(0),
        account: args.account,
        domain: args.domain,
        project: args.project,
        properties: args.properties.into_iter().collect(),
        request_id: request_id(),
        validate_only: args.how.dry_run,
    };
    let answer = session.daemon.volumes().clone_volume(request).await?.into_inner();
    if let Some(plan) = &answer.plan {
        return show_plan(session, &answer, plan, "CloneVolumeResponse");
    }
    show_when_done(session, answer.operation, args.how).await
}

/// How clones relate to the snapshot, as the contract spells it.
pub(super) fn mode(mode: Mode) -> v1::CloneMode {
    if mode.full { v1::CloneMode::Full } else { v1::CloneMode::Linked }
}

async fn flatten(session: &Session, request: v1::FlattenVolumeRequest, how: How) -> Result<u8, Failure> {
    let answer = session.daemon.volumes().flatten_volume(request).await?.into_inner();
    if let Some(plan) = &answer.plan {
        return show_plan(session, &answer, plan, "FlattenVolumeResponse");
    }
    show_when_done(session, answer.operation, how).await
}

async fn delete(session: &Session, volume: String, sure: Sure, how: How) -> Result<u8, Failure> {
    let mut request = v1::DeleteVolumeRequest {
        volume: volume.clone(),
        request_id: request_id(),
        validate_only: true,
        ..v1::DeleteVolumeRequest::default()
    };
    let answer = session.daemon.volumes().delete_volume(request.clone()).await?.into_inner();
    let plan = answer.plan.clone().unwrap_or_default();
    if how.dry_run {
        return show_plan(session, &answer, &plan, "DeleteVolumeResponse");
    }
    ask(&[plan], &format!("Delete {volume}?"), sure)?;
    request.validate_only = false;
    let answer = session.daemon.volumes().delete_volume(request).await?.into_inner();
    let Some(done) = see_through(session, answer.operation.unwrap_or_default(), how).await? else {
        return Ok(0);
    };
    session.output.show(&Shown {
        ids: vec![done.volume_id.clone()],
        message: &v1::DeleteVolumeResponse { operation: Some(done), plan: None },
        name: "DeleteVolumeResponse",
        text: Text::Lines(format!("{volume} deleted")),
    })?;
    Ok(0)
}

async fn show_when_done(
    session: &Session,
    operation: Option<v1::Operation>,
    how: How,
) -> Result<u8, Failure> {
    match see_through(session, operation.unwrap_or_default(), how).await? {
        Some(done) => show(session, done.volume_id).await,
        None => Ok(0),
    }
}

async fn revert(session: &Session, args: RevertVolumeArgs) -> Result<u8, Failure> {
    let mut request = v1::RevertVolumeRequest {
        volume: args.volume.clone(),
        snapshot: args.snapshot.clone(),
        stop: args.stop,
        request_id: request_id(),
        validate_only: true,
        ..v1::RevertVolumeRequest::default()
    };
    let answer = session.daemon.volumes().revert_volume(request.clone()).await?.into_inner();
    let plan = answer.plan.clone().unwrap_or_default();
    if args.how.dry_run {
        return show_plan(session, &answer, &plan, "RevertVolumeResponse");
    }
    ask(&[plan], &format!("Bring {} back to {}?", args.volume, args.snapshot), args.sure)?;
    request.validate_only = false;
    let answer = session.daemon.volumes().revert_volume(request).await?.into_inner();
    show_when_done(session, answer.operation, args.how).await
}
