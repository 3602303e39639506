//! Another node: a second libvirtd on this machine, for VMs that migrate. Its VMs end with it.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::scratch::Scratch;
use super::{Guest, wait_until};

/// What only a broken libvirtd does not do in time.
const START: Duration = Duration::from_secs(60);

/// The other node, until dropped.
pub struct Elsewhere {
    process: Child,
    scratch: Scratch,
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        // All that it has begun ends with it. One that has ended already is what is wanted.
        let _ = self.process.kill();
        let _ = self.process.wait();
        self.scratch.owns_process(None);
    }
}

impl Elsewhere {
    /// Starts it.
    #[track_caller]
    pub fn start() -> Self {
        let mut scratch = Scratch::new();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/bed/elsewhere.sh");
        let mut command = Command::new("unshare");
        command.args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]).arg(script);
        command.arg(scratch.path()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let process = command.spawn().expect("unshare is a part of every Debian");
        scratch.owns_process(Some(process.id()));
        let elsewhere = Self { process, scratch };
        wait_until("the other libvirtd answers", START, || elsewhere.try_virsh(&["list"]).is_ok());
        elsewhere
    }

    /// Lets a running guest go on there, and be unknown here.
    #[track_caller]
    pub fn take(&self, guest: &Guest) {
        guest.virsh("migrate", &[&OPTIONS[..], &[&self.uri()]].concat());
    }

    /// Lets a running guest go on there. Its definition stays here.
    #[track_caller]
    pub fn take_and_leave_definition(&self, guest: &Guest) {
        let uri = self.uri();
        let options = OPTIONS.into_iter().filter(|option| *option != "--undefinesource");
        let options: Vec<&str> = options.chain([&*uri]).collect();
        guest.virsh("migrate", &options);
    }

    /// Lets a guest go on here again, and be unknown there.
    #[track_caller]
    pub fn give_back(&self, guest: &Guest) {
        let arguments = [&["migrate", guest.name()], &OPTIONS[..], &["qemu:///system"]].concat();
        self.try_virsh(&arguments).unwrap_or_else(|error| panic!("it does not come back: {error}"));
    }

    fn uri(&self) -> String {
        format!("qemu+unix:///system?socket={}", self.scratch.join("libvirt-sock").display())
    }

    fn try_virsh(&self, arguments: &[&str]) -> Result<(), String> {
        let output =
            Command::new("virsh").args(["--quiet", "--connect", &self.uri()]).args(arguments).output();
        let output = output.expect("virsh is installed by tests/bed/setup.sh");
        if output.status.success() {
            Ok(())
        } else {
            Err(String::from_utf8_lossy(&output.stderr).into_owned())
        }
    }
}

/// The images are the same files for both: libvirt cannot know that such caches are safe.
const OPTIONS: [&str; 6] =
    ["--live", "--unsafe", "--persistent", "--undefinesource", "--migrateuri", "tcp://127.0.0.1"];
