//! A real guest that boots by UEFI: its variables are of the snapshot after a revert, from disks and from memory, and a
//! VM made out of the snapshot has its own.

use crate::bed::{Daemon, Firmware, Guest, Spec};

/// A vendor that no firmware knows.
const VENDOR: &str = "4e2f0b1a-6c1d-4a6e-9f57-0c2d8c1f5b3a";

fn place(name: &str) -> String {
    format!("/sys/firmware/efi/efivars/{name}-{VENDOR}")
}

/// Non-volatile, for boot and run time, then a value: what `efivarfs` takes in one write.
fn set(guest: &Guest, name: &str) {
    guest.exec(&format!("printf '\\007\\000\\000\\000value' > {}", place(name)));
}

fn check(guest: &Guest, present: &[&str], absent: &[&str]) {
    for (names, expected) in [(present, true), (absent, false)] {
        for name in names {
            assert_eq!(guest.has_file(&place(name)), expected, "{} in {}", name, guest.name());
        }
    }
}

/// Files of variables in the daemon's directory of memory images.
fn kept(daemon: &Daemon) -> usize {
    let files = std::fs::read_dir(daemon.state_directory().join("memory")).unwrap();
    files.filter(|file| file.as_ref().unwrap().path().extension().is_some_and(|it| it == "nvram")).count()
}

#[test]
#[ignore = "long: make guests"]
fn variables_go_back_with_the_vm() {
    let spec = Spec { firmware: Firmware::Uefi, memory_mib: 256, ..Spec::default() };
    let guest = Guest::boot(&spec);
    let daemon = Daemon::start();
    let (client, vm) = (daemon.client(), guest.name());
    set(&guest, "First");
    let taken = client.json(&["snapshot", "create", vm, "one", "--quiesce", "required"]);
    assert_eq!(taken["snapshot"]["has_nvram"], true, "{taken}");
    assert_eq!(taken["plan"]["warnings"], serde_json::Value::Null);
    set(&guest, "Second");
    client.json(&["snapshot", "create", vm, "two", "--memory"]);
    set(&guest, "Third");
    assert_eq!(kept(&daemon), 2);

    // From memory, which has them in it; the file has them too, as the next cold start shows.
    client.json(&["snapshot", "revert", &format!("{vm}/two"), "--yes"]);
    guest.wait_until_up();
    check(&guest, &["First", "Second"], &["Third"]);
    guest.shutdown();
    guest.start();
    check(&guest, &["First", "Second"], &["Third"]);

    // A new VM out of the older snapshot, while the source goes on.
    let copy = guest.made_by(|name| {
        client.json(&["vm", "deploy", &format!("{vm}/one"), "--name", name, "--then", "running"]);
    });
    copy.wait_until_up();
    check(&copy, &["First"], &["Second", "Third"]);
    set(&copy, "Other");
    check(&guest, &["First", "Second"], &["Third", "Other"]);
    copy.shutdown();

    // From disks.
    client.json(&["snapshot", "revert", &format!("{vm}/one"), "--yes"]);
    guest.wait_until_up();
    check(&guest, &["First"], &["Second", "Third", "Other"]);
    assert_eq!(kept(&daemon), 2, "those from before have gone");
    client.json(&["snapshot", "delete", &format!("{vm}/two"), "--yes"]);
    assert_eq!(kept(&daemon), 1);
}
