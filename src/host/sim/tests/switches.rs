//! Switches of disks, with memory and without.

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Waker};

use super::*;
use crate::model::vm::PauseReason;

/// Switches `disks` of a VM as it is built, and looks at both.
async fn check(
    build: fn(VmBuilder) -> VmBuilder,
    disks: &[&str],
    memory: Option<&str>,
    run_state: RunState,
    images: [&[&str]; 2],
) {
    let bed = Bed::new(build);
    let before = [bed.reads("vda"), bed.reads("vdb")];
    let overlays: Vec<_> =
        disks.iter().map(|disk| (*disk, if *disk == "vda" { "/a" } else { "/b" })).collect();
    bed.snapshot(&overlays, memory).await;
    assert_eq!(bed.view().await.run_state, run_state);
    for (disk, images) in ["vda", "vdb"].into_iter().zip(images) {
        assert_eq!(bed.chain(disk).await, paths(images), "{disk}");
        assert_eq!(bed.stored(disk).await, Some(images[0].into()), "{disk}");
    }
    assert_eq!([bed.reads("vda"), bed.reads("vdb")], before);
    if let Some(memory) = memory {
        assert_eq!(bed.sim.memory_image(Path::new(memory)).await.unwrap(), Some(256 << 20));
    }
    bed.check_violations(&[]);
}

#[tokio::test]
async fn every_state_and_subset() {
    let both: [&[&str]; 2] = [&["/a", VDA], &["/b", VDB]];
    let paused = RunState::Paused(PauseReason::User);
    check(|vm| vm, &["vda", "vdb"], None, RunState::Running, both).await;
    check(|vm| vm, &["vda"], None, RunState::Running, [&["/a", VDA], &[VDB]]).await;
    check(|vm| vm, &["vda", "vdb"], Some("/m"), RunState::Running, both).await;
    check(|vm| vm, &["vdb"], Some("/m"), RunState::Running, [&[VDA], &["/b", VDB]]).await;
    check(VmBuilder::off, &["vda", "vdb"], None, RunState::Off, both).await;
    check(VmBuilder::paused, &["vda", "vdb"], None, paused, both).await;
    check(VmBuilder::paused, &["vda", "vdb"], Some("/m"), paused, both).await;
}

#[tokio::test]
async fn what_was_written_before_stays_in_the_base() {
    let bed = Bed::running();
    bed.write("vda", 0, 1);
    bed.write("vda", 1, 1);
    bed.snapshot(&[("vda", "/a"), ("vdb", "/b")], None).await;
    bed.write("vda", 1, 2);
    bed.write("vda", 2, 2);
    bed.write("vda", 0, 0);
    assert_eq!(bed.image(VDA), [1, 1, 0, 0]);
    assert_eq!(bed.image("/a"), [0, 2, 2, 0]);
    assert_eq!(bed.reads("vda"), [0, 2, 2, 0]);
    assert_eq!(bed.reads("vdb"), [0; 4]);
}

/// A switch to an overlay that is not what it should be.
async fn check_wrong(prepare: impl AsyncFnOnce(&Bed) -> DiskSwitch, expected: &str, violations: &[&str]) {
    let bed = Bed::running();
    let mut switch = prepare(&bed).await;
    if switch.others.is_empty() {
        switch.others.push(target("vdb"));
    }
    assert_eq!(kind(&bed.sim.switch_disks(bed.vm, &switch).await), expected);
    bed.check_violations(violations);
}

#[tokio::test]
async fn overlays_that_are_wrong() {
    let missing = async |_: &Bed| switch(&[("vda", qcow2("/missing"))], None);
    check_wrong(missing, "refused", &[]).await;
    let no_such_disk = async |bed: &Bed| switch(&[("vdz", bed.overlay("/a", VDA).await)], None);
    check_wrong(no_such_disk, "refused", &[]).await;
    let forgotten = async |bed: &Bed| {
        let mut switch = switch(&[("vda", bed.overlay("/a", VDA).await)], None);
        switch.others.push(target("vda"));
        switch
    };
    check_wrong(forgotten, "refused", &[]).await;
    let raw = async |bed: &Bed| {
        bed.sim.put_image(Path::new("/raw"), Format::Raw, DISK_SIZE, false).unwrap();
        switch(&[("vda", ImageRef { path: "/raw".into(), format: Format::Raw })], None)
    };
    check_wrong(raw, "refused", &[]).await;
    let of_another = async |bed: &Bed| switch(&[("vda", bed.overlay("/a", VDB).await)], None);
    check_wrong(of_another, "ok", &["VM web is switched to /a, which does not lie on the active image"])
        .await;
    let used = async |bed: &Bed| {
        let overlay = bed.overlay("/a", VDA).await;
        bed.sim.write_image(&overlay.path, 3, 3).unwrap();
        switch(&[("vda", overlay)], None)
    };
    check_wrong(used, "ok", &["VM web is switched to /a, which is not empty"]).await;
    let small = async |bed: &Bed| {
        bed.sim.create_overlay(&overlay("/a", VDA, BLOCK)).await.unwrap();
        switch(&[("vda", qcow2("/a"))], None)
    };
    let violation = "VM web is switched to /a, which has another size than the image below";
    check_wrong(small, "ok", &[violation]).await;
    let active = async |_: &Bed| switch(&[("vda", qcow2(VDA))], None);
    check_wrong(active, "refused", &[]).await;
    let over_memory = async |bed: &Bed| {
        bed.snapshot(&[("vda", "/a")], Some("/m")).await;
        switch(&[("vda", bed.overlay("/a2", "/a").await)], Some("/m"))
    };
    check_wrong(over_memory, "ok", &["/m is written over by a capture of memory"]).await;
}

