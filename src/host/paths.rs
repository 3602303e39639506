//! Which paths can be handed on: to C, into XML, onto a command line.
//!
//! Decides that a path is absolute text of characters that can be written down. Opens nothing.

use std::path::Path;

use super::{HostError, Result};

/// The path as text, if it can be handed on as it is.
///
/// Paths come from libvirt's definitions or are our own; one that cannot be spelled is refused rather than bent.
pub fn plain(path: &Path) -> Result<&str> {
    let bad = |problem: &str| HostError::BadImage { path: path.to_owned(), problem: problem.to_owned() };
    let text = path.to_str().ok_or_else(|| bad("its path is not UTF-8"))?;
    if !path.is_absolute() {
        return Err(bad("its path is not absolute"));
    }
    if text.chars().any(char::is_control) {
        return Err(bad("its path contains control characters"));
    }
    // The two that are none in XML 1.0, and that a path can have.
    if text.contains(['\u{fffe}', '\u{ffff}']) {
        return Err(bad("its path contains what is no character"));
    }
    Ok(text)
}
