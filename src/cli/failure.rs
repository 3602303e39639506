//! What went wrong, as a person reads it, and the exit code it has.

use std::error::Error;
use std::process::ExitCode;

use tonic::{Code, Status};
use tonic_types::StatusExt;

use super::output;
use crate::proto::v1;

/// Exit codes; `vmsnap --help` lists them.
pub(super) mod exit {
    pub(in crate::cli) const FAILED: u8 = 1;
    pub(in crate::cli) const USAGE: u8 = 2;
    pub(in crate::cli) const PARTLY: u8 = 3;
    pub(in crate::cli) const NOT_FOUND: u8 = 4;
    pub(in crate::cli) const EXISTS: u8 = 5;
    pub(in crate::cli) const PRECONDITION: u8 = 6;
    pub(in crate::cli) const PERMISSION: u8 = 7;
    pub(in crate::cli) const UNAVAILABLE: u8 = 8;
    pub(in crate::cli) const TIMED_OUT: u8 = 9;
    pub(in crate::cli) const NO_SPACE: u8 = 10;
    pub(in crate::cli) const DIFFERS: u8 = 11;
    pub(in crate::cli) const INTERRUPTED: u8 = 130;
}

/// What went wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failure {
    /// The exit code.
    pub(super) code: u8,
    words: Box<Words>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Words {
    message: String,
    cause: String,
    changed: String,
    remedy: String,
    reason: String,
}

impl Failure {
    /// Something that the client itself found wrong, or that it left.
    pub(super) fn new(code: u8, message: impl Into<String>, remedy: impl Into<String>) -> Self {
        let words = Words { message: message.into(), remedy: remedy.into(), ..Words::default() };
        Self { code, words: Box::new(words) }
    }

    /// An operation that did not succeed.
    pub(super) fn of_operation(operation: &v1::Operation) -> Self {
        let error = operation.error.clone().unwrap_or_default();
        let mut failure =
            Self::new(exit_code(Code::from(error.code)), error.message.clone(), error.remedy.clone());
        if operation.state() == v1::OperationState::Stuck {
            failure.words.message = format!("operation {} is stuck: {}", operation.id, failure.words.message);
            let first = if error.remedy.is_empty() {
                format!("look at it with 'vmsnap op show {}'", operation.id)
            } else {
                error.remedy.clone()
            };
            failure.words.remedy = format!("{first}; then 'vmsnap op resolve'");
        }
        reason_name(error.reason()).clone_into(&mut failure.words.reason);
        failure.words.cause = error.cause;
        failure.words.changed = error.changed;
        failure
    }

    /// Shows it on stderr and gives its exit code.
    pub(super) fn show(&self) -> ExitCode {
        output::complaint(&self.to_string());
        ExitCode::from(self.code)
    }
}

/// Message, then cause, what was changed and remedy, each on its line; the reason last.
impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "error: {}", self.words.message)?;
        let parts = [
            ("why", &self.words.cause),
            ("changed", &self.words.changed),
            ("do", &self.words.remedy),
            ("reason", &self.words.reason),
        ];
        for (label, text) in parts.iter().filter(|(_, text)| !text.is_empty()) {
            write!(f, "\n  {label}: {text}")?;
        }
        Ok(())
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        let details = status.get_error_details();
        let info = details.error_info();
        let part = |key: &str| info.and_then(|info| info.metadata.get(key)).cloned().unwrap_or_default();
        let mut failure = Self::new(exit_code(status.code()), status.message(), part("remedy"));
        failure.words.cause = part("cause");
        failure.words.changed = part("changed");
        failure.words.reason = info.map(|info| info.reason.clone()).unwrap_or_default();
        if !failure.words.cause.is_empty() {
            // The message of the status carries its cause for clients that read nothing else.
            let tail = format!(": {}", failure.words.cause);
            if failure.words.message.ends_with(&tail) {
                failure.words.message.truncate(failure.words.message.len() - tail.len());
            }
        }
        if info.is_none() && matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Cancelled) {
            "vmsnapd cannot be reached".clone_into(&mut failure.words.message);
            failure.code = exit::UNAVAILABLE;
            failure.words.cause = deepest(&status).unwrap_or_else(|| status.message().to_owned());
            "start vmsnapd, or say where it is with --socket or --host".clone_into(&mut failure.words.remedy);
        }
        failure
    }
}

fn deepest(error: &(dyn Error + 'static)) -> Option<String> {
    let mut cause = error.source()?;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    Some(cause.to_string())
}

/// The reason as `google.rpc.ErrorInfo` spells it.
fn reason_name(reason: v1::Reason) -> &'static str {
    let name = reason.as_str_name();
    name.strip_prefix("REASON_").unwrap_or(name)
}

/// The one table of exit codes.
fn exit_code(code: Code) -> u8 {
    match code {
        Code::Ok => 0,
        Code::InvalidArgument | Code::OutOfRange => exit::USAGE,
        Code::NotFound => exit::NOT_FOUND,
        Code::AlreadyExists => exit::EXISTS,
        Code::FailedPrecondition | Code::Aborted => exit::PRECONDITION,
        Code::PermissionDenied | Code::Unauthenticated => exit::PERMISSION,
        Code::Unavailable => exit::UNAVAILABLE,
        Code::DeadlineExceeded => exit::TIMED_OUT,
        Code::ResourceExhausted => exit::NO_SPACE,
        Code::Cancelled | Code::Unknown | Code::Unimplemented | Code::Internal | Code::DataLoss => {
            exit::FAILED
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use tonic_types::ErrorDetails;

    use super::*;

    #[test]
    fn a_status_reads_as_message_cause_change_remedy() {
        let metadata = [("remedy", "start libvirtd"), ("changed", "nothing"), ("cause", "no socket")];
        let metadata: HashMap<String, String> =
            metadata.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let details = ErrorDetails::with_error_info("LIBVIRT_UNAVAILABLE", "vmsnap", metadata);
        let status = Status::with_error_details(Code::Unavailable, "it is down: no socket", details);
        let failure = Failure::from(status);
        assert_eq!(failure.code, exit::UNAVAILABLE);
        assert_eq!(
            failure.to_string(),
            "error: it is down\n  why: no socket\n  changed: nothing\n  do: start libvirtd\n  reason: LIBVIRT_UNAVAILABLE"
        );
    }

    #[test]
    fn a_daemon_that_is_not_there_is_unavailable() {
        let failure = Failure::from(Status::unknown("transport error"));
        assert_eq!(failure.code, exit::UNAVAILABLE);
    }

    #[test]
    fn an_operation_has_the_exit_code_of_its_error() {
        let error = v1::Error {
            code: Code::ResourceExhausted.into(),
            reason: v1::Reason::NoSpace.into(),
            message: "full".to_owned(),
            ..v1::Error::default()
        };
        let operation = v1::Operation { error: Some(error), ..v1::Operation::default() };
        let failure = Failure::of_operation(&operation);
        assert_eq!(failure.code, exit::NO_SPACE);
        assert!(failure.to_string().contains("reason: NO_SPACE"));
    }
}
