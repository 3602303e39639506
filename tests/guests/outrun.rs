//! A real guest that writes faster than its disk is merged: seen, told, slowed, merged; then it writes as before, and reads
//! what it has written.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use crate::bed::{Client, Daemon, Disk, Format, Guest, Setup, Spec, eventually, images, wait_until};

/// What only a broken daemon does not do in time.
const PATIENCE: Duration = Duration::from_secs(300);

/// Little patience, and a floor that the slowest machine can be slowed to.
const CONFIGURATION: &str = "merge_patience_seconds = 3\nmerge_slowest_writes = 16384";

/// The merge copies no more than this, in bytes per second: less than any guest can write.
const BANDWIDTH: &str = "4M";

/// Bytes per second in the lines of `virsh blkdeviotune`, but for those that are 0.
fn limits(guest: &Guest) -> BTreeMap<String, u64> {
    let told = guest.virsh("blkdeviotune", &["vda", "--live"]);
    let lines = told.lines().filter_map(|line| line.split_once(':'));
    let numbers =
        lines.filter_map(|(name, value)| Some((name.trim().to_owned(), value.trim().parse().ok()?)));
    numbers.filter(|(_, value)| *value > 0).collect()
}

/// A guest with a snapshot `one`, that writes to `vda` without end.
fn busy_guest(configuration: &str) -> (Guest, Daemon, Client) {
    let guest =
        Guest::boot(&Spec { disks: vec![Disk { format: Format::Qcow2, size_mib: 256 }], ..Spec::default() });
    let setup = Setup { configuration: configuration.to_owned(), ..Setup::default() };
    let daemon = Daemon::start_with(setup);
    let client = daemon.client();
    // The snapshot's layer holds more than what lies on it: it is merged down. What is written over and over is more than
    // QEMU copies in one go.
    guest.exec("cd /mnt/vda && dd if=/dev/urandom of=kept bs=1M count=24 && dd if=/dev/zero of=bulk bs=1M count=128 && sync");
    client.json(&["snapshot", "create", guest.name(), "one", "--quiesce", "required"]);
    let again = "while [ ! -e /run/calm ]; do
        for part in 0 1 2 3 4 5 6 7; do
            [ -e /run/calm ] || dd if=/dev/urandom of=/mnt/vda/bulk bs=1M count=16 seek=$((16 * part)) conv=notrunc,fsync
        done
    done";
    guest.exec(&format!("({again}; sha256sum /mnt/vda/bulk > /run/calmed) > /dev/null 2>&1 &"));
    (guest, daemon, client)
}

fn begin(guest: &Guest, client: &Client, more: &[&str]) -> String {
    let doomed = format!("{}/one", guest.name());
    let fixed = ["snapshot", "delete", &doomed, "--yes", "--no-wait", "--bandwidth", BANDWIDTH];
    let begun = client.json(&[&fixed[..], more].concat());
    begun["operation"]["id"].as_str().unwrap().to_owned()
}

/// The guest writes no more. Gives a digest of what it has written.
fn calm(guest: &Guest) -> String {
    guest.exec("touch /run/calm");
    eventually("the guest is calm", PATIENCE, || {
        let digest = guest.exec("cat /run/calmed 2> /dev/null || true");
        digest.contains("bulk").then_some(digest)
    })
}

/// What was told of the merge, in order.
fn told(client: &Client, operation: &str) -> Vec<String> {
    let listed = client.json(&["event", "list", "--operation", operation, "--limit", "1000"]);
    let events = listed["events"].as_array().unwrap().iter().rev();
    let merges = events.filter(|event| event["kind"] == "EVENT_KIND_MERGE_NOT_CONVERGING");
    merges.map(|event| event["attributes"]["change"].as_str().unwrap().to_owned()).collect()
}

fn verify(guest: &Guest, kept: &str, written: &str) {
    let read = |path: &str| guest.exec(&format!("echo 3 > /proc/sys/vm/drop_caches; sha256sum {path}"));
    assert_eq!(read("/mnt/vda/kept"), kept);
    assert_eq!(read("/mnt/vda/bulk"), written);
    assert!(guest.agent_answers());
}

