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
