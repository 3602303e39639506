//! Who may ask for what: the roles and scopes of gRPC, and its audit trail.

use std::time::Duration;

use serde_json::{Value, json};
use vmsnap::host::sim::SimHost;

use super::http::{Http, assert_fault};
use super::{Cinder, id, text};
use crate::client::succeed;
use crate::node::{Node, PATIENCE};
use crate::secured::{Secured, audit_lines, rules};

const OPERATOR: &str = "spiffe://test/openstack/operator";

/// The role of each request, one after the other: below it nothing is done.
#[tokio::test]
async fn each_request_has_its_role() {
    for (place, role) in ["viewer", "operator", "restorer", "admin"].iter().enumerate() {
        let rules = format!(
            "[[access]]\nwho = ['loopback']\nrole = '{role}'\n[[access]]\nwho = ['socket']\nrole = 'admin'\n"
        );
        let cinder = Cinder::with_rules(&rules);
        cinder.node.take("whole").await;
        let whole = cinder.get("/v3/snapshots/detail").await["snapshots"][0].take();
        let create =
            json!({ "snapshot": { "volume_id": cinder.disk("vda").await, "name": "one", "force": true } });
        let made = cinder.http.ask("POST", "/v3/snapshots", &create).await;
        assert_eq!(made.status, if place >= 1 { 202 } else { 403 }, "{role}: {}", made.text);
        let clone = json!({ "volume": { "snapshot_id": id(&whole), "name": "copy" } });
        let cloned = cinder.http.ask("POST", "/v3/volumes", &clone).await;
        assert_eq!(cloned.status, if place >= 2 { 202 } else { 403 }, "{role}: {}", cloned.text);
        if place == 0 {
            assert_fault(
                &made,
                403,
                "forbidden",
                "loopback has the role viewer, and this call needs operator",
            );
            continue;
        }
        let path = format!("/v3/snapshots/{}", id(&made.json()["snapshot"]));
        // What is so may be said by whoever sees it; another state is declared by the admin alone.
        let declared = if place >= 3 { 202 } else { 403 };
        for (state, expected) in [("available", 202), ("error", declared), ("available", 202)] {
            let declare = json!({ "os-reset_status": { "status": state } });
            let declared = cinder.http.ask("POST", &format!("{path}/action"), &declare).await;
            assert_eq!(declared.status, expected, "{role}: {}", declared.text);
        }
        cinder.ok("POST", &format!("{path}/metadata"), json!({ "metadata": { "a": "1" } }), 200).await;
        cinder.ok("DELETE", &path, Value::Null, 202).await;
    }
}

/// What lies outside of a scope is not there.
#[tokio::test]
async fn a_scope() {
    let sim = SimHost::new();
    let vm = sim.vm("web").disks(1).label("account", "acme").label("project", "p-1").build();
    sim.vm("db").disks(1).label("account", "other").build();
    let rules = "[[access]]\nwho = ['loopback']\nrole = 'restorer'\naccount = 'acme'\n[[access]]\nwho = ['socket']\nrole = 'admin'\n";
    let cinder = Cinder::of(Node::configured(sim, vm, &text(rules)));
    succeed(&cinder.node, "volume snapshot create theirs --volume db/vda").await;
    let theirs = succeed(&cinder.node, "snapshot list db -o name").await;
    let volumes = cinder.get("/v3/volumes/detail").await;
    assert_eq!(volumes["volumes"].as_array().unwrap().len(), 1, "{volumes}");
    assert_eq!(cinder.get("/v3/snapshots/detail").await["snapshots"], json!([]));
    let path = format!("/v3/snapshots/{}", theirs.trim());
    for method in ["GET", "DELETE"] {
        assert_fault(
            &cinder.http.ask(method, &path, &Value::Null).await,
            404,
            "itemNotFound",
            "could not be found",
        );
    }
    let ours = cinder.take("ours").await;
    assert_eq!(ours["os-extended-snapshot-attributes:project_id"], "p-1");
    assert_eq!(cinder.node.snapshot("ours").await.account, "acme");
    // Clones belong to no VM.
    let clone = json!({ "volume": { "snapshot_id": id(&ours), "name": "copy" } });
    assert_fault(&cinder.http.ask("POST", "/v3/volumes", &clone).await, 403, "forbidden", "about the node");
}