#[test]
#[ignore = "long: make guests"]
fn a_guest_that_outruns_its_merge_is_slowed() {
    let (guest, mut daemon, client) = busy_guest(CONFIGURATION);
    let kept = guest.exec("sha256sum /mnt/vda/kept");
    // What an operator has set: it must come back, both halves of it.
    guest.virsh(
        "blkdeviotune",
        &["vda", "--live", "--total-bytes-sec", "900000000", "--read-iops-sec", "90000"],
    );
    let before = limits(&guest);
    let id = begin(&guest, &client, &[]);
    let slowed = eventually("the guest is slowed", PATIENCE, || {
        let now = limits(&guest);
        now.contains_key("write_bytes_sec").then_some(now)
    });
    assert!(slowed["write_bytes_sec"] <= 4 << 20, "{slowed:?}");
    assert_eq!((slowed["read_bytes_sec"], slowed["read_iops_sec"]), (900_000_000, 90_000), "reads are not");
    wait_until("it is shown", PATIENCE, || {
        let shown = client.json(&["op", "show", &id]);
        let progress = shown["operation"]["progress"].as_array().unwrap();
        progress.iter().any(|progress| progress["writes_limited_to_bytes_per_second"] != "0")
    });
    let done = client.json(&["op", "watch", &id]);
    assert_eq!(done["operation"]["state"], "OPERATION_STATE_SUCCEEDED", "{done}");
    assert_eq!(limits(&guest), before, "as before");
    let told = told(&client, &id);
    assert_eq!(told[..2], ["outrun", "slowed"], "{told:?}");
    let written = calm(&guest);
    verify(&guest, &kept, &written);
    let image = guest.image("vda");
    assert_eq!(images::chain(&image, Format::Qcow2).len(), 1, "nothing lies below any more");
    guest.shutdown();
    guest.start();
    verify(&guest, &kept, &written);
    assert!(daemon.is_running());
}

/// Its requests take longer than a millisecond here, whatever is copied: it is tried whether slower copies help.
#[test]
#[ignore = "long: make guests"]
fn a_merge_that_a_guest_waits_for_is_held_back() {
    let guest =
        Guest::boot(&Spec { disks: vec![Disk { format: Format::Qcow2, size_mib: 256 }], ..Spec::default() });
    let configuration = "merge_longest_wait_milliseconds = 1\nmerge_slowest_copy = 2097152".to_owned();
    let daemon = Daemon::start_with(Setup { configuration, ..Setup::default() });
    let client = daemon.client();
    client.json(&["snapshot", "create", guest.name(), "one"]);
    guest.exec(
        "dd if=/dev/urandom of=/mnt/vda/bulk bs=1M count=96 && sync && sha256sum /mnt/vda/bulk > /run/calmed",
    );
    let again = "while [ ! -e /run/calm ]; do echo $((count += 1)) > /mnt/vda/count && sync; done";
    guest.exec(&format!("({again}) > /dev/null 2>&1 &"));
    let id = begin(&guest, &client, &[]);
    // Below what was asked for.
    let shown = eventually("it is held back", PATIENCE, || {
        let shown = client.json(&["op", "show", &id]);
        let progress = shown["operation"]["progress"].as_array()?.first()?.clone();
        let held_to: u64 = progress["held_to_bytes_per_second"].as_str()?.parse().ok()?;
        (1..4 << 20).contains(&held_to).then_some(progress)
    });
    assert!(shown["guest_wait"].as_str().is_some(), "{shown}");
    let job = guest.virsh("blockjob", &["vda", "--info", "--raw"]);
    let bandwidth = job.lines().find_map(|line| line.trim().strip_prefix("bandwidth=")).unwrap();
    assert!((1..4 << 20).contains(&bandwidth.parse().unwrap()), "{job}");
    client.run(&["op", "set", &id, "--bandwidth", "none"]);
    let done = client.json(&["op", "watch", &id]);
    assert_eq!(done["operation"]["state"], "OPERATION_STATE_SUCCEEDED", "{done}");
    let written = calm(&guest);
    assert_eq!(guest.exec("echo 3 > /proc/sys/vm/drop_caches; sha256sum /mnt/vda/bulk"), written);
    assert_eq!(images::chain(&guest.image("vda"), Format::Qcow2).len(), 1);
    guest.shutdown();
}

/// No guest is slowed here: at its deadline the merge is ended, and goes on when the guest is calm and a person says so.
#[test]
#[ignore = "long: make guests"]
fn a_merge_without_headway_is_ended() {
    let (guest, mut daemon, client) = busy_guest("merge_patience_seconds = 2\nmerge_slowest_writes = 0");
    let kept = guest.exec("sha256sum /mnt/vda/kept");
    let id = begin(&guest, &client, &["--merge-deadline", "20s"]);
    let reply = client.run(&["op", "watch", &id, "-o", "json"]);
    let shown = client.json(&["op", "show", &id]);
    assert_eq!(shown["operation"]["state"], "OPERATION_STATE_STUCK", "{shown} {reply:?}");
    assert_eq!(shown["operation"]["error"]["reason"], "REASON_MERGE_NOT_CONVERGING", "{shown}");
    assert!(!guest.virsh("dumpxml", &[]).contains("<mirror"), "no job is left running");
    assert_eq!(told(&client, &id), ["outrun"]);
    let written = calm(&guest);
    verify(&guest, &kept, &written);
    client.json(&["op", "resolve", &id, "retry", "--yes"]);
    let done = client.json(&["op", "watch", &id]);
    assert_eq!(done["operation"]["state"], "OPERATION_STATE_SUCCEEDED", "{done}");
    verify(&guest, &kept, &written);
    assert!(Path::new(&guest.image("vda")).exists() && daemon.is_running());
}
