//! `vmsnapd thaw`: no guest stays frozen, paused or slowed because the daemon is gone, and no VM in a state in which a
//! migration would go wrong. systemd runs it after each end of the
//! daemon.
//!
//! Decides nothing: what may stand still or be slowed stands in the catalog, and `ops` frees it. A daemon that runs does so by itself.

use std::time::Duration;

use super::config::Config;
use super::lock;
use super::start::{StartError, boot_id, libvirt_host, open_catalog};
use crate::host::{Host, Link};
use crate::model::VmId;
use crate::ops::{captured, end_captures, free_guests, thaw_guests};
use crate::store::Store;

/// libvirtd may be starting again, too.
const LINK: Duration = Duration::from_secs(30);

/// Thaws and frees; nothing to thaw is success.
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
    let throttles = store.throttles().await.map_err(|error| StartError::Thaw(error.into()))?;
    let boot = boot_id()?;
    let open = store.open_operations().await.map_err(|error| StartError::Thaw(error.into()))?;
    let is_captured = !captured(&open).is_empty();
    if throttles.is_empty()
        && !is_captured
        && leases.iter().all(|lease| lease.is_thawed || lease.boot_id != boot)
    {
        return Ok(());
    }
    let host = libvirt_host(config)?;
    let is_up = is_linked(&host).await;
    // None of them is held up by what becomes of another.
    let (unproven, slowed, captured) =
        tokio::join!(thaw_guests(&host, store, &boot), free_guests(&host, store), end_captures(&host, store));
    let unproven = unproven.map_err(StartError::Thaw)?;
    let (slowed, captured) = (slowed.map_err(StartError::Thaw)?, captured.map_err(StartError::Thaw)?);
    if unproven.is_empty() {
        return match (slowed.is_empty(), captured.is_empty()) {
            (true, true) => Ok(()),
            (false, _) => Err(StartError::Slowed { vms: names(&slowed), is_up }),
            (true, false) => Err(StartError::Captured { vms: names(&captured), is_up }),
        };
    }
    Err(StartError::Frozen { vms: names(&unproven), is_up })
}

fn names<'a>(vms: impl IntoIterator<Item = &'a VmId>) -> String {
    let vms: Vec<String> = vms.into_iter().map(ToString::to_string).collect();
    vms.join(", ")
}

pub(super) async fn is_linked(host: &Host) -> bool {
    let mut link = host.hypervisor.link();
    let up = link.wait_for(|link| *link == Link::Up);
    tokio::time::timeout(LINK, up).await.is_ok_and(|up| up.is_ok())
}
