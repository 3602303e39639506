//! `vmsnapd health`: asks the daemon that runs how it is, for probes that execute a program.
//!
//! Decides that silence is an answer: whoever does not answer within `PATIENCE` does not serve.

use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Status};
use tonic_health::ServingStatus;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tower::service_fn;

use super::config::Config;

/// Longest wait for an answer. A probe of systemd or of Kubernetes waits a second or some.
const PATIENCE: Duration = Duration::from_secs(5);

/// Why the daemon is not known to serve.
#[derive(Debug, thiserror::Error)]
pub(super) enum ProbeError {
    #[error("cannot start")]
    System(#[source] std::io::Error),
    #[error("vmsnapd does not answer on {} within {} s", .0.display(), PATIENCE.as_secs())]
    Silent(PathBuf),
    #[error("vmsnapd cannot be asked on {}", .path.display())]
    Unreachable {
        path: PathBuf,
        #[source]
        cause: Box<Status>,
    },
    #[error("vmsnapd has no part {0:?}")]
    NoSuchPart(String),
    #[error("{}", not_serving(.0))]
    NotServing(String),
}

fn not_serving(part: &str) -> String {
    match part {
        "" => "vmsnapd is not serving".to_owned(),
        part => format!("the part {part} of vmsnapd is not serving"),
    }
}

/// Asks for one part, or with an empty name for whether calls are served at all.
pub(super) fn ask(config: &Config, part: &str) -> Result<(), ProbeError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let asked = async {
        let asked = tokio::time::timeout(PATIENCE, check(&config.socket, part));
        asked.await.map_err(|_| ProbeError::Silent(config.socket.clone()))?
    };
    runtime.map_err(ProbeError::System)?.block_on(asked)
}

async fn check(socket: &Path, part: &str) -> Result<(), ProbeError> {
    let request = HealthCheckRequest { service: part.to_owned() };
    let answer = HealthClient::new(channel(socket)).check(request).await;
    let answer = answer.map_err(|status| match status.code() {
        Code::NotFound => ProbeError::NoSuchPart(part.to_owned()),
        _ => ProbeError::Unreachable { path: socket.to_owned(), cause: Box::new(status) },
    })?;
    if answer.into_inner().status == ServingStatus::Serving as i32 {
        return Ok(());
    }
    Err(ProbeError::NotServing(part.to_owned()))
}

fn channel(socket: &Path) -> Channel {
    let socket = socket.to_owned();
    let connect = service_fn(move |_: Uri| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    // Only a name: the connector above goes to the socket.
    Endpoint::from_static("http://localhost").connect_with_connector_lazy(connect)
}
