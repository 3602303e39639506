//! How fast a merge may copy for its guest not to notice: slowly at first, faster as long as the guest does not wait long for
//! the disk, slower when it does.
//!
//! Decides from samples alone, which carry their own times. Leaves to `convergence` what is done about a guest that writes more
//! than is copied: a merge that loses is never held back.
//!
//! ```text
//!            no long waits: twice as fast
//!             +------+
//!             v      |      it copies less than it may
//!        starting ---+-----------------------------------> free --+
//!         ^   |                                             ^     |
//!         |   +---- the guest waits too long ----> held <---|-----+
//!         |                                        | ^ |    |
//!         |          it still does: half of it, ---+ | |    |  as fast as before
//!         |          never below the floor           | |    |
//!         |                                          | +----+
//!         |   hardly any waits: a quarter more ------+ |
//!         +--------------------------------------------+
//!            no better at an eighth: so long it waits anyway, and twice that is too long
//!
//!   all but what somebody else has limited: the guest cannot be asked, or the merge loses to it
//!       --> resting, as fast as it can --> free
//! ```

use std::time::Duration;

use crate::model::served::Served;

/// When merges are held back. An operator says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpeedPolicy {
    /// A merge is held back while a request of the guest takes longer than this. Zero: none is.
    pub longest_wait: Duration,
    /// No merge is held back below this, in bytes per second.
    pub slowest: u64,
}

/// A merge and its guest at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Glance {
    /// Since any moment that is the same for all.
    pub at: Duration,
    /// Bytes copied.
    pub done: u64,
    /// Bytes to be copied in all, as far as known then.
    pub total: u64,
    /// What the disk has served its guest.
    pub served: Served,
}

/// How fast a merge may copy.
#[derive(Debug, Clone)]
pub struct Speed {
    policy: SpeedPolicy,
    state: State,
    /// Where the present window began.
    begin: Option<Glance>,
    /// How long the guest waits however little is copied, if that is too long already; and until when that is believed.
    usual: Option<(Duration, Duration)>,
    /// When a glance was last taken in.
    last: Option<Duration>,
    wait: Option<Duration>,
    /// It waited too long in the window before.
    was_too_long: bool,
    /// It has asked for something since the merge began.
    has_asked: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Held to so many bytes per second, to see what the guest makes of it.
    Starting {
        to: u64,
    },
    Free,
    /// It is not held back before this time.
    Resting {
        until: Duration,
    },
    Held {
        /// To so many bytes per second.
        to: u64,
        /// What it copied when the guest waited too long.
        free: u64,
        /// How long the guest waited then.
        waited: Duration,
    },
    /// Somebody else has said how fast.
    LetAlone,
}

/// A merge begins with this, in bytes per second: less than any storage notices.
const START: u64 = 64 << 20;

/// A window is no shorter than this, ...
const WINDOW: Duration = Duration::from_secs(1);

/// ... and so many requests tell enough; after this time fewer do, and none say that the guest asks for nothing.
const REQUESTS: u64 = 8;
const LONG_WINDOW: Duration = Duration::from_secs(5);

/// A limited block job copies so many bytes at once and then pauses (QEMU, `DEFAULT_MIRROR_BUF_SIZE`): two of these are a window,
/// too, unless that is far too long.
const BURST: u64 = 16 << 20;
const LONGEST_WINDOW: Duration = Duration::from_secs(30);

/// What was found out is believed for so long.
const REST: Duration = Duration::from_secs(60);

/// Slower copies have to show by this part of the speed.
const TRIED_DOWN_TO: u64 = 8;

impl Speed {
    /// Of a merge that begins.
    #[must_use]
    pub fn new(policy: SpeedPolicy) -> Self {
        let to = START.max(policy.slowest);
        let state = if policy.longest_wait.is_zero() { State::Free } else { State::Starting { to } };
        Self {
            policy,
            state,
            begin: None,
            usual: None,
            last: None,
            wait: None,
            was_too_long: false,
            has_asked: false,
        }
    }

