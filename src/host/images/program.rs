//! A program run by us, bounded in every way.
//!
//! Decides its limits: time, memory, processor time, output, environment, and that it does not outlive us. Leaves its
//! arguments to the caller.
//!
//! `prlimit` and `setpriv` of util-linux set the limits, then become the program. Setting them between fork and exec
//! ourselves would need unsafe code.

use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, Command};
use tokio::runtime::Handle;

use crate::host::workers::Workers;
use crate::host::{HostError, Result};

/// Where programs are. `PATH` is not asked.
const PLACES: [&str; 2] = ["/usr/bin", "/bin"];

/// Address space: generous for any image, and an end for one that is made to eat memory.
const ADDRESS_SPACE: u64 = 8 << 30;

/// How long starting it may take.
const START: Duration = Duration::from_secs(20);

/// Bytes of its complaints that are kept: the last ones.
const COMPLAINTS_KEPT: usize = 2048;

/// Longest line of its output that is looked at.
const LONGEST_LINE: usize = 256;

/// A program and those that limit it.
#[derive(Debug)]
pub(super) struct Program {
    name: &'static str,
    path: PathBuf,
    prlimit: PathBuf,
    setpriv: PathBuf,
}

/// What to do with what it prints.
#[derive(Clone, Copy)]
pub(super) enum Output<'a> {
    /// Nothing.
    Ignored,
    /// Each line is handed over as it comes. A carriage return ends one, too.
    Lines(&'a (dyn Fn(&[u8]) + Send + Sync)),
}

impl Program {
    /// Looks up a program at its fixed places.
    pub(super) fn find(name: &'static str) -> Result<Self> {
        Ok(Self { name, path: find(name)?, prlimit: find("prlimit")?, setpriv: find("setpriv")? })
    }

    /// Runs it to its end. `written` is the file it writes, for the error when there is no space.
    ///
    /// When the deadline passes, or the caller goes away, it is killed.
    pub(super) async fn run(
        &self,
        workers: &Workers,
        arguments: &[&str],
        deadline: Duration,
        output: Output<'_>,
        written: &Path,
    ) -> Result<()> {
        let mut child = self.start(workers, arguments, deadline).await?;
        match tokio::time::timeout(deadline, finish(&mut child, output)).await {
            Ok(Ok((status, complaints))) => self.judge(status, &complaints, written),
            Ok(Err(error)) => Err(self.failed(error.to_string())),
            Err(_) => {
                // Waits for its death: until then it can still write.
                if let Err(error) = child.kill().await {
                    tracing::warn!(program = self.name, %error, "a program could not be killed");
                }
                Err(HostError::TimedOut { call: self.name, after: deadline })
            }
        }
    }

    /// Starts it from a thread of the pool. It is killed when the thread that started it ends, and a thread of the
    /// pool lives as long as we do; one of the runtime need not.
    async fn start(&self, workers: &Workers, arguments: &[&str], deadline: Duration) -> Result<Child> {
        let mut command = self.command(arguments, deadline);
        let name = self.name;
        let runtime = Handle::current();
        let start = move || {
            let _context = runtime.enter();
            command.spawn().map_err(|error| HostError::Program { program: name, output: error.to_string() })
        };
        workers.run(name, START, start).await
    }

    fn command(&self, arguments: &[&str], deadline: Duration) -> Command {
        // Two threads' worth: its own and those that read and write.
        let cpu_seconds = deadline.as_secs().saturating_mul(2).max(10);
        let mut command = Command::new(&self.prlimit);
        command
            .arg(format!("--as={ADDRESS_SPACE}"))
            .arg(format!("--cpu={cpu_seconds}"))
            .arg("--core=0")
            .arg("--")
            .arg(&self.setpriv)
            .args(["--pdeathsig", "KILL", "--"])
            .arg(&self.path)
            .args(arguments)
            .env_clear()
            .env("LC_ALL", "C")
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    fn judge(&self, status: ExitStatus, complaints: &[u8], written: &Path) -> Result<()> {
        if status.success() {
            return Ok(());
        }
        let words = printable(complaints);
        // Its only way to say so; the text is the C library's, and the language is fixed.
        if words.contains("No space left on device") {
            return Err(HostError::NoSpace(written.to_owned()));
        }
        Err(self.failed(if words.is_empty() { status.to_string() } else { words }))
    }

    fn failed(&self, output: String) -> HostError {
        HostError::Program { program: self.name, output }
    }
}

/// Where a program is.
pub(in crate::host) fn find(name: &'static str) -> Result<PathBuf> {
    let place = PLACES.iter().map(|place| Path::new(place).join(name)).find(|path| path.is_file());
    place.ok_or_else(|| HostError::Program {
        program: name,
        output: format!("it is in none of {}", PLACES.join(", ")),
    })
}

/// Reads both outputs to their ends, so that the program never waits for us, and waits for the program.
async fn finish(child: &mut Child, output: Output<'_>) -> std::io::Result<(ExitStatus, Vec<u8>)> {
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let (read, complaints, status) =
        tokio::join!(read_lines(stdout, output), read_tail(stderr), child.wait());
    read?;
    Ok((status?, complaints?))
}

async fn read_lines(from: Option<impl AsyncRead + Unpin>, output: Output<'_>) -> std::io::Result<()> {
    let Some(mut from) = from else { return Ok(()) };
    let mut piece = [0; 1024];
    let mut line = Vec::new();
    loop {
        let length = from.read(&mut piece).await?;
        if length == 0 {
            return Ok(());
        }
        for byte in &piece[..length] {
            match (byte, output) {
                (b'\r' | b'\n', Output::Lines(report)) => {
                    report(&line);
                    line.clear();
                }
                (byte, Output::Lines(_)) if line.len() < LONGEST_LINE => line.push(*byte),
                (_, Output::Lines(_) | Output::Ignored) => {}
            }
        }
    }
}

async fn read_tail(from: Option<impl AsyncRead + Unpin>) -> std::io::Result<Vec<u8>> {
    let mut tail = Vec::new();
    let Some(mut from) = from else { return Ok(tail) };
    let mut piece = [0; 1024];
    loop {
        let length = from.read(&mut piece).await?;
        if length == 0 {
            return Ok(tail);
        }
        tail.extend_from_slice(&piece[..length]);
        let surplus = tail.len().saturating_sub(COMPLAINTS_KEPT);
        tail.drain(..surplus);
    }
}

/// Words that can be shown: lossy, without control characters.
fn printable(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    text.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}
