//! Files on both disks of a guest, told by their names: which are there says what a disk holds.

use super::guest::Guest;

const DISKS: [&str; 2] = ["vda", "vdb"];

/// Writes a file on each disk, which is on it when this returns.
pub fn write(guest: &Guest, name: &str) {
    for disk in DISKS {
        guest.write_file(&path(disk, name), name.as_bytes());
    }
}

/// Exactly these files are on both disks, with what was written into them.
#[track_caller]
pub fn assert_files(guest: &Guest, there: &[&str], gone: &[&str]) {
    for disk in DISKS {
        for name in there {
            let content = guest.read_file(&path(disk, name));
            assert_eq!(content.as_deref(), Some(name.as_bytes()), "{name} on {disk}");
        }
        for name in gone {
            assert!(!guest.has_file(&path(disk, name)), "{name} is still on {disk}");
        }
    }
}

fn path(disk: &str, name: &str) -> String {
    format!("/mnt/{disk}/{name}")
}
