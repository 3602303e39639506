//! What is seen of a VM.

use std::fmt::Write as _;
use std::path::PathBuf;

use vmsnap::host::{HostError, Hypervisor};
use vmsnap::model::VmId;
use vmsnap::model::vm::{
    AgentChannel, ChainImage, DiskSource, ExcludedDisk, Format, PauseReason, RefusedDisk, RunState,
};

use crate::bed::{Bed, URI, Vm, chain, paths, persistent, run, target, text, virsh};

#[tokio::test]
async fn a_vm_in_every_state() {
    let Some(bed) = Bed::new().await else { return };
    let base = bed.image("base", Format::Raw);
    let middle = bed.overlay("middle", &base).await;
    let top = bed.overlay("top", &middle).await;
    let other = bed.image("other", Format::Raw);
    let channel = "<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>";
    let cdrom = "<disk type='file' device='cdrom'><target dev='sda' bus='sata'/><readonly/></disk>";
    let vm = Vm::with_disks(&[("vda", &top), ("vdb", &other)], &format!("{channel}{cdrom}"));

    let check = async |expected: RunState| {
        let view = bed.observe(&vm).await;
        assert_eq!((view.id, view.name.as_str(), view.run_state), (vm.id, vm.name.as_str(), expected));
        assert_eq!(chain(&view, "vda"), paths(&[&top, &middle, &base]));
        let formats = view.disk(&target("vda")).unwrap().chain().iter().map(|image| image.format);
        assert!(formats.eq([Format::Qcow2, Format::Qcow2, Format::Raw]));
        assert_eq!(chain(&view, "vdb"), paths(&[&other]));
        assert_eq!(persistent(&view, "vda"), Some(top.path.clone()));
        assert_eq!(view.disks[2].source, DiskSource::Excluded(ExcludedDisk::Cdrom));
        assert_eq!(view.disks.len(), 3);
        assert!(view.disks.iter().all(|disk| disk.block_job.is_none()));
        assert_eq!(view.agent, AgentChannel::Disconnected);
        assert_eq!(view.memory_bytes, 192 << 20);
        assert_eq!(view.memory_blocker, None);
        assert!(view.persistent && !view.has_managed_save);
        let listed = bed.libvirt.vms().await.unwrap();
        let listed = listed.into_iter().find(|listed| listed.id == vm.id).unwrap();
        assert_eq!((listed.name, listed.run_state), (vm.name.clone(), expected));
    };
    check(RunState::Off).await;
    bed.start(&vm).await;
    check(RunState::Running).await;
    virsh(&["suspend", &vm.name]);
    check(RunState::Paused(PauseReason::User)).await;
    bed.libvirt.resume(vm.id).await.unwrap();
    check(RunState::Running).await;
    bed.libvirt.stop(vm.id).await.unwrap();
    check(RunState::Off).await;
    let again = bed.libvirt.stop(vm.id).await;
    assert!(matches!(again, Err(HostError::Refused { .. })), "{again:?}");
}

#[tokio::test]
async fn who_the_hypervisor_is() {
    let Some(bed) = Bed::new().await else { return };
    let about = bed.libvirt.about().await.unwrap();
    let version = virsh(&["version"]);
    assert!(version.contains(&format!("libvirt {}\n", about.libvirt)), "{about:?} {version}");
    assert!(version.contains(&format!("QEMU {}\n", about.qemu)), "{about:?} {version}");
    // A VM that is started now runs in that QEMU.
    let vm = Vm::with_disks(&[("vda", &bed.image("disk", Format::Qcow2))], "");
    assert_eq!(bed.observe(&vm).await.pull_blocker, None, "it is off");
    bed.start(&vm).await;
    let numbers: Vec<u32> = about.qemu.split('.').map(|number| number.parse().unwrap()).collect();
    let blocker = bed.observe(&vm).await.pull_blocker;
    assert_eq!(blocker.is_some(), numbers < vec![10, 2, 0], "{about:?} {blocker:?}");
    assert_eq!(about.host_name, run("virsh", &["-q", "-c", URI, "hostname"]).trim());
}

#[tokio::test]
async fn no_such_vm() {
    let Some(bed) = Bed::new().await else { return };
    let vm = VmId::new();
    let seen = bed.libvirt.observe(vm).await;
    assert!(matches!(seen, Err(HostError::NoSuchVm(missing)) if missing == vm), "{seen:?}");
    let started = bed.libvirt.start(vm, &vmsnap::host::StartFrom::Disks, false).await;
    assert!(matches!(started, Err(HostError::NoSuchVm(missing)) if missing == vm), "{started:?}");
}

