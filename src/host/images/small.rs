//! Small files that are ours alone: written whole or not at all, and read. Every function here blocks.
//!
//! Decides that whoever reads finds the old content or the new one, whatever happens between. Must never know what is in
//! them.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

use nix::fcntl::{OFlag, openat, renameat};
use nix::sys::stat::Mode;

use super::files::{bad, directory_of, failed, failed_errno, remove, sync_directory};
use crate::host::{HostError, Result, unfinished};
use crate::model::step::DoomedImage;

/// Lets a file of 0600 hold this. `is_wanted` is asked at the last moment: whoever has given up waiting may have gone on,
/// and written something newer.
pub(super) fn write(path: &Path, content: &[u8], is_wanted: impl Fn() -> bool) -> Result<()> {
    let made = unfinished(path);
    let debris = DoomedImage { path: made.clone(), identity: None };
    remove(&debris)?;
    let written = fill(&made, content)
        .and_then(|()| if is_wanted() { take_name(&made, path) } else { Err(given_up(path)) });
    if written.is_err() {
        let removed = remove(&debris);
        tracing::debug!(path = %path.display(), ?removed, "a small file was not written");
    }
    written
}

/// What a file holds: at most `limit` bytes.
pub(super) fn read(path: &Path, limit: usize) -> Result<Vec<u8>> {
    let (directory, name) = directory_of(path)?;
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let file = openat(&directory, name, flags, Mode::empty()).map_err(failed_errno("open", path))?;
    let file = File::from(file);
    if !file.metadata().map_err(failed("look at", path))?.is_file() {
        return Err(bad(path, "it is not a regular file".to_owned()));
    }
    let mut content = Vec::new();
    file.take(limit as u64 + 1).read_to_end(&mut content).map_err(failed("read", path))?;
    if content.len() > limit {
        return Err(bad(path, format!("it has more than {limit} bytes")));
    }
    Ok(content)
}

fn fill(path: &Path, content: &[u8]) -> Result<()> {
    let (directory, name) = directory_of(path)?;
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let mode = Mode::S_IRUSR | Mode::S_IWUSR;
    let mut file = File::from(openat(&directory, name, flags, mode).map_err(failed_errno("create", path))?);
    file.write_all(content).map_err(failed("write", path))?;
    file.sync_all().map_err(failed("sync", path))
}

fn take_name(from: &Path, to: &Path) -> Result<()> {
    let ((directory, old), (_, new)) = (directory_of(from)?, directory_of(to)?);
    renameat(&directory, old, &directory, new).map_err(failed_errno("give a file the name", to))?;
    sync_directory(directory, to)
}

fn given_up(path: &Path) -> HostError {
    let cause = std::io::Error::from(std::io::ErrorKind::TimedOut);
    HostError::Io { action: "write", path: path.to_owned(), cause }
}
