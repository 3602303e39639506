//! `vmsnap node`: this node and its daemon.

use super::args::NodeVerb;
use super::connect::{Daemon, request_id};
use super::failure::Failure;
use super::output::{Shown, Text};
use super::{Session, check, resolve, words};
use crate::proto::v1;

pub(super) async fn carry_out(session: &Session, verb: NodeVerb) -> Result<u8, Failure> {
    match verb {
        NodeVerb::Show => show(session).await,
        NodeVerb::Check => check::node(session).await,
        NodeVerb::Backup => back_up(session).await,
        NodeVerb::Reload { dry_run } => reload(session, dry_run).await,
        NodeVerb::Resolve(what) => resolve::of_node(session, what).await,
    }
}

async fn show(session: &Session) -> Result<u8, Failure> {
    let answer = session.daemon.nodes().get_node(v1::GetNodeRequest {}).await?.into_inner();
    let node = answer.node.clone().unwrap_or_default();
    let versions = node.versions.clone().unwrap_or_default();
    let mut lines = vec![
        format!("node        {}", node.name),
        format!("vmsnapd     {}", versions.agent),
        format!("libvirt     {}", versions.libvirt),
        format!("QEMU        {}", versions.qemu),
        format!("running     since {}", words::time(node.start_time)),
        format!("state       {}", node.state_directory),
        format!("VMs         {}", node.vm_count),
        format!("snapshots   {}", node.snapshot_count),
        format!("operations  {} open", node.open_operation_ids.len()),
    ];
    for part in &node.parts {
        let state = match part.state() {
            v1::HealthState::Serving => "ok".to_owned(),
            v1::HealthState::NotServing | v1::HealthState::Unspecified => {
                format!("not serving: {}", part.reason)
            }
        };
        lines.push(format!("  {:<9} {state}", part.name));
    }
    for space in &node.storage {
        let (free, total) = (words::size(space.free_bytes), words::size(space.total_bytes));
        lines.push(format!("  {free} of {total} free: {}", space.path));
    }
    session.output.show(&Shown {
        message: &answer,
        name: "GetNodeResponse",
        ids: vec![node.name],
        text: Text::Lines(lines.join("\n")),
    })?;
    Ok(0)
}

async fn reload(session: &Session, dry_run: bool) -> Result<u8, Failure> {
    let request = v1::ReloadConfigurationRequest { validate_only: dry_run };
    let answer = session.daemon.nodes().reload_configuration(request).await?.into_inner();
    let (in_force, waiting) = if dry_run {
        ("would be in force", "would need a restart")
    } else {
        ("in force", "as before until a restart")
    };
    let lines = [(in_force, &answer.changed_keys), (waiting, &answer.restart_keys)];
    let lines = lines.into_iter().filter(|(_, keys)| !keys.is_empty());
    let lines: Vec<String> = lines.map(|(what, keys)| format!("{what}: {}", keys.join(", "))).collect();
    let words = if lines.is_empty() { "nothing has changed".to_owned() } else { lines.join("\n") };
    session.output.show(&Shown {
        message: &answer,
        name: "ReloadConfigurationResponse",
        ids: answer.changed_keys.clone(),
        text: Text::Lines(words),
    })?;
    Ok(0)
}

async fn back_up(session: &Session) -> Result<u8, Failure> {
    let request = v1::BackUpCatalogRequest { request_id: request_id() };
    let answer = session.daemon.nodes().back_up_catalog(request).await?.into_inner();
    session.output.show(&Shown {
        message: &answer,
        name: "BackUpCatalogResponse",
        ids: vec![answer.path.clone()],
        text: Text::Lines(format!("{} ({})", answer.path, words::size(answer.bytes))),
    })?;
    Ok(0)
}

/// The versions that the daemon tells.
pub(super) async fn versions(daemon: &Daemon) -> Result<v1::Versions, Failure> {
    let answer = daemon.nodes().get_node(v1::GetNodeRequest {}).await?.into_inner();
    Ok(answer.node.and_then(|node| node.versions).unwrap_or_default())
}
