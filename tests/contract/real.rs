//! The real node: the libvirt, QEMU and `qemu-img` of this machine.

use std::fmt::Write as _;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use tempfile::TempDir;
use tokio::sync::broadcast;
use uuid::Uuid;
use vmsnap::host::images::{Geometry, HostImages, ImageDeadlines};
use vmsnap::host::libvirt::{Deadlines, Libvirt};
use vmsnap::host::{GuestAgent, HostEvent, Hypervisor, Images, Link};
use vmsnap::model::VmId;
use vmsnap::model::step::ImageRef;
use vmsnap::model::vm::Format;

use crate::node::{BLOCK, BLOCKS, Node, PATIENCE};

const URI: &str = "qemu:///system";

pub struct Real {
    libvirt: Arc<Libvirt>,
    images: Arc<HostImages>,
    directory: TempDir,
    vms: Mutex<Vec<VmId>>,
}

impl Real {
    /// None where there is no libvirtd at all.
    pub async fn new() -> Option<Self> {
        if !has_libvirtd() {
            return None;
        }
        let directory = tempfile::Builder::new().prefix("vmsnap-contract-").tempdir().unwrap();
        // QEMU runs as another user, who must get through.
        std::fs::set_permissions(directory.path(), Permissions::from_mode(0o755)).unwrap();
        let libvirt = Libvirt::connect(URI, Deadlines::default()).unwrap();
        let mut link = libvirt.link();
        let is_up = link.wait_for(|link| *link == Link::Up);
        tokio::time::timeout(PATIENCE, is_up).await.expect("libvirtd answers").unwrap();
        let images = HostImages::new(ImageDeadlines::default(), Geometry::default()).unwrap();
        Some(Self { libvirt, images, directory, vms: Mutex::new(Vec::new()) })
    }
}

#[async_trait]
impl Node for Real {
    fn hypervisor(&self) -> &dyn Hypervisor {
        &*self.libvirt
    }

    fn agent(&self) -> &dyn GuestAgent {
        &*self.libvirt
    }

    fn images(&self) -> &dyn Images {
        &*self.images
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn put_image(&self, path: &Path, format: Format, size: u64) {
        run("qemu-img", &["create", "-q", "-f", format.as_str(), text(path), &size.to_string()]);
    }

    fn define(&self, disks: &[(&str, &ImageRef)]) -> VmId {
        let vm = VmId(Uuid::now_v7());
        define(vm, disks);
        self.vms.lock().unwrap().push(vm);
        vm
    }

    fn suspend(&self, vm: VmId) {
        virsh(&["suspend", &vm.to_string()]);
    }

    fn managed_save(&self, vm: VmId) {
        virsh(&["managedsave", &vm.to_string()]);
    }

    fn redefine(&self, vm: VmId, image: &ImageRef) {
        define(vm, &[("vda", image)]);
    }

    fn undefine(&self, vm: VmId) {
        virsh(&["undefine", &vm.to_string()]);
    }

    fn write_image(&self, image: &ImageRef, block: u64, value: u8) {
        run("qemu-io", &["-f", image.format.as_str(), "-c", &write(block, value), text(&image.path)]);
    }

    fn write_disk(&self, vm: VmId, disk: &str, block: u64, value: u8) {
        let number = disk.as_bytes()[2] - b'a';
        let device = format!("/machine/peripheral/virtio-disk{number}/virtio-backend");
        // What `write` does is not counted as the guest's.
        let write = format!("aio_{}", write(block, value));
        for action in [&write, "aio_flush", "flush"] {
            let command = format!("qemu-io -d {device} \"{action}\"");
            virsh(&["qemu-monitor-command", &vm.to_string(), "--hmp", &command]);
        }
    }

    fn read_image(&self, image: &ImageRef) -> Vec<u8> {
        let copy = tempfile::NamedTempFile::new_in(self.directory.path()).unwrap();
        let format = image.format.as_str();
        let arguments = ["convert", "-U", "-f", format, "-O", "raw", text(&image.path), text(copy.path())];
        run("qemu-img", &arguments);
        let bytes = std::fs::read(copy.path()).unwrap();
        assert_eq!(bytes.len() as u64, BLOCKS * BLOCK);
        let blocks = bytes.chunks(usize::try_from(BLOCK).unwrap());
        blocks
            .map(|block| {
                assert!(block.iter().all(|byte| *byte == block[0]), "a torn block in {image:?}");
                block[0]
            })
            .collect()
    }

    async fn job_moves(&self, events: &mut broadcast::Receiver<HostEvent>, vm: VmId) {
        let moved = async { while events.recv().await.unwrap() != HostEvent::BlockJobChanged(vm) {} };
        tokio::time::timeout(PATIENCE, moved).await.expect("the block job moves");
    }

    fn check_violations(&self, _expected: usize) {
        // Nobody notices.
    }
}

impl Drop for Real {
    fn drop(&mut self) {
        for vm in self.vms.lock().unwrap().iter() {
            remove(&vm.to_string());
        }
    }
}

/// On a busy machine libvirt gives up waiting for the end of a process that it has killed: asked again, it finds it gone.
fn remove(vm: &str) {
    let virsh = |arguments: &[&str]| {
        let ended = Command::new("virsh").args(["-q", "-c", URI]).args(arguments).output();
        ended.is_ok_and(|ended| ended.status.success())
    };
    for _ in 0..5 {
        // Off already, or gone already.
        virsh(&["destroy", vm]);
        virsh(&["undefine", "--managed-save", vm]);
        if !virsh(&["domuuid", vm]) {
            return;
        }
    }
}

fn define(vm: VmId, disks: &[(&str, &ImageRef)]) {
    let mut devices = String::new();
    for (target, image) in disks {
        let (format, path) = (image.format, image.path.display());
        write!(
            devices,
            "<disk type='file' device='disk'><driver name='qemu' type='{format}'/><source file='{path}'/>\
             <target dev='{target}' bus='virtio'/></disk>"
        )
        .unwrap();
    }
    let xml = format!(
        "<domain type='qemu'><name>vmsnap-contract-{}-{}</name><uuid>{vm}</uuid><memory unit='MiB'>32</memory>\
         <vcpu>1</vcpu><os><type arch='x86_64' machine='q35'>hvm</type></os><devices>{devices}</devices></domain>",
        std::process::id(),
        vm.0.simple()
    );
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), xml).unwrap();
    virsh(&["define", text(file.path())]);
}

fn write(block: u64, value: u8) -> String {
    format!("write -P {value} {} {BLOCK}", block * BLOCK)
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn virsh(arguments: &[&str]) {
    run("virsh", &[&["-q", "-c", URI], arguments].concat());
}

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).env("LC_ALL", "C").output().unwrap();
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {complaint}");
}

#[allow(clippy::print_stderr, reason = "a skipped test must be seen")]
fn has_libvirtd() -> bool {
    let answer = Command::new("virsh").args(["-c", URI, "version"]).output();
    let is_there = answer.is_ok_and(|answer| answer.status.success());
    if !is_there {
        eprintln!("SKIPPED: NO LIBVIRTD ANSWERS AT {URI}. The real half of the contract was not tested.");
    }
    is_there
}
