//! A real guest whose QEMU has done what libvirt does not know of, as if that had died just then. It has switched to the
//! overlays of a snapshot, and is killed before anybody looks: what the guest wrote last is in the VM, not in the snapshot.
//! Or it stands still for a capture of memory: it does not stay so.

use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::bed::named::{assert_files, write};
use crate::bed::{Client, Daemon, Format, Guest, Node, Setup, Spec, end, eventually, images, wait_until};

/// Its reservation and two overlays come first.
const SWITCH: u64 = 3;

/// The same with memory, whose image has to be prepared.
const CAPTURE: u64 = 4;

const TRIES: usize = 10;

const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn a_switch_that_libvirt_does_not_know_of() {
    Node::within(|node| {
        let guest = Guest::boot(&Spec::default());
        // libvirt captures memory with the disks.
        let configuration = "background_captures = 'never'".to_owned();
        let mut daemon = Daemon::start_with(Setup { configuration, ..Setup::default() });
        write(&guest, "first");
        what_was_written_last_is_in_the_vm(&guest, &mut daemon, node);
        a_vm_that_was_started_on_the_bases_needs_a_person(&guest, &mut daemon, node);
        a_pause_that_libvirt_does_not_know_of_ends(&guest, &mut daemon, node);
    });
}

fn what_was_written_last_is_in_the_vm(guest: &Guest, daemon: &mut Daemon, node: &Node) {
    let (client, vm) = (daemon.client(), guest.name());
    let unseen = Unseen::by(daemon, node, guest, "one", "second");
    daemon.restart();
    let ended = eventually("the snapshot is taken", PATIENCE, || has_ended(&client, &unseen.operation));
    assert_eq!(ended["state"], "OPERATION_STATE_SUCCEEDED", "{ended:#}");
    for (target, overlay) in &unseen.overlays {
        assert_eq!(guest.image(target), *overlay, "the definition names what the guest wrote to last");
    }
    guest.start();
    guest.wait_until_up();
    assert_files(guest, &["first", "second"], &[]);
    client.json(&["snapshot", "revert", "--vm", vm, "one", "--yes"]);
    guest.wait_until_up();
    assert_files(guest, &["first"], &["second"]);
}

/// Nothing is switched to overlays that hold something already; a person moves them away.
fn a_vm_that_was_started_on_the_bases_needs_a_person(guest: &Guest, daemon: &mut Daemon, node: &Node) {
    let client = daemon.client();
    let unseen = Unseen::by(daemon, node, guest, "two", "third");
    guest.start();
    guest.wait_until_up();
    write(guest, "fourth");
    daemon.restart();
    let stuck = eventually("a person is asked", PATIENCE, || {
        let operation = show(&client, &unseen.operation)?;
        (operation["state"] == "OPERATION_STATE_STUCK").then_some(operation)
    });
    let (_, overlay) = &unseen.overlays[0];
    assert!(stuck.to_string().contains(&overlay.display().to_string()), "{stuck:#}");
    for (target, overlay) in &unseen.overlays {
        assert_ne!(guest.image(target), *overlay);
        let name = overlay.file_name().unwrap().to_string_lossy().replace("vmsnap-", "kept-");
        fs::rename(overlay, overlay.with_file_name(name)).unwrap();
    }
    client.run(&["op", "resolve", &unseen.operation, "retry", "--yes"]);
    let ended = eventually("it is undone", PATIENCE, || has_ended(&client, &unseen.operation));
    assert_eq!(ended["state"], "OPERATION_STATE_FAILED", "{ended:#}");
    assert_files(guest, &["first", "fourth"], &["third"]);
}

/// libvirt takes it for a person's.
fn a_pause_that_libvirt_does_not_know_of_ends(guest: &Guest, daemon: &mut Daemon, node: &mut Node) {
    let (client, vm) = (daemon.client(), guest.name());
    let operation = die_in_the_capture(daemon, node, vm, "three");
    pause_by_hand(vm);
    forget_the_pause(vm);
    node.start_libvirtd();
    // It looks at its VMs one after the other.
    wait_until("libvirt has looked", PATIENCE, || guest.virsh("domstate", &["--reason"]) == "paused (user)");
    daemon.restart();
    let ended = eventually("the snapshot is taken", PATIENCE, || has_ended(&client, &operation));
    assert_eq!(ended["state"], "OPERATION_STATE_SUCCEEDED", "{ended:#}");
    assert_eq!(guest.state(), "running", "{ended:#}");
    client.json(&["snapshot", "revert", "--vm", vm, "three", "--yes"]);
    guest.wait_until_up();
}

