//! Differences between what the catalog says of a VM and what is there. Decides which there are; `plan` finds them.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::ids::{DiskTarget, SnapshotId, VmId};

/// One difference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// Its class.
    pub kind: DifferenceKind,
    /// The VM, or what stands for it; None for a file that is nobody's.
    pub vm: Option<VmId>,
    /// Its name.
    pub vm_name: String,
    /// The disk, if it is about one.
    pub disk: Option<DiskTarget>,
    /// The file, if it is about one.
    pub path: Option<PathBuf>,
    /// The snapshots that cannot be relied on for it.
    pub snapshots: Vec<SnapshotId>,
    /// What was expected, what is there, and what a person can do.
    pub description: String,
    /// Whether the VM, or the disk, takes no new operation until it is settled.
    pub blocks: bool,
    /// The ways to settle it that can be gone now.
    pub actions: Vec<DifferenceAction>,
}

/// A way to settle a difference. The contract says what each is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, reason = "each is explained once, in proto/vmsnap/v1/vm.proto")]
pub enum DifferenceAction {
    Adopt,
    Restore,
    MarkLost,
    RemoveFile,
}

impl DifferenceAction {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Adopt, Self::Restore, Self::MarkLost, Self::RemoveFile];
}

/// A class of difference. The contract says what each is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs, reason = "each is explained once, in proto/vmsnap/v1/vm.proto")]
pub enum DifferenceKind {
    UnknownOverlay,
    ImageMissing,
    ImageChanged,
    LayerMerged,
    DefinitionDiffers,
    VmUndefined,
    VmMigrated,
    DiskSetChanged,
    OrphanFile,
    ForeignBlockJob,
    ManifestUnwritten,
}

impl Difference {
    /// One of a VM with a name, or of none, that blocks.
    #[must_use]
    pub fn new(kind: DifferenceKind, vm: Option<(VmId, String)>, description: String) -> Self {
        let (vm, vm_name) = vm.unzip();
        let vm_name = vm_name.unwrap_or_default();
        Self {
            kind,
            vm,
            vm_name,
            disk: None,
            path: None,
            snapshots: Vec::new(),
            description,
            blocks: true,
            actions: Vec::new(),
        }
    }

    /// The same, about a file.
    #[must_use]
    pub fn at(self, path: &Path) -> Self {
        Self { path: Some(path.to_owned()), ..self }
    }

    /// The same for as long as the difference stays the same.
    #[must_use]
    pub fn id(&self) -> Uuid {
        let path = self.path.as_ref().map(|path| path.display().to_string()).unwrap_or_default();
        let disk = self.disk.as_ref().map(ToString::to_string).unwrap_or_default();
        let text = format!("{:?}\0{disk}\0{path}\0{}", self.kind, self.description);
        Uuid::new_v5(&self.vm.map_or(Uuid::nil(), |vm| vm.0), text.as_bytes())
    }
}
