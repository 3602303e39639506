//! What changes a VM: other images, power, processors.
//!
//! Decides the flags of each call. Leaves the order of calls to `ops`. An error proves nothing: libvirt reports one
//! also when QEMU has switched and only a note of it could not be written.

use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use virt::domain::Domain;
use virt::domain_snapshot::DomainSnapshot;
use virt::sys;

use super::connection::Connection;
use super::description::Description;
use super::edit::{NewSource, with_sources};
use super::refusal::{of_node, on_vm};
use super::snapshot_xml::snapshot_xml;
use super::{ffi, monitor, new_vm, vms};
use crate::host::paths::plain;
use crate::host::{Definition, DiskSwitch, HostError, Result, StartFrom};
use crate::model::step::{ImageRef, NewVm};
use crate::model::vm::{PauseReason, RunState};
use crate::model::{DiskTarget, VmId};

/// See [`crate::host::Hypervisor::switch_disks`].
///
/// Never with QUIESCE: libvirt freezes without a time limit, and thaws only after its own notes are written. Never
/// with LIVE: QEMU can fail an assertion over images that were made before (QEMU issue 2980).
pub(super) fn switch_disks(line: &Connection, vm: VmId, switch: &DiskSwitch) -> Result<()> {
    const CALL: &str = "let the VM write to other images";
    let xml = snapshot_xml(switch)?;
    let domain = vms::lookup(line, vm)?;
    let mut flags = sys::VIR_DOMAIN_SNAPSHOT_CREATE_REUSE_EXT
        | sys::VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA
        | sys::VIR_DOMAIN_SNAPSHOT_CREATE_ATOMIC;
    if switch.memory.is_none() {
        flags |= sys::VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY;
    } else if !vms::is_active(&domain, vm)? {
        return Err(HostError::Refused { call: CALL, cause: "a VM that is off has no memory".into() });
    }
    DomainSnapshot::create_xml(&domain, &xml, flags).map_err(on_vm(vm, CALL))?;
    if switch.memory.is_some() {
        reactivate_if_paused(&domain, vm);
    }
    Ok(())
}

/// See [`crate::host::Hypervisor::point_disks`].
pub(super) fn point_disks(line: &Connection, vm: VmId, disks: &[(DiskTarget, ImageRef)]) -> Result<()> {
    const CALL: &str = "change the stored definition";
    let domain = vms::lookup(line, vm)?;
    let form = sys::VIR_DOMAIN_XML_INACTIVE | sys::VIR_DOMAIN_XML_SECURE;
    let edited = with_sources(&vms::xml(&domain, vm, form)?, &sources(disks)?)?;
    Domain::define_xml_flags(line.connect(), &edited, 0).map_err(on_vm(vm, CALL))?;
    let stored = Description::read(&vms::xml(&domain, vm, sys::VIR_DOMAIN_XML_INACTIVE)?)?;
    for (target, image) in disks {
        let found = stored.disk(target).and_then(|disk| disk.active());
        if !found.is_some_and(|found| found.path == image.path && found.format == image.format) {
            let found = found.map_or_else(|| "none".to_owned(), |found| found.path.display().to_string());
            let wanted = image.path.display();
            return Err(HostError::Malformed {
                what: "the definition that libvirt stored",
                cause: format!("disk {target} was to name {wanted}, and names {found}").into(),
            });
        }
    }
    Ok(())
}

/// See [`crate::host::Hypervisor::define`].
pub(super) fn define(line: &Connection, definition: &Definition, new: &NewVm) -> Result<()> {
    let xml = new_vm::definition(&definition.0, new, &sources(&new.disks)?)?;
    Domain::define_xml_flags(line.connect(), &xml, 0).map_err(of_node("define the VM"))?;
    Ok(())
}

/// See [`crate::host::Hypervisor::undefine`].
///
/// Firmware variables and TPM state are only this VM's: libvirt refuses to leave them behind unsaid.
pub(super) fn undefine(line: &Connection, vm: VmId) -> Result<()> {
    let flags = sys::VIR_DOMAIN_UNDEFINE_NVRAM | sys::VIR_DOMAIN_UNDEFINE_TPM;
    let undefined = vms::lookup(line, vm)
        .and_then(|domain| domain.undefine_flags(flags).map_err(on_vm(vm, "undefine the VM")));
    match undefined {
        Ok(()) | Err(HostError::NoSuchVm(_)) => Ok(()),
        Err(error) => Err(error),
    }
}

