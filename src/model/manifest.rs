//! What each snapshot and each clone leaves beside its images, so that a catalog that is lost can be made anew from the disks.
//!
//! Decides what is in it, and how it is written and known to be whole: a line with the version and a checksum, then the
//! content that the checksum is over. Where it lies is `plan`'s to say, and when it is written `ops`'.
//!
//! It holds what image headers cannot tell. Of what lies on what, headers know better: they are never stale. What the disks
//! write to, one snapshot tells for all.
//!
//! What was added to the first version may be missing, and is passed over by programs that do not know it: so each reads what
//! the other writes.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::clone::{CloneState, ClonedVolume};
use super::edit::Comment;
use super::ids::{LayerId, SnapshotId, VmId};
use super::layer::{Layer, LayerTree, Volume};
use super::snapshot::{Snapshot, SnapshotState};

/// Longest manifest that is written or read, in bytes.
pub const LARGEST: usize = 8 << 20;

/// Comments beyond this are left out, in bytes.
const COMMENTS_LIMIT: usize = 1 << 20;

/// Of the format. A reader refuses any other.
const VERSION: u32 = 1;

/// What is left beside the images.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Manifest {
    /// Of a snapshot.
    Snapshot(Box<SnapshotManifest>),
    /// Of a clone.
    Clone(Box<CloneManifest>),
}

/// A snapshot as the catalog has it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SnapshotManifest {
    /// The snapshot.
    pub snapshot: Snapshot,
    /// The VM's definition at that moment, secrets included; empty for a volume that no VM had.
    pub definition: String,
    /// The comments under it; none if they are too long.
    pub comments: Vec<Comment>,
    /// Whether the VM's present state descends from it.
    pub is_current: bool,
    /// The image of the volume, if no VM has it.
    pub image: Option<PathBuf>,
    /// All that its disks read through, each disk's own first.
    pub layers: Vec<Layer>,
    /// The disks of the VM as they are now, if it is this snapshot that tells of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<Volume>,
    /// All that those read through, each disk's active layer first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub active: Vec<Layer>,
}

/// A clone as the catalog has it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CloneManifest {
    /// The clone.
    pub clone: ClonedVolume,
    /// All that it reads through, the layer that it lies on first.
    pub layers: Vec<Layer>,
}

/// Why a file is no manifest.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// There is no first line as there should be.
    #[error("it does not begin as a manifest")]
    NoManifest,
    /// Another version wrote it.
    #[error("it has version {0} of the format, this program knows version {VERSION}")]
    Version(u32),
    /// It is not as it was written.
    #[error("its checksum is wrong")]
    Checksum,
    /// It cannot be understood.
    #[error("its content cannot be understood")]
    Content(#[source] serde_json::Error),
}

/// The first line.
#[derive(Serialize, Deserialize)]
struct Heading {
    vmsnap_manifest: u32,
    sha256: String,
}

impl Manifest {
    /// That of a snapshot of this tree; None for one that is still being made.
    #[must_use]
    pub fn of_snapshot(
        tree: &LayerTree,
        snapshot: &Snapshot,
        definition: String,
        mut comments: Vec<Comment>,
    ) -> Option<Self> {
        if snapshot.state == SnapshotState::Creating || snapshot.disks.is_empty() {
            return None;
        }
        if comments.iter().map(|comment| comment.text.len()).sum::<usize>() > COMMENTS_LIMIT {
            comments.clear();
        }
        let is_teller = Self::teller(tree) == Some(snapshot.id);
        let volumes = if is_teller { tree.volumes.clone() } else { Vec::new() };
        Some(Self::Snapshot(Box::new(SnapshotManifest {
            snapshot: snapshot.clone(),
            definition,
            comments,
            is_current: tree.current == Some(snapshot.id),
            image: tree.detached_image().map(|image| image.path.clone()),
            layers: snapshot.disks.iter().flat_map(|disk| reads(tree, disk.layer)).collect(),
            active: volumes.iter().flat_map(|volume| reads(tree, volume.active)).collect(),
            volumes,
        })))
    }

    /// The snapshot whose manifest tells what the VM's disks write to: one that is written anew with each of them anyway. None
    /// for a volume that no VM has, which lies where it always lay.
    #[must_use]
    pub fn teller(tree: &LayerTree) -> Option<SnapshotId> {
        let has_manifest =
            |snapshot: &&Snapshot| snapshot.state != SnapshotState::Creating && !snapshot.disks.is_empty();
        let current = tree.current.and_then(|current| tree.snapshot(current)).filter(has_manifest);
        let teller = current.or_else(|| tree.snapshots.iter().rfind(has_manifest));
        teller.map(|snapshot| snapshot.id).filter(|_| tree.detached_image().is_none())
    }

    /// That of a clone made out of a snapshot of this tree; None for one that is still being made.
    #[must_use]
    pub fn of_clone(tree: &LayerTree, clone: &ClonedVolume) -> Option<Self> {
        if clone.state == CloneState::Creating {
            return None;
        }
        let layers = clone.layer.map(|layer| reads(tree, layer)).unwrap_or_default();
        Some(Self::Clone(Box::new(CloneManifest { clone: clone.clone(), layers })))
    }

    /// The identity of what it is of.
    #[must_use]
    pub fn id(&self) -> Uuid {
        match self {
            Self::Snapshot(of) => of.snapshot.id.0,
            Self::Clone(of) => of.clone.id.0,
        }
    }

    /// The VM, or what stands for one, whose tree it is part of.
    #[must_use]
    pub fn vm(&self) -> VmId {
        match self {
            Self::Snapshot(of) => of.snapshot.vm,
            Self::Clone(of) => of.clone.vm,
        }
    }

