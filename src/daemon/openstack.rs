//! The listener for the OpenStack client: HTTP, over TLS or on this node alone.
//!
//! Decides who is answered at all, and how long a request may take. Leaves to `openstack` what a request means: it is made of
//! calls of gRPC, and each of these is admitted here as if its caller had made it over gRPC, with the same table of roles, the
//! same limits, and a line in the audit trail.

use std::convert::Infallible;
use std::io;
use std::net::Ipv4Addr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use futures_util::StreamExt;
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, HeaderValue, WWW_AUTHENTICATE};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::Status;
use tonic::body::Body;
use tonic::service::Routes;
use tonic::transport::server::Connected;
use tower::ServiceExt;

use super::access::{Current, Peer, Standing};
use super::admission::{Admission, Limits};
use super::connections::{self, Caller, Connection};
use super::guesses::Guesses;
use super::passwords::{Busy, Claim, Desk, Users};
use crate::api;
use crate::model::access::{Demand, Role};
use crate::openstack::{self, Calls, Fault, Scheme};

/// Longer than any call of ours, and than a request waits for a VM to be free.
const LONGEST: Duration = Duration::from_secs(180);

/// From one request to the next, and for the head of one: clients of HTTP keep connections open that nobody needs.
const IDLE: Duration = Duration::from_secs(30);

/// Bytes of the head of a request. Those of clients have some hundred.
const HEAD: usize = 16 * 1024;

/// The least that each request asks of its caller. What it is made of asks for more.
const LOOKS: Demand = Demand { role: Role::Viewer, within_scope: true };

/// Until a password is shown again when too many are looked at: some have been by then.
const LATER: Duration = Duration::from_secs(1);

/// What the calls of a request go through.
#[derive(Clone)]
pub(super) struct Door {
    pub(super) limits: Arc<Limits>,
    pub(super) routes: Routes,
    pub(super) desk: Arc<Desk>,
    pub(super) guesses: Arc<Guesses>,
}

/// Why a request has no caller.
enum Nameless {
    /// Somebody has to say who he is, or has not proven it.
    Unknown,
    /// It cannot be told, or not now.
    Refused(Status),
}

/// Answers until `stop`, then until the requests that are open have been answered.
pub(super) async fn serve(
    listener: TcpListener,
    is_secured: bool,
    current: Current,
    door: Door,
    stop: CancellationToken,
) {
    let scheme = if is_secured { Scheme::Https } else { Scheme::Http };
    let router = openstack::router(scheme);
    let mut incoming = connections::web(listener, is_secured, current, Arc::clone(&door.limits.refusals));
    let tasks = TaskTracker::new();
    loop {
        let connection = tokio::select! {
            accepted = incoming.next() => accepted,
            () = stop.cancelled() => break,
        };
        let Some(Ok(connection)) = connection else { break };
        let (router, door, stop) = (router.clone(), door.clone(), stop.clone());
        tasks.spawn(async move {
            // One that has broken off has what it wanted, or comes again.
            let _ = serve_one(connection, router, door, stop).await;
        });
    }
    tasks.close();
    tasks.wait().await;
}