/// See [`crate::host::Hypervisor::start`].
pub(super) fn start(line: &Connection, vm: VmId, how: &StartFrom, paused: bool) -> Result<()> {
    match how {
        StartFrom::Disks => {
            let flags = if paused { sys::VIR_DOMAIN_START_PAUSED } else { sys::VIR_DOMAIN_NONE };
            vms::lookup(line, vm)?.create_with_flags(flags).map_err(on_vm(vm, "start the VM"))?;
        }
        StartFrom::Memory { image, definition, disks } => {
            let edited = with_sources(&definition.0, &sources(disks)?)?;
            let flags = if paused { sys::VIR_DOMAIN_SAVE_PAUSED } else { sys::VIR_DOMAIN_SAVE_RUNNING };
            Domain::domain_restore_flags(line.connect(), plain(image)?, Some(&edited), flags)
                .map_err(on_vm(vm, "start the VM from its memory"))?;
            if paused {
                reactivate_if_paused(&vms::lookup(line, vm)?, vm);
            }
        }
    }
    Ok(())
}

/// See [`crate::host::Hypervisor::stop`].
pub(super) fn stop(line: &Connection, vm: VmId) -> Result<()> {
    const CALL: &str = "end the VM's process";
    let domain = vms::lookup(line, vm)?;
    // SIGTERM alone: QEMU flushes its disks. It fails if the process is still there after some seconds.
    let Err(error) = domain.destroy_flags(sys::VIR_DOMAIN_DESTROY_GRACEFUL) else { return Ok(()) };
    let error = on_vm(vm, CALL)(error);
    match error {
        HostError::Refused { .. } if vms::is_active(&domain, vm)? => {
            tracing::warn!(%vm, error = ?error, "the VM's process did not end when asked; killing it");
            domain.destroy_flags(sys::VIR_DOMAIN_DESTROY_DEFAULT).map_err(on_vm(vm, CALL))?;
            Ok(())
        }
        error => Err(error),
    }
}

/// See [`crate::host::Hypervisor::pause`].
///
/// Through libvirt, not QEMU's `stop`: what it notes of the pause has to be true.
pub(super) fn pause(line: &Connection, vm: VmId) -> Result<()> {
    vms::lookup(line, vm)?.suspend().map(drop).map_err(on_vm(vm, "pause the VM"))
}

/// See [`crate::host::Hypervisor::resume`].
pub(super) fn resume(line: &Connection, vm: VmId) -> Result<()> {
    let domain = vms::lookup(line, vm)?;
    let resume = || domain.resume().map(drop).map_err(on_vm(vm, "resume the VM"));
    resume()?;
    if vms::state(&domain, vm)? == RunState::Paused(PauseReason::IoError) && monitor::is_running(&domain, vm)?
    {
        // It ran already, and libvirt had heard of its failure too late. Only a VM that begins to run is noted as one that
        // does.
        monitor::pause(&domain, vm)?;
        // It ran before: it is not left standing for one error.
        return resume().or_else(|_| resume());
    }
    Ok(())
}

/// See [`crate::host::Hypervisor::abort_memory_capture`].
///
/// libvirt has one job per domain and ends whichever it is: a migration of its operator, too, that the capture waits for.
pub(super) fn abort_memory_capture(line: &Connection, vm: VmId, image: &Path) -> Result<()> {
    const CALL: &str = "end the capture of memory";
    let domain = vms::lookup(line, vm)?;
    if !image.exists() {
        return Err(HostError::Refused { call: CALL, cause: "it has not begun".into() });
    }
    ffi::abort_job(&domain).map_err(on_vm(vm, CALL))
}

/// See [`crate::host::Hypervisor::process_state`].
///
/// libvirt's own word is no answer: a pause that it was asked for may wait for its turn, and it says "running" until then.
pub(super) fn process_state(line: &Connection, vm: VmId) -> Result<Option<RunState>> {
    let domain = vms::lookup(line, vm)?;
    match monitor::is_running(&domain, vm) {
        Ok(true) => Ok(Some(RunState::Running)),
        Ok(false) => match vms::state(&domain, vm)? {
            // It will be told of it.
            RunState::Running => Ok(Some(RunState::Unsettled)),
            state => Ok(Some(state)),
        },
        Err(_) if !vms::is_active(&domain, vm)? => Ok(None),
        Err(error) => Err(error),
    }
}

