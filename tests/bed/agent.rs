//! Doing things inside a guest, through its agent.

use std::time::Duration;

use qapi::Command;
use qapi::qga::{
    GuestExecCaptureOutput, GuestFsfreezeStatus, guest_exec, guest_exec_status, guest_fsfreeze_status,
    guest_ping,
};
use serde_json::{Value, json};

use super::guest::Guest;
use super::{eventually, virsh};

const EXEC: Duration = Duration::from_secs(120);
/// Bytes per call: a command line argument of `virsh` has a limit.
const CHUNK: usize = 64 << 10;

/// How a command in the guest ended.
#[derive(Debug)]
pub struct Ended {
    /// Exit code; None if a signal ended it.
    pub code: Option<i64>,
    /// Its stdout.
    pub stdout: Vec<u8>,
    /// Its stderr.
    pub stderr: String,
}

impl Guest {
    /// Runs a shell script in the guest; panics if it fails. Gives its stdout, trimmed.
    #[track_caller]
    pub fn exec(&self, script: &str) -> String {
        let ended = self.try_exec(script, &[]);
        assert!(ended.code == Some(0), "in the guest: {script}: {ended:?}");
        String::from_utf8_lossy(&ended.stdout).trim_end().to_owned()
    }

    /// Lets a shell script begin in the guest, and waits for nothing: it may be what ends the guest's answers.
    #[track_caller]
    pub fn begin(&self, script: &str) {
        self.demand(&shell(script, &[])).unwrap_or_else(|error| panic!("in the guest: {script}: {error}"));
    }

    /// Runs a shell script in the guest with `input` on its stdin and waits for its end.
    #[track_caller]
    pub fn try_exec(&self, script: &str, input: &[u8]) -> Ended {
        self.attempt(script, input).unwrap_or_else(|error| panic!("in the guest: {script}: {error}"))
    }

    /// The same for a guest that may be gone, or libvirt: then it is not known how far the script came.
    pub fn attempt(&self, script: &str, input: &[u8]) -> Result<Ended, String> {
        let begun = self.demand(&shell(script, input))?;
        let ended = eventually(script, EXEC, || match self.demand(&guest_exec_status { pid: begun.pid }) {
            Ok(status) => status.exited.then_some(Ok(status)),
            Err(error) => Some(Err(error)),
        })?;
        Ok(Ended {
            code: ended.exitcode,
            stdout: ended.out_data.unwrap_or_default(),
            stderr: String::from_utf8_lossy(&ended.err_data.unwrap_or_default()).into_owned(),
        })
    }

    /// Writes a file and brings it to the disk.
    #[track_caller]
    pub fn write_file(&self, path: &str, content: &[u8]) {
        self.exec(&format!("> '{path}'"));
        for chunk in content.chunks(CHUNK) {
            let ended = self.try_exec(&format!("cat >> '{path}'"), chunk);
            assert!(ended.code == Some(0), "{path}: {ended:?}");
        }
        self.exec("sync");
    }

    /// A file's content; None if there is no such file.
    #[track_caller]
    pub fn read_file(&self, path: &str) -> Option<Vec<u8>> {
        let ended = self.try_exec(&format!("[ -e '{path}' ] || exit 44; cat '{path}'"), &[]);
        match ended.code {
            Some(0) => Some(ended.stdout),
            Some(44) => None,
            code => panic!("{path}: {code:?} {}", ended.stderr),
        }
    }

    /// Whether a file is there.
    #[track_caller]
    pub fn has_file(&self, path: &str) -> bool {
        self.read_file(path).is_some()
    }

    /// Whether the agent answers now.
    pub fn agent_answers(&self) -> bool {
        self.try_ask(&guest_ping {}).is_ok()
    }

    /// Whether the guest's filesystems are frozen.
    #[track_caller]
    pub fn is_frozen(&self) -> bool {
        match self.demand(&guest_fsfreeze_status {}).unwrap_or_else(|error| panic!("{error}")) {
            GuestFsfreezeStatus::frozen => true,
            GuestFsfreezeStatus::thawed => false,
        }
    }

    fn demand<C: Command>(&self, command: &C) -> Result<C::Ok, String> {
        let answer = self.try_ask(command).map_err(|error| format!("{}: {error}", C::NAME))?;
        serde_json::from_value(answer).map_err(|error| format!("{}: {error}", C::NAME))
    }

    fn try_ask<C: Command>(&self, command: &C) -> Result<Value, String> {
        let request = json!({ "execute": C::NAME, "arguments": command }).to_string();
        let answer = virsh::try_run(&["qemu-agent-command", self.name(), &request, "--timeout", "20"])?;
        let mut answer: Value = serde_json::from_str(&answer).map_err(|error| error.to_string())?;
        Ok(answer["return"].take())
    }
}

fn shell(script: &str, input: &[u8]) -> guest_exec {
    guest_exec {
        path: "/bin/sh".to_owned(),
        arg: Some(vec!["-c".to_owned(), script.to_owned()]),
        env: Some(vec!["PATH=/bin:/sbin".to_owned()]),
        input_data: (!input.is_empty()).then(|| input.to_vec()),
        capture_output: Some(GuestExecCaptureOutput::flag(true)),
    }
}
