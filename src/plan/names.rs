//! The names of our files: `vmsnap-`, a UUID, and an ending for what is in it. Never from what a user typed.
//!
//! Decides how they are written, and so how they are known again. Whether a file is still needed is not its name's to say.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use uuid::Uuid;

/// What is in a file of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Content {
    /// An image: an overlay, or a clone that is being made.
    Image,
    /// Captured memory.
    Memory,
    /// UEFI variables that are kept.
    Variables,
    /// UEFI variables of a VM that we made.
    Firmware,
    /// What a snapshot or a clone leaves beside its images.
    Manifest,
}

impl Content {
    const ALL: [Self; 5] = [Self::Image, Self::Memory, Self::Variables, Self::Firmware, Self::Manifest];

    fn ending(self) -> &'static str {
        match self {
            Self::Image => "qcow2",
            Self::Memory => "memory",
            Self::Variables => "nvram",
            Self::Firmware => "fd",
            Self::Manifest => "manifest",
        }
    }

    /// The path of a file in a directory.
    pub(super) fn path(self, directory: &Path, id: Uuid) -> PathBuf {
        directory.join(format!("vmsnap-{}.{}", id.as_hyphenated(), self.ending()))
    }

    /// What is in a file, if its name is one that we give.
    pub(super) fn of(path: &Path) -> Option<Self> {
        let ending = path.extension().and_then(OsStr::to_str)?;
        let stem = path.file_stem().and_then(OsStr::to_str).and_then(|stem| stem.strip_prefix("vmsnap-"))?;
        stem.parse::<Uuid>().ok()?;
        Self::ALL.into_iter().find(|content| content.ending() == ending)
    }
}

/// What a file has behind its name while it is written.
const UNFINISHED: &str = "part";

/// Whether a file has a name that we give, or will have it.
#[must_use]
pub fn is_named_by_us(path: &Path) -> bool {
    let is_unfinished = path.extension().is_some_and(|ending| ending == UNFINISHED);
    Content::of(path).or_else(|| Content::of(&path.with_extension("")).filter(|_| is_unfinished)).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_known_again() {
        for content in Content::ALL {
            assert!(is_named_by_us(&content.path("/images".as_ref(), Uuid::from_u128(7))), "{content:?}");
        }
        let others = ["/images/vmsnap-notes.qcow2", "/images/web.qcow2", "/images/vmsnap-", "/vmsnap-x/web"];
        for other in others {
            assert!(!is_named_by_us(other.as_ref()), "{other}");
        }
        let id = Uuid::from_u128(7);
        assert!(is_named_by_us(format!("/images/vmsnap-{id}.manifest.part").as_ref()));
        assert!(!is_named_by_us(format!("/images/vmsnap-{id}.txt").as_ref()));
    }
}
