//! Block jobs: seen, started, pivoted; and images watched as they grow.
//!
//! Decides how a commit is asked for and which of libvirt's job types is which of ours. Leaves when to start and when
//! to pivot to `ops`. Never asks libvirt to delete images or to write relative names.

use std::ffi::CString;

use virt::domain::Domain;
use virt::error::ErrorNumber;
use virt::sys;

use super::connection::Connection;
use super::description::{DescribedSource, Description, Mirror};
use super::refusal::on_vm;
use super::{ffi, monitor, vms};
use crate::host::paths::plain;
use crate::host::{Commit, HostError, Pull, Result};
use crate::model::vm::{BlockJob, BlockJobKind, RunState};
use crate::model::{DiskTarget, VmId};

/// See [`crate::host::Hypervisor::block_jobs`].
pub(super) fn block_jobs(line: &Connection, vm: VmId) -> Result<Vec<(DiskTarget, BlockJob)>> {
    let domain = vms::lookup(line, vm)?;
    if !vms::is_active(&domain, vm)? {
        return Ok(Vec::new());
    }
    let description = Description::read(&vms::xml(&domain, vm, 0)?)?;
    jobs_of(&domain, vm, &description)
}

/// The block jobs of a live domain whose XML has just been read.
pub(super) fn jobs_of(
    domain: &Domain,
    vm: VmId,
    description: &Description,
) -> Result<Vec<(DiskTarget, BlockJob)>> {
    let mut jobs = Vec::new();
    for disk in &description.disks {
        if matches!(disk.source, DescribedSource::Excluded(_)) {
            continue;
        }
        let name = c_text(disk.target.as_str())?;
        let info = ffi::block_job_info(domain, &name).map_err(on_vm(vm, "describe a block job"))?;
        if let Some(info) = info {
            jobs.push((disk.target.clone(), block_job(&info, disk.mirror)));
        }
    }
    Ok(jobs)
}

/// What libvirt notes of a commit in its definition of the disk is not there if it has died as it started the commit; the job
/// goes on. The numbers tell it then: libvirt lets them be equal only if QEMU calls the job ready
/// (`qemuBlockJobInfoTranslate`). Else they are too early: they are QEMU's, and libvirt pivots by its own note.
fn block_job(info: &sys::virDomainBlockJobInfo, mirror: Option<Mirror>) -> BlockJob {
    let kind = match u32::try_from(info.type_) {
        Ok(sys::VIR_DOMAIN_BLOCK_JOB_TYPE_ACTIVE_COMMIT) => BlockJobKind::ActiveCommit,
        Ok(sys::VIR_DOMAIN_BLOCK_JOB_TYPE_COMMIT) => BlockJobKind::Commit,
        Ok(sys::VIR_DOMAIN_BLOCK_JOB_TYPE_PULL) => BlockJobKind::Pull,
        // A copy, a backup, or newer than we are.
        _ => BlockJobKind::Other,
    };
    let ready = match mirror {
        Some(mirror) => mirror.is_ready,
        None => kind == BlockJobKind::ActiveCommit && info.end > 0 && info.cur == info.end,
    };
    let bandwidth = Some(info.bandwidth).filter(|bandwidth| *bandwidth > 0);
    BlockJob { kind, done: info.cur, total: info.end, ready, bandwidth }
}

/// See [`crate::host::Hypervisor::start_commit`].
pub(super) fn start_commit(line: &Connection, vm: VmId, commit: &Commit) -> Result<()> {
    let domain = ready_for_jobs(line, vm)?;
    let mut flags = sys::VIR_DOMAIN_BLOCK_COMMIT_BANDWIDTH_BYTES;
    if commit.is_active {
        flags |= sys::VIR_DOMAIN_BLOCK_COMMIT_ACTIVE;
    }
    ffi::block_commit(
        &domain,
        &c_text(commit.disk.as_str())?,
        &c_text(plain(&commit.base)?)?,
        &c_text(plain(&commit.top)?)?,
        commit.bandwidth.unwrap_or(0),
        flags,
    )
    .map_err(on_vm(vm, "start the merge"))
}

/// See [`crate::host::Hypervisor::start_pull`].
pub(super) fn start_pull(line: &Connection, vm: VmId, pull: &Pull) -> Result<()> {
    let domain = ready_for_jobs(line, vm)?;
    let below = pull.below.as_ref().map(|below| c_text(plain(below)?)).transpose()?;
    let bandwidth = pull.bandwidth.unwrap_or(0);
    ffi::block_pull(&domain, &c_text(pull.disk.as_str())?, below.as_deref(), bandwidth)
        .map_err(on_vm(vm, "start the pull"))
}

