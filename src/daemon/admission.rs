//! The first layer that a call comes through: it is let in, and counted until its answer was taken.
//!
//! Decides in which order is asked: what the call is, whether its caller may make it, whether there is room for one more. Leaves
//! to `api` what each call asks for, to `access` who the caller is, to `connections` and
//! `crowd` who may have another one open, to `audit`
//! what is written down. What nobody has let in is not there.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http_body::{Frame, SizeHint};
use tonic::body::Body;
use tonic::codegen::http::{HeaderMap, Request, Response};
use tonic::codegen::{Bytes, Service};
use tonic::{Code, Status};
use tracing::{Instrument, Span, field};

use super::access::Standing;
use super::audit::{self, Refusals};
use super::connections::{Call, Caller};
use super::deadline;
use super::metrics::Metrics;
use super::pace::Pace;
use super::traces;
use crate::api::{self, About, Crowd, Member};
use crate::model::access::{Demand, Grant, Identity};
use crate::ops::SPANS;

/// Until a call is tried again for which there is no room: some of the others have ended by then.
const LATER: Duration = Duration::from_secs(1);

/// A service behind the layer.
#[derive(Clone)]
pub(super) struct Admission<S> {
    pub(super) inner: S,
    pub(super) limits: Arc<Limits>,
}

/// What all calls share.
pub(super) struct Limits {
    pub(super) pace: Pace,
    /// Open calls of each caller.
    pub(super) crowd: Arc<Crowd>,
    pub(super) refusals: Arc<Refusals>,
    pub(super) metrics: Arc<Metrics>,
}

impl<S> Service<Request<Body>> for Admission<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Response<Body>, S::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let refuse = |status: Status| std::future::ready(Ok(status.into_http())).boxed();
        let Some(caller) = request.extensions().get::<Caller>().cloned() else {
            return refuse(Status::internal("a connection without anybody at its other end"));
        };
        let path = request.uri().path().to_owned();
        let Some(what) = api::calls::call(&path) else { return refuse(api::unknown_call(&path)) };
        let limits = Arc::clone(&self.limits);
        let refuse = move |status: Status| {
            limits.metrics.answered(what.path, status.code());
            refuse(status)
        };
        let grant = match self.admit(&caller, what.demand) {
            Ok(grant) => grant,
            Err(status) => {
                self.limits.refusals.write(&caller.standing.peer, what.path, &status);
                return refuse(status);
            }
        };
        let Some(places) = self.places(&caller) else {
            let status = api::too_many("too many calls are open: try again when some have ended", LATER);
            self.limits.refusals.write(&caller.standing.peer, what.path, &status);
            return refuse(status);
        };
        let written = grant.clone().filter(|grant| {
            request.extensions_mut().insert(grant.clone());
            what.is_mutation
        });
        let written =
            written.map(|grant| audit::Admitted::new(Arc::clone(&caller.standing), grant, what.path));
        let deadline = deadline::of(request.headers());
        let limits = Arc::clone(&self.limits);
        let span = tracing::info_span!(
            target: SPANS,
            "call",
            otel.kind = "server",
            otel.name = what.path,
            otel.status_code = field::Empty,
            otel.status_description = field::Empty
        );
        traces::adopt(&span, request.headers());
        let answer = self.inner.call(request);
        async move {
            let answer = match tokio::time::timeout(deadline, answer).await {
                Ok(answer) => answer?,
                Err(_) => api::late().into_http(),
            };
            let code = Status::from_header_map(answer.headers()).map_or(Code::Ok, |status| status.code());
            limits.metrics.answered(what.path, code);
            if code != Code::Ok {
                Span::current()
                    .record("otel.status_code", "ERROR")
                    .record("otel.status_description", format!("{code:?}"));
            }
            if let Some(written) = written {
                written.answered(code, answer.extensions().get::<About>());
            }
            let (standing, refusals) = (caller.standing, Arc::clone(&limits.refusals));
            let open = Open { _places: places, standing, refusals, what, grant, has_answered: false };
            Ok(answer.map(|body| Body::new(Admitted { body, open: Some(open) })))
        }
        .instrument(span)
        .boxed()
    }
}

/// What an open call takes up.
type Places = (Call, Option<Member>);

impl<S> Admission<S> {
    /// Room for one more open call, if there is. Of root on this node they are not counted, for the reason for which `pace` does
    /// not count them.
    fn places(&self, caller: &Caller) -> Option<Places> {
        let member = match caller.standing.peer.identity() {
            Identity::User(0) => None,
            who => Some(self.limits.crowd.enter(who)?),
        };
        Some((caller.call()?, member))
    }

    /// Who makes a call that asks for so much. None where nobody is asked.
    fn admit(&self, caller: &Caller, demand: Option<Demand>) -> Result<Option<Grant>, Status> {
        let counted = self.limits.pace.count(&caller.standing.peer.identity());
        counted.map_err(|wait| api::too_many("too many calls were made in a short time", wait))?;
        caller.standing.check(demand)
    }
}

/// A call that is open.
struct Open {
    _places: Places,
    standing: Arc<Standing>,
    refusals: Arc<Refusals>,
    what: &'static api::calls::Call,
    /// As it was admitted.
    grant: Option<Grant>,
    /// Its first message was said: that one is of the call as it was admitted.
    has_answered: bool,
}

/// An answer of a call that is open until all of it was taken, or the client is gone. One that goes on for hours ends when its
/// caller may not make it any more: nothing is said to it after that.
struct Admitted {
    body: Body,
    /// None once it was ended.
    open: Option<Open>,
}

impl Admitted {
    /// What it is told instead of all that would follow, if it is to end.
    fn end(&mut self) -> Option<HeaderMap> {
        let open = self.open.as_mut()?;
        if !std::mem::replace(&mut open.has_answered, true) {
            return None;
        }
        let status = match open.standing.check(open.what.demand) {
            Ok(grant) if grant == open.grant => return None,
            // What it is told was chosen by what it might know of then.
            Ok(_) => api::rules_changed(),
            Err(status) => status,
        };
        open.refusals.write(&open.standing.peer, open.what.path, &status);
        self.open = None;
        self.body = Body::empty();
        let mut trailers = HeaderMap::new();
        // What cannot be spelled is left out; the call ends all the same.
        let _ = status.add_header(&mut trailers);
        Some(trailers)
    }
}

impl http_body::Body for Admitted {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(context) else { return Poll::Pending };
        match &frame {
            Some(Ok(frame)) if frame.is_data() => {
                if let Some(trailers) = self.end() {
                    return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
                }
            }
            Some(_) | None => {}
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
