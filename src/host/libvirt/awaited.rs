//! Which captures of memory somebody waits for: whoever does holds a lock on the image, for as long as it lives.
//!
//! Decides whose a capture is, by that lock alone (`flock`): it goes with the process. Leaves to `background` what is done about
//! those that nobody waits for.

use std::collections::HashMap;
use std::fs::File;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use crate::host::images::open_ours;
use crate::host::{HostError, Result};
use crate::model::VmId;

/// Those that this process waits for.
#[derive(Default)]
pub(super) struct Awaited(Mutex<HashMap<VmId, Flock<File>>>);

impl Awaited {
    /// From now on this process waits for a capture into `image`. False if another one does.
    pub(super) fn wait_for(&self, vm: VmId, image: &Path) -> Result<bool> {
        self.wait_no_more(vm);
        let Some(lock) = lock(image)? else { return Ok(false) };
        self.locks().insert(vm, lock);
        Ok(true)
    }

    /// It has ended.
    pub(super) fn wait_no_more(&self, vm: VmId) {
        self.locks().remove(&vm);
    }

    /// Whether another process, which lives, waits for the VM's capture, into one of these images.
    pub(super) fn by_others<'a>(&self, vm: VmId, mut images: impl Iterator<Item = &'a Path>) -> bool {
        // What cannot be locked for another reason, as its file is gone, nobody can make use of either.
        !self.locks().contains_key(&vm) && images.any(|image| matches!(lock(image), Ok(None)))
    }

    fn locks(&self) -> MutexGuard<'_, HashMap<VmId, Flock<File>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// None if somebody else has it. For writing: without that NFS gives no lock that is exclusive.
fn lock(image: &Path) -> Result<Option<Flock<File>>> {
    match Flock::lock(open_ours(image)?, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(Some(lock)),
        Err((_, Errno::EWOULDBLOCK)) => Ok(None),
        Err((_, error)) => Err(HostError::Io { action: "lock", path: image.to_owned(), cause: error.into() }),
    }
}
