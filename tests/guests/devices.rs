//! What changes behind the daemon's back: a real guest whose disks are resized, removed, replaced under the same name
//! between a snapshot and the way back to it; one that leaves the node and comes back; one that somebody works on with
//! `virsh` and with files.

use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use tonic_health::pb::health_check_response::ServingStatus;

use crate::bed::named::write;
use crate::bed::{Client, Daemon, Elsewhere, Format, Guest, Node, Setup, Spec, images, wait_until};

/// What a daemon sees that is told of it, or looks again.
const SEEN: Duration = Duration::from_secs(60);

/// Plugs a disk into the stored definition, or out of it.
fn change_definition(guest: &Guest, verb: &str, target: &str, image: &Path) {
    let (path, driver) = (image.display(), "<driver name='qemu' type='qcow2'/>");
    let xml = format!(
        "<disk type='file' device='disk'>{driver}<source file='{path}'/><target dev='{target}' bus='virtio'/></disk>"
    );
    let file = guest.directory().join("device.xml");
    std::fs::write(&file, xml).unwrap();
    guest.virsh(verb, &[&file.display().to_string(), "--config"]);
}

#[test]
#[ignore = "long: make guests"]
fn disks_that_were_resized_removed_and_replaced() {
    let guest = Guest::boot(&Spec::default());
    let daemon = Daemon::start();
    let (client, vm) = (daemon.client(), guest.name());
    write(&guest, "first");
    let taken = client.json(&["snapshot", "create", vm, "one", "--quiesce", "required"]);
    let size = taken["snapshot"]["disks"][0]["virtual_size_bytes"].as_str().unwrap().parse::<u64>().unwrap();
    let snapshot = format!("{vm}/one");

    // A running guest's disk grows, and one of another kind is plugged in.
    guest.virsh("blockresize", &["vda", &format!("{}b", 2 * size)]);
    assert_eq!(images::virtual_size(&guest.image("vda"), Format::Qcow2), 2 * size);
    let extra = guest.directory().join("extra.qcow2");
    images::create(&extra, Format::Qcow2, 8);
    guest.attach("vdc", &extra, Format::Qcow2);
    write(&guest, "second");
    let extra_digest = images::digest(&extra, Format::Qcow2);

    // Off, vdb goes, and another disk takes its name.
    guest.shutdown();
    let overlay = guest.image("vdb");
    guest.virsh("detach-disk", &["vdb", "--config"]);
    change_definition(&guest, "attach-device", "vdb", &extra);
    let plan = client.json(&["snapshot", "revert", &snapshot, "--dry-run"]);
    let warnings = plan["plan"]["warnings"].to_string();
    assert!(warnings.contains("disk vdb of the snapshot was removed"), "{warnings}");
    assert!(warnings.contains("disk vdb is not in the snapshot"), "{warnings}");
    client.json(&["snapshot", "revert", &snapshot, "--yes"]);
    assert_eq!(
        images::virtual_size(&guest.image("vda"), Format::Qcow2),
        size,
        "as large as it was in the snapshot"
    );
    assert_eq!(guest.image("vdb"), extra, "the disk of the same name is another one");
    assert_eq!(images::digest(&extra, Format::Qcow2), extra_digest);
    let file = |image: &Path, name: &str| images::read_file(image, Format::Qcow2, name).is_some();
    assert!(file(&guest.image("vda"), "first") && !file(&guest.image("vda"), "second"));
    assert!(file(&overlay, "second"), "what was removed is left alone");

    // Plugged in again elsewhere, the volume is known, and goes back too.
    guest.virsh("detach-disk", &["vdb", "--config"]);
    change_definition(&guest, "attach-device", "vdb", &overlay);
    client.json(&["snapshot", "revert", &snapshot, "--yes"]);
    guest.start();
    for disk in ["vda", "vdb"] {
        assert!(guest.has_file(&format!("/mnt/{disk}/first")), "{disk}");
        assert!(!guest.has_file(&format!("/mnt/{disk}/second")), "{disk}");
    }
    client.json(&["snapshot", "delete", &snapshot, "--yes"]);
    assert_eq!(client.json(&["vm", "show", vm])["vm"]["merge_debt"]["layers"].as_u64(), Some(0));
}

fn wait_for_state(client: &Client, snapshot: &str, state: &str) {
    wait_until(&format!("{snapshot} is {state}"), SEEN, || {
        client.json(&["snapshot", "show", snapshot])["snapshot"]["state"] == format!("SNAPSHOT_STATE_{state}")
    });
}

