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
}

impl Content {
    const ALL: [Self; 4] = [Self::Image, Self::Memory, Self::Variables, Self::Firmware];

    fn ending(self) -> &'static str {
        match self {
            Self::Image => "qcow2",
            Self::Memory => "memory",
            Self::Variables => "nvram",
            Self::Firmware => "fd",
        }
    }

    /// The path of a file in a directory.
    pub(super) fn path(self, directory: &Path, id: Uuid) -> PathBuf {
        directory.join(format!("vmsnap-{}.{}", id.as_hyphenated(), self.ending()))
    }
}

/// Whether a file has a name that we give.
#[must_use]
pub fn is_named_by_us(path: &Path) -> bool {
    let ending = path.extension().and_then(OsStr::to_str);
    let stem = path.file_stem().and_then(OsStr::to_str).and_then(|stem| stem.strip_prefix("vmsnap-"));
    Content::ALL.iter().any(|content| Some(content.ending()) == ending)
        && stem.is_some_and(|stem| stem.parse::<Uuid>().is_ok())
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
        assert!(!is_named_by_us(format!("/images/vmsnap-{id}.txt").as_ref()));
    }
}
