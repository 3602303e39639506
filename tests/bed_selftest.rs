//! Proves the test bed itself: what it says of a guest is so, and it leaves nothing behind.

#![allow(clippy::disallowed_methods, reason = "it runs itself as a child that dies")]

#[path = "bed/mod.rs"]
mod bed;

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use bed::scratch::Scratch;
use bed::{Agent, Disk, Filler, Format, Guest, Node, Progress, Spec, images, virsh, wait_until};

#[test]
fn a_guest_is_what_the_bed_says() {
    let guest = Guest::boot(&Spec::default());
    files_reach_the_disk(&guest);
    a_freeze_stalls_the_writers_and_a_thaw_lets_them_go_on(&guest);
    the_counter_lives_through_a_suspend(&guest);
    memory_lives_through_a_save_and_restore(&guest);
    a_cold_boot_starts_another_counter(&guest);
    a_disk_can_be_plugged_in(&guest);
    let (name, directory) = (guest.name().to_owned(), guest.directory().to_owned());
    drop(guest);
    assert!(!directory.exists(), "{} was left behind", directory.display());
    assert!(virsh::try_run(&["domstate", &name]).is_err(), "{name} was left behind");
}

#[test]
fn a_node_of_its_own() {
    let name = Node::within(|node| {
        node.limit_images(256);
        assert_eq!(virsh::run(&["list", "--all", "--name"]), "");
        let guest = Guest::define(&Spec::default());
        node.kill_libvirtd();
        assert!(virsh::try_run(&["domstate", guest.name()]).is_err(), "nobody answers");
        node.start_libvirtd();
        assert_eq!(guest.state(), "shut off");
        let small = node.file_system("small", 16);
        let filler = Filler::fill(&small);
        assert!(std::fs::write(small.join("more"), [0; 8192]).is_err(), "it is full");
        drop(filler);
        std::fs::write(small.join("more"), [0; 8192]).unwrap();
        assert!(guest.directory().exists());
        guest.name().to_owned()
    });
    assert!(virsh::try_run(&["domstate", &name]).is_err(), "the machine's own libvirtd never knew {name}");
}

fn files_reach_the_disk(guest: &Guest) {
    let content: Vec<u8> = (0..200_000_u32).flat_map(u32::to_le_bytes).collect();
    guest.write_file("/mnt/vda/large", &content);
    guest.write_file("/mnt/vdb/small", b"small\n");
    assert!(guest.read_file("/mnt/vda/large").as_deref() == Some(&content));
    assert_eq!(guest.read_file("/mnt/vda/none"), None);
    assert!(guest.try_exec("exit 3", b"").code == Some(3));

    // From outside; the filesystem is frozen so that the image is consistent and stands still.
    guest.virsh("domfsfreeze", &[]);
    let (vda, vdb) = (guest.image("vda"), guest.image("vdb"));
    assert!(images::read_file(&vda, Format::Qcow2, "/large").as_deref() == Some(&content));
    assert_eq!(images::read_file(&vdb, Format::Raw, "/small").as_deref(), Some(&b"small\n"[..]));
    assert_eq!(images::read_file(&vdb, Format::Raw, "/none"), None);
    let before = images::digest(&vdb, Format::Raw);
    assert_eq!(before, images::digest(&vdb, Format::Raw));
    assert_eq!(images::chain(&vda, Format::Qcow2), [vda]);
    guest.virsh("domfsthaw", &[]);
    guest.write_file("/mnt/vdb/small", b"other\n");
    assert_ne!(before, images::digest(&vdb, Format::Raw));
}