#[test]
#[ignore = "long: make guests"]
fn a_guest_that_leaves_the_node_and_comes_back() {
    let guest = Guest::boot(&Spec::default());
    let images = guest.directory().display().to_string();
    let setup = Setup { configuration: format!("image_directories = [{images:?}]"), ..Setup::default() };
    let daemon = Daemon::start_with(setup);
    let (client, vm) = (daemon.client(), guest.name());
    write(&guest, "first");
    client.json(&["snapshot", "create", vm, "one", "--quiesce", "required"]);
    write(&guest, "second");
    guest.shutdown();
    let snapshot = format!("{vm}/one");
    let shown = client.json(&["snapshot", "show", &snapshot]);
    let id = shown["snapshot"]["id"].as_str().unwrap();
    let definition = guest.directory().join("kept.xml");
    std::fs::write(&definition, guest.virsh("dumpxml", &["--inactive"])).unwrap();
    let (overlays, leave) = (guest.disks(), || guest.virsh("undefine", &[]));
    leave();
    wait_for_state(&client, id, "LOST");
    assert_eq!(client.json(&["vm", "show", vm])["vm"]["gone"], true);
    assert!(overlays.iter().all(|(_, image)| image.exists()), "the files are kept");

    // What it held is had all the same.
    let rescued = guest.made_by(|name| {
        client.json(&["vm", "deploy", id, "--name", name, "--full", "--then", "running"]);
    });
    rescued.wait_until_up();
    assert!(rescued.has_file("/mnt/vda/first") && !rescued.has_file("/mnt/vda/second"));
    drop(rescued);

    let come_back = || crate::bed::virsh::run(&["define", &definition.display().to_string()]);
    come_back();
    wait_for_state(&client, id, "READY");
    guest.start();
    assert!(guest.has_file("/mnt/vdb/second"));
    client.json(&["snapshot", "revert", &snapshot, "--yes"]);
    guest.wait_until_up();
    assert!(guest.has_file("/mnt/vdb/first") && !guest.has_file("/mnt/vdb/second"));

    // Gone for good, as far as anybody knows: what the disks read through stays for wherever it is.
    guest.shutdown();
    std::fs::write(&definition, guest.virsh("dumpxml", &["--inactive"])).unwrap();
    leave();
    wait_for_state(&client, id, "LOST");
    let plan = client.json(&["snapshot", "purge", id, "--dry-run"]);
    assert!(plan["plan"]["warnings"].to_string().contains("disks read through it"), "{plan}");
    client.json(&["snapshot", "purge", id, "--yes"]);
    come_back();
    guest.start();
    for disk in ["vda", "vdb"] {
        assert!(guest.has_file(&format!("/mnt/{disk}/first")), "{disk}");
    }
    client.json(&["snapshot", "create", vm, "again"]);
    // What nothing needed is merged now that the VM can be asked to.
    crate::bed::wait_until("nothing waits any more", Duration::from_secs(60), || {
        let vm = client.json(&["vm", "show", vm])["vm"].clone();
        vm["merge_debt"]["layers"].as_u64() == Some(0) && vm["operation_id"] == ""
    });
    client.json(&["snapshot", "delete", &format!("{vm}/again"), "--yes"]);
    assert!(guest.has_file("/mnt/vda/first"));
}

/// The classes of what a check of the VM finds, with whether they block.
fn differences(client: &Client, vm: &str) -> Vec<(String, bool)> {
    let reply = client.run(&["--output", "json", "vm", "check", vm]);
    let answer: Value = serde_json::from_str(&reply.stdout).unwrap_or_else(|_| panic!("{reply:?}"));
    let found = answer["differences"].as_array().unwrap();
    assert_eq!(reply.code, if found.is_empty() { 0 } else { 11 }, "{reply:?}");
    let of = |found: &Value| {
        let kind = found["kind"].as_str().unwrap().trim_start_matches("DIFFERENCE_KIND_");
        (kind.to_owned(), found["blocks"].as_bool().unwrap())
    };
    found.iter().map(of).collect()
}