/// Over the network: with a certificate, and not without.
#[tokio::test]
async fn certificates() {
    let rules = format!(
        "{}[openstack]\nlisten = '127.0.0.1:0'\n",
        rules(&[(&format!("uri:{OPERATOR}"), "operator", "")])
    );
    let secured = Secured::start(&rules);
    let address = secured.node.openstack();
    let authority = secured.path().join("clients.pem");
    let nobody = Http::secured(address, &authority, None);
    assert!(nobody.try_raw("GET", "/v3", Vec::new()).await.is_err());
    // Not a word without TLS.
    assert!(Http::plain(address).try_raw("GET", "/v3", Vec::new()).await.is_err());
    let stranger = secured.client("spiffe://test/openstack/stranger", 1);
    let stranger = Http::secured(address, &authority, Some(&stranger));
    assert_fault(&stranger.ask("GET", "/v3", &Value::Null).await, 403, "forbidden", "is given no access");

    let files = secured.client(OPERATOR, 2);
    let operator = Http::secured(address, &authority, Some(&files));
    let version = operator.ask("GET", "/v3", &Value::Null).await.json();
    let href = version["versions"][0]["links"][0]["href"].as_str().unwrap();
    assert_eq!(href, format!("https://{address}/v3/"));
    let volumes = operator.ask("GET", "/v3/volumes/detail", &Value::Null).await.json();
    let body =
        json!({ "snapshot": { "volume_id": id(&volumes["volumes"][0]), "name": "one", "force": true } });
    let made = operator.ask("POST", "/v3/snapshots", &body).await;
    assert_eq!(made.status, 202, "{}", made.text);
    assert_eq!(secured.node.snapshot("one").await.created_by, format!("uri:{OPERATOR}"));
    let lines =
        audit_lines(&[OPERATOR, "VolumeService/CreateVolumeSnapshot", "decision=allowed", "about=operation"]);
    assert_eq!(lines.len(), 1, "{lines:?}");

    // A reload: what is revoked is of no use from then on.
    secured.authority.revoke(&[2], secured.path(), "clients");
    succeed(&secured.node, "node reload").await;
    assert!(operator.try_raw("GET", "/v3", Vec::new()).await.is_err());
}

/// Two users with the password `secret`.
fn users() -> String {
    const HASH: &str =
        "$argon2id$v=19$m=8,t=1,p=1$ZXhhbXBsZS1zYWx0$Nak3HAh3xvKBlSAiKNerxFSg4tj7r/ZE6kCFR9i47Yg";
    let user = |name: &str| format!("[[openstack.users]]\nname = '{name}'\npassword = '{HASH}'\n");
    format!("{}{}", user("backup"), user("nobodys"))
}

/// As a client has it of a name and a password.
fn basic(claim: &str) -> String {
    use base64::Engine;
    format!("Basic {}", base64::prelude::BASE64_STANDARD.encode(claim))
}

/// On the node: whoever knows a user's password has the role of that user, and nobody else has any.
#[tokio::test]
async fn passwords_on_the_node() {
    let rule = "[[access]]\nwho = ['basic:backup']\nrole = 'operator'\n[[access]]\nwho = ['socket']\nrole = 'admin'\n";
    let cinder = Cinder::with_rules(&format!("{}{rule}", users()));
    let ask = async |claim: &str| {
        cinder.http.with("authorization", claim).ask("GET", "/v3/volumes/detail", &Value::Null).await
    };
    // The client of OpenStack asks so first, and shows its password when it is asked for it.
    let none = cinder.http.ask("GET", "/v3", &Value::Null).await;
    assert_fault(&none, 401, "unauthorized", "requires authentication");
    assert_eq!(none.header("www-authenticate"), Some("Basic realm=\"vmsnapd\""));
    for claim in ["backup:Secret", "backup:", "other:secret", ":secret"] {
        let refused = ask(&basic(claim)).await;
        assert_fault(&refused, 401, "unauthorized", "requires authentication");
        assert_eq!(refused.header("www-authenticate"), Some("Basic realm=\"vmsnapd\""));
    }
    assert_fault(&ask("Basic !").await, 401, "unauthorized", "requires authentication");
    assert_fault(&ask(&basic("nobodys:secret")).await, 403, "forbidden", "basic:nobodys is given no access");
    let list = ask(&basic("backup:secret")).await;
    assert_eq!(list.status, 200, "{}", list.text);
    let body =
        json!({ "snapshot": { "volume_id": id(&list.json()["volumes"][0]), "name": "one", "force": true } });
    let http = cinder.http.with("authorization", &basic("backup:secret"));
    assert_eq!(http.ask("POST", "/v3/snapshots", &body).await.status, 202);
    assert_eq!(cinder.node.snapshot("one").await.created_by, "basic:backup");
    let clone = json!({ "volume": { "snapshot_id": cinder.node.snapshot("one").await.id } });
    assert_fault(
        &http.ask("POST", "/v3/volumes", &clone).await,
        403,
        "forbidden",
        "basic:backup has the role operator",
    );

    // Read again: who has no password any more is nobody.
    cinder.node.configure(&text(rule).replace("'socket'", "'socket', 'loopback'"));
    let told = succeed(&cinder.node, "node reload").await;
    assert!(told.contains("openstack.users"), "{told}");
    let ignored = http.ask("GET", "/v3/volumes", &Value::Null).await;
    assert_eq!(ignored.status, 200, "he is whoever has the connection: {}", ignored.text);
}

