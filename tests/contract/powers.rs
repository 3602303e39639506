//! VMs that start, stop and resume, from disks and from memory.

use std::path::Path;
use std::time::Duration;

use vmsnap::host::{Definition, HostEvent, StartFrom};
use vmsnap::model::VmId;
use vmsnap::model::step::ImageRef;
use vmsnap::model::vm::{AgentChannel, Format, PauseReason, RunState};

use crate::node::{BLOCK, Node, PATIENCE, commit, expect, paths, switch, target};
use crate::over_both_nodes;

const SOON: Duration = Duration::from_secs(5);

async fn from_disks(node: &dyn Node) {
    let image = node.image("image", Format::Qcow2);
    let vm = node.define(&[("vda", &image)]);
    let hypervisor = node.hypervisor();
    let start = async |paused| hypervisor.start(vm, &StartFrom::Disks, paused).await;
    expect(&hypervisor.stop(vm).await, "refused");
    expect(&hypervisor.resume(vm).await, "refused");
    expect(&start(true).await, "ok");
    assert_eq!(node.view(vm).await.run_state, RunState::Paused(PauseReason::User));
    expect(&start(false).await, "refused");
    expect(&hypervisor.resume(vm).await, "ok");
    assert_eq!(node.view(vm).await.run_state, RunState::Running);
    expect(&hypervisor.resume(vm).await, "refused");
    expect(&hypervisor.abort_memory_capture(vm, Path::new("/memory")).await, "refused");
    assert_eq!(hypervisor.memory_progress(vm).await.unwrap(), None);
    expect(&hypervisor.stop(vm).await, "ok");
    assert_eq!(node.view(vm).await.run_state, RunState::Off);
    assert_eq!(hypervisor.memory_progress(vm).await.unwrap(), None);
    let listed = hypervisor.vms().await.unwrap().into_iter().find(|listed| listed.id == vm).unwrap();
    assert_eq!(listed.run_state, RunState::Off);
}

async fn images_that_are_missing(node: &dyn Node) {
    let layers = node.layers(&["base", "top"]).await;
    let vm = node.define(&[("vda", &layers[1])]);
    node.remove(&layers[0].path).await;
    expect(&node.hypervisor().observe(vm).await, "no such image");
    expect(&node.hypervisor().start(vm, &StartFrom::Disks, false).await, "refused");
    node.remove(&layers[1].path).await;
    expect(&node.hypervisor().observe(vm).await, "no such image");
    expect(&node.hypervisor().start(vm, &StartFrom::Disks, false).await, "refused");
}

/// A definition that takes a raw image for qcow2.
async fn a_format_that_is_wrong(node: &dyn Node) {
    let raw = node.image("raw", Format::Raw);
    let vm = node.define(&[("vda", &ImageRef { path: raw.path, format: Format::Qcow2 })]);
    expect(&node.hypervisor().observe(vm).await, "bad image");
    expect(&node.hypervisor().start(vm, &StartFrom::Disks, false).await, "refused");
}

fn disks(disks: &[(&str, &ImageRef)]) -> Vec<(vmsnap::model::DiskTarget, ImageRef)> {
    disks.iter().map(|(disk, image)| (target(disk), (*image).clone())).collect()
}

/// What a revert does: memory of then, disks of then under fresh overlays.
async fn check_memory(node: &dyn Node, paused: bool, expected: RunState) {
    let name = |name: &str| format!("{name}-{paused}");
    let base = node.image(&name("base"), Format::Qcow2);
    let vm = node.running(&base).await;
    node.write_disk(vm, "vda", 0, 1);
    let (then, now) = (node.overlay(&name("then"), &base).await, node.overlay(&name("now"), &base).await);
    let definition = node.hypervisor().definition(vm).await.unwrap();
    let memory = node.path(&name("memory"));
    let capture = switch(&[("vda", &then)], &[], Some(memory.clone()));
    node.hypervisor().switch_disks(vm, &capture).await.unwrap();
    let bytes = node.images().memory_image(&memory).await.unwrap();
    node.write_disk(vm, "vda", 0, 2);
    let how = StartFrom::Memory { image: memory.clone(), definition, disks: disks(&[("vda", &now)]) };
    expect(&node.hypervisor().start(vm, &how, paused).await, "refused");
    node.hypervisor().stop(vm).await.unwrap();
    expect(&node.hypervisor().start(vm, &how, paused).await, "ok");
    assert_eq!(node.view(vm).await.run_state, expected);
    assert_eq!(node.chain(vm, "vda").await, paths(&[&now, &base]));
    assert_eq!(node.stored(vm, "vda").await, Some(then.path.clone()), "the stored definition is left alone");
    assert_eq!(node.images().memory_image(&memory).await.unwrap(), bytes, "the image stays as it was");
    assert!(node.images().is_in_use(&now.path, Format::Qcow2).await.unwrap());
    assert_eq!((node.read(&now)[0], node.read(&then)[0]), (1, 2));
    // The new branch can be merged, whether it runs or not.
    let events = node.hypervisor().events();
    node.hypervisor().start_commit(vm, &commit(&now, &base, true)).await.unwrap();
    node.finish_job(vm, events).await;
    assert_eq!(node.chain(vm, "vda").await, paths(&[&base]));
    if paused {
        expect(&node.hypervisor().resume(vm).await, "ok");
        assert_eq!(node.view(vm).await.run_state, RunState::Running);
    }
    node.check_violations(0);
}

