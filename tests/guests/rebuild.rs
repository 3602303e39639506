//! A catalog that is lost is made anew from the disks, on a real guest: the same snapshots, which read the same, and one can
//! go back to each of them.

use std::fs;
use std::path::Path;

use crate::bed::{Client, Daemon, Format, Guest, Node, Setup, Spec, images};
use serde_json::Value;
use tonic_health::pb::health_check_response::ServingStatus;

const DISKS: [&str; 2] = ["vda", "vdb"];

fn take(guest: &Guest, client: &Client, name: &str, how: &[&str]) {
    for disk in DISKS {
        guest.write_file(&format!("/mnt/{disk}/{name}"), name.as_bytes());
    }
    guest.exec("sync");
    client.json(&[&["snapshot", "create", guest.name(), name], how].concat());
}

fn revert(guest: &Guest, client: &Client, name: &str) {
    client.json(&["snapshot", "revert", &format!("{}/{name}", guest.name()), "--yes"]);
    guest.wait_until_up();
}

fn list(guest: &Guest, client: &Client) -> Value {
    client.json(&["snapshot", "list", guest.name()])["snapshots"].clone()
}

/// What each snapshot reads on each disk.
fn digests(snapshots: &Value) -> Vec<String> {
    let disks =
        snapshots.as_array().unwrap().iter().flat_map(|snapshot| snapshot["disks"].as_array().unwrap());
    let paths = disks.map(|disk| Path::new(disk["path"].as_str().unwrap()));
    let digest = |path: &Path| {
        let is_raw = path.extension().is_some_and(|extension| extension == "raw");
        images::digest(path, if is_raw { Format::Raw } else { Format::Qcow2 })
    };
    paths.map(digest).collect()
}

/// `vmsnapd rebuild ARGUMENTS...` on the state of a daemon. Its exit code, and what it told or complained of.
fn rebuild(daemon: &Daemon, arguments: &[&str]) -> (Option<i32>, String) {
    let output = daemon.run_with(&[&["rebuild"], arguments].concat());
    let told = if output.status.success() { output.stdout } else { output.stderr };
    (output.status.code(), String::from_utf8(told).unwrap())
}

/// On a node of its own: a rebuild looks at all that lies beside the images of all VMs.
#[test]
#[ignore = "long: make guests"]
fn a_lost_catalog_comes_back_from_the_disks() {
    Node::within(|_| lose_and_rebuild());
}

fn lose_and_rebuild() {
    let guest = Guest::boot(&Spec::default());
    let places = format!("image_directories = [\"{}\"]", guest.directory().display());
    let mut daemon = Daemon::start_with(Setup { configuration: places, ..Setup::default() });
    let client = daemon.client();
    take(&guest, &client, "root", &[]);
    take(&guest, &client, "left", &["--property", "kept=yes"]);
    revert(&guest, &client, "root");
    take(&guest, &client, "right", &["--memory"]);
    take(&guest, &client, "doomed", &[]);
    take(&guest, &client, "last", &[]);
    client.json(&["snapshot", "delete", &format!("{}/doomed", guest.name()), "--yes"]);
    client.json(&["snapshot", "comment", &format!("{}/left", guest.name()), "a remark"]);
    let left = format!("{}/left", guest.name());
    client.json(&["volume", "clone", &left, "--disk", "vda", "--to", "copy.qcow2"]);
    let clone = client.json(&["volume", "show", "copy.qcow2"]);
    let before = list(&guest, &client);
    let read = digests(&before);
    assert_eq!(before.as_array().unwrap().len(), 4);

    let (code, told) = rebuild(&daemon, &[]);
    assert_eq!(code, Some(1), "a daemon runs: {told}");
    assert!(told.contains("another vmsnapd runs"), "{told}");
    daemon.stop();
    let (code, told) = rebuild(&daemon, &[]);
    assert_eq!(code, Some(1), "nothing is written over: {told}");
    assert!(told.contains("there is a catalog already") && told.contains("--replace"), "{told}");
    let catalog = daemon.state_directory().join("catalog.db");
    for end in ["", "-wal", "-shm"] {
        // The log goes with its file, if there is one.
        let _ = fs::remove_file(format!("{}{end}", catalog.display()));
    }
    let (code, told) = rebuild(&daemon, &["--dry-run"]);
    assert_eq!((code, catalog.exists()), (Some(0), false), "{told}");
    assert!(told.contains("would restore 4 snapshots"), "{told}");
    let (code, told) = rebuild(&daemon, &["--json"]);
    assert_eq!(code, Some(0), "{told}");
    let report: Value = serde_json::from_str(&told).unwrap();
    assert_eq!(report["restored"][0]["snapshots"].as_array().unwrap().len(), 4, "{report:#}");
    assert!(report["notes"].to_string().contains("operations, events"), "{report:#}");

    daemon.restart();
    daemon.wait_for_health("libvirt", ServingStatus::Serving);
    assert_eq!(without_operation(&list(&guest, &client)), without_operation(&before));
    assert_eq!(digests(&list(&guest, &client)), read);
    let comments = client.json(&["snapshot", "comment", &left]);
    assert!(comments.to_string().contains("a remark"), "{comments}");
    assert_eq!(client.json(&["volume", "show", "copy.qcow2"]), clone);
    let checked = client.run(&["node", "check"]);
    assert!(!checked.stdout.contains(guest.name()), "{checked:?}");
    let checked = client.run(&["vm", "check", guest.name()]);
    assert_eq!(checked.code, 0, "{checked:?}");
    for (name, files) in [("left", "root left"), ("right", "root right"), ("last", "root right doomed last")]
    {
        revert(&guest, &client, name);
        for file in ["root", "left", "right", "doomed", "last"] {
            let is_held = files.split(' ').any(|held| held == file);
            assert_eq!(guest.has_file(&format!("/mnt/vda/{file}")), is_held, "{file} in {name}");
        }
    }
    client.json(&["snapshot", "delete", &format!("{}/right", guest.name()), "--yes"]);
    revert(&guest, &client, "last");
    assert!(guest.has_file("/mnt/vdb/right") && !guest.has_file("/mnt/vdb/left"));

    // Another time, beside a catalog that is well: that one is kept.
    daemon.stop();
    let (code, told) = rebuild(&daemon, &["--replace"]);
    assert_eq!(code, Some(0), "{told}");
    assert!(
        told.contains("the catalog that was there is") && told.contains("restored 3 snapshots"),
        "{told}"
    );
    daemon.restart();
    daemon.wait_for_health("libvirt", ServingStatus::Serving);
    revert(&guest, &client, "root");
    assert!(daemon.is_running());
}

/// Lists without what is bound to the lost journal.
fn without_operation(snapshots: &Value) -> Value {
    let mut snapshots = snapshots.clone();
    for snapshot in snapshots.as_array_mut().unwrap() {
        // Layers that were merged may have been looked at since.
        for disk in snapshot["disks"].as_array_mut().unwrap() {
            disk.as_object_mut().unwrap().remove("allocated_bytes");
        }
    }
    snapshots
}
