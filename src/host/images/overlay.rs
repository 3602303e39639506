//! Overlays: made, without a process for each, and looked at.
//!
//! Decides when one is whole, and that an image lies on the one that is meant. Neither libvirt nor QEMU checks this when it
//! plugs one in: a wrong size or backing name would show at the next cold start only. Every function here blocks.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::files::{
    backing, bad, create_new, failed, identity, open_image, remove, sync_directory, usable_header,
};
use super::qcow2::{self, Empty, Geometry};
use crate::host::paths::plain;
use crate::host::{HostError, Result};
use crate::model::step::{DoomedImage, ImageRef, NewOverlay};
use crate::model::vm::Format;

/// Makes an overlay that holds nothing, durably. What stands there is left alone. The backing file is not opened.
pub(super) fn make(overlay: &NewOverlay, geometry: Geometry) -> Result<()> {
    let path = &overlay.path;
    let backing = (plain(&overlay.backing_path)?, overlay.backing_format.as_str());
    let empty = qcow2::empty(overlay.virtual_size, backing, geometry);
    let empty = empty.map_err(|problem| bad(path, problem.to_string()))?;
    let (file, directory) = create_new(path)?;
    let made = fill(&file, &empty, path).and_then(|()| sync_directory(directory, path));
    if made.is_err()
        && let Ok(made) = file.metadata()
    {
        // Whoever asked looks again, and may find it: this only keeps the directory clean.
        let removed = remove(&DoomedImage { path: path.clone(), identity: Some(identity(&made)) });
        tracing::debug!(path = %path.display(), ?removed, "an overlay was not completed");
    }
    made
}

/// The header comes last: what has one is whole, whatever happens in between. All of its cluster is there before, and no hole: QEMU
/// writes all of it when a merge ends below the image, and where there is no room for that QEMU 10.0 crashes, with its guest
/// (`commit_abort`, after "Could not update backing file link").
fn fill(file: &File, empty: &Empty, path: &Path) -> Result<()> {
    file.set_len(empty.length).map_err(failed("write", path))?;
    file.write_all_at(&vec![0; empty.cluster], 0).map_err(failed("write", path))?;
    for (at, bytes) in &empty.tables {
        file.write_all_at(bytes, *at).map_err(failed("write", path))?;
    }
    file.sync_all().map_err(failed("sync", path))?;
    file.write_all_at(&empty.header, 0).map_err(failed("write", path))?;
    file.sync_all().map_err(failed("sync", path))
}

/// Checks that an image lies on nothing, and has the size that it should have.
pub(super) fn check_stands_alone(path: &Path, virtual_size: u64) -> Result<()> {
    let header = usable_header(&open_image(path)?, path)?;
    if header.virtual_size != virtual_size {
        return Err(bad(path, format!("its size is {}, not {virtual_size}", header.virtual_size)));
    }
    match backing(&header, path)? {
        None => Ok(()),
        Some(backing) => Err(bad(path, format!("it lies on {}", backing.path.display()))),
    }
}

/// Checks that `top` lies directly on `base`. Gives the bytes that `top` takes on the host.
pub(super) fn check_lies_on(top: &ImageRef, base: &ImageRef) -> Result<u64> {
    plain(&base.path)?;
    let file: File = open_image(&top.path)?;
    let header = usable_header(&file, &top.path)?;
    check_backing(top, &header, base)?;
    open_image(&base.path)?;
    super::files::inspect(&top.path, top.format).map(|facts| facts.allocated)
}

fn check_backing(image: &ImageRef, header: &qcow2::Header, expected: &ImageRef) -> Result<()> {
    let found = backing(header, &image.path)?;
    let problem = match &found {
        None => format!("its header names no backing file, not {}", expected.path.display()),
        Some(found) if found.path != expected.path => format!(
            "its header names {} as backing file, not {}",
            found.path.display(),
            expected.path.display()
        ),
        Some(found) if found.format != Some(expected.format) => {
            let format = found.format.map_or("unknown", Format::as_str);
            format!("its header says that its backing file is {format}, not {}", expected.format)
        }
        Some(_) => return Ok(()),
    };
    Err(HostError::BadImage { path: image.path.clone(), problem })
}