/// See [`crate::host::EmergencyThaw::resume_now`]. One that stands still for an I/O error is not ours to resume.
///
/// As long as libvirt is at work on the VM it lets nothing through, and would hold up whoever asks: there are few threads for
/// this, and other guests that wait for them.
pub(super) fn resume_and_prove(line: &Connection, vm: VmId) -> Result<bool> {
    let domain = match vms::lookup(line, vm) {
        Err(HostError::NoSuchVm(_)) => return Ok(true),
        found => found?,
    };
    if !vms::is_active(&domain, vm)? {
        return Ok(true);
    }
    if ffi::is_at_work(&domain).map_err(on_vm(vm, "tell whether it is at work on the VM"))? {
        return Ok(false);
    }
    if monitor::is_running(&domain, vm)? {
        return Ok(true);
    }
    match vms::state(&domain, vm)? {
        RunState::Paused(PauseReason::User | PauseReason::Snapshot) => {
            domain.resume().map_err(on_vm(vm, "resume the VM"))?;
            monitor::is_running(&domain, vm)
        }
        RunState::Paused(PauseReason::IoError | PauseReason::Other) | RunState::Off | RunState::Migrated => {
            Ok(true)
        }
        RunState::Running | RunState::Unsettled => Ok(false),
    }
}

/// See [`crate::host::Hypervisor::memory_progress`].
///
/// Until libvirt has made the memory image, it lets no question through to the VM, and keeps one that came too early
/// waiting for 30 s, whatever happens meanwhile.
pub(super) fn memory_progress(line: &Connection, vm: VmId, image: &Path) -> Result<Option<(u64, u64)>> {
    if !image.exists() {
        return Ok(None);
    }
    let info = vms::lookup(line, vm)?.get_job_info().map_err(on_vm(vm, "describe the capture of memory"))?;
    Ok(match (info.r#type.cast_unsigned(), info.mem_total, info.mem_remaining) {
        (sys::VIR_DOMAIN_JOB_BOUNDED | sys::VIR_DOMAIN_JOB_UNBOUNDED, Some(total @ 1..), Some(left)) => {
            Some((total.saturating_sub(left), total))
        }
        // No job, or one that has no memory to tell of yet.
        _ => None,
    })
}

/// See [`crate::host::Hypervisor::is_capturing`].
///
/// libvirtd carries a call out to its end when the client that made it has died, and one more of the same after it.
///
/// Until it has begun it may wait for the end of somebody else's job.
pub(super) fn is_capturing(line: &Connection, vm: VmId) -> Result<bool> {
    let domain = vms::lookup(line, vm)?;
    match domain.get_job_info() {
        Ok(info) => Ok(info.r#type.cast_unsigned() != sys::VIR_DOMAIN_JOB_NONE),
        // Its process has ended, and what it was doing with it.
        Err(_) if !vms::is_active(&domain, vm)? => Ok(false),
        Err(error) => Err(on_vm(vm, "describe the capture of memory")(error)),
    }
}

/// Best done at once, because until then no lock protects the images. If it fails, a merge tries again.
fn reactivate_if_paused(domain: &Domain, vm: VmId) {
    let activated = match vms::state(domain, vm) {
        Ok(RunState::Paused(_)) => monitor::activate_images(domain, vm),
        Ok(RunState::Running | RunState::Off | RunState::Migrated | RunState::Unsettled) => Ok(()),
        Err(error) => Err(error),
    };
    if let Err(error) = activated {
        tracing::warn!(%vm, error = ?error, "QEMU holds no lock on the images of this paused VM");
    }
}

fn sources(disks: &[(DiskTarget, ImageRef)]) -> Result<Vec<NewSource<'_>>> {
    disks
        .iter()
        .map(|(target, image)| {
            Ok(NewSource {
                target,
                path: plain(&image.path)?,
                format: image.format,
                is_block_device: is_block_device(&image.path),
            })
        })
        .collect()
}

fn is_block_device(path: &Path) -> bool {
    path.metadata().is_ok_and(|metadata| metadata.file_type().is_block_device())
}
