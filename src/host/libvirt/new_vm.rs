//! The definition of a VM, made into that of another one.
//!
//! Decides what must not be shared: identity, addresses, disks, sockets and logs of the host. All else stays as it is
//! to the byte. Pure; see [`super::edit`].

use quick_xml::escape::escape;
use roxmltree::Node;
use sha2::{Digest, Sha256};

use super::description::{child, children, disks, malformed, parse, target_of};
use super::edit::{NewSource, Splice, apply, splice_disk};
use super::firmware;
use crate::host::Result;
use crate::host::paths::plain;
use crate::model::step::NewVm;

/// The definition of `new`, whose disks are `sources`.
pub(super) fn definition(xml: &str, new: &NewVm, sources: &[NewSource<'_>]) -> Result<String> {
    let document = parse(xml)?;
    let domain = document.root_element();
    let mut splices = identity(domain, new)?;
    for disk in disks(domain) {
        match sources.iter().find(|source| target_of(disk).is_ok_and(|target| target == *source.target)) {
            Some(source) => {
                splice_disk(disk, source, &mut splices)?;
                if new.new_serials {
                    let serial = |text| (text, unique(new, source.target.as_str())[..20].to_owned());
                    splices.extend(children(disk, "serial").filter_map(text_range).map(serial));
                }
            }
            None if is_written_by_nobody(disk) => {}
            // Two VMs would write to it.
            None => splices.push((disk.range(), String::new())),
        }
    }
    for devices in children(domain, "devices") {
        splices.extend(network_addresses(devices, new));
        splices.extend(host_endpoints(devices, new));
        splices.extend(displays(devices));
    }
    Ok(apply(xml, splices))
}

fn identity<'a>(domain: Node<'a, 'a>, new: &NewVm) -> Result<Vec<Splice>> {
    let text_of = |name: &'static str| {
        let range = child(domain, name).and_then(text_range);
        range.ok_or_else(|| malformed(format!("the definition has no {name}")))
    };
    let uuid = new.vm.to_string();
    let mut splices = vec![(text_of("name")?, new.name.to_string()), (text_of("uuid")?, uuid.clone())];
    // libvirt makes another one (virDomainDefGenerateGenID).
    splices.extend(children(domain, "genid").map(|genid| (genid.range(), "<genid/>".to_owned())));
    // libvirt refuses a definition whose SMBIOS UUID is another than its own.
    let entries = children(domain, "sysinfo").flat_map(|sysinfo| children(sysinfo, "system"));
    let entries = entries.flat_map(|system| children(system, "entry"));
    let is_uuid = |entry: &Node<'_, '_>| entry.attribute("name") == Some("uuid");
    splices.extend(entries.filter(is_uuid).filter_map(text_range).map(|range| (range, uuid.clone())));
    splices.extend(variables(domain, new)?);
    Ok(splices)
}

/// The file of the variables is the source's own: there is another one, or libvirt makes one from the firmware's template.
fn variables<'a>(domain: Node<'a, 'a>, new: &NewVm) -> Result<Option<Splice>> {
    let Some(nvram) = child(domain, "os").and_then(|os| child(os, "nvram")) else { return Ok(None) };
    match (&new.variables, firmware::place(nvram)) {
        (Some(path), Some((_, place))) => Ok(Some((place, escape(plain(path)?).into_owned()))),
        (None, Some(_)) if nvram.has_attribute("type") => {
            // Without its source it is not valid.
            Ok(Some((nvram.range(), String::new())))
        }
        (None, Some((_, place))) => Ok(Some((place, String::new()))),
        (Some(_), None) => Err(malformed("it names no file of UEFI variables")),
        (None, None) => Ok(None),
    }
}

fn is_written_by_nobody(disk: Node<'_, '_>) -> bool {
    matches!(disk.attribute("device"), Some("cdrom" | "floppy"))
        || disk.children().any(|child| child.has_tag_name("readonly"))
}

fn network_addresses<'a>(devices: Node<'a, 'a>, new: &NewVm) -> Vec<Splice> {
    let addresses = children(devices, "interface").filter_map(|interface| child(interface, "mac"));
    let addresses = addresses.filter_map(|mac| mac.attribute_node("address"));
    addresses
        .enumerate()
        .map(|(index, address)| {
            let digest = unique(new, &format!("mac {index}"));
            let [a, b, c] = [&digest[0..2], &digest[2..4], &digest[4..6]];
            // QEMU's own prefix, locally administered.
            (address.range_value(), format!("52:54:00:{a}:{b}:{c}"))
        })
        .collect()
}

/// Consoles, channels and logs that end in a file or a socket of the host: each VM has its own.
fn host_endpoints<'a>(devices: Node<'a, 'a>, new: &NewVm) -> Vec<Splice> {
    const KINDS: [&str; 4] = ["serial", "console", "parallel", "channel"];
    let mut splices = Vec::new();
    for device in devices.children().filter(|device| KINDS.contains(&device.tag_name().name())) {
        for source in children(device, "source") {
            let Some(path) = source.attribute_node("path") else { continue };
            if device.tag_name().name() == "channel" && path.value().contains("/libvirt/qemu/channel/") {
                // libvirt makes one up for each VM (qemuDomainChrDefDropDefaultPath).
                splices.push((path.range(), String::new()));
            } else if matches!(device.attribute("type"), Some("file" | "unix" | "pipe")) {
                splices.push(with_suffix(path, new));
            }
        }
        let logs = children(device, "log").filter_map(|log| log.attribute_node("file"));
        splices.extend(logs.map(|file| with_suffix(file, new)));
    }
    splices
}

fn with_suffix(attribute: roxmltree::Attribute<'_, '_>, new: &NewVm) -> Splice {
    let end = attribute.range_value().end;
    (end..end, format!(".{}", new.name))
}

