//! The real `openstack` client, as its package brings it, on a real guest: what it prints, and what the guest's disk holds after
//! a revert. Each line is typed as an operator of a cloud would.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::bed::{Client, Daemon, Format, Guest, Reply, Setup, Spec, images, wait_until};

/// What only a broken daemon does not do in time.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(120);

/// The client, pointed at one daemon.
struct Openstack {
    program: PathBuf,
    endpoint: String,
}

impl Openstack {
    /// Runs `openstack LINE`; words are parted by single spaces.
    #[track_caller]
    fn run(&self, line: &str) -> Reply {
        let mut command = Command::new(&self.program);
        command.env_clear().env("PATH", std::env::var("PATH").unwrap());
        command.env("OS_AUTH_TYPE", "none").env("OS_ENDPOINT", &self.endpoint);
        command.args(line.split(' ')).output().expect("the client can be run").into()
    }

    /// What it prints when it succeeds.
    #[track_caller]
    fn said(&self, line: &str) -> String {
        let reply = self.run(line);
        assert_eq!(reply.code, 0, "openstack {line}: {}", reply.stderr);
        reply.stdout
    }

    #[track_caller]
    fn json(&self, line: &str) -> Value {
        let said = self.said(&format!("{line} -f json"));
        serde_json::from_str(&said).unwrap_or_else(|error| panic!("openstack {line}: {error}: {said}"))
    }

    /// One column of a list.
    #[track_caller]
    fn column(&self, line: &str, name: &str) -> Vec<String> {
        let list = self.json(line);
        let rows = list.as_array().unwrap_or_else(|| panic!("openstack {line}: {list}"));
        rows.iter().map(|row| row[name].as_str().unwrap().to_owned()).collect()
    }

    /// It fails and says so.
    #[track_caller]
    fn refused(&self, line: &str, words: &str) {
        let reply = self.run(line);
        assert_ne!(reply.code, 0, "openstack {line}: {}", reply.stdout);
        assert!(reply.stderr.contains(words), "openstack {line}: {}", reply.stderr);
    }
}

/// A daemon that answers the client, and may make clones beside the images of a guest.
fn start(guest: &Guest) -> (Daemon, Openstack) {
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join(".testbed/python/bin");
    let program = python.join("openstack");
    assert!(program.exists(), "there is no {}: run tests/bed/setup.sh --with-python", program.display());
    // A port that was free a moment ago.
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let images = guest.directory().display();
    let configuration = format!(
        "image_directories = ['{images}']\n[openstack]\nlisten = '{address}'\n\
         [[access]]\nwho = ['loopback', 'socket']\nrole = 'admin'"
    );
    let daemon = Daemon::start_with(Setup { configuration, ..Setup::default() });
    daemon.wait_for_health("libvirt", tonic_health::pb::health_check_response::ServingStatus::Serving);
    (daemon, Openstack { program, endpoint: format!("http://{address}/v3") })
}

/// Writes a file to the guest's second disk.
fn write(guest: &Guest, name: &str) {
    guest.exec(&format!("echo {name} > /mnt/vdb/{name} && sync"));
}

fn has(guest: &Guest, name: &str) -> bool {
    guest.has_file(&format!("/mnt/vdb/{name}"))
}

#[test]
fn the_client_does_what_it_says() {
    let guest = Guest::boot(&Spec::default());
    let (daemon, openstack) = start(&guest);
    let (client, vm) = (daemon.client(), guest.name());
    let volume = volumes(&openstack, vm);
    write(&guest, "first");
    let kept = taken(&openstack, vm, &volume);
    write(&guest, "second");
    listed(&openstack, &volume, &kept);
    written_on(&openstack, &client, vm);
    cloned(&guest, &openstack);

    // The guest's disk, after it went back to what the client has taken.
    assert!(has(&guest, "first") && has(&guest, "second"));
    client.json(&["volume", "revert", &format!("{vm}/vdb"), "kept", "--stop", "--yes"]);
    guest.wait_until_up();
    assert!(has(&guest, "first") && !has(&guest, "second"), "the disk is as the client has seen it");
    deleted(&guest, &openstack);
}

/// `volume list`, `volume show`. Gives the id of the second disk.
fn volumes(openstack: &Openstack, vm: &str) -> String {
    let list = openstack.json("volume list");
    let name = format!("{vm}/vdb");
    let found = list.as_array().unwrap().iter().find(|row| row["Name"] == name.as_str());
    let row = found.unwrap_or_else(|| panic!("{list}"));
    assert_eq!((&row["Status"], &row["Size"]), (&"in-use".into(), &1.into()), "{row}");
    let id = row["ID"].as_str().unwrap().to_owned();
    for which in [&id, &name] {
        let shown = openstack.json(&format!("volume show {which}"));
        assert_eq!((&shown["id"], &shown["name"]), (&id.as_str().into(), &name.as_str().into()));
        assert_eq!((&shown["status"], &shown["size"]), (&"in-use".into(), &1.into()), "{shown}");
    }
    id
}

/// Waits until a volume, or a snapshot of one, is there: on a busy machine its making is answered before its end.
fn is_available(openstack: &Openstack, kind: &str, name: &str) {
    let show = format!("{kind} show {name}");
    wait_until(&format!("{kind} {name} is available"), PATIENCE, || {
        openstack.json(&show)["status"] == "available"
    });
}