/// Begins a snapshot with memory, and kills the daemon and libvirtd when the journal is at the switch. Gives the operation.
fn die_in_the_capture(daemon: &mut Daemon, node: &mut Node, vm: &str, name: &str) -> String {
    let client = daemon.client();
    for _ in 0..TRIES {
        let create = ["snapshot", "create", vm, name, "--memory", "--quiesce", "off", "--no-wait"];
        let begun = client.json(&create);
        let id = begun["operation"]["id"].as_str().unwrap().to_owned();
        let at = eventually("memory is captured", PATIENCE, || step(&client, &id, CAPTURE));
        if at == CAPTURE {
            daemon.kill();
            node.kill_libvirtd();
            return id;
        }
        client.json(&["snapshot", "delete", "--vm", vm, name, "--yes"]);
    }
    panic!("the daemon was faster {TRIES} times");
}

/// What libvirt tells QEMU before it captures its memory, whatever has come of the capture since. The monitor is free:
/// libvirtd is dead.
fn pause_by_hand(vm: &str) {
    let places = fs::read_dir("/var/lib/libvirt/qemu").unwrap().map(|entry| entry.unwrap().path());
    let mut of_vm = places.filter(|path| is_of(path, vm));
    let mut monitor = UnixStream::connect(of_vm.next().unwrap().join("monitor.sock")).unwrap();
    monitor.set_read_timeout(Some(PATIENCE)).unwrap();
    for command in ["qmp_capabilities", "migrate_cancel", "cont", "stop"] {
        monitor.write_all(json!({ "execute": command, "id": command }).to_string().as_bytes()).unwrap();
    }
    let answers = BufReader::new(monitor).lines().map(Result::unwrap);
    let answer = answers.filter(|answer| answer.contains("\"id\"")).nth(3).unwrap();
    assert!(answer.contains("return"), "{answer}");
}

/// What libvirtd has noted of the VM is what it had noted before the pause.
fn forget_the_pause(vm: &str) {
    let note = format!("/run/libvirt/qemu/{vm}.xml");
    let known = fs::read_to_string(&note).unwrap();
    fs::write(&note, known.replace("state='paused' reason='snapshot'", "state='running' reason='booted'"))
        .unwrap();
}

/// Whether it is where libvirt keeps the sockets of this run of the VM: `domain-NUMBER-NAME`.
fn is_of(directory: &Path, vm: &str) -> bool {
    let name = directory.file_name().unwrap().to_string_lossy();
    // The name is cut off where it is long.
    name.splitn(3, '-').nth(2).is_some_and(|name| name.len() > 8 && vm.starts_with(name))
}

/// A switch that QEMU has carried out and nobody has seen, before QEMU was killed. The daemon is dead.
struct Unseen {
    operation: String,
    /// Each disk with its overlay.
    overlays: Vec<(String, PathBuf)>,
}

impl Unseen {
    /// The guest writes a file after it.
    fn by(daemon: &mut Daemon, node: &Node, guest: &Guest, snapshot: &str, file: &str) -> Self {
        let vm = guest.name();
        let operation = die_before_the_switch(daemon, node, guest, snapshot);
        let overlays = overlays(guest);
        switch_by_hand(vm, &overlays);
        write(guest, file);
        guest.exec("sync");
        end(Node::qemu(vm).unwrap());
        guest.wait_for_state("shut off");
        for (target, overlay) in &overlays {
            assert_ne!(guest.image(target), *overlay, "libvirt knows nothing of it");
        }
        Self { operation, overlays }
    }
}

