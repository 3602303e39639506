//! libvirt's errors in our words. Decides by code and by who reports, never by text: texts are translated and change.

use std::fmt;

use virt::error::{Error, ErrorDomain, ErrorNumber};

use crate::host::HostError;
use crate::model::VmId;

/// Longest text of an error that we keep. Some of it can come from inside a guest.
const LONGEST_TEXT: usize = 600;

/// libvirt's own words, made safe to show: bounded, and without control characters.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(super) struct LibvirtSays(String);

impl LibvirtSays {
    pub(super) fn new(text: impl fmt::Display) -> Self {
        let text = text.to_string();
        Self(text.chars().take(LONGEST_TEXT).map(|c| if c.is_control() { ' ' } else { c }).collect())
    }
}

impl From<&Error> for LibvirtSays {
    fn from(error: &Error) -> Self {
        Self::new(error.message())
    }
}

/// What an error of a call on `vm` means. `call` is what was asked, as in "start the VM".
pub(super) fn on_vm(vm: VmId, call: &'static str) -> impl FnOnce(Error) -> HostError {
    move |error| match error.code() {
        ErrorNumber::NoDomain if !is_of_the_line(&error) => HostError::NoSuchVm(vm),
        _ => general(call, &error),
    }
}

/// What an error of a call on no VM in particular means.
pub(super) fn of_node(call: &'static str) -> impl FnOnce(Error) -> HostError {
    move |error| general(call, &error)
}

fn general(call: &'static str, error: &Error) -> HostError {
    let cause = LibvirtSays::from(error).into();
    if is_of_the_line(error) {
        return HostError::Unreachable(Some(cause));
    }
    match error.code() {
        // "cannot acquire state change lock": another call has held the VM for 30 s.
        ErrorNumber::OperationTimeout | ErrorNumber::ResourceBusy => HostError::Busy(cause),
        _ => HostError::Refused { call, cause },
    }
}

/// What an error of a guest agent command means.
pub(super) fn of_agent(vm: VmId, call: &'static str) -> impl FnOnce(Error) -> HostError {
    move |error| {
        let cause = LibvirtSays::from(&error).into();
        if is_of_the_line(&error) {
            return HostError::Unreachable(Some(cause));
        }
        match error.code() {
            ErrorNumber::NoDomain => HostError::NoSuchVm(vm),
            // Not running, no channel, nobody at the other end, or no answer: there is no agent to talk to.
            ErrorNumber::AgentUnresponsive
            | ErrorNumber::AgentUnsynced
            | ErrorNumber::AgentCommandTimeout
            | ErrorNumber::OperationInvalid
            | ErrorNumber::ArgumentUnsupported => HostError::AgentUnavailable(Some(cause)),
            ErrorNumber::OperationTimeout | ErrorNumber::ResourceBusy => HostError::Busy(cause),
            // libvirt passes on an error of the agent as one of these.
            ErrorNumber::InternalError
            | ErrorNumber::AgentCommandFailed
            | ErrorNumber::OperationUnsupported => HostError::AgentRefused(cause),
            _ => HostError::Refused { call, cause },
        }
    }
}

/// Whether the client library reports about its line to the daemon, rather than the daemon about a VM.
fn is_of_the_line(error: &Error) -> bool {
    matches!(error.domain(), ErrorDomain::Rpc | ErrorDomain::Remote)
        || matches!(error.code(), ErrorNumber::NoConnect | ErrorNumber::InvalidConn)
}
