//! Merges: block jobs on a running VM, `qemu-img` on one that is off.

use vmsnap::host::{Commit, Pull, Result};
use vmsnap::model::VmId;
use vmsnap::model::step::ImageRef;
use vmsnap::model::vm::{Backing, BlockJobKind, Format, RunState};

use crate::node::{BLOCK, BLOCKS, DISK, Node, commit, expect, paths, switch, target};
use crate::over_both_nodes;

async fn the_active_layer(node: &dyn Node) {
    let layers = node.layers(&["base", "middle", "top"]).await;
    let [base, middle, top] = &layers[..] else { unreachable!() };
    let vm = node.running(top).await;
    let mut events = node.hypervisor().events();
    node.hypervisor().start_commit(vm, &commit(top, middle, true)).await.unwrap();
    assert_eq!(node.chain(vm, "vda").await, paths(&[top, middle, base]));
    node.write_disk(vm, "vda", 0, 8);
    while let Some(job) = node.job(vm).await.filter(|job| !job.ready) {
        assert_eq!(job.kind, BlockJobKind::ActiveCommit);
        node.job_moves(&mut events, vm).await;
    }
    // Both get what is written now.
    node.write_disk(vm, "vda", 3, 9);
    assert_eq!(node.read(top), [8, 2, 3, 9]);
    node.finish_job(vm, events).await;
    assert_eq!(node.chain(vm, "vda").await, paths(&[middle, base]));
    assert_eq!(node.stored(vm, "vda").await, Some(middle.path.clone()));
    assert_eq!(node.read(middle), [8, 2, 3, 9]);
    assert_eq!(node.read(base), [1, 0, 0, 0]);
    assert!(!node.images().is_in_use(&top.path, Format::Qcow2).await.unwrap());
    assert_eq!(node.view(vm).await.run_state, RunState::Running);
    node.remove(&top.path).await;
    node.hypervisor().stop(vm).await.unwrap();
    assert_eq!(node.chain(vm, "vda").await, paths(&[middle, base]));
    node.check_violations(0);
}

async fn a_frozen_layer(node: &dyn Node) {
    let layers = node.layers(&["base", "middle", "top"]).await;
    let [base, middle, top] = &layers[..] else { unreachable!() };
    let vm = node.running(top).await;
    let events = node.hypervisor().events();
    node.hypervisor().start_commit(vm, &commit(middle, base, false)).await.unwrap();
    node.finish_job(vm, events).await;
    assert_eq!(node.chain(vm, "vda").await, paths(&[top, base]), "and its header agrees");
    assert_eq!(node.stored(vm, "vda").await, Some(top.path.clone()));
    assert_eq!(node.read(base), [2, 2, 0, 0]);
    assert_eq!(node.read(top), [3, 2, 3, 0]);
    node.remove(&middle.path).await;
    node.hypervisor().stop(vm).await.unwrap();
    assert_eq!(node.chain(vm, "vda").await, paths(&[top, base]));
    node.check_violations(0);
}

/// What was written since is not overwritten, a branch on the child does not notice, and what lies below is only read.
async fn a_pull(node: &dyn Node) {
    let layers = node.layers(&["base", "low", "middle", "top"]).await;
    let [base, low, middle, top] = &layers[..] else { unreachable!() };
    let reads = node.read(top);
    let vm = node.running(top).await;
    let pull = |below: Option<&ImageRef>| Pull {
        disk: target("vda"),
        below: below.map(|below| below.path.clone()),
        bandwidth: None,
    };
    expect(&node.hypervisor().start_pull(vm, &pull(Some(top))).await, "refused");
    let (held, mut events) = (node.read(base), node.hypervisor().events());
    node.hypervisor().start_pull(vm, &pull(Some(base))).await.unwrap();
    node.write_disk(vm, "vda", 2, 9);
    while let Some(job) = node.job(vm).await {
        assert_eq!((job.kind, job.ready), (BlockJobKind::Pull, false));
        node.job_moves(&mut events, vm).await;
    }
    assert_eq!(node.chain(vm, "vda").await, paths(&[top, base]), "and its header agrees");
    assert_eq!(node.stored(vm, "vda").await, Some(top.path.clone()));
    let expected = [reads[0], reads[1], 9, reads[3]];
    assert_eq!((node.read(top), node.read(base)), (expected, held));
    node.remove(&middle.path).await;
    node.remove(&low.path).await;
    let events = node.hypervisor().events();
    node.hypervisor().start_pull(vm, &pull(None)).await.unwrap();
    node.finish_job(vm, events).await;
    assert_eq!(node.chain(vm, "vda").await, paths(&[top]));
    node.remove(&base.path).await;
    node.hypervisor().stop(vm).await.unwrap();
    assert_eq!(node.read(top), expected);
    node.check_violations(0);
}

