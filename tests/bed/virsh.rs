//! `virsh` on `qemu:///system`: the bed's own hands, independent of everything that is tested.

use std::process::Command;

/// Runs `virsh` with these arguments. Gives its stdout, or its stderr if it failed.
pub fn try_run(arguments: &[&str]) -> Result<String, String> {
    let output = Command::new("virsh")
        .args(["--quiet", "--connect", "qemu:///system"])
        .args(arguments)
        .output()
        .expect("virsh is installed by tests/bed/setup.sh");
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).trim_end().to_owned())
    }
}

/// [`try_run`] where failure is the end of the test.
#[track_caller]
pub fn run(arguments: &[&str]) -> String {
    try_run(arguments).unwrap_or_else(|error| panic!("virsh {}: {error}", arguments.join(" ")))
}
