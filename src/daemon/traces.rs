//! Spans for a collector of OpenTelemetry: a call, the operation that it has begun, each step of that. Only with the feature
//! `opentelemetry`; [`off`](super::traces) stands in its place else.
//!
//! Decides where they go: to what `OTEL_EXPORTER_OTLP_ENDPOINT` names, and nowhere without it. Leaves what is a span to whoever
//! does the work.

use std::env;

use opentelemetry::propagation::{Extractor, TextMapPropagator};
use opentelemetry::trace::TracerProvider;
use opentelemetry_otlp::{ExporterBuildError, SpanExporter};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tokio::runtime::{Builder, Runtime};
use tonic::codegen::http::HeaderMap;
use tracing::{Span, Subscriber};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::Layer;
use tracing_subscriber::registry::LookupSpan;

/// Either of them names a collector (OpenTelemetry, "OTLP Exporter Configuration").
const ENDPOINTS: [&str; 2] = ["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"];

/// Spans are sent, until this is dropped: then what waits is sent at last.
pub(super) struct Traces {
    provider: SdkTracerProvider,
    /// The exporter's own: it lives longer than that of the daemon. None once it is let go of.
    runtime: Option<Runtime>,
}

/// Why nothing is sent.
#[derive(Debug, thiserror::Error)]
pub(super) enum TracesError {
    #[error("no thread can be had for the traces")]
    Runtime(#[from] std::io::Error),
    #[error("the traces cannot be sent to what OTEL_EXPORTER_OTLP_ENDPOINT names")]
    Exporter(#[from] ExporterBuildError),
}

impl Traces {
    /// None where no collector is named.
    pub(super) fn start() -> Result<Option<Self>, TracesError> {
        if ENDPOINTS.iter().all(|name| env::var_os(name).is_none_or(|value| value.is_empty())) {
            return Ok(None);
        }
        let runtime =
            Builder::new_multi_thread().worker_threads(1).thread_name("traces").enable_all().build()?;
        let inside = runtime.enter();
        let exporter = SpanExporter::builder().with_tonic().build()?;
        drop(inside);
        let mut resource = Resource::builder();
        if env::var_os("OTEL_SERVICE_NAME").is_none() && env::var_os("OTEL_RESOURCE_ATTRIBUTES").is_none() {
            resource = resource.with_service_name("vmsnapd");
        }
        let resource = resource.build();
        let provider =
            SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource).build();
        Ok(Some(Self { provider, runtime: Some(runtime) }))
    }

    /// What takes the spans.
    pub(super) fn layer<S>(&self) -> impl Layer<S> + use<S>
    where
        S: Subscriber + for<'a> LookupSpan<'a>,
    {
        tracing_opentelemetry::layer().with_tracer(self.provider.tracer("vmsnapd"))
    }
}

impl Drop for Traces {
    fn drop(&mut self) {
        // A collector that is away keeps nobody from going: the SDK waits for 5 s, and a name that is being looked up for nobody.
        let _ = self.provider.shutdown();
        self.runtime.take().map(Runtime::shutdown_background);
    }
}

/// Lets a call be part of what its client does: `traceparent` (W3C Trace Context).
pub(super) fn adopt(span: &Span, headers: &HeaderMap) {
    let parent = TraceContextPropagator::new().extract(&Headers(headers));
    // Where nothing is sent there is no layer that could take it.
    let _ = span.set_parent(parent);
}

struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).and_then(|value| value.to_str().ok())
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(tonic::codegen::http::HeaderName::as_str).collect()
    }
}
