//! What happened, in numbers. A run that never comes to one of these shows nothing of it.

use std::iter::Sum;
use std::ops::AddAssign;

macro_rules! tally {
    ($($field:ident: $words:literal,)*) => {
        /// What happened, in numbers.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        pub struct Tally {
            $(pub $field: u64,)*
        }

        impl Tally {
            /// All of it, in words.
            pub fn counts(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$(($words, self.$field),)*].into_iter()
            }
        }

        impl AddAssign for Tally {
            fn add_assign(&mut self, more: Self) {
                $(self.$field += more.$field;)*
            }
        }
    };
}

tally! {
    turns: "turns",
    lives: "lives of the daemon",
    crashes: "crashes",
    crashes_in_calls: "crashes in the middle of a call",
    drains: "daemons that were told to end",
    calls: "calls to the outside world",
    faults: "faults",
    lies: "failures of what has happened, where they are frequent",
    full_disks: "full file systems",
    broken_links: "broken links to the hypervisor",
    held_events: "late events",
    lost_events: "lost events",
    odd_agents: "guest agents with ways of their own",
    writes: "writes of guests",
    meddled: "what people did",
    migrations: "migrations",
    by_hand: "overlays by hand",
    adopted: "overlays by hand that were adopted",
    asked: "requests",
    refused: "refusals",
    succeeded: "operations that succeeded",
    failed: "operations that were undone",
    cancelled: "operations that were cancelled",
    stuck: "operations that got stuck",
    quiesced: "quiesced snapshots",
    reverts: "reverts",
    resumed: "reverts with memory",
    deployed: "new VMs out of snapshots",
    purged: "purged snapshots",
    lost: "LOST snapshots",
    unseen_pivots: "VMs that ended after a pivot that nobody noted",
    unnoted_switches: "VMs that ended after a switch that nobody noted",
    snapshots_read: "snapshots read",
    states_checked: "VMs that had to run at the end, with no excuse",
}

impl Sum for Tally {
    fn sum<I: Iterator<Item = Self>>(tallies: I) -> Self {
        let mut sum = Self::default();
        tallies.for_each(|tally| sum += tally);
        sum
    }
}
