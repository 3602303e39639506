//! The daemon and the client on real guests under real libvirt: the main job, kills in the middle of it, bad input.
//!
//! Looks at the guest from inside and at the images from outside; never asks the daemon whether it was right.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::bed::named::{assert_files, write};
use crate::bed::{Agent, Client, Daemon, Disk, Format, Guest, Progress, Setup, Spec, eventually};
use serde_json::Value;
use tonic_health::pb::health_check_response::ServingStatus;

/// An operation on a small guest ends within this, on the slowest machine.
const END: Duration = Duration::from_secs(180);

fn operation(client: &Client, id: &str) -> Value {
    client.json(&["op", "show", id])["operation"].clone()
}

fn wait_for_end(client: &Client, id: &str) -> Value {
    eventually(&format!("operation {id} ends"), END, || {
        let reply = client.run(&["-o", "json", "op", "show", id]);
        let operation = (reply.code == 0).then(|| reply.json()["operation"].clone())?;
        let state = operation["state"].as_str()?;
        matches!(state, "OPERATION_STATE_SUCCEEDED" | "OPERATION_STATE_FAILED" | "OPERATION_STATE_STUCK")
            .then_some(operation)
    })
}

/// Begins something and gives the id of its operation.
fn begin(client: &Client, arguments: &[&str]) -> String {
    let answer = client.json(&[arguments, &["--no-wait"]].concat());
    answer["operation"]["id"].as_str().unwrap().to_owned()
}

fn names(client: &Client, vm: &str) -> Vec<String> {
    let list = client.json(&["snapshot", "list", vm]);
    let snapshots = list["snapshots"].as_array().unwrap();
    for snapshot in snapshots {
        assert_eq!(snapshot["state"], "SNAPSHOT_STATE_READY", "{snapshot}");
    }
    snapshots.iter().map(|snapshot| snapshot["name"].as_str().unwrap().to_owned()).collect()
}

fn assert_well(guest: &Guest) {
    eventually("the guest agent answers", END, || guest.agent_answers().then_some(()));
    assert!(!guest.is_frozen(), "the guest is frozen");
    assert_eq!(guest.state(), "running");
}

#[test]
fn snapshots_reverts_and_deletions_read_what_they_should() {
    let guest = Guest::boot(&Spec::default());
    let daemon = Daemon::start();
    let client = daemon.client();
    let (vm, first_images) = (guest.name(), guest.disks());

    write(&guest, "first");
    let created = client.json(&["snapshot", "create", vm, "one", "--quiesce", "required"]);
    assert_eq!(created["snapshot"]["consistency"], "CONSISTENCY_FILESYSTEM");
    assert!(created["snapshot"]["frozen_ms"].as_f64().unwrap() > 0.0);
    write(&guest, "second");
    let before = guest.counter();
    let created = client.json(&["snapshot", "create", vm, "two", "--memory"]);
    assert_eq!(created["snapshot"]["consistency"], "CONSISTENCY_MEMORY");
    write(&guest, "third");
    client.json(&["snapshot", "create", vm, "three"]);
    write(&guest, "fourth");
    assert_eq!(names(&client, vm), ["one", "two", "three"]);

    client.json(&["snapshot", "revert", &format!("{vm}/two"), "--yes"]);
    assert_well(&guest);
    let after = guest.counter();
    assert_eq!(after.token, before.token, "the same program runs");
    assert!(after.number >= before.number);
    assert_files(&guest, &["first", "second"], &["third", "fourth"]);
    // As often as wanted.
    client.json(&["snapshot", "revert", &format!("{vm}/two"), "--yes"]);
    assert_eq!(guest.counter().token, before.token);

    client.json(&["snapshot", "revert", &format!("{vm}/three"), "--yes"]);
    guest.wait_until_up();
    assert_files(&guest, &["first", "second", "third"], &["fourth"]);
    assert_ne!(guest.counter().token, before.token, "without memory it is a boot");

    // Middle, oldest, newest; the guest runs on and keeps its files.
    for name in ["two", "one", "three"] {
        client.json(&["snapshot", "delete", &format!("{vm}/{name}"), "--yes"]);
        assert_files(&guest, &["first", "second", "third"], &["fourth"]);
    }
    assert_eq!(names(&client, vm), Vec::<String>::new());
    assert_eq!(guest.disks(), first_images, "the guest is back on its first images");
}

