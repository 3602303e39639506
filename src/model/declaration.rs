//! What a person declares of a snapshot after a look at it: that it is READY, or in ERROR.
//!
//! Decides what may be declared of which. Leaves to `plan` whether all that it reads is there: a word alone makes nothing READY.
//!
//! ```text
//!   READY --in ERROR--> ERROR, declared --READY, and all is as recorded--> READY
//!
//!   ERROR, for another reason                 for good: what it reads is not known, and no word changes that
//! ```

use jiff::Timestamp;

use super::edit::EditRefusal;
use super::operation::{Failure, Reason};
use super::snapshot::{Snapshot, SnapshotState};

/// What somebody says of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Declaration {
    /// What it is.
    pub what: Declared,
    /// Who says so.
    pub by: String,
    /// The generation of the snapshot that he has seen; None not to check.
    pub generation: Option<u64>,
    /// When.
    pub at: Timestamp,
}

/// What can be said of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Declared {
    /// It reads what it should.
    Ready,
    /// It does not, as far as somebody knows.
    Error,
}

impl Snapshot {
    /// Lets it be what is declared. False if it is so already.
    pub(super) fn declare(&mut self, declaration: &Declaration) -> Result<bool, EditRefusal> {
        if declaration.generation.is_some_and(|seen| seen != self.generation) {
            return Err(EditRefusal::EtagMismatch { actual: self.generation });
        }
        match (self.state, declaration.what) {
            (SnapshotState::Ready, Declared::Ready) | (SnapshotState::Error, Declared::Error) => Ok(false),
            (SnapshotState::Ready, Declared::Error) => {
                let message = format!("{} has declared it in ERROR", declaration.by);
                self.trouble = Some(Failure { reason: Reason::Declared, message, causes: Vec::new() });
                self.state = SnapshotState::Error;
                Ok(true)
            }
            (SnapshotState::Error, Declared::Ready) => {
                self.check_only_declared()?;
                self.check_lasts(declaration.at)?;
                self.enter(SnapshotState::Ready);
                Ok(true)
            }
            (
                SnapshotState::Creating
                | SnapshotState::Reverting
                | SnapshotState::Deleting
                | SnapshotState::Lost,
                _,
            ) => Err(EditRefusal::NotNow(self.state)),
        }
    }

    /// That nothing but a person's word is why it is in ERROR.
    fn check_only_declared(&self) -> Result<(), EditRefusal> {
        match &self.trouble {
            _ if self.is_only_declared() => Ok(()),
            Some(trouble) => Err(EditRefusal::NotKnown(trouble.message.clone())),
            // An older program wrote no more.
            None => Err(EditRefusal::NotKnown("an operation on it was abandoned".to_owned())),
        }
    }

    /// That it is not deleted as soon as it is READY.
    fn check_lasts(&self, now: Timestamp) -> Result<(), EditRefusal> {
        match self.expires_at {
            Some(expires_at) if expires_at <= now => Err(EditRefusal::Expired(expires_at)),
            Some(_) | None => Ok(()),
        }
    }
}
