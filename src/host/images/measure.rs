//! How images are named to `qemu-img measure`, and how its answer is read.
//!
//! Decides that each image of the chain is spelled out, with its driver, and that nothing lies below the last: what the
//! headers say is not asked, so nothing is probed and nothing else is counted. oVirt's VDSM measures its merges so
//! (`qemuimg.measure` with a base).

use std::os::unix::fs::FileTypeExt;

use serde_json::{Value, json};

use super::files::failed;
use crate::host::Result;
use crate::host::paths::plain;
use crate::model::step::ImageRef;
use crate::model::vm::Format;

/// The images as one file name of QEMU, each lying on the next, the last on nothing.
pub(super) fn chain(layers: &[ImageRef]) -> Result<String> {
    let mut below = Value::Null;
    for image in layers.iter().rev() {
        let metadata = image.path.metadata().map_err(failed("look at", &image.path))?;
        let driver = if metadata.file_type().is_block_device() { "host_device" } else { "file" };
        let file = json!({ "driver": driver, "filename": plain(&image.path)? });
        below = match image.format {
            Format::Qcow2 => json!({ "driver": "qcow2", "file": file, "backing": below }),
            // It lies on nothing by its nature.
            Format::Raw => json!({ "driver": "raw", "file": file }),
        };
    }
    Ok(format!("json:{below}"))
}

/// The bytes, if the line of its JSON is the one that tells them.
pub(super) fn required(line: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(line).ok()?.trim();
    text.strip_prefix("\"required\":")?.trim_end_matches(',').trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers() {
        let check = |line: &str, expected| assert_eq!(required(line.as_bytes()), expected, "{line}");
        check("    \"required\": 6619136,", Some(6_619_136));
        check("    \"required\": 3473408", Some(3_473_408));
        check("    \"fully-allocated\": 67436544", None);
        check("    \"required\": x", None);
        check("{", None);
    }

    #[test]
    fn each_image_is_spelled_out() {
        let directory = tempfile::tempdir().unwrap();
        let image = |name: &str, format| {
            let path = directory.path().join(name);
            std::fs::write(&path, "").unwrap();
            ImageRef { path, format }
        };
        let layers = [image("a,b\"", Format::Qcow2), image("base", Format::Raw)];
        let named = chain(&layers).unwrap();
        let read: Value = serde_json::from_str(named.strip_prefix("json:").unwrap()).unwrap();
        assert_eq!(read["file"]["filename"], layers[0].path.to_str().unwrap());
        assert_eq!(read["backing"]["file"]["filename"], layers[1].path.to_str().unwrap());
        assert_eq!(read["backing"]["driver"], "raw");
        let alone = chain(&layers[..1]).unwrap();
        assert!(alone.contains("\"backing\":null"), "what the header names is not read: {alone}");
    }
}
