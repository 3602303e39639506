//! A node of one's own: another libvirtd, with VMs of its own, that may be killed while others use the one of the
//! machine; and file systems that may be filled.
//!
//! It is a mount namespace: libvirt's directories are empty in it, so `qemu:///system` leads to the libvirtd that was
//! started there. What runs in it are the threads and processes that are started in it; the rest of the machine sees
//! nothing of it, and its mounts go with its last process.

use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::sys::statvfs::statvfs;
use nix::unistd::Pid;

use super::images::run;
use super::scratch::{PLACE, Scratch};
use super::{virsh, wait_until};

/// Where libvirt keeps what it knows. A libvirtd that finds nothing there knows no VM.
const DIRECTORIES: [&str; 5] =
    ["/run/libvirt", "/var/lib/libvirt/qemu", "/etc/libvirt/qemu", "/var/log/libvirt", "/var/cache/libvirt"];

const RUN: &str = "/run/libvirt/qemu";
/// Where the images of the node's file systems are reached on it, whatever is mounted over their own place.
const STORAGE: &str = "/run/libvirt/storage";
const ANSWER: Duration = Duration::from_secs(60);

/// Ends what would outlive a killed owner: first whoever has VMs ends them, then what is left of QEMU, then libvirt.
const GUARD: &str = r#"
trap '' INT TERM HUP
cat
tries=0
while [ $tries -lt 100 ] && [ -n "$(virsh -q -c qemu:///system list --all --name 2>&1)" ]; do
    tries=$((tries + 1))
    sleep 0.2
