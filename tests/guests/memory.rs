//! Memory and disks of one instant, on a real guest that writes all the time.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::bed::{
    Client, Daemon, Format, Guest, Progress, Setup, SmallFileSystem, Spec, images, virsh, wait_until,
};

const TARGETS: [&str; 2] = ["vda", "vdb"];

/// The number last written to the ring on an image that nobody writes to any more. See `tests/guest/writer.c`.
fn last_in_ring(image: &std::path::Path, format: Format) -> u64 {
    let content = images::Content::of(image, format);
    // Its file system was not frozen.
    content.replay_journal();
    let ring = content.file("/ring").expect("the guest has written");
    let number = |block: &[u8]| {
        (block.starts_with(b"vmsnapRB")).then(|| u64::from_le_bytes(block[8..16].try_into().unwrap()))
    };
    ring.chunks(4096).filter_map(number).max().expect("a block is whole")
}

/// Where the writers go on after the snapshot is what its disks hold: neither is memory newer than they are, nor older.
/// Gives the bytes of the memory image.
fn check(guest: &Guest, client: &Client, name: &str) -> u64 {
    let vm = guest.name();
    let progress = Progress::listen(guest);
    for target in TARGETS {
        progress.wait_for_next(target);
    }
    let before: Vec<_> = guest.disks();
    let created = client.json(&["snapshot", "create", vm, name, "--memory"]);
    assert_eq!(created["snapshot"]["consistency"], "CONSISTENCY_MEMORY", "{created:#}");
    for target in TARGETS {
        progress.wait_for_next(target);
    }
    let format = |image: &std::path::Path| {
        if image.extension().is_some_and(|ending| ending == "raw") { Format::Raw } else { Format::Qcow2 }
    };
    let held: Vec<u64> = before.iter().map(|(_, image)| last_in_ring(image, format(image))).collect();
    client.json(&["snapshot", "revert", &format!("{vm}/{name}"), "--yes", "--then", "paused"]);
    let moment = Instant::now();
    virsh::run(&["resume", vm]);
    for (target, held) in TARGETS.iter().zip(held) {
        progress.wait_for_next(target);
        let first = progress.first_since(target, moment).expect("it writes");
        // The last write of then may be reported once more, or for the first time.
        assert!((held..=held + 1).contains(&first), "{name}: {target} held {held} and goes on with {first}");
    }
    progress.assert_monotonic("vda");
    created["snapshot"]["memory_bytes"].as_str().unwrap().parse().unwrap()
}

/// As long as it is on nobody can migrate the VM: QEMU refuses what libvirt asks for ("Background-snapshot is not compatible
/// with ..."), and libvirt says so two minutes later.
fn is_capturing_on(guest: &Guest) -> bool {
    let ask = r#"{"execute":"query-migrate-capabilities"}"#;
    let answer = virsh::run(&["qemu-monitor-command", guest.name(), ask]);
    let answer: serde_json::Value = serde_json::from_str(&answer).unwrap();
    let is_on = |it: &serde_json::Value| it["capability"] == "background-snapshot" && it["state"] == true;
    answer["return"].as_array().unwrap().iter().any(is_on)
}

#[test]
fn memory_and_disks_are_of_one_instant() {
    let guest = Guest::boot(&Spec { writers: true, ..Spec::default() });
    let daemon = Daemon::start();
    let client = daemon.client();
    let raw = check(&guest, &client, "one");
    check(&guest, &client, "two");
    assert!(!is_capturing_on(&guest));
    drop(daemon);
    // Compressed.
    let configuration = "memory_compression = 'zstd'".to_owned();
    let daemon = Daemon::start_with(Setup { configuration, ..Setup::default() });
    let compressed = check(&guest, &daemon.client(), "small");
    assert!(compressed < raw / 2, "{compressed} of {raw}");
    assert!(!is_capturing_on(&guest));
    drop(daemon);
    // And the other way, for hosts that cannot.
    let configuration = "background_captures = 'never'".to_owned();
    let daemon = Daemon::start_with(Setup { configuration, ..Setup::default() });
    check(&guest, &daemon.client(), "three");
    drop(daemon);
    what_it_wrote_is_in_the_image_once_it_stands_still(&guest);
}

/// Whether the memory goes to a place in the file system.
fn has_a_file(directory: &Path) -> bool {
    directory.read_dir().is_ok_and(|files| files.count() > 0)
}

/// The guest does not wait for a reader that is gone.
#[test]
#[ignore = "long: make guests"]
fn compressed_memory_that_finds_no_room() {
    const PATIENCE: Duration = Duration::from_secs(60);
    let small = SmallFileSystem::new(1024);
    let guest = Guest::boot(&Spec { writers: true, ..Spec::default() });
    let memory = small.directory();
    let configuration = format!("memory_compression = 'zstd'\nmemory_directory = '{}'", memory.display());
    let daemon = Daemon::start_with(Setup { configuration, ..Setup::default() });
    let (client, vm) = (daemon.client(), guest.name());
    let progress = Progress::listen(&guest);
    progress.wait_for_next("vda");

    let creating = client.spawn(&["snapshot", "create", vm, "one", "--memory"]);
    // There is room when it is asked for. Then there is none.
    wait_until("the memory image is begun", PATIENCE, || has_a_file(memory));
    small.resize(1);
    let refused = creating.wait();
    assert!(refused.code != 0 && refused.stderr.contains("no space is left for"), "{}", refused.stderr);
    assert_eq!(guest.state(), "running");
    assert!(!is_capturing_on(&guest));
    for target in TARGETS {
        progress.wait_for_next(target);
    }
    // Its port is for one at a time.
    drop(progress);
    assert!(!has_a_file(memory), "nothing of it is left");
    small.resize(1024);
    check(&guest, &client, "two");
}

/// By which the daemon tells that nobody let a guest run within its pause.
fn what_it_wrote_is_in_the_image_once_it_stands_still(guest: &Guest) {
    let overlay = guest.directory().join("vda.over");
    guest.virsh("suspend", &[]);
    let disk = format!("vda,snapshot=external,file={}", overlay.display());
    let others = ["--diskspec", "vdb,snapshot=no", "--disk-only", "--no-metadata"];
    guest.virsh("snapshot-create-as", &[&["--diskspec", &disk], &others[..]].concat());
    assert!(!images::has_data_of_its_own(&overlay));
    let progress = Progress::listen(guest);
    guest.virsh("resume", &[]);
    progress.wait_for_next("vda");
    guest.virsh("suspend", &[]);
    assert!(images::has_data_of_its_own(&overlay));
}
