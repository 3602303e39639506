//! Where manifests lie: beside the image that they are about, so that they are found wherever the image is found.
//!
//! A block device has nothing beside it: then they lie with the overlays over block devices, or with memory images.

use std::path::{Path, PathBuf};

use super::Places;
use super::names::Content;
use crate::model::manifest::Manifest;

/// The path of a manifest.
#[must_use]
pub fn manifest_path(manifest: &Manifest, places: &Places) -> PathBuf {
    let beside = manifest.image().and_then(Path::parent).filter(|directory| !directory.starts_with("/dev"));
    let otherwise = places.overlays.as_ref().unwrap_or(&places.memory);
    Content::Manifest.path(beside.unwrap_or(otherwise), manifest.id())
}

/// Whether a file has the name of a manifest.
#[must_use]
pub fn is_manifest(path: &Path) -> bool {
    Content::of(path) == Some(Content::Manifest)
}