async fn a_pull_of_what_nobody_has_open(node: &dyn Node) {
    let layers = node.layers(&["base", "low", "middle", "top"]).await;
    let [base, low, middle, top] = &layers[..] else { unreachable!() };
    let (reads, above) = (node.read(middle), node.read(top));
    let progress = tokio::sync::watch::channel((0, 0)).0;
    node.images().pull(middle, Some(base), &progress).await.unwrap();
    let facts = node.images().inspect(&middle.path, Format::Qcow2).await.unwrap();
    assert_eq!(facts.backing, Some(Backing { path: base.path.clone(), format: Some(base.format) }));
    node.remove(&low.path).await;
    assert_eq!((node.read(middle), node.read(top)), (reads, above));
    expect(&node.images().pull(middle, Some(base), &progress).await, "ok");
    node.check_violations(0);
}

/// Only the images of the running VM are rebased by the merge; the others must follow.
async fn a_layer_with_a_branch(node: &dyn Node) {
    let layers = node.layers(&["base", "middle", "top"]).await;
    let [base, middle, top] = &layers[..] else { unreachable!() };
    let dead = node.overlay("dead", middle).await;
    node.write_image(&dead, 3, 9);
    let vm = node.running(top).await;
    let events = node.hypervisor().events();
    node.hypervisor().start_commit(vm, &commit(middle, base, false)).await.unwrap();
    node.finish_job(vm, events).await;
    let facts = node.images().inspect(&dead.path, Format::Qcow2).await.unwrap();
    assert_eq!(facts.backing.map(|backing| backing.path), Some(middle.path.clone()));
    node.images().rebase(&dead, base).await.unwrap();
    assert_eq!((node.read(&dead), node.read(top)), ([2, 2, 0, 9], [3, 2, 3, 0]));
    node.remove(&middle.path).await;
    node.check_violations(0);
}

/// The VM reads the root of the branch, and nothing else of it.
async fn a_dead_branch(node: &dyn Node) {
    let layers = node.layers(&["base", "middle", "top"]).await;
    let [base, middle, top] = &layers[..] else { unreachable!() };
    let live = node.overlay("live", base).await;
    let vm = node.running(&live).await;
    assert!(commit_offline(node, &[top, middle]).await.unwrap());
    assert_eq!(node.read(middle), [3, 2, 3, 0]);
    expect(&commit_offline(node, &[middle, base]).await, "image in use");
    assert_eq!(node.read(base), [1, 0, 0, 0]);
    assert_eq!(node.chain(vm, "vda").await, paths(&[&live, base]));
    node.check_violations(0);
}

/// Somebody has changed the stored definition while the VM ran.
async fn a_stored_definition_that_names_another_image(node: &dyn Node) {
    let layers = node.layers(&["base", "top"]).await;
    let [base, top] = &layers[..] else { unreachable!() };
    let other = node.image("other", Format::Qcow2);
    let vm = node.running(base).await;
    node.redefine(vm, &other);
    assert_eq!(node.stored(vm, "vda").await, Some(other.path.clone()));
    node.hypervisor().switch_disks(vm, &switch(&[("vda", top)], &[], None)).await.unwrap();
    assert_eq!(node.chain(vm, "vda").await, paths(&[top, base]));
    assert_eq!(node.stored(vm, "vda").await, Some(other.path.clone()), "left alone by a switch");
    let events = node.hypervisor().events();
    node.hypervisor().start_commit(vm, &commit(top, base, true)).await.unwrap();
    node.finish_job(vm, events).await;
    assert_eq!(node.chain(vm, "vda").await, paths(&[base]));
    assert_eq!(node.stored(vm, "vda").await, Some(other.path.clone()), "left alone by a pivot");
}