/// Over the network: a password does where there is no certificate, for this listener alone.
#[tokio::test]
async fn passwords_over_the_network() {
    let named = [(&*format!("uri:{OPERATOR}"), "operator", ""), ("basic:backup", "viewer", "")];
    let rules = format!("{}[openstack]\nlisten = '127.0.0.1:0'\n{}", rules(&named), users());
    let secured = Secured::start(&rules);
    let address = secured.node.openstack();
    let authority = secured.path().join("clients.pem");
    let nobody = Http::secured(address, &authority, None);
    let refused = nobody.ask("GET", "/v3", &Value::Null).await;
    assert_fault(&refused, 401, "unauthorized", "requires authentication");
    let wrong = nobody.with("authorization", &basic("backup:guess"));
    assert_fault(&wrong.ask("GET", "/v3", &Value::Null).await, 401, "unauthorized", "");
    let backup = nobody.with("authorization", &basic("backup:secret"));
    let volumes = backup.ask("GET", "/v3/volumes/detail", &Value::Null).await;
    assert_eq!(volumes.status, 200, "{}", volumes.text);
    let body = json!({ "snapshot": { "volume_id": id(&volumes.json()["volumes"][0]), "name": "one", "force": true } });
    let refused = backup.ask("POST", "/v3/snapshots", &body).await;
    assert_fault(&refused, 403, "forbidden", "basic:backup has the role viewer");
    let mistaken = nobody.with("authorization", &basic("carol:mistaken"));
    assert_eq!(mistaken.ask("GET", "/v3", &Value::Null).await.status, 401);
    assert_eq!(audit_lines(&["there is no user \"carol\" with this password"]).len(), 1);
    assert!(audit_lines(&["mistaken"]).is_empty());
    // Whoever has a certificate needs no password, and one that is shown must be good.
    let operator = Http::secured(address, &authority, Some(&secured.client(OPERATOR, 2)));
    assert_eq!(operator.ask("POST", "/v3/snapshots", &body).await.status, 202);
    let expired = secured.authority.sign_expired(OPERATOR, secured.path(), "expired");
    let expired =
        Http::secured(address, &authority, Some(&expired)).with("authorization", &basic("backup:secret"));
    assert!(expired.try_raw("GET", "/v3", Vec::new()).await.is_err());
    // Nor does a password make up for one that is of no use any more.
    let both = Http::secured(address, &authority, Some(&secured.client(OPERATOR, 3)))
        .with("authorization", &basic("backup:secret"));
    let mut wire = both.open().await.unwrap();
    assert_eq!(both.over(&mut wire, "GET", "/v3", Vec::new()).await.unwrap().status, 200);
    secured.authority.revoke(&[3], secured.path(), "clients");
    succeed(&secured.node, "node reload").await;
    let revoked = both.over(&mut wire, "GET", "/v3", Vec::new()).await.unwrap();
    assert_fault(&revoked, 401, "unauthorized", "the certificate proves nothing");
    // gRPC takes nobody without one.
    let grpc = secured.channel_with(secured.trusting());
    let mut volumes = vmsnap::proto::v1::volume_service_client::VolumeServiceClient::new(grpc);
    assert!(volumes.list_volumes(vmsnap::proto::v1::ListVolumesRequest::default()).await.is_err());
}

