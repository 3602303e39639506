//! One daemon per state directory. The lock goes with the process, however it ends.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// A daemon that was killed just as it started a program has left a child that has the lock until it becomes that program.
const PATIENCE: Duration = Duration::from_secs(1);
/// Nobody tells when a lock is let go.
const BETWEEN_LOOKS: Duration = Duration::from_millis(20);

/// Takes the directory for this process. `Ok(None)` if another one has it. Keep the file open. Blocks for a moment: to be
/// called before anything else runs.
pub(super) fn take(directory: &Path) -> io::Result<Option<File>> {
    let path = directory.join("lock");
    let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path)?;
    let begun = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(Some(file)),
            Err(TryLockError::WouldBlock) if begun.elapsed() < PATIENCE => sleep(BETWEEN_LOOKS),
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => return Err(error),
        }
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

    #[test]
    fn one_that_lets_go_in_a_moment_is_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let first = take(directory.path()).unwrap();
        std::thread::scope(|scope| {
            let second = scope.spawn(|| take(directory.path()).unwrap());
            let lock = directory.path().join("lock");
            let is_open = |entry: &io::Result<std::fs::DirEntry>| {
                let file = entry.as_ref().ok().and_then(|entry| std::fs::read_link(entry.path()).ok());
                file.is_some_and(|file| file == lock)
            };
            while std::fs::read_dir("/proc/self/fd").unwrap().filter(|entry| is_open(entry)).count() < 2 {
                std::thread::yield_now();
            }
            drop(first);
            assert!(second.join().unwrap().is_some());
        });
    }
}
