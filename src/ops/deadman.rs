//! The dead-man: a thread that lets a guest go on at its deadline, whatever the rest of the process does.
//!
//! Decides when to thaw it, or to resume it. Leaves to the steps to prove and record it. Must never wait for the runtime or the catalog.
//!
//! ```text
//!   arm(deadline) -> waiting -> deadline passed -> thawing --proven--> (gone)
//!                      |                            ^    |
//!                   disarm -> (gone)                +----+ not proven: again, later each time
//! ```

use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::host::EmergencyThaw;
use crate::model::{OperationId, VmId};
use crate::store::Standstill;

/// A handle on the dead-man. The thread ends with the last one.
#[derive(Clone)]
pub(super) struct DeadMan {
    shared: Arc<Shared>,
    /// Tells the thread that nobody needs it any more.
    _alive: Arc<Alive>,
}

struct Shared {
    watched: Mutex<Watched>,
    changed: Condvar,
}

#[derive(Default)]
struct Watched {
    leases: HashMap<VmId, Lease>,
    /// How many there have been.
    armed: u64,
    is_over: bool,
}

#[derive(Clone, Copy)]
struct Lease {
    /// Another one for each freeze: one guest may be frozen anew while the thaw before is under way.
    number: u64,
    /// What froze it. Whoever has proof for another freeze does not call this one off.
    operation: OperationId,
    standstill: Standstill,
    due: Instant,
    failures: u32,
}

struct Alive(Arc<Shared>);

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.watched.lock().unwrap_or_else(PoisonError::into_inner).is_over = true;
        self.0.changed.notify_all();
    }
}

/// One thaw may take so long: the agent is asked thrice in it.
const THAW_DEADLINE: Duration = Duration::from_secs(5);

impl DeadMan {
    /// Starts the thread.
    pub(super) fn start(emergency: Arc<dyn EmergencyThaw>) -> std::io::Result<Self> {
        let shared = Arc::new(Shared { watched: Mutex::default(), changed: Condvar::new() });
        let handle = Self { shared: Arc::clone(&shared), _alive: Arc::new(Alive(Arc::clone(&shared))) };
        thread::Builder::new().name("dead-man".to_owned()).spawn(move || watch(&shared, &*emergency))?;
        Ok(handle)
    }

    /// The guest goes on after `timeout` unless this is called off.
    pub(super) fn arm(&self, vm: VmId, operation: OperationId, standstill: Standstill, timeout: Duration) {
        let mut watched = self.shared.watched.lock().unwrap_or_else(PoisonError::into_inner);
        watched.armed += 1;
        let (number, due) = (watched.armed, Instant::now() + timeout);
        let lease = Lease { number, operation, standstill, due, failures: 0 };
        watched.leases.insert(vm, lease);
        drop(watched);
        self.shared.changed.notify_all();
    }

    /// Whether the guest stands still for the operation as it was asked to, without a break: nobody has let it go on, nor is it
    /// time to.
    pub(super) fn holds(&self, vm: VmId, operation: OperationId) -> bool {
        let watched = self.shared.watched.lock().unwrap_or_else(PoisonError::into_inner);
        let lease = watched.leases.get(&vm).filter(|lease| lease.operation == operation);
        lease.is_some_and(|lease| lease.failures == 0 && lease.due > Instant::now())
    }

    /// Whether the guest may still stand still for the operation.
    pub(super) fn watches(&self, vm: VmId, operation: OperationId) -> bool {
        let watched = self.shared.watched.lock().unwrap_or_else(PoisonError::into_inner);
        watched.leases.get(&vm).is_some_and(|lease| lease.operation == operation)
    }

    /// The guest that the operation has held up is proven to go on.
    pub(super) fn disarm(&self, vm: VmId, operation: OperationId) {
        let mut watched = self.shared.watched.lock().unwrap_or_else(PoisonError::into_inner);
        if watched.leases.get(&vm).is_some_and(|lease| lease.operation == operation) {
            watched.leases.remove(&vm);
        }
    }
}

fn watch(shared: &Shared, emergency: &dyn EmergencyThaw) {
    let mut watched = shared.watched.lock().unwrap_or_else(PoisonError::into_inner);
    while !watched.is_over {
        let next = watched.leases.iter().min_by_key(|(_, lease)| lease.due).map(|(vm, lease)| (*vm, *lease));
        let Some((vm, lease)) = next else {
            watched = shared.changed.wait(watched).unwrap_or_else(PoisonError::into_inner);
            continue;
        };
        let now = Instant::now();
        if lease.due > now {
            let (again, _) =
                shared.changed.wait_timeout(watched, lease.due - now).unwrap_or_else(PoisonError::into_inner);
            watched = again;
            continue;
        }
        drop(watched);
        let is_over = let_go_on(vm, lease, emergency);
        watched = shared.watched.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(now) = watched.leases.get_mut(&vm).filter(|now| now.number == lease.number) else {
            continue;
        };
        if is_over {
            watched.leases.remove(&vm);
        } else {
            now.failures += 1;
            now.due = Instant::now() + backoff(now.failures);
        }
    }
}

