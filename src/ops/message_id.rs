//! What kinds of lines are known by in the journal (`MESSAGE_ID`): the same in every version, so that rules can go by them.
//!
//! `systemd/vmsnapd.catalog` explains each, for `journalctl -x`.

use crate::model::event::EventKind;

/// A call that may change something was let through.
pub const CALL_ADMITTED: &str = "44d8333e7f3049a48cdd977b0a848ef2";

/// A call or a connection was refused.
pub const CALL_REFUSED: &str = "ebd665e74d3445ee95b31dd8930a3ec7";

/// Of an event.
#[must_use]
pub fn of_event(kind: EventKind) -> &'static str {
    match kind {
        EventKind::SnapshotStateChanged => "1d23ce9056964e038a96a7f80ca15a1e",
        EventKind::SnapshotUpdated => "af98a4dfd7ec4d1d8cd8459028f9cea9",
        EventKind::SnapshotCommented => "26eaef22123b46b49b3a316e1575c909",
        EventKind::SnapshotHeld => "8ae5dc4c885d479a84f26fde70f31e35",
        EventKind::SnapshotExpired => "2ad1a93c14e445a0904939dac3e34a24",
        EventKind::OperationStateChanged => "eeed9b2917724d538b592098c8b3f539",
        EventKind::OperationSteered => "27d150b07d214806abc6e7b96dc31431",
        EventKind::MergeNotConverging => "e30ce96f119f47fa8e6fbcc1a969ae57",
        EventKind::GuestFrozen => "be9a25932e0a4e3c9a9a996f3966e56e",
        EventKind::GuestThawed => "d885d1e3bd77472b90149fa6aaabb4e5",
        EventKind::SpaceLow => "cc0ac43a4ca140999ca55279008c5f2c",
        EventKind::VmOutOfSpace => "3e2131f1955d443aad9aaa14dfc45a68",
        EventKind::ScheduleRun => "6c52f3ac59f0477b8ccb1f6a3e7d90b4",
        EventKind::ScheduleMissed => "f1a2b0d64e7c4a0f9d2be1c55a8f7e31",
        EventKind::SchedulePruned => "0d9be0a1c1c8424fb3d37f6c42f5e8a6",
        EventKind::ScheduleUpdated => "b7e4cf6e52d94c51a8c0e9d1137a2f95",
        EventKind::VolumeStateChanged => "0abfed96025247ff8156b6f5ee5ab7c9",
        EventKind::VmArrived => "44bc0821dad94c7980c318ecf37d3ef6",
        EventKind::VmLeft => "2eb4f912952445a8b4179feadb74656e",
        EventKind::VmDifference => "afbe1ee4b4784847a79682315f900b56",
        EventKind::DaemonStarted => "e63d92654e7b4fed80f48d97773b83a4",
        EventKind::DaemonStopping => "745166eded5345988ba7e6fe51f55d92",
        EventKind::OutboxDropped => "8209b5f717cd4d2689699747c0f6a52f",
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    const CATALOG: &str = include_str!("../../systemd/vmsnapd.catalog");

    #[test]
    fn each_is_explained() {
        let explained: Vec<&str> = CATALOG.lines().filter_map(|line| line.strip_prefix("-- ")).collect();
        let known: BTreeSet<&str> =
            EventKind::ALL.into_iter().map(of_event).chain([CALL_ADMITTED, CALL_REFUSED]).collect();
        assert_eq!(explained.len(), known.len(), "one of them stands twice");
        assert_eq!(explained.into_iter().collect::<BTreeSet<_>>(), known);
        for id in known {
            assert!(
                id.len() == 32 && id.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')),
                "{id}"
            );
        }
    }
}
