//! A file system that fills up: so large as a test says, and larger when it says so.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::images::run;
use super::scratch::Scratch;

/// A file system of its own. It goes with the value.
pub struct SmallFileSystem {
    directory: PathBuf,
    _scratch: Scratch,
}

impl SmallFileSystem {
    /// An empty one.
    #[track_caller]
    pub fn new(mib: u64) -> Self {
        let mut scratch = Scratch::new();
        let directory = scratch.join("small");
        fs::create_dir(&directory).expect("the directory is ours");
        scratch.owns_mount(&directory);
        let size = format!("size={mib}m");
        run(Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(&directory));
        fs::set_permissions(&directory, Permissions::from_mode(0o711)).expect("the directory is ours");
        Self { directory, _scratch: scratch }
    }

    /// Where it is mounted.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Makes it so large.
    #[track_caller]
    pub fn resize(&self, mib: u64) {
        let size = format!("remount,size={mib}m");
        run(Command::new("mount").args(["-o", &size]).arg(&self.directory));
    }
}
