//! Block commits: started, followed, pivoted.

use std::path::{Path, PathBuf};

use vmsnap::host::{Commit, HostError, HostEvent, Hypervisor};
use vmsnap::model::step::ImageRef;
use vmsnap::model::vm::{BlockJob, BlockJobKind, Format, RunState};

use crate::bed::{Bed, Vm, chain, heard, paths, persistent, run, target, text, virsh};

fn commit(top: &ImageRef, base: &ImageRef, is_active: bool, bandwidth: Option<u64>) -> Commit {
    Commit { disk: target("vda"), top: top.path.clone(), base: base.path.clone(), is_active, bandwidth }
}

/// Data in an image that no VM has open.
fn fill(image: &ImageRef, megabytes: u32) {
    let write = format!("write -P 7 0 {megabytes}M");
    run("qemu-io", &["-f", image.format.as_str(), "-c", &write, text(&image.path)]);
}

async fn job(bed: &Bed, vm: &Vm) -> Option<BlockJob> {
    let jobs = bed.libvirt.block_jobs(vm.id).await.unwrap();
    jobs.into_iter().find(|(disk, _)| *disk == target("vda")).map(|(_, job)| job)
}

/// Waits for the job to be ready by events alone, then pivots.
async fn pivot_when_ready(bed: &Bed, vm: &Vm, mut events: tokio::sync::broadcast::Receiver<HostEvent>) {
    while !job(bed, vm).await.is_some_and(|job| job.ready) {
        heard(&mut events, &HostEvent::BlockJobChanged(vm.id)).await;
    }
    bed.libvirt.pivot(vm.id, &target("vda")).await.unwrap();
    while job(bed, vm).await.is_some() {
        heard(&mut events, &HostEvent::BlockJobChanged(vm.id)).await;
    }
}

#[tokio::test]
async fn the_active_layer() {
    let Some(bed) = Bed::new().await else { return };
    let base = bed.image("base", Format::Raw);
    let middle = bed.overlay("middle", &base).await;
    let top = bed.overlay("top", &middle).await;
    let vm = Vm::with_disks(&[("vda", &middle)], "");
    bed.start(&vm).await;
    bed.switch(&vm, &[("vda", &top)], None).await;
    let events = bed.libvirt.events();
    bed.libvirt.start_commit(vm.id, &commit(&top, &middle, true, None)).await.unwrap();
    // A VM is seen whole while a job runs, filter nodes and all.
    assert_eq!(chain(&bed.observe(&vm).await, "vda"), paths(&[&top, &middle, &base]));
    pivot_when_ready(&bed, &vm, events).await;
    let view = bed.observe(&vm).await;
    assert_eq!(chain(&view, "vda"), paths(&[&middle, &base]));
    assert_eq!(persistent(&view, "vda"), Some(middle.path.clone()));
    assert_eq!(view.run_state, RunState::Running);
    bed.libvirt.stop(vm.id).await.unwrap();
    assert_eq!(chain(&bed.observe(&vm).await, "vda"), paths(&[&middle, &base]));
}

/// QEMU lets go of the images of a VM that is paused while its memory is captured, and then refuses block jobs.
#[tokio::test]
async fn a_vm_that_was_paused_when_its_memory_was_captured() {
    let Some(bed) = Bed::new().await else { return };
    let base = bed.image("base", Format::Qcow2);
    let first = bed.overlay("first", &base).await;
    let second = bed.overlay("second", &first).await;
    let vm = Vm::with_disks(&[("vda", &base)], "");
    bed.start(&vm).await;
    virsh(&["suspend", &vm.name]);
    bed.switch(&vm, &[("vda", &first)], Some(&bed.path("memory"))).await;
    bed.switch(&vm, &[("vda", &second)], None).await;

    let mut events = bed.libvirt.events();
    bed.libvirt.start_commit(vm.id, &commit(&first, &base, false, None)).await.unwrap();
    while job(&bed, &vm).await.is_some() {
        heard(&mut events, &HostEvent::BlockJobChanged(vm.id)).await;
    }
    assert_eq!(chain(&bed.observe(&vm).await, "vda"), paths(&[&second, &base]));
    bed.libvirt.start_commit(vm.id, &commit(&second, &base, true, None)).await.unwrap();
    pivot_when_ready(&bed, &vm, events).await;
    let view = bed.observe(&vm).await;
    assert_eq!(chain(&view, "vda"), paths(&[&base]));
    assert!(matches!(view.run_state, RunState::Paused(_)), "{view:?}");
}

