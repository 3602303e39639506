//! Who has an image open. Every function here blocks.
//!
//! Decides by QEMU's locks for a file, and by the open descriptors of all processes for a block device: libvirt gives
//! each QEMU a `/dev` of its own, so the device that QEMU locks is another inode than ours, and the lock is invisible.

use std::fs::{File, read_dir, read_to_string};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

use super::files::{failed, failed_errno, open_image};
use crate::host::Result;

/// Where QEMU puts its locks (`RAW_LOCK_PERM_BASE` to beyond `RAW_LOCK_SHARED_BASE` in `block/file-posix.c`): one byte
/// per thing it does with the image, one per thing it lets nobody else do.
const QEMU_LOCKS: Range<libc::off_t> = 100..300;

/// Those of them that only a writer has (`BLK_PERM_WRITE`, `BLK_PERM_WRITE_UNCHANGED`, `BLK_PERM_RESIZE`).
const QEMU_WRITER_LOCKS: Range<libc::off_t> = 101..104;

/// What is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Use {
    /// Whoever has it open.
    Any,
    /// Whoever may write to it.
    Writing,
}

/// Whether QEMU, in any process, has the image open like this; of a block device, whether any other process has.
///
/// Of a VM that is paused and has let go of its images, no lock shows: see `monitor::activate_images`.
pub(super) fn is_used(path: &Path, sought: Use) -> Result<bool> {
    let file = open_image(path)?;
    let metadata = file.metadata().map_err(failed("look at", path))?;
    if metadata.file_type().is_block_device() {
        return is_open_elsewhere(metadata.rdev(), sought).map_err(failed("look for users of", path));
    }
    let locks = match sought {
        Use::Any => QEMU_LOCKS,
        Use::Writing => QEMU_WRITER_LOCKS,
    };
    is_locked(&file, path, &locks)
}

fn is_locked(file: &File, path: &Path, locks: &Range<libc::off_t>) -> Result<bool> {
    // Asks what would stand in the way of an exclusive lock, and takes none.
    let mut lock = libc::flock {
        l_type: lock_type(libc::F_WRLCK),
        l_whence: lock_type(libc::SEEK_SET),
        l_start: locks.start,
        l_len: locks.end - locks.start,
        l_pid: 0,
    };
    fcntl(file, FcntlArg::F_OFD_GETLK(&mut lock)).map_err(failed_errno("look for locks on", path))?;
    Ok(lock.l_type != lock_type(libc::F_UNLCK))
}

fn lock_type(constant: i32) -> libc::c_short {
    libc::c_short::try_from(constant).expect("the kernel's lock constants are small")
}

/// Whether a process other than this one has the device open.
fn is_open_elsewhere(device: u64, sought: Use) -> io::Result<bool> {
    // Where /proc is mounted so that it hides the processes of others, nobody could be seen (proc(5), `hidepid`).
    if !Path::new("/proc/1").exists() {
        return Err(io::Error::other("/proc hides the processes of others: see ProtectProc= and hidepid="));
    }
    for process in read_dir("/proc")? {
        let process = process?;
        let name = process.file_name();
        let Some(id) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        if id == std::process::id() {
            continue;
        }
        match has_open(&process.path(), device, sought) {
            Ok(true) => return Ok(true),
            Ok(false) => {}
            Err(_) if !is_qemu(&process.path()) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(false)
}

fn has_open(process: &Path, device: u64, sought: Use) -> io::Result<bool> {
    for descriptor in read_dir(process.join("fd"))? {
        let descriptor = descriptor?;
        match descriptor.path().metadata() {
            Ok(open) if open.file_type().is_block_device() && open.rdev() == device => {
                let information = process.join("fdinfo").join(descriptor.file_name());
                if sought == Use::Any || may_write(&information) {
                    return Ok(true);
                }
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(false)
}

/// What was closed meanwhile, or cannot be told, may be written to.
fn may_write(information: &Path) -> bool {
    let text = read_to_string(information).unwrap_or_default();
    let flags = text.lines().find_map(|line| line.strip_prefix("flags:"));
    // In octal: proc_pid_fdinfo(5).
    let flags = flags.and_then(|flags| i32::from_str_radix(flags.trim(), 8).ok());
    flags.is_none_or(|flags| flags & libc::O_ACCMODE != libc::O_RDONLY)
}

/// Whether a process is QEMU or one of its tools, by its name. False for one that has ended.
///
/// A service manager, say, may keep even root from looking at its descriptors: it is no user of images. QEMU itself
/// must be looked at, or else nothing is known.
fn is_qemu(process: &Path) -> bool {
    read_to_string(process.join("comm")).is_ok_and(|name| name.starts_with("qemu") || name.starts_with("kvm"))
}
