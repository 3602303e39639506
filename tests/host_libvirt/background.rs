//! Memory written behind a guest's back: what QEMU and libvirt are left with.

use std::path::PathBuf;

use serde_json::Value;
use vmsnap::host::libvirt::{Deadlines, Libvirt};
use vmsnap::host::{BackgroundCapture, HostError, Hypervisor, Images, Link};
use vmsnap::model::vm::{Format, MemoryFormat, RunState};

use crate::bed::{Bed, URI, Vm, in_time, virsh};
use crate::switch::filled_memory;

/// What QEMU's monitor answers.
fn ask(vm: &Vm, command: &str) -> Value {
    let answer = virsh(&["qemu-monitor-command", &vm.name, &format!("{{\"execute\":\"{command}\"}}")]);
    let answer: Value = serde_json::from_str(&answer).unwrap();
    answer["return"].clone()
}

fn is_on(vm: &Vm) -> bool {
    let capabilities = ask(vm, "query-migrate-capabilities");
    let capabilities = capabilities.as_array().unwrap();
    let found = capabilities.iter().find(|it| it["capability"] == "background-snapshot");
    found.is_some_and(|it| it["state"] == true)
}

/// A daemon that was started meanwhile sees it, and ends it once nobody waits for it any more. It leaves nothing behind: the VM can
/// be saved, by libvirt, as if there had never been one.
#[tokio::test]
async fn another_daemon_ends_it() {
    another_daemon_ends(MemoryFormat::Raw).await;
}

/// What the dead one had still to compress is missing from the image, however far QEMU was.
#[tokio::test]
async fn another_daemon_ends_one_that_is_compressed() {
    another_daemon_ends(MemoryFormat::Zstd).await;
}

/// A running VM, and an image that waits for its memory. None where none can be captured so.
async fn ready(format: MemoryFormat) -> Option<(Bed, Vm, PathBuf)> {
    let bed = Bed::new().await?;
    let base = bed.image("base", Format::Qcow2);
    let disk = format!(
        "<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='{}'/>\
         <target dev='vda' bus='virtio'/></disk>",
        base.path.display()
    );
    let vm = Vm::define(&disk, "", &filled_memory(&bed));
    bed.start(&vm).await;
    if bed.libvirt.background_blocker(vm.id).await.unwrap().is_some() {
        return None;
    }
    assert!(!is_on(&vm), "it was only asked for");
    let image = bed.path("memory");
    let definition = bed.libvirt.definition(vm.id).await.unwrap();
    bed.images.begin_memory_image(&image, &definition, format).await.unwrap();
    Some((bed, vm, image))
}

/// Then what QEMU writes is what the guest has at the end, not what it had.
#[tokio::test]
async fn somebody_switches_it_off() {
    let Some((bed, vm, image)) = ready(MemoryFormat::Raw).await else { return };
    let hypervisor = &bed.libvirt;
    hypervisor.prepare_background_capture(vm.id, &image).await.unwrap();
    let off = r#"{"execute":"migrate-set-capabilities","arguments":{"capabilities":
                  [{"capability":"background-snapshot","state":false}]}}"#;
    // So that it cannot be over before it is ended.
    let slow = r#"{"execute":"migrate-set-parameters","arguments":{"max-bandwidth":1048576}}"#;
    for command in [off, slow] {
        virsh(&["qemu-monitor-command", &vm.name, command]);
    }
    hypervisor.pause(vm.id).await.unwrap();
    hypervisor.begin_background_capture(vm.id, &image).await.unwrap();
    let proven = hypervisor.prove_background_capture(vm.id, &image).await;
    assert!(matches!(proven, Err(HostError::Refused { .. })), "{proven:?}");
    hypervisor.end_background_capture(vm.id).await.unwrap();
    assert_eq!(ask(&vm, "query-migrate")["status"], "cancelled", "it does not go on");
    assert_eq!(ask(&vm, "query-fdsets").as_array().map(Vec::len), Some(0), "QEMU keeps no file of ours");
}

async fn another_daemon_ends(format: MemoryFormat) {
    let Some((bed, vm, image)) = ready(format).await else { return };
    let [first, other] = [(), ()].map(|()| Libvirt::connect(URI, Deadlines::default()).unwrap());
    for libvirt in [&first, &other] {
        in_time(libvirt.link().wait_for(|link| *link == Link::Up)).await.unwrap();
    }
    first.prepare_background_capture(vm.id, &image).await.unwrap();
    let asked = other.background_blocker(vm.id).await;
    assert!(matches!(asked, Err(HostError::Busy(_))), "to ask is to switch it off: {asked:?}");
    first.pause(vm.id).await.unwrap();
    let begun = other.begin_background_capture(vm.id, &image).await;
    assert!(matches!(begun, Err(HostError::Refused { .. })), "somebody else has prepared it: {begun:?}");
    first.begin_background_capture(vm.id, &image).await.unwrap();
    let proven = other.prove_background_capture(vm.id, &image).await;
    assert!(
        matches!(proven, Err(HostError::Refused { .. })),
        "it knows nothing of the beginning: {proven:?}"
    );
    first.prove_background_capture(vm.id, &image).await.unwrap();
    first.resume(vm.id).await.unwrap();
    assert!(is_on(&vm));

    assert_ne!(other.background_capture(vm.id, &image).await.unwrap(), BackgroundCapture::None);
    assert_eq!(
        other.background_capture(vm.id, &bed.path("other")).await.unwrap(),
        BackgroundCapture::None,
        "that is another image"
    );
    other.end_background_capture(vm.id).await.unwrap();
    assert!(is_on(&vm), "somebody waits for it");
    drop(first);
    if format == MemoryFormat::Zstd {
        let end = loop {
            match other.background_capture(vm.id, &image).await.unwrap() {
                BackgroundCapture::Active { .. } | BackgroundCapture::Following { .. } => {}
                end => break end,
            }
        };
        assert!(matches!(end, BackgroundCapture::Failed(_)), "{end:?}");
    }
    other.end_background_capture(vm.id).await.unwrap();
    assert!(!is_on(&vm));
    assert_eq!(ask(&vm, "query-fdsets").as_array().map(Vec::len), Some(0), "QEMU keeps no file of ours");
    assert_eq!(bed.observe(&vm).await.run_state, RunState::Running);

    virsh(&["managedsave", &vm.name]);
    assert_eq!(bed.observe(&vm).await.run_state, RunState::Off);
    bed.start(&vm).await;
}