async fn from_memory(node: &dyn Node) {
    check_memory(node, false, RunState::Running).await;
    check_memory(node, true, RunState::Paused(PauseReason::Snapshot)).await;
}

async fn memory_that_cannot_be_started_from(node: &dyn Node) {
    let base = node.image("base", Format::Qcow2);
    let vm = node.running(&base).await;
    let over = node.overlay("over", &base).await;
    let definition = node.hypervisor().definition(vm).await.unwrap();
    let memory = node.path("memory");
    node.hypervisor().switch_disks(vm, &switch(&[("vda", &over)], &[], Some(memory.clone()))).await.unwrap();
    node.hypervisor().stop(vm).await.unwrap();
    let missing = ImageRef { path: node.path("missing"), format: Format::Qcow2 };
    let start = async |image: &std::path::Path, definition: &Definition, sources| {
        let how =
            StartFrom::Memory { image: image.to_owned(), definition: definition.clone(), disks: sources };
        node.hypervisor().start(vm, &how, false).await
    };
    let right = || disks(&[("vda", &over)]);
    expect(&start(&missing.path, &definition, right()).await, "refused");
    expect(&start(&base.path, &definition, right()).await, "refused");
    expect(&start(&memory, &definition, disks(&[("vda", &missing)])).await, "refused");
    expect(&start(&memory, &definition, disks(&[("vdz", &over)])).await, "no such disk");
    expect(&start(&memory, &Definition("nonsense".to_owned()), right()).await, "malformed");
    assert_eq!(node.view(vm).await.run_state, RunState::Off);
}

async fn the_stored_definition(node: &dyn Node) {
    let layers = node.layers(&["base", "top"]).await;
    let vm = node.define(&[("vda", &layers[1])]);
    let point = async |disk, image| node.hypervisor().point_disks(vm, &disks(&[(disk, image)])).await;
    expect(&point("vda", &layers[0]).await, "ok");
    assert_eq!(node.chain(vm, "vda").await, paths(&[&layers[0]]));
    assert_eq!(node.stored(vm, "vda").await, Some(layers[0].path.clone()));
    expect(&point("vdz", &layers[1]).await, "no such disk");
    // Nobody asks whether it is there.
    let missing = ImageRef { path: node.path("missing"), format: Format::Qcow2 };
    expect(&point("vda", &missing).await, "ok");
    expect(&node.hypervisor().observe(vm).await, "no such image");
    expect(&point("vda", &layers[1]).await, "ok");
    node.start(vm).await;
    expect(&point("vda", &layers[0]).await, "ok");
    assert_eq!(node.stored(vm, "vda").await, Some(layers[0].path.clone()));
}

async fn a_managed_save(node: &dyn Node) {
    let image = node.image("image", Format::Qcow2);
    let vm = node.running(&image).await;
    node.managed_save(vm);
    let view = node.view(vm).await;
    assert_eq!((view.has_managed_save, view.run_state), (true, RunState::Off));
    node.start(vm).await;
    let view = node.view(vm).await;
    assert_eq!((view.has_managed_save, view.run_state), (false, RunState::Running));
    node.check_violations(0);
}

/// It has a definition of its own: a start goes on with the images of then, whatever the stored one names.
async fn a_managed_save_over_other_images(node: &dyn Node) {
    let layers = node.layers(&["base", "top"]).await;
    let vm = node.running(&layers[0]).await;
    node.managed_save(vm);
    node.hypervisor().switch_disks(vm, &switch(&[("vda", &layers[1])], &[], None)).await.unwrap();
    assert_eq!(node.chain(vm, "vda").await, paths(&[&layers[1], &layers[0]]));
    node.start(vm).await;
    assert_eq!(node.chain(vm, "vda").await, paths(&[&layers[0]]));
    assert_eq!(node.stored(vm, "vda").await, Some(layers[1].path.clone()));
}

async fn a_vm_without_a_definition(node: &dyn Node) {
    let image = node.image("image", Format::Qcow2);
    let vm = node.running(&image).await;
    node.undefine(vm);
    assert!(!node.view(vm).await.persistent);
    assert_eq!(node.stored(vm, "vda").await, None);
    let over = node.overlay("over", &image).await;
    let switched = node.hypervisor().switch_disks(vm, &switch(&[("vda", &over)], &[], None)).await;
    expect(&switched, "ok");
    assert_eq!(node.chain(vm, "vda").await, paths(&[&over, &image]));
    node.hypervisor().stop(vm).await.unwrap();
    expect(&node.hypervisor().observe(vm).await, "no such vm");
    // libvirt has stored the definition with the switch, and knows of it from its next start: it goes with one of that name.
    node.redefine(vm, &image);
}

