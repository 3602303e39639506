//! A VM, seen: libvirt's word, QEMU's word and the images' own word, held against each other.
//!
//! Decides that three accounts agree, or says that they do not. Leaves what to do about it to `plan`.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use virt::domain::Domain;
use virt::sys;

use super::chain::{ImageFiles, follow};
use super::connection::Connection;
use super::description::{DescribedDisk, DescribedSource, Description};
use super::graph::{BlockDevice, active_image, check_agreement};
use super::jobs::jobs_of;
use super::refusal::on_vm;
use super::{monitor, vms};
use crate::host::images::{open_image, qcow2};
use crate::host::{HostError, LiveImage, Result, WrittenImage};
use crate::model::operation::causes;
use crate::model::step::ImageRef;
use crate::model::vm::{AgentChannel, Attachment, BlockJob, DiskSource, DiskView, RunState};
use crate::model::{DiskTarget, VmId, VmView};

/// Between two looks at a VM whose accounts disagree. There is no event for "libvirt has noted what QEMU did".
pub(super) const BETWEEN_LOOKS: Duration = Duration::from_millis(150);

/// What a look at a VM gives.
pub(super) enum Looked {
    /// All that there is to see.
    Seen(Box<VmView>),
    /// Accounts that do not fit, as they may while things move.
    InDoubt {
        /// What does not fit.
        error: HostError,
        /// Whether there is a process.
        is_live: bool,
    },
}

/// One look. Whoever is in [`Doubt`] looks again after [`BETWEEN_LOOKS`], and holds no thread up meanwhile.
pub(super) fn observe(line: &Connection, vm: VmId) -> Result<Looked> {
    let domain = vms::lookup(line, vm)?;
    match look(&domain, vm) {
        Err(error) if may_be_passing(&error) => {
            let is_live = vms::is_active(&domain, vm)?;
            Ok(Looked::InDoubt { error, is_live })
        }
        seen => seen.map(|view| Looked::Seen(Box::new(view))),
    }
}

/// See [`crate::host::Hypervisor::written_image`].
pub(super) fn written_image(line: &Connection, vm: VmId, target: &DiskTarget) -> Result<WrittenImage> {
    let domain = vms::lookup(line, vm)?;
    let (written, process) = if vms::is_active(&domain, vm)? {
        let description = Description::read(&vms::xml(&domain, vm, 0)?)?;
        let alias = description.disk(target).and_then(|disk| disk.alias.clone());
        let devices = monitor::block_devices(&domain, vm)?;
        let written = alias.and_then(|alias| active_image(&alias, &devices)).map(|(path, _)| path);
        (written, Some(monitor::process(&domain, vm)?))
    } else {
        (None, None)
    };
    let stored = if domain.is_persistent().map_err(on_vm(vm, "describe the VM"))? {
        let description = Description::read(&vms::xml(&domain, vm, sys::VIR_DOMAIN_XML_INACTIVE)?)?;
        let active = description.disk(target).and_then(|disk| disk.active());
        active.map(|active| ImageRef { path: active.path.clone(), format: active.format })
    } else {
        None
    };
    Ok(WrittenImage { live: written, stored, process })
}