#[test]
#[ignore = "long: make guests"]
fn a_vm_that_is_off() {
    let guest = Guest::boot(&Spec::default());
    let daemon = Daemon::start();
    let client = daemon.client();
    let vm = guest.name();
    write(&guest, "first");
    guest.exec("sync");
    guest.shutdown();
    guest.wait_for_state("shut off");
    client.json(&["snapshot", "create", vm, "one"]);
    guest.start();
    guest.wait_until_up();
    write(&guest, "second");
    guest.exec("sync");
    guest.shutdown();
    guest.wait_for_state("shut off");
    client.json(&["snapshot", "create", vm, "two"]);
    client.json(&["snapshot", "revert", &format!("{vm}/one"), "--yes", "--then", "running"]);
    guest.wait_until_up();
    assert_files(&guest, &["first"], &["second"]);
    guest.destroy();
    client.json(&["snapshot", "revert", &format!("{vm}/two"), "--yes"]);
    assert_eq!(guest.state(), "shut off");
    for name in ["one", "two"] {
        client.json(&["snapshot", "delete", &format!("{vm}/{name}"), "--yes"]);
    }
    guest.start();
    guest.wait_until_up();
    assert_files(&guest, &["first", "second"], &[]);
}

/// Begins something, kills the daemon as soon as the operation has come to a step, and starts it again.
fn kill_at(daemon: &mut Daemon, arguments: &[&str], step: u64) -> Value {
    let client = daemon.client();
    let id = begin(&client, arguments);
    eventually("the step is reached", END, || {
        let operation = operation(&client, &id);
        let has_ended = !operation["end_time"].is_null();
        (has_ended || operation["current_step"].as_u64()? >= step).then_some(())
    });
    daemon.kill();
    daemon.restart();
    let ended = wait_for_end(&client, &id);
    assert_ne!(ended["state"], "OPERATION_STATE_STUCK", "{ended:#}");
    ended
}

#[test]
#[ignore = "long: make guests"]
fn kills_during_create_revert_and_delete() {
    let guest = Guest::boot_alone(&Spec::default());
    let mut daemon = Daemon::start();
    let client = daemon.client();
    let vm = guest.name().to_owned();
    write(&guest, "first");
    client.json(&["snapshot", "create", &vm, "base"]);

    let mut expected = vec!["base".to_owned()];
    for step in 0..6 {
        let name = format!("create-{step}");
        let ended = kill_at(&mut daemon, &["snapshot", "create", &vm, &name], step);
        assert_well(&guest);
        if ended["state"] == "OPERATION_STATE_SUCCEEDED" {
            expected.push(name);
        }
        assert_eq!(names(&client, &vm), expected);
        assert_files(&guest, &["first"], &[]);
        write(&guest, &format!("after-{step}"));
    }
    for step in [1, 3, 4, 5] {
        write(&guest, "doomed");
        let ended = kill_at(&mut daemon, &["snapshot", "revert", &format!("{vm}/base"), "--yes"], step);
        guest.wait_until_up();
        assert_well(&guest);
        let is_back = ended["state"] == "OPERATION_STATE_SUCCEEDED";
        assert_files(&guest, &["first"], if is_back { &["doomed"] } else { &[] });
    }
    let progress = Progress::listen(&guest);
    guest.start_writer("vda");
    let leaves = expected.iter().rev().filter(|name| *name != "base").cloned().collect::<Vec<_>>();
    for (step, name) in leaves.iter().enumerate() {
        let step = u64::try_from(step).unwrap() % 3;
        let ended = kill_at(&mut daemon, &["snapshot", "delete", &format!("{vm}/{name}"), "--yes"], step);
        progress.wait_for_next("vda");
        assert_eq!(ended["state"], "OPERATION_STATE_SUCCEEDED", "{ended:#}");
        assert_well(&guest);
    }
    let ended = kill_at(&mut daemon, &["snapshot", "delete", &format!("{vm}/base"), "--yes"], 1);
    assert_eq!(ended["state"], "OPERATION_STATE_SUCCEEDED", "{ended:#}");
    progress.wait_for_next("vda");
    guest.stop_writer("vda");
    guest.ring("vda").assert_whole();
    assert_files(&guest, &["first"], &[]);
    assert_eq!(names(&client, &vm), Vec::<String>::new());
}

/// Kills the daemon while it has the guest frozen. Gives the operation.
fn die_frozen(daemon: &mut Daemon, guest: &Guest) -> String {
    let client = daemon.client();
    for attempt in 0..20 {
        let name = format!("attempt-{attempt}");
        let id = begin(&client, &["snapshot", "create", guest.name(), &name]);
        let caught = eventually("it freezes, or is over", END, || {
            let operation = operation(&client, &id);
            let is_over = !operation["end_time"].is_null();
            let steps = operation["steps"].as_array()?;
            let is_past = |step: &Value| {
                step["description"].as_str().is_some_and(|words| words.starts_with("freeze"))
                    && step["state"] == "STEP_STATE_DONE"
            };
            (is_over || steps.iter().any(is_past)).then_some(!is_over)
        });
        if !caught {
            continue;
        }
        daemon.kill();
        if guest.is_frozen() {
            return id;
        }
        daemon.restart();
        wait_for_end(&client, &id);
    }
    panic!("the daemon is never caught with the guest frozen");
}