#[test]
#[ignore = "long: make guests"]
fn what_somebody_does_is_told_and_settled() {
    let guest = Guest::boot(&Spec::default());
    let daemon = Daemon::start();
    let (client, vm) = (daemon.client(), guest.name());
    let root = guest.image("vda");
    for name in ["one", "two"] {
        write(&guest, name);
        client.json(&["snapshot", "create", vm, name, "--quiesce", "required"]);
    }
    write(&guest, "three");
    let [held, active] = [&images::chain(&guest.image("vda"), Format::Qcow2)[1], &guest.image("vda")];
    let check = |expected: &[(&str, bool)]| {
        let found = differences(&client, vm);
        let found: Vec<(&str, bool)> = found.iter().map(|(kind, blocks)| (kind.as_str(), *blocks)).collect();
        assert_eq!(found, expected);
        let plan = client.run(&["snapshot", "create", vm, "next", "--dry-run"]);
        assert_eq!(plan.code, if found.iter().any(|(_, blocks)| *blocks) { 6 } else { 0 }, "{plan:?}");
    };
    check(&[]);

    let mine = guest.directory().join("mine.qcow2");
    let disk = format!("vda,file={}", mine.display());
    let overlay = ["--disk-only", "--no-metadata", "--diskspec", &disk, "--diskspec", "vdb,snapshot=no"];
    guest.virsh("snapshot-create-as", &[&["by-hand"], &overlay[..]].concat());
    check(&[("UNKNOWN_OVERLAY", true)]);
    guest.virsh("blockcommit", &["vda", "--shallow", "--active", "--pivot", "--wait"]);
    check(&[]);
    // As long as it is there, merges wait for it.
    std::fs::remove_file(&mine).unwrap();

    let copy = guest.directory().join("copy.qcow2");
    guest.virsh("blockcopy", &["vdb", &copy.display().to_string(), "--transient-job", "--wait"]);
    check(&[("FOREIGN_BLOCK_JOB", true)]);
    guest.virsh("blockjob", &["vdb", "--abort"]);
    check(&[]);

    // Its snapshots would be LOST once it stops.
    let kept = guest.virsh("dumpxml", &["--inactive"]);
    guest.virsh("undefine", &["--keep-nvram"]);
    check(&[("VM_UNDEFINED", false)]);
    let definition = guest.directory().join("kept.xml");
    std::fs::write(&definition, kept).unwrap();
    crate::bed::virsh::run(&["define", &definition.display().to_string()]);
    check(&[]);

    // The next cold start would boot what a snapshot holds.
    let right = guest.virsh("dumpxml", &["--inactive"]);
    let [names, other] = [active, held].map(|image| format!("<source file='{}'", image.display()));
    let define = |xml: &str| {
        let definition = guest.directory().join("changed.xml");
        std::fs::write(&definition, xml).unwrap();
        crate::bed::virsh::run(&["define", &definition.display().to_string()]);
    };
    define(&right.replacen(&names, &other, 1));
    check(&[("DEFINITION_DIFFERS", true)]);
    define(&right);
    check(&[]);

    guest.shutdown();
    let whole = std::fs::read(held).unwrap();
    std::fs::File::options().write(true).open(held).unwrap().set_len(whole.len() as u64 / 2).unwrap();
    check(&[("IMAGE_CHANGED", false)]);
    std::fs::write(held, whole).unwrap();
    check(&[]);

    let aside = guest.directory().join("aside.qcow2");
    std::fs::rename(held, &aside).unwrap();
    check(&[("IMAGE_MISSING", true)]);
    let events = client.json(&["event", "list", vm]).to_string();
    assert!(events.contains("no image") && events.contains("settled"), "{events}");
    std::os::unix::fs::symlink(&aside, held).unwrap();
    check(&[("IMAGE_CHANGED", false)]);
    std::fs::remove_file(held).unwrap();
    std::fs::copy(&aside, held).unwrap();
    check(&[("IMAGE_CHANGED", false)]);
    std::fs::remove_file(held).unwrap();
    std::fs::rename(&aside, held).unwrap();
    check(&[]);

    // What somebody merges is lost to the snapshot that needed it, and nothing is done on top of that.
    guest.start();
    let (top, base) = (held.display().to_string(), root.display().to_string());
    guest.virsh("blockcommit", &["vda", "--top", &top, "--base", &base, "--wait"]);
    let found = differences(&client, vm);
    // The base may be longer for it, or not.
    assert!(found.contains(&("LAYER_MERGED".to_owned(), true)), "{found:?}");
    let refused = client.run(&["snapshot", "delete", &format!("{vm}/one"), "--yes"]);
    assert!(refused.code == 6 && refused.stderr.contains("the catalog says"), "{refused:?}");
    assert_eq!(guest.image("vda"), *active);
    assert!(guest.has_file("/mnt/vda/three"), "the guest goes on");
    settle(&client, vm, "LAYER_MERGED", "adopt");
    let state =
        |name: &str| client.json(&["snapshot", "show", &format!("{vm}/{name}")])["snapshot"]["state"].clone();
    assert_eq!((state("one"), state("two")), ("SNAPSHOT_STATE_ERROR".into(), "SNAPSHOT_STATE_READY".into()));
    assert!(held.exists(), "nothing is removed");
    client.json(&["snapshot", "create", vm, "next", "--quiesce", "required"]);
    client.json(&["snapshot", "delete", &format!("{vm}/one"), "--yes"]);
    client.json(&["snapshot", "revert", &format!("{vm}/two"), "--yes"]);
    guest.wait_until_up();
    assert!(guest.has_file("/mnt/vda/two") && !guest.has_file("/mnt/vda/three"), "it reads what it read");
}

