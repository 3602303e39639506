//! VMs switched to other images, with memory and without.

use vmsnap::host::LiveImage;
use vmsnap::model::step::NewOverlay;
use vmsnap::model::vm::{Format, PauseReason, RunState};

use crate::node::{BLOCK, Node, commit, expect, paths, switch, target};
use crate::over_both_nodes;

/// What the VM does before the switch, and afterwards.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Is {
    Off,
    Running,
    Paused,
}

async fn check(node: &dyn Node, is: Is, disks: &[&str], with_memory: bool) {
    let name = |name: &str| format!("{name}-{is:?}-{}-{with_memory}", disks.len());
    let (a, b) = (node.image(&name("a"), Format::Qcow2), node.image(&name("b"), Format::Raw));
    node.write_image(&a, 0, 1);
    node.write_image(&b, 0, 1);
    let vm = node.define(&[("vda", &a), ("vdb", &b)]);
    let run_state = match is {
        Is::Off => RunState::Off,
        Is::Running => RunState::Running,
        Is::Paused => RunState::Paused(PauseReason::User),
    };
    if is != Is::Off {
        node.start(vm).await;
    }
    if is == Is::Paused {
        node.suspend(vm);
    }
    let over_a = node.overlay(&name("over-a"), &a).await;
    let over_b = node.overlay(&name("over-b"), &b).await;
    let all = [("vda", &over_a), ("vdb", &over_b)];
    let (switched, left): (Vec<_>, Vec<_>) = all.into_iter().partition(|(disk, _)| disks.contains(disk));
    let others: Vec<_> = left.iter().map(|(disk, _)| *disk).collect();
    let memory = with_memory.then(|| node.path(&name("memory")));
    let switch = switch(&switched, &others, memory.clone());
    node.hypervisor().switch_disks(vm, &switch).await.unwrap();

    assert_eq!(node.view(vm).await.run_state, run_state);
    let mut live = Vec::new();
    for (disk, base, over) in [("vda", &a, &over_a), ("vdb", &b, &over_b)] {
        let expected = if disks.contains(&disk) { paths(&[over, base]) } else { paths(&[base]) };
        assert_eq!(node.chain(vm, disk).await, expected, "{is:?} {disk}");
        assert_eq!(node.stored(vm, disk).await, expected.first().cloned(), "{is:?} {disk}");
        let virtual_size = node.images().inspect(&base.path, base.format).await.unwrap().virtual_size;
        live.extend((is != Is::Off).then(|| LiveImage {
            disk: target(disk),
            path: expected[0].clone(),
            virtual_size,
        }));
        let is_in_use = node.images().is_in_use(&base.path, base.format).await.unwrap();
        assert_eq!(is_in_use, is != Is::Off, "{is:?} {disk}");
        if is == Is::Running {
            node.write_disk(vm, disk, 0, 2);
            let is_switched = disks.contains(&disk);
            assert_eq!(node.read(base)[0], if is_switched { 1 } else { 2 }, "{disk}");
            assert_eq!(node.read(over)[0], 2, "{disk}");
        }
    }
    let mut written = node.hypervisor().written_images(vm).await.unwrap();
    written.sort_by_key(|image| image.disk.clone());
    assert_eq!(written, live, "{is:?}");
    if let Some(memory) = memory {
        assert!(node.images().memory_image(&memory).await.unwrap().is_some_and(|bytes| bytes > 0));
    }
    node.check_violations(0);
}

async fn a_vm_that_runs(node: &dyn Node) {
    check(node, Is::Running, &["vda", "vdb"], false).await;
    check(node, Is::Running, &["vdb"], false).await;
}

async fn a_vm_that_runs_with_memory(node: &dyn Node) {
    check(node, Is::Running, &["vda", "vdb"], true).await;
    check(node, Is::Running, &["vda"], true).await;
}

async fn a_vm_that_is_off(node: &dyn Node) {
    check(node, Is::Off, &["vda", "vdb"], false).await;
    check(node, Is::Off, &["vda"], false).await;
}

async fn a_vm_that_is_paused(node: &dyn Node) {
    check(node, Is::Paused, &["vda", "vdb"], false).await;
    check(node, Is::Paused, &["vda", "vdb"], true).await;
}