async fn serve_one(
    connection: Connection,
    router: Router,
    door: Door,
    stop: CancellationToken,
) -> hyper::Result<()> {
    let caller = connection.connect_info();
    let answer = service_fn(move |request: Request<Incoming>| {
        let (caller, router, door) = (caller.clone(), router.clone(), door.clone());
        async move { Ok::<_, io::Error>(door.answer(caller, router, request).await) }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(IDLE).max_buf_size(HEAD);
    let mut serving = pin!(http.serve_connection(TokioIo::new(connection), answer));
    tokio::select! {
        served = serving.as_mut() => return served,
        () = stop.cancelled() => serving.as_mut().graceful_shutdown(),
    }
    serving.await
}

impl Door {
    async fn answer(
        self,
        caller: Caller,
        router: Router,
        request: Request<Incoming>,
    ) -> Response<axum::body::Body> {
        let claim = request.headers().get(AUTHORIZATION).cloned();
        let connected = Arc::clone(&caller.standing);
        let caller = match self.named(caller, claim).await {
            Ok(caller) => caller,
            Err(Nameless::Unknown) => return unknown(),
            Err(Nameless::Refused(status)) => return self.refuse(&connected, &request, status),
        };
        if let Err(status) = self.admit(&caller) {
            return self.refuse(&caller.standing, &request, status);
        }
        let mut request = request.map(axum::body::Body::new);
        request.extensions_mut().insert(self.calls(caller));
        match tokio::time::timeout(LONGEST, router.oneshot(request)).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(never)) => match never {},
            Err(_) => Fault::from(api::late()).into(),
        }
    }

    /// Who makes a request: whoever has the connection, or the user whose password comes with it. Nobody for a password that is
    /// wrong, and where somebody has to be named.
    async fn named(&self, caller: Caller, claim: Option<HeaderValue>) -> Result<Caller, Nameless> {
        let users = caller.standing.users();
        let is_nobody = matches!(&caller.standing.peer, Peer::Basic { .. });
        let Some(claim) = claim.filter(|_| !users.is_empty()) else {
            // A client looks around without a name first, and shows its password to whoever asks for one.
            let is_asked = is_nobody || (!users.is_empty() && caller.standing.is_stranger());
            return if is_asked { Err(Nameless::Unknown) } else { Ok(caller) };
        };
        // No password makes up for a certificate that was revoked.
        caller.standing.proof().map_err(Nameless::Refused)?;
        let name = self.proven(&users, &caller.standing.peer, &claim).await?;
        Ok(caller.of_user(name))
    }

    /// The name of the user whose password is right.
    async fn proven(&self, users: &Users, peer: &Peer, claim: &HeaderValue) -> Result<String, Nameless> {
        let from = peer.address().unwrap_or(Ipv4Addr::LOCALHOST.into());
        let guess = self.guesses.begin(from).map_err(|wait| {
            let why = "too many passwords from there were wrong: try again later";
            Nameless::Refused(api::too_many(why, wait))
        })?;
        let Some(claim) = claim.to_str().ok().and_then(Claim::read) else {
            self.limits.refusals.turned_away(&peer.place(), "what it says who it is cannot be read");
            return Err(Nameless::Unknown);
        };
        let who = claim.who();
        match users.prove(&self.desk, claim).await {
            Ok(None) => {
                let why = format!("there is no user {who} with this password");
                self.limits.refusals.turned_away(&peer.place(), &why);
                Err(Nameless::Unknown)
            }
            Ok(Some(name)) => {
                guess.forgive();
                Ok(name)
            }
            Err(busy) => {
                guess.forgive();
                Err(busy.into())
            }
        }
    }

    /// A refusal, and its line in the audit trail.
    fn refuse<B>(
        &self,
        standing: &Standing,
        request: &Request<B>,
        status: Status,
    ) -> Response<axum::body::Body> {
        let asked = format!("{} {}", request.method(), request.uri().path());
        self.limits.refusals.write(&standing.peer, &asked, &status);
        Fault::from(status).into()
    }

    /// Whether somebody is answered at all, be it that there is nothing at a path.
    fn admit(&self, caller: &Caller) -> Result<(), Status> {
        let counted = self.limits.pace.count(&caller.standing.peer.identity());
        counted.map_err(|wait| api::too_many("too many requests were made in a short time", wait))?;
        caller.standing.check(Some(LOOKS)).map(drop)
    }

    /// What a request of this caller is made of.
    fn calls(self, caller: Caller) -> Calls {
        let admission = Admission { inner: self.routes, limits: self.limits };
        Calls::new(tower::service_fn(move |mut call: Request<Body>| {
            let admission = admission.clone();
            call.extensions_mut().insert(caller.clone());
            async move {
                let answer: Result<Response<Body>, Infallible> = admission.oneshot(call).await;
                answer
            }
        }))
    }
}

impl From<Busy> for Nameless {
    fn from(Busy: Busy) -> Self {
        Self::Refused(api::too_many("too many passwords are looked at: try again later", LATER))
    }
}

/// What somebody is told who has to say who he is.
fn unknown() -> Response<axum::body::Body> {
    let mut refused: Response<axum::body::Body> = Fault::from(api::unknown_user()).into();
    refused.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"vmsnapd\""));
    refused
}
