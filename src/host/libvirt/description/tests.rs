//! Definitions, read: a live one as libvirt 11.3 writes it, and single disks of every kind.

use super::*;

/// A running VM whose active layer is being merged: shortened where it does not matter.
const LIVE: &str = include_str!("live.xml");

fn image(path: &str, format: Format) -> ChainImage {
    ChainImage { path: path.into(), format, is_block_device: false }
}

fn block(path: &str, format: Format) -> ChainImage {
    ChainImage { is_block_device: true, ..image(path, format) }
}

#[test]
fn a_live_domain() {
    let description = Description::read(LIVE).unwrap();
    assert_eq!(description.memory_bytes, 64 << 20);
    assert_eq!(description.agent, AgentChannel::Connected);
    assert_eq!(description.memory_blocker, None);
    let disk = |target: &str, alias: &str, source, files: &[&str], mirror| DescribedDisk {
        target: target.parse().unwrap(),
        alias: Some(alias.to_owned()),
        source,
        files: files.iter().map(PathBuf::from).collect(),
        is_unnamed: false,
        mirror,
    };
    let complete = |images| DescribedSource::Chain { images, is_complete: true };
    let images = vec![
        image("/images/top.qcow2", Format::Qcow2),
        image("/images/middle.qcow2", Format::Qcow2),
        image("/images/base.qcow2", Format::Qcow2),
    ];
    let device = block("/dev/vg/data", Format::Raw);
    // The last is what it is merged into.
    let vda_files = ["top", "middle", "base", "middle"].map(|name| format!("/images/{name}.qcow2"));
    let vda_files: Vec<&str> = vda_files.iter().map(String::as_str).collect();
    assert_eq!(
        description.disks,
        [
            disk("vda", "virtio-disk0", complete(images), &vda_files, Some(Mirror { is_ready: true })),
            disk(
                "vdb",
                "virtio-disk1",
                complete(vec![device]),
                &["/dev/vg/data"],
                Some(Mirror { is_ready: false })
            ),
            disk("sda", "sata0-0-0", DescribedSource::Excluded(ExcludedDisk::Cdrom), &[], None),
        ]
    );
    let vda: DiskTarget = "vda".parse().unwrap();
    assert_eq!(description.disk(&vda).unwrap().active(), Some(&image("/images/top.qcow2", Format::Qcow2)));
}

/// Reads a domain with one disk.
fn disk(disk: &str) -> Result<DescribedSource> {
    let xml = format!(
        "<domain><memory>1</memory><devices><disk {disk}<target dev='vda'/></disk></devices></domain>"
    );
    Description::read(&xml).map(|description| description.disks[0].source.clone())
}

#[track_caller]
fn check(xml: &str, expected: &DescribedSource) {
    assert_eq!(disk(xml).unwrap(), *expected, "{xml}");
}

#[test]
fn chains() {
    const OPEN: &str = "type='file'><driver type='qcow2'/><source file='/i/top'/>";
    let below = |format: &str, more: &str| {
        format!("{OPEN}<backingStore type='file'>{format}<source file='/i/base'/>{more}</backingStore>")
    };
    let chain =
        |images: &[ChainImage], is_complete| DescribedSource::Chain { images: images.to_vec(), is_complete };
    let top = image("/i/top", Format::Qcow2);
    check(OPEN, &chain(std::slice::from_ref(&top), false));
    check(&format!("{OPEN}<backingStore/>"), &chain(std::slice::from_ref(&top), true));
    check(&below("<format type='raw'/>", ""), &chain(&[top.clone(), image("/i/base", Format::Raw)], true));
    check(
        &below("<format type='qcow2'/>", ""),
        &chain(&[top.clone(), image("/i/base", Format::Qcow2)], false),
    );
    check(
        &below("<format type='qcow2'/>", "<backingStore/>"),
        &chain(&[top, image("/i/base", Format::Qcow2)], true),
    );
    check(&below("", ""), &DescribedSource::Refused(RefusedDisk::FormatUnknown));
    check(
        "type='file'><driver type='raw'/><source file='/i/raw'/>",
        &chain(&[image("/i/raw", Format::Raw)], true),
    );
    check(
        "type='block'><driver type='qcow2'/><source dev='/dev/x'/><backingStore/>",
        &chain(&[block("/dev/x", Format::Qcow2)], true),
    );
}

