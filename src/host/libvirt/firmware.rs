//! The state of a VM's firmware and TPM, as its XML has it (libvirt's documentation, "Domain XML format": `os`, `tpm`).
//!
//! Decides whether there is a file of UEFI variables that can be copied, and names what cannot be. Pure.

use std::ops::Range;
use std::path::PathBuf;

use roxmltree::Node;

use super::description::{child, child_attribute, children};
use crate::model::step::ImageRef;
use crate::model::vm::{Format, Uncovered};

/// Where UEFI variables are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Variables {
    /// The VM has none.
    Absent,
    /// In a file.
    File(ImageRef),
    /// In words where.
    Elsewhere(String),
}

/// Where the UEFI variables of a domain are.
pub(super) fn variables<'a>(domain: Node<'a, 'a>) -> Variables {
    let Some(os) = child(domain, "os") else { return Variables::Absent };
    let is_flash = child_attribute(os, "loader", "type") == Some("pflash");
    let is_uefi = is_flash || os.attribute("firmware") == Some("efi");
    let Some(nvram) = child(os, "nvram") else {
        let is_stateless = child_attribute(os, "loader", "stateless") == Some("yes");
        return if is_uefi && !is_stateless {
            // libvirt chooses a file when the VM starts for the first time.
            Variables::Elsewhere("no file of them yet".to_owned())
        } else {
            Variables::Absent
        };
    };
    if let Some(kind) = nvram.attribute("type").filter(|kind| *kind != "file") {
        return Variables::Elsewhere(format!("on a {kind} device"));
    }
    let format = match nvram.attribute("format") {
        None | Some("raw") => Format::Raw,
        Some("qcow2") => Format::Qcow2,
        Some(other) => return Variables::Elsewhere(format!("in format {other}")),
    };
    match place(nvram).map(|(path, _)| PathBuf::from(path)).filter(|path| path.is_absolute()) {
        Some(path) => Variables::File(ImageRef { path, format }),
        None => Variables::Elsewhere("no file of them yet".to_owned()),
    }
}

/// The path in an `<nvram>`, and where it stands in the text.
pub(super) fn place<'a>(nvram: Node<'a, 'a>) -> Option<(&'a str, Range<usize>)> {
    if let Some(file) = child(nvram, "source").and_then(|source| source.attribute_node("file")) {
        return Some((file.value(), file.range_value()));
    }
    let text = nvram
        .children()
        .find(|child| child.is_text() && !child.text().unwrap_or_default().trim().is_empty())?;
    Some((text.text()?.trim(), text.range()))
}

/// The models of a domain's TPMs.
pub(super) fn tpms<'a>(domain: Node<'a, 'a>) -> impl Iterator<Item = Uncovered> {
    let tpms = children(domain, "devices").flat_map(|devices| children(devices, "tpm"));
    tpms.map(|tpm| Uncovered::Tpm(tpm.attribute("model").unwrap_or("TPM").to_owned()))
}
