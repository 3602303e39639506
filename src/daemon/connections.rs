//! Who may be connected, and how long without a word.
//!
//! Decides which connections end although their clients hold them. Leaves to `places` whom the listener lets in, and what
//! is said on a connection to tonic. Must never know what is asked.
//!
//! ```text
//!                +-- FIRST_CALL has passed, or another needs the place ---> gone
//!                |
//!   accepted -> Stranger -- first call --> Caller -- takes nothing for STALLED --> gone
//! ```
//! Whoever gets in has a grace to speak. A crowd that says nothing is shown out in the order that it came in, so it keeps
//! nobody out for longer than that. Of calls, each connection may have one, and more out of a stock that all share: as many
//! as it leaves half of.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::{BoxFuture, Fuse};
use futures_util::stream::BoxStream;
use futures_util::{FutureExt, Stream, StreamExt, stream};
use nix::sys::resource::{Resource, getrlimit};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::watch;
use tonic::transport::server::Connected;

use super::access::{Current, Peer, Standing};
use super::audit::Refusals;
use super::tls::Tls;
use crate::api::Member;
use crate::host;
use places::{Places, Seat};
use wire::Wire;

mod places;
mod remote;
mod wire;

pub(super) use places::Call;

/// Most connections at once: a crowd that watches, and clients beside it (`make crowd`). They are some 60 KiB each, and half a MiB
/// where a client does not read what it watches: 0.75 GiB if all of them do not.
const MOST: usize = 1536;

/// How long a client may take nothing of what is written to it: a client that lives reads, whatever its user does. The
/// keepalive of HTTP/2 does not end such a connection: its last word cannot be written either.
const STALLED: Duration = Duration::from_secs(60);

/// From the ebb of a crowd to the moment at which its memory is given back.
const EBB: Duration = Duration::from_secs(1);

/// Until the next attempt when there is no descriptor for a connection. Nothing tells when there is one again.
const PAUSE: Duration = Duration::from_millis(100);

/// The connections of all listeners, one after the other. Never ends, whatever accepting one says. Those from the network have
/// places of their own: no crowd there keeps anybody on this node out.
pub(super) fn incoming(
    here: UnixListener,
    network: Option<TcpListener>,
    current: Current,
    refusals: Arc<Refusals>,
) -> impl Stream<Item = io::Result<Connection>> {
    let places = Places::of(most() / 2);
    tokio::spawn(give_back_after_crowds(places.ebbs()));
    let remote =
        network.map(|listener| remote::incoming(listener, places, current.clone(), refusals, Tls::grpc));
    let remote = remote.map_or_else(|| stream::empty().boxed(), StreamExt::boxed);
    let places = Places::of(most());
    tokio::spawn(give_back_after_crowds(places.ebbs()));
    let local = stream::unfold((here, places, current), async |(listener, places, current)| {
        let ((stream, _), seat) = next(&places, |context| listener.poll_accept(context)).await;
        let peer = Peer::Local(stream.connect_info());
        let connection =
            Connection::new(Wire::Local(stream), seat, Standing::new(peer, current.clone()), None);
        Some((Ok(connection), (listener, places, current)))
    });
    stream::select(local, remote)
}

/// The connections of the listener for the OpenStack client, as those from the network, in places of their own. Where nobody
/// proves who he is only this node reaches it.
pub(super) fn web(
    listener: TcpListener,
    is_secured: bool,
    current: Current,
    refusals: Arc<Refusals>,
) -> BoxStream<'static, io::Result<Connection>> {
    let places = Places::of(most() / 4);
    tokio::spawn(give_back_after_crowds(places.ebbs()));
    if is_secured {
        return remote::incoming(listener, places, current, refusals, Tls::web).boxed();
    }
    let plain = stream::unfold((listener, places, current), async |(listener, places, current)| {
        let ((stream, address), seat) = next(&places, |context| listener.poll_accept(context)).await;
        // An answer is small, and somebody waits for it.
        let _ = stream.set_nodelay(true);
        let standing = Standing::new(Peer::Loopback { address }, current.clone());
        let connection = Connection::new(Wire::Plain(stream), seat, standing, None);
        Some((Ok(connection), (listener, places, current)))
    });
    plain.boxed()
}