/// `create`, refused and with `--force`, by id and by name. Gives the id of the one that is kept.
fn taken(openstack: &Openstack, vm: &str, volume: &str) -> String {
    openstack.refused(
        &format!("volume snapshot create --volume {volume} kept"),
        &format!("Invalid volume: Volume {volume} status must be available, but current status is: in-use."),
    );
    let made = openstack.json(&format!("volume snapshot create --force --volume {volume} kept"));
    assert_eq!((&made["name"], &made["volume_id"]), (&"kept".into(), &volume.into()));
    assert_eq!(made["size"], 1, "{made}");
    is_available(openstack, "volume snapshot", "kept");
    let made = openstack.json(&format!("volume snapshot create --force --volume {vm}/vdb other"));
    assert_eq!(made["volume_id"], volume);
    is_available(openstack, "volume snapshot", "other");
    let list = openstack.json("volume snapshot list");
    let kept = list.as_array().unwrap().iter().find(|row| row["Name"] == "kept").unwrap().clone();
    assert_eq!((&kept["Status"], &kept["Size"]), (&"available".into(), &1.into()));
    kept["ID"].as_str().unwrap().to_owned()
}

/// `list` with all its options, `show`.
fn listed(openstack: &Openstack, volume: &str, kept: &str) {
    let names = |options: &str| openstack.column(&format!("volume snapshot list {options}"), "Name");
    assert_eq!(names(&format!("--volume {volume}")), ["other", "kept"]);
    assert_eq!(names("--name kept"), ["kept"]);
    assert_eq!(names("--status available"), ["other", "kept"]);
    assert!(names("--status error").is_empty());
    // The client walks through all pages of that size.
    assert_eq!(names("--limit 1"), ["other", "kept"]);
    let other = openstack.column("volume snapshot list --name other", "ID").remove(0);
    assert_eq!(names(&format!("--marker {other}")), ["kept"]);
    assert!(names("--project nobodys").is_empty());
    assert_eq!(names("--all-projects"), ["other", "kept"]);
    let long = openstack.said("volume snapshot list --long");
    assert!(long.contains("Created At") && long.contains("Properties") && long.contains("/vdb"), "{long}");
    for which in ["kept", kept] {
        assert_eq!(openstack.json(&format!("volume snapshot show {which}"))["id"], kept);
    }
    openstack.refused("volume snapshot show nothing", "nothing");
}

/// `set` and `unset`.
fn written_on(openstack: &Openstack, client: &Client, vm: &str) {
    let shown = || client.json(&["snapshot", "show", &format!("{vm}/renamed")])["snapshot"].clone();
    openstack
        .said("volume snapshot set --name renamed --description why --property a=1 --property b=2 other");
    let snapshot = shown();
    assert_eq!((&snapshot["description"], &snapshot["properties"]["b"]), (&"why".into(), &"2".into()));
    let line = openstack.said("volume snapshot show renamed");
    assert!(line.contains("renamed") && line.contains("why") && line.contains("a='1', b='2'"), "{line}");
    openstack.said("volume snapshot unset --property a renamed");
    assert_eq!(shown()["properties"].as_object().unwrap().len(), 1);
    openstack.said("volume snapshot set --no-property renamed");
    assert!(shown()["properties"].as_object().is_none_or(serde_json::Map::is_empty));
    openstack.said("volume snapshot set --state available renamed");
    for state in ["error", "available"] {
        openstack.said(&format!("volume snapshot set --state {state} renamed"));
        assert_eq!(openstack.json("volume snapshot show renamed")["status"], state);
        assert_eq!(openstack.column(&format!("volume snapshot list --status {state}"), "Name")[0], "renamed");
    }
    openstack.refused("volume snapshot set --state deleting renamed", "nobody can declare it deleting");
    client.json(&["snapshot", "set", &format!("{vm}/renamed"), "--project", "p-1"]);
    assert_eq!(openstack.column("volume snapshot list --project p-1", "Name"), ["renamed"]);
}

/// `volume create --snapshot`.
fn cloned(guest: &Guest, openstack: &Openstack) {
    let kept = openstack.column("volume snapshot list --name kept", "ID").remove(0);
    let made = openstack.json(&format!("volume create --snapshot {kept} copy"));
    assert_eq!((&made["name"], &made["snapshot_id"]), (&"copy".into(), &kept.as_str().into()), "{made}");
    is_available(openstack, "volume", "copy");
    let image = guest.directory().join("copy.qcow2");
    let content = images::Content::of(&image, Format::Qcow2);
    content.replay_journal();
    assert_eq!(content.file("/first").as_deref(), Some(b"first\n".as_slice()));
    assert_eq!(content.file("/second").unwrap_or_default(), b"", "the clone is of the snapshot");
}

/// `delete`, several at once, with and without `--force`.
fn deleted(guest: &Guest, openstack: &Openstack) {
    openstack.said("volume snapshot delete renamed");
    openstack.said("volume snapshot delete --force kept");
    openstack.refused("volume snapshot delete nothing", "nothing");
    wait_until("the snapshots are gone", PATIENCE, || {
        openstack.json("volume snapshot list").as_array().unwrap().is_empty()
    });
    assert!(has(guest, "first"), "the guest reads what it read");
}
