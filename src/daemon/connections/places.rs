//! Places for connections, and calls on them.
//!
//! Decides who gets a place, who has to leave his, and who may have another call open. Must never know a socket.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Fuse};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Calls that may be open beside one of each connection, answers that were not taken yet among them. A watch that nobody
/// reads holds about half a MiB: 400 KiB in `h2`, which tonic does not let us change, and what was read for it.
pub(super) const SHARED_CALLS: usize = 128;

/// How long a connection may take to its first call. Clients make it at once; this is for a machine that hardly moves.
pub(super) const FIRST_CALL: Duration = Duration::from_secs(10);

/// How long a connection that has made no call keeps its place when others want it.
pub(super) const GRACE: Duration = Duration::from_secs(1);

/// So many connections and calls are a crowd: the allocator keeps what they had, wherever something small that stays lies
/// between.
const CROWD: usize = 64;

/// All places, and who has them.
#[derive(Debug)]
pub(super) struct Places {
    most: usize,
    taken: Mutex<Taken>,
    /// Rises whenever half of a crowd has left.
    ebbs: watch::Sender<u64>,
}

#[derive(Debug, Default)]
pub(super) struct Taken {
    /// Rises with every arrival.
    arrivals: u64,
    strangers: BTreeMap<u64, Stranger>,
    /// With the number of their open calls.
    pub(super) callers: BTreeMap<u64, usize>,
    /// Open calls of all, beside the first of each.
    pub(super) shared: usize,
    /// Most connections and calls since the last ebb.
    flood: usize,
}

/// One that has made no call yet.
#[derive(Debug)]
struct Stranger {
    since: Instant,
    leave: CancellationToken,
}

/// What came of sending away the stranger who came first.
pub(super) enum Departure {
    Sent,
    /// All came only just now.
    NotBefore(Instant),
    /// There are only callers.
    Nobody,
}

impl Taken {
    pub(super) fn send_one_away(&mut self) -> Departure {
        let Some(oldest) = self.strangers.first_entry() else { return Departure::Nobody };
        let may_go = oldest.get().since + GRACE;
        if Instant::now() < may_go {
            return Departure::NotBefore(may_go);
        }
        oldest.remove().leave.cancel();
        Departure::Sent
    }

    fn rise(&mut self) {
        self.flood = self.flood.max(self.crowd());
    }

    /// Whether half of a crowd has left, since it was said last.
    fn has_ebbed(&mut self) -> bool {
        let now = self.crowd();
        let has_ebbed = self.flood >= CROWD && 2 * now <= self.flood;
        if has_ebbed {
            self.flood = now;
        }
        has_ebbed
    }

    fn crowd(&self) -> usize {
        self.strangers.len() + self.callers.len() + self.shared
    }
}

/// What came of wanting a place.
enum Wish {
    Granted(Seat),
    /// Nobody needs to go before this time.
    NotBefore(Instant),
    /// All have made calls.
    Refused,
}

impl Places {
    pub(super) fn of(most: usize) -> Arc<Self> {
        Arc::new(Self { most, taken: Mutex::default(), ebbs: watch::Sender::new(0) })
    }

    /// Changes whenever half of a crowd has left; closed with the last of these places.
    pub(super) fn ebbs(&self) -> watch::Receiver<u64> {
        self.ebbs.subscribe()
    }

    fn tell_ebb(&self, taken: &mut Taken) {
        if taken.has_ebbed() {
            self.ebbs.send_modify(|ebbs| *ebbs += 1);
        }
    }

    /// How many there are.
    pub(super) fn most(&self) -> usize {
        self.most
    }

    /// A place, as soon as a stranger may be sent away for it; None if there are only callers.
    pub(super) async fn take(self: &Arc<Self>) -> Option<Seat> {
        loop {
            match self.ask() {
                Wish::Granted(seat) => return Some(seat),
                Wish::NotBefore(time) => tokio::time::sleep_until(time).await,
                Wish::Refused => return None,
            }
        }
    }

    fn ask(self: &Arc<Self>) -> Wish {
        let mut taken = self.taken();
        if taken.strangers.len() + taken.callers.len() >= self.most {
            match taken.send_one_away() {
                Departure::Sent => {}
                Departure::NotBefore(time) => return Wish::NotBefore(time),
                Departure::Nobody => return Wish::Refused,
            }
        }
        taken.arrivals += 1;
        let (number, leave) = (taken.arrivals, CancellationToken::new());
        taken.strangers.insert(number, Stranger { since: Instant::now(), leave: leave.clone() });
        taken.rise();
        Wish::Granted(Seat { number, leave, has_called: AtomicBool::new(false), places: Arc::clone(self) })
    }

    pub(super) fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place that is taken, until it is left.
#[derive(Debug)]
pub(super) struct Seat {
    number: u64,
    leave: CancellationToken,
    has_called: AtomicBool,
    places: Arc<Places>,
}

impl Seat {
    /// Begins a call, if this connection may have another one.
    pub(super) fn call(self: &Arc<Self>) -> Option<Call> {
        self.has_called.store(true, Ordering::Relaxed);
        let mut guard = self.places.taken();
        let taken = &mut *guard;
        if taken.strangers.remove(&self.number).is_some() {
            taken.callers.insert(self.number, 0);
        }
        // One that was sent away in the same moment has no place any more.
        let open = taken.callers.get_mut(&self.number)?;
        if *open > 0 {
            let left = SHARED_CALLS - taken.shared;
            if left == 0 || *open > left.div_ceil(2) {
                return None;
            }
            taken.shared += 1;
        }
        *open += 1;
        taken.rise();
        Some(Call(Arc::clone(self)))
    }

    fn end_call(&self) {
        let mut guard = self.places.taken();
        let taken = &mut *guard;
        // Of one that has left they are all counted off already.
        if let Some(open) = taken.callers.get_mut(&self.number) {
            *open -= 1;
            taken.shared -= usize::from(*open > 0);
            self.places.tell_ebb(taken);
        }
    }

    /// Whether a call was made.
    pub(super) fn has_called(&self) -> bool {
        self.has_called.load(Ordering::Relaxed)
    }

    pub(super) fn leave(&self) {
        let mut taken = self.places.taken();
        taken.strangers.remove(&self.number);
        let open = taken.callers.remove(&self.number).unwrap_or(0);
        taken.shared -= open.saturating_sub(1);
        self.places.tell_ebb(&mut taken);
    }

    /// Ends when this has to go without having called.
    pub(super) fn patience(&self) -> Fuse<BoxFuture<'static, io::Error>> {
        let leave = self.leave.clone();
        let patience = async move {
            let over = tokio::time::timeout(FIRST_CALL, leave.cancelled()).await;
            io::Error::new(
                io::ErrorKind::TimedOut,
                if over.is_ok() { "no call was made, and others want the place" } else { "no call was made" },
            )
        };
        patience.boxed().fuse()
    }
}

/// Of a connection that never came to be, too.
impl Drop for Seat {
    fn drop(&mut self) {
        self.leave();
    }
}

/// An open call, until it is dropped.
pub(in crate::daemon) struct Call(Arc<Seat>);

impl Drop for Call {
    fn drop(&mut self) {
        self.0.end_call();
    }
}
