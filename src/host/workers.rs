//! A bounded pool of OS threads for calls that block.
//!
//! Decides how many such calls run and wait at once, and when a caller stops waiting. Leaves what is called to the
//! caller. Must never know libvirt or files.
//!
//! tokio's own blocking pool is not used: a call into C, or into a dead file server, cannot be cancelled. Hundreds
//! of them would pile up there, and the runtime would wait for them when it stops. Here a stuck call costs one
//! thread of its own pool and nothing else.
//!
//! ```text
//!            a thread takes it           it returns
//!   WAITING ------------------> STARTED ------------> (answer sent)
//!      |
//!      | the caller's deadline passes, or the caller goes away
//!      v
//!   GIVEN UP (never runs)
//! ```

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender, TrySendError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use tokio::sync::oneshot;

use super::{HostError, Result};

/// Calls that may wait for a thread. More than this means that the threads are stuck, and waiting would not help.
const QUEUE_LENGTH: usize = 256;

const WAITING: u8 = 0;
const STARTED: u8 = 1;
const GIVEN_UP: u8 = 2;

type Job = Box<dyn FnOnce() + Send>;

/// Threads that take calls from one queue. They live as long as this does, and never end before.
#[derive(Debug)]
pub struct Workers {
    name: &'static str,
    queue: SyncSender<Job>,
}

impl Workers {
    /// Starts `count` threads.
    ///
    /// # Panics
    /// If the system cannot start a thread: without them nothing of the agent works.
    #[must_use]
    pub fn start(name: &'static str, count: usize) -> Self {
        let (queue, jobs) = mpsc::sync_channel(QUEUE_LENGTH);
        let jobs = Arc::new(Mutex::new(jobs));
        for _ in 0..count {
            let jobs = Arc::clone(&jobs);
            thread::Builder::new()
                .name(name.to_owned())
                .spawn(move || serve(name, &jobs))
                .expect("the system can start a thread while the agent starts");
        }
        Self { name, queue }
    }

    /// Runs `work` on a thread of the pool and waits for it, at most until `deadline` has passed.
    ///
    /// A call that still waits for a thread when the caller goes away is never made. One that has started goes on,
    /// and nobody hears its answer: that is [`HostError::TimedOut`].
    pub async fn run<T: Send + 'static>(
        &self,
        call: &'static str,
        deadline: Duration,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (sender, answer) = oneshot::channel();
        let _claim = self.enqueue(call, move || {
            // Nobody listens any more: the answer has no use.
            let _ = sender.send(work());
        })?;
        match tokio::time::timeout(deadline, answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(broken_off(call)),
            Err(_) => Err(HostError::TimedOut { call, after: deadline }),
        }
    }

    /// As [`Workers::run`], for a plain OS thread: needs no async runtime.
    pub fn run_blocking<T: Send + 'static>(
        &self,
        call: &'static str,
        deadline: Duration,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (sender, answer) = mpsc::sync_channel(1);
        let _claim = self.enqueue(call, move || {
            // Nobody listens any more: the answer has no use.
            let _ = sender.send(work());
        })?;
        match answer.recv_timeout(deadline) {
            Ok(answer) => answer,
            Err(RecvTimeoutError::Disconnected) => Err(broken_off(call)),
            Err(RecvTimeoutError::Timeout) => Err(HostError::TimedOut { call, after: deadline }),
        }
    }

    fn enqueue(&self, call: &'static str, work: impl FnOnce() + Send + 'static) -> Result<Claim> {
        let state = Arc::new(AtomicU8::new(WAITING));
        let claim = Claim(Arc::clone(&state));
        let job = Box::new(move || {
            if take(&state, STARTED) {
                work();
            }
        });
        match self.queue.try_send(job) {
            Ok(()) => Ok(claim),
            Err(TrySendError::Full(_)) => Err(HostError::Refused {
                call,
                cause: format!("{QUEUE_LENGTH} calls wait for a thread of '{}' already", self.name).into(),
            }),
            Err(TrySendError::Disconnected(_)) => Err(broken_off(call)),
        }
    }
}

/// What a caller holds while it waits. Dropped, it takes back a call that has not started.
struct Claim(Arc<AtomicU8>);

impl Drop for Claim {
    fn drop(&mut self) {
        take(&self.0, GIVEN_UP);
    }
}

/// Moves a call on from WAITING. False if the other side was first.
fn take(state: &AtomicU8, to: u8) -> bool {
    state.compare_exchange(WAITING, to, Ordering::AcqRel, Ordering::Acquire).is_ok()
}

fn broken_off(call: &'static str) -> HostError {
    HostError::Refused { call, cause: "the thread that made the call broke it off".into() }
}

fn serve(name: &str, jobs: &Mutex<Receiver<Job>>) {
    loop {
        let next = jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(job) = next else { return };
        // The `virt` crate panics when it cannot free a handle. That must not cost the pool a thread.
        if catch_unwind(AssertUnwindSafe(job)).is_err() {
            tracing::error!(pool = name, "a call panicked");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(60);
    const NOW: Duration = Duration::ZERO;

    #[tokio::test]
    async fn gives_the_answer() {
        let workers = Workers::start("test", 1);
        assert_eq!(workers.run("add", LONG, || Ok(1 + 1)).await.unwrap(), 2);
        assert_eq!(workers.run_blocking("add", LONG, || Ok(2 + 2)).unwrap(), 4);
    }

    #[tokio::test]
    async fn a_panic_costs_no_thread() {
        let workers = Workers::start("test", 1);
        let broken = workers.run::<()>("panic", LONG, || panic!("on purpose")).await;
        assert!(matches!(broken, Err(HostError::Refused { call: "panic", .. })), "{broken:?}");
        assert_eq!(workers.run("add", LONG, || Ok(3)).await.unwrap(), 3);
    }

    #[tokio::test]
    async fn a_call_that_was_given_up_while_waiting_never_runs() {
        let workers = Workers::start("test", 1);
        let (release, held) = mpsc::channel::<()>();
        let (ran, runs) = mpsc::channel::<&'static str>();
        let slow_ran = ran.clone();
        let slow = workers.run("slow", NOW, move || {
            // Ends when the test drops its end.
            let _ = held.recv();
            slow_ran.send("slow").unwrap();
            Ok(())
        });
        // May or may not have started; in both cases its caller is told in time.
        assert!(matches!(slow.await, Err(HostError::TimedOut { .. })));

        let (started, has_started) = mpsc::channel();
        let (release_next, held_next) = mpsc::channel::<()>();
        let holding = workers.enqueue("hold", move || {
            started.send(()).unwrap();
            let _ = held_next.recv();
        });
        drop(release);
        has_started.recv().unwrap();
        let given_up_ran = ran.clone();
        let given_up = workers.run_blocking("given up", NOW, move || {
            given_up_ran.send("given up").unwrap();
            Ok(())
        });
        assert!(matches!(given_up, Err(HostError::TimedOut { .. })));
        drop(release_next);
        workers.run("last", LONG, || Ok(())).await.unwrap();
        drop((holding, ran));
        assert!(runs.iter().all(|name| name != "given up"));
    }
}
