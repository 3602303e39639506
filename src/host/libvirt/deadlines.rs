//! How long each kind of call may take. Decides nothing else.

use std::time::Duration;

/// How long to wait for libvirt. A call that takes longer may still take effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deadlines {
    /// A question: lists, descriptions, block jobs.
    ///
    /// libvirt itself waits 30 s for another call to let go of a VM; a little more lets its own answer through.
    pub query: Duration,
    /// A change that touches no memory: a switch of disks, a new definition, the start or the pivot of a block job.
    pub change: Duration,
    /// Starting a VM from its disks, or ending its process.
    pub power: Duration,
    /// A capture of guest memory: as long as the storage takes for all of it.
    pub memory_capture: Duration,
    /// Starting a VM from captured memory.
    pub memory_restore: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self {
            query: Duration::from_secs(35),
            change: Duration::from_secs(45),
            power: Duration::from_secs(120),
            memory_capture: Duration::from_secs(30 * 60),
            memory_restore: Duration::from_secs(30 * 60),
        }
    }
}
