//! Lists: what is asked for is what one gets, page by page.

use serde_json::Value;
use tonic::Code;
use vmsnap::model::vm::Format;
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

/// The number of all is counted once, and is right all the same.
#[tokio::test]
async fn a_list_that_changes_between_its_pages_is_counted_as_it_is() {
    let node = Node::start();
    for name in ["a", "b", "c"] {
        node.take(name).await;
    }
    let states = vec![v1::SnapshotState::Ready.into()];
    let filter = Some(v1::SnapshotFilter { states, ..Default::default() });
    let mut request = v1::ListSnapshotsRequest { page_size: 1, filter, ..oldest_first() };
    let mut check = async |name: &str, expected: i64| {
        let page = node.snapshots().list_snapshots(request.clone()).await.unwrap().into_inner();
        assert_eq!((page.snapshots[0].name.as_str(), page.total_size), (name, expected));
        request.page_token = page.next_page_token;
    };
    check("a", 3).await;
    node.take("d").await;
    check("b", 4).await;
    succeed(&node, "snapshot delete web/a --yes").await;
    check("c", 3).await;
    check("d", 3).await;
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

#[tokio::test]
async fn volumes_are_filtered_ordered_and_paged() {
    let node = Node::start();
    node.take("one").await;
    succeed(&node, "volume clone web/one --disk vda --to b --account acme --property a=1").await;
    succeed(&node, "volume clone web/one --disk vda --to a --full --property a=2").await;
    node.sim.put_image("/images/c.qcow2".as_ref(), Format::Qcow2, 1 << 20, false).unwrap();
    let check = async |options: &str, expected: &[&str]| {
        let shown = succeed(&node, format!("volume list -o json {options}").trim_end()).await;
        let shown: Value = serde_json::from_str(&shown).unwrap();
        let shown = shown["volumes"].as_array().cloned().unwrap_or_default();
        let names: Vec<_> = shown.iter().map(|volume| volume["name"].as_str().unwrap()).collect();
        assert_eq!(names, expected, "{options}");
    };
    check("", &["a", "b", "c.qcow2", "web/vda", "web/vdb"]).await;
    check("--reverse", &["web/vdb", "web/vda", "c.qcow2", "b", "a"]).await;
    check("web", &["web/vda", "web/vdb"]).await;
    check("--state available", &["a", "b", "c.qcow2"]).await;
    check("--state in-use --reverse", &["web/vdb", "web/vda"]).await;
    check("--account acme", &["b"]).await;
    check("--property a", &["a", "b"]).await;
    check("--property a=2", &["a"]).await;
    check("--name-prefix web/", &["web/vda", "web/vdb"]).await;
    check("--sort created --property a", &["b", "a"]).await;
    check("--sort size --state available --name-prefix c", &["c.qcow2"]).await;

    let mut request = v1::ListVolumesRequest {
        page_size: 2,
        order_by: "virtual_size_bytes desc".to_owned(),
        ..Default::default()
    };
    let mut names = Vec::new();
    loop {
        let page = node.volumes().list_volumes(request.clone()).await.unwrap().into_inner();
        assert_eq!(page.total_size, 5);
        names.extend(page.volumes.into_iter().map(|volume| volume.name));
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    assert_eq!(names.last().map(String::as_str), Some("c.qcow2"), "the smallest one: {names:?}");
    names.sort();
    assert_eq!(names, ["a", "b", "c.qcow2", "web/vda", "web/vdb"]);
    let wrong = v1::ListVolumesRequest { order_by: "colour".to_owned(), ..Default::default() };
    let refused = node.volumes().list_volumes(wrong).await.unwrap_err();
    assert_refused(&refused, Code::InvalidArgument, "INVALID_REQUEST");
}

/// An order that is not served yet is refused, as one that there is not.
#[tokio::test]
async fn an_order_is_not_passed_over() {
    let node = Node::start();
    for (order, code, reason) in [
        ("memory_bytes desc", Code::Unimplemented, "NOT_IMPLEMENTED"),
        ("beauty", Code::InvalidArgument, "INVALID_REQUEST"),
    ] {
        let order_by = order.to_owned();
        let request = v1::ListVmsRequest { order_by, ..Default::default() };
        assert_refused(&node.vms().list_vms(request).await.unwrap_err(), code, reason);
    }
    for (order, code, reason) in [
        ("update_time desc", Code::Unimplemented, "NOT_IMPLEMENTED"),
        ("beauty", Code::InvalidArgument, "INVALID_REQUEST"),
    ] {
        let order_by = order.to_owned();
        let request = v1::ListOperationsRequest { order_by, ..Default::default() };
        assert_refused(&node.operations().list_operations(request).await.unwrap_err(), code, reason);
    }
}
