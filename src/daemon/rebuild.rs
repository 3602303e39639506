//! `vmsnapd rebuild`: a catalog that was lost is made anew from the disks, while no daemon runs.
//!
//! Decides whether it may, and how the outcome is told. Leaves what is vouched for to `plan`, the looking to `ops`.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use jiff::Timestamp;
use uuid::Uuid;

use super::config::Config;
use super::start::{StartError, libvirt_host, make_directory, places, take_lock};
use super::thaw::is_linked;
use crate::ops::gather;
use crate::plan::rebuild::{Rebuilt, Report, Restored, rebuild};
use crate::store::{put_in_place, write_anew};

/// How it is asked for.
#[derive(Debug, Clone, Args)]
pub(super) struct RebuildArgs {
    /// Only tell what would be restored
    #[arg(long)]
    dry_run: bool,
    /// Take the place of the catalog that is there; it is kept under another name
    #[arg(long)]
    replace: bool,
    /// Tell it as JSON
    #[arg(long)]
    json: bool,
    /// Search this directory, too. Those of the configuration and of the disks of all VMs are
    #[arg(long = "search", value_name = "DIR")]
    search: Vec<PathBuf>,
}

/// Makes it, and tells what came of it on stdout.
pub(super) fn run(config: &Config, args: &RebuildArgs) -> Result<(), StartError> {
    let catalog = config.catalog();
    make_directory(&config.state_directory)?;
    let _lock = take_lock(&config.state_directory)?;
    let is_there = ["", "-wal"].iter().any(|end| {
        let path = format!("{}{end}", catalog.display());
        std::fs::symlink_metadata(path).is_ok()
    });
    if is_there && !args.replace && !args.dry_run {
        return Err(StartError::CatalogIsThere(catalog));
    }
    let runtime = tokio::runtime::Runtime::new().map_err(StartError::System)?;
    let rebuilt = runtime.block_on(find(config, args));
    runtime.shutdown_timeout(Duration::from_secs(1));
    let Rebuilt { trees, report } = rebuilt?;
    let mut kept = None;
    if !args.dry_run {
        let (made, now) = (catalog.with_extension("db.rebuilt"), Timestamp::now());
        let failed = |cause| StartError::Catalog { path: made.clone(), cause };
        write_anew(&made, &trees, now).map_err(failed)?;
        let placed = put_in_place(&made, &catalog, now);
        kept = placed.map_err(|cause| StartError::Replace { path: catalog.clone(), cause })?;
    }
    tell(&report, args, kept).map_err(StartError::System)
}

async fn find(config: &Config, args: &RebuildArgs) -> Result<Rebuilt, StartError> {
    let host = libvirt_host(config)?;
    if !is_linked(&host).await {
        return Err(StartError::NoHypervisor);
    }
    let evidence = gather(&host, &places(config), &args.search).await.map_err(StartError::Rebuild)?;
    Ok(rebuild(&evidence, &mut Uuid::now_v7))
}

#[allow(clippy::print_stdout, reason = "it is what was asked for")]
fn tell(report: &Report, args: &RebuildArgs, kept: Option<PathBuf>) -> io::Result<()> {
    if args.json {
        println!("{}", serde_json::to_string_pretty(report)?);
        return Ok(());
    }
    for restored in &report.restored {
        println!("{}", lines(restored));
    }
    for left_out in &report.left_out {
        println!("left out: {}: {}", left_out.path.display(), left_out.why);
    }
    for note in &report.notes {
        println!("note: {note}");
    }
    if let Some(kept) = kept {
        println!("the catalog that was there is {} now", kept.display());
    }
    let snapshots: usize = report.restored.iter().map(|restored| restored.snapshots.len()).sum();
    let words = if args.dry_run { "nothing was changed: would restore" } else { "restored" };
    println!("{words} {snapshots} snapshots of {} VMs and volumes", report.restored.len());
    Ok(())
}

fn lines(restored: &Restored) -> String {
    let mut lines = vec![format!("{} ({})", restored.name, restored.id)];
    for snapshot in &restored.snapshots {
        let why = snapshot.why.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
        lines.push(format!("  {} {} {}{why}", snapshot.id, snapshot.name, snapshot.state));
    }
    lines.extend(restored.clones.iter().map(|clone| format!("  volume {clone}")));
    lines.join("\n")
}
