//! One daemon per state directory. The lock goes with the process, however it ends.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Takes the directory for this process. `Ok(None)` if another one has it. Keep the file open.
pub(super) fn take(directory: &Path) -> io::Result<Option<File>> {
    let path = directory.join("lock");
    let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path)?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_is_refused_until_the_first_is_gone() {
        let directory = tempfile::tempdir().unwrap();
        let first = take(directory.path()).unwrap();
        assert!(first.is_some());
        assert!(take(directory.path()).unwrap().is_none());
        drop(first);
        assert!(take(directory.path()).unwrap().is_some());
    }
}