    /// Most bytes per second; None for no limit.
    #[must_use]
    pub fn limit(&self) -> Option<u64> {
        match self.state {
            State::Free | State::Resting { .. } | State::LetAlone => None,
            State::Starting { to } | State::Held { to, .. } => Some(to),
        }
    }

    /// What it is held to because the guest waits too long, in bytes per second.
    #[must_use]
    pub fn held(&self) -> Option<u64> {
        matches!(self.state, State::Held { .. }).then(|| self.limit()).flatten()
    }

    /// How long a request of the guest took in the last window, as far as it is known.
    #[must_use]
    pub fn wait(&self) -> Option<Duration> {
        self.wait
    }

    /// Whether a glance at this time could tell anything.
    #[must_use]
    pub fn wants(&self, at: Duration) -> bool {
        if self.policy.longest_wait.is_zero() || self.is_let_alone() {
            return false;
        }
        let is_past =
            |since: Option<Duration>, time| since.is_none_or(|since| at.saturating_sub(since) >= time);
        is_past(self.last, WINDOW) && is_past(self.begin.map(|begin| begin.at), self.window())
    }

    /// Takes a glance in; none is older than the one before.
    pub fn take(&mut self, now: Glance) {
        if !self.wants(now.at) {
            return;
        }
        self.last = Some(now.at);
        let Some(begin) = self.begin else {
            self.begin = Some(now);
            return;
        };
        let time = now.at.saturating_sub(begin.at);
        // One that has asked for nothing yet has little to lose.
        let few = if self.has_asked { 0..REQUESTS } else { 1..REQUESTS };
        if few.contains(&now.served.count_since(&begin.served)) && time < LONG_WINDOW {
            return;
        }
        self.begin = Some(now);
        self.wait = now.served.wait_since(&begin.served);
        self.has_asked |= self.wait.is_some();
        if self.wait.is_none() && std::mem::take(&mut self.was_too_long) {
            // It may wait for one and the same request all the time.
            return;
        }
        let rate = |from: u64, to: u64| {
            let millis = time.as_millis().max(1);
            u64::try_from(u128::from(to.saturating_sub(from)) * 1000 / millis).unwrap_or(u64::MAX)
        };
        // What the guest writes has to be copied, too, and twice as fast.
        let floor = self.policy.slowest.max(rate(begin.total, now.total).saturating_mul(2));
        self.usual = self.usual.filter(|(_, until)| now.at < *until);
        self.step(now.at, rate(begin.done, now.done), floor);
    }

    /// The merge goes as fast as it can for a while: it loses to the guest, or how long the guest waits for it is not known.
    pub fn rest(&mut self, at: Duration) {
        if !self.is_let_alone() {
            (self.state, self.begin, self.last) = (State::Resting { until: at + REST }, None, Some(at));
        }
    }

    /// Somebody else has said how fast the merge may copy: that is none of ours any more.
    pub fn let_alone(&mut self) {
        self.state = State::LetAlone;
    }

    /// Whether somebody else has said how fast the merge may copy.
    #[must_use]
    pub fn is_let_alone(&self) -> bool {
        self.state == State::LetAlone
    }

