//! Directories that vanish with their owner, and with them the VM and the process that belong to them.
//!
//! There is one way of cleaning up, and it lives in another process: a shell that waits for the end of its input.
//! Its input ends when the owner is dropped, panics, is interrupted or is killed, so all of these leave nothing.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use super::cache;

/// QEMU does not run as root: every directory on the way to an image must let it through, and a checkout may lie
/// in a home that does not.
pub(super) const PLACE: &str = "/var/lib/libvirt/images";

/// Reads what there is to end ("vm NAME", "process PID", "mount DIRECTORY"), waits for the end of input, ends it.
const GUARD: &str = r#"
trap '' INT TERM HUP
directory=$1 vm= process= mount=
# Whoever wants to see the end of all guards waits for this lock: see run.sh.
exec 9>>"$2"
flock --shared 9
while read -r kind name; do
    case $kind in
    vm) vm=$name ;;
    process) process=$name ;;
    mount) mount=$name ;;
    esac
done
[ -n "$process" ] && kill -KILL "$process"
tries=0
while [ -n "$vm" ] && [ $tries -lt 50 ]; do
    virsh -q -c qemu:///system destroy "$vm"
    virsh -q -c qemu:///system undefine "$vm" --managed-save --snapshots-metadata --checkpoints-metadata --nvram
    virsh -q -c qemu:///system list --all --name >"$directory/vms" && ! grep -qx "$vm" "$directory/vms" && break
    tries=$((tries + 1))
    sleep 0.2
done
[ -n "$vm" ] && rm -f "/var/log/libvirt/qemu/$vm.log"
# A VM in another directory may have files open there: it has a guard of its own.
while [ -n "$mount" ] && mountpoint -q "$mount" && ! umount "$mount" && [ $tries -lt 50 ]; do
    tries=$((tries + 1))
    sleep 0.2
done
until rm -rf "$directory" || [ $tries -ge 60 ]; do
    tries=$((tries + 1))
    sleep 0.2
done
"#;

static COUNT: AtomicU32 = AtomicU32::new(0);

/// A directory that QEMU can reach into, under a name that no other process uses.
pub struct Scratch {
    name: String,
    directory: PathBuf,
    guard: Child,
}

impl Scratch {
    /// Makes the directory.
    pub fn new() -> Self {
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("vmsnap-bed-{}-{number}", std::process::id());
        let directory = Path::new(PLACE).join(&name);
        fs::create_dir(&directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o711)).expect("the directory is ours");
        let guard = Command::new("sh")
            .args(["-c", GUARD, "guard"])
            .args([&directory, &cache().join("guards")])
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("there is a shell");
        Self { name, directory, guard }
    }

    /// The directory's own name, unique on this machine.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A path in the directory.
    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.directory.join(name)
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.directory
    }

    /// From here on the VM of this name goes with the directory.
    pub fn owns_vm(&mut self, name: &str) {
        self.tell(&format!("vm {name}"));
    }

    /// From here on this process goes with the directory; None once it has ended.
    pub fn owns_process(&mut self, process: Option<u32>) {
        self.tell(&format!("process {}", process.map(|id| id.to_string()).unwrap_or_default()));
    }

    /// From here on what is mounted on this directory goes with the one it is in.
    pub fn owns_mount(&mut self, directory: &Path) {
        self.tell(&format!("mount {}", directory.display()));
    }

    fn tell(&mut self, line: &str) {
        let input = self.guard.stdin.as_mut().expect("the guard's input is piped");
        writeln!(input, "{line}").expect("the guard lives as long as its input");
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        drop(self.guard.stdin.take());
        // Nothing to be done about a guard that failed: its directory shows it.
        let _ = self.guard.wait();
    }
}
