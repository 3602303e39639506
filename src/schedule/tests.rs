//! Where in a run each VM has its place.

use std::collections::BTreeSet;

use uuid::Uuid;

use super::clock::place;
use crate::model::{Schedule, ScheduleId, VmId};

const JITTER_MS: u64 = 600_000;

fn schedule(name: &str, jitter_ms: u64) -> Schedule {
    let wish = serde_json::json!({
        "id": "01961e4c-7d2a-7c5e-8c0f-0123456789ab",
        "name": name,
        "description": "",
        "selector": { "vms": [], "labels": {}, "account": "", "all": true },
        "template": {
            "name": "{schedule}-{time}", "description": "", "disks": [], "memory": false, "quiesce": "auto",
            "mount_points": [], "owner": { "account": "", "domain": "", "project": "" }, "properties": {},
        },
        "timing": {
            "cron": "0 3 * * *", "zone": "UTC", "jitter_ms": jitter_ms, "blackouts": [], "catch_up": "once",
        },
        "retention": {
            "last": 1, "hourly": 0, "daily": 0, "weekly": 0, "monthly": 0, "yearly": 0, "within_ms": 0,
            "minimum": 0,
        },
        "limits": { "snapshots": 0, "bytes": 0, "free_bytes": 0, "chain_depth": 0 },
        "is_paused": false,
        "created_at": "2026-01-01T00:00:00Z",
        "created_by": "test",
        "generation": 1,
    });
    serde_json::from_value(wish).unwrap()
}

/// In each life of the daemon, in each version of it, and whatever either of them is called: it has no name of a VM to go by.
#[test]
fn each_vm_has_always_the_same_place() {
    let vm = VmId("6f1c1c50-2b3a-4a52-9c7e-0a1b2c3d4e5f".parse().unwrap());
    for name in ["nightly", "renamed"] {
        assert_eq!(place(&schedule(name, JITTER_MS), vm), 59_856);
    }
    assert_eq!(place(&schedule("nightly", 0), vm), 0, "all at once");
    assert_eq!(place(&schedule("nightly", 1), vm), 0);
    let other = Schedule { id: ScheduleId::new(), ..schedule("nightly", u64::MAX) };
    assert_ne!(place(&other, vm), place(&schedule("nightly", u64::MAX), vm), "another in another schedule");
}

/// Within the jitter, and all over it.
#[test]
fn places_are_spread_over_the_jitter() {
    let schedule = schedule("nightly", JITTER_MS);
    let places = (0..1000).map(|vm| place(&schedule, VmId(Uuid::from_u128(vm))));
    let tenths: BTreeSet<u64> = places.map(|place| place * 10 / JITTER_MS).collect();
    assert_eq!(tenths, (0..10).collect());
}