#[tokio::test]
async fn disks_that_are_refused_by_name() {
    let Some(bed) = Bed::new().await else { return };
    let check = async |disk: &str, expected: RefusedDisk| {
        let disk = format!("<disk {disk}<target dev='vda' bus='virtio'/></disk>");
        let view = bed.observe(&Vm::define(&disk, "", "")).await;
        assert_eq!(view.disks[0].source, DiskSource::Refused(expected), "{disk}");
    };
    let raw = text(&bed.image("raw", Format::Raw).path).to_owned();
    let file = |image: &str, format: &str, more: &str| {
        format!(
            "type='file' device='disk'><driver name='qemu' type='{format}'/><source file='{image}'/>{more}"
        )
    };
    check(&file(&raw, "raw", "<shareable/>"), RefusedDisk::Shared).await;
    check(&file(&raw, "raw", "<transient/>"), RefusedDisk::Transient).await;
    check(&file(&raw, "vmdk", ""), RefusedDisk::Kind("a vmdk image".to_owned())).await;
    check(
        "type='network' device='disk'><driver name='qemu' type='raw'/><source protocol='nbd' name='x'>\
         <host name='localhost'/></source>",
        RefusedDisk::Network("nbd".to_owned()),
    )
    .await;

    let inside = bed.image("inside", Format::Qcow2).path;
    run("qemu-img", &["snapshot", "-c", "one", text(&inside)]);
    check(&file(text(&inside), "qcow2", ""), RefusedDisk::InternalSnapshots).await;

    let (split, data) = (bed.path("split"), bed.path("data"));
    let option = format!("data_file={}", text(&data));
    run("qemu-img", &["create", "-q", "-f", "qcow2", "-o", &option, text(&split), "64M"]);
    check(&file(text(&split), "qcow2", ""), RefusedDisk::ExternalDataFile).await;

    let unnamed = bed.path("unnamed");
    run("qemu-img", &["create", "-q", "-f", "qcow2", "-b", &raw, "-F", "raw", text(&unnamed), "64M"]);
    // No tool writes such a header any more. The type of the extension that carries the format is made unknown.
    let mut bytes = std::fs::read(&unnamed).unwrap();
    let extension = bytes.windows(4).position(|word| word == 0xe279_2aca_u32.to_be_bytes()).unwrap();
    bytes[extension] = 0;
    std::fs::write(&unnamed, bytes).unwrap();
    check(&file(text(&unnamed), "qcow2", ""), RefusedDisk::FormatUnknown).await;
}

#[tokio::test]
async fn images_that_are_wrong() {
    let Some(bed) = Bed::new().await else { return };
    let raw = bed.image("raw", Format::Raw);
    let overlay = bed.overlay("overlay", &raw).await;
    let vm = Vm::with_disks(&[("vda", &overlay)], "");

    // A header that names something else than what QEMU reads is invisible to a guest that runs.
    bed.start(&vm).await;
    let other = bed.image("other", Format::Raw);
    let moved = bed.path("moved");
    std::fs::copy(&overlay.path, &moved).unwrap();
    run("qemu-img", &["rebase", "-u", "-f", "qcow2", "-F", "raw", "-b", text(&other.path), text(&moved)]);
    let header = std::fs::read(&moved).unwrap();
    std::fs::write(&overlay.path, header).unwrap();
    let seen = bed.libvirt.observe(vm.id).await;
    let (bad, problem) = match seen {
        Err(HostError::BadImage { path, problem }) => (path, problem),
        seen => panic!("{seen:?}"),
    };
    assert_eq!(bad, overlay.path);
    assert!(problem.contains(text(&other.path)) && problem.contains(text(&raw.path)), "{problem}");

    bed.libvirt.stop(vm.id).await.unwrap();
    std::fs::write(&overlay.path, b"no image").unwrap();
    let seen = bed.libvirt.observe(vm.id).await;
    assert!(matches!(&seen, Err(HostError::BadImage { path, .. }) if *path == overlay.path), "{seen:?}");
    std::fs::remove_file(&overlay.path).unwrap();
    let seen = bed.libvirt.observe(vm.id).await;
    assert!(matches!(&seen, Err(HostError::NoSuchImage(path)) if *path == overlay.path), "{seen:?}");
}

#[tokio::test]
async fn memory_that_cannot_be_captured() {
    let Some(bed) = Bed::new().await else { return };
    let shared = "<shmem name='x'><model type='ivshmem-plain'/><size unit='M'>4</size></shmem>";
    let view = bed.observe(&Vm::with_disks(&[], shared)).await;
    assert_eq!(view.memory_blocker.as_deref(), Some("a shared memory device"));
}

