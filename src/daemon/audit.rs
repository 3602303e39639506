//! The audit trail: a line in the log for each call that may change something, and for each that was refused.
//!
//! Decides what it says: who, from where, what, whether it was let through, what came of it, and what it was about: the operation
//! that has begun, or the snapshot or VM. They have a target of their own, `vmsnapd::audit`, and no filter of the log holds them
//! back.

use std::num::NonZeroU32;
use std::sync::Arc;

use tonic::{Code, Status};

use super::access::{Peer, Standing};
use super::pace::Pace;
use crate::api::About;
use crate::model::access::{Grant, Identity};
use crate::ops::message_id;

/// What the lines are known by in the log.
pub(super) const TARGET: &str = "vmsnapd::audit";

/// Lines of refusals.
const LINES_PER_SECOND: NonZeroU32 = NonZeroU32::new(20).expect("twenty is not zero");

/// A call that may change something and was let through. It has its line when it is answered, or when nobody waits for the answer
/// any more: what it asked for may be done all the same.
pub(super) struct Admitted {
    standing: Arc<Standing>,
    grant: Grant,
    call: &'static str,
    is_written: bool,
}

impl Admitted {
    pub(super) fn new(standing: Arc<Standing>, grant: Grant, call: &'static str) -> Self {
        Self { standing, grant, call, is_written: false }
    }

    pub(super) fn answered(mut self, code: Code, about: Option<&About>) {
        self.write(code, about.map_or("", |about| about.0.as_str()));
    }

    fn write(&mut self, code: Code, about: &str) {
        self.is_written = true;
        tracing::info!(
            target: TARGET,
            message_id = message_id::CALL_ADMITTED,
            principal = %self.grant.principal,
            role = %self.grant.role,
            from = self.standing.peer.place(),
            call = self.call,
            decision = "allowed",
            code = ?code,
            about,
            "a call was let through"
        );
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        if !self.is_written {
            self.write(Code::Cancelled, "");
        }
    }
}

/// What was refused. Whoever asks again and again does not fill the log: of one caller, and of all who do not get so far as to call,
/// some lines in a second are written.
pub(super) struct Refusals(Pace);

impl Default for Refusals {
    fn default() -> Self {
        Self(Pace::of(LINES_PER_SECOND))
    }
}

impl Refusals {
    /// A call was refused, or one that went on was ended.
    pub(super) fn write(&self, peer: &Peer, call: &str, status: &Status) {
        if self.0.count(&peer.identity()).is_err() {
            return;
        }
        tracing::warn!(
            target: TARGET,
            message_id = message_id::CALL_REFUSED,
            from = peer.place(),
            call,
            decision = "refused",
            code = ?status.code(),
            why = status.message(),
            "a call was refused"
        );
    }

    /// Somebody did not get so far as to make a call.
    pub(super) fn turned_away(&self, from: &str, why: &str) {
        if self.0.count(&Identity::Socket).is_ok() {
            let message_id = message_id::CALL_REFUSED;
            tracing::warn!(target: TARGET, message_id, from, decision = "refused", why, "a connection was refused");
        }
    }
}
