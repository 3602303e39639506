//! Volumes and VMs out of snapshots, on real guests: each reads what the snapshot read, the source goes on, and what
//! others use is never written to. Looked at from inside the guests and at the images from outside.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::bed::named::write;
use crate::bed::{Client, Daemon, Format, Guest, Setup, Spec, images};
use serde_json::Value;

/// A daemon that may make clones beside the images of a guest.
fn daemon(guest: &Guest) -> Daemon {
    // The QEMU of the bed may be one that must not be asked to pull by itself: nobody else asks it for anything here.
    let images = guest.directory().display().to_string();
    let configuration = format!("image_directories = [{images:?}]\nlive_pulls = 'always'");
    Daemon::start_with(Setup { configuration, ..Setup::default() })
}

/// Whether the file is on both disks; on one only is a failure.
fn has(guest: &Guest, name: &str) -> bool {
    let [a, b] = ["vda", "vdb"].map(|disk| guest.has_file(&format!("/mnt/{disk}/{name}")));
    assert_eq!(a, b, "{name} is on one disk only");
    a
}

/// The image that holds a disk of a snapshot.
fn layer(client: &Client, snapshot: &str, target: &str) -> PathBuf {
    let shown = client.json(&["snapshot", "show", snapshot]);
    let disks = shown["snapshot"]["disks"].as_array().unwrap();
    let disk = disks.iter().find(|disk| disk["target"] == target).unwrap();
    PathBuf::from(disk["path"].as_str().unwrap())
}

fn digest(path: &Path) -> String {
    let is_raw = path.extension().is_some_and(|extension| extension == "raw");
    images::digest(path, if is_raw { Format::Raw } else { Format::Qcow2 })
}

fn debt(client: &Client, vm: &str) -> u64 {
    client.json(&["vm", "show", vm])["vm"]["merge_debt"]["layers"].as_u64().unwrap()
}

/// What the clones held is merged behind them, by an operation of its own.
fn wait_until_bare(guest: &Guest) {
    crate::bed::wait_until(
        "the source is one image per disk again",
        std::time::Duration::from_secs(120),
        || {
            let is_overlay = |path: &Path| path.file_name().unwrap().to_string_lossy().starts_with("vmsnap-");
            !guest.disks().iter().any(|(_, path)| is_overlay(path))
        },
    );
}

/// All but manifests: those come and go with snapshots.
fn files(directory: &Path) -> Vec<PathBuf> {
    let files = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let is_manifest = |file: &PathBuf| file.extension().is_some_and(|ending| ending == "manifest");
    let mut files: Vec<PathBuf> = files.filter(|file| !is_manifest(file)).collect();
    files.sort();
    files
}

#[test]
#[ignore = "long: make guests"]
fn a_volume_snapshot_outlives_the_vm_snapshot_it_was_taken_out_of() {
    let guest = Guest::boot(&Spec::default());
    let daemon = daemon(&guest);
    let (client, vm) = (daemon.client(), guest.name());
    write(&guest, "first");
    client.json(&["snapshot", "create", vm, "one", "--quiesce", "required"]);
    write(&guest, "second");
    let before = files(guest.directory());
    let source = format!("{vm}/one");
    let plan = client.json(&[
        "volume",
        "snapshot",
        "create",
        "disk",
        "--from",
        &source,
        "--disk",
        "vdb",
        "--dry-run",
    ]);
    assert_eq!(plan["plan"]["bytes_to_copy"], "0");
    client.json(&["volume", "snapshot", "create", "disk", "--from", &source, "--disk", "vdb"]);
    assert_eq!(files(guest.directory()), before, "no image is made");
    let held = digest(&layer(&client, &format!("{vm}/disk"), "vdb"));

    client.json(&["snapshot", "delete", &source, "--yes"]);
    assert_eq!(digest(&layer(&client, &format!("{vm}/disk"), "vdb")), held);
    assert!(has(&guest, "second"), "the guest goes on");
    client.json(&["volume", "revert", &format!("{vm}/vdb"), "disk", "--stop", "--yes"]);
    guest.wait_until_up();
    let there = |disk: &str, name: &str| guest.has_file(&format!("/mnt/{disk}/{name}"));
    assert!(there("vdb", "first") && !there("vdb", "second"), "vdb is back");
    assert!(there("vda", "first") && there("vda", "second"), "vda is not");
}

