//! States as Cinder has them, and what `set --state` may do with them.

use serde_json::{Value, json};
use vmsnap::host::sim::{Complaint, Method, Mishap};

use super::http::assert_fault;
use super::{Cinder, id};
use crate::client::succeed;

#[tokio::test]
async fn a_state_is_what_is() {
    let cinder = Cinder::start();
    let made = cinder.take("one").await;
    let path = format!("/v3/snapshots/{}", id(&made));
    let action = format!("{path}/action");
    let declare = |status: &str| json!({ "os-reset_status": { "status": status } });
    cinder.ok("POST", &action, declare("available"), 202).await;
    cinder.ok("POST", &action, declare("error"), 202).await;
    assert_eq!(cinder.get(&path).await["snapshot"]["status"], "error");
    let revert = json!({ "revert": { "snapshot_id": id(&made) } });
    let volume = cinder.disk("vda").await;
    let refused = cinder.http.ask("POST", &format!("/v3/volumes/{volume}/action"), &revert).await;
    assert_fault(&refused, 400, "badRequest", "in ERROR");
    cinder.ok("POST", &action, declare("available"), 202).await;
    for status in ["creating", "deleting", "error_deleting"] {
        let refused = cinder.http.ask("POST", &action, &declare(status)).await;
        assert_fault(
            &refused,
            400,
            "badRequest",
            &format!("is available, and nobody can declare it {status}"),
        );
    }
    let refused = cinder.http.ask("POST", &action, &declare("sideways")).await;
    assert_fault(&refused, 400, "badRequest", "is none of available, creating");
    assert_eq!(cinder.get(&path).await["snapshot"]["status"], "available");
    let none = cinder.http.ask("POST", &action, &json!({ "os-fly": {} })).await;
    assert_fault(&none, 400, "badRequest", "There is no such action: os-fly");
    let two = cinder.http.ask("POST", &action, &json!({ "os-force_delete": null, "x": null })).await;
    assert_fault(&two, 400, "badRequest", "one action");
    let lacking = cinder.http.ask("POST", &action, &json!({ "os-unmanage": null })).await;
    assert_fault(&lacking, 501, "notImplemented", "os-unmanage");
}

/// A volume goes back to a snapshot of its own, while no VM that runs has it; a VM's snapshot is gone back to as a whole.
#[tokio::test]
async fn a_volume_goes_back() {
    let cinder = Cinder::start();
    let [volume, other] = [cinder.disk("vda").await, cinder.disk("vdb").await];
    cinder.node.write(1, 10);
    let made = cinder.take("one").await;
    succeed(&cinder.node, "snapshot create web whole").await;
    cinder.node.write(1, 20);
    cinder.node.sim.someone_stops(cinder.node.vm);
    let revert = async |volume: &str, snapshot: &str| {
        let body = json!({ "revert": { "snapshot_id": snapshot } });
        cinder.http.ask("POST", &format!("/v3/volumes/{volume}/action"), &body).await
    };
    assert_fault(&revert(&other, id(&made)).await, 400, "badRequest", "is not a snapshot of volume");
    let whole = cinder.get("/v3/snapshots/detail?name=whole.vda").await["snapshots"][0].take();
    assert_fault(&revert(&volume, id(&whole)).await, 400, "badRequest", "which is changed as a whole");
    let back = revert(&volume, id(&made)).await;
    assert_eq!(back.status, 202, "{}", back.text);
    assert_eq!(cinder.node.read(1), [10, 20]);
}

/// An empty name takes the one for people away, and the one that it has always stays.
#[tokio::test]
async fn an_empty_name() {
    let cinder = Cinder::start();
    let path = format!("/v3/snapshots/{}", id(&cinder.take("one").await));
    let name = async |name: &str| {
        let body = json!({ "snapshot": { "name": name } });
        cinder.ok("PUT", &path, body, 200).await["snapshot"]["name"].take()
    };
    assert_eq!(name("before 2.1").await, "before 2.1");
    assert_eq!(name("").await, "one");
    assert_eq!(name("").await, "one");
}

