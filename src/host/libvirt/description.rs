//! A domain's XML, read.
//!
//! Decides which of its elements mean what to us, and which disks we handle. Pure: no file is opened, no call is made.
//! Leaves to `observe` to compare this with QEMU and with the images.
//!
//! Formats are taken from the definition alone. What a guest wrote into an image never decides how it is read.

use std::path::PathBuf;

use roxmltree::{Document, Node, ParsingOptions};

use super::firmware::{Variables, tpms, variables};
use super::memory_blocker::{background_blocker, memory_blocker};
use super::shape;
use crate::host::{HostError, Result};
use crate::model::DiskTarget;
use crate::model::step::ImageRef;
use crate::model::vm::{AgentChannel, ChainImage, ExcludedDisk, Format, RefusedDisk, Uncovered};

/// Longest XML that is read. A domain with 200 disks and long chains has less than a tenth of it.
const LONGEST: usize = 8 * 1024 * 1024;

/// Most nodes that are read.
const MOST_NODES: u32 = 400_000;

/// What a domain's XML says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Description {
    pub(super) memory_bytes: u64,
    pub(super) agent: AgentChannel,
    pub(super) memory_blocker: Option<String>,
    /// What in it stands in the way of capturing memory while the guest runs.
    pub(super) background_blocker: Option<String>,
    /// The file with the UEFI variables.
    pub(super) variables: Option<ImageRef>,
    pub(super) uncovered: Vec<Uncovered>,
    pub(super) disks: Vec<DescribedDisk>,
}

/// What libvirt has noted of where a block job copies to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mirror {
    pub(super) is_ready: bool,
}

/// A disk as the XML has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct DescribedDisk {
    pub(super) target: DiskTarget,
    /// QEMU's id of the device; only in the XML of a live domain.
    pub(super) alias: Option<String>,
    pub(super) source: DescribedSource,
    /// All files that are named for it, whatever kind it is: what it lies on, as far as that is named, what it is copied to.
    pub(super) files: Vec<PathBuf>,
    /// Whether it is a volume of a pool: then no file is named.
    pub(super) is_unnamed: bool,
    /// What a block job copies it to, and whether it may pivot there: `<mirror ready='yes'>`.
    pub(super) mirror: Option<Mirror>,
}

/// What a disk is backed by, as far as the XML says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum DescribedSource {
    Chain {
        /// Active first; at least one.
        images: Vec<ChainImage>,
        /// Whether the XML says where the chain ends. If not, the last image's header does.
        is_complete: bool,
    },
    Excluded(ExcludedDisk),
    Refused(RefusedDisk),
}

impl Description {
    /// Reads a `<domain>`.
    pub(super) fn read(xml: &str) -> Result<Self> {
        let document = parse(xml)?;
        let domain = document.root_element();
        if !domain.has_tag_name("domain") {
            return Err(malformed(format!("its root is <{}>", domain.tag_name().name())));
        }
        let mut uncovered: Vec<Uncovered> = tpms(domain).collect();
        let variables = match variables(domain) {
            Variables::Absent => None,
            Variables::File(file) => Some(file),
            Variables::Elsewhere(place) => {
                uncovered.insert(0, Uncovered::UefiVariables(place));
                None
            }
        };
        Ok(Self {
            memory_bytes: memory_bytes(domain)?,
            agent: agent_channel(domain),
            memory_blocker: memory_blocker(domain),
            background_blocker: background_blocker(domain),
            variables,
            uncovered,
            disks: disks(domain).map(read_disk).collect::<Result<_>>()?,
        })
    }

    /// The disk at `target`.
    pub(super) fn disk(&self, target: &DiskTarget) -> Option<&DescribedDisk> {
        self.disks.iter().find(|disk| disk.target == *target)
    }
}

impl DescribedDisk {
    /// The image that is written to, if the disk is one that we handle.
    pub(super) fn active(&self) -> Option<&ChainImage> {
        self.images().first()
    }

    /// The images that it names, active first, if the disk is one that we handle.
    pub(super) fn images(&self) -> &[ChainImage] {
        match &self.source {
            DescribedSource::Chain { images, .. } => images,
            DescribedSource::Excluded(_) | DescribedSource::Refused(_) => &[],
        }
    }
}

