//! Spans of operations and their steps, for whoever takes them: `daemon/traces.rs`.
//!
//! Decides what stands in them. Where nobody takes them they are not made.

use tracing::{Span, field};

use crate::model::{Operation, Turn};
use crate::plan;

/// What spans are known by.
pub const SPANS: &str = "vmsnapd::trace";

/// Of an operation that begins, or goes on: within what is under way here. That one does not stay open for it.
pub(super) fn of_operation(operation: &Operation) -> Span {
    let cause = Span::current();
    let span = tracing::info_span!(
        target: SPANS,
        parent: None,
        "operation",
        id = %operation.id,
        kind = operation.request.name(),
        vm = %operation.vm,
        otel.status_code = field::Empty
    );
    within(&span, &cause);
    span
}

/// Of a turn of an operation.
pub(super) fn of_turn(operation: &Operation, turn: Turn) -> Span {
    let name = match turn {
        Turn::Ensure(_) => "step",
        Turn::Undo(_) => "undo",
    };
    tracing::info_span!(target: SPANS, "step", otel.name = name, what = plan::describe(operation.step(turn)))
}

/// What this span is of has failed.
pub(super) fn failed() {
    Span::current().record("otel.status_code", "ERROR");
}

#[cfg(feature = "opentelemetry")]
fn within(span: &Span, cause: &Span) {
    use tracing_opentelemetry::OpenTelemetrySpanExt;
    // Where nothing is sent there is no layer that could take it.
    let _ = span.set_parent(cause.context());
}

#[cfg(not(feature = "opentelemetry"))]
fn within(_: &Span, _: &Span) {}
