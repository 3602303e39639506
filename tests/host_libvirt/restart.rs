//! Other images in the stored definition, and a start from memory over them.

use vmsnap::host::{HostError, Hypervisor, Images, StartFrom};
use vmsnap::model::step::ImageRef;
use vmsnap::model::vm::{Format, PauseReason, RunState};

use crate::bed::{Bed, DISK, Vm, chain, paths, persistent, run, target, text};

fn pointed(disks: &[(&str, &ImageRef)]) -> Vec<(vmsnap::model::DiskTarget, ImageRef)> {
    disks.iter().map(|(disk, image)| (target(disk), (*image).clone())).collect()
}

#[tokio::test]
async fn there_and_back_again_changes_nothing() {
    let Some(bed) = Bed::new().await else { return };
    let raw = bed.image("raw", Format::Raw);
    let qcow2 = bed.image("qcow2", Format::Qcow2);
    let over_raw = bed.overlay("it's <over> & \"above\"", &raw).await;
    let over_qcow2 = bed.overlay("over-qcow2", &qcow2).await;
    // libvirt gives back on every reading what it does not use itself, and so must we.
    let vm = Vm::with_disks(&[("vda", &raw), ("vdb", &qcow2)], "");
    let before = vm.xml("--inactive");
    bed.libvirt.point_disks(vm.id, &pointed(&[("vda", &over_raw), ("vdb", &over_qcow2)])).await.unwrap();
    let view = bed.observe(&vm).await;
    assert_eq!(chain(&view, "vda"), paths(&[&over_raw, &raw]));
    assert_eq!(chain(&view, "vdb"), paths(&[&over_qcow2, &qcow2]));
    bed.libvirt.point_disks(vm.id, &pointed(&[("vda", &raw)])).await.unwrap();
    bed.libvirt.point_disks(vm.id, &pointed(&[("vdb", &qcow2)])).await.unwrap();
    assert_eq!(vm.xml("--inactive"), before);

    let missing = bed.libvirt.point_disks(vm.id, &pointed(&[("vdz", &raw)])).await;
    assert!(matches!(&missing, Err(HostError::NoSuchDisk(disk)) if *disk == target("vdz")), "{missing:?}");
    bed.start(&vm).await;
    bed.libvirt.point_disks(vm.id, &pointed(&[("vda", &over_raw)])).await.unwrap();
    assert_ne!(vm.xml("--inactive"), before, "the next cold start boots another image");
}

/// Merges of a VM that is off end at the same time, each with its own disk: none undoes what the other has written.
#[tokio::test]
async fn disks_that_are_pointed_at_once() {
    let Some(bed) = Bed::new().await else { return };
    let (one, other) = (bed.image("one", Format::Qcow2), bed.image("other", Format::Qcow2));
    let over_one = bed.overlay("over-one", &one).await;
    let over_other = bed.overlay("over-other", &other).await;
    let vm = Vm::with_disks(&[("vda", &one), ("vdb", &other)], "");
    for (vda, vdb) in [(&over_one, &over_other), (&one, &other)].repeat(20) {
        let (of_one, of_other) = (pointed(&[("vda", vda)]), pointed(&[("vdb", vdb)]));
        let (first, second) =
            tokio::join!(bed.libvirt.point_disks(vm.id, &of_one), bed.libvirt.point_disks(vm.id, &of_other));
        first.unwrap();
        second.unwrap();
        let view = bed.observe(&vm).await;
        assert_eq!(persistent(&view, "vda").as_ref(), Some(&vda.path));
        assert_eq!(persistent(&view, "vdb").as_ref(), Some(&vdb.path));
    }
}

