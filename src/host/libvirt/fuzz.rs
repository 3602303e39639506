//! Definitions, answers of QEMU and of guest agents as strangers would send them: no reader panics, what is let through is
//! what it seems, and what is written can be read and differs only where it is meant to.

use proptest::prelude::*;
use uuid::Uuid;

use super::description::{DescribedDisk, DescribedSource, Description, child, child_attribute, disks, parse};
use super::edit::{NewSource, with_sources};
use super::graph::{BlockDevice, check_agreement};
use super::snapshot_xml::snapshot_xml;
use super::{agent, monitor, new_vm};
use crate::host::DiskSwitch;
use crate::host::paths::plain;
use crate::model::step::{ImageRef, NewVm};
use crate::model::vm::{ChainImage, Format};
use crate::model::{DiskTarget, SnapshotId, VmId};
use crate::mutation;

const LIVE: &str = include_str!("description/live.xml");

/// Two of the kinds of disks, and all that a new VM must have for itself.
const SMALL: &str = "<domain type='kvm' id='7'><name>web</name>
<uuid>11111111-1111-1111-1111-111111111111</uuid><genid>22222222-2222-2222-2222-222222222222</genid>
<memory unit='KiB'>262144</memory>
<os><type>hvm</type><nvram template='/t.fd'>/nvram/web.fd</nvram></os>
<devices>
<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/i/web'/><backingStore type='file'>
<format type='raw'/><source file='/i/base'/><backingStore/></backingStore><target dev='vda'/><serial>abc</serial></disk>
<disk type='block' device='disk'><driver name='qemu' type='raw'/><source dev='/dev/vg/x'/><target dev='vdb'/></disk>
<disk type='file' device='cdrom'><source file='/iso'/><target dev='sda'/><readonly/></disk>
<interface type='bridge'><mac address='52:54:00:aa:bb:cc'/></interface>
<serial type='file'><source path='/log/web'/><log file='/log/more'/></serial>
<channel type='unix'><source mode='bind' path='/run/libvirt/qemu/channel/7-web/agent'/></channel>
<graphics type='vnc' port='5901' autoport='no'/>
</devices></domain>";

const QUERY_BLOCK: &str = r#"{"return":[{"qdev":"/machine/peripheral/virtio-disk0/virtio-backend","type":"unknown",
"inserted":{"active":false,"drv":"qcow2","image":{"filename":"/i/top","format":"qcow2","virtual-size":1073741824,
"backing-image":{"filename":"json:{\"driver\":\"qcow2\",\"file\":{\"driver\":\"file\",\"filename\":\"/i/base\"}}",
"format":"file"}}}},{"qdev":"ide0-0-1"}],"id":"libvirt-42"}"#;

const QUERY_VERSION: &str =
    r#"{"return":{"qemu":{"micro":2,"minor":0,"major":10},"package":"Debian"},"id":"libvirt-1"}"#;

const REFUSAL: &str = r#"{"id":"libvirt-7","error":{"class":"GenericError","desc":"no"}}"#;

fn definitions() -> impl Strategy<Value = String> {
    mutation::text([SMALL, SMALL, LIVE])
}

fn vda() -> DiskTarget {
    "vda".parse().unwrap()
}

const NEW: &str = "/i/new '<\">&";

fn new_source(target: &DiskTarget) -> NewSource<'_> {
    NewSource { target, path: NEW, format: Format::Qcow2, is_block_device: false }
}

fn check_image(image: &ChainImage) {
    assert!(image.path.is_absolute(), "{image:?}");
}

fn check_disk(disk: &DescribedDisk) {
    assert!(disk.target.as_str().len() <= DiskTarget::LIMIT, "{disk:?}");
    if let DescribedSource::Chain { images, .. } = &disk.source {
        assert!(!images.is_empty());
        images.iter().for_each(check_image);
    }
}

/// The images that a definition lets a VM write to.
fn written(description: &Description) -> Vec<&ChainImage> {
    description.disks.iter().filter_map(DescribedDisk::active).collect()
}