/// Slowed down, a merge is seen to move on; full speed for the second half is not needed to see it end.
#[tokio::test]
async fn a_frozen_layer_with_progress() {
    let Some(bed) = Bed::new().await else { return };
    let base = bed.image("base", Format::Qcow2);
    let middle = bed.overlay("middle", &base).await;
    fill(&middle, 32);
    let top = bed.overlay("top", &middle).await;
    let vm = Vm::with_disks(&[("vda", &top)], "");
    bed.start(&vm).await;
    let mut events = bed.libvirt.events();
    let slowly = commit(&middle, &base, false, Some(16 << 20));
    bed.libvirt.start_commit(vm.id, &slowly).await.unwrap();
    let mut seen = Vec::new();
    while let Some(job) = job(&bed, &vm).await {
        assert_eq!((job.kind, job.ready), (BlockJobKind::Commit, false));
        assert!(job.done <= job.total, "{job:?}");
        seen.push(job.done);
        tokio::task::yield_now().await;
    }
    seen.dedup();
    assert!(seen.len() > 2 && seen.is_sorted(), "{seen:?}");
    heard(&mut events, &HostEvent::BlockJobChanged(vm.id)).await;
    let view = bed.observe(&vm).await;
    assert_eq!(chain(&view, "vda"), paths(&[&top, &base]));
    assert_eq!(persistent(&view, "vda"), Some(top.path.clone()));
    bed.libvirt.stop(vm.id).await.unwrap();
    run("qemu-io", &["-f", "qcow2", "-c", "read -P 7 0 32M", text(&top.path)]);
}

/// What QEMU writes into the image above when a merge ends has room there already, on a full disk, too.
#[tokio::test]
async fn a_merge_that_ends_on_a_full_disk() {
    let Some(bed) = Bed::new().await else { return };
    let Some(_full) = SmallDisk::mount(&bed.path("small"), 16 << 20) else { return };
    let base = bed.image("small/base", Format::Qcow2);
    fill(&base, 1);
    let middle = bed.overlay("small/middle", &base).await;
    fill(&middle, 1);
    let top = bed.overlay("small/top", &middle).await;
    let vm = Vm::with_disks(&[("vda", &top)], "");
    bed.start(&vm).await;
    let filler = bed.path("small/filler");
    let left = std::io::copy(&mut std::io::repeat(7), &mut std::fs::File::create(&filler).unwrap());
    assert_eq!(left.unwrap_err().kind(), std::io::ErrorKind::StorageFull);
    let mut events = bed.libvirt.events();
    bed.libvirt.start_commit(vm.id, &commit(&middle, &base, false, None)).await.unwrap();
    while job(&bed, &vm).await.is_some() {
        heard(&mut events, &HostEvent::BlockJobChanged(vm.id)).await;
    }
    let view = bed.observe(&vm).await;
    assert_eq!((view.run_state, chain(&view, "vda")), (RunState::Running, paths(&[&top, &base])));
}

/// A file system of so many bytes, until it is dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    /// None where whoever runs the tests may not mount.
    fn mount(place: &Path, bytes: u64) -> Option<Self> {
        std::fs::create_dir(place).unwrap();
        let size = format!("size={bytes},mode=0755");
        let mounted = nix::mount::mount(
            Some("tmpfs"),
            place,
            Some("tmpfs"),
            nix::mount::MsFlags::empty(),
            Some(size.as_str()),
        );
        mounted.is_ok().then(|| Self(place.to_owned()))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // The VM that has it open is dropped before.
        let _ = nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH);
    }
}

