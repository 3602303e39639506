//! `vmsnapd` as a process: started, asked for its health, killed, started again on the same state.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tonic::transport::{Channel, Endpoint};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use super::client::Client;
use super::scratch::Scratch;
use super::{eventually, program, wait_until};

const START: Duration = Duration::from_secs(60);
/// What a call may take, unless somebody says otherwise.
const ANSWER: Duration = Duration::from_secs(5);
const STOP: Duration = Duration::from_secs(120);
const LOG_TAIL: usize = 60;

/// What a daemon is started with, besides what the bed sets.
#[derive(Debug, Clone, Default)]
pub struct Setup {
    /// Further lines of its configuration file.
    pub configuration: String,
    /// Further environment variables.
    pub environment: Vec<(String, String)>,
    /// Most descriptors that it may have.
    pub descriptors: Option<u64>,
    /// Its state directory, if that is to lie elsewhere.
    pub state_directory: Option<PathBuf>,
}

/// A daemon with a socket and a state directory of its own. It is killed with the value.
pub struct Daemon {
    scratch: Scratch,
    setup: Setup,
    process: Option<Child>,
}

impl Daemon {
    /// Starts a daemon with its defaults and waits until it serves, and has found libvirt.
    #[track_caller]
    pub fn start() -> Self {
        let daemon = Self::start_with(Setup::default());
        daemon.wait_for_health("libvirt", ServingStatus::Serving);
        daemon
    }

    /// Starts a daemon and waits until it serves.
    #[track_caller]
    pub fn start_with(setup: Setup) -> Self {
        let mut daemon = Self { scratch: Scratch::new(), setup, process: None };
        daemon.restart();
        daemon
    }

    /// Starts the daemon again on the same state and waits until it serves.
    #[track_caller]
    pub fn restart(&mut self) {
        self.spawn();
        self.wait_until_it_serves();
    }

    /// Waits until it answers; panics if it ends instead.
    #[track_caller]
    pub fn wait_until_it_serves(&mut self) {
        wait_until("vmsnapd serves", START, || {
            assert!(self.is_running(), "vmsnapd ended before it served:\n{}", self.log_tail());
            self.health("") == ServingStatus::Serving
        });
    }

    /// Starts the process without waiting for anything.
    #[track_caller]
    pub fn spawn(&mut self) {
        assert!(self.process.is_none(), "vmsnapd runs already");
        let configuration = self.scratch.join("vmsnapd.toml");
        fs::write(&configuration, self.configuration()).expect("the directory is ours");
        let log =
            File::options().create(true).append(true).open(self.log_path()).expect("the directory is ours");
        let mut command = match self.setup.descriptors {
            None => Command::new(program("vmsnapd")),
            Some(most) => {
                // It becomes the program.
                let mut limited = Command::new("prlimit");
                limited.arg(format!("--nofile={most}:{most}")).arg(program("vmsnapd"));
                limited
            }
        };
        let child = command
            .arg("--config")
            .arg(configuration)
            .envs(self.setup.environment.iter().map(|(name, value)| (name, value)))
            // An interrupt from the terminal is for us.
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a file can be shared"))
            .stderr(log)
            .spawn()
            .expect("vmsnapd can be run");
        self.scratch.owns_process(Some(child.id()));
        self.process = Some(child);
    }

    /// Runs `vmsnapd VERB` with the daemon's configuration to its end.
    #[track_caller]
    pub fn run_verb(&self, verb: &str) -> ExitStatus {
        let mut command = Command::new(program("vmsnapd"));
        command.arg("--config").arg(self.scratch.join("vmsnapd.toml")).arg(verb);
        command.status().expect("vmsnapd can be run")
    }

    /// Runs `vmsnapd ARGUMENTS...` with the daemon's configuration to its end.
    #[track_caller]
    pub fn run_with(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(program("vmsnapd"));
        command.arg("--config").arg(self.scratch.join("vmsnapd.toml")).args(arguments);
        command.output().expect("vmsnapd can be run")
    }

    /// A client of this daemon.
    pub fn client(&self) -> Client {
        Client::new(&self.socket())
    }

