//! Who may be connected, and how long without a word.
//!
//! Decides whom the listener lets in, and which connections end although their clients hold them. Leaves what is said on
//! one to tonic. Must never know what is asked.
//!
//! ```text
//!                +-- FIRST_CALL has passed, or another needs the place ---> gone
//!                |
//!   accepted -> Stranger -- first call --> Caller -- takes nothing for STALLED --> gone
//! ```
//! Whoever gets in has a [`GRACE`] to speak. A crowd that says nothing is shown out in the order that it came in, so it
//! keeps nobody out for longer than that. Of calls, each connection
//! may have one, and more out of a stock that all share: at most half of what is left of it.

use std::collections::BTreeMap;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::{BoxFuture, Fuse};
use futures_util::{FutureExt, Stream, stream};
use nix::sys::resource::{Resource, getrlimit};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::{Connected, UdsConnectInfo};

/// Most connections at once: some for every VM that a node can have, in some tens of MiB.
const MOST: usize = 512;

/// Calls that may be open beside one of each connection, answers that were not taken yet among them. A watch that nobody
/// reads holds about half a MiB: 400 KiB in `h2`, which tonic does not let us change, and what was read for it.
const SHARED_CALLS: usize = 128;

/// How long a connection may take to its first call. Clients make it at once; this is for a machine that hardly moves.
const FIRST_CALL: Duration = Duration::from_secs(10);

/// How long a connection that has made no call keeps its place when others want it.
const GRACE: Duration = Duration::from_secs(1);

/// How long a client may take nothing of what is written to it: a client that lives reads, whatever its user does. The
/// keepalive of HTTP/2 does not end such a connection: its last word cannot be written either.
const STALLED: Duration = Duration::from_secs(60);

/// Until the next attempt when there is no descriptor for a connection. Nothing tells when there is one again.
const PAUSE: Duration = Duration::from_millis(100);

/// The connections of a listener, one after the other. Never ends, whatever accepting one says.
pub(super) fn incoming(listener: UnixListener) -> impl Stream<Item = io::Result<Connection>> {
    let places = Places::of(most());
    stream::unfold((listener, places), async |(listener, places)| {
        let connection = next(&listener, &places).await;
        Some((Ok(connection), (listener, places)))
    })
}

/// Work needs descriptors, too: at least half of them are left to it.
fn most() -> usize {
    let descriptors = getrlimit(Resource::RLIMIT_NOFILE).map_or(u64::MAX, |(soft, _)| soft);
    usize::try_from(descriptors / 2).unwrap_or(usize::MAX).min(MOST)
}

async fn next(listener: &UnixListener, places: &Arc<Places>) -> Connection {
    let mut is_told = false;
    let mut tell_once = |told: &str| {
        if !std::mem::replace(&mut is_told, true) {
            tracing::warn!("{told}");
        }
    };
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors or of memory: whoever waits is still there afterwards.
                tell_once(&format!("no connection can be accepted now: {error}"));
                places.taken().send_one_away();
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        match places.take().await {
            Some(seat) => return Connection::new(stream, seat),
            None => tell_once("a connection was refused: as many as may be have made calls and are open"),
        }
    }
}

/// All places, and who has them.
#[derive(Debug)]
struct Places {
    most: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    /// Rises with every arrival.
    arrivals: u64,
    strangers: BTreeMap<u64, Stranger>,
    /// With the number of their open calls.
    callers: BTreeMap<u64, usize>,
    /// Open calls of all, beside the first of each.
    shared: usize,
}

/// One that has made no call yet.
#[derive(Debug)]
struct Stranger {
    since: Instant,
    leave: CancellationToken,
}

/// What came of sending away the stranger who came first.
enum Departure {
    Sent,
    /// All came only just now.
    NotBefore(Instant),
    /// There are only callers.
    Nobody,
}

