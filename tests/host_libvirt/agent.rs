//! Guest agents: none, and a real one where a test guest has been built.

use std::path::PathBuf;
use std::time::Duration;

use vmsnap::host::{EmergencyThaw, GuestAgent, HostError, HostEvent, Hypervisor};
use vmsnap::model::VmId;
use vmsnap::model::vm::{AgentChannel, Format};

use crate::bed::{Bed, Vm, heard, run, text};

const DEADLINE: Duration = Duration::from_secs(20);

const CHANNEL: &str = "<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>";

#[tokio::test]
async fn nobody_there() {
    let Some(bed) = Bed::new().await else { return };
    let check = async |vm: VmId| {
        let frozen = bed.libvirt.freeze(vm, &[], DEADLINE).await;
        assert!(matches!(frozen, Err(HostError::AgentUnavailable(Some(_)))), "{frozen:?}");
        let thawed = bed.libvirt.thaw(vm, DEADLINE).await;
        assert!(matches!(thawed, Err(HostError::AgentUnavailable(Some(_)))), "{thawed:?}");
    };
    let off = bed.vm(&[("vda", &bed.image("off", Format::Qcow2))], CHANNEL);
    check(off.id).await;
    let without_channel = bed.vm(&[("vda", &bed.image("without", Format::Qcow2))], "");
    bed.start(&without_channel).await;
    check(without_channel.id).await;
    let silent = bed.vm(&[("vda", &bed.image("silent", Format::Qcow2))], CHANNEL);
    bed.start(&silent).await;
    check(silent.id).await;

    let missing = VmId::new();
    let frozen = bed.libvirt.freeze(missing, &[], DEADLINE).await;
    assert!(matches!(frozen, Err(HostError::NoSuchVm(vm)) if vm == missing), "{frozen:?}");
    // Nothing is frozen in a VM that does not run.
    let emergency = bed.libvirt.emergency();
    let rescued = std::thread::spawn(move || {
        (emergency.thaw_now(off.id, DEADLINE), emergency.thaw_now(silent.id, DEADLINE), (off, silent))
    });
    let (off, silent, _vms) = rescued.join().unwrap();
    assert!(off.unwrap());
    assert!(matches!(silent, Err(HostError::AgentUnavailable(_))), "{silent:?}");
}

/// The kernel and the initial RAM disk of a guest with an agent, and one disk with a file system.
fn guest(bed: &Bed) -> Option<Vm> {
    let built = std::env::var_os("VMSNAP_TEST_GUEST")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(".testbed/guest"), PathBuf::from);
    if !built.join("initrd.gz").exists() {
        no_guest(&built);
        return None;
    }
    // Where QEMU's user gets to.
    let [kernel, initrd] = ["vmlinuz", "initrd.gz"].map(|name| {
        std::fs::copy(built.join(name), bed.path(name)).unwrap();
        bed.path(name)
    });
    let disk = bed.image("guest-disk", Format::Raw);
    run("mkfs.ext4", &["-q", text(&disk.path)]);
    let os = format!(
        "<kernel>{}</kernel><initrd>{}</initrd><cmdline>console=ttyS0 quiet vmsnap.disks=1</cmdline>",
        text(&kernel),
        text(&initrd)
    );
    let devices = format!(
        "<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='{}'/>\
         <target dev='vda' bus='virtio'/></disk>{CHANNEL}\
         <channel type='null'><target type='virtio' name='vmsnap.progress'/></channel>",
        text(&disk.path)
    );
    Some(Vm::define(&devices, &os, ""))
}

#[allow(clippy::print_stderr, reason = "a skipped test must be seen")]
fn no_guest(built: &std::path::Path) {
    eprintln!("SKIPPED: NO TEST GUEST IN {}. Freezing was not tested.", built.display());
}

async fn boot(bed: &Bed, vm: &Vm) {
    let mut events = bed.libvirt.events();
    bed.start(vm).await;
    while bed.observe(vm).await.agent != AgentChannel::Connected {
        heard(&mut events, &HostEvent::AgentChanged(vm.id)).await;
    }
}

#[tokio::test]
async fn freeze_and_thaw() {
    let Some(bed) = Bed::new().await else { return };
    let Some(vm) = guest(&bed) else { return };
    boot(&bed, &vm).await;
    let agent = &*bed.libvirt;
    assert!(!agent.is_frozen(vm.id, DEADLINE).await.unwrap());
    assert_eq!(agent.freeze(vm.id, &[], DEADLINE).await.unwrap(), 1);
    assert!(agent.is_frozen(vm.id, DEADLINE).await.unwrap());
    let twice = agent.freeze(vm.id, &[], DEADLINE).await;
    assert!(matches!(twice, Err(HostError::AgentRefused(_))), "{twice:?}");
    assert_eq!(agent.thaw(vm.id, DEADLINE).await.unwrap(), 1);
    assert!(!agent.is_frozen(vm.id, DEADLINE).await.unwrap());
    // A mount point that is not there freezes nothing, and is no error of the agent.
    assert_eq!(agent.freeze(vm.id, &["/mnt/none".to_owned()], DEADLINE).await.unwrap(), 0);
    assert_eq!(agent.freeze(vm.id, &["/mnt/vda".to_owned()], DEADLINE).await.unwrap(), 1);

    let emergency = bed.libvirt.emergency();
    let id = vm.id;
    let thawed = std::thread::spawn(move || emergency.thaw_now(id, DEADLINE)).join().unwrap();
    assert!(thawed.unwrap());
    assert!(!agent.is_frozen(vm.id, DEADLINE).await.unwrap());
}

/// The base of the guarantee of thaw: no call on the VM, however long, holds up the one that thaws it.
#[tokio::test]
async fn a_thaw_while_disks_are_switched() {
    let Some(bed) = Bed::new().await else { return };
    let Some(vm) = guest(&bed) else { return };
    boot(&bed, &vm).await;
    bed.libvirt.freeze(vm.id, &[], DEADLINE).await.unwrap();
    let view = bed.observe(&vm).await;
    let base = view.disks[0].active().unwrap();
    let base = vmsnap::model::step::ImageRef { path: base.path.clone(), format: base.format };
    let overlay = bed.overlay("overlay", &base).await;
    let (id, emergency) = (vm.id, bed.libvirt.emergency());
    let thaw = tokio::task::spawn_blocking(move || emergency.thaw_now(id, DEADLINE));
    let switched = [("vda", &overlay)];
    let ((), thawed) = tokio::join!(bed.switch(&vm, &switched, None), thaw);
    assert!(thawed.unwrap().unwrap());
}
