//! What people write on a snapshot: names, description, owner, properties, expiry, holds, comments.
//!
//! Decides when that may be changed and what comes out. Nothing here touches a disk, so no operation is needed and the
//! VM may be busy meanwhile.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::declaration::Declaration;
use super::ids::{CommentId, HoldName, SnapshotId, SnapshotName};
use super::operation::Reason;
use super::snapshot::{Snapshot, SnapshotState};

/// Most properties of one snapshot.
pub const PROPERTIES_LIMIT: usize = 64;

/// Most holds on one snapshot.
pub const HOLDS_LIMIT: usize = 64;

/// A change of what people wrote on a snapshot.
#[derive(Debug, Clone, PartialEq)]
pub enum Edit {
    /// Write other words.
    Update(Box<Update>),
    /// It must not be deleted.
    AddHold(Hold),
    /// It may be deleted again, as far as this hold goes.
    RemoveHold(HoldName),
    /// It is READY, or in ERROR: somebody says so.
    Declare(Declaration),
}

/// Other words. What is None stays.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Update {
    /// The generation of the snapshot that the client has seen; None not to check.
    pub generation: Option<u64>,
    /// Its name.
    pub name: Option<SnapshotName>,
    /// A name for people.
    pub display_name: Option<String>,
    /// Any text.
    pub description: Option<String>,
    /// The account it belongs to.
    pub account: Option<String>,
    /// The tenant domain it belongs to.
    pub domain: Option<String>,
    /// The project it belongs to.
    pub project: Option<String>,
    /// When it is to be deleted by itself; `Some(None)` for never.
    pub expires_at: Option<Option<Timestamp>>,
    /// First, remove all properties.
    pub clear_properties: bool,
    /// Then, remove these.
    pub remove_properties: BTreeSet<String>,
    /// Then, set these.
    pub set_properties: BTreeMap<String, String>,
}

impl Update {
    /// What it changes, in the contract's words.
    #[must_use]
    pub fn fields(&self) -> Vec<&'static str> {
        let changes_properties =
            self.clear_properties || !self.remove_properties.is_empty() || !self.set_properties.is_empty();
        let fields = [
            ("name", self.name.is_some()),
            ("display_name", self.display_name.is_some()),
            ("description", self.description.is_some()),
            ("account", self.account.is_some()),
            ("domain", self.domain.is_some()),
            ("project", self.project.is_some()),
            ("expire_time", self.expires_at.is_some()),
            ("properties", changes_properties),
        ];
        fields.into_iter().filter(|(_, is_changed)| *is_changed).map(|(field, _)| field).collect()
    }
}

/// A reason why a snapshot must stay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hold {
    /// Who holds.
    pub name: HoldName,
    /// Why: any text.
    pub reason: String,
    /// When it was put on.
    pub created_at: Timestamp,
    /// Who put it on.
    pub created_by: String,
}

/// A remark under a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Comment {
    /// Its identity.
    pub id: CommentId,
    /// The snapshot.
    pub snapshot: SnapshotId,
    /// Who wrote it.
    pub author: String,
    /// The text.
    pub text: String,
    /// When it was written.
    pub created_at: Timestamp,
}

/// What can be done about a snapshot in ERROR.
pub const IN_ERROR: &str = "'vmsnap snapshot show' says why; what was only declared is READY again with 'vmsnap snapshot reset-state'";

/// Why a snapshot is not changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the message of each variant is its documentation")]
pub enum EditRefusal {
    #[error("the snapshot is {0}")]
    NotNow(SnapshotState),
    #[error("what the snapshot reads is not known any more: {0}")]
    NotKnown(String),
    #[error("the snapshot has expired at {0}: it would be deleted at once")]
    Expired(Timestamp),
    #[error("the snapshot was changed since: it is at etag {actual}")]
    EtagMismatch { actual: u64 },
    #[error("the snapshot has a hold {0} already")]
    HoldExists(HoldName),
    #[error("the snapshot has no hold {0}")]
    NoSuchHold(HoldName),
    #[error("the snapshot would have {0} properties, at most {PROPERTIES_LIMIT} are kept")]
    TooManyProperties(usize),
    #[error("the snapshot has {HOLDS_LIMIT} holds already, which is the most")]
    TooManyHolds,
    #[error("snapshot {snapshot} is held by {}", names(.holds))]
    Held { snapshot: SnapshotName, holds: Vec<Hold> },
    #[error("snapshot {0} does not expire now any more")]
    NotExpired(SnapshotName),
}

/// Who holds, and why.
fn names(holds: &[Hold]) -> String {
    let words = holds.iter().map(|hold| match hold.reason.as_str() {
        "" => hold.name.to_string(),
        reason => format!("{} ({reason})", hold.name),
    });
    words.collect::<Vec<_>>().join(", ")
}

