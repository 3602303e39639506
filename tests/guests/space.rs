//! A real guest on a small file system: it is told when there is little room, before QEMU has to pause the guest; the pause
//! is named, and ends when there is room and somebody says so; a merge that does not fit is not begun.

use std::time::Duration;

use crate::bed::{Client, Daemon, Format, Guest, Setup, SmallFileSystem, Spec, images};

const PATIENCE: Duration = Duration::from_secs(120);

/// The guest's disk, and what it writes at a time, in MiB.
const DISK: u64 = 128;
const PIECE: u64 = 4;

/// How large the file system is at first, in MiB.
const SMALL: u64 = 96;

/// What the daemon leaves free, in MiB; of so small a file system also what is low. Some pieces: it has time to tell.
const RESERVE: u64 = 24;

/// The messages of events of a kind, oldest first.
fn told(client: &Client, vm: &str, kind: &str) -> Vec<String> {
    let events = client.json(&["event", "list", vm, "--limit", "1000"]);
    let events = events["events"].as_array().cloned().unwrap_or_default();
    let of_kind = events.iter().filter(|event| event["kind"] == kind);
    of_kind.map(|event| event["message"].as_str().unwrap().to_owned()).rev().collect()
}

/// The guest writes pieces of its disk, one after the other.
fn write(guest: &Guest, pieces: std::ops::Range<u64>) {
    for piece in pieces {
        guest.exec(&format!("dd if=/run/piece of=/dev/vdc bs={PIECE}M seek={piece} conv=fsync 2>/dev/null"));
    }
}

/// What the guest reads of the pieces is what it has written.
fn check(guest: &Guest, pieces: u64) {
    guest.exec("echo 3 > /proc/sys/vm/drop_caches");
    let expected = guest
        .exec(&format!("i=0; while [ $i -lt {pieces} ]; do cat /run/piece; i=$((i+1)); done | sha256sum"));
    let read = guest.exec(&format!("dd if=/dev/vdc bs={PIECE}M count={pieces} 2>/dev/null | sha256sum"));
    assert_eq!(read, expected);
}

#[test]
#[ignore = "long: make guests"]
fn a_guest_that_fills_its_file_system() {
    let small = SmallFileSystem::new(SMALL);
    let guest = Guest::boot(&Spec::default());
    let (image, vm) = (small.directory().join("vdc.qcow2"), guest.name());
    images::create(&image, Format::Qcow2, DISK);
    guest.attach("vdc", &image, Format::Qcow2);
    guest.exec("while [ ! -b /dev/vdc ]; do sleep 0.1; done");
    guest.exec(&format!("dd if=/dev/urandom of=/run/piece bs={PIECE}M count=1 2>/dev/null"));
    let configuration = format!("reserve_bytes = {}", RESERVE << 20);
    let daemon = Daemon::start_with(Setup { configuration, ..Setup::default() });
    let client = daemon.client();
    write(&guest, 0..2);
    client.json(&["snapshot", "create", vm, "one", "--disk", "vdc"]);

    // Piece by piece, until there is little room.
    let low = || told(&client, vm, "EVENT_KIND_SPACE_LOW");
    let mut written = 0;
    while low().is_empty() {
        assert!(written < SMALL / PIECE, "it is told before the file system is full");
        write(&guest, written..written + 1);
        written += 1;
    }
    assert_eq!(guest.state(), "running", "before, and not after");
    let message = low().remove(0);
    let active = guest.image("vdc");
    assert!(message.contains(&active.display().to_string()) && message.contains("disk vdc"), "{message}");
    assert!(written * PIECE > SMALL / 2, "after {written} pieces there was room");

    // On, until there is none.
    let pieces = DISK / PIECE - 2;
    guest.begin(&format!(
        "i={written}; while [ $i -lt {pieces} ]; do dd if=/run/piece of=/dev/vdc bs={PIECE}M seek=$i conv=fsync || exit; \
         i=$((i+1)); done 2>/dev/null; echo > /run/done"
    ));
    guest.wait_for_state("paused");
    let full = || told(&client, vm, "EVENT_KIND_VM_OUT_OF_SPACE");
    crate::bed::wait_until("the pause is told", PATIENCE, || !full().is_empty());
    assert!(
        full()[0].contains(&active.display().to_string()) && full()[0].contains("vm resume"),
        "{:?}",
        full()
    );
    assert_eq!(low().len(), 1, "once");
    for line in [["vm", "show", vm].as_slice(), &["vm", "list"]] {
        let shown = client.run(line).stdout;
        assert!(shown.contains("paused: vdc has no space"), "{shown}");
    }
    let refused = client.run(&["vm", "resume", vm]);
    assert!(refused.code == 10 && refused.stderr.contains("NO_SPACE"), "{refused:?}");
    assert_eq!(guest.state(), "paused");

    // Room is made.
    small.resize(SMALL + 96);
    let resumed = client.json(&["vm", "resume", vm]);
    assert_eq!(resumed["vm"]["run_state"], "RUN_STATE_RUNNING", "{resumed}");
    assert_eq!(client.run(&["vm", "resume", vm]).code, 0, "it runs already");
    guest.exec("while [ ! -e /run/done ]; do sleep 0.2; done");
    check(&guest, pieces);
    assert_eq!(full().len(), 1);

    // The snapshot's image holds next to nothing of what was written since.
    let before = images::chain(&active, Format::Qcow2);
    let snapshot = format!("{vm}/one");
    let refused = client.run(&["snapshot", "delete", &snapshot, "--yes"]);
    assert!(refused.code == 10 && refused.stderr.contains("a merge needs"), "{refused:?}");
    assert_eq!(images::chain(&guest.image("vdc"), Format::Qcow2), before, "nothing was touched");
    small.resize(3 * DISK);
    client.json(&["snapshot", "delete", &snapshot, "--yes"]);
    assert_eq!(guest.image("vdc"), image);
    check(&guest, pieces);

    // What is in the base already needs no new room.
    client.json(&["snapshot", "create", vm, "two", "--disk", "vdc"]);
    write(&guest, 0..8);
    let used =
        std::fs::metadata(&image).map(|facts| std::os::unix::fs::MetadataExt::blocks(&facts) * 512).unwrap();
    small.resize((used >> 20) + 8 * PIECE + RESERVE + 8);
    client.json(&["snapshot", "delete", &format!("{vm}/two"), "--yes"]);
    assert_eq!(guest.image("vdc"), image);
    check(&guest, pieces);
}
