//! Scopes: what lies outside of one is not there, whoever asks and however.

use std::collections::BTreeMap;
use std::time::Duration;

use tonic::transport::Channel;
use tonic::{Code, Status};
use tonic_types::StatusExt;
use vmsnap::host::sim::SimHost;
use vmsnap::proto::v1;
use vmsnap::proto::v1::event_service_client::EventServiceClient;
use vmsnap::proto::v1::node_service_client::NodeServiceClient;
use vmsnap::proto::v1::operation_service_client::OperationServiceClient;
use vmsnap::proto::v1::snapshot_service_client::SnapshotServiceClient;
use vmsnap::proto::v1::vm_service_client::VmServiceClient;
use vmsnap::proto::v1::volume_service_client::VolumeServiceClient;
use vmsnap::proto::v1::watch_events_response::Update;

use super::node::{PATIENCE, create};
use super::secured::{Secured, audit_lines, rules};

const ACME: &str = "spiffe://test/tenant/acme";

/// Two VMs of two tenants, each with a snapshot that has the same name, and the way to the node that one of them has.
struct Tenants {
    secured: Secured,
    acme: Channel,
    ours: v1::Snapshot,
    theirs: v1::Snapshot,
    their_operation: String,
}

impl Tenants {
    async fn start() -> Self {
        let sim = SimHost::new();
        let vm = sim.vm("web").disks(1).label("account", "acme").build();
        sim.vm("db").disks(1).label("account", "other").build();
        sim.vm("nobodys").disks(1).build();
        let rules = rules(&[(&format!("uri:{ACME}"), "restorer", "account = 'acme'")]);
        let secured = Secured::start_with(sim, vm, &rules);
        let acme = secured.channel(&secured.client(ACME, 1));
        let ours = secured.node.take("same").await;
        let answer =
            secured.node.snapshots().create_snapshot(create("db", "same")).await.unwrap().into_inner();
        let theirs = answer.operation.unwrap();
        secured.node.end_of(&theirs.id).await;
        let request = v1::GetSnapshotRequest { snapshot: answer.snapshot_id, vm: String::new() };
        let snapshot =
            secured.node.snapshots().get_snapshot(request).await.unwrap().into_inner().snapshot.unwrap();
        Self { secured, acme, ours, theirs: snapshot, their_operation: theirs.id }
    }

    fn snapshots(&self) -> SnapshotServiceClient<Channel> {
        SnapshotServiceClient::new(self.acme.clone())
    }
}

/// Nothing of the other tenant is in an answer, in whatever field.
fn leaks(answer: &impl std::fmt::Debug, tenants: &Tenants) -> bool {
    let answer = format!("{answer:?}");
    let theirs = &tenants.theirs;
    [theirs.id.as_str(), theirs.vm_id.as_str(), "\"db\"", "db/", "/db-", "nobodys"]
        .iter()
        .any(|secret| answer.contains(secret))
}

#[tokio::test]
async fn lists_have_nothing_of_others() {
    let tenants = Tenants::start().await;
    let (acme, ours) = (&tenants.acme, &tenants.ours);
    let vms = VmServiceClient::new(acme.clone())
        .list_vms(v1::ListVmsRequest::default())
        .await
        .unwrap()
        .into_inner();
    assert_eq!((vms.vms.len(), vms.total_size), (1, 1));
    assert_eq!(vms.vms.first().unwrap().labels.get("account").map(String::as_str), Some("acme"));
    assert!(!leaks(&vms, &tenants), "{vms:?}");
    let list =
        tenants.snapshots().list_snapshots(v1::ListSnapshotsRequest::default()).await.unwrap().into_inner();
    let ids: Vec<&str> = list.snapshots.iter().map(|snapshot| snapshot.id.as_str()).collect();
    assert_eq!((ids, list.total_size), (vec![ours.id.as_str()], 1));
    assert!(!leaks(&list, &tenants), "{list:?}");
    let mut operations = OperationServiceClient::new(acme.clone());
    let list = operations.list_operations(v1::ListOperationsRequest::default()).await.unwrap().into_inner();
    assert_eq!((list.operations.len(), list.total_size), (1, 1));
    assert!(!leaks(&list, &tenants), "{list:?}");
    let mut events = EventServiceClient::new(acme.clone());
    let list = events.list_events(v1::ListEventsRequest::default()).await.unwrap().into_inner();
    assert!(!list.events.is_empty() && list.events.iter().all(|event| event.vm_id == ours.vm_id), "{list:?}");
    assert_eq!(list.total_size, i64::try_from(list.events.len()).unwrap());
    let mut volumes = VolumeServiceClient::new(acme.clone());
    let list = volumes.list_volumes(v1::ListVolumesRequest::default()).await.unwrap().into_inner();
    assert_eq!((list.volumes.len(), list.total_size), (1, 1));
    assert!(!leaks(&list, &tenants), "{list:?}");
    // A name that two VMs have a snapshot of is ambiguous only for whoever knows of both.
    let request = v1::GetSnapshotRequest { snapshot: "same".to_owned(), vm: String::new() };
    let one = tenants.snapshots().get_snapshot(request.clone()).await.unwrap().into_inner();
    assert_eq!(one.snapshot.unwrap().id, ours.id);
    let both = tenants.secured.node.snapshots().get_snapshot(request).await.unwrap_err();
    assert_eq!(both.code(), Code::FailedPrecondition);
}

