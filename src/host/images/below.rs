//! What any file lies on, by its own word. Every function here blocks.
//!
//! Decides which files can be told to lie on nothing. Unlike a look at an image that is to be used, this takes one that is
//! marked as corrupt, encrypted or of an odd kind as far as its header goes: whoever has it may read what lies below.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::files::{bad, failed, open_image};
use super::qcow2::{self, HeaderError};
use crate::host::Result;

/// How files begin that may lie on others, and whose headers we do not read; and of qcow2 those that end too early.
const OTHER_FORMATS: [&[u8]; 5] = [b"QFI\xfb", b"KDMV", b"COWD", b"# Disk DescriptorFile", b"QED\0"];

/// See [`crate::host::Images::lies_on`].
pub(super) fn lies_on(path: &Path) -> Result<Option<PathBuf>> {
    let file = open_image(path)?;
    let header = match qcow2::read_header(&file) {
        Ok(header) => header,
        Err(HeaderError::NotQcow2 | HeaderError::Truncated) => return of_no_header(&file, path),
        Err(error) => return Err(error.at(path)),
    };
    if header.has_data_file {
        return Err(bad(path, "its data is in an external file".to_owned()));
    }
    let Some(name) = header.backing_name else { return Ok(None) };
    let backing = qcow2::backing_path(path, &name);
    backing.map(Some).map_err(|refused| bad(path, format!("its header names {refused} as backing file")))
}

fn of_no_header(file: &File, path: &Path) -> Result<Option<PathBuf>> {
    let mut start = [0; 24];
    let length = file.read_at(&mut start, 0).map_err(failed("read", path))?;
    let start = &start[..length];
    if OTHER_FORMATS.iter().any(|format| start.starts_with(format)) {
        return Err(bad(path, "what it lies on is written where we do not read it".to_owned()));
    }
    // Made, and not yet written to.
    let is_called_so = path.extension().is_some_and(|ending| ending == "qcow2");
    if is_called_so && !start.is_empty() {
        return Err(bad(path, HeaderError::NotQcow2.to_string()));
    }
    Ok(None)
}
