//! VMs that start, stop, resume, from disks and from memory.

use super::super::super::{Definition, StartFrom};
use super::*;
use crate::model::vm::{ExcludedDisk, PauseReason, RefusedDisk};

#[tokio::test]
async fn from_disks() {
    let bed = Bed::off();
    let start = async |paused| kind(&bed.sim.start(bed.vm, &StartFrom::Disks, paused).await);
    assert_eq!(kind(&bed.sim.stop(bed.vm).await), "refused");
    assert_eq!(start(true).await, "ok");
    assert_eq!(bed.view().await.run_state, RunState::Paused(PauseReason::User));
    assert_eq!(start(false).await, "refused");
    assert_eq!(bed.sim.guest_write(bed.vm, &target("vda"), 0, 1), Err(GuestError::Paused));
    bed.sim.resume(bed.vm).await.unwrap();
    assert_eq!(bed.view().await.run_state, RunState::Running);
    bed.write("vda", 0, 1);
    let end = DISK_SIZE / BLOCK;
    assert_eq!(bed.sim.guest_write(bed.vm, &target("vda"), end, 1), Err(GuestError::BeyondTheEnd));
    assert_eq!(bed.sim.guest_write(bed.vm, &target("vdz"), 0, 1), Err(GuestError::NoSuchDisk));
    let first_boot = bed.sim.guest_memory(bed.vm).unwrap();
    bed.sim.stop(bed.vm).await.unwrap();
    assert_eq!(bed.sim.guest_write(bed.vm, &target("vda"), 0, 1), Err(GuestError::Off));
    assert_eq!(bed.sim.guest_memory(bed.vm), None);
    assert_eq!(start(false).await, "ok");
    let second_boot = bed.sim.guest_memory(bed.vm).unwrap();
    assert_eq!((first_boot.counter, second_boot.counter), (1, 0));
    assert_ne!(first_boot.token, second_boot.token);
    bed.sim.someone_removes(Path::new(VDB));
    bed.sim.someone_stops(bed.vm);
    assert_eq!(start(false).await, "refused");
    bed.check_violations(&[]);
}

/// A VM that was captured, went on, and stands over fresh overlays again; then it is started from memory.
async fn check_memory(between: fn(&Bed), disks: &[(&str, &str)], expected: &str, violations: &[&str]) {
    let bed = Bed::running();
    bed.write("vda", 0, 1);
    let then = bed.sim.guest_memory(bed.vm).unwrap();
    let definition = bed.sim.definition(bed.vm).await.unwrap();
    bed.snapshot(&[("vda", "/a"), ("vdb", "/b")], Some("/m")).await;
    bed.write("vda", 0, 2);
    bed.sim.stop(bed.vm).await.unwrap();
    bed.overlay("/a2", VDA).await;
    bed.overlay("/b2", VDB).await;
    between(&bed);
    let disks = disks.iter().map(|(disk, path)| (target(disk), qcow2(path))).collect();
    let how = StartFrom::Memory { image: "/m".into(), definition, disks };
    assert_eq!(kind(&bed.sim.start(bed.vm, &how, false).await), expected);
    if expected == "ok" {
        assert_eq!(bed.view().await.run_state, RunState::Running);
        assert_eq!(bed.sim.guest_memory(bed.vm), Some(then));
        assert_eq!(bed.stored("vda").await, Some("/a".into()), "the stored definition is left alone");
    }
    bed.check_violations(violations);
}

#[tokio::test]
async fn from_memory() {
    let fresh = [("vda", "/a2"), ("vdb", "/b2")];
    check_memory(|_| {}, &fresh, "ok", &[]).await;
    let corrupt = |disk: &str, vm: &Bed| {
        format!("VM {} is resumed over a disk {disk} that has changed: it is corrupt", vm.vm)
    };
    let vda = corrupt("vda", &Bed::off());
    check_memory(|_| {}, &[("vda", "/a"), ("vdb", "/b2")], "ok", &[&vda]).await;
    let changed: fn(&Bed) = |bed| bed.sim.write_image(Path::new(VDA), 3, 3).unwrap();
    check_memory(changed, &fresh, "ok", &[&vda]).await;
    check_memory(|bed| bed.sim.someone_removes(Path::new("/m")), &fresh, "refused", &[]).await;
    check_memory(|bed| bed.sim.someone_removes(Path::new(VDB)), &fresh, "refused", &[]).await;
    check_memory(|bed| bed.sim.someone_starts(bed.vm), &fresh, "refused", &[]).await;
    check_memory(|_| {}, &[("vdz", "/a2")], "no such disk", &[]).await;
}

#[tokio::test]
async fn from_memory_and_paused() {
    let bed = Bed::running();
    bed.snapshot(&[("vda", "/a")], Some("/m")).await;
    bed.sim.stop(bed.vm).await.unwrap();
    let definition = bed.sim.definition(bed.vm).await.unwrap();
    let start = async |definition, paused| {
        let how = StartFrom::Memory { image: "/m".into(), definition, disks: Vec::new() };
        kind(&bed.sim.start(bed.vm, &how, paused).await)
    };
    assert_eq!(start(Definition("<domain/>".to_owned()), true).await, "malformed");
    assert_eq!(start(definition, true).await, "ok");
    assert_eq!(bed.view().await.run_state, RunState::Paused(PauseReason::Snapshot));
    bed.check_violations(&[]);
}