/// By id, by name, by any call: as what there is none of, word for word.
#[tokio::test]
async fn what_is_others_is_not_there() {
    let tenants = Tenants::start().await;
    let acme = &tenants.acme;
    let snapshots = tenants.snapshots();
    let theirs = tenants.theirs.id.as_str();
    check("GetSnapshot", theirs, async |snapshot: String| {
        snapshots.clone().get_snapshot(v1::GetSnapshotRequest { snapshot, vm: String::new() }).await.map(drop)
    })
    .await;
    check("DeleteSnapshot", theirs, async |snapshot: String| {
        let request = v1::DeleteSnapshotRequest { snapshot, ..Default::default() };
        snapshots.clone().delete_snapshot(request).await.map(drop)
    })
    .await;
    check("RevertSnapshot", theirs, async |snapshot: String| {
        let request = v1::RevertSnapshotRequest { snapshot, ..Default::default() };
        snapshots.clone().revert_snapshot(request).await.map(drop)
    })
    .await;
    check("UpdateSnapshot", theirs, async |snapshot: String| {
        let set_properties = [("a".to_owned(), "b".to_owned())].into();
        let request = v1::UpdateSnapshotRequest { snapshot, set_properties, ..Default::default() };
        snapshots.clone().update_snapshot(request).await.map(drop)
    })
    .await;
    check("ListSnapshotComments", theirs, async |snapshot: String| {
        let request = v1::ListSnapshotCommentsRequest { snapshot, ..Default::default() };
        snapshots.clone().list_snapshot_comments(request).await.map(drop)
    })
    .await;
    let vm = tenants.theirs.vm_id.as_str();
    for vm in [vm, "db"] {
        check("GetVm", vm, async |vm: String| {
            VmServiceClient::new(acme.clone()).get_vm(v1::GetVmRequest { vm }).await.map(drop)
        })
        .await;
        check("CreateSnapshot", vm, async |vm: String| {
            snapshots.clone().create_snapshot(create(&vm, "mine")).await.map(drop)
        })
        .await;
        check("GetSnapshotTree", vm, async |vm: String| {
            let request = v1::GetSnapshotTreeRequest { vm };
            snapshots.clone().get_snapshot_tree(request).await.map(drop)
        })
        .await;
        check("ListEvents", vm, async |vm: String| {
            let filter = Some(v1::EventFilter { vm, ..Default::default() });
            let request = v1::ListEventsRequest { filter, ..Default::default() };
            EventServiceClient::new(acme.clone()).list_events(request).await.map(drop)
        })
        .await;
    }
    check("GetOperation", &tenants.their_operation, async |operation_id: String| {
        let request = v1::GetOperationRequest { operation_id };
        OperationServiceClient::new(acme.clone()).get_operation(request).await.map(drop)
    })
    .await;
    check("WatchOperation", &tenants.their_operation, async |operation_id: String| {
        let request = v1::WatchOperationRequest { operation_id, ..Default::default() };
        OperationServiceClient::new(acme.clone()).watch_operation(request).await.map(drop)
    })
    .await;
    check("CancelOperation", &tenants.their_operation, async |operation_id: String| {
        let request = v1::CancelOperationRequest { operation_id, ..Default::default() };
        OperationServiceClient::new(acme.clone()).cancel_operation(request).await.map(drop)
    })
    .await;
    let by_id = format!("{}/vda", tenants.theirs.vm_id);
    for volume in ["db/vda", "/images/db-vda", &by_id] {
        let request = v1::GetVolumeRequest { volume: volume.to_owned() };
        let refused = VolumeServiceClient::new(acme.clone()).get_volume(request).await.unwrap_err();
        assert_eq!(refused.code(), Code::NotFound, "{volume}");
        assert!(volume.contains("db") || !leaks_name(&refused), "{refused:?}");
    }
    let deleted = audit_lines(&[ACME, "DeleteSnapshot"]);
    assert!(deleted.iter().any(|line| line.contains("code=NotFound")), "{deleted:?}");
    assert_eq!(tenants.secured.node.names().await, ["same", "same"], "nothing was changed");
}