/// What a revert does: memory of then, disks of then under fresh overlays, and the next cold start over the same.
async fn check_start_from_memory(bed: &Bed, paused: bool, expected: RunState) {
    let name = |name: &str| format!("{name}-{paused}");
    let base = bed.image(&name("base"), Format::Qcow2);
    let raw = bed.image(&name("raw"), Format::Raw);
    let (then, then_raw) =
        (bed.overlay(&name("then"), &base).await, bed.overlay(&name("then-raw"), &raw).await);
    let vm = Vm::with_disks(&[("vda", &base), ("vdb", &raw)], "");
    bed.start(&vm).await;
    let memory = bed.path(&name("memory"));
    let definition = bed.libvirt.definition(vm.id).await.unwrap();
    bed.switch(&vm, &[("vda", &then), ("vdb", &then_raw)], Some(&memory)).await;
    let bytes = bed.images.memory_image(&memory).await.unwrap();
    bed.libvirt.stop(vm.id).await.unwrap();

    let (now, now_raw) = (bed.overlay(&name("now"), &base).await, bed.overlay(&name("now-raw"), &raw).await);
    let disks = pointed(&[("vda", &now), ("vdb", &now_raw)]);
    bed.libvirt.point_disks(vm.id, &disks).await.unwrap();
    let stored = vm.xml("--inactive");
    let from = StartFrom::Memory { image: memory.clone(), definition, disks };
    bed.libvirt.start(vm.id, &from, paused).await.unwrap();

    let view = bed.observe(&vm).await;
    assert_eq!(view.run_state, expected);
    assert_eq!(chain(&view, "vda"), paths(&[&now, &base]));
    assert_eq!(chain(&view, "vdb"), paths(&[&now_raw, &raw]));
    assert_eq!(persistent(&view, "vda"), Some(now.path.clone()));
    assert_eq!(vm.xml("--inactive"), stored, "a start from memory leaves the stored definition alone");
    assert!(bed.images.is_in_use(&now.path, Format::Qcow2).await.unwrap());
    assert_eq!(bed.images.memory_image(&memory).await.unwrap(), bytes, "the image stays as it was");
    if paused {
        bed.libvirt.resume(vm.id).await.unwrap();
        assert_eq!(bed.observe(&vm).await.run_state, RunState::Running);
    }
}

#[tokio::test]
async fn from_memory() {
    let Some(bed) = Bed::new().await else { return };
    check_start_from_memory(&bed, false, RunState::Running).await;
    check_start_from_memory(&bed, true, RunState::Paused(PauseReason::Snapshot)).await;
}

#[tokio::test]
async fn from_disks_and_paused() {
    let Some(bed) = Bed::new().await else { return };
    let vm = Vm::with_disks(&[("vda", &bed.image("base", Format::Qcow2))], "");
    bed.libvirt.start(vm.id, &StartFrom::Disks, true).await.unwrap();
    assert_eq!(bed.observe(&vm).await.run_state, RunState::Paused(PauseReason::User));
    let again = bed.libvirt.start(vm.id, &StartFrom::Disks, false).await;
    assert!(matches!(again, Err(HostError::Refused { .. })), "{again:?}");
}

/// A loop device, gone when this is dropped.
struct LoopDevice(ImageRef);

impl LoopDevice {
    fn over(image: &ImageRef) -> Self {
        let device = run("losetup", &["--show", "--find", text(&image.path)]);
        Self(ImageRef { path: device.trim().into(), format: Format::Raw })
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        run("losetup", &["--detach", text(&self.0.path)]);
    }
}

#[tokio::test]
async fn a_base_on_a_block_device() {
    let Some(bed) = Bed::new().await else { return };
    let device = LoopDevice::over(&bed.image("behind", Format::Raw));
    let base = &device.0;
    let file = bed.image("file", Format::Raw);
    let vm = Vm::with_disks(&[("vda", &file)], "");
    let before = vm.xml("--inactive");
    bed.libvirt.point_disks(vm.id, &pointed(&[("vda", base)])).await.unwrap();
    let on_device = vm.xml("--inactive");
    let overlay = bed.overlay("overlay", base).await;
    bed.start(&vm).await;
    bed.switch(&vm, &[("vda", &overlay)], None).await;
    for _ in 0..2 {
        let view = bed.observe(&vm).await;
        assert_eq!(chain(&view, "vda"), paths(&[&overlay, base]));
        let kinds = view.disks[0].chain().iter().map(|image| image.is_block_device);
        assert!(kinds.eq([false, true]));
        // Once live, once off.
        if view.run_state == RunState::Running {
            assert!(bed.images.is_in_use(&base.path, base.format).await.unwrap());
            bed.libvirt.stop(vm.id).await.unwrap();
        }
    }
    assert!(!bed.images.is_in_use(&base.path, base.format).await.unwrap());
    let facts = bed.images.inspect(&base.path, Format::Raw).await.unwrap();
    assert_eq!((facts.virtual_size, facts.allocated), (DISK, DISK));
    bed.libvirt.point_disks(vm.id, &pointed(&[("vda", base)])).await.unwrap();
    assert_eq!(vm.xml("--inactive"), on_device);
    bed.libvirt.point_disks(vm.id, &pointed(&[("vda", &file)])).await.unwrap();
    assert_eq!(vm.xml("--inactive"), before);
}
