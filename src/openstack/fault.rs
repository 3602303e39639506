//! Errors as Cinder spells them: one word for each status of HTTP, with the status and a message.
//!
//! Decides which status each refusal of a call has. Exhaustive, without a catch-all: a new code cannot go out unnamed.

use std::time::Duration;

use axum::body::Body;
use axum::http::header::{CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderValue, Response, StatusCode};
use axum::response::IntoResponse;
use serde_json::json;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use super::calls::Refused;
use crate::proto::v1;

/// A request that is not carried out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    status: StatusCode,
    message: String,
    retry_after: Option<Duration>,
}

impl Fault {
    pub(super) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), retry_after: None }
    }

    pub(super) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// As Cinder says it of what a request has wrong.
    pub(super) fn invalid_input(why: &str) -> Self {
        Self::bad_request(format!("Invalid input received: {why}"))
    }

    pub(super) fn invalid_volume(why: &str) -> Self {
        Self::bad_request(format!("Invalid volume: {why}"))
    }

    pub(super) fn invalid_snapshot(why: &str) -> Self {
        Self::bad_request(format!("Invalid snapshot: {why}"))
    }

    pub(super) fn no_snapshot(id: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, format!("Snapshot {id} could not be found."))
    }

    pub(super) fn no_volume(id: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, format!("Volume {id} could not be found."))
    }

    /// What Cinder can do, and this node cannot.
    pub(super) fn lacking(what: &str) -> Self {
        Self::new(StatusCode::NOT_IMPLEMENTED, format!("vmsnapd does not support {what}."))
    }

    /// An operation that was begun and has failed: nothing of it is left.
    pub(super) fn of_operation(operation: &v1::Operation) -> Self {
        let error = operation.error.clone().unwrap_or_default();
        let message = if error.cause.is_empty() {
            error.message
        } else {
            format!("{}: {}", error.message, error.cause)
        };
        Self::new(status(Code::from_i32(error.code)), message)
    }

    /// Whether it is that there is nothing of that name.
    pub(super) fn is_not_found(&self) -> bool {
        self.status == StatusCode::NOT_FOUND
    }

    /// What stands instead of it where somebody asked for an id.
    pub(super) fn or(self, none: impl FnOnce() -> Self) -> Self {
        if self.is_not_found() { none() } else { self }
    }
}

fn status(code: Code) -> StatusCode {
    match code {
        Code::InvalidArgument | Code::OutOfRange | Code::FailedPrecondition => StatusCode::BAD_REQUEST,
        Code::Unauthenticated => StatusCode::UNAUTHORIZED,
        Code::PermissionDenied => StatusCode::FORBIDDEN,
        Code::NotFound => StatusCode::NOT_FOUND,
        Code::AlreadyExists | Code::Aborted => StatusCode::CONFLICT,
        Code::ResourceExhausted => StatusCode::PAYLOAD_TOO_LARGE,
        Code::Unimplemented => StatusCode::NOT_IMPLEMENTED,
        Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled => StatusCode::SERVICE_UNAVAILABLE,
        Code::Ok | Code::Unknown | Code::Internal | Code::DataLoss => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// The word that stands around an error.
fn word(status: StatusCode) -> &'static str {
    match status.as_u16() {
        400 => "badRequest",
        401 => "unauthorized",
        403 => "forbidden",
        404 => "itemNotFound",
        405 => "badMethod",
        409 => "conflictingRequest",
        413 => "overLimit",
        415 => "badMediaType",
        501 => "notImplemented",
        503 => "serviceUnavailable",
        _ => "computeFault",
    }
}

impl From<Status> for Fault {
    fn from(refused: Status) -> Self {
        let retry = refused.get_error_details().retry_info().and_then(|retry| retry.retry_delay);
        Self { status: status(refused.code()), message: refused.message().to_owned(), retry_after: retry }
    }
}

impl From<Refused> for Fault {
    fn from(refused: Refused) -> Self {
        refused.into_status().into()
    }
}

impl From<Fault> for Response<Body> {
    fn from(fault: Fault) -> Self {
        let mut inner = json!({ "code": fault.status.as_u16(), "message": fault.message });
        let seconds = fault.retry_after.map(|wait| wait.as_secs_f64().ceil().to_string());
        if let Some(seconds) = &seconds {
            inner["retryAfter"] = seconds.as_str().into();
        }
        let text = json!({ word(fault.status): inner }).to_string();
        let mut answer = Response::new(Body::from(text));
        *answer.status_mut() = fault.status;
        answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(seconds) = seconds.and_then(|seconds| HeaderValue::from_str(&seconds).ok()) {
            answer.headers_mut().insert(RETRY_AFTER, seconds);
        }
        answer
    }
}

impl IntoResponse for Fault {
    fn into_response(self) -> Response<Body> {
        self.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes() {
        let body = async |fault: Fault| {
            let answer = Response::from(fault);
            let status = answer.status().as_u16();
            let bytes = axum::body::to_bytes(answer.into_body(), 4096).await.unwrap();
            (status, String::from_utf8(bytes.to_vec()).unwrap())
        };
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let (status, text) = body(Fault::no_snapshot("x")).await;
            assert_eq!(status, 404);
            assert_eq!(text, r#"{"itemNotFound":{"code":404,"message":"Snapshot x could not be found."}}"#);
            let (status, text) = body(Fault::from(Status::internal("what"))).await;
            assert_eq!((status, text.as_str()), (500, r#"{"computeFault":{"code":500,"message":"what"}}"#));
            let (status, text) = body(Fault::lacking("backups")).await;
            assert_eq!(status, 501);
            assert!(text.starts_with(r#"{"notImplemented":{"code":501,"#), "{text}");
        });
    }
}
