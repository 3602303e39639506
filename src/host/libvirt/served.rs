//! What a disk has served its guest.
//!
//! Decides which of libvirt's counters is which of ours. They are QEMU's own of the guest's device (`query-blockstats`): what a
//! block job reads and writes is not in them.

use std::ffi::CStr;
use std::time::Duration;

use virt::sys;

use super::connection::Connection;
use super::ffi::{self, Value};
use super::io_limits::of_live_disk;
use super::jobs::c_text;
use super::vms;
use crate::host::Result;
use crate::model::served::{Requests, Served};
use crate::model::{DiskTarget, VmId};

/// See [`crate::host::Hypervisor::served`].
pub(super) fn read(line: &Connection, vm: VmId, disk: &DiskTarget) -> Result<Option<Served>> {
    let domain = vms::lookup(line, vm)?;
    if !vms::is_active(&domain, vm)? {
        return Ok(None);
    }
    let told = ffi::block_stats(&domain, &c_text(disk.as_str())?);
    let Some(counters) = of_live_disk(vm, "tell what a disk has served", told)? else { return Ok(None) };
    let counter = |name: &CStr| {
        let found = counters.iter().find(|(known, _)| known.as_bytes() == name.to_bytes());
        match found {
            Some((_, Value::Number(number))) => *number,
            // One that QEMU does not count stays at nothing.
            Some((_, Value::Text(_))) | None => 0,
        }
    };
    let requests =
        |count, time| Requests { count: counter(count), time: Duration::from_nanos(counter(time)) };
    Ok(Some(Served {
        reads: requests(sys::VIR_DOMAIN_BLOCK_STATS_READ_REQ, sys::VIR_DOMAIN_BLOCK_STATS_READ_TOTAL_TIMES),
        writes: requests(
            sys::VIR_DOMAIN_BLOCK_STATS_WRITE_REQ,
            sys::VIR_DOMAIN_BLOCK_STATS_WRITE_TOTAL_TIMES,
        ),
        flushes: requests(
            sys::VIR_DOMAIN_BLOCK_STATS_FLUSH_REQ,
            sys::VIR_DOMAIN_BLOCK_STATS_FLUSH_TOTAL_TIMES,
        ),
    }))
}