#[test]
fn a_guest_is_thawed_without_a_daemon_and_somebody_elses_is_not() {
    let guest = Guest::boot(&Spec::default());
    let mut daemon = Daemon::start();
    write(&guest, "first");
    let id = die_frozen(&mut daemon, &guest);
    assert!(daemon.run_verb("thaw").success());
    assert_well(&guest);
    write(&guest, "second");

    guest.virsh("domfsfreeze", &[]);
    assert!(daemon.run_verb("thaw").success());
    assert!(guest.is_frozen(), "it was frozen by somebody else");
    daemon.restart();
    let ended = wait_for_end(&daemon.client(), &id);
    assert_ne!(ended["state"], "OPERATION_STATE_STUCK", "{ended:#}");
    assert!(guest.is_frozen(), "it was frozen by somebody else");
    guest.virsh("domfsthaw", &[]);
    assert_well(&guest);
    assert_files(&guest, &["first", "second"], &[]);
    // One that runs does it by itself.
    assert!(daemon.run_verb("thaw").success());
}

fn check(client: &Client, arguments: &[&str], code: i32, reason: &str) {
    let reply = client.run(arguments);
    assert_eq!(reply.code, code, "{arguments:?}: {}", reply.stderr);
    assert!(reply.stderr.contains(&format!("reason: {reason}")), "{arguments:?}: {}", reply.stderr);
    assert!(reply.stderr.contains("changed: nothing"), "{arguments:?}: {}", reply.stderr);
}

#[test]
fn bad_input_is_told_and_changes_nothing() {
    let guest = Guest::boot(&Spec { agent: Agent::Absent, ..Spec::default() });
    let proxy = crate::proxy::Proxy::start();
    // No file system has so much to leave free.
    let reserve = "reserve_bytes = 1000000000000000000\n";
    let full = Daemon::start_with(Setup { configuration: reserve.to_owned(), ..Setup::default() });
    let uri = format!("libvirt_uri = \"{}\"\n", proxy.uri());
    let daemon = Daemon::start_with(Setup { configuration: uri, ..Setup::default() });
    let client = daemon.client();
    daemon.wait_for_health("libvirt", ServingStatus::Serving);
    let (vm, disks) = (guest.name(), guest.disks());

    let long = "n".repeat(300);
    check(&client, &["snapshot", "create", "no-such-vm"], 4, "VM_NOT_FOUND");
    check(&client, &["snapshot", "create", vm, "x", "--disk", "vdz"], 4, "DISK_NOT_FOUND");
    check(&client, &["snapshot", "create", vm, "a/b"], 2, "INVALID_REQUEST");
    check(&client, &["snapshot", "create", vm, &long], 2, "INVALID_REQUEST");
    check(&client, &["snapshot", "create", vm, "x", "--quiesce", "required"], 6, "AGENT_UNAVAILABLE");
    check(&client, &["snapshot", "show", "no-such-snapshot"], 4, "SNAPSHOT_NOT_FOUND");
    check(&client, &["op", "show", "no-such-operation"], 4, "OPERATION_NOT_FOUND");
    full.wait_for_health("libvirt", ServingStatus::Serving);
    check(&full.client(), &["snapshot", "create", vm, "x", "--memory"], 10, "NO_SPACE");

    // A disk that we do not snapshot is named.
    let share = guest.directory().join("shared.raw");
    std::fs::write(&share, vec![0; 1 << 20]).unwrap();
    let xml = guest.directory().join("shared.xml");
    let disk = format!(
        "<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='{}'/>\
         <target dev='vdx' bus='virtio'/><shareable/></disk>",
        share.display()
    );
    std::fs::write(&xml, disk).unwrap();
    guest.virsh("attach-device", &[xml.to_str().unwrap(), "--live"]);
    check(&client, &["snapshot", "create", vm, "x"], 6, "DISK_NOT_SNAPSHOTTABLE");
    let only = client.json(&["snapshot", "create", vm, "only-vda", "--disk", "vda"]);
    assert_eq!(only["snapshot"]["disks"].as_array().unwrap().len(), 1);
    check(&client, &["snapshot", "create", vm, "only-vda", "--disk", "vda"], 5, "SNAPSHOT_EXISTS");
    client.json(&["snapshot", "delete", &format!("{vm}/only-vda"), "--yes"]);
    guest.virsh("detach-device", &[xml.to_str().unwrap(), "--live"]);

    // A block job that is somebody else's.
    let copy = guest.directory().join("copy.raw");
    let copy = ["vdb", "--dest", copy.to_str().unwrap(), "--transient-job", "--format", "raw"];
    guest.virsh("blockcopy", &copy);
    check(&client, &["snapshot", "create", vm, "x"], 6, "BLOCK_JOB_RUNNING");
    guest.virsh("blockjob", &["vdb", "--abort"]);

    // libvirtd goes away, and comes back.
    proxy.cut();
    daemon.wait_for_health("libvirt", ServingStatus::NotServing);
    assert_eq!(daemon.health(""), ServingStatus::Serving, "degraded, not dead");
    check(&client, &["snapshot", "create", vm, "x"], 8, "LIBVIRT_UNAVAILABLE");
    proxy.mend();
    daemon.wait_for_health("libvirt", ServingStatus::Serving);

    assert_eq!(names(&client, vm), Vec::<String>::new());
    assert_eq!(guest.disks(), disks, "nothing was changed");
    client.json(&["snapshot", "create", vm, "works-again"]);
    client.json(&["snapshot", "delete", &format!("{vm}/works-again"), "--yes"]);
    assert_eq!(guest.disks(), disks);
}

