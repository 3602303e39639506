//! Small VMs under the real libvirt of this machine: no guest system, a BIOS that finds nothing to boot is a running
//! VM. Each has a name of its own and is gone when it is dropped.

use std::fmt::Write as _;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;
use tokio::sync::{broadcast, watch};
use uuid::Uuid;
use vmsnap::host::images::{Geometry, HostImages, ImageDeadlines};
use vmsnap::host::libvirt::{Deadlines, Libvirt};
use vmsnap::host::{DiskSwitch, HostEvent, Hypervisor, Images, Link};
use vmsnap::model::step::{ImageRef, NewOverlay};
use vmsnap::model::vm::{DiskSource, Format, RunState};
use vmsnap::model::{DiskTarget, VmId, VmView};

pub const URI: &str = "qemu:///system";

/// Size of every disk.
pub const DISK: u64 = 64 << 20;

/// Longest wait for anything. Reached only when something is broken.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Everything a test needs, or None where there is no libvirtd at all.
pub struct Bed {
    pub libvirt: Arc<Libvirt>,
    pub images: Arc<HostImages>,
    directory: TempDir,
}

impl Bed {
    pub async fn new() -> Option<Self> {
        if !has_libvirtd() {
            return None;
        }
        let directory = tempfile::Builder::new().prefix("vmsnap-host-").tempdir().unwrap();
        // QEMU runs as another user, who must get through.
        std::fs::set_permissions(directory.path(), Permissions::from_mode(0o755)).unwrap();
        let libvirt = Libvirt::connect(URI, Deadlines::default()).unwrap();
        is_up(&mut libvirt.link()).await;
        let images = HostImages::new(ImageDeadlines::default(), Geometry::default()).unwrap();
        Some(Self { libvirt, images, directory })
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// An empty image without backing.
    pub fn image(&self, name: &str, format: Format) -> ImageRef {
        let path = self.path(name);
        run("qemu-img", &["create", "-q", "-f", format.as_str(), text(&path), &DISK.to_string()]);
        ImageRef { path, format }
    }

    /// An empty overlay, made by the code under test.
    pub async fn overlay(&self, name: &str, over: &ImageRef) -> ImageRef {
        let path = self.path(name);
        self.images
            .create_overlay(&NewOverlay {
                target: target("vda"),
                path: path.clone(),
                backing_path: over.path.clone(),
                backing_format: over.format,
                virtual_size: DISK,
            })
            .await
            .unwrap();
        ImageRef { path, format: Format::Qcow2 }
    }

    pub async fn observe(&self, vm: &Vm) -> VmView {
        self.libvirt.observe(vm.id).await.unwrap()
    }

    pub async fn start(&self, vm: &Vm) {
        self.libvirt.start(vm.id, &vmsnap::host::StartFrom::Disks, false).await.unwrap();
        assert_eq!(self.observe(vm).await.run_state, RunState::Running);
    }

    /// Switches disks, leaving all others of the VM alone.
    pub async fn switch(&self, vm: &Vm, disks: &[(&str, &ImageRef)], memory: Option<&Path>) {
        let others = self.observe(vm).await.disks.into_iter().map(|disk| disk.target);
        let others = others.filter(|other| !disks.iter().any(|(target, _)| *target == other.as_str()));
        let switch = DiskSwitch {
            disks: disks.iter().map(|(disk, image)| (target(disk), (*image).clone())).collect(),
            others: others.collect(),
            memory: memory.map(Path::to_owned),
        };
        self.libvirt.switch_disks(vm.id, &switch).await.unwrap();
    }
}

/// A VM that is gone when this is dropped.
pub struct Vm {
    pub id: VmId,
    pub name: String,
}

impl Vm {
    /// Defines a VM with these devices. `os` is XML that goes into `<os>`, `more` into `<domain>`.
    pub fn define(devices: &str, os: &str, more: &str) -> Self {
        let id = Uuid::now_v7();
        let name = format!("vmsnap-host-{}-{}", std::process::id(), id.simple());
        let xml = format!(
            "<domain type='qemu'><name>{name}</name><uuid>{id}</uuid><memory unit='MiB'>192</memory><vcpu>1</vcpu>\
             <os><type arch='x86_64' machine='q35'>hvm</type>{os}</os><devices>{devices}</devices>{more}</domain>"
        );
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), xml).unwrap();
        virsh(&["define", text(file.path())]);
        Self { id: VmId(id), name }
    }

    /// Defines a VM with these disks. `extra` is XML that goes among its devices.
    pub fn with_disks(disks: &[(&str, &ImageRef)], extra: &str) -> Self {
        let mut devices = String::new();
        for (target, image) in disks {
            writeln!(
                devices,
                "<disk type='file' device='disk'><driver name='qemu' type='{}'/><source file='{}'/>\
                 <target dev='{target}' bus='virtio'/></disk>",
                image.format,
                image.path.display()
            )
            .unwrap();
        }
        Self::define(&format!("{devices}{extra}"), "", "")
    }

    pub fn xml(&self, option: &str) -> String {
        virsh(&["dumpxml", &self.name, "--security-info", option])
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        for arguments in [["destroy", &self.name], ["undefine", &self.name]] {
            // Off already, or gone already.
            let _ = Command::new("virsh").args(["-q", "-c", URI]).args(arguments).output();
        }
    }
}

/// The paths of a disk's chain, active first.
pub fn chain(view: &VmView, disk: &str) -> Vec<PathBuf> {
    view.disk(&target(disk)).unwrap().chain().iter().map(|image| image.path.clone()).collect()
}

/// The image that the stored definition names.
pub fn persistent(view: &VmView, disk: &str) -> Option<PathBuf> {
    match &view.disk(&target(disk)).unwrap().source {
        DiskSource::Chain { persistent, .. } => persistent.clone(),
        other => panic!("{other:?}"),
    }
}

pub fn paths(images: &[&ImageRef]) -> Vec<PathBuf> {
    images.iter().map(|image| image.path.clone()).collect()
}

pub fn target(name: &str) -> DiskTarget {
    name.parse().unwrap()
}

pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

pub async fn is_up(link: &mut watch::Receiver<Link>) {
    in_time(link.wait_for(|link| *link == Link::Up)).await.unwrap();
}

/// Waits for an event.
pub async fn heard(events: &mut broadcast::Receiver<HostEvent>, expected: &HostEvent) {
    in_time(async { while events.recv().await.unwrap() != *expected {} }).await;
}

pub async fn in_time<T>(wait: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, wait).await.expect("what was waited for came in time")
}

pub fn virsh(arguments: &[&str]) -> String {
    run("virsh", &[&["-q", "-c", URI], arguments].concat())
}

pub fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).env("LC_ALL", "C").output().unwrap();
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {complaint}");
    String::from_utf8(output.stdout).unwrap()
}

#[allow(clippy::print_stderr, reason = "a skipped test must be seen")]
fn has_libvirtd() -> bool {
    let answer = Command::new("virsh").args(["-c", URI, "version"]).output();
    let is_there = answer.is_ok_and(|answer| answer.status.success());
    if !is_there {
        eprintln!("SKIPPED: NO LIBVIRTD ANSWERS AT {URI}. Nothing was tested.");
    }
    is_there
}
