//! A controller that is killed and started again, over and over, while a real guest is snapshotted and merged: in the end it
//! has everything, and the daemon has not grown.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::bed::{Daemon, Dice, Guest, Setup, Spec, eventually, process, program, reports};

const END: Duration = Duration::from_secs(180);

/// `vmsnap controller receive` as a process. It is killed with the value.
struct Receiver {
    child: Child,
    address: String,
}

impl Receiver {
    fn start(listen: &str, log: &Path) -> Self {
        let mut child = Command::new(program("vmsnap"))
            .args(["controller", "receive", "--listen", listen, "--log"])
            .arg(log)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = String::new();
        BufReader::new(child.stderr.take().unwrap()).read_line(&mut said).unwrap();
        let address =
            said.trim().strip_prefix("listening on ").unwrap_or_else(|| panic!("{said}")).to_owned();
        Self { child, address }
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        drop((self.child.kill(), self.child.wait()));
    }
}

/// Kills the receiver and starts it again until it is told to stop; the last one lives on.
fn trouble(mut receiver: Receiver, log: &Path, is_over: &AtomicBool) -> (Receiver, u32) {
    let (mut dice, address) = (Dice::new(7), receiver.address.clone());
    let mut kills = 0;
    while !is_over.load(Ordering::Relaxed) {
        thread::sleep(Duration::from_secs(2) + 2 * while_away(&mut dice));
        drop(receiver);
        kills += 1;
        thread::sleep(while_away(&mut dice));
        receiver = Receiver::start(&address, log);
    }
    (receiver, kills)
}

/// Between a kill and the next start: it is what is tested, and no event ends it.
fn while_away(dice: &mut Dice) -> Duration {
    Duration::from_millis(u64::try_from(dice.roll(3000)).unwrap())
}

/// A merge that takes some seconds, in which the controller sees it move. Gives its operation.
fn slow_merge(guest: &Guest, daemon: &Daemon, log: &Path) -> String {
    let (client, vm) = (daemon.client(), guest.name());
    client.json(&["snapshot", "create", vm, "slow"]);
    guest.exec("dd if=/dev/urandom of=/mnt/vda/large bs=1M count=40 conv=fsync 2>/dev/null");
    let slow = ["snapshot", "delete", &format!("{vm}/slow"), "--yes", "--no-wait", "--bandwidth", "4MiB"];
    let merge = id(&client.json(&slow)["operation"]);
    eventually("the controller sees the merge move", END, || {
        let moves = |entry: &Value| {
            let (sequence, seen) = (&entry["report"]["sequence"], &entry["report"]["operation"]);
            sequence.is_null() && seen["id"] == merge.as_str() && seen["progress"].is_array()
        };
        reports::entries(log).iter().any(moves).then_some(())
    });
    assert_eq!(client.run(&["op", "watch", &merge]).code, 0);
    merge
}

/// Snapshots and their deletions until the time is over. Gives the operations, and what the daemon took after half of the time and
/// at the end.
fn work(guest: &Guest, daemon: &Daemon, minutes: f64) -> (Vec<String>, [u64; 2]) {
    let (client, vm) = (daemon.client(), guest.name());
    let begun = Instant::now();
    let long = Duration::from_secs_f64(60.0 * minutes);
    let (mut operations, mut taken) = (Vec::new(), [0, 0]);
    for round in 0.. {
        let name = format!("s{round}");
        let memory: &[&str] = if round % 2 == 0 { &["--memory"] } else { &[] };
        client.json(&[&["snapshot", "create", vm, &name], memory].concat());
        guest.exec(&format!("dd if=/dev/urandom of=/mnt/vdb/{name} bs=64k count=64 conv=fsync 2>/dev/null"));
        client.json(&["snapshot", "delete", &format!("{vm}/{name}"), "--yes"]);
        guest.exec(&format!("rm /mnt/vdb/{name}"));
        let listed = client.json(&["op", "list", vm, "--limit", "2"]);
        operations.extend(listed["operations"].as_array().unwrap().iter().map(id));
        taken[1] = process::status(daemon.id(), "RssAnon:");
        if taken[0] == 0 && begun.elapsed() > long / 2 {
            taken[0] = taken[1];
        }
        if begun.elapsed() > long {
            break;
        }
    }
    (operations, taken)
}

fn id(value: &Value) -> String {
    value["id"].as_str().unwrap().to_owned()
}

#[test]
fn a_controller_that_is_killed_again_and_again_has_everything() {
    let minutes = std::env::var("VMSNAP_CONTROLLER_MINUTES").map_or(0.4, |text| text.parse().unwrap());
    let directory = tempfile::tempdir().unwrap();
    let log: PathBuf = directory.path().join("reports.jsonl");
    let receiver = Receiver::start("127.0.0.1:0", &log);
    let guest = Guest::boot(&Spec::default());
    let configuration = format!("[controller]\nendpoint = \"http://{}\"\n", receiver.address);
    let daemon = Daemon::start_with(Setup { configuration, ..Setup::default() });
    let merge = slow_merge(&guest, &daemon, &log);
    let is_over = AtomicBool::new(false);
    let ((mut operations, taken), (_receiver, kills)) = thread::scope(|scope| {
        let trouble = scope.spawn(|| trouble(receiver, &log, &is_over));
        let worked = work(&guest, &daemon, minutes);
        is_over.store(true, Ordering::Relaxed);
        (worked, trouble.join().unwrap())
    });

    operations.push(merge);
    let all = daemon.client().json(&["event", "list", "--limit", "100000"]);
    let mut events: Vec<String> = all["events"].as_array().unwrap().iter().map(id).collect();
    events.reverse();
    let told = |items: &[Value]| -> Vec<String> {
        items.iter().map(|item| &item["event"]).filter(|event| !event.is_null()).map(id).collect()
    };
    eventually("the controller has everything", END, || {
        let items = reports::items(&log);
        (told(&items).len() >= events.len()).then_some(())
    });
    let items = reports::items(&log);
    assert_eq!(told(&items)[..events.len()], events);
    for operation in &operations {
        let states = reports::states(&items, operation);
        assert_eq!(states, ["OPERATION_STATE_RUNNING", "OPERATION_STATE_SUCCEEDED"]);
    }
    #[allow(clippy::print_stdout, reason = "what was seen is told")]
    {
        println!(
            "{} operations, {} events, {kills} kills of the controller; RssAnon of the daemon {} KiB \
             after half of the time, {} at the end",
            operations.len(),
            events.len(),
            taken[0],
            taken[1]
        );
    }
}