/// See [`crate::host::Hypervisor::written_images`].
pub(super) fn written_images(line: &Connection, vm: VmId) -> Result<Vec<LiveImage>> {
    let domain = vms::lookup(line, vm)?;
    let description = Description::read(&vms::xml(&domain, vm, 0)?)?;
    // A guest may stand still meanwhile: whether there is a process is asked only where none answers.
    let devices = match monitor::block_devices(&domain, vm) {
        Ok(devices) => devices,
        Err(_) if !vms::is_active(&domain, vm)? => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let written = description.disks.iter().filter_map(|disk| {
        let (path, virtual_size) = active_image(disk.alias.as_deref()?, &devices)?;
        Some(LiveImage { disk: disk.target.clone(), path, virtual_size })
    });
    Ok(written.collect())
}

/// The accounts are taken one after the other, and a block job can end in between. So a disagreement counts only when
/// looks in a row tell the same one; another one means that things still move.
#[derive(Debug, Default)]
pub(super) struct Doubt {
    last: String,
    in_a_row: usize,
    looks: usize,
}

impl Doubt {
    /// Looks in a row at a live VM. On a busy node, libvirt notes a pivot a second after QEMU made it.
    const LIVE: usize = 12;
    /// Looks in a row at a VM that is off: it may have stopped while it was looked at, and nothing else moves.
    const OFF: usize = 2;
    /// Looks after which the last word counts, whatever it is.
    const MOST: usize = 60;

    pub(super) fn is_settled_by(&mut self, error: &HostError, is_live: bool) -> bool {
        // The paths that disagree are in the causes.
        let told = format!("{error}: {}", causes(error).join(": "));
        self.in_a_row = if told == self.last { self.in_a_row + 1 } else { 1 };
        self.last = told;
        self.looks += 1;
        let enough = if is_live { Self::LIVE } else { Self::OFF };
        self.in_a_row >= enough || self.looks >= Self::MOST
    }
}

/// Whether an error may come from looking while things change: a disk that pivots, a VM that stops.
fn may_be_passing(error: &HostError) -> bool {
    matches!(
        error,
        HostError::Disagreement(_)
            | HostError::Malformed { .. }
            | HostError::BadImage { .. }
            | HostError::NoSuchImage(_)
            | HostError::Refused { .. }
    )
}

fn look(domain: &Domain, vm: VmId) -> Result<VmView> {
    let run_state = vms::state(domain, vm)?;
    let is_active = vms::is_active(domain, vm)?;
    let is_persistent = domain.is_persistent().map_err(on_vm(vm, "describe the VM"))?;
    let stored = if is_persistent {
        Some(Description::read(&vms::xml(domain, vm, sys::VIR_DOMAIN_XML_INACTIVE)?)?)
    } else {
        None
    };
    let live = if is_active { Some(Description::read(&vms::xml(domain, vm, 0)?)?) } else { None };
    let description = live.as_ref().or(stored.as_ref()).ok_or(HostError::NoSuchVm(vm))?;
    let (qemu, pull_blocker) = match run_state {
        RunState::Running | RunState::Paused(_) => {
            (Some(monitor::block_devices(domain, vm)?), monitor::version(domain, vm)?.pull_blocker())
        }
        // Its monitor may be gone already.
        RunState::Unsettled | RunState::Off | RunState::Migrated => (None, None),
    };
    let jobs = if qemu.is_some() { jobs_of(domain, vm, description)? } else { Vec::new() };
    let disks = description.disks.iter().map(|disk| {
        let stored = stored.as_ref().and_then(|stored| stored.disk(&disk.target));
        disk_view(disk, stored, qemu.as_deref(), &jobs)
    });
    let disks = disks.collect::<Result<Vec<DiskView>>>()?;
    let others = || live.iter().chain(&stored).flat_map(|named| others(named, &disks));
    let other_variables = stored.iter().filter_map(|stored| stored.variables.as_ref());
    let other_variables = other_variables.map(|file| file.path.clone());
    Ok(VmView {
        id: vm,
        attachment: Attachment::Attached,
        name: vms::name(domain, vm)?,
        run_state,
        full_disks: vms::full_disks(domain, vm, run_state),
        persistent: is_persistent,
        has_managed_save: domain.has_managed_save(0).map_err(on_vm(vm, "describe the VM"))?,
        agent: if is_active { description.agent } else { at_rest(description.agent) },
        memory_bytes: description.memory_bytes,
        memory_blocker: description.memory_blocker.clone(),
        pull_blocker,
        variables: description.variables.clone(),
        uncovered: description.uncovered.clone(),
        snapshots_elsewhere: vms::snapshots(domain, vm)?,
        other_files: others().flat_map(|disk| disk.files.clone()).chain(other_variables).collect(),
        unnamed_disks: others().filter(|disk| disk.is_unnamed).map(|disk| disk.target.clone()).collect(),
        disks,
    })
}

/// Disks of a definition whose files a view does not show as a chain.
fn others<'a>(named: &'a Description, shown: &[DiskView]) -> impl Iterator<Item = &'a DescribedDisk> {
    let is_shown = |disk: &DescribedDisk| {
        let shown = shown.iter().find(|shown| shown.target == disk.target);
        disk.active().is_some() && shown.is_some_and(|shown| matches!(shown.source, DiskSource::Chain { .. }))
    };
    named.disks.iter().filter(move |disk| !is_shown(disk))
}

