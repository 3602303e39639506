//! Files that we made, by their names, and that nothing of the catalog needs.
//!
//! Decides when such a file may go. Leaves to `ops` who reads it: here it goes only if nobody does, and nobody may.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::model::{Difference, DifferenceAction, DifferenceKind};

/// Who stands between a file and its removal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileReader {
    /// A VM, by its name: it reads the file, or a definition of it names it.
    Vm(String),
    /// An image that lies on it.
    Image(PathBuf),
    /// It cannot be told, and why.
    Unknown(String),
}

impl fmt::Display for FileReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vm(name) => write!(f, "VM {name} has it"),
            Self::Image(path) => write!(f, "{} lies on it", path.display()),
            Self::Unknown(why) => write!(f, "something may lie on it: {why}"),
        }
    }
}

/// A file that nothing of the catalog needs. `manifest` is one that the catalog does not know, and that may tell of others.
#[must_use]
pub fn orphan(path: &Path, reader: Option<&FileReader>, manifest: Option<&Path>) -> Difference {
    let shown = path.display();
    let manifest = manifest.filter(|manifest| *manifest != path);
    let (words, actions) = match (reader, manifest) {
        (None, None) => (
            format!(
                "{shown} has a name of ours, and nothing here needs it: if no other node does, remove it"
            ),
            vec![DifferenceAction::RemoveFile],
        ),
        (None, Some(manifest)) => (
            format!(
                "{shown} has a name of ours, and nothing here needs it; but the catalog does not know manifest {}, which \
                 may tell whose it is: rebuild the catalog, or remove the manifest first",
                manifest.display()
            ),
            Vec::new(),
        ),
        (Some(reader), _) => (
            format!("{shown} has a name of ours, and the catalog does not need it; but {reader}"),
            Vec::new(),
        ),
    };
    let difference = Difference::new(DifferenceKind::OrphanFile, None, words).at(path);
    Difference { blocks: false, actions, ..difference }
}
