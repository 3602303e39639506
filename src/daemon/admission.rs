//! The first layer that a call comes through: it is let in, and counted until its answer was taken.
//!
//! Decides nothing: `connections` says who may have another one.

use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http_body::{Frame, SizeHint};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http::{Request, Response};
use tonic::codegen::{Bytes, Service};

use super::connections::{Call, Caller};

/// A service behind the layer.
#[derive(Debug, Clone)]
pub(super) struct Admission<S>(pub(super) S);

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
        self.0.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        // Every connection of the listener has one.
        let Some(caller) = request.extensions().get::<Caller>().cloned() else {
            return self.0.call(request).boxed();
        };
        let Some(call) = caller.call() else {
            let refused =
                Status::resource_exhausted("too many calls are open: try again when some have ended");
            return std::future::ready(Ok(refused.into_http())).boxed();
        };
        request.extensions_mut().insert(caller.credentials);
        let answer = self.0.call(request);
        async move { answer.await.map(|answer| answer.map(|body| Body::new(Counted { body, _call: call }))) }
            .boxed()
    }
}

/// An answer of a call that is open until all of it was taken, or the client is gone.
struct Counted {
    body: Body,
    _call: Call,
}

impl http_body::Body for Counted {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