impl Taken {
    fn send_one_away(&mut self) -> Departure {
        let Some(oldest) = self.strangers.first_entry() else { return Departure::Nobody };
        let may_go = oldest.get().since + GRACE;
        if Instant::now() < may_go {
            return Departure::NotBefore(may_go);
        }
        oldest.remove().leave.cancel();
        Departure::Sent
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
    fn of(most: usize) -> Arc<Self> {
        Arc::new(Self { most, taken: Mutex::default() })
    }

    /// A place, as soon as a stranger may be sent away for it; None if there are only callers.
    async fn take(self: &Arc<Self>) -> Option<Seat> {
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
        Wish::Granted(Seat { number, leave, has_called: AtomicBool::new(false), places: Arc::clone(self) })
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place that is taken, until it is left.
#[derive(Debug)]
struct Seat {
    number: u64,
    leave: CancellationToken,
    has_called: AtomicBool,
    places: Arc<Places>,
}

impl Seat {
    /// Begins a call, if this connection may have another one.
    fn call(self: &Arc<Self>) -> Option<Call> {
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
        Some(Call(Arc::clone(self)))
    }

    fn end_call(&self) {
        let mut guard = self.places.taken();
        let taken = &mut *guard;
        // Of one that has left they are all counted off already.
        if let Some(open) = taken.callers.get_mut(&self.number) {
            *open -= 1;
            taken.shared -= usize::from(*open > 0);
        }
    }

    fn leave(&self) {
        let mut taken = self.places.taken();
        taken.strangers.remove(&self.number);
        let open = taken.callers.remove(&self.number).unwrap_or(0);
        taken.shared -= open.saturating_sub(1);
    }

    /// Ends when this has to go without having called.
    fn patience(&self) -> Fuse<BoxFuture<'static, io::Error>> {
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

/// A client's connection, in its place.
pub(super) struct Connection {
    stream: UnixStream,
    seat: Arc<Seat>,
    /// Of one that has made no call.
    patience: Option<Fuse<BoxFuture<'static, io::Error>>>,
    /// Since when the client takes nothing.
    stalled: Option<Pin<Box<tokio::time::Sleep>>>,
}

/// Who is at the other end of a call.
#[derive(Clone)]
pub(super) struct Caller {
    pub(super) credentials: UdsConnectInfo,
    seat: Arc<Seat>,
}

impl Caller {
    /// Begins a call, and its connection keeps its place from now on. None if too many are open.
    pub(super) fn call(&self) -> Option<Call> {
        self.seat.call()
    }
}

/// An open call, until it is dropped.
pub(super) struct Call(Arc<Seat>);

impl Drop for Call {
    fn drop(&mut self) {
        self.0.end_call();
    }
}

impl Connection {
    fn new(stream: UnixStream, seat: Seat) -> Self {
        let patience = Some(seat.patience());
        Self { stream, seat: Arc::new(seat), patience, stalled: None }
    }

    /// Ready when the connection has to end.
    fn poll_patience(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.seat.has_called.load(Ordering::Relaxed) {
            self.patience = None;
        }
        match &mut self.patience {
            Some(patience) => patience.poll_unpin(context).map(Err),
            None => Poll::Pending,
        }
    }

    /// What became of a write: [`STALLED`] counts from the first that had to wait.
    fn watched<T>(&mut self, written: Poll<io::Result<T>>, context: &mut Context<'_>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(STALLED)));
        stalled.as_mut().poll(context).map(|()| {
            Err(io::Error::new(io::ErrorKind::TimedOut, "the client takes nothing of what is written to it"))
        })
    }
}

impl Connected for Connection {
    type ConnectInfo = Caller;

    fn connect_info(&self) -> Caller {
        Caller { credentials: self.stream.connect_info(), seat: Arc::clone(&self.seat) }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.seat.leave();
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Poll::Ready(over) = self.poll_patience(context) {
            return Poll::Ready(over);
        }
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Err(over)) = self.poll_patience(context) {
            return Poll::Ready(Err(over));
        }
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.watched(written, context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Err(over)) = self.poll_patience(context) {
            return Poll::Ready(Err(over));
        }
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.watched(written, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    async fn connected(places: &Arc<Places>) -> (Connection, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (Connection::new(ours, places.take().await.unwrap()), theirs)
    }

    async fn read(connection: &mut Connection) -> io::Result<u8> {
        connection.read_u8().await
    }

    #[tokio::test(start_paused = true)]
    async fn who_makes_no_call_goes() {
        let places = Places::of(2);
        let (mut silent, _theirs) = connected(&places).await;
        let (mut caller, mut theirs) = connected(&places).await;
        assert!(caller.connect_info().call().is_some());
        let begun = Instant::now();
        assert_eq!(read(&mut silent).await.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert_eq!(begun.elapsed(), FIRST_CALL);
        tokio::time::advance(10 * FIRST_CALL).await;
        theirs.write_u8(7).await.unwrap();
        assert_eq!(read(&mut caller).await.unwrap(), 7);
    }

    #[tokio::test(start_paused = true)]
    async fn the_oldest_stranger_makes_room_after_its_grace() {
        let places = Places::of(3);
        let (caller, _a) = connected(&places).await;
        assert!(caller.connect_info().call().is_some());
        let (mut first, _b) = connected(&places).await;
        let (mut second, mut c) = connected(&places).await;
        let begun = Instant::now();
        let (third, _d) = connected(&places).await;
        assert_eq!(begun.elapsed(), GRACE, "nobody is sent away before");
        assert!(read(&mut first).await.is_err());
        assert!(second.connect_info().call().is_some());
        assert!(first.connect_info().call().is_none(), "too late");
        drop(first);
        c.write_u8(7).await.unwrap();
        assert_eq!(read(&mut second).await.unwrap(), 7);
        assert!(third.connect_info().call().is_some());
        assert!(places.take().await.is_none(), "who has called is not sent away");
        drop(third);
        assert!(places.take().await.is_some(), "a place that was left can be taken");
    }

    #[tokio::test]
    async fn nobody_has_all_the_calls() {
        let places = Places::of(50);
        let all_of =
            |greedy: &Connection| std::iter::from_fn(|| greedy.connect_info().call()).collect::<Vec<_>>();
        let (first, _theirs) = connected(&places).await;
        let held = all_of(&first);
        assert_eq!(held.len(), 1 + SHARED_CALLS.div_ceil(3));
        let mut others = Vec::new();
        for _ in 0..49 {
            let (other, theirs) = connected(&places).await;
            let calls = all_of(&other);
            assert!(!calls.is_empty(), "one that comes late has one");
            others.push((calls, other, theirs));
        }
        assert!(all_of(&first).is_empty());
        // A call may outlive its connection, and the other way round.
        let (calls, connections): (Vec<_>, Vec<_>) =
            others.into_iter().map(|(calls, other, theirs)| (calls, (other, theirs))).unzip();
        drop((held, connections));
        drop(calls);
        assert_eq!(places.taken().shared, 0);
        assert_eq!(all_of(&first).len(), 1 + SHARED_CALLS.div_ceil(3), "what has ended is not counted");
    }

    #[tokio::test(start_paused = true)]
    async fn who_takes_nothing_goes() {
        let places = Places::of(1);
        let (mut connection, theirs) = connected(&places).await;
        assert!(connection.connect_info().call().is_some());
        let begun = Instant::now();
        let all = vec![0; 16 << 20];
        assert_eq!(connection.write_all(&all).await.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert_eq!(begun.elapsed(), STALLED);
        drop((connection, theirs));
        assert_eq!(places.taken().callers.len(), 0);
    }
}
