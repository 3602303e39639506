//! Small files copied byte for byte: the variables of UEFI firmware. Every function here blocks.
//!
//! Decides what counts as one state of a file that a VM may be writing to, and who owns a new file. Must never know a
//! format.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, fchown};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;

use super::files::{bad, directory_of, failed, failed_errno, open_image, sync_directory};
use crate::host::Result;

/// The largest file that is taken: the flash of QEMU's Arm machines, the largest there is, has 64 MiB.
const LARGEST: u64 = 64 << 20;

/// How often a file is read until two readings in a row are the same. Firmware writes seldom.
const READINGS: usize = 8;

/// Lets `to` hold what `from` holds.
pub(super) fn copy(from: &Path, to: &Path) -> Result<()> {
    let mut source = open_image(from)?;
    let content = settled(&mut source, from)?;
    let mut target = open_target(&source, from, to)?;
    target.write_all(&content).map_err(failed("write", to))?;
    target.set_len(content.len() as u64).map_err(failed("write", to))?;
    target.sync_all().map_err(failed("sync", to))?;
    sync_directory(directory_of(to)?.0, to)
}

/// One state of the file: firmware writes it in several pieces, of which a single reading could catch some.
fn settled(file: &mut File, path: &Path) -> Result<Vec<u8>> {
    let mut last = read(file, path)?;
    for _ in 0..READINGS {
        let again = read(file, path)?;
        if again == last {
            return Ok(last);
        }
        last = again;
    }
    Err(bad(path, "it changes while it is read".to_owned()))
}

fn read(file: &mut File, path: &Path) -> Result<Vec<u8>> {
    file.seek(SeekFrom::Start(0)).map_err(failed("read", path))?;
    let mut content = Vec::new();
    file.take(LARGEST + 1).read_to_end(&mut content).map_err(failed("read", path))?;
    if content.len() as u64 > LARGEST {
        return Err(bad(path, format!("it has more than {LARGEST} bytes")));
    }
    Ok(content)
}

/// The file at `to`, made for the owner of `source` if it was not there: QEMU may have to open it, as another user.
fn open_target(source: &File, from: &Path, to: &Path) -> Result<File> {
    let (directory, name) = directory_of(to)?;
    let flags = OFlag::O_WRONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let existing = match openat(&directory, name, flags, Mode::empty()) {
        Ok(file) => File::from(file),
        Err(Errno::ENOENT) => {
            let owner = source.metadata().map_err(failed("look at", from))?;
            let new = flags | OFlag::O_CREAT | OFlag::O_EXCL;
            let mode = Mode::from_bits_truncate(owner.mode() & 0o666);
            let file = File::from(openat(&directory, name, new, mode).map_err(failed_errno("create", to))?);
            fchown(&file, Some(owner.uid()), Some(owner.gid())).map_err(failed("give away", to))?;
            return Ok(file);
        }
        Err(error) => return Err(failed_errno("open", to)(error)),
    };
    if existing.metadata().map_err(failed("look at", to))?.is_file() {
        return Ok(existing);
    }
    Err(bad(to, "it is not a regular file".to_owned()))
}
