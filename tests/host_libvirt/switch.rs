//! Letting a VM write to other images.

use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use vmsnap::host::libvirt::{Deadlines, Libvirt};
use vmsnap::host::{DiskSwitch, HostError, Hypervisor, Images, Link};
use vmsnap::model::vm::{DiskView, Format, PauseReason, RunState};

use crate::bed::{Bed, Vm, chain, in_time, paths, persistent, run, target, text, virsh};

/// What the VM does before the switch, and afterwards.
#[derive(Clone, Copy, PartialEq)]
enum Is {
    Off,
    Running,
    Paused,
}

/// Switches `disks` of a VM with two, and looks at both.
async fn check(bed: &Bed, is: Is, disks: &[&str], with_memory: bool) {
    let case = format!("{}-{with_memory}-{}", disks.join("-"), is as u8);
    let images = [
        ("vda", bed.image(&format!("a-{case}"), Format::Qcow2)),
        ("vdb", bed.image(&format!("b-{case}"), Format::Raw)),
    ];
    let vm = Vm::with_disks(&images.each_ref().map(|(disk, image)| (*disk, image)), "");
    let run_state = match is {
        Is::Off => RunState::Off,
        Is::Running => {
            bed.start(&vm).await;
            RunState::Running
        }
        Is::Paused => {
            bed.start(&vm).await;
            virsh(&["suspend", &vm.name]);
            RunState::Paused(PauseReason::User)
        }
    };
    let mut overlays = Vec::new();
    for (disk, image) in images.iter().filter(|(disk, _)| disks.contains(disk)) {
        overlays.push((*disk, bed.overlay(&format!("{disk}-over-{case}"), image).await));
    }
    let memory = with_memory.then(|| bed.path(&format!("memory-{case}")));
    let switched: Vec<_> = overlays.iter().map(|(disk, overlay)| (*disk, overlay)).collect();
    bed.switch(&vm, &switched, memory.as_deref()).await;

    let view = bed.observe(&vm).await;
    assert_eq!(view.run_state, run_state);
    for (disk, image) in &images {
        let over = overlays.iter().find(|(switched, _)| switched == disk).map(|(_, overlay)| overlay);
        let expected = over.map_or_else(|| paths(&[image]), |over| paths(&[over, image]));
        assert_eq!(chain(&view, disk), expected, "{case}");
        assert_eq!(persistent(&view, disk), expected.first().cloned(), "{case}");
    }
    if let Some(memory) = &memory {
        let bytes = bed.images.memory_image(memory).await.unwrap();
        assert_eq!(bytes, Some(memory.metadata().unwrap().len()));
    }
    // QEMU holds the images of every VM that is live, so that nothing else touches them.
    for path in view.disks.iter().flat_map(DiskView::chain).map(|image| &image.path) {
        let is_in_use = bed.images.is_in_use(path, Format::Qcow2).await.unwrap();
        assert_eq!(is_in_use, is != Is::Off, "{case} {}", path.display());
    }
}

#[tokio::test]
async fn off() {
    let Some(bed) = Bed::new().await else { return };
    check(&bed, Is::Off, &["vda", "vdb"], false).await;
    check(&bed, Is::Off, &["vdb"], false).await;
}

#[tokio::test]
async fn running() {
    let Some(bed) = Bed::new().await else { return };
    check(&bed, Is::Running, &["vda", "vdb"], false).await;
    check(&bed, Is::Running, &["vda"], false).await;
    check(&bed, Is::Running, &["vda", "vdb"], true).await;
    check(&bed, Is::Running, &["vdb"], true).await;
}

#[tokio::test]
async fn paused() {
    let Some(bed) = Bed::new().await else { return };
    check(&bed, Is::Paused, &["vda", "vdb"], false).await;
    check(&bed, Is::Paused, &["vda", "vdb"], true).await;
}

#[tokio::test]
async fn what_is_refused_changes_nothing() {
    let Some(bed) = Bed::new().await else { return };
    let base = bed.image("base", Format::Qcow2);
    let overlay = bed.overlay("overlay", &base).await;
    let vm = Vm::with_disks(&[("vda", &base)], "");
    let switch = |disk, image: &_, memory| DiskSwitch {
        disks: vec![(target(disk), Clone::clone(image))],
        others: Vec::new(),
        memory,
    };
    let with_memory = switch("vda", &overlay, Some(bed.path("memory")));
    let refused = bed.libvirt.switch_disks(vm.id, &with_memory).await;
    assert!(matches!(refused, Err(HostError::Refused { .. })), "{refused:?}");

    bed.start(&vm).await;
    let mut missing = overlay.clone();
    missing.path = bed.path("missing");
    for wrong in [switch("vda", &missing, None), switch("vdz", &overlay, None)] {
        let refused = bed.libvirt.switch_disks(vm.id, &wrong).await;
        assert!(matches!(refused, Err(HostError::Refused { .. })), "{refused:?}");
    }
    assert_eq!(chain(&bed.observe(&vm).await, "vda"), paths(&[&base]));
}

