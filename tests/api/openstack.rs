//! The Block Storage API on a simulated node: what each request of the `openstack` client is answered, and what came of it.
//!
//! The client itself is run by `tests/guests/openstack.rs`.

mod access;
mod bad_requests;
mod http;
mod lists;
mod page;
mod states;

use serde_json::{Value, json};
use vmsnap::host::sim::SimHost;

use self::http::{Http, assert_fault};
use super::client::succeed;
use super::node::Node;

/// Whoever is on the node may do all.
const ALL: &str = "[[access]]\nwho = ['loopback', 'socket']\nrole = 'admin'\n";

/// A node with the VM `web` on it, and the way to its volumes.
struct Cinder {
    node: Node,
    http: Http,
}

impl Cinder {
    fn start() -> Self {
        Self::with_rules(ALL)
    }

    fn with_rules(rules: &str) -> Self {
        let sim = SimHost::new();
        let vm = sim.vm("web").disks(2).label("project", "p-1").build();
        Self::of(Node::configured(sim, vm, &text(rules)))
    }

    fn of(node: Node) -> Self {
        let http = Http::plain(node.openstack());
        Self { node, http }
    }

    async fn get(&self, path: &str) -> Value {
        self.ok("GET", path, Value::Null, 200).await
    }

    /// Asks, and is answered so.
    async fn ok(&self, method: &str, path: &str, body: Value, status: u16) -> Value {
        let answer = self.http.ask(method, path, &body).await;
        assert_eq!(answer.status, status, "{method} {path}: {}", answer.text);
        answer.json()
    }

    /// The id of a disk of `web`.
    async fn disk(&self, target: &str) -> String {
        let list = self.get(&format!("/v3/volumes/detail?name=web%2F{target}")).await;
        list["volumes"][0]["id"].as_str().unwrap().to_owned()
    }

    /// Takes a snapshot of `vda`.
    async fn take(&self, name: &str) -> Value {
        let body =
            json!({ "snapshot": { "volume_id": self.disk("vda").await, "name": name, "force": true } });
        self.ok("POST", "/v3/snapshots", body, 202).await["snapshot"].take()
    }