async fn what_is_refused(node: &dyn Node) {
    let (a, b) = (node.image("a", Format::Qcow2), node.image("b", Format::Qcow2));
    let vm = node.define(&[("vda", &a), ("vdb", &b)]);
    let over = node.overlay("over", &a).await;
    let memory = Some(node.path("memory"));
    let of_off = node.hypervisor().switch_disks(vm, &switch(&[("vda", &over)], &["vdb"], memory)).await;
    expect(&of_off, "refused");

    node.start(vm).await;
    let mut missing = over.clone();
    missing.path = node.path("missing");
    let raw = node.image("raw", Format::Raw);
    for wrong in [
        switch(&[("vda", &missing)], &["vdb"], None),
        switch(&[("vda", &raw)], &["vdb"], None),
        switch(&[("vdz", &over)], &["vda", "vdb"], None),
        // A disk that is not named would get an overlay of libvirt's choice.
        switch(&[("vda", &over)], &[], None),
        // An image that is open already.
        switch(&[("vda", &a)], &["vdb"], None),
    ] {
        expect(&node.hypervisor().switch_disks(vm, &wrong).await, "refused");
    }
    assert_eq!(node.chain(vm, "vda").await, paths(&[&a]));
    assert_eq!(node.chain(vm, "vdb").await, paths(&[&b]));
    assert!(!node.path("memory").exists());
}

/// Nobody checks what is in an overlay. The simulation takes it, too, and says that it is wrong.
async fn overlays_that_nobody_checks(node: &dyn Node) {
    let (a, b) = (node.image("a", Format::Qcow2), node.image("b", Format::Qcow2));
    node.write_image(&a, 0, 1);
    let full = node.overlay("full", &a).await;
    node.write_image(&full, 0, 2);
    let vm = node.running(&a).await;
    node.hypervisor().switch_disks(vm, &switch(&[("vda", &full)], &[], None)).await.unwrap();
    assert_eq!(node.read(&full)[0], 2);
    node.check_violations(1);

    let small = NewOverlay { virtual_size: BLOCK, ..node.new_overlay("small", &full) };
    node.images().create_overlay(&small).await.unwrap();
    let small = vmsnap::model::step::ImageRef { path: small.path, format: Format::Qcow2 };
    node.hypervisor().switch_disks(vm, &switch(&[("vda", &small)], &[], None)).await.unwrap();
    assert_eq!(node.chain(vm, "vda").await, paths(&[&small, &full, &a]));
    node.check_violations(2);

    let of_another = node.overlay("of-another", &b).await;
    node.hypervisor().switch_disks(vm, &switch(&[("vda", &of_another)], &[], None)).await.unwrap();
    expect(&node.hypervisor().observe(vm).await, "bad image");
    node.check_violations(3);
}

/// A job on one disk stands in the way of a switch of that disk, and of any capture of memory.
async fn while_a_job_runs(node: &dyn Node) {
    let layers = node.layers(&["base", "top"]).await;
    let b = node.image("b", Format::Qcow2);
    let vm = node.define(&[("vda", &layers[1]), ("vdb", &b)]);
    node.start(vm).await;
    node.hypervisor().start_commit(vm, &commit(&layers[1], &layers[0], true)).await.unwrap();
    let (over_a, over_b) = (node.overlay("over-a", &layers[1]).await, node.overlay("over-b", &b).await);
    let memory = Some(node.path("memory"));
    let of_same = node.hypervisor().switch_disks(vm, &switch(&[("vda", &over_a)], &["vdb"], None)).await;
    expect(&of_same, "refused");
    let capture = node.hypervisor().switch_disks(vm, &switch(&[("vdb", &over_b)], &["vda"], memory)).await;
    expect(&capture, "refused");
    let of_other = node.hypervisor().switch_disks(vm, &switch(&[("vdb", &over_b)], &["vda"], None)).await;
    expect(&of_other, "ok");
    assert_eq!(node.view(vm).await.run_state, RunState::Running);
    assert!(node.view(vm).await.disk(&target("vda")).unwrap().block_job.is_some());
}

over_both_nodes! {
    a_vm_that_runs
    a_vm_that_runs_with_memory
    a_vm_that_is_off
    a_vm_that_is_paused
    what_is_refused
    overlays_that_nobody_checks
    while_a_job_runs
}