#[test]
fn disks_that_are_left_out() {
    let check = |xml: &str, expected| check(xml, &DescribedSource::Excluded(expected));
    check("type='file' device='cdrom'>", ExcludedDisk::Cdrom);
    check("type='file' device='cdrom'><source file='/i/iso'/><readonly/>", ExcludedDisk::Cdrom);
    check("type='file' device='floppy'>", ExcludedDisk::Floppy);
    check("type='file'><driver type='raw'/><source file='/i/raw'/><readonly/>", ExcludedDisk::ReadOnly);
    check("type='network'><source protocol='rbd'/><readonly/>", ExcludedDisk::ReadOnly);
    check("type='file'><driver type='raw'/>", ExcludedDisk::Empty);
}

#[test]
fn disks_that_are_refused() {
    let check = |xml: &str, expected| check(xml, &DescribedSource::Refused(expected));
    let file = |more: &str| format!("type='file'><driver type='qcow2'/><source file='/i/top'/>{more}");
    let kind = |kind: &str| RefusedDisk::Kind(kind.to_owned());
    check(
        "type='network'><driver type='raw'/><source protocol='rbd' name='x'/>",
        RefusedDisk::Network("rbd".into()),
    );
    check(
        "type='network'><driver type='raw'/><source name='x'/>",
        RefusedDisk::Network("unknown protocol".into()),
    );
    check(
        "type='block' device='lun'><driver type='raw'/><source dev='/dev/x'/><readonly/>",
        RefusedDisk::Lun,
    );
    check("type='nvme'><driver type='raw'/><source type='pci'/>", kind("nvme"));
    check("type='vhostuser'><driver type='raw'/><source type='unix' path='/s'/>", kind("vhostuser"));
    check("type='vhostvdpa'><driver type='raw'/><source dev='/dev/vhost-vdpa-0'/>", kind("vhostvdpa"));
    check("type='volume'><driver type='raw'/><source pool='p' volume='v'/>", kind("volume"));
    check("type='dir'><driver type='fat'/><source dir='/d'/>", kind("dir"));
    check("type='file'><driver type='vmdk'/><source file='/i/x'/>", kind("a vmdk image"));
    check("type='file'><driver name='qemu'/><source file='/i/x'/>", RefusedDisk::FormatUnknown);
    check("type='file'><source file='/i/x'/>", RefusedDisk::FormatUnknown);
    check(&file("<shareable/>"), RefusedDisk::Shared);
    check(&file("<transient/>"), RefusedDisk::Transient);
    check(&file("<encryption format='luks'/>"), RefusedDisk::Encrypted("luks".into()));
    check(
        "type='file'><driver type='raw'/><source file='/i/x'><encryption format='luks2'/></source>",
        RefusedDisk::Encrypted("luks2".into()),
    );
    check(
        "type='file'><driver type='raw'/><source file='/i/x'><slices><slice/></slices></source>",
        kind("a slice of an image"),
    );
    check(
        "type='file'><driver type='qcow2'/><source file='/i/x'><dataStore type='file'/></source>",
        RefusedDisk::ExternalDataFile,
    );
    check(
        &file("<backingStore type='network'><format type='raw'/><source protocol='nbd'/></backingStore>"),
        RefusedDisk::Network("nbd".into()),
    );
    check(
        &file("<backingStore type='file'><format type='vdi'/><source file='/i/x'/></backingStore>"),
        kind("a vdi image"),
    );
}

#[test]
fn what_cannot_be_understood() {
    let check = |xml: &str, part: &str| {
        let error = Description::read(xml).unwrap_err();
        let cause = std::error::Error::source(&error).unwrap().to_string();
        assert!(cause.contains(part), "{cause}");
    };
    let domain = |inside: &str| format!("<domain>{inside}</domain>");
    let disk = |disk: &str| domain(&format!("<memory>1</memory><devices><disk {disk}</disk></devices>"));
    check("", "");
    check("<domain", "");
    check("<network/>", "its root is <network>");
    check(&domain(""), "it names no memory");
    check(&domain("<memory>-1</memory>"), "invalid digit");
    check(&domain("<memory unit='furlong'>1</memory>"), "memory in furlong");
    check(&domain("<memory unit='GiB'>99999999999999</memory>"), "memory beyond all bounds");
    check(&disk("type='file'>"), "a disk without a target");
    check(&disk("type='file'><target dev='../x'/>"), "it starts with '.'");
    let raw = "<driver type='raw'/><target dev='vda'/>";
    check(&disk(&format!("type='file'>{raw}<source file='relative'/>")), "without an absolute path");
    check(&disk(&format!("type='file'>{raw}<source/>")), "without an absolute path");
    check("<!DOCTYPE domain [<!ENTITY x 'y'>]><domain>&x;</domain>", "DTD");
    check(&format!("<domain>{}</domain>", "x".repeat(LONGEST)), "bytes long");
}

