//! Who may do what: each call asks for a role, and one that is refused has changed nothing and is written down.

use std::collections::BTreeSet;

use tonic::{Code, Status};
use tonic_types::StatusExt;
use vmsnap::proto::v1;
use vmsnap::proto::v1::node_service_client::NodeServiceClient;
use vmsnap::proto::v1::snapshot_service_client::SnapshotServiceClient;

use super::client::run;
use super::node::{Node, create, delete, revert};
use super::secured::{Secured, audit_lines, rules};

const ROLES: [&str; 4] = ["viewer", "operator", "restorer", "admin"];

fn who(role: &str) -> String {
    format!("uri:spiffe://test/role/{role}")
}

fn secured() -> Secured {
    let named: Vec<(String, &str)> = ROLES.iter().map(|role| (who(role), *role)).collect();
    let named: Vec<(&str, &str, &str)> = named.iter().map(|(who, role)| (who.as_str(), *role, "")).collect();
    Secured::start(&rules(&named))
}

fn code<T>(result: &Result<T, Status>) -> Code {
    result.as_ref().map_or_else(Status::code, |_| Code::Ok)
}

#[tokio::test]
async fn each_call_asks_for_a_role() {
    let secured = secured();
    secured.node.take("kept").await;
    for (serial, role) in (1..).zip(ROLES) {
        let channel = secured.channel(&secured.client(&format!("spiffe://test/role/{role}"), serial));
        let mut snapshots = SnapshotServiceClient::new(channel.clone());
        let mut nodes = NodeServiceClient::new(channel);
        let asked: [(&str, &str, Code); 5] = [
            (
                "ListSnapshots",
                "viewer",
                code(&snapshots.list_snapshots(v1::ListSnapshotsRequest::default()).await),
            ),
            ("CreateSnapshot", "operator", code(&snapshots.create_snapshot(dry(create("web", role))).await)),
            ("DeleteSnapshot", "operator", code(&snapshots.delete_snapshot(delete("kept")).await)),
            ("RevertSnapshot", "restorer", code(&snapshots.revert_snapshot(revert("kept")).await)),
            (
                "BackUpCatalog",
                "admin",
                code(&nodes.back_up_catalog(v1::BackUpCatalogRequest::default()).await),
            ),
        ];
        let rank = |role: &str| ROLES.iter().position(|known| *known == role);
        for (call, needs, code) in asked {
            let is_refused = code == Code::PermissionDenied;
            assert_eq!(is_refused, rank(role) < rank(needs), "{role} calls {call}: {code:?}");
            let lines = audit_lines(&[&format!("/role/{role}"), call]);
            let is_written = !lines.is_empty();
            assert_eq!(is_written, is_refused || call != "ListSnapshots", "{role} calls {call}: {lines:?}");
            let decision = if is_refused { "decision=refused" } else { "decision=allowed" };
            assert!(
                lines.iter().all(|line| line.contains(decision) && line.contains("from=127.0.0.1:")),
                "{lines:?}"
            );
        }
        if role == "viewer" {
            assert_eq!(secured.node.names().await, ["kept"], "a viewer has deleted it");
        }
    }
}

fn dry(request: v1::CreateSnapshotRequest) -> v1::CreateSnapshotRequest {
    v1::CreateSnapshotRequest { validate_only: true, ..request }
}

#[tokio::test]
async fn a_refusal_says_why_and_what_to_do() {
    let secured = secured();
    let channel = secured.channel(&secured.client("spiffe://test/role/viewer", 1));
    let refused = SnapshotServiceClient::new(channel).delete_snapshot(delete("kept")).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert_eq!(
        refused.message(),
        "uri:spiffe://test/role/viewer has the role viewer, and this call needs operator",
        "not whether there is such a snapshot"
    );
    let details = refused.get_error_details();
    assert_eq!(details.error_info().unwrap().reason, "PERMISSION_DENIED");
}

/// What an operation was begun by is the name that the rule has, and the audit trail names the operation.
#[tokio::test]
async fn who_has_begun_an_operation_can_be_found() {
    let secured = secured();
    let channel = secured.channel(&secured.client("spiffe://test/role/operator", 1));
    let begun = SnapshotServiceClient::new(channel).create_snapshot(create("web", "one")).await.unwrap();
    let begun = begun.into_inner().operation.unwrap();
    let ended = secured.node.end_of(&begun.id).await;
    assert_eq!(ended.created_by, "uri:spiffe://test/role/operator");
    let lines = audit_lines(&[&begun.id]);
    assert_eq!(lines.len(), 1, "{lines:?}");
    for part in ["principal=uri:spiffe://test/role/operator", "CreateSnapshot", "decision=allowed", "code=Ok"]
    {
        assert!(lines.first().unwrap().contains(part), "{lines:?}");
    }
}

/// On the node itself: the user at the other end of the socket, whatever groups say after that.
#[tokio::test]
async fn rules_for_the_socket() {
    let (sim, uid) = (vmsnap::host::sim::SimHost::new(), nix::unistd::getuid());
    let vm = sim.vm("web").disks(1).build();
    let rule = format!(
        "[[access]]\nwho = ['uid:{uid}']\nrole = 'viewer'\n[[access]]\nwho = ['socket']\nrole = 'admin'"
    );
    let node = Node::configured(sim, vm, &rule);
    let reply = run(&node, "snapshot create web one").await;
    assert_eq!(reply.code, 7, "{}", reply.stderr);
    for words in [
        format!("uid:{uid} has the role viewer, and this call needs operator"),
        "changed: nothing".to_owned(),
        "do: ask whoever runs this node".to_owned(),
        "reason: PERMISSION_DENIED".to_owned(),
    ] {
        assert!(reply.stderr.contains(&words), "{}", reply.stderr);
    }
    assert_eq!(node.names().await, [""; 0]);
    // Who may do all may let others do it: a rule that is changed counts from the next call on.
    node.configure("[[access]]\nwho = ['socket']\nrole = 'admin'");
    assert_eq!(run(&node, "node reload").await.code, 7, "a viewer does not reload");
    let kinds: BTreeSet<i32> =
        [run(&node, "snapshot list").await.code, run(&node, "vm list").await.code].into();
    assert_eq!(kinds, [0].into());
}
