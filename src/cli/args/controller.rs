//! `vmsnap controller`: what can be said.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args as ClapArgs, Subcommand};

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum ControllerVerb {
    /// Be a controller: take the reports of daemons, show them, acknowledge them
    ///
    /// It needs no daemon of its own. Let '[controller] endpoint' of a daemon's configuration point to it. Reports that have
    /// been shown are not sent again; with --log they are on the disk before they are acknowledged.
    Receive(ReceiveArgs),
}

#[derive(Debug, Clone, ClapArgs)]
pub(in crate::cli) struct ReceiveArgs {
    /// Where to listen
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:7443")]
    pub(in crate::cli) listen: SocketAddr,
    /// Certificate to show, PEM. Without TLS it only listens on this machine itself
    #[arg(long, value_name = "FILE", requires_all = ["key", "client_ca"])]
    pub(in crate::cli) certificate: Option<PathBuf>,
    /// Its private key, PEM
    #[arg(long, value_name = "FILE", requires = "certificate")]
    pub(in crate::cli) key: Option<PathBuf>,
    /// Certificates that may sign those of daemons, PEM
    #[arg(long, value_name = "FILE", requires = "certificate")]
    pub(in crate::cli) client_ca: Option<PathBuf>,
    /// Append each report to this file, as a line of JSON. What it holds already is not taken twice
    #[arg(long, value_name = "FILE")]
    pub(in crate::cli) log: Option<PathBuf>,
    /// Ask each daemon for all that there is on its node, even if nothing is missing
    #[arg(long)]
    pub(in crate::cli) inventory: bool,
}
