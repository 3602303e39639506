//! What a collector of OpenTelemetry gets: the spans of a client's call on a real guest, from the client's own context to each
//! step. `make traces` runs it.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::codegen::http;
use tonic::server::{Grpc, NamedService, UnaryService};
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;
use vmsnap::proto::v1;
use vmsnap::proto::v1::snapshot_service_client::SnapshotServiceClient;

use crate::bed::{Daemon, Guest, Setup, Spec, eventually};

/// As a client of W3C Trace Context sends it: version, trace, the client's own span, sampled.
const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

/// What is read of opentelemetry/proto/trace/v1/trace.proto.
#[derive(Clone, PartialEq, prost::Message)]
struct Exported {
    #[prost(message, repeated, tag = "1")]
    of_resources: Vec<OfResource>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct OfResource {
    #[prost(message, repeated, tag = "2")]
    of_scopes: Vec<OfScope>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct OfScope {
    #[prost(message, repeated, tag = "2")]
    spans: Vec<Span>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Span {
    #[prost(bytes = "vec", tag = "1")]
    trace: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    id: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    parent: Vec<u8>,
    #[prost(string, tag = "5")]
    name: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Nothing {}

/// `opentelemetry.proto.collector.trace.v1.TraceService`.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<Span>>>);

impl NamedService for Collector {
    const NAME: &'static str = "opentelemetry.proto.collector.trace.v1.TraceService";
}

impl UnaryService<Exported> for Collector {
    type Response = Nothing;
    type Future = BoxFuture<'static, Result<Response<Nothing>, Status>>;

    fn call(&mut self, request: Request<Exported>) -> Self::Future {
        let scopes = request.into_inner().of_resources.into_iter().flat_map(|resource| resource.of_scopes);
        self.0.lock().unwrap().extend(scopes.flat_map(|scope| scope.spans));
        async { Ok(Response::new(Nothing {})) }.boxed()
    }
}

impl Service<http::Request<Body>> for Collector {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<http::Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let collector = self.clone();
        async move { Ok(Grpc::new(ProstCodec::default()).unary(collector, request).await) }.boxed()
    }
}

impl Collector {
    /// Serves until the runtime ends.
    async fn listen(&self) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tonic::transport::Server::builder().add_service(self.clone());
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        address
    }

    fn spans(&self) -> Vec<Span> {
        self.0.lock().unwrap().clone()
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn a_clients_trace_goes_down_to_each_step() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let collector = Collector::default();
    let address = runtime.block_on(collector.listen());
    let guest = Guest::boot(&Spec::default());
    let environment = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT".to_owned(), format!("http://{address}")),
        // What has ended is sent after so many milliseconds.
        ("OTEL_BSP_SCHEDULE_DELAY".to_owned(), "200".to_owned()),
    ];
    let mut daemon = Daemon::start_with(Setup { environment: environment.to_vec(), ..Setup::default() });

    runtime.block_on(async {
        let mut client = SnapshotServiceClient::new(daemon.connect().await.expect("the daemon serves"));
        let mut request = Request::new(v1::CreateSnapshotRequest {
            vm: guest.name().to_owned(),
            name: "traced".to_owned(),
            ..v1::CreateSnapshotRequest::default()
        });
        request.metadata_mut().insert("traceparent", PARENT.parse().unwrap());
        client.create_snapshot(request).await.unwrap();
    });
    let spans =
        eventually("the collector has call and operation", std::time::Duration::from_secs(60), || {
            let spans = collector.spans();
            let has = |end: &str| spans.iter().any(|span| span.name.ends_with(end));
            (has("operation") && has("CreateSnapshot")).then_some(spans)
        });

    let of: HashMap<String, &Span> = spans.iter().map(|span| (hex(&span.id), span)).collect();
    let ours: Vec<&Span> = spans.iter().filter(|span| PARENT.contains(&hex(&span.trace))).collect();
    let call = ours.iter().find(|span| span.name.ends_with("CreateSnapshot")).expect("the call has a span");
    assert!(PARENT.contains(&hex(&call.parent)), "it is within that of the client");
    let operation = ours.iter().find(|span| span.name == "operation").expect("the operation has a span");
    assert_eq!(operation.parent, call.id);
    let steps: Vec<_> = ours.iter().filter(|span| span.name == "step").collect();
    assert!(steps.len() >= 4, "overlays, a freeze, a switch, a thaw: {steps:?}");
    for step in steps {
        assert_eq!(of[&hex(&step.parent)].id, operation.id);
    }
    daemon.stop();
}
