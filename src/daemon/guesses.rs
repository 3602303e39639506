//! How fast passwords can be guessed.
//!
//! Decides from where passwords are looked at no more for a moment. What is right is not counted: whoever knows his password
//! shows it as often as he likes, but where somebody guesses he waits with him. Must never know who is who.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// From one guess to the next: five in a second.
const EACH: Duration = Duration::from_millis(200);

/// Guesses at once, of somebody who has made none for long: people mistype.
const AT_ONCE: u32 = 10;

/// More places than guess at a time: those whose guesses are long ago are forgotten then.
const MANY: usize = 1024;

/// When what was guessed from each place is forgiven.
#[derive(Default)]
pub(super) struct Guesses(Mutex<HashMap<IpAddr, Instant>>);

impl Guesses {
    /// Begins a look at a password from there. How long there is none, if too many were wrong.
    pub(super) fn begin(&self, from: IpAddr) -> Result<Guess<'_>, Duration> {
        let from = place(from);
        let guess = Guess { guesses: self, from, is_counted: true };
        let Some(forgiven) = self.places().get(&from).copied() else { return Ok(guess) };
        let wait = (forgiven + EACH).saturating_duration_since(Instant::now() + EACH * AT_ONCE);
        if wait.is_zero() {
            return Ok(guess);
        }
        guess.forgive();
        Err(wait)
    }

    /// A password from there was wrong.
    fn wrong(&self, from: IpAddr) {
        let now = Instant::now();
        let mut places = self.places();
        if places.len() > MANY {
            places.retain(|_, forgiven| *forgiven > now);
        }
        let forgiven = places.entry(from).or_insert(now);
        *forgiven = (*forgiven).max(now) + EACH;
    }

    fn places(&self) -> MutexGuard<'_, HashMap<IpAddr, Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A password that is looked at. It counts as wrong unless it is forgiven, also where its client hangs up before that is known:
/// the look costs as much.
pub(super) struct Guess<'a> {
    guesses: &'a Guesses,
    from: IpAddr,
    is_counted: bool,
}

impl Guess<'_> {
    pub(super) fn forgive(mut self) {
        self.is_counted = false;
    }
}

impl Drop for Guess<'_> {
    fn drop(&mut self) {
        if self.is_counted {
            self.guesses.wrong(self.from);
        }
    }
}

/// What is counted together: this node has many addresses, and so has whoever has a network of IPv6.
fn place(from: IpAddr) -> IpAddr {
    let from = from.to_canonical();
    if from.is_loopback() {
        return Ipv4Addr::LOCALHOST.into();
    }
    match from {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
        address @ IpAddr::V4(_) => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_place_guesses_slowly() {
        let guesses = Guesses::default();
        let [here, there] = ["127.0.0.1", "192.0.2.1"].map(|address| address.parse::<IpAddr>().unwrap());
        let wait = |from: IpAddr| guesses.begin(from).map(Guess::forgive).err();
        for _ in 0..AT_ONCE {
            assert_eq!(wait(here), None);
            drop(guesses.begin(here));
        }
        assert_eq!(wait("::1".parse().unwrap()), Some(EACH));
        assert_eq!(wait(there), None);
        tokio::time::advance(EACH).await;
        assert_eq!(wait(here), None);
        drop(guesses.begin(here));
        assert_eq!(wait(here), Some(EACH));
        // It does not add up for ever.
        tokio::time::advance(EACH * 100).await;
        for _ in 0..AT_ONCE {
            assert_eq!(wait(here), None);
            drop(guesses.begin(here));
        }
        assert!(wait(here).is_some());
    }

    #[test]
    fn places() {
        for (one, other, are_one) in [
            ("127.0.0.1", "127.9.9.9", true),
            ("127.0.0.1", "::ffff:127.0.0.1", true),
            ("2001:db8::1", "2001:db8::ffff", true),
            ("2001:db8::1", "2001:db8:0:1::1", false),
            ("192.0.2.1", "192.0.2.2", false),
        ] {
            let [one, other] = [one, other].map(|address| place(address.parse().unwrap()));
            assert_eq!(one == other, are_one, "{one} {other}");
        }
    }
}
