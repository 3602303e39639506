//! The XML that asks libvirt for a snapshot, and the one that tells of a snapshot of its own.
//!
//! Decides nothing but its spelling: built by a writer out of typed values, never by pasting text.

use std::io;
use std::path::PathBuf;

use quick_xml::Writer;

use super::description::{children, parse};
use crate::host::paths::plain;
use crate::host::{DiskSwitch, HostError, Result};

/// The `<domainsnapshot>` of a switch. Disks that are not named would get libvirt's default, so all are named.
pub(super) fn snapshot_xml(switch: &DiskSwitch) -> Result<String> {
    let memory = switch.memory.as_deref().map(plain).transpose()?;
    let disks = switch
        .disks
        .iter()
        .map(|(target, image)| Ok((target.as_str(), image.format.as_str(), plain(&image.path)?)))
        .collect::<Result<Vec<_>>>()?;
    let mut writer = Writer::new(Vec::new());
    let written = writer.create_element("domainsnapshot").write_inner_content(|writer| {
        if let Some(memory) = memory {
            let element = writer.create_element("memory");
            element.with_attributes([("snapshot", "external"), ("file", memory)]).write_empty()?;
        }
        writer.create_element("disks").write_inner_content(|writer| {
            for (target, format, path) in &disks {
                write_disk(writer, target, format, path)?;
            }
            for other in &switch.others {
                let element = writer.create_element("disk");
                element.with_attributes([("name", other.as_str()), ("snapshot", "no")]).write_empty()?;
            }
            Ok(())
        })?;
        Ok(())
    });
    written.map_err(unspellable)?;
    String::from_utf8(writer.into_inner()).map_err(unspellable)
}

/// The images that were made for a snapshot of libvirt's own, by its `<domainsnapshot>`.
pub(super) fn images_of(xml: &str) -> Result<Vec<PathBuf>> {
    let document = parse(xml)?;
    let disks = children(document.root_element(), "disks").flat_map(|disks| children(disks, "disk"));
    let sources = disks.flat_map(|disk| children(disk, "source"));
    let paths = sources.filter_map(|source| source.attribute("file").or_else(|| source.attribute("dev")));
    Ok(paths.map(PathBuf::from).collect())
}

fn write_disk(writer: &mut Writer<Vec<u8>>, target: &str, format: &str, path: &str) -> io::Result<()> {
    let disk = writer.create_element("disk");
    let disk = disk.with_attributes([("name", target), ("snapshot", "external"), ("type", "file")]);
    disk.write_inner_content(|writer| {
        writer.create_element("driver").with_attribute(("type", format)).write_empty()?;
        writer.create_element("source").with_attribute(("file", path)).write_empty()?;
        Ok(())
    })?;
    Ok(())
}

fn unspellable(cause: impl Into<crate::host::error::Cause>) -> HostError {
    HostError::Malformed { what: "the description of the snapshot", cause: cause.into() }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::model::Format;
    use crate::model::step::ImageRef;

    fn switch(path: &str, memory: Option<&str>) -> DiskSwitch {
        DiskSwitch {
            disks: vec![("vda".parse().unwrap(), ImageRef { path: path.into(), format: Format::Qcow2 })],
            others: vec!["sda".parse().unwrap()],
            memory: memory.map(Into::into),
        }
    }

    #[test]
    fn disks_alone() {
        let xml = snapshot_xml(&switch("/i/new", None)).unwrap();
        assert_eq!(
            xml,
            "<domainsnapshot><disks>\
             <disk name=\"vda\" snapshot=\"external\" type=\"file\"><driver type=\"qcow2\"/>\
             <source file=\"/i/new\"/></disk><disk name=\"sda\" snapshot=\"no\"/></disks></domainsnapshot>"
        );
    }

    #[test]
    fn memory_too() {
        let xml = snapshot_xml(&switch("/i/new", Some("/m/image"))).unwrap();
        assert!(xml.starts_with("<domainsnapshot><memory snapshot=\"external\" file=\"/m/image\"/><disks>"));
    }

    #[test]
    fn images_of_a_snapshot_of_libvirt() {
        let xml = "<domainsnapshot><name>by-hand</name><memory snapshot='no'/><disks>\
                   <disk name='vda' snapshot='external' type='file'><driver type='qcow2'/><source file='/i/mine'/></disk>\
                   <disk name='vdb' snapshot='external' type='block'><source dev='/dev/mine'/></disk>\
                   <disk name='vdc' snapshot='no'/></disks><domain><devices><disk><source file='/i/root'/></disk>\
                   </devices></domain></domainsnapshot>";
        assert_eq!(images_of(xml).unwrap(), [Path::new("/i/mine"), Path::new("/dev/mine")]);
    }

    #[test]
    fn a_path_cannot_break_out() {
        let xml = snapshot_xml(&switch("/i/'\"><&", None)).unwrap();
        assert!(xml.contains("<source file=\"/i/&apos;&quot;&gt;&lt;&amp;\"/>"), "{xml}");
        for bad in ["relative", "/i/a\0b", "/i/a\nb", "/i/a\u{1}b", "/i/a\u{ffff}"] {
            assert!(snapshot_xml(&switch(bad, None)).is_err(), "{bad:?}");
            assert!(snapshot_xml(&switch("/i/new", Some(bad))).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_path_that_is_no_text() {
        use std::os::unix::ffi::OsStrExt;
        let bytes = std::ffi::OsStr::from_bytes(b"/i/\xff");
        assert!(plain(Path::new(bytes)).is_err());
    }
}
