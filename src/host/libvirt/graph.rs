//! QEMU's own view of its disks, and whether it agrees with libvirt's.
//!
//! Decides which image of QEMU's answer is which layer, and what counts as a disagreement. Leaves asking to `monitor`.
//!
//! libvirt's XML is what libvirt believes. It is wrong when libvirtd died between QEMU's switch and its own note of
//! it, or when somebody used the monitor. Only QEMU knows what it writes to.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::refusal::LibvirtSays;
use crate::host::HostError;
use crate::model::DiskTarget;
use crate::model::vm::{ChainImage, Format};

/// Nodes that pass reads and writes on and hold no data. They are not layers.
const FILTERS: [&str; 9] = [
    "backup-top",
    "blkdebug",
    "commit_top",
    "compress",
    "copy-before-write",
    "copy-on-read",
    "mirror_top",
    "preallocate",
    "throttle",
];

/// One element of `query-block`: only what is needed, and nothing closed to new values.
#[derive(Debug, Deserialize)]
pub(super) struct BlockDevice {
    qdev: Option<String>,
    inserted: Option<Inserted>,
}

#[derive(Debug, Deserialize)]
struct Inserted {
    image: Image,
    /// Since QEMU 10.0.
    #[serde(default = "yes")]
    active: bool,
}