/// Begins a snapshot, and kills the daemon when its journal is at the switch. libvirtd stands still by then, so the switch
/// was not asked for. Gives the operation.
fn die_before_the_switch(daemon: &mut Daemon, node: &Node, vm: &Guest, name: &str) -> String {
    let (client, libvirtd) = (daemon.client(), Pid::from_raw(node.libvirtd().unwrap().try_into().unwrap()));
    let disks = vm.disks();
    for _ in 0..TRIES {
        let create = ["snapshot", "create", vm.name(), name, "--quiesce", "off", "--no-wait"];
        // The overlays are made without libvirt.
        let (begun, standstill) = std::thread::scope(|scope| {
            let before = made(vm).len();
            let standstill = scope.spawn(move || {
                wait_until_busily(|| made(vm).len() > before);
                Standstill::of(libvirtd)
            });
            (client.json(&create), standstill.join().unwrap())
        });
        let id = begun["operation"]["id"].as_str().unwrap().to_owned();
        let at = eventually("the switch is to come", PATIENCE, || step(&client, &id, SWITCH));
        if at == SWITCH {
            daemon.kill();
            drop(standstill);
            if vm.disks() == disks {
                return id;
            }
            daemon.restart();
        } else {
            drop(standstill);
        }
        // It was too late.
        wait_until("the snapshot is there", PATIENCE, || has_ended(&client, &id).is_some());
        client.json(&["snapshot", "delete", "--vm", vm.name(), name, "--yes"]);
    }
    panic!("the daemon was faster {TRIES} times");
}

/// What comes after it is a matter of milliseconds.
fn wait_until_busily(holds: impl Fn() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < PATIENCE, "no overlay is made");
        std::thread::yield_now();
    }
}

/// A process that stands still.
struct Standstill(Pid);

impl Standstill {
    fn of(process: Pid) -> Self {
        kill(process, Signal::SIGSTOP).unwrap();
        Self(process)
    }
}

impl Drop for Standstill {
    fn drop(&mut self) {
        kill(self.0, Signal::SIGCONT).unwrap();
    }
}

/// The step that an operation is at, once it is at the switch.
fn step(client: &Client, id: &str, switch: u64) -> Option<u64> {
    let operation = client.json(&["op", "show", id])["operation"].clone();
    let has_ended = !operation["end_time"].is_null();
    operation["current_step"].as_u64().filter(|step| has_ended || *step >= switch)
}

fn has_ended(client: &Client, id: &str) -> Option<Value> {
    show(client, id).filter(|operation| !operation["end_time"].is_null())
}

/// None while libvirt is away.
fn show(client: &Client, id: &str) -> Option<Value> {
    let shown = client.run(&["-o", "json", "op", "show", id]);
    (shown.code == 0).then(|| shown.json()["operation"].clone())
}

/// Each disk with the overlay that was made for it.
fn overlays(guest: &Guest) -> Vec<(String, PathBuf)> {
    let made = made(guest);
    let of = |base: &Path| {
        let lies_on_it =
            |path: &&PathBuf| images::chain(path, Format::Qcow2).get(1).is_some_and(|b| b == base);
        made.iter().find(lies_on_it).unwrap_or_else(|| panic!("nothing lies on {}", base.display())).clone()
    };
    guest.disks().into_iter().map(|(target, base)| (target, of(&base))).collect()
}

fn made(guest: &Guest) -> Vec<PathBuf> {
    let entries = fs::read_dir(guest.directory()).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| is_ours(path)).collect()
}

fn is_ours(path: &Path) -> bool {
    let name = path.file_name().unwrap().to_string_lossy();
    name.starts_with("vmsnap-") && name.ends_with(".qcow2")
}

/// What libvirt tells QEMU in a switch.
fn switch_by_hand(vm: &str, overlays: &[(String, PathBuf)]) {
    let blocks = monitor(vm, &json!({ "execute": "query-block" }));
    let actions: Vec<Value> = overlays
        .iter()
        .map(|(target, overlay)| {
            fs::set_permissions(overlay, Permissions::from_mode(0o666)).unwrap();
            let base = images::chain(overlay, Format::Qcow2)[1].display().to_string();
            let inserted = blocks.as_array().unwrap().iter().map(|block| &block["inserted"]);
            let active = inserted.clone().find(|inserted| inserted["image"]["filename"] == base.as_str());
            let node = active.unwrap_or_else(|| panic!("QEMU does not write to {base}: {blocks:#}"));
            json!({ "type": "blockdev-snapshot-sync", "data": {
                "node-name": node["node-name"], "snapshot-file": overlay, "format": "qcow2", "mode": "existing",
                "snapshot-node-name": format!("by-hand-{target}"),
            }})
        })
        .collect();
    monitor(vm, &json!({ "execute": "transaction", "arguments": { "actions": actions } }));
}

fn monitor(vm: &str, command: &Value) -> Value {
    let answer = crate::bed::virsh::run(&["qemu-monitor-command", vm, &command.to_string()]);
    let answer: Value = serde_json::from_str(&answer).unwrap();
    assert!(answer["error"].is_null(), "{answer:#}");
    answer["return"].clone()
}
