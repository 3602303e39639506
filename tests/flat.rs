//! The heap of the engine and its catalog does not grow with what was done: snapshots are taken and deleted by the thousand on
//! a simulated node. The first ones fill the catalog's cache.

#![allow(clippy::unwrap_used, reason = "a test stops where it fails")]
#![allow(clippy::print_stdout, reason = "what was seen is told")]

mod simulated;

use vmsnap::model::operation::OperationState;
use vmsnap::model::{Quiesce, Request};

use simulated::{Life, Scene};

const SNAPSHOTS: usize = 6000;
const FIRST: usize = 1000;

/// Pages that the allocator keeps, KiB.
const SLACK: u64 = 256;

#[test]
#[ignore = "it takes minutes: make flat"]
fn what_was_done_takes_no_memory() {
    let scene = Scene::forkable();
    let life = Life::start(&scene);
    let done = |request: Request| {
        let id = life.begin(request, || false).unwrap().unwrap();
        assert_eq!(life.run(id, || false).unwrap().cursor.state, OperationState::Succeeded);
    };
    let mut after_first = u64::MAX;
    for number in 1..=SNAPSHOTS {
        let name = format!("s{number}");
        done(scene.create(&name, Quiesce::Auto, number % 3 == 0, &[]));
        done(scene.delete(&[&name]));
        // The simulated node remembers each call.
        scene.sim.reset_script();
        if number == FIRST {
            after_first = anonymous_kib();
        }
        if number % 500 == 0 {
            println!("after {number} snapshots: {} KiB", anonymous_kib());
        }
    }
    let last = anonymous_kib();
    assert!(last <= after_first + SLACK, "{after_first} KiB after {FIRST}, {last} KiB after {SNAPSHOTS}");
}

/// What no file holds: heap and stacks.
fn anonymous_kib() -> u64 {
    let told = std::fs::read_to_string("/proc/self/status").unwrap();
    let found = told.lines().find_map(|row| row.strip_prefix("RssAnon:")).unwrap();
    found.split_whitespace().next().unwrap().parse().unwrap()
}
