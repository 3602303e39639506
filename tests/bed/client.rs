//! Running `vmsnap` as an operator's script would: arguments in, exit code and JSON out.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;

use super::program;

/// `vmsnap` on one daemon.
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
}

/// How a run ended.
#[derive(Debug)]
pub struct Reply {
    /// Exit code; -1 if a signal ended it.
    pub code: i32,
    /// Its stdout.
    pub stdout: String,
    /// Its stderr.
    pub stderr: String,
}

/// A run that goes on.
#[derive(Debug)]
pub struct Running {
    child: Child,
}

impl Client {
    /// A client of the daemon at this socket.
    pub fn new(socket: &Path) -> Self {
        Self { socket: socket.to_owned() }
    }

    /// Runs `vmsnap -o json ARGUMENTS...`; panics unless it succeeds. Gives the JSON.
    #[track_caller]
    pub fn json(&self, arguments: &[&str]) -> Value {
        self.run(&[&["--output", "json"], arguments].concat()).json()
    }

    /// Runs `vmsnap ARGUMENTS...` to its end.
    #[track_caller]
    pub fn run(&self, arguments: &[&str]) -> Reply {
        self.spawn(arguments).wait()
    }

    /// Begins `vmsnap ARGUMENTS...`. Its standard input is no terminal.
    #[track_caller]
    pub fn spawn(&self, arguments: &[&str]) -> Running {
        let child = Command::new(program("vmsnap"))
            .arg("--socket")
            .arg(&self.socket)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("vmsnap can be run");
        Running { child }
    }
}

impl Running {
    /// Waits for the end.
    #[track_caller]
    pub fn wait(self) -> Reply {
        self.child.wait_with_output().expect("a child can be waited for").into()
    }

    /// Whether it has not ended yet.
    pub fn goes_on(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }
}

impl Reply {
    /// The JSON of a run that succeeded; panics with its stderr if it did not.
    #[track_caller]
    pub fn json(&self) -> Value {
        assert!(self.code == 0, "vmsnap failed with {}: {}", self.code, self.stderr);
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error} in {}", self.stdout))
    }
}

impl From<Output> for Reply {
    fn from(output: Output) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Self {
            code: output.status.code().unwrap_or(-1),
            stdout: text(output.stdout),
            stderr: text(output.stderr),
        }
    }
}
