//! Names of files: given, taken over, listed. Every function here blocks.
//!
//! Decides that a name is never taken from a file by mistake: only [`replace`] takes one, and then owner and mode with it,
//! because whoever opens the name expects those. Must never know a format.

use std::fs::{File, read_dir};
use std::os::unix::fs::{MetadataExt, fchown};
use std::path::{Path, PathBuf};

use nix::fcntl::{AtFlags, OFlag, RenameFlags, openat, renameat2};
use nix::sys::stat::{Mode, SFlag, fchmod, fstatat};
use nix::unistd::linkat;

use super::files::{bad, directory_of, failed, failed_errno, sync_directory};
use crate::host::Result;
use crate::host::paths::plain;

/// Gives a file another name, if no file has that.
pub(super) fn publish(from: &Path, to: &Path) -> Result<()> {
    let ((old_directory, old), (new_directory, new)) = (directory_of(from)?, directory_of(to)?);
    renameat2(&old_directory, old, &new_directory, new, RenameFlags::RENAME_NOREPLACE)
        .map_err(failed_errno("give a file the name", to))?;
    sync_directory(new_directory, to)?;
    sync_directory(old_directory, from)
}

/// Gives a regular file a second name, if no file has that.
pub(super) fn hard_link(from: &Path, to: &Path) -> Result<()> {
    let ((old_directory, old), (new_directory, new)) = (directory_of(from)?, directory_of(to)?);
    let found =
        fstatat(&old_directory, old, AtFlags::AT_SYMLINK_NOFOLLOW).map_err(failed_errno("look at", from))?;
    check_regular(from, found.st_mode)?;
    linkat(&old_directory, old, &new_directory, new, AtFlags::empty())
        .map_err(failed_errno("give a file the name", to))?;
    sync_directory(new_directory, to)
}

/// Lets a file take the name, the owner and the mode of another one.
pub(super) fn replace(from: &Path, to: &Path) -> Result<()> {
    let ((old_directory, old), (new_directory, new)) = (directory_of(from)?, directory_of(to)?);
    let replaced =
        fstatat(&new_directory, new, AtFlags::AT_SYMLINK_NOFOLLOW).map_err(failed_errno("look at", to))?;
    check_regular(to, replaced.st_mode)?;
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let file = openat(&old_directory, old, flags, Mode::empty()).map_err(failed_errno("open", from))?;
    let file = File::from(file);
    check_regular(from, file.metadata().map_err(failed("look at", from))?.mode())?;
    fchown(&file, Some(replaced.st_uid), Some(replaced.st_gid)).map_err(failed("give away", from))?;
    // After the owner: a change of owner takes bits away.
    fchmod(&file, Mode::from_bits_truncate(replaced.st_mode))
        .map_err(failed_errno("give a mode to", from))?;
    file.sync_all().map_err(failed("sync", from))?;
    renameat2(&old_directory, old, &new_directory, new, RenameFlags::empty())
        .map_err(failed_errno("give a file the name", to))?;
    sync_directory(new_directory, to)?;
    sync_directory(old_directory, from)
}

/// The regular files that lie directly in a directory.
pub(super) fn list(directory: &Path) -> Result<Vec<PathBuf>> {
    plain(directory)?;
    let mut files = Vec::new();
    for entry in read_dir(directory).map_err(failed("list", directory))? {
        let entry = entry.map_err(failed("list", directory))?;
        // One that goes meanwhile, or whose name cannot be handed on, is nobody's volume.
        let is_file = entry.file_type().is_ok_and(|kind| kind.is_file());
        if is_file && plain(&entry.path()).is_ok() {
            files.push(entry.path());
        }
    }
    files.sort();
    Ok(files)
}

fn check_regular(path: &Path, mode: u32) -> Result<()> {
    if SFlag::from_bits_truncate(mode) & SFlag::S_IFMT == SFlag::S_IFREG {
        return Ok(());
    }
    Err(bad(path, "it is not a regular file".to_owned()))
}
