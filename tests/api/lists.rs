//! Lists: what is asked for is what one gets, page by page.

use serde_json::Value;
use tonic::Code;
use vmsnap::proto::v1;

use super::client::succeed;
use super::node::{Node, assert_refused, oldest_first};

#[tokio::test]
async fn a_list_is_filtered_and_paged() {
    let node = Node::start();
    for name in ["a-1", "a-2", "b-1"] {
        node.take(name).await;
    }
    let list = async |request| node.snapshots().list_snapshots(request).await.unwrap().into_inner();
    let mut request = v1::ListSnapshotsRequest { page_size: 2, ..oldest_first() };
    let first = list(request.clone()).await;
    assert_eq!((first.snapshots.len(), first.total_size), (2, 3));
    request.page_token = first.next_page_token;
    let second = list(request).await;
    assert_eq!(second.snapshots[0].name, "b-1");
    assert_eq!(second.next_page_token, "");
    let filter = v1::SnapshotFilter { name_prefix: "a-".to_owned(), ..Default::default() };
    let some = v1::ListSnapshotsRequest { filter: Some(filter), ..Default::default() };
    let names: Vec<String> = list(some).await.snapshots.into_iter().map(|snapshot| snapshot.name).collect();
    assert_eq!(names, ["a-2", "a-1"], "the newest first if nothing is said");
    // A token goes with the list that it was given for.
    let by_name =
        v1::ListSnapshotsRequest { page_size: 2, order_by: "name".to_owned(), ..Default::default() };
    let token = list(by_name.clone()).await.next_page_token;
    let other = v1::ListSnapshotsRequest { page_token: token.clone(), ..by_name.clone() };
    assert_eq!(list(other).await.snapshots[0].name, "b-1");
    let other = v1::ListSnapshotsRequest { page_token: token, page_size: 2, ..Default::default() };
    let refused = node.snapshots().list_snapshots(other).await.unwrap_err();
    assert_refused(&refused, Code::InvalidArgument, "PAGE_TOKEN_INVALID");
}

#[tokio::test]
async fn the_client_lists_what_is_asked_for() {
    let node = Node::start();
    for name in ["one", "two", "three"] {
        node.take(name).await;
    }
    let two = node.snapshot("two").await.id;
    succeed(&node, "snapshot hold web/two audit").await;
    succeed(&node, "volume snapshot create disk --volume web/vda").await;
    let check = async |options: &str, expected: &[&str]| {
        let line = format!("snapshot list -o json {options}");
        let shown: Value = serde_json::from_str(&succeed(&node, line.trim_end()).await).unwrap();
        let shown = shown["snapshots"].as_array().cloned().unwrap_or_default();
        let names: Vec<_> = shown.iter().map(|snapshot| snapshot["name"].as_str().unwrap()).collect();
        assert_eq!(names, expected, "{options}");
    };
    check("web", &["one", "two", "three", "disk"]).await;
    check("--reverse --limit 2", &["disk", "three"]).await;
    check("--sort name --kind disks", &["one", "three", "two"]).await;
    check("--kind volume", &["disk"]).await;
    check("--held", &["two"]).await;
    check("--held=no --state ready --state error --sort vm", &["one", "three", "disk"]).await;
    check(&format!("--parent {two}"), &["three"]).await;
    check("--created-before 1h", &[]).await;
    check("--created-after 1h --name-prefix t", &["two", "three"]).await;
}