    /// Rises with each change of what it is of.
    #[must_use]
    pub fn generation(&self) -> u64 {
        match self {
            Self::Snapshot(of) => of.snapshot.generation,
            Self::Clone(of) => of.clone.generation,
        }
    }

    /// What it tells of layers.
    #[must_use]
    pub fn layers(&self) -> &[Layer] {
        match self {
            Self::Snapshot(of) => &of.layers,
            Self::Clone(of) => &of.layers,
        }
    }

    /// The image that it belongs beside.
    #[must_use]
    pub fn image(&self) -> Option<&Path> {
        match self {
            Self::Snapshot(of) => of.layers.first().map(|layer| layer.path.as_path()),
            Self::Clone(of) => Some(&of.clone.path),
        }
    }

    /// Whether it says that what it is of is on its way out.
    #[must_use]
    pub fn is_of_deleted(&self) -> bool {
        matches!(self, Self::Snapshot(of) if of.snapshot.state == SnapshotState::Deleting)
    }

    /// As it is written.
    pub fn encode(&self) -> Result<Vec<u8>, serde_json::Error> {
        let mut content = serde_json::to_vec_pretty(self)?;
        content.push(b'\n');
        let heading = Heading { vmsnap_manifest: VERSION, sha256: checksum(&content) };
        let mut bytes = serde_json::to_vec(&heading)?;
        bytes.push(b'\n');
        bytes.extend(content);
        Ok(bytes)
    }

    /// What was written.
    pub fn decode(bytes: &[u8]) -> Result<Self, ManifestError> {
        let end = bytes.iter().position(|byte| *byte == b'\n').ok_or(ManifestError::NoManifest)?;
        let (heading, content) = (&bytes[..end], &bytes[end + 1..]);
        let heading: Heading = serde_json::from_slice(heading).map_err(|_| ManifestError::NoManifest)?;
        if heading.vmsnap_manifest != VERSION {
            return Err(ManifestError::Version(heading.vmsnap_manifest));
        }
        if heading.sha256 != checksum(content) {
            return Err(ManifestError::Checksum);
        }
        serde_json::from_slice(content).map_err(ManifestError::Content)
    }
}

/// A SHA-256 in hexadecimal digits.
#[must_use]
pub fn checksum(bytes: &[u8]) -> String {
    format!("{:x}", Sha256::digest(bytes))
}

/// How the file of `top` is goes with what holds it, and relies on it. How those below are, is told by who holds them.
fn reads(tree: &LayerTree, top: LayerId) -> Vec<Layer> {
    let seen = |layer: &Layer| layer.seen.filter(|_| layer.id == top && !tree.is_active(top));
    tree.chain(top).into_iter().map(|layer| Layer { seen: seen(layer), ..layer.clone() }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::VolumeId;
    use crate::model::snapshot::Owner;
    use jiff::Timestamp;

    fn manifest() -> Manifest {
        let clone = ClonedVolume {
            id: VolumeId(Uuid::from_u128(1)),
            name: "copy".parse().unwrap(),
            vm: VmId(Uuid::from_u128(2)),
            source: SnapshotId(Uuid::from_u128(3)),
            layer: None,
            path: "/images/copy".into(),
            virtual_size: 1,
            state: CloneState::Available,
            owner: Owner::default(),
            properties: std::collections::BTreeMap::new(),
            created_at: Timestamp::UNIX_EPOCH,
            generation: 1,
        };
        Manifest::of_clone(&LayerTree::empty(clone.vm), &clone).unwrap()
    }

    #[test]
    fn what_is_written_is_read_again() {
        assert_eq!(Manifest::decode(&manifest().encode().unwrap()).unwrap(), manifest());
    }

    #[test]
    fn no_byte_can_change_unseen_and_none_can_be_missing() {
        let whole = manifest().encode().unwrap();
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 1;
            assert!(Manifest::decode(&damaged).is_err(), "byte {at}");
            assert!(Manifest::decode(&whole[..at]).is_err(), "cut at {at}");
        }
    }

    proptest::proptest! {
        #![proptest_config(crate::mutation::config())]

        /// A checksum keeps accidents away, not those who can count it.
        #[test]
        fn any_content_is_refused_or_read_again(content in crate::mutation::bytes([
            serde_json::to_vec(&manifest()).unwrap(),
        ])) {
            let heading = Heading { vmsnap_manifest: VERSION, sha256: checksum(&content) };
            let bytes = [serde_json::to_vec(&heading).unwrap(), content].join(&b'\n');
            if let Ok(told) = Manifest::decode(&bytes) {
                proptest::prop_assert_eq!(Manifest::decode(&told.encode().unwrap()).unwrap(), told);
            }
        }
    }

    /// What a later program adds.
    #[test]
    fn what_is_not_known_is_passed_over() {
        let mut content = serde_json::to_value(manifest()).unwrap();
        content["later"] = "words".into();
        let content = serde_json::to_vec(&content).unwrap();
        let heading = Heading { vmsnap_manifest: VERSION, sha256: checksum(&content) };
        let bytes = [serde_json::to_vec(&heading).unwrap(), content].join(&b'\n');
        assert_eq!(Manifest::decode(&bytes).unwrap(), manifest());
    }

    #[test]
    fn another_version_is_refused_by_name() {
        let later = b"{\"vmsnap_manifest\":2,\"sha256\":\"\"}\nwhatever";
        assert!(matches!(Manifest::decode(later), Err(ManifestError::Version(2))));
    }
}
