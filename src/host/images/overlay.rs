//! Overlays, checked by our own reader after `qemu-img` has written them.
//!
//! Decides that an overlay is the one asked for. Neither libvirt nor QEMU checks this when it plugs one in: a wrong
//! size or backing name would show at the next cold start only. Every function here blocks.

use std::fs::File;
use std::path::Path;

use super::files::{backing, bad, identity, open_image, sync, usable_header};
use super::qcow2;
use crate::host::paths::plain;
use crate::host::{HostError, Result};
use crate::model::step::{ImageRef, NewOverlay};
use crate::model::vm::{FileIdentity, Format};

/// Checks a new overlay and makes it durable. `reserved` is the file that was made for it.
pub(super) fn finish(overlay: &NewOverlay, reserved: FileIdentity) -> Result<()> {
    let path = &overlay.path;
    let file = open_image(path)?;
    let found = file.metadata().map_err(super::files::failed("look at", path))?;
    if identity(&found) != reserved {
        return Err(bad(path, "another file stands there now".to_owned()));
    }
    let header = usable_header(&file, path)?;
    if header.version != 3 {
        return Err(bad(path, format!("it has version {} of the format, not 3", header.version)));
    }
    if header.virtual_size != overlay.virtual_size {
        return Err(bad(path, format!("its size is {}, not {}", header.virtual_size, overlay.virtual_size)));
    }
    let expected = ImageRef { path: overlay.backing_path.clone(), format: overlay.backing_format };
    check_backing(&ImageRef { path: path.clone(), format: Format::Qcow2 }, &header, &expected)?;
    if !qcow2::is_empty(&file, &header).map_err(|error| error.at(path))? {
        return Err(bad(path, "it is not empty".to_owned()));
    }
    drop(file);
    sync(path)
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
