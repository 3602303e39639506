//! What a service manager sees of the daemon: it is told when the daemon is ready, how it is, that it moves and that it
//! stops; and a socket that it hands over is served and left.

use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(60);

/// A daemon, ended with the value.
struct Daemon(Child);

impl Daemon {
    /// The shell makes the descriptor the third, and says for whom it is: only the daemon's own process knows that.
    fn start(directory: &TempDir, socket: Option<&UnixListener>, environment: &[(&str, &str)]) -> Self {
        let state = directory.path();
        let lines = format!(
            "socket = \"{0}/vmsnapd.sock\"\nstate_directory = \"{0}\"\nlibvirt_uri = \"test:///default\"\n",
            state.display()
        );
        std::fs::write(state.join("vmsnapd.toml"), lines).unwrap();
        let (stdin, script) = match socket {
            Some(socket) => {
                let script = "exec 3<&0 </dev/null; LISTEN_FDS=1 LISTEN_PID=$$ exec \"$0\" \"$@\"";
                (Stdio::from(OwnedFd::from(socket.try_clone().unwrap())), script)
            }
            None => (Stdio::null(), "exec \"$0\" \"$@\""),
        };
        let mut shell = Command::new("sh");
        shell.args(["-c", script, env!("CARGO_BIN_EXE_vmsnapd"), "--config"]).arg(state.join("vmsnapd.toml"));
        Self(shell.envs(environment.iter().copied()).stdin(stdin).stderr(Stdio::null()).spawn().unwrap())
    }

    fn stop(mut self) {
        kill(Pid::from_raw(i32::try_from(self.0.id()).unwrap()), Signal::SIGTERM).unwrap();
        assert!(self.0.wait().unwrap().success());
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        drop((self.0.kill(), self.0.wait()));
    }
}

/// Hears until somebody says a line that begins so. Gives it.
#[track_caller]
fn until(heard: &UnixDatagram, begin: &str) -> String {
    let mut all = Vec::new();
    loop {
        let mut buffer = [0; 4096];
        let Ok(length) = heard.recv(&mut buffer) else { panic!("{begin:?} is not in {all:#?}") };
        let said = String::from_utf8_lossy(&buffer[..length]).into_owned();
        if let Some(line) = said.lines().find(|line| line.starts_with(begin)) {
            return line.to_owned();
        }
        all.push(said);
    }
}

#[test]
fn it_is_told_how_the_daemon_is() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("notify");
    let heard = UnixDatagram::bind(&path).unwrap();
    heard.set_read_timeout(Some(PATIENCE)).unwrap();
    let environment = [("NOTIFY_SOCKET", path.to_str().unwrap()), ("WATCHDOG_USEC", "600000")];
    let daemon = Daemon::start(&directory, None, &environment);
    until(&heard, "READY=1");
    let status = until(&heard, "STATUS=0 operations under way; libvirt is ");
    assert!(!status.contains("controller"), "{status}");
    for _ in 0..3 {
        until(&heard, "WATCHDOG=1");
    }
    daemon.stop();
    until(&heard, "STOPPING=1");
}

fn version(directory: &TempDir) -> String {
    let socket = directory.path().join("vmsnapd.sock");
    let output =
        Command::new(env!("CARGO_BIN_EXE_vmsnap")).arg("--socket").arg(socket).arg("version").output();
    String::from_utf8(output.unwrap().stdout).unwrap()
}

/// Whoever calls while no daemon runs waits for the next one.
#[test]
fn a_socket_that_is_handed_over_is_served_and_left() {
    let directory = tempfile::tempdir().unwrap();
    let socket = UnixListener::bind(directory.path().join("vmsnapd.sock")).unwrap();
    for _ in 0..2 {
        let told = std::thread::scope(|scope| {
            let calling = scope.spawn(|| version(&directory));
            let daemon = Daemon::start(&directory, Some(&socket), &[]);
            let told = calling.join().unwrap();
            daemon.stop();
            told
        });
        assert!(told.contains("\nvmsnapd "), "{told}");
        assert!(directory.path().join("vmsnapd.sock").exists(), "it is not the daemon's to remove");
    }
}
