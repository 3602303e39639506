//! What a hypervisor lets a guest read from a disk and write to it. Decides what is left of the limits that a person has
//! set when the writes are slowed further. Must never know why they are.

use serde::{Deserialize, Serialize};

/// The limits on one disk.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IoLimits {
    /// In bytes per second.
    pub bytes: Directions,
    /// In operations per second.
    pub operations: Directions,
    /// Bytes that count as one operation; 0 for any number.
    pub operation_bytes: u64,
    /// Other disks share the limits under this name.
    pub group: Option<String>,
}

/// Limits on both directions together, or on each.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Directions {
    /// Reads and writes together. If it is set, the others are not.
    pub both: Limit,
    /// Reads.
    pub read: Limit,
    /// Writes.
    pub write: Limit,
}

/// One limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limit {
    /// Per second; 0 for no limit.
    pub rate: u64,
    /// Per second in a burst; 0 for no burst.
    pub burst: u64,
    /// Longest burst in seconds; 0 if there is none.
    pub burst_seconds: u64,
}

impl IoLimits {
    /// The same, but for writes: at most `rate` bytes per second, without bursts. A limit that is lower already stays.
    ///
    /// A limit on both directions together cannot stand beside one on writes (libvirt, `virDomainSetBlockIoTune`): it goes
    /// on for the reads.
    #[must_use]
    pub fn with_writes_at_most(&self, rate: u64) -> Self {
        let mut slowed = self.clone();
        let Directions { both, write, .. } = self.bytes;
        if both.rate > 0 {
            slowed.bytes.read = both;
            slowed.bytes.both = Limit::default();
        }
        let allowed = [both.rate, write.rate].into_iter().filter(|rate| *rate > 0);
        let rate = allowed.fold(rate, u64::min);
        slowed.bytes.write = Limit { rate, ..Limit::default() };
        slowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(rate: u64) -> Limit {
        Limit { rate, ..Limit::default() }
    }

    fn check(before: Directions, rate: u64, expected: Directions) {
        let operations = Directions { both: limit(77), ..Directions::default() };
        let limits = |bytes| IoLimits { bytes, operations, operation_bytes: 5, group: None };
        assert_eq!(limits(before).with_writes_at_most(rate), limits(expected), "{before:?} at most {rate}");
    }

    #[test]
    fn writes_are_slowed_and_nothing_else() {
        let none = Directions::default();
        let burst = Limit { rate: 50, burst: 60, burst_seconds: 3 };
        check(none, 10, Directions { write: limit(10), ..none });
        check(
            Directions { read: limit(7), write: burst, ..none },
            10,
            Directions { read: limit(7), write: limit(10), ..none },
        );
        check(Directions { both: burst, ..none }, 10, Directions { read: burst, write: limit(10), ..none });
        check(
            Directions { both: limit(5), ..none },
            10,
            Directions { read: limit(5), write: limit(5), ..none },
        );
        check(Directions { write: limit(4), ..none }, 10, Directions { write: limit(4), ..none });
    }
}