#[test]
#[ignore = "long: make guests"]
fn a_guest_that_migrates_away_and_back() {
    let elsewhere = Elsewhere::start();
    let guest = Guest::boot(&Spec::default());
    let daemon = Daemon::start();
    let (client, vm) = (daemon.client(), guest.name());
    write(&guest, "first");
    let taken = client.json(&["snapshot", "create", vm, "one", "--quiesce", "required"]);
    let id = taken["snapshot"]["id"].as_str().unwrap();
    write(&guest, "second");
    elsewhere.take(&guest);
    wait_for_state(&client, id, "LOST");
    let shown = client.json(&["snapshot", "show", id]);
    assert!(
        shown["snapshot"]["error"]["message"].as_str().unwrap().contains("has migrated to another"),
        "{shown}"
    );
    assert_eq!(differences(&client, vm), [("VM_MIGRATED".to_owned(), true)]);

    elsewhere.give_back(&guest);
    wait_for_state(&client, id, "READY");
    assert_eq!(differences(&client, vm), []);
    assert!(guest.has_file("/mnt/vda/second"), "it has gone on all the time");
    client.json(&["snapshot", "create", vm, "two"]);
    client.json(&["snapshot", "revert", &format!("{vm}/one"), "--yes"]);
    guest.wait_until_up();
    assert!(guest.has_file("/mnt/vda/first") && !guest.has_file("/mnt/vda/second"));
}

/// Its definition stays, and no daemon runs when it goes: libvirt tells of it until it starts anew, and the daemon from then on.
#[test]
#[ignore = "long: make guests"]
fn a_guest_that_migrates_while_no_daemon_runs() {
    Node::within(|node| {
        let elsewhere = Elsewhere::start();
        let guest = Guest::boot(&Spec::default());
        let mut daemon = Daemon::start();
        let (client, vm) = (daemon.client(), guest.name());
        let one = format!("{vm}/one");
        write(&guest, "first");
        client.json(&["snapshot", "create", vm, "one", "--quiesce", "required"]);
        write(&guest, "second");
        daemon.kill();
        elsewhere.take_and_leave_definition(&guest);
        daemon.restart();
        daemon.wait_for_health("libvirt", ServingStatus::Serving);
        let is_left_alone = || {
            assert_eq!(differences(&client, vm), [("VM_MIGRATED".to_owned(), true)]);
            for line in [["snapshot", "delete", &one, "--yes"], ["snapshot", "revert", &one, "--yes"]] {
                let refused = client.run(&line);
                let is_told = refused.stderr.contains("has migrated to another node");
                assert!(refused.code == 6 && is_told, "{refused:?}");
            }
        };
        is_left_alone();
        node.kill_libvirtd();
        node.start_libvirtd();
        wait_until("libvirt is found again", SEEN, || client.run(&["vm", "list"]).code == 0);
        assert_eq!(guest.state(), "shut off", "libvirt does not know more");
        is_left_alone();

        elsewhere.give_back(&guest);
        wait_until("it is known to be back", SEEN, || client.run(&["vm", "check", vm]).code == 0);
        assert!(guest.has_file("/mnt/vda/second"), "it has gone on all the time");
        client.json(&["snapshot", "revert", &one, "--yes"]);
        guest.wait_until_up();
        assert!(guest.has_file("/mnt/vda/first") && !guest.has_file("/mnt/vda/second"));
    });
}