#[tokio::test]
async fn a_pivot_before_its_time() {
    let Some(bed) = Bed::new().await else { return };
    let base = bed.image("base", Format::Qcow2);
    let top = bed.overlay("top", &base).await;
    fill(&top, 48);
    let vm = Vm::with_disks(&[("vda", &top)], "");
    bed.start(&vm).await;
    let crawling = commit(&top, &base, true, Some(64 << 10));
    bed.libvirt.start_commit(vm.id, &crawling).await.unwrap();
    let job = job(&bed, &vm).await.unwrap();
    assert_eq!((job.kind, job.ready), (BlockJobKind::ActiveCommit, false));
    let early = bed.libvirt.pivot(vm.id, &target("vda")).await;
    assert!(matches!(&early, Err(HostError::NotReady(disk)) if *disk == target("vda")), "{early:?}");
    let view = bed.observe(&vm).await;
    assert_eq!(chain(&view, "vda"), paths(&[&top, &base]));
    assert_eq!(view.disks[0].block_job.map(|job| job.kind), Some(BlockJobKind::ActiveCommit));

    let second = bed.libvirt.start_commit(vm.id, &crawling).await;
    assert!(matches!(second, Err(HostError::Refused { .. })), "{second:?}");
}

#[tokio::test]
async fn no_jobs() {
    let Some(bed) = Bed::new().await else { return };
    let base = bed.image("base", Format::Qcow2);
    let cdrom = "<disk type='file' device='cdrom'><target dev='sda' bus='sata'/><readonly/></disk>";
    let vm = Vm::with_disks(&[("vda", &base)], cdrom);
    assert!(bed.libvirt.block_jobs(vm.id).await.unwrap().is_empty());
    bed.start(&vm).await;
    assert!(bed.libvirt.block_jobs(vm.id).await.unwrap().is_empty());
    let pivoted = bed.libvirt.pivot(vm.id, &target("vda")).await;
    assert!(matches!(pivoted, Err(HostError::Refused { .. })), "{pivoted:?}");
}

/// libvirt's account, QEMU's and the headers' are taken one after the other. Whatever moves in between, a VM that is in
/// order is never reported as broken.
#[tokio::test(flavor = "multi_thread")]
async fn seen_whole_at_every_moment() {
    let Some(bed) = Bed::new().await else { return };
    let base = bed.image("base", Format::Qcow2);
    let vm = Vm::with_disks(&[("vda", &base)], "");
    bed.start(&vm).await;
    let (libvirt, id) = (bed.libvirt.clone(), vm.id);
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let watching = tokio::spawn(async move {
        let mut looks = 0;
        while stopped.is_empty() {
            libvirt.observe(id).await?;
            looks += 1;
        }
        Ok::<_, HostError>(looks)
    });
    for round in 0..8 {
        let lower = bed.overlay(&format!("lower-{round}"), &base).await;
        bed.switch(&vm, &[("vda", &lower)], None).await;
        let upper = bed.overlay(&format!("upper-{round}"), &lower).await;
        bed.switch(&vm, &[("vda", &upper)], None).await;
        let mut events = bed.libvirt.events();
        bed.libvirt.start_commit(vm.id, &commit(&lower, &base, false, None)).await.unwrap();
        while job(&bed, &vm).await.is_some() {
            heard(&mut events, &HostEvent::BlockJobChanged(vm.id)).await;
        }
        let events = bed.libvirt.events();
        bed.libvirt.start_commit(vm.id, &commit(&upper, &base, true, None)).await.unwrap();
        pivot_when_ready(&bed, &vm, events).await;
    }
    // It has ended by itself when it saw something wrong; then its error is what matters.
    let _ = stop.send(());
    assert!(watching.await.unwrap().unwrap() > 0);
    assert_eq!(chain(&bed.observe(&vm).await, "vda"), paths(&[&base]));
}
