//! A schedule on a real guest: it takes, keeps and prunes by its policy, goes on with a run that was cut off, makes up for a
//! downtime with one run, and does what its preview says. What people took stays what it was.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::bed::{Client, Daemon, Guest, Spec, eventually, wait_until};

/// In so many seconds there is another run.
const PERIOD: u64 = 5;

/// A run freezes a guest, and merges: under TCG, beside others.
const PATIENCE: Duration = Duration::from_secs(120);

struct Scheduled {
    guest: Guest,
    daemon: Daemon,
}

impl Scheduled {
    fn client(&self) -> Client {
        self.daemon.client()
    }

    /// The runs, newest first.
    fn runs(&self) -> Vec<Value> {
        self.client().json(&["schedule", "runs", "often"])["runs"].as_array().unwrap().clone()
    }

    fn ended(&self) -> usize {
        self.runs().iter().filter(|run| state(run) != "RUNNING").count()
    }

    /// Names of the schedule's snapshots.
    fn snapshots(&self) -> BTreeSet<String> {
        let list = self.client().json(&["snapshot", "list", self.guest.name()]);
        let of_schedule =
            |snapshot: &&Value| !snapshot["schedule_id"].as_str().unwrap_or_default().is_empty();
        let snapshots = list["snapshots"].as_array().unwrap().iter().filter(of_schedule);
        snapshots.map(|snapshot| snapshot["name"].as_str().unwrap().to_owned()).collect()
    }

    /// What the preview says will go.
    fn doomed(&self) -> BTreeSet<String> {
        let preview = self.client().json(&["schedule", "preview", "often"]);
        let decisions = preview["decisions"].as_array().cloned().unwrap_or_default();
        let goes = decisions.iter().filter(|decision| decision["keep"].as_bool() != Some(true));
        goes.map(|decision| decision["snapshot_name"].as_str().unwrap().to_owned()).collect()
    }

    fn count(&self, kind: &str) -> u64 {
        let events = self.client().json(&["event", "list", "--limit", "100000"]);
        let events = events["events"].as_array().cloned().unwrap_or_default();
        let kind = format!("EVENT_KIND_{kind}");
        let of_kind = events.iter().filter(|event| event["kind"] == kind.as_str());
        let count =
            |event: &Value| event["attributes"]["count"].as_str().map_or(1, |count| count.parse().unwrap());
        of_kind.map(count).sum()
    }
}

fn state(run: &Value) -> &str {
    run["state"].as_str().unwrap().trim_start_matches("SCHEDULE_RUN_STATE_")
}

#[test]
fn a_schedule_takes_keeps_and_prunes_and_survives_kills_and_downtime() {
    let guest = Guest::boot(&Spec::default());
    let daemon = Daemon::start();
    let mut node = Scheduled { guest, daemon };
    let name = node.guest.name().to_owned();
    node.guest.write_file("/mnt/vdb/mine", b"mine");
    node.client().json(&["snapshot", "create", &name, "mine", "--quiesce", "required"]);
    node.guest.write_file("/mnt/vdb/later", b"later");
    let cron = format!("*/{PERIOD} * * * * *");
    // Required: where the kill falls into a freeze, the take is undone, and taken again.
    let often = ["--vm", &name, "--keep-last", "3", "--quiesce", "required"];
    node.client().json(&[&["schedule", "create", "often", "--cron", &cron], &often[..]].concat());

    // It takes and prunes; one that is held stays.
    let held = eventually("it has taken one", PATIENCE, || node.snapshots().pop_first());
    node.client().json(&["snapshot", "hold", &format!("{name}/{held}"), "audit"]);
    wait_until("it has pruned", PATIENCE, || node.count("SCHEDULE_PRUNED") >= 2);
    assert!(node.snapshots().contains(&held), "it is held");

    // Killed in the middle of a run, and away for some more of them.
    wait_until("a run is going", PATIENCE, || node.runs().first().is_some_and(|run| state(run) == "RUNNING"));
    node.daemon.kill();
    let killed = Instant::now();
    wait_until("some runs are due", PATIENCE, || killed.elapsed() > 3 * Duration::from_secs(PERIOD));
    node.daemon.restart();
    let before = node.runs().len();
    wait_until("what was missed is told", PATIENCE, || {
        let events = node.client().json(&["event", "list", "--limit", "100000"]).to_string();
        events.contains("nobody was there to begin them")
    });
    wait_until("and made up for", PATIENCE, || node.ended() > before);
    node.client().json(&["schedule", "pause", "often"]);
    wait_until("all runs have ended", PATIENCE, || node.ended() == node.runs().len());
    let runs = node.runs();
    let failed: Vec<&Value> = runs.iter().filter(|run| state(run) != "SUCCEEDED").collect();
    assert!(failed.is_empty(), "{failed:?}");
    let due: BTreeSet<&str> = runs.iter().map(|run| run["due_time"].as_str().unwrap()).collect();
    assert_eq!(due.len(), runs.len(), "one was begun twice");
    let taken = runs.iter().map(|run| run["vms"][0]["snapshot_id"].as_str().unwrap().to_owned());
    assert_eq!(taken.collect::<BTreeSet<_>>().len(), runs.len(), "each has taken one of its own");

    // The preview is what a run then does.
    node.client().json(&["schedule", "set", "often", "--keep-last", "1"]);
    let mut went = 0;
    for _ in 0..3 {
        let (before, doomed) = (node.snapshots(), node.doomed());
        node.client().json(&["schedule", "run", "often"]);
        let after = node.snapshots();
        assert_eq!(before.difference(&after).cloned().collect::<BTreeSet<_>>(), doomed);
        assert_eq!(after.difference(&before).count(), 1, "and it has taken another");
        went += doomed.len();
    }
    assert!(went >= 3, "{went} went");
    assert!(node.snapshots().contains(&held));
    assert_eq!(node.snapshots().len(), 2, "the last, and the one that is held");

    // What a person took holds what it held.
    node.client().json(&["snapshot", "revert", &format!("{name}/mine"), "--yes"]);
    node.guest.wait_until_up();
    assert!(node.guest.has_file("/mnt/vdb/mine") && !node.guest.has_file("/mnt/vdb/later"));
}