#[tokio::test]
async fn a_managed_save_does_not_bear_other_disks() {
    let check = async |change: fn(&Bed), violations: usize| {
        let bed = Bed::running();
        bed.write("vda", 0, 1);
        bed.sim.someone_saves(bed.vm);
        assert!(bed.view().await.has_managed_save);
        change(&bed);
        bed.sim.start(bed.vm, &StartFrom::Disks, false).await.unwrap();
        assert!(!bed.view().await.has_managed_save);
        assert_eq!(bed.sim.guest_memory(bed.vm).unwrap().counter, 1);
        assert_eq!(bed.sim.violations().len(), violations);
    };
    check(|_| {}, 0).await;
    check(|bed| bed.sim.write_image(Path::new(VDA), 0, 2).unwrap(), 1).await;
}

#[tokio::test]
async fn a_managed_save_has_images_of_its_own() {
    let bed = Bed::running();
    bed.sim.someone_saves(bed.vm);
    bed.overlay("/a", VDA).await;
    bed.sim.point_disks(bed.vm, &[(target("vda"), qcow2("/a"))]).await.unwrap();
    bed.sim.start(bed.vm, &StartFrom::Disks, false).await.unwrap();
    assert_eq!(bed.chain("vda").await, paths(&[VDA]));
    bed.check_violations(&[]);
}

#[tokio::test]
async fn a_hypervisor_that_believes_something_wrong() {
    let bed = Bed::running();
    bed.sim.becomes_known_wrongly(bed.vm);
    assert_eq!(kind(&bed.sim.observe(bed.vm).await), "disagreement");
    assert_eq!(kind(&bed.sim.stop(bed.vm).await), "ok");
    assert_eq!(kind(&bed.sim.observe(bed.vm).await), "ok");
}

#[tokio::test]
async fn one_writer_or_many_readers() {
    let sim = SimHost::new();
    let one = sim.vm("one").disk_over("vda", "/golden").build();
    let two = sim.vm("two").disk_over("vda", "/golden").build();
    assert_eq!(sim.run_state(one), sim.run_state(two));
    // The image that the first one writes to is the backing file of a third.
    let three = sim.vm("three").disk("vda", Format::Qcow2).off().build();
    sim.create_overlay(&overlay("/over", "/images/one-vda", DISK_SIZE)).await.unwrap();
    sim.point_disks(three, &[(target("vda"), qcow2("/over"))]).await.unwrap();
    let started = sim.start(three, &StartFrom::Disks, false).await;
    assert_eq!(kind(&started), "refused");
    // And a merge into what another one reads is refused, too.
    sim.switch_disks(
        one,
        &switch(&[("vda", Bed { sim: sim.clone(), vm: one }.overlay("/1", "/images/one-vda").await)], None),
    )
    .await
    .unwrap();
    assert_eq!(kind(&sim.start(three, &StartFrom::Disks, false).await), "ok", "nobody writes to it now");
    let merge = sim.start_commit(one, &commit("vda", "/1", "/images/one-vda", true)).await;
    assert_eq!(kind(&merge), "refused");
}

#[tokio::test]
async fn the_stored_definition() {
    let bed = Bed::off();
    bed.overlay("/a", VDA).await;
    let point = async |disk, path| kind(&bed.sim.point_disks(bed.vm, &[(target(disk), qcow2(path))]).await);
    assert_eq!(point("vda", "/a").await, "ok");
    assert_eq!(bed.chain("vda").await, paths(&["/a", VDA]));
    assert_eq!(point("vdz", "/a").await, "no such disk");
    bed.sim.someone_starts(bed.vm);
    assert_eq!(point("vda", VDA).await, "ok");
    assert_eq!(bed.stored("vda").await, Some(VDA.into()));
}

#[tokio::test]
async fn vms_that_are_not_there() {
    let bed = Bed::running();
    let missing = VmId::new();
    assert_eq!(kind(&bed.sim.observe(missing).await), "no such vm");
    assert_eq!(kind(&bed.sim.stop(missing).await), "no such vm");
    assert_eq!(kind(&bed.sim.freeze(missing, &[], SOON).await), "no such vm");
    bed.sim.someone_undefines(bed.vm);
    assert!(!bed.view().await.persistent);
    assert_eq!(bed.stored("vda").await, None);
    bed.sim.someone_stops(bed.vm);
    assert_eq!(kind(&bed.sim.observe(bed.vm).await), "no such vm");
    assert!(bed.sim.vms().await.unwrap().is_empty());
}

#[tokio::test]
async fn disks_of_other_kinds() {
    let network = RefusedDisk::Network("rbd".to_owned());
    let bed = Bed::new(|vm| {
        vm.excluded("sda", ExcludedDisk::Cdrom).refused("vdc", RefusedDisk::Network("rbd".to_owned())).off()
    });
    let view = bed.view().await;
    let sources: Vec<_> = view.disks.iter().skip(2).map(|disk| disk.source.clone()).collect();
    assert_eq!(sources, [DiskSource::Excluded(ExcludedDisk::Cdrom), DiskSource::Refused(network)]);
}

#[tokio::test]
async fn a_full_disk_pauses_the_guest() {
    let bed = Bed::running();
    bed.write("vda", 0, 1);
    bed.sim.set_free_space(0);
    bed.write("vda", 0, 2);
    assert_eq!(bed.sim.guest_write(bed.vm, &target("vda"), 1, 1), Err(GuestError::Paused));
    assert_eq!(bed.view().await.run_state, RunState::Paused(PauseReason::IoError));
    assert_eq!(bed.sim.free_space(Path::new("/")).await.unwrap().free, 0);
    bed.sim.set_free_space(BLOCK);
    bed.sim.resume(bed.vm).await.unwrap();
    bed.write("vda", 1, 1);
    assert_eq!(bed.reads("vda"), [2, 1, 0, 0]);
}
