//! Whether a copy gains on whoever writes to what it copies. Decides from samples alone, which carry their own times.
//! Leaves what is done about it to `plan`.
//!
//! What is left to copy is `total - done`. Writes of the guest raise `total`, copying raises `done`: over a window of time
//! one rate stands against the other.
//!
//! A copy that makes no headway for ever is told from one that is slow by [`Tracker::lost`]: the time in which it did not
//! gain, counted until less is left than ever before. As long as that has a limit, each copy ends: it gains, and then
//! what is left falls; or it does not, and then the limit comes nearer; and only a new low, of which there is a last one,
//! takes the limit back.

use std::collections::VecDeque;
use std::time::Duration;

/// A copy at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sample {
    /// Since any moment that is the same for all samples.
    pub at: Duration,
    /// Bytes copied.
    pub done: u64,
    /// Bytes to be copied in all, as far as known then.
    pub total: u64,
}

/// How a copy goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trend {
    /// It has not been seen for a whole window yet.
    Unknown,
    /// Less is left than a window ago.
    Gaining {
        /// At this pace it is over then.
        left: Duration,
    },
    /// It copies, and no less is left than a window ago.
    Behind,
    /// It has copied nothing for a window.
    Still,
}

/// Rates over the last window, in bytes per second.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pace {
    /// What is copied.
    pub copied: u64,
    /// What is written to the original, and has to be copied for that: a block that waits already counts once.
    pub written: u64,
}

/// Follows one copy.
#[derive(Debug, Clone)]
pub struct Tracker {
    window: Duration,
    /// The oldest is the newest one that is a window old; the rest are younger.
    samples: VecDeque<Sample>,
    /// The least that was ever left, in steps that are worth the name.
    low: Option<u64>,
    lost: Duration,
}

/// So much less than ever before is a new low, at least: one block of a dirty bitmap (QEMU, `block/mirror.c`).
const STEP: u64 = 64 << 10;

/// Of much, a new low is less by this part.
const STEPS: u64 = 1024;

impl Tracker {
    /// Judges by what happened within `window`.
    #[must_use]
    pub fn new(window: Duration) -> Self {
        Self { window, samples: VecDeque::new(), low: None, lost: Duration::ZERO }
    }

    /// Takes a sample in; none is older than the one before.
    pub fn take(&mut self, sample: Sample) {
        if self.samples.back().is_some_and(|last| sample.done < last.done || sample.total < last.total) {
            // Another copy. What went before was in vain, as far as it was not judged: a copy that begins anew within each
            // window has an end, too.
            if let (Trend::Unknown, Some((first, last))) = (self.trend(), self.ends()) {
                self.lost += last.at.saturating_sub(first.at);
            }
            self.restart();
        }
        if self.samples.back().is_some_and(|last| last.total <= 1 && sample.total > 1) {
            // It was not known yet how much there is (QEMU, `mirror_run`): what was judged by that is worth nothing.
            self.restart();
            self.low = None;
        }
        if let (Some(last), Trend::Behind | Trend::Still) = (self.samples.back(), self.trend()) {
            self.lost += sample.at.saturating_sub(last.at);
        }
        self.samples.push_back(sample);
        let begin = sample.at.saturating_sub(self.window);
        while self.samples.get(1).is_some_and(|second| second.at <= begin) {
            self.samples.pop_front();
        }
        let left = sample.total.saturating_sub(sample.done);
        if self.low.is_none_or(|low| left + STEP.max(low / STEPS) <= low) {
            self.low = Some(left);
            self.lost = Duration::ZERO;
        }
    }

    /// Judges by what happens from now on: something was changed. What was lost is not forgotten.
    pub fn restart(&mut self) {
        self.samples.clear();
    }

    /// The same, over another window.
    pub fn restart_with(&mut self, window: Duration) {
        self.window = window;
        self.restart();
    }

    /// How it goes.
    #[must_use]
    pub fn trend(&self) -> Trend {
        let Some((first, last)) = self.ends() else { return Trend::Unknown };
        let time = last.at.saturating_sub(first.at);
        if time < self.window {
            return Trend::Unknown;
        }
        let (moved, grown) = (last.done - first.done, last.total - first.total);
        match moved.checked_sub(grown) {
            _ if moved == 0 => Trend::Still,
            None | Some(0) => Trend::Behind,
            Some(gained) => {
                let left = u128::from(last.total.saturating_sub(last.done));
                let millis = left * time.as_millis() / u128::from(gained);
                Trend::Gaining { left: Duration::from_millis(u64::try_from(millis).unwrap_or(u64::MAX)) }
            }
        }
    }

    /// The rates, as far as there are two samples to tell them from.
    #[must_use]
    pub fn pace(&self) -> Pace {
        let Some((first, last)) = self.ends() else { return Pace::default() };
        let millis = last.at.saturating_sub(first.at).as_millis().max(1);
        let rate = |bytes: u64| u64::try_from(u128::from(bytes) * 1000 / millis).unwrap_or(u64::MAX);
        Pace { copied: rate(last.done - first.done), written: rate(last.total - first.total) }
    }

    /// For how long it has not gained since least was left.
    #[must_use]
    pub fn lost(&self) -> Duration {
        self.lost
    }

