//! What must be so: which files a guest's disks hold now, and what each snapshot and clone of it holds. The daemon is
//! asked for nothing here but what came of a request.

use std::collections::BTreeMap;
use std::path::PathBuf;

use sha2::{Digest, Sha256};

/// The disks of a guest.
pub const DISKS: [&str; 2] = ["vda", "vdb"];
/// Files on each.
pub const FILES: usize = 4;

/// What a guest's disks hold: what was written, and had reached the disk.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Content {
    /// By disk and file, the version.
    pub files: BTreeMap<(&'static str, usize), u64>,
    /// By disk, a number that its writer had reached.
    pub written: BTreeMap<&'static str, u64>,
}

impl Content {
    /// One disk holds again what it did then.
    pub fn take_back(&mut self, disk: &str, then: &Self) {
        let then = then.of_disk(disk);
        self.files.retain(|(on, _), _| *on != disk);
        self.files.extend(then.files);
        self.written.retain(|on, _| *on != disk);
        self.written.extend(then.written);
    }

    /// Only one disk of it.
    pub fn of_disk(&self, disk: &str) -> Self {
        Self {
            files: self.files.iter().filter(|((on, _), _)| *on == disk).map(|(k, v)| (*k, *v)).collect(),
            written: self.written.iter().filter(|(on, _)| **on == disk).map(|(k, v)| (*k, *v)).collect(),
        }
    }
}

/// A snapshot.
#[derive(Debug, Clone)]
pub struct Held {
    pub id: String,
    pub disks: Vec<&'static str>,
    pub content: Content,
    /// With memory: the token of the program that lives in it.
    pub token: Option<String>,
    /// The digest of its memory image, once that was read for the first time.
    pub memory: Option<String>,
    /// By disk, the digest of what is read. Empty until it was read for the first time.
    pub digests: BTreeMap<&'static str, String>,
    /// Of one disk only: a VM is not brought back to it.
    pub is_of_volume: bool,
}

/// A clone that no VM has.
#[derive(Debug, Clone)]
pub struct Copied {
    pub path: PathBuf,
    pub content: Content,
    pub digest: Option<String>,
}

/// All that is known of a guest.
#[derive(Debug, Clone, Default)]
pub struct Truth {
    pub now: Content,
    pub snapshots: BTreeMap<String, Held>,
    pub clones: BTreeMap<String, Copied>,
    /// Counts what was ever written, so that no content comes twice.
    pub versions: u64,
    /// Counts names.
    pub names: u64,
}

impl Truth {
    pub fn next_name(&mut self, kind: &str) -> String {
        self.names += 1;
        format!("{kind}-{}", self.names)
    }
}

/// Where a file is in the guest, from /mnt.
pub fn path(disk: &str, file: usize) -> String {
    format!("{disk}/f{file}")
}

fn line(vm: &str, disk: &str, file: usize, version: u64) -> String {
    format!("{vm} {disk} f{file} version {version}")
}

fn length(version: u64) -> usize {
    4096 + usize::try_from(version % 7).expect("it is below seven") * 9973
}

/// A script that writes a version of a file.
pub fn script(vm: &str, disk: &str, file: usize, version: u64) -> String {
    let (line, path, length) = (line(vm, disk, file, version), path(disk, file), length(version));
    format!("yes '{line}' | head -c {length} > /mnt/{path}")
}

/// The SHA-256 of a version of a file.
pub fn digest(vm: &str, disk: &str, file: usize, version: u64) -> String {
    let line = line(vm, disk, file, version) + "\n";
    let content: Vec<u8> = line.bytes().cycle().take(length(version)).collect();
    hex(&content)
}

/// The SHA-256 of bytes.
pub fn hex(bytes: &[u8]) -> String {
    format!("{:x}", Sha256::digest(bytes))
}