proptest! {
    #![proptest_config(mutation::config())]

    #[test]
    fn what_a_definition_says_is_what_we_handle(xml in definitions()) {
        if let Ok(description) = Description::read(&xml) {
            description.disks.iter().for_each(check_disk);
            if let Some(variables) = &description.variables {
                prop_assert!(variables.path.is_absolute());
            }
        }
    }

    #[test]
    fn an_edited_definition_differs_only_where_it_is_meant_to(xml in definitions()) {
        let vda = vda();
        let Ok(edited) = with_sources(&xml, &[new_source(&vda)]) else { return Ok(()) };
        let document = parse(&edited);
        prop_assert!(document.is_ok(), "{edited}\n{document:?}");
        let Ok(before) = Description::read(&xml) else { return Ok(()) };
        let after = Description::read(&edited);
        prop_assert!(after.is_ok(), "{edited}\n{after:?}");
        let mut after = after.unwrap();
        let place = before.disks.iter().position(|disk| disk.target == vda).unwrap();
        if let DescribedSource::Chain { images, .. } = &after.disks[place].source {
            prop_assert_eq!(images, &[ChainImage { path: NEW.into(), format: Format::Qcow2, is_block_device: false }]);
        }
        after.disks[place] = before.disks[place].clone();
        prop_assert_eq!(after, before, "{}", edited);
    }

    #[test]
    fn a_new_vm_shares_no_disk_and_no_name(xml in definitions()) {
        let vda = vda();
        let new = NewVm {
            snapshot: SnapshotId(Uuid::nil()),
            vm: VmId(Uuid::from_u128(3)),
            name: "copy".parse().unwrap(),
            disks: Vec::new(),
            new_serials: true,
            variables: Some("/nvram/copy".into()),
        };
        let Ok(made) = new_vm::definition(&xml, &new, &[new_source(&vda)]) else { return Ok(()) };
        let document = parse(&made);
        prop_assert!(document.is_ok(), "{made}\n{document:?}");
        let document = document.unwrap();
        let text = |name| child(document.root_element(), name).map(|node| {
            node.descendants().filter(roxmltree::Node::is_text).filter_map(|node| node.text()).collect::<String>()
        });
        prop_assert_eq!(text("name"), Some("copy".to_owned()), "{}", made);
        prop_assert_eq!(text("uuid"), Some(new.vm.to_string()), "{}", made);
        for disk in disks(document.root_element()) {
            let is_written = !matches!(disk.attribute("device"), Some("cdrom" | "floppy"))
                && child(disk, "readonly").is_none();
            let path = child_attribute(disk, "source", "file").or(child_attribute(disk, "source", "dev"));
            prop_assert!(!is_written || path == Some(NEW), "{}", made);
        }
        if let Ok(description) = Description::read(&made) {
            for image in written(&description) {
                prop_assert_eq!(&image.path, std::path::Path::new(NEW));
            }
            if let Some(variables) = description.variables {
                prop_assert_eq!(variables.path, std::path::Path::new("/nvram/copy"));
            }
        }
    }

    #[test]
    fn a_request_for_a_snapshot_names_what_it_was_told(
        path in mutation::text(["/i/new", "/i/a b", "/i/x.qcow2"]),
        memory in mutation::text(["/m/image"]),
    ) {
        // The kernel takes no longer path; the parser takes no text that might declare a thousand namespaces.
        prop_assume!(path.len().max(memory.len()) <= 4096);
        let disk = (vda(), ImageRef { path: path.clone().into(), format: Format::Qcow2 });
        let switch = DiskSwitch {
            disks: vec![disk],
            others: vec!["sda".parse().unwrap()],
            memory: Some(memory.clone().into()),
        };
        let Ok(xml) = snapshot_xml(&switch) else { return Ok(()) };
        let document = parse(&xml);
        prop_assert!(document.is_ok(), "{xml}\n{document:?}");
        let document = document.unwrap();
        let root = document.root_element();
        let disks = child(root, "disks").unwrap();
        let disk = child(disks, "disk").unwrap();
        prop_assert_eq!(child_attribute(disk, "source", "file"), Some(path.as_str()));
        prop_assert_eq!(child_attribute(root, "memory", "file"), Some(memory.as_str()));
        prop_assert_eq!(disks.children().count(), 2);
        prop_assert!(plain(path.as_ref()).is_ok());
    }

    #[test]
    fn what_qemu_says_of_its_disks(reply in mutation::text([QUERY_BLOCK, QUERY_BLOCK, REFUSAL, QUERY_VERSION])) {
        let chain = ["/i/top", "/i/base"].map(|path| ChainImage {
            path: path.into(),
            format: Format::Qcow2,
            is_block_device: false,
        });
        if let Ok(devices) = monitor::read::<Vec<BlockDevice>>(&reply) {
            // Never a panic; and what agrees was named.
            if check_agreement(&vda(), Some("virtio-disk0"), &chain, &devices, |_, _| false).is_ok() {
                prop_assert!(reply.contains("virtio-disk0"), "{reply}");
            }
            let _ = devices.iter().all(BlockDevice::is_active);
        }
        let _ = monitor::read::<serde_json::Value>(&reply);
    }

    #[test]
    fn what_a_guest_agent_says(
        reply in mutation::text([r#"{"return":2}"#, r#"{"return":"frozen","id":"x"}"#, REFUSAL])
    ) {
        if let Ok(number) = agent::read::<i64>(&reply).and_then(agent::count) {
            prop_assert!(reply.contains(&number.to_string()) || reply.contains("-0"), "{reply}");
        }
        let _ = agent::read::<qapi::qga::GuestFsfreezeStatus>(&reply);
    }
}

/// Deep and wide is read, without a stack that grows; what would take the parser hours is refused before.
#[test]
fn definitions_beyond_measure() {
    let check = |text: &str, expected: bool| {
        let xml = format!("<domain><memory>1</memory><metadata>{text}</metadata></domain>");
        assert_eq!(Description::read(&xml).is_ok(), expected, "{text:.40}");
    };
    check(&format!("{}{}", "<a>".repeat(100_000), "</a>".repeat(100_000)), true);
    check(&"<a/>".repeat(200_000), true);
    check(&"<a/>".repeat(400_000), false);
    check(&"x".repeat(8 * 1024 * 1024), false);
    let attributes = (0..50_000).map(|number| format!(" a{number}=''")).collect::<Vec<_>>().concat();
    check(&format!("<a{attributes}/>"), false);
    let namespaces = (0..20_000).map(|number| format!("<a{number} xmlns:a{number}=''>"));
    let namespaces = namespaces.collect::<Vec<_>>().concat();
    check(&namespaces, false);
}
