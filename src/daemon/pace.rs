//! How many calls each caller may make in a time.
//!
//! Decides nothing about what they are: a controller that calls in a loop by mistake must not keep the others from theirs. Leaves
//! to `crowd` and `connections` how many are open at once.

use std::num::NonZeroU32;
use std::time::Duration;

use governor::clock::{Clock, DefaultClock};
use governor::{DefaultKeyedRateLimiter, Quota};

use crate::model::access::Identity;

/// More callers than rules have names: those that have not called for long are forgotten then.
const MANY: usize = 1024;

/// What each caller has left.
pub(super) struct Pace {
    limiter: DefaultKeyedRateLimiter<Identity>,
    clock: DefaultClock,
}

impl Pace {
    /// So many calls in a second, and twice as many at once.
    pub(super) fn of(calls_per_second: NonZeroU32) -> Self {
        let quota = Quota::per_second(calls_per_second).allow_burst(calls_per_second.saturating_mul(TWICE));
        Self { limiter: DefaultKeyedRateLimiter::keyed(quota), clock: DefaultClock::default() }
    }

    /// Counts a call. How long it would have to wait, if there are too many. Root on this node has no limit: all of its programs
    /// would share one, and it may do what it likes here anyway.
    pub(super) fn count(&self, who: &Identity) -> Result<(), Duration> {
        if *who == Identity::User(0) {
            return Ok(());
        }
        if self.limiter.len() > MANY {
            self.limiter.retain_recent();
        }
        let counted = self.limiter.check_key(who);
        counted.map_err(|until| until.wait_time_from(self.clock.now()))
    }
}

const TWICE: NonZeroU32 = NonZeroU32::new(2).expect("two is not zero");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_caller_has_its_own() {
        let pace = Pace::of(NonZeroU32::MIN);
        let [one, other] = [Identity::User(1), Identity::User(2)];
        assert!(pace.count(&one).is_ok() && pace.count(&one).is_ok());
        let wait = pace.count(&one).unwrap_err();
        assert!(wait > Duration::ZERO && wait <= Duration::from_secs(1), "{wait:?}");
        assert!(pace.count(&other).is_ok());
    }
}
