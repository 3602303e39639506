//! At most two guests at once on a machine of two cores, over all test processes of this checkout.

use std::fs::File;

use nix::fcntl::{Flock, FlockArg};

use super::cache;

const SLOTS: u32 = 2;

/// The right to run a guest. The lock ends with the process, however that ends.
pub struct Slot {
    _locks: Vec<Flock<File>>,
}

impl Slot {
    /// Takes a free slot; if there is none, waits for one.
    pub fn take() -> Self {
        let free = (0..SLOTS).find_map(|number| lock(number, FlockArg::LockExclusiveNonblock));
        let own_turn = || lock(std::process::id() % SLOTS, FlockArg::LockExclusive);
        Self { _locks: vec![free.or_else(own_turn).expect("a lock that may block is got in the end")] }
    }

    /// Takes all slots: nobody else runs a guest meanwhile. A daemon that starts ends captures of memory that nobody waits for, and
    /// knows of no other daemon on its node: a test that starts one again and again would end those of others.
    pub fn take_all() -> Self {
        let locks = (0..SLOTS).map(|number| lock(number, FlockArg::LockExclusive));
        Self { _locks: locks.map(|lock| lock.expect("a lock that may block is got in the end")).collect() }
    }
}

fn lock(number: u32, how: FlockArg) -> Option<Flock<File>> {
    let path = cache().join(format!("slot-{number}"));
    let file = File::create(&path)
        .unwrap_or_else(|error| panic!("{}: {error}; run tests/bed/setup.sh first", path.display()));
    Flock::lock(file, how).ok()
}