/// Gives the memory of crowds that have left back to the system.
async fn give_back_after_crowds(mut ebbs: watch::Receiver<u64>) {
    while ebbs.changed().await.is_ok() {
        // Whatever a connection had is freed after its place. More of them leave meanwhile.
        tokio::time::sleep(EBB).await;
        ebbs.borrow_and_update();
        // It fails when the runtime goes down.
        let _ = tokio::task::spawn_blocking(host::give_back_memory).await;
    }
}

/// Work needs descriptors, too: at least half of them are left to it, or a quarter where calls are taken from the network.
fn most() -> usize {
    let descriptors = getrlimit(Resource::RLIMIT_NOFILE).map_or(u64::MAX, |(soft, _)| soft);
    usize::try_from(descriptors / 2).unwrap_or(usize::MAX).min(MOST)
}

/// Whoever comes next, and its place.
async fn next<S>(
    places: &Arc<Places>,
    accept: impl Fn(&mut Context<'_>) -> Poll<io::Result<S>>,
) -> (S, Seat) {
    let mut is_told = false;
    let mut tell_once = |told: &str| {
        if !std::mem::replace(&mut is_told, true) {
            tracing::warn!("{told}");
        }
    };
    loop {
        let stream = match poll_fn(&accept).await {
            Ok(stream) => stream,
            Err(error) => {
                // Out of descriptors or of memory: whoever waits is still there afterwards.
                tell_once(&format!("no connection can be accepted now: {error}"));
                places.taken().send_one_away();
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        match places.take().await {
            Some(seat) => return (stream, seat),
            None => tell_once("a connection was refused: as many as may be have made calls and are open"),
        }
    }
}

/// A client's connection, in its place.
pub(super) struct Connection {
    wire: Wire,
    seat: Arc<Seat>,
    standing: Arc<Standing>,
    /// Of one from the network that has a certificate.
    _member: Option<Member>,
    /// Of one that has made no call.
    patience: Option<Fuse<BoxFuture<'static, io::Error>>>,
    /// Since when the client takes nothing.
    stalled: Option<Pin<Box<tokio::time::Sleep>>>,
}

/// Who is at the other end of a call.
#[derive(Clone)]
pub(super) struct Caller {
    pub(super) standing: Arc<Standing>,
    seat: Arc<Seat>,
}

impl Caller {
    /// The same connection, and a user on it.
    pub(super) fn of_user(&self, name: String) -> Self {
        Self { standing: Arc::new(self.standing.of_user(name)), seat: Arc::clone(&self.seat) }
    }

    /// Begins a call, and its connection keeps its place from now on. None if too many are open.
    pub(super) fn call(&self) -> Option<Call> {
        self.seat.call()
    }
}

impl Connection {
    fn new(wire: Wire, seat: Seat, standing: Standing, member: Option<Member>) -> Self {
        let patience = Some(seat.patience());
        let (seat, standing) = (Arc::new(seat), Arc::new(standing));
        Self { wire, seat, standing, _member: member, patience, stalled: None }
    }

    /// Ready when the connection has to end.
    fn poll_patience(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.seat.has_called() {
            self.patience = None;
        }
        match &mut self.patience {
            Some(patience) => patience.poll_unpin(context).map(Err),
            None => Poll::Pending,
        }
    }

    /// The same of bytes. What TLS has taken has gone nowhere yet: only a flush tells.
    fn watched_write<T>(
        &mut self,
        written: Poll<io::Result<T>>,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<T>> {
        match self.wire {
            Wire::Remote(_) if written.is_ready() => written,
            Wire::Local(_) | Wire::Plain(_) | Wire::Remote(_) => self.watched(written, context),
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
        Caller { standing: Arc::clone(&self.standing), seat: Arc::clone(&self.seat) }
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
        Pin::new(&mut self.wire).poll_read(context, buffer)
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
        let written = Pin::new(&mut self.wire).poll_write(context, bytes);
        self.watched_write(written, context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Err(over)) = self.poll_patience(context) {
            return Poll::Ready(Err(over));
        }
        let written = Pin::new(&mut self.wire).poll_write_vectored(context, slices);
        self.watched_write(written, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.wire.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.wire).poll_flush(context);
        self.watched(flushed, context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = Pin::new(&mut self.wire).poll_shutdown(context);
        self.watched(shut, context)
    }
}

#[cfg(test)]
mod tests;