async fn more_than_one_layer(node: &dyn Node) {
    let layers = node.layers(&["base", "middle", "top"]).await;
    let [base, _, top] = &layers[..] else { unreachable!() };
    let vm = node.running(top).await;
    let events = node.hypervisor().events();
    node.hypervisor().start_commit(vm, &commit(top, base, true)).await.unwrap();
    node.finish_job(vm, events).await;
    assert_eq!(node.chain(vm, "vda").await, paths(&[base]));
    assert_eq!(node.read(base), [3, 2, 3, 0]);
}

async fn an_empty_layer(node: &dyn Node) {
    let base = node.image("base", Format::Raw);
    let top = node.overlay("top", &base).await;
    let vm = node.running(&top).await;
    let events = node.hypervisor().events();
    node.hypervisor().start_commit(vm, &commit(&top, &base, true)).await.unwrap();
    node.finish_job(vm, events).await;
    assert_eq!(node.chain(vm, "vda").await, paths(&[&base]));
    assert_eq!(node.stored(vm, "vda").await, Some(base.path));
}

async fn a_vm_that_is_paused(node: &dyn Node) {
    let layers = node.layers(&["base", "top"]).await;
    let vm = node.running(&layers[1]).await;
    node.suspend(vm);
    let events = node.hypervisor().events();
    node.hypervisor().start_commit(vm, &commit(&layers[1], &layers[0], true)).await.unwrap();
    node.finish_job(vm, events).await;
    assert_eq!(node.chain(vm, "vda").await, paths(&[&layers[0]]));
    assert!(matches!(node.view(vm).await.run_state, RunState::Paused(_)));
}

/// Blocks that are copied one by one: QEMU copies those side by side at once, whatever the limit is.
fn apart() -> impl Iterator<Item = usize> {
    (0..usize::try_from(BLOCKS).unwrap()).step_by(2)
}

/// A merge of a full layer, too slow to end before the test does.
async fn crawling(node: &dyn Node) -> (VmId, Vec<ImageRef>, Commit) {
    let layers = node.layers(&["base", "middle", "top"]).await;
    for block in apart() {
        node.write_image(&layers[2], block as u64, 7);
    }
    let vm = node.running(&layers[2]).await;
    let crawling = Commit { bandwidth: Some(1), ..commit(&layers[2], &layers[1], true) };
    node.hypervisor().start_commit(vm, &crawling).await.unwrap();
    (vm, layers, crawling)
}

async fn a_pivot_before_its_time(node: &dyn Node) {
    let (vm, layers, crawling) = crawling(node).await;
    expect(&node.hypervisor().pivot(vm, &target("vda")).await, "not ready");
    expect(&node.hypervisor().start_commit(vm, &crawling).await, "refused");
    let job = node.view(vm).await.disks[0].block_job.unwrap();
    assert_eq!((job.kind, job.ready), (BlockJobKind::ActiveCommit, false));
    assert_eq!(node.chain(vm, "vda").await, paths(&[&layers[2], &layers[1], &layers[0]]));
    assert_eq!(node.stored(vm, "vda").await, Some(layers[2].path.clone()));
}

/// The base is a mixture then; the top still reads right.
async fn a_vm_that_stops_half_way(node: &dyn Node) {
    let (vm, layers, _) = crawling(node).await;
    while node.job(vm).await.unwrap().done == 0 {
        tokio::task::yield_now().await;
    }
    node.hypervisor().stop(vm).await.unwrap();
    assert_eq!(node.job(vm).await, None);
    let count = |image| {
        let content = node.read_image(image);
        apart().filter(|block| content[*block] == 7).count()
    };
    let all = apart().count();
    assert!((1..all).contains(&count(&layers[1])), "{}", count(&layers[1]));
    assert_eq!(count(&layers[2]), all);
    assert_eq!(node.chain(vm, "vda").await, paths(&[&layers[2], &layers[1], &layers[0]]));
    // Once more, to the end.
    node.start(vm).await;
    let events = node.hypervisor().events();
    node.hypervisor().start_commit(vm, &commit(&layers[2], &layers[1], true)).await.unwrap();
    node.finish_job(vm, events).await;
    assert_eq!(count(&layers[1]), all);
}