/// The ways that the one difference of this class offers.
fn ways(client: &Client, check: &[&str], kind: &str) -> (String, Vec<String>) {
    let reply = client.run(&[&["--output", "json"], check].concat());
    let answer: Value = serde_json::from_str(&reply.stdout).unwrap_or_else(|_| panic!("{reply:?}"));
    let all = answer["differences"].as_array().unwrap();
    let of_kind = |found: &&Value| found["kind"] == format!("DIFFERENCE_KIND_{kind}");
    let found = all.iter().find(of_kind).unwrap_or_else(|| panic!("{reply:?}"));
    let ways = found["actions"].as_array().cloned().unwrap_or_default();
    let ways =
        ways.iter().map(|way| way.as_str().unwrap().trim_start_matches("DIFFERENCE_ACTION_").to_owned());
    (found["id"].as_str().unwrap().to_owned(), ways.collect())
}

/// Settles the difference of this class; then there is none.
fn settle(client: &Client, vm: &str, kind: &str, way: &str) {
    let (id, _) = ways(client, &["vm", "check", vm], kind);
    client.json(&["vm", "resolve", vm, &id[..8], &format!("--{way}"), "--yes"]);
    assert_eq!(differences(client, vm), [], "{kind} is settled");
}

#[test]
#[ignore = "long: make guests"]
fn an_overlay_by_hand_is_adopted_and_an_orphan_goes() {
    let guest = Guest::boot(&Spec::default());
    let images = guest.directory().display().to_string();
    let setup = Setup { configuration: format!("image_directories = [{images:?}]"), ..Setup::default() };
    let daemon = Daemon::start_with(setup);
    let (client, vm) = (daemon.client(), guest.name());
    write(&guest, "one");
    client.json(&["snapshot", "create", vm, "one", "--quiesce", "required"]);
    write(&guest, "two");
    let frozen = guest.image("vda");
    let mine = guest.directory().join("mine.qcow2");
    let disk = format!("vda,file={}", mine.display());
    let overlay =
        ["by-hand", "--disk-only", "--quiesce", "--diskspec", &disk, "--diskspec", "vdb,snapshot=no"];
    guest.virsh("snapshot-create-as", &overlay);
    write(&guest, "three");

    // As long as libvirt keeps a snapshot of its own, the overlay would have two owners.
    let (id, offered) = ways(&client, &["vm", "check", vm], "UNKNOWN_OVERLAY");
    assert_eq!(offered, [""; 0]);
    let refused = client.run(&["vm", "resolve", vm, &id, "--adopt", "--yes"]);
    assert!(refused.code == 6 && refused.stderr.contains("RESOLUTION_NOT_OFFERED"), "{refused:?}");
    assert!(client.run(&["vm", "check", vm]).stdout.contains("snapshot-delete VM by-hand --metadata"));
    guest.virsh("snapshot-delete", &["by-hand", "--metadata"]);
    assert_eq!(ways(&client, &["vm", "check", vm], "UNKNOWN_OVERLAY").1, ["ADOPT"]);
    settle(&client, vm, "UNKNOWN_OVERLAY", "adopt");
    assert_eq!(guest.image("vda"), mine);
    let listed = client.json(&["snapshot", "list", vm]);
    let listed = listed["snapshots"].as_array().unwrap();
    let taken = listed.iter().find(|snapshot| snapshot["name"] != "one").unwrap();
    assert_eq!(taken["disks"][0]["path"].as_str(), frozen.to_str(), "what somebody froze is kept: {taken}");
    let file = |name: &str| images::read_file(&frozen, Format::Qcow2, name).is_some();
    assert!(file("two") && !file("three"));

    // It is a VM like any other.
    client.json(&["snapshot", "create", vm, "next", "--quiesce", "required"]);
    write(&guest, "four");
    let by_hand = format!("{vm}/{}", taken["name"].as_str().unwrap());
    client.json(&["snapshot", "delete", &by_hand, "--yes"]);
    for name in ["one", "two", "three", "four"] {
        assert!(guest.has_file(&format!("/mnt/vda/{name}")), "{name}");
    }
    client.json(&["snapshot", "revert", &format!("{vm}/next"), "--yes"]);
    guest.wait_until_up();
    assert!(guest.has_file("/mnt/vda/three") && !guest.has_file("/mnt/vda/four"));

    let orphan = guest.directory().join("vmsnap-0199aaaa-0000-7000-8000-000000000001.qcow2");
    images::create(&orphan, Format::Qcow2, 8);
    let (id, offered) = ways(&client, &["node", "check"], "ORPHAN_FILE");
    assert_eq!(offered, ["REMOVE_FILE"]);
    client.json(&["node", "resolve", &id[..8], "--remove-file", "--yes"]);
    assert!(!orphan.exists() && guest.disks().iter().all(|(_, image)| image.exists()));
}
