//! `vmsnapd thaw`: no guest stays frozen because the daemon is gone. systemd runs it after each end of the daemon.
//!
//! Decides nothing: what may be frozen stands in the catalog, and `ops` thaws it. A daemon that runs does so by itself.

use std::time::Duration;

use super::config::Config;
use super::lock;
use super::start::{StartError, libvirt_host, open_catalog};
use crate::host::{Host, Link};
use crate::ops::thaw_guests;
use crate::store::Store;

/// libvirtd may be starting again, too.
const LINK: Duration = Duration::from_secs(30);

/// Thaws; nothing to thaw is success.
pub(super) fn run(config: &Config) -> Result<(), StartError> {
    let directory = &config.state_directory;
    if !config.catalog().exists() {
        return Ok(());
    }
    let lock = lock::take(directory);
    let Some(_lock) = lock.map_err(|cause| StartError::Lock { path: directory.clone(), cause })? else {
        return Ok(());
    };
    let store = open_catalog(config)?;
    let runtime = tokio::runtime::Runtime::new().map_err(StartError::System)?;
    let result = runtime.block_on(thaw(config, &store));
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}

async fn thaw(config: &Config, store: &Store) -> Result<(), StartError> {
    let leases = store.leases().await.map_err(|error| StartError::Thaw(error.into()))?;
    if leases.iter().all(|lease| lease.is_thawed) {
        return Ok(());
    }
    let host = libvirt_host(config)?;
    let is_up = is_linked(&host).await;
    let unproven = thaw_guests(&host, store).await.map_err(StartError::Thaw)?;
    if unproven.is_empty() {
        return Ok(());
    }
    let vms: Vec<String> = unproven.iter().map(ToString::to_string).collect();
    Err(StartError::Frozen { vms: vms.join(", "), is_up })
}

async fn is_linked(host: &Host) -> bool {
    let mut link = host.hypervisor.link();
    let up = link.wait_for(|link| *link == Link::Up);
    tokio::time::timeout(LINK, up).await.is_ok_and(|up| up.is_ok())
}
