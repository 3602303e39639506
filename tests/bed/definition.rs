//! What a guest is made of: disks, memory, and the domain XML that says so to libvirt.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::cache;
use super::images::run;
use super::scratch::Scratch;

/// What a guest is made of.
#[derive(Debug, Clone)]
pub struct Spec {
    /// Its disks, from `vda` on, each with an ext4 filesystem.
    pub disks: Vec<Disk>,
    /// RAM in MiB. 192 is enough.
    pub memory_mib: u64,
    /// Whether a writer begins on every filesystem at each boot.
    pub writers: bool,
    /// Whether the guest agent answers.
    pub agent: Agent,
    /// What it boots by. UEFI takes 256 MiB of RAM, and seconds more.
    pub firmware: Firmware,
}

impl Default for Spec {
    fn default() -> Self {
        Self {
            disks: vec![Disk::new(Format::Qcow2), Disk::new(Format::Raw)],
            memory_mib: 192,
            writers: false,
            agent: Agent::Answers,
            firmware: Firmware::Bios,
        }
    }
}

/// A disk.
#[derive(Debug, Clone, Copy)]
pub struct Disk {
    /// Format of its image.
    pub format: Format,
    /// Virtual size in MiB.
    pub size_mib: u64,
}

impl Disk {
    /// A disk of 64 MiB.
    pub fn new(format: Format) -> Self {
        Self { format, size_mib: 64 }
    }
}

/// The format of an image; never probed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// `qcow2`
    Qcow2,
    /// `raw`
    Raw,
}

impl Format {
    /// The name that QEMU and libvirt use.
    pub fn name(self) -> &'static str {
        match self {
            Self::Qcow2 => "qcow2",
            Self::Raw => "raw",
        }
    }
}

/// Whether the guest agent answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Agent {
    /// It runs.
    Answers,
    /// The channel is there and nobody is at its other end.
    Absent,
}

/// What a guest boots by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Firmware {
    /// QEMU's own.
    Bios,
    /// OVMF, with a file of variables beside the disks.
    Uefi,
}

/// Where Debian's package `ovmf` has it.
const OVMF: &str = "/usr/share/OVMF";

/// `vda`, `vdb`, ...
pub(super) fn target(index: usize) -> String {
    let letter = u8::try_from(index).ok().and_then(|index| b'a'.checked_add(index)).filter(|l| *l <= b'z');
    format!("vd{}", char::from(letter.expect("at most 26 disks")))
}

/// Makes the images and copies the kernel; gives the domain XML over them.
pub(super) fn prepare(spec: &Spec, scratch: &Scratch) -> String {
    for file in ["vmlinuz", "initrd.gz"] {
        let from = cache().join("guest").join(file);
        fs::copy(&from, scratch.join(file))
            .unwrap_or_else(|error| panic!("{}: {error}; run tests/bed/setup.sh first", from.display()));
    }
    if spec.firmware == Firmware::Uefi {
        let template = Path::new(OVMF).join("OVMF_VARS_4M.fd");
        fs::copy(&template, scratch.join("variables.fd"))
            .unwrap_or_else(|error| panic!("{}: {error}; run tests/bed/setup.sh first", template.display()));
    }
    let disks: Vec<(Disk, PathBuf)> = spec
        .disks
        .iter()
        .enumerate()
        .map(|(index, disk)| (*disk, make_image(*disk, scratch, &target(index))))
        .collect();
    domain_xml(spec, scratch, &disks)
}

fn make_image(disk: Disk, scratch: &Scratch, name: &str) -> PathBuf {
    let raw = scratch.join(format!("{name}.raw"));
    let size = disk.size_mib << 20;
    File::create(&raw).and_then(|file| file.set_len(size)).expect("the directory is ours");
    run(Command::new("mke2fs").args(["-q", "-F", "-t", "ext4"]).arg(&raw));
    match disk.format {
        Format::Raw => raw,
        Format::Qcow2 => {
            let image = scratch.join(format!("{name}.qcow2"));
            run(Command::new("qemu-img").args(["convert", "-f", "raw", "-O", "qcow2"]).args([&raw, &image]));
            fs::remove_file(raw).expect("it was just made");
            image
        }
    }
}

fn domain_xml(spec: &Spec, scratch: &Scratch, disks: &[(Disk, PathBuf)]) -> String {
    let (kind, cpu) = if has_kvm() { ("kvm", "<cpu mode='host-model'/>") } else { ("qemu", "") };
    let path = |name: &str| scratch.join(name).display().to_string();
    let mut xml = format!(
        "<domain type='{kind}'>
  <name>{name}</name>
  <memory unit='MiB'>{memory}</memory>
  <vcpu>1</vcpu>{cpu}
  <os>
    <type arch='x86_64' machine='pc'>hvm</type>{firmware}
    <kernel>{kernel}</kernel>
    <initrd>{initrd}</initrd>
    <cmdline>{options}</cmdline>
  </os>
  <features><acpi/></features>
  <on_poweroff>destroy</on_poweroff>
  <on_reboot>restart</on_reboot>
  <on_crash>destroy</on_crash>
  <devices>
    <serial type='file'><source path='{console}'/></serial>
    <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
    <channel type='unix'>
      <source mode='bind' path='{progress}'/>
      <target type='virtio' name='vmsnap.progress'/>
    </channel>\n",
        name = scratch.name(),
        memory = spec.memory_mib,
        firmware = match spec.firmware {
            Firmware::Bios => String::new(),
            Firmware::Uefi => format!(
                "
    <loader readonly='yes' type='pflash'>{OVMF}/OVMF_CODE_4M.fd</loader>
    <nvram>{}</nvram>",
                path("variables.fd")
            ),
        },
        kernel = path("vmlinuz"),
        initrd = path("initrd.gz"),
        options = kernel_options(spec),
        console = path("console.log"),
        progress = path("progress.socket"),
    );
    for (index, (disk, image)) in disks.iter().enumerate() {
        xml.push_str(&disk_xml(disk.format, image, &target(index)));
    }
    xml.push_str("  </devices>\n</domain>\n");
    xml
}

/// A `<disk>` element over a file.
pub(super) fn disk_xml(format: Format, image: &Path, target: &str) -> String {
    format!(
        "    <disk type='file' device='disk'>
      <driver name='qemu' type='{format}' discard='unmap'/>
      <source file='{image}'/>
      <target dev='{target}' bus='virtio'/>
    </disk>\n",
        format = format.name(),
        image = image.display(),
    )
}

/// The options that `tests/guest/init` reads. The kernel's own tests of its ciphers cost seconds under emulation;
/// and one that tries its timer out while other guests have the processors finds none, and stands still.
fn kernel_options(spec: &Spec) -> String {
    let mut options = format!(
        "console=ttyS0 quiet panic=1 no_timer_check cryptomgr.notests vmsnap.disks={}",
        spec.disks.len()
    );
    if spec.writers {
        options.push_str(" vmsnap.write=1");
    }
    if spec.agent == Agent::Absent {
        options.push_str(" vmsnap.agent=absent");
    }
    options
}

/// KVM can be used only if the device opens and the processor has what it needs: some machines have the one
/// without the other, and a kernel hangs there.
fn has_kvm() -> bool {
    let opens = File::options().read(true).write(true).open("/dev/kvm").is_ok();
    let processor = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    opens && processor.split_whitespace().any(|flag| flag == "vmx" || flag == "svm")
}