#[test]
#[ignore = "long: make guests"]
fn deleting_a_large_overlay_shows_progress_while_the_guest_writes() {
    let disks = vec![Disk { format: Format::Qcow2, size_mib: 1536 }, Disk::new(Format::Qcow2)];
    let guest = Guest::boot(&Spec { disks, ..Spec::default() });
    let daemon = Daemon::start();
    let client = daemon.client();
    let vm = guest.name();
    client.json(&["snapshot", "create", vm, "one"]);
    guest.exec("dd if=/dev/zero of=/mnt/vda/large bs=1M count=1024 conv=fsync");
    let progress = Progress::listen(&guest);
    guest.start_writer("vdb");
    progress.wait_for_next("vdb");

    // It would take hours so.
    let id = begin(&client, &["snapshot", "delete", &format!("{vm}/one"), "--yes", "--bandwidth", "64KiB"]);
    eventually("the merge has begun", END, || {
        let operation = operation(&client, &id);
        operation["progress"].as_array().is_some_and(|moving| !moving.is_empty()).then_some(())
    });
    // Unlimited, a fast machine may copy all of it between two looks.
    client.json(&["op", "set", &id, "--bandwidth", "128MiB"]);
    let mut seen: Vec<u64> = Vec::new();
    eventually("the deletion ends", END, || {
        let operation = operation(&client, &id);
        let moved =
            operation["progress"].as_array().into_iter().flatten().find(|progress| progress["disk"] == "vda");
        if let Some(done) = moved.and_then(|progress| progress["bytes_done"].as_str()) {
            seen.push(done.parse().unwrap());
        }
        (!operation["end_time"].is_null()).then_some(())
    });
    let written = progress.last("vdb");
    assert!(progress.wait_for_next("vdb") > written, "the guest writes on");
    guest.stop_writer("vdb");
    guest.ring("vdb").assert_whole();
    assert!(seen.is_sorted(), "progress never goes back: {seen:?}");
    seen.dedup();
    assert!(seen.len() > 3, "progress was seen to grow: {seen:?}");
    assert_eq!(names(&client, vm), Vec::<String>::new());
}

#[test]
fn a_client_made_only_from_reflection() {
    let guest = Guest::boot(&Spec::default());
    let daemon = Daemon::start();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python/client.py");
    let output = Command::new(crate::bed::python())
        .arg(script)
        .arg(daemon.socket())
        .args([guest.name(), "from-python"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    let services: Vec<&str> =
        told["services"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
    for service in ["Event", "Node", "Operation", "Schedule", "Snapshot", "Vm", "Volume"] {
        let name = format!("vmsnap.v1.{service}Service");
        assert!(services.contains(&name.as_str()), "{name} is not in {services:?}");
    }
    assert_eq!(told["states"].as_array().unwrap().last().unwrap(), "OPERATION_STATE_SUCCEEDED");
    assert_eq!(told["snapshot"]["name"], "from-python");
    assert_eq!(told["snapshot"]["state"], "SNAPSHOT_STATE_READY");
    assert_eq!(told["health"], "SERVING");
    assert_well(&guest);
    assert_eq!(names(&daemon.client(), guest.name()), ["from-python"]);
}

#[test]
fn a_second_daemon_on_the_same_state_is_refused_and_a_term_ends_the_first() {
    let mut daemon = Daemon::start();
    let second = Command::new(env!("CARGO_BIN_EXE_vmsnapd"))
        .arg("--state-dir")
        .arg(daemon.state_directory())
        .arg("--socket")
        .arg(daemon.socket().with_extension("second"))
        .output()
        .unwrap();
    assert_eq!(second.status.code(), Some(1));
    let words = String::from_utf8_lossy(&second.stderr);
    assert!(words.contains("another vmsnapd runs on"), "{words}");
    assert!(daemon.is_running());
    assert!(daemon.stop().success());
    assert!(!daemon.socket().exists(), "the socket goes with the daemon");
}
