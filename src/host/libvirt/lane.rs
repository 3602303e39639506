//! A line to libvirtd with its own threads.
//!
//! Decides which calls cannot hold up which others: a lane that is stuck leaves the rest alone. Leaves deadlines and
//! the calls themselves to the caller.
//!
//! libvirtd serves five requests of one connection at a time (`max_client_requests`) and twenty in all
//! (`max_workers`). Each lane stays within the five, and all lanes together below the twenty: even with every other lane
//! stuck, a thaw is served, and so is an operator's `virsh`.

use std::sync::Arc;
use std::time::Duration;

use super::connection::{Connection, Line};
use crate::host::workers::Workers;
use crate::host::{HostError, Result};

/// See the module.
#[derive(Debug)]
pub(super) struct Lane {
    workers: Workers,
    line: Arc<Line>,
}

impl Lane {
    /// A lane of `threads` threads over `line`.
    pub(super) fn start(name: &'static str, threads: usize, line: Arc<Line>) -> Self {
        Self { workers: Workers::start(name, threads), line }
    }

    /// Makes a call on a thread of this lane. Fails at once when the line is down.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        call: &'static str,
        deadline: Duration,
        work: impl FnOnce(&Connection) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let connection = self.line.connection()?;
        let line = Arc::clone(&self.line);
        self.workers.run(call, deadline, move || on_line(&line, &connection, work)).await
    }

    /// As [`Lane::run`], for a plain OS thread.
    pub(super) fn run_blocking<T: Send + 'static>(
        &self,
        call: &'static str,
        deadline: Duration,
        work: impl FnOnce(&Connection) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let connection = self.line.connection()?;
        let line = Arc::clone(&self.line);
        self.workers.run_blocking(call, deadline, move || on_line(&line, &connection, work))
    }
}

fn on_line<T>(
    line: &Line,
    connection: &Connection,
    work: impl FnOnce(&Connection) -> Result<T>,
) -> Result<T> {
    let result = work(connection);
    if let Err(error @ HostError::Unreachable(_)) = &result {
        line.suspect(connection, error);
    }
    result
}
