//! Health, one name per part: `libvirt`, `catalog`, `storage`, and `controller` where one is configured; and "" for whether
//! calls are served at all.
//!
//! The hypervisor being down makes the daemon degraded, not dead: only its own part says `NOT_SERVING`.

use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::watch;
use tonic_health::ServingStatus;
use tonic_health::pb::health_server::{Health, HealthServer};
use tonic_health::server::HealthReporter;

use super::config::Config;
use super::controller::Reporting;
use crate::host::Link;
use crate::ops::Engine;

/// The parts that there always are.
const PARTS: [&str; 3] = [LIBVIRT, CATALOG, STORAGE];
const LIBVIRT: &str = "libvirt";
const CATALOG: &str = "catalog";
const STORAGE: &str = "storage";
const CONTROLLER: &str = "controller";

/// Nothing tells when a disk fills or fails: looked at so often.
const LOOK_INTERVAL: Duration = Duration::from_secs(10);

/// Starts to watch the parts. Gives what they are told to, and the service that tells it on.
pub(super) fn start(engine: &Engine, config: &Config) -> (HealthReporter, HealthServer<impl Health>) {
    let (reporter, service) = tonic_health::server::health_reporter();
    tokio::spawn(watch_link(engine.clone(), reporter.clone()));
    let directories = vec![config.state_directory.clone(), config.memory_directory()];
    tokio::spawn(watch_disk(engine.clone(), reporter.clone(), directories, config.reserve_bytes));
    (reporter, service)
}

/// Watches whether the controller has taken us, for as long as somebody calls it. One that is away keeps nobody from working.
pub(super) fn watch_controller(reporter: HealthReporter, mut reporting: watch::Receiver<Reporting>) {
    tokio::spawn(async move {
        loop {
            let status = status(reporting.borrow_and_update().is_ok());
            reporter.set_service_status(CONTROLLER, status).await;
            if reporting.changed().await.is_err() {
                reporter.set_service_status(CONTROLLER, ServingStatus::NotServing).await;
                return;
            }
        }
    });
}

/// The daemon takes no more work.
pub(super) async fn not_serving(reporter: &HealthReporter) {
    for part in [""].into_iter().chain(PARTS) {
        reporter.set_service_status(part, ServingStatus::NotServing).await;
    }
}

async fn watch_link(engine: Engine, reporter: HealthReporter) {
    let mut link = engine.host().hypervisor.link();
    let stopping = engine.draining();
    loop {
        let status = status(*link.borrow_and_update() == Link::Up);
        reporter.set_service_status(LIBVIRT, status).await;
        tokio::select! {
            changed = link.changed() => if changed.is_err() { return },
            () = stopping.cancelled() => return,
        }
    }
}

async fn watch_disk(engine: Engine, reporter: HealthReporter, directories: Vec<PathBuf>, reserve: u64) {
    let stopping = engine.draining();
    loop {
        let catalog = engine.store().probe().await;
        if let Err(error) = &catalog {
            let error: &dyn std::error::Error = error;
            tracing::error!(error, "the catalog cannot be written");
        }
        reporter.set_service_status(CATALOG, status(catalog.is_ok())).await;
        let mut has_room = true;
        for directory in &directories {
            let free = engine.host().images.free_space(directory).await;
            has_room &= free.is_ok_and(|space| space.free > reserve);
        }
        reporter.set_service_status(STORAGE, status(has_room)).await;
        tokio::select! {
            () = tokio::time::sleep(LOOK_INTERVAL) => {}
            () = stopping.cancelled() => return,
        }
    }
}

fn status(is_well: bool) -> ServingStatus {
    if is_well { ServingStatus::Serving } else { ServingStatus::NotServing }
}