/// A definition says nothing about whether somebody is at the other end.
fn at_rest(agent: AgentChannel) -> AgentChannel {
    match agent {
        AgentChannel::Absent => AgentChannel::Absent,
        AgentChannel::Connected | AgentChannel::Disconnected => AgentChannel::Disconnected,
    }
}

fn disk_view(
    disk: &DescribedDisk,
    stored: Option<&DescribedDisk>,
    qemu: Option<&[BlockDevice]>,
    jobs: &[(DiskTarget, BlockJob)],
) -> Result<DiskView> {
    Ok(DiskView {
        target: disk.target.clone(),
        source: source(disk, stored, qemu)?,
        block_job: jobs.iter().find(|(target, _)| *target == disk.target).map(|(_, job)| *job),
    })
}

fn source(
    disk: &DescribedDisk,
    stored: Option<&DescribedDisk>,
    qemu: Option<&[BlockDevice]>,
) -> Result<DiskSource> {
    let (images, is_complete) = match &disk.source {
        DescribedSource::Excluded(excluded) => return Ok(DiskSource::Excluded(*excluded)),
        DescribedSource::Refused(refused) => return Ok(DiskSource::Refused(refused.clone())),
        DescribedSource::Chain { images, is_complete } => (images.clone(), *is_complete),
    };
    if let Some(devices) = qemu {
        let is_same = |one: &Path, other: &Path| HostFiles.is_same(one, other);
        check_agreement(&disk.target, disk.alias.as_deref(), &images, devices, is_same)?;
    }
    let mut named =
        stored.map(DescribedDisk::images).unwrap_or_default().iter().map(|image| image.path.clone());
    let (persistent, persistent_below): (Option<PathBuf>, _) = (named.next(), named.collect());
    Ok(match follow(images, is_complete, &HostFiles)? {
        Ok(images) => DiskSource::Chain { images, persistent, persistent_below },
        Err(refused) => DiskSource::Refused(refused),
    })
}

/// The files of this node.
struct HostFiles;

impl ImageFiles for HostFiles {
    fn header(&self, path: &Path) -> Result<qcow2::Header> {
        qcow2::read_header(&open_image(path)?).map_err(|error| error.at(path))
    }

    fn is_same(&self, one: &Path, other: &Path) -> bool {
        match (one.metadata(), other.metadata()) {
            (Ok(one), Ok(other)) => (one.dev(), one.ino()) == (other.dev(), other.ino()),
            (Err(_), _) | (_, Err(_)) => false,
        }
    }

    fn is_block_device(&self, path: &Path) -> bool {
        path.metadata().is_ok_and(|metadata| metadata.file_type().is_block_device())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Looks until a disagreement counts, when the looks tell these images in turn, again and again.
    #[track_caller]
    fn check(images: &[&str], is_live: bool, expected: usize) {
        let mut doubt = Doubt::default();
        let mut told = images.iter().cycle().map(|image| HostError::NoSuchImage(image.into()));
        let mut is_settled = |_| doubt.is_settled_by(&told.next().unwrap(), is_live);
        assert_eq!((1..=Doubt::MOST).find(|look| is_settled(*look)), Some(expected));
    }

    #[test]
    fn a_disagreement_counts_when_it_stays_the_same() {
        check(&["/i/a"], false, Doubt::OFF);
        check(&["/i/a"], true, Doubt::LIVE);
        check(&["/i/a", "/i/b"], true, Doubt::MOST);
        check(&["/i/a", "/i/b", "/i/b"], false, 3);
    }
}