#[test]
fn a_vm_is_deployed_and_the_source_goes_on() {
    let guest = Guest::boot(&Spec::default());
    let daemon = daemon(&guest);
    let (client, vm) = (daemon.client(), guest.name());
    write(&guest, "first");
    client.json(&["snapshot", "create", vm, "one", "--quiesce", "required"]);
    write(&guest, "second");
    let before = guest.counter();
    let source = format!("{vm}/one");
    let held =
        ["vda", "vdb"].map(|disk| (layer(&client, &source, disk), digest(&layer(&client, &source, disk))));

    let copy = guest.made_by(|name| {
        let shown = client.json(&["vm", "deploy", &source, "--name", name, "--then", "running"]);
        assert_ne!(shown["vm"]["id"], client.json(&["vm", "show", vm])["vm"]["id"]);
    });
    copy.wait_until_up();
    assert!(has(&copy, "first") && !has(&copy, "second"), "it has the snapshot's data");
    write(&copy, "of-the-copy");
    assert!(!has(&guest, "of-the-copy") && has(&guest, "second"));
    let after = guest.counter();
    assert_eq!(after.token, before.token, "the source was never stopped");
    assert!(after.number > before.number);
    let addresses = [vm, copy.name()].map(|vm| crate::bed::virsh::run(&["dumpxml", vm]));
    let uuid = |xml: &String| xml.lines().find(|line| line.contains("<uuid>")).unwrap().to_owned();
    assert_ne!(uuid(&addresses[0]), uuid(&addresses[1]));

    // Its own snapshots come and go, and what it shares with the source stays as it is.
    client.json(&["snapshot", "create", copy.name(), "mine"]);
    write(&copy, "later");
    client.json(&["snapshot", "delete", &format!("{}/mine", copy.name()), "--yes"]);
    for (image, digested) in &held {
        assert_eq!(digest(image), *digested, "{} was written to", image.display());
    }

    // The snapshot may go; its layers stay for as long as the clones read them.
    client.json(&["snapshot", "delete", &source, "--yes"]);
    assert!(debt(&client, vm) == 0 && held.iter().all(|(image, _)| image.exists()));
    assert!(has(&copy, "later") && has(&guest, "second"));
    let volumes = ["vda", "vdb"].map(|disk| format!("{}-{disk}", copy.name()));
    // One while the guest runs on it, one while it is off.
    let flatten = |volume: &str| {
        let flat = client.json(&["volume", "flatten", volume]);
        assert_eq!(flat["volume"]["source_snapshot_id"], "", "it stands alone");
    };
    let count = copy.counter();
    flatten(&volumes[0]);
    assert!(has(&copy, "first") && has(&copy, "later"));
    assert_eq!(copy.counter().token, count.token, "the guest went on");
    copy.shutdown();
    flatten(&volumes[1]);
    wait_until_bare(&guest);
    copy.start();
    assert!(has(&copy, "first") && has(&copy, "of-the-copy") && has(&copy, "later") && !has(&copy, "second"));
    assert!(has(&guest, "first") && has(&guest, "second"));
    assert_eq!(guest.counter().token, before.token);
}

#[test]
#[ignore = "long: make guests"]
fn a_volume_is_cloned_linked_and_full() {
    let guest = Guest::boot(&Spec::default());
    let daemon = daemon(&guest);
    let (client, vm) = (daemon.client(), guest.name());
    write(&guest, "first");
    client.json(&["snapshot", "create", vm, "one", "--quiesce", "required"]);
    let source = format!("{vm}/one");
    let read = digest(&layer(&client, &source, "vda"));
    for (name, mode) in [("linked.qcow2", "--linked"), ("full.qcow2", "--full")] {
        let made = client.json(&[
            "volume",
            "clone",
            &source,
            "--disk",
            "vda",
            "--to",
            name,
            mode,
            "--property",
            "a=1",
        ]);
        let path = PathBuf::from(made["volume"]["path"].as_str().unwrap());
        assert_eq!(path, guest.directory().join(name));
        assert_eq!(digest(&path), read, "{name}");
        assert_eq!(made["volume"]["properties"]["a"], "1");
    }
    let directory = guest.directory();
    assert_eq!(images::chain(&directory.join("full.qcow2"), Format::Qcow2).len(), 1);
    assert_eq!(images::chain(&directory.join("linked.qcow2"), Format::Qcow2).len(), 2);
    let check = |arguments: &[&str], code, word: &str| {
        let reply = client.run(&[&["volume", "clone", &source, "--disk", "vda"], arguments].concat());
        assert_eq!(reply.code, code, "{arguments:?}: {reply:?}");
        assert!(reply.stderr.contains(word), "{arguments:?}: {reply:?}");
    };
    check(&["--to", "full.qcow2"], 5, "FILE_EXISTS");
    check(&["--to", "other.qcow2", "--name", "full.qcow2"], 5, "VOLUME_EXISTS");
    check(&["--to", "/etc/evil"], 7, "PATH_NOT_ALLOWED");
    assert!(!directory.join("other.qcow2").exists() && !Path::new("/etc/evil").exists());

    client.json(&["snapshot", "delete", &source, "--yes"]);
    assert_eq!(digest(&directory.join("linked.qcow2")), read, "the layer stays for the clone");
    client.json(&["volume", "delete", "linked.qcow2", "--yes"]);
    assert!(!directory.join("linked.qcow2").exists());
    wait_until_bare(&guest);
    assert_eq!(digest(&directory.join("full.qcow2")), read);
}

