//! Which captures of memory somebody waits for: whoever does holds a lock on the image, for as long as it lives.
//!
//! Decides whose a capture is, by that lock alone (`flock`): it goes with the process. So does what compresses the memory on its
//! way. Leaves to `background` what is done about those that nobody waits for.

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use super::requests::Requests;
use crate::host::images::{Compressed, Compression, open_ours};
use crate::host::{HostError, Result};
use crate::model::VmId;

/// Those that this process waits for.
#[derive(Default)]
pub(super) struct Awaited(Mutex<HashMap<VmId, Wait>>);

struct Wait {
    _lock: Flock<File>,
    image: PathBuf,
    /// What the VM had asked its disks for when it was begun.
    requests: Option<Requests>,
    /// None where QEMU writes to the image itself.
    compression: Option<Compression>,
}

/// Who brings the memory from QEMU to the image.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Carrier {
    /// QEMU itself.
    Qemu,
    /// This process, which is so far.
    Us(Compressed),
    /// Nobody waits for it here.
    Unknown,
}

impl Awaited {
    /// From now on this process waits for a capture into `image`. False if another one does.
    pub(super) fn wait_for(&self, vm: VmId, image: &Path) -> Result<bool> {
        self.wait_no_more(vm);
        let Some(lock) = lock(image)? else { return Ok(false) };
        let image = image.to_owned();
        self.waits().insert(vm, Wait { _lock: lock, image, requests: None, compression: None });
        Ok(true)
    }

    /// Whether this process waits for a capture into `image`.
    pub(super) fn is_for(&self, vm: VmId, image: &Path) -> bool {
        self.waits().get(&vm).is_some_and(|wait| wait.image == image)
    }

    /// So much the VM had asked its disks for before its memory was captured.
    pub(super) fn note_requests(&self, vm: VmId, requests: Requests) {
        if let Some(wait) = self.waits().get_mut(&vm) {
            wait.requests = Some(requests);
        }
    }

    /// What was noted so, if this process waits for a capture into `image`.
    pub(super) fn requests(&self, vm: VmId, image: &Path) -> Option<Requests> {
        self.waits().get(&vm).filter(|wait| wait.image == image).and_then(|wait| wait.requests)
    }

    /// What this process waits for is compressed by it.
    pub(super) fn compress(&self, vm: VmId, compression: Compression) {
        if let Some(wait) = self.waits().get_mut(&vm) {
            wait.compression = Some(compression);
        }
    }

    /// QEMU waits for nobody any more who would compress what it writes. Who brings it to the image stays known.
    pub(super) fn give_up(&self, vm: VmId) {
        if let Some(compression) = self.waits().get(&vm).and_then(|wait| wait.compression.as_ref()) {
            compression.give_up();
        }
    }

    /// Who brings the VM's memory to the image.
    pub(super) fn carrier(&self, vm: VmId) -> Carrier {
        match self.waits().get(&vm) {
            None => Carrier::Unknown,
            Some(Wait { compression: None, .. }) => Carrier::Qemu,
            Some(Wait { compression: Some(compression), .. }) => Carrier::Us(compression.look()),
        }
    }

    /// It has ended.
    pub(super) fn wait_no_more(&self, vm: VmId) {
        // Where the storage hangs its lock is not let go of: nobody else is to wait for that.
        let gone = self.waits().remove(&vm);
        drop(gone);
    }

    /// Whether this process waits for a capture of the VM.
    pub(super) fn by_us(&self, vm: VmId) -> bool {
        self.waits().contains_key(&vm)
    }

    /// Whether another process, which lives, waits for the VM's capture, into one of these images.
    pub(super) fn by_others<'a>(&self, vm: VmId, mut images: impl Iterator<Item = &'a Path>) -> bool {
        // What cannot be locked for another reason, as its file is gone, nobody can make use of either.
        !self.by_us(vm) && images.any(|image| matches!(lock(image), Ok(None)))
    }

    fn waits(&self) -> MutexGuard<'_, HashMap<VmId, Wait>> {
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