async fn what_is_refused(node: &dyn Node) {
    let layers = node.layers(&["base", "middle", "top"]).await;
    let [base, middle, top] = &layers[..] else { unreachable!() };
    let stranger = node.image("stranger", Format::Qcow2);
    let vm = node.running(top).await;
    for wrong in [
        commit(top, middle, false),
        commit(middle, base, true),
        commit(middle, top, false),
        commit(top, top, true),
        commit(&stranger, base, false),
        commit(middle, &stranger, false),
        Commit { disk: target("vdz"), ..commit(middle, base, false) },
    ] {
        expect(&node.hypervisor().start_commit(vm, &wrong).await, "refused");
    }
    expect(&node.hypervisor().pivot(vm, &target("vda")).await, "refused");
    assert_eq!(node.job(vm).await, None);
    let slowly = Commit { bandwidth: Some(1), ..commit(middle, base, false) };
    node.hypervisor().start_commit(vm, &slowly).await.unwrap();
    node.hypervisor().stop(vm).await.unwrap();
    expect(&node.hypervisor().start_commit(vm, &commit(middle, base, false)).await, "refused");
    expect(&node.hypervisor().pivot(vm, &target("vda")).await, "refused");
    assert_eq!(node.hypervisor().block_jobs(vm).await.unwrap(), []);
}

/// What another process reads is not written to.
async fn a_base_that_another_vm_reads(node: &dyn Node) {
    let layers = node.layers(&["base", "top"]).await;
    let other = node.overlay("other", &layers[0]).await;
    let (vm, reader) = (node.running(&layers[1]).await, node.running(&other).await);
    let merge = commit(&layers[1], &layers[0], true);
    expect(&node.hypervisor().start_commit(vm, &merge).await, "refused");
    assert_eq!(node.job(vm).await, None);
    assert_eq!(node.read(&layers[0]), [1, 0, 0, 0]);
    node.hypervisor().stop(reader).await.unwrap();
    expect(&node.hypervisor().start_commit(vm, &merge).await, "ok");
}

async fn commit_offline(node: &dyn Node, layers: &[&ImageRef]) -> Result<bool> {
    let (progress, seen) = tokio::sync::watch::channel((0, 0));
    let layers: Vec<ImageRef> = layers.iter().map(|layer| (*layer).clone()).collect();
    node.images().commit(&layers, &progress).await?;
    let (done, total) = *seen.borrow();
    Ok(done == total && total > 0)
}

async fn offline(node: &dyn Node) {
    let layers = node.layers(&["base", "middle", "top"]).await;
    let [base, middle, top] = &layers[..] else { unreachable!() };
    let vm = node.define(&[("vda", top)]);
    assert!(commit_offline(node, &[middle, base]).await.unwrap());
    assert_eq!(node.read(base), [2, 2, 0, 0]);
    assert_eq!(node.read(middle), [2, 2, 0, 0], "the merged layer is left as it was");
    assert_eq!(node.chain(vm, "vda").await, paths(&[top, middle, base]));
    node.images().rebase(top, base).await.unwrap();
    assert_eq!(node.read(top), [3, 2, 3, 0]);
    assert_eq!(node.chain(vm, "vda").await, paths(&[top, base]));
    node.remove(&middle.path).await;
    assert!(commit_offline(node, &[top, base]).await.unwrap());
    assert_eq!(node.read(base), [3, 2, 3, 0]);
    node.check_violations(0);
}

/// Several layers become one at once: what is higher counts.
async fn a_range_offline(node: &dyn Node) {
    let layers = node.layers(&["base", "low", "high", "top"]).await;
    let [base, low, high, top] = &layers[..] else { unreachable!() };
    let before = node.read(high);
    assert!(commit_offline(node, &[high, low, base]).await.unwrap());
    assert_eq!(node.read(base), before);
    assert_eq!(node.read(high), before, "the highest is left as it was");
    node.images().rebase(top, base).await.unwrap();
    for layer in [high, low] {
        node.remove(&layer.path).await;
    }
    assert_eq!(node.read(base), before);
    node.check_violations(0);
}

async fn a_range_of_the_active_layer(node: &dyn Node) {
    let layers = node.layers(&["base", "low", "high", "top"]).await;
    let [base, low, high, top] = &layers[..] else { unreachable!() };
    let before = node.read(top);
    let vm = node.running(top).await;
    let events = node.hypervisor().events();
    node.hypervisor().start_commit(vm, &commit(top, low, true)).await.unwrap();
    node.finish_job(vm, events).await;
    assert_eq!(node.chain(vm, "vda").await, paths(&[low, base]));
    assert_eq!(node.stored(vm, "vda").await, Some(low.path.clone()));
    assert_eq!(node.read(low), before);
    for layer in [top, high] {
        node.remove(&layer.path).await;
    }
    node.check_violations(0);
}