/// See [`crate::host::Hypervisor::set_block_threshold`].
pub(super) fn set_threshold(line: &Connection, vm: VmId, disk: &DiskTarget, bytes: u64) -> Result<()> {
    let domain = vms::lookup(line, vm)?;
    domain.set_block_threshold(disk.as_str(), bytes, 0).map_err(on_vm(vm, "watch an image grow"))?;
    Ok(())
}

fn ready_for_jobs(line: &Connection, vm: VmId) -> Result<Domain> {
    let domain = vms::lookup(line, vm)?;
    if let RunState::Paused(_) = vms::state(&domain, vm)? {
        // Without this QEMU refuses, if memory was captured or restored while the VM stood still.
        monitor::activate_images(&domain, vm)?;
    }
    Ok(domain)
}

/// See [`crate::host::Hypervisor::pivot`].
pub(super) fn pivot(line: &Connection, vm: VmId, disk: &DiskTarget) -> Result<()> {
    let domain = vms::lookup(line, vm)?;
    ffi::block_job_abort(&domain, &c_text(disk.as_str())?, sys::VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT).map_err(
        |error| match error.code() {
            ErrorNumber::BlockCopyActive => HostError::NotReady(disk.clone()),
            _ => on_vm(vm, "pivot")(error),
        },
    )
}

/// See [`crate::host::Hypervisor::limit_block_job`].
pub(super) fn limit(line: &Connection, vm: VmId, disk: &DiskTarget, bandwidth: Option<u64>) -> Result<()> {
    let domain = vms::lookup(line, vm)?;
    ffi::block_job_set_speed(&domain, &c_text(disk.as_str())?, bandwidth.unwrap_or(0))
        .map_err(on_vm(vm, "limit the block job"))
}

/// See [`crate::host::Hypervisor::abort_block_job`].
pub(super) fn abort(line: &Connection, vm: VmId, disk: &DiskTarget) -> Result<()> {
    let domain = vms::lookup(line, vm)?;
    let disk = c_text(disk.as_str())?;
    // libvirt has no code of its own for "there is none".
    let is_there = |domain| ffi::block_job_info(domain, &disk).map_err(on_vm(vm, "describe a block job"));
    if !vms::is_active(&domain, vm)? || is_there(&domain)?.is_none() {
        return Ok(());
    }
    // Without flags it returns when the job is gone.
    ffi::block_job_abort(&domain, &disk, 0).map_err(on_vm(vm, "end the block job"))
}

pub(super) fn c_text(text: &str) -> Result<CString> {
    CString::new(text)
        .map_err(|error| HostError::Malformed { what: "a name for libvirt", cause: error.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs() {
        let check = |type_: u32, (cur, end), mirror, kind, ready| {
            let info = sys::virDomainBlockJobInfo { type_: type_.cast_signed(), bandwidth: 7, cur, end };
            let expected = BlockJob { kind, done: cur, total: end, ready, bandwidth: Some(7) };
            assert_eq!(block_job(&info, mirror), expected, "{type_} {cur} {end}");
        };
        let active = sys::VIR_DOMAIN_BLOCK_JOB_TYPE_ACTIVE_COMMIT;
        let noted = |is_ready| Some(Mirror { is_ready });
        check(active, (9, 9), noted(false), BlockJobKind::ActiveCommit, false);
        check(active, (5, 9), noted(true), BlockJobKind::ActiveCommit, true);
        check(active, (5, 9), None, BlockJobKind::ActiveCommit, false);
        check(active, (9, 9), None, BlockJobKind::ActiveCommit, true);
        check(active, (0, 0), None, BlockJobKind::ActiveCommit, false);
        check(sys::VIR_DOMAIN_BLOCK_JOB_TYPE_COMMIT, (9, 9), None, BlockJobKind::Commit, false);
        check(sys::VIR_DOMAIN_BLOCK_JOB_TYPE_PULL, (9, 9), None, BlockJobKind::Pull, false);
        check(sys::VIR_DOMAIN_BLOCK_JOB_TYPE_BACKUP, (9, 9), None, BlockJobKind::Other, false);
    }
}
