//! What a disk's guest may read and write: seen and set, of the process alone.
//!
//! Decides which of libvirt's parameters is which limit. All are given each time: what is left out of a family keeps its old
//! value or loses it, by rules of its own (libvirt, `qemuDomainSetBlockIoTuneDefaults`). The group is never given: then it
//! stays.

use std::ffi::CStr;

use virt::error::{Error, ErrorNumber};
use virt::sys;

use super::connection::Connection;
use super::ffi::{self, Value};
use super::jobs::c_text;
use super::refusal::on_vm;
use super::vms;
use crate::host::Result;
use crate::model::io_limits::{IoLimits, Limit};
use crate::model::{DiskTarget, VmId};

/// The names of the rate, the burst and the burst's length of each limit, in the order of [`limits_of`].
const NAMES: [[&CStr; 3]; 6] = [
    [
        sys::VIR_DOMAIN_BLOCK_IOTUNE_TOTAL_BYTES_SEC,
        sys::VIR_DOMAIN_BLOCK_IOTUNE_TOTAL_BYTES_SEC_MAX,
        sys::VIR_DOMAIN_BLOCK_IOTUNE_TOTAL_BYTES_SEC_MAX_LENGTH,
    ],
    [
        sys::VIR_DOMAIN_BLOCK_IOTUNE_READ_BYTES_SEC,
        sys::VIR_DOMAIN_BLOCK_IOTUNE_READ_BYTES_SEC_MAX,
        sys::VIR_DOMAIN_BLOCK_IOTUNE_READ_BYTES_SEC_MAX_LENGTH,
    ],
    [
        sys::VIR_DOMAIN_BLOCK_IOTUNE_WRITE_BYTES_SEC,
        sys::VIR_DOMAIN_BLOCK_IOTUNE_WRITE_BYTES_SEC_MAX,
        sys::VIR_DOMAIN_BLOCK_IOTUNE_WRITE_BYTES_SEC_MAX_LENGTH,
    ],
    [
        sys::VIR_DOMAIN_BLOCK_IOTUNE_TOTAL_IOPS_SEC,
        sys::VIR_DOMAIN_BLOCK_IOTUNE_TOTAL_IOPS_SEC_MAX,
        sys::VIR_DOMAIN_BLOCK_IOTUNE_TOTAL_IOPS_SEC_MAX_LENGTH,
    ],
    [
        sys::VIR_DOMAIN_BLOCK_IOTUNE_READ_IOPS_SEC,
        sys::VIR_DOMAIN_BLOCK_IOTUNE_READ_IOPS_SEC_MAX,
        sys::VIR_DOMAIN_BLOCK_IOTUNE_READ_IOPS_SEC_MAX_LENGTH,
    ],
    [
        sys::VIR_DOMAIN_BLOCK_IOTUNE_WRITE_IOPS_SEC,
        sys::VIR_DOMAIN_BLOCK_IOTUNE_WRITE_IOPS_SEC_MAX,
        sys::VIR_DOMAIN_BLOCK_IOTUNE_WRITE_IOPS_SEC_MAX_LENGTH,
    ],
];

/// See [`crate::host::Hypervisor::io_limits`].
pub(super) fn read(line: &Connection, vm: VmId, disk: &DiskTarget) -> Result<Option<IoLimits>> {
    let domain = vms::lookup(line, vm)?;
    if !vms::is_active(&domain, vm)? {
        return Ok(None);
    }
    let told = ffi::block_io_tune(&domain, &c_text(disk.as_str())?);
    let Some(tunes) = of_live_disk(vm, "tell the I/O limits", told)? else { return Ok(None) };
    let mut limits = IoLimits::default();
    for (name, value) in tunes {
        match value {
            Value::Number(number) => {
                if let Some(place) = place_of(&mut limits, &name) {
                    *place = number;
                }
            }
            // QEMU names the group of a disk that shares its limits with none after the device's path.
            Value::Text(group) => limits.group = Some(group).filter(|name| is_shared(name)),
        }
    }
    Ok(Some(limits))
}

/// None if the disk, or the process, is not there.
pub(super) fn of_live_disk<T>(
    vm: VmId,
    call: &'static str,
    told: std::result::Result<T, Error>,
) -> Result<Option<T>> {
    match told {
        Ok(told) => Ok(Some(told)),
        // "disk 'vda' was not found in the domain config", or the process has just gone.
        Err(error) if matches!(error.code(), ErrorNumber::InvalidArg | ErrorNumber::OperationInvalid) => {
            Ok(None)
        }
        Err(error) => Err(on_vm(vm, call)(error)),
    }
}

/// See [`crate::host::Hypervisor::set_io_limits`].
pub(super) fn set(line: &Connection, vm: VmId, disk: &DiskTarget, limits: &IoLimits) -> Result<()> {
    let domain = vms::lookup(line, vm)?;
    let mut limits = limits.clone();
    let mut tunes = vec![(sys::VIR_DOMAIN_BLOCK_IOTUNE_SIZE_IOPS_SEC, limits.operation_bytes)];
    for (names, limit) in NAMES.iter().zip(limits_of(&mut limits)) {
        tunes.extend(names.iter().copied().zip([limit.rate, limit.burst, limit.burst_seconds]));
    }
    ffi::set_block_io_tune(&domain, &c_text(disk.as_str())?, &tunes).map_err(on_vm(vm, "limit the I/O"))
}

fn is_shared(group: &str) -> bool {
    !group.is_empty() && !group.starts_with('/')
}

fn limits_of(limits: &mut IoLimits) -> [&mut Limit; 6] {
    let (bytes, operations) = (&mut limits.bytes, &mut limits.operations);
    [
        &mut bytes.both,
        &mut bytes.read,
        &mut bytes.write,
        &mut operations.both,
        &mut operations.read,
        &mut operations.write,
    ]
}

/// Where the parameter of this name belongs.
fn place_of<'a>(limits: &'a mut IoLimits, name: &str) -> Option<&'a mut u64> {
    if name.as_bytes() == sys::VIR_DOMAIN_BLOCK_IOTUNE_SIZE_IOPS_SEC.to_bytes() {
        return Some(&mut limits.operation_bytes);
    }
    let is_it = |known: &CStr| known.to_bytes() == name.as_bytes();
    let (at, part) = NAMES
        .iter()
        .enumerate()
        .find_map(|(at, names)| names.iter().position(|known| is_it(known)).map(|part| (at, part)))?;
    let limit = limits_of(limits).into_iter().nth(at)?;
    [&mut limit.rate, &mut limit.burst, &mut limit.burst_seconds].into_iter().nth(part)
}
