//! The file of the catalog before SQLite looks at it: whether it is one, and whether the log beside it is its own.
//!
//! SQLite follows links, and takes any log that it finds beside a file for the file's own (SQLite documentation, "How To
//! Corrupt An SQLite Database File", 1.4). Somebody who puts a backup in place and leaves the old log would so get neither.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::{Result, StoreError, backup};

/// Where every file of SQLite begins (SQLite documentation, "Database File Format", 1.3).
const MAGIC: &[u8] = b"SQLite format 3\0";

/// Where the header says which version of the format whoever writes and reads must know: 2 is with a log.
const VERSIONS: std::ops::Range<usize> = 18..20;

/// Where it says how large a page is.
const PAGE_SIZE: std::ops::Range<usize> = 16..18;

const HEADER: usize = 100;

/// A catalog is made where there has never been one. Where there are copies of it, somebody has lost it.
pub(super) fn check_not_lost(path: &Path) -> Result<()> {
    let is_there = fs::metadata(path).is_ok_and(|file| file.len() > 0);
    if is_there || has_log(path)? || !backup::are_beside(path) { Ok(()) } else { Err(StoreError::Lost) }
}

/// Refuses what cannot be our file. Changes nothing.
pub(super) fn check(path: &Path) -> Result<()> {
    let log = has_log(path)?;
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found.file_type(),
        // A log without its file: SQLite would remove it, and what is only in there.
        Err(error) if error.kind() == io::ErrorKind::NotFound && log => return Err(StoreError::ForeignLog),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(StoreError::Unreadable(error)),
    };
    if found.is_symlink() {
        return Err(StoreError::NotAFile("a symbolic link"));
    }
    if found.is_dir() {
        return Err(StoreError::NotAFile("a directory"));
    }
    if !found.is_file() {
        return Err(StoreError::NotAFile("no regular file"));
    }
    let mut header = Vec::new();
    let file = File::open(path).map_err(StoreError::Unreadable)?;
    let length = file.metadata().map_err(StoreError::Unreadable)?.len();
    file.take(HEADER as u64).read_to_end(&mut header).map_err(StoreError::Unreadable)?;
    if !header.is_empty() && !header.starts_with(MAGIC) {
        return Err(StoreError::Foreign);
    }
    // A file gets its log only after its header says that it has one; a backup's does not.
    if log && header.get(VERSIONS) != Some(&[2, 2]) {
        return Err(StoreError::ForeignLog);
    }
    // What a crash has cut while the log was written into the file is in the log still.
    if !log && page_size(&header).is_some_and(|size| !length.is_multiple_of(size)) {
        return Err(StoreError::Corrupt("its end is missing".to_owned()));
    }
    Ok(())
}

fn page_size(header: &[u8]) -> Option<u64> {
    match header.get(PAGE_SIZE)? {
        [0, 1] => Some(64 << 10),
        bytes => bytes.try_into().ok().map(u16::from_be_bytes).map(u64::from).filter(|size| *size > 0),
    }
}

fn has_log(path: &Path) -> Result<bool> {
    match fs::metadata(PathBuf::from(format!("{}-wal", path.display()))) {
        Ok(log) => Ok(log.len() > 0),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(StoreError::Unreadable(error)),
    }
}
