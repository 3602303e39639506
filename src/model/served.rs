//! What a disk has served its guest, and how long the guest waits for it. Decides which kind of request tells. Must never
//! know what else the disk is busy with.

use std::time::Duration;

/// What a disk has served since the VM's process began. Counters of the process: they never go back while it lives.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Served {
    /// Reads.
    pub reads: Requests,
    /// Writes.
    pub writes: Requests,
    /// Flushes: what a guest waits for before it calls anything durable.
    pub flushes: Requests,
}

/// Requests of one kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Requests {
    /// So many were served.
    pub count: u64,
    /// What they took together, each from when it came to when it was answered.
    pub time: Duration,
}

impl Served {
    /// How many requests were served since `before`.
    #[must_use]
    pub fn count_since(&self, before: &Self) -> u64 {
        self.kinds_since(before).map(|since| since.count).iter().sum()
    }

    /// How long a request took since `before`: the mean of the kind that took longest. A guest that writes through a cache
    /// waits for its flushes, however short its writes are. None if there were no requests.
    #[must_use]
    pub fn wait_since(&self, before: &Self) -> Option<Duration> {
        self.kinds_since(before).into_iter().filter_map(Requests::mean).max()
    }

    fn kinds_since(&self, before: &Self) -> [Requests; 3] {
        [self.reads.since(before.reads), self.writes.since(before.writes), self.flushes.since(before.flushes)]
    }
}

impl Requests {
    /// Nothing if it is less than `before`: then another process counts.
    fn since(self, before: Self) -> Self {
        match (self.count.checked_sub(before.count), self.time.checked_sub(before.time)) {
            (Some(count), Some(time)) => Self { count, time },
            _ => Self::default(),
        }
    }

    fn mean(self) -> Option<Duration> {
        let nanos = self.time.as_nanos().checked_div(u128::from(self.count))?;
        Some(Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn requests(count: u64, millis: u64) -> Requests {
        Requests { count, time: Duration::from_millis(millis) }
    }

    #[test]
    fn waits() {
        let before = Served { reads: requests(10, 100), writes: requests(5, 10), flushes: requests(1, 1000) };
        let check = |now: Served, count, wait: Option<u64>| {
            assert_eq!(now.count_since(&before), count, "{now:?}");
            assert_eq!(now.wait_since(&before), wait.map(Duration::from_millis), "{now:?}");
        };
        check(before, 0, None);
        check(Served { reads: requests(20, 120), ..before }, 10, Some(2));
        // Many short writes do not hide one long flush.
        let flushed = Served { writes: requests(105, 110), flushes: requests(2, 1050), ..before };
        check(flushed, 101, Some(50));
        // Another process counts anew.
        check(Served { reads: requests(3, 3), ..before }, 0, None);
    }
}