fn yes() -> bool {
    true
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Image {
    filename: String,
    format: String,
    #[serde(default)]
    virtual_size: u64,
    #[serde(rename = "backing-image")]
    backing: Option<Box<Image>>,
}

impl BlockDevice {
    /// Whether QEMU owns the images: holds their locks and may write. True where there is no medium.
    pub(super) fn is_active(&self) -> bool {
        self.inserted.as_ref().is_none_or(|inserted| inserted.active)
    }

    /// Whether this is the device that libvirt calls `alias`. QEMU names it by the id, or by a path that contains it:
    /// `/machine/peripheral/virtio-disk0/virtio-backend`.
    fn is_called(&self, alias: &str) -> bool {
        self.qdev.as_deref().is_some_and(|qdev| qdev.split('/').any(|part| part == alias))
    }

    /// The layers, active first.
    fn layers(&self) -> impl Iterator<Item = &Image> {
        let first = self.inserted.as_ref().map(|inserted| &inserted.image);
        std::iter::successors(first, |image| image.backing.as_deref())
            .filter(|image| !FILTERS.contains(&image.format.as_str()))
    }
}

impl Image {
    fn path(&self) -> Option<PathBuf> {
        let name = match self.filename.strip_prefix("json:") {
            None => self.filename.clone(),
            Some(description) => file_in(&serde_json::from_str(description).ok()?)?.to_owned(),
        };
        let name = name.strip_prefix("file:").or_else(|| name.strip_prefix("host_device:")).unwrap_or(&name);
        name.starts_with('/').then(|| PathBuf::from(name))
    }

    /// Of a raw layer without a format node of its own, QEMU gives the protocol's name.
    fn format(&self) -> Option<Format> {
        match self.format.as_str() {
            "qcow2" => Some(Format::Qcow2),
            "raw" | "file" | "host_device" => Some(Format::Raw),
            _ => None,
        }
    }
}

/// The file at the bottom of a node that QEMU can only describe, not name.
fn file_in(node: &serde_json::Value) -> Option<&str> {
    match node.get("filename") {
        Some(name) => name.as_str(),
        None => file_in(node.get("file")?),
    }
}

/// What QEMU writes to for the device that libvirt calls `alias`, and its size in bytes as the guest sees it.
pub(super) fn active_image(alias: &str, devices: &[BlockDevice]) -> Option<(PathBuf, u64)> {
    let device = devices.iter().find(|device| device.is_called(alias))?;
    let image = device.layers().next()?;
    Some((image.path()?, image.virtual_size))
}

/// Checks that QEMU reads disk `target` through `chain`. `same_file` tells whether two names are one file.
pub(super) fn check_agreement(
    target: &DiskTarget,
    alias: Option<&str>,
    chain: &[ChainImage],
    devices: &[BlockDevice],
    same_file: impl Fn(&Path, &Path) -> bool,
) -> Result<(), HostError> {
    let device = alias.and_then(|alias| devices.iter().find(|device| device.is_called(alias)));
    let Some(device) = device else {
        return Err(disagreement(format!("libvirt has a disk {target}, and QEMU has no such device")));
    };
    let layers: Vec<&Image> = device.layers().collect();
    let agrees = layers.len() == chain.len()
        && layers.iter().zip(chain).all(|(layer, image)| {
            layer.format() == Some(image.format)
                && layer.path().is_some_and(|path| path == image.path || same_file(&path, &image.path))
        });
    if agrees {
        return Ok(());
    }
    let of_libvirt =
        chain.iter().map(|image| format!("{} ({})", image.path.display(), image.format)).collect::<Vec<_>>();
    let of_qemu =
        layers.iter().map(|layer| format!("{} ({})", layer.filename, layer.format)).collect::<Vec<_>>();
    Err(disagreement(format!(
        "disk {target}: libvirt names {}; QEMU uses {}",
        of_libvirt.join(", "),
        of_qemu.join(", ")
    )))
}

fn disagreement(text: String) -> HostError {
    HostError::Disagreement(LibvirtSays::new(text).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(path: &str, format: Format) -> ChainImage {
        ChainImage { path: path.into(), format, is_block_device: false }
    }

    fn device(json: &str) -> BlockDevice {
        serde_json::from_str(json).unwrap()
    }

    const VIRTIO: &str = r#"{"qdev":"/machine/peripheral/virtio-disk0/virtio-backend","type":"unknown",
        "inserted":{"active":false,"drv":"qcow2","image":{"filename":"/i/top","format":"qcow2","new-field":{},
        "backing-image":{"filename":"/i/base","format":"file"}}}}"#;

    #[track_caller]
    fn check(json: &str, alias: Option<&str>, chain: &[ChainImage], expected: Option<&str>) {
        let result = check_agreement(&"vda".parse().unwrap(), alias, chain, &[device(json)], |_, _| false);
        let text = result.err().map(|error| std::error::Error::source(&error).unwrap().to_string());
        assert_eq!(text.as_deref(), expected);
    }

    #[test]
    fn the_same_chain_agrees() {
        let chain = [image("/i/top", Format::Qcow2), image("/i/base", Format::Raw)];
        check(VIRTIO, Some("virtio-disk0"), &chain, None);
        let scsi = VIRTIO.replace("/machine/peripheral/virtio-disk0/virtio-backend", "scsi0-0-0-0");
        check(&scsi, Some("scsi0-0-0-0"), &chain, None);
        let filtered = r#"{"qdev":"d","inserted":{"image":{"filename":"/i/top","format":"mirror_top","backing-image":
            {"filename":"/i/top","format":"qcow2","backing-image":{"filename":"/i/base","format":"raw"}}}}}"#;
        check(filtered, Some("d"), &chain, None);
        let described = r#"{"qdev":"d","inserted":{"image":{"format":"qcow2","filename":
            "json:{\"driver\":\"qcow2\",\"file\":{\"driver\":\"file\",\"filename\":\"/i/top\"}}",
            "backing-image":{"filename":"/i/base","format":"host_device"}}}}"#;
        check(described, Some("d"), &chain, None);
    }

    #[test]
    fn another_chain_is_named_on_both_sides() {
        let top = image("/i/top", Format::Qcow2);
        check(
            VIRTIO,
            Some("virtio-disk0"),
            std::slice::from_ref(&top),
            Some("disk vda: libvirt names /i/top (qcow2); QEMU uses /i/top (qcow2), /i/base (file)"),
        );
        check(
            VIRTIO,
            Some("virtio-disk0"),
            &[top.clone(), image("/i/base", Format::Qcow2)],
            Some(
                "disk vda: libvirt names /i/top (qcow2), /i/base (qcow2); QEMU uses /i/top (qcow2), /i/base (file)",
            ),
        );
        check(
            VIRTIO,
            Some("virtio-disk1"),
            std::slice::from_ref(&top),
            Some("libvirt has a disk vda, and QEMU has no such device"),
        );
        check(VIRTIO, None, &[top], Some("libvirt has a disk vda, and QEMU has no such device"));
    }

    #[test]
    fn what_is_written_to() {
        let named =
            VIRTIO.replace(r#""format":"qcow2","new"#, r#""format":"qcow2","virtual-size":4096,"new"#);
        assert_ne!(named, VIRTIO);
        let active = |alias| active_image(alias, &[device(&named)]);
        assert_eq!((active("virtio-disk0"), active("virtio-disk1")), (Some(("/i/top".into(), 4096)), None));
    }

    #[test]
    fn images_that_qemu_let_go_of() {
        assert!(!device(VIRTIO).is_active());
        assert!(
            device(&VIRTIO.replace(r#""active":false,"#, "")).is_active(),
            "QEMU before 10.0 does not say"
        );
        assert!(device(r#"{"qdev":"ide0-0-1"}"#).is_active(), "an empty drive");
    }
}