/// Parses XML, within bounds and without a document type.
pub(super) fn parse(xml: &str) -> Result<Document<'_>> {
    if xml.len() > LONGEST {
        return Err(malformed(format!("it is {} bytes long", xml.len())));
    }
    if let Some(excess) = shape::excess(xml) {
        return Err(malformed(excess));
    }
    let options = ParsingOptions { allow_dtd: false, nodes_limit: MOST_NODES, ..ParsingOptions::default() };
    Document::parse_with_options(xml, options).map_err(malformed)
}

/// The disks of a domain, in the order of its definition.
pub(super) fn disks<'a>(domain: Node<'a, 'a>) -> impl Iterator<Item = Node<'a, 'a>> {
    children(domain, "devices").flat_map(|devices| children(devices, "disk"))
}

/// The elements of one name right below a node.
pub(super) fn children<'a>(
    node: Node<'a, 'a>,
    name: &'static str,
) -> impl Iterator<Item = Node<'a, 'a>> + use<'a> {
    node.children().filter(move |child| child.has_tag_name(name))
}

/// The first element of one name right below a node.
pub(super) fn child<'a>(node: Node<'a, 'a>, name: &'static str) -> Option<Node<'a, 'a>> {
    children(node, name).next()
}

/// An attribute of the first element of one name right below a node.
pub(super) fn child_attribute<'a>(
    node: Node<'a, 'a>,
    name: &'static str,
    attribute: &str,
) -> Option<&'a str> {
    child(node, name).and_then(|child| child.attribute(attribute))
}

/// A domain definition that cannot be understood.
pub(super) fn malformed(cause: impl Into<crate::host::error::Cause>) -> HostError {
    HostError::Malformed { what: "the definition of the VM", cause: cause.into() }
}

/// The name of a disk.
pub(super) fn target_of(disk: Node<'_, '_>) -> Result<DiskTarget> {
    let target = disk.children().find(|child| child.has_tag_name("target"));
    let name = target
        .and_then(|target| target.attribute("dev"))
        .ok_or_else(|| malformed("a disk without a target"))?;
    name.parse().map_err(malformed)
}

fn memory_bytes(domain: Node<'_, '_>) -> Result<u64> {
    let memory = domain.children().find(|child| child.has_tag_name("memory"));
    let memory = memory.ok_or_else(|| malformed("it names no memory"))?;
    let number: u64 = memory.text().unwrap_or_default().trim().parse().map_err(malformed)?;
    // libvirt writes KiB; the others are for a definition written by hand.
    let unit: u64 = match memory.attribute("unit") {
        None | Some("KiB" | "k") => 1 << 10,
        Some("b" | "bytes") => 1,
        Some("MiB" | "M") => 1 << 20,
        Some("GiB" | "G") => 1 << 30,
        Some(other) => return Err(malformed(format!("memory in {other}"))),
    };
    number.checked_mul(unit).ok_or_else(|| malformed("memory beyond all bounds"))
}

fn agent_channel<'a>(domain: Node<'a, 'a>) -> AgentChannel {
    let channel = children(domain, "devices")
        .flat_map(|devices| children(devices, "channel"))
        .filter_map(|channel| child(channel, "target"))
        .find(|target| target.attribute("name") == Some("org.qemu.guest_agent.0"));
    match channel.map(|target| target.attribute("state")) {
        None => AgentChannel::Absent,
        Some(Some("connected")) => AgentChannel::Connected,
        Some(_) => AgentChannel::Disconnected,
    }
}

fn read_disk<'a>(disk: Node<'a, 'a>) -> Result<DescribedDisk> {
    Ok(DescribedDisk {
        target: target_of(disk)?,
        alias: child_attribute(disk, "alias", "name").map(ToOwned::to_owned),
        source: source(disk)?,
        files: files::named(disk),
        is_unnamed: files::is_unnamed(disk),
        mirror: child(disk, "mirror")
            .map(|mirror| Mirror { is_ready: mirror.attribute("ready") == Some("yes") }),
    })
}

