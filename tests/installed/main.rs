//! What is installed: a client that needs no libvirt, and a unit that keeps what is promised of it.

#![allow(clippy::unwrap_used, reason = "a test stops where it fails")]
#![allow(clippy::disallowed_methods, reason = "tests run programs: they are the outside")]

mod journal;
mod service;

use std::fs;
use std::process::Command;

/// What a program that links libvirt names in its dynamic string table.
const LIBVIRT: &[u8] = b"libvirt.so";

const UNIT: &str = "systemd/vmsnapd.service";
const NETWORK: &str = "systemd/vmsnapd-network.conf";
/// In tenths, as `systemd-analyze security` has it: the more the worse. Without a way to the network, and with one.
const EXPOSED: [&str; 2] = ["25", "28"];

fn names_libvirt(program: &str) -> bool {
    let bytes = fs::read(program).unwrap();
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
    let unit = fs::read_to_string(UNIT).unwrap();
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
    check(
        "SystemCallFilter",
        "capset",
        "setpriv cannot start qemu-img, so nothing is merged under a VM that is off",
    );
    // These hide what it has to see: processes, whoever is at the other end of the socket, block devices.
    for key in ["ProtectProc", "ProcSubset", "PrivateUsers", "PrivateDevices"] {
        assert!(settings.iter().all(|(name, _)| *name != key), "{key}=");
    }
}

/// Where systemd is installed, it says itself how exposed the unit is, and that it understands it.
#[test]
fn the_unit_is_confined() {
    let directory = tempfile::tempdir().unwrap();
    let unit = directory.path().join("vmsnapd.service");
    // It complains of programs that are not installed.
    let text = fs::read_to_string(UNIT).unwrap();
    fs::write(&unit, text.replace("/usr/bin/vmsnapd", env!("CARGO_BIN_EXE_vmsnapd"))).unwrap();
    let analyze = |arguments: &[&str]| {
        let Ok(output) = Command::new("systemd-analyze").args(arguments).arg(&unit).output() else { return };
        let words = [output.stdout, output.stderr].concat();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&words));
    };
    for (exposed, opened) in EXPOSED.into_iter().zip([None, Some(NETWORK)]) {
        if let Some(opened) = opened {
            let drop_ins = directory.path().join("vmsnapd.service.d");
            fs::create_dir(&drop_ins).unwrap();
            fs::copy(opened, drop_ins.join("network.conf")).unwrap();
        }
        analyze(&["verify", "--man=no", "--recursive-errors=no"]);
        analyze(&["security", "--offline=true", "--no-pager", &format!("--threshold={exposed}")]);
    }
}
