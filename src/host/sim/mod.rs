//! The outside world in memory: the same traits, over images that hold contents.
//!
//! Decides what libvirt, QEMU and `qemu-img` would do; `tests/contract.rs` holds it to that. It has a guest that writes
//! and an oracle that reads, so that a wrong plan shows in the data; and a script of faults, so that a crash can be
//! put at every call. The same calls give the same world, always: no clock, no chance, no real file.
//!
//! A crash of the daemon is dropping it: the world stays, and goes on with what is under way. Time is counted in
//! notches: a look at a VM is one, for its block jobs and its capture of memory, and [`SimHost::tick`] is one for all.
//!
//! | call struck midway ([`Moment::Midway`]) | what is left |
//! |---|---|
//! | `switch_disks` | the process has switched, the stored definition has not |
//! | `switch_disks` with memory | the VM is paused, the memory image is not complete, no disk is switched |
//! | `begin_memory_image` | a file with nothing in it |
//! | `start` | there is a process, its processors stand still |
//! | `pivot` | the process has pivoted, the stored definition has not |
//! | `create_overlay` | a file with nothing in it |
//! | `commit` | half of the blocks are in the base |
//! | `write_file` | half of the bytes are in a file that has not its name yet |

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::{Host, HostError, Result};

mod agent;
mod background;
mod build;
mod capture;
mod fault;
mod files;
mod guest;
mod hypervisor;
mod images;
mod job;
mod load;
mod looks;
mod machine;
mod people;
mod power;
mod served;
#[cfg(test)]
mod tests;
mod view;
mod world;

pub use agent::AgentBehaviour;
pub use build::{DISK_SIZE, VmBuilder};
pub use fault::{Call, Complaint, Fault, Hold, Method, Mishap, Moment, Trigger};
pub use files::{BLOCK, Content, GARBAGE};
pub use guest::GuestError;
pub use machine::GuestMemory;
pub use served::Waits;

use fault::Extent;
use world::{Answer, World};

/// A simulated node. Clones are the same node.
#[derive(Debug, Clone)]
pub struct SimHost {
    world: Arc<Mutex<World>>,
    /// Told after everything that may have ended a capture of memory.
    moved: Arc<Notify>,
    /// Whoever makes use of it: what compresses memory on its way to an image goes with that.
    user: Arc<()>,
}

impl SimHost {
    /// A node without VMs.
    #[must_use]
    #[allow(clippy::new_without_default, reason = "a world is made on purpose")]
    pub fn new() -> Self {
        Self::of(World::new())
    }

    /// Another node like this one: what happens to one does not happen to the other. Faults to come stay behind.
    #[must_use]
    pub fn fork(&self) -> Self {
        Self::of(self.world().fork())
    }

    fn of(world: World) -> Self {
        Self { world: Arc::new(Mutex::new(world)), moved: Arc::default(), user: Arc::default() }
    }

    /// The node as one life of the daemon sees it, which ends when that is dropped.
    #[must_use]
    pub fn host(&self) -> Host {
        let seen = Arc::new(Self { user: Arc::default(), ..self.clone() });
        Host { hypervisor: seen.clone(), agent: seen.clone(), images: seen.clone(), emergency: seen }
    }

    /// Defines a VM. Its id follows from its name.
    pub fn vm(&self, name: &str) -> VmBuilder {
        VmBuilder::new(self.clone(), name)
    }

    /// What happened that no correct daemon lets happen.
    #[must_use]
    pub fn violations(&self) -> Vec<String> {
        self.world().violations.clone()
    }

    /// All calls of the traits so far, in order.
    #[must_use]
    pub fn calls(&self) -> Vec<Call> {
        self.world().script.calls()
    }

    /// Those after so many.
    #[must_use]
    pub fn calls_after(&self, count: usize) -> Vec<Call> {
        self.world().script.calls_after(count)
    }

    /// The next call of a method.
    #[must_use]
    pub fn next_call(&self, method: Method) -> Call {
        self.world().script.next(method)
    }

    /// How many there were.
    #[must_use]
    pub fn call_count(&self) -> usize {
        self.world().script.count()
    }

    /// Something will go wrong.
    pub fn add_fault(&self, fault: Fault) {
        self.world().script.add(fault);
    }

    /// Nothing goes wrong any more, and calls are counted from one again.
    pub fn reset_script(&self) {
        self.world().script.reset();
    }

    /// In how many notches the block jobs that are started from now on copy their blocks.
    pub fn set_job_notches(&self, notches: u32) {
        self.world().job_notches = notches;
    }

    /// How many turns everybody else gets while a call is made: the first of these during the first call, and so on, again
    /// and again. What comes before what on the node follows from it.
    pub fn set_pace(&self, turns: Vec<u8>) {
        self.world().pace = turns;
    }

    /// Events come late from now on; or those that are late come now.
    pub fn hold_events(&self, is_held: bool) {
        self.change(|world| world.hold_events(is_held));
    }

    /// The events that are late are lost: nobody hears of what they would have told.
    pub fn lose_events(&self) {
        self.change(World::lose_events);
    }

    /// Somebody removes the program that compresses memory, or brings it back.
    pub fn set_compression_blocker(&self, blocker: Option<&str>) {
        self.change(|world| world.compression_blocker = blocker.map(str::to_owned));
    }

    /// From now on block jobs and captures of memory behind guests' backs stand still, or go on again.
    pub fn set_storage_hangs(&self, hangs: bool) {
        self.change(|world| world.storage_hangs = hangs);
    }

    /// Everything that is under way moves on by a notch.
    pub fn tick(&self) {
        self.change(|world| {
            let vms: Vec<_> = world.machines.keys().copied().collect();
            for vm in vms {
                world.advance(vm);
            }
        });
    }

    /// The world. Poisoned by a test that failed while it held it: the others go on.
    fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something happens to the world that nobody called for.
    fn change(&self, change: impl FnOnce(&mut World)) {
        change(&mut self.world());
        self.moved.notify_waiters();
    }

    /// One call of a trait.
    async fn call<T: Send>(
        &self,
        method: Method,
        effect: impl FnOnce(&mut World, Extent) -> Result<T> + Send,
    ) -> Result<T> {
        // As with a real call, others get their turn.
        let turns = self.world().turns();
        for _ in 0..turns {
            tokio::task::yield_now().await;
        }
        let answer = self.world().perform(method, effect);
        self.moved.notify_waiters();
        match answer {
            Answer::Given(result) => result,
            Answer::Late(result, hold) => {
                hold.hold().await;
                result
            }
            Answer::Never => std::future::pending().await,
        }
    }

    /// What became of a capture of memory, once it has ended.
    async fn captured(&self, number: u64) -> Result<()> {
        loop {
            let mut moved = std::pin::pin!(self.moved.notified());
            moved.as_mut().enable();
            {
                let mut world = self.world();
                if !world.is_linked() {
                    return Err(HostError::Unreachable(None));
                }
                if let Some(result) = world.captured.remove(&number) {
                    return result;
                }
            }
            moved.await;
        }
    }
}
