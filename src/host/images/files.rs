//! Single files: looked at, made, removed, made durable. Every function here blocks.
//!
//! Decides which file is opened: never a FIFO, never through a link at the last step, never another one than was
//! meant. Leaves formats to `qcow2`.

use std::ffi::OsStr;
use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, PosixFadviseAdvice, open, openat, posix_fadvise};
use nix::sys::stat::{Mode, SFlag, fstatat};
use nix::sys::statvfs::statvfs;
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::qcow2::{self, HeaderError};
use crate::host::paths::plain;
use crate::host::{HostError, Result};
use crate::model::step::DoomedImage;
use crate::model::vm::{Backing, FileIdentity, Format, LastWritten};
use crate::model::{ImageFacts, Space};

/// Opens an image for reading: a regular file or a block device, never a FIFO that would block, never a terminal. It is looked
/// at before: a guest may have written the name, and to open some devices is to do something (`/dev/watchdog`).
pub fn open_image(path: &Path) -> Result<File> {
    plain(path)?;
    check_kind(path, &path.metadata().map_err(failed("open", path))?)?;
    let flags = OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let opened = OpenOptions::new().read(true).custom_flags(flags.bits()).open(path);
    let file = opened.map_err(|error| failed("open", path)(error))?;
    // It may be another one by now.
    check_kind(path, &file.metadata().map_err(failed("look at", path))?)?;
    Ok(file)
}

/// Opens a file of ours for writing: never through a link at the last step, never a FIFO that would block.
pub(in crate::host) fn open_ours(path: &Path) -> Result<File> {
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    OpenOptions::new().write(true).custom_flags(flags.bits()).open(path).map_err(failed("open", path))
}

fn check_kind(path: &Path, metadata: &Metadata) -> Result<()> {
    let kind = metadata.file_type();
    if kind.is_file() || kind.is_block_device() {
        return Ok(());
    }
    Err(HostError::BadImage {
        path: path.to_owned(),
        problem: "it is neither a file nor a block device".to_owned(),
    })
}

/// What an image says of itself.
pub(super) fn inspect(path: &Path, format: Format) -> Result<ImageFacts> {
    let mut file = open_image(path)?;
    let metadata = file.metadata().map_err(failed("look at", path))?;
    let bytes = size(&mut file, &metadata).map_err(failed("look at", path))?;
    let allocated = if metadata.is_file() { metadata.blocks() * 512 } else { bytes };
    let (virtual_size, backing, pieces) = match format {
        // QEMU rounds up to a sector.
        Format::Raw => (bytes.next_multiple_of(512), None, None),
        Format::Qcow2 => {
            let header = usable_header(&file, path)?;
            (header.virtual_size, backing(&header, path)?, Some(header.pieces))
        }
    };
    let is_link = path.symlink_metadata().map_err(failed("look at", path))?.is_symlink();
    let identity = identity(&metadata);
    Ok(ImageFacts { format, virtual_size, allocated, backing, identity, length: bytes, is_link, pieces })
}

/// When an image was written to last.
pub(super) fn last_written(path: &Path, format: Format) -> Result<LastWritten> {
    let file = open_image(path)?;
    let metadata = file.metadata().map_err(failed("look at", path))?;
    if format == Format::Qcow2 {
        let header = usable_header(&file, path)?;
        if qcow2::is_empty(&file, &header).map_err(|error| error.at(path))? {
            return Ok(LastWritten::Never);
        }
    }
    if !metadata.is_file() {
        return Ok(LastWritten::Untold);
    }
    let time = metadata.modified().map_err(failed("look at", path))?;
    Ok(LastWritten::At { device: metadata.dev(), time })
}

/// The header of a qcow2 image, if the image is one that we handle.
pub(super) fn usable_header(file: &File, path: &Path) -> Result<qcow2::Header> {
    let header = qcow2::read_header(file).map_err(|error| error.at(path))?;
    let problem = if header.is_corrupt {
        "QEMU has marked it as corrupt".to_owned()
    } else if header.has_data_file {
        "its data is in an external file".to_owned()
    } else if let Some(encryption) = header.encryption {
        format!("it is encrypted ({encryption})")
    } else if header.internal_snapshots > 0 {
        "it carries internal snapshots".to_owned()
    } else {
        return Ok(header);
    };
    Err(bad(path, problem))
}

/// The backing file that a header names.
pub(super) fn backing(header: &qcow2::Header, path: &Path) -> Result<Option<Backing>> {
    let Some(name) = &header.backing_name else { return Ok(None) };
    let backing = qcow2::backing_path(path, name)
        .map_err(|refused| bad(path, format!("its header names {refused} as backing file")))?;
    let format = match header.backing_format.as_deref() {
        None => None,
        Some("qcow2") => Some(Format::Qcow2),
        Some("raw" | "file" | "host_device") => Some(Format::Raw),
        Some(other) => return Err(bad(path, format!("its backing file has format {other}"))),
    };
    Ok(Some(Backing { path: backing, format }))
}