/// libvirt writes `<backingStore>` into the stored definition when it switches the disks of a running VM. What is
/// below the last one that it names is for the header to say.
#[tokio::test]
async fn a_stored_chain_that_is_not_complete() {
    let Some(bed) = Bed::new().await else { return };
    let base = bed.image("base", Format::Raw);
    let first = bed.overlay("first", &base).await;
    let second = bed.overlay("second", &first).await;
    let vm = Vm::with_disks(&[("vda", &first)], "");
    bed.start(&vm).await;
    bed.switch(&vm, &[("vda", &second)], None).await;
    bed.libvirt.stop(vm.id).await.unwrap();
    assert!(vm.xml("--inactive").contains("<backingStore type='file'>"), "the case that this test is for");
    let view = bed.observe(&vm).await;
    assert_eq!(chain(&view, "vda"), paths(&[&second, &first, &base]));
    let images = view.disk(&target("vda")).unwrap().chain().last().cloned();
    let last = ChainImage { path: PathBuf::from(&base.path), format: Format::Raw, is_block_device: false };
    assert_eq!(images, Some(last));
}

/// QEMU names a disk differently on every bus, and puts nodes of its own between. Its answer is recognised all the same.
#[tokio::test]
async fn disks_on_every_bus() {
    let Some(bed) = Bed::new().await else { return };
    let mut devices = "<controller type='scsi' model='virtio-scsi'/>".to_owned();
    let mut images = Vec::new();
    let buses = [
        ("vda", "virtio", "iothread='1'"),
        ("vdb", "virtio", "copy_on_read='on'"),
        ("sda", "sata", ""),
        ("sdb", "scsi", "cache='none' io='native' discard='unmap'"),
        ("sdc", "usb", ""),
    ];
    for (disk, bus, driver) in buses {
        let base = bed.image(&format!("{disk}-base"), Format::Raw);
        let image = bed.overlay(&format!("{disk}: a, 'b' = \"c\" 100% {{d}} é"), &base).await;
        let path = text(&image.path).replace('\'', "&apos;");
        write!(
            devices,
            "<disk type='file' device='disk'><driver name='qemu' type='qcow2' {driver}/><source file='{path}'/>\
             <target dev='{disk}' bus='{bus}'/><iotune><total_iops_sec>100000</total_iops_sec></iotune></disk>"
        )
        .unwrap();
        images.push((disk, image, base));
    }
    let vm = Vm::define(&devices, "", "<iothreads>1</iothreads>");
    bed.start(&vm).await;
    let mut overlays = Vec::new();
    for (disk, image, _) in &images {
        overlays.push((*disk, bed.overlay(&format!("{disk}-over"), image).await));
    }
    bed.switch(&vm, &overlays.iter().map(|(disk, overlay)| (*disk, overlay)).collect::<Vec<_>>(), None).await;
    let view = bed.observe(&vm).await;
    for ((disk, overlay), (_, image, base)) in overlays.iter().zip(&images) {
        assert_eq!(chain(&view, disk), paths(&[overlay, image, base]));
    }
    bed.libvirt.stop(vm.id).await.unwrap();
    let view = bed.observe(&vm).await;
    for ((disk, overlay), (_, image, base)) in overlays.iter().zip(&images) {
        assert_eq!(chain(&view, disk), paths(&[overlay, image, base]));
    }
}

/// As `virsh metadata` writes them, and as nova does.
#[tokio::test]
async fn what_is_written_on_vms() {
    let Some(bed) = Bed::new().await else { return };
    let nova = "<metadata><nova:instance xmlns:nova='http://openstack.org/xmlns/libvirt/nova/1.1'><nova:owner>\
                <nova:project uuid='0a1b'>demo</nova:project></nova:owner></nova:instance></metadata>";
    let (plain, of_nova) = (Vm::define("", "", ""), Vm::define("", "", nova));
    bed.start(&plain).await;
    let labels = async |vm: &Vm| {
        let one = bed.libvirt.labels(Some(vm.id)).await.unwrap();
        let all = bed.libvirt.labels(None).await.unwrap();
        assert_eq!(one.get(&vm.id), all.get(&vm.id));
        one.get(&vm.id).cloned().unwrap().0.into_iter().collect::<Vec<_>>()
    };
    let pairs = |pairs: &[(&str, &str)]| {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect::<Vec<_>>()
    };
    assert_eq!(labels(&plain).await, pairs(&[]));
    assert_eq!(labels(&of_nova).await, pairs(&[("project", "0a1b")]));
    // As docs/OPERATIONS.md says that it is done.
    let page = include_str!("../../docs/OPERATIONS.md");
    let command = page.lines().find_map(|line| line.strip_prefix("    virsh metadata web ")).unwrap();
    for vm in [&plain, &of_nova] {
        run("sh", &["-c", &format!("virsh -q -c {URI} metadata {} {command}", vm.name)]);
    }
    assert_eq!(labels(&plain).await, pairs(&[("account", "acme")]));
    assert_eq!(labels(&of_nova).await, pairs(&[("account", "acme"), ("project", "0a1b")]));
    let nobody = VmId(uuid::Uuid::now_v7());
    assert!(bed.libvirt.labels(Some(nobody)).await.unwrap().is_empty());
}