impl EditRefusal {
    /// The stable reason.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            Self::NotNow(_) | Self::Expired(_) => Reason::SnapshotNotReady,
            Self::NotKnown(_) => Reason::ImageChanged,
            Self::EtagMismatch { .. } | Self::NotExpired(_) => Reason::EtagMismatch,
            Self::HoldExists(_) => Reason::HoldExists,
            Self::NoSuchHold(_) => Reason::HoldNotFound,
            Self::TooManyProperties(_) | Self::TooManyHolds => Reason::LimitReached,
            Self::Held { .. } => Reason::SnapshotHeld,
        }
    }

    /// What the caller can do about it.
    #[must_use]
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::NotNow(SnapshotState::Lost) => {
                "it is READY by itself when what it needs is back; 'vmsnap vm check' tells what is missing"
            }
            Self::NotNow(SnapshotState::Error) => IN_ERROR,
            Self::Expired(_) => "let it last with 'vmsnap snapshot set', --expire or --no-expire",
            Self::NotKnown(_) => {
                "nobody's word changes that; 'vmsnap snapshot delete' leaves what others read"
            }
            Self::NotNow(_) => "wait for its operation; 'vmsnap op list' shows it",
            Self::EtagMismatch { .. } | Self::NotExpired(_) => "look at the snapshot again",
            Self::HoldExists(_) => "choose another name; 'vmsnap snapshot show' lists the holds",
            Self::NoSuchHold(_) => "'vmsnap snapshot show' lists the holds",
            Self::TooManyProperties(_) => "remove some with --no-property",
            Self::TooManyHolds => "release some with 'vmsnap snapshot release'",
            Self::Held { .. } => "when its holders agree, 'vmsnap snapshot release' it",
        }
    }
}

impl Snapshot {
    /// The snapshot after a change, with its next generation.
    pub fn edited(&self, edit: Edit) -> Result<Self, EditRefusal> {
        let mut snapshot = self.clone();
        match edit {
            Edit::Update(update) => snapshot.update(*update)?,
            Edit::AddHold(hold) => snapshot.add_hold(hold)?,
            Edit::RemoveHold(name) => {
                let index = snapshot.holds.iter().position(|hold| hold.name == name);
                snapshot.holds.remove(index.ok_or(EditRefusal::NoSuchHold(name))?);
            }
            // What is so already stays as it is.
            Edit::Declare(declaration) if !snapshot.declare(&declaration)? => return Ok(snapshot),
            Edit::Declare(_) => {}
        }
        snapshot.generation += 1;
        Ok(snapshot)
    }

    /// Whether it may be deleted as far as people say.
    pub fn check_not_held(&self) -> Result<(), EditRefusal> {
        if self.holds.is_empty() {
            return Ok(());
        }
        Err(EditRefusal::Held { snapshot: self.name.clone(), holds: self.holds.clone() })
    }

    /// That its time has come.
    pub fn check_expired(&self, now: Timestamp) -> Result<(), EditRefusal> {
        if self.expires_at.is_some_and(|expires_at| expires_at <= now) {
            return Ok(());
        }
        Err(EditRefusal::NotExpired(self.name.clone()))
    }

    fn update(&mut self, update: Update) -> Result<(), EditRefusal> {
        if self.state == SnapshotState::Deleting {
            return Err(EditRefusal::NotNow(self.state));
        }
        if update.generation.is_some_and(|seen| seen != self.generation) {
            return Err(EditRefusal::EtagMismatch { actual: self.generation });
        }
        if let Some(name) = update.name {
            self.name = name;
        }
        for (field, text) in [
            (&mut self.display_name, update.display_name),
            (&mut self.description, update.description),
            (&mut self.owner.account, update.account),
            (&mut self.owner.domain, update.domain),
            (&mut self.owner.project, update.project),
        ] {
            if let Some(text) = text {
                *field = text;
            }
        }
        if let Some(expires_at) = update.expires_at {
            self.expires_at = expires_at;
        }
        if update.clear_properties {
            self.properties.clear();
        }
        self.properties.retain(|key, _| !update.remove_properties.contains(key));
        self.properties.extend(update.set_properties);
        if self.properties.len() > PROPERTIES_LIMIT {
            return Err(EditRefusal::TooManyProperties(self.properties.len()));
        }
        Ok(())
    }

    fn add_hold(&mut self, hold: Hold) -> Result<(), EditRefusal> {
        match self.state {
            SnapshotState::Creating
            | SnapshotState::Ready
            | SnapshotState::Reverting
            // Somebody may be looking for its VM: it must not be purged meanwhile.
            | SnapshotState::Lost => {}
            SnapshotState::Deleting | SnapshotState::Error => {
                return Err(EditRefusal::NotNow(self.state));
            }
        }
        if self.holds.iter().any(|known| known.name == hold.name) {
            return Err(EditRefusal::HoldExists(hold.name));
        }
        if self.holds.len() >= HOLDS_LIMIT {
            return Err(EditRefusal::TooManyHolds);
        }
        self.holds.push(hold);
        Ok(())
    }
}
