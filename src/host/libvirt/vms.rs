//! VMs as libvirt lists them.
//!
//! Decides which of libvirt's states is which of ours. Leaves disks to `observe`.

use std::path::PathBuf;

use virt::domain::Domain;
use virt::sys;

use super::connection::Connection;
use super::ffi;
use super::refusal::{LibvirtSays, of_node, on_vm};
use super::snapshot_xml::images_of;
use crate::host::images::find_program;
use crate::host::{About, Definition, HostError, Result, VmSummary};
use crate::model::vm::{PauseReason, RunState};
use crate::model::{DiskTarget, VmId};

/// Versions and name of the node.
pub(super) fn about(line: &Connection) -> Result<About> {
    let connect = line.connect();
    let refused = || of_node("name its version");
    Ok(About {
        libvirt: version(u64::from(connect.get_lib_version().map_err(refused())?)),
        qemu: version(u64::from(connect.get_hyp_version().map_err(refused())?)),
        host_name: connect.get_hostname().map_err(of_node("name the node"))?,
    })
}

/// The first libvirt that reads memory compressed with zstd, as it counts versions (its NEWS: 10.4.0). It runs the program.
const READS_ZSTD: u32 = 10_004_000;

/// See [`crate::host::Hypervisor::compression_blocker`].
pub(super) fn compression_blocker(line: &Connection) -> Result<Option<String>> {
    let number = line.connect().get_lib_version().map_err(of_node("name its version"))?;
    if number < READS_ZSTD {
        return Ok(Some(format!("libvirt {} cannot read it", version(u64::from(number)))));
    }
    Ok(find_program("zstd")
        .err()
        .map(|_| "the program zstd, which libvirt reads it with, is missing".to_owned()))
}

