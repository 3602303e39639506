//! `vmsnap vm`: VMs and their disks.

use super::args::{DeployArgs, RunState, VmVerb};
use super::connect::request_id;
use super::failure::Failure;
use super::output::{Shown, Text};
use super::snapshot::{locate, see_through, show_plan};
use super::table::Table;
use super::volume::mode;
use super::{Session, check, resolve, words};
use crate::proto::v1;

pub(super) async fn carry_out(session: &Session, verb: VmVerb) -> Result<u8, Failure> {
    match verb {
        VmVerb::List => list(session).await,
        VmVerb::Show { vm } => show(session, vm).await,
        VmVerb::Check { vm } => check::vm(session, vm).await,
        VmVerb::Resolve { vm, what } => resolve::of_vm(session, vm, what).await,
        VmVerb::Resume { vm } => resume(session, vm).await,
        VmVerb::Deploy(args) => deploy(session, args).await,
    }
}

async fn deploy(session: &Session, args: DeployArgs) -> Result<u8, Failure> {
    let (snapshot, vm) = locate(&args.which);
    let then = match args.then {
        RunState::Running => v1::RunState::Running,
        RunState::Paused => v1::RunState::Paused,
        RunState::Off => v1::RunState::Off,
    };
    let request = v1::DeployVmRequest {
        snapshot,
        vm,
        name: args.name,
        mode: mode(args.mode).into(),
        run_state_after: then.into(),
        new_serials: args.new_serials,
        bandwidth_bytes_per_second: args.mode.bandwidth.unwrap_or(0),
        request_id: request_id(),
        validate_only: args.how.dry_run,
    };
    let answer = session.daemon.vms().deploy_vm(request).await?.into_inner();
    if let Some(plan) = &answer.plan {
        return show_plan(session, &answer, plan, "DeployVmResponse");
    }
    match see_through(session, answer.operation.unwrap_or_default(), args.how).await? {
        Some(_) => show(session, answer.vm_id).await,
        None => Ok(0),
    }
}

async fn resume(session: &Session, vm: String) -> Result<u8, Failure> {
    let request = v1::ResumeVmRequest { vm, request_id: request_id() };
    let answer = session.daemon.vms().resume_vm(request).await?.into_inner();
    let vm = answer.vm.clone().unwrap_or_default();
    session.output.show(&Shown {
        message: &answer,
        name: "ResumeVmResponse",
        ids: vec![vm.id.clone()],
        text: Text::Lines(format!("{} is {}", vm.name, state(&vm))),
    })?;
    Ok(0)
}

async fn list(session: &Session) -> Result<u8, Failure> {
    let filter = v1::VmFilter { include_gone: true, ..v1::VmFilter::default() };
    let mut request =
        v1::ListVmsRequest { filter: Some(filter), page_size: 1000, ..v1::ListVmsRequest::default() };
    let mut answer = session.daemon.vms().list_vms(request.clone()).await?.into_inner();
    while !answer.next_page_token.is_empty() {
        request.page_token.clone_from(&answer.next_page_token);
        let mut page = session.daemon.vms().list_vms(request.clone()).await?.into_inner();
        answer.vms.append(&mut page.vms);
        answer.next_page_token = page.next_page_token;
    }
    let mut table = Table::new(&["NAME", "STATE", "SNAPSHOTS", "OPERATION", "ID"]);
    for vm in &answer.vms {
        table.row(vec![
            vm.name.clone(),
            state(vm),
            vm.snapshot_count.to_string(),
            vm.operation_id.clone(),
            vm.id.clone(),
        ]);
    }
    session.output.show(&Shown {
        message: &answer,
        name: "ListVmsResponse",
        ids: answer.vms.iter().map(|vm| vm.id.clone()).collect(),
        text: Text::Table(table),
    })?;
    Ok(0)
}

/// What a VM does; of one that has left, that it has; of one that had no space, where.
fn state(vm: &v1::Vm) -> String {
    let run_state = words::run_state(vm.run_state());
    match &vm.full_disks[..] {
        _ if vm.gone => "gone".to_owned(),
        [] => run_state,
        [disk] => format!("{run_state}: {disk} has no space"),
        disks => format!("{run_state}: {} have no space", disks.join(", ")),
    }
}

async fn show(session: &Session, vm: String) -> Result<u8, Failure> {
    let answer = session.daemon.vms().get_vm(v1::GetVmRequest { vm }).await?.into_inner();
    let vm = answer.vm.clone().unwrap_or_default();
    let mut lines = vec![
        format!("id         {}", vm.id),
        format!("name       {}", vm.name),
        format!("state      {}", state(&vm)),
        format!("memory     {}", words::size(vm.memory_bytes)),
        format!("agent      {}", if vm.agent_connected { "connected" } else { "not connected" }),
        format!("snapshots  {}", vm.snapshot_count),
    ];
    if vm.uefi {
        lines.push("firmware   UEFI".to_owned());
    }
    if vm.tpm {
        lines.push("tpm        its state is not in snapshots without memory".to_owned());
    }
    if !vm.labels.is_empty() {
        let labels = vm.labels.iter().map(|(key, value)| format!("{key}={value}"));
        lines.push(format!("labels     {}", labels.collect::<Vec<_>>().join(", ")));
    }
    if let Some(debt) = vm.merge_debt.filter(|debt| debt.layers > 0) {
        let bytes = words::size(debt.bytes);
        lines.push(format!("to merge   {} layers with {bytes} that no snapshot needs", debt.layers));
        lines.extend(debt.waits_for.iter().map(|what| format!("waits for  {what}")));
    }
    if !vm.blocked_reason.is_empty() {
        lines.push(format!("blocked    {}", vm.blocked_reason));
    }
    if !vm.full_disks.is_empty() {
        lines.push(format!("to do      make room, then 'vmsnap vm resume {}'", vm.name));
    }
    if !vm.operation_id.is_empty() {
        lines.push(format!("operation  {}", vm.operation_id));
    }
    let mut table = Table::new(&["DISK", "FORMAT", "SIZE", "USED", "LAYERS", "IMAGE"]);
    for disk in &vm.disks {
        let image = if disk.snapshottable {
            disk.path.clone()
        } else {
            format!("not snapshotted: it is {}", disk.refusal_reason)
        };
        table.row(vec![
            disk.target.clone(),
            words::image_format(disk.format()),
            words::size(disk.virtual_size_bytes),
            words::size(disk.allocated_bytes),
            disk.chain_depth.to_string(),
            image,
        ]);
    }
    lines.push(String::new());
    lines.push(table.render(true));
    session.output.show(&Shown {
        message: &answer,
        name: "GetVmResponse",
        ids: vec![vm.id],
        text: Text::Lines(lines.join("\n")),
    })?;
    Ok(0)
}
