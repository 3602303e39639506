//! What in a definition stands in the way of capturing memory.
//!
//! Decides by the devices that QEMU cannot save or restore, named as an operator knows them. QEMU and libvirt know
//! more, and say it when asked to capture: this is what can be said before.

use roxmltree::Node;

use super::description::{child, child_attribute, children};

/// The first thing in the way, in words, if there is one.
pub(super) fn memory_blocker<'a>(domain: Node<'a, 'a>) -> Option<String> {
    if let Some(kind) = child(domain, "launchSecurity").and_then(|node| node.attribute("type")) {
        return Some(format!("encrypted guest memory ({kind})"));
    }
    if needs_invariant_clock(domain) {
        return Some("an invariant TSC without a fixed frequency".to_owned());
    }
    children(domain, "devices").flat_map(|devices| devices.children()).find_map(device)
}

/// What stands in the way of capturing memory while the guest runs, in words: each write waits until the page that it goes to is
/// written out; and QEMU has to write to a file that it was given open.
pub(super) fn background_blocker<'a>(domain: Node<'a, 'a>) -> Option<String> {
    if is_confined_by_path(domain) {
        return Some("AppArmor keeps its QEMU from truncating a file that it was given open".to_owned());
    }
    let pages = children(domain, "memoryBacking")
        .flat_map(|backing| children(backing, "hugepages"))
        .flat_map(|huge| children(huge, "page"));
    let is_huge = |page: &Node<'a, 'a>| {
        let size = page.attribute("size").and_then(|size| size.parse::<u64>().ok()).unwrap_or(0);
        // libvirt itself says it in KiB.
        match page.attribute("unit") {
            None | Some("KiB" | "k" | "K") => size >= 1 << 20,
            Some("MiB" | "M") => size >= 1 << 10,
            Some("GiB" | "G") => size >= 1,
            Some(_) => false,
        }
    };
    pages.into_iter().any(|page| is_huge(&page)).then(|| "its memory has pages of 1 GiB".to_owned())
}

/// A profile of `AppArmor` goes by the paths that libvirt wrote into it, whoever has opened the file (seen with libvirt 11.3:
/// "failed to truncate migration file"). libvirt's own capture adds its file to the profile.
fn is_confined_by_path<'a>(domain: Node<'a, 'a>) -> bool {
    children(domain, "seclabel").any(|label| {
        label.attribute("model") == Some("apparmor")
            && label.attribute("type").is_some_and(|kind| kind != "none")
    })
}

fn device<'a>(device: Node<'a, 'a>) -> Option<String> {
    let kind = device.attribute("type");
    match device.tag_name().name() {
        "hostdev" => match kind {
            // libvirt and QEMU allow both: their state is in the device, not in memory.
            Some("usb" | "scsi") => None,
            Some(kind) => Some(format!("a host device that is passed through ({kind})")),
            None => Some("a host device that is passed through".to_owned()),
        },
        "interface" => match kind {
            Some("hostdev") => Some("a network card that is passed through".to_owned()),
            Some("vdpa") => Some("a vDPA network card".to_owned()),
            Some("vhostuser") => Some("a vhost-user network card".to_owned()),
            _ => None,
        },
        "filesystem" => Some(match child_attribute(device, "driver", "type") {
            Some("virtiofs") => "a shared directory (virtiofs)".to_owned(),
            _ => "a shared directory (9p)".to_owned(),
        }),
        "disk" => match kind {
            Some("vhostuser") => Some("a vhost-user disk".to_owned()),
            Some("vhostvdpa") => Some("a vDPA disk".to_owned()),
            Some("nvme") => Some("an NVMe disk that is passed through".to_owned()),
            _ if child(device, "transient").is_some() => Some("a transient disk".to_owned()),
            _ => None,
        },
        "shmem" if device.attribute("role") != Some("master") => Some("a shared memory device".to_owned()),
        "video" if child_attribute(device, "driver", "name") == Some("vhostuser") => {
            Some("a vhost-user graphics card".to_owned())
        }
        "tpm" if child_attribute(device, "backend", "type") == Some("passthrough") => {
            Some("a TPM that is passed through".to_owned())
        }
        "smartcard" if device.attribute("mode") == Some("host") => {
            Some("a smart card reader that is passed through".to_owned())
        }
        "crypto" if child_attribute(device, "backend", "model") == Some("vhostuser") => {
            Some("a vhost-user crypto device".to_owned())
        }
        _ => None,
    }
}