/// Force does not break a hold: somebody has put it there for a reason.
#[tokio::test]
async fn force_deletes_what_may_be_deleted() {
    let cinder = Cinder::start();
    let made = cinder.take("one").await;
    let path = format!("/v3/snapshots/{}", id(&made));
    succeed(&cinder.node, "snapshot hold web/one audit").await;
    let force = json!({ "os-force_delete": null });
    for (method, path, body) in
        [("POST", format!("{path}/action"), force.clone()), ("DELETE", path.clone(), Value::Null)]
    {
        let held = cinder.http.ask(method, &path, &body).await;
        assert_fault(&held, 400, "badRequest", "Invalid snapshot: ");
    }
    succeed(&cinder.node, "snapshot release web/one audit").await;
    cinder.ok("POST", &format!("{path}/action"), force, 202).await;
    cinder.until_gone(&path).await;
}

/// What fails is told to whoever waits, and nothing of it is left.
#[tokio::test]
async fn a_failure_is_told() {
    let cinder = Cinder::start();
    let volume = cinder.disk("vda").await;
    cinder.node.strike(Method::CreateOverlay, Mishap::Error(Complaint::NoSpace("/images".into())));
    let body = json!({ "snapshot": { "volume_id": volume, "name": "one", "force": true } });
    let failed = cinder.http.ask("POST", "/v3/snapshots", &body).await;
    assert_fault(&failed, 413, "overLimit", "");
    assert!(cinder.node.names().await.is_empty());
}

/// A snapshot that is made without its owner is out of his sight for good: whoever asks is rather told to come again.
#[tokio::test]
async fn an_owner_is_not_lost() {
    let cinder = Cinder::start();
    let body = json!({ "snapshot": { "volume_id": cinder.disk("vda").await, "name": "one", "force": true } });
    cinder.node.strike(Method::Labels, Mishap::Error(Complaint::Unreachable));
    let away = cinder.http.ask("POST", "/v3/snapshots", &body).await;
    assert_fault(&away, 503, "serviceUnavailable", "");
    assert!(cinder.node.names().await.is_empty());
}

/// A snapshot that is being made, and one that is being deleted, are seen as such.
#[tokio::test]
async fn what_is_under_way_is_seen() {
    let cinder = Cinder::start();
    let volume = cinder.disk("vda").await;
    let hold = cinder.node.hold(Method::SwitchDisks);
    let body = json!({ "snapshot": { "volume_id": volume, "name": "one", "force": true } });
    let making = tokio::spawn({
        let http = cinder.http.clone();
        async move { http.ask("POST", "/v3/snapshots", &body).await }
    });
    crate::node::reached(&hold).await;
    let seen = cinder.get("/v3/snapshots/detail?status=creating").await["snapshots"][0].take();
    assert_eq!((&seen["name"], &seen["volume_id"]), (&"one".into(), &volume.as_str().into()));
    assert_eq!((&seen["size"], &seen["os-extended-snapshot-attributes:progress"]), (&1.into(), &"0%".into()));
    let path = format!("/v3/snapshots?volume_id={}", volume.to_uppercase());
    for query in ["", "&status=creating"] {
        let of_volume = cinder.get(&format!("{path}{query}")).await;
        assert_eq!(of_volume["snapshots"], json!([seen]), "{query}");
    }
    for (of, query) in [(&volume, "&status=available"), (&cinder.disk("vdb").await, "")] {
        let none = cinder.get(&format!("/v3/snapshots?volume_id={of}{query}")).await;
        assert_eq!(none["snapshots"], json!([]), "{query}");
    }
    hold.release();
    let made = making.await.unwrap();
    assert_eq!(cinder.get(&path).await["snapshots"], json!([made.json()["snapshot"]]));
    assert_eq!(made.status, 202, "{}", made.text);
    let path = format!("/v3/snapshots/{}", id(&made.json()["snapshot"]));
    let hold = cinder.node.hold(Method::StartCommit);
    cinder.ok("DELETE", &path, Value::Null, 202).await;
    crate::node::reached(&hold).await;
    assert_eq!(cinder.get(&path).await["snapshot"]["status"], "deleting");
    hold.release();
    cinder.until_gone(&path).await;
}