/// Whatever is done to a VM is told.
async fn events(node: &dyn Node) {
    let layers = node.layers(&["base", "top"]).await;
    let mut events = node.hypervisor().events();
    let vm = node.define(&[("vda", &layers[1])]);
    let mut heard = async |event: fn(VmId) -> HostEvent| {
        let told = async { while events.recv().await.unwrap() != event(vm) {} };
        tokio::time::timeout(PATIENCE, told).await.expect("the event comes");
        // What else belongs to the same change has no order.
        while events.try_recv().is_ok() {}
    };
    heard(HostEvent::VmChanged).await;
    node.start(vm).await;
    heard(HostEvent::VmChanged).await;
    node.suspend(vm);
    heard(HostEvent::VmChanged).await;
    node.hypervisor().resume(vm).await.unwrap();
    heard(HostEvent::VmChanged).await;
    let jobs = node.hypervisor().events();
    node.hypervisor().start_commit(vm, &commit(&layers[1], &layers[0], true)).await.unwrap();
    node.finish_job(vm, jobs).await;
    heard(HostEvent::BlockJobChanged).await;
    node.hypervisor().stop(vm).await.unwrap();
    heard(HostEvent::VmChanged).await;
    node.undefine(vm);
    heard(HostEvent::VmChanged).await;
}

/// An image that grows is told of once, when it comes to the length that was set.
async fn thresholds(node: &dyn Node) {
    let layers = node.layers(&["base", "top"]).await;
    let vm = node.define(&[("vda", &layers[1])]);
    let set = async |bytes| node.hypervisor().set_block_threshold(vm, &target("vda"), bytes).await;
    expect(&set(1 << 40).await, "refused");
    node.start(vm).await;
    let mut events = node.hypervisor().events();
    let crossed = HostEvent::ThresholdCrossed(vm);
    let length = node.images().inspect(&layers[1].path, Format::Qcow2).await.unwrap().length;
    set(1 << 40).await.unwrap();
    // What was set before is forgotten.
    set(length + 3 * BLOCK).await.unwrap();
    for block in 10..30 {
        node.write_disk(vm, "vda", block, 7);
    }
    let told = async { while events.recv().await.unwrap() != crossed {} };
    tokio::time::timeout(PATIENCE, told).await.expect("the event comes");
    for block in 30..40 {
        node.write_disk(vm, "vda", block, 7);
    }
    node.suspend(vm);
    let mut again = 0;
    let paused = async {
        loop {
            match events.recv().await.unwrap() {
                HostEvent::VmChanged(changed) if changed == vm => return,
                event => again += usize::from(event == crossed),
            }
        }
    };
    tokio::time::timeout(PATIENCE, paused).await.expect("the event comes");
    // libvirt tells of the image that is written to by both of its names.
    assert!(again <= 1, "{again}");
    let no_disk = node.hypervisor().set_block_threshold(vm, &target("vdz"), 1).await;
    assert!(no_disk.is_err(), "{no_disk:?}");
}

async fn no_such_vm(node: &dyn Node) {
    let vm = VmId::new();
    let image = node.image("image", Format::Qcow2);
    let hypervisor = node.hypervisor();
    let expected = "no such vm";
    expect(&hypervisor.observe(vm).await, expected);
    expect(&hypervisor.definition(vm).await, expected);
    expect(&hypervisor.switch_disks(vm, &switch(&[("vda", &image)], &[], None)).await, expected);
    expect(&hypervisor.point_disks(vm, &disks(&[("vda", &image)])).await, expected);
    expect(&hypervisor.start(vm, &StartFrom::Disks, false).await, expected);
    expect(&hypervisor.stop(vm).await, expected);
    expect(&hypervisor.resume(vm).await, expected);
    expect(&hypervisor.abort_memory_capture(vm, Path::new("/memory")).await, expected);
    expect(&hypervisor.start_commit(vm, &commit(&image, &image, true)).await, expected);
    expect(&hypervisor.block_jobs(vm).await, expected);
    expect(&hypervisor.set_block_threshold(vm, &target("vda"), 1).await, expected);
    expect(&hypervisor.pivot(vm, &target("vda")).await, expected);
    expect(&node.agent().freeze(vm, &[], SOON).await, expected);
    expect(&node.agent().thaw(vm, SOON).await, expected);
    expect(&node.agent().is_frozen(vm, SOON).await, expected);
}

async fn no_agent(node: &dyn Node) {
    let vm = node.define(&[("vda", &node.image("image", Format::Qcow2))]);
    for is_on in [false, true] {
        if is_on {
            node.start(vm).await;
        }
        assert_eq!(node.view(vm).await.agent, AgentChannel::Absent);
        expect(&node.agent().freeze(vm, &[], SOON).await, "agent unavailable");
        expect(&node.agent().thaw(vm, SOON).await, "agent unavailable");
        expect(&node.agent().is_frozen(vm, SOON).await, "agent unavailable");
    }
}

over_both_nodes! {
    from_disks
    images_that_are_missing
    a_format_that_is_wrong
    from_memory
    memory_that_cannot_be_started_from
    the_stored_definition
    a_managed_save
    a_managed_save_over_other_images
    a_vm_without_a_definition
    events
    thresholds
    no_such_vm
    no_agent
}