    /// What comes of a window in which so many bytes per second were copied.
    fn step(&mut self, at: Duration, copied: u64, floor: u64) {
        let usual = self.usual.map(|(usual, _)| usual).unwrap_or_default();
        let longest = self.policy.longest_wait.max(usual * 2);
        let too_long = self.wait.filter(|wait| *wait > longest);
        self.was_too_long = too_long.is_some();
        self.state = match (self.state, too_long) {
            (State::LetAlone, _) => return,
            (State::Resting { until }, _) if at < until => return,
            (State::Free | State::Resting { .. }, None) => State::Free,
            (State::Starting { to }, None) if copied < to / 2 => State::Free,
            (State::Starting { to }, None) => State::Starting { to: to.saturating_mul(2) },
            (State::Free | State::Resting { .. }, Some(_)) if copied <= floor => State::Free,
            (State::Starting { .. } | State::Free | State::Resting { .. }, Some(waited)) => {
                State::Held { to: (copied / 2).max(floor), free: copied.max(floor), waited }
            }
            (State::Held { to, free, waited }, Some(wait)) => {
                let is_tried = to <= free / TRIED_DOWN_TO || (to <= floor && floor <= free / 2);
                // A quarter of it has to be gone.
                if is_tried && wait > waited / 4 * 3 {
                    self.usual = Some((wait, at + REST));
                    State::Starting { to: free.max(floor) }
                } else {
                    State::Held { to: (to.min(copied) / 2).max(floor), free, waited }
                }
            }
            (State::Held { to, free, waited }, None) => {
                if self.wait.is_some_and(|wait| wait > longest / 2) {
                    State::Held { to: to.max(floor), free, waited }
                } else {
                    let raised = to.saturating_add(to / 4).max(floor);
                    if raised >= free { State::Free } else { State::Held { to: raised, free, waited } }
                }
            }
        };
    }