/// A display at a port of its own choice.
fn displays<'a>(devices: Node<'a, 'a>) -> Vec<Splice> {
    let displays =
        children(devices, "graphics").filter(|graphics| graphics.attribute("autoport") != Some("yes"));
    let mut splices = Vec::new();
    for graphics in displays {
        if let Some(port) = graphics.attribute_node("port") {
            splices.push((port.range(), "autoport='yes'".to_owned()));
            splices.extend(
                graphics.attribute_node("autoport").map(|autoport| (autoport.range(), String::new())),
            );
        }
    }
    splices
}

/// All that stands in an element that has a text, in however many pieces.
fn text_range(node: Node<'_, '_>) -> Option<std::ops::Range<usize>> {
    let start = node.first_child()?.range().start;
    // The parser makes one text of pieces that follow each other, and gives the place of the first.
    let end = node.document().input_text()[..node.range().end].rfind("</")?;
    node.children().any(|child| child.is_text()).then_some(start..end)
}

/// Hexadecimal digits that no other VM has for this purpose.
fn unique(new: &NewVm, purpose: &str) -> String {
    let mut digest = Sha256::new();
    digest.update(new.vm.0.as_bytes());
    digest.update(purpose);
    let digest: [u8; 32] = digest.finalize().into();
    let (high, low) = digest.split_at(16);
    let number = |half: &[u8]| half.iter().fold(0_u128, |number, byte| number << 8 | u128::from(*byte));
    format!("{:032x}{:032x}", number(high), number(low))
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::model::VmId;
    use crate::model::vm::Format;

    const DOMAIN: &str = "<domain type='kvm' id='7'>
  <name>web</name>
  <uuid>11111111-1111-1111-1111-111111111111</uuid>
  <genid>22222222-2222-2222-2222-222222222222</genid>
  <sysinfo type='smbios'><system><entry name='uuid'>11111111-1111-1111-1111-111111111111</entry></system></sysinfo>
  <os><type>hvm</type><nvram template='/usr/share/OVMF/VARS.fd'>/var/lib/libvirt/qemu/nvram/web.fd</nvram></os>
  <devices>
    <disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/i/web'/><target dev='vda'/><serial>abc</serial></disk>
    <disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='/i/scratch'/><target dev='vdb'/></disk>
    <disk type='file' device='cdrom'><source file='/iso'/><target dev='sda'/><readonly/></disk>
    <interface type='bridge'><mac address='52:54:00:aa:bb:cc'/><source bridge='br0'/></interface>
    <serial type='file'><source path='/log/web'/><log file='/log/more' append='on'/><target port='0'/></serial>
    <channel type='unix'><source mode='bind' path='/run/libvirt/qemu/channel/7-web/agent'/></channel>
    <graphics type='vnc' port='5901' autoport='no'/>
  </devices>
</domain>
";

    #[test]
    fn nothing_that_must_be_unique_is_shared() {
        let vda = "vda".parse().unwrap();
        let new = NewVm {
            snapshot: crate::model::SnapshotId(Uuid::nil()),
            vm: VmId(Uuid::from_u128(3)),
            name: "copy".parse().unwrap(),
            disks: Vec::new(),
            new_serials: true,
            variables: None,
        };
        let source =
            NewSource { target: &vda, path: "/i/copy", format: Format::Qcow2, is_block_device: false };
        let made = definition(DOMAIN, &new, &[source]).unwrap();
        let document = parse(&made).unwrap();
        assert!(document.root_element().has_tag_name("domain"), "it is XML still");
        for shared in [
            "<name>web<",
            "11111111",
            "22222222",
            "/i/web",
            "/i/scratch",
            "vdb",
            "aa:bb:cc",
            "'/log/web'",
            "'/log/more'",
            "7-web",
            "5901",
            "nvram/web.fd",
            "<serial>abc<",
        ] {
            assert!(!made.contains(shared), "{shared} is shared: {made}");
        }
        for kept in [
            "<name>copy</name>",
            "00000000-0000-0000-0000-000000000003</uuid>",
            "/i/copy",
            "/iso",
            "/log/web.copy",
            "/log/more.copy",
            "br0",
            "52:54:00:",
            "OVMF/VARS.fd",
            "autoport='yes'",
        ] {
            assert!(made.contains(kept), "{kept} is missing: {made}");
        }
        for pieces in ["w<!-- -->e<![CDATA[b]]>", "<![CDATA[web]]>", "<!-- -->web", "web<x></x>"] {
            let pieces = DOMAIN.replace("<name>web<", &format!("<name>{pieces}<"));
            let made = definition(&pieces, &new, &[]).unwrap();
            assert!(made.contains("<name>copy</name>"), "{made}");
        }
        let variables = NewVm { variables: Some("/nvram/a&b.fd".into()), ..new.clone() };
        let made = definition(DOMAIN, &variables, &[]).unwrap();
        assert!(
            made.contains("<nvram template='/usr/share/OVMF/VARS.fd'>/nvram/a&amp;b.fd</nvram>"),
            "{made}"
        );
        let by_source = DOMAIN
            .replace(">/var/lib/libvirt/qemu/nvram/web.fd<", " type='file'><source file='/nvram/web.fd'/><");
        let made = definition(&by_source, &variables, &[]).unwrap();
        assert!(made.contains("type='file'><source file='/nvram/a&amp;b.fd'/></nvram>"), "{made}");
        let made = definition(&by_source, &new, &[]).unwrap();
        assert!(!made.contains("nvram"), "{made}");
        let serials = definition(DOMAIN, &NewVm { new_serials: false, ..new }, &[]).unwrap();
        assert!(!serials.contains("vda"), "a disk that is not named is left out");
    }
}
