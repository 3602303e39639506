//! Memory that is written behind a running guest's back.

use std::path::Path;

use vmsnap::host::{BackgroundCapture, HostEvent, StartFrom};
use vmsnap::model::VmId;
use vmsnap::model::step::ImageRef;
use vmsnap::model::vm::{Format, MemoryFormat, PauseReason, RunState};

use crate::node::{Node, PATIENCE, expect, paths, switch, target};
use crate::over_both_nodes;

/// A running VM with one disk, and a memory image that waits for its memory; None where QEMU has not learned it yet, or the
/// kernel does not let it.
async fn prepared(node: &dyn Node, base: &ImageRef, image: &Path, format: MemoryFormat) -> Option<VmId> {
    let vm = node.running(base).await;
    begin_image(node, vm, image, format).await;
    if node.hypervisor().background_blocker(vm).await.unwrap().is_none() {
        return Some(vm);
    }
    expect(&node.hypervisor().prepare_background_capture(vm, image).await, "refused");
    node.hypervisor().pause(vm).await.unwrap();
    expect(&node.hypervisor().begin_background_capture(vm, image).await, "refused");
    assert_eq!(look(node, vm, image).await, BackgroundCapture::None);
    None
}

async fn begin_image(node: &dyn Node, vm: VmId, image: &Path, format: MemoryFormat) {
    let definition = node.hypervisor().definition(vm).await.unwrap();
    node.images().begin_memory_image(image, &definition, format).await.unwrap();
    assert_eq!(node.images().memory_image(image).await.unwrap(), None, "it is not complete");
}

/// Its memory is being captured, and nobody has proven it yet.
async fn begin(node: &dyn Node, vm: VmId, image: &Path) {
    let hypervisor = node.hypervisor();
    hypervisor.prepare_background_capture(vm, image).await.unwrap();
    hypervisor.pause(vm).await.unwrap();
    hypervisor.begin_background_capture(vm, image).await.unwrap();
}

async fn look(node: &dyn Node, vm: VmId, image: &Path) -> BackgroundCapture {
    node.hypervisor().background_capture(vm, image).await.unwrap()
}

async fn run_state(node: &dyn Node, vm: VmId) -> RunState {
    node.view(vm).await.run_state
}

/// Until it is over.
async fn see_through(node: &dyn Node, vm: VmId, image: &Path) {
    loop {
        match look(node, vm, image).await {
            BackgroundCapture::Active { done, total } => assert!(done <= total, "{done} of {total}"),
            BackgroundCapture::Following { .. } => {}
            end => break assert_eq!(end, BackgroundCapture::Complete),
        }
    }
}

/// The disks go over while the VM stands still, it runs on while its memory is written, and starts from that.
async fn memory_and_disks_of_one_instant(node: &dyn Node) {
    let raw = of_one_instant(node, MemoryFormat::Raw, "raw").await;
    let blocker = node.hypervisor().compression_blocker().await.unwrap();
    assert_eq!(blocker, None, "the test bed has what it takes");
    let compressed = of_one_instant(node, MemoryFormat::Zstd, "zstd").await;
    if let (Some(raw), Some(compressed)) = (raw, compressed) {
        assert!(compressed < raw, "{compressed} of {raw}");
    }
}

