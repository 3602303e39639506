//! Other images in a domain's XML.
//!
//! Decides which bytes of it change: paths, formats and `<backingStore>` of the disks named, and nothing else. The
//! rest stays as it is to the byte, because a definition that was read and written again would lose what we do not
//! know of. Pure.

use std::ops::Range;

use quick_xml::escape::escape;
use roxmltree::Node;

use super::description::{child, children, disks, malformed, parse, target_of};
use crate::host::{HostError, Result};
use crate::model::{DiskTarget, Format};

/// An image that a disk is to name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct NewSource<'a> {
    pub(super) target: &'a DiskTarget,
    /// Absolute, without control characters.
    pub(super) path: &'a str,
    pub(super) format: Format,
    pub(super) is_block_device: bool,
}

/// The definition with other images. [`HostError::NoSuchDisk`] if a disk is not in it.
pub(super) fn with_sources(xml: &str, sources: &[NewSource<'_>]) -> Result<String> {
    let document = parse(xml)?;
    let mut splices = Vec::new();
    for source in sources {
        let disk = disk(document.root_element(), source.target)?;
        splice_disk(disk, source, &mut splices)?;
    }
    Ok(apply(xml, splices))
}

/// A range of the text, and what is to stand there.
pub(super) type Splice = (Range<usize>, String);

fn disk<'a>(domain: Node<'a, 'a>, target: &DiskTarget) -> Result<Node<'a, 'a>> {
    for disk in disks(domain) {
        if target_of(disk)? == *target {
            return Ok(disk);
        }
    }
    Err(HostError::NoSuchDisk(target.clone()))
}

pub(super) fn splice_disk<'a>(
    disk: Node<'a, 'a>,
    new: &NewSource<'_>,
    splices: &mut Vec<Splice>,
) -> Result<()> {
    let lacks = |what: &str| malformed(format!("disk {} has no {what} to replace", new.target));
    let (kind, path_attribute) = if new.is_block_device { ("block", "dev") } else { ("file", "file") };
    let kind_now = disk.attribute_node("type").ok_or_else(|| lacks("type"))?;
    splices.push((kind_now.range_value(), kind.to_owned()));

    let driver = child(disk, "driver").ok_or_else(|| lacks("driver"))?;
    let format = driver.attribute_node("type").ok_or_else(|| lacks("format"))?;
    splices.push((format.range_value(), new.format.as_str().to_owned()));

    let source = child(disk, "source").ok_or_else(|| lacks("source"))?;
    let mut paths = ["file", "dev"].into_iter().filter_map(|name| source.attribute_node(name));
    let path = paths.next().ok_or_else(|| lacks("path"))?;
    splices.push((path.range(), format!("{path_attribute}='{}'", escape(new.path))));
    splices.extend(paths.map(|other| (other.range(), String::new())));

    splices.extend(children(disk, "backingStore").map(|below| (below.range(), String::new())));
    Ok(())
}

