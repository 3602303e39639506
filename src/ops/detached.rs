//! Volumes that no VM has: found, looked at, and who else has to do with them.
//!
//! Decides what counts as such a volume. Leaves what may be done with one to `plan`.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use super::{Engine, OpsError, Result};
use crate::host::{Host, HostError};
use crate::model::vm::{Backing, ChainImage, Format, RunState};
use crate::model::{ClonedVolume, VmId, VmView, VolumeId};
use crate::plan::{self, VolumeUser};
use crate::store::Store;

/// Most images of one chain. A longer one goes round in circles.
const DEEPEST: usize = 256;

/// The volume whose image is at `path`, as a VM that is always off.
pub(super) async fn look(host: &Host, store: &Store, volume: VolumeId, path: &Path) -> Result<VmView> {
    let clones = store.clones().await?;
    let name = name(path, clones.iter().find(|clone| clone.path == path));
    Ok(VmView::of_detached(volume, name, chain(host, path).await?))
}

/// As it was cloned under, else the name of its file.
pub(super) fn name(path: &Path, clone: Option<&ClonedVolume>) -> String {
    let file = || path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
    clone.map_or_else(file, |clone| clone.name.to_string())
}

/// The image and all that it lies on. Only qcow2: what is in an image must not decide what the image is read as.
async fn chain(host: &Host, path: &Path) -> Result<Vec<ChainImage>> {
    let mut chain: Vec<ChainImage> = Vec::new();
    let mut next = Some(Backing { path: path.to_owned(), format: Some(Format::Qcow2) });
    while let Some(Backing { path, format }) = next {
        let bad = |problem: &str| HostError::BadImage { path: path.clone(), problem: problem.to_owned() };
        let format = format.ok_or_else(|| bad("the header above it does not say in which format it is"))?;
        if chain.len() >= DEEPEST {
            return Err(bad("its chain is too long").into());
        }
        next = host.images.inspect(&path, format).await?.backing;
        chain.push(ChainImage { path, format, is_block_device: false });
    }
    Ok(chain)
}

impl Engine {
    /// Who has the image of a volume: VMs that have it among their disks or in their snapshots, and images in the
    /// directories of images that lie on it.
    pub(super) async fn users_of_detached(&self, vm: VmId, path: &Path) -> Result<Vec<VolumeUser>> {
        let users = self.users(path, vm).await?;
        let mut users: Vec<VolumeUser> = users.into_iter().map(|(_, user)| user).collect();
        for image in self.images_in_places().await {
            if image.below.as_deref() == Some(path) {
                let name = image.path.display().to_string();
                users.push(VolumeUser { name, run_state: RunState::Off });
            }
        }
        Ok(users)
    }

    /// The images in the directories of images that are no VM's, no clone's and no layer: volumes nobody told us of.
    /// `read` are the images that VMs read.
    pub(super) async fn unknown_images(&self, read: &HashSet<PathBuf>) -> Vec<PathBuf> {
        let images = self.images_in_places().await;
        let below: HashSet<&PathBuf> = images.iter().filter_map(|image| image.below.as_ref()).collect();
        let mut unknown = Vec::new();
        for path in images.iter().map(|image| &image.path).filter(|path| is_called_image(path)) {
            let is_free = !plan::is_named_by_us(path) && !read.contains(path) && !below.contains(path);
            if is_free && self.0.host.images.inspect(path, Format::Qcow2).await.is_ok() {
                unknown.push(path.clone());
            }
        }
        unknown
    }

    /// Why nothing answers to a name: it may be an image that is no volume, because others read it.
    pub(super) async fn missing(&self, wanted: &str) -> Result<OpsError> {
        let images = self.images_in_places().await;
        let is_wanted = |path: &Path| {
            is_called_image(path)
                && (path == Path::new(wanted) || path.file_name() == Some(OsStr::new(wanted)))
        };
        let Some(found) = images.iter().find(|image| is_wanted(&image.path)) else {
            return Ok(OpsError::NoSuchVolume(wanted.to_owned()));
        };
        let nobody = VmId::of_detached(VolumeId::of_image(&found.path));
        let reader = self.users_of_detached(nobody, &found.path).await?.into_iter().next();
        let reader = reader.map_or_else(|| "vmsnapd".to_owned(), |reader| reader.name);
        Ok(OpsError::NotAVolume { path: found.path.clone(), reader })
    }

    /// All files, whatever they are called. A directory or an image that cannot be read is left out: it is not the one that
    /// is asked for.
    async fn images_in_places(&self) -> Vec<PlacedImage> {
        let images = &self.0.host.images;
        let mut found = Vec::new();
        for directory in self.image_directories() {
            let files = images.list(directory).await.unwrap_or_else(|error| {
                let error: &dyn std::error::Error = &error;
                tracing::warn!(directory = %directory.display(), error, "a directory of images cannot be read");
                Vec::new()
            });
            for path in files {
                if let Ok(below) = images.lies_on(&path).await {
                    found.push(PlacedImage { path, below });
                }
            }
        }
        found
    }

    /// Refuses a clone that has snapshots of its own.
    pub(super) async fn check_no_snapshots(&self, clone: &ClonedVolume) -> Result<()> {
        let own = self.0.store.tree(VmId::of_detached(clone.id)).await?;
        if own.detached_image().is_none() {
            return Ok(());
        }
        Err(OpsError::Refused(plan::Refusal::VolumeHasSnapshots(clone.name.clone())))
    }
}

/// Whether a file is called as a volume is that somebody puts into a directory of images.
fn is_called_image(path: &Path) -> bool {
    path.extension() == Some(OsStr::new("qcow2"))
}

/// A file in a directory of images.
struct PlacedImage {
    path: PathBuf,
    /// What it lies on.
    below: Option<PathBuf>,
}
