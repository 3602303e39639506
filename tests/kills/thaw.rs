//! How long guests stay frozen after the daemon was started again: asked of the guests themselves.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::bed::virsh;

const LOOK: Duration = Duration::from_millis(50);
/// An agent that does not answer for so long is one of a guest that boots, or that is off.
const LONG_ENOUGH: Duration = Duration::from_secs(30);
const STATUS: &str = r#"{"execute":"guest-fsfreeze-status"}"#;

/// A guest that was found frozen after a restart of the daemon.
#[derive(Debug, Clone)]
pub struct Frozen {
    #[allow(dead_code, reason = "it is told when this is too long")]
    pub vm: String,
    /// From the start of the daemon's process until the guest said that it is thawed; or until the next kill.
    pub lasted: Duration,
    /// The daemon was killed again before.
    pub was_cut_off: bool,
}

/// The guests that say that they are frozen.
pub fn frozen(vms: &[String]) -> Vec<String> {
    let is_frozen = |vm: &&String| {
        let answer = virsh::try_run(&["qemu-agent-command", vm, STATUS, "--timeout", "5"]);
        answer.is_ok_and(|answer| answer.contains("frozen"))
    };
    vms.iter().filter(is_frozen).cloned().collect()
}

/// Looks after each restart.
#[derive(Default)]
pub struct ThawWatch {
    life: Arc<AtomicU64>,
    seen: Arc<Mutex<Vec<Frozen>>>,
}

impl ThawWatch {
    /// The daemon's process was just started: asks each guest until it is thawed.
    pub fn look(&self, vms: &[String]) {
        let started = Instant::now();
        let this = self.life.fetch_add(1, Ordering::SeqCst) + 1;
        for vm in vms {
            let (vm, life, seen) = (vm.clone(), Arc::clone(&self.life), Arc::clone(&self.seen));
            std::thread::spawn(move || {
                let is_over = || life.load(Ordering::SeqCst) != this;
                if let Some(frozen) = follow(&vm, started, &is_over) {
                    seen.lock().unwrap_or_else(PoisonError::into_inner).push(frozen);
                }
            });
        }
    }

    /// The daemon was killed: what is frozen now is no longer its business.
    pub fn leave(&self) {
        self.life.fetch_add(1, Ordering::SeqCst);
    }

    /// What was found since the last call.
    pub fn take(&self) -> Vec<Frozen> {
        std::mem::take(&mut self.seen.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// None if the guest was not frozen when it was first asked.
fn follow(vm: &str, started: Instant, is_over: &dyn Fn() -> bool) -> Option<Frozen> {
    let mut is_frozen = false;
    loop {
        let found = |was_cut_off| Frozen { vm: vm.to_owned(), lasted: started.elapsed(), was_cut_off };
        match virsh::try_run(&["qemu-agent-command", vm, STATUS, "--timeout", "5"]) {
            Ok(answer) if answer.contains("thawed") => return is_frozen.then(|| found(false)),
            Ok(_) => is_frozen = true,
            // Off, booting, or libvirt is away; or another one talks to the agent.
            Err(_) if !is_frozen && started.elapsed() > LONG_ENOUGH => return None,
            Err(_) => {}
        }
        if is_over() {
            return is_frozen.then(|| found(true));
        }
        sleep(LOOK);
    }
}