/// It goes on under a name of its own, tells how far it is, and leaves nothing when it is cancelled.
#[test]
#[ignore = "long: make guests"]
fn a_full_copy_is_sparse_and_is_cancelled() {
    let guest = Guest::boot(&Spec::default());
    let daemon = daemon(&guest);
    let (client, vm) = (daemon.client(), guest.name());
    guest.exec("dd if=/dev/urandom of=/mnt/vda/bulk bs=1M count=24 && sync");
    client.json(&["snapshot", "create", vm, "one", "--quiesce", "required"]);
    let before = files(guest.directory());
    let clone = |name| {
        let source = format!("{vm}/one");
        ["volume", "clone", &source, "--disk", "vda", "--full", "--to", name].map(str::to_owned)
    };
    let slow: Vec<String> = clone("slow.qcow2")
        .into_iter()
        .chain(["--bandwidth", "2M", "--no-wait"].map(str::to_owned))
        .collect();
    let slow: Vec<&str> = slow.iter().map(String::as_str).collect();
    let id = client.json(&slow)["operation"]["id"].as_str().unwrap().to_owned();
    let done = || {
        let shown = client.json(&["op", "show", &id]);
        assert_eq!(shown["operation"]["state"], "OPERATION_STATE_RUNNING", "{shown}");
        let progress = shown["operation"]["progress"].as_array().cloned().unwrap_or_default();
        let done = |part: &Value| part["bytes_done"].as_str().unwrap().parse::<u64>().unwrap();
        progress.first().map_or(0, done)
    };
    let patience = std::time::Duration::from_secs(60);
    let first = std::cell::Cell::new(0);
    crate::bed::wait_until("it tells how far it is", patience, || {
        first.set(done());
        first.get() > 0
    });
    crate::bed::wait_until("it goes on", patience, || done() > first.get());
    assert!(!guest.directory().join("slow.qcow2").exists(), "what has the name is complete");
    client.json(&["op", "cancel", &id, "--yes"]);
    crate::bed::wait_until("it is undone", patience, || {
        client.json(&["op", "show", &id])["operation"]["state"] == "OPERATION_STATE_FAILED"
    });
    assert_eq!(client.json(&["op", "show", &id])["operation"]["error"]["reason"], "REASON_CANCELLED");
    assert_eq!(files(guest.directory()), before, "nothing is left of it");

    let whole = clone("whole.qcow2");
    let made = client.json(&whole.each_ref().map(String::as_str));
    let number = |field: &str| made["volume"][field].as_str().unwrap().parse::<u64>().unwrap();
    assert!(number("allocated_bytes") > 24 << 20, "{made}");
    assert!(
        number("allocated_bytes") < number("virtual_size_bytes") * 3 / 4,
        "what is empty stays so: {made}"
    );
}

