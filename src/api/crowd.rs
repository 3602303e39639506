//! How many each caller has of what there are not enough of for all: connections from the network, open calls.
//!
//! Decides that no one of them has more than its part: what it has proven to be is counted, not where it calls from.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::model::access::Identity;

/// All callers, and how many each has.
#[derive(Debug)]
pub struct Crowd {
    most: usize,
    present: Mutex<HashMap<Identity, usize>>,
}

/// One that is counted, until it is dropped.
#[derive(Debug)]
pub struct Member {
    who: Identity,
    crowd: Arc<Crowd>,
}

impl Crowd {
    /// In which each may have so many.
    #[must_use]
    pub fn of(most: usize) -> Arc<Self> {
        Arc::new(Self { most, present: Mutex::default() })
    }

    /// Counts another one. None if it has as many as it may.
    #[must_use]
    pub fn enter(self: &Arc<Self>, who: Identity) -> Option<Member> {
        let mut present = self.present();
        let number = present.entry(who.clone()).or_default();
        if *number >= self.most {
            return None;
        }
        *number += 1;
        Some(Member { who, crowd: Arc::clone(self) })
    }

    fn present(&self) -> MutexGuard<'_, HashMap<Identity, usize>> {
        self.present.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let mut present = self.crowd.present();
        let Some(number) = present.get_mut(&self.who) else { return };
        *number -= 1;
        if *number == 0 {
            present.remove(&self.who);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_has_its_part() {
        let crowd = Crowd::of(2);
        let [one, other] = ["a", "b"].map(|name| Identity::Uri(name.to_owned()));
        let first = crowd.enter(one.clone());
        let second = crowd.enter(one.clone());
        assert!(first.is_some() && second.is_some());
        assert!(crowd.enter(one.clone()).is_none());
        let another = crowd.enter(other);
        assert!(another.is_some());
        drop(first);
        assert!(crowd.enter(one).is_some_and(|third| {
            drop(second);
            drop(third);
            true
        }));
        drop(another);
        assert!(crowd.present().is_empty(), "who has gone is forgotten");
    }
}