#[test]
fn the_agents_channel() {
    let check = |channel: &str, expected| {
        let xml = format!("<domain><memory>1</memory><devices>{channel}</devices></domain>");
        assert_eq!(Description::read(&xml).unwrap().agent, expected, "{channel}");
    };
    check("", AgentChannel::Absent);
    check("<channel type='unix'><target name='org.spice'/></channel>", AgentChannel::Absent);
    let agent = |state: &str| {
        format!("<channel type='unix'><target name='org.qemu.guest_agent.0'{state}/></channel>")
    };
    check(&agent(""), AgentChannel::Disconnected);
    check(&agent(" state='disconnected'"), AgentChannel::Disconnected);
    check(&agent(" state='connected'"), AgentChannel::Connected);
}

#[test]
fn what_a_vm_keeps_outside_of_its_disks() {
    let check = |os: &str, devices: &str, variables: Option<Format>, expected: &[&str]| {
        let xml = format!("<domain><memory>1</memory>{os}<devices>{devices}</devices></domain>");
        let read = Description::read(&xml).unwrap();
        let path = "/nvram/web.fd".into();
        assert_eq!(read.variables, variables.map(|format| ImageRef { path, format }), "{xml}");
        let uncovered: Vec<String> = read.uncovered.iter().map(ToString::to_string).collect();
        assert_eq!(uncovered, expected, "{xml}");
    };
    let (raw, qcow2) = (Some(Format::Raw), Some(Format::Qcow2));
    let tpm = "<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>";
    let no_file = "the UEFI variables (no file of them yet)";
    let flash = "type='pflash'";
    check("<os><type>hvm</type></os>", "", None, &[]);
    check("<os><loader type='rom'>/bios.bin</loader></os>", "", None, &[]);
    check(&format!("<os><loader {flash}>/code.fd</loader></os>"), "", None, &[no_file]);
    check(&format!("<os><loader stateless='yes' {flash}>/code.fd</loader></os>"), "", None, &[]);
    check("<os firmware='efi'/>", "", None, &[no_file]);
    check("<os><nvram template='/vars.fd'>/nvram/web.fd</nvram></os>", "", raw, &[]);
    check(
        "<os><nvram format='qcow2'>/nvram/web.fd</nvram></os>",
        tpm,
        qcow2,
        &["the state of its TPM (tpm-crb)"],
    );
    check("<os><nvram type='file'>\n <source file='/nvram/web.fd'/></nvram></os>", "", raw, &[]);
    check("<os><nvram template='/vars.fd'/></os>", tpm, None, &[no_file, "the state of its TPM (tpm-crb)"]);
    check(
        "<os><nvram type='block'><source dev='/dev/x'/></nvram></os>",
        "",
        None,
        &["the UEFI variables (on a block device)"],
    );
    check(
        "<os><nvram format='vmdk'>/nvram/web.fd</nvram></os>",
        "",
        None,
        &["the UEFI variables (in format vmdk)"],
    );
}

/// Whatever becomes of a disk, nobody may remove what it reads.
#[test]
fn files_of_disks_that_are_not_handled() {
    let check = |disk: &str, expected: &[&str], is_unnamed: bool| {
        let xml = format!(
            "<domain><memory>1</memory><devices><disk {disk}<target dev='vda'/></disk></devices></domain>"
        );
        let read = Description::read(&xml).unwrap();
        let expected: Vec<PathBuf> = expected.iter().map(PathBuf::from).collect();
        assert_eq!((&read.disks[0].files, read.disks[0].is_unnamed), (&expected, is_unnamed), "{disk}");
    };
    check("type='file' device='cdrom'><source file='/i/iso'/><readonly/>", &["/i/iso"], false);
    check("type='block'><driver type='raw'/><source dev='/dev/x'/><readonly/>", &["/dev/x"], false);
    check("type='file'><driver type='vmdk'/><source file='/i/x'/>", &["/i/x"], false);
    check(
        "type='file'><driver type='qcow2'/><source file='/i/x'/><shareable/><backingStore type='block'>\
         <format type='raw'/><source dev='/dev/y'/></backingStore>",
        &["/i/x", "/dev/y"],
        false,
    );
    check(
        "type='file'><driver type='qcow2'/><source file='/i/x'><dataStore type='file'><format type='raw'/>\
         <source file='/i/data'/></dataStore></source>",
        &["/i/x", "/i/data"],
        false,
    );
    check("type='volume'><driver type='raw'/><source pool='p' volume='v'/>", &[], true);
    check("type='network'><driver type='raw'/><source protocol='rbd' name='x'/>", &[], false);
    check("type='vhostvdpa'><driver type='raw'/><source dev='/dev/vhost-vdpa-0'/>", &[], false);
    check("type='file'><driver type='raw'/>", &[], false);
}