/// All domains, off ones too.
pub(super) fn list(line: &Connection) -> Result<Vec<VmSummary>> {
    let domains = line.connect().list_all_domains(0).map_err(of_node("list the VMs"))?;
    let mut vms = Vec::with_capacity(domains.len());
    for domain in domains {
        let uuid = domain.get_uuid().map_err(of_node("list the VMs"))?;
        let name = domain.get_name().map_err(of_node("list the VMs"))?;
        match state(&domain, VmId(uuid)) {
            Ok(run_state) => {
                let full_disks = full_disks(&domain, VmId(uuid), run_state);
                vms.push(VmSummary { id: VmId(uuid), name, run_state, full_disks });
            }
            // Undefined since it was listed.
            Err(HostError::NoSuchVm(_)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(vms)
}

/// The domain with this UUID.
pub(super) fn lookup(line: &Connection, vm: VmId) -> Result<Domain> {
    Domain::lookup_by_uuid(line.connect(), vm.0).map_err(on_vm(vm, "find the VM"))
}

/// What a domain does.
pub(super) fn state(domain: &Domain, vm: VmId) -> Result<RunState> {
    let (state, reason) = domain.get_state().map_err(on_vm(vm, "tell the state of the VM"))?;
    Ok(run_state(state, reason))
}

/// The disks that a domain is paused for because they had no space. One that does not say is paused all the same.
pub(super) fn full_disks(domain: &Domain, vm: VmId, run_state: RunState) -> Vec<DiskTarget> {
    if run_state != RunState::Paused(PauseReason::IoError) {
        return Vec::new();
    }
    let full = ffi::full_disks(domain).unwrap_or_else(|error| {
        tracing::info!(%vm, %error, "it cannot be told which disk has failed");
        Vec::new()
    });
    full.iter().filter_map(|target| target.parse().ok()).collect()
}

/// The definition of a live domain as it is now, of another one as it is stored, with its secrets.
pub(super) fn definition(line: &Connection, vm: VmId) -> Result<Definition> {
    let domain = lookup(line, vm)?;
    let flags = if is_active(&domain, vm)? {
        // Without what only this run of the VM has: the form that a save image carries.
        sys::VIR_DOMAIN_XML_SECURE | sys::VIR_DOMAIN_XML_MIGRATABLE
    } else {
        sys::VIR_DOMAIN_XML_SECURE | sys::VIR_DOMAIN_XML_INACTIVE
    };
    xml(&domain, vm, flags).map(Definition)
}

/// Whether a process exists.
pub(super) fn is_active(domain: &Domain, vm: VmId) -> Result<bool> {
    domain.is_active().map_err(on_vm(vm, "tell the state of the VM"))
}

/// The XML of a domain, in the form that `flags` name.
pub(super) fn xml(domain: &Domain, vm: VmId, flags: sys::virDomainXMLFlags) -> Result<String> {
    domain.get_xml_desc(flags).map_err(on_vm(vm, "describe the VM"))
}

/// The snapshots that libvirt itself keeps of a domain, with the images that were made for them.
pub(super) fn snapshots(domain: &Domain, vm: VmId) -> Result<Vec<(String, Vec<PathBuf>)>> {
    const CALL: &str = "list libvirt's own snapshots of the VM";
    let kept = domain.list_all_snapshots(0).map_err(on_vm(vm, CALL))?;
    let described = kept.iter().map(|snapshot| {
        let name = snapshot.get_name().map_err(on_vm(vm, CALL))?;
        let xml = snapshot.get_xml_desc(0).map_err(on_vm(vm, CALL))?;
        Ok((LibvirtSays::new(name).to_string(), images_of(&xml)?))
    });
    described.collect()
}

pub(super) fn name(domain: &Domain, vm: VmId) -> Result<String> {
    domain.get_name().map_err(on_vm(vm, "name the VM")).map(|name| LibvirtSays::new(name).to_string())
}

/// libvirt's state and reason (`virDomainState`, `virDomainPausedReason`, `virDomainShutoffReason`) in our words.
fn run_state(state: sys::virDomainState, reason: i32) -> RunState {
    match state {
        // "Blocked" is Xen's word for a processor that waits.
        sys::VIR_DOMAIN_RUNNING | sys::VIR_DOMAIN_BLOCKED => RunState::Running,
        // A libvirtd that starts ends what another one had not yet brought up (`qemuProcessReconnect`).
        // In post-copy it executes on the other node already, out of the memory that is left here.
        sys::VIR_DOMAIN_PAUSED
            if matches!(
                u32::try_from(reason),
                Ok(sys::VIR_DOMAIN_PAUSED_STARTING_UP
                    | sys::VIR_DOMAIN_PAUSED_POSTCOPY
                    | sys::VIR_DOMAIN_PAUSED_POSTCOPY_FAILED)
            ) =>
        {
            RunState::Unsettled
        }
        sys::VIR_DOMAIN_PAUSED => RunState::Paused(pause_reason(reason)),
        // It is told until somebody starts the VM, or libvirtd starts anew.
        sys::VIR_DOMAIN_SHUTOFF if u32::try_from(reason) == Ok(sys::VIR_DOMAIN_SHUTOFF_MIGRATED) => {
            RunState::Migrated
        }
        sys::VIR_DOMAIN_SHUTOFF => RunState::Off,
        // Shutting down, crashed with its process kept, suspended by the guest, or newer than we are.
        _ => RunState::Unsettled,
    }
}

fn pause_reason(reason: i32) -> PauseReason {
    match u32::try_from(reason) {
        Ok(sys::VIR_DOMAIN_PAUSED_USER) => PauseReason::User,
        Ok(sys::VIR_DOMAIN_PAUSED_IOERROR) => PauseReason::IoError,
        // MIGRATION also stands for a VM that was restored from memory and told to stay paused.
        Ok(
            sys::VIR_DOMAIN_PAUSED_MIGRATION
            | sys::VIR_DOMAIN_PAUSED_SAVE
            | sys::VIR_DOMAIN_PAUSED_SNAPSHOT
            | sys::VIR_DOMAIN_PAUSED_FROM_SNAPSHOT
            | sys::VIR_DOMAIN_PAUSED_API_ERROR
            // libvirtd was restarted while it held the VM paused.
            | sys::VIR_DOMAIN_PAUSED_UNKNOWN,
        ) => PauseReason::Snapshot,
        // Watchdog, crash, dump, shutdown, or newer than we are.
        _ => PauseReason::Other,
    }
}

/// libvirt packs versions as major * 1,000,000 + minor * 1,000 + release.
fn version(packed: u64) -> String {
    format!("{}.{}.{}", packed / 1_000_000, packed / 1_000 % 1_000, packed % 1_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        assert_eq!(version(11_003_000), "11.3.0");
        assert_eq!(version(10_000_002), "10.0.2");
    }

    #[test]
    fn states() {
        let check = |state, reason: u32, expected| {
            assert_eq!(run_state(state, i32::try_from(reason).unwrap()), expected, "{state} {reason}");
        };
        check(sys::VIR_DOMAIN_RUNNING, 0, RunState::Running);
        check(sys::VIR_DOMAIN_BLOCKED, 0, RunState::Running);
        check(sys::VIR_DOMAIN_SHUTOFF, 0, RunState::Off);
        check(sys::VIR_DOMAIN_SHUTOFF, sys::VIR_DOMAIN_SHUTOFF_DESTROYED, RunState::Off);
        check(sys::VIR_DOMAIN_SHUTOFF, sys::VIR_DOMAIN_SHUTOFF_MIGRATED, RunState::Migrated);
        for unsettled in [
            sys::VIR_DOMAIN_PAUSED_STARTING_UP,
            sys::VIR_DOMAIN_PAUSED_POSTCOPY,
            sys::VIR_DOMAIN_PAUSED_POSTCOPY_FAILED,
        ] {
            check(sys::VIR_DOMAIN_PAUSED, unsettled, RunState::Unsettled);
        }
        for unsettled in [
            sys::VIR_DOMAIN_NOSTATE,
            sys::VIR_DOMAIN_SHUTDOWN,
            sys::VIR_DOMAIN_CRASHED,
            sys::VIR_DOMAIN_PMSUSPENDED,
            99,
        ] {
            check(unsettled, 0, RunState::Unsettled);
        }
        let paused = |reason, expected| check(sys::VIR_DOMAIN_PAUSED, reason, RunState::Paused(expected));
        paused(sys::VIR_DOMAIN_PAUSED_USER, PauseReason::User);
        paused(sys::VIR_DOMAIN_PAUSED_IOERROR, PauseReason::IoError);
        paused(sys::VIR_DOMAIN_PAUSED_SNAPSHOT, PauseReason::Snapshot);
        paused(sys::VIR_DOMAIN_PAUSED_MIGRATION, PauseReason::Snapshot);
        paused(sys::VIR_DOMAIN_PAUSED_API_ERROR, PauseReason::Snapshot);
        paused(sys::VIR_DOMAIN_PAUSED_WATCHDOG, PauseReason::Other);
        paused(sys::VIR_DOMAIN_PAUSED_CRASHED, PauseReason::Other);
        paused(99, PauseReason::Other);
    }
}
