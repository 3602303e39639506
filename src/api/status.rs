//! Errors as clients see them: what happened, why, what was changed, what to do.

use std::collections::HashMap;
use std::error::Error;
use std::str::FromStr;
use std::time::Duration;

use jiff::Timestamp;
use prost::Message;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation, StatusExt};

use super::{facts, reason};
use crate::model::access::Denial;
use crate::model::operation::causes;
use crate::model::{Failure, Reason};
use crate::ops::OpsError;
use crate::proto::v1;

/// Fields of a request that are wrong: all of them at once.
#[derive(Debug, Default)]
pub(super) struct Violations(Vec<FieldViolation>);

/// Most violations that are told: a list may have a million entries, and an answer's headers have some KiB.
const MOST_VIOLATIONS: usize = 16;

impl Violations {
    /// Notes that a field is wrong.
    pub(super) fn add(&mut self, field: &str, problem: impl Into<String>) {
        if self.0.len() < MOST_VIOLATIONS {
            self.0.push(FieldViolation::new(field, problem));
        }
    }

    /// Takes the value, or notes why there is none.
    pub(super) fn take<T, E: ToString>(&mut self, field: &str, result: Result<T, E>) -> Option<T> {
        result.map_err(|error| self.add(field, error.to_string())).ok()
    }

    /// An id, if one is given.
    pub(super) fn take_id<T: FromStr>(&mut self, field: &str, id: &str) -> Option<T> {
        match id {
            "" => None,
            id => self.take(field, id.parse().map_err(|_| "it is not an id")),
        }
    }

    /// A time, if one is given.
    pub(super) fn take_time(&mut self, field: &str, at: Option<prost_types::Timestamp>) -> Option<Timestamp> {
        let at = at.map(|at| Timestamp::new(at.seconds, at.nanos).map_err(|_| "it is not a time"));
        at.and_then(|at| self.take(field, at))
    }

    /// Refuses the request if anything was noted.
    pub(super) fn check(self) -> Result<(), Status> {
        if self.0.is_empty() {
            return Ok(());
        }
        let words: Vec<String> = self
            .0
            .iter()
            .map(|violation| format!("{}: {}", violation.field, violation.description))
            .collect();
        let mut details = details(Reason::InvalidArgument, "mend the fields that are named", "");
        details.set_bad_request(self.0);
        Err(Status::with_error_details(Code::InvalidArgument, words.join("; "), details))
    }
}

