//! Clones: volumes made out of a disk of a snapshot, and the VMs they are made for.
//!
//! Decides what is kept of one. A linked clone lies on a frozen layer and holds it, as a snapshot does: see
//! [`LayerTree::is_free`](super::LayerTree::is_free).
//!
//! ```text
//!   (nothing) -> Creating -> Available -> (nothing)
//!                   |
//!                   v
//!               (nothing)
//! ```

use std::collections::BTreeMap;
use std::path::PathBuf;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::ids::{LayerId, SnapshotId, VmId, VolumeId, VolumeName};
use super::snapshot::Owner;

/// A volume that was made out of a disk of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClonedVolume {
    /// Its identity; a VM that takes it as a disk has the volume under it, too.
    pub id: VolumeId,
    /// Its name, unique on the node.
    pub name: VolumeName,
    /// The VM whose snapshot it was made out of.
    pub vm: VmId,
    /// That snapshot. It may have gone.
    pub source: SnapshotId,
    /// The layer that it lies on, and holds. None for one that stands alone.
    pub layer: Option<LayerId>,
    /// Its image: absolute. Always qcow2.
    pub path: PathBuf,
    /// Size that a guest sees, in bytes.
    pub virtual_size: u64,
    /// Where it is in its life.
    pub state: CloneState,
    /// Who owns it.
    pub owner: Owner,
    /// Key and value pairs of the user.
    pub properties: BTreeMap<String, String>,
    /// When it was asked for.
    pub created_at: Timestamp,
    /// Rises with every change. The `etag` of the contract.
    pub generation: u64,
}

/// Where a clone is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CloneState {
    /// Being made.
    Creating,
    /// Complete, under its name.
    Available,
}

/// How a clone relates to the snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CloneMode {
    /// An overlay on the snapshot's layer. Made at once.
    Linked,
    /// A copy that stands alone.
    Full,
}
