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

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::{BoxFuture, Fuse};
use futures_util::{FutureExt, Stream, stream};
use nix::sys::resource::{Resource, getrlimit};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{UnixListener, UnixStream};
use tonic::transport::server::{Connected, UdsConnectInfo};

use places::{Places, Seat};

mod places;

pub(super) use places::Call;

/// Most connections at once: some for every VM that a node can have, in some tens of MiB.
const MOST: usize = 1024;

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

impl Connection {
    fn new(stream: UnixStream, seat: Seat) -> Self {
        let patience = Some(seat.patience());
        Self { stream, seat: Arc::new(seat), patience, stalled: None }
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
mod tests;
