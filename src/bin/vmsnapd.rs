//! `vmsnapd`, the daemon.

fn main() -> std::process::ExitCode {
    vmsnap::daemon::main()
}