/// Makes a file that only its owner may read, and that was not there. Gives it, to be written, and its directory.
pub(super) fn create_new(path: &Path) -> Result<(File, OwnedFd)> {
    let (directory, name) = directory_of(path)?;
    let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_WRONLY;
    let mode = Mode::S_IRUSR | Mode::S_IWUSR;
    let file = openat(&directory, name, flags, mode).map_err(failed_errno("create", path))?;
    Ok((File::from(file), directory))
}

/// Removes a regular file, if it is the one meant. None there is success.
pub(super) fn remove(image: &DoomedImage) -> Result<()> {
    let path = &image.path;
    let (directory, name) = match directory_of(path) {
        Err(HostError::NoSuchImage(_)) => return Ok(()),
        opened => opened?,
    };
    let found = match fstatat(&directory, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Err(Errno::ENOENT) => return Ok(()),
        found => found.map_err(failed_errno("look at", path))?,
    };
    if SFlag::from_bits_truncate(found.st_mode) & SFlag::S_IFMT != SFlag::S_IFREG {
        return Err(bad(path, "it is not a regular file".to_owned()));
    }
    let found = FileIdentity { device: found.st_dev, inode: found.st_ino };
    if image.identity.is_some_and(|meant| meant != found) {
        return Err(bad(path, "another file stands there now".to_owned()));
    }
    match unlinkat(&directory, name, UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => {}
        Err(error) => return Err(failed_errno("remove", path)(error)),
    }
    sync_directory(directory, path)
}

/// Makes a file and its directory entry durable.
pub(super) fn sync(path: &Path) -> Result<()> {
    open_image(path)?.sync_all().map_err(failed("sync", path))?;
    let (directory, _) = directory_of(path)?;
    sync_directory(directory, path)
}

/// See [`crate::host::Images::write_behind`]. Of pages that are not written yet, Linux begins the writing (`generic_fadvise`).
pub(super) fn write_behind(path: &Path) -> Result<()> {
    let file = open_image(path)?;
    posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)
        .map_err(failed_errno("write to the disk", path))
}

/// Bytes that an unprivileged writer finds free.
pub(super) fn free_space(directory: &Path) -> Result<Space> {
    plain(directory)?;
    let found = statvfs(directory).map_err(failed_errno("look for free space in", directory))?;
    let metadata = directory.metadata().map_err(failed("look for free space in", directory))?;
    Ok(Space {
        file_system: metadata.dev(),
        total: found.blocks() * found.fragment_size(),
        free: found.blocks_available() * found.fragment_size(),
    })
}

/// The directory of a file, held open, and the file's name in it.
pub(super) fn directory_of(path: &Path) -> Result<(OwnedFd, &OsStr)> {
    plain(path)?;
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(bad(path, "its path names no file".to_owned()));
    };
    let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_RDONLY;
    let directory =
        open(directory, flags, Mode::empty()).map_err(failed_errno("open the directory of", path))?;
    Ok((directory, name))
}

pub(super) fn sync_directory(directory: OwnedFd, path: &Path) -> Result<()> {
    File::from(directory).sync_all().map_err(failed("sync the directory of", path))
}

fn size(file: &mut File, metadata: &Metadata) -> io::Result<u64> {
    if metadata.is_file() { Ok(metadata.len()) } else { file.seek(SeekFrom::End(0)) }
}

pub(super) fn identity(metadata: &Metadata) -> FileIdentity {
    FileIdentity { device: metadata.dev(), inode: metadata.ino() }
}

/// An error of the file system in our words.
pub(super) fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> HostError {
    let path = path.to_owned();
    move |cause| match cause.kind() {
        io::ErrorKind::NotFound => HostError::NoSuchImage(path),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => HostError::NoSpace(path),
        _ => HostError::Io { action, path, cause },
    }
}

/// As [`failed`], of a system call.
pub(super) fn failed_errno(action: &'static str, path: &Path) -> impl FnOnce(Errno) -> HostError {
    let failed = failed(action, path);
    move |errno| failed(errno.into())
}

pub(super) fn bad(path: &Path, problem: String) -> HostError {
    HostError::BadImage { path: path.to_owned(), problem }
}

impl HeaderError {
    /// This error, of the image at `path`.
    pub(in crate::host) fn at(self, path: &Path) -> HostError {
        match self {
            Self::Io(cause) => failed("read", path)(cause),
            Self::Truncated
            | Self::NotQcow2
            | Self::Version(_)
            | Self::UnknownFeatures(_)
            | Self::Damaged(_) => bad(path, self.to_string()),
        }
    }
}
