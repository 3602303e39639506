//! What a catalog that was lost is made anew from. Decides only the shape: `plan` fills it, `store` writes it down.

use std::collections::BTreeMap;
use std::path::PathBuf;

use uuid::Uuid;

use super::edit::Comment;
use super::ids::SnapshotId;
use super::layer::LayerTree;

/// All that is known again of a VM, or of a volume that no VM has.
#[derive(Debug, Clone, PartialEq)]
pub struct RebuiltTree {
    /// Its volumes, layers, snapshots and clones.
    pub tree: LayerTree,
    /// The definition that belongs to each snapshot.
    pub definitions: BTreeMap<SnapshotId, String>,
    /// The comments under its snapshots.
    pub comments: Vec<Comment>,
    /// Where manifests of its snapshots and clones are.
    pub manifests: BTreeMap<Uuid, Vec<PathBuf>>,
}