    fn ends(&self) -> Option<(Sample, Sample)> {
        let (first, last) = (self.samples.front()?, self.samples.back()?);
        (first.at < last.at).then_some((*first, *last))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MB: u64 = 1 << 20;
    const WINDOW: Duration = Duration::from_secs(10);

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// A copy with `left` bytes at first, sampled each second: what is copied and written in each.
    fn follow(left: u64, rates: impl IntoIterator<Item = (u64, u64)>) -> Tracker {
        let mut tracker = Tracker::new(WINDOW);
        let mut sample = Sample { at: Duration::ZERO, done: 0, total: left };
        tracker.take(sample);
        for (copied, written) in rates {
            sample.at += seconds(1);
            sample.total += written;
            sample.done = (sample.done + copied).min(sample.total);
            tracker.take(sample);
        }
        tracker
    }

    fn check(parts: &[(usize, u64, u64)], trend: Trend, pace: Pace, lost: Duration) {
        let rates = parts.iter().flat_map(|(count, copied, written)| vec![(*copied, *written); *count]);
        let tracker = follow(1000 * MB, rates);
        assert_eq!((tracker.trend(), tracker.pace(), tracker.lost()), (trend, pace, lost), "{parts:?}");
    }

    #[test]
    fn courses() {
        let pace = |copied, written| Pace { copied, written };
        check(&[], Trend::Unknown, pace(0, 0), Duration::ZERO);
        check(&[(9, MB, MB)], Trend::Unknown, pace(MB, MB), Duration::ZERO);
        let gaining = Trend::Gaining { left: seconds(90) };
        check(&[(10, 10 * MB, 0)], gaining, pace(10 * MB, 0), Duration::ZERO);
        let gaining = Trend::Gaining { left: seconds(990) };
        check(&[(10, 10 * MB, 9 * MB)], gaining, pace(10 * MB, 9 * MB), Duration::ZERO);
        check(&[(10, 6 * MB, 8 * MB)], Trend::Behind, pace(6 * MB, 8 * MB), Duration::ZERO);
        // Each second after the first window is lost.
        check(&[(15, 6 * MB, 8 * MB)], Trend::Behind, pace(6 * MB, 8 * MB), seconds(5));
        // As much as is copied is written: nothing is gained.
        check(&[(15, MB, MB)], Trend::Behind, pace(MB, MB), seconds(5));
        check(&[(15, 0, 0)], Trend::Still, pace(0, 0), seconds(5));
        check(&[(15, 0, MB)], Trend::Still, pace(0, MB), seconds(5));
        // It was behind for ten seconds, and is out of it: what was lost stands until less is left than ever.
        let gaining = Trend::Gaining { left: seconds(200) };
        check(
            &[(20, 5 * MB, 10 * MB), (10, 6 * MB, MB), (10, 5 * MB, 0)],
            gaining,
            pace(5 * MB, 0),
            seconds(16),
        );
        check(
            &[(20, 5 * MB, 10 * MB), (30, 5 * MB, 0)],
            Trend::Gaining { left: seconds(190) },
            pace(5 * MB, 0),
            Duration::ZERO,
        );
    }

    #[test]
    fn a_copy_that_begins_anew_is_judged_anew() {
        let mut tracker = follow(1000 * MB, vec![(MB, MB); 15]);
        tracker.take(Sample { at: seconds(16), done: 0, total: MB });
        assert_eq!((tracker.trend(), tracker.lost()), (Trend::Unknown, Duration::ZERO));
        tracker.restart();
        assert_eq!(tracker.pace(), Pace::default());
    }

    /// As long as QEMU looks for what is to be copied it says that this is nothing, or one byte.
    #[test]
    fn a_copy_whose_size_is_not_known_at_first() {
        let mut tracker = Tracker::new(WINDOW);
        let mut take = |at, done, total| tracker.take(Sample { at: seconds(at), done, total });
        take(0, 0, 0);
        take(1, 0, 1);
        for at in 2..20 {
            take(at, (at - 1) * MB, 1000 * MB);
        }
        assert!(matches!(tracker.trend(), Trend::Gaining { .. }), "{:?}", tracker.trend());
        assert_eq!(tracker.lost(), Duration::ZERO);
    }

    #[test]
    fn a_copy_that_begins_anew_within_each_window_is_lost() {
        let mut tracker = Tracker::new(WINDOW);
        for at in 0..50 {
            let done = (at % 5) * MB;
            tracker.take(Sample { at: seconds(at), done, total: 1000 * MB + done });
            assert_eq!(tracker.trend(), Trend::Unknown);
        }
        assert_eq!(tracker.lost(), seconds(9 * 4));
    }

    proptest! {
        /// Whatever a guest does, the copy ends or has lost a minute before a bound that is known beforehand. It fails if
        /// what was lost is forgotten whenever something is gained.
        #[test]
        fn no_guest_keeps_a_copy_for_ever(
            bursts in prop::collection::vec((1_u64..60, 0_u64..3 * MB), 1..12),
            left in 1..64 * MB,
        ) {
            let mut tracker = Tracker::new(WINDOW);
            let mut sample = Sample { at: Duration::ZERO, done: 0, total: left };
            tracker.take(sample);
            let seconds_of = bursts.iter().cycle().flat_map(|(length, rate)| vec![*rate; usize::try_from(*length).unwrap()]);
            for written in seconds_of.take(500_000) {
                sample.at += seconds(1);
                sample.total += written;
                sample.done = (sample.done + MB).min(sample.total);
                if sample.done == sample.total {
                    return Ok(());
                }
                tracker.take(sample);
                if tracker.lost() >= seconds(60) {
                    return Ok(());
                }
            }
            prop_assert!(false, "neither over nor lost: {:?}", tracker.trend());
        }
    }
}