fn a_freeze_stalls_the_writers_and_a_thaw_lets_them_go_on(guest: &Guest) {
    const FROZEN: Duration = Duration::from_millis(700);
    let progress = Progress::listen(guest);
    for target in ["vda", "vdb"] {
        guest.start_writer(target);
        progress.wait_for_next(target);
    }
    let start = Instant::now();
    guest.virsh("domfsfreeze", &[]);
    assert!(guest.is_frozen());
    std::thread::sleep(FROZEN);
    guest.virsh("domfsthaw", &[]);
    assert!(!guest.is_frozen());
    for target in ["vda", "vdb"] {
        progress.wait_for_next(target);
        assert!(progress.longest_stall(target, start, Instant::now()) >= FROZEN);
        guest.stop_writer(target);
        guest.ring(target).assert_whole();
        assert!(guest.ring(target).last >= progress.last(target));
        progress.assert_monotonic(target);
    }
}

fn the_counter_lives_through_a_suspend(guest: &Guest) {
    let before = guest.counter();
    guest.virsh("suspend", &[]);
    assert_eq!(guest.state(), "paused");
    guest.virsh("resume", &[]);
    wait_until("the counter goes on", Duration::from_secs(60), || {
        let now = guest.counter();
        assert_eq!(now.token, before.token);
        now.number > before.number
    });
}

fn memory_lives_through_a_save_and_restore(guest: &Guest) {
    let image = guest.directory().join("memory.save").display().to_string();
    guest.exec("echo before > /run/mark");
    let before = guest.counter();
    guest.virsh("save", &[&image]);
    assert_eq!(guest.state(), "shut off");
    virsh::run(&["restore", &image]);
    guest.wait_until_up();
    let after = guest.counter();
    assert_eq!(after.token, before.token);
    assert!(after.number >= before.number);
    assert!(guest.has_file("/run/mark"));
}

fn a_cold_boot_starts_another_counter(guest: &Guest) {
    let before = guest.counter();
    let last = guest.ring("vda").last;
    assert!(last > 0);
    guest.shutdown();
    guest.start();
    assert_ne!(guest.counter().token, before.token);
    assert!(!guest.has_file("/run/mark"));
    assert!(guest.has_file("/mnt/vda/large"));
    assert_eq!(guest.ring("vda").last, last);
}

fn a_disk_can_be_plugged_in(guest: &Guest) {
    let image = guest.directory().join("plugged.qcow2");
    images::create(&image, Format::Qcow2, 8);
    guest.attach("vdc", &image, Format::Qcow2);
    wait_until("the guest sees the disk", Duration::from_secs(60), || guest.exec("ls /dev").contains("vdc"));
    assert_eq!(guest.image("vdc"), image);
}

#[test]
fn a_guest_without_an_agent_writes_all_the_same() {
    let disks = vec![Disk::new(Format::Raw)];
    let guest = Guest::boot(&Spec { disks, writers: true, agent: Agent::Absent, ..Spec::default() });
    assert!(!guest.agent_answers());
    let progress = Progress::listen(&guest);
    let first = progress.wait_for_next("vda");
    assert!(progress.wait_for_next("vda") > first);
}

#[test]
fn a_process_that_dies_leaves_nothing() {
    let own = std::env::current_exe().unwrap();
    let run =
        Command::new(own).args(["--exact", "die_with_a_vm", "--ignored", "--nocapture"]).output().unwrap();
    assert!(!run.status.success());
    let output = String::from_utf8_lossy(&run.stdout).into_owned();
    let name =
        output.lines().find_map(|line| line.strip_prefix("made ")).expect("the child made a VM").to_owned();
    let directory = Path::new("/var/lib/libvirt/images").join(&name);
    wait_until("nothing is left", Duration::from_secs(60), || {
        !directory.exists() && virsh::try_run(&["domstate", &name]).is_err()
    });
}

#[test]
#[ignore = "a_process_that_dies_leaves_nothing runs it"]
#[allow(clippy::print_stdout, reason = "this is how the parent learns the name")]
fn die_with_a_vm() {
    let guest = Guest::define(&Spec { disks: vec![Disk::new(Format::Raw)], ..Spec::default() });
    assert!(guest.directory().exists());
    let beside = Scratch::new();
    println!("\nmade {}", guest.name());
    assert!(beside.path().exists());
    std::process::abort();
}