    /// Waits until what was deleted is gone.
    async fn until_gone(&self, path: &str) {
        let gone = async {
            while self.http.ask("GET", path, &Value::Null).await.status != 404 {
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(super::node::PATIENCE, gone).await.unwrap_or_else(|_| panic!("{path} stays"));
    }
}

fn text(rules: &str) -> String {
    format!("calls_per_second = 100000\n[openstack]\nlisten = '127.0.0.1:0'\n{rules}")
}

/// What a field of an answer is.
fn id(value: &Value) -> &str {
    value["id"].as_str().unwrap_or_else(|| panic!("{value} has no id"))
}

#[tokio::test]
async fn a_client_finds_its_version() {
    let cinder = Cinder::start();
    for path in ["/v3", "/v3/"] {
        let version = &cinder.get(path).await["versions"][0];
        assert_eq!((&version["id"], &version["status"]), (&"v3.0".into(), &"CURRENT".into()));
        // Behind this one the client sends no `force` any more.
        assert_eq!(version["version"], "3.65");
        let href = version["links"][0]["href"].as_str().unwrap();
        assert_eq!(href, format!("http://{}/v3/", cinder.node.openstack()));
    }
    assert_eq!(cinder.http.ask("GET", "/", &Value::Null).await.status, 300);
    let answer = cinder.http.ask("GET", "/v3/snapshots", &Value::Null).await;
    assert_eq!(answer.header("openstack-api-version"), Some("volume 3.65"));
    let newer =
        cinder.http.with("openstack-api-version", "volume 3.66").ask("GET", "/v3", &Value::Null).await;
    assert_eq!(newer.status, 406);
    assert_fault(&newer, 406, "computeFault", "maximum is 3.65");
    let project = cinder.http.ask("GET", "/v3/projects/p-1", &Value::Null).await;
    assert_fault(&project, 403, "forbidden", "There is no Keystone");
}

#[tokio::test]
async fn a_snapshot_is_taken_written_on_and_deleted() {
    let cinder = Cinder::start();
    cinder.node.write(1, 10);
    let volume = cinder.disk("vda").await;
    let shown = cinder.get(&format!("/v3/volumes/{volume}")).await;
    assert_eq!((&shown["volume"]["status"], &shown["volume"]["size"]), (&"in-use".into(), &1.into()));
    assert_eq!(shown["volume"]["attachments"][0]["device"], "/dev/vda");

    let body = json!({ "snapshot": {
        "volume_id": volume, "name": "one", "description": null, "metadata": null, "force": true,
    }});
    let made = cinder.ok("POST", "/v3/snapshots", body, 202).await["snapshot"].take();
    assert_eq!((&made["name"], &made["description"]), (&"one".into(), &Value::Null));
    assert_eq!((&made["status"], &made["size"]), (&"available".into(), &1.into()));
    assert_eq!((&made["volume_id"], &made["metadata"]), (&volume.as_str().into(), &json!({})));
    assert_eq!(made["os-extended-snapshot-attributes:project_id"], "p-1", "the VM's own");
    let path = format!("/v3/snapshots/{}", id(&made));

    let written = json!({ "metadata": { "a": "1", "b": "2" } });
    assert_eq!(cinder.ok("POST", &format!("{path}/metadata"), written.clone(), 200).await, written);
    let words = json!({ "snapshot": { "name": "two", "description": "why" } });
    let changed = cinder.ok("PUT", &path, words, 200).await["snapshot"].take();
    assert_eq!((&changed["name"], &changed["description"]), (&"two".into(), &"why".into()));
    assert_eq!(changed["metadata"], written["metadata"]);
    cinder.ok("DELETE", &format!("{path}/metadata/a"), Value::Null, 200).await;
    let again = cinder.http.ask("DELETE", &format!("{path}/metadata/a"), &Value::Null).await;
    assert_fault(&again, 404, "itemNotFound", "no metadata with key a");
    cinder.ok("PUT", &format!("{path}/metadata/b"), json!({ "meta": { "b": "3" } }), 200).await;
    assert_eq!(cinder.get(&format!("{path}/metadata/b")).await, json!({ "meta": { "b": "3" } }));
    let replaced = json!({ "metadata": { "c": "4" } });
    cinder.ok("PUT", &format!("{path}/metadata"), replaced.clone(), 200).await;
    assert_eq!(cinder.get(&format!("{path}/metadata")).await, replaced);
    assert_eq!(cinder.node.snapshot("two").await.properties["c"], "4", "it is the snapshot of gRPC");

    cinder.node.write(1, 20);
    succeed(&cinder.node, "volume revert web/vda two --stop --yes").await;
    assert_eq!(cinder.node.read(1), [10, 20]);
    cinder.ok("DELETE", &path, Value::Null, 202).await;
    cinder.until_gone(&path).await;
    assert!(cinder.node.names().await.is_empty());
    assert_eq!(cinder.node.sim.files().len(), 2, "only the first images are left");
}

/// Cinder's names are any text, and several snapshots may have one.
#[tokio::test]
async fn a_name_is_any_text() {
    let cinder = Cinder::start();
    for name in ["before upgrade ä/b", "same"] {
        let made = cinder.take(name).await;
        assert_eq!(made["name"], name);
    }
    let body =
        json!({ "snapshot": { "volume_id": cinder.disk("vdb").await, "name": "same", "force": "true" } });
    cinder.ok("POST", "/v3/snapshots", body, 202).await;
    let same = cinder.get("/v3/snapshots/detail?name=same").await;
    assert_eq!(same["snapshots"].as_array().unwrap().len(), 2, "{same}");
    let other = cinder.get("/v3/snapshots/detail?name=before%20upgrade%20%C3%A4%2Fb").await;
    let path = format!("/v3/snapshots/{}", id(&other["snapshots"][0]));
    for name in ["same", "plain"] {
        let changed = cinder.ok("PUT", &path, json!({ "snapshot": { "name": name } }), 200).await;
        assert_eq!(changed["snapshot"]["name"], name);
    }
    assert_eq!(cinder.node.snapshot("plain").await.display_name, "");
    let unnamed = json!({ "snapshot": { "volume_id": cinder.disk("vda").await, "force": true } });
    let made = cinder.ok("POST", "/v3/snapshots", unnamed, 202).await;
    assert!(!made["snapshot"]["name"].as_str().unwrap().is_empty());
}

#[tokio::test]
async fn without_force_a_volume_in_use_is_left_alone() {
    let cinder = Cinder::start();
    let volume = cinder.disk("vda").await;
    let acts = cinder.node.acts();
    for force in [json!(false), json!("False"), Value::Null] {
        let body = json!({ "snapshot": { "volume_id": volume, "name": "one", "force": force } });
        let refused = cinder.http.ask("POST", "/v3/snapshots", &body).await;
        let message = format!(
            "Invalid volume: Volume {volume} status must be available, but current status is: in-use."
        );
        assert_fault(&refused, 400, "badRequest", &message);
    }
    assert!(cinder.node.names().await.is_empty());
    assert_eq!(cinder.node.acts(), acts);
}

#[tokio::test]
async fn a_volume_is_made_of_a_snapshot() {
    let cinder = Cinder::start();
    cinder.node.write(1, 10);
    let source = cinder.take("one").await;
    cinder.node.write(1, 20);
    // As the client sends it.
    let body = json!({ "volume": {
        "size": 1, "snapshot_id": id(&source), "name": "copy", "description": "of one", "metadata": { "a": "1" },
        "volume_type": null, "availability_zone": null, "consistencygroup_id": null, "source_volid": null,
        "imageRef": null, "multiattach": false, "backup_id": null,
    }});
    let made = cinder.ok("POST", "/v3/volumes", body.clone(), 202).await["volume"].take();
    assert_eq!((&made["name"], &made["status"]), (&"copy".into(), &"available".into()));
    assert_eq!((&made["snapshot_id"], &made["description"]), (&source["id"], &"of one".into()));
    assert_eq!(made["os-vol-tenant-attr:tenant_id"], "p-1");
    let read = cinder.node.sim.read_image("/images/copy.qcow2".as_ref()).unwrap();
    assert_eq!(read.get(&1), Some(&10), "what the snapshot holds");
    let again = cinder.http.ask("POST", "/v3/volumes", &body).await;
    assert_fault(&again, 409, "conflictingRequest", "copy");

    // No VM has it: nothing is in use.
    let body = json!({ "snapshot": { "volume_id": id(&made), "name": "of-copy" } });
    let own = cinder.ok("POST", "/v3/snapshots", body, 202).await["snapshot"].take();
    assert_eq!(own["status"], "available");
    let path = format!("/v3/volumes/{}", id(&made));
    let (action, force) = (format!("{path}/action"), json!({ "os-force_delete": {} }));
    for (method, path, body) in [("DELETE", &path, &Value::Null), ("POST", &action, &force)] {
        let held = cinder.http.ask(method, path, body).await;
        assert_fault(&held, 400, "badRequest", "Invalid volume: volume copy has snapshots of its own");
    }
    let back = json!({ "revert": { "snapshot_id": id(&own) } });
    cinder.ok("POST", &format!("/v3/volumes/{}/action", id(&made)), back, 202).await;
    for path in [format!("/v3/snapshots/{}", id(&own)), format!("/v3/volumes/{}", id(&made))] {
        cinder.ok("DELETE", &path, Value::Null, 202).await;
        cinder.until_gone(&path).await;
    }
    let disk = format!("/v3/volumes/{}", cinder.disk("vda").await);
    let refused = cinder.http.ask("DELETE", &disk, &Value::Null).await;
    assert_fault(&refused, 400, "badRequest", "Invalid volume: ");
    let back = json!({ "revert": { "snapshot_id": id(&source) } });
    let refused = cinder.http.ask("POST", &format!("{disk}/action"), &back).await;
    assert_fault(&refused, 400, "badRequest", "is using the volume");
    let unnamed = json!({ "volume": { "snapshot_id": id(&source) } });
    let made = cinder.ok("POST", "/v3/volumes", unnamed, 202).await["volume"].take();
    assert!(made["name"].as_str().unwrap().starts_with("volume-"));
    let path = format!("/v3/volumes/{}", id(&made));
    cinder.ok("POST", &format!("{path}/action"), force, 202).await;
    cinder.until_gone(&path).await;
    assert_eq!(cinder.node.sim.violations(), Vec::<String>::new());
}

/// Each disk in it is a snapshot of its volume.
#[tokio::test]
async fn a_snapshot_of_a_vm_is_seen_and_cloned() {
    let cinder = Cinder::start();
    cinder.node.write(1, 10);
    let whole = cinder.node.take("whole").await;
    let list = cinder.get("/v3/snapshots/detail").await;
    let names: Vec<&str> =
        list["snapshots"].as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["whole.vda", "whole.vdb"]);
    let volume = cinder.disk("vdb").await;
    let of_volume = cinder.get(&format!("/v3/snapshots/detail?volume_id={volume}")).await;
    let [disk] = of_volume["snapshots"].as_array().unwrap().as_slice() else { panic!("{of_volume}") };
    assert_eq!(disk["id"], format!("{}.vdb", whole.id));
    assert_eq!(disk["metadata"], json!({ "group": whole.id }));
    let path = format!("/v3/snapshots/{}", id(disk));
    assert_eq!(cinder.get(&path).await["snapshot"], *disk);
    for (method, path, body) in [
        ("DELETE", path.clone(), Value::Null),
        ("PUT", path.clone(), json!({ "snapshot": { "name": "x" } })),
        ("POST", format!("{path}/metadata"), json!({ "metadata": { "a": "1" } })),
        ("POST", format!("{path}/action"), json!({ "os-force_delete": null })),
    ] {
        let refused = cinder.http.ask(method, &path, &body).await;
        assert_fault(
            &refused,
            400,
            "badRequest",
            "the snapshot whole of the VM web, which is changed as a whole",
        );
    }
    for path in [format!("/v3/snapshots/{}", whole.id), format!("/v3/snapshots/{}.vdc", whole.id)] {
        let none = cinder.http.ask("GET", &path, &Value::Null).await;
        assert_fault(&none, 404, "itemNotFound", "could not be found.");
    }
    let body = json!({ "volume": { "snapshot_id": id(disk), "name": "copy" } });
    cinder.ok("POST", "/v3/volumes", body, 202).await;
    assert_eq!(cinder.node.sim.read_image("/images/copy.qcow2".as_ref()).unwrap().get(&1), Some(&10));
}

/// As the client does with several snapshots on one line: the second waits for the first.
#[tokio::test]
async fn one_waits_for_another() {
    let cinder = Cinder::start();
    let mut paths = Vec::new();
    for name in ["one", "two", "three"] {
        paths.push(format!("/v3/snapshots/{}", id(&cinder.take(name).await)));
    }
    for path in &paths {
        cinder.ok("DELETE", path, Value::Null, 202).await;
    }
    for path in &paths {
        cinder.until_gone(path).await;
    }
    assert_eq!(cinder.node.sim.violations(), Vec::<String>::new());
}
