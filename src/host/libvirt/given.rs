//! Files of ours that a QEMU has while it writes a VM's memory: the image, and the pipe to whoever compresses it.
//!
//! Decides how QEMU gets them: open, by the monitor, so that it is confined as it was; and what they are called there: by the
//! image's name it is known whose capture it is. Leaves to `background` when. Must never touch a file that libvirt gave it.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use virt::domain::Domain;

use super::ffi;
use super::monitor::{self, Custom, query, tell};
use super::refusal::on_vm;
use crate::host::images::{open_image, open_ours};
use crate::host::paths::plain;
use crate::host::{HostError, Result};
use crate::model::VmId;
use crate::model::vm::MemoryFormat;

/// The set of files that ours is in, of each QEMU. libvirt counts its own from zero.
const FILE_SET: u32 = 0x7673_6e70;

/// The name of our pipe in QEMU. One of an earlier capture goes when another comes.
const PIPE: Named = Named { fdname: "vmsnap-memory" };

/// Gives it an image (QMP `add-fd`). For writing only, if it writes to it: QEMU takes the file of the set whose access mode is
/// the one that it needs. Else for the name alone, and for reading: to close a file that may be written to lets NFS bring all to
/// the disk that anybody has written to it, and the guest waits for that.
pub(super) fn give(domain: &Domain, vm: VmId, image: &Path, format: MemoryFormat) -> Result<()> {
    let name = plain(image)?;
    let file = match format {
        MemoryFormat::Raw => open_ours(image)?,
        MemoryFormat::Zstd => open_image(image)?,
    };
    let added = AddFile { fdset_id: FILE_SET, opaque: name.to_owned() };
    tell_with_file(domain, vm, &Custom { execute: "add-fd", arguments: added }, file.as_fd())
}

/// Where it finds the image.
pub(super) fn place() -> String {
    format!("/dev/fdset/{FILE_SET}")
}

/// The images that it has of us (QMP `query-fdsets`): one at most, or something went wrong.
pub(super) fn images(domain: &Domain, vm: VmId) -> Result<Vec<PathBuf>> {
    let sets: Vec<FileSet> = query(domain, vm, "query-fdsets")?;
    let ours = sets.into_iter().filter(|set| set.id == FILE_SET);
    // One without a name is none of a capture, and is taken back like the others.
    Ok(ours.flat_map(|set| set.files).map(|file| file.opaque.unwrap_or_default().into()).collect())
}

/// It has no image any more (QMP `remove-fd`).
pub(super) fn take_back(domain: &Domain, vm: VmId) -> Result<()> {
    tell(domain, vm, "remove-fd", RemoveFile { fdset_id: FILE_SET })
}

/// Gives it the end of a pipe that it writes to (QMP `getfd`). Where it finds it.
pub(super) fn give_pipe(domain: &Domain, vm: VmId, sink: BorrowedFd<'_>) -> Result<String> {
    tell_with_file(domain, vm, &Custom { execute: "getfd", arguments: PIPE }, sink)?;
    Ok(format!("fd:{}", PIPE.fdname))
}

/// It has no pipe any more (QMP `closefd`), or has had none: a migration takes it.
pub(super) fn take_pipe_back(domain: &Domain, vm: VmId) {
    let _ = tell(domain, vm, "closefd", PIPE);
}

fn tell_with_file(domain: &Domain, vm: VmId, command: &impl Serialize, file: BorrowedFd<'_>) -> Result<()> {
    let command = CString::new(monitor::spell(command)?)
        .map_err(|error| HostError::Malformed { what: "a command to QEMU", cause: error.into() })?;
    let answer = ffi::monitor_command_with_file(domain, &command, file);
    monitor::read::<serde_json::Value>(&answer.map_err(on_vm(vm, "give QEMU a file"))?).map(drop)
}

/// A file that QEMU has under a name until it takes it.
#[derive(Debug, Clone, Copy, Serialize)]
struct Named {
    fdname: &'static str,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct AddFile {
    fdset_id: u32,
    opaque: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct RemoveFile {
    fdset_id: u32,
}

#[derive(Debug, Deserialize)]
struct FileSet {
    #[serde(rename = "fdset-id")]
    id: u32,
    #[serde(rename = "fds")]
    files: Vec<GivenFile>,
}

#[derive(Debug, Deserialize)]
struct GivenFile {
    opaque: Option<String>,
}