/// libvirt refuses to save such a guest: its clock would run at another speed after a restore elsewhere.
fn needs_invariant_clock<'a>(domain: Node<'a, 'a>) -> bool {
    let demands = children(domain, "cpu").flat_map(|cpu| children(cpu, "feature")).any(|feature| {
        feature.attribute("name") == Some("invtsc") && feature.attribute("policy") == Some("require")
    });
    let is_fixed = children(domain, "clock")
        .flat_map(|clock| children(clock, "timer"))
        .any(|timer| timer.attribute("name") == Some("tsc") && timer.attribute("frequency").is_some());
    demands && !is_fixed
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(domain: &str, expected: Option<&str>) {
        let xml = format!("<domain>{domain}</domain>");
        let document = roxmltree::Document::parse(&xml).unwrap();
        assert_eq!(memory_blocker(document.root_element()).as_deref(), expected, "{domain}");
    }

    #[test]
    fn what_stands_in_the_way() {
        let device = |device: &str, expected| check(&format!("<devices>{device}</devices>"), expected);
        device("", None);
        device("<hostdev type='pci'/>", Some("a host device that is passed through (pci)"));
        device("<hostdev type='mdev'/>", Some("a host device that is passed through (mdev)"));
        device("<hostdev type='usb'/>", None);
        device("<interface type='bridge'/>", None);
        device("<interface type='hostdev'/>", Some("a network card that is passed through"));
        device("<interface type='vdpa'/>", Some("a vDPA network card"));
        device("<interface type='vhostuser'/>", Some("a vhost-user network card"));
        device("<filesystem><driver type='virtiofs'/></filesystem>", Some("a shared directory (virtiofs)"));
        device("<filesystem><driver type='path'/></filesystem>", Some("a shared directory (9p)"));
        device("<disk type='file'/>", None);
        device("<disk type='vhostuser'/>", Some("a vhost-user disk"));
        device("<disk type='vhostvdpa'/>", Some("a vDPA disk"));
        device("<disk type='nvme'/>", Some("an NVMe disk that is passed through"));
        device("<disk type='file'><transient/></disk>", Some("a transient disk"));
        device("<shmem name='x'/>", Some("a shared memory device"));
        device("<shmem name='x' role='master'/>", None);
        device("<video><driver name='vhostuser'/></video>", Some("a vhost-user graphics card"));
        device("<tpm><backend type='passthrough'/></tpm>", Some("a TPM that is passed through"));
        device("<tpm><backend type='emulator'/></tpm>", None);
        device("<smartcard mode='host'/>", Some("a smart card reader that is passed through"));
        device("<crypto><backend model='vhostuser'/></crypto>", Some("a vhost-user crypto device"));
        check("<launchSecurity type='sev'/>", Some("encrypted guest memory (sev)"));
    }

    #[test]
    fn confinement() {
        let check = |label: &str, is_in_the_way: bool| {
            let xml = format!("<domain>{label}</domain>");
            let document = roxmltree::Document::parse(&xml).unwrap();
            assert_eq!(background_blocker(document.root_element()).is_some(), is_in_the_way, "{label}");
        };
        check(
            "<seclabel type='dynamic' model='apparmor' relabel='yes'><label>libvirt-1</label></seclabel>",
            true,
        );
        check(
            "<seclabel type='dynamic' model='dac' relabel='yes'><label>+64055:+64055</label></seclabel>",
            false,
        );
        check("<seclabel type='none' model='apparmor'/>", false);
        check("<seclabel type='dynamic' model='selinux' relabel='yes'/>", false);
    }

    #[test]
    fn pages_that_are_too_large() {
        let check = |page: &str, expected: Option<&str>| {
            let xml =
                format!("<domain><memoryBacking><hugepages>{page}</hugepages></memoryBacking></domain>");
            let document = roxmltree::Document::parse(&xml).unwrap();
            assert_eq!(background_blocker(document.root_element()).as_deref(), expected, "{page}");
        };
        let huge = Some("its memory has pages of 1 GiB");
        check("", None);
        check("<page size='2048' unit='KiB'/>", None);
        check("<page size='2048' unit='KiB'/><page size='1048576' unit='KiB'/>", huge);
        check("<page size='1048576'/>", huge);
        check("<page size='1' unit='GiB'/>", huge);
        check("<page size='1024' unit='M'/>", huge);
    }

    #[test]
    fn an_invariant_clock_needs_a_fixed_frequency() {
        let demand = "<cpu><feature policy='require' name='invtsc'/></cpu>";
        let blocked = Some("an invariant TSC without a fixed frequency");
        check(demand, blocked);
        check(&format!("{demand}<clock><timer name='tsc'/></clock>"), blocked);
        check(&format!("{demand}<clock><timer name='tsc' frequency='1'/></clock>"), None);
        check("<cpu><feature policy='disable' name='invtsc'/></cpu>", None);
    }
}