fn leaks_name(refused: &Status) -> bool {
    refused.message().contains("\"db\"") || refused.message().contains(" db ")
}

/// A call about `what` is answered as one about nothing is.
async fn check(call: &str, what: &str, ask: impl AsyncFn(String) -> Result<(), Status>) {
    let nothing = "00000000-0000-7000-8000-000000000000";
    let refused = ask(what.to_owned()).await.unwrap_err();
    let absent = ask(nothing.to_owned()).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound, "{call}: {refused:?}");
    assert_eq!(refused.message().replace(what, nothing), absent.message(), "{call}");
    let said = |status: &Status| {
        let info = status.get_error_details().error_info().cloned().unwrap();
        // What was asked for is said again, and nothing else that is known of it.
        let metadata = info.metadata.into_iter().map(|(key, value)| (key, value.replace(what, nothing)));
        (info.reason, info.domain, metadata.collect::<BTreeMap<_, _>>())
    };
    assert_eq!(said(&refused), said(&absent), "{call}");
}

#[tokio::test]
async fn what_is_about_the_node_is_not_for_tenants() {
    let tenants = Tenants::start().await;
    let node =
        NodeServiceClient::new(tenants.acme.clone()).get_node(v1::GetNodeRequest {}).await.unwrap_err();
    assert_eq!(node.code(), Code::PermissionDenied);
    assert_eq!(node.message(), format!("uri:{ACME} is given some VMs, and this call is about the node"));
}

/// Whom a snapshot belongs to is not for a tenant to say.
#[tokio::test]
async fn the_owner_is_the_one_of_the_scope() {
    let tenants = Tenants::start().await;
    let request = v1::CreateSnapshotRequest { account: "other".to_owned(), ..create("web", "two") };
    let refused = tenants.snapshots().create_snapshot(request).await.unwrap_err();
    assert_eq!(
        (refused.code(), refused.message()),
        (Code::InvalidArgument, "account: it is not the one of your scope")
    );
    let begun = tenants.snapshots().create_snapshot(create("web", "two")).await.unwrap().into_inner();
    tenants.secured.node.end_of(&begun.operation.unwrap().id).await;
    assert_eq!(tenants.secured.node.snapshot("two").await.account, "acme");
    let update_mask = Some(prost_types::FieldMask { paths: vec!["account".to_owned()] });
    let snapshot = "two".to_owned();
    let request = v1::UpdateSnapshotRequest {
        snapshot,
        update_mask,
        account: "other".to_owned(),
        ..Default::default()
    };
    let refused = tenants.snapshots().update_snapshot(request).await.unwrap_err();
    assert_eq!(refused.message(), "account: it is not the one of your scope");
}

/// A watch of all events is one of the tenant's own, of VMs that come later, too.
#[tokio::test]
async fn a_watch_has_nothing_of_others() {
    let tenants = Tenants::start().await;
    let request = v1::WatchEventsRequest::default();
    let mut events =
        EventServiceClient::new(tenants.acme.clone()).watch_events(request).await.unwrap().into_inner();
    let node = &tenants.secured.node;
    let take = async |vm: &str, name: &str| {
        let begun = node.snapshots().create_snapshot(create(vm, name)).await.unwrap().into_inner();
        node.end_of(&begun.operation.unwrap().id).await;
    };
    take("db", "theirs").await;
    let new = node.sim.vm("new").disks(1).label("account", "acme").build();
    take("new", "ours").await;
    take("web", "last").await;
    let mut seen = Vec::new();
    loop {
        let update = tokio::time::timeout(PATIENCE, events.message()).await.unwrap().unwrap().unwrap().update;
        let Some(Update::Event(event)) = update else { continue };
        let is_last =
            event.kind() == v1::EventKind::SnapshotStateChanged && event.vm_id == tenants.ours.vm_id;
        seen.push(event.vm_id);
        if is_last {
            break;
        }
    }
    assert!(seen.contains(&new.to_string()));
    assert!(seen.iter().all(|vm| *vm == new.to_string() || *vm == tenants.ours.vm_id), "{seen:?}");
}

/// While libvirt cannot say what is written on VMs, nobody is within a scope, and no answer makes believe.
#[tokio::test]
async fn without_libvirt_tenants_wait() {
    let tenants = Tenants::start().await;
    tenants.secured.node.sim.set_link(vmsnap::host::Link::Down("libvirtd is away".to_owned()));
    let refused = tenants.snapshots().list_snapshots(v1::ListSnapshotsRequest::default()).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
}