/// Whoever has no certificate and says nothing keeps no user out, however many connections he has.
#[tokio::test]
async fn a_silent_crowd() {
    let rules = format!(
        "{}[openstack]\nlisten = '127.0.0.1:0'\n{}",
        rules(&[("basic:backup", "viewer", "")]),
        users()
    );
    let secured = Secured::start(&rules);
    let nobody = Http::secured(secured.node.openstack(), &secured.path().join("clients.pem"), None);
    let mut silent = Vec::new();
    // More than any one client may have.
    for _ in 0..200 {
        silent.push(nobody.open().await.unwrap());
    }
    let backup = nobody.with("authorization", &basic("backup:secret"));
    assert_eq!(backup.ask("GET", "/v3/volumes", &Value::Null).await.status, 200);
}

/// Whoever guesses is told to wait, and a password that is right is no guess.
#[tokio::test]
async fn guesses() {
    let rule = "[[access]]\nwho = ['basic:backup']\nrole = 'viewer'\n";
    let cinder = Cinder::with_rules(&format!("{}{rule}", users()));
    let good = cinder.http.with("authorization", &basic("backup:secret"));
    for _ in 0..30 {
        assert_eq!(good.ask("GET", "/v3", &Value::Null).await.status, 200);
    }
    let guess = cinder.http.with("authorization", &basic("backup:guess"));
    let refused = async {
        loop {
            let answer = guess.ask("GET", "/v3", &Value::Null).await;
            if answer.status != 401 {
                return answer;
            }
        }
    };
    let refused = tokio::time::timeout(PATIENCE, refused).await.unwrap();
    assert_fault(&refused, 413, "overLimit", "too many passwords from there were wrong");
    assert_eq!(refused.header("retry-after"), Some("1"));
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(good.ask("GET", "/v3", &Value::Null).await.status, 200);
}

/// Whoever asks in a loop is told when to come again.
#[tokio::test]
async fn a_pace() {
    let sim = SimHost::new();
    let vm = sim.vm("web").disks(1).build();
    let text = text(super::ALL).replace("calls_per_second = 100000", "calls_per_second = 5");
    let cinder = Cinder::of(Node::configured(sim, vm, &text));
    let refused = async {
        loop {
            let answer = cinder.http.ask("GET", "/v3", &Value::Null).await;
            if answer.status != 200 {
                return answer;
            }
        }
    };
    let refused = tokio::time::timeout(PATIENCE, refused).await.unwrap();
    assert_fault(&refused, 413, "overLimit", "too many requests");
    assert_eq!(refused.header("retry-after"), Some("1"));
    tokio::time::sleep(Duration::from_secs(1)).await;
    cinder.get("/v3").await;
}

/// Without TLS it is for this node alone, and for whom a rule says so.
#[test]
fn check_config() {
    let check = |text: &str, words: &str| {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("vmsnapd.toml");
        std::fs::write(&file, text).unwrap();
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_vmsnapd"));
        let output = command.arg("--config").arg(&file).arg("check-config").output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(if words.is_empty() { 0 } else { 78 }), "{said}");
        assert!(said.contains(words), "{said}");
    };
    let rule = "[[access]]\nwho = ['loopback']\nrole = 'operator'\n";
    check(&format!("{rule}[openstack]\nlisten = '127.0.0.1:8776'"), "");
    check(&format!("{rule}[openstack]\nlisten = '0.0.0.0:8776'"), "so TLS is needed");
    check("[openstack]\nlisten = '127.0.0.1:8776'", "needs a rule in [[access]]");
    check("[openstack]\nlisten = 'localhost'", "invalid socket address");
    check(&format!("[openstack]\nlisten = '127.0.0.1:8776'\n{}", users()), "");
    check(&format!("[openstack]\nlisten = '0.0.0.0:8776'\n{}", users()), "so TLS is needed");
    let plain = users().replace("$argon2id$", "");
    check(&format!("[openstack]\nlisten = '127.0.0.1:8776'\n{plain}"), "it is no hash by Argon2id");
}
