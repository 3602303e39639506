//! Steps on files: overlays, memory images, removals.

use std::path::Path;

use crate::host::{HostError, Result};
use crate::model::step::{DoomedImage, NewOverlay};
use crate::model::vm::{DiskSource, Format};

use super::{Context, Performed, make_so};

/// The overlay stands, and is the one that was meant.
pub(super) async fn create_overlay(context: &Context<'_>, overlay: &NewOverlay) -> Performed {
    let images = &context.host.images;
    make_so(|| stands(context, overlay), || images.create_overlay(overlay)).await
}

async fn stands(context: &Context<'_>, overlay: &NewOverlay) -> Result<bool> {
    let facts = match context.host.images.inspect(&overlay.path, Format::Qcow2).await {
        Ok(facts) => facts,
        Err(HostError::NoSuchImage(_)) => return Ok(false),
        Err(error) => return Err(error),
    };
    let backing = facts.backing.as_ref().map(|backing| (backing.path.as_path(), backing.format));
    let problem = if facts.virtual_size != overlay.virtual_size {
        format!("it has {} bytes, not {}", facts.virtual_size, overlay.virtual_size)
    } else if backing != Some((overlay.backing_path.as_path(), Some(overlay.backing_format))) {
        format!("it does not lie on {}", overlay.backing_path.display())
    } else {
        return Ok(true);
    };
    Err(HostError::BadImage { path: overlay.path.clone(), problem })
}

/// Nothing stands where memory will be captured.
pub(super) async fn prepare_memory(context: &Context<'_>, path: &Path) -> Performed {
    remove_unused(context, path).await
}

/// The memory image is complete and as long as it was.
pub(super) async fn check_memory(context: &Context<'_>, path: &Path, bytes: u64) -> Performed {
    match context.host.images.memory_image(path).await {
        Ok(Some(actual)) if actual == bytes => Performed::done(),
        Ok(Some(actual)) => Performed::not_applied(HostError::BadImage {
            path: path.to_owned(),
            problem: format!("it has {actual} bytes, not {bytes}"),
        }),
        Ok(None) => Performed::not_applied(HostError::NoSuchImage(path.to_owned())),
        Err(error) => Performed::unknown(error),
    }
}

/// A file of ours that never came into use is gone.
pub(super) async fn remove_unused(context: &Context<'_>, path: &Path) -> Performed {
    remove(context, &[DoomedImage { path: path.to_owned(), identity: None }]).await
}

/// The files are gone. One that the VM still reads, or whose definition names it, stays: whoever planned this was
/// wrong then.
pub(super) async fn remove(context: &Context<'_>, images: &[DoomedImage]) -> Performed {
    match context.host.hypervisor.observe(context.vm()).await {
        Ok(view) => {
            let in_use = images.iter().find(|image| {
                view.disks.iter().any(|disk| disk.uses(&image.path) || names(&disk.source, &image.path))
            });
            if let Some(image) = in_use {
                return Performed::unknown(HostError::ImageInUse(image.path.clone()));
            }
        }
        Err(HostError::NoSuchVm(_)) => {}
        Err(error) => return Performed::unknown(error),
    }
    for image in images {
        if let Err(error) = context.host.images.remove(image).await {
            return Performed::unknown(error);
        }
    }
    Performed::done()
}

fn names(source: &DiskSource, path: &Path) -> bool {
    matches!(source, DiskSource::Chain { persistent: Some(persistent), .. } if persistent == path)
}