/// Whoever had a VM knows nothing more of it once it is another's: not by a request of his that he makes again, and not on a
/// watch that was open.
#[tokio::test]
async fn what_was_ones_own_is_so_no_more() {
    let tenants = Tenants::start().await;
    let request = v1::CreateSnapshotRequest { request_id: "r-1".to_owned(), ..create("web", "two") };
    let begun = tenants.snapshots().create_snapshot(request.clone()).await.unwrap().into_inner();
    let id = begun.operation.unwrap().id;
    tenants.secured.node.end_of(&id).await;
    let again = tenants.snapshots().create_snapshot(request.clone()).await.unwrap().into_inner();
    assert_eq!(again.operation.unwrap().id, id);
    tenants.secured.node.sim.someone_labels(tenants.secured.node.vm, "account", "other");
    // What was known is relied upon for a second.
    let refused = async {
        loop {
            match tenants.snapshots().create_snapshot(request.clone()).await {
                Ok(_) => tokio::time::sleep(Duration::from_millis(50)).await,
                Err(status) => return status,
            }
        }
    };
    let refused =
        tokio::time::timeout(PATIENCE, refused).await.expect("what was known is relied upon for ever");
    assert_eq!(refused.code(), Code::NotFound);
    assert!(!leaks(&refused, &tenants) && !refused.message().contains("two"), "{refused:?}");
}

/// A watch of all that becomes one of some ends: what it would be told was chosen by what it might know of before.
#[tokio::test]
async fn a_watch_ends_when_its_scope_changes() {
    let mut tenants = Tenants::start().await;
    let all = rules(&[(&format!("uri:{ACME}"), "restorer", "")]);
    tenants.secured.write_access(&all);
    super::client::succeed(&tenants.secured.node, "node reload").await;
    let heartbeat_interval = Some(prost_types::Duration { seconds: 1, nanos: 0 });
    let request = v1::WatchEventsRequest { heartbeat_interval, ..Default::default() };
    let mut events =
        EventServiceClient::new(tenants.acme.clone()).watch_events(request).await.unwrap().into_inner();
    events.message().await.unwrap().expect("a heartbeat");
    tenants.secured.write_access(&rules(&[(&format!("uri:{ACME}"), "restorer", "account = 'acme'")]));
    super::client::succeed(&tenants.secured.node, "node reload").await;
    let ended = async {
        loop {
            match events.message().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("it ended as if all had been said"),
                Err(status) => return status,
            }
        }
    };
    let ended = tokio::time::timeout(PATIENCE, ended).await.unwrap();
    assert_eq!(
        (ended.code(), ended.message()),
        (Code::Unavailable, "what its caller may know of has changed")
    );
}

/// An operator neither cancels nor slows what an operator may not begin.
#[tokio::test]
async fn who_steers_might_have_begun_it() {
    let sim = SimHost::new();
    let vm = sim.vm("web").disks(1).label("account", "acme").build();
    let secured =
        Secured::start_with(sim, vm, &rules(&[(&format!("uri:{ACME}"), "operator", "account = 'acme'")]));
    let acme = secured.channel(&secured.client(ACME, 1));
    secured.node.take("one").await;
    let revert = super::node::revert("one");
    let begun =
        secured.node.snapshots().revert_snapshot(revert).await.unwrap().into_inner().operation.unwrap();
    let request = v1::CancelOperationRequest { operation_id: begun.id.clone(), ..Default::default() };
    let refused = OperationServiceClient::new(acme.clone()).cancel_operation(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert_eq!(refused.message(), format!("uri:{ACME} has the role operator, and this call needs restorer"));
    let ended = secured.node.end_of(&begun.id).await;
    assert_eq!(ended.state(), v1::OperationState::Succeeded);
    // Clones of its snapshots are made for others, and are not for it to see.
    let clone = v1::CloneVolumeRequest {
        source: Some(v1::SnapshotDiskReference {
            snapshot: "one".to_owned(),
            vm: "web".to_owned(),
            ..Default::default()
        }),
        path: "for-others".to_owned(),
        ..Default::default()
    };
    let cloned = secured.node.volumes().clone_volume(clone).await.unwrap().into_inner().operation.unwrap();
    secured.node.end_of(&cloned.id).await;
    let mut operations = OperationServiceClient::new(acme.clone());
    let list = operations.list_operations(v1::ListOperationsRequest::default()).await.unwrap().into_inner();
    assert_eq!((list.operations.len(), list.total_size), (2, 2));
    let request = v1::GetOperationRequest { operation_id: cloned.id };
    assert_eq!(operations.get_operation(request).await.unwrap_err().code(), Code::NotFound);
    let list = EventServiceClient::new(acme)
        .list_events(v1::ListEventsRequest::default())
        .await
        .unwrap()
        .into_inner();
    assert!(!format!("{list:?}").contains("for-others"), "{list:?}");
    let all = secured.node.events().list_events(v1::ListEventsRequest::default()).await.unwrap().into_inner();
    assert!(format!("{all:?}").contains("for-others"), "whoever may know of all does");
}