/// The status of an engine call that failed. Nothing was changed by it.
#[allow(clippy::needless_pass_by_value, reason = "it is what map_err hands over")]
pub(super) fn of(error: OpsError) -> Status {
    let (_, code) = reason::of(error.reason());
    if matches!(code, Code::Internal | Code::Unavailable | Code::DeadlineExceeded) {
        let cause: &(dyn Error + 'static) = &error;
        tracing::warn!(error = cause, "a call failed");
    }
    let cause = causes(&error).join(": ");
    let message = if cause.is_empty() { error.to_string() } else { format!("{error}: {cause}") };
    let details = details_with(error.reason(), error.remedy(), &cause, facts::of(&error));
    Status::with_error_details(code, message, details)
}

/// The status of an RPC that a later version serves.
pub(super) fn not_implemented(what: &str) -> Status {
    let details = details(Reason::NotImplemented, "use a later version of vmsnapd", "");
    Status::with_error_details(
        Code::Unimplemented,
        format!("this version does not serve {what} yet"),
        details,
    )
}

/// A status with a reason of ours and nothing behind it.
pub(super) fn plain(reason: Reason, message: &str, remedy: &str) -> Status {
    Status::with_error_details(reason::of(reason).1, message, details(reason, remedy, ""))
}

/// A call that is not for its caller.
#[must_use]
pub fn denied(denial: &Denial) -> Status {
    let remedy = "ask whoever runs this node: see [[access]] in its configuration";
    plain(Reason::PermissionDenied, &denial.to_string(), remedy)
}

/// A call of somebody whose certificate proves nothing, or nothing any more.
#[must_use]
pub fn unproven(why: &str) -> Status {
    plain(
        Reason::Unauthenticated,
        &format!("the certificate proves nothing: {why}"),
        "connect with a valid certificate",
    )
}

/// A call of somebody who has to say who he is, or whose password is wrong.
#[must_use]
pub fn unknown_user() -> Status {
    plain(
        Reason::Unauthenticated,
        "The request you have made requires authentication.",
        "give the name and the password of a user of [openstack]",
    )
}

/// A call that goes on, and whose caller is given something else than when it began.
#[must_use]
pub fn rules_changed() -> Status {
    plain(Reason::Draining, "what its caller may know of has changed", "make the call again")
}

/// One call more than its caller may make, or may have open, now.
#[must_use]
pub fn too_many(message: &str, wait: Duration) -> Status {
    let mut details = details(Reason::RateLimited, "try again later", "");
    details.set_retry_info(Some(wait));
    Status::with_error_details(reason::of(Reason::RateLimited).1, message, details)
}

/// A call that took longer than it may.
#[must_use]
pub fn late() -> Status {
    let remedy = "look whether it was done: a mutation with the same request_id is done once";
    let details = ErrorDetails::with_error_info(
        name(Reason::DeadlineExceeded),
        reason::DOMAIN,
        [("remedy".to_owned(), remedy.to_owned())],
    );
    Status::with_error_details(
        reason::of(Reason::DeadlineExceeded).1,
        "the call has taken longer than its deadline",
        details,
    )
}

/// A call that nothing serves.
#[must_use]
pub fn unknown_call(path: &str) -> Status {
    plain(Reason::NotImplemented, &format!("there is no call {path:?}"), "use a later version of vmsnapd")
}

/// Until a call is made again, where nothing has to be mended and nobody knows better.
const SOON: Duration = Duration::from_secs(1);

fn details(reason: Reason, remedy: &str, cause: &str) -> ErrorDetails {
    details_with(reason, remedy, cause, Vec::new())
}

fn details_with(reason: Reason, remedy: &str, cause: &str, facts: Vec<facts::Fact>) -> ErrorDetails {
    let mut metadata: HashMap<String, String> =
        facts.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    metadata.insert("remedy".to_owned(), remedy.to_owned());
    metadata.insert("changed".to_owned(), "nothing".to_owned());
    if !cause.is_empty() {
        metadata.insert("cause".to_owned(), cause.to_owned());
    }
    let mut details = ErrorDetails::with_error_info(name(reason), reason::DOMAIN, metadata);
    if reason::is_passing(reason) {
        details.set_retry_info(Some(SOON));
    }
    details
}

/// The reason as `google.rpc.ErrorInfo` wants it: without the prefix of the enum.
#[must_use]
pub fn name(reason: Reason) -> &'static str {
    let name = reason::of(reason).0.as_str_name();
    name.strip_prefix("REASON_").unwrap_or(name)
}

/// A refusal as a plan shows it.
pub(super) fn blocker(error: &OpsError) -> v1::Error {
    let (reason, code) = reason::of(error.reason());
    v1::Error {
        code: code.into(),
        reason: reason.into(),
        message: error.to_string(),
        cause: causes(error).join(": "),
        remedy: error.remedy().to_owned(),
        changed: "nothing".to_owned(),
        metadata: facts::of(error).into_iter().map(|(key, value)| (key.to_owned(), value)).collect(),
    }
}

/// The failure of an operation.
pub(super) fn failure(failure: &Failure, changed: &str) -> v1::Error {
    let (reason, code) = reason::of(failure.reason);
    v1::Error {
        code: code.into(),
        reason: reason.into(),
        message: failure.message.clone(),
        cause: failure.causes.join(": "),
        remedy: reason::remedy(failure.reason).to_owned(),
        changed: changed.to_owned(),
        ..v1::Error::default()
    }
}

/// A digest of a request: what tells a repetition from another request under the same id. Fields that only say how to
/// ask must be cleared before.
pub(super) fn digest<M: Message>(rpc: &str, message: &M) -> Vec<u8> {
    use sha2::{Digest, Sha256};
    let mut digest = Sha256::new();
    digest.update(rpc);
    digest.update([0]);
    digest.update(message.encode_to_vec());
    digest.finalize().to_vec()
}