async fn a_range_of_frozen_layers(node: &dyn Node) {
    let layers = node.layers(&["base", "low", "high", "top"]).await;
    let [base, low, high, top] = &layers[..] else { unreachable!() };
    let before = node.read(top);
    let vm = node.running(top).await;
    let events = node.hypervisor().events();
    node.hypervisor().start_commit(vm, &commit(high, base, false)).await.unwrap();
    node.finish_job(vm, events).await;
    assert_eq!(node.chain(vm, "vda").await, paths(&[top, base]), "and its header agrees");
    for layer in [high, low] {
        node.remove(&layer.path).await;
    }
    assert_eq!(node.read(top), before);
    node.check_violations(0);
}

async fn what_is_refused_offline(node: &dyn Node) {
    let layers = node.layers(&["base", "middle", "top"]).await;
    let [base, middle, top] = &layers[..] else { unreachable!() };
    let missing = ImageRef { path: node.path("missing"), format: Format::Qcow2 };
    expect(&commit_offline(node, &[top, base]).await, "bad image");
    expect(&commit_offline(node, &[&missing, base]).await, "no such image");
    let as_raw = ImageRef { path: base.path.clone(), format: Format::Raw };
    expect(&commit_offline(node, &[middle, &as_raw]).await, "bad image");
    let vm = node.running(top).await;
    expect(&commit_offline(node, &[top, middle]).await, "image in use");
    expect(&commit_offline(node, &[middle, base]).await, "image in use");
    expect(&node.images().rebase(top, base).await, "image in use");
    assert_eq!(node.chain(vm, "vda").await, paths(&[top, middle, base]));
    assert_eq!(node.read(top), [3, 2, 3, 0]);
}

/// Only the header changes: a wrong one shows in what is read.
async fn a_wrong_rebase(node: &dyn Node) {
    let layers = node.layers(&["base", "middle", "top"]).await;
    let [base, middle, top] = &layers[..] else { unreachable!() };
    node.images().rebase(top, base).await.unwrap();
    assert_eq!(node.read(top), [3, 0, 3, 0]);
    let missing = ImageRef { path: node.path("missing"), format: Format::Qcow2 };
    expect(&node.images().rebase(middle, &missing).await, "no such image");
    let facts = node.images().inspect(&middle.path, Format::Qcow2).await.unwrap();
    assert_eq!(facts.backing.map(|backing| backing.path), Some(missing.path));
    node.check_violations(2);
}

async fn a_base_that_is_smaller(node: &dyn Node) {
    let small = ImageRef { path: node.path("small"), format: Format::Qcow2 };
    node.put_image(&small.path, Format::Qcow2, BLOCK);
    let top = node.overlay("top", &small).await;
    node.write_image(&top, 3, 5);
    commit_offline(node, &[&top, &small]).await.unwrap();
    assert_eq!(node.images().inspect(&small.path, Format::Qcow2).await.unwrap().virtual_size, DISK);
    assert_eq!(node.read(&small), [0, 0, 0, 5]);

    let small = ImageRef { path: node.path("small-live"), format: Format::Qcow2 };
    node.put_image(&small.path, Format::Qcow2, BLOCK);
    let top = node.overlay("top-live", &small).await;
    node.write_image(&top, 3, 5);
    let vm = node.running(&top).await;
    let events = node.hypervisor().events();
    node.hypervisor().start_commit(vm, &commit(&top, &small, true)).await.unwrap();
    node.finish_job(vm, events).await;
    assert_eq!(node.images().inspect(&small.path, Format::Qcow2).await.unwrap().virtual_size, DISK);
    assert_eq!(node.read(&small), [0, 0, 0, 5]);
}

over_both_nodes! {
    a_pull
    a_pull_of_what_nobody_has_open
    the_active_layer
    a_frozen_layer
    a_layer_with_a_branch
    a_dead_branch
    a_stored_definition_that_names_another_image
    more_than_one_layer
    an_empty_layer
    a_vm_that_is_paused
    a_pivot_before_its_time
    a_vm_that_stops_half_way
    what_is_refused
    a_base_that_another_vm_reads
    offline
    a_range_offline
    a_range_of_the_active_layer
    a_range_of_frozen_layers
    what_is_refused_offline
    a_wrong_rebase
    a_base_that_is_smaller
}
