//! How the daemon starts, and what it says of its parts.

use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use vmsnap::host::Link;

use super::client::{run, succeed};
use super::node::Node;

async fn status(node: &Node, part: &str) -> Result<ServingStatus, Code> {
    let request = HealthCheckRequest { service: part.to_owned() };
    let answer = node.health().check(request).await;
    answer.map(|answer| answer.into_inner().status()).map_err(|status| status.code())
}

#[tokio::test]
async fn each_part_has_its_health() {
    let node = Node::start();
    let request = HealthCheckRequest { service: "libvirt".to_owned() };
    let mut libvirt = node.health().watch(request).await.unwrap().into_inner();
    let mut next = async || libvirt.message().await.unwrap().unwrap().status();
    while next().await != ServingStatus::Serving {}
    for part in ["", "libvirt", "catalog", "storage"] {
        let request = HealthCheckRequest { service: part.to_owned() };
        let mut watch = node.health().watch(request).await.unwrap().into_inner();
        while watch.message().await.unwrap().unwrap().status() != ServingStatus::Serving {}
        assert_eq!(status(&node, part).await, Ok(ServingStatus::Serving), "{part:?}");
    }
    assert_eq!(status(&node, "teapot").await, Err(Code::NotFound));
    // Degraded, not dead.
    node.sim.set_link(Link::Down("libvirtd is gone".to_owned()));
    assert_eq!(next().await, ServingStatus::NotServing);
    assert_eq!(status(&node, "").await, Ok(ServingStatus::Serving));
    node.sim.set_link(Link::Up);
    assert_eq!(next().await, ServingStatus::Serving);
}

#[tokio::test]
async fn a_socket_that_a_crash_left_is_taken_over_and_one_that_is_used_is_not() {
    let mut node = Node::start();
    node.crash();
    assert!(node.socket().exists(), "a crash removes nothing");
    node.restart();
    node.take("one").await;
}

/// What is wrong with one VM's rows is told whenever that VM is asked about, and stands in nobody else's way.
#[tokio::test]
async fn a_row_that_cannot_be_understood_costs_its_own_vm_alone() {
    let mut node = Node::start();
    node.sim.vm("db").disks(1).build();
    node.take("one").await;
    succeed(&node, "snapshot create db first").await;
    node.crash();
    let catalog = rusqlite::Connection::open(node.socket().with_file_name("catalog.db")).unwrap();
    let of_web = "SELECT number FROM snapshot WHERE name = 'one'";
    catalog
        .execute(&format!("UPDATE snapshot_body SET body = '{{' WHERE snapshot = ({of_web})"), [])
        .unwrap();
    drop(catalog);
    node.restart();
    succeed(&node, "snapshot create db second").await;
    succeed(&node, "snapshot revert db/first --yes").await;
    let refused = run(&node, "snapshot create web two").await;
    assert_eq!(refused.code, 8, "{refused:?}");
    assert!(refused.stderr.contains("snapshot that cannot be understood"), "{refused:?}");
    assert!(refused.stderr.contains("CATALOG_UNAVAILABLE"), "{refused:?}");
}