    fn window(&self) -> Duration {
        let bursts = self.limit().map(|limit| Duration::from_millis(2000 * BURST / limit.max(1)));
        WINDOW.max(bursts.unwrap_or_default().min(LONGEST_WINDOW))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::served::Requests;

    const MB: u64 = 1 << 20;
    const POLICY: SpeedPolicy = SpeedPolicy { longest_wait: Duration::from_millis(30), slowest: 16 * MB };

    /// A disk whose guest sends ten requests a second, each of which takes as long as the speed of the merge says.
    struct Disk {
        speed: Speed,
        at: u64,
        glance: Glance,
    }

    impl Disk {
        fn new(policy: SpeedPolicy) -> Self {
            let glance = Glance { at: Duration::ZERO, done: 0, total: 1 << 40, served: Served::default() };
            let mut speed = Speed::new(policy);
            speed.take(glance);
            Self { speed, at: 0, glance }
        }

        /// Lets seconds pass: the merge copies 400 MiB in each, or what it is held to; the guest writes `written`.
        fn pass(&mut self, seconds: u64, written: u64, wait: impl Fn(u64) -> Option<u64>) {
            for _ in 0..seconds {
                let copied = self.speed.limit().unwrap_or(u64::MAX).min(400 * MB);
                self.at += 1;
                self.glance.at = Duration::from_secs(self.at);
                self.glance.done += copied;
                self.glance.total += written;
                if let Some(wait) = wait(copied) {
                    let flushes = &mut self.glance.served.flushes;
                    *flushes = Requests {
                        count: flushes.count + 10,
                        time: flushes.time + Duration::from_millis(10 * wait),
                    };
                }
                self.speed.take(self.glance);
            }
        }
    }

    #[track_caller]
    fn check(seconds: u64, written: u64, wait: impl Fn(u64) -> Option<u64>, expected: Option<u64>) {
        let mut disk = Disk::new(POLICY);
        disk.pass(seconds, written, wait);
        assert_eq!(disk.speed.limit(), expected.map(|mb| mb * MB));
    }

    #[test]
    fn speeds() {
        // It begins slowly, and is let go in steps.
        check(0, 0, |_| Some(30), Some(64));
        check(1, 0, |_| Some(30), Some(128));
        check(3, 0, |_| None, Some(512));
        check(30, 0, |_| Some(30), None);
        check(1, 0, |_| Some(31), Some(32));
        // The more is copied the longer it waits: it is held to what lets it wait a little.
        let by_speed = |copied| Some(copied / (4 * MB));
        check(2, 0, by_speed, Some(64));
        check(60, 0, by_speed, Some(64));
        // Never below the floor, if that is better than nothing.
        check(60, 0, |copied| Some(31 + copied / (4 * MB)), Some(16));
        // Nothing helps: so long it waits anyway.
        check(30, 0, |_| Some(100), None);
        // But not so long.
        let by_speed = |copied: u64| Some(100 + (copied / MB).saturating_sub(100));
        check(60, 0, by_speed, Some(128));
        // The guest writes much: what it writes is copied twice as fast.
        check(1, 150 * MB, |_| Some(31), Some(300));
        // Half of what it copied: one that copies less than it may is not held by that.
        check(2, 0, |_| Some(31), Some(16));
    }

    #[test]
    fn a_merge_is_let_go_again() {
        let mut disk = Disk::new(POLICY);
        disk.pass(10, 0, |_| None);
        assert_eq!(disk.speed.limit(), None);
        disk.pass(1, 0, |_| Some(31));
        let held = Some(200 * MB);
        assert_eq!(disk.speed.limit(), held, "half of what it copied");
        disk.pass(1, 0, |_| Some(20));
        assert_eq!(disk.speed.limit(), held, "neither too long nor short");
        assert_eq!(disk.speed.wait(), Some(Duration::from_millis(20)));
        disk.pass(1, 0, |_| Some(15));
        assert_eq!(disk.speed.limit(), Some(250 * MB));
        // The guest asks for nothing: after five seconds that is known.
        disk.pass(20, 0, |_| None);
        assert_eq!(disk.speed.limit(), None);
        disk.pass(1, 0, |_| Some(31));
        assert_eq!((disk.speed.limit(), disk.speed.held()), (held, held));
        disk.speed.rest(Duration::from_secs(disk.at));
        disk.pass(59, 0, |_| Some(31));
        assert_eq!(disk.speed.limit(), None, "it rests");
        disk.pass(1, 0, |_| Some(31));
        assert_eq!(disk.speed.limit(), held);
        disk.speed.let_alone();
        disk.speed.rest(Duration::ZERO);
        assert!(disk.speed.is_let_alone(), "somebody else has said how fast");
        disk.pass(99, 0, |_| Some(100));
        assert_eq!(disk.speed.limit(), None);
    }

    /// One that waits for the same request all the time is not served any: that is no idleness.
    #[test]
    fn a_guest_that_is_served_nothing() {
        let mut disk = Disk::new(POLICY);
        disk.pass(1, 0, |_| Some(31));
        let held = disk.speed.limit();
        disk.pass(9, 0, |_| None);
        assert_eq!(disk.speed.limit(), held, "one window is not enough");
        disk.pass(1, 0, |_| None);
        assert!(disk.speed.limit() > held);
    }

    /// What was usual is forgotten.
    #[test]
    fn a_storage_that_was_slow_for_a_while() {
        let mut disk = Disk::new(POLICY);
        disk.pass(20, 0, |_| Some(100));
        assert_eq!(disk.speed.limit(), None, "so long it waits anyway");
        let is_held = (0..60).any(|_| {
            disk.pass(1, 0, |_| Some(50));
            disk.speed.held().is_some()
        });
        assert!(is_held, "not any more");
    }

    #[test]
    fn no_merge_is_held_back_where_nobody_wants_it() {
        let mut disk = Disk::new(SpeedPolicy { longest_wait: Duration::ZERO, ..POLICY });
        disk.pass(30, 0, |copied| Some(copied / MB));
        assert_eq!(disk.speed.limit(), None);
        assert!(!disk.speed.wants(Duration::MAX));
    }

    proptest! {
        /// Whatever a guest waits for and writes, its merge copies no slower than the floor.
        #[test]
        fn no_merge_is_held_below_the_floor(
            course in prop::collection::vec((0_u64..200, 0..300 * MB), 1..200),
        ) {
            let mut disk = Disk::new(POLICY);
            for (wait, written) in course {
                disk.pass(2, written, |_| Some(wait));
                prop_assert!(disk.speed.limit().is_none_or(|limit| limit >= POLICY.slowest));
            }
        }
    }
}