    /// Its socket.
    pub fn socket(&self) -> PathBuf {
        self.scratch.join("vmsnapd.sock")
    }

    /// The directory with everything of this daemon.
    pub fn directory(&self) -> &Path {
        self.scratch.path()
    }

    /// Its state directory.
    pub fn state_directory(&self) -> PathBuf {
        self.setup.state_directory.clone().unwrap_or_else(|| self.scratch.join("state"))
    }

    /// Its process, while one was started and not yet waited for.
    pub fn process_id(&self) -> Option<u32> {
        self.process.as_ref().map(Child::id)
    }

    /// What it says of one of its parts; "" is the daemon itself. `Unknown` if it does not answer.
    pub fn health(&self, part: &str) -> ServingStatus {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime starts");
        runtime.block_on(check(self.socket(), part)).unwrap_or(ServingStatus::Unknown)
    }

    /// Waits until it says this of a part.
    #[track_caller]
    pub fn wait_for_health(&self, part: &str, status: ServingStatus) {
        wait_until(&format!("{part:?} is {status:?}"), START, || self.health(part) == status);
    }

    /// A gRPC channel to it; None if it does not answer.
    pub async fn connect(&self) -> Option<Channel> {
        self.connect_for(ANSWER).await
    }

    /// The same, for calls that may take longer to be answered.
    pub async fn connect_for(&self, answer: Duration) -> Option<Channel> {
        connect(self.socket(), answer).await
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.process.as_ref().expect("vmsnapd runs").id()
    }

    /// Whether the process runs.
    pub fn is_running(&mut self) -> bool {
        self.process.as_mut().is_some_and(|process| matches!(process.try_wait(), Ok(None)))
    }

    /// Ends it as a crash would: `kill -9`.
    #[track_caller]
    pub fn kill(&mut self) {
        self.signal(Signal::SIGKILL);
        self.wait();
    }

    /// Ends it as systemd would: SIGTERM, then waits.
    #[track_caller]
    pub fn stop(&mut self) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        self.wait()
    }

    /// Sends a signal.
    #[track_caller]
    pub fn signal(&mut self, signal: Signal) {
        let process = self.process.as_ref().expect("vmsnapd runs");
        let id = i32::try_from(process.id()).expect("a process id is an i32");
        kill(Pid::from_raw(id), signal).expect("the child is not yet waited for");
    }

    /// Waits for its end.
    #[track_caller]
    pub fn wait(&mut self) -> ExitStatus {
        let mut process = self.process.take().expect("vmsnapd runs");
        let status =
            eventually("vmsnapd ends", STOP, || process.try_wait().expect("a child can be waited for"));
        self.scratch.owns_process(None);
        status
    }

    /// All it has logged, over its lives.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    fn log_path(&self) -> PathBuf {
        self.scratch.join("vmsnapd.log")
    }

    fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(LOG_TAIL)..].join("\n")
    }

    fn configuration(&self) -> String {
        format!(
            "socket = \"{}\"\nstate_directory = \"{}\"\n{}\n",
            self.socket().display(),
            self.state_directory().display(),
            self.setup.configuration
        )
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if std::thread::panicking() {
            #[allow(
                clippy::print_stderr,
                reason = "the log goes with the directory: what failed must be seen"
            )]
            {
                eprintln!("--- the end of the log of vmsnapd\n{}\n---", self.log_tail());
            }
        }
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
            self.scratch.owns_process(None);
        }
    }
}

async fn check(socket: PathBuf, part: &str) -> Option<ServingStatus> {
    let request = HealthCheckRequest { service: part.to_owned() };
    let answer = HealthClient::new(connect(socket, ANSWER).await?).check(request).await.ok()?;
    Some(answer.into_inner().status())
}

/// A gRPC channel over a Unix socket; None if nobody answers.
async fn connect(socket: PathBuf, answer: Duration) -> Option<Channel> {
    let endpoint = Endpoint::from_static("http://localhost").timeout(answer);
    let connector = tower::service_fn(move |_| {
        let socket = socket.clone();
        async move { tokio::net::UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    endpoint.connect_with_connector(connector).await.ok()
}