/// Its path reads the newest state all the time, for whoever takes it; older ones come and go beside it.
#[test]
#[ignore = "long: make guests"]
fn a_volume_that_no_vm_has_is_snapshotted_reverted_and_taken_by_a_vm() {
    let guest = Guest::boot(&Spec::default());
    let daemon = daemon(&guest);
    let client = daemon.client();
    let data = guest.directory().join("data.qcow2");
    images::create(&data, Format::Qcow2, 64);
    std::fs::set_permissions(&data, std::fs::Permissions::from_mode(0o640)).unwrap();
    let before = std::fs::metadata(&data).unwrap();
    let mut digests = Vec::new();
    for (byte, name) in [(1, "one"), (2, "two"), (3, "three")] {
        images::fill(&data, byte);
        client.json(&["volume", "snapshot", "create", name, "--volume", "data.qcow2"]);
        digests.push((name, digest(&data)));
        let owner = |metadata: &std::fs::Metadata| (metadata.uid(), metadata.gid(), metadata.mode());
        assert_eq!(owner(&std::fs::metadata(&data).unwrap()), owner(&before), "whoever opened it still can");
    }
    images::fill(&data, 4);
    let kept = |name: &str| digest(&layer(&client, &format!("data.qcow2/{name}"), "disk"));
    assert!(digests.iter().all(|(name, digest)| kept(name) == *digest));
    let revert = |name: &str| client.json(&["volume", "revert", "data.qcow2", name, "--yes"]);
    for (name, wanted) in &digests {
        revert(name);
        assert_eq!(digest(&data), *wanted, "{name}");
    }
    revert("one");
    images::fill(&data, 5);
    let newest = digest(&data);
    client.json(&["snapshot", "delete", "data.qcow2/two", "--yes"]);
    assert!(kept("one") == digests[0].1 && kept("three") == digests[2].1 && digest(&data) == newest);

    // A VM takes it. What it reads through stays, and its own snapshots are none of these.
    guest.attach("vdc", &data, Format::Qcow2);
    let refused =
        client.run(&["volume", "revert", &format!("{}/vdc", guest.name()), "one", "--stop", "--yes"]);
    assert_eq!(refused.code, 6, "{refused:?}");
    assert!(refused.stderr.contains("is using the volume"), "{refused:?}");
    let disk = format!("{}/vdc", guest.name());
    client.json(&["volume", "snapshot", "create", "with-vm", "--volume", &disk, "--quiesce", "off"]);
    client.json(&["snapshot", "delete", "data.qcow2/one", "data.qcow2/three", "--yes"]);
    guest.exec("dd if=/dev/vdc of=/dev/null bs=1M count=1");
    client.json(&["snapshot", "delete", &format!("{}/with-vm", guest.name()), "--yes"]);
    assert_eq!(guest.image("vdc"), data, "the VM goes on with the path that it was given");
    guest.virsh("detach-disk", &["vdc", "--live"]);
    crate::bed::wait_until("what waited for the VM is merged", std::time::Duration::from_secs(120), || {
        images::chain(&data, Format::Qcow2).len() == 1
    });
    assert_eq!(digest(&data), newest);
    let left = files(guest.directory());
    assert!(!left.iter().any(|file| file.to_string_lossy().contains("vmsnap-0")), "{left:?}");
    assert!(client.run(&["snapshot", "list", "data.qcow2"]).code == 4, "nothing is known of it any more");
}

#[test]
#[ignore = "long: make guests"]
fn a_template_of_two_vms_is_never_written() {
    let one = Guest::define(&Spec::default());
    let two = one.define_beside(&Spec::default());
    let template = one.directory().join("template.qcow2");
    std::fs::rename(one.image("vda"), &template).unwrap();
    std::fs::write(one.image("vda"), "").unwrap();
    for guest in [&one, &two] {
        images::cover(&guest.image("vda"), &template, Format::Qcow2);
    }
    let (read, bytes) = (digest(&template), std::fs::read(&template).unwrap());
    one.start();
    two.start();
    let daemon = daemon(&one);
    let client = daemon.client();
    for guest in [&one, &two] {
        let vm = guest.name();
        for name in ["a", "b"] {
            write(guest, name);
            client.json(&["snapshot", "create", vm, name]);
        }
        client.json(&["snapshot", "revert", &format!("{vm}/a"), "--yes"]);
        guest.wait_until_up();
        client.json(&["snapshot", "delete", &format!("{vm}/a"), "--yes"]);
    }
    // Off, too; and then nothing of the snapshots is left.
    two.shutdown();
    for guest in [&one, &two] {
        client.json(&["snapshot", "delete", &format!("{}/b", guest.name()), "--yes"]);
        let active = guest.image("vda");
        assert_eq!(images::chain(&active, Format::Qcow2), [active.clone(), template.clone()]);
    }
    assert!(std::fs::read(&template).unwrap() == bytes, "the template was written to");
    assert_eq!(digest(&template), read);

    // What would write to it is refused, and says why.
    let volume = format!("{}/vda", one.name());
    let refused = client.run(&["volume", "delete", &volume, "--yes"]);
    assert_eq!(refused.code, 2, "{refused:?}");
    assert!(refused.stderr.contains("not a clone of ours"), "{refused:?}");
    for named in ["template.qcow2".to_owned(), template.display().to_string()] {
        let refused = client.run(&["volume", "snapshot", "create", "x", "--volume", &named]);
        assert_eq!(refused.code, 6, "{refused:?}");
        assert!(
            refused.stderr.contains("LAYER_IN_USE") && refused.stderr.contains("reads it"),
            "{refused:?}"
        );
    }
    client.json(&["snapshot", "create", one.name(), "c"]);
    let over = ["volume", "clone", &format!("{}/c", one.name()), "--disk", "vda", "--to", "template.qcow2"];
    let refused = client.run(&over);
    assert_eq!(refused.code, 5, "{refused:?}");
    assert!(refused.stderr.contains("FILE_EXISTS"), "{refused:?}");
    let value: Value = client.json(&["snapshot", "list", one.name()]);
    assert_eq!(value["snapshots"].as_array().unwrap().len(), 1);
    assert!(std::fs::read(&template).unwrap() == bytes);
}
