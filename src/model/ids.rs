//! Identities and names. Decides what a well-formed one is; must never know what it stands for elsewhere.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

macro_rules! identity {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl $name {
            /// A new identity that sorts by the time it was made (UUID version 7).
            #[must_use]
            #[allow(clippy::new_without_default, reason = "a random default would be a trap")]
            pub fn new() -> Self {
                Self(Uuid::now_v7())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.as_hyphenated().fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.as_hyphenated().fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = uuid::Error;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Uuid::parse_str(text).map(Self)
            }
        }
    };
}

identity!(
    /// A VM: the UUID that the hypervisor knows it by.
    VmId
);
identity!(
    /// A snapshot.
    SnapshotId
);
identity!(
    /// An operation.
    OperationId
);
identity!(
    /// One image file of a chain, for as long as the file exists.
    LayerId
);
identity!(
    /// A comment under a snapshot.
    CommentId
);
identity!(
    /// The lasting identity of a disk, whatever image is active.
    VolumeId
);

identity!(
    /// A schedule.
    ScheduleId
);
identity!(
    /// One run of a schedule.
    ScheduleRunId
);

identity!(
    /// The outbox for a controller, for as long as it has no gap.
    OutboxId
);

impl VmId {
    /// What stands for the VM of a volume that no VM has.
    #[must_use]
    pub fn of_detached(volume: VolumeId) -> Self {
        Self(volume.0)
    }
}

impl VolumeId {
    /// The identity of an image that no VM has and that the catalog does not know: the same each time it is looked at.
    #[must_use]
    pub fn of_image(path: &Path) -> Self {
        Self(Uuid::new_v5(&Uuid::NAMESPACE_URL, format!("file://{}", path.display()).as_bytes()))
    }

    /// The identity of a disk that the catalog does not know yet: the same disk gives the same answer each time it
    /// is looked at, until the catalog takes it over.
    #[must_use]
    pub fn of_unknown_disk(vm: VmId, target: &DiskTarget, active_image: &str) -> Self {
        Self(Uuid::new_v5(&vm.0, format!("{target}\0{active_image}").as_bytes()))
    }
}

/// The name of a disk inside its VM, as in `vda`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DiskTarget(String);

/// The name that a person gives a snapshot: unique within its VM.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SnapshotName(String);

/// The name of a volume that was cloned: unique on the node.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct VolumeName(String);

/// The name of a VM that we make.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct VmName(String);

/// Who holds a snapshot: unique within the snapshot.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HoldName(String);

/// The name of a schedule: unique on the node.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ScheduleName(String);

/// Why a text is not a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidName {
    /// Nothing was given.
    #[error("it is empty")]
    Empty,
    /// More characters than allowed.
    #[error("it has {actual} characters, at most {limit} are allowed")]
    TooLong {
        /// Characters given.
        actual: usize,
        /// Characters allowed.
        limit: usize,
    },
    /// It starts with a dot or a dash, which shells and file systems treat as special.
    #[error("it starts with '{0}'")]
    BadStart(char),
    /// A character outside the allowed set.
    #[error("it contains {0:?}; allowed are letters, digits, '.', '_' and '-'")]
    BadCharacter(char),
    /// It would be taken for an id.
    #[error("it has the form of an id")]
    LooksLikeId,
}

impl SnapshotName {
    /// Longest name, in characters.
    pub const LIMIT: usize = 63;

    /// A snapshot is asked for by its name or its id, so that one must not be taken for the other.
    fn check(text: &str) -> Result<(), InvalidName> {
        if Uuid::parse_str(text).is_ok() {
            return Err(InvalidName::LooksLikeId);
        }
        check_name(text, Self::LIMIT)
    }
}

impl VolumeName {
    /// Longest name, in characters: room for a VM's name and a disk target.
    pub const LIMIT: usize = 127;

    /// A volume is asked for by its name or its id, so that one must not be taken for the other.
    fn check(text: &str) -> Result<(), InvalidName> {
        if Uuid::parse_str(text).is_ok() {
            return Err(InvalidName::LooksLikeId);
        }
        check_name(text, Self::LIMIT)
    }
}

impl VmName {
    /// Longest name, in characters.
    pub const LIMIT: usize = 63;

    /// A VM is asked for by its name or its id, so that one must not be taken for the other.
    fn check(text: &str) -> Result<(), InvalidName> {
        if Uuid::parse_str(text).is_ok() {
            return Err(InvalidName::LooksLikeId);
        }
        check_name(text, Self::LIMIT)
    }
}

impl ScheduleName {
    /// Longest name, in characters.
    pub const LIMIT: usize = 63;

    /// A schedule is asked for by its name or its id, so that one must not be taken for the other.
    fn check(text: &str) -> Result<(), InvalidName> {
        if Uuid::parse_str(text).is_ok() {
            return Err(InvalidName::LooksLikeId);
        }
        check_name(text, Self::LIMIT)
    }
}

impl HoldName {
    /// Longest name, in characters.
    pub const LIMIT: usize = 63;

