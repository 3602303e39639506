//! What to do about a merge that the guest outruns: first its writes are slowed, step by step, then the merge is ended.
//!
//! ```text
//!            outrun for as long as the patience lasts          outrun, or standing still, for too long in all
//!   guest writes freely ------> half of what is copied ------> merge ended
//!                                  |            ^      ^
//!                                  +--> half ---+      |  not below the floor; a host that cannot slow
//!                                       of it          +--------- waits for the deadline
//! ```
//! Halves, because a small write makes a whole block of the bitmap be copied: how many bytes a guest may write for a merge
//! to gain cannot be computed, only tried.

use std::time::Duration;

use crate::model::convergence::{Pace, Tracker, Trend};

/// How long merges may be outrun. An operator says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MergePolicy {
    /// For so long a merge is watched before it is said to be outrun, and before the guest is slowed again.
    pub patience: Duration,
    /// After so long without headway a merge is ended.
    pub deadline: Duration,
    /// The writes of no guest are slowed below this, in bytes per second. 0: no guest is slowed.
    pub slowest_writes: u64,
}

/// A limited block job copies so many bytes at once and then pauses (QEMU, `DEFAULT_MIRROR_BUF_SIZE`).
const BURST: u64 = 16 << 20;

impl MergePolicy {
    /// For how long a merge that copies at most `bandwidth` bytes per second is watched before it is judged: as patience
    /// has it, and through two bursts at least, for between two nothing is copied; but never for longer than the deadline.
    #[must_use]
    pub fn window(&self, bandwidth: Option<u64>) -> Duration {
        let bursts = bandwidth.map(|bandwidth| Duration::from_millis(2000 * BURST / bandwidth.max(1)));
        self.patience.max(bursts.unwrap_or_default().min(self.deadline))
    }
}

/// How the guest may write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Writes {
    /// As it was before.
    Free,
    /// At most so many bytes per second.
    AtMost(u64),
    /// The host cannot slow it.
    NotToBeSlowed,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Move {
    /// Nothing.
    GoOn,
    /// Let the guest write so many bytes per second at most.
    Slow(u64),
    /// End the merge.
    End,
}

/// The next move.
#[must_use]
pub fn next(policy: &MergePolicy, tracker: &Tracker, writes: Writes) -> Move {
    decide(policy, tracker.trend(), tracker.pace(), tracker.lost(), writes)
}

fn decide(policy: &MergePolicy, trend: Trend, pace: Pace, lost: Duration, writes: Writes) -> Move {
    if lost >= policy.deadline {
        return Move::End;
    }
    // Slower writes help nobody whose copy stands still.
    if trend != Trend::Behind || policy.slowest_writes == 0 {
        return Move::GoOn;
    }
    let half = pace.copied / 2;
    match writes {
        Writes::Free => Move::Slow(half.max(policy.slowest_writes)),
        Writes::AtMost(limit) if limit > policy.slowest_writes => {
            Move::Slow(half.min(limit / 2).max(policy.slowest_writes))
        }
        Writes::AtMost(_) | Writes::NotToBeSlowed => Move::GoOn,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: MergePolicy = MergePolicy {
        patience: Duration::from_secs(10),
        deadline: Duration::from_secs(100),
        slowest_writes: 20,
    };

    fn check(trend: Trend, lost: u64, writes: Writes, expected: Move) {
        let pace = Pace { copied: 100, written: 200 };
        let lost = Duration::from_secs(lost);
        assert_eq!(decide(&POLICY, trend, pace, lost, writes), expected, "{trend:?} {lost:?} {writes:?}");
        let never = MergePolicy { slowest_writes: 0, ..POLICY };
        let expected = if matches!(expected, Move::Slow(_)) { Move::GoOn } else { expected };
        assert_eq!(decide(&never, trend, pace, lost, writes), expected, "no guest is slowed");
    }

    #[test]
    fn moves() {
        let gaining = Trend::Gaining { left: Duration::from_secs(1) };
        for quiet in [Trend::Unknown, gaining, Trend::Still] {
            check(quiet, 99, Writes::Free, Move::GoOn);
            check(quiet, 100, Writes::Free, Move::End);
        }
        check(Trend::Behind, 0, Writes::Free, Move::Slow(50));
        check(Trend::Behind, 0, Writes::AtMost(80), Move::Slow(40));
        check(Trend::Behind, 0, Writes::AtMost(200), Move::Slow(50));
        check(Trend::Behind, 0, Writes::AtMost(30), Move::Slow(20));
        check(Trend::Behind, 0, Writes::AtMost(20), Move::GoOn);
        check(Trend::Behind, 0, Writes::NotToBeSlowed, Move::GoOn);
        check(Trend::Behind, 100, Writes::AtMost(30), Move::End);
    }

    #[test]
    fn a_limited_job_is_watched_for_longer() {
        assert_eq!(POLICY.window(None), POLICY.patience);
        assert_eq!(POLICY.window(Some(100 << 20)), POLICY.patience);
        assert_eq!(POLICY.window(Some(1 << 20)), Duration::from_secs(32));
        assert_eq!(POLICY.window(Some(0)), POLICY.deadline, "no limit puts that off");
    }

    /// However often it is asked, the limit reaches the floor, and there it stays.
    #[test]
    fn the_floor_is_reached_and_kept() {
        let pace = Pace { copied: u64::MAX, written: u64::MAX };
        let mut writes = Writes::Free;
        for _ in 0..64 {
            if let Move::Slow(limit) = decide(&POLICY, Trend::Behind, pace, Duration::ZERO, writes) {
                writes = Writes::AtMost(limit);
            }
        }
        assert_eq!(writes, Writes::AtMost(POLICY.slowest_writes));
    }
}