done
for file in /run/libvirt/qemu/*.pid /run/libvirt/libvirtd.pid /run/libvirt/virtlogd.pid; do
    [ -s "$file" ] && kill -KILL "$(cat "$file")"
done
"#;

/// The node that the calling thread is on.
pub struct Node {
    libvirtd: Option<Child>,
    virtlogd: Child,
    guard: Child,
    /// Where scratch directories are made.
    place: &'static Path,
    /// Holds the images of the node's file systems. It lies outside, and goes after everything else.
    _storage: Scratch,
}

impl Node {
    /// Runs something on a node of its own, on a thread of its own. All that is to be on the node is started in there.
    pub fn within<T: Send>(what: impl FnOnce(&mut Self) -> T + Send) -> T {
        std::thread::scope(|scope| {
            let result = scope.spawn(|| what(&mut Self::enter())).join();
            result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    fn enter() -> Self {
        let storage = Scratch::new();
        unshare(CloneFlags::CLONE_NEWNS).expect("root may have a mount namespace");
        attach(None, "/", None, MsFlags::MS_REC | MsFlags::MS_PRIVATE);
        for directory in DIRECTORIES {
            fs::create_dir_all(directory).expect("root may make it");
            attach(Some("tmpfs"), directory, Some("mode=755"), MsFlags::empty());
        }
        fs::create_dir(STORAGE).expect("the directory above is empty");
        let own = storage.path().display().to_string();
        attach(Some(&own), STORAGE, None, MsFlags::MS_BIND);
        let guard = Command::new("sh")
            .args(["-c", GUARD])
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("there is a shell");
        let virtlogd = start("virtlogd");
        let place = Path::new(PLACE);
        let mut node = Self { libvirtd: None, virtlogd, guard, place, _storage: storage };
        node.start_libvirtd();
        node
    }

    /// Puts a file system of this size where scratch directories are made. To be called before any is made on the node.
    #[track_caller]
    pub fn limit_images(&self, mib: u64) {
        mount_storage(self.place, "images", mib);
    }

    /// A file system of its own.
    #[track_caller]
    pub fn file_system(&self, name: &str, mib: u64) -> PathBuf {
        let place = self.place.join(name);
        fs::create_dir(&place).expect("the name is new");
        mount_storage(&place, name, mib);
        place
    }

    /// A directory for images.
    #[track_caller]
    pub fn directory(&self, name: &str) -> PathBuf {
        let place = self.place.join(name);
        fs::create_dir(&place).expect("the name is new");
        run(Command::new("chmod").arg("711").arg(&place));
        place
    }

    /// Ends libvirtd as a crash would. Its VMs run on.
    #[track_caller]
    pub fn kill_libvirtd(&mut self) {
        self.libvirtd.as_mut().expect("libvirtd runs").kill().expect("the child is not yet waited for");
        self.wait_for_libvirtd();
    }

    /// Waits for the end of a libvirtd that was killed.
    #[track_caller]
    pub fn wait_for_libvirtd(&mut self) {
        self.libvirtd.take().expect("libvirtd runs").wait().expect("a child can be waited for");
    }

    /// Ends the VMs as a crash of the node would, and forgets what does not outlive it: libvirtd, which is dead, finds them off
    /// when it is started.
    #[track_caller]
    pub fn end_all(vms: &[String]) {
        for vm in vms {
            if let Some(process) = Self::qemu(vm) {
                end(process);
                wait_until("QEMU has ended", ANSWER, || has_ended(process));
            }
            for file in ["pid", "xml"] {
                let _ = fs::remove_file(format!("{RUN}/{vm}.{file}"));
            }
        }
    }

    /// Starts libvirtd and waits until it answers.
    #[track_caller]
    pub fn start_libvirtd(&mut self) {
        assert!(self.libvirtd.is_none(), "libvirtd runs already");
        self.libvirtd = Some(start("libvirtd"));
        wait_until("libvirtd answers", ANSWER, || virsh::try_run(&["uri"]).is_ok());
    }

    /// The process of libvirtd, while it runs.
    pub fn libvirtd(&self) -> Option<u32> {
        self.libvirtd.as_ref().map(Child::id)
    }

    /// The process of a VM's QEMU.
    pub fn qemu(vm: &str) -> Option<u32> {
        fs::read_to_string(format!("{RUN}/{vm}.pid")).ok()?.trim().parse().ok()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // Whoever has VMs on the node has ended them: the guard finds nothing more to wait for.
        drop(self.guard.stdin.take());
        let _ = self.guard.wait();
        for process in self.libvirtd.iter_mut().chain([&mut self.virtlogd]) {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

/// QEMU must be let through.
fn mount_storage(place: &Path, name: &str, mib: u64) {
    let image = Path::new(STORAGE).join(format!("{name}.ext4"));
    File::create(&image).and_then(|file| file.set_len(mib << 20)).expect("there is room");
    run(Command::new("mke2fs").args(["-q", "-F", "-t", "ext4", "-m", "0"]).arg(&image));
    run(Command::new("mount").args(["-o", "loop"]).args([&image, place]));
    run(Command::new("chmod").arg("711").arg(place));
}

fn attach(what: Option<&str>, place: &str, options: Option<&str>, flags: MsFlags) {
    // What is mounted from nowhere is named after its kind.
    mount(what, place, what, flags, options).unwrap_or_else(|error| panic!("{place}: {error}"));
}

fn start(program: &str) -> Child {
    let log = File::options().create(true).append(true).open(format!("/var/log/libvirt/{program}.log"));
    Command::new(program)
        .args(["--pid-file", &format!("/run/libvirt/{program}.pid")])
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log.expect("the directory is ours"))
        .spawn()
        .unwrap_or_else(|error| panic!("{program}: {error}"))
}

/// Takes all the room of a file system until it is dropped.
pub struct Filler(PathBuf);

impl Filler {
    /// Fills the file system that a directory is on.
    #[track_caller]
    pub fn fill(directory: &Path) -> Self {
        let filler = Self(directory.join("filler"));
        let mut file = File::create(&filler.0).expect("there is room for a name");
        let space = statvfs(directory).expect("it is a file system");
        let bytes = (space.blocks_available() * space.fragment_size()).to_string();
        // Most of it at once, the rest block by block: others take and free room meanwhile.
        let _ = Command::new("fallocate").args(["--length", &bytes]).arg(&filler.0).output();
        let _ = file.seek(SeekFrom::End(0));
        while file.write_all(&[0; 4096]).is_ok() {}
        filler
    }
}

impl Drop for Filler {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Whether nothing of it runs any more. What is left of it may wait for its parent.
fn has_ended(process: u32) -> bool {
    let told = fs::read_to_string(format!("/proc/{process}/stat"));
    told.map_or(true, |told| told.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z')))
}

/// Ends a process at once.
pub fn end(process: u32) {
    // One that has ended by itself is ended.
    let _ = kill(Pid::from_raw(i32::try_from(process).expect("a process id is an i32")), Signal::SIGKILL);
}