fn let_go_on(vm: VmId, lease: Lease, emergency: &dyn EmergencyThaw) -> bool {
    let Lease { standstill, failures, .. } = lease;
    if failures == 0 {
        tracing::warn!(%vm, ?standstill, "the guest stood still for longer than allowed: it is let go on");
    }
    let asked = match standstill {
        Standstill::Frozen => emergency.thaw_now(vm, THAW_DEADLINE),
        Standstill::Paused => emergency.resume_now(vm, THAW_DEADLINE),
    };
    match asked {
        Ok(true) => {
            tracing::warn!(%vm, ?standstill, "the dead-man has let the guest go on");
            true
        }
        Ok(false) => {
            tracing::error!(%vm, ?standstill, attempts = failures + 1, "the guest does not say that it goes on");
            false
        }
        Err(error) => {
            let error: &dyn std::error::Error = &error;
            tracing::error!(%vm, ?standstill, attempts = failures + 1, error, "the guest cannot be let go on yet");
            false
        }
    }
}

/// 0.2 s, doubled with each failure, at most 10 s.
fn backoff(failures: u32) -> Duration {
    Duration::from_millis(200).saturating_mul(1 << failures.min(6)).min(Duration::from_secs(10))
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use uuid::Uuid;

    use super::*;
    use crate::host;

    /// Says no so many times, then yes; tells of each call.
    struct Stubborn {
        refusals: Mutex<u32>,
        calls: Mutex<mpsc::Sender<VmId>>,
    }

    impl EmergencyThaw for Stubborn {
        fn resume_now(&self, vm: VmId, deadline: Duration) -> host::Result<bool> {
            self.thaw_now(vm, deadline)
        }

        fn thaw_now(&self, vm: VmId, _: Duration) -> host::Result<bool> {
            self.calls.lock().unwrap().send(vm).unwrap();
            let mut refusals = self.refusals.lock().unwrap();
            let is_thawed = *refusals == 0;
            *refusals = refusals.saturating_sub(1);
            Ok(is_thawed)
        }
    }

    fn start(refusals: u32) -> (DeadMan, mpsc::Receiver<VmId>) {
        let (calls, seen) = mpsc::channel();
        let emergency = Stubborn { refusals: Mutex::new(refusals), calls: Mutex::new(calls) };
        (DeadMan::start(Arc::new(emergency)).unwrap(), seen)
    }

    #[test]
    fn it_thaws_at_the_deadline_and_again_until_it_is_proven() {
        let (dead_man, calls) = start(2);
        let vm = VmId(Uuid::from_u128(7));
        dead_man.arm(vm, OperationId::new(), Standstill::Paused, Duration::from_millis(1));
        for _ in 0..3 {
            assert_eq!(calls.recv().unwrap(), vm);
        }
        drop(dead_man);
        assert!(calls.recv().is_err(), "proven once, it is left alone and the thread ends");
    }

    #[test]
    fn what_it_has_let_go_on_is_not_held() {
        let (dead_man, calls) = start(1);
        let (vm, [operation, another]) = (VmId(Uuid::from_u128(7)), [(); 2].map(|()| OperationId::new()));
        dead_man.arm(vm, operation, Standstill::Paused, Duration::from_secs(3600));
        assert!(dead_man.holds(vm, operation) && !dead_man.holds(vm, another));
        dead_man.arm(vm, operation, Standstill::Paused, Duration::ZERO);
        assert!(!dead_man.holds(vm, operation), "it is time already");
        for _ in 0..2 {
            assert_eq!(calls.recv().unwrap(), vm);
        }
        while dead_man.watches(vm, operation) {
            thread::yield_now();
        }
        assert!(!dead_man.holds(vm, operation));
    }

    #[test]
    fn it_does_nothing_when_called_off() {
        let (dead_man, calls) = start(0);
        let (early, late) = (VmId(Uuid::from_u128(1)), VmId(Uuid::from_u128(2)));
        let [operation, another] = [(); 2].map(|()| OperationId::new());
        dead_man.arm(early, operation, Standstill::Frozen, Duration::from_secs(3600));
        dead_man.disarm(early, operation);
        dead_man.arm(late, operation, Standstill::Frozen, Duration::ZERO);
        dead_man.disarm(late, another);
        assert_eq!(calls.recv().unwrap(), late, "what was frozen since is not called off by an earlier thaw");
        drop(dead_man);
        assert!(calls.recv().is_err());
    }
}