/// More in the VM's memory than libvirt's own buffers and pipes hold. A BIOS alone leaves it empty.
pub fn filled_memory(bed: &Bed) -> String {
    let noise = bed.path("noise");
    run("dd", &["if=/dev/urandom", &format!("of={}", text(&noise)), "bs=1M", "count=64", "status=none"]);
    format!(
        "<commandline xmlns='http://libvirt.org/schemas/domain/qemu/1.0'><arg value='-device'/>\
         <arg value='loader,file={},addr=0x2000000,force-raw=on'/></commandline>",
        text(&noise)
    )
}

/// The capture ends early, and the VM runs on with its old disks.
#[tokio::test]
async fn a_capture_that_is_broken_off() {
    let Some(bed) = Bed::new().await else { return };
    let base = bed.image("base", Format::Qcow2);
    let overlay = bed.overlay("overlay", &base).await;
    let disk = format!(
        "<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='{}'/>\
         <target dev='vda' bus='virtio'/></disk>",
        text(&base.path)
    );
    let vm = Vm::define(&disk, "", &filled_memory(&bed));
    bed.start(&vm).await;
    // A pipe that nobody reads, with room for libvirt's header only: the memory cannot all go through.
    let memory = bed.path("memory");
    mkfifo(&memory, Mode::S_IRWXU).unwrap();
    let mut pipe = pipe::OpenOptions::new().read_write(true).open_receiver(&memory).unwrap();
    fcntl(&pipe, FcntlArg::F_SETPIPE_SZ(256 << 10)).unwrap();
    let switch = DiskSwitch {
        disks: vec![(target("vda"), overlay)],
        others: Vec::new(),
        memory: Some(memory.clone()),
    };
    let mut capture = tokio::spawn({
        let (libvirt, id) = (bed.libvirt.clone(), vm.id);
        async move { libvirt.switch_disks(id, &switch).await }
    });
    in_time(pipe.readable()).await.unwrap();
    let (done, total) = loop {
        assert!(!capture.is_finished(), "the capture ended by itself: {:?}", capture.await);
        if let Some(progress) = bed.libvirt.memory_progress(vm.id).await.unwrap() {
            break progress;
        }
    };
    assert!(done <= total && total >= 192 << 20, "{done} of {total}");
    // What a daemon sees that was started meanwhile.
    let other = Libvirt::connect("qemu:///system", Deadlines::default()).unwrap();
    in_time(other.link().wait_for(|link| *link == Link::Up)).await.unwrap();
    let view = in_time(other.observe(vm.id)).await.unwrap();
    assert_eq!(view.run_state, RunState::Paused(PauseReason::Snapshot));
    assert_eq!(chain(&view, "vda"), paths(&[&base]), "nothing of it is to be seen in the disks");
    assert!(other.is_capturing(vm.id).await.unwrap());
    bed.libvirt.abort_memory_capture(vm.id, &memory).await.unwrap();
    // Were it not for the abort, all would now go through and the capture succeed.
    let mut bytes = vec![0; 1 << 20];
    let captured = in_time(async {
        loop {
            tokio::select! {
                read = pipe.read(&mut bytes) => assert!(read.unwrap() > 0),
                captured = &mut capture => break captured.unwrap(),
            }
        }
    });
    assert!(captured.await.is_err());
    assert_eq!(bed.libvirt.memory_progress(vm.id).await.unwrap(), None);
    assert!(!other.is_capturing(vm.id).await.unwrap());
    let view = bed.observe(&vm).await;
    assert_eq!(view.run_state, RunState::Running);
    assert_eq!(chain(&view, "vda"), paths(&[&base]));
    // It may have ended in the middle of it, and what it was writing is there.
    bed.libvirt.stop(vm.id).await.unwrap();
    assert!(memory.exists() && !other.is_capturing(vm.id).await.unwrap());
}