fn source<'a>(disk: Node<'a, 'a>) -> Result<DescribedSource> {
    if let Some(excluded) = excluded(disk) {
        return Ok(DescribedSource::Excluded(excluded));
    }
    if let Some(refused) = refused(disk) {
        return Ok(DescribedSource::Refused(refused));
    }
    Ok(match chain(disk)? {
        Ok((images, is_complete)) => DescribedSource::Chain { images, is_complete },
        Err(refused) => DescribedSource::Refused(refused),
    })
}

fn excluded<'a>(disk: Node<'a, 'a>) -> Option<ExcludedDisk> {
    match disk.attribute("device") {
        Some("cdrom") => Some(ExcludedDisk::Cdrom),
        Some("floppy") => Some(ExcludedDisk::Floppy),
        // Passed through: the guest can send what it likes to it, whatever the definition says.
        Some("lun") => None,
        _ if child(disk, "readonly").is_some() => Some(ExcludedDisk::ReadOnly),
        _ if child(disk, "source").is_none() => Some(ExcludedDisk::Empty),
        _ => None,
    }
}

/// What is wrong with a disk as a whole.
fn refused<'a>(disk: Node<'a, 'a>) -> Option<RefusedDisk> {
    if disk.attribute("device") == Some("lun") {
        return Some(RefusedDisk::Lun);
    }
    if child(disk, "shareable").is_some() {
        return Some(RefusedDisk::Shared);
    }
    if child(disk, "transient").is_some() {
        return Some(RefusedDisk::Transient);
    }
    let anywhere = |name| disk.descendants().find(move |node| node.has_tag_name(name));
    if let Some(encryption) = anywhere("encryption") {
        return Some(RefusedDisk::Encrypted(encryption.attribute("format").unwrap_or("unknown").to_owned()));
    }
    if anywhere("dataStore").is_some() {
        return Some(RefusedDisk::ExternalDataFile);
    }
    if anywhere("slices").is_some() {
        return Some(RefusedDisk::Kind("a slice of an image".to_owned()));
    }
    None
}

type ImagesOrRefusal = std::result::Result<(Vec<ChainImage>, bool), RefusedDisk>;

/// The images from the active one down, and whether the XML says where they end.
fn chain<'a>(disk: Node<'a, 'a>) -> Result<ImagesOrRefusal> {
    let mut images = Vec::new();
    let mut layer = disk;
    let mut format = child_attribute(disk, "driver", "type");
    loop {
        let image = match image(layer, format)? {
            Ok(image) => image,
            Err(refused) => return Ok(Err(refused)),
        };
        let ends = image.format == Format::Raw;
        images.push(image);
        if ends {
            return Ok(Ok((images, true)));
        }
        let Some(below) = child(layer, "backingStore") else { return Ok(Ok((images, false))) };
        if below.attribute("type").is_none() {
            // `<backingStore/>` says that there is nothing below.
            return Ok(Ok((images, true)));
        }
        layer = below;
        format = child_attribute(below, "format", "type");
    }
}

fn image<'a>(
    layer: Node<'a, 'a>,
    format: Option<&str>,
) -> Result<std::result::Result<ChainImage, RefusedDisk>> {
    let source = child(layer, "source").ok_or_else(|| malformed("a layer without a source"))?;
    let (attribute, is_block_device) = match layer.attribute("type") {
        Some("file") => ("file", false),
        Some("block") => ("dev", true),
        Some("network") => {
            let protocol = source.attribute("protocol").unwrap_or("unknown protocol");
            return Ok(Err(RefusedDisk::Network(protocol.to_owned())));
        }
        other => return Ok(Err(RefusedDisk::Kind(other.unwrap_or("unknown").to_owned()))),
    };
    let format = match format {
        None => return Ok(Err(RefusedDisk::FormatUnknown)),
        Some("qcow2") => Format::Qcow2,
        Some("raw") => Format::Raw,
        Some(other) => return Ok(Err(RefusedDisk::Kind(format!("a {other} image")))),
    };
    let path = source.attribute(attribute).map(PathBuf::from);
    let path = path
        .filter(|path| path.is_absolute())
        .ok_or_else(|| malformed("a source without an absolute path"))?;
    Ok(Ok(ChainImage { path, format, is_block_device }))
}

mod files;
#[cfg(test)]
mod tests;
