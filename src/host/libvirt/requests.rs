//! What a VM has asked its disks for since its process began (QMP `query-blockstats`).
//!
//! Decides what counts: each request of the guest's devices that QEMU counts, those that only read too, for a guest that uses its
//! disks runs. virtio's discards it does not count (`virtio_blk_handle_discard_write_zeroes`); what a file system does with them it
//! does with writes and flushes, too. Leaves to `background` what follows from a difference.

use serde::Deserialize;
use virt::domain::Domain;

use super::monitor::query;
use crate::host::Result;
use crate::model::VmId;

/// How many, of all disks. Two that are the same, and the guest has done nothing with its disks between.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Requests(u64);

/// How many it is now. QEMU counts a request when it has ended, and a VM that stands still has none under way (`vm_stop`).
pub(super) fn look(domain: &Domain, vm: VmId) -> Result<Requests> {
    query(domain, vm, "query-blockstats").map(count)
}

fn count(devices: Vec<Device>) -> Requests {
    let each = devices.into_iter().map(|Device { stats }| {
        let Stats { read, write, flush, unmap, append, not_written, invalid, not_unmapped } = stats;
        [read, write, flush, unmap, append, not_written, invalid, not_unmapped]
            .into_iter()
            .fold(0, u64::saturating_add)
    });
    Requests(each.fold(0, u64::saturating_add))
}

#[derive(Debug, Deserialize)]
struct Device {
    stats: Stats,
}

/// Older QEMUs do not have all of them, and do not have what is counted, either.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Stats {
    #[serde(rename = "rd_operations")]
    read: u64,
    #[serde(rename = "wr_operations")]
    write: u64,
    #[serde(rename = "flush_operations")]
    flush: u64,
    #[serde(rename = "unmap_operations")]
    unmap: u64,
    #[serde(rename = "zone_append_operations")]
    append: u64,
    #[serde(rename = "failed_wr_operations")]
    not_written: u64,
    #[serde(rename = "invalid_wr_operations")]
    invalid: u64,
    #[serde(rename = "failed_unmap_operations")]
    not_unmapped: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_counts() {
        let check = |json: &str, expected: u64| {
            let devices: Vec<Device> = serde_json::from_str(json).unwrap();
            assert_eq!(count(devices), Requests(expected), "{json}");
        };
        check("[]", 0);
        check(r#"[{"device":"","stats":{}}]"#, 0);
        check(
            r#"[{"device":"","node-name":"f","stats":{"wr_operations":1,"unmap_operations":2,"failed_wr_operations":4,
                 "rd_operations":64,"flush_operations":128,"wr_bytes":512,"timed_stats":[]},
                 "parent":{"stats":{"wr_operations":1024}}},
                {"device":"d","stats":{"wr_operations":16,"zone_append_operations":32}}]"#,
            1 + 2 + 4 + 16 + 32 + 64 + 128,
        );
    }
}
