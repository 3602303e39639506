//! What a merge that the guest outruns needs of a node: limits on a disk that can be seen, set and taken back, and block
//! jobs that can be ended.

use vmsnap::host::{Commit, HostError};
use vmsnap::model::io_limits::{Directions, IoLimits, Limit};
use vmsnap::model::vm::RunState;
use vmsnap::model::{DiskTarget, VmId};

use crate::node::{Node, commit, expect, paths, target};
use crate::over_both_nodes;

async fn limits(node: &dyn Node, vm: VmId, disk: &DiskTarget) -> Option<IoLimits> {
    node.hypervisor().io_limits(vm, disk).await.unwrap()
}

fn limit(rate: u64) -> Limit {
    Limit { rate, ..Limit::default() }
}

/// Each is slowed and then taken back, and nothing is left of it.
async fn limits_on_a_disk(node: &dyn Node) {
    let layers = node.layers(&["base"]).await;
    let vm = node.running(&layers[0]).await;
    let vda = target("vda");
    assert_eq!(limits(node, vm, &vda).await, Some(IoLimits::default()));
    let burst = Limit { rate: 5 << 20, burst: 6 << 20, burst_seconds: 3 };
    let free = Directions::default();
    let operations =
        Directions { read: limit(300), write: Limit { rate: 400, burst: 500, burst_seconds: 2 }, ..free };
    let all = [
        IoLimits::default(),
        IoLimits { bytes: Directions { both: burst, ..free }, ..IoLimits::default() },
        IoLimits { bytes: Directions { read: burst, write: burst, ..free }, ..IoLimits::default() },
        IoLimits {
            bytes: Directions { both: limit(9 << 20), ..free },
            operations,
            operation_bytes: 8192,
            group: None,
        },
        IoLimits { operations: Directions { both: limit(700), ..free }, ..IoLimits::default() },
    ];
    for before in &all {
        node.hypervisor().set_io_limits(vm, &vda, before).await.unwrap();
        assert_eq!(limits(node, vm, &vda).await.as_ref(), Some(before));
        for rate in [2 << 20, 1 << 20] {
            let slowed = before.with_writes_at_most(rate);
            node.hypervisor().set_io_limits(vm, &vda, &slowed).await.unwrap();
            assert_eq!(limits(node, vm, &vda).await, Some(slowed), "on top of {before:?}");
        }
        node.hypervisor().set_io_limits(vm, &vda, before).await.unwrap();
        assert_eq!(limits(node, vm, &vda).await.as_ref(), Some(before), "taken back");
    }
    // They are the process's own.
    node.hypervisor().set_io_limits(vm, &vda, &all[1]).await.unwrap();
    node.hypervisor().stop(vm).await.unwrap();
    assert_eq!(limits(node, vm, &vda).await, None);
    node.start(vm).await;
    assert_eq!(limits(node, vm, &vda).await, Some(IoLimits::default()));
    assert_eq!(limits(node, vm, &target("vdx")).await, None);
    let nobody = VmId(uuid::Uuid::from_u128(1));
    let seen = node.hypervisor().io_limits(nobody, &vda).await;
    assert!(matches!(seen, Err(HostError::NoSuchVm(_))), "{seen:?}");
}

/// Counters of the process: they are there as long as it is, and never go back.
async fn what_a_disk_has_served(node: &dyn Node) {
    let layers = node.layers(&["base", "top"]).await;
    let [base, top] = &layers[..] else { unreachable!() };
    let vm = node.running(top).await;
    let vda = target("vda");
    let served = async || node.hypervisor().served(vm, &vda).await.unwrap();
    let before = served().await.unwrap();
    assert!(node.hypervisor().served(vm, &target("vdx")).await.unwrap().is_none());
    // What a block job copies is none of the guest's requests.
    node.hypervisor().start_commit(vm, &commit(top, base, true)).await.unwrap();
    let mut events = node.hypervisor().events();
    while !node.job(vm).await.is_some_and(|job| job.ready) {
        node.job_moves(&mut events, vm).await;
    }
    let after = served().await.unwrap();
    assert_eq!(after.writes, before.writes);
    assert!(after.reads.count >= before.reads.count && after.flushes.count >= before.flushes.count);
    node.hypervisor().stop(vm).await.unwrap();
    assert_eq!(served().await, None);
    let nobody = VmId(uuid::Uuid::from_u128(1));
    expect(&node.hypervisor().served(nobody, &vda).await, "no such vm");
}

/// The VM goes on with the layers that it has, and the same merge can be begun anew.
async fn a_job_that_is_ended(node: &dyn Node) {
    let layers = node.layers(&["base", "middle", "top"]).await;
    let [base, middle, top] = &layers[..] else { unreachable!() };
    let vm = node.running(top).await;
    let vda = target("vda");
    node.hypervisor().abort_block_job(vm, &vda).await.unwrap();
    let mut events = node.hypervisor().events();
    for is_ready in [false, true] {
        node.hypervisor().start_commit(vm, &commit(top, middle, true)).await.unwrap();
        while is_ready && !node.job(vm).await.is_some_and(|job| job.ready) {
            node.job_moves(&mut events, vm).await;
        }
        node.hypervisor().abort_block_job(vm, &vda).await.unwrap();
        assert_eq!(node.job(vm).await, None);
        assert_eq!(node.chain(vm, "vda").await, paths(&[top, middle, base]));
        assert_eq!(node.view(vm).await.run_state, RunState::Running);
    }
    node.write_disk(vm, "vda", 3, 9);
    assert_eq!(node.read(top), [3, 2, 3, 9]);
    let events = node.hypervisor().events();
    node.hypervisor().start_commit(vm, &commit(top, middle, true)).await.unwrap();
    node.finish_job(vm, events).await;
    assert_eq!(node.chain(vm, "vda").await, paths(&[middle, base]));
    assert_eq!(node.read(middle), [3, 2, 3, 9]);
    node.hypervisor().stop(vm).await.unwrap();
    node.hypervisor().abort_block_job(vm, &vda).await.unwrap();
    expect(&node.hypervisor().abort_block_job(VmId(uuid::Uuid::from_u128(1)), &vda).await, "no such vm");
}

/// It is told with the job, and changed while that runs; it goes with the job.
async fn a_job_whose_limit_is_changed(node: &dyn Node) {
    let layers = node.layers(&["base", "top"]).await;
    let [base, top] = &layers[..] else { unreachable!() };
    let vm = node.running(top).await;
    let vda = target("vda");
    expect(&node.hypervisor().limit_block_job(vm, &vda, Some(1 << 20)).await, "refused");
    let limited = Commit { bandwidth: Some(64 << 10), ..commit(top, base, true) };
    node.hypervisor().start_commit(vm, &limited).await.unwrap();
    assert_eq!(node.job(vm).await.unwrap().bandwidth, Some(64 << 10));
    for bandwidth in [Some((3 << 20) + 1), None] {
        node.hypervisor().limit_block_job(vm, &vda, bandwidth).await.unwrap();
        assert_eq!(node.job(vm).await.unwrap().bandwidth, bandwidth);
    }
    node.hypervisor().abort_block_job(vm, &vda).await.unwrap();
    expect(&node.hypervisor().limit_block_job(vm, &vda, None).await, "refused");
}

over_both_nodes! {
    a_job_whose_limit_is_changed
    limits_on_a_disk
    what_a_disk_has_served
    a_job_that_is_ended
}
