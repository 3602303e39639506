//! The listener that Prometheus asks: HTTP, one path, nothing to be sent in.
//!
//! Decides how many may ask at once and how long one may take: whoever dawdles loses the connection, nobody else waits for it.

use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;

use super::{Metrics, look};
use crate::daemon::controller::Reporting;
use crate::ops::Engine;

/// Connections at once. Prometheus has one, a person another.
const MOST: usize = 8;

/// Longest connection. Prometheus gives up after 10 s by itself.
const LONGEST: Duration = Duration::from_secs(10);

/// Until the next attempt when there is no descriptor for a connection. Nothing tells when there is one again.
const PAUSE: Duration = Duration::from_millis(100);

/// What an answer is made of.
pub(in crate::daemon) struct Source {
    pub(in crate::daemon) metrics: Arc<Metrics>,
    pub(in crate::daemon) engine: Engine,
    pub(in crate::daemon) state_directory: PathBuf,
    pub(in crate::daemon) reporting: Option<watch::Receiver<Reporting>>,
}

/// Answers until `stop`.
pub(in crate::daemon) async fn listen(listener: TcpListener, source: Source, stop: CancellationToken) {
    let (source, places) = (Arc::new(source), Arc::new(Semaphore::new(MOST)));
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => return,
        };
        let Ok((stream, _)) = stream else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else { continue };
        let source = Arc::clone(&source);
        tokio::spawn(async move {
            // One that has broken off has what it wanted, or comes again.
            let _ = tokio::time::timeout(LONGEST, serve(stream, source)).await;
            drop(place);
        });
    }
}

async fn serve(stream: TcpStream, source: Arc<Source>) -> hyper::Result<()> {
    let answer = service_fn(move |request: Request<Incoming>| {
        let source = Arc::clone(&source);
        async move { Ok::<_, Infallible>(source.answer(&request).await) }
    });
    http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await
}

impl Source {
    async fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        match (request.method(), request.uri().path()) {
            (&Method::GET, "/metrics") => {}
            (&Method::GET, _) => return short(StatusCode::NOT_FOUND, "the figures are at /metrics\n"),
            _ => return short(StatusCode::METHOD_NOT_ALLOWED, "GET /metrics\n"),
        }
        look(&self.metrics, &self.engine, &self.state_directory, self.reporting.as_ref()).await;
        match self.metrics.text() {
            Ok(text) => {
                let mut answer = Response::new(Full::from(text));
                answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(prometheus::TEXT_FORMAT));
                answer
            }
            Err(error) => {
                let error: &dyn std::error::Error = &error;
                tracing::warn!(error, "the metrics cannot be written down");
                short(StatusCode::INTERNAL_SERVER_ERROR, "see the log of vmsnapd\n")
            }
        }
    }
}

fn short(status: StatusCode, words: &'static str) -> Response<Full<Bytes>> {
    let mut answer = Response::new(Full::from(words));
    *answer.status_mut() = status;
    answer
}
