//! `vmsnap`, the client. A crate root of its own: see `cli`.

#[path = "../cli/mod.rs"]
mod cli;
// The client reads a part of the contract.
#[allow(
    dead_code,
    unused_imports,
    reason = "the contract is generated whole; the daemon serves the rest of it"
)]
#[path = "../proto.rs"]
mod proto;

use std::process::ExitCode;

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<ExitCode> {
    cli::run().await
}