#[tokio::test]
async fn memory_that_cannot_be_captured() {
    let check = async |build: fn(VmBuilder) -> VmBuilder| {
        let bed = Bed::new(build);
        let mut switch = switch(&[("vda", bed.overlay("/a", VDA).await)], Some("/m"));
        switch.others.push(target("vdb"));
        assert_eq!(kind(&bed.sim.switch_disks(bed.vm, &switch).await), "refused");
        assert_eq!(bed.sim.memory_image(Path::new("/m")).await.unwrap(), None);
        assert_eq!(bed.chain("vda").await, paths(&[VDA]));
    };
    check(VmBuilder::off).await;
    check(|vm| vm.memory_blocker("a host device")).await;
    check(|vm| vm.memory(u64::MAX)).await;
}

/// Polls a future once.
fn poll_once<T>(future: impl Future<Output = T>) -> bool {
    pin!(future).poll(&mut Context::from_waker(Waker::noop())).is_ready()
}

/// A VM whose capture of memory is under way.
async fn capturing(notches: u32) -> (Bed, tokio::task::JoinHandle<Result<()>>) {
    let bed = Bed::new(|vm| vm.slow_capture(notches));
    let mut switch = switch(&[("vda", bed.overlay("/a", VDA).await)], Some("/m"));
    switch.others.push(target("vdb"));
    let (sim, vm) = (bed.sim.clone(), bed.vm);
    let capture = tokio::spawn(async move { sim.switch_disks(vm, &switch).await });
    while bed.sim.run_state(bed.vm) == Some(RunState::Running) {
        tokio::task::yield_now().await;
    }
    (bed, capture)
}

#[tokio::test]
async fn a_capture_keeps_the_vm_paused_until_it_ends() {
    let (bed, capture) = capturing(4).await;
    assert!(bed.sim.is_capturing(bed.vm).await.unwrap());
    assert_eq!(bed.sim.run_state(bed.vm), Some(RunState::Paused(PauseReason::Snapshot)));
    assert_eq!(bed.chain("vda").await, paths(&[VDA]), "until then it is on its old disks");
    assert_eq!(bed.sim.memory_image(Path::new("/m")).await.unwrap(), None);
    assert!(!capture.is_finished());
    let total = 256 << 20;
    assert_eq!(bed.sim.memory_progress(bed.vm).await.unwrap(), Some((total / 2, total)));
    assert!(bed.sim.is_capturing(bed.vm).await.unwrap());
    assert!(!bed.sim.is_capturing(bed.vm).await.unwrap());
    capture.await.unwrap().unwrap();
    assert_eq!(bed.view().await.run_state, RunState::Running);
    assert_eq!(bed.chain("vda").await, paths(&["/a", VDA]));
    assert_eq!(bed.sim.memory_progress(bed.vm).await.unwrap(), None);
}

#[tokio::test]
async fn a_capture_that_is_broken_off() {
    let (bed, capture) = capturing(9).await;
    bed.sim.abort_memory_capture(bed.vm, Path::new("/m")).await.unwrap();
    assert_eq!(kind(&capture.await.unwrap()), "refused");
    assert_eq!(bed.view().await.run_state, RunState::Running);
    assert_eq!(bed.chain("vda").await, paths(&[VDA]));
    assert!(!bed.sim.files().contains(&PathBuf::from("/m")));
    assert_eq!(kind(&bed.sim.abort_memory_capture(bed.vm, Path::new("/m")).await), "refused");

    let (bed, capture) = capturing(9).await;
    bed.sim.someone_stops(bed.vm);
    assert_eq!(kind(&capture.await.unwrap()), "refused");
    assert_eq!(bed.view().await.run_state, RunState::Off);
}

#[tokio::test]
async fn a_capture_outlives_whoever_asked_for_it() {
    let (bed, capture) = capturing(2).await;
    capture.abort();
    bed.sim.tick();
    assert_eq!(bed.chain("vda").await, paths(&[VDA]));
    assert_eq!(bed.chain("vda").await, paths(&["/a", VDA]));
    assert_eq!(bed.sim.memory_image(Path::new("/m")).await.unwrap(), Some(256 << 20));
}

#[test]
fn a_call_gives_others_their_turn() {
    assert!(!poll_once(SimHost::new().vms()));
}
