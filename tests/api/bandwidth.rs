//! Another limit on what is copied, while it is: it is told, holds for the jobs that run and over a restart, and is refused where
//! it would be of no use.

use vmsnap::host::sim::{Complaint, Method, Mishap};
use vmsnap::proto::v1;

use super::client::{json, run, succeed};
use super::node::{Node, vda};
use super::stuck::cancel;

const MIB: u64 = 1 << 20;

/// A VM whose guest writes on and on, and a snapshot of it that is being deleted. Gives the operation's id.
async fn deleting(node: &Node, options: &str) -> String {
    node.take("one").await;
    node.write(1, 10);
    // More than is copied: it does not end by itself.
    node.sim.guest_writes_on(node.vm, &vda(), 8, 20, 40);
    let begun = json(node, &format!("snapshot delete web/one --yes --no-wait {options}")).await;
    begun["operation"]["id"].as_str().unwrap().to_owned()
}

/// Until the block job of the disk has this limit.
async fn limited(node: &Node, bandwidth: Option<u64>) {
    loop {
        if node.sim.block_job_of(node.vm, &vda()).is_some_and(|job| job.bandwidth == bandwidth) {
            return;
        }
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_merge_is_let_go_faster_and_slower_while_it_runs() {
    let mut node = Node::start();
    let id = deleting(&node, "--bandwidth 1M").await;
    limited(&node, Some(MIB)).await;
    assert_eq!(node.operation(&id).await.bandwidth_bytes_per_second, MIB);
    let told = json(&node, &format!("op set {id} --bandwidth 2M")).await;
    assert_eq!(told["operation"]["bandwidth_bytes_per_second"], (2 * MIB).to_string());
    limited(&node, Some(2 * MIB)).await;
    let shown = succeed(&node, &format!("op show {id}")).await;
    assert!(shown.contains("limit     2.0 MiB/s"), "{shown}");
    // A life that dies before the job has the limit leaves it to the next one.
    node.strike(Method::LimitBlockJob, Mishap::Hang);
    succeed(&node, &format!("op set {id} --bandwidth 3M")).await;
    node.crash();
    node.sim.reset_script();
    node.restart();
    assert_eq!(node.operation(&id).await.bandwidth_bytes_per_second, 3 * MIB);
    limited(&node, Some(3 * MIB)).await;
    succeed(&node, &format!("op set {id} --bandwidth none")).await;
    limited(&node, None).await;
    assert_eq!(node.operation(&id).await.bandwidth_bytes_per_second, 0);
    node.sim.guest_calms_down(node.vm);
    assert_eq!(node.end_of(&id).await.state(), v1::OperationState::Succeeded);
}

#[tokio::test]
async fn a_limit_is_refused_where_it_is_of_no_use() {
    let node = Node::start();
    let hold = node.hold(Method::Freeze);
    let begun = node.begin("one").await;
    crate::node::reached(&hold).await;
    let check = async |id: &str| {
        let refused = run(&node, &format!("op set {id} --bandwidth 1M")).await;
        assert!(refused.code == 6 && refused.stderr.contains("NO_BANDWIDTH_TO_SET"), "{refused:?}");
    };
    // It copies nothing.
    check(&begun.id).await;
    hold.release();
    node.end_of(&begun.id).await;
    check(&begun.id).await;
    // What qemu-img has begun keeps its limit.
    let hold = node.hold(Method::Copy);
    let copying = json(&node, "volume clone web/one --disk vda --to copy --full --no-wait").await;
    let id = copying["operation"]["id"].as_str().unwrap();
    crate::node::reached(&hold).await;
    check(id).await;
    cancel(&node, id).await.unwrap();
    hold.release();
    for bandwidth in ["0", "fast"] {
        assert_eq!(run(&node, &format!("op set {id} --bandwidth {bandwidth}")).await.code, 2, "{bandwidth}");
    }
    let unknown = run(&node, "op set 0197a000-0000-7000-8000-000000000000 --bandwidth 1M").await;
    assert_eq!(unknown.code, 4, "{unknown:?}");
}

/// The limit is kept in mind all the same: the next job may take it.
#[tokio::test]
async fn a_job_that_takes_no_other_limit_goes_on() {
    let node = Node::start();
    let id = deleting(&node, "--merge-deadline 1h").await;
    limited(&node, None).await;
    node.strike(Method::LimitBlockJob, Mishap::Error(Complaint::Refused));
    succeed(&node, &format!("op set {id} --bandwidth 4M")).await;
    node.sim.guest_calms_down(node.vm);
    let ended = node.end_of(&id).await;
    assert_eq!(ended.state(), v1::OperationState::Succeeded, "{ended:?}");
    assert_eq!(ended.bandwidth_bytes_per_second, 4 * MIB);
}
