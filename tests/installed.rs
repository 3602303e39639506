//! What is installed: a client that needs no libvirt, and a unit that keeps what is promised of it.

#![allow(clippy::disallowed_methods, reason = "tests run programs: they are the outside")]

use std::fs;
use std::process::Command;

/// What a program that links libvirt names in its dynamic string table.
const LIBVIRT: &[u8] = b"libvirt.so";

const UNIT: &str = "systemd/vmsnapd.service";
/// In tenths, as `systemd-analyze security` has it: the more the worse.
const EXPOSED: &str = "25";

fn names_libvirt(program: &str) -> bool {
    let bytes = fs::read(program).expect("cargo built the program");
    bytes.windows(LIBVIRT.len()).any(|window| window == LIBVIRT)
}

/// The client runs on an operator's laptop, where there is no libvirt: it must not ask the loader for it.
#[test]
fn the_client_links_no_libvirt() {
    assert!(!names_libvirt(env!("CARGO_BIN_EXE_vmsnap")));
}

fn settings(unit: &str) -> Vec<(&str, &str)> {
    unit.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split_once('=')).collect()
}

#[test]
fn the_unit_keeps_what_is_promised() {
    let unit = fs::read_to_string(UNIT).expect("it is in the tree");
    let settings = settings(&unit);
    let has =
        |key: &str, word: &str| settings.iter().any(|(name, value)| *name == key && value.contains(word));
    let check = |key, word, why| assert!(has(key, word), "no {key}={word}: {why}");
    check("ExecStopPost", "/usr/bin/vmsnapd thaw", "a guest stays frozen when the daemon has died");
    check("StartLimitIntervalSec", "0", "systemd gives up while the disk is full");
    check("Restart", "on-failure", "nobody starts it again");
    check("KillMode", "mixed", "its qemu-img processes are ended while it drains");
    check("ReadWritePaths", "/var/lib/libvirt/images", "no overlay can be made");
    check("ReadWritePaths", "/var/lib/libvirt/qemu/nvram", "no UEFI variables are brought back");
    check("CapabilityBoundingSet", "CAP_SYS_PTRACE", "who has a block device open is not seen");
    check("CapabilityBoundingSet", "CAP_CHOWN", "QEMU cannot open what is made for it");
    // These hide what it has to see: processes, whoever is at the other end of the socket, block devices.
    for key in ["ProtectProc", "ProcSubset", "PrivateUsers", "PrivateDevices"] {
        assert!(settings.iter().all(|(name, _)| *name != key), "{key}=");
    }
}

/// Where systemd is installed, it says itself how exposed the unit is.
#[test]
fn the_unit_is_confined() {
    let threshold = format!("--threshold={EXPOSED}");
    let arguments = ["security", "--offline=true", "--no-pager", &threshold, UNIT];
    let Ok(output) = Command::new("systemd-analyze").args(arguments).output() else { return };
    let words = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{words}{}", String::from_utf8_lossy(&output.stderr));
}