/// Gives the bytes of the image.
async fn of_one_instant(node: &dyn Node, format: MemoryFormat, name: &str) -> Option<u64> {
    let [base, over, again, memory] =
        ["base", "over", "again", "memory"].map(|file| format!("{file}-{name}"));
    let (base, image) = (node.image(&base, Format::Qcow2), node.path(&memory));
    node.write_image(&base, 0, 1);
    let vm = prepared(node, &base, &image, format).await?;
    let hypervisor = node.hypervisor();
    let definition = hypervisor.definition(vm).await.unwrap();
    let over = node.overlay(&over, &base).await;
    hypervisor.prepare_background_capture(vm, &image).await.unwrap();
    hypervisor.pause(vm).await.unwrap();
    hypervisor.pause(vm).await.unwrap();
    assert_eq!(run_state(node, vm).await, RunState::Paused(PauseReason::User));
    let mut events = hypervisor.events();
    hypervisor.begin_background_capture(vm, &image).await.unwrap();
    hypervisor.switch_disks(vm, &switch(&[("vda", &over)], &[], None)).await.unwrap();
    hypervisor.prove_background_capture(vm, &image).await.unwrap();
    assert_eq!(run_state(node, vm).await, RunState::Paused(PauseReason::User), "until it is resumed");
    hypervisor.resume(vm).await.unwrap();
    node.write_disk(vm, "vda", 0, 2);
    see_through(node, vm, &image).await;
    let told = async { while events.recv().await.unwrap() != HostEvent::CaptureMoved(vm) {} };
    tokio::time::timeout(PATIENCE, told).await.expect("its end is told");
    hypervisor.end_background_capture(vm).await.unwrap();
    assert_eq!(look(node, vm, &image).await, BackgroundCapture::None);
    assert_eq!(node.images().memory_image(&image).await.unwrap(), None, "until it is finished");
    let bytes = node.images().finish_memory_image(&image).await.unwrap();
    assert_eq!(node.images().memory_image(&image).await.unwrap(), Some(bytes));
    assert_eq!(node.images().finish_memory_image(&image).await.unwrap(), bytes, "already so");
    assert_eq!(node.images().memory_format(&image).await.unwrap(), format);
    assert_eq!(run_state(node, vm).await, RunState::Running);

    hypervisor.stop(vm).await.unwrap();
    let again = node.overlay(&again, &base).await;
    let disks = vec![(target("vda"), again.clone())];
    hypervisor.start(vm, &StartFrom::Memory { image, definition, disks }, false).await.unwrap();
    assert_eq!(run_state(node, vm).await, RunState::Running);
    assert_eq!(node.chain(vm, "vda").await, paths(&[&again, &base]));
    node.check_violations(0);
    Some(bytes)
}

/// The next capture of the same VM is another one.
async fn one_that_is_broken_off(node: &dyn Node) {
    broken_off(node, MemoryFormat::Raw, "raw").await;
    broken_off(node, MemoryFormat::Zstd, "zstd").await;
}

async fn broken_off(node: &dyn Node, format: MemoryFormat, name: &str) {
    let (base, image) =
        (node.image(&format!("base-{name}"), Format::Qcow2), node.path(&format!("memory-{name}")));
    let Some(vm) = prepared(node, &base, &image, format).await else { return };
    let hypervisor = node.hypervisor();
    begin(node, vm, &image).await;
    hypervisor.end_background_capture(vm).await.unwrap();
    hypervisor.end_background_capture(vm).await.unwrap();
    assert_eq!(look(node, vm, &image).await, BackgroundCapture::None);
    expect(&hypervisor.prove_background_capture(vm, &image).await, "refused");
    hypervisor.resume(vm).await.unwrap();
    assert_eq!(run_state(node, vm).await, RunState::Running);

    node.remove(&image).await;
    begin_image(node, vm, &image, format).await;
    hypervisor.prepare_background_capture(vm, &image).await.unwrap();
    assert_eq!(look(node, vm, &image).await, BackgroundCapture::None, "that was the one before");
    hypervisor.pause(vm).await.unwrap();
    hypervisor.begin_background_capture(vm, &image).await.unwrap();
    hypervisor.prove_background_capture(vm, &image).await.unwrap();
    hypervisor.resume(vm).await.unwrap();
    see_through(node, vm, &image).await;
    hypervisor.end_background_capture(vm).await.unwrap();
    node.images().finish_memory_image(&image).await.unwrap();
    node.check_violations(0);
}

