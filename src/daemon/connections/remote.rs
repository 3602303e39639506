//! Connections from the network, once they have proven who they are.
//!
//! Decides how long that may take. Each handshake has a task of its own: whoever is slow holds up nobody. It has a place from
//! the begin, so there are no more handshakes than places, and a crowd is shown out as it is on the Unix socket.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::Stream;
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;

use super::places::{Places, Seat};
use super::wire::Wire;
use super::{Connection, next};
use crate::api::Crowd;
use crate::daemon::access::{Current, Peer, Standing};
use crate::daemon::audit::Refusals;
use crate::daemon::tls::{Chain, Tls};

/// Longest handshake: two ways over a bad network, and a machine that hardly moves.
const HANDSHAKE: Duration = Duration::from_secs(5);

/// Handshakes at once: they cost processor time, and operations need some.
const HANDSHAKES: usize = 16;

/// One client has at most this part of the places: others have some, too.
const PART: usize = 2;

/// TLS for what is spoken on a listener.
pub(super) type Speech = fn(&Tls) -> Arc<ServerConfig>;

/// Why somebody was not let in.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("the TLS handshake failed")]
    Handshake(#[source] io::Error),
    #[error("the TLS handshake took too long")]
    Late,
    #[error("others want the place")]
    Displaced(#[source] io::Error),
    #[error("it has as many connections as one client may have")]
    TooMany,
    #[error("its certificate names nobody")]
    Nobody,
    #[error("nobody is let in from the network any more")]
    Closed,
}

/// The connections of a listener, in the order in which they have proven who they are.
pub(super) fn incoming(
    listener: TcpListener,
    places: Arc<Places>,
    current: Current,
    refusals: Arc<Refusals>,
    speech: Speech,
) -> impl Stream<Item = io::Result<Connection>> {
    let (proven, incoming) = mpsc::channel(1);
    let crowd = Crowd::of(places.most() / PART);
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES));
    tokio::spawn(async move {
        loop {
            let ((stream, address), seat) = tokio::select! {
                arrived = next(&places, |context| listener.poll_accept(context)) => arrived,
                () = proven.closed() => return,
            };
            let (proven, current, crowd) = (proven.clone(), current.clone(), Arc::clone(&crowd));
            let (handshakes, refusals) = (Arc::clone(&handshakes), Arc::clone(&refusals));
            tokio::spawn(async move {
                match prove((stream, address), seat, current, &crowd, &handshakes, speech).await {
                    // Nobody takes any more connections: it goes.
                    Ok(connection) => drop(proven.send(Ok(connection)).await),
                    Err(refusal) => {
                        let why = crate::model::operation::in_one_line(&refusal);
                        refusals.turned_away(&address.to_string(), &why);
                    }
                }
            });
        }
    });
    ReceiverStream::new(incoming)
}

async fn prove(
    (stream, address): (TcpStream, SocketAddr),
    seat: Seat,
    current: Current,
    crowd: &Arc<Crowd>,
    handshakes: &Semaphore,
    speech: Speech,
) -> Result<Connection, Refusal> {
    // An answer is small, and somebody waits for it.
    let _ = stream.set_nodelay(true);
    let server = current.borrow().tls.as_ref().map(speech);
    let acceptor = TlsAcceptor::from(server.ok_or(Refusal::Closed)?);
    let handshake = async {
        // Who says nothing keeps nobody from his.
        stream.readable().await?;
        let _one_of_few = handshakes.acquire().await;
        acceptor.accept(stream).await
    };
    let shaken = tokio::select! {
        shaken = tokio::time::timeout(HANDSHAKE, handshake) => shaken,
        displaced = seat.patience() => return Err(Refusal::Displaced(displaced)),
    };
    let stream = shaken.map_err(|_| Refusal::Late)?.map_err(Refusal::Handshake)?;
    let chain = Chain::new(stream.get_ref().1.peer_certificates().unwrap_or_default());
    // Only where passwords do is anybody let in without a certificate. Nobody knows who they are, so they are no crowd: one of
    // them that says nothing would take the part of all others. As strangers they make room for each other.
    let (peer, member) = if chain.is_empty() {
        (Peer::Basic { address, name: String::new() }, None)
    } else {
        let peer = Peer::Remote { address, chain };
        let who = peer.proven().into_iter().next().ok_or(Refusal::Nobody)?;
        (peer, Some(crowd.enter(who).ok_or(Refusal::TooMany)?))
    };
    let standing = Standing::new(peer, current);
    Ok(Connection::new(Wire::Remote(Box::new(stream)), seat, standing, member))
}