pub(super) fn apply(text: &str, mut splices: Vec<Splice>) -> String {
    splices.sort_by_key(|(range, _)| range.start);
    let mut result = String::with_capacity(text.len());
    let mut at = 0;
    for (range, replacement) in splices {
        result.push_str(&text[at..range.start]);
        result.push_str(&replacement);
        at = range.end;
    }
    result.push_str(&text[at..]);
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOMAIN: &str = r#"<domain type='qemu' xmlns:x="http://example.org/x">
  <name>a &amp; b</name>
  <metadata><x:disk><target dev='vda'/><source file='/not/this'/></x:disk></metadata>
  <devices>
    <disk type="file"   device='disk'><!-- kept -->
      <driver name='qemu' type='qcow2' cache='none'/>
      <source file='/i/top' startupPolicy='optional'><seclabel model='dac' relabel='no'/></source>
      <backingStore type='file'>
        <format type='qcow2'/>
        <source file='/i/base'/>
        <backingStore/>
      </backingStore>
      <target dev='vda' bus='virtio'/>
    </disk>
    <disk type='block' device='disk'>
      <driver name='qemu' type='raw'/>
      <source dev='/dev/vg/lv'/>
      <target dev='vdb' bus='virtio'/>
    </disk>
    <disk type='file' device='cdrom'><target dev='sda' bus='sata'/></disk>
  </devices>
</domain>
"#;

    fn new<'a>(
        target: &'a DiskTarget,
        path: &'a str,
        format: Format,
        is_block_device: bool,
    ) -> NewSource<'a> {
        NewSource { target, path, format, is_block_device }
    }

    /// Each of `changes` turns one piece of [`DOMAIN`] into another; nothing else may change.
    #[track_caller]
    fn check(sources: &[NewSource<'_>], changes: &[(&str, &str)]) {
        let mut expected = DOMAIN.to_owned();
        for (from, to) in changes {
            assert!(expected.contains(from), "{from}");
            expected = expected.replacen(from, to, 1);
        }
        assert_eq!(with_sources(DOMAIN, sources).unwrap(), expected);
    }

    #[test]
    fn only_the_named_disks_change() {
        let (vda, vdb) = ("vda".parse().unwrap(), "vdb".parse().unwrap());
        let below = "<backingStore type='file'>\n        <format type='qcow2'/>\n        \
                     <source file='/i/base'/>\n        <backingStore/>\n      </backingStore>";
        check(&[], &[]);
        check(
            &[new(&vda, "/i/new", Format::Qcow2, false)],
            &[("file='/i/top'", "file='/i/new'"), (below, "")],
        );
        check(
            &[new(&vda, "/i/'<\">&", Format::Raw, false)],
            &[
                ("type='qcow2' cache", "type='raw' cache"),
                ("file='/i/top'", "file='/i/&apos;&lt;&quot;&gt;&amp;'"),
                (below, ""),
            ],
        );
        check(
            &[new(&vdb, "/i/b", Format::Qcow2, false), new(&vda, "/dev/vg/a", Format::Raw, true)],
            &[
                ("type=\"file\"   device", "type=\"block\"   device"),
                ("type='qcow2' cache", "type='raw' cache"),
                ("file='/i/top'", "dev='/dev/vg/a'"),
                (below, ""),
                ("<disk type='block'", "<disk type='file'"),
                ("type='raw'/>", "type='qcow2'/>"),
                ("dev='/dev/vg/lv'", "file='/i/b'"),
            ],
        );
    }

    /// libvirt writes one of them. Whoever left two must not get a third.
    #[test]
    fn a_source_has_one_path_afterwards() {
        let vda = "vda".parse().unwrap();
        let both = DOMAIN.replace("file='/i/top'", "dev='/dev/x' file='/i/top'");
        let edited = with_sources(&both, &[new(&vda, "/dev/y", Format::Raw, true)]).unwrap();
        assert!(edited.contains("<source  dev='/dev/y' startupPolicy"), "{edited}");
    }

    #[test]
    fn what_cannot_be_edited() {
        let check = |xml: &str, target: &str, expected: &str| {
            let target = target.parse().unwrap();
            let result = with_sources(xml, &[new(&target, "/i/new", Format::Qcow2, false)]);
            let error = result.unwrap_err();
            let text =
                std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string);
            assert_eq!(text, expected);
        };
        check(DOMAIN, "vdz", "the VM has no disk vdz");
        check(DOMAIN, "sda", "disk sda has no driver to replace");
        let network = DOMAIN.replace("<source dev='/dev/vg/lv'/>", "<source protocol='rbd' name='x'/>");
        check(&network, "vdb", "disk vdb has no path to replace");
        let without_format = DOMAIN.replace(" type='raw'/>", "/>");
        check(&without_format, "vdb", "disk vdb has no format to replace");
    }
}