async fn what_is_refused(node: &dyn Node) {
    let (base, image) = (node.image("base", Format::Qcow2), node.path("memory"));
    let Some(vm) = prepared(node, &base, &image, MemoryFormat::Raw).await else { return };
    let hypervisor = node.hypervisor();
    expect(&hypervisor.prepare_background_capture(vm, &node.path("missing")).await, "no such image");
    expect(&hypervisor.prepare_background_capture(vm, &base.path).await, "bad image");
    hypervisor.pause(vm).await.unwrap();
    expect(&hypervisor.begin_background_capture(vm, &image).await, "refused");
    hypervisor.resume(vm).await.unwrap();
    hypervisor.prepare_background_capture(vm, &image).await.unwrap();
    hypervisor.prepare_background_capture(vm, &image).await.unwrap();
    assert_eq!(look(node, vm, &image).await, BackgroundCapture::None, "nothing is captured yet");
    expect(&hypervisor.begin_background_capture(vm, &image).await, "refused");
    assert_eq!(run_state(node, vm).await, RunState::Running);
    hypervisor.end_background_capture(vm).await.unwrap();
    hypervisor.pause(vm).await.unwrap();
    expect(&node.images().finish_memory_image(&image).await, "bad image");
    assert_eq!(node.images().memory_image(&image).await.unwrap(), None, "nothing of it is there");
    let definition = hypervisor.definition(vm).await.unwrap();
    let begun = node.images().begin_memory_image(&image, &definition, MemoryFormat::Raw).await;
    assert!(begun.is_err(), "it is there already");
    hypervisor.stop(vm).await.unwrap();
    expect(&hypervisor.pause(vm).await, "refused");
    expect(&hypervisor.begin_background_capture(vm, &image).await, "refused");
    assert_eq!(look(node, vm, &image).await, BackgroundCapture::None);
    hypervisor.end_background_capture(vm).await.unwrap();
    node.check_violations(0);
}

/// Whoever has resumed it in between may have paused it again.
async fn a_vm_that_runs_meanwhile(node: &dyn Node) {
    let (base, image) = (node.image("base", Format::Qcow2), node.path("memory"));
    let Some(vm) = prepared(node, &base, &image, MemoryFormat::Raw).await else { return };
    let hypervisor = node.hypervisor();
    begin(node, vm, &image).await;
    expect(&hypervisor.prove_background_capture(vm, &node.path("other")).await, "refused");
    hypervisor.prove_background_capture(vm, &image).await.unwrap();
    hypervisor.resume(vm).await.unwrap();
    expect(&hypervisor.prove_background_capture(vm, &image).await, "refused");
    node.write_disk(vm, "vda", 0, 1);
    hypervisor.pause(vm).await.unwrap();
    expect(&hypervisor.prove_background_capture(vm, &image).await, "refused");
    hypervisor.end_background_capture(vm).await.unwrap();
    node.check_violations(0);
}

/// What QEMU was writing is not complete, and never will be.
async fn a_vm_that_ends_meanwhile(node: &dyn Node) {
    let (base, image) = (node.image("base", Format::Qcow2), node.path("memory"));
    let Some(vm) = prepared(node, &base, &image, MemoryFormat::Zstd).await else { return };
    let hypervisor = node.hypervisor();
    begin(node, vm, &image).await;
    hypervisor.stop(vm).await.unwrap();
    assert_eq!(look(node, vm, &image).await, BackgroundCapture::None);
    hypervisor.end_background_capture(vm).await.unwrap();
    assert_eq!(node.images().memory_image(&image).await.unwrap(), None);
    node.start(vm).await;
    assert_eq!(look(node, vm, &image).await, BackgroundCapture::None);
    node.check_violations(0);
}

over_both_nodes! {
    memory_and_disks_of_one_instant
    one_that_is_broken_off
    what_is_refused
    a_vm_that_runs_meanwhile
    a_vm_that_ends_meanwhile
}