    fn check(text: &str) -> Result<(), InvalidName> {
        check_name(text, Self::LIMIT)
    }
}

impl DiskTarget {
    /// What stands for the target of a volume that no VM has.
    #[must_use]
    pub fn of_detached() -> Self {
        Self("disk".to_owned())
    }

    /// Longest target, in characters: libvirt's are a bus prefix and a few letters.
    pub const LIMIT: usize = 16;

    fn check(text: &str) -> Result<(), InvalidName> {
        check_name(text, Self::LIMIT)
    }
}

/// Letters, digits, `.`, `_`, `-`; the first is a letter, a digit or `_`.
fn check_name(text: &str, limit: usize) -> Result<(), InvalidName> {
    let first = text.chars().next().ok_or(InvalidName::Empty)?;
    if matches!(first, '.' | '-') {
        return Err(InvalidName::BadStart(first));
    }
    if let Some(bad) = text.chars().find(|c| !c.is_ascii_alphanumeric() && !matches!(c, '.' | '_' | '-')) {
        return Err(InvalidName::BadCharacter(bad));
    }
    let actual = text.chars().count();
    if actual > limit {
        return Err(InvalidName::TooLong { actual, limit });
    }
    Ok(())
}

macro_rules! name {
    ($name:ident) => {
        impl $name {
            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidName;

            fn try_from(text: String) -> Result<Self, Self::Error> {
                Self::check(&text)?;
                Ok(Self(text))
            }
        }

        impl FromStr for $name {
            type Err = InvalidName;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Self::try_from(text.to_owned())
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", self.0)
            }
        }
    };
}

name!(DiskTarget);
name!(SnapshotName);
name!(HoldName);
name!(VolumeName);
name!(VmName);
name!(ScheduleName);

#[cfg(test)]
mod tests {
    use super::*;

    #[allow(clippy::needless_pass_by_value, reason = "cases read better by value")]
    fn check(text: &str, expected: Result<(), InvalidName>) {
        let actual = text.parse::<SnapshotName>().map(|_| ());
        assert_eq!(actual, expected, "{text:?}");
    }

    #[test]
    fn snapshot_names() {
        check("before-upgrade_2.0", Ok(()));
        check("a", Ok(()));
        check(&"a".repeat(63), Ok(()));
        check("", Err(InvalidName::Empty));
        check(".hidden", Err(InvalidName::BadStart('.')));
        check("-rf", Err(InvalidName::BadStart('-')));
        check("a/b", Err(InvalidName::BadCharacter('/')));
        check("a\0b", Err(InvalidName::BadCharacter('\0')));
        check("a b", Err(InvalidName::BadCharacter(' ')));
        check("é", Err(InvalidName::BadCharacter('é')));
        check(&"a".repeat(300), Err(InvalidName::TooLong { actual: 300, limit: 63 }));
        check("01a20843-9990-7137-8cd6-1b47d8d6a58d", Err(InvalidName::LooksLikeId));
    }

    #[test]
    fn an_unknown_disk_has_one_identity() {
        let vm = VmId(Uuid::from_u128(1));
        let vda: DiskTarget = "vda".parse().unwrap();
        let vdb: DiskTarget = "vdb".parse().unwrap();
        assert_eq!(VolumeId::of_unknown_disk(vm, &vda, "/a"), VolumeId::of_unknown_disk(vm, &vda, "/a"));
        assert_ne!(VolumeId::of_unknown_disk(vm, &vda, "/a"), VolumeId::of_unknown_disk(vm, &vdb, "/a"));
        assert_ne!(VolumeId::of_unknown_disk(vm, &vda, "/a"), VolumeId::of_unknown_disk(vm, &vda, "/b"));
    }

    proptest::proptest! {
        #![proptest_config(crate::mutation::config())]

        #[test]
        fn any_text_is_refused_or_a_name(
            text in crate::mutation::text(["before-upgrade_2.0", "vda", "01a20843-9990-7137-8cd6-1b47d8d6a58d"])
        ) {
            fn check<T: FromStr<Err = InvalidName> + fmt::Display>(text: &str, limit: usize) {
                let Ok(name) = text.parse::<T>() else { return };
                let name = name.to_string();
                let is_plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
                assert_eq!(name, text);
                assert!((1..=limit).contains(&name.len()) && name.chars().all(is_plain), "{name:?}");
                assert!(!name.starts_with(['.', '-']), "{name:?}");
            }
            check::<SnapshotName>(&text, SnapshotName::LIMIT);
            check::<VolumeName>(&text, VolumeName::LIMIT);
            check::<VmName>(&text, VmName::LIMIT);
            check::<HoldName>(&text, HoldName::LIMIT);
            check::<DiskTarget>(&text, DiskTarget::LIMIT);
            let is_id = text.parse::<VmId>().is_ok();
            assert!(!is_id || (text.parse::<SnapshotName>().is_err() && text.parse::<VmName>().is_err()));
        }
    }
}
