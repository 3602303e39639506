//! `vmsnap node backup`, and the call behind it.

use tonic::Code;
use vmsnap::proto::v1;
use vmsnap::proto::v1::node_service_client::NodeServiceClient;
use vmsnap::store::Store;

use super::client::succeed;
use super::node::{Node, assert_refused};

#[tokio::test]
async fn a_backup_is_a_catalog_with_all_that_there_was() {
    let node = Node::start();
    node.take("one").await;
    node.take("two").await;
    let path = succeed(&node, "node backup -o name").await;
    let shown: serde_json::Value =
        serde_json::from_str(&succeed(&node, "node backup -o json").await).unwrap();
    assert_ne!(shown["path"], path.trim(), "each wish is another copy");
    let copy = Store::open(path.trim().as_ref()).unwrap();
    assert_eq!(copy.tree(node.vm).await.unwrap(), node.store().tree(node.vm).await.unwrap());
}

#[tokio::test]
async fn the_same_request_is_answered_with_the_same_copy() {
    let node = Node::start();
    let ask = async |request_id: &str| {
        let request = v1::BackUpCatalogRequest { request_id: request_id.to_owned() };
        let answer = NodeServiceClient::new(node.channel()).back_up_catalog(request).await;
        answer.map(tonic::Response::into_inner)
    };
    let first = ask("r").await.unwrap();
    assert_eq!(ask("r").await.unwrap(), first);
    assert_ne!(ask("s").await.unwrap().path, first.path);
    assert_refused(&ask("not ascii: ä").await.unwrap_err(), Code::InvalidArgument, "INVALID_REQUEST");
}
